//! What is read and what is refused.

use std::collections::{BTreeMap, BTreeSet};

use tar::Header;

use super::*;
use crate::limits::PATH_BYTES;

/// Keeps everything in memory.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) entries: Vec<NewEntry>,
    pub(super) pack: Vec<u8>,
    pub(super) data: BTreeMap<u32, Vec<u8>>,
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
        // A raw layer's entry comes last.
        let raw = self.entries.is_empty() && ordinal == 0;
        assert!(raw || self.entries.last().is_some_and(|entry| entry.place == Place::Data { ordinal }), "it belongs to the entry before");
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
        // 0 is one that nobody knew before.
        assert!(size == 0 || self.data[&ordinal].len() as u64 == size);
        Ok(())
    }

    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError> {
        self.entries.push(entry.clone());
        Ok(())
    }
}

impl Sink {
    pub(super) fn content(&self, place: Place, size: u64) -> &[u8] {
        match place {
            Place::None => &[],
            Place::Packed { offset } => &self.pack[offset as usize..(offset + size) as usize],
            Place::Data { ordinal } => &self.data[&ordinal],
        }
    }
}

pub(super) fn split(stream: &[u8], threshold: u64, piece: usize) -> Result<(Sink, Split), SplitError> {
    let mut sink = Sink::default();
    let mut splitter = Splitter::new(threshold);
    for bytes in stream.chunks(piece) {
        splitter.write(bytes, &mut sink)?;
    }
    let split = splitter.finish(&mut sink)?;
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

/// What it is about, the stream, and what is in it.
type Case<'a> = (&'a str, Vec<Vec<u8>>, Vec<(&'a str, Kind, &'a str)>);

#[test]
fn what_go_reads_is_read() {
    let hundred = "n".repeat(100);
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
    let cases: Vec<Case> = vec![
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
        ("type NUL with slash", vec![member("a/", 0, b"")], vec![("a", Kind::Folder, "")]),
        ("type 0 with slash", vec![member("a/", b'0', b"x")], vec![("a", Kind::File, "x")]),
        ("V7", vec![padded(v7("a", 1), b"x"), padded(v7("d/", 0), b"")], vec![("a", Kind::File, "x"), ("d", Kind::Folder, "")]),
        ("star", vec![padded(star, b"x")], vec![("pre/f", Kind::File, "x")]),
        ("a name of 100 bytes without NUL", vec![member(&hundred, b'0', b"x")], vec![(&hundred, Kind::File, "x")]),
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
            "GNU long name",
            vec![member("././@LongLink", b'L', format!("{long}\0").as_bytes()), member("short", b'0', b"x")],
            vec![(&long, Kind::File, "x")],
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
    for (what, stream, expected) in cases {
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
        ("empty PAX path", [pax(&[("path", "")]), member("a", b'0', b"")].concat(), "`path` is empty"),
        ("empty PAX size", [pax(&[("size", "")]), member("a", b'0', b"")].concat(), "`size` is empty"),
        ("PAX size with a sign", [pax(&[("size", "+0")]), member("a", b'0', b"")].concat(), "PAX size `+0`"),
        ("type NUL with slash and content", member("a/", 0, b"x"), "with content"),
        ("long name without NUL", [member("L", b'L', b"n"), member("a", b'0', b"")].concat(), "does not end with a NUL"),
        ("two PAX headers", [pax(&[("path", "p")]), pax(&[("mtime", "1")]), member("a", b'0', b"")].concat(), "two sets of PAX"),
        ("two long names", [member("L", b'L', b"n\0"), member("L", b'L', b"n\0"), member("a", b'0', b"")].concat(), "two GNU"),
        ("empty long name", [member("L", b'L', b"\0"), member("a", b'0', b"")].concat(), "long name is empty"),
        ("two names", [member("L", b'L', b"gnu\0"), pax(&[("path", "p")]), member("a", b'0', b"")].concat(), "long name is `gnu`"),
        ("size behind a NUL", size(b"\0\x001\0\0\0\0\0\0\0\0\0"), "size is not a number"),
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
        let error = splitter.finish(&mut sink).expect_err("it is cut");
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
    splitter.finish(&mut again).expect("good");
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

#[test]
fn a_raw_layer_is_one_file_of_the_size_that_is_declared() {
    for content in [&b""[..], b"x", &[7; 3000]] {
        let size = content.len() as u64;
        for (declared, piece) in [(None, 1), (None, 4000), (Some(size), 7), (Some(size), 4000)] {
            let (mut sink, mut splitter) = (Sink::default(), Splitter::raw(declared));
            for bytes in content.chunks(piece) {
                assert!(splitter.open_data().is_some_and(|open| open.ordinal == 0 && open.left >= bytes.len() as u64));
                splitter.write(bytes, &mut sink).expect("any bytes are a file");
            }
            let split = splitter.finish(&mut sink).expect("it is whole");
            assert_eq!((split.entries, split.stream_size, split.pack_size), (1, size, 0));
            let [entry] = &sink.entries[..] else { panic!("one file") };
            assert_eq!((entry.path.as_bytes(), entry.kind, entry.size), (RAW_NAME, Kind::File, size));
            assert_eq!((sink.content(entry.place, size), sink.data.len()), (content, usize::from(size > 0)), "a data file, however small");
        }
        // One more or one less.
        let (mut sink, mut splitter) = (Sink::default(), Splitter::raw(Some(size + 1)));
        splitter.write(content, &mut sink).expect("so far it may be right");
        let error = splitter.finish(&mut sink).expect_err("one is missing");
        assert!(
            matches!(error, SplitError::Size { expected, got, more: false } if (expected, got) == (size + 1, size)) && error.is_refusal()
        );
        if let Some(less) = size.checked_sub(1) {
            let error = Splitter::raw(Some(less)).write(content, &mut Sink::default()).expect_err("one too many");
            assert!(matches!(error, SplitError::Size { expected, more: true, .. } if expected == less) && error.is_refusal());
        }
    }
}
