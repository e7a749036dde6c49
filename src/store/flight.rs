//! Single flight: of all who want a layer at once, one works and the others wait.
//!
//! Inside a process ([`Flights`]) those who wait are woken by the one who worked. Across processes ([`Watch`]) they look at the ingest locks every
//! [`limits::LOCK_POLL_MILLIS`], because nothing wakes a waiter for a flock within a bounded time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::dir::Dir;
use super::error::StoreError;
use super::locks::IngestLock;
use super::progress::{Activity, Record};
use crate::clock::Lived;
use crate::failure::ErrorClass;
use crate::layer::LayerKey;
use crate::limits;
use crate::source::Source;

/// The layers that this process works on.
#[derive(Debug, Default)]
pub(super) struct Flights {
    active: Mutex<HashMap<LayerKey, Arc<Flight>>>,
}

#[derive(Debug)]
struct Flight {
    source: Arc<dyn Source>,
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

/// How somebody else's work ended.
#[derive(Debug, Clone)]
enum Outcome {
    Landed,
    Failed(StoreError),
    /// The one who worked is gone without a word: it panicked, or had no room and may not make any.
    Abandoned,
}

/// Whose turn it is.
pub(super) enum Turn<'flights> {
    /// Ours.
    Lead(Leader<'flights>),
    /// Somebody else's was; look again whether the layer is there now.
    Look,
    /// Somebody else's was, and it failed in a way that concerns us too.
    Failed(StoreError),
}

/// The right, and the duty, to work on a layer for all who wait.
pub(super) struct Leader<'flights> {
    flights: &'flights Flights,
    layer: LayerKey,
    flight: Arc<Flight>,
}

impl Flights {
    /// Takes the lead, or waits until whoever has it is done.
    pub(super) fn join(&self, layer: &LayerKey, source: &Arc<dyn Source>) -> Turn<'_> {
        let flight = {
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            match active.get(layer) {
                Some(flight) => Arc::clone(flight),
                None => {
                    let flight = Arc::new(Flight { source: Arc::clone(source), outcome: Mutex::default(), ended: Condvar::new() });
                    active.insert(*layer, Arc::clone(&flight));
                    return Turn::Lead(Leader { flights: self, layer: *layer, flight });
                }
            }
        };
        let mut outcome = flight.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*outcome {
                None => outcome = flight.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner),
                Some(Outcome::Landed | Outcome::Abandoned) => return Turn::Look,
                // What one source said is no answer of another.
                Some(Outcome::Failed(error)) if Arc::ptr_eq(&flight.source, source) || concerns_all(error.class()) => {
                    return Turn::Failed(error.clone());
                }
                Some(Outcome::Failed(_)) => return Turn::Look,
            }
        }
    }
}

impl Leader<'_> {
    /// Tells everybody who waits how it ended.
    pub(super) fn end<T>(self, outcome: &Result<T, StoreError>) {
        self.tell(match outcome {
            Ok(_) => Outcome::Landed,
            Err(error) => Outcome::Failed(error.clone()),
        });
    }

    fn tell(&self, outcome: Outcome) {
        self.flights.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.layer);
        self.flight.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        self.flight.ended.notify_all();
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let told = self.flight.outcome.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !told {
            self.tell(Outcome::Abandoned);
        }
    }
}

/// True if an error is not one of a certain source, but of this host or of the layer itself.
fn concerns_all(class: ErrorClass) -> bool {
    matches!(class, ErrorClass::Disk(_) | ErrorClass::Refused)
}

/// What a waiter has seen of those who work on a layer in other processes (or by way of another `Store`).
#[derive(Debug)]
pub(super) struct Watch {
    lived: Lived,
    places: [Seen; limits::FETCHERS_PER_LAYER],
}

/// What came of a look at the ingest locks.
pub(super) enum Claim {
    /// The lock is ours.
    Mine(IngestLock),
    /// Others are at work.
    Busy,
    /// Others worked while we waited, and failed in a way that concerns us too.
    Failed(StoreError),
}

