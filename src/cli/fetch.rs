//! Layers into the cache, with progress for whoever watches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use rustix::termios::tcgetwinsize;

use super::Session;
use super::error::CliError;
use super::report::{self, escaped};
use crate::kit::{KitLayer, Lineage};
use crate::layer::LayerKey;
use crate::resolve::Pinned;
use crate::source::Source;
use crate::store::{LayerState, Store, StoreError, VerifiedLayer};

/// What is done with a layer that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Nothing more: it can be read.
    Usable,
    /// It is waited until it would survive a power cut.
    Durable,
}

/// Fetches those layers of a kit, and of what it refers to, that stand at `positions`, each one once, several at a time. All are tried, whatever becomes of one.
///
/// `alive` is called now and then as long as bytes come, with how many did and how many there are.
pub(super) fn layers(
    session: &Session,
    pinned: &Pinned,
    positions: &[usize],
    until: Until,
    alive: &dyn Fn(u64, u64),
) -> Result<Vec<VerifiedLayer>, CliError> {
    let (mut wanted, mut jobs) = (Vec::<&KitLayer>::new(), VecDeque::new());
    for (position, layer) in distinct(&pinned.lineage, positions) {
        wanted.push(layer);
        jobs.push_back((layer, pinned.source_of(position)));
    }
    let total = wanted.iter().map(|layer| layer.spec.descriptor.size).fold(0, u64::saturating_add);
    let bars = report::is_screen().then(bars);
    let mut display = Display::new(&session.store, &wanted, bars);
    let mut outcomes = HashMap::new();
    let queue = Mutex::new(jobs);
    let (done, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..wanted.len().min(session.jobs) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some((layer, source)) = next() {
                    let outcome = one(session, layer, source, until);
                    if done.send((layer.spec.key(), outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut looked = Instant::now();
        loop {
            match ended.recv_timeout(LOOK_EVERY.saturating_sub(looked.elapsed())) {
                Ok((key, outcome)) => {
                    display.ended(&key, outcome.as_ref().err().map(|error| error as _));
                    outcomes.insert(key, outcome);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Layers that end one after the other do not keep it from being done.
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                let before = display.fetched;
                display.look();
                if display.fetched != before {
                    alive(display.fetched, total);
                }
            }
        }
    });
    collect(&wanted, outcomes)
}

/// The layers at `positions`, each one once, with where it comes first.
pub(super) fn distinct<'a>(lineage: &'a Lineage, positions: &[usize]) -> Vec<(usize, &'a KitLayer)> {
    let mut seen = HashSet::new();
    let layers = positions.iter().map(|&position| (position, &lineage.layers[position]));
    layers.filter(|(_, layer)| seen.insert(layer.spec.key())).collect()
}

/// Bars for a screen.
pub(super) fn bars() -> MultiProgress {
    MultiProgress::with_draw_target(ProgressDrawTarget::stderr())
}

/// How often progress is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

fn one(session: &Session, layer: &KitLayer, source: &Arc<dyn Source>, until: Until) -> Result<VerifiedLayer, StoreError> {
    let verified = session.store.ensure(&layer.spec, source, session.runtime.handle())?;
    if until == Until::Durable {
        session.store.sync(&verified)?;
    }
    Ok(verified)
}

fn collect(
    wanted: &[&KitLayer],
    mut outcomes: HashMap<LayerKey, Result<VerifiedLayer, StoreError>>,
) -> Result<Vec<VerifiedLayer>, CliError> {
    let mut layers = Vec::new();
    let mut failures = Vec::new();
    for layer in wanted {
        match outcomes.remove(&layer.spec.key()) {
            Some(Ok(verified)) => layers.push(verified),
            Some(Err(error)) => failures.push((layer, error)),
            None => {}
        }
    }
    let failed = failures.len();
    match failures.into_iter().next() {
        None => Ok(layers),
        Some((layer, source)) => Err(CliError::Layers { failed, all: wanted.len(), name: label(layer), source }),
    }
}

/// A layer as people know it: `dataset at data/train`.
fn label(layer: &KitLayer) -> String {
    format!("{} at {}", layer.kind, layer.path)
}

/// Bars on a terminal, lines elsewhere.
///
/// A layer has a bar for as long as it comes, and is a line when it is here: a kit can have more layers than a screen has lines.
pub(super) struct Display<'a> {
    store: &'a Store,
    /// Where bars are, if there is a screen.
    bars: Option<MultiProgress>,
    /// Layers that have not ended yet, with the bars of those of which something came.
    waiting: Vec<(&'a KitLayer, Option<ProgressBar>)>,
    /// The bar of all of them, if there are several.
    all: Option<ProgressBar>,
    /// Bytes of layers that ended.
    settled: u64,
    /// Bytes that have come in all.
    fetched: u64,
}

impl<'a> Display<'a> {
    /// One of layers that are to come, each one once.
    pub(super) fn new(store: &'a Store, layers: &[&'a KitLayer], bars: Option<MultiProgress>) -> Self {
        let waiting = layers.iter().map(|layer| (*layer, None)).collect();
        let total = layers.iter().map(|layer| layer.spec.descriptor.size).fold(0, u64::saturating_add);
        let several = bars.as_ref().filter(|_| layers.len() > 1);
        let is_here = |layer: &&&KitLayer| store.state(&layer.spec.key()) == LayerState::Cached;
        let all = several.map(|bars| {
            let here = layers.iter().filter(is_here).map(|layer| layer.spec.descriptor.size).fold(0, u64::saturating_add);
            bars.add(bar(&format!("all {} layers", layers.len()), total, here))
        });
        Self { store, bars, waiting, all, settled: 0, fetched: 0 }
    }

    /// Brings the display up to date.
    pub(super) fn look(&mut self) {
        let (mut coming, mut began): (u64, bool) = (0, false);
        for (layer, bar) in &mut self.waiting {
            let key = layer.spec.key();
            let state = self.store.state(&key);
            let fetched = match state {
                LayerState::Fetching => self.store.progress(&key).map_or(0, |progress| progress.fetched),
                // It is being written to disk still.
                LayerState::Cached => layer.spec.descriptor.size,
                LayerState::Absent => 0,
            };
            coming = coming.saturating_add(fetched);
            match (&self.bars, &bar) {
                (_, Some(bar)) => bar.set_position(fetched),
                (Some(bars), None) if fetched > 0 && state == LayerState::Fetching => {
                    let new = self::bar(&label(layer), layer.spec.descriptor.size, fetched);
                    *bar = Some(match &self.all {
                        Some(all) => bars.insert_before(all, new),
                        None => bars.add(new),
                    });
                    began = true;
                }
                _ => {}
            }
        }
        self.fetched = self.settled.saturating_add(coming);
        self.all.iter().for_each(|all| if began { begin(all, self.fetched) } else { all.set_position(self.fetched) });
    }

    /// Bytes that have come in all.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// Layers that have not ended yet.
    pub(super) fn waiting(&self) -> Vec<&'a KitLayer> {
        self.waiting.iter().map(|(layer, _)| *layer).collect()
    }

    /// Nothing more is to come of a layer: it is here, or failed.
    pub(super) fn ended(&mut self, key: &LayerKey, failed: Option<&dyn std::fmt::Display>) {
        let Some(position) = self.waiting.iter().position(|(layer, _)| layer.spec.key() == *key) else { return };
        let (layer, bar) = self.waiting.swap_remove(position);
        let size = layer.spec.descriptor.size;
        if failed.is_none() {
            self.settled = self.settled.saturating_add(size);
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        if self.waiting.is_empty() {
            self.all.iter().for_each(ProgressBar::finish_and_clear);
        }
        let became = failed.map_or_else(|| "in the cache".to_owned(), ToString::to_string);
        let line = format!("{} {} ({}): {became}", key.digest, label(layer), BinaryBytes(size));
        match &self.bars {
            Some(bars) => bars.suspend(|| report::note(&line)),
            None => report::note(&line),
        }
    }
}

/// Puts a bar where it begins: what was there before is no part of its rate.
fn begin(bar: &ProgressBar, position: u64) {
    bar.set_position(position);
    bar.tick();
    bar.reset_eta();
}

fn bar(name: &str, size: u64, position: u64) -> ProgressBar {
    let columns = tcgetwinsize(io::stderr()).map_or(u16::MAX, |size| size.ws_col);
    let style =
        ProgressStyle::with_template(if columns < WIDE { NARROW_BAR } else { WIDE_BAR }).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::hidden();
    bar.set_length(size);
    bar.set_style(style.with_key("left", left));
    bar.set_message(shortened(&escaped(name)));
    begin(&bar, position);
    bar
}

/// The end of a name tells layers of one kind apart.
fn shortened(name: &str) -> String {
    let over = name.chars().count().saturating_sub(NAME_SHOWN);
    if over == 0 { name.to_owned() } else { format!("…{}", name.chars().skip(over + 1).collect::<String>()) }
}

/// What a line shows: so wide without the bar itself that something of that can be seen from [`WIDE`] columns on.
const WIDE_BAR: &str = "{msg:24!} {wide_bar} {binary_bytes:>10} of {binary_total_bytes:>10} {binary_bytes_per_sec:>13} {left:>10}";
/// Columns of a usual terminal.
const WIDE: u16 = 80;
/// What it shows where there are fewer, as in a part of a screen: a line that is longer would go on in the next one.
const NARROW_BAR: &str = "{msg:24!} {percent:>3}% {left:>10}";
/// Characters that stand before a bar.
const NAME_SHOWN: usize = 24;

/// How long it takes yet, if that can be said.
fn left(state: &ProgressState, text: &mut dyn std::fmt::Write) {
    if state.pos() > 0 && !state.is_finished() {
        // A bar that cannot be drawn is no error.
        _ = write!(text, "{:#} left", HumanDuration(state.eta()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_at_a_bar_shows_no_rate_made_of_what_was_there_before() {
        let bar = bar("model", 64 << 20, 30 << 20);
        assert_eq!((bar.position(), bar.per_sec()), (30 << 20, 0.0));
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(shortened("dataset at data/a"), "dataset at data/a");
        assert_eq!(shortened("dataset at data/some/where/train-00017"), "…/some/where/train-00017");
        assert_eq!(shortened(&"é".repeat(99)).chars().count(), NAME_SHOWN);
    }
}
