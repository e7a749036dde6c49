//! Directories for work that is under way: `ingest/<layer>.<random>`.
//!
//! Whoever works in one holds a flock on it. One that nobody holds was left behind: if it is of this boot and this version, an ingest may go on from
//! it (the pages that its writer left are still there, or on disk); if not, it is removed.

use std::io::{Read, Write};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::Inner;
use super::dir::Dir;
use super::documents;
use super::error::{StoreError, disk};
use super::locks::{try_lock, unlock};
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
        let work = Self::make(&store.ingest, &layer.file_name())?;
        if let Some(stamp) = stamp(store) {
            let what = || format!("writing {}", work.dir.path_of(STAMP).display());
            let mut file = work.dir.create(STAMP)?;
            work.dir.step("write", STAMP).map_err(disk(what()))?;
            file.write_all(stamp.as_bytes()).map_err(disk(what()))?;
        }
        Ok(work)
    }

    /// Makes and locks a new one, `<prefix>.<random>`. Whoever sweeps may be faster with the lock, and then removes what looks left behind, which can happen
    /// at any moment before it is ours: the next one may be.
    pub(super) fn make(parent: &'store Dir, prefix: &str) -> Result<Self, StoreError> {
        let mut attempts = 0;
        loop {
            let name = format!("{prefix}.{:016x}", fastrand::u64(..));
            parent.create_dir(&name)?;
            if let Some(work) = Self::take(parent, name)? {
                return Ok(work);
            }
            attempts += 1;
            if attempts == limits::WORK_DIRECTORY_ATTEMPTS {
                return Err(disk(format!("locking a directory in {}", parent.path().display()))(rustix::io::Errno::WOULDBLOCK));
            }
        }
    }

    /// Finds one that was left behind and can be gone on with. Others of the layer that nobody holds are removed.
    pub(super) fn find(store: &'store Inner, layer: &LayerKey) -> Result<Option<Self>, StoreError> {
        let prefix = format!("{}.", layer.file_name());
        let mut found = None;
        for name in store.ingest.list()?.into_iter().filter(|name| name.starts_with(&prefix)) {
            let Some(mut work) = Self::take(&store.ingest, name)? else { continue };
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
            if name.starts_with(documents::DRAFT) {
                continue;
            }
            // Not locked, not even for a moment: somebody may be about to go on from it.
            let Some(dir) = store.ingest.open_dir(&name)? else { continue };
            if !begun_by_us(store, &dir)? {
                drop(Self::take(&store.ingest, name)?);
            }
        }
        Ok(())
    }

    /// Removes everything that nobody holds, also what could be gone on with.
    pub(super) fn discard(store: &'store Inner) -> Result<(), StoreError> {
        for name in store.ingest.list()?.into_iter().filter(|name| !name.starts_with(documents::DRAFT)) {
            drop(Self::take(&store.ingest, name)?);
        }
        Ok(())
    }

    /// Opens and locks one, if nobody holds it.
    fn take(parent: &'store Dir, name: String) -> Result<Option<Self>, StoreError> {
        let Some(dir) = parent.open_dir(&name)? else { return Ok(None) };
        let free = try_lock(&dir, "ingest", FlockOperation::NonBlockingLockExclusive)
            .map_err(disk(format!("locking {}", dir.path().display())))?;
        // Between opening and locking it may have been renamed into its place.
        if !free || !parent.names(&name, &dir)? {
            return Ok(None);
        }
        Ok(Some(Self { parent, name, dir: Arc::new(dir), keep: false }))
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

    /// Leaves it, when it is dropped, for somebody to go on with.
    pub(super) fn keep(&mut self) {
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
        unlock(&*self.dir);
    }
}

/// True if what is in the directory was written in this boot by this version.
fn begun_by_us(store: &Inner, dir: &Dir) -> Result<bool, StoreError> {
    let Some(file) = dir.open(STAMP)? else { return Ok(false) };
    let mut text = String::new();
    let read = dir.step("read", STAMP).and_then(|()| file.take(limits::RECORD_BYTES).read_to_string(&mut text));
    Ok(read.is_ok() && stamp(store).is_some_and(|ours| ours == text))
}

/// What stands in the stamp; `None` if nobody may go on, because this boot cannot be told from another.
fn stamp(store: &Inner) -> Option<String> {
    let boot = store.boot.as_deref()?;
    Some(format!("kitfs ingest {VERSION}, data files from {} bytes, boot {boot}\n", limits::DATA_FILE_BYTES))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::layer::Compression;
    use crate::store::{Store, host};

    /// Each process that opens a cache sweeps, and each that opens it or fetches makes a directory there.
    #[test]
    fn who_begins_beside_one_that_sweeps_is_not_told_that_its_directory_is_gone() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = Store::open(folder.path()).expect("a store");
        let layer = LayerKey { digest: Digest::of(Algorithm::Sha256, b""), is_tar: true, compression: Compression::None };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        WorkDir::discard(&store.0).expect("what nobody holds goes");
                    }
                });
            }
            for _ in 0..300 {
                for outcome in [WorkDir::begin(&store.0, &layer).map(drop), host::probe(&store.0.ingest).map(drop)] {
                    match outcome {
                        // Those who sweep were faster each time, which nobody is who does it once.
                        Err(error) if matches!(error.class(), crate::failure::ErrorClass::Disk(libc::EAGAIN)) => {}
                        other => other.unwrap_or_else(|error| {
                            over.store(true, Ordering::Relaxed);
                            panic!("{}", chain(&error));
                        }),
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn what_is_left_to_go_on_with_is_free_though_a_process_is_being_started() {
        let folder = tempfile::tempdir().expect("a directory");
        let store = Store::open(folder.path()).expect("a store");
        let layer = LayerKey { digest: Digest::of(Algorithm::Sha256, b""), is_tar: true, compression: Compression::None };
        let mut work = WorkDir::begin(&store.0, &layer).expect("room");
        let name = work.name.clone();
        // What it has until it becomes its program.
        let _forked = work.dir().duplicate().expect("a descriptor");
        assert!(WorkDir::find(&store.0, &layer).expect("readable").is_none(), "it is ours");
        work.keep();
        drop(work);
        assert_eq!(WorkDir::find(&store.0, &layer).expect("readable").map(|found| found.name.clone()), Some(name));
    }
}
