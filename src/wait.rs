//! Replies that wait for a layer, and the one thread that looks after their callers.
//!
//! A parked request holds nothing but its reply. It ends in one of five ways: the layer came, the layer failed, its caller was
//! signalled, its deadline passed, or the mount is being taken down. The kernel cannot be asked whether a caller was signalled (fuser
//! answers FUSE_INTERRUPT by itself), so the watcher reads `/proc/<pid>/status` of every caller ten times a second.
//!
//! This module does not know what is waited for, beyond that two equal [`Need`]s are the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::clock::Lived;
use crate::limits::{FOREIGN_CALLER_SILENCE, KERNEL_TIMEOUT_MARGIN, PARKED_MAX, WATCH_INTERVAL};
use crate::metrics::Meter;
use crate::tree::Group;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// The names and sizes in a group's layers.
    Names(Group),
    /// A layer's content, by slot.
    Content(u16),
}

/// Who waits, as the kernel names him.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The thread's id in our PID namespace; 0 if it lives in none that we can see.
    pub pid: u32,
    /// What it waits in.
    pub call: Call,
}

/// Kinds of system calls that differ in which signals end them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `open` and `opendir`, whose callers expect EINTR.
    Open,
    /// Everything else; `stat` and the like, whose callers do not.
    Other,
}

/// What continues a request, on whichever thread ends its wait.
pub type Resume = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// How many bytes of what is needed have come so far; a growing number keeps callers without a visible process waiting.
pub type Fetched = Box<dyn Fn(Need) -> u64 + Send + Sync>;

/// Told after each round over the waiting requests how many there are, and once when there are none left.
pub type Watched = Box<dyn Fn(usize) + Send + Sync>;

/// All parked requests of a mount.
pub struct Waiters {
    inner: Mutex<Inner>,
    arrived: Condvar,
    fetched: Fetched,
    watched: Watched,
    meter: Meter,
    /// Longest time that the kernel lets a request wait before it aborts the connection.
    patience: Option<Duration>,
}

#[derive(Default)]
struct Inner {
    parked: HashMap<Need, Vec<Parked>>,
    count: usize,
    stopping: bool,
    watching: bool,
    /// The watcher's time: when it and the fetch were stopped, nobody was silent.
    lived: Lived,
}

struct Parked {
    caller: Caller,
    since: Instant,
    /// For callers without a visible process: when something last came, and how much there was.
    progress: (Duration, u64),
    resume: Resume,
}

