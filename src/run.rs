//! The run directory: what a mount tells about itself while it lives.
//!
//! Each mount has a folder there, named by its id. Whether the mount lives is told by a lock on a file in it, which its supervisor inherits from the
//! command that made the folder and holds until it ends, however it ends; a pid alone would say nothing, since pids are used again. All documents are
//! written by rename, so that whoever reads one sees a whole one, and what is read is nevertheless taken for what anybody could have written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::admission::Admission;
use crate::audit::Trail;
use crate::detach::{Detached, detach};
use crate::digest::Digest;
use crate::failure::{ErrorClass, chain};
use crate::limits::{ABANDONED_AFTER, RUN_DOCUMENT_BYTES};
use crate::metrics::Totals;
use crate::mountinfo::{self, MountEntry};
use crate::plan::{AuditPlan, ReferenceRecord, RemoteRecord, Settings};
use crate::source::SourceOptions;

/// The run directory; cheap to clone.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// The folder of one mount; cheap to clone.
#[derive(Debug, Clone)]
pub struct MountDir {
    id: String,
    run: RunDir,
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// `mount.json`: what is decided for the life of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// The mount's id.
    pub id: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The reference, as it was given.
    pub reference: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The supervisor.
    pub supervisor_pid: u32,
    /// The version of kitfs that it is; one from before that was told says nothing.
    #[serde(default)]
    pub supervisor_version: Option<String>,
    /// Since when it serves; see [`now`].
    pub since: String,
    /// The cache.
    pub cache_dir: PathBuf,
    /// The device number of the mounted filesystem.
    pub device: (u32, u32),
    /// The kernel's id of the mount.
    pub mount_id: u64,
    /// Where it logs to.
    pub log: PathBuf,
    /// Whether files are read past us; unknown until it was tried.
    pub passthrough: Option<bool>,
    /// The kits that it refers to, directly or not.
    #[serde(default)]
    pub references: Vec<ReferenceRecord>,
    /// Datasets that are not in the mount.
    #[serde(default)]
    pub remote: Vec<RemoteRecord>,
    /// How the registry was spoken to.
    #[serde(default)]
    pub access: SourceOptions,
    /// Why each kit was admitted: the kit itself, then those that it refers to.
    #[serde(default)]
    pub admissions: Vec<Admission>,
    /// Where what happens to it is recorded.
    #[serde(default)]
    pub audit: Option<AuditPlan>,
    /// What was said of how it works.
    #[serde(default)]
    pub settings: Settings,
}

/// `state.json`: how the mount is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountState {
    /// What it does.
    pub state: Phase,
    /// The worker, while one runs.
    pub worker_pid: Option<u32>,
    /// The version of kitfs that it is, which is not the supervisor's where kitfs was replaced since.
    #[serde(default)]
    pub worker_version: Option<String>,
    /// How often a worker was replaced.
    pub restarts: u32,
}

/// What a mount does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A worker answers.
    Serving,
    /// A new worker is on its way.
    Restarting,
    /// It is being taken down.
    Stopping,
}

/// `counts.json`: what the mount has done so far, all its workers together; up to a second behind, and that of one that was killed is lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MountCounts {
    /// What was counted.
    pub totals: Totals,
    /// Requests that wait now.
    pub waiting: u64,
    /// Bytes by which the cache was over its limit when this mount made room last.
    pub cache_over_limit_bytes: u64,
}

/// One layer in `layers.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer's digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Where its content appears.
    pub path: String,
    /// The size of its blob in bytes.
    pub size: u64,
    /// How it is.
    pub state: LayerStatus,
    /// How many bytes of its blob have come.
    pub fetched: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// What kind of failure that was.
    #[serde(default)]
    pub class: Option<ErrorClass>,
    /// When it is tried again; RFC 3339.
    pub retry_at: Option<String>,
}

/// How a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerStatus {
    /// Nobody asked for it.
    Absent,
    /// It is in line.
    Waiting,
    /// It is being fetched.
    Fetching,
    /// It is there.
    Cached,
    /// It could not be had.
    Failed,
}

/// The lock that says that a mount lives. Whoever holds it must be the supervisor, or about to start it.
pub type Alive = OwnedFd;

