//! Good archives, and what can be done to them. Everything is a function of a seed.

use fastrand::Rng;

pub const BLOCK: usize = 512;

/// A header with what follows it: an entry, or an extension of the next one.
#[derive(Clone)]
pub struct Piece {
    pub header: [u8; BLOCK],
    pub content: Vec<u8>,
    /// What fills the last block of the content.
    pub padding: Vec<u8>,
}

/// An archive in pieces, and what comes after the last one.
#[derive(Clone, Default)]
pub struct Archive {
    pub pieces: Vec<Piece>,
    pub tail: Vec<u8>,
}

/// How names, sizes and types are written.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    V7,
    Ustar,
    Pax,
    Gnu,
}

pub fn put(header: &mut [u8; BLOCK], at: usize, size: usize, bytes: &[u8]) {
    let field = &mut header[at..at + size];
    field.fill(0);
    let length = bytes.len().min(size);
    field[..length].copy_from_slice(&bytes[..length]);
}

pub fn set_checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(header, 148, 8, format!("{sum:06o}\0 ").as_bytes());
}

impl Piece {
    fn new(header: [u8; BLOCK], content: Vec<u8>) -> Self {
        let padding = vec![0; content.len().next_multiple_of(BLOCK) - content.len()];
        Self { header, content, padding }
    }
}

impl Archive {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Piece { header, content, padding } in &self.pieces {
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(content);
            bytes.extend_from_slice(padding);
        }
        bytes.extend_from_slice(&self.tail);
        bytes
    }

    /// Takes a well-formed archive apart.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut archive = Self::default();
        let mut pax_size = None;
        while let Some((header, rest)) = bytes.split_first_chunk::<BLOCK>() {
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            let digits = std::str::from_utf8(&header[124..135]).ok()?.trim_matches([' ', '\0']);
            let mut size = if digits.is_empty() { 0 } else { usize::from_str_radix(digits, 8).ok()? };
            if !matches!(header[156], b'x' | b'g' | b'L' | b'K') {
                size = pax_size.take().unwrap_or(size);
            }
            let content = rest.get(..size)?.to_vec();
            if header[156] == b'x' {
                let text = String::from_utf8_lossy(&content).into_owned();
                pax_size = text.split('\n').find_map(|line| line.split_once(" size=")?.1.parse().ok());
            }
            bytes = rest.get(size.next_multiple_of(BLOCK)..)?;
            archive.pieces.push(Piece::new(*header, content));
        }
        archive.tail = bytes.to_vec();
        Some(archive)
    }
}

fn header(style: Style, name: &[u8], kind: u8, size: usize, mode: u32, mtime: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    put(&mut header, 0, 100, name);
    put(&mut header, 100, 8, format!("{mode:07o}\0").as_bytes());
    put(&mut header, 108, 8, b"0001750\0");
    put(&mut header, 116, 8, b"0000000\0");
    put(&mut header, 124, 12, format!("{size:011o}\0").as_bytes());
    put(&mut header, 136, 12, format!("{mtime:011o}\0").as_bytes());
    header[156] = kind;
    match style {
        Style::V7 => {}
        Style::Ustar | Style::Pax => {
            put(&mut header, 257, 8, b"ustar\x0000");
            put(&mut header, 329, 16, b"0000000\x000000000\0");
        }
        Style::Gnu => put(&mut header, 257, 8, b"ustar  \0"),
    }
    set_checksum(&mut header);
    header
}

pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).expect("some length fits");
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

pub fn extension(kind: u8, content: Vec<u8>) -> Piece {
    let (style, name) =
        if kind == b'x' || kind == b'g' { (Style::Ustar, &b"PaxHeaders.0/x"[..]) } else { (Style::Gnu, &b"././@LongLink"[..]) };
    Piece::new(header(style, name, kind, content.len(), 0o644, 0), content)
}

fn component(random: &mut Rng) -> Vec<u8> {
    match random.u8(0..14) {
        0 => b"x..y".to_vec(),
        1 => "é".as_bytes().to_vec(),
        2 => vec![b'l'; random.usize(90..130)],
        3 => vec![0xff, b'z'],
        4 => b"a b\n\"".to_vec(),
        other => vec![b'a' + other % 5],
    }
}

