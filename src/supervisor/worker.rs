//! A worker as its supervisor sees it: a process, the conversation with it, and how it ended.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::program::Chosen;
use super::session::Mounted;
use crate::control::{Control, FromSupervisor};
use crate::log::Destination;
use crate::metrics::Bound;
use crate::page::Page;
use crate::plan::MountPlan;
use crate::store::Held;
use crate::worker::GAVE_WAY;

#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    pub(super) control: Control,
    /// The version of the program that it is.
    pub(super) version: String,
    /// It is not of the supervisor's own program.
    pub(super) succeeds: bool,
    /// It takes requests.
    pub(super) ready: bool,
    /// It answered every request that waited, and lets none wait.
    pub(super) stopped: bool,
    /// It was told from the beginning to let nobody wait.
    pub(super) began_stopping: bool,
    pub(super) killed: Option<Instant>,
    /// It has closed its end of the conversation.
    pub(super) mute: bool,
    /// Processes that the memory controller has killed in our group, when it started.
    oom_kills: Option<u64>,
}

/// What a worker is made of.
#[derive(Debug)]
pub(super) struct Makings<'a> {
    pub(super) program: Chosen,
    pub(super) plan: &'a MountPlan,
    pub(super) plan_fd: &'a OwnedFd,
}

/// Where a worker tells what it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlets<'a> {
    pub(super) log: &'a Destination,
    pub(super) metrics: Option<&'a Bound>,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// By itself, with this exit code.
    Exit(i32),
    /// By a signal; true if it was the memory controller's.
    Signal(i32, bool),
    /// It was killed and does not end: stuck in the kernel.
    Stuck,
}

