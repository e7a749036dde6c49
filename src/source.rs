//! Where blobs come from, without knowing which kind of place it is.
//!
//! The one trait of kitfs: implemented by [`crate::registry`], by [`crate::layout`] and by the tests' fault injector. Whatever comes
//! out of it is [`Unverified`].

mod attached;
mod metered;
mod offline;
mod open;

use std::error::Error;
use std::fmt;
use std::io;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::descriptor::Descriptor;
use crate::limits;
use crate::verify::Unverified;

pub(crate) use attached::tags;
pub use attached::{Attached, AttachedBy, Attachments, ListedManifest};
pub use metered::{Count, metered};
pub use open::{SourceOptions, asking, before_mount, open, reach};

pub use crate::registry::{Reached, Wants};

/// The bytes of a blob in order, from the asked offset to the end. After an error nothing more comes.
pub type BlobStream = BoxStream<'static, Result<Unverified<Bytes>, SourceError>>;

/// A place that a kit can be had from.
pub trait Source: Send + Sync + fmt::Debug {
    /// The place as a person would name it: `registry.example.com/acme/minilm` or `oci:/srv/kits`.
    fn name(&self) -> &str;

    /// Asks once which manifest the reference means now.
    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>>;

    /// A whole small document that is asked for as `kind`. Never more than `descriptor.size` bytes (plus one, to show that there are more).
    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, kind: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>>;

    /// A whole small document that is what its media type says: a manifest, or else a config.
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        self.document_as(descriptor, DocumentKind::Announced)
    }

    /// The blob's bytes from offset `from` (at most `descriptor.size`) to its end. Retries what is worth it by itself, so that an
    /// error is final for now. Bytes beyond `descriptor.size` are passed on (at least the first), so that the check can refuse them.
    fn blob(&self, descriptor: &Descriptor, from: u64) -> BlobStream;

    /// What claims to be attached to a manifest. Nothing of it is checked; what could not be read is said, and is no error.
    fn attached<'a>(&'a self, attachments: &'a Attachments) -> BoxFuture<'a, Attached>;
}

/// What a small document is asked for as. It says where a registry has it and how large it may be, nothing about what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// What its media type says: a manifest, or else a config.
    Announced,
    /// A manifest, whatever its media type.
    Manifest,
    /// Something signed: a bundle, or a layer of Cosign's older format.
    Evidence,
}

impl DocumentKind {
    /// How many bytes it may have.
    pub fn limit(self) -> u64 {
        match self {
            Self::Announced => limits::MANIFEST_BYTES.max(limits::CONFIG_BYTES),
            Self::Manifest => limits::MANIFEST_BYTES,
            Self::Evidence => limits::BUNDLE_BYTES,
        }
    }
}

/// What a reference meant when it was asked for.
#[derive(Debug)]
pub struct Resolved {
    /// The manifest's descriptor, which from here on is the only name of the kit.
    pub descriptor: Descriptor,
    /// The manifest itself.
    pub manifest: Unverified<Bytes>,
    /// Who says that this digest is the one.
    pub pin: Pin,
}

/// Who named the digest that a mount stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// The user wrote `@sha256:…`.
    ByUser,
    /// The source said so when it was asked for a tag.
    BySource,
}

/// Why a source did not give what was asked for. Each names the place and what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The place answered that it has no such thing.
    #[error("{place}: {what} was not found")]
    NotFound {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was asked for: a tag, a digest.
        what: String,
    },
    /// The place does not let us read it.
    #[error("{place}: not allowed to read {what} ({status})")]
    Denied {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was asked for.
        what: String,
        /// The HTTP status, or the file system's word.
        status: String,
    },
    /// No connection could be made in time.
    #[error("{place}: {what}: no connection within {seconds} s")]
    Unconnected {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was to be asked for.
        what: String,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// There was time for several attempts, and it is over.
    #[error("{place}: {what}: it did not come within {seconds} s")]
    Late {
        /// The source's name.
        place: String,
        /// What was asked for.
        what: String,
        /// How long was waited, in seconds.
        seconds: u64,
        /// How the last attempt ended, if one did.
        #[source]
        source: Option<Box<Self>>,
    },
    /// No byte came for too long.
    #[error("{place}: {what}: no byte for {seconds} s")]
    Stalled {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was asked for.
        what: String,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// The place could not be reached, or broke off, or asked to be left alone for a while.
    #[error("{place}: {what}: {reason}")]
    Unavailable {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was asked for.
        what: String,
        /// What happened, in a few words.
        reason: String,
        /// When the place wants to be asked again (`Retry-After`), if it said so.
        retry_at: Option<SystemTime>,
        /// The cause, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The place answered something that its protocol does not allow, or something larger than the limit for it.
    #[error("{place}: {what}: {reason}")]
    Protocol {
        /// The source's name, or the URL without its query.
        place: String,
        /// What was asked for.
        what: String,
        /// What was wrong: expected and got.
        reason: String,
    },
    /// A local source (layout) could not be read.
    #[error("{path}")]
    Local {
        /// The file or folder.
        path: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// Stands among the causes of a [`SourceError`] if the other side was greeted by TLS and does not seem to speak it.
#[derive(Debug, thiserror::Error)]
#[error("the other side does not speak TLS")]
pub struct NotTls(#[source] Box<dyn Error + Send + Sync>);

impl NotTls {
    /// Marks `cause`.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl SourceError {
    /// True if plain HTTP may be what the place speaks. Whether to tell the user to try it is up to the command line.
    pub fn is_not_tls(&self) -> bool {
        std::iter::successors(self.source(), |&cause| cause.source()).any(|cause| cause.is::<NotTls>())
    }
}
