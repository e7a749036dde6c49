//! What stands before an entry's header and overrides it: PAX records and GNU long names.
//!
//! Readers differ in what they make of some of them, and no packer writes those; they are refused: an empty name or size (for Go the header's
//! then counts), two sets of PAX records or two long names for one entry (for Go the second counts, for Python the first), and a long name
//! beside another name in a PAX record (for Go the one counts, for GNU tar and Python the other).

use crate::path::Escaped;

/// The extensions of the entry to come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    any: bool,
    records_came: bool,
    long_name: Vec<u8>,
    pax: Pax,
}

/// The records that mean something here. An empty value means that there is none; of what is not shown Go takes it so too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pax {
    path: Vec<u8>,
    size: Vec<u8>,
    mtime: Vec<u8>,
    sparse: bool,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Notes that there is an extension, of which nothing is of use.
    pub(super) fn note(&mut self) {
        self.any = true;
    }

    pub(super) fn read_long_name(&mut self, content: &[u8]) -> Result<(), String> {
        self.note();
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let name = content.get(..end).unwrap_or_default();
        if !content.ends_with(&[0]) {
            return Err("the GNU long name does not end with a NUL byte".into());
        }
        if name.is_empty() {
            return Err("the GNU long name is empty".into());
        }
        if !self.long_name.is_empty() {
            return Err("an entry has two GNU long names".into());
        }
        if name.contains(&0) {
            return Err(format!("the long name `{}` has a NUL byte in it", Escaped(name)));
        }
        self.long_name = name.to_vec();
        Ok(())
    }

    pub(super) fn read_pax(&mut self, mut content: &[u8]) -> Result<(), String> {
        self.note();
        if std::mem::replace(&mut self.records_came, true) {
            return Err("an entry has two sets of PAX records".into());
        }
        while !content.is_empty() {
            let (key, value, rest) = record(content).ok_or_else(|| {
                let start = content.get(..40).unwrap_or(content);
                format!("`{}` does not begin with a PAX record", Escaped(start))
            })?;
            content = rest;
            let text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
            if if text { value.contains(&0) } else { key.contains(&0) } {
                return Err(format!("the PAX record `{}` has a NUL byte in it", Escaped(key)));
            }
            check(key, value)?;
            let keep = match key {
                b"path" | b"size" if value.is_empty() => return Err(format!("the PAX record `{}` is empty", Escaped(key))),
                b"path" => &mut self.pax.path,
                b"size" => &mut self.pax.size,
                b"mtime" => &mut self.pax.mtime,
                other => {
                    self.pax.sparse |= other.starts_with(b"GNU.sparse.");
                    continue;
                }
            };
            value.clone_into(keep);
        }
        Ok(())
    }

    /// The size, if an extension has it.
    pub(super) fn size(&self) -> Result<Option<u64>, String> {
        let bytes = &self.pax.size;
        if bytes.is_empty() {
            return Ok(None);
        }
        size(bytes).map(Some).ok_or_else(|| format!("the PAX size `{}` is not possible", Escaped(bytes)))
    }

    /// The time of the last change in whole seconds, if an extension has it.
    pub(super) fn mtime(&self) -> Result<Option<i64>, String> {
        optional_time(&self.pax.mtime)
    }

    /// Whether the entry claims to be a sparse file.
    pub(super) fn is_sparse(&self) -> bool {
        self.pax.sparse
    }

    /// The name, if an extension has it.
    pub(super) fn into_name(self) -> Result<Option<Vec<u8>>, String> {
        match (self.long_name.is_empty(), self.pax.path.is_empty()) {
            (true, true) => Ok(None),
            (true, false) => Ok(Some(self.pax.path)),
            (false, true) => Ok(Some(self.long_name)),
            (false, false) if self.long_name == self.pax.path => Ok(Some(self.long_name)),
            (false, false) => {
                let (long, path) = (Escaped(&self.long_name), Escaped(&self.pax.path));
                Err(format!("its GNU long name is `{long}` and its PAX path is `{path}`"))
            }
        }
    }
}

/// The first record, `<length> <key>=<value>\n`, as key and value, and what follows it.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().position(|byte| *byte == b' ')?;
    let (digits, _) = content.split_at_checked(space)?;
    let length = usize::try_from(decimal(digits)?).ok().filter(|length| *length >= 5)?;
    let (record, rest) = content.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    let (key, value) = pair.split_at_checked(equals)?;
    Some((key, value.get(1..)?, rest))
}

