//! What is read, what is refused, and that pieces and trees of every shape come out as they went in.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::digest::{Algorithm, Digest};
use crate::index::{FileFacts, Index, IndexBuilder, Segment, Stored};
use crate::limits::PATH_BYTES;

/// Keeps everything in memory.
#[derive(Default)]
struct Sink {
    entries: Vec<NewEntry>,
    pack: Vec<u8>,
    data: BTreeMap<u32, Vec<u8>>,
    open: Option<(u32, u64)>,
}

impl Output for Sink {
    fn pack(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert!(self.open.is_none(), "a data file is open");
        self.pack.extend_from_slice(bytes);
        Ok(())
    }

    fn open_data(&mut self, ordinal: u32, size: u64) -> io::Result<()> {
        assert!(self.open.is_none(), "a data file is open");
        assert_eq!(self.entries.last().map(|entry| entry.place), Some(Place::Data { ordinal }), "it belongs to the entry before");
        self.open = Some((ordinal, size));
        assert!(self.data.insert(ordinal, Vec::new()).is_none(), "{ordinal} comes twice");
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (ordinal, _) = self.open.expect("a data file is open");
        self.data.get_mut(&ordinal).expect("it was opened").extend_from_slice(bytes);
        Ok(())
    }

    fn close_data(&mut self) -> io::Result<()> {
        let (ordinal, size) = self.open.take().expect("a data file is open");
        assert_eq!(self.data[&ordinal].len() as u64, size);
        Ok(())
    }

    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError> {
        self.entries.push(entry.clone());
        Ok(())
    }
}

impl Sink {
    fn content(&self, place: Place, size: u64) -> &[u8] {
        match place {
            Place::None => &[],
            Place::Packed { offset } => &self.pack[offset as usize..(offset + size) as usize],
            Place::Data { ordinal } => &self.data[&ordinal],
        }
    }
}

fn split(stream: &[u8], threshold: u64, piece: usize) -> Result<(Sink, Split), SplitError> {
    let mut sink = Sink::default();
    let mut splitter = Splitter::new(threshold);
    for bytes in stream.chunks(piece) {
        splitter.write(bytes, &mut sink)?;
    }
    let split = splitter.finish()?;
    assert_eq!((split.stream_size, split.pack_size), (stream.len() as u64, sink.pack.len() as u64));
    Ok((sink, split))
}

/// A header that is right, to be made wrong.
fn header(name: &str, kind: u8, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_mode(0o640);
    header.set_mtime(7);
    header.set_uid(1000);
    header.set_gid(0);
    header.set_size(size);
    header.set_cksum();
    header
}

fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    padded(header(name, kind, content.len() as u64), content)
}

