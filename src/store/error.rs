//! Why the store could not do what it was asked for.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::failure::ErrorClass;
use crate::source::SourceError;
use crate::verify::Mismatch;

/// Why the store could not do what it was asked for. Cheap to clone, because everybody who waited for a layer gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The cache directory lies on a filesystem that cannot carry it.
    #[error("{}: a cache cannot lie on {filesystem}: {reason}", path.display())]
    Unsuitable {
        /// The cache directory.
        path: PathBuf,
        /// The filesystem, by name.
        filesystem: String,
        /// What it lacks.
        reason: String,
    },
    /// Somebody else owns a directory of the cache, so what lies in it is not known to be ours.
    #[error("{}: owned by user {got}, expected {expected}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Our user.
        expected: u32,
        /// Its owner.
        got: u32,
    },
    /// Others may write into the cache directory.
    #[error("{}: others may write there (mode {mode:o})", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The operating system refused something.
    #[error("{what}")]
    Disk {
        /// What was done to which file.
        what: String,
        /// The operating system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// A blob is not what its descriptor says, also after it was fetched once more.
    #[error("layer {layer}: {mismatch}")]
    Content {
        /// The layer's digest.
        layer: Digest,
        /// Expected and got.
        mismatch: Box<Mismatch>,
    },
    /// The blob is right, but what it holds is not what the config says.
    #[error("layer {layer}, uncompressed: {mismatch}")]
    Uncompressed {
        /// The layer's digest.
        layer: Digest,
        /// The config's `diffId`, and the digest of what the blob holds.
        mismatch: Box<Mismatch>,
    },
    /// The blob is right, but the archive in it may not be shown.
    #[error("layer {layer}")]
    Refused {
        /// The layer's digest.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The source did not give the layer.
    #[error("layer {layer}")]
    Source {
        /// The layer's digest.
        layer: Digest,
        /// What the source said.
        #[source]
        source: Arc<SourceError>,
    },
    /// Another process of this host tried meanwhile, and what it ran into concerns us too.
    #[error("{text} (in process {pid})")]
    Elsewhere {
        /// The layer's digest.
        layer: Digest,
        /// The class of the other's error.
        class: ErrorClass,
        /// Its text, with its causes.
        text: String,
        /// The other process.
        pid: u32,
        /// When it will be worth to try again, if the other knew.
        retry_at: Option<SystemTime>,
    },
    /// A file in the cache is not as it was when it was verified. [`crate::store::Store::ensure`] looks into it; ask that and try again.
    #[error("layer {layer}: {file}: {reason}")]
    Doubtful {
        /// The layer's digest.
        layer: Digest,
        /// The file in the layer's directory.
        file: String,
        /// What is different: expected and got.
        reason: String,
    },
    /// Those who work on the layer, or hold a lock for a moment, are all stopped.
    #[error("layer {layer}: {what} has been held without a sign of life for {seconds} s")]
    Silent {
        /// The layer's digest, or what else was waited for.
        layer: String,
        /// The lock.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl StoreError {
    /// What kind of trouble it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unsuitable { .. } => ErrorClass::Disk(libc::EOPNOTSUPP),
            Self::Owner { .. } | Self::Writable { .. } => ErrorClass::Disk(libc::EPERM),
            Self::Disk { source, .. } => ErrorClass::of_disk(source),
            Self::Content { .. } | Self::Uncompressed { .. } | Self::Doubtful { .. } => ErrorClass::Content,
            Self::Refused { .. } => ErrorClass::Refused,
            Self::Source { source, .. } => ErrorClass::of_source(source),
            Self::Elsewhere { class, .. } => *class,
            Self::Silent { .. } => ErrorClass::Stalled,
        }
    }

    /// What came for the blob of `layer` is not it.
    pub(super) fn content(layer: Digest, mismatch: Mismatch) -> Self {
        Self::Content { layer, mismatch: Box::new(mismatch) }
    }

    /// When the source wants to be asked again, if it said so.
    pub fn retry_at(&self) -> Option<SystemTime> {
        match self {
            Self::Source { source, .. } => match &**source {
                SourceError::Unavailable { retry_at, .. } => *retry_at,
                _ => None,
            },
            Self::Elsewhere { retry_at, .. } => *retry_at,
            _ => None,
        }
    }

    /// True for [`StoreError::Doubtful`]: nothing is known to be wrong, and `ensure` will tell.
    pub fn is_doubtful(&self) -> bool {
        matches!(self, Self::Doubtful { .. })
    }
}

/// For `map_err`: says what was done to which file.
pub(super) fn disk<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Disk { what: what.into(), source: Arc::new(error.into()) }
}

/// The error of something that is not the layer's fault: an `io::Error` somewhere below, or what cannot happen.
pub(super) fn not_refused(what: &str, error: &(dyn Error + 'static)) -> StoreError {
    let mut cause = Some(error);
    let mut text = what.to_owned();
    let mut errno = libc::EIO;
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(number) => errno = number,
            None => {
                text.push_str(": ");
                text.push_str(&error.to_string());
            }
        }
        cause = error.source();
    }
    StoreError::Disk { what: text, source: Arc::new(io::Error::from_raw_os_error(errno)) }
}
