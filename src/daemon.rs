//! Starting the supervisor, from both sides.
//!
//! `kitfs mount` runs its own program again, in a session of its own, with three descriptors: the sealed plan, a pipe for what it has to say until it serves,
//! and the lock that says that the mount lives. Everything else of the caller is closed, or `out=$(kitfs mount …)` would never return. With `--foreground`
//! the supervisor takes this process's place instead and speaks to systemd; on a terminal it is a child that is attended to, since of what is shown there
//! only one process can know.
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

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::clock::timespec;
use crate::failure::{acts_on_a_terminal, chain};
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

/// Where systemd says that it waits.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// A mount that serves.
#[derive(Debug)]
pub struct Started {
    /// Its supervisor.
    pub pid: u32,
    /// Its folder in the run directory.
    pub mount: MountDir,
    child: Child,
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
    /// It logs to standard error. Without a pipe, nobody waits but systemd.
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

/// Starts the mount of `plan` as a child that does not outlive this thread and says all that it has to say to `stderr`, and returns when it serves.
pub fn start_attended(plan: &MountPlan, stderr: OwnedFd, interrupts: &Interrupts) -> Result<Started, StartError> {
    let program = Program { attended: Some(stderr.into()), ..Program::own() };
    start_program(&program, plan, interrupts.as_fd(), READY_SILENCE, &mut |_| {})
}

impl Started {
    /// Stays with the supervisor until it ends; an interrupt asks it to. Calls `meanwhile` now and then, `every` so often at least.
    pub fn attend(&mut self, interrupts: &Interrupts, every: Duration, meanwhile: &mut dyn FnMut()) -> io::Result<ExitStatus> {
        let child = handle(&self.child)?;
        loop {
            let mut fds = [PollFd::new(&child, PollFlags::IN), PollFd::new(interrupts, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(every))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if !fds[0].revents().is_empty() {
                return self.child.wait();
            }
            if !fds[1].revents().is_empty() {
                interrupts.take();
                signal(&self.child, Signal::TERM)?;
            }
            meanwhile();
        }
    }
}

/// Whether systemd waits to hear from us.
pub fn is_service() -> bool {
    std::env::var_os(NOTIFY_SOCKET).is_some()
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
        Some(number) => Ready::from_fd(take(number)?),
        None => Ready::foreground(),
    };
    let mount = RunDir::open(&plan.mounting.run_dir)?.mount(&plan.mounting.id)?;
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
                    tracing::error!(%error, reason = message, "nobody hears why the mount failed");
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
    /// Whoever starts it stays, and hears here what it has to say.
    attended: Option<File>,
}

impl Program {
    fn own() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: Vec::new(), attended: None }
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
        if self.attended.is_some() {
            command.arg("--foreground");
        }
        let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
        let attended = self.attended.is_some();
        let prepare = move || {
            if own_session {
                rustix::process::setsid()?;
            }
            if attended {
                // One that dies before this is noticed at the pipe for readiness.
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
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
        let log = match &program.attended {
            Some(stderr) => stderr.try_clone()?,
            None if stderr_is_journal() => io::stderr().as_fd().try_clone_to_owned()?.into(),
            None => File::options().append(true).create(true).open(mount.log_path())?,
        };
        command.stdout(log.try_clone()?).stderr(log);
        // Readiness is told to us; systemd hears it when we return.
        command.env_remove(NOTIFY_SOCKET);
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
    outcome.map(|()| Started { pid: child.id(), mount, child })
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
    let created = RunDir::open(&plan.mounting.run_dir).and_then(|run| run.create(&plan.mounting.id));
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
pub(crate) fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
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

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if acts_on_a_terminal(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn failed(message: String) -> StartError {
    StartError { message, hint: None, exit_code: 1 }
}

fn cannot(what: &str, error: &io::Error) -> StartError {
    failed(format!("cannot {what}: {error}"))
}

#[cfg(test)]
mod tests;
