//! What is looked at before a mount, so that what is wrong is said in the user's words and not by an errno of `mount`.
//!
//! It does not replace the checks of the kernel and of `fusermount3`, which have the last word.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::detach::{Detached, FUSERMOUNT, detach, fusermount};
use crate::limits::{DEAD_MOUNT_LIMIT, FUSE_CONF_BYTES};
use crate::mountinfo::{self, MountEntry};
use crate::run::{RunDir, RunError};

/// What is about to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Preflight<'a> {
    /// Where.
    pub dir: &'a Path,
    /// For other users, too.
    pub allow_other: bool,
    /// Who owns the cache.
    pub cache_owner: u32,
    /// Other users are to see what an ordinary user's cache says.
    pub trust_user_cache: bool,
}

/// Why it would not work.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// There is no such folder.
    #[error("{} does not exist", .path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a folder", .path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// It would be covered.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("{} is already a mount point ({})", .path.display(), .entry.source.escape_debug())]
    AlreadyMounted {
        /// The path.
        path: PathBuf,
        /// What.
        entry: Box<MountEntry>,
    },
    /// `fusermount3` mounts only where its user could write.
    #[error("no permission to mount on {}: user {uid} cannot write to it", .path.display())]
    NotWritable {
        /// The path.
        path: PathBuf,
        /// Who.
        uid: u32,
    },
    /// The kernel's side of FUSE cannot be reached.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// Ordinary users cannot mount.
    #[error("{FUSERMOUNT} is not installed, and only root can mount without it")]
    NoFusermount,
    /// Ordinary users may not mount for others.
    #[error("--allow-other is not allowed to ordinary users on this host")]
    AllowOther,
    /// Other users would have to trust whoever owns the cache.
    #[error("--allow-other shows what is in the cache of user {owner} to other users")]
    UserCache {
        /// The cache's owner.
        owner: u32,
    },
    /// The path or a mount at it could not be dealt with.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The run directory could not be read.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl PreflightError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing { path } => format!("create it: mkdir -p {}", path.display().to_string().escape_debug()),
            Self::NotAFolder { .. } => "name an empty folder".to_owned(),
            Self::NotEmpty { .. } => "mount on an empty folder; what is in this one would be hidden".to_owned(),
            Self::AlreadyMounted { entry, .. } if entry.is_kitfs() => {
                "`kitfs umount` takes it down, `kitfs status` tells what it is".to_owned()
            }
            Self::AlreadyMounted { .. } => "mount on another folder, or take down what is mounted there".to_owned(),
            Self::NotWritable { .. } => "mount on a folder of your own".to_owned(),
            Self::Device(error) if error.kind() == io::ErrorKind::NotFound => {
                "load the module: modprobe fuse; in a container, give it the device: --device /dev/fuse".to_owned()
            }
            Self::Device(_) => {
                "in a container, give it the device and the right to mount: --device /dev/fuse --cap-add SYS_ADMIN".to_owned()
            }
            Self::NoFusermount => "install the package fuse3".to_owned(),
            Self::AllowOther => format!("root can allow it: a line with user_allow_other in {FUSE_CONF}"),
            Self::UserCache { .. } => {
                "use a cache that root owns (--cache-dir), or say --trust-user-cache if that user is trusted by all".to_owned()
            }
            Self::Io { .. } | Self::Run(_) => return None,
        };
        Some(hint)
    }
}

/// The kernel's side of FUSE.
pub const DEVICE: &str = "/dev/fuse";
/// What `fusermount3` is told by root.
pub const FUSE_CONF: &str = "/etc/fuse.conf";

/// Whether this process may speak FUSE.
pub fn device(path: &Path) -> Result<(), PreflightError> {
    File::options().read(true).write(true).open(path).map(drop).map_err(PreflightError::Device)
}

/// What mounts for this user, if it takes a program; root needs none.
pub fn mounter(is_root: bool, program: Option<PathBuf>) -> Result<Option<PathBuf>, PreflightError> {
    if is_root { Ok(None) } else { program.map(Some).ok_or(PreflightError::NoFusermount) }
}

/// Whether this user may mount for others.
pub fn other_users(is_root: bool, fuse_conf: &Path) -> Result<(), PreflightError> {
    if is_root || allows_other(fuse_conf) { Ok(()) } else { Err(PreflightError::AllowOther) }
}

