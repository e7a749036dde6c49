//! A kit out of an OCI image layout (`oci-layout`, `index.json` and `blobs/`), and no registry at all.
//!
//! One reader for all of them, over a place that gives bytes by path: a folder, or an archive of one that is read where it is. Kit's
//! own storage is such a layout with other lists of names. A place is as hostile as a registry: what comes out is
//! [`Unverified`], what is read is capped, only regular files are opened, and in a folder no symbolic link is followed. All of it happens
//! off the async threads, and ends when nobody waits for it any more.

mod archive;
mod attached;
mod folder;
mod kitops;
mod listing;
#[cfg(test)]
mod tests;
mod unpack;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::limits;
use crate::oci::{LayoutName, RegistryName};
use crate::source::{Attached, Attachments, BlobStream, DocumentKind, Pin, Resolved, Source, SourceError};
use crate::verify::Unverified;
use archive::Archive;
use folder::{Folder, Range};
use listing::Listing;
use unpack::Packed;

/// An OCI image layout, and which of its manifests is meant.
pub struct Layout(Arc<Inner>);

struct Inner {
    name: String,
    /// Where it is looked for, one after the other.
    shelves: Vec<Shelf>,
    digest: Option<Digest>,
}

/// A place with blobs, and how the manifests in it are found.
struct Shelf {
    place: Place,
    listing: Listing,
}

/// What gives bytes by path.
enum Place {
    Folder(Folder),
    Archive(Archive),
}

/// A file of a place that is open.
enum Content {
    /// Bytes of a file.
    Range(Range),
    /// Bytes of what a compressed file becomes.
    Packed(Packed),
    /// Bytes that were kept.
    Kept(Bytes),
}

impl Layout {
    /// Opens the folder. What is in it is looked at when something is asked for.
    pub fn folder(reference: &LayoutName, digest: Option<Digest>) -> Result<Self, SourceError> {
        let name = format!("oci:{}", reference.path().display());
        let place = Place::Folder(Folder::open(reference.path(), &name)?);
        Ok(Self::new(name, vec![Shelf { place, listing: Listing::index(reference.name()) }], digest))
    }

    /// Stands for the archive. It is looked at when something is asked for.
    pub fn archive(reference: &LayoutName, digest: Option<Digest>) -> Self {
        let name = format!("oci-archive:{}", reference.path().display());
        let place = Place::Archive(Archive::new(reference.path(), &name));
        Self::new(name, vec![Shelf { place, listing: Listing::index(reference.name()) }], digest)
    }

    /// Opens kit's storage below `home`. What is in it is looked at when something is asked for.
    pub fn kitops(reference: &RegistryName, digest: Option<Digest>, home: &Path) -> Result<Self, SourceError> {
        let (name, shelves) = kitops::shelves(reference, home)?;
        Ok(Self::new(name, shelves, digest))
    }

    fn new(name: String, shelves: Vec<Shelf>, digest: Option<Digest>) -> Self {
        Self(Arc::new(Inner { name, shelves, digest }))
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Stop) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let inner = Arc::clone(&self.0);
        off_thread(&self.0.name, move |stop| work(&inner, stop)).await
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout").field("name", &self.0.name).field("digest", &self.0.digest).finish()
    }
}

