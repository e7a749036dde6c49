//! A kit out of an OCI image layout: a folder with `oci-layout`, `index.json` and `blobs/`, and no registry at all.
//!
//! The folder is as hostile as a registry: what comes out is [`Unverified`], what is read is capped, and only regular files directly
//! below `blobs/<algorithm>/` are opened, with no symbolic link on the way. Blobs are read off the async threads.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, pread};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::json::{Json, JsonError};
use crate::limits;
use crate::oci::{IMAGE_MANIFEST, LayoutName};
use crate::source::{BlobStream, Pin, Resolved, Source, SourceError};
use crate::verify::Unverified;

/// The annotation that names a manifest of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI image layout, and which of its manifests is meant.
pub struct Layout {
    place: String,
    inner: Arc<Folder>,
    name: Option<String>,
    digest: Option<Digest>,
}

/// The layout's folder.
struct Folder {
    path: PathBuf,
    dir: OwnedFd,
}

/// A manifest as `index.json` lists it.
#[derive(Debug)]
struct Listed {
    descriptor: Descriptor,
    name: Option<String>,
}

impl Layout {
    /// Opens the folder. What is in it is looked at when something is asked for.
    pub fn new(reference: &LayoutName, digest: Option<Digest>) -> Result<Self, SourceError> {
        let path = reference.dir().to_owned();
        let dir = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(&path, &format!("oci:{}", path.display()), "the layout", error))?;
        Ok(Self {
            place: format!("oci:{}", path.display()),
            inner: Arc::new(Folder { path, dir }),
            name: reference.name().map(str::to_owned),
            digest,
        })
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let folder = Arc::clone(&self.inner);
        let path = folder.path.clone();
        tokio::task::spawn_blocking(move || work(&folder)).await.unwrap_or_else(|error| Err(local(&path, io::Error::other(error))))
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout").field("place", &self.place).field("name", &self.name).field("digest", &self.digest).finish()
    }
}

impl Source for Layout {
    fn name(&self) -> &str {
        &self.place
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        let (name, digest) = (self.name.clone(), self.digest);
        Box::pin(self.off_thread(move |folder| {
            let listed = folder.index()?;
            let (descriptor, pin) = match digest {
                Some(digest) => (folder.described(&listed, digest)?, Pin::ByUser),
                None => (folder.select(listed, name.as_deref())?, Pin::BySource),
            };
            let manifest = folder.read(&descriptor, limits::MANIFEST_BYTES)?;
            Ok(Resolved { descriptor, manifest, pin })
        }))
    }

    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        let descriptor = descriptor.clone();
        Box::pin(self.off_thread(move |folder| folder.read(&descriptor, limits::CONFIG_BYTES.max(limits::MANIFEST_BYTES))))
    }

    fn blob(&self, descriptor: &Descriptor, from: u64) -> BlobStream {
        let reader = Reader { folder: Arc::clone(&self.inner), descriptor: descriptor.clone(), at: from, file: None };
        Box::pin(stream::unfold(Some(reader), |reader| async {
            let reader = reader?;
            let path = reader.folder.path.clone();
            match tokio::task::spawn_blocking(move || reader.step()).await {
                Ok(Ok(Some((chunk, reader)))) => Some((Ok(Unverified::new(chunk)), Some(reader))),
                Ok(Ok(None)) => None,
                Ok(Err(error)) => Some((Err(error), None)),
                Err(error) => Some((Err(local(&path, io::Error::other(error))), None)),
            }
        }))
    }
}

impl Folder {
    fn place(&self) -> String {
        format!("oci:{}", self.path.display())
    }