/// What is wrong with the run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It, or something in it, could not be made, read or written.
    #[error("cannot use {}", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else owns it.
    #[error("the run directory {} belongs to user {owner}, expected {expected}", .path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who ought to.
        expected: u32,
    },
    /// Others could have put anything there.
    #[error("the run directory {} is writable for others (mode {mode:03o}, expected 700)", .path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// An id that could not be a file name of ours.
    #[error("{id:?} is no id of a mount")]
    BadId {
        /// The id.
        id: String,
    },
    /// A document that is not what it should be.
    #[error("{} is not what kitfs writes", .path.display())]
    Malformed {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl From<RunError> for io::Error {
    fn from(error: RunError) -> Self {
        Self::other(error)
    }
}

/// Where the run directory is when nobody says otherwise.
pub fn default_dir() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/kitfs");
    }
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = || Some(PathBuf::from(format!("/run/user/{}", uid.as_raw()))).filter(|path| path.is_dir());
    match given.or_else(usual) {
        Some(home) => home.join("kitfs"),
        // Nobody logged in, as in most containers. The owner of the folder is checked, so it does no harm that anybody could have made it.
        None => std::env::temp_dir().join(format!("kitfs-run-{}", uid.as_raw())),
    }
}

/// A new id for a mount.
pub fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The time as the documents show it.
pub fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string()
}

impl RunDir {
    /// Opens the run directory at `path`, and makes it if there is none.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let failed = |source| RunError::Io { path: path.to_owned(), source };
        let path = std::path::absolute(path).map_err(failed)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let dir = open_folder(CWD, &path).map_err(failed)?;
        let stat = fstat(&dir).map_err(|errno| failed(errno.into()))?;
        let (expected, mode) = (geteuid().as_raw(), stat.st_mode & 0o777);
        if stat.st_uid != expected {
            return Err(RunError::ForeignOwner { path, owner: stat.st_uid, expected });
        }
        if mode & 0o022 != 0 {
            return Err(RunError::Writable { path, mode });
        }
        if mode != 0o700 {
            // systemd's RuntimeDirectory= makes it readable for everybody.
            fchmod(&dir, Mode::RWXU).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self { path, dir: Arc::new(dir) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder of a new mount, which lives as long as the lock that comes with it is held by somebody.
    pub fn create(&self, id: &str) -> Result<(MountDir, Alive), RunError> {
        let path = self.path.join(check_id(id)?);
        let failed = |source| RunError::Io { path: path.clone(), source };
        // It gets its name only when it is locked: nobody ever sees it dead before it began to live.
        let unborn = format!("{UNBORN}{id}");
        mkdirat(&self.dir, &unborn, Mode::RWXU).map_err(|errno| failed(errno.into()))?;
        let dir = open_folder(&self.dir, &unborn).map_err(failed)?;
        let alive = openat(&dir, ALIVE, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW, PRIVATE);
        let alive = alive.map_err(|errno| failed(errno.into()))?;
        flock(&alive, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
        rustix::fs::renameat_with(&self.dir, &unborn, &self.dir, id, rustix::fs::RenameFlags::NOREPLACE)
            .map_err(|errno| failed(errno.into()))?;
        Ok((MountDir { id: id.to_owned(), run: self.clone(), path: path.clone(), dir: Arc::new(dir) }, alive))
    }

    /// The folder of the mount `id`.
    pub fn mount(&self, id: &str) -> Result<MountDir, RunError> {
        let path = self.path.join(check_id(id)?);
        let dir = open_folder(&self.dir, id).map_err(|source| RunError::Io { path: path.clone(), source })?;
        Ok(MountDir { id: id.to_owned(), run: self.clone(), path, dir: Arc::new(dir) })
    }

    /// The folders of all mounts, dead ones included. What else lies there is left out.
    pub fn mounts(&self) -> Result<Vec<MountDir>, RunError> {
        let names = folders(&self.dir).map_err(|source| RunError::Io { path: self.path.clone(), source })?;
        let mounts = names.iter().filter_map(|name| self.mount(name).ok());
        Ok(mounts.filter(|mount| rustix::fs::statat(&mount.dir, ALIVE, AtFlags::SYMLINK_NOFOLLOW).is_ok()).collect())
    }

    /// Ends what dead supervisors left behind: their mounts and their folders. Tells the mounts that were cleaned up.
    pub fn clean_up_dead(&self) -> Result<Vec<MountRecord>, RunError> {
        let mut cleaned = Vec::new();
        for mount in self.mounts()? {
            match mount.clean_up() {
                Ok(Some(record)) => cleaned.push(record),
                Ok(None) => {}
                Err(error) => tracing::warn!(mount = mount.id, error = %chain(&error), "cannot clean up after a dead mount"),
            }
        }
        self.remove_abandoned().map_err(|source| RunError::Io { path: self.path.clone(), source })?;
        Ok(cleaned)
    }

    /// Removes folders whose making or removal was cut short.
    fn remove_abandoned(&self) -> io::Result<()> {
        for name in folders(&self.dir)? {
            if !name.starts_with(UNBORN) && !name.starts_with(GONE) {
                continue;
            }
            let Ok(dir) = open_folder(&self.dir, &name) else { continue };
            let changed = Duration::from_secs(u64::try_from(fstat(&dir)?.st_mtime).unwrap_or_default());
            // One from a future that a clock showed for a while is no newer.
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).unwrap_or_else(|ahead| ahead.duration());
            if age > ABANDONED_AFTER {
                remove_folder(&self.dir, &name, &dir)?;
            }
        }
        Ok(())
    }
}

impl MountDir {
    /// The mount's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run directory that it lies in.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that the mount logs to.
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The socket at which the supervisor takes requests.
    pub fn socket_path(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// The same by a path that is short enough for an address, however deep the run directory lies. Only good in this process.
    pub(crate) fn socket_address(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd()))
    }

    /// Whether its supervisor lives.
    pub fn is_alive(&self) -> Result<bool, RunError> {
        match self.take_lock(FlockOperation::NonBlockingLockShared) {
            Ok(_lock) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed(ALIVE)(errno.into())),
        }
    }