#[derive(Debug, Default)]
struct Seen {
    /// The record as it was when we began to wait.
    first: Option<Option<Record>>,
    tick: Option<(u64, u64)>,
    ticked: Option<Duration>,
    fetched: u64,
    moved: Option<Duration>,
}

impl Watch {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self { lived: Lived::default(), places: Default::default() }
    }

    /// Takes an ingest lock if one is free, or if all who hold one are silent. `now` is the waiter's own clock: no other one is trusted. It is
    /// called often, since what passes between two calls counts for little; see [`Lived`].
    pub(super) fn claim(&mut self, locks: &Dir, layer: &LayerKey, source: &str, now: Instant) -> Result<Claim, StoreError> {
        let now = self.lived.look(now);
        let mut all_silent = true;
        for (place, seen) in self.places.iter_mut().enumerate() {
            if let Some(lock) = IngestLock::attempt(locks, layer, place)? {
                return Ok(match seen.failure(layer, source, Record::read(lock.file())) {
                    Some(error) => Claim::Failed(error),
                    None => Claim::Mine(lock),
                });
            }
            let record = match IngestLock::look(locks, layer, place)? {
                Some(file) => Record::read(&file),
                None => None,
            };
            let (silent, starved) = seen.look(record.as_ref(), source, now);
            all_silent &= silent;
            if !silent && !starved {
                return Ok(Claim::Busy);
            }
        }
        if all_silent {
            let what = "the ingest lock".to_owned();
            return Err(StoreError::Silent { layer: layer.to_string(), what, seconds: limits::SILENCE_SECONDS });
        }
        Ok(Claim::Busy)
    }
}

impl Seen {
    /// Takes note of a record whose writer holds the lock. First answer: it has been silent for too long. Second: it lives, but no byte has come from
    /// its source for as long, and ours is another one.
    fn look(&mut self, record: Option<&Record>, source: &str, now: Duration) -> (bool, bool) {
        self.first.get_or_insert_with(|| record.cloned());
        let tick = record.map(|record| (record.attempt, record.tick));
        if self.ticked.is_none() || tick != self.tick {
            self.ticked = Some(now);
            self.tick = tick;
        }
        let fetched = record.map_or(0, |record| record.fetched);
        if self.moved.is_none() || fetched != self.fetched {
            self.moved = Some(now);
            self.fetched = fetched;
        }
        let long_ago = |then: Option<Duration>| then.is_some_and(|then| now.saturating_sub(then).as_secs() >= limits::SILENCE_SECONDS);
        let another = record.is_some_and(|record| record.source != source && record.state == Activity::Fetching);
        (long_ago(self.ticked), another && long_ago(self.moved))
    }

    /// The error of an attempt that ended while we waited for it, if it concerns us. `last` is the record now that the lock is free.
    fn failure(&mut self, layer: &LayerKey, source: &str, last: Option<Record>) -> Option<StoreError> {
        let first = self.first.take()?;
        let last = last.filter(|last| last.state == Activity::Failed)?;
        let stale = first.is_some_and(|first| first.attempt == last.attempt && first.state == Activity::Failed);
        let fault = last.fault?;
        // Wrong bytes from the same place: asking it once more, for each process that waits, would only multiply the load.
        let same_bytes = fault.class == ErrorClass::Content && last.source == source;
        if stale || !(concerns_all(fault.class) || same_bytes) {
            return None;
        }
        let retry_at = fault.retry_at();
        Some(StoreError::Elsewhere { layer: layer.digest, class: fault.class, text: fault.text, pid: last.pid, retry_at })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::failure::ErrorClass;
    use crate::layer::Compression;
    use crate::source::SourceError;
    use crate::store::progress::Reporter;

    struct Bench {
        _path: tempfile::TempDir,
        locks: Dir,
        layer: LayerKey,
        begin: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let path = tempfile::tempdir().expect("a directory");
            let locks = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
            let digest = Digest::of(Algorithm::Sha256, b"layer");
            let layer = LayerKey { digest, is_tar: true, compression: Compression::None };
            Self { _path: path, locks, layer, begin: Instant::now() }
        }

        fn holder(&self, place: usize) -> IngestLock {
            IngestLock::attempt(&self.locks, &self.layer, place).expect("readable").expect("free")
        }

        fn claim(&self, watch: &mut Watch, source: &str, second: u64) -> Result<Claim, StoreError> {
            watch.claim(&self.locks, &self.layer, source, self.begin + Duration::from_secs(second))
        }

        /// Looks once a second, from the one behind `from` on, and tells what the last look told.
        fn wait(&self, watch: &mut Watch, source: &str, from: u64, to: u64) -> Result<Claim, StoreError> {
            for second in from + 1..to {
                assert!(matches!(self.claim(watch, source, second), Ok(Claim::Busy)), "{second}");
            }
            self.claim(watch, source, to)
        }
    }

