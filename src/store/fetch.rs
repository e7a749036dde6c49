//! Getting a layer here: whose turn it is, what is done first, and how often.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::runtime::Handle;

use super::Inner;
use super::error::StoreError;
use super::evict::{self, Evicted, Room};
use super::flight::{Claim, Turn, Watch};
use super::ingest::Ingest;
use super::layer::VerifiedLayer;
use super::locks::{IngestLock, UseLock};
use super::progress::{Activity, Reporter};
use super::recall::{Recall, recall};
use super::recheck::{self, Found};
use super::work::WorkDir;
use crate::failure::{ErrorClass, chain};
use crate::layer::LayerSpec;
use crate::limits;
use crate::rehearsal::point;
use crate::source::Source;

/// See [`super::Store::prefetch`].
pub(super) fn prefetch(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
) -> Result<VerifiedLayer, StoreError> {
    if let Recall::Ready(layer) = recall(store, spec)? {
        return Ok(layer);
    }
    // Before anybody could join: a full cache is an answer for what nobody waits for, and for nobody else.
    if let Room::Full { error, .. } = evict::make_room(store, &claim(spec, 0, spec.descriptor.size), false)? {
        return Err(error);
    }
    led(store, spec, source, runtime, false)
}

/// See [`super::Store::ensure`].
pub(super) fn ensure(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
) -> Result<VerifiedLayer, StoreError> {
    led(store, spec, source, runtime, true)
}

fn led(store: &Arc<Inner>, spec: &LayerSpec, source: &Arc<dyn Source>, runtime: &Handle, evict: bool) -> Result<VerifiedLayer, StoreError> {
    loop {
        if let Recall::Ready(layer) = recall(store, spec)? {
            return Ok(layer);
        }
        match store.flights.join(&spec.key(), source) {
            Turn::Look => {}
            Turn::Failed(error) => return Err(error),
            Turn::Lead(leader) => {
                let outcome = lead(store, spec, source, runtime, evict);
                if !gave_way(&outcome, evict) {
                    leader.end(&outcome);
                }
                return outcome;
            }
        }
    }
}

/// Works on the layer, or waits until another process that does is done.
fn lead(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
    evict: bool,
) -> Result<VerifiedLayer, StoreError> {
    let mut watch = Watch::new();
    loop {
        match watch.claim(&store.locks, &spec.key(), source.name(), Instant::now())? {
            Claim::Mine(lock) => return work(store, spec, source, runtime, &lock, evict),
            Claim::Failed(error) => return Err(error),
            Claim::Busy => thread::sleep(Duration::from_millis(limits::LOCK_POLL_MILLIS)),
        }
        if let Recall::Ready(layer) = recall(store, spec)? {
            return Ok(layer);
        }
    }
}

fn work(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
    lock: &IngestLock,
    evict: bool,
) -> Result<VerifiedLayer, StoreError> {
    // Whoever had the lock before may have stored it.
    if let Recall::Ready(layer) = recall(store, spec)? {
        return Ok(layer);
    }
    point("fetch:mine");
    let mut reporter = Reporter::begin(lock, source.name(), spec.descriptor.size, Activity::Fetching);
    let outcome = rounds(store, spec, source, runtime, &mut reporter, evict);
    if !gave_way(&outcome, evict) {
        reporter.end(&outcome);
    }
    outcome
}

/// There was no room, for one who may not make any. That is no answer for others, who may: to them it is as if he had died.
fn gave_way<T>(outcome: &Result<T, StoreError>, evict: bool) -> bool {
    !evict && outcome.as_ref().is_err_and(|error| error.class() == ErrorClass::Disk(libc::ENOSPC))
}

/// Verifies or fetches until the layer is ready.
fn rounds(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
    reporter: &mut Reporter<'_>,
    evict: bool,
) -> Result<VerifiedLayer, StoreError> {
    for _ in 0..limits::ENSURE_ROUNDS {
        match recall(store, spec)? {
            Recall::Ready(layer) => return Ok(layer),
            Recall::Doubtful => verify_again(store, spec, reporter)?,
            // It is here, but somebody thinks about removing it. Once that is settled the next round tells.
            Recall::Absent if store.layers.stat(&spec.key().file_name())?.is_some() => {
                UseLock::take(&store.locks, &spec.key())?;
            }
            Recall::Absent => {
                if let Some(layer) = fetch(store, spec, source, runtime, reporter, evict)? {
                    return Ok(layer);
                }
            }
        }
    }
    let reason = format!("it was different again after {} verifications", limits::ENSURE_ROUNDS);
    Err(StoreError::Doubtful { layer: spec.descriptor.digest, file: "the layer".into(), reason })
}

/// Finds out whether a doubtful layer is sound. If so, the next recall is ready; if not, it is absent.
fn verify_again(store: &Arc<Inner>, spec: &LayerSpec, reporter: &mut Reporter<'_>) -> Result<(), StoreError> {
    let layer = &spec.key();
    let Some(dir) = store.layers.open_dir(&layer.file_name())? else { return Ok(()) };
    reporter.activity(Activity::Checking, 0);
    let durable = dir.stat(super::recall::DURABLE)?.is_some();
    if !durable {
        super::durable::sync_and_drop(&dir)?;
    }
    let work = WorkDir::begin(store, layer)?;
    let found = recheck::recheck(store, spec, &dir, &work, &mut |bytes| {
        reporter.tick(bytes);
    });
    match found {
        Ok(Found::Sound) => recheck::make_durable(store, spec, &dir),
        Ok(Found::Damaged { expected, got }) => {
            store.mismatches.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%layer, %expected, %got, "a layer of the cache was damaged and is withdrawn");
            recheck::withdraw(store, layer, &dir)
        }
        // The next round tells.
        Err(StoreError::Doubtful { .. }) => Ok(()),
        Err(error) if recheck::is_lost(&error) => {
            tracing::warn!(%layer, error = chain(&error), "a layer of the cache cannot be read and is withdrawn");
            recheck::withdraw(store, layer, &dir)
        }
        Err(error) => Err(error),
    }
}