    /// Opens a regular file below the folder; no part of `path` may be a symbolic link.
    fn open(&self, path: &[&str], what: &str) -> Result<File, SourceError> {
        let shown = || path.iter().fold(self.path.clone(), |shown, part| shown.join(part));
        let error = |error| failed(&shown(), &self.place(), what, error);
        let Some((name, folders)) = path.split_last() else { return Err(error(Errno::INVAL)) };
        let mut dir: Option<OwnedFd> = None;
        for folder in folders {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = Some(openat(dir.as_ref().unwrap_or(&self.dir), *folder, flags, Mode::empty()).map_err(error)?);
        }
        // NONBLOCK: a FIFO must not keep us; it means nothing to a regular file.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(dir.as_ref().unwrap_or(&self.dir), *name, flags, Mode::empty()).map_err(error)?;
        let stat = fstat(&file).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.wrong(what, format!("{} is no regular file", shown().display())));
        }
        Ok(File::from(file))
    }

    fn open_blob(&self, digest: &Digest) -> Result<File, SourceError> {
        self.open(&["blobs", digest.algorithm().name(), &digest.hex()], &format!("blob {digest}"))
    }

    fn read(&self, descriptor: &Descriptor, limit: u64) -> Result<Unverified<Bytes>, SourceError> {
        let what = format!("document {}", descriptor.digest);
        if descriptor.size > limit {
            return Err(self.wrong(&what, format!("it has {} bytes, {limit} are allowed", descriptor.size)));
        }
        let file = self.open_blob(&descriptor.digest)?;
        // One byte more than there should be, so that the check sees that there is more.
        Ok(Unverified::new(Bytes::from(self.read_most(&file, descriptor.size + 1)?)))
    }

    fn read_most(&self, file: &File, most: u64) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, most), &mut bytes).map_err(|error| local(&self.path, error))?;
        Ok(bytes)
    }

    /// The manifests that `index.json` lists.
    fn index(&self) -> Result<Vec<Listed>, SourceError> {
        let read = |name: &str| -> Result<Json, SourceError> {
            let bytes = self.read_most(&self.open(&[name], name)?, limits::LAYOUT_INDEX_BYTES + 1)?;
            if bytes.len() as u64 > limits::LAYOUT_INDEX_BYTES {
                return Err(self.wrong(name, format!("it has more than {} bytes", limits::LAYOUT_INDEX_BYTES)));
            }
            Json::parse(&bytes).map_err(|error| self.malformed(name, &error))
        };
        let version = |json: &Json| json.object("", &["imageLayoutVersion"])?.required_string("imageLayoutVersion").map(str::to_owned);
        match version(&read("oci-layout")?).map_err(|error| self.malformed("oci-layout", &error))?.as_str() {
            "1.0.0" => {}
            other => return Err(self.wrong("oci-layout", format!("the layout has version `{other}`, `1.0.0` is understood"))),
        }
        let json = read("index.json")?;
        let (version, elements) = (|| {
            let index = json.object("", &["schemaVersion", "manifests"])?;
            Ok((index.required_size("schemaVersion")?, index.array("manifests")?))
        })()
        .map_err(|error| self.malformed("index.json", &error))?;
        if version != 2 {
            return Err(self.wrong("index.json", format!("it has schemaVersion {version}, 2 is understood")));
        }
        if elements.len() > limits::LAYOUT_MANIFESTS {
            return Err(
                self.wrong("index.json", format!("it lists {} manifests, {} are allowed", elements.len(), limits::LAYOUT_MANIFESTS))
            );
        }
        elements.into_iter().map(|(at, element)| self.listed(&at, element)).collect()
    }

    fn listed(&self, at: &str, json: &Json) -> Result<Listed, SourceError> {
        let (media_type, digest, size, name) = (|| {
            let entry = json.object(at, &["mediaType", "digest", "size", "annotations"])?;
            let name = entry.strings("annotations")?.into_iter().find(|(key, _)| *key == REF_NAME).map(|(_, name)| name.to_owned());
            Ok((entry.required_string("mediaType")?.to_owned(), entry.required_string("digest")?, entry.required_size("size")?, name))
        })()
        .map_err(|error| self.malformed("index.json", &error))?;
        let digest = digest.parse().map_err(|error| self.wrong("index.json", format!("{at}.digest: {error}")))?;
        Ok(Listed { descriptor: Descriptor { media_type, digest, size }, name })
    }

    /// The manifest with this name; without one, the only manifest.
    fn select(&self, listed: Vec<Listed>, name: Option<&str>) -> Result<Descriptor, SourceError> {
        let names = names(&listed);
        let missing = |what: String| SourceError::NotFound { place: self.place(), what };
        let Some(name) = name else {
            // The same manifest under several names is still one.
            let mut digests: Vec<_> = listed.iter().map(|entry| entry.descriptor.digest).collect();
            digests.sort_unstable();
            digests.dedup();
            return match (digests.len(), listed.into_iter().next()) {
                (1, Some(entry)) => Ok(entry.descriptor),
                (0, _) | (_, None) => Err(missing("a manifest in index.json".into())),
                (count, _) => Err(missing(format!("the only manifest (there are {count}, name one of {names})"))),
            };
        };
        let matching = |matches: &dyn Fn(&str) -> bool| -> Vec<&Listed> {
            listed.iter().filter(|entry| entry.name.as_deref().is_some_and(matches)).collect()
        };
        let exact = matching(&|full| full == name);
        let found = if exact.is_empty() { matching(&|full| tag(full) == Some(name)) } else { exact };
        match found.as_slice() {
            [] => Err(missing(format!("`{name}` (it has {names})"))),
            [first, rest @ ..] if rest.iter().all(|entry| entry.descriptor.digest == first.descriptor.digest) => {
                Ok(first.descriptor.clone())
            }
            several => Err(missing(format!("the one manifest that `{name}` means ({} have that name, out of {names})", several.len()))),
        }
    }

    /// The descriptor of a manifest that the user named by digest. It need not be listed: a manifest of an index is not.
    fn described(&self, listed: &[Listed], digest: Digest) -> Result<Descriptor, SourceError> {
        if let Some(entry) = listed.iter().find(|entry| entry.descriptor.digest == digest) {
            return Ok(entry.descriptor.clone());
        }
        let file = self.open_blob(&digest)?;
        let size = file.metadata().map_err(|error| local(&self.path, error))?.len();
        Ok(Descriptor { media_type: IMAGE_MANIFEST.to_owned(), digest, size })
    }

    fn wrong(&self, what: &str, reason: String) -> SourceError {
        SourceError::Protocol { place: self.place(), what: what.to_owned(), reason }
    }

    fn malformed(&self, what: &str, error: &JsonError) -> SourceError {
        // SourceError::Protocol has no cause, so the parser's is written out.
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        self.wrong(what, format!("{error}{cause}"))
    }
}