impl Source for Layout {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        Box::pin(self.off_thread(|inner, stop| {
            let descriptor = inner.first(|shelf| shelf.find(inner.digest, stop))?;
            let manifest = inner.read(&descriptor, limits::MANIFEST_BYTES, stop)?;
            let pin = if inner.digest.is_some() { Pin::ByUser } else { Pin::BySource };
            Ok(Resolved { descriptor, manifest, pin })
        }))
    }

    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, kind: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        let descriptor = descriptor.clone();
        Box::pin(self.off_thread(move |inner, stop| inner.read(&descriptor, kind.limit(), stop)))
    }

    fn blob(&self, descriptor: &Descriptor, from: u64) -> BlobStream {
        let reader = Reader { layout: Arc::clone(&self.0), descriptor: descriptor.clone(), at: from, content: None };
        Box::pin(stream::unfold(Some(reader), |reader| async {
            let reader = reader?;
            let name = reader.layout.name.clone();
            match off_thread(&name, move |stop| reader.step(stop)).await {
                Ok(Some((chunk, reader))) => Some((Ok(Unverified::new(chunk)), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    fn attached<'a>(&'a self, attachments: &'a Attachments) -> BoxFuture<'a, Attached> {
        let attachments = attachments.clone();
        Box::pin(async move {
            let found = self.off_thread(move |inner, stop| Ok(inner.attached(&attachments, stop))).await;
            found.unwrap_or_else(|error| {
                let mut nothing = Attached::default();
                nothing.gaps.push((self.0.name.clone(), error));
                nothing
            })
        })
    }
}

impl Inner {
    /// What the first shelf says that has something to say.
    fn first<T>(&self, look: impl Fn(&Shelf) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let mut found = Err(SourceError::NotFound { place: self.name.clone(), what: "anything".to_owned() });
        for shelf in &self.shelves {
            found = look(shelf);
            if !matches!(found, Err(SourceError::NotFound { .. })) {
                break;
            }
        }
        found
    }

    fn open_blob(&self, digest: &Digest, stop: &Stop) -> Result<Content, SourceError> {
        self.first(|shelf| shelf.place.open_blob(digest, stop))
    }

    fn read(&self, descriptor: &Descriptor, limit: u64, stop: &Stop) -> Result<Unverified<Bytes>, SourceError> {
        if descriptor.size > limit {
            let reason = format!("it has {} bytes, {limit} are allowed", descriptor.size);
            return Err(SourceError::Protocol { place: self.name.clone(), what: format!("document {}", descriptor.digest), reason });
        }
        let mut content = self.open_blob(&descriptor.digest, stop)?;
        // One byte more than there should be, so that the check sees that there is more.
        Ok(Unverified::new(Bytes::from(content.read_most(descriptor.size + 1, &self.name, stop)?)))
    }
}

impl Place {
    fn name(&self) -> &str {
        match self {
            Self::Folder(folder) => folder.name(),
            Self::Archive(archive) => archive.name(),
        }
    }

    /// Opens a regular file.
    fn open(&self, path: &[&str], what: &str, stop: &Stop) -> Result<Content, SourceError> {
        match self {
            Self::Folder(folder) => folder.open_file(path, what).map(Content::Range),
            Self::Archive(archive) => archive.open_member(path, what, stop),
        }
    }

    fn open_blob(&self, digest: &Digest, stop: &Stop) -> Result<Content, SourceError> {
        self.open(&["blobs", digest.algorithm().name(), &digest.hex()], &format!("blob {digest}"), stop)
    }

    /// A whole small file.
    fn read(&self, path: &[&str], limit: u64, stop: &Stop) -> Result<Vec<u8>, SourceError> {
        let what = path.join("/");
        let bytes = self.open(path, &what, stop)?.read_most(limit + 1, self.name(), stop)?;
        if bytes.len() as u64 > limit {
            return Err(self.wrong(&what, format!("it has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn wrong(&self, what: &str, reason: String) -> SourceError {
        SourceError::Protocol { place: self.name().to_owned(), what: what.to_owned(), reason }
    }

    fn missing(&self, what: String) -> SourceError {
        SourceError::NotFound { place: self.name().to_owned(), what }
    }
}

impl Content {
    /// How many bytes there are.
    fn length(&self) -> u64 {
        match self {
            Self::Range(range) => range.length(),
            Self::Packed(packed) => packed.length(),
            Self::Kept(bytes) => bytes.len() as u64,
        }
    }

    /// What stands at `offset`: `most` bytes, or those up to the end.
    fn read(&mut self, offset: u64, most: usize, name: &str, stop: &Stop) -> Result<Bytes, SourceError> {
        match self {
            Self::Range(range) => range.read(offset, most, name),
            Self::Packed(packed) => packed.read(offset, most, stop).map_err(|error| error.into_source(name)),
            Self::Kept(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..bytes.len().min(start.saturating_add(most))))
            }
        }
    }

    /// The first `most` bytes.
    fn read_most(&mut self, most: u64, name: &str, stop: &Stop) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        while let Some(left) = most.checked_sub(bytes.len() as u64).filter(|left| *left > 0) {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(limits::LAYOUT_CHUNK_BYTES);
            let chunk = self.read(bytes.len() as u64, wanted, name, stop)?;
            if chunk.is_empty() {
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// A blob that is being read.
struct Reader {
    layout: Arc<Inner>,
    descriptor: Descriptor,
    at: u64,
    content: Option<Content>,
}

impl Reader {
    /// The next chunk; `None` at the end. At most one byte more than the descriptor says is read.
    fn step(mut self, stop: &Stop) -> Result<Option<(Bytes, Self)>, SourceError> {
        let mut content = match self.content.take() {
            Some(content) => content,
            None => self.layout.open_blob(&self.descriptor.digest, stop)?,
        };
        let left = (self.descriptor.size.saturating_add(1)).saturating_sub(self.at);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(limits::LAYOUT_CHUNK_BYTES);
        let chunk = content.read(self.at, most, &self.layout.name, stop)?;
        if chunk.is_empty() {
            return Ok(None);
        }
        self.at += chunk.len() as u64;
        self.content = Some(content);
        Ok(Some((chunk, self)))
    }
}

/// Says to work on another thread that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whoever waits; gone when the waiting is over, for whatever reason.
struct Waiting(Stop);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` where it may block, and has it stopped if the caller gives up.
async fn off_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&Stop) -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let stop = Stop::default();
    let _waiting = Waiting(stop.clone());
    let done = tokio::task::spawn_blocking(move || work(&stop)).await;
    done.unwrap_or_else(|error| Err(SourceError::Local { path: name.to_owned(), source: io::Error::other(error) }))
}
