//! Bars of what a mount prefetches, on a terminal. Nothing is fetched here: that is the worker's affair, which never makes room for what nobody waits for.
//!
//! With `--foreground` there are lines above them, of supervisor and workers. Those of one process tear the bars of another. So the mount is a child then, and
//! what it says comes through a pipe to the process that draws.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use indicatif::MultiProgress;
use rustix::pipe::{PipeFlags, pipe_with};

use super::error::CliError;
use super::fetch::{self, Display, LOOK_EVERY};
use super::report::{self, Exit};
use crate::daemon;
use crate::interrupt::Interrupts;
use crate::kit::{KitLayer, Lineage};
use crate::limits::{LINE_BYTES, STOP_LIMIT, WATCH_PATIENCE, WATCH_SILENCE};
use crate::plan::MountPlan;
use crate::run::{LayerReport, LayerStatus, MountDir};
use crate::store::{LayerState, Store};

/// Mounts, calls `serving` as soon as the mount serves, and stays until it ends.
pub(super) fn run(plan: &MountPlan, lineage: &Lineage, store: &Store, serving: impl FnOnce()) -> Result<Exit, CliError> {
    let interrupts = Interrupts::catch().map_err(CliError::Attend)?;
    let (lines, stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| CliError::Attend(errno.into()))?;
    let screen = Screen::default();
    let (sender, all_said) = mpsc::channel::<()>();
    let above = screen.clone();
    let relay = move || {
        let mut lines = BufReader::new(File::from(lines));
        loop {
            let mut line = Vec::new();
            // One that is longer goes on in the next.
            match (&mut lines).take(LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => above.say(String::from_utf8_lossy(&line).trim_end_matches('\n')),
            }
        }
        drop(sender);
    };
    thread::Builder::new().name("lines".into()).spawn(relay).map_err(CliError::Attend)?;

    let started = daemon::start_attended(plan, stderr, &interrupts);
    let ended = started.map(|mut started| {
        serving();
        let mount = started.mount.clone();
        let coming = coming(plan, lineage, store);
        let mut display = (!coming.is_empty()).then(|| Display::new(store, &coming, Some(screen.draw())));
        let ended = started.attend(&interrupts, LOOK_EVERY, &mut || {
            if let Some(shown) = &mut display
                && screen.done_if(|| look(shown, store, &reports(&mount)))
            {
                display = None;
            }
        });
        // What had not come by then is no news any more.
        screen.clear();
        ended
    });
    // A worker that is stuck in the kernel keeps the pipe open.
    _ = all_said.recv_timeout(STOP_LIMIT);
    let status = ended?.map_err(CliError::Attend)?;
    if status.code().is_none() {
        report::warning(&format!("the supervisor ended with {status}"));
    }
    Ok(if status.success() { Exit::Done } else { Exit::Failed })
}

/// Shows what a mount in the background prefetches, until nothing more of it comes. Neither depends on it: an interrupt ends the bars alone.
pub(super) fn watch(plan: &MountPlan, mount: &MountDir, lineage: &Lineage, store: &Store) {
    let coming = coming(plan, lineage, store);
    if coming.is_empty() {
        return;
    }
    report::note(&format!("{} is mounted; its layers come, and Ctrl-C ends these bars only", plan.mounting.mountpoint.display()));
    let bars = fetch::bars();
    let mut display = Display::new(store, &coming, Some(bars.clone()));
    let mut patience = Patience::new(Instant::now());
    loop {
        let reports = reports(mount);
        if look(&mut display, store, &reports) {
            break;
        }
        if !mount.is_alive().unwrap_or(false) {
            break;
        }
        if patience.is_over(Instant::now(), display.fetched(), reports) {
            _ = bars.clear();
            let left = report::counted(display.waiting().len() as u64);
            report::warning(&format!("{left} did not come, and the mount goes on without; `kitfs status` says how they stand"));
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    _ = bars.clear();
}

/// For how long it is worth looking on.
#[derive(Debug)]
struct Patience {
    /// When there was something to wait for last.
    busy: Instant,
    /// When something was another way last.
    changed: Instant,
    /// Bytes that had been fetched then, and how the layers stood.
    before: (u64, Vec<LayerReport>),
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { busy: now, changed: now, before: (0, Vec::new()) }
    }

    /// Takes note of how it stands at `now`, and says whether nothing more is to be expected.
    fn is_over(&mut self, now: Instant, fetched: u64, reports: Vec<LayerReport>) -> bool {
        if reports.iter().any(|report| matches!(report.state, LayerStatus::Waiting | LayerStatus::Fetching)) {
            self.busy = now;
        }
        let stands = (fetched, reports);
        if stands != self.before {
            (self.changed, self.before) = (now, stands);
        }
        now.duration_since(self.busy) >= WATCH_PATIENCE || now.duration_since(self.changed) >= WATCH_SILENCE
    }
}

/// What is prefetched and not here, each layer once.
fn coming<'a>(plan: &MountPlan, lineage: &'a Lineage, store: &Store) -> Vec<&'a KitLayer> {
    let prefetched = fetch::distinct(lineage, &plan.mounting.prefetch.of(&lineage.layers)).into_iter().map(|(_, layer)| layer);
    prefetched.filter(|layer| !is_here(store, layer)).collect()
}

