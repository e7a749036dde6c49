//! What a mount counts for whoever watches over it, and where it tells.
//!
//! It always counts, since `kitfs status` shows it ([`Totals`]); it tells others only if it is asked to. The supervisor binds the address before it mounts and keeps it, so that a worker that died costs a scraper
//! a moment and not the address; the worker alone listens to what comes and answers ([`serve`]). Counters begin anew with each worker, as Prometheus expects of them,
//! but for that of the restarts. The names are documented in the README, and do not change.

mod address;
mod serve;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};

use crate::failure::ErrorClass;
use crate::store::{Evicted, Usage};

pub use address::{Address, Bound};
pub use serve::serve;

/// Counts what happens in a worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Counts>);

/// A label and its value.
type Label = [(&'static str, &'static str); 1];

#[derive(Debug)]
struct Counts {
    fetched: Counter,
    served: Counter,
    opens: Family<Label, Counter>,
    passed: Counter,
    passed_bytes: Counter,
    answered: Counter,
    errors: Family<Label, Counter>,
    waits: Histogram,
    /// What `waits` has no way to tell.
    waited: AtomicU64,
    waited_micros: AtomicU64,
}

/// What was counted, in all. `kitfs status` shows it over the whole life of a mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes that came from sources.
    pub fetched_bytes: u64,
    /// Bytes that went to readers through kitfs.
    pub served_bytes: u64,
    /// Files that were opened to be read by the kernel itself.
    pub passthrough_opens: u64,
    /// Their sizes.
    pub passthrough_opened_bytes: u64,
    /// Files that were opened to be read through kitfs.
    pub served_opens: u64,
    /// Requests that waited for layers.
    pub waits: u64,
    /// How long they did, together.
    pub wait_seconds: f64,
    /// Layers whose bytes were not what their digest says.
    pub verification_failures: u64,
    /// Layers that went to make room.
    pub evictions: u64,
    /// Bytes that they had.
    pub evicted_bytes: u64,
    /// Fetches that failed, by class.
    pub errors: BTreeMap<String, u64>,
}

impl std::ops::AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        self.fetched_bytes += other.fetched_bytes;
        self.served_bytes += other.served_bytes;
        self.passthrough_opens += other.passthrough_opens;
        self.passthrough_opened_bytes += other.passthrough_opened_bytes;
        self.served_opens += other.served_opens;
        self.waits += other.waits;
        self.wait_seconds += other.wait_seconds;
        self.verification_failures += other.verification_failures;
        self.evictions += other.evictions;
        self.evicted_bytes += other.evicted_bytes;
        for (class, count) in &other.errors {
            *self.errors.entry(class.clone()).or_default() += count;
        }
    }
}

/// What is looked at when somebody asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How many layers are in each state, by its name.
    pub layers: Vec<(&'static str, u64)>,
    /// Requests that wait now.
    pub waiting: u64,
    /// Workers that were replaced.
    pub restarts: u64,
    /// Layers whose bytes were not what their digest says.
    pub mismatches: u64,
    /// What this worker evicted.
    pub evicted: Evicted,
    /// What the cache holds, if that can be known.
    pub cache: Option<Usage>,
}

/// Looks.
pub type Look = Box<dyn Fn() -> Snapshot + Send + Sync>;

/// Which mount it is.
#[derive(Debug, Clone)]
pub struct Named {
    /// The reference that was mounted.
    pub reference: String,
    /// Its manifest's digest.
    pub digest: String,
    /// Where.
    pub mountpoint: String,
}

/// Upper ends of the buckets for waits, in seconds: from a layer that was about to come to one of hundreds of gigabytes.
const WAITS: [f64; 9] = [0.01, 0.05, 0.25, 1.0, 5.0, 20.0, 60.0, 300.0, 1_800.0];

impl Default for Meter {
    fn default() -> Self {
        let opens = Family::<Label, Counter>::default();
        let errors = Family::<Label, Counter>::default();
        // All that there can be are there from the start, so that a first one is seen as a rise.
        CLASSES.iter().for_each(|class| drop(errors.get_or_create(&[("class", *class)])));
        let (passed, answered) = (opens.get_or_create_owned(&[("by", "kernel")]), opens.get_or_create_owned(&[("by", "kitfs")]));
        Self(Arc::new(Counts {
            fetched: Counter::default(),
            served: Counter::default(),
            opens,
            passed,
            passed_bytes: Counter::default(),
            answered,
            errors,
            waits: Histogram::new(WAITS),
            waited: AtomicU64::new(0),
            waited_micros: AtomicU64::new(0),
        }))
    }
}

