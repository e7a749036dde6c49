//! Which layers are fetched when: demand before prefetch, a bounded number at once, and back-off after a failure.
//!
//! One thread per running fetch, which blocks in [`Store::ensure`]; how a layer is fetched, checked and shared with other processes is the
//! store's affair. This module knows neither names nor requests; it tells one listener how each fetch ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::{Handle, Runtime};

use crate::clock::since_boot;
use crate::digest::Digest;
use crate::failure::{ErrorClass, chain};
use crate::heap;
use crate::layer::LayerSpec;
use crate::limits::{BACKGROUND_FETCHES_MAX, BACKOFF_DISK_MAX, BACKOFF_FIRST, BACKOFF_MAX, CLOCK_STEP, DEMANDED_FETCHES_MAX};
use crate::metrics::Meter;
use crate::source::{Source, SourceError};
use crate::store::{Store, StoreError, VerifiedLayer};

/// Fetches the layers of one mount.
pub struct Fetcher {
    store: Result<Store, StoreError>,
    layers: Vec<(LayerSpec, usize)>,
    connect: Connect,
    /// Made at the first fetch: a mount of cached layers needs neither threads nor a network.
    connected: Mutex<Option<Connected>>,
    inner: Mutex<Inner>,
    listener: OnceLock<Listener>,
    witness: OnceLock<Witness>,
    meter: Meter,
}

/// Opens one of the sources by its number, when the first layer has to come from it.
pub type Connect = Box<dyn Fn(usize) -> Result<Arc<dyn Source>, SourceError> + Send + Sync>;

/// Told once for every fetch that brought its layer, and for every one that failed while somebody waited for it: the slot, and the layer or why there is none.
pub type Listener = Box<dyn Fn(u16, Result<VerifiedLayer, Failed>) + Send + Sync>;

/// Told of each fetch that ends because the content is not what its digest says: the layer, and what was expected and what came.
pub type Witness = Box<dyn Fn(&Digest, &str) + Send + Sync>;

/// The last failure of a layer.
#[derive(Debug, Clone)]
pub struct Failed {
    /// What kind of failure, for the errno.
    pub class: ErrorClass,
    /// The error and its causes, in one line.
    pub message: String,
    /// When a reader's next open tries again.
    pub retry_at: SystemTime,
}

/// What became of a wish for a layer.
#[derive(Debug)]
pub enum Wanted {
    /// It is on its way; the listener will be told.
    Coming,
    /// It failed a short while ago and is not tried again yet.
    Failing(Failed),
}

/// What is known of a layer that is not open.
#[derive(Debug, Clone)]
pub enum Standing {
    /// Nobody asked for it.
    Idle,
    /// It waits for its turn.
    Queued,
    /// It is being fetched.
    Running,
    /// It failed, and nobody asked again since.
    Failed(Failed),
}

struct Connected {
    sources: HashMap<usize, Arc<dyn Source>>,
    runtime: Runtime,
}

#[derive(Default)]
struct Inner {
    demanded: VecDeque<u16>,
    background: VecDeque<u16>,
    demanded_running: usize,
    background_running: usize,
    cautious: bool,
    /// How many at once, of each sort, if that was said.
    jobs: Option<usize>,
    /// Fetches have ended since memory was given back.
    untidy: bool,
    layers: Vec<State>,
}

#[derive(Default, Clone)]
struct State {
    queued: bool,
    running: bool,
    /// Somebody waits for the running fetch, so that its failure counts as a reader's.
    awaited: bool,
    failures: u32,
    /// The last failure, and the time since boot at which its back-off is over.
    failed: Option<(Failed, Duration)>,
}

impl Fetcher {
    /// A fetcher for the layers of a plan, each with the number of its source; the n-th has slot n + 1. Without a store each fetch fails as its opening did.
    pub fn new(store: Result<Store, StoreError>, layers: Vec<(LayerSpec, usize)>, connect: Connect, meter: Meter) -> Arc<Self> {
        let inner = Inner { layers: vec![State::default(); layers.len()], ..Inner::default() };
        Arc::new(Self {
            store,
            layers,
            connect,
            connected: Mutex::new(None),
            inner: Mutex::new(inner),
            listener: OnceLock::new(),
            witness: OnceLock::new(),
            meter,
        })
    }

    /// Sets who is told how fetches end; before the first wish.
    pub fn listen(&self, listener: Listener) {
        if self.listener.set(listener).is_err() {
            unreachable!("a mount has one listener, set when it is put together");
        }
    }

