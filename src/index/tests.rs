//! What makes no tree is refused; what is no index is never read as one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::format::{BLOCK, DATA, DataRecord, HEADER, Header, Layout, RECORD, Record};
use super::*;
use crate::digest::Algorithm;
use crate::limits::INDEX_RENEWALS;

const FACTS: FileFacts = FileFacts { size: 0, mode: 0o444, ctime_sec: 1, ctime_nsec: 2 };

fn file(path: &str, offset: u64) -> NewEntry {
    let place = Place::Packed { offset };
    NewEntry { path: path_of(path), kind: Kind::File, mode: 0o644, mtime: 0, size: 0, place, stream_offset: offset }
}

fn folder(path: &str, mode: u32) -> NewEntry {
    NewEntry { path: path_of(path), kind: Kind::Folder, mode, mtime: 3, size: 0, place: Place::None, stream_offset: 0 }
}

fn data(path: &str, ordinal: u32, size: u64, stream_offset: u64) -> NewEntry {
    NewEntry { size, place: Place::Data { ordinal }, ..file(path, stream_offset) }
}

fn path_of(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a good path")
}

fn layer() -> Digest {
    Digest::of(Algorithm::Sha256, b"layer")
}

fn stored(pack: u64, whole: u64) -> Stored {
    Stored { layer: layer(), blob_size: whole, uncompressed: None, uncompressed_size: whole, pack: FileFacts { size: pack, ..FACTS } }
}

fn build(entries: &[NewEntry], stored: &Stored) -> Result<File, IndexError> {
    let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
    for entry in entries {
        builder.add(entry)?;
    }
    let out = tempfile::tempfile().expect("a file");
    let size = |ordinal| entries.iter().find(|entry| entry.place == Place::Data { ordinal }).map_or(0, |entry| entry.size);
    builder.finish(&out, stored, &mut |ordinal| Ok(FileFacts { size: size(ordinal), ..FACTS }))?;
    Ok(out)
}

fn index(entries: &[NewEntry]) -> Result<Index, IndexError> {
    Index::map(&build(entries, &stored(0, 0))?, &layer())
}

#[test]
fn no_entries_are_a_root() {
    let index = index(&[]).expect("good");
    assert_eq!((index.len(), index.files(), index.segments().count()), (1, 0, 0));
    let root = index.entry(0).expect("a root");
    assert_eq!((root.kind, root.mode, root.implied, root.parent), (Kind::Folder, 0o755, true, 0));
    assert_eq!(index.path(0).expect("a root"), RelPath::root());
}

#[test]
fn a_folder_may_be_mentioned_again() {
    let index = index(&[file("a/f", 0), folder("a", 0o700), folder("a", 0o711), folder("", 0o750), folder("", 0o777)]).expect("good");
    let a = index.find(&path_of("a")).expect("good").expect("there");
    assert_eq!((index.len(), index.entry(a).expect("good").mode, index.entry(0).expect("good").mode), (3, 0o700, 0o750));
    assert!(!index.entry(0).expect("good").implied && !index.entry(a).expect("good").implied);
}

#[test]
fn ranks_are_breadth_first_in_byte_order() {
    let names = ["b/x", "a!/y", "a/z/deep", "a", "B", "a0/y"];
    let entries: Vec<_> = names.iter().map(|name| if *name == "a" { folder(name, 0o755) } else { file(name, 0) }).collect();
    let index = index(&entries).expect("good");
    let paths: Vec<String> = (0..index.len()).map(|rank| index.path(rank).expect("good").to_string()).collect();
    assert_eq!(paths, [".", "B", "a", "a!", "a0", "b", "a/z", "a!/y", "a0/y", "b/x", "a/z/deep"]);
}