/// A tree as a packer writes it: folders before what is in them, no name twice.
pub fn good(random: &mut Rng) -> Archive {
    let style = [Style::V7, Style::Ustar, Style::Ustar, Style::Pax, Style::Pax, Style::Gnu, Style::Gnu][random.usize(0..7)];
    let mut archive = Archive::default();
    let mut folders: Vec<Vec<u8>> = vec![Vec::new()];
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..random.usize(1..7) {
        let folder = folders[random.usize(0..folders.len())].clone();
        let mut path = folder;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(component(random));
        if taken.contains(&path) || style == Style::V7 && path.len() > 90 {
            continue;
        }
        taken.push(path.clone());
        let is_folder = random.u8(0..3) == 0;
        let size = if is_folder { 0 } else { [0, 3, 511, 512, 513, 1500][random.usize(0..6)] };
        let letter = random.lowercase() as u8;
        let content: Vec<u8> = (0..size).map(|at: usize| letter.wrapping_add((at % 7) as u8)).collect();
        if is_folder {
            folders.push(path.clone());
            if style == Style::V7 || random.bool() {
                path.push(b'/');
            }
        }
        let kind = match (is_folder, style) {
            (true, Style::V7) => b'5',
            (true, _) => b'5',
            (false, Style::V7) => 0,
            (false, _) => b'0',
        };
        add(&mut archive, random, style, &path, kind, content);
    }
    archive.tail = vec![0; 2 * BLOCK];
    archive
}

fn add(archive: &mut Archive, random: &mut Rng, style: Style, path: &[u8], kind: u8, content: Vec<u8>) {
    let mode = [0o644, 0o755, 0o600, 0o4711][random.usize(0..4)];
    let mtime = [0, 1_700_000_000][random.usize(0..2)];
    let mut short = path.to_vec();
    let mut size = content.len();
    match style {
        Style::Pax if path.len() > 100 || random.u8(0..4) == 0 => {
            let mut records = record(b"path", path);
            if random.bool() {
                records.extend(record(b"size", size.to_string().as_bytes()));
                size = [0, size][random.usize(0..2)];
            }
            if random.bool() {
                records.extend(record(b"mtime", b"1700000000.5"));
            }
            archive.pieces.push(extension(b'x', records));
            short.truncate(100);
        }
        Style::Gnu if path.len() > 100 || random.u8(0..4) == 0 => {
            archive.pieces.push(extension(b'L', [path, b"\0"].concat()));
            short.truncate(100);
        }
        _ => {}
    }
    let mut block = header(style, &short, kind, size, mode, mtime);
    if style == Style::Ustar && path.len() > 100 {
        let Some(cut) =
            (1..path.len()).rev().find(|cut| path[*cut] == b'/' && *cut <= 155 && path.len() - cut - 1 <= 100 && path.len() - cut > 1)
        else {
            return;
        };
        put(&mut block, 0, 100, &path[cut + 1..]);
        put(&mut block, 345, 155, &path[..cut]);
        set_checksum(&mut block);
    }
    archive.pieces.push(Piece::new(block, content));
}

fn number(random: &mut Rng, width: usize) -> Vec<u8> {
    let digits = width - 1;
    let small = random.u64(0..1600);
    match random.u8(0..20) {
        0 => format!("{:0digits$o}\0", 0).into_bytes(),
        1 => format!("{small:0digits$o}\0").into_bytes(),
        2 => format!("{:>digits$}\0", format!("{small:o}")).into_bytes(),
        3 => format!("{small:o} \0").into_bytes(),
        4 => format!("{small:o}").into_bytes(),
        5 => format!("{small:0width$o}").into_bytes(),
        6 => {
            let mut field = [vec![0; width - 8], small.to_be_bytes().to_vec()].concat();
            field[0] = 0x80;
            field
        }
        7 => vec![0xff; width],
        8 => [vec![0x80], vec![0xff; width - 1]].concat(),
        9 => [vec![0x80, 0, 0, 0], vec![0x7f; width - 4]].concat(),
        10 => b"-1".to_vec(),
        11 => b"0x10".to_vec(),
        12 => format!("{small:o}\0junk").into_bytes(),
        13 => format!("\0\0{small:o}").into_bytes(),
        14 => vec![b' '; width],
        15 => vec![0; width],
        16 => vec![b'7'; width],
        17 => b"9".to_vec(),
        18 => format!("+{small:o}").into_bytes(),
        _ => [vec![0xff; width - 2], small.to_be_bytes()[6..].to_vec()].concat(),
    }
}

