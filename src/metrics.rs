//! What a mount counts for whoever watches over it, and where it tells.
//!
//! Off by default, and then nothing is counted. The supervisor binds the address before it mounts and keeps it, so that a worker that died costs a scraper
//! a moment and not the address; the worker alone listens to what comes and answers ([`serve`]). Counters begin anew with each worker, as Prometheus expects of them,
//! but for that of the restarts. The names are documented in the README, and do not change.

mod address;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::failure::ErrorClass;

pub use address::{Address, Bound};
pub use serve::serve;

/// Counts what happens in a worker, or nothing; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Meter(Option<Arc<Counts>>);

/// A label and its value.
type Label = [(&'static str, &'static str); 1];

#[derive(Debug)]
struct Counts {
    fetched: Counter,
    served: Counter,
    opens: Family<Label, Counter>,
    passed: Counter,
    answered: Counter,
    errors: Family<Label, Counter>,
    waits: Histogram,
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

impl Meter {
    /// One that counts.
    pub fn on() -> Self {
        let opens = Family::<Label, Counter>::default();
        let errors = Family::<Label, Counter>::default();
        // All that there can be are there from the start, so that a first one is seen as a rise.
        CLASSES.iter().for_each(|class| drop(errors.get_or_create(&[("class", *class)])));
        let (passed, answered) = (opens.get_or_create_owned(&[("by", "kernel")]), opens.get_or_create_owned(&[("by", "kitfs")]));
        let waits = Histogram::new(WAITS);
        Self(Some(Arc::new(Counts { fetched: Counter::default(), served: Counter::default(), opens, passed, answered, errors, waits })))
    }

    /// Whether it counts.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Bytes came from a source.
    pub fn fetched(&self, bytes: u64) {
        if let Some(counts) = &self.0 {
            counts.fetched.inc_by(bytes);
        }
    }

    /// Bytes went to a reader through us.
    pub fn served(&self, bytes: usize) {
        if let Some(counts) = &self.0 {
            counts.served.inc_by(bytes as u64);
        }
    }

    /// A file was opened, to be read by the kernel itself or through us.
    pub fn opened(&self, passthrough: bool) {
        if let Some(counts) = &self.0 {
            if passthrough {
                counts.passed.inc()
            } else {
                counts.answered.inc()
            };
        }
    }

    /// A request waited that long.
    pub fn waited(&self, time: Duration) {
        if let Some(counts) = &self.0 {
            counts.waits.observe(time.as_secs_f64());
        }
    }

    /// A layer could not be had.
    pub fn failed(&self, class: &ErrorClass) {
        if let Some(counts) = &self.0 {
            counts.errors.get_or_create(&[("class", name(class))]).inc();
        }
    }

    /// Everything with its name. `None` if nothing is counted.
    pub fn registry(&self, named: Named, look: Look) -> Option<Registry> {
        let counts = self.0.as_ref()?;
        let mut registry = Registry::with_prefix("kitfs");
        let Named { reference, digest, mountpoint } = named;
        let labels = [("reference", reference), ("digest", digest), ("mountpoint", mountpoint)];
        registry.register("mount", "The mount that this is about", Info::new(labels));
        let fetched = "Bytes of layers that came from the source, those included that did not match";
        registry.register_with_unit("fetched", fetched, Unit::Bytes, counts.fetched.clone());
        let served = "Bytes that readers got through kitfs; what the kernel reads by itself does not count";
        registry.register_with_unit("served", served, Unit::Bytes, counts.served.clone());
        registry.register("opens", "Files that were opened, by who reads them: the kernel itself or kitfs", counts.opens.clone());
        registry.register("errors", "Fetches of layers that failed, by class", counts.errors.clone());
        registry.register_with_unit("wait", "How long requests waited for layers", Unit::Seconds, counts.waits.clone());
        registry.register_collector(Box::new(Looked(look)));
        Some(registry)
    }
}

const CLASSES: [&str; 7] = ["content", "refused", "missing", "denied", "stalled", "network", "disk"];

fn name(class: &ErrorClass) -> &'static str {
    match class {
        ErrorClass::Content => "content",
        ErrorClass::Refused => "refused",
        ErrorClass::Missing => "missing",
        ErrorClass::Denied => "denied",
        ErrorClass::Stalled => "stalled",
        ErrorClass::Network => "network",
        ErrorClass::Disk(_) => "disk",
    }
}

struct Looked(Look);

impl fmt::Debug for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Looked")
    }
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot { layers, waiting, restarts, mismatches } = (self.0)();
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let mut states = encoder.encode_descriptor("layers", "Layers of the mount, by state.", None, gauge(0).metric_type())?;
        for (state, count) in layers {
            gauge(count).encode(states.encode_family(&[("state", state)])?)?;
        }
        let waiting = gauge(waiting);
        waiting.encode(encoder.encode_descriptor(
            "waiting_requests",
            "Requests that wait for layers now.",
            None,
            waiting.metric_type(),
        )?)?;
        for (name, help, value) in [
            ("worker_restarts", "Workers that were replaced, since the mount was made.", restarts),
            ("verification_failures", "Layers whose bytes were not what their digest says.", mismatches),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
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
        assert_eq!(all.map(|class| name(&class)), CLASSES);
    }

    #[test]
    fn names_and_values_are_told() {
        let meter = Meter::on();
        meter.fetched(7);
        meter.served(5);
        meter.opened(true);
        meter.opened(false);
        meter.opened(false);
        meter.waited(Duration::from_millis(40));
        meter.failed(&ErrorClass::Disk(28));
        let named = Named { reference: "r\"\n".into(), digest: "sha256:00".into(), mountpoint: "/mnt".into() };
        let look = || Snapshot { layers: vec![("cached", 2), ("absent", 0)], waiting: 3, restarts: 4, mismatches: 1 };
        let registry = meter.registry(named, Box::new(look)).expect("it counts");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a String takes all");
        for line in [
            "kitfs_mount_info{reference=\"r\\\"\\n\",digest=\"sha256:00\",mountpoint=\"/mnt\"} 1",
            "kitfs_fetched_bytes_total 7",
            "kitfs_served_bytes_total 5",
            "kitfs_opens_total{by=\"kernel\"} 1",
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
        assert!(
            Meter::default()
                .registry(Named { reference: String::new(), digest: String::new(), mountpoint: String::new() }, Box::new(Snapshot::default))
                .is_none()
        );
    }
}