#[test]
fn one_name_is_one_thing() {
    let twice = index(&[file("a/b", 10), file("c", 15), file("a/b", 20)]).expect_err("twice");
    assert!(matches!(&twice, IndexError::Twice { path, first: 10, second: 20 } if *path == path_of("a/b")), "{twice}");
    assert!(twice.is_refusal());
    for (entries, file_name, other) in [
        (vec![file("a", 5), file("a/b", 6)], "a", "a/b"),
        (vec![file("a/b", 6), file("a", 5)], "a", "a/b"),
        (vec![file("a", 5), folder("a", 0o755)], "a", "a"),
        (vec![folder("a", 0o755), file("a", 5)], "a", "a"),
        (vec![file("x/a", 5), file("x/a!", 6), file("x/a/b/c", 7)], "x/a", "x/a/b/c"),
        (vec![file("x/a/b/c", 7), folder("x/a", 0o755), folder("x", 0o755), file("x/a/b", 5)], "x/a/b", "x/a/b/c"),
        (vec![folder("", 0o755), file("", 5)], "", ""),
        (vec![file("", 5)], "", ""),
    ] {
        let error = index(&entries).expect_err("file and folder");
        let IndexError::FileAgainstFolder { file, other: got, at: 5 } = &error else { panic!("{error}") };
        assert_eq!((file, got), (&path_of(file_name), &path_of(other)));
        assert!(error.is_refusal());
    }
}

#[test]
fn siblings_of_a_file_that_begin_with_its_name_are_none_of_its_business() {
    assert_eq!(index(&[file("a", 0), file("a!", 0), file("a.b", 0), file("ab/c", 0)]).expect("good").len(), 6);
}

#[test]
fn numbers_that_do_not_fit_are_not_written() {
    let entries = [data("a", 0, 100, 512)];
    assert!(build(&entries, &stored(1024, 1124)).is_ok());
    let error = build(&entries, &stored(1024, 1125)).expect_err("a byte is missing");
    assert!(matches!(error, IndexError::Inconsistent { expected: 1125, got: 1124, .. }), "{error}");
    let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
    builder.add(&entries[0]).expect("good");
    let out = tempfile::tempfile().expect("a file");
    let error = builder.finish(&out, &stored(1024, 1124), &mut |_| Ok(FileFacts { size: 99, ..FACTS })).expect_err("too short");
    assert!(matches!(error, IndexError::Inconsistent { expected: 100, got: 99, .. }), "{error}");
}

#[test]
fn entries_have_a_limit() {
    let finish = |names: &[&str]| {
        let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
        builder.limit = 5;
        names.iter().try_for_each(|name| builder.add(&file(name, 0)))?;
        builder.finish(&tempfile::tempfile().expect("a file"), &stored(0, 0), &mut |_| Ok(FACTS))
    };
    // The root and the folders that follow from names count.
    for (names, fits) in [
        (&["a", "b", "c", "d"][..], true),
        (&["a", "b", "c", "d", "e"], false),
        (&["a", "b", "c", "d", "e", "f"], false),
        (&["a/b/c", "d"], true),
        (&["a/b/c", "d", "e"], false),
    ] {
        match finish(names) {
            Ok(()) => assert!(fits, "{names:?}"),
            Err(error) => assert!(!fits && matches!(error, IndexError::TooMany) && error.is_refusal(), "{names:?}: {error}"),
        }
    }
    const { assert!(LAYER_ENTRIES < 1 << 24, "a node id has 24 bits for the rank") };
}

#[test]
fn other_files_are_no_index() {
    let good = build(&[file("a", 0)], &stored(0, 0)).expect("good");
    let other = Digest::of(Algorithm::Sha256, b"other");
    assert!(matches!(Index::map(&good, &other), Err(IndexError::WrongLayer { expected, got }) if *expected == other && *got == layer()));
    let bytes = read(&good);
    let map = |bytes: &[u8]| Index::map(&with(bytes), &layer());
    assert!(map(&bytes).is_ok());
    assert!(matches!(map(b""), Err(IndexError::Damaged { .. })));
    assert!(matches!(map(&[0; HEADER]), Err(IndexError::Version { .. })));
    assert!(matches!(map(&bytes[..bytes.len() - 1]), Err(IndexError::Damaged { .. })));
    assert!(matches!(map(&[bytes.as_slice(), b"x"].concat()), Err(IndexError::Damaged { .. })));
    let mut version = bytes.clone();
    version[8] = 2;
    assert!(matches!(map(&version), Err(IndexError::Version { found, .. }) if found == "version 2"));
}

