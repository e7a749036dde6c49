//! What the store needs to know of a layer to fetch, check and cut it.

use std::fmt;

use crate::descriptor::Descriptor;
use crate::digest::Digest;

/// One layer as manifest and config describe it. Where its files stand in the mount is not part of it: one layer may serve many kits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed content, if the config names one (kits up to 0.4 do not).
    pub diff_id: Option<Digest>,
    /// How files are put together into the uncompressed content.
    pub archive: Archive,
    /// How the uncompressed content became the blob.
    pub compression: Compression,
}

/// How files are put together into a layer's uncompressed content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// A tar stream, read as Go's `archive/tar` reads it.
    Tar,
    /// Not at all: the content is the one file that there is. Its name and mode are not in it; see [`RawFile`].
    Raw {
        /// The bytes of the file, where the manifest says so (for an uncompressed one the descriptor does). Content of another size is refused.
        size: Option<u64>,
    },
}

/// How a layer's uncompressed content was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Not at all: the blob is the content.
    None,
    /// RFC 1952, one or several members.
    Gzip,
    /// RFC 8878, one or several frames.
    Zstd,
}

/// What the manifest says of the one file of a raw layer, beside its path and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFile {
    /// Permission bits, at most `0o777`.
    pub mode: u32,
    /// Seconds since 1970; 0 if nothing says so.
    pub mtime: i64,
}

impl RawFile {
    /// The mode of a file whose mode nobody gives.
    pub const MODE: u32 = 0o644;
}

/// What the store knows a layer by: the blob and how it is read. The same bytes may be an archive to one kit and a file to another, and
/// what is stored for the one must never serve the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerKey {
    /// The digest of the blob.
    pub digest: Digest,
    /// True for an archive, false for a bare file.
    pub is_tar: bool,
    /// How it is compressed.
    pub compression: Compression,
}

impl LayerSpec {
    /// What the store knows the layer by.
    pub fn key(&self) -> LayerKey {
        LayerKey { digest: self.descriptor.digest, is_tar: self.archive == Archive::Tar, compression: self.compression }
    }
}

impl LayerKey {
    /// Every way to read a blob, with what it adds to the blob's name. A plain archive has the bare name.
    const MEANINGS: [(bool, Compression, &str); 6] = [
        (true, Compression::None, ""),
        (true, Compression::Gzip, "-tar+gzip"),
        (true, Compression::Zstd, "-tar+zstd"),
        (false, Compression::None, "-raw"),
        (false, Compression::Gzip, "-raw+gzip"),
        (false, Compression::Zstd, "-raw+zstd"),
    ];

    /// The form that serves as a file name: `algorithm-hex`, and for anything but a plain archive how it is read.
    pub fn file_name(&self) -> String {
        self.digest.file_name() + self.suffix()
    }

    /// The inverse of [`LayerKey::file_name`]; `None` for any other name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        Self::MEANINGS.into_iter().find_map(|(is_tar, compression, suffix)| {
            Some(Self { digest: Digest::from_file_name(name.strip_suffix(suffix)?)?, is_tar, compression })
        })
    }

    fn suffix(&self) -> &'static str {
        let same = |(is_tar, compression, _): &(bool, Compression, &str)| *is_tar == self.is_tar && *compression == self.compression;
        Self::MEANINGS.iter().find(|meaning| same(meaning)).map_or("", |(.., suffix)| suffix)
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suffix().strip_prefix('-') {
            Some(meaning) => write!(f, "{} ({meaning})", self.digest),
            None => self.digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn every_meaning_has_a_name_of_its_own() {
        let mut names = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            for is_tar in [true, false] {
                for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                    let key = LayerKey { digest, is_tar, compression };
                    assert_eq!(LayerKey::from_file_name(&key.file_name()), Some(key));
                    names.push(key.file_name());
                }
            }
            // What was stored before there were other meanings is a plain archive still.
            let plain = LayerKey { digest, is_tar: true, compression: Compression::None };
            assert_eq!(plain.file_name(), digest.file_name());
            assert_eq!(plain.to_string(), digest.to_string());
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((count, names.len()), (12, 12));
        for other in ["", "-raw", "sha256-00-raw", &format!("{}-tar", names[0]), &format!("{}+zstd", names[0])] {
            assert_eq!(LayerKey::from_file_name(other), None, "{other}");
        }
    }
}
