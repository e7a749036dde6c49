//! Taking a mount down, by whoever may.
//!
//! A path says little about what is mounted there by the time of the call, so the caller names the mount that it means. Only a mount that is its own is
//! touched. The system call is for those with the privilege, everybody else goes through `fusermount3`, which has it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::limits::{FUSERMOUNT_LIMIT, FUSERMOUNT_MESSAGE_BYTES};
use crate::mountinfo::mount_id_at;

/// The program that mounts and unmounts for ordinary users.
pub const FUSERMOUNT: &str = "fusermount3";

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It is gone from its place.
    Done,
    /// Something has it in use. Never said when it was to be taken down lazily.
    Busy,
    /// It is not what is mounted there: it is gone already, or another one covers it.
    NotOurs,
}

/// Takes down the mount with the id `expected`, if it is what is mounted at `mountpoint`. With `lazy`, files that are open stay usable.
pub fn detach(mountpoint: &Path, expected: u64, lazy: bool) -> io::Result<Detached> {
    match mount_id_at(mountpoint) {
        Ok(id) if id == expected => {}
        Ok(_) => return Ok(Detached::NotOurs),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Detached::NotOurs),
        Err(error) => return Err(error),
    }
    let flags = if lazy { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match unmount(mountpoint, flags) {
        Ok(()) => Ok(Detached::Done),
        Err(Errno::BUSY) => Ok(Detached::Busy),
        // No mount point any more, since somebody else was faster.
        Err(Errno::INVAL) => Ok(Detached::NotOurs),
        Err(Errno::PERM) => by_fusermount(mountpoint, expected, lazy),
        Err(error) => Err(error.into()),
    }
}

/// Where `fusermount3` is, if it is installed.
pub fn fusermount() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(usual)
        .map(|folder| folder.join(FUSERMOUNT))
        .find(|file| file.is_file())
}

fn by_fusermount(mountpoint: &Path, expected: u64, lazy: bool) -> io::Result<Detached> {
    let program = fusermount().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{FUSERMOUNT} is not installed")))?;
    let mut command = Command::new(program);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    // Its messages are told apart by their text.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let status = wait(&mut child)?;
    if status.success() {
        return Ok(Detached::Done);
    }
    let mut message = Vec::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(FUSERMOUNT_MESSAGE_BYTES).read_to_end(&mut message)?;
    }
    let message = String::from_utf8_lossy(&message);
    if mount_id_at(mountpoint).ok() != Some(expected) {
        Ok(Detached::NotOurs)
    } else if message.contains("busy") {
        Ok(Detached::Busy)
    } else {
        // What it says of a mount that belongs to somebody else.
        let foreign = message.contains("not permitted") || message.contains("not found in");
        let kind = if foreign { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        Err(io::Error::new(kind, format!("{FUSERMOUNT} failed ({status}): {}", message.trim().escape_debug())))
    }
}

fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("a child without a pid"))?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: FUSERMOUNT_LIMIT.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)) == Ok(0) {
        child.kill()?;
        // Not waited for: it may hang in the kernel.
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{FUSERMOUNT} took more than {} s", FUSERMOUNT_LIMIT.as_secs())));
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn only_the_mount_that_was_meant_is_taken_down() {
        let folder = tempfile::tempdir().expect("folder");
        let place = folder.path().canonicalize().expect("path");
        let below = mount_id_at(&place).expect("id");
        fixtures::tmpfs(&place);
        let id = mount_id_at(&place).expect("id");
        assert_ne!(id, below);
        assert_eq!(detach(&place, below, false).expect("no error"), Detached::NotOurs);
        let held = std::fs::File::create(place.join("held")).expect("file");
        assert_eq!(detach(&place, id, false).expect("no error"), Detached::Busy);
        assert_eq!(detach(&place, id, true).expect("no error"), Detached::Done);
        assert_eq!(detach(&place, id, true).expect("no error"), Detached::NotOurs);
        drop(held);
    }

    #[test]
    fn what_fusermount_says_is_understood() {
        let folder = tempfile::tempdir().expect("folder");
        let place = folder.path().canonicalize().expect("path");
        assert!(fusermount().is_some(), "this test needs {FUSERMOUNT} (Debian: apt install fuse3)");
        let _device = fixtures::pretended_mount(&place);
        let id = mount_id_at(&place).expect("id");
        let held = rustix::fs::open(&place, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("held");
        assert_eq!(by_fusermount(&place, id, false).expect("no error"), Detached::Busy);
        assert_eq!(by_fusermount(&place, id, true).expect("no error"), Detached::Done);
        assert_eq!(by_fusermount(&place, id, true).expect("no error"), Detached::NotOurs);
        drop(held);
    }

    #[test]
    fn a_place_that_is_gone_is_nobodys() {
        assert_eq!(detach(Path::new("/nonexistent/kit"), 1, false).expect("no error"), Detached::NotOurs);
    }
}