#[test]
fn records_are_read_as_written() {
    let record = Record {
        parent: 1,
        first_child: 2,
        child_count: 0,
        name_offset: u32::MAX,
        name_length: 255,
        mtime: i64::MIN,
        size: u64::MAX,
        stream_offset: 5,
        place: Place::Data { ordinal: 9 },
        mode: 0o7777,
        kind: Kind::File,
        implied: false,
    };
    assert_eq!(Record::decode(&record.encode()), Some(record));
    let data = DataRecord { ordinal: 4, facts: FileFacts { size: 1, mode: 2, ctime_sec: -3, ctime_nsec: 4 }, stream_offset: 5 };
    assert_eq!(DataRecord::decode(&data.encode()), data);
    let header = Header {
        entries: 1,
        data_files: 2,
        names_size: 3,
        layer: Digest::of(Algorithm::Sha512, b"x"),
        uncompressed: Some(layer()),
        blob_size: 4,
        uncompressed_size: 5,
        files: 6,
        total_size: 7,
        table_checksum: 8,
        pack: FileFacts { size: 9, mode: 10, ctime_sec: -11, ctime_nsec: 12 },
    };
    assert_eq!(Header::decode(&header.encode()).expect("good"), header);
    assert!(Layout::new(u32::MAX, u64::MAX, u32::MAX).is_none());
}

/// The format is on people's disks: if these change, the version must.
#[test]
fn format_and_ranks_are_fixed() {
    let entries = [folder("d", 0o755), data("d/big", 1, 100, 1024), file("d/small", 1536), file("e/f", 2048)];
    let bytes = read(&build(&entries, &stored(2560, 2660)).expect("good"));
    let index = Index::map(&with(&bytes), &layer()).expect("good");
    assert_eq!(bytes.len(), HEADER + 6 * RECORD + "debigsmallf".len().next_multiple_of(8) + DATA + 4);
    assert_eq!(hex::encode(index.table_checksum().to_le_bytes()), "ac95cb3dfeeb9708");
    assert_eq!(Digest::of(Algorithm::Sha256, &bytes).hex(), "e36d84efe50993601cf6ea088da7c077a54b435f8f85ac161853bf029d065910");
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("open").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("open");
    bytes
}

fn with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("room");
    file
}

/// A layer whose index has several blocks of each part.
fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let name = |number: u64| format!("d{}/e{}/{number}-{}", number % 7, number % 11, "n".repeat((number % 90) as usize));
        let entries: Vec<_> = (0..3000u64).map(|number| data(&name(number), number as u32, 100, 1024 * number)).collect();
        read(&build(&entries, &stored(2_800_000, 3_100_000)).expect("good"))
    })
}

/// Everything that can be asked, each answer on its own.
fn answers(index: &Index) -> Vec<Result<String, IndexError>> {
    let mut answers = Vec::new();
    for rank in 0..index.len() {
        answers.push(index.entry(rank).map(|entry| format!("{entry:?}")));
        answers.push(index.name(rank).map(|name| format!("{name:?}")));
        answers.push(index.children(rank).map(|children| format!("{children:?}")));
        if rank % 16 == 0 {
            answers.push(index.path(rank).map(|path| format!("{path:?}")));
        }
    }
    for number in (0..3000).step_by(7) {
        answers.push(index.data(number).map(|facts| format!("{facts:?}")));
        let path = path_of(&format!("d{}/e{}/{number}", number % 7, number % 11));
        answers.push(index.find(&path).map(|rank| format!("{rank:?}")));
    }
    answers.extend(index.segments().map(|segment| segment.map(|segment| format!("{segment:?}"))));
    answers.push(Ok(format!("{:?}", (index.files(), index.total_size(), index.table_checksum(), index.pack(), index.uncompressed()))));
    answers
}