    /// Sets who is told of content that is not what its digest says; before the first wish.
    pub fn report_mismatches(&self, witness: Witness) {
        if self.witness.set(witness).is_err() {
            unreachable!("a mount has one record, set when it is put together");
        }
    }

    /// Fetches half as many layers at once, after workers that died of something they did themselves, most likely of memory.
    pub fn be_cautious(&self, cautious: bool) {
        self.lock().cautious = cautious;
    }

    /// Fetches so many layers at once that are waited for, and as many that are not.
    pub fn fetch_at_once(&self, jobs: u16) {
        self.lock().jobs = Some(usize::from(jobs));
    }

    /// A reader wants the layer: it goes before everything that nobody waits for.
    pub fn want(self: &Arc<Self>, slot: u16) -> Wanted {
        let mut inner = self.lock();
        let state = inner.state(slot);
        if let Some((failed, until)) = &state.failed
            && !state.running
            && since_boot() < *until
        {
            return Wanted::Failing(failed.clone());
        }
        state.awaited = true;
        if !state.running {
            if state.queued {
                inner.background.retain(|&other| other != slot);
            }
            if !inner.demanded.contains(&slot) {
                inner.state(slot).queued = true;
                inner.demanded.push_back(slot);
            }
        }
        drop(inner);
        self.pump();
        Wanted::Coming
    }

    /// Fetches layers that nobody waits for, in this order, when there is nothing else to do.
    pub fn prefetch(self: &Arc<Self>, slots: impl IntoIterator<Item = u16>) {
        let mut inner = self.lock();
        for slot in slots {
            let state = inner.state(slot);
            if !state.running && !state.queued {
                state.queued = true;
                inner.background.push_back(slot);
            }
        }
        drop(inner);
        self.pump();
    }

    /// Records that a layer that came cannot be shown, so that nobody fetches it again and again.
    pub fn refuse(&self, slot: u16, class: ErrorClass, message: String) -> Failed {
        let mut inner = self.lock();
        let state = inner.state(slot);
        state.failures += 1;
        let (failed, until) = failure(class, message, None, state.failures);
        state.failed = Some((failed.clone(), until));
        failed
    }

    /// How a layer stands that is not open.
    pub fn standing(&self, slot: u16) -> Standing {
        let mut inner = self.lock();
        let state = inner.state(slot);
        match &mut state.failed {
            _ if state.running => Standing::Running,
            _ if state.queued => Standing::Queued,
            Some((failed, until)) => {
                failed.retry_at = shown(failed.retry_at, SystemTime::now(), until.saturating_sub(since_boot()));
                Standing::Failed(failed.clone())
            }
            None => Standing::Idle,
        }
    }

