//! Ending a mount on request: what `kitfs umount` asks a supervisor, and what it does when there is none left to ask.
//!
//! One connection to the supervisor's socket carries one request and one response, each a line of JSON. The supervisor takes the mount down itself, since
//! only it can let its waiting readers go first. This side looks afterwards whether the mount is really gone, and who holds it if it is not.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::timespec;
pub use crate::detach::{Detached, detach};
use crate::holders::holders;
pub use crate::holders::{Holder, Holding};
use crate::limits::{
    CONTROL_LINE_BYTES, CONTROL_LINE_LIMIT, SUPERVISOR_END_LIMIT, UMOUNT_ANSWER_LIMIT, UMOUNT_GONE_LIMIT, UMOUNT_PATIENCE,
    UNHEARD_REQUESTS_MAX,
};
use crate::mountinfo::{self, Changes, MountEntry};
use crate::run::{MountDir, MountRecord, RunDir, RunError};

/// What a supervisor is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// To take its mount down.
    Umount {
        /// Although files are open, which stay usable until they are closed.
        lazy: bool,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "response")]
pub enum Response {
    /// The mount is gone from its place.
    Done,
    /// It is gone, too, but that could not be recorded.
    Unrecorded {
        /// Why not.
        message: String,
    },
    /// Something has the mount in use; it stays.
    Busy,
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
    },
}

/// Why a mount was not taken down.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// Nothing that kitfs mounted is there.
    #[error("{} is no mount of kitfs{}", .path.display(), .fs_type.as_ref().map(|found| format!(", but of type {}", found.escape_debug())).unwrap_or_default())]
    NotMounted {
        /// Where it was looked for.
        path: PathBuf,
        /// What is mounted there.
        fs_type: Option<String>,
    },
    /// Something has it in use.
    #[error("{} is in use", .path.display())]
    Busy {
        /// The mount.
        path: PathBuf,
        /// Who holds what of it, as far as we may see.
        holders: Vec<Holder>,
        /// What is mounted on top of it.
        mounts: Vec<PathBuf>,
    },
    /// The supervisor did not answer in time.
    #[error("the supervisor of {} (pid {pid}) does not answer", .path.display())]
    Unanswered {
        /// The mount.
        path: PathBuf,
        /// The supervisor.
        pid: u32,
        /// What went wrong.
        source: io::Error,
    },
    /// The supervisor could not do it.
    #[error("the supervisor of {} cannot take it down: {}", .path.display(), .message.escape_debug())]
    Refused {
        /// The mount.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// It is still there, although it was taken down.
    #[error("{} is still mounted after {} s", .path.display(), UMOUNT_GONE_LIMIT.as_secs())]
    Remains {
        /// The mount.
        path: PathBuf,
    },
    /// The path or the mount itself could not be dealt with.
    #[error("cannot take down {}", .path.display())]
    Io {
        /// The mount.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The run directory could not be read.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl UmountError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotMounted { fs_type: None, .. } => Some("`kitfs status` lists the mounts".to_owned()),
            Self::NotMounted { fs_type: Some(_), .. } => Some("`umount` takes down what others mounted".to_owned()),
            Self::Busy { holders, mounts, .. } if holders.is_empty() && mounts.is_empty() => Some(
                "no process that may be seen holds it; as root more may be seen. `kitfs umount --lazy` detaches it all the same".to_owned(),
            ),
            Self::Busy { .. } => {
                Some("end what is listed, or detach it with `kitfs umount --lazy`; what is open then stays usable".to_owned())
            }
            Self::Unanswered { pid, .. } => Some(format!("`kitfs umount --lazy` detaches it without asking; is process {pid} stopped?")),
            Self::Refused { .. } => Some("the log says more; `kitfs status` tells where it is".to_owned()),
            Self::Remains { .. } => Some("was it mounted again meanwhile? `kitfs status` lists the mounts".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("it belongs to another user: try as that user or as root".to_owned())
            }
            Self::Io { .. } | Self::Run(_) => None,
        }
    }
}

/// That a mount was taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unmounted {
    /// Why that was not recorded, if it should have been.
    pub unrecorded: Option<String>,
}