impl Waiters {
    /// No waiter yet.
    pub fn new(fetched: Fetched, watched: Watched, meter: Meter) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            arrived: Condvar::new(),
            fetched,
            watched,
            meter,
            patience: kernel_patience(Path::new(SETTINGS)),
        })
    }

    /// Lets a request wait. `resume` is called exactly once, at once if there is no room for it or the mount is going down. The caller
    /// asks for what is needed *after* this, so that an arrival cannot be missed.
    pub fn park(self: &Arc<Self>, need: Need, caller: Caller, resume: Resume) {
        let now = Instant::now();
        let mut inner = self.lock();
        let refused = if inner.stopping {
            Some(Errno::NODEV)
        } else if inner.count >= PARKED_MAX {
            tracing::warn!(parked = inner.count, limit = PARKED_MAX, "too many requests wait for layers");
            Some(Errno::BUSY)
        } else {
            None
        };
        if let Some(errno) = refused {
            drop(inner);
            return resume(Err(errno));
        }
        inner.count += 1;
        let lived = inner.lived.passed();
        inner.parked.entry(need).or_default().push(Parked { caller, since: now, progress: (lived, 0), resume });
        if !inner.watching {
            inner.watching = true;
            let waiters = Arc::clone(self);
            let watcher = thread::Builder::new().name("watch".into()).spawn(move || waiters.watch());
            if let Err(error) = watcher {
                // Without a watcher a wait could not be interrupted; better no wait at all.
                inner.watching = false;
                drop(inner);
                tracing::error!(%error, "cannot start the thread that watches waiting callers");
                self.release(need, Err(Errno::AGAIN));
            }
        }
        self.arrived.notify_all();
    }

    /// Ends every wait for `need`.
    pub fn release(&self, need: Need, outcome: Result<(), Errno>) {
        let released = {
            let mut inner = self.lock();
            let released = inner.parked.remove(&need).unwrap_or_default();
            inner.count -= released.len();
            released
        };
        for parked in released {
            self.meter.waited(parked.since.elapsed());
            (parked.resume)(outcome);
        }
    }

    /// While `stopping`, nothing waits: whoever does now, or comes later, gets ENODEV.
    pub fn stop(&self, stopping: bool) {
        let released = {
            let mut inner = self.lock();
            inner.stopping = stopping;
            if !stopping {
                return;
            }
            inner.count = 0;
            std::mem::take(&mut inner.parked)
        };
        for parked in released.into_values().flatten() {
            self.meter.waited(parked.since.elapsed());
            (parked.resume)(Err(Errno::NODEV));
        }
    }

    /// True if somebody waits for `need`.
    pub fn is_wanted(&self, need: Need) -> bool {
        self.lock().parked.contains_key(&need)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic aborts the worker, so a poisoned lock can only be met in tests.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        loop {
            let mut inner = self.lock();
            while inner.count == 0 {
                (self.watched)(0);
                inner = self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            (self.watched)(inner.count);
            drop(inner);
            thread::sleep(WATCH_INTERVAL);
            for (resume, errno) in self.ended() {
                resume(Err(errno));
            }
        }
    }

    /// Takes out every request whose caller was signalled or whose time is up.
    fn ended(&self) -> Vec<(Resume, Errno)> {
        let now = Instant::now();
        // Outside of the lock: reading /proc for many callers takes a while.
        let (pids, needs) = {
            let inner = self.lock();
            let pids: Vec<u32> = inner.parked.values().flatten().map(|parked| parked.caller.pid).collect();
            (pids, inner.parked.keys().copied().collect::<Vec<_>>())
        };
        let signals: HashMap<u32, Signals> = pids.into_iter().filter(|&pid| pid != 0).map(|pid| (pid, Signals::of(pid))).collect();
        let fetched: HashMap<Need, u64> = needs.into_iter().map(|need| (need, (self.fetched)(need))).collect();
        let mut ended = Vec::new();
        let mut inner = self.lock();
        let lived = inner.lived.look(now);
        for (need, parked) in &mut inner.parked {
            let fetched = fetched.get(need).copied().unwrap_or_default();
            let taken = parked.extract_if(.., |parked| {
                if fetched != parked.progress.1 {
                    parked.progress = (lived, fetched);
                }
                parked.verdict(now, lived, &signals, self.patience).is_some()
            });
            for parked in taken {
                self.meter.waited(now.duration_since(parked.since));
                let errno = parked.verdict(now, lived, &signals, self.patience).unwrap_or(Errno::INTR);
                ended.push((parked.resume, errno));
            }
        }
        inner.parked.retain(|_, parked| !parked.is_empty());
        inner.count -= ended.len();
        ended
    }
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters").field("count", &self.lock().count).finish_non_exhaustive()
    }
}

impl Parked {
    fn verdict(&self, now: Instant, lived: Duration, signals: &HashMap<u32, Signals>, patience: Option<Duration>) -> Option<Errno> {
        if patience.is_some_and(|patience| now.duration_since(self.since) >= patience) {
            return Some(Errno::TIMEDOUT);
        }
        if self.caller.pid == 0 {
            let silent = lived.saturating_sub(self.progress.0) >= FOREIGN_CALLER_SILENCE;
            return silent.then_some(Errno::TIMEDOUT);
        }
        signals.get(&self.caller.pid)?.end(self.caller.call).then_some(Errno::INTR)
    }
}