    /// Gives the memory of fetches back to the system, once none runs any more: the allocator would keep it, tens of megabytes for the rest of the mount's
    /// life. Not at the end of each fetch, which may be one of many small ones.
    pub fn tidy_up(&self) {
        {
            let mut inner = self.lock();
            if inner.demanded_running + inner.background_running > 0 || !std::mem::take(&mut inner.untidy) {
                return;
            }
        }
        heap::give_back();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what there is room for.
    fn pump(self: &Arc<Self>) {
        let mut stillborn = Vec::new();
        {
            let mut inner = self.lock();
            while let Some((slot, demanded)) = inner.next() {
                let fetcher = Arc::clone(self);
                let thread = thread::Builder::new().name(format!("fetch-{slot}"));
                if let Err(error) = thread.spawn(move || fetcher.run(slot, demanded)) {
                    // No thread to be had is like a full disk: readers hear of it, and the next try is soon.
                    let class = ErrorClass::Disk(error.raw_os_error().unwrap_or(libc::EAGAIN));
                    let failed = inner.end(slot, demanded, Some((class, format!("cannot start a thread to fetch with: {error}"), None)));
                    stillborn.extend(failed.map(|failed| (slot, failed)));
                }
            }
        }
        for (slot, failed) in stillborn {
            self.tell(slot, Err(failed));
        }
    }

    fn tell(&self, slot: u16, outcome: Result<VerifiedLayer, Failed>) {
        if let Some(listener) = self.listener.get() {
            listener(slot, outcome);
        }
    }

    fn run(self: &Arc<Self>, slot: u16, demanded: bool) {
        let (spec, source) = &self.layers[usize::from(slot) - 1];
        let started = Instant::now();
        let unconnected = |source| StoreError::Source { layer: spec.descriptor.digest, source: Arc::new(source) };
        let fetch = |demanded| {
            let store = self.store.as_ref().map_err(Clone::clone)?;
            let (source, handle) = self.connection(*source).map_err(unconnected)?;
            if demanded { store.ensure(spec, &source, &handle) } else { store.prefetch(spec, &source, &handle) }
        };
        let mut outcome = fetch(demanded);
        let mut inner = self.lock();
        // In the meantime somebody waits for it: now others may have to go. Nobody can come to wait between this look and the end.
        if !demanded && outcome.as_ref().is_err_and(is_full) && inner.state(slot).awaited {
            drop(inner);
            outcome = fetch(true);
            inner = self.lock();
        }
        let error = outcome.as_ref().err().map(|error| (error.class(), chain(error), error.retry_at()));
        let awaited = inner.state(slot).awaited;
        let failed = inner.end(slot, demanded, error);
        drop(inner);
        let digest = spec.descriptor.digest;
        match (outcome, failed) {
            (Ok(layer), _) => {
                // Who fetched it said so; it may have been another process.
                tracing::debug!(layer = %digest, bytes = spec.descriptor.size, seconds = started.elapsed().as_secs_f64(), "layer is here");
                self.tell(slot, Ok(layer));
            }
            (Err(_), Some(failed)) => {
                self.meter.failed(&failed.class);
                tracing::warn!(layer = %digest, error = failed.message, "layer failed");
                // Before a reader hears of it.
                if let (ErrorClass::Content, Some(witness)) = (failed.class, self.witness.get()) {
                    witness(&digest, &failed.message);
                }
                // Whoever has come to wait since then waits for the next attempt, which may be allowed more.
                if awaited {
                    self.tell(slot, Err(failed));
                }
            }
            (Err(_), None) => unreachable!("a fetch that ends with an error is recorded as failed"),
        }
        self.pump();
    }

    fn connection(&self, number: usize) -> Result<(Arc<dyn Source>, Handle), SourceError> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let Connected { sources, runtime } = match &mut *connected {
            Some(connected) => connected,
            none => {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("net").enable_all().build();
                let runtime = runtime.map_err(|source| SourceError::Local { path: "threads for the network".into(), source })?;
                none.insert(Connected { sources: HashMap::new(), runtime })
            }
        };
        let source = match sources.get(&number) {
            Some(source) => Arc::clone(source),
            None => {
                let _inside = runtime.enter();
                let source = (self.connect)(number)?;
                sources.insert(number, Arc::clone(&source));
                source
            }
        };
        Ok((source, runtime.handle().clone()))
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("Fetcher").field("demanded", &inner.demanded).field("background", &inner.background).finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&mut self, slot: u16) -> &mut State {
        &mut self.layers[usize::from(slot) - 1]
    }

    fn running(&mut self, demanded: bool) -> &mut usize {
        if demanded { &mut self.demanded_running } else { &mut self.background_running }
    }

    /// Takes the next fetch that there is room for. Readers never stand behind prefetches, not even behind stalled ones: the two have
    /// room of their own.
    fn next(&mut self) -> Option<(u16, bool)> {
        let share = if self.cautious { 2 } else { 1 };
        let most = |default: usize| (self.jobs.unwrap_or(default) / share).max(1);
        let (demanded_most, background_most) = (most(DEMANDED_FETCHES_MAX), most(BACKGROUND_FETCHES_MAX));
        let (slot, demanded) = if self.demanded_running < demanded_most
            && let Some(slot) = self.demanded.pop_front()
        {
            (slot, true)
        } else if self.background_running < background_most {
            (self.background.pop_front()?, false)
        } else {
            return None;
        };
        let state = self.state(slot);
        (state.queued, state.running) = (false, true);
        *self.running(demanded) += 1;
        Some((slot, demanded))
    }

    fn end(&mut self, slot: u16, demanded: bool, error: Option<(ErrorClass, String, Option<SystemTime>)>) -> Option<Failed> {
        *self.running(demanded) -= 1;
        self.untidy = true;
        let state = self.state(slot);
        state.running = false;
        let awaited = std::mem::take(&mut state.awaited);
        let Some((class, message, retry_at)) = error else {
            (state.failures, state.failed) = (0, None);
            return None;
        };
        // What nobody waited for must not keep the first reader waiting.
        if awaited {
            state.failures += 1;
        }
        let (failed, until) = failure(class, message, retry_at, state.failures);
        state.failed = Some((failed.clone(), if awaited { until } else { since_boot() }));
        Some(failed)
    }
}