/// Takes down the mount at `dir`.
pub fn umount(dir: &Path, lazy: bool, run_dir: &RunDir) -> Result<Unmounted, UmountError> {
    let (path, entry) = match mountinfo::find(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(UmountError::NotMounted { path: dir.to_owned(), fs_type: None });
        }
        Err(source) => return Err(UmountError::Io { path: dir.to_owned(), source }),
    };
    let Some(entry) = entry.filter(MountEntry::is_kitfs) else {
        // Its supervisor died, and somebody took down what was left: only the folder is there still.
        return match run_dir.clean_up_dead()?.iter().any(|record| record.mountpoint == path) {
            true => Ok(Unmounted::default()),
            false => Err(UmountError::NotMounted { fs_type: mountinfo::at(&path).ok().flatten().map(|entry| entry.fs_type), path }),
        };
    };
    match recorded(run_dir, &entry)? {
        Some((mount, record)) => ask(&mount, &record, &entry, lazy),
        None => {
            // Dead, or of a run directory that we do not know. A dead one is cleaned up by this, whatever else is found.
            let cleaned = run_dir.clean_up_dead()?;
            if cleaned.iter().any(|record| record.mount_id == entry.mount_id && record.mountpoint == path) {
                return gone(&entry);
            }
            detach_here(&entry, lazy)
        }
    }
}

/// What became of the mount at a path.
pub type Outcome = (PathBuf, Result<Unmounted, UmountError>);

/// Takes down every mount of the run directory; cleans up the dead ones. Tells what became of each.
pub fn umount_all(lazy: bool, run_dir: &RunDir) -> Result<Vec<Outcome>, RunError> {
    let cleaned = run_dir.clean_up_dead()?;
    let mut outcomes: Vec<_> = cleaned.into_iter().map(|record| (record.mountpoint, Ok(Unmounted::default()))).collect();
    for mount in run_dir.mounts()? {
        let Ok(Some(record)) = mount.read_record() else { continue };
        let path = record.mountpoint.clone();
        let is_its = |entry: &MountEntry| entry.is_kitfs() && entry.mount_id == record.mount_id && entry.mountpoint == record.mountpoint;
        match mountinfo::read() {
            // Already detached: the supervisor lives on for those who have files open.
            Ok(entries) if !entries.iter().any(is_its) => {}
            Ok(entries) => {
                let outcome =
                    entries.iter().find(|entry| is_its(entry)).map_or(Ok(Unmounted::default()), |entry| ask(&mount, &record, entry, lazy));
                outcomes.push((path, outcome));
            }
            Err(source) => outcomes.push((path.clone(), Err(UmountError::Io { path, source }))),
        }
    }
    Ok(outcomes)
}

/// The socket for [`serve`], in the folder of the mount.
pub fn listen(mount: &MountDir) -> io::Result<UnixListener> {
    UnixListener::bind(mount.socket_address())
}

/// Answers requests with `handler`, one after the other, on a thread of its own. Others than the own user and the superuser are not heard.
pub fn serve(listener: UnixListener, handler: impl Fn(Request) -> Response + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("requests".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => {
                    if let Err(error) = answer(stream, &handler) {
                        tracing::debug!(%error, "a request was not answered");
                    }
                }
                Err(error) => {
                    // Most likely no descriptor is free; that passes, but it must not become a busy loop.
                    tracing::warn!(%error, "cannot take requests");
                    thread::sleep(CONTROL_LINE_LIMIT);
                }
            }
        }
    })
}

fn answer(stream: UnixStream, handler: &impl Fn(Request) -> Response) -> io::Result<()> {
    let peer = socket_peercred(&stream)?;
    if !peer.uid.is_root() && peer.uid != geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {} may not ask", peer.uid.as_raw())));
    }
    let request = read_line(&stream, CONTROL_LINE_LIMIT)?;
    // After a supervisor was stopped for long: whoever asked has said by now that it does not answer and that the mount stays.
    if has_hung_up(&stream)? {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked gave up"));
    }
    write_line(&stream, &handler(request))
}

fn has_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
}

/// The live mount whose record is about `entry`.
fn recorded(run_dir: &RunDir, entry: &MountEntry) -> Result<Option<(MountDir, MountRecord)>, RunError> {
    for mount in run_dir.mounts()? {
        if let Ok(Some(record)) = mount.read_record()
            && record.mountpoint == entry.mountpoint
            && record.mount_id == entry.mount_id
            && mount.is_alive()?
        {
            return Ok(Some((mount, record)));
        }
    }
    Ok(None)
}