fn name(random: &mut Rng, archive: &Archive) -> Vec<u8> {
    match random.u8(0..18) {
        0 => b"/a".to_vec(),
        1 => b"../a".to_vec(),
        2 => b"a/../b".to_vec(),
        3 => Vec::new(),
        4 => b"a/".to_vec(),
        5 => b"./a".to_vec(),
        6 => b"b//c".to_vec(),
        7 => b"./".to_vec(),
        8 => vec![0xe4, 0xfe],
        9 => vec![b'n'; 100],
        10 => b"a\0b".to_vec(),
        11 => b"a/b/c/d".to_vec(),
        12 => "d/".repeat(300).into_bytes(),
        13 => vec![b'm'; 256],
        14 | 15 => match archive.pieces.get(random.usize(0..archive.pieces.len().max(1))) {
            Some(piece) => piece.header[..100].split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            None => b"q".to_vec(),
        },
        16 => b"a/.".to_vec(),
        _ => component(random),
    }
}

fn pax_content(random: &mut Rng, archive: &Archive) -> Vec<u8> {
    let mut content = Vec::new();
    for _ in 0..random.usize(1..4) {
        let decimal = random.u64(0..1600).to_string();
        let one = match random.u8(0..24) {
            0 | 1 => record(b"path", &name(random, archive)),
            2 => record(b"size", decimal.as_bytes()),
            3 => record(
                b"size",
                [&b"-1"[..], b"0x5", b" 5", b"", b"5 ", b"+5", b"05", b"9223372036854775808", b"1e3", b"5.0", b"1_0"][random.usize(0..11)],
            ),
            4 => record(b"mtime", [&b"1"[..], b"-1.5", b"now", b"", b"1.", b".5", b"1e5", b" 1", b"nan"][random.usize(0..9)]),
            5 => record(b"uid", [&b"1000"[..], b"x", b"", b"-1", b"1.5", b"2000000000000"][random.usize(0..6)]),
            6 => record(b"GNU.sparse.major", b"1"),
            7 => record(b"GNU.sparse.name", &name(random, archive)),
            8 => record(b"GNU.sparse.realsize", decimal.as_bytes()),
            9 => record(b"linkpath", &name(random, archive)),
            10 => record(b"hdrcharset", [&b"BINARY"[..], b"ISO-IR 10646 2000 UTF-8", b"x"][random.usize(0..3)]),
            11 => record(b"comment", b"no\nthing"),
            12 => record(b"SCHILY.xattr.user.a", b"b\0c"),
            13 => record(b"atime", b"5.25"),
            14 => record(b"charset", b"x"),
            15 => record(b"GNU.sparse.size", decimal.as_bytes()),
            16 => record(b"path", b""),
            17 => record(b"SCHILY.realsize", decimal.as_bytes()),
            18 => record(b"gname", b"g"),
            19 => b"10 path=a".to_vec(),
            20 => b"6 =aa\n".to_vec(),
            21 => b"011 path=a\n".to_vec(),
            22 => b"11 path=a\n\n".to_vec(),
            _ => record(b"Path", b"other"),
        };
        content.extend(one);
    }
    if random.u8(0..20) == 0 {
        content.extend_from_slice(&[0; 3][..random.usize(0..4)]);
    }
    content
}

fn some_extension(random: &mut Rng, archive: &Archive) -> Piece {
    match random.u8(0..12) {
        0..=6 => extension(b'x', pax_content(random, archive)),
        7 | 8 => {
            let end = [&b"\0"[..], b"", b"\0\0\0", b"\0x\0"][random.usize(0..4)];
            extension(b'L', [name(random, archive).as_slice(), end].concat())
        }
        9 => extension(b'K', b"target\0".to_vec()),
        10 => extension(b'g', pax_content(random, archive)),
        _ => extension([b'x', b'L', b'K'][random.usize(0..3)], Vec::new()),
    }
}

