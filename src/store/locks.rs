//! The locks of the store. Order: ingest, evict, use, `lock`. That of what is attached stands alone.
//!
//! All are flocks: the kernel lets go of them when their holder dies, however it dies, and two descriptors of one process contend like two
//! processes. Lock files are never unlinked, so that nobody can hold a lock on a file that others do not find any more.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Timespec, Timestamps};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{StoreError, disk};
use crate::clock::Lived;
use crate::layer::LayerKey;
use crate::limits;
use crate::rehearsal::{step, step_on};

/// Takes `operation` (a non-blocking one) on `file`, which is a `name` to tests; false if somebody else is in the way.
pub(super) fn try_lock(file: impl AsFd, name: &'static str, operation: FlockOperation) -> io::Result<bool> {
    step_on("lock", || name)?;
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A lock, let go of when this is dropped. Closing the file would not be enough: a process that is being started, a credential helper say, has a copy of
/// every descriptor until it becomes its own program, and the lock would be held for as long.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// The lock on `file`, which is taken.
    pub(super) fn of(file: File) -> Self {
        Self(file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Lets go of a lock, whoever else has a copy of the descriptor.
pub(super) fn unlock(file: impl AsFd) {
    let _closed_in_a_moment = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// Takes a lock that is not about one layer, for nobody else to have.
fn take_alone(place: &Dir, name: &str, step: &'static str, what: &str, seconds: u64) -> Result<Lock, StoreError> {
    let file = place.lock_file(name)?;
    let what = format!("{what} ({})", place.path_of(name).display());
    wait_for(&file, step, FlockOperation::NonBlockingLockExclusive, "(any)", &what, seconds)?;
    Ok(Lock(file))
}

/// Waits for a lock. One that is held for longer than `limit` seconds is held by somebody who is stopped.
fn wait_for(file: &File, name: &'static str, operation: FlockOperation, layer: &str, what: &str, limit: u64) -> Result<(), StoreError> {
    let mut lived = Lived::default();
    while !try_lock(file, name, operation).map_err(disk(format!("locking {what}")))? {
        let seconds = lived.look(Instant::now()).as_secs();
        if seconds >= limit {
            return Err(StoreError::Silent { layer: layer.to_owned(), what: what.to_owned(), seconds });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Decisions about the whole cache are made while this is held: what is in its place, what is withdrawn. Never I/O.
#[derive(Debug)]
pub(super) struct DecisionLock {
    _lock: Lock,
}

impl DecisionLock {
    /// Takes the lock of the cache below `top`.
    pub(super) fn take(top: &Dir) -> Result<Self, StoreError> {
        Ok(Self { _lock: take_alone(top, "lock", "decision", "the lock of the cache", limits::DECISION_SECONDS)? })
    }
}

/// Held by whoever makes room, so that two who do count what the other one takes away. Held over I/O, and by nobody who has `lock`.
#[derive(Debug)]
pub(super) struct EvictLock {
    _lock: Lock,
}

impl EvictLock {
    /// Takes the lock of the cache's `locks`.
    pub(super) fn take(locks: &Dir) -> Result<Self, StoreError> {
        Ok(Self { _lock: take_alone(locks, "evict", "evict", "the lock of whoever makes room", limits::EVICT_SECONDS)? })
    }
}

/// Whoever changes a record of what is attached to a manifest holds this: two who add to one at once both read it first.
#[derive(Debug)]
pub(super) struct RecordLock {
    _lock: Lock,
}

impl RecordLock {
    /// Takes the lock, which is made if it is not there. It is held for a small file at a time.
    pub(super) fn take(locks: &Dir) -> Result<Self, StoreError> {
        Ok(Self { _lock: take_alone(locks, "attached", "attached", "the lock of what is attached", limits::DECISION_SECONDS)? })
    }
}

/// A layer is in use as long as somebody holds this, shared. Who wants to evict it takes it exclusively.
#[derive(Debug)]
pub(super) struct UseLock {
    fd: OwnedFd,
    /// Another process has it, too, and goes on with it: then it is only closed here.
    shared: AtomicBool,
}

impl UseLock {
    /// Takes the lock without waiting; `None` if nobody ever stored the layer, or if it is being evicted right now.
    pub(super) fn existing(locks: &Dir, layer: &LayerKey) -> Result<Option<Self>, StoreError> {
        let name = Self::name(layer);
        let Some(file) = locks.open(&name)? else { return Ok(None) };
        let taken = try_lock(&file, "use", FlockOperation::NonBlockingLockShared)
            .map_err(disk(format!("locking {}", locks.path_of(&name).display())))?;
        Ok(taken.then(|| Self::used(file.into())))
    }

    /// Takes the lock for removing the layer; `None` if somebody uses it.
    pub(super) fn exclusive(locks: &Dir, layer: &LayerKey) -> Result<Option<Self>, StoreError> {
        let name = Self::name(layer);
        let file = locks.lock_file(&name)?;
        let taken = try_lock(&file, "use-exclusive", FlockOperation::NonBlockingLockExclusive)
            .map_err(disk(format!("locking {}", locks.path_of(&name).display())))?;
        Ok(taken.then(|| Self::new(file.into(), false)))
    }

    /// True if somebody uses the layer. The lock is taken for a moment, which at worst makes another one look once more.
    pub(super) fn is_held(locks: &Dir, layer: &LayerKey) -> Result<bool, StoreError> {
        let name = Self::name(layer);
        // Not made for it: it can be asked where nothing can be written, too.
        let Some(file) = locks.open(&name)? else { return Ok(false) };
        let free = try_lock(&file, "use-exclusive", FlockOperation::NonBlockingLockExclusive)
            .map_err(disk(format!("locking {}", locks.path_of(&name).display())))?;
        unlock(&file);
        Ok(!free)
    }

    /// When the layer was last opened or closed: the time of the lock file. Long ago if nothing tells.
    pub(super) fn last_use(locks: &Dir, layer: &LayerKey) -> Result<SystemTime, StoreError> {
        let stat = locks.stat(&Self::name(layer))?;
        let since = stat.and_then(|stat| Some(Duration::new(u64::try_from(stat.st_mtime).ok()?, u32::try_from(stat.st_mtime_nsec).ok()?)));
        Ok(since.and_then(|since| UNIX_EPOCH.checked_add(since)).unwrap_or(UNIX_EPOCH))
    }

    /// Takes a use that is yet to come for one of now: the clock went back. Left as it is, it would be the latest of all for as long as the clock was ahead.
    pub(super) fn redate(locks: &Dir, layer: &LayerKey) {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _stays_ahead = rustix::fs::utimensat(locks, Self::name(layer), &times, AtFlags::SYMLINK_NOFOLLOW);
    }

    /// Notes that the layer was used so long ago, and not since. A time that cannot be set makes it look older than it is, no more.
    pub(super) fn touch(&self, ago: Duration) {
        if step("touch:use-lock").is_err() {
            return;
        }
        let then = SystemTime::now().checked_sub(ago).and_then(|then| then.duration_since(UNIX_EPOCH).ok());
        let then = match then.map(|then| (i64::try_from(then.as_secs()), then.subsec_nanos())) {
            Some((Ok(seconds), nanoseconds)) if !ago.is_zero() => {
                // Somebody else may have used it since.
                if rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_mtime >= seconds) {
                    return;
                }
                Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
            }
            _ => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        let _older_than_it_is = rustix::fs::futimens(&self.fd, &Timestamps { last_access: then, last_modification: then });
    }

    fn new(fd: OwnedFd, shared: bool) -> Self {
        Self { fd, shared: shared.into() }
    }

    fn used(fd: OwnedFd) -> Self {
        let lock = Self::new(fd, false);
        lock.touch(Duration::ZERO);
        lock
    }

    /// Takes the lock, which is made if it is not there.
    pub(super) fn take(locks: &Dir, layer: &LayerKey) -> Result<Self, StoreError> {
        let file = locks.lock_file(&Self::name(layer))?;
        wait_for(
            &file,
            "use",
            FlockOperation::NonBlockingLockShared,
            &layer.to_string(),
            &format!("the use lock ({})", locks.path_of(&Self::name(layer)).display()),
            limits::DECISION_SECONDS,
        )?;
        Ok(Self::used(file.into()))
    }

    /// A lock that somebody else took and handed to us.
    pub(super) fn adopt(fd: OwnedFd) -> Self {
        Self::new(fd, true)
    }

    /// A second descriptor of the same lock: it is held until both are closed.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.shared.store(true, Ordering::Relaxed);
        self.fd.try_clone()
    }

    pub(super) fn name(layer: &LayerKey) -> String {
        format!("{}.use", layer.file_name())
    }
}

/// Whoever fetches or re-verifies a layer holds this. There are a few of them, because one who is silent may be worked beside: place 0 is
/// `<layer>.ingest`, the others `<layer>.ingest.<place>`. The file holds the progress record.
#[derive(Debug)]
pub(super) struct IngestLock(Lock);

impl IngestLock {
    /// Takes the lock without waiting.
    pub(super) fn attempt(locks: &Dir, layer: &LayerKey, place: usize) -> Result<Option<Self>, StoreError> {
        let name = Self::name(layer, place);
        let file = locks.lock_file(&name)?;
        let taken = try_lock(&file, "ingest-lock", FlockOperation::NonBlockingLockExclusive)
            .map_err(disk(format!("locking {}", locks.path_of(&name).display())))?;
        Ok(taken.then(|| Self(Lock(file))))
    }

    /// Opens the file to look at the record; `None` if nobody ever worked on the layer at this place.
    pub(super) fn look(locks: &Dir, layer: &LayerKey, place: usize) -> Result<Option<File>, StoreError> {
        locks.open(&Self::name(layer, place))
    }

    /// True if somebody holds the lock. It is taken shared for a moment, which at worst makes another one look once more.
    pub(super) fn held(file: &File) -> bool {
        match try_lock(file, "look-ingest-lock", FlockOperation::NonBlockingLockShared) {
            Ok(taken) => {
                unlock(file);
                !taken
            }
            Err(_) => false,
        }
    }

    /// The file, for the progress record.
    pub(super) fn file(&self) -> &File {
        &self.0.0
    }

    fn name(layer: &LayerKey, place: usize) -> String {
        match place {
            0 => format!("{}.ingest", layer.file_name()),
            place => format!("{}.ingest.{place}", layer.file_name()),
        }
    }
}

impl AsFd for UseLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for UseLock {
    fn drop(&mut self) {
        if !*self.shared.get_mut() {
            unlock(&self.fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::layer::Compression;

    fn bench() -> (tempfile::TempDir, Dir, LayerKey) {
        let path = tempfile::tempdir().expect("a directory");
        let locks = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
        (path, locks, LayerKey { digest: Digest::of(Algorithm::Sha256, b"layer"), is_tar: true, compression: Compression::None })
    }

    // A descriptor that was duplicated is what a process has that was forked and has not become its program yet.

    #[test]
    fn a_process_that_is_being_started_holds_no_lock_of_ours() {
        let (_path, locks, layer) = bench();

        let lock = IngestLock::attempt(&locks, &layer, 0).expect("readable").expect("free");
        let _forked = lock.file().try_clone().expect("a descriptor");
        let look = IngestLock::look(&locks, &layer, 0).expect("readable").expect("there");
        assert!(IngestLock::held(&look));
        drop(lock);
        assert!(!IngestLock::held(&look));

        let lock = UseLock::take(&locks, &layer).expect("free");
        let _forked = lock.fd.try_clone().expect("a descriptor");
        assert!(UseLock::is_held(&locks, &layer).expect("readable"));
        drop(lock);
        assert!(!UseLock::is_held(&locks, &layer).expect("readable"));

        let lock = take_alone(&locks, "any", "any", "a lock", 0).expect("free");
        let _forked = lock.0.try_clone().expect("a descriptor");
        assert!(matches!(take_alone(&locks, "any", "any", "a lock", 0), Err(StoreError::Silent { .. })));
        drop(lock);
        assert!(take_alone(&locks, "any", "any", "a lock", 0).is_ok());
    }

    #[test]
    fn a_lock_that_was_handed_over_is_held_until_both_let_go() {
        let (_path, locks, layer) = bench();
        let held = || UseLock::is_held(&locks, &layer).expect("readable");

        let ours = UseLock::take(&locks, &layer).expect("free");
        let theirs = UseLock::adopt(ours.duplicate().expect("a descriptor"));
        drop(ours);
        assert!(held());
        drop(theirs);
        assert!(!held());

        let ours = UseLock::take(&locks, &layer).expect("free");
        drop(UseLock::adopt(ours.duplicate().expect("a descriptor")));
        assert!(held());
        drop(ours);
        assert!(!held());
    }
}