    /// Takes over the lock of a dead mount. Not for the supervisor, who has inherited what [`RunDir::create`] gave.
    pub fn hold_alive(&self) -> Result<Alive, RunError> {
        self.take_lock(FlockOperation::NonBlockingLockExclusive).map_err(|errno| self.failed(ALIVE)(errno.into()))
    }

    /// Writes `mount.json`.
    pub fn write_record(&self, record: &MountRecord) -> Result<(), RunError> {
        self.write("mount.json", record)
    }

    /// Writes `state.json`.
    pub fn write_state(&self, state: &MountState) -> Result<(), RunError> {
        self.write("state.json", state)
    }

    /// Writes `layers.json`.
    pub fn write_layers(&self, layers: &[LayerReport]) -> Result<(), RunError> {
        self.write("layers.json", &layers)
    }

    /// Writes `counts.json`.
    pub fn write_counts(&self, counts: &MountCounts) -> Result<(), RunError> {
        self.write("counts.json", counts)
    }

    /// Reads `counts.json`; `None` if it was not written yet.
    pub fn read_counts(&self) -> Result<Option<MountCounts>, RunError> {
        self.read("counts.json")
    }

    /// Reads `mount.json`; `None` if it was not written yet.
    pub fn read_record(&self) -> Result<Option<MountRecord>, RunError> {
        self.read("mount.json")
    }

    /// Reads `state.json`; `None` if it was not written yet.
    pub fn read_state(&self) -> Result<Option<MountState>, RunError> {
        self.read("state.json")
    }

    /// Reads `layers.json`; `None` if it was not written yet.
    pub fn read_layers(&self) -> Result<Option<Vec<LayerReport>>, RunError> {
        self.read("layers.json")
    }