fn right() -> &'static [Result<String, IndexError>] {
    static RIGHT: OnceLock<Vec<Result<String, IndexError>>> = OnceLock::new();
    RIGHT.get_or_init(|| answers(&Index::map(&with(sample()), &layer()).expect("good")))
}

#[test]
fn an_index_that_is_damaged_again_and_again_is_renewed_so_often_and_no_more() {
    let mut spoiled = sample().to_vec();
    let Header { entries, names_size, data_files, .. } = Header::decode(sample()).expect("good");
    let layout = Layout::new(entries, names_size, data_files).expect("good");
    spoiled[layout.entries.start as usize + 1] ^= 1;
    let map = |bytes: &[u8]| Index::map(&with(bytes), &layer()).expect("its header is good");
    let renewed = |times: usize| {
        let index = map(&spoiled);
        for _ in 0..times {
            assert!(index.entry(0).is_err() && !index.is_spent());
            index.renew(&map(&spoiled));
        }
        assert!(!index.is_spent(), "nobody has looked at the last one");
        assert!(index.entry(0).is_err());
        index
    };
    let index = renewed(INDEX_RENEWALS - 1);
    index.renew(&map(sample()));
    assert!(index.entry(0).is_ok() && !index.is_spent());
    let index = renewed(INDEX_RENEWALS);
    index.renew(&map(sample()));
    assert!(index.entry(0).is_err() && index.is_spent());
}

/// Makes every checksum right again, as somebody would who wants to be believed.
fn seal(bytes: &mut [u8]) {
    let Ok(header) = Header::decode(sample()) else { return };
    let layout = Layout::new(header.entries, header.names_size, header.data_files).expect("good");
    let checked = bytes[layout.checked.start as usize..layout.checked.end as usize].to_vec();
    for (number, block) in checked.chunks(BLOCK as usize).enumerate() {
        let at = layout.checksums.start as usize + 4 * number;
        bytes[at..at + 4].copy_from_slice(&crc32fast::hash(block).to_le_bytes());
    }
    let checksum = u64::from(crc32fast::hash(&bytes[..HEADER - 8]));
    bytes[HEADER - 8..HEADER].copy_from_slice(&checksum.to_le_bytes());
}

/// Numbers that somebody might write where they do harm.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), Just(u32::MAX), 0u32..4000, any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_flipped_bit_is_an_error_or_no_matter(flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4)) {
        let mut bytes = sample().to_vec();
        for (at, bit) in &flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(index) = Index::map(&with(&bytes), &layer()) {
            let mut wrong = bytes != sample();
            let answers = answers(&index);
            for (answer, right) in answers.iter().zip(right()) {
                match (answer, right) {
                    (Ok(answer), Ok(right)) => prop_assert_eq!(answer, right),
                    (Err(_), _) => { wrong = false; break; }
                    (_, Err(_)) => prop_assert!(false, "the sample is wrong"),
                }
            }
            prop_assert!(!wrong, "a flipped bit went unnoticed");
        }
    }

    #[test]
    fn forged_bytes_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), number()), 1..200),
        header in any::<bool>(),
    ) {
        let mut bytes = sample().to_vec();
        let start = if header { 12 } else { HEADER };
        for (at, number) in &changes {
            let at = start + at.index(if header { 300 } else { bytes.len() - HEADER - 4 }) / 4 * 4;
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        seal(&mut bytes);
        let layer = Header::decode(&bytes).map_or(layer(), |header| header.layer);
        if let Ok(index) = Index::map(&with(&bytes), &layer) {
            let _ = answers(&index);
        }
    }
}

#[test]
fn every_byte_of_the_header_counts() {
    for at in 0..HEADER {
        let mut bytes = sample()[..].to_vec();
        bytes[at] ^= 0x40;
        assert!(Index::map(&with(&bytes), &layer()).is_err(), "{at}");
    }
}
