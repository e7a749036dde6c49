//! One tar header: 512 bytes to numbers and a name, as Go's reader takes them.

use tar::Header;

/// Bytes of a block, and of a header.
pub(super) const BLOCK: usize = 512;

/// What a header says, extensions not considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawHeader {
    pub(super) type_flag: u8,
    pub(super) name: Vec<u8>,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime: i64,
}

/// The layouts that the fields after byte 257 can have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Before POSIX: nothing is there.
    V7,
    /// POSIX: a prefix of the name.
    Ustar,
    /// Jörg Schilling's: a shorter prefix, then times.
    Star,
    /// GNU's: times and more.
    Gnu,
}

impl RawHeader {
    /// Reads a block that is not all zeros. Every number must be one, also those that are of no use here: a header that Go refuses is
    /// refused.
    pub(super) fn read(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let header = Header::from_byte_slice(block);
        let old = header.as_old();
        if !checksum_matches(block, &old.cksum) {
            return Err("its checksum does not match");
        }
        // Go takes a blank one for 0; GNU's tar does not.
        if old.size.iter().all(|byte| matches!(byte, b' ' | 0)) {
            return Err("it has no size");
        }
        let size = number(&old.size).ok_or("its size is not a number")?;
        let size = u64::try_from(size).map_err(|_| "its size is negative")?;
        let mode = number(&old.mode).ok_or("its mode is not a number")?;
        let mtime = number(&old.mtime).ok_or("its time is not a number")?;
        number(&old.uid).ok_or("its owner is not a number")?;
        number(&old.gid).ok_or("its group is not a number")?;
        let mut name = text(&old.name).to_vec();
        let format = format(block);
        if format != Format::V7 {
            number(field(block, 329, 8)).ok_or("its device number is not a number")?;
            number(field(block, 337, 8)).ok_or("its device number is not a number")?;
        }
        let prefix = match format {
            Format::V7 => &[][..],
            Format::Ustar => text(field(block, 345, 155)),
            Format::Star => {
                number(field(block, 476, 12)).ok_or("its access time is not a number")?;
                number(field(block, 488, 12)).ok_or("its change time is not a number")?;
                text(field(block, 345, 131))
            }
            Format::Gnu => {
                // Go before 1.8 wrote a prefix where GNU has times, and its reader still takes for one what cannot be times.
                let time = |bytes: &[u8]| bytes.first() == Some(&0) || number(bytes).is_some();
                let prefix = text(field(block, 345, 155));
                let times = time(field(block, 345, 12)) && time(field(block, 357, 12));
                if times || !prefix.is_ascii() { &[] } else { prefix }
            }
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let mode = (mode & 0o7777) as u32;
        // The byte itself: the tar crate's `EntryType` takes NUL for `0`, which is not the same.
        let [type_flag] = old.linkflag;
        Ok(Self { type_flag, name, size, mode, mtime })
    }
}

/// The name of a type that no layer may have.
pub(super) fn describe(type_flag: u8) -> String {
    match type_flag {
        b'1' => "a hard link".into(),
        b'2' => "a symbolic link".into(),
        b'3' => "a character device".into(),
        b'4' => "a block device".into(),
        b'6' => "a FIFO".into(),
        b'7' => "a contiguous file (type `7`)".into(),
        b'S' => "a sparse file (type `S`)".into(),
        b'g' => "a global extended header".into(),
        other => format!("of unknown type `{}`", other.escape_ascii()),
    }
}

fn format(block: &[u8; BLOCK]) -> Format {
    match (field(block, 257, 6), field(block, 263, 2), field(block, 508, 4)) {
        (b"ustar\0", _, b"tar\0") => Format::Star,
        (b"ustar\0", _, _) => Format::Ustar,
        (b"ustar ", b" \0", _) => Format::Gnu,
        _ => Format::V7,
    }
}

fn field(block: &[u8; BLOCK], start: usize, size: usize) -> &[u8] {
    block.get(start..start + size).unwrap_or_default()
}

/// A field's bytes up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes, the checksum itself taken as spaces. The Sun's tar summed them as signed numbers.
fn checksum_matches(block: &[u8; BLOCK], stored: &[u8; 8]) -> bool {
    let spaces = |index: usize| (148..156).contains(&index);
    let bytes = || block.iter().enumerate().map(move |(index, byte)| if spaces(index) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    octal(stored).is_some_and(|value| value == unsigned || value == signed)
}

/// A number in octal, or in base 256 if the first byte is 0x80 or 0xff, as GNU's tar marks it. (Go looks at its first bit only, others do not;
/// the tar crate drops the sign and the upper bytes.)
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    if !matches!(first, 0x80 | 0xff) {
        return None;
    }
    // Two's complement, most significant byte first; the first bit only says that it is no octal.
    let sign = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (index, byte) in field.iter().enumerate() {
        let byte = (byte ^ sign) & if index == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if sign == 0 { value } else { !value })
}

/// Octal digits between spaces and NULs; nothing at all is 0. Behind a NUL nothing may follow that counts: Go skips NULs before the digits,
/// and other readers take the number for 0.
fn octal(field: &[u8]) -> Option<i64> {
    let filler = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !filler(byte)) else { return Some(0) };
    if field.iter().take(start).any(|byte| *byte == 0) {
        return None;
    }
    let end = field.iter().rposition(|byte| !filler(byte))? + 1;
    let digits = text(field.get(start..end)?);
    if !digits.iter().all(|byte| (b'0'..=b'7').contains(byte)) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_go() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"644", Some(0o644)),
            (b"  644 \0", Some(0o644)),
            (b"\0\0\0 644 ", None),
            (b" \x00644 ", None),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777777\0", Some(0o77777777777)),
            (b"12\08", Some(0o12)),
            (b"12 4", None),
            (b"8", None),
            (b"-1", None),
            (b"+1", None),
            (b"0x1", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x02\xbc", Some(700)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x81\0\0\0\0\0\0\x01", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    /// A header with its checksum.
    fn header(change: impl FnOnce(&mut [u8; BLOCK])) -> [u8; BLOCK] {
        let mut header = Header::new_old();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let mut block = *header.as_bytes();
        block[..4].copy_from_slice(b"name");
        change(&mut block);
        let mut header = Header::from_byte_slice(&block).clone();
        header.set_cksum();
        *header.as_bytes()
    }

    #[test]
    fn prefixes_depend_on_the_format() {
        for (magic, name) in [
            (&b"ustar\x0000"[..], &b"pre/name"[..]),
            (b"ustar\x00xx", b"pre/name"),
            (b"ustar  \0", b"pre/name"),
            (b"ustar  x", b"name"),
            (b"\0\0\0\0\0\0\0\0", b"name"),
        ] {
            let block = header(|block| {
                block[257..265].copy_from_slice(magic);
                block[345..348].copy_from_slice(b"pre");
            });
            assert_eq!(RawHeader::read(&block).expect("good").name, name, "{}", magic.escape_ascii());
        }
        let star = header(|block| {
            block[257..265].copy_from_slice(b"ustar\x0000");
            block[345..345 + 155].fill(b'p');
            block[476..500].fill(b'0');
            block[508..512].copy_from_slice(b"tar\0");
        });
        assert_eq!(RawHeader::read(&star).expect("good").name, [[b'p'; 131].as_slice(), b"/name"].concat());
        let gnu_times = header(|block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[345..357].copy_from_slice(b"00000000001 ");
            block[357..369].copy_from_slice(b"00000000001 ");
        });
        assert_eq!(RawHeader::read(&gnu_times).expect("good").name, b"name");
    }

    #[test]
    fn a_wrong_field_refuses_the_header() {
        for (at, what) in [(100, "mode"), (108, "owner"), (116, "group"), (124, "size"), (136, "time")] {
            let block = header(|block| block[at] = b'9');
            assert!(RawHeader::read(&block).expect_err("no number").contains(what), "{what}");
        }
        assert_eq!(RawHeader::read(&header(|block| block[124..136].fill(0xff))), Err("its size is negative"));
        assert_eq!(RawHeader::read(&header(|block| block[124..136].fill(b' '))), Err("it has no size"));
        assert_eq!(RawHeader::read(&header(|block| block[124..136].fill(0))), Err("it has no size"));
        let mut flipped = header(|_| ());
        flipped[0] ^= 1;
        assert_eq!(RawHeader::read(&flipped), Err("its checksum does not match"));
    }

    #[test]
    fn signed_checksums_are_taken() {
        let mut block = header(|block| block[0] = 0xe4);
        let sum: i64 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(*byte as i8) }).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(RawHeader::read(&block).is_ok());
    }
}
