//! Starting the supervisor, from both sides.
//!
//! `kitfs mount` runs its own program again, in a session of its own, with three descriptors: the sealed plan, a pipe for what it has to say until it serves,
//! and the lock that says that the mount lives. Everything else of the caller is closed, or `out=$(kitfs mount …)` would never return. With `--foreground`
//! the supervisor takes this process's place instead and speaks to systemd.
//!
//! Until the supervisor says that it serves, the mount is the caller's: if the caller is interrupted, or gone, nothing stays mounted.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::failure::chain;
use crate::interrupt::Interrupts;
use crate::limits::{
    LOG_TAIL_BYTES, READY_MESSAGE_BYTES, READY_PIPE_BYTES, READY_PROGRESS_INTERVAL, READY_SILENCE, READY_TEXT_CHARS, STOP_LIMIT,
    SYSTEMD_EXTENSION,
};
use crate::log::{Destination, stderr_is_journal};
use crate::plan::MountPlan;
use crate::run::{Alive, MountDir, RunDir};

/// The hidden command that is the supervisor.
pub const SUPERVISOR_COMMAND: &str = "__supervisor";

/// A mount that serves.
#[derive(Debug)]
pub struct Started {
    /// Its supervisor.
    pub pid: u32,
    /// Its folder in the run directory.
    pub mount: MountDir,
}

/// Why it does not serve. Nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// In one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What the command is to end with.
    pub exit_code: u8,
}

/// What had to come before the mount can serve, and how much of it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that have come.
    pub fetched: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The arguments of the hidden command.
#[derive(Debug, Clone, clap::Args)]
pub struct SupervisorArgs {
    /// The descriptor of the sealed plan.
    #[arg(long)]
    pub plan_fd: RawFd,
    /// The descriptor of the lock that says that the mount lives.
    #[arg(long)]
    pub alive_fd: RawFd,
    /// The descriptor of the pipe to whoever waits for the mount to serve.
    #[arg(long, required_unless_present = "foreground")]
    pub ready_fd: Option<RawFd>,
    /// Nobody waits but systemd.
    #[arg(long)]
    pub foreground: bool,
}

/// What a supervisor starts with.
#[derive(Debug)]
pub struct Inherited {
    /// What it serves.
    pub plan: MountPlan,
    /// The folder of the mount.
    pub mount: MountDir,
    /// To be kept until the end.
    pub alive: Alive,
    /// To whom it says that it serves.
    pub ready: Ready,
    /// Where it logs to.
    pub log: Destination,
}

/// Whoever waits for the mount to serve.
#[derive(Debug)]
pub struct Ready {
    /// None: systemd and the terminal.
    pipe: Option<File>,
    /// When progress was told last.
    told: Mutex<Option<Instant>>,
}

/// Starts the mount of `plan` and returns when it serves; tells `progress` meanwhile. With `foreground` this process becomes the supervisor, and it
/// returns only if that fails.
pub fn start(plan: &MountPlan, foreground: bool, progress: &mut dyn FnMut(Progress)) -> Result<Started, StartError> {
    if foreground {
        return Err(become_supervisor(plan));
    }
    let interrupts = Interrupts::catch().map_err(|error| cannot("catch signals", &error))?;
    start_program(&Program::own(), plan, interrupts.as_fd(), READY_SILENCE, progress)
}

/// What the arguments of the hidden command stand for. Only once in a process, since it takes the descriptors.
pub fn inherit(args: &SupervisorArgs) -> io::Result<Inherited> {
    let numbers = [Some(args.plan_fd), Some(args.alive_fd), args.ready_fd];
    for (index, number) in numbers.iter().enumerate() {
        if number.is_some_and(|number| number <= 2) || (number.is_some() && numbers[..index].contains(number)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{SUPERVISOR_COMMAND} is started by `kitfs mount` only")));
        }
    }
    let plan = MountPlan::read(take(args.plan_fd)?)?;
    let alive = take(args.alive_fd)?;
    let ready = match args.ready_fd {
        Some(number) if !args.foreground => Ready::from_fd(take(number)?),
        _ => Ready::foreground(),
    };
    let mount = RunDir::open(&plan.run_dir)?.mount(&plan.id)?;
    let log = if args.foreground || stderr_is_journal() { Destination::Stderr } else { Destination::File(mount.log_path()) };
    // The program's file is called otherwise, since it was started by way of /proc/self/exe.
    let _only_a_name = rustix::thread::set_name(c"kitfs");
    Ok(Inherited { plan, mount, alive, ready, log })
}