/// One to three changes of an archive.
pub fn mutate(random: &mut Rng, archive: &mut Archive, others: &[Archive]) -> Vec<u8> {
    let mut after: Vec<u8> = Vec::new();
    for _ in 0..random.usize(1..4) {
        if archive.pieces.is_empty() {
            break;
        }
        let count = archive.pieces.len();
        let at = random.usize(0..count);
        let snapshot = archive.clone();
        let mut fix = random.u8(0..25) != 0;
        let piece = &mut archive.pieces[at];
        let header = &mut piece.header;
        match random.u8(0..32) {
            0 | 1 => header[156] = *random.choice(b"\x00\x00012345567LKxgSDVMNAX7\xff").expect("some"),
            2 | 3 => put(header, 124, 12, &number(random, 12)),
            4 => put(header, 100, 8, &number(random, 8)),
            5 => put(header, 100, 8, [&b"0100644\0"[..], b"0040755\0", b"0007777\0", b"1777777\0"][random.usize(0..4)]),
            6..=8 => put(header, 0, 100, &name(random, &snapshot)),
            9 => put(header, 345, 155, &name(random, &snapshot)),
            10 => put(
                header,
                257,
                8,
                [&b"ustar\x0000"[..], b"ustar  \0", b"", b"ustar\x00  ", b"ustar \x0000", b"ustar   "][random.usize(0..6)],
            ),
            11 => header[508..512].copy_from_slice(b"tar\0"),
            12 => put(header, [108, 116][random.usize(0..2)], 8, &number(random, 8)),
            13 => put(header, 136, 12, &number(random, 12)),
            14 => put(header, [329, 337][random.usize(0..2)], 8, &number(random, 8)),
            15 => {
                // Other ways to write a checksum; not all of them are right.
                set_checksum(header);
                let signed: i32 = header
                    .iter()
                    .enumerate()
                    .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i32::from(byte.cast_signed()) })
                    .sum();
                let sum: i32 =
                    header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i32::from(*byte) }).sum();
                let text = match random.u8(0..6) {
                    0 => format!("{signed:06o}\0 "),
                    1 => format!("{sum:o} "),
                    2 => format!("{sum:>6o}\0\0"),
                    3 => format!("{sum:08o}"),
                    4 => format!("{:06o}\0 ", sum + 1),
                    _ => format!("  {sum:o}"),
                };
                put(header, 148, 8, text.as_bytes());
                fix = false;
            }
            16 | 17 => archive.pieces.insert(at, some_extension(random, &snapshot)),
            18 => {
                let twin = snapshot.pieces[random.usize(0..count)].clone();
                archive.pieces.insert(at, twin);
            }
            19 => archive.pieces.swap(at, random.usize(0..count)),
            20 => _ = archive.pieces.remove(at),
            21 => {
                let block = Piece { header: [0; BLOCK], content: vec![0; BLOCK * random.usize(0..2)], padding: Vec::new() };
                archive.pieces.insert(at, block);
                continue;
            }
            22 => {
                let other = &others[random.usize(0..others.len())];
                let from = random.usize(0..=other.pieces.len());
                archive.pieces.splice(at..at, other.pieces[from..].iter().take(4).cloned());
            }
            23 => archive.tail = [vec![0; BLOCK * random.usize(0..4)], others[random.usize(0..others.len())].bytes()].concat(),
            24 => piece.padding.fill(b'P'),
            25 => {
                let size = random.usize(0..1600);
                piece.content.resize(size, b'!');
                piece.padding = vec![0; size.next_multiple_of(BLOCK) - size];
            }
            26 => {
                let field = random.usize(0..BLOCK);
                header[field] = random.u8(..);
            }
            27 => {
                let bit = random.usize(0..BLOCK * 8);
                header[bit / 8] ^= 1 << (bit % 8);
            }
            28 if !piece.content.is_empty() => {
                let byte = random.usize(0..piece.content.len());
                piece.content[byte] = *random.choice(b"\0\n =/019xa\xff").expect("some");
            }
            29 => archive.tail.truncate(random.usize(0..=archive.tail.len())),
            30 => after = vec![random.u8(..), random.u8(..)],
            _ => archive.pieces.truncate(at + 1),
        }
        let at = at.min(archive.pieces.len().saturating_sub(1));
        if let Some(piece) = archive.pieces.get_mut(at).filter(|piece| fix && piece.header != [0; BLOCK]) {
            set_checksum(&mut piece.header);
        }
    }
    let mut bytes = archive.bytes();
    match after.as_slice() {
        [] => {}
        // Cut at a block, or anywhere.
        [a, b] => {
            let length = usize::from(u16::from_be_bytes([*a, *b])) % (bytes.len() + 1);
            bytes.truncate(if a & 1 == 0 { length } else { length / BLOCK * BLOCK });
        }
        _ => unreachable!("two bytes"),
    }
    bytes
}
