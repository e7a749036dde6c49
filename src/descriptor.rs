//! Descriptors: the only key by which content is asked for.

use crate::digest::Digest;

/// What a manifest says of a piece of content: OCI image spec, "Content Descriptors".
///
/// `urls`, `data` and annotations are not part of it: kitfs fetches a blob from the repository of its manifest and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// The media type as the manifest spells it.
    pub media_type: String,
    /// The digest of the whole content.
    pub digest: Digest,
    /// The exact size of the content in bytes; also the most that is ever read of it.
    pub size: u64,
}