impl Meter {
    /// Bytes came from a source.
    pub fn fetched(&self, bytes: u64) {
        self.0.fetched.inc_by(bytes);
    }

    /// Bytes went to a reader through us.
    pub fn served(&self, bytes: usize) {
        self.0.served.inc_by(bytes as u64);
    }

    /// A file was opened to be read through us.
    pub fn opened(&self) {
        self.0.answered.inc();
    }

    /// A file of so many bytes was opened to be read by the kernel itself.
    pub fn passed_through(&self, bytes: u64) {
        self.0.passed.inc();
        self.0.passed_bytes.inc_by(bytes);
    }

    /// A request waited that long.
    pub fn waited(&self, time: Duration) {
        self.0.waits.observe(time.as_secs_f64());
        self.0.waited.fetch_add(1, Ordering::Relaxed);
        self.0.waited_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A layer could not be had.
    pub fn failed(&self, class: &ErrorClass) {
        self.0.errors.get_or_create(&[("class", class.code())]).inc();
    }

    /// What was counted so far. Mismatches and evictions are the store's to tell.
    pub fn totals(&self) -> Totals {
        let errors = CLASSES.iter().map(|class| ((*class).to_owned(), self.0.errors.get_or_create(&[("class", *class)]).get()));
        Totals {
            fetched_bytes: self.0.fetched.get(),
            served_bytes: self.0.served.get(),
            passthrough_opens: self.0.passed.get(),
            passthrough_opened_bytes: self.0.passed_bytes.get(),
            served_opens: self.0.answered.get(),
            waits: self.0.waited.load(Ordering::Relaxed),
            wait_seconds: Duration::from_micros(self.0.waited_micros.load(Ordering::Relaxed)).as_secs_f64(),
            errors: errors.collect(),
            ..Totals::default()
        }
    }

    /// Everything with its name.
    pub fn registry(&self, named: Named, look: Look) -> Registry {
        let counts = &self.0;
        let mut registry = Registry::with_prefix("kitfs");
        let Named { reference, digest, mountpoint } = named;
        let labels = [("reference", reference), ("digest", digest), ("mountpoint", mountpoint)];
        registry.register("mount", "The mount that this is about", Info::new(labels));
        let fetched = "Bytes of layers that came from the source, those included that did not match";
        registry.register_with_unit("fetched", fetched, Unit::Bytes, counts.fetched.clone());
        let served = "Bytes that readers got through kitfs; what the kernel reads by itself does not count";
        registry.register_with_unit("served", served, Unit::Bytes, counts.served.clone());
        registry.register("opens", "Files that were opened, by who reads them: the kernel itself or kitfs", counts.opens.clone());
        let passed = "Sizes of the files that were opened for the kernel to read by itself; what it reads of them nobody counts";
        registry.register_with_unit("passthrough_opened", passed, Unit::Bytes, counts.passed_bytes.clone());
        registry.register("errors", "Fetches of layers that failed, by class", counts.errors.clone());
        registry.register_with_unit("wait", "How long requests waited for layers", Unit::Seconds, counts.waits.clone());
        registry.register_collector(Box::new(Looked(look)));
        registry
    }
}

const CLASSES: [&str; 7] = ["content", "refused", "missing", "denied", "stalled", "network", "disk"];

struct Looked(Look);

impl fmt::Debug for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Looked")
    }
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot { layers, waiting, restarts, mismatches, evicted, cache } = (self.0)();
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let mut states = encoder.encode_descriptor("layers", "Layers of the mount, by state.", None, gauge(0).metric_type())?;
        for (state, count) in layers {
            gauge(count).encode(states.encode_family(&[("state", state)])?)?;
        }
        let waiting = [("waiting_requests", "Requests that wait for layers now.", None, waiting)];
        let cache = cache.map(|Usage { bytes, pinned, limit }| {
            let bytes_of = |name, help, value| (name, help, Some(&Unit::Bytes), value);
            [
                bytes_of("cache", "Bytes on disk of the layers in the cache, which mounts share.", bytes),
                bytes_of("cache_pinned", "Bytes on disk of those that are pinned.", pinned),
                bytes_of("cache_limit", "Bytes that the cache may hold.", limit),
            ]
        });
        for (name, help, unit, value) in waiting.into_iter().chain(cache.into_iter().flatten()) {
            let value = gauge(value);
            value.encode(encoder.encode_descriptor(name, help, unit, value.metric_type())?)?;
        }
        for (name, help, unit, value) in [
            ("worker_restarts", "Workers that were replaced, since the mount was made.", None, restarts),
            ("verification_failures", "Layers whose bytes were not what their digest says.", None, mismatches),
            ("evictions", "Layers that this mount evicted from the cache to make room.", None, evicted.layers),
            ("evicted", "Bytes on disk of the layers that it evicted.", Some(&Unit::Bytes), evicted.bytes),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_name_that_is_there_from_the_start() {
        let all = [
            ErrorClass::Content,
            ErrorClass::Refused,
            ErrorClass::Missing,
            ErrorClass::Denied,
            ErrorClass::Stalled,
            ErrorClass::Network,
            ErrorClass::Disk(5),
        ];
        assert_eq!(all.map(ErrorClass::code), CLASSES);
    }

    #[test]
    fn names_and_values_are_told() {
        let meter = Meter::default();
        meter.fetched(7);
        meter.served(5);
        meter.passed_through(9);
        meter.opened();
        meter.opened();
        meter.waited(Duration::from_millis(40));
        meter.failed(&ErrorClass::Disk(28));
        let named = Named { reference: "r\"\n".into(), digest: "sha256:00".into(), mountpoint: "/mnt".into() };
        let (evicted, cache) = (Evicted { layers: 2, bytes: 30 }, Some(Usage { bytes: 10, pinned: 4, limit: 20 }));
        let look = move || Snapshot { layers: vec![("cached", 2), ("absent", 0)], waiting: 3, restarts: 4, mismatches: 1, evicted, cache };
        let registry = meter.registry(named, Box::new(look));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes all");
        for line in [
            "kitfs_mount_info{reference=\"r\\\"\\n\",digest=\"sha256:00\",mountpoint=\"/mnt\"} 1",
            "kitfs_fetched_bytes_total 7",
            "kitfs_served_bytes_total 5",
            "kitfs_opens_total{by=\"kernel\"} 1",
            "kitfs_passthrough_opened_bytes_total 9",
            "kitfs_evictions_total 2",
            "kitfs_evicted_bytes_total 30",
            "kitfs_cache_bytes 10",
            "kitfs_cache_pinned_bytes 4",
            "kitfs_cache_limit_bytes 20",
            "kitfs_opens_total{by=\"kitfs\"} 2",
            "kitfs_errors_total{class=\"disk\"} 1",
            "kitfs_errors_total{class=\"content\"} 0",
            "kitfs_wait_seconds_bucket{le=\"0.05\"} 1",
            "kitfs_wait_seconds_count 1",
            "kitfs_layers{state=\"cached\"} 2",
            "kitfs_layers{state=\"absent\"} 0",
            "kitfs_waiting_requests 3",
            "kitfs_worker_restarts_total 4",
            "kitfs_verification_failures_total 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let errors = CLASSES.map(|class| (class.to_owned(), u64::from(class == "disk")));
        let mut totals = Totals {
            fetched_bytes: 7,
            served_bytes: 5,
            passthrough_opens: 1,
            passthrough_opened_bytes: 9,
            served_opens: 2,
            waits: 1,
            wait_seconds: 0.04,
            errors: errors.into(),
            ..Totals::default()
        };
        assert_eq!(meter.totals(), totals);
        // What the last worker counted goes on.
        let last = Totals { evictions: 3, evicted_bytes: 5, verification_failures: 1, ..totals.clone() };
        totals += &last;
        assert_eq!((totals.fetched_bytes, totals.wait_seconds, totals.errors["disk"]), (14, 0.08, 2));
        assert_eq!((totals.evictions, totals.evicted_bytes, totals.verification_failures), (3, 5, 1));
    }
}
