//! Ending a mount on request: what `kitfs umount` asks a supervisor, and what it does when there is none left to ask.
//!
//! One connection to the supervisor's socket carries one request and one response, each a line of JSON. The supervisor takes the mount down itself, since
//! only it can let its waiting readers go first. This side looks afterwards whether the mount is really gone, and who holds it if it is not.

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

pub use crate::detach::{Detached, detach};
use crate::holders::holders;
pub use crate::holders::{Holder, Holding};
use crate::limits::{
    CONTROL_LINE_BYTES, CONTROL_LINE_LIMIT, SUPERVISOR_END_LIMIT, UMOUNT_ANSWER_LIMIT, UMOUNT_GONE_LIMIT, UNHEARD_REQUESTS_MAX,
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
    let asked = || request(&mount.socket_address(), &Request::Umount { lazy });
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

/// Asks, and asks again if nobody read it: on a host that is out of breath more than [`CONTROL_LINE_LIMIT`] can pass between a connection and its line.
fn request(address: &Path, request: &Request) -> io::Result<Response> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let asked = || {
            let stream = connect(address)?;
            write_line(&stream, request)?;
            read_line(&stream, UMOUNT_ANSWER_LIMIT)
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
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(self.stream, PollFlags::IN)], Some(&limit)) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
            Ok(_) => (&mut &*self.stream).read(buffer),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::run::Alive;
    use rustix::mount::UnmountFlags;
    use std::fs::File;
    use std::sync::mpsc;

    fn run_dir() -> (tempfile::TempDir, RunDir) {
        let home = tempfile::tempdir().expect("folder");
        let run = RunDir::open(&home.path().join("kitfs")).expect("run directory");
        (home, run)
    }

    fn say(mount: &MountDir, line: &[u8]) -> io::Result<Response> {
        let stream = connect(&mount.socket_address())?;
        (&mut &stream).write_all(line)?;
        read_line(&stream, UMOUNT_ANSWER_LIMIT)
    }

    #[test]
    fn a_request_is_answered_and_nonsense_is_not() {
        let (_home, run) = run_dir();
        let (mount, _alive) = run.create("1").expect("made");
        let (told, asked) = mpsc::channel();
        let handler = move |request| {
            told.send(request).expect("heard");
            Response::Failed { message: "no".to_owned() }
        };
        serve(listen(&mount).expect("socket"), handler).expect("thread");
        let answer = say(&mount, b"{\"request\":\"umount\",\"lazy\":true}\n").expect("answered");
        assert_eq!(answer, Response::Failed { message: "no".to_owned() });
        assert_eq!(asked.try_recv(), Ok(Request::Umount { lazy: true }));
        let long = [vec![b' '; CONTROL_LINE_BYTES as usize + 1], b"\n".to_vec()].concat();
        for nonsense in [b"{}\n".as_slice(), b"\n", b"\xff\n", &long] {
            assert!(say(&mount, nonsense).is_err());
        }
        assert!(say(&mount, b"{\"request\":\"umount\",\"lazy\":false}\n").is_ok(), "it goes on");
        assert_eq!(asked.try_iter().count(), 1);
        // One who says nothing does not keep others waiting for long.
        let _silent = connect(&mount.socket_address()).expect("connected");
        assert!(say(&mount, b"{\"request\":\"umount\",\"lazy\":false}\n").is_ok());
    }

    #[test]
    fn a_request_that_was_not_heard_is_made_again() {
        let (_home, run) = run_dir();
        let (mount, _alive) = run.create("1").expect("made");
        let listener = listen(&mount).expect("socket");
        // Nobody waits for its end, so that it cannot hold up a test that fails.
        thread::spawn(move || {
            // As a supervisor does that waited for the line for too long.
            for _ in 1..UNHEARD_REQUESTS_MAX {
                drop(listener.accept().expect("a connection"));
            }
            let (stream, _) = listener.accept().expect("a connection");
            answer(stream, &|_| Response::Busy).expect("answered");
        });
        let answer = request(&mount.socket_address(), &Request::Umount { lazy: false });
        assert_eq!(answer.expect("answered in the end"), Response::Busy);
    }

    #[test]
    fn what_kitfs_did_not_mount_is_left_alone() {
        let (home, run) = run_dir();
        for path in [Path::new("/proc"), home.path(), Path::new("/nonexistent/kit"), Path::new("/proc/../proc/")] {
            let error = umount(path, true, &run).expect_err("none of ours");
            assert!(matches!(error, UmountError::NotMounted { .. }), "{error}");
            assert!(error.hint().is_some());
        }
    }

    fn record(mount: &MountDir, entry: &MountEntry) -> MountRecord {
        MountRecord {
            id: mount.id().to_owned(),
            mountpoint: entry.mountpoint.clone(),
            reference: "reg.example/a:v1".to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)).parse().expect("digest"),
            supervisor_pid: std::process::id(),
            supervisor_version: None,
            since: crate::run::now(),
            cache_dir: "/var/cache/kitfs".into(),
            device: entry.device,
            mount_id: entry.mount_id,
            log: mount.log_path(),
            passthrough: None,
            references: Vec::new(),
            remote: Vec::new(),
            access: crate::source::SourceOptions::default(),
            admissions: Vec::new(),
            audit: None,
            settings: Default::default(),
        }
    }

    /// What is on record of a mount that looks like one of kitfs, and that nobody serves.
    struct Pretended {
        // Before the folder: without its device the mount answers, and can be passed over, when a test fails.
        device: Option<File>,
        home: tempfile::TempDir,
        run: RunDir,
        place: PathBuf,
        entry: MountEntry,
        mount: MountDir,
        alive: Option<Alive>,
    }

    impl Pretended {
        fn new(name: &str) -> Self {
            let (home, run) = run_dir();
            let place = home.path().canonicalize().expect("path").join(name);
            std::fs::create_dir(&place).expect("folder");
            let device = Some(fixtures::pretended_mount(&place));
            let entry = mountinfo::at(&place).expect("readable").expect("mounted");
            let (mount, alive) = run.create("1").expect("made");
            mount.write_record(&record(&mount, &entry)).expect("written");
            Self { device, home, run, place, entry, mount, alive: Some(alive) }
        }

        /// Does what a supervisor would when it is asked to unmount.
        fn detach(&self) -> impl Fn(bool) -> Response + Send + 'static {
            let (at, id) = (self.place.clone(), self.entry.mount_id);
            move |lazy| match detach(&at, id, lazy).expect("no error") {
                Detached::Done => Response::Done,
                Detached::Busy => Response::Busy,
                Detached::NotOurs => Response::Failed { message: "not ours".to_owned() },
            }
        }

        fn is_gone(&self) -> bool {
            mountinfo::at(&self.place).expect("readable").is_none()
        }
    }

    #[test]
    fn the_mount_of_a_dead_supervisor_is_cleaned_up_even_if_its_device_is_dead() {
        let mut dead = Pretended::new("a kit");
        drop((dead.device.take(), dead.alive.take()));
        while dead.mount.is_alive().expect("known") {
            thread::yield_now();
        }
        umount(&dead.place, false, &dead.run).expect("cleaned up");
        assert!(dead.is_gone());
        assert!(!dead.mount.path().exists());
        // Once more, without any record.
        drop(fixtures::pretended_mount(&dead.place));
        umount(&dead.home.path().join("./a kit/"), false, &dead.run).expect("taken down");
        assert!(dead.is_gone());
    }

    #[test]
    fn a_supervisor_is_asked_and_a_busy_mount_names_its_holders() {
        let pretended = Pretended::new("kit");
        let detach = pretended.detach();
        serve(listen(&pretended.mount).expect("socket"), move |Request::Umount { lazy }| detach(lazy)).expect("thread");
        // Holds the mount without a request to its device.
        let held = rustix::fs::open(&pretended.place, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("held");
        match umount(&pretended.place, false, &pretended.run) {
            Err(UmountError::Busy { holders, mounts, .. }) => {
                assert!(
                    holders.iter().any(|holder| holder.pid == std::process::id() && matches!(holder.holding, Holding::Descriptor(_))),
                    "{holders:?}"
                );
                assert_eq!(mounts, Vec::<PathBuf>::new());
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        let remaining = umount_all(true, &pretended.run).expect("listed");
        assert!(matches!(remaining.as_slice(), [(path, Ok(_))] if *path == pretended.place), "{remaining:?}");
        assert!(pretended.is_gone());
        assert!(umount_all(false, &pretended.run).expect("listed").is_empty());
    }

    #[test]
    fn a_mount_that_nobody_holds_any_more_is_asked_for_again() {
        let pretended = Pretended::new("kit");
        let (detach, asked) = (pretended.detach(), std::sync::atomic::AtomicU32::new(0));
        serve(listen(&pretended.mount).expect("socket"), move |Request::Umount { lazy }| {
            match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Response::Busy,
                _ => detach(lazy),
            }
        })
        .expect("thread");
        umount(&pretended.place, false, &pretended.run).expect("taken down");
        assert!(pretended.is_gone());
    }

    #[test]
    fn a_supervisor_that_does_not_answer_is_named_and_passed_by_with_lazy() {
        let pretended = Pretended::new("kit");
        let error = umount(&pretended.place, false, &pretended.run).expect_err("nobody listens");
        assert!(matches!(error, UmountError::Unanswered { pid, .. } if pid == std::process::id()), "{error:?}");
        umount(&pretended.place, true, &pretended.run).expect("detached");
        assert!(pretended.is_gone());
        assert!(rustix::mount::unmount(&pretended.place, UnmountFlags::DETACH).is_err());
    }
}