/// Lines, and bars below them as long as something comes.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<Option<MultiProgress>>>);

impl Screen {
    /// Shows a line that the log has made so that it cannot speak to a terminal.
    fn say(&self, line: &str) {
        match &*self.bars() {
            // A terminal that is gone shows nothing.
            Some(bars) => _ = bars.println(line),
            None => report::line(line),
        }
    }

    /// From now on there are bars.
    fn draw(&self) -> MultiProgress {
        self.bars().insert(fetch::bars()).clone()
    }

    /// If `work` says so, there are no bars any more. Lines that come meanwhile wait.
    fn done_if(&self, work: impl FnOnce() -> bool) -> bool {
        let mut bars = self.bars();
        let done = work();
        if done {
            *bars = None;
        }
        done
    }

    /// The bars go.
    fn clear(&self) {
        if let Some(bars) = self.bars().take() {
            _ = bars.clear();
        }
    }

    fn bars(&self) -> MutexGuard<'_, Option<MultiProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the layers stand, as the worker wrote it down: not at all before it did, and when the mount is going.
fn reports(mount: &MountDir) -> Vec<LayerReport> {
    mount.read_layers().ok().flatten().unwrap_or_default()
}

/// Brings the bars up to date, and says whether nothing more is to come.
fn look(display: &mut Display<'_>, store: &Store, reports: &[LayerReport]) -> bool {
    display.look();
    for layer in display.waiting() {
        let failed = |report: &&LayerReport| report.digest == layer.spec.descriptor.digest && report.state == LayerStatus::Failed;
        if is_here(store, layer) {
            display.ended(&layer.spec.key(), None);
        } else if let Some(error) = reports.iter().find(failed).and_then(|report| report.error.as_ref()) {
            display.ended(&layer.spec.key(), Some(error));
        }
    }
    display.waiting().is_empty()
}

fn is_here(store: &Store, layer: &KitLayer) -> bool {
    store.state(&layer.spec.key()) == LayerState::Cached
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::digest::{Algorithm, Digest};

    fn stands(state: LayerStatus, fetched: u64) -> Vec<LayerReport> {
        vec![LayerReport {
            digest: Digest::of(Algorithm::Sha256, b"x"),
            media_type: "x/y".to_owned(),
            path: "data".to_owned(),
            size: 100,
            state,
            fetched,
            error: None,
            class: None,
            retry_at: None,
        }]
    }

    /// What is seen each second until nothing more is expected; `None` if something still is after `most` seconds.
    fn over_after(most: u64, seen: impl Fn(u64) -> (u64, Vec<LayerReport>)) -> Option<u64> {
        let begin = Instant::now();
        let mut patience = Patience::new(begin);
        (0..=most).find(|second| {
            let (fetched, reports) = seen(*second);
            patience.is_over(begin + Duration::from_secs(*second), fetched, reports)
        })
    }

    #[test]
    fn what_moves_is_looked_at_and_what_does_not_is_given_up() {
        let (patience, silence) = (WATCH_PATIENCE.as_secs(), WATCH_SILENCE.as_secs());
        let long = 100 * silence;
        // No worker writes anything down, or none of them wants the layers.
        assert_eq!(over_after(long, |_| (0, Vec::new())), Some(patience));
        assert_eq!(over_after(long, |_| (0, stands(LayerStatus::Absent, 0))), Some(patience));
        // In line, or fetched, and not a byte comes.
        assert_eq!(over_after(long, |_| (0, stands(LayerStatus::Waiting, 0))), Some(silence));
        assert_eq!(over_after(long, |_| (7, stands(LayerStatus::Fetching, 7))), Some(silence));
        // Bytes come, if slowly; or bars see them before the worker writes them down.
        assert_eq!(over_after(long, |second| (0, stands(LayerStatus::Fetching, second / (silence - 1)))), None);
        assert_eq!(over_after(long, |second| (second / (silence - 1), stands(LayerStatus::Fetching, 0))), None);
        // A worker dies in between, and another one goes on.
        let dies = |second| if second % patience == 0 { stands(LayerStatus::Fetching, second) } else { Vec::new() };
        assert_eq!(over_after(long, |second| (0, dies(second))), None);
        // It comes for a while and then nothing wants it.
        let left = |second| if second < 50 { stands(LayerStatus::Fetching, second) } else { stands(LayerStatus::Failed, 49) };
        assert_eq!(over_after(long, |second| (0, left(second))), Some(49 + patience));
    }
}
