//! What a worker does beside serving: it lets go of layers that nobody uses and of memory that was fetched with, and writes down for
//! `kitfs status` how each layer stands.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::SystemTime;

use crate::control::{Control, FromWorker};
use crate::fetch::Fetcher;
use crate::fs::{Fs, LayerStanding};
use crate::kit::KitLayer;
use crate::limits::HOUSE_INTERVAL;
use crate::log;
use crate::metrics::{Meter, Totals};
use crate::page::Page;
use crate::run::{LayerReport, LayerStatus, MountCounts, MountDir};
use crate::store::Store;
use crate::wait::Need;

/// What is counted, and by whom.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) meter: Meter,
    /// `None` while it cannot be opened.
    pub(super) store: Option<Store>,
    pub(super) page: Page,
}

impl Ledger {
    /// All that was counted in this worker, and what those before it had written down.
    fn counts(&self, before: &Totals) -> MountCounts {
        let store = self.store.as_ref();
        let evicted = store.map(Store::evicted).unwrap_or_default();
        let mut totals = Totals {
            verification_failures: store.map_or(0, Store::mismatches),
            evictions: evicted.layers,
            evicted_bytes: evicted.bytes,
            ..self.meter.totals()
        };
        totals += before;
        MountCounts { totals, waiting: self.page.parked().into(), cache_over_limit_bytes: store.map_or(0, Store::over_limit) }
    }
}

/// Keeps the house of one mount.
#[derive(Debug)]
pub(super) struct House {
    /// The filesystem tells it of failures, so it must not keep the filesystem alive.
    fs: Weak<Fs>,
    fetcher: Arc<Fetcher>,
    layers: Vec<KitLayer>,
    dir: MountDir,
    written: Mutex<Written>,
    ledger: Ledger,
    /// What workers before this one counted.
    before: Totals,
}

/// What stands in the run directory.
#[derive(Debug, Default)]
struct Written {
    layers: Vec<LayerReport>,
    counts: MountCounts,
}

impl House {
    pub(super) fn new(fs: &Arc<Fs>, fetcher: Arc<Fetcher>, layers: Vec<KitLayer>, dir: MountDir, ledger: Ledger) -> Self {
        let before = dir.read_counts().inspect_err(|error| tracing::warn!(%error, "counts of the mount")).ok().flatten();
        let before = before.map(|counts| counts.totals).unwrap_or_default();
        Self { fs: Arc::downgrade(fs), fetcher, layers, dir, written: Mutex::default(), ledger, before }
    }

    /// Looks after everything once in a while, for as long as there is a filesystem.
    pub(super) fn keep(&self, control: &Control) {
        while let Some(fs) = self.fs.upgrade() {
            fs.let_go_of_idle(&mut |slot| {
                let _supervisor_is_gone = control.send(&FromWorker::LetGo { slot }, None);
            });
            drop(fs);
            self.report();
            self.fetcher.tidy_up();
            log::tell_left_out();
            thread::sleep(HOUSE_INTERVAL);
        }
    }

    /// Writes down how the layers stand and what was counted, if that is not what is written.
    pub(super) fn report(&self) {
        let Some(fs) = self.fs.upgrade() else { return };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let reports: Vec<LayerReport> = (1..).zip(&self.layers).map(|(slot, layer)| report(&fs, slot, layer)).collect();
        if reports != written.layers {
            match self.dir.write_layers(&reports) {
                Ok(()) => written.layers = reports,
                Err(error) => tracing::warn!(%error, "state of the layers"),
            }
        }
        let counts = self.ledger.counts(&self.before);
        if counts != written.counts {
            match self.dir.write_counts(&counts) {
                Ok(()) => written.counts = counts,
                Err(error) => tracing::warn!(%error, "counts of the mount"),
            }
        }
    }
}

fn report(fs: &Fs, slot: u16, layer: &KitLayer) -> LayerReport {
    let descriptor = &layer.spec.descriptor;
    let (state, failed) = match fs.standing(slot) {
        LayerStanding::Absent => (LayerStatus::Absent, None),
        LayerStanding::Waiting => (LayerStatus::Waiting, None),
        LayerStanding::Fetching => (LayerStatus::Fetching, None),
        LayerStanding::Cached => (LayerStatus::Cached, None),
        LayerStanding::Failed(failed) => (LayerStatus::Failed, Some(failed)),
    };
    let fetched = match state {
        LayerStatus::Cached => descriptor.size,
        LayerStatus::Fetching => fs.fetched_bytes(Need::Content(slot)),
        _ => 0,
    };
    LayerReport {
        digest: descriptor.digest,
        media_type: descriptor.media_type.clone(),
        path: if layer.path.is_root() { ".".into() } else { layer.path.to_string() },
        size: descriptor.size,
        state,
        fetched,
        error: failed.as_ref().map(|failed| failed.message.clone()),
        class: failed.as_ref().map(|failed| failed.class),
        retry_at: failed.as_ref().map(|failed| timestamp(failed.retry_at)),
    }
}

fn timestamp(time: SystemTime) -> String {
    let second = |timestamp: jiff::Timestamp| timestamp.round(jiff::Unit::Second).unwrap_or(timestamp).to_string();
    jiff::Timestamp::try_from(time).map(second).unwrap_or_default()
}