    /// Removes the folder, the log included.
    pub fn remove(&self) -> Result<(), RunError> {
        let failed = |source| RunError::Io { path: self.path.clone(), source };
        // Under a name that nobody looks at first, so that nobody meets half a folder.
        let gone = format!("{GONE}{}", self.id);
        match renameat(&self.run.dir, &self.id, &self.run.dir, &gone) {
            Ok(()) => remove_folder(&self.run.dir, &gone, &self.dir).map_err(failed),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Ends what is left of the mount if its supervisor is dead, and tells what it was.
    fn clean_up(&self) -> Result<Option<MountRecord>, RunError> {
        let _lock = match self.take_lock(FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => lock,
            // It lives, or somebody else cleans up.
            Err(Errno::WOULDBLOCK | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.failed(ALIVE)(errno.into())),
        };
        // A record that cannot be read names no mount that could be taken down.
        let record = self.read_record().ok().flatten();
        if let Some(record) = &record {
            self.detach_dead(record)?;
            // It could not do that itself. What keeps it from being recorded keeps nothing from being cleaned up, and is told in there.
            _ = Trail::of_dead(record).end(Some("its supervisor died"));
        }
        self.remove()?;
        Ok(record)
    }

    fn detach_dead(&self, record: &MountRecord) -> Result<(), RunError> {
        let failed = |source| RunError::Io { path: record.mountpoint.clone(), source };
        let is_its = |entry: &MountEntry| {
            entry.is_kitfs() && entry.device == record.device && entry.mount_id == record.mount_id && entry.mountpoint == record.mountpoint
        };
        if !mountinfo::read().map_err(failed)?.iter().any(is_its) {
            return Ok(());
        }
        // Every number of it could have been given out again since.
        let others = self.run.mounts()?.into_iter().filter(|other| other.id != self.id && other.is_alive().unwrap_or(true));
        if others
            .filter_map(|other| other.read_record().ok().flatten())
            .any(|other| other.mountpoint == record.mountpoint && other.mount_id == record.mount_id)
        {
            return Ok(());
        }
        match detach(&record.mountpoint, record.mount_id, true).map_err(failed)? {
            Detached::Done => Ok(()),
            Detached::Busy | Detached::NotOurs => Err(failed(io::Error::other("the dead mount is covered by another one"))),
        }
    }

    fn take_lock(&self, operation: FlockOperation) -> Result<OwnedFd, Errno> {
        let file = openat(&self.dir, ALIVE, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty())?;
        flock(&file, operation)?;
        Ok(file)
    }

    fn write<T: Serialize>(&self, name: &str, document: &T) -> Result<(), RunError> {
        let text = serde_json::to_vec(document).map_err(|error| self.failed(name)(error.into()))?;
        let new = format!(".{name}");
        let write = || -> io::Result<()> {
            // What a killed writer left; a new file, since the old one may still be written to.
            match unlinkat(&self.dir, &new, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let file =
                openat(&self.dir, &new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW, PRIVATE)?;
            File::from(file).write_all(&text)?;
            Ok(renameat(&self.dir, &new, &self.dir, name)?)
        };
        write().map_err(self.failed(name))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RunError> {
        let file = match openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.failed(name)(errno.into())),
        };
        let mut text = Vec::new();
        file.take(RUN_DOCUMENT_BYTES).read_to_end(&mut text).map_err(self.failed(name))?;
        serde_json::from_slice(&text).map(Some).map_err(|source| RunError::Malformed { path: self.path.join(name), source })
    }

    fn failed(&self, name: &str) -> impl Fn(io::Error) -> RunError + use<> {
        let path = self.path.join(name);
        move |source| RunError::Io { path: path.clone(), source }
    }
}

const ALIVE: &str = "alive";
const SOCKET: &str = "control.sock";
/// Begins the name of a folder that is not locked yet.
const UNBORN: &str = ".new-";
/// Begins the name of a folder that is being removed.
const GONE: &str = ".gone-";
const PRIVATE: Mode = Mode::from_raw_mode(0o600);
/// Characters of an id; ours have 16.
const ID_LENGTH_MAX: usize = 64;

fn check_id(id: &str) -> Result<&str, RunError> {
    let fits = !id.is_empty() && id.len() <= ID_LENGTH_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if fits { Ok(id) } else { Err(RunError::BadId { id: id.to_owned() }) }
}

fn open_folder(parent: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(openat(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The names of the folders in `dir`.
fn folders(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let is_folder = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if let (true, Ok(name)) = (is_folder, entry.file_name().to_str())
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes the folder `name`, opened as `dir`, and the files in it.
fn remove_folder(parent: &OwnedFd, name: &str, dir: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            match unlinkat(dir, entry.file_name(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;