/// Fetches the layer; once more from scratch if what came is not what the descriptor says. `None` if somebody else was faster.
fn fetch(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
    reporter: &mut Reporter<'_>,
    evict: bool,
) -> Result<Option<VerifiedLayer>, StoreError> {
    let layer = &spec.descriptor.digest;
    let mut mismatches = 0;
    // Uncompressed it is at least about as large as its blob.
    let (size, mut attempts) = (spec.descriptor.size, 0);
    loop {
        let resumed = match mismatches {
            0 => {
                reporter.activity(Activity::Checking, 0);
                Ingest::resume(store, spec, &mut |bytes| {
                    reporter.tick(bytes);
                })?
            }
            _ => None,
        };
        let from_disk = resumed.is_some();
        let ingest = match resumed {
            Some(ingest) => ingest,
            None => {
                reporter.activity(Activity::Fetching, 0);
                // What nobody waits for was looked after before; that others came meanwhile is no reason to fail those who wait for it now.
                if evict {
                    make_room(store, &claim(spec, 0, size), reporter)?;
                }
                Ingest::begin(store, spec)?
            }
        };
        let seen = ingest.seen();
        if from_disk && evict {
            make_room(store, &claim(spec, seen, size), reporter)?;
        }
        reporter.activity(Activity::Fetching, seen);
        let (begun, bytes) = (Instant::now(), spec.descriptor.size.saturating_sub(seen));
        match stream(store, spec, source, runtime, reporter, ingest) {
            Err(error @ StoreError::Content { .. }) => {
                store.mismatches.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%layer, source = source.name(), error = chain(&error), from_disk, "a layer does not match");
                // Half of it came from disk, so nobody knows whose fault it is; there is nothing left to go on from the next time.
                if !from_disk {
                    mismatches += 1;
                }
                if mismatches >= limits::MISMATCHES {
                    return Err(error);
                }
            }
            // It was more than there was room for, as it can be if it is compressed, or if others write too.
            Err(error) if evict && attempts < limits::ROOM_ATTEMPTS && error.class() == ErrorClass::Disk(libc::ENOSPC) => {
                let more = limits::RESERVE_STEP_BYTES << attempts;
                attempts += 1;
                if !evict::make_more_room(store, more).is_ok_and(|evicted| evicted.layers > 0) {
                    return Err(error);
                }
            }
            Ok(Some(stored)) => {
                let seconds = begun.elapsed().as_secs_f64();
                let bytes_per_second = (bytes as f64 / seconds.max(f64::EPSILON)) as u64;
                tracing::info!(%layer, source = source.name(), bytes, seconds, bytes_per_second, "layer fetched");
                return Ok(Some(stored));
            }
            other => return other,
        }
    }
}

/// Makes room, if need be by waiting for those who closed a layer a moment ago.
fn make_room(store: &Inner, claim: &evict::Claim, reporter: &mut Reporter<'_>) -> Result<Evicted, StoreError> {
    let begin = Instant::now();
    loop {
        match evict::make_room(store, claim, true)? {
            Room::Made(evicted) => return Ok(evicted),
            Room::Full { held: true, .. } if begin.elapsed().as_secs() < limits::ROOM_WAIT_SECONDS => {
                thread::sleep(Duration::from_millis(limits::LOCK_POLL_MILLIS));
                reporter.tick(0);
            }
            Room::Full { error, .. } => return Err(error),
        }
    }
}

/// What a layer of `size` bytes asks for, of which so many are here.
fn claim(spec: &LayerSpec, seen: u64, size: u64) -> evict::Claim {
    evict::Claim { layer: spec.key(), size, missing: size.saturating_sub(seen) }
}

/// Lets the source's bytes flow into the ingest.
fn stream(
    store: &Arc<Inner>,
    spec: &LayerSpec,
    source: &Arc<dyn Source>,
    runtime: &Handle,
    reporter: &mut Reporter<'_>,
    mut ingest: Ingest<'_>,
) -> Result<Option<VerifiedLayer>, StoreError> {
    let name = spec.key().file_name();
    let from = ingest.seen();
    if from < spec.descriptor.size {
        let tick = Duration::from_secs(limits::TICK_SECONDS);
        let mut blob = source.blob(&spec.descriptor, from);
        loop {
            // The time-out is only there to tick: how long bytes may fail to come is the source's own limit.
            let next = runtime.block_on(async { tokio::time::timeout(tick, blob.next()).await });
            match next {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => {
                    point("fetch:chunk");
                    ingest.write(chunk, &mut |seen| {
                        reporter.tick(seen);
                    })?;
                }
                Ok(Some(Err(error))) => {
                    ingest.suspend();
                    return Err(StoreError::Source { layer: spec.descriptor.digest, source: Arc::new(error) });
                }
                Err(_) => {}
            }
            // One who was taken for stopped, or works beside one who was, may find that it is done.
            if reporter.tick(ingest.seen()) && store.layers.stat(&name)?.is_some() {
                return Ok(None);
            }
        }
    }
    ingest.commit()
}