fn padded(header: Header, content: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn changed(mut header: Header, change: impl FnOnce(&mut [u8; BLOCK])) -> Header {
    change(header.as_mut_bytes());
    header.set_cksum();
    header
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| rest + length.to_string().len() == *length).expect("some length fits");
        content.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    member("pax", b'x', &content)
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// Path, kind and content of everything in a stream.
fn listing(stream: &[u8]) -> Result<Vec<(String, Kind, String)>, SplitError> {
    let (sink, _) = split(stream, 4, 100)?;
    let text = |entry: &NewEntry| String::from_utf8_lossy(sink.content(entry.place, entry.size)).into_owned();
    Ok(sink.entries.iter().map(|entry| (String::from_utf8_lossy(entry.path.as_bytes()).into_owned(), entry.kind, text(entry))).collect())
}

#[test]
fn what_go_reads_is_read() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let star = changed(header("f", b'0', 1), |block| {
        block[345..348].copy_from_slice(b"pre");
        block[508..512].copy_from_slice(b"tar\0");
    });
    let v7 = |name: &str, size| {
        changed(header(name, 0, size), |block| {
            block[257..265].fill(0);
            block[329..345].fill(b'?');
        })
    };
    let cases: Vec<(&str, Vec<Vec<u8>>, Vec<(&str, Kind, &str)>)> = vec![
        ("nothing at all", vec![], vec![]),
        ("only the end", vec![end()], vec![]),
        ("one zero block at the end", vec![member("a", b'0', b"x"), vec![0; BLOCK]], vec![("a", Kind::File, "x")]),
        ("no end", vec![member("a", b'0', b"x")], vec![("a", Kind::File, "x")]),
        ("no last padding", vec![member("a", b'0', b"x")[..BLOCK + 1].to_vec()], vec![("a", Kind::File, "x")]),
        (
            "data after the end",
            vec![member("a", b'0', b"x"), end(), member("b", b'0', b"y"), b"odd".to_vec()],
            vec![("a", Kind::File, "x")],
        ),
        ("an empty file", vec![member("a", b'0', b""), member("b", b'0', b"yyyy")], vec![("a", Kind::File, ""), ("b", Kind::File, "yyyy")]),
        ("a folder without slash", vec![member("d", b'5', b"")], vec![("d", Kind::Folder, "")]),
        ("a folder with slash", vec![member("d/", b'5', b"")], vec![("d", Kind::Folder, "")]),
        (
            "a folder with a size has no content",
            vec![padded(header("d", b'5', 9999), b""), member("a", b'0', b"x")],
            vec![("d", Kind::Folder, ""), ("a", Kind::File, "x")],
        ),
        (
            "the root",
            vec![member("./", b'5', b""), member("./a//b/./c", b'0', b"x")],
            vec![("", Kind::Folder, ""), ("a/b/c", Kind::File, "x")],
        ),
        ("type NUL", vec![member("a", 0, b"x")], vec![("a", Kind::File, "x")]),
        ("type NUL with slash", vec![padded(header("a/", 0, 700), b"")], vec![("a", Kind::Folder, "")]),
        ("type 0 with slash", vec![member("a/", b'0', b"x")], vec![("a", Kind::File, "x")]),
        ("V7", vec![padded(v7("a", 1), b"x"), padded(v7("d/", 0), b"")], vec![("a", Kind::File, "x"), ("d", Kind::Folder, "")]),
        ("star", vec![padded(star, b"x")], vec![("pre/f", Kind::File, "x")]),
        ("a name of 100 bytes without NUL", vec![member(&"n".repeat(100), b'0', b"x")], vec![(&long[..0], Kind::File, "x")]),
        ("a name ends at its NUL", vec![member("a\0b", b'0', b"x")], vec![("a", Kind::File, "x")]),
        ("PAX path", vec![pax(&[("path", &long)]), member("short", b'0', b"x")], vec![(&long, Kind::File, "x")]),
        ("PAX path makes a NUL type a folder", vec![pax(&[("path", "d/")]), member("short", 0, b"")], vec![("d", Kind::Folder, "")]),
        ("PAX size", vec![pax(&[("size", "5")]), padded(header("a", b'0', 0), b"12345")], vec![("a", Kind::File, "12345")]),
        (
            "PAX comment",
            vec![pax(&[("comment", "x"), ("SCHILY.xattr.user.a", "b")]), member("a", b'0', b"x")],
            vec![("a", Kind::File, "x")],
        ),
        (
            "PAX belongs to one entry",
            vec![pax(&[("path", "p")]), member("a", b'0', b""), member("b", b'0', b"")],
            vec![("p", Kind::File, ""), ("b", Kind::File, "")],
        ),
        (
            "the second PAX header replaces the first",
            vec![pax(&[("path", "p")]), pax(&[("mtime", "1")]), member("a", b'0', b"")],
            vec![("a", Kind::File, "")],
        ),
        (
            "GNU long name",
            vec![member("././@LongLink", b'L', format!("{long}\0").as_bytes()), member("short", b'0', b"x")],
            vec![(&long, Kind::File, "x")],
        ),
        (
            "GNU long name wins",
            vec![member("L", b'L', b"gnu\0"), pax(&[("path", "p")]), member("a", b'0', b"")],
            vec![("gnu", Kind::File, "")],
        ),
        ("GNU long link of a file", vec![member("K", b'K', b"target\0"), member("a", b'0', b"x")], vec![("a", Kind::File, "x")]),
        (
            "PAX size is not that of the extension after it",
            vec![pax(&[("size", "2")]), member("L", b'L', b"n\0"), padded(header("a", b'0', 0), b"xy")],
            vec![("n", Kind::File, "xy")],
        ),
        (
            "size in base 256",
            vec![
                padded(changed(header("a", b'0', 0), |block| block[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\x03")), b"xyz"),
                member("b", b'0', b"y"),
            ],
            vec![("a", Kind::File, "xyz"), ("b", Kind::File, "y")],
        ),
        (
            "a name that is not UTF-8",
            vec![padded(changed(header("a", b'0', 0), |block| block[0] = 0xe4), b"")],
            vec![("\u{fffd}", Kind::File, "")],
        ),
    ];
    for (what, stream, mut expected) in cases {
        let hundred = "n".repeat(100);
        for (path, _, _) in &mut expected {
            if path.is_empty() && what.contains("100 bytes") {
                *path = &hundred;
            }
        }
        let got = listing(&stream.concat()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let got: Vec<_> = got.iter().map(|(path, kind, content)| (path.as_str(), *kind, content.as_str())).collect();
        assert_eq!(got, expected, "{what}");
    }
}

#[test]
fn what_a_header_says_is_kept() {
    let stream = [
        pax(&[("mtime", "-1.5")]),
        padded(changed(header("a", b'0', 0), |block| block[100..108].copy_from_slice(b"0104755\0")), b""),
        member("b", b'5', b""),
    ]
    .concat();
    let (sink, split) = split(&stream, 1, 64).expect("good");
    assert_eq!(split.entries, 2);
    assert_eq!((sink.entries[0].mode, sink.entries[0].mtime), (0o4755, -2));
    assert_eq!((sink.entries[1].mode, sink.entries[1].mtime), (0o640, 7));
    assert_eq!(sink.entries[0].stream_offset, 3 * BLOCK as u64);
}

#[test]
fn what_is_no_file_or_folder_is_refused_by_name() {
    for (kind, what) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "character device"),
        (b'4', "block device"),
        (b'6', "FIFO"),
        (b'7', "contiguous"),
        (b'S', "sparse"),
        (b'g', "global"),
        (b'X', "unknown type `X`"),
        (b'D', "unknown type `D`"),
        (0xff, r"unknown type `\xff`"),
    ] {
        let stream = [member("good", b'0', b"x"), member("bad\x1bname", kind, b"")].concat();
        match listing(&stream) {
            Err(error @ SplitError::Kind { offset, .. }) => {
                assert_eq!(offset, 2 * BLOCK as u64);
                let text = error.to_string();
                assert!(text.contains(what) && text.contains(r"bad\u{1b}name"), "{text}");
                assert!(error.is_refusal());
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for key in ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.name", "GNU.sparse.whatever"] {
        let outcome = listing(&[pax(&[(key, "1")]), member("a", b'0', b"")].concat());
        assert!(matches!(&outcome, Err(SplitError::Kind { what, .. }) if what.contains("sparse")), "{key}: {outcome:?}");
    }
}

#[test]
fn broken_headers_are_refused() {
    let size = |field: &'static [u8]| padded(changed(header("a", b'0', 0), |block| block[124..136].copy_from_slice(field)), b"");
    let mut flipped = member("a", b'0', b"x");
    flipped[3] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("checksum", flipped, "checksum"),
        ("zero block in between", [member("a", b'0', b"x"), vec![0; BLOCK], member("b", b'0', b"x")].concat(), "one block of zeros"),
        ("negative size", size(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "negative"),
        ("size over 63 bits", size(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), "size"),
        ("size no number", size(b"size!size!si"), "size"),
        ("negative PAX size", [pax(&[("size", "-5")]), member("a", b'0', b"")].concat(), "PAX size `-5`"),
        ("overflowing PAX size", [pax(&[("size", "9223372036854775808")]), member("a", b'0', b"")].concat(), "PAX size"),
        ("PAX size no number", [pax(&[("size", "0x5")]), member("a", b'0', b"")].concat(), "PAX size"),
        ("PAX time no number", [pax(&[("mtime", "now")]), member("a", b'0', b"")].concat(), "PAX time"),
        ("PAX owner no number", [pax(&[("uid", "me")]), member("a", b'0', b"")].concat(), "PAX owner"),
        ("NUL in PAX path", [pax(&[("path", "a\0b")]), member("a", b'0', b"")].concat(), "NUL"),
        ("NUL in long name", [member("L", b'L', b"a\0b\0"), member("a", b'0', b"")].concat(), "NUL"),
        ("no PAX record", [member("x", b'x', b"nonsense"), member("a", b'0', b"")].concat(), "PAX record"),
        ("extension without entry", [pax(&[("path", "a")]), end()].concat(), "without its entry"),
        ("file without a name", member("", b'0', b"x"), "without a name"),
        ("file as root", member("./", b'0', b"x"), "without a name"),
    ];
    for (what, stream, reason) in cases {
        match listing(&stream) {
            Err(error @ SplitError::Header { .. }) => assert!(error.to_string().contains(reason), "{what}: {error}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn names_that_have_no_place_are_refused() {
    let deep = "d/".repeat(10_000) + "f";
    for name in ["/etc/passwd", "../up", "a/../b", "..", deep.as_str(), &"n".repeat(256)] {
        let outcome = listing(&[pax(&[("path", name)]), member("short", b'0', b"x")].concat());
        assert!(matches!(outcome, Err(SplitError::Name { offset: _, .. })), "{outcome:?}");
    }
}

#[test]
fn extensions_have_a_limit_together() {
    let limit = TAR_EXTENSION_BYTES as usize;
    // A record of n bytes, n in seven digits: `<n> comment=…\n`.
    let comment = |size: usize| pax(&[("comment", &"c".repeat(size - 17))]);
    let full = comment(limit);
    assert_eq!(full.len(), BLOCK + limit);
    assert!(listing(&[full.clone(), member("a", b'0', b"")].concat()).is_ok());
    for over in [comment(limit + 1), [full.clone(), pax(&[("comment", "c")])].concat(), [full.clone(), member("L", b'L', b"n\0")].concat()]
    {
        let outcome = listing(&[over, member("a", b'0', b"")].concat());
        assert!(matches!(&outcome, Err(SplitError::Header { reason, .. }) if reason.contains("1048576")), "{outcome:?}");
    }
    let twice = [full.clone(), member("a", b'0', b""), full, member("b", b'0', b"")].concat();
    assert_eq!(listing(&twice).expect("each entry has its own").len(), 2);
    // Refused by its header alone, before anything of it is kept.
    let huge = header("x", b'x', 1 << 40).as_bytes().to_vec();
    assert!(matches!(listing(&huge), Err(SplitError::Header { .. })));
    let name = [b"./".repeat(PATH_BYTES).as_slice(), b"a\0"].concat();
    assert!(listing(&[member("L", b'L', &name), member("a", b'0', b"")].concat()).is_ok(), "needless parts do not count");
}

#[test]
fn every_cut_is_noticed_where_something_is_missing() {
    let parts = [
        member("a", b'0', b"xyz"),
        pax(&[("path", "p")]),
        member("b", b'0', &[b'y'; 600]),
        member("d", b'5', b""),
        vec![0; BLOCK],
        vec![0; BLOCK],
    ];
    let stream = parts.concat();
    let (first, second) = (BLOCK + 3, 4 * BLOCK + BLOCK + 600);
    let whole = |length: usize| {
        let boundary = [0, 2 * BLOCK, 7 * BLOCK, 8 * BLOCK, 9 * BLOCK, 10 * BLOCK].contains(&length);
        boundary || (first..=2 * BLOCK).contains(&length) || (second..=7 * BLOCK).contains(&length)
    };
    assert_eq!(stream.len(), 10 * BLOCK);
    for threshold in [1, 1000] {
        for length in 0..=stream.len() {
            match split(&stream[..length], threshold, 333) {
                Ok(_) => assert!(whole(length), "{length}"),
                Err(SplitError::Cut { offset, .. }) => assert!(!whole(length) && offset == length as u64, "{length}"),
                Err(other) => panic!("{length}: {other}"),
            }
        }
    }
}

#[test]
fn nothing_is_made_of_a_claimed_size() {
    for threshold in [1, u64::MAX] {
        let mut sink = Sink::default();
        let mut splitter = Splitter::new(threshold);
        let huge = changed(header("a", b'0', 0), |block| block[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"));
        splitter.write(&padded(huge, b"few"), &mut sink).expect("so far it is right");
        assert_eq!(sink.entries[0].size, i64::MAX as u64);
        let error = splitter.finish().expect_err("it is cut");
        assert!(error.to_string().contains("bytes are missing"), "{error}");
    }
}

#[test]
fn a_stream_that_was_cut_can_be_gone_through_again() {
    let stream = [member("a", b'0', b"big one"), member("b", b'0', b"s"), member("c", b'0', b"another"), end(), b"tail".to_vec()].concat();
    let (first, _) = split(&stream, 5, 99).expect("good");
    assert_eq!(first.data.len(), 2);
    // Only the data files that are there say what was cut.
    let there: BTreeSet<u32> = first.data.keys().copied().collect();
    let mut splitter = Splitter::cutting(move |ordinal, _| there.contains(&ordinal));
    let (mut again, mut pack) = (Sink::default(), first.pack.as_slice());
    while !pack.is_empty() || splitter.open_data().is_some() {
        match splitter.open_data() {
            Some(OpenData { ordinal, left }) => {
                let data = &first.data[&ordinal];
                let taken = splitter.push(&data[data.len() - left as usize..], &mut again).expect("good");
                assert_eq!(taken as u64, left);
            }
            None => {
                let taken = splitter.push(pack, &mut again).expect("good");
                pack = &pack[taken..];
            }
        }
    }
    splitter.finish().expect("good");
    assert_eq!((again.entries, again.pack, again.data), (first.entries, first.pack, first.data));
}

#[test]
fn an_error_of_the_output_is_not_the_layers() {
    struct Full;
    impl Output for Full {
        fn pack(&mut self, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(28))
        }
        fn open_data(&mut self, _: u32, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn data(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn close_data(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn entry(&mut self, _: &NewEntry) -> Result<(), SplitError> {
            Ok(())
        }
    }
    let error = Splitter::new(1).write(&member("a", b'0', b"x"), &mut Full).expect_err("full");
    assert!(!error.is_refusal() && matches!(error, SplitError::Output(error) if error.raw_os_error() == Some(28)));
}

/// How an entry is written.
#[derive(Debug, Clone, Copy)]
enum Writing {
    /// With a GNU long name if needed.
    Gnu,
    /// With PAX records for the name and the size.
    Pax,
}

#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    mode: u32,
    mtime: i64,
    content: Vec<u8>,
    writing: Writing,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[ab]".prop_map(String::into_bytes),
        2 => "[a-c.!/]{1,4}".prop_map(|name| name.replace('/', "-").into_bytes()),
        1 => proptest::collection::vec(1u8..=255, 1..6),
        1 => "[xy]{90,255}".prop_map(String::into_bytes),
    ]
    .prop_filter("one component", |name| crate::path::is_component(name))
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![3 => 0usize..20, 1 => 500usize..530, 1 => 1000usize..6000];
    let writing = prop_oneof![Just(Writing::Gnu), Just(Writing::Pax)];
    (any::<bool>(), 0u32..0o10000, 0i64..1 << 33, content, any::<u8>(), writing).prop_map(|(file, mode, mtime, size, seed, writing)| Node {
        kind: if file { Kind::File } else { Kind::Folder },
        mode,
        mtime,
        content: if file { (0..size).map(|at| seed.wrapping_add((at % 251) as u8)).collect() } else { Vec::new() },
        writing,
    })
}

/// Paths with their nodes in the order of the stream; every file has one path, and nothing is below a file.
fn trees() -> impl Strategy<Value = Vec<(RelPath, Node)>> {
    let path =
        proptest::collection::vec(name(), 1..6).prop_map(|names| names.join(&b'/')).prop_map(|path| RelPath::parse(&path).expect("clean"));
    proptest::collection::vec((path, node()), 0..40).prop_map(|mut nodes| {
        let mut files: BTreeSet<RelPath> = BTreeSet::new();
        let mut folders: BTreeSet<RelPath> = BTreeSet::new();
        nodes.retain(|(path, node)| {
            let above: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
            let fits = !files.contains(path) && !above.iter().any(|folder| files.contains(folder));
            let fits = fits && (node.kind == Kind::Folder || !folders.contains(path));
            if fits {
                folders.extend(above);
                if node.kind == Kind::File {
                    files.insert(path.clone())
                } else {
                    folders.insert(path.clone())
                };
            }
            fits
        });
        nodes
    })
}

fn header_of_long_name(path: &[u8]) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(path.len() as u64 + 1);
    header.set_cksum();
    header
}

fn write_tar(nodes: &[(RelPath, Node)], trailing: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, node) in nodes {
        let mut header = Header::new_gnu();
        header.set_entry_type(if node.kind == Kind::File { EntryType::Regular } else { EntryType::Directory });
        header.set_mode(node.mode);
        header.set_mtime(node.mtime as u64);
        header.set_size(node.content.len() as u64);
        match node.writing {
            Writing::Gnu => {
                let path = path.as_bytes();
                if path.len() > 100 {
                    builder.append(&header_of_long_name(path), [path, b"\0"].concat().as_slice()).expect("to memory");
                }
                let short = path.get(..100).unwrap_or(path);
                header.as_old_mut().name[..short.len()].copy_from_slice(short);
                header.set_cksum();
                builder.append(&header, node.content.as_slice()).expect("to memory");
            }
            Writing::Pax => {
                let (size, mtime) = (node.content.len().to_string(), format!("{}.25", node.mtime));
                let records = [("path", path.as_bytes()), ("size", size.as_bytes()), ("mtime", mtime.as_bytes())];
                builder.append_pax_extensions(records).expect("to memory");
                header.set_path("short").expect("it fits");
                header.set_cksum();
                builder.append(&header, node.content.as_slice()).expect("to memory");
            }
        }
    }
    let mut stream = builder.into_inner().expect("to memory");
    stream.extend_from_slice(trailing);
    stream
}

/// The tree that the entries make, implied folders included, in order of rank.
fn by_rank(nodes: &[(RelPath, Node)]) -> Vec<(RelPath, Option<Node>)> {
    let mut tree: BTreeMap<RelPath, Option<Node>> = BTreeMap::from([(RelPath::root(), None)]);
    for (path, node) in nodes {
        for folder in std::iter::successors(path.parent(), RelPath::parent) {
            tree.entry(folder).or_default();
        }
        let known = tree.entry(path.clone()).or_default();
        if known.is_none() {
            *known = Some(node.clone());
        }
    }
    let mut ranked: Vec<_> = tree.into_iter().collect();
    // Breadth first: a stable sort by depth of what is sorted by path.
    ranked.sort_by_key(|(path, _)| path.depth());
    ranked
}

fn index_of(sink: &Sink, stream: &[u8]) -> Index {
    let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
    for entry in &sink.entries {
        builder.add(entry).expect("it fits");
    }
    let facts = |size| FileFacts { size, mode: 0o444, ctime_sec: -5, ctime_nsec: 999_999_999 };
    let layer = Digest::of(Algorithm::Sha512, stream);
    let stored = Stored {
        layer,
        blob_size: 12,
        uncompressed: Some(Digest::of(Algorithm::Sha256, stream)),
        uncompressed_size: stream.len() as u64,
        pack: facts(sink.pack.len() as u64),
    };
    let out = tempfile::tempfile().expect("a file");
    builder.finish(&out, &stored, &mut |ordinal| Ok(facts(sink.data[&ordinal].len() as u64))).expect("a good layer");
    let index = Index::map(&out, &layer).expect("a good index");
    assert_eq!((index.layer(), index.uncompressed(), index.blob_size()), (layer, stored.uncompressed, 12));
    assert_eq!((index.pack(), index.uncompressed_size()), (stored.pack, stream.len() as u64));
    index
}

fn same_tree(index: &Index, sink: &Sink, nodes: &[(RelPath, Node)]) {
    let ranked = by_rank(nodes);
    let rank: BTreeMap<&RelPath, u32> = (0..).zip(&ranked).map(|(rank, (path, _))| (path, rank)).collect();
    assert_eq!(index.len() as usize, ranked.len());
    for (path, node) in &ranked {
        let at = rank[path];
        let entry = index.entry(at).expect("a good index");
        assert_eq!(entry.parent, path.parent().map_or(0, |parent| rank[&parent]), "{path}");
        assert_eq!(index.name(at).expect("a good index"), path.name());
        assert_eq!(index.path(at).expect("a good index"), *path);
        assert_eq!(index.find(path).expect("a good index"), Some(at));
        let children: Vec<u32> =
            ranked.iter().filter(|(child, _)| child.parent().as_ref() == Some(path)).map(|(child, _)| rank[child]).collect();
        assert_eq!(index.children(at).expect("a good index").collect::<Vec<_>>(), children, "{path}");
        assert_eq!(entry.child_count as usize, children.len());
        for absent in [&b""[..], b".", b"..", b"nothing", b"\xff\xff\xff", b"a/b"] {
            let there = path.join(absent).ok().and_then(|path| rank.get(&path).copied());
            assert_eq!(index.lookup(at, absent).expect("a good index"), there);
        }
        match node {
            None => assert_eq!((entry.kind, entry.mode, entry.mtime, entry.implied), (Kind::Folder, 0o755, 0, true)),
            Some(node) => {
                assert_eq!((entry.kind, entry.mode, entry.mtime, entry.implied), (node.kind, node.mode, node.mtime, false), "{path}");
                assert_eq!(entry.size, node.content.len() as u64);
                assert_eq!(sink.content(entry.place, entry.size), node.content, "{path}");
            }
        }
    }
    let files = nodes.iter().filter(|(_, node)| node.kind == Kind::File);
    assert_eq!(index.files(), files.clone().count() as u64);
    assert_eq!(index.total_size(), files.map(|(_, node)| node.content.len() as u64).sum::<u64>());
    assert!(index.entry(index.len()).is_err() && index.name(u32::MAX).is_err());
}

fn interleaved(index: &Index, sink: &Sink) -> Vec<u8> {
    let mut stream = Vec::new();
    for segment in index.segments() {
        match segment.expect("a good index") {
            Segment::Pack { offset, size } => {
                assert!(size > 0);
                stream.extend_from_slice(&sink.pack[offset as usize..][..size as usize]);
            }
            Segment::Data { ordinal, size } => {
                assert_eq!(sink.data[&ordinal].len() as u64, size);
                assert_eq!(index.data(ordinal).expect("a good index").map(|facts| facts.size), Some(size));
                stream.extend_from_slice(&sink.data[&ordinal]);
            }
        }
    }
    assert_eq!(index.data_files() as usize, sink.data.len());
    assert_eq!(index.data(u32::MAX).expect("a good index"), None);
    stream
}

proptest! {
    #[test]
    fn trees_come_out_as_they_went_in(
        nodes in trees(),
        pieces in proptest::collection::vec(1usize..3000, 1..8),
        threshold in prop_oneof![Just(0u64), 1u64..20, 500u64..6000, Just(u64::MAX)],
        trailing in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        let stream = write_tar(&nodes, &trailing);
        let (mut sink, mut splitter) = (Sink::default(), Splitter::new(threshold));
        let mut rest = stream.as_slice();
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            splitter.write(now, &mut sink).expect("a good archive");
            rest = later;
        }
        splitter.finish().expect("a good archive");
        prop_assert_eq!(sink.entries.len(), nodes.len());
        for entry in &sink.entries {
            let cut = entry.kind == Kind::File && entry.size > 0 && entry.size >= threshold;
            prop_assert_eq!(matches!(entry.place, Place::Data { .. }), cut);
            prop_assert_eq!(&stream[entry.stream_offset as usize..][..entry.size as usize], sink.content(entry.place, entry.size));
        }

        let index = index_of(&sink, &stream);
        same_tree(&index, &sink, &nodes);
        prop_assert!(interleaved(&index, &sink) == stream, "pack and data files make another stream");

        let (other, _) = split(&stream, threshold / 2 + 7, 1000).expect("a good archive");
        prop_assert_eq!(index_of(&other, &stream).table_checksum(), index.table_checksum(), "it depends on how entries are stored");
    }

    #[test]
    fn any_bytes_are_an_error_or_an_archive(
        nodes in trees(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        fix in any::<bool>(),
    ) {
        let mut stream = write_tar(&nodes, &[]);
        for (at, byte) in &flips {
            let at = at.index(stream.len());
            stream[at] = *byte;
            // Half of them with a checksum that is right, so that what is wrong is found behind it.
            let start = at - at % BLOCK;
            if fix && let Some(block) = stream.get_mut(start..start + BLOCK) {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let mut outcomes = [1, 100, stream.len()].map(|piece| match split(&stream, 50, piece) {
            Ok((sink, split)) => Ok((sink.entries, sink.pack, split)),
            Err(error) => Err(error.to_string()),
        });
        let [a, b, c] = &mut outcomes;
        prop_assert!(a == b && b == c, "the pieces make a difference");
    }
}
