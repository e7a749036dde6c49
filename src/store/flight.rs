//! Single flight: of all who want a layer at once, one works and the others wait.
//!
//! Inside a process ([`Flights`]) those who wait are woken by the one who worked. Across processes ([`Watch`]) they look at the ingest locks every
//! [`limits::LOCK_POLL_MILLIS`], because nothing wakes a waiter for a flock within a bounded time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::dir::Dir;
use super::error::StoreError;
use super::locks::IngestLock;
use super::progress::{Activity, Record};
use crate::digest::Digest;
use crate::failure::ErrorClass;
use crate::limits;
use crate::source::Source;

/// The layers that this process works on.
#[derive(Debug, Default)]
pub(super) struct Flights {
    active: Mutex<HashMap<Digest, Arc<Flight>>>,
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
    /// The one who worked is gone without a word: it panicked.
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
    layer: Digest,
    flight: Arc<Flight>,
}

impl Flights {
    /// Takes the lead, or waits until whoever has it is done.
    pub(super) fn join(&self, layer: &Digest, source: &Arc<dyn Source>) -> Turn<'_> {
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
    ticked: Option<Instant>,
    fetched: u64,
    moved: Option<Instant>,
}

impl Watch {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self { places: Default::default() }
    }

    /// Takes an ingest lock if one is free, or if all who hold one are silent. `now` is the waiter's own clock: no other one is trusted.
    pub(super) fn claim(&mut self, locks: &Dir, layer: &Digest, source: &str, now: Instant) -> Result<Claim, StoreError> {
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
    fn look(&mut self, record: Option<&Record>, source: &str, now: Instant) -> (bool, bool) {
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
        let long_ago =
            |then: Option<Instant>| then.is_some_and(|then| now.saturating_duration_since(then).as_secs() >= limits::SILENCE_SECONDS);
        let another = record.is_some_and(|record| record.source != source && record.state == Activity::Fetching);
        (long_ago(self.ticked), another && long_ago(self.moved))
    }

    /// The error of an attempt that ended while we waited for it, if it concerns us. `last` is the record now that the lock is free.
    fn failure(&mut self, layer: &Digest, source: &str, last: Option<Record>) -> Option<StoreError> {
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
        Some(StoreError::Elsewhere { layer: *layer, class: fault.class, text: fault.text, pid: last.pid, retry_at })
    }
}
