//! Layers into the cache, with progress for whoever watches.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Session;
use super::error::CliError;
use super::report::{self, escaped};
use crate::digest::Digest;
use crate::kit::{Kit, KitLayer};
use crate::limits;
use crate::source::Source;
use crate::store::{LayerState, StoreError, VerifiedLayer};

/// What is done with a layer that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Nothing more: it can be read.
    Usable,
    /// It is waited until it would survive a power cut.
    Durable,
}

/// Fetches those of a kit's layers that stand at `positions`, each digest once, several at a time. All are tried, whatever becomes of one.
///
/// `alive` is called now and then as long as bytes come.
pub(super) fn layers(
    session: &Session,
    kit: &Kit,
    positions: &[usize],
    source: &Arc<dyn Source>,
    until: Until,
    alive: &dyn Fn(),
) -> Result<Vec<VerifiedLayer>, CliError> {
    let mut wanted: Vec<&KitLayer> = Vec::new();
    for layer in positions.iter().filter_map(|position| kit.layers.get(*position)) {
        if !wanted.iter().any(|other| other.spec.descriptor.digest == layer.spec.descriptor.digest) {
            wanted.push(layer);
        }
    }
    let mut display = Display::new(session, &wanted);
    let mut outcomes = HashMap::new();
    let queue = Mutex::new(wanted.iter().copied().collect::<VecDeque<_>>());
    let (done, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..wanted.len().min(limits::PULLS_MAX) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(layer) = next() {
                    let outcome = one(session, layer, source, until);
                    if done.send((layer.spec.descriptor.digest, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        loop {
            match ended.recv_timeout(LOOK_EVERY) {
                Ok((digest, outcome)) => {
                    display.ended(&digest, &outcome);
                    outcomes.insert(digest, outcome);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if display.look() {
                        alive();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    collect(&wanted, outcomes)
}

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn one(session: &Session, layer: &KitLayer, source: &Arc<dyn Source>, until: Until) -> Result<VerifiedLayer, StoreError> {
    let verified = session.store.ensure(&layer.spec, source, session.runtime.handle())?;
    if until == Until::Durable {
        session.store.sync(&verified)?;
    }
    Ok(verified)
}

fn collect(wanted: &[&KitLayer], mut outcomes: HashMap<Digest, Result<VerifiedLayer, StoreError>>) -> Result<Vec<VerifiedLayer>, CliError> {
    let mut layers = Vec::new();
    let mut failures = Vec::new();
    for layer in wanted {
        match outcomes.remove(&layer.spec.descriptor.digest) {
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
enum Display<'a> {
    Bars { session: &'a Session, bars: Vec<(Digest, ProgressBar)>, fetched: u64 },
    Lines { session: &'a Session, waiting: Vec<&'a KitLayer>, fetched: u64 },
}

impl<'a> Display<'a> {
    fn new(session: &'a Session, layers: &[&'a KitLayer]) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { session, waiting: layers.to_vec(), fetched: 0 };
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let template = "{msg:30!} {bar:30} {binary_bytes:>11} of {binary_total_bytes:>11}  {binary_bytes_per_sec}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = layers.iter().map(|layer| {
            let bar = all.add(ProgressBar::new(layer.spec.descriptor.size));
            bar.set_style(style.clone());
            bar.set_message(escaped(&label(layer)));
            bar.tick();
            (layer.spec.descriptor.digest, bar)
        });
        Self::Bars { session, bars: bars.collect(), fetched: 0 }
    }

    /// Brings the display up to date, and says whether there is anything new.
    fn look(&mut self) -> bool {
        let fetched = |session: &Session, digest: &Digest| match session.store.state(digest) {
            LayerState::Fetching => session.store.progress(digest).map_or(0, |progress| progress.fetched),
            LayerState::Cached | LayerState::Absent => 0,
        };
        let (before, now) = match self {
            Self::Bars { session, bars, fetched: before } => {
                let mut now = 0;
                for (digest, bar) in bars.iter().filter(|(_, bar)| !bar.is_finished()) {
                    let bytes = fetched(session, digest);
                    bar.set_position(bytes);
                    now += bytes;
                }
                (before, now)
            }
            Self::Lines { session, waiting, fetched: before } => {
                (before, waiting.iter().map(|layer| fetched(session, &layer.spec.descriptor.digest)).sum())
            }
        };
        let news = *before != now;
        *before = now;
        news
    }

    fn ended(&mut self, digest: &Digest, outcome: &Result<VerifiedLayer, StoreError>) {
        match self {
            Self::Bars { bars, .. } => {
                for (_, bar) in bars.iter().filter(|(other, _)| other == digest) {
                    match outcome {
                        Ok(_) => bar.finish(),
                        Err(_) => bar.abandon_with_message("failed"),
                    }
                }
            }
            Self::Lines { waiting, .. } => {
                let Some(position) = waiting.iter().position(|layer| layer.spec.descriptor.digest == *digest) else { return };
                let layer = waiting.swap_remove(position);
                let mut line = format!("{digest} {} ({})", label(layer), BinaryBytes(layer.spec.descriptor.size));
                // Writing into a String cannot fail.
                _ = match outcome {
                    Ok(_) => write!(line, ": in the cache"),
                    Err(error) => write!(line, ": {error}"),
                };
                report::note(&line);
            }
        }
    }
}
