//! Other processes, every one with a limit: a test that waits for a broken mount must fail, not hang.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::panic;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// The exit code; -1 for a process that a signal ended.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Panics with everything that was said unless it ended well.
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self
    }
}

/// A process that runs beside the test and is killed with it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    started: Instant,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts it with its output into files, so that nobody who inherits them can make the test wait.
    pub fn start(command: &mut Command) -> Self {
        let (stdout, stderr) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let what = format!("{command:?}");
        command.stdin(Stdio::null());
        command.stdout(stdout.try_clone().expect("a descriptor")).stderr(stderr.try_clone().expect("a descriptor"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        Self { child, what, started: Instant::now(), stdout, stderr }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid(), signal);
    }

    /// What it has said on stdout so far.
    pub fn said(&mut self) -> String {
        read_all(&mut self.stdout)
    }

    /// Waits until it ends; panics when that takes longer than `limit`.
    pub fn wait(mut self, limit: Duration) -> Output {
        let Some(status) = wait_bounded(&mut self.child, limit) else {
            let state = proc_state(self.pid());
            panic!("{} did not end within {limit:?} ({state})\nstderr: {}", self.what, read_all(&mut self.stderr));
        };
        let took = self.started.elapsed();
        Output { status, stdout: read_all(&mut self.stdout), stderr: read_all(&mut self.stderr), took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = wait_bounded(&mut self.child, Duration::from_secs(5));
        }
    }
}

/// Runs it to its end, which must come within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    Running::start(command).wait(limit)
}

/// Runs a shell script.
pub fn sh(script: &str, limit: Duration) -> Output {
    run(Command::new("bash").args(["-c", script]), limit)
}

/// Runs a line of shell that makes the program `path` (`$1`; `more` is `$2`). What is to be executed is never written by this process: a program that another
/// test is about to start would have it open for writing, too, for a moment in which it cannot be executed.
pub fn make_program(line: &str, path: &Path, more: &OsStr) {
    run(Command::new("sh").args(["-c", line, "sh"]).arg(path).arg(more), Duration::from_secs(60)).ok();
}

/// Runs a Python script with arguments, which must end within `limit`.
pub fn python(script: &str, arguments: &[&OsStr]) -> Command {
    require("python3", "apt-get install python3");
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).args(arguments);
    command
}

/// Runs `work` on a thread of its own; panics when it takes longer than `limit`, leaving the thread behind.
pub fn within<T: Send + 'static>(limit: Duration, what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = work();
        // Nobody listens any more if it took too long.
        let _ = sender.send(());
        result
    });
    match receiver.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} did not end within {limit:?}"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(result) => result,
            Err(payload) => panic::resume_unwind(payload),
        },
    }
}

/// Fails with what to install when a program is missing.
pub fn require(program: &str, cure: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()));
    assert!(found, "this test needs `{program}`: {cure}");
}

pub fn signal_process(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// Waits until a process that need not be our child has ended; false if it takes longer than `limit`.
pub fn await_end(pid: i32, limit: Duration) -> bool {
    let Some(Ok(fd)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return true };
    let timeout = Timespec::try_from(limit).expect("a time");
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("poll") > 0
}

/// Waits until a process waits for an answer of a FUSE filesystem; panics after half a minute.
pub fn await_blocked(process: &mut Running) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_blocked(process.pid()) {
        assert!(process.is_running(), "{} has ended instead of waiting: {}", process.what, read_all(&mut process.stderr));
        assert!(Instant::now() < until, "{} does not wait for the mount ({})", process.what, proc_state(process.pid()));
        // The kernel tells nobody that a process has begun to wait.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether any of a process's threads, or a child of it, waits for an answer of a FUSE filesystem.
pub fn is_blocked(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let waits = fs::read_to_string(task.path().join("wchan")).is_ok_and(|place| place.contains("request_wait_answer"));
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        waits || children.split_whitespace().any(|child| child.parse().is_ok_and(is_blocked))
    })
}

/// The `State:` line of a process, for messages.
pub fn proc_state(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("State:")).unwrap_or("gone").to_owned()
}

fn wait_bounded(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pid = i32::try_from(child.id()).expect("a pid");
    if await_end(pid, limit) { Some(child.wait().expect("our child")) } else { None }
}

fn read_all(file: &mut File) -> String {
    let mut content = Vec::new();
    // By position: the process writes through the same open file, and a seek of ours would move where it writes to.
    let mut chunk = [0; 64 << 10];
    loop {
        match file.read_at(&mut chunk, content.len() as u64).expect("a file") {
            0 => break,
            length => content.extend_from_slice(&chunk[..length]),
        }
    }
    String::from_utf8_lossy(&content).into_owned()
}
