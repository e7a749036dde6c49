//! What is attached to a manifest: signatures and attestations, wherever Cosign puts them.
//!
//! Finding them is never trusted. Whatever is found is a [`Candidate`]: bytes that have their descriptor's digest, and nothing else is known of them.
//! Who signed, and whether it counts, is for [`crate::signature`] and [`crate::admission`], which this module does not know.

mod manifest;
mod search;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::failure::ErrorClass;
use crate::policy::Name;
use crate::policy::authority::Format;
use crate::signature::{Denial, LayerKind};
use crate::source::Source;

pub use manifest::{Piece, PieceKind, pieces};
pub use search::{Request, deadline, search};

/// Something attached to a manifest that could be a signature or an attestation.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The blob that is judged: a bundle, or a layer of Cosign's older format. Where that was not had, what its descriptor says.
    pub digest: Digest,
    /// The manifest that it was found in.
    pub manifest: Digest,
    /// What it is attached to: the kit, or the index that the kit was chosen from.
    pub subject: Digest,
    /// The repository that it was looked for in, where a policy names another than the kit's own.
    pub repository: Option<Name>,
    /// Where it was found, for people: `referrers of h.test/a`, `tag sha256-….sig of h.test/a`, `the cache`.
    pub found_at: String,
    /// The format that it claims to be in.
    pub format: Format,
    /// What is judged; `Err` if it failed before (damaged, too big, malformed, listed and not there).
    pub content: Result<Content, Denial>,
}

/// What of a candidate is judged. All of it matched its digest.
#[derive(Debug, Clone)]
pub enum Content {
    /// A Sigstore bundle.
    Bundle(Bytes),
    /// A layer of a `.sig` or `.att` manifest.
    Layer {
        /// What its media type says that it is.
        kind: LayerKind,
        /// The layer.
        blob: Bytes,
        /// The annotations of its descriptor.
        annotations: Vec<(String, String)>,
    },
}

/// A place in which signatures are looked for.
#[derive(Debug, Clone)]
pub struct Place {
    /// The repository, where a policy names another than the kit's own.
    pub repository: Option<Name>,
    /// What gives its manifests and blobs.
    pub source: Arc<dyn Source>,
}

/// How a search ended.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// Places and candidates that could not be read.
    pub gaps: Vec<Gap>,
    /// Limits that were met, each as a sentence with its numbers.
    pub capped: Vec<String>,
    /// Where was looked, for people.
    pub searched: Vec<String>,
    /// Whether whoever looked wanted no more.
    pub stopped: bool,
}

/// Something that could not be read, so that nobody knows whether it would have counted.
#[derive(Debug, Clone)]
pub struct Gap {
    /// What: `referrers of h.test/a`, or a digest and where it is.
    pub what: String,
    /// Why not, with its causes in one line.
    pub why: String,
    /// What kind of trouble it is.
    pub class: ErrorClass,
    /// The repository, as in [`Candidate::repository`].
    pub repository: Option<Name>,
}
