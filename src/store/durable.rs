//! From visible to durable: a layer may be used as soon as its digest matched, and is on disk some time later.
//!
//! `durable` is a positive record: it is made after files, index and directories were synced, and synced itself. Whoever syncs a layer holds a flock on
//! its `visible`, so that one does. The one who stored the layer syncs through descriptors that were opened before the files' last writers were
//! closed, and so hears of every error. Anybody else may have missed one, drops what is cached of the files and hashes them once more.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;

use super::Inner;
use super::cut::COMMITTED;
use super::dir::{Dir, fsync};
use super::error::{StoreError, disk};
use super::layer::VerifiedLayer;
use super::locks::{IngestLock, Lock, try_lock};
use super::progress::{Activity, Reporter};
use super::recall::{DURABLE, VISIBLE};
use super::recheck::{self, Found};
use crate::failure::{ErrorClass, chain};
use crate::layer::LayerSpec;
use crate::limits;
use crate::rehearsal::{point, step};
use crate::verify::Mismatch;

/// What is to be synced, and by whom.
pub(super) struct Job {
    pub(super) store: Arc<Inner>,
    pub(super) spec: LayerSpec,
    pub(super) dir: Dir,
    pub(super) how: How,
    /// `visible`, locked for as long as the job lasts. The last to be closed: who gets the lock finds nothing else of the job open.
    pub(super) _lock: Lock,
}

/// How it is made sure that what is on disk is what was verified.
pub(super) enum How {
    /// By syncing these descriptors, which cannot have missed an error.
    Kept(Vec<File>),
    /// By syncing, and reading everything again from disk.
    Reread,
}

/// Syncs on a thread of its own. If there can be none, somebody else does it at the next recall.
pub(super) fn start(job: Job) {
    let layer = job.spec.descriptor.digest;
    let started = thread::Builder::new().name("kitfs-sync".into()).spawn(move || {
        if let Err(error) = run(&job) {
            tracing::error!(layer = %job.spec.descriptor.digest, error = chain(&error), "a layer could not be synced");
            report(&job, error);
        }
    });
    if let Err(error) = started {
        tracing::warn!(%layer, %error, "no thread to sync a layer");
    }
}

fn run(job: &Job) -> Result<(), StoreError> {
    point("durable:begin");
    let synced = match &job.how {
        How::Kept(files) => sync_files(files, &job.dir),
        How::Reread => reread(&job.store, &job.spec, &job.dir),
    };
    let lost = |error: &StoreError| recheck::is_lost(error) || (synced.is_err() && may_have_cost_bytes(error));
    let outcome = synced.clone().and_then(|()| record(&job.store, &job.spec, &job.dir));
    // If it is not lost (there was no room to say that it is durable, no descriptor), the next one to recall it tries again.
    if outcome.as_ref().is_err_and(lost)
        && let Err(error) = recheck::withdraw(&job.store, &job.spec.key(), &job.dir)
    {
        tracing::error!(layer = %job.spec.descriptor.digest, error = chain(&error), "a layer could not be withdrawn");
    }
    outcome
}

/// Leaves the error where `status` finds it, unless somebody works on the layer already.
fn report(job: &Job, error: StoreError) {
    if let Ok(Some(lock)) = IngestLock::attempt(&job.store.locks, &job.spec.key(), 0) {
        let reporter = Reporter::begin(&lock, "", job.spec.descriptor.size, Activity::Checking);
        reporter.end::<()>(&Err(error));
    }
}

fn sync_files(files: &[File], dir: &Dir) -> Result<(), StoreError> {
    for file in files {
        let what = || format!("syncing a file in {}", dir.path().display());
        step("sync:stored").map_err(disk(what()))?;
        fsync(file).map_err(disk(what()))?;
    }
    Ok(())
}

/// Syncs all files of a layer and drops what is cached of them, so that the next one to read them reads the disk.
pub(super) fn sync_and_drop(dir: &Dir) -> Result<(), StoreError> {
    for name in dir.list()? {
        if let Some(file) = dir.open(&name)? {
            dir.sync_file(&name, &file)?;
            // Pages that are mapped stay; it is asked for, not relied on.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
    Ok(())
}

fn reread(store: &Inner, spec: &LayerSpec, dir: &Dir) -> Result<(), StoreError> {
    sync_and_drop(dir)?;
    match recheck::read_back(store, spec, dir, None, &mut |_| {})?.found {
        Found::Sound => Ok(()),
        Found::Damaged { expected, got } => Err(StoreError::content(spec.descriptor.digest, Mismatch::Digest { expected, got })),
    }
}

/// True for errors by which a sync says that pages could not be written: they may be gone by now.
fn may_have_cost_bytes(error: &StoreError) -> bool {
    matches!(error.class(), ErrorClass::Disk(libc::EIO | libc::ENOSPC | libc::EDQUOT))
}

/// Makes the names durable, and then says so. The files are synced.
pub(super) fn record(store: &Inner, spec: &LayerSpec, dir: &Dir) -> Result<(), StoreError> {
    if let Some(visible) = dir.open(VISIBLE)? {
        dir.sync_file(VISIBLE, &visible)?;
    }
    dir.sync()?;
    let name = spec.key().file_name();
    if let Some(index) = store.index.open(&name)? {
        store.index.sync_file(&name, &index)?;
    }
    store.index.sync()?;
    store.layers.sync()?;
    store.root()?;
    if dir.stat(DURABLE)?.is_none() {
        // Whoever stored the layer and whoever verified it once more may come to this point together; both are right.
        let file = match dir.create(DURABLE) {
            Err(error) if matches!(error.class(), ErrorClass::Disk(libc::EEXIST)) => dir.open(DURABLE)?.ok_or(error)?,
            created => created?,
        };
        let what = || format!("setting the mode of {}", dir.path_of(DURABLE).display());
        dir.step("chmod", DURABLE).map_err(disk(what()))?;
        rustix::fs::fchmod(&file, COMMITTED).map_err(disk(what()))?;
        dir.sync_file(DURABLE, &file)?;
        dir.sync()?;
    }
    Ok(())
}

/// See [`super::Store::sync`].
pub(super) fn wait(store: &Arc<Inner>, layer: &VerifiedLayer) -> Result<(), StoreError> {
    let (spec, dir) = (layer.spec(), layer.dir());
    let layer = spec.key();
    let begin = Instant::now();
    loop {
        if dir.stat(DURABLE)?.is_some() {
            return Ok(());
        }
        if !store.layers.names(&layer.file_name(), dir)? {
            // By whoever synced it, who has said which error that was.
            return Err(disk(format!("syncing layer {}, which was withdrawn", layer.digest))(Errno::IO));
        }
        let visible = dir.open(VISIBLE)?.ok_or_else(|| disk(format!("opening {}", dir.path_of(VISIBLE).display()))(Errno::NOENT))?;
        let free = try_lock(&visible, "visible", FlockOperation::NonBlockingLockExclusive)
            .map_err(disk(format!("locking {}", dir.path_of(VISIBLE).display())))?;
        // Whoever had the lock may have been done in between.
        if (free && dir.stat(DURABLE)?.is_none()) || begin.elapsed().as_secs() >= limits::SYNC_WAIT_SECONDS {
            let dir = Dir::adopt(dir.duplicate().map_err(disk("keeping a layer's directory open"))?, dir.path().to_owned());
            return run(&Job { store: Arc::clone(store), spec: spec.clone(), dir, _lock: Lock::of(visible), how: How::Reread });
        }
        if !free {
            thread::sleep(Duration::from_millis(limits::LOCK_POLL_MILLIS));
        }
    }
}