impl Worker {
    /// Starts a worker and tells it where the last one stopped.
    pub(super) fn start(
        makings: Makings<'_>,
        outlets: Outlets<'_>,
        mounted: &Mounted,
        page: &Page,
        held: &BTreeMap<u16, Held>,
        begin: &FromSupervisor,
    ) -> io::Result<Self> {
        let Makings { program, plan, plan_fd } = makings;
        let (ours, theirs) = Control::pair()?;
        let device = mounted.device_for_worker()?;
        let mut inherited = vec![device.as_raw_fd(), page.as_fd().as_raw_fd(), theirs.as_fd().as_raw_fd(), plan_fd.as_raw_fd()];
        inherited.extend(outlets.metrics.map(|bound| bound.as_fd().as_raw_fd()));
        let mut command = Command::new(program.path);
        command.arg0("kitfs").arg("__worker");
        for (option, fd) in ["--device-fd", "--page-fd", "--control-fd", "--plan-fd", "--metrics-fd"].into_iter().zip(&inherited) {
            command.arg(option).arg(fd.to_string());
        }
        if let Destination::File(path) = outlets.log {
            command.arg("--log").arg(path);
        }
        if let Some(format) = plan.mounting.log_format {
            command.args(["--log-format", format.name()]);
        }
        command.arg("--mount-id").arg(mounted.mount_id.to_string()).arg(plan.mounting.mountpoint.as_os_str());
        command.stdin(Stdio::null()).current_dir("/");
        // SAFETY: between fork and exec only calls are made that are async-signal-safe; the descriptors are open in the parent.
        unsafe {
            command.pre_exec(move || {
                clear_signals()?;
                // A terminal's Ctrl-C and systemd's TERM reach the worker, too. The supervisor is who decides what they mean: without the worker
                // nothing could be taken down in good order.
                for signal in ENDING {
                    libc::signal(signal, libc::SIG_IGN);
                }
                for &fd in &inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let mut worker = Self {
            child,
            control: ours,
            version: program.version,
            succeeds: program.succeeds,
            ready: false,
            stopped: false,
            began_stopping: matches!(begin, FromSupervisor::Begin { stopping: true, .. }),
            killed: None,
            mute: false,
            oom_kills: oom_kills(),
        };
        if let Err(error) = worker.begin(held, begin) {
            // It counts as one that died before it served.
            tracing::error!(%error, pid = worker.pid(), "cannot tell the worker what to begin with");
            worker.kill();
        }
        Ok(worker)
    }

    fn begin(&self, held: &BTreeMap<u16, Held>, begin: &FromSupervisor) -> io::Result<()> {
        for (&slot, held) in held {
            self.control.send(&FromSupervisor::Adopt { slot }, Some(held))?;
        }
        self.control.send(begin, None)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells the worker; one that is gone need not know.
    pub(super) fn say(&self, message: &FromSupervisor) {
        if let Err(error) = self.control.send(message, None) {
            tracing::debug!(%error, "the worker is gone");
        }
    }

    /// True if the process is stopped by a signal or a debugger.
    pub(super) fn is_halted(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']))
    }

    pub(super) fn kill(&mut self) {
        self.killed = Some(Instant::now());
        if let Err(error) = self.child.kill() {
            tracing::debug!(%error, "the worker is gone");
        }
    }

    /// How it ended, if it has.
    pub(super) fn death(&mut self) -> Option<Death> {
        let status: ExitStatus = self.child.try_wait().ok()??;
        Some(match status.signal() {
            None => Death::Exit(status.code().unwrap_or(-1)),
            Some(signal) => {
                // A count that cannot be read does not count.
                let out_of_memory =
                    signal == libc::SIGKILL && matches!((self.oom_kills, oom_kills()), (Some(before), Some(now)) if now > before);
                Death::Signal(signal, out_of_memory)
            }
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker that is let go of while it lives hears the conversation end, detaches and ends; here it only must not stay a zombie.
        let _not_ended_yet = self.child.try_wait();
    }
}

impl Death {
    /// False for what somebody else did to it, and for making room for another one.
    pub(super) fn is_own_fault(&self) -> bool {
        !matches!(self, Self::Signal(libc::SIGKILL, false) | Self::Stuck | Self::Exit(GAVE_WAY))
    }

    /// True for what a request can have brought about: a panic, an abort, a bad memory access, or the last of the memory.
    pub(super) fn may_be_a_requests_fault(&self) -> bool {
        use libc::{SIGABRT, SIGBUS, SIGILL, SIGKILL, SIGSEGV};
        matches!(self, Self::Exit(PANICKED) | Self::Signal(SIGABRT | SIGSEGV | SIGBUS | SIGILL, _) | Self::Signal(SIGKILL, true))
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(_, true) => f.write_str("out of memory"),
            Self::Signal(signal, false) => write!(f, "signal {signal}"),
            Self::Stuck => f.write_str("killed, but stuck in the kernel"),
        }
    }
}

/// Soft limit of open descriptors to the hard one: each open layer has a few, for us and for the worker.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "limit of open descriptors stays as it is");
    }
}

/// Signals that ask for the end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// The exit code of a program whose main thread panicked.
const PANICKED: i32 = 101;

/// A descriptor that tells of ended children and of requests to end.
pub(super) fn signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read, and the calls only look at it. The mask is that of this thread, of
    // threads that it starts from here on, and of programs that do not set another one.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in ENDING.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Lets a program that is started take every signal: the mask that [`signals`] set would be inherited, and with it by every program that it starts. Called
/// between fork and exec.
pub(super) fn clear_signals() -> io::Result<()> {
    // SAFETY: `none` is initialised by sigemptyset before it is read; both calls are async-signal-safe.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    Ok(())
}

/// True if a signal came that asks for the end. Takes all that came.
pub(super) fn terminated(signals: &OwnedFd) -> bool {
    let mut asked = false;
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
    while let Ok(length) = rustix::io::read(signals, &mut buffer)
        && length == buffer.len()
    {
        let signal = u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        asked |= signal != libc::SIGCHLD as u32;
    }
    asked
}

/// How many processes the memory controller has killed in our group. None if it does not tell, which is so in the root group and in many containers.
fn oom_kills() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let count = |path: String| parse_oom_kills(&std::fs::read_to_string(path).ok()?);
    let second = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let first = groups.lines().filter_map(|line| line.split_once(':')).find_map(|(_, line)| line.strip_prefix("memory:"));
    let second = second.and_then(|group| count(format!("/sys/fs/cgroup{group}/memory.events")));
    second.or_else(|| first.and_then(|group| count(format!("/sys/fs/cgroup/memory{group}/memory.oom_control"))))
}

/// Both versions of control groups have such a line.
fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_deaths_are_held_against_requests_and_workers() {
        for (death, own, request) in [
            (Death::Exit(0), true, false),
            (Death::Exit(GAVE_WAY), false, false),
            (Death::Exit(PANICKED), true, true),
            (Death::Signal(libc::SIGABRT, false), true, true),
            (Death::Signal(libc::SIGSEGV, false), true, true),
            (Death::Signal(libc::SIGBUS, false), true, true),
            (Death::Signal(libc::SIGKILL, true), true, true),
            (Death::Signal(libc::SIGKILL, false), false, false),
            (Death::Signal(libc::SIGTERM, false), true, false),
            (Death::Stuck, false, false),
        ] {
            assert_eq!((death.is_own_fault(), death.may_be_a_requests_fault()), (own, request), "{death}");
        }
    }

    #[test]
    fn kills_are_counted_as_both_versions_of_control_groups_write_them() {
        assert_eq!(parse_oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(parse_oom_kills("under_oom 0\n"), None);
    }
}