/// The signal masks of a thread, as `/proc/<pid>/status` shows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn of(pid: u32) -> Self {
        // A caller that cannot be looked at (gone already, or hidden from us) is as good as not signalled: its wait has other ends.
        std::fs::read_to_string(format!("/proc/{pid}/status")).map(|status| Self::parse(&status)).unwrap_or_default()
    }

    fn parse(status: &str) -> Self {
        let mut signals = Self::default();
        for line in status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or_default();
            match key {
                "SigPnd" | "ShdPnd" => signals.pending |= mask(),
                "SigBlk" => signals.blocked = mask(),
                "SigIgn" => signals.ignored = mask(),
                "SigCgt" => signals.caught = mask(),
                _ => {}
            }
        }
        signals
    }

    /// True if a wait in `call` has to end. A looser rule makes `os.path.exists` answer False under a SIGALRM or SIGCHLD that its process
    /// handles; a stricter one leaves Ctrl-C without effect.
    fn end(&self, call: Call) -> bool {
        let bit = |signal: i32| 1u64 << (signal - 1);
        let pending = self.pending & !(self.blocked & !bit(libc::SIGKILL)) & !self.ignored;
        let harmless =
            [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let kills_by_default = !harmless.into_iter().map(bit).fold(0, |mask, signal| mask | signal);
        let kills = pending & !self.caught & kills_by_default;
        let mut asks = bit(libc::SIGINT);
        if call == Call::Open {
            asks |= bit(libc::SIGTERM) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);
        }
        kills != 0 || pending & self.caught & asks != 0
    }
}

/// Where the kernel keeps its limits for requests.
pub const SETTINGS: &str = "/proc/sys/fs/fuse";

/// How long the kernel lets a request wait before it aborts the whole connection, if `settings` tell it to have such a limit.
pub fn kernel_limit(settings: &Path) -> Option<Duration> {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(settings.join(name)).ok()?;
        text.trim().parse::<u64>().ok().filter(|&seconds| seconds > 0)
    };
    [limit("default_request_timeout"), limit("max_request_timeout")].into_iter().flatten().min().map(Duration::from_secs)
}