/// Refuses a number that is none. So does Go, but only of the last record of a key; others look at all of them.
fn check(key: &[u8], value: &[u8]) -> Result<(), String> {
    let (sound, what) = match key {
        b"size" => (value.is_empty() || size(value).is_some(), "size"),
        b"uid" | b"gid" => (value.is_empty() || decimal(value).is_some(), "owner"),
        b"mtime" | b"atime" | b"ctime" => (value.is_empty() || time(value).is_some(), "time"),
        _ => return Ok(()),
    };
    if sound { Ok(()) } else { Err(format!("the PAX {what} `{}` is not possible", Escaped(value))) }
}

/// A size. Go takes a sign too, GNU tar does not.
fn size(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().all(u8::is_ascii_digit);
    decimal(bytes).filter(|_| digits).and_then(|size| u64::try_from(size).ok())
}

fn decimal(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn optional_time(bytes: &[u8]) -> Result<Option<i64>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    time(bytes).map(Some).ok_or_else(|| format!("the PAX time `{}` is not a number", Escaped(bytes)))
}

/// `[-]seconds[.fraction]`, rounded down to whole seconds.
fn time(bytes: &[u8]) -> Option<i64> {
    let (seconds, fraction) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(point) => (bytes.get(..point)?, bytes.get(point + 1..)?),
        None => (bytes, &[][..]),
    };
    let whole = decimal(seconds)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Nanoseconds are as fine as it gets, also for Go.
    let partial = fraction.iter().take(9).any(|digit| *digit != b'0');
    if seconds.first() == Some(&b'-') && partial { whole.checked_sub(1) } else { Some(whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Extensions, String> {
        let mut extensions = Extensions::default();
        extensions.read_pax(content).map(|()| extensions)
    }

    #[test]
    fn records_are_read_as_go_reads_them() {
        let both = read(b"11 path=a=\n10 size=7\n").expect("good");
        assert_eq!((both.size(), both.clone().into_name()), (Ok(Some(7)), Ok(Some(b"a=".to_vec()))));
        assert_eq!(read(b"10 path=a\n10 path=b\n").expect("good").into_name(), Ok(Some(b"b".to_vec())), "the last one counts");
        assert_eq!(read(b"011 path=a\n").expect("good").into_name(), Ok(Some(b"a".to_vec())));
        assert_eq!(read(b"15 comment=a\0b\n").expect("good").into_name(), Ok(None));
        for bad in [
            &b"10 path=a"[..],
            b"11 path=a\n",
            b"8 path=a\n",
            b"path=a\n",
            b"10 pathAa\n",
            b"4 =\n",
            b"6 =aa\n",
            b"-1 path=a\n",
            b"99999999999999999999 path=a\n",
            b"10 path=\0\n",
            b"12 a\0b=cdef\n",
            b"10  path=\n\n",
            b"10 path=a\n8 path=\n",
            b"8 size=\n",
        ] {
            assert!(read(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn sizes_and_times_are_checked() {
        for (record, size) in [
            ("10 size=0\n", Some(0)),
            ("11 size=-1\n", None),
            ("11 size= 1\n", None),
            ("11 size=+1\n", None),
            ("28 size=9223372036854775807\n", Some(i64::MAX as u64)),
            ("28 size=9223372036854775808\n", None),
        ] {
            assert_eq!(read(record.as_bytes()).ok().and_then(|extensions| extensions.size().expect("checked")), size, "{record}");
        }
        for (text, seconds) in [
            ("1", Some(1)),
            ("1.9", Some(1)),
            ("-1", Some(-1)),
            ("-1.5", Some(-2)),
            ("-1.0", Some(-1)),
            ("-0.5", Some(-1)),
            ("1.", Some(1)),
            (".5", None),
            ("1.x", None),
            ("x", None),
        ] {
            assert_eq!(time(text.as_bytes()), seconds, "{text}");
        }
        for bad in [&b"9 uid=x7\n"[..], b"11 atime=x\n", b"9 size=x\n9 size=1\n"] {
            assert!(read(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn long_names_end_at_their_nul() {
        let mut extensions = read(b"10 path=a\n").expect("good");
        assert!(extensions.read_long_name(b"lo\0ng\0").is_err());
        assert!(extensions.read_long_name(b"long").is_err(), "others read on");
        assert!(extensions.read_long_name(b"\0").is_err(), "Go takes the header's name");
        let mut other = extensions.clone();
        other.read_long_name(b"long\0").expect("good");
        assert!(other.into_name().is_err(), "two names");
        extensions.read_long_name(b"a\0").expect("the same name");
        assert_eq!(extensions.clone().into_name(), Ok(Some(b"a".to_vec())));
        assert!(extensions.read_long_name(b"a\0").is_err() && extensions.read_pax(b"10 path=a\n").is_err(), "once is enough");
    }
}
