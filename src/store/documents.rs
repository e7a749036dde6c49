//! Small things: manifests and configs by digest, and what a reference meant when it was last resolved.
//!
//! Documents are hashed at each use, so nothing rests on how they got here. A remembered reference is an assertion of the cache's owner.

use std::io::Read;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Inner;
use super::cut::COMMITTED;
use super::dir::{Dir, fsync};
use super::draft::Draft;
use super::error::{StoreError, disk};
use super::stale;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::failure::chain;
use crate::limits;
use crate::rehearsal::step;
use crate::verify::{Unverified, Verified};

/// How old the time of a document's last use may be before it is written down anew.
const USE_NOTED: Duration = Duration::from_secs(60);

/// See [`super::Store::put_document`].
pub(super) fn put(store: &Inner, document: &Verified<Bytes>) -> Result<(), StoreError> {
    let Descriptor { digest, size, .. } = document.descriptor();
    let name = digest.file_name();
    // Damage is noticed when it is read; what has the right size is not written again at every mount.
    if store.blobs.stat(&name)?.is_some_and(|stat| u64::try_from(stat.st_size) == Ok(*size)) {
        return Ok(());
    }
    write(store, &store.blobs, &name, document)?;
    // Once in a process that adds to them is often enough, and costs the mount of a kit that is known nothing.
    if !store.bounded.swap(true, Ordering::Relaxed)
        && let Err(error) = stale::bound(store, false)
    {
        tracing::warn!(error = chain(&error), "documents that are too many cannot be removed");
    }
    Ok(())
}

/// See [`super::Store::document`].
pub(super) fn get(store: &Inner, descriptor: &Descriptor) -> Result<Option<Verified<Bytes>>, StoreError> {
    let name = descriptor.digest.file_name();
    let Some(file) = store.blobs.open(&name)? else { return Ok(None) };
    let what = || format!("reading {}", store.blobs.path_of(&name).display());
    let metadata = file.metadata().map_err(disk(what()))?;
    let length = metadata.len();
    // What is used stays longest; a minute more or less is nothing to that.
    if metadata.modified().is_ok_and(|used| used.elapsed().is_ok_and(|since| since >= USE_NOTED)) {
        let _older_than_it_is = file.set_modified(SystemTime::now());
    }
    store.blobs.step("read", &name).map_err(disk(what()))?;
    let mut bytes = Vec::new();
    if length == descriptor.size {
        (&file).take(length).read_to_end(&mut bytes).map_err(disk(what()))?;
    }
    match Unverified::new(Bytes::from(bytes)).verify(descriptor) {
        Ok(document) => Ok(Some(document)),
        Err(mismatch) => {
            tracing::warn!(digest = %descriptor.digest, %mismatch, "a document of the cache is damaged and is removed");
            store.blobs.unlink(&name)?;
            Ok(None)
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// The reference itself, because the file is named by its digest.
    reference: String,
    media_type: String,
    digest: Digest,
    size: u64,
}

/// See [`super::Store::remember`].
pub(super) fn remember(store: &Inner, reference: &str, manifest: &Descriptor) -> Result<(), StoreError> {
    if remembered(store, reference)?.as_ref() == Some(manifest) {
        return Ok(());
    }
    let Descriptor { media_type, digest, size } = manifest.clone();
    let record = Remembered { reference: reference.to_owned(), media_type, digest, size };
    let text = serde_json::to_vec(&record).map_err(|error| disk("writing down a reference")(std::io::Error::from(error)))?;
    if text.len() as u64 > limits::RECORD_BYTES {
        return Err(disk("writing down a reference")(std::io::Error::from(std::io::ErrorKind::FileTooLarge)));
    }
    write(store, &store.references, &reference_name(reference), &text)
}

/// See [`super::Store::remembered`].
pub(super) fn remembered(store: &Inner, reference: &str) -> Result<Option<Descriptor>, StoreError> {
    let Some(Remembered { reference: of, media_type, digest, size }) = record(store, &reference_name(reference))? else { return Ok(None) };
    Ok((of == reference).then_some(Descriptor { media_type, digest, size }))
}

/// The manifest in the record with this name.
pub(super) fn remembered_as(store: &Inner, name: &str) -> Result<Option<Digest>, StoreError> {
    Ok(record(store, name)?.map(|record| record.digest))
}

fn record(store: &Inner, name: &str) -> Result<Option<Remembered>, StoreError> {
    let Some(file) = store.references.open(name)? else { return Ok(None) };
    let what = || format!("reading {}", store.references.path_of(name).display());
    store.references.step("read", name).map_err(disk(what()))?;
    let mut text = Vec::new();
    file.take(limits::RECORD_BYTES).read_to_end(&mut text).map_err(disk(what()))?;
    // A damaged record is none.
    Ok(serde_json::from_slice(&text).ok())
}

/// Syncs what was written here since the last call.
pub(super) fn sync(store: &Inner) -> Result<(), StoreError> {
    let files = std::mem::take(&mut *store.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
    if files.is_empty() {
        return Ok(());
    }
    for file in files {
        step("sync:document").map_err(disk("syncing a document"))?;
        fsync(&file).map_err(disk("syncing a document"))?;
    }
    store.blobs.sync()?;
    store.attached.sync()?;
    store.references.sync()
}

fn reference_name(reference: &str) -> String {
    Digest::of(Algorithm::Sha256, reference.as_bytes()).file_name()
}

/// What a document is called until it is renamed, with a random number behind it.
pub(super) const DRAFT: &str = "document.";

/// Writes a file and renames it to its name. It is synced when somebody asks for it ([`sync`]): one that a power cut leaves empty is fetched again.
pub(super) fn write(store: &Inner, dir: &Dir, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let mut draft = Draft::begin(&store.ingest, DRAFT)?;
    draft.write(bytes)?;
    let (draft_name, written) = draft.file();
    let what = || format!("writing {}", store.ingest.path_of(draft_name).display());
    store.ingest.step("chmod", draft_name).map_err(disk(what()))?;
    rustix::fs::fchmod(written, COMMITTED).map_err(disk(what()))?;
    // Opened before the writer is closed, so that the sync hears of every error.
    let file = store.ingest.open(draft_name)?.ok_or_else(|| disk(what())(rustix::io::Errno::NOENT))?;
    draft.place(dir, name)?;
    let mut unsynced = store.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
    if unsynced.len() < limits::UNSYNCED_DOCUMENTS {
        unsynced.push(file);
    }
    Ok(())
}