fn is_full(error: &StoreError) -> bool {
    matches!(error.class(), ErrorClass::Disk(libc::ENOSPC))
}

/// A failure and when its back-off ends: 30 s doubling to 10 min, but seconds for what frees itself (a full disk, no descriptors).
fn failure(class: ErrorClass, message: String, retry_at: Option<SystemTime>, failures: u32) -> (Failed, Duration) {
    let doubled = |first: Duration| first.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let wait = match class {
        ErrorClass::Disk(_) => doubled(Duration::from_secs(1)).min(BACKOFF_DISK_MAX),
        _ => doubled(BACKOFF_FIRST).min(BACKOFF_MAX),
    };
    let asked = retry_at.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    let wait = wait.max(asked.min(BACKOFF_MAX));
    (Failed { class, message, retry_at: SystemTime::now() + wait }, since_boot() + wait)
}

/// The time of day to show for the end of a back-off, of which so much is `left`: the one that was shown before, unless the clock jumped since.
fn shown(before: SystemTime, now: SystemTime, left: Duration) -> SystemTime {
    let right = now + left;
    let ahead = before.duration_since(right).is_ok_and(|by| by > CLOCK_STEP);
    let behind = !left.is_zero() && right.duration_since(before).is_ok_and(|by| by > CLOCK_STEP);
    if ahead || behind { right } else { before }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::descriptor::Descriptor;
    use crate::digest::{Algorithm, Digest};
    use crate::layer::{Archive, Compression};

    /// The soak found it: a prefetch had no room, and a reader who came a moment later, to wait for the next attempt, was told of it.
    #[test]
    fn how_a_fetch_ends_that_nobody_waited_for_is_told_to_nobody() {
        let path = tempfile::tempdir().expect("a directory");
        let store = Store::open(path.path()).expect("a cache");
        let descriptor = Descriptor { media_type: "x/layer".into(), digest: Digest::of(Algorithm::Sha256, b"layer"), size: 5 };
        let spec = LayerSpec { descriptor, diff_id: None, archive: Archive::Tar, compression: Compression::None };
        let nowhere: Connect =
            Box::new(|_| Err(SourceError::Denied { place: "test".into(), what: "the layer".into(), status: "403".into() }));
        let fetcher = Fetcher::new(Ok(store), vec![(spec, 0)], nowhere, Meter::default());
        let (tell, told) = std::sync::mpsc::channel();
        fetcher.listen(Box::new(move |slot, outcome| tell.send((slot, outcome.is_err())).expect("somebody listens")));
        fetcher.prefetch([1]);
        while !matches!(fetcher.standing(1), Standing::Failed(_)) {
            thread::yield_now();
        }
        assert!(matches!(fetcher.want(1), Wanted::Coming), "a failure that nobody waited for has no back-off");
        assert_eq!(told.recv(), Ok((1, true)), "a reader hears of his own");
        drop(fetcher);
        assert!(told.recv().is_err(), "and of no other");
    }

    const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

    #[test]
    fn the_end_of_a_back_off_is_shown_as_the_clock_has_it_now() {
        let now = UNIX_EPOCH + 5 * YEARS;
        let second = Duration::from_secs(1);
        for (before, left, expected) in [
            (now + 30 * second, 30 * second, now + 30 * second),
            // Looking at the clock twice takes a moment, which is no reason to say something else each time.
            (now + 31 * second, 30 * second, now + 31 * second),
            (now + 29 * second, 30 * second, now + 29 * second),
            // The clock went back, or ahead.
            (now + YEARS, 30 * second, now + 30 * second),
            (now - YEARS, 30 * second, now + 30 * second),
            // It is over; that stays true, unless the clock says otherwise.
            (now - YEARS, Duration::ZERO, now - YEARS),
            (now + YEARS, Duration::ZERO, now),
        ] {
            assert_eq!(shown(before, now, left), expected, "{before:?} {left:?}");
        }
    }

    #[test]
    fn what_a_registry_asks_for_in_another_century_is_waited_for_ten_minutes_at_most() {
        for (retry_at, wait) in
            [(Some(SystemTime::now() + YEARS), BACKOFF_MAX), (Some(SystemTime::now() - YEARS), BACKOFF_FIRST), (None, BACKOFF_FIRST)]
        {
            let before = since_boot();
            let (_, until) = failure(ErrorClass::Network, "gone".into(), retry_at, 1);
            assert!(until >= before + wait && until <= since_boot() + wait, "{retry_at:?}");
        }
    }
}
