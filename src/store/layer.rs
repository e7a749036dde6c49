//! A layer in use: the witness that its bytes were verified, and what keeps them in their place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cut::{PACK, data_name, facts};
use super::dir::Dir;
use super::error::StoreError;
use super::locks::UseLock;
use super::{Inner, recall};
use crate::index::{FileFacts, Index, IndexError, Place};
use crate::layer::LayerSpec;

/// A layer whose blob matched its descriptor (and `diffId`), and which is stored on this host. It cannot be evicted while one of these lives.
///
/// Made by an ingest that matched, by [`super::Store::recall`], and by [`super::Store::adopt`]; see there what each rests on.
#[derive(Debug, Clone)]
pub struct VerifiedLayer(Arc<Open>);

/// The fields are in the order in which they must be let go: what pins blocks first, the lock last.
#[derive(Debug)]
struct Open {
    pack: Arc<File>,
    index: Index,
    index_file: File,
    dir: Dir,
    spec: LayerSpec,
    store: Arc<Inner>,
    /// Milliseconds for which nobody has used it.
    rested: AtomicU64,
    lock: UseLock,
}

impl Drop for Open {
    fn drop(&mut self) {
        // From now on it may be evicted, but not at once: who used it last may well come back.
        self.lock.touch(Duration::from_millis(self.rested.load(Ordering::Relaxed)));
    }
}

/// Where the bytes of a file are. The descriptors are the ones that were checked.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file of its own that holds exactly these bytes, for passthrough.
    Data(Arc<File>, u64),
    /// A range of the layer's pack.
    Packed {
        /// The pack.
        pack: Arc<File>,
        /// Where it begins, in bytes.
        offset: u64,
        /// How many bytes it has.
        size: u64,
    },
}

/// The descriptors that keep a layer in use over the death of the process that opened it.
#[derive(Debug)]
pub struct Held {
    /// Carries the shared lock on `.use`.
    pub lock: OwnedFd,
    /// The layer's directory.
    pub dir: OwnedFd,
    /// The pack.
    pub pack: OwnedFd,
    /// The index.
    pub index: OwnedFd,
}

/// What an open layer is made of.
pub(super) struct Parts {
    pub(super) spec: LayerSpec,
    pub(super) lock: UseLock,
    pub(super) dir: Dir,
    pub(super) pack: File,
    pub(super) index_file: File,
    pub(super) index: Index,
}

impl VerifiedLayer {
    /// For the store alone, which calls it where one of the three reasons to believe is given.
    pub(super) fn new(store: &Arc<Inner>, parts: Parts) -> Self {
        let Parts { spec, lock, dir, pack, index_file, index } = parts;
        Self(Arc::new(Open {
            pack: Arc::new(pack),
            index,
            index_file,
            dir,
            spec,
            store: Arc::clone(store),
            rested: AtomicU64::new(0),
            lock,
        }))
    }

    /// Nobody has used it for so long, though it was held: what counts as its last use when it is let go.
    pub fn rested(&self, time: Duration) {
        self.0.rested.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was asked for.
    pub fn spec(&self) -> &LayerSpec {
        &self.0.spec
    }

    /// What is in it.
    pub fn index(&self) -> &Index {
        &self.0.index
    }

    /// Where the bytes of the file with this rank are; a folder has none, like an empty file. A file of its own is opened here. That file, or the pack, must
    /// be as it was when it was verified, and not have been withdrawn since (which shows in its change time): if not, the answer is [`StoreError::Doubtful`], and so is the next [`super::Store::recall`].
    pub fn content(&self, entry: u32) -> Result<Content, StoreError> {
        let entry = self.0.index.entry(entry).map_err(|error| self.damaged_index(&error))?;
        match entry.place {
            Place::Data { ordinal } => Ok(Content::Data(Arc::new(self.data_file(ordinal)?), entry.size)),
            Place::None => Ok(Content::Packed { pack: Arc::clone(&self.0.pack), offset: 0, size: 0 }),
            Place::Packed { offset } => {
                check_pack(&self.0.pack, &self.0.index).map_err(|reason| self.doubt(PACK, reason))?;
                let pack = self.0.index.pack().size;
                if offset.checked_add(entry.size).is_none_or(|end| end > pack) {
                    let reason = format!("{} bytes at {offset} are not in a pack of {pack} bytes", entry.size);
                    return Err(self.doubt("index", reason));
                }
                Ok(Content::Packed { pack: Arc::clone(&self.0.pack), offset, size: entry.size })
            }
        }
    }

    /// Opens a file of its own, see [`VerifiedLayer::content`].
    pub fn data_file(&self, ordinal: u32) -> Result<File, StoreError> {
        let name = data_name(ordinal);
        let expected = self.0.index.data(ordinal).map_err(|error| self.damaged_index(&error))?;
        let Some(file) = self.0.dir.open(&name)? else { return Err(self.doubt(&name, "it is gone".into())) };
        let found = facts(&file).map_err(super::error::disk(format!("looking at {}", self.0.dir.path_of(&name).display())))?;
        if expected != Some(found) {
            return Err(self.doubt(&name, difference(expected, found)));
        }
        Ok(file)
    }

    /// Second descriptors of what keeps the layer in use, to be handed to somebody who outlives this process.
    pub fn held(&self) -> io::Result<Held> {
        Ok(Held {
            lock: self.0.lock.duplicate()?,
            dir: self.0.dir.duplicate()?,
            pack: self.0.pack.try_clone()?.into(),
            index: self.0.index_file.try_clone()?.into(),
        })
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.0.dir
    }

    fn damaged_index(&self, error: &IndexError) -> StoreError {
        self.doubt("index", error.to_string())
    }

    fn doubt(&self, file: &str, reason: String) -> StoreError {
        let layer = self.0.spec.descriptor.digest;
        recall::doubt(&self.0.store, &self.0.spec.key(), &self.0.index_file);
        tracing::warn!(%layer, file, %reason, "a file of the cache is not as it was when it was verified");
        StoreError::Doubtful { layer, file: file.to_owned(), reason }
    }
}

/// Checks that `pack` is as `index` has it.
pub(super) fn check_pack(pack: &File, index: &Index) -> Result<(), String> {
    let found = facts(pack).map_err(|error| error.to_string())?;
    if found == index.pack() { Ok(()) } else { Err(format!("{PACK}: {}", difference(Some(index.pack()), found))) }
}

fn difference(expected: Option<FileFacts>, found: FileFacts) -> String {
    let show =
        |facts: FileFacts| format!("{} bytes, mode {:o}, changed {}.{:09}", facts.size, facts.mode, facts.ctime_sec, facts.ctime_nsec);
    match expected {
        Some(expected) => format!("expected {}, got {}", show(expected), show(found)),
        None => format!("expected no such file, got {}", show(found)),
    }
}