fn ask(mount: &MountDir, record: &MountRecord, entry: &MountEntry, lazy: bool) -> Result<Unmounted, UmountError> {
    let path = entry.mountpoint.clone();
    let asked = || request(&mount.socket_address(), &Request::Umount { lazy }, record.supervisor_pid);
    let mut answer = asked();
    if let Ok(Response::Busy) = answer {
        match busy(entry) {
            // Whoever held it was gone when it was looked for, as a process is that had a file of the mount open between fork and exec.
            UmountError::Busy { holders, mounts, .. } if holders.is_empty() && mounts.is_empty() => answer = asked(),
            held => return Err(held),
        }
    }
    match answer {
        Ok(response @ (Response::Done | Response::Unrecorded { .. })) => {
            let unmounted = gone(entry)?;
            if !lazy {
                ended(mount);
            }
            Ok(match response {
                Response::Unrecorded { message } => Unmounted { unrecorded: Some(message) },
                _ => unmounted,
            })
        }
        Ok(Response::Busy) => Err(busy(entry)),
        Ok(Response::Failed { message }) => Err(UmountError::Refused { path, message }),
        // It does not matter who takes it down when readers need not be let go first.
        Err(_) if lazy => detach_here(entry, lazy),
        Err(_) if !mount.is_alive()? => {
            mount.run_dir().clean_up_dead()?;
            gone(entry)
        }
        Err(source) => Err(UmountError::Unanswered { path, pid: record.supervisor_pid, source }),
    }
}

/// Takes down `entry` without a supervisor.
fn detach_here(entry: &MountEntry, lazy: bool) -> Result<Unmounted, UmountError> {
    match detach(&entry.mountpoint, entry.mount_id, lazy) {
        Ok(Detached::Done | Detached::NotOurs) => gone(entry),
        Ok(Detached::Busy) => Err(busy(entry)),
        Err(source) => Err(UmountError::Io { path: entry.mountpoint.clone(), source }),
    }
}

fn busy(entry: &MountEntry) -> UmountError {
    let above = mountinfo::read().unwrap_or_default().into_iter().filter(|other| other.parent_id == entry.mount_id);
    UmountError::Busy { path: entry.mountpoint.clone(), holders: holders(entry), mounts: above.map(|other| other.mountpoint).collect() }
}

/// Waits until `entry` is no longer among the mounts.
fn gone(entry: &MountEntry) -> Result<Unmounted, UmountError> {
    let failed = |source| UmountError::Io { path: entry.mountpoint.clone(), source };
    let deadline = Instant::now() + UMOUNT_GONE_LIMIT;
    let changes = Changes::watch().map_err(failed)?;
    loop {
        let is_it =
            |other: &MountEntry| other.mount_id == entry.mount_id && other.device == entry.device && other.mountpoint == entry.mountpoint;
        if !mountinfo::read().map_err(failed)?.iter().any(is_it) {
            return Ok(Unmounted::default());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(UmountError::Remains { path: entry.mountpoint.clone() });
        }
        changes.wait(left).map_err(failed)?;
    }
}

/// Waits a moment for the supervisor to end, so that whoever looks next finds nothing. A copy of the mount elsewhere may keep it.
fn ended(mount: &MountDir) {
    let deadline = Instant::now() + SUPERVISOR_END_LIMIT;
    while mount.path().exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Asks the supervisor with this pid, and asks again if nobody read it: on a host that is out of breath more than [`CONTROL_LINE_LIMIT`] can pass between a
/// connection and its line.
fn request(address: &Path, request: &Request, pid: u32) -> io::Result<Response> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let asked = || {
            let stream = connect(address)?;
            write_line(&stream, request)?;
            read_answer(&stream, pid)
        };
        match asked() {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
                    && attempts < UNHEARD_REQUESTS_MAX => {}
            answer => return answer,
        }
    }
}

fn connect(address: &Path) -> io::Result<UnixStream> {
    // Connecting waits while the backlog is full, which it is only if the supervisor hangs; the time-out of sending bounds it.
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(CONTROL_LINE_LIMIT))?;
    rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(address)?)?;
    Ok(UnixStream::from(socket))
}

fn write_line<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    stream.set_write_timeout(Some(CONTROL_LINE_LIMIT))?;
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads the answer of the supervisor with this pid, for which it may take [`UMOUNT_PATIENCE`] if it is not stopped: the kernel may be busy with its mount.
fn read_answer(stream: &UnixStream, pid: u32) -> io::Result<Response> {
    let last = Instant::now() + UMOUNT_PATIENCE;
    loop {
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timespec(UMOUNT_ANSWER_LIMIT)))? {
            0 if Instant::now() < last && goes_on(pid) => {}
            0 => return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
            _ => return read_line(stream, CONTROL_LINE_LIMIT),
        }
    }
}

/// False for a process that is stopped, or gone.
fn goes_on(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may have any byte in it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['R', 'S', 'D']))
}

/// Reads a line, in `limit` at most, however slowly its bytes come.
fn read_line<T: DeserializeOwned>(stream: &UnixStream, limit: Duration) -> io::Result<T> {
    let mut reader = BufReader::new(Until { stream, deadline: Instant::now() + limit }.take(CONTROL_LINE_BYTES));
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side ended, or said too much"));
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Reads until a point in time.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(self.stream, PollFlags::IN)], Some(&timespec(left))) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
            Ok(_) => (&mut &*self.stream).read(buffer),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests;