impl Ready {
    /// Somebody reads from a pipe.
    pub fn from_fd(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe.into()), told: Mutex::default() }
    }

    /// Nobody waits but systemd, if that.
    pub fn foreground() -> Self {
        Self { pipe: None, told: Mutex::default() }
    }

    /// The mount serves. An error means that whoever waited is gone: the mount is to be taken down, nobody knows of it.
    pub fn ok(self) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) => say(pipe, &Said::Ok),
            None => {
                notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]);
                Ok(())
            }
        }
    }

    /// The mount will not serve, and this process ends with `exit_code`.
    pub fn failed(self, message: &str, hint: Option<&str>, exit_code: u8) {
        let cut = |text: &str| text.chars().take(READY_TEXT_CHARS).collect::<String>();
        match &self.pipe {
            Some(pipe) => {
                if let Err(error) = say(pipe, &Said::Failed { error: cut(message), hint: hint.map(cut), exit_code }) {
                    tracing::error!(%error, message, "nobody hears why the mount failed");
                }
            }
            None => {
                // The supervisor is the command here, so it is for it to speak to the user.
                let mut text = format!("error: {}\n", escaped(message));
                if let Some(hint) = hint {
                    text.push_str(&format!("hint: {}\n", escaped(hint)));
                }
                let _nobody_left_to_tell = io::stderr().write_all(text.as_bytes());
                notify(&[sd_notify::NotifyState::Status(&escaped(&cut(message)))]);
            }
        }
    }

    /// It takes longer, but bytes come. To be called with new numbers only; not each call is passed on. An error means that nobody waits any more.
    pub fn progress(&self, progress: Progress) -> io::Result<()> {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < READY_PROGRESS_INTERVAL) {
            return Ok(());
        }
        *told = Some(Instant::now());
        match &self.pipe {
            // A reader that is stopped must not stop us.
            Some(pipe) if ioctl_fionread(pipe)? < READY_PIPE_BYTES => say(pipe, &Said::Progress(progress)),
            Some(_) => Ok(()),
            None => {
                extend_start();
                Ok(())
            }
        }
    }
}

/// A line in the ready pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
enum Said {
    Progress(Progress),
    Ok,
    Failed { error: String, hint: Option<String>, exit_code: u8 },
}

