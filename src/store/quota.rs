//! How large a cache may become: what was said last, kept in the cache, so that all who share it hold to the same limit.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use super::dir::Dir;
use super::draft::Draft;
use super::error::{StoreError, disk};
use crate::limits;

/// The file that holds the limit, above all versions of the cache.
const LIMIT: &str = "limit";

/// What it is called until it is renamed, with a random number behind it.
pub(super) const DRAFT: &str = "limit.";

/// A limit as it is given: `128MiB`, `50GB`, `40%` of the filesystem, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the filesystem.
    Percent(u8),
}

/// What is wrong with a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB, TiB or %, got `{0}`")]
pub struct CacheSizeError(String);

/// Units, and the bytes that they are.
const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl CacheSize {
    /// Where nobody says anything: all but a tenth of the filesystem.
    pub(super) const DEFAULT: Self = Self::Percent(limits::CACHE_DEFAULT_PERCENT);

    /// The bytes of it on a filesystem of `total` bytes.
    pub(super) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (u128::from(total) * u128::from(percent) / 100).try_into().unwrap_or(u64::MAX),
        }
    }
}

impl FromStr for CacheSize {
    type Err = CacheSizeError;

    fn from_str(text: &str) -> Result<Self, CacheSizeError> {
        let wrong = || CacheSizeError(text.chars().take(limits::CACHE_SIZE_SHOWN).collect());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        if unit == "%" {
            return u8::try_from(number).ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent).ok_or_else(wrong);
        }
        let factor = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        number.checked_mul(factor).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            // The largest unit that leaves nothing over is the one that was given, mostly.
            Self::Bytes(bytes) => match UNITS.iter().rev().filter(|(_, unit)| *bytes > 0 && bytes % unit == 0).max_by_key(|(_, unit)| unit)
            {
                Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
                None => write!(f, "{bytes}B"),
            },
        }
    }
}

/// The limit that was given last; `None` if none ever was, or if what stands there is none.
pub(super) fn given(top: &Dir) -> Result<Option<CacheSize>, StoreError> {
    let Some(file) = top.open(LIMIT)? else { return Ok(None) };
    let mut text = String::new();
    match top.step("read", LIMIT).and_then(|()| file.take(limits::RECORD_BYTES).read_to_string(&mut text)) {
        Ok(_) => Ok(text.trim_end().parse().ok()),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(disk(format!("reading {}", top.path_of(LIMIT).display()))(error)),
    }
}

/// Keeps a limit, and says which one it takes the place of, if that is another.
pub(super) fn give(top: &Dir, size: CacheSize) -> Result<Option<CacheSize>, StoreError> {
    let before = given(top)?;
    if before == Some(size) {
        return Ok(None);
    }
    let mut draft = Draft::begin(top, DRAFT)?;
    draft.write(format!("{size}\n").as_bytes())?;
    let (name, file) = draft.file();
    top.sync_file(name, file)?;
    draft.place(top, LIMIT)?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        for (text, size, shown) in [
            ("0", CacheSize::Bytes(0), "0B"),
            ("1000", CacheSize::Bytes(1000), "1kB"),
            ("128MiB", CacheSize::Bytes(128 << 20), "128MiB"),
            ("50GB", CacheSize::Bytes(50_000_000_000), "50GB"),
            ("2TiB", CacheSize::Bytes(2 << 40), "2TiB"),
            ("7B", CacheSize::Bytes(7), "7B"),
            ("40%", CacheSize::Percent(40), "40%"),
            ("100%", CacheSize::Percent(100), "100%"),
        ] {
            assert_eq!(text.parse(), Ok(size), "{text}");
            assert_eq!(size.to_string(), shown);
            assert_eq!(shown.parse(), Ok(size));
        }
        for text in ["", "GB", "-1", "1.5GB", "0%", "101%", "1 GB", "1gb", "99999999999TiB", "1%%", "18446744073709551616"] {
            assert!(text.parse::<CacheSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn percents_are_of_the_filesystem() {
        assert_eq!(CacheSize::DEFAULT.bytes(1000), 900);
        assert_eq!(CacheSize::Percent(100).bytes(u64::MAX), u64::MAX);
        assert_eq!(CacheSize::Bytes(7).bytes(0), 7);
    }

    #[test]
    fn the_last_one_wins_and_says_so() {
        let path = tempfile::tempdir().expect("a directory");
        let dir = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
        assert_eq!(given(&dir).expect("readable"), None);
        assert_eq!(give(&dir, CacheSize::Percent(40)).expect("room"), None);
        assert_eq!(give(&dir, CacheSize::Percent(40)).expect("room"), None);
        assert_eq!(give(&dir, CacheSize::Bytes(7)).expect("room"), Some(CacheSize::Percent(40)));
        assert_eq!(given(&dir).expect("readable"), Some(CacheSize::Bytes(7)));
        std::fs::write(path.path().join(LIMIT), b"\xff lots").expect("room");
        assert_eq!(given(&dir).expect("readable"), None);
        assert_eq!(dir.list().expect("readable"), [LIMIT]);
    }
}
