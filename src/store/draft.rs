//! Small files that come to their place by a rename, for as long as they have another name.
//!
//! Whoever writes one holds a flock on it. So one that was left behind can be told from one that is about to be renamed, and goes at once.

use std::fs::File;
use std::io::Write;

use rustix::fs::FlockOperation;

use super::dir::Dir;
use super::error::{StoreError, disk};
use super::locks::try_lock;
use crate::failure::chain;
use crate::limits;

/// A file of our own, removed at the end unless it was renamed.
pub(super) struct Draft<'dir> {
    dir: &'dir Dir,
    name: String,
    /// Holds the lock.
    file: File,
    placed: bool,
}

impl<'dir> Draft<'dir> {
    /// Makes and locks one. Whoever sweeps may be faster with the lock, and then removes what looks left behind; the next one is ours.
    pub(super) fn begin(dir: &'dir Dir, prefix: &str) -> Result<Self, StoreError> {
        for _ in 0..limits::WORK_DIRECTORY_ATTEMPTS {
            let name = format!("{prefix}{:016x}", fastrand::u64(..));
            let draft = Self { file: dir.create(&name)?, dir, name, placed: false };
            let what = || format!("locking {}", dir.path_of(&draft.name).display());
            if try_lock(&draft.file, "draft", FlockOperation::NonBlockingLockExclusive).map_err(disk(what()))?
                && dir.names(&draft.name, &draft.file)?
            {
                return Ok(draft);
            }
        }
        Err(disk(format!("locking a file in {}", dir.path().display()))(rustix::io::Errno::WOULDBLOCK))
    }

    /// Writes all of it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let what = || format!("writing {}", self.dir.path_of(&self.name).display());
        self.dir.step("write", &self.name).map_err(disk(what()))?;
        self.file.write_all(bytes).map_err(disk(what()))
    }

    /// The file, which is called so until it is placed.
    pub(super) fn file(&self) -> (&str, &File) {
        (&self.name, &self.file)
    }

    /// Renames it to its place, over whatever is there.
    pub(super) fn place(mut self, target: &Dir, to: &str) -> Result<(), StoreError> {
        self.dir.rename_over(&self.name, target, to)?;
        self.placed = true;
        Ok(())
    }

    /// Removes what others began and left behind.
    pub(super) fn sweep(dir: &Dir, prefix: &str) -> Result<(), StoreError> {
        for name in dir.list()?.into_iter().filter(|name| name.starts_with(prefix)) {
            let Some(file) = dir.open(&name)? else { continue };
            let what = || format!("locking {}", dir.path_of(&name).display());
            if try_lock(&file, "draft", FlockOperation::NonBlockingLockExclusive).map_err(disk(what()))? {
                dir.unlink(&name)?;
            }
        }
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = self.dir.unlink(&self.name)
        {
            tracing::warn!(error = chain(&error), "a file that was not finished could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, Dir) {
        let path = tempfile::tempdir().expect("a directory");
        let dir = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
        (path, dir)
    }

    #[test]
    fn what_is_left_behind_goes_at_once_and_what_is_being_written_stays() {
        let (path, dir) = dir();
        for left in ["document.1", "other.1"] {
            std::fs::write(path.path().join(left), "half").expect("room");
        }
        let mut draft = Draft::begin(&dir, "document.").expect("room");
        Draft::sweep(&dir, "document.").expect("readable");
        let name = draft.file().0.to_owned();
        let mut left = dir.list().expect("readable");
        left.sort();
        assert_eq!(left, [name.as_str(), "other.1"]);
        draft.write(b"whole").expect("room");
        draft.place(&dir, "place").expect("room");
        assert_eq!(std::fs::read(path.path().join("place")).expect("there"), b"whole");
        drop(Draft::begin(&dir, "document.").expect("room"));
        assert_eq!(dir.list().expect("readable").len(), 2, "one that was not finished is gone");
    }

    /// It was an error: the file was taken for a directory.
    #[test]
    fn prune_removes_a_document_that_was_never_renamed() {
        let path = tempfile::tempdir().expect("a directory");
        let store = crate::store::Store::open(path.path()).expect("a cache");
        for left in ["v1/ingest/document.1", "limit.1"] {
            std::fs::write(path.path().join(left), "half").expect("room");
        }
        store.prune(false).expect("nothing is in the way");
        assert_eq!(store.0.ingest.list().expect("readable"), Vec::<String>::new());
        assert!(!path.path().join("limit.1").exists());
    }
}
