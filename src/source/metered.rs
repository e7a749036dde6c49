//! A source whose bytes are counted as they come.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use std::fmt;
use std::sync::Arc;

use super::{Attached, Attachments, BlobStream, DocumentKind, Resolved, Source, SourceError};
use crate::descriptor::Descriptor;
use crate::verify::Unverified;

/// Told how many bytes of a blob came.
pub type Count = Arc<dyn Fn(u64) + Send + Sync>;

/// `source`, whose bytes of blobs `count` is told of.
pub fn metered(source: Arc<dyn Source>, count: Count) -> Arc<dyn Source> {
    Arc::new(Metered { source, count })
}

struct Metered {
    source: Arc<dyn Source>,
    count: Count,
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Source for Metered {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        self.source.resolve()
    }

    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, kind: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        self.source.document_as(descriptor, kind)
    }

    fn attached<'a>(&'a self, attachments: &'a Attachments) -> BoxFuture<'a, Attached> {
        self.source.attached(attachments)
    }

    fn blob(&self, descriptor: &Descriptor, from: u64) -> BlobStream {
        let count = Arc::clone(&self.count);
        let tell = move |came: &Result<Unverified<Bytes>, SourceError>| {
            if let Ok(chunk) = came {
                count(chunk.len() as u64);
            }
        };
        Box::pin(self.source.blob(descriptor, from).inspect(tell))
    }
}