/// What is run as the supervisor.
struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    fn own() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: Vec::new() }
    }

    /// The command, and the descriptors that it needs until it is started. Each of `passed` goes along as the value of its option.
    fn command(&self, passed: &[(&str, BorrowedFd<'_>)], own_session: bool) -> io::Result<(Command, Vec<OwnedFd>)> {
        let mut command = Command::new(&self.path);
        command.arg0("kitfs").args(&self.arguments).arg(SUPERVISOR_COMMAND).current_dir("/").stdin(Stdio::null());
        let mut kept = Vec::new();
        for (option, fd) in passed {
            let fd = fcntl_dupfd_cloexec(fd, FIRST_FREE)?;
            command.arg(option).arg(fd.as_raw_fd().to_string());
            kept.push(fd);
        }
        let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
        let prepare = move || {
            if own_session {
                rustix::process::setsid()?;
            }
            close_all_at_exec();
            for &number in &numbers {
                // SAFETY: `kept` holds it open until the command was started.
                fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: what runs between fork and exec makes system calls only: no allocation, no lock.
        unsafe { command.pre_exec(prepare) };
        Ok((command, kept))
    }
}

/// Above the standard streams.
const FIRST_FREE: RawFd = 3;

fn start_program(
    program: &Program,
    plan: &MountPlan,
    interrupts: BorrowedFd<'_>,
    silence: Duration,
    progress: &mut dyn FnMut(Progress),
) -> Result<Started, StartError> {
    let (mount, alive, sealed) = prepare(plan)?;
    let spawned = || -> io::Result<(Child, OwnedFd)> {
        let (ready, ready_of_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let passed = [("--plan-fd", sealed.as_fd()), ("--ready-fd", ready_of_child.as_fd()), ("--alive-fd", alive.as_fd())];
        let (mut command, _kept) = program.command(&passed, true)?;
        let log = if stderr_is_journal() {
            io::stderr().as_fd().try_clone_to_owned()?
        } else {
            File::options().append(true).create(true).open(mount.log_path())?.into()
        };
        command.stdout(log.try_clone()?).stderr(log);
        // Readiness is told to us; systemd hears it when we return.
        command.env_remove("NOTIFY_SOCKET");
        Ok((command.spawn()?, ready))
    };
    let (mut child, ready) = match spawned() {
        Ok(spawned) => spawned,
        Err(error) => {
            clear(&mount);
            return Err(cannot("start the supervisor", &error));
        }
    };
    let outcome = wait_until_ready(&mut child, &ready, interrupts, silence, &mount, progress);
    if outcome.is_err() {
        // It ends by itself after a failure that it told of; or it is told to.
        stop(&mut child);
        drop(alive);
        clear(&mount);
    }
    outcome.map(|()| Started { pid: child.id(), mount })
}

fn become_supervisor(plan: &MountPlan) -> StartError {
    let (mount, alive, sealed) = match prepare(plan) {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let passed = [("--plan-fd", sealed.as_fd()), ("--alive-fd", alive.as_fd())];
    let error = match Program::own().command(&passed, false) {
        Ok((mut command, _kept)) => command.arg("--foreground").exec(),
        Err(error) => error,
    };
    clear(&mount);
    cannot("start the supervisor", &error)
}

fn prepare(plan: &MountPlan) -> Result<(MountDir, Alive, OwnedFd), StartError> {
    let sealed = plan.seal().map_err(|error| cannot("seal the plan", &error))?;
    let created = RunDir::open(&plan.run_dir).and_then(|run| run.create(&plan.id));
    let (mount, alive) = created.map_err(|error| StartError {
        message: chain(&error),
        hint: Some("another run directory can be named with --run-dir".to_owned()),
        exit_code: 1,
    })?;
    Ok((mount, alive, sealed))
}

fn wait_until_ready(
    child: &mut Child,
    ready: &OwnedFd,
    interrupts: BorrowedFd<'_>,
    silence: Duration,
    mount: &MountDir,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), StartError> {
    let mut lines =
        Lines { pipe: File::from(ready.try_clone().map_err(|error| cannot("wait for the supervisor", &error))?), pending: Vec::new() };
    let mut heard = Instant::now();
    loop {
        let left = silence.saturating_sub(heard.elapsed());
        let mut fds = [PollFd::new(ready, PollFlags::IN), PollFd::from_borrowed_fd(interrupts, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return Err(failed(format!("the supervisor has said nothing for {} s{}", silence.as_secs(), last_words(mount)))),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(cannot("wait for the supervisor", &errno.into())),
        }
        // What was said counts before an interrupt that came with it: the mount serves, and somebody may know by now.
        if !fds[0].revents().is_empty() {
            match lines.next().map_err(|error| cannot("understand the supervisor", &error))? {
                Line::Said(Said::Ok) => return Ok(()),
                Line::Said(Said::Failed { error, hint, exit_code }) => {
                    return Err(StartError { message: error, hint, exit_code: exit_code.max(1) });
                }
                Line::Said(Said::Progress(came)) => {
                    heard = Instant::now();
                    extend_start();
                    progress(came);
                }
                Line::Part => {}
                Line::End => {
                    let how = ended(child, STOP_LIMIT).map_or_else(|| "hangs".to_owned(), |status| format!("ended with {status}"));
                    return Err(failed(format!("the supervisor {how} before the mount could serve{}", last_words(mount))));
                }
            }
        }
        if !fds[1].revents().is_empty() {
            return Err(failed("interrupted; nothing is mounted".to_owned()));
        }
    }
}

/// What came out of the ready pipe.
enum Line {
    Said(Said),
    Part,
    End,
}

struct Lines {
    pipe: File,
    pending: Vec<u8>,
}

impl Lines {
    /// The next line; reads once at most, and only as much as belongs to one line.
    fn next(&mut self) -> io::Result<Line> {
        let mut byte = [0];
        // Byte by byte, since what comes after the line must be seen by `poll` again. It is little.
        loop {
            match self.pipe.read(&mut byte) {
                Ok(0) => return Ok(Line::End),
                Ok(_) if byte == *b"\n" => return Ok(Line::Said(serde_json::from_slice(&std::mem::take(&mut self.pending))?)),
                Ok(_) => self.pending.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Line::Part),
                Err(error) => return Err(error),
            }
            if self.pending.len() > READY_MESSAGE_BYTES {
                return Err(io::Error::other(format!("a line of more than {READY_MESSAGE_BYTES} bytes")));
            }
            if ioctl_fionread(&self.pipe)? == 0 {
                return Ok(Line::Part);
            }
        }
    }
}

/// Ends a supervisor that does not serve yet: by asking, then by force.
fn stop(child: &mut Child) {
    if signal(child, Signal::TERM).is_ok() && ended(child, STOP_LIMIT).is_some() {
        return;
    }
    let _dead_already = child.kill();
    ended(child, STOP_LIMIT);
}

fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(handle(child)?, signal)?)
}

/// Waits until the child has ended.
fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let deadline = Instant::now() + limit;
    let handle = handle(child).ok()?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timespec(left))) {
            Ok(0) => return None,
            Ok(_) => return child.wait().ok(),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn handle(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("a child without a pid"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Removes what a supervisor left that never served: its mount, if it came that far, and its folder.
fn clear(mount: &MountDir) {
    if let Err(error) = mount.run_dir().clean_up_dead().and_then(|_| mount.remove()) {
        tracing::warn!(error = chain(&error), "cannot remove what is left of the mount");
    }
}

/// The last line of the log, which is about to be removed.
fn last_words(mount: &MountDir) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(mount.log_path())?;
        let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).lines().rfind(|line| !line.trim().is_empty()).map(escaped).unwrap_or_default())
    };
    match read() {
        Ok(line) if !line.is_empty() => format!("; it last said: {line}"),
        _ => String::new(),
    }
}

