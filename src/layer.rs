//! What the store needs to know of a layer to fetch, check and cut it.

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archive {
    /// A tar stream, read as Go's `archive/tar` reads it.
    Tar,
}

/// How a layer's uncompressed content was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the blob is the content.
    None,
    /// RFC 1952, one or several members.
    Gzip,
}
