//! A registry that must not be asked.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;

use super::{Attached, Attachments, BlobStream, DocumentKind, Resolved, Source, SourceError};
use crate::descriptor::Descriptor;
use crate::oci::RegistryName;
use crate::verify::Unverified;

/// Stands for a registry if the user forbade the network: what is not in the cache cannot be had.
#[derive(Debug)]
pub(super) struct Offline(String);

impl Offline {
    /// Stands for the repository of `name`.
    pub(super) fn new(name: &RegistryName) -> Self {
        // Another name than the registry's own, so that what this one says counts for nobody who may ask.
        Self(format!("{}/{} (offline)", name.host(), name.repository()))
    }

    fn refuse(&self, what: String) -> SourceError {
        SourceError::Unavailable {
            place: self.0.clone(),
            what,
            reason: "not in the cache, and `--offline` forbids to ask for it".to_owned(),
            retry_at: None,
            source: None,
        }
    }
}

impl Source for Offline {
    fn name(&self) -> &str {
        &self.0
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        Box::pin(async { Err(self.refuse("the manifest".to_owned())) })
    }

    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, _kind: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        Box::pin(async { Err(self.refuse(descriptor.digest.to_string())) })
    }

    fn blob(&self, descriptor: &Descriptor, _from: u64) -> BlobStream {
        let refused = Err(self.refuse(descriptor.digest.to_string()));
        Box::pin(stream::iter([refused]))
    }

    /// Nothing, and nothing is missing: without the network the cache is all that there is.
    fn attached<'a>(&'a self, _attachments: &'a Attachments) -> BoxFuture<'a, Attached> {
        Box::pin(async { Attached::default() })
    }
}