    const LIMIT: u64 = limits::SILENCE_SECONDS;

    #[test]
    fn a_free_lock_is_taken_at_once() {
        let (bench, mut watch) = (Bench::new(), Watch::new());
        assert!(matches!(bench.claim(&mut watch, "a", 0), Ok(Claim::Mine(_))));
    }

    #[test]
    fn one_who_ticks_is_waited_for_and_one_who_is_silent_is_not() {
        let (bench, mut watch) = (Bench::new(), Watch::new());
        let lock = bench.holder(0);
        let mut reporter = Reporter::begin(&lock, "a", 9, Activity::Fetching);
        assert!(matches!(bench.claim(&mut watch, "a", 0), Ok(Claim::Busy)));
        for (from, to) in [(0, LIMIT - 1), (LIMIT - 1, LIMIT), (LIMIT, 2 * LIMIT - 1)] {
            reporter.activity(Activity::Fetching, to);
            assert!(matches!(bench.wait(&mut watch, "a", from, to), Ok(Claim::Busy)), "{to}");
        }
        reporter.activity(Activity::Fetching, 9);
        assert!(matches!(bench.wait(&mut watch, "a", 2 * LIMIT - 1, 3 * LIMIT - 1), Ok(Claim::Busy)));
        let Ok(Claim::Mine(beside)) = bench.claim(&mut watch, "a", 3 * LIMIT) else { panic!("it has been silent for long enough") };
        // One at a time: the next one waits for him, and only if he is silent too there is one more place.
        let mut third = Watch::new();
        assert!(matches!(bench.claim(&mut third, "a", 0), Ok(Claim::Busy)));
        assert!(matches!(bench.wait(&mut third, "a", 0, LIMIT), Ok(Claim::Busy)), "the second is seen for the first time now");
        let Ok(Claim::Mine(last)) = bench.wait(&mut third, "a", LIMIT, 2 * LIMIT) else { panic!("both are silent") };
        let mut fourth = Watch::new();
        let outcomes: Vec<_> = (0..=3 * LIMIT).map(|second| bench.claim(&mut fourth, "a", second)).collect();
        assert!(matches!(outcomes.last(), Some(Err(StoreError::Silent { .. }))), "a wait has an end");
        drop((lock, beside, last));
    }

    #[test]
    fn whoever_was_stopped_with_the_one_who_works_takes_him_for_alive() {
        let (bench, mut watch) = (Bench::new(), Watch::new());
        let lock = bench.holder(0);
        let mut reporter = Reporter::begin(&lock, "a", 9, Activity::Fetching);
        assert!(matches!(bench.claim(&mut watch, "a", 0), Ok(Claim::Busy)));
        assert!(matches!(bench.claim(&mut watch, "a", 3600), Ok(Claim::Busy)), "an hour in which neither ran");
        reporter.activity(Activity::Fetching, 1);
        assert!(matches!(bench.wait(&mut watch, "a", 3600, 3600 + LIMIT), Ok(Claim::Busy)));
        // Silent he is all the same, if he stays so.
        assert!(matches!(bench.claim(&mut watch, "a", 3601 + LIMIT), Ok(Claim::Mine(_))));
    }

