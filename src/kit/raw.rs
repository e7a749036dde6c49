//! Raw layers: what the manifest says of the one file that a layer is.

use crate::descriptor::Descriptor;
use crate::json::{Json, JsonError};
use crate::layer::{Compression, RawFile};
use crate::path::RelPath;

/// The annotation that says where the file of a layer stands.
pub(super) const FILE_PATH: &str = "org.cncf.model.filepath";
/// The annotation that says the rest, as JSON.
pub(super) const FILE_METADATA: &str = "org.cncf.model.file.metadata+json";
/// What drafts of ModelPack called it.
pub(super) const DRAFT_FILE_METADATA: &str = "org.cnai.model.file.metadata+json";

/// What [`FILE_METADATA`] holds, as far as it is of use: who owned the file is not, and its name is the path's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Permission bits.
    pub(super) mode: Option<u32>,
    /// Bytes of the file.
    pub(super) size: Option<u64>,
    /// Seconds since 1970; 0 if there are none, or less.
    pub(super) mtime: i64,
}

/// Why a raw layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// Nothing says where its file stands.
    #[error("it has no annotation `{FILE_PATH}`, so that nothing says where its file stands")]
    NoPath,
    /// Its file would be the root folder.
    #[error("it is one file, and its path is the root folder")]
    Root,
    /// Config and manifest say different places.
    #[error("the config says that its file is `{config}`, the manifest's annotation `{FILE_PATH}` says `{annotation}`")]
    OtherPath {
        /// The config's path.
        config: RelPath,
        /// The manifest's.
        annotation: RelPath,
    },
    /// The metadata are no JSON of the shape that kit and modctl write.
    #[error("its annotation `{FILE_METADATA}` is malformed")]
    Metadata(#[from] JsonError),
    /// The modification time is none.
    #[error("its annotation `{FILE_METADATA}` has the `mtime` `{0}`, expected a time like 2026-01-31T12:00:00Z")]
    Time(String),
    /// It is not a regular file.
    #[error("its annotation `{FILE_METADATA}` has the `typeflag` {0}; a layer has only files (0 or 48)")]
    Kind(u64),
    /// An uncompressed blob has not the size that its file should have.
    #[error("its blob has {blob} bytes, but its annotation `{FILE_METADATA}` says that the file has {file}")]
    Size {
        /// The blob's size, which is the file's.
        blob: u64,
        /// What the annotation says.
        file: u64,
    },
}

impl Metadata {
    /// Reads the annotation's text.
    pub(super) fn parse(text: &str) -> Result<Self, RawError> {
        let json = Json::parse(text.as_bytes())?;
        let object = json.object("", &["name", "mode", "uid", "gid", "size", "mtime", "typeflag"])?;
        let number = |key: &str| object.get(key).map(|_| object.required_size(key)).transpose();
        object.string("name")?;
        match number("typeflag")? {
            // modctl writes kinds of its own, kit those of tar: the file is 0 to the one, and the character `0` to the other.
            None | Some(0 | 48) => {}
            Some(other) => return Err(RawError::Kind(other)),
        }
        let mtime = match object.string("mtime")? {
            None | Some("") => 0,
            Some(time) => time.parse::<jiff::Timestamp>().map_err(|_| RawError::Time(time.to_owned()))?.as_second(),
        };
        // The rest of a mode are bits of Go's that say what kind of file it is, and setuid and the like, which are never shown.
        let mode = number("mode")?.map(|mode| (mode & 0o777) as u32);
        Ok(Self { mode, size: number("size")?, mtime: mtime.max(0) })
    }

    /// The size of the file of a layer, as far as it is known: an uncompressed blob is its file.
    pub(super) fn size_of(&self, blob: &Descriptor, compression: Compression) -> Result<Option<u64>, RawError> {
        match (compression, self.size) {
            (Compression::None, Some(file)) if file != blob.size => Err(RawError::Size { blob: blob.size, file }),
            (Compression::None, _) => Ok(Some(blob.size)),
            (_, size) => Ok(size),
        }
    }

    /// What is shown of the file. Kit takes a mode of 0 for what it says, modctl for none: that is for the caller to say.
    pub(super) fn file(&self) -> RawFile {
        RawFile { mode: self.mode.unwrap_or(RawFile::MODE), mtime: self.mtime }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};

    #[test]
    fn metadata_of_kit_and_of_modctl_are_read() {
        let full = |mode, size, mtime| Metadata { mode: Some(mode), size: Some(size), mtime };
        for (text, expected) in [
            (
                r#"{"name":"m.bin","mode":420,"uid":0,"gid":0,"size":9001,"mtime":"2026-06-15T10:20:30.123456789Z","typeflag":48}"#,
                full(0o644, 9001, 1_781_518_830),
            ),
            (r#"{"name":"m","mode":493,"size":0,"mtime":"2023-11-14T23:13:20+01:00","typeflag":0}"#, full(0o755, 0, 1_700_000_000)),
            // setuid and Go's bits for kinds are left out; the zero time of Go is none.
            (r#"{"mode":2155872749,"size":1,"mtime":"0001-01-01T00:00:00Z"}"#, full(0o755, 1, 0)),
            ("{}", Metadata::default()),
            ("null", Metadata::default()),
            (r#"{"mode":null,"size":null,"mtime":"","other":[1]}"#, Metadata::default()),
        ] {
            assert_eq!(Metadata::parse(text).unwrap_or_else(|error| panic!("{text}: {error:?}")), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_metadata_of_a_file_is_refused() {
        for (text, expected) in [
            ("", "malformed"),
            ("[]", "malformed"),
            (r#"{"size":-1}"#, "malformed"),
            (r#"{"size":1.5}"#, "malformed"),
            (r#"{"size":"1"}"#, "malformed"),
            (r#"{"size":1,"size":2}"#, "malformed"),
            (r#"{"Size":1}"#, "malformed"),
            (r#"{"size":9223372036854775808}"#, "malformed"),
            (r#"{"mode":-420}"#, "malformed"),
            (r#"{"name":7}"#, "malformed"),
            (r#"{"mtime":"yesterday"}"#, "`yesterday`"),
            (r#"{"typeflag":53}"#, "53"),
            (r#"{"typeflag":2}"#, "only files"),
        ] {
            let error = Metadata::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_uncompressed_blob_is_its_file() {
        let blob = Descriptor { media_type: String::new(), digest: Digest::of(Algorithm::Sha256, b""), size: 5 };
        let of = |size| Metadata { size, ..Metadata::default() };
        assert!(matches!(of(None).size_of(&blob, Compression::None), Ok(Some(5))));
        assert!(matches!(of(Some(5)).size_of(&blob, Compression::None), Ok(Some(5))));
        assert!(matches!(of(Some(6)).size_of(&blob, Compression::None), Err(RawError::Size { blob: 5, file: 6 })));
        for compression in [Compression::Gzip, Compression::Zstd] {
            assert!(matches!(of(None).size_of(&blob, compression), Ok(None)));
            assert!(matches!(of(Some(6)).size_of(&blob, compression), Ok(Some(6))));
        }
    }
}