impl Preflight<'_> {
    /// Looks at everything; what dead mounts left is cleaned up on the way. Tells where the mount point really is.
    pub fn check(&self, run_dir: &RunDir) -> Result<PathBuf, PreflightError> {
        self.check_rights(Path::new(FUSE_CONF))?;
        run_dir.clean_up_dead()?;
        let failed = |source| PreflightError::Io { path: self.dir.to_owned(), source };
        let (path, entry) = match mountinfo::find(self.dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PreflightError::Missing { path: self.dir.to_owned() }),
            Err(error) => return Err(failed(error)),
        };
        if let Some(entry) = entry {
            let taken_down = entry.is_kitfs() && is_dead(&path) && detach(&path, entry.mount_id, true).map_err(failed)? == Detached::Done;
            match mountinfo::at(&path).map_err(failed)? {
                None => {}
                Some(left) if taken_down => return Err(PreflightError::AlreadyMounted { path, entry: Box::new(left) }),
                Some(_) => return Err(PreflightError::AlreadyMounted { path, entry: Box::new(entry) }),
            }
        }
        if !fs::metadata(&path).map_err(failed)?.is_dir() {
            return Err(PreflightError::NotAFolder { path });
        }
        if fs::read_dir(&path).map_err(failed)?.next().is_some() {
            return Err(PreflightError::NotEmpty { path });
        }
        let uid = geteuid();
        if !uid.is_root() && access(&path, Access::WRITE_OK).is_err() {
            return Err(PreflightError::NotWritable { path, uid: uid.as_raw() });
        }
        Ok(path)
    }

    fn check_rights(&self, fuse_conf: &Path) -> Result<(), PreflightError> {
        let is_root = geteuid().is_root();
        device(Path::new(DEVICE))?;
        mounter(is_root, fusermount())?;
        if self.allow_other {
            other_users(is_root, fuse_conf)?;
        }
        self.check_cache()
    }

    fn check_cache(&self) -> Result<(), PreflightError> {
        // What is in a cache was verified by whoever wrote it, and its owner can write to it.
        if self.allow_other && self.cache_owner != 0 && !self.trust_user_cache {
            return Err(PreflightError::UserCache { owner: self.cache_owner });
        }
        Ok(())
    }
}

/// Whether nobody serves the mount at `path` any more. One that does not answer in time is not called dead.
fn is_dead(path: &Path) -> bool {
    let (tell, told) = channel();
    let path = path.to_owned();
    let look = move || {
        let _nobody_listens_any_more = tell.send(fs::metadata(&path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)));
    };
    thread::Builder::new().name("dead-mount".to_owned()).spawn(look).is_ok() && told.recv_timeout(DEAD_MOUNT_LIMIT).unwrap_or(false)
}

/// Whether `/etc/fuse.conf` lets ordinary users mount for others: the word stands on a line by itself.
fn allows_other(fuse_conf: &Path) -> bool {
    let Ok(file) = File::open(fuse_conf) else { return false };
    io::read_to_string(io::Read::take(file, FUSE_CONF_BYTES)).is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn at(dir: &Path) -> Preflight<'_> {
        Preflight { dir, allow_other: false, cache_owner: 0, trust_user_cache: false }
    }

    #[test]
    fn the_mount_point_must_be_an_empty_folder() {
        let home = tempfile::tempdir().expect("folder");
        let run = RunDir::open(&home.path().join("run")).expect("run directory");
        let dir = home.path().join("kit");
        File::options().read(true).write(true).open(DEVICE).expect("this test needs /dev/fuse");
        let refused = |path: &Path| {
            let error = at(path).check(&run).expect_err("refused");
            assert!(error.hint().is_some(), "{error}");
            error
        };
        assert!(matches!(refused(&dir), PreflightError::Missing { .. }));
        fs::create_dir(&dir).expect("folder");
        let link = home.path().join("link");
        std::os::unix::fs::symlink("kit", &link).expect("link");
        assert_eq!(at(&link).check(&run).expect("fine"), dir.canonicalize().expect("path"));
        fs::write(dir.join("file"), "").expect("file");
        assert!(matches!(refused(&dir), PreflightError::NotEmpty { .. }));
        assert!(matches!(refused(&dir.join("file")), PreflightError::NotAFolder { .. }));
        assert!(matches!(refused(Path::new("/proc")), PreflightError::AlreadyMounted { .. }));
    }

    #[test]
    fn a_dead_mount_is_cleaned_up_and_a_living_one_is_not() {
        let home = tempfile::tempdir().expect("folder");
        let run = RunDir::open(&home.path().join("run")).expect("run directory");
        let dir = home.path().join("kit");
        fs::create_dir(&dir).expect("folder");
        drop(fixtures::pretended_mount(&dir));
        assert_eq!(at(&dir).check(&run).expect("cleaned up"), dir.canonicalize().expect("path"));
        rustix::mount::mount("tmpfs", &dir, "fuse.kitfs", rustix::mount::MountFlags::empty(), None).expect_err("no device");
        fixtures::tmpfs(&dir);
        assert!(matches!(at(&dir).check(&run), Err(PreflightError::AlreadyMounted { .. })));
        rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    }

    #[test]
    fn other_users_are_not_shown_an_ordinary_users_cache() {
        let cases = [(false, 1000, false, true), (true, 0, false, true), (true, 1000, true, true), (true, 1000, false, false)];
        for (allow_other, cache_owner, trust_user_cache, fine) in cases {
            let preflight = Preflight { dir: Path::new("/"), allow_other, cache_owner, trust_user_cache };
            assert_eq!(preflight.check_cache().is_ok(), fine, "{preflight:?}");
        }
    }

    #[test]
    fn the_word_in_fuse_conf() {
        let file = tempfile::NamedTempFile::new().expect("file");
        for (text, allowed) in [
            ("", false),
            ("#user_allow_other\n", false),
            ("# x\n user_allow_other \n", true),
            ("user_allow_others", false),
            ("\0user_allow_other", false),
        ] {
            fs::write(file.path(), text).expect("written");
            assert_eq!(allows_other(file.path()), allowed, "{text:?}");
        }
        assert!(!allows_other(Path::new("/nonexistent/fuse.conf")));
    }
}