    #[test]
    fn only_another_source_may_try_beside_one_who_gets_no_bytes() {
        let bench = Bench::new();
        let lock = bench.holder(0);
        let mut reporter = Reporter::begin(&lock, "a", 9, Activity::Fetching);
        let (mut same, mut other) = (Watch::new(), Watch::new());
        for second in 0..LIMIT {
            reporter.activity(Activity::Fetching, 5);
            assert!(matches!(bench.claim(&mut same, "a", second), Ok(Claim::Busy)));
            assert!(matches!(bench.claim(&mut other, "b", second), Ok(Claim::Busy)));
        }
        reporter.activity(Activity::Fetching, 5);
        assert!(matches!(bench.claim(&mut same, "a", LIMIT), Ok(Claim::Busy)));
        assert!(matches!(bench.claim(&mut other, "b", LIMIT), Ok(Claim::Mine(_))));
    }

    #[test]
    fn what_a_waiter_hears_of_a_failure() {
        let source = |error| StoreError::Source { layer: Digest::of(Algorithm::Sha256, b"layer"), source: Arc::new(error) };
        let denied = || source(SourceError::Denied { place: "p".into(), what: "w".into(), status: "403".into() });
        let full = || StoreError::Disk { what: "w".into(), source: Arc::new(std::io::Error::from_raw_os_error(libc::ENOSPC)) };
        let wrong = || {
            let mismatch = crate::verify::Mismatch::TooShort { digest: Digest::of(Algorithm::Sha256, b"layer"), expected: 2, got: 1 };
            StoreError::content(Digest::of(Algorithm::Sha256, b"layer"), mismatch)
        };
        let cases: [(StoreError, &str, Option<ErrorClass>); 5] = [
            (denied(), "a", None),
            (denied(), "b", None),
            (full(), "b", Some(ErrorClass::Disk(libc::ENOSPC))),
            (wrong(), "b", None),
            (wrong(), "a", Some(ErrorClass::Content)),
        ];
        for (error, waiter, heard) in cases {
            let (bench, mut watch) = (Bench::new(), Watch::new());
            let lock = bench.holder(0);
            let reporter = Reporter::begin(&lock, "a", 9, Activity::Fetching);
            assert!(matches!(bench.claim(&mut watch, waiter, 0), Ok(Claim::Busy)));
            reporter.end::<()>(&Err(error));
            drop(lock);
            let class = match bench.claim(&mut watch, waiter, 1).expect("readable") {
                Claim::Mine(_) => None,
                Claim::Failed(error) => Some(error.class()),
                Claim::Busy => panic!("the lock is free"),
            };
            assert_eq!(class, heard);
            // Whoever comes later tries for himself.
            assert!(matches!(bench.claim(&mut Watch::new(), waiter, 1), Ok(Claim::Mine(_))));
        }
    }

    #[test]
    fn a_failure_from_before_is_none_of_a_waiters_business() {
        let (bench, mut watch) = (Bench::new(), Watch::new());
        let full = StoreError::Disk { what: "w".into(), source: Arc::new(std::io::Error::from_raw_os_error(libc::ENOSPC)) };
        {
            let lock = bench.holder(0);
            Reporter::begin(&lock, "a", 9, Activity::Fetching).end::<()>(&Err(full));
        }
        // The next one has the lock, but dies before he writes a word.
        let lock = bench.holder(0);
        assert!(matches!(bench.claim(&mut watch, "a", 0), Ok(Claim::Busy)));
        drop(lock);
        assert!(matches!(bench.claim(&mut watch, "a", 1), Ok(Claim::Mine(_))));
    }
}
