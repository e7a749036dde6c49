//! What the store needs of the host: a filesystem that can carry a cache, and a boot to tell its own writes by.

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{StoreError, disk};
use super::work::WorkDir;
use crate::failure::{ErrorClass, chain};
use crate::rehearsal;

/// Filesystems (by the `f_type` of statfs) on which flock, rename or ctime are not what the store stands on.
const UNSUITABLE: [(u32, &str); 9] = [
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "kAFS"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
];
const FUSE: u32 = 0x6573_5546;

/// The id of this boot; `None` if the kernel does not tell.
pub(super) fn boot_id() -> Option<String> {
    let id = match rehearsal::boot() {
        Some(id) => id,
        None => fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?,
    };
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Refuses a directory on a filesystem that is known not to carry a cache.
pub(super) fn refuse_unsuitable(dir: &Dir) -> Result<(), StoreError> {
    let magic = rustix::fs::fstatfs(dir).map_err(disk(format!("looking at the filesystem of {}", dir.path().display())))?.f_type;
    // The field is signed or 32 bits wide on some machines; the magic numbers have 32 bits.
    let magic = magic as u32;
    let mount_type = if magic == FUSE { mount_type(dir) } else { None };
    match objection(magic, mount_type.as_deref()) {
        None => Ok(()),
        Some((filesystem, reason)) => Err(StoreError::Unsuitable { path: dir.path().to_owned(), filesystem, reason: reason.into() }),
    }
}

fn objection(magic: u32, mount_type: Option<&str>) -> Option<(String, &'static str)> {
    const REMOTE: &str = "locks, renames and change times of a network filesystem are not dependable enough";
    if let Some((_, name)) = UNSUITABLE.iter().find(|(number, _)| *number == magic) {
        return Some(((*name).to_owned(), REMOTE));
    }
    match (magic, mount_type) {
        (FUSE, Some("fuse.fuse-overlayfs")) => None,
        (FUSE, Some("fuse.kitfs")) => Some(("kitfs".into(), "a mount cannot hold its own cache")),
        (FUSE, other) => Some((other.unwrap_or("FUSE").to_owned(), REMOTE)),
        _ => None,
    }
}

/// The type of the mount that `dir` lies on, as `/proc/self/mountinfo` has it.
pub(super) fn mount_type(dir: &Dir) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.number())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(&id))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').next().map(str::to_owned)
}

/// What the start-up probe found out.
#[derive(Debug)]
pub(super) struct Abilities {
    /// Space can be reserved ahead. Without it a full disk is only noticed when it is full.
    pub(super) fallocate: bool,
    /// Nothing can be written there now.
    pub(super) trouble: Option<StoreError>,
}

/// Tries what the store stands on, in a directory of its own below `dir`: locks that two descriptors contend for, a rename that does not
/// replace.
pub(super) fn probe(dir: &Dir) -> Result<Abilities, StoreError> {
    // Held as an ingest is, for whoever opens the cache at the same time removes what looks left behind.
    match WorkDir::make(dir, "probe").and_then(|place| probe_in(dir, place.dir())) {
        Err(error) if passes(error.class()) => Ok(Abilities { fallocate: true, trouble: Some(error) }),
        other => other,
    }
}

/// True for what is no trait of a filesystem, but how it is now. What is in a cache that is full, was made read-only or has run out of descriptors can still be
/// read, by a worker that begins only now as well; it was probed when it was well.
fn passes(class: ErrorClass) -> bool {
    use libc::{EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS};
    matches!(class, ErrorClass::Disk(ENOSPC | EDQUOT | EROFS | EIO | EMFILE | ENFILE | ENOMEM))
}

fn probe_in(dir: &Dir, place: &Dir) -> Result<Abilities, StoreError> {
    let unsuitable = |reason: String| StoreError::Unsuitable { path: dir.path().to_owned(), filesystem: "this filesystem".into(), reason };
    let first = place.create("a")?;
    let second = place.lock_file("a")?;
    rustix::fs::flock(&first, FlockOperation::NonBlockingLockExclusive).map_err(|error| unsuitable(format!("flock fails: {error}")))?;
    match rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        other => return Err(unsuitable(format!("flock does not exclude: {other:?}"))),
    }
    place.step("write", "a").map_err(disk(format!("writing {}", place.path_of("a").display())))?;
    first.write_all_at(b"probe", 0).map_err(disk(format!("writing {}", place.path_of("a").display())))?;
    drop(place.create("b")?);
    match place.rename_new("a", place, "b") {
        Ok(false) => {}
        Ok(true) => return Err(unsuitable("a rename replaces although it must not".into())),
        Err(error) if passes(error.class()) => return Err(error),
        Err(error) => return Err(unsuitable(format!("a rename that does not replace fails: {}", chain(&error)))),
    }
    let fallocate = match rustix::fs::fallocate(&first, FallocateFlags::KEEP_SIZE, 0, 8192) {
        Ok(()) => true,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => false,
        Err(error) => return Err(disk(format!("reserving space in {}", place.path().display()))(error)),
    };
    Ok(Abilities { fallocate, trouble: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_filesystems_and_kitfs_itself_are_refused() {
        for (magic, mount_type, refused) in [
            (0xef53, None, None),      // ext4
            (0x0102_1994, None, None), // tmpfs
            (0x794c_7630, None, None), // overlayfs
            (0x6969, None, Some("NFS")),
            (0xff53_4d42, None, Some("CIFS")),
            (FUSE, Some("fuse.fuse-overlayfs"), None),
            (FUSE, Some("fuse.sshfs"), Some("fuse.sshfs")),
            (FUSE, Some("fuse.kitfs"), Some("kitfs")),
            (FUSE, None, Some("FUSE")),
        ] {
            let named = objection(magic, mount_type).map(|(name, _)| name);
            assert_eq!(named.as_deref(), refused, "{magic:x} {mount_type:?}");
        }
    }

    #[test]
    fn an_ordinary_directory_passes_the_probe_and_stays_clean() {
        let path = tempfile::tempdir().expect("a directory");
        let dir = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
        refuse_unsuitable(&dir).expect("an ordinary filesystem");
        probe(&dir).expect("an ordinary filesystem");
        assert_eq!(dir.list().expect("a listing"), Vec::<String>::new());
    }

    /// Who starts while another one sweeps found its directory gone, and ended.
    #[test]
    fn a_probe_under_way_is_not_swept() {
        let path = tempfile::tempdir().expect("a directory");
        let store = crate::store::Store::open(path.path()).expect("a cache");
        let place = WorkDir::make(&store.0.ingest, "probe").expect("room");
        store.0.remove_leftovers().expect("nothing is in the way");
        probe_in(&store.0.ingest, place.dir()).expect("an ordinary filesystem");
    }

    #[test]
    fn this_boot_has_an_id() {
        assert!(boot_id().is_some_and(|id| id.len() == 36));
    }
}
