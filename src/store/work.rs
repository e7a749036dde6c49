//! Directories for work that is under way: `ingest/<layer>.<random>`.
//!
//! Whoever works in one holds a flock on it. One that nobody holds was left behind: if it is of this boot and this version, an ingest may go on from
//! it (the pages that its writer left are still there, or on disk); if not, it is removed.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, FlockOperation};

use super::Inner;
use super::dir::Dir;
use super::error::{StoreError, disk};
use super::locks::try_lock;
use crate::failure::chain;
use crate::index::IndexBuilder;
use crate::layer::LayerKey;
use crate::limits;

/// The file that says by whom a directory was begun.
const STAMP: &str = "begun";
/// Of what is written into such a directory. Another version starts over.
const VERSION: u32 = 1;

/// A directory of our own, removed at the end unless it is kept or was renamed into its place.
#[derive(Debug)]
pub(super) struct WorkDir<'store> {
    parent: &'store Dir,
    name: String,
    dir: Arc<Dir>,
    keep: bool,
}

impl<'store> WorkDir<'store> {
    /// Begins an empty one.
    pub(super) fn begin(store: &'store Inner, layer: &LayerKey) -> Result<Self, StoreError> {
        let work = Self::unheld(store, layer)?;
        if let Some(stamp) = stamp(store) {
            let what = || format!("writing {}", work.dir.path_of(STAMP).display());
            work.dir.create(STAMP)?.write_all(stamp.as_bytes()).map_err(disk(what()))?;
        }
        Ok(work)
    }

    /// Makes and locks a new one. Whoever sweeps may be faster with the lock, and then removes what looks left behind; the next one is ours.
    fn unheld(store: &'store Inner, layer: &LayerKey) -> Result<Self, StoreError> {
        let mut attempts = 0;
        loop {
            let name = format!("{}.{:016x}", layer.file_name(), fastrand::u64(..));
            store.ingest.create_dir(&name)?;
            if let Some(work) = Self::take(store, name)? {
                return Ok(work);
            }
            attempts += 1;
            if attempts == limits::WORK_DIRECTORY_ATTEMPTS {
                return Err(disk(format!("locking a directory in {}", store.ingest.path().display()))(rustix::io::Errno::WOULDBLOCK));
            }
        }
    }

    /// Finds one that was left behind and can be gone on with. Others of the layer that nobody holds are removed.
    pub(super) fn find(store: &'store Inner, layer: &LayerKey) -> Result<Option<Self>, StoreError> {
        let prefix = format!("{}.", layer.file_name());
        let mut found = None;
        for name in store.ingest.list()?.into_iter().filter(|name| name.starts_with(&prefix)) {
            let Some(mut work) = Self::take(store, name)? else { continue };
            if found.is_none() && begun_by_us(store, &work.dir)? {
                work.keep = true;
                found = Some(work);
            }
        }
        if let Some(work) = &mut found {
            work.keep = false;
        }
        Ok(found)
    }

    /// Removes everything that was left behind and cannot be gone on with.
    pub(super) fn sweep(store: &'store Inner) -> Result<(), StoreError> {
        for name in store.ingest.list()? {
            let Some(stat) = store.ingest.stat(&name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
                // One from a future that a clock showed for a while is no newer.
                if now.abs_diff(stat.st_mtime as u64) > limits::LEFTOVER_SECONDS {
                    store.ingest.unlink(&name)?;
                }
                continue;
            }
            // Not locked, not even for a moment: somebody may be about to go on from it.
            let Some(dir) = store.ingest.open_dir(&name)? else { continue };
            if !begun_by_us(store, &dir)? {
                drop(Self::take(store, name)?);
            }
        }
        Ok(())
    }

    /// Removes everything that nobody holds, also what could be gone on with.
    pub(super) fn discard(store: &'store Inner) -> Result<(), StoreError> {
        for name in store.ingest.list()? {
            // Files are documents that somebody writes right now, or are swept.
            let is_dir = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if store.ingest.stat(&name)?.is_some_and(is_dir) {
                drop(Self::take(store, name)?);
            }
        }
        Ok(())
    }

    /// Opens and locks one, if nobody holds it.
    fn take(store: &'store Inner, name: String) -> Result<Option<Self>, StoreError> {
        let Some(dir) = store.ingest.open_dir(&name)? else { return Ok(None) };
        let free = try_lock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(disk("locking a directory"))?;
        // Between opening and locking it may have been renamed into its place.
        if !free || !store.ingest.names(&name, &dir)? {
            return Ok(None);
        }
        Ok(Some(Self { parent: &store.ingest, name, dir: Arc::new(dir), keep: false }))
    }

    pub(super) fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// A builder for an index, with a scratch file that has no name any more.
    pub(super) fn builder(&self) -> Result<IndexBuilder, StoreError> {
        self.dir.unlink("scratch")?;
        let scratch = self.dir.create("scratch")?;
        self.dir.unlink("scratch")?;
        Ok(IndexBuilder::new(scratch))
    }

    /// Leaves it for somebody to go on with.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }

    /// Renames it to `to` in `target`, without the stamp; false if something is there.
    pub(super) fn rename(&mut self, target: &Dir, to: &str) -> Result<bool, StoreError> {
        self.dir.unlink(STAMP)?;
        let done = self.parent.rename_new(&self.name, target, to)?;
        self.keep |= done;
        Ok(done)
    }
}

impl Drop for WorkDir<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.parent.remove_tree(&self.name)
        {
            tracing::warn!(error = chain(&error), "what is left of an ingest could not be removed");
        }
    }
}

/// True if what is in the directory was written in this boot by this version.
fn begun_by_us(store: &Inner, dir: &Dir) -> Result<bool, StoreError> {
    let Some(file) = dir.open(STAMP)? else { return Ok(false) };
    let mut text = String::new();
    let read = file.take(limits::RECORD_BYTES).read_to_string(&mut text);
    Ok(read.is_ok() && stamp(store).is_some_and(|ours| ours == text))
}

/// What stands in the stamp; `None` if nobody may go on, because this boot cannot be told from another.
fn stamp(store: &Inner) -> Option<String> {
    let boot = store.boot.as_deref()?;
    Some(format!("kitfs ingest {VERSION}, data files from {} bytes, boot {boot}\n", limits::DATA_FILE_BYTES))
}