/// How long we let it wait, so that it gets an answer before that.
fn kernel_patience(settings: &Path) -> Option<Duration> {
    let limit = kernel_limit(settings)?;
    // A limit below the margin leaves no good choice; half of it is still an answer instead of an abort.
    Some(limit.checked_sub(KERNEL_TIMEOUT_MARGIN).filter(|rest| !rest.is_zero()).unwrap_or(limit / 2))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn status(pending: i32, blocked: i32, ignored: i32, caught: i32) -> Signals {
        let mask = |signal: i32| if signal == 0 { 0 } else { 1u64 << (signal - 1) };
        let text = format!(
            "Name:\tx\nSigPnd:\t{:016x}\nShdPnd:\t0000000000000000\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
            mask(pending),
            mask(blocked),
            mask(ignored),
            mask(caught)
        );
        Signals::parse(&text)
    }

    #[test]
    fn only_signals_that_mean_it_end_a_wait() {
        use libc::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, SIGUSR1};
        // pending, blocked, ignored, caught; ends an open, ends anything else
        for (pending, blocked, ignored, caught, open, other) in [
            (0, 0, 0, 0, false, false),
            (SIGKILL, 0, 0, 0, true, true),
            (SIGTERM, 0, 0, 0, true, true),
            (SIGUSR1, 0, 0, 0, true, true),
            (SIGALRM, 0, 0, 0, true, true),
            (SIGINT, 0, 0, SIGINT, true, true),
            (SIGTERM, 0, 0, SIGTERM, true, false),
            (SIGHUP, 0, 0, SIGHUP, true, false),
            (SIGQUIT, 0, 0, SIGQUIT, true, false),
            (SIGALRM, 0, 0, SIGALRM, false, false),
            (SIGCHLD, 0, 0, SIGCHLD, false, false),
            (SIGCHLD, 0, 0, 0, false, false),
            (SIGSTOP, 0, 0, 0, false, false),
            (SIGTERM, SIGTERM, 0, 0, false, false),
            (SIGINT, 0, SIGINT, 0, false, false),
        ] {
            let signals = status(pending, blocked, ignored, caught);
            assert_eq!(signals.end(Call::Open), open, "open {signals:?}");
            assert_eq!(signals.end(Call::Other), other, "other {signals:?}");
        }
    }

    #[test]
    fn a_caller_whom_nobody_can_see_is_not_given_up_for_a_time_in_which_nothing_ran() {
        let begin = Instant::now();
        let caller = Caller { pid: 0, call: Call::Open };
        let parked = Parked { caller, since: begin, progress: (Duration::from_secs(1), 0), resume: Box::new(|_| {}) };
        let verdict = |lived| parked.verdict(begin + Duration::from_secs(3600), lived, &HashMap::new(), None);
        assert_eq!(verdict(Duration::from_secs(2)), None);
        assert_eq!(verdict(FOREIGN_CALLER_SILENCE), None);
        assert_eq!(verdict(FOREIGN_CALLER_SILENCE + Duration::from_secs(1)), Some(Errno::TIMEDOUT));
    }

    fn waiters() -> Arc<Waiters> {
        Waiters::new(Box::new(|_| 0), Box::new(|_| {}), Meter::default())
    }

    fn parked(waiters: &Arc<Waiters>, need: Need) -> mpsc::Receiver<Result<(), Errno>> {
        let (sender, receiver) = mpsc::channel();
        let caller = Caller { pid: std::process::id(), call: Call::Other };
        waiters.park(need, caller, Box::new(move |outcome| sender.send(outcome).expect("the test listens")));
        receiver
    }

    #[test]
    fn a_wait_ends_with_what_it_waited_for_and_no_other() {
        let waiters = waiters();
        let mine = parked(&waiters, Need::Content(1));
        let other = parked(&waiters, Need::Content(2));
        waiters.release(Need::Content(1), Ok(()));
        assert_eq!(mine.recv(), Ok(Ok(())));
        assert!(other.try_recv().is_err() && waiters.is_wanted(Need::Content(2)));
        waiters.release(Need::Content(2), Err(Errno::IO));
        assert_eq!(other.recv(), Ok(Err(Errno::IO)));
    }

    #[test]
    fn stopping_ends_all_waits_and_refuses_new_ones_until_it_is_taken_back() {
        let waiters = waiters();
        let before = parked(&waiters, Need::Content(1));
        waiters.stop(true);
        assert_eq!(before.recv(), Ok(Err(Errno::NODEV)));
        assert_eq!(parked(&waiters, Need::Content(1)).recv(), Ok(Err(Errno::NODEV)));
        waiters.stop(false);
        let after = parked(&waiters, Need::Content(1));
        assert!(after.try_recv().is_err());
        waiters.release(Need::Content(1), Ok(()));
        assert_eq!(after.recv(), Ok(Ok(())));
    }

    #[test]
    fn a_killed_caller_is_gone_within_a_second() {
        let waiters = waiters();
        // A child that waits in a state where its pending signal can be seen: stopped, then signalled.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop");
        while !std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("alive").contains(") T ") {
            thread::yield_now();
        }
        let (sender, receiver) = mpsc::channel();
        let caller = Caller { pid: child.id(), call: Call::Other };
        waiters.park(Need::Content(1), caller, Box::new(move |outcome| sender.send(outcome).expect("the test listens")));
        assert!(receiver.recv_timeout(3 * WATCH_INTERVAL).is_err(), "a stopped caller waits on");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("term");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(1)), Ok(Err(Errno::INTR)));
        child.kill().expect("kill");
        child.wait().expect("reap");
    }
}