fn say(mut pipe: &File, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    pipe.write_all(&line)
}

/// Tells systemd, if it started us. It is no matter for the mount whether it hears.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd does not hear");
    }
}

fn extend_start() {
    notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(u32::try_from(SYSTEMD_EXTENSION.as_micros()).unwrap_or(u32::MAX))]);
}

/// Takes a descriptor that was inherited, and keeps it from being inherited further.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed only to find out whether it is open at all.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, was passed on for us by the argument that names it, and each argument is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Has every descriptor but the standard streams closed by the next exec. Called between fork and exec.
fn close_all_at_exec() {
    let (first, last, flags): (libc::c_uint, libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: it changes a flag of descriptors, which concerns nobody but the program that is started.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // Before Linux 5.11. Far more than a command that mounts has open.
    for number in FIRST_FREE..1024 {
        // SAFETY: the same; a number that is not open is an error that changes nothing.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn failed(message: String) -> StartError {
    StartError { message, hint: None, exit_code: 1 }
}

fn cannot(what: &str, error: &io::Error) -> StartError {
    failed(format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Lacking, Prefetch};
    use crate::source::SourceOptions;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// A plan in a run directory of its own, and the ends of a pipe that stands for interrupts.
    struct Stage {
        home: tempfile::TempDir,
        plan: MountPlan,
        interrupts: OwnedFd,
        interrupt: OwnedFd,
    }

    impl Stage {
        fn new() -> Self {
            let home = tempfile::tempdir().expect("folder");
            let digest: crate::digest::Digest = format!("sha256:{}", "0".repeat(64)).parse().expect("digest");
            let plan = MountPlan {
                id: crate::run::new_id(),
                mountpoint: "/nonexistent/kit".into(),
                reference: "reg.example/a:v1".to_owned(),
                shown_source: format!("reg.example/a:v1@{digest}"),
                digest,
                run_dir: home.path().join("run"),
                cache_dir: home.path().join("cache"),
                uid: 0,
                gid: 0,
                allow_other: false,
                no_passthrough: false,
                prefetch: Prefetch::None,
                access: SourceOptions::default(),
                manifest: b"{}".to_vec(),
                config: b"{}".to_vec(),
                lacking: Lacking::default(),
            };
            let (interrupts, interrupt) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
            Self { home, plan, interrupts, interrupt }
        }

        /// Starts a supervisor that is a shell script; the numbers of its descriptors are in `$PLAN`, `$READY` and `$ALIVE`.
        fn start(&self, script: &str, silence: Duration, progress: &mut dyn FnMut(Progress)) -> Result<Started, StartError> {
            let script = format!("PLAN=$3 READY=$5 ALIVE=$7; say() {{ printf '%s\\n' \"$1\" >/proc/self/fd/$READY; }}\n{script}");
            let program = Program { path: "/bin/sh".into(), arguments: ["-c", &script, "sh"].map(OsString::from).to_vec() };
            start_program(&program, &self.plan, self.interrupts.as_fd(), silence, progress)
        }

        fn fail(&self, script: &str, silence: Duration) -> StartError {
            let error = self.start(script, silence, &mut |_| {}).expect_err("it does not serve");
            assert!(std::fs::read_dir(&self.plan.run_dir).expect("run directory").next().is_none(), "something is left");
            error
        }
    }

    #[test]
    fn a_supervisor_that_serves_has_the_plan_and_the_lock_and_nothing_else() {
        let stage = Stage::new();
        let _not_to_be_inherited = fcntl_dupfd_cloexec(&stage.interrupt, 200).map(|fd| fcntl_setfd(&fd, FdFlags::empty()).map(|()| fd));
        let report = stage.home.path().join("report");
        let script = format!(
            "exec >{0}.new; echo $0 $1 $2 $4 $6; ls -mw0 /proc/$$/fd; echo 0 1 2 $PLAN $READY $ALIVE; pwd; \
             cut -d' ' -f6 /proc/$$/stat; echo $$; cat /proc/self/fd/$PLAN; mv {0}.new {0}; echo to the log >&2; say '{{\"say\":\"ok\"}}'; sleep 60",
            report.display()
        );
        let started = stage.start(&script, LONG, &mut |_| {}).expect("it serves");
        let text = std::fs::read_to_string(&report).expect("report");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "sh __supervisor --plan-fd --ready-fd --alive-fd");
        let numbers = |line: &str| {
            line.replace(',', " ")
                .split_whitespace()
                .map(|number| number.parse::<u32>().expect("number"))
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(numbers(lines[1]), numbers(lines[2]), "no other descriptor");
        assert_eq!(lines[3], "/");
        assert_eq!((lines[4], lines[5]), (started.pid.to_string().as_str(), started.pid.to_string().as_str()), "its own session");
        assert_eq!(serde_json::from_str::<MountPlan>(lines[6]).expect("plan").id, stage.plan.id);
        assert!(started.mount.is_alive().expect("known"), "the supervisor holds the lock now");
        assert_eq!(std::fs::read_to_string(started.mount.log_path()).expect("log"), "to the log\n");
        let pid = Pid::from_raw(started.pid as i32).expect("pid");
        rustix::process::kill_process_group(pid, Signal::KILL).expect("killed");
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).expect("waited");
        let deadline = Instant::now() + LONG;
        while started.mount.is_alive().expect("known") {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn a_supervisor_that_fails_says_why() {
        let failed = "say '{\"say\":\"failed\",\"error\":\"the digest is wrong\",\"hint\":\"ask for another\",\"exit_code\":4}'; exit 4";
        let error = Stage::new().fail(failed, LONG);
        assert_eq!(error, StartError { message: "the digest is wrong".to_owned(), hint: Some("ask for another".to_owned()), exit_code: 4 });
        let error = Stage::new().fail("say '{\"say\":\"failed\",\"error\":\"x\",\"hint\":null,\"exit_code\":0}'", LONG);
        assert_eq!(error.exit_code, 1, "no failure ends with 0");
    }

    #[test]
    fn a_supervisor_that_dies_without_a_word_is_quoted_from_its_log() {
        let error = Stage::new().fail("echo first >&2; printf 'panicked at \\033[31m\\n\\n' >&2; exit 7", LONG);
        assert!(error.message.contains("exit status: 7") && error.message.contains("it last said: panicked at \\u{1b}[31m"), "{error}");
        let error = Stage::new().fail("kill -9 $$", LONG);
        assert!(error.message.contains("signal: 9"), "{error}");
    }

    #[test]
    fn a_supervisor_that_is_silent_or_talks_nonsense_is_ended() {
        let error = Stage::new().fail("exec sleep 60", Duration::from_millis(100));
        assert!(error.message.contains("said nothing"), "{error}");
        for nonsense in ["say nonsense; exec sleep 60", "head -c 70000 /dev/zero >/proc/self/fd/$READY; exec sleep 60"] {
            let error = Stage::new().fail(nonsense, LONG);
            assert!(error.message.contains("understand"), "{error}");
        }
    }

    #[test]
    fn progress_comes_before_readiness_and_keeps_the_wait_going() {
        let stage = Stage::new();
        let mut seen = Vec::new();
        let script =
            "for n in 1 2 3; do say \"{\\\"say\\\":\\\"progress\\\",\\\"fetched\\\":$n,\\\"total\\\":3}\"; done; say '{\"say\":\"ok\"}'";
        stage.start(script, LONG, &mut |progress| seen.push((progress.fetched, progress.total))).expect("it serves");
        assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
    }

    #[test]
    fn an_interrupt_ends_what_does_not_serve_yet() {
        let stage = Stage::new();
        rustix::io::write(&stage.interrupt, b"x").expect("written");
        let error = stage.fail("exec sleep 60", LONG);
        assert!(error.message.contains("interrupted"), "{error}");
    }

    #[test]
    fn what_a_supervisor_says_is_what_is_understood() {
        let said = |say: &dyn Fn(Ready)| {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
            say(Ready::from_fd(theirs));
            let mut lines = Lines { pipe: File::from(ours), pending: Vec::new() };
            let mut all = Vec::new();
            loop {
                match lines.next().expect("understood") {
                    Line::Said(said) => all.push(said),
                    Line::Part => {}
                    Line::End => break all,
                }
            }
        };
        let half = Progress { fetched: 1, total: 2 };
        let all = said(&|ready| {
            ready.progress(half).expect("heard");
            ready.progress(half).expect("not passed on, so soon");
            ready.ok().expect("heard");
        });
        assert_eq!(all, [Said::Progress(half), Said::Ok]);
        let bad = "\u{1b}".repeat(100_000);
        let all = said(&|ready| ready.failed(&bad, Some(&bad), 5));
        let cut = "\u{1b}".repeat(READY_TEXT_CHARS);
        assert_eq!(all, [Said::Failed { error: cut.clone(), hint: Some(cut), exit_code: 5 }]);
    }

    #[test]
    fn a_supervisor_learns_that_nobody_waits_any_more() {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let ready = Ready::from_fd(theirs);
        drop(ours);
        assert!(ready.progress(Progress { fetched: 1, total: 2 }).is_err());
        assert!(ready.ok().is_err());
    }

    #[test]
    fn what_was_passed_is_taken_once_and_not_passed_on() {
        let stage = Stage::new();
        let (mount, alive) = RunDir::open(&stage.plan.run_dir).expect("run directory").create(&stage.plan.id).expect("made");
        let sealed = stage.plan.seal().expect("sealed");
        let (_ours, theirs) = pipe_with(PipeFlags::empty()).expect("pipe");
        let pass = |fd: OwnedFd| std::os::fd::IntoRawFd::into_raw_fd(fd);
        let args = SupervisorArgs { plan_fd: pass(sealed), alive_fd: pass(alive), ready_fd: Some(pass(theirs)), foreground: false };
        let inherited = inherit(&args).expect("all there");
        assert_eq!((inherited.plan.id.as_str(), inherited.log), (mount.id(), Destination::File(mount.log_path())));
        for fd in [inherited.alive.as_fd(), inherited.ready.pipe.as_ref().expect("a pipe").as_fd()] {
            assert_eq!(fcntl_getfd(fd).expect("open"), FdFlags::CLOEXEC);
        }
        for (plan_fd, alive_fd, ready_fd) in [(0, 5, Some(6)), (5, 5, Some(6)), (5, 6, Some(6)), (5, 6, Some(-1)), (1_000_000, 6, Some(7))]
        {
            assert!(inherit(&SupervisorArgs { plan_fd, alive_fd, ready_fd, foreground: false }).is_err());
        }
    }
}