/// A blob that is being read.
struct Reader {
    folder: Arc<Folder>,
    descriptor: Descriptor,
    at: u64,
    file: Option<File>,
}

impl Reader {
    /// The next chunk; `None` at the end. At most one byte more than the descriptor says is read.
    fn step(mut self) -> Result<Option<(Bytes, Self)>, SourceError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.folder.open_blob(&self.descriptor.digest)?,
        };
        let left = (self.descriptor.size.saturating_add(1)).saturating_sub(self.at);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(limits::LAYOUT_CHUNK_BYTES);
        let mut chunk = Vec::with_capacity(most);
        while chunk.len() < most {
            let offset = self.at + chunk.len() as u64;
            match pread(&file, spare_capacity(&mut chunk), offset) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(failed(&self.folder.path, &self.folder.place(), &format!("blob {}", self.descriptor.digest), error));
                }
            }
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        self.at += chunk.len() as u64;
        self.file = Some(file);
        Ok(Some((Bytes::from(chunk), self)))
    }
}

/// What the operating system said, as what it means for a source.
fn failed(path: &Path, place: &str, what: &str, error: Errno) -> SourceError {
    let (place, what) = (place.to_owned(), what.to_owned());
    match error {
        Errno::NOENT => SourceError::NotFound { place, what },
        Errno::ACCESS | Errno::PERM => SourceError::Denied { place, what, status: io::Error::from(error).to_string() },
        // LOOP, or NOTDIR where a folder was opened: a symbolic link, or something else that does not belong there.
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
            SourceError::Protocol { place, what, reason: format!("{}: {}", path.display(), io::Error::from(error)) }
        }
        error => local(path, error.into()),
    }
}

fn local(path: &Path, source: io::Error) -> SourceError {
    SourceError::Local { path: path.display().to_string(), source }
}

/// The tag of a name: what follows its last colon, unless that is a port.
fn tag(name: &str) -> Option<&str> {
    name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

/// For an error: the names that there are, or digests where there is none.
fn names(listed: &[Listed]) -> String {
    let mut shown: Vec<String> = listed
        .iter()
        .take(limits::LAYOUT_NAMES_SHOWN)
        .map(|entry| match &entry.name {
            Some(name) => format!("`{name}`"),
            None => format!("`@{}`", entry.descriptor.digest),
        })
        .collect();
    if listed.len() > shown.len() {
        shown.push(format!("{} more", listed.len() - shown.len()));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests;
