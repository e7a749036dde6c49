//! What is mounted where, as the kernel tells it in `/proc/self/mountinfo`.
//!
//! Nothing here touches a mounted filesystem: whatever is asked is answered even when the filesystem behind a path is dead or hangs.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};

/// The type that the kernel shows for a mount of kitfs.
pub const FS_TYPE: &str = "fuse.kitfs";

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id; unique among those that exist now, used again later.
    pub mount_id: u64,
    /// The id of the mount that it is mounted on.
    pub parent_id: u64,
    /// The device number, `(major, minor)`; bind mounts of one filesystem share it.
    pub device: (u32, u32),
    /// Which part of the filesystem is mounted.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// The filesystem's type.
    pub fs_type: String,
    /// The source, as it was given at the mount.
    pub source: String,
}

impl MountEntry {
    /// Whether kitfs mounted it.
    pub fn is_kitfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts of this process's mount namespace.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(MOUNTINFO)?))
}

/// The mounts in the text of a `mountinfo`. Lines that are none are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// The mount that one reaches by `path`, if something is mounted exactly there: the uppermost, if several are.
pub fn at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(topmost(&read()?, path).cloned())
}

/// The same, among `entries`.
pub fn topmost<'a>(entries: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let here = || entries.iter().filter(|entry| entry.mountpoint == path);
    // What another one at the same place is mounted on is covered by it.
    here().rfind(|entry| !here().any(|upper| upper.parent_id == entry.mount_id && upper.mount_id != entry.mount_id))
}

/// Where `dir` is, absolute and without symlinks, and what is mounted exactly there.
pub fn find(dir: &Path) -> io::Result<(PathBuf, Option<MountEntry>)> {
    let entries = read()?;
    let absolute = std::path::absolute(dir)?;
    // Not by resolving the path as a whole, which asks what is mounted there.
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name())
        && let Ok(parent) = parent.canonicalize()
    {
        let path = parent.join(name);
        if let Some(entry) = topmost(&entries, &path) {
            return Ok((path, Some(entry.clone())));
        }
    }
    // No mount, a symlink to one, or a path that ends with `..`.
    let path = absolute.canonicalize()?;
    let entry = topmost(&entries, &path).cloned();
    Ok((path, entry))
}

/// The id of the mount that `path` leads into. A symlink at its end is not followed.
pub fn mount_id_at(path: &Path) -> io::Result<u64> {
    // A descriptor with O_PATH is made without asking the filesystem.
    let place = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?;
    mount_id_of(&text).ok_or_else(|| io::Error::other("the kernel tells no mount id in fdinfo"))
}

/// The mount id in the text of a `/proc/<pid>/fdinfo/<n>`.
pub fn mount_id_of(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Replaces the octal escapes of the kernel by the bytes that they stand for.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        match rest {
            [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', after @ ..] => {
                bytes.push((high - b'0') * 64 + (middle - b'0') * 8 + (low - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Notices that something was mounted or unmounted.
#[derive(Debug)]
pub struct Changes(File);

impl Changes {
    /// Notices every change from now on.
    pub fn watch() -> io::Result<Self> {
        Ok(Self(File::open(MOUNTINFO)?))
    }

    /// Waits for the next change, at most as long as `limit`; false if there was none.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.0, PollFlags::PRI)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            // Taken for a change: whoever waits looks again, and waits on.
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`, with any number of fields before the hyphen.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mount_id = number(fields.next()?)?;
    let parent_id = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = path(fields.next()?);
    let mountpoint = path(fields.next()?);
    let _options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(MountEntry { mount_id, parent_id, device, root, mountpoint, fs_type, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(unescape(field)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_mountinfo() {
        let plain = MountEntry {
            mount_id: 36,
            parent_id: 35,
            device: (0, 52),
            root: "/".into(),
            mountpoint: "/mnt/a kit".into(),
            fs_type: "fuse.kitfs".into(),
            source: "reg.example/a:v1@sha256:00".into(),
        };
        let cases: &[(&str, &str, Option<MountEntry>)] = &[
            (
                "one optional field",
                r"36 35 0:52 / /mnt/a\040kit ro,nosuid shared:1 - fuse.kitfs reg.example/a:v1@sha256:00 ro",
                Some(plain.clone()),
            ),
            ("no optional field", r"36 35 0:52 / /mnt/a\040kit ro - fuse.kitfs reg.example/a:v1@sha256:00 ro", Some(plain.clone())),
            (
                "three optional fields",
                r"36 35 0:52 / /mnt/a\040kit ro shared:1 master:2 unbindable - fuse.kitfs reg.example/a:v1@sha256:00 ro",
                Some(plain.clone()),
            ),
            (
                "escapes in every name",
                r"1 2 8:1 /r\011s /\134\012 rw - ext\0434 a\054b rw",
                Some(MountEntry {
                    mount_id: 1,
                    parent_id: 2,
                    device: (8, 1),
                    root: "/r\ts".into(),
                    mountpoint: "/\\\n".into(),
                    fs_type: "ext#4".into(),
                    source: "a,b".into(),
                }),
            ),
            (
                "an empty source",
                "1 2 8:1 / /a rw - tmpfs  rw",
                Some(MountEntry {
                    mount_id: 1,
                    parent_id: 2,
                    device: (8, 1),
                    root: "/".into(),
                    mountpoint: "/a".into(),
                    fs_type: "tmpfs".into(),
                    source: String::new(),
                }),
            ),
            ("no hyphen", "1 2 8:1 / /a rw tmpfs tmpfs rw", None),
            ("cut off", "1 2 8:1 / /a rw - tmpfs", None),
            ("no number", "x 2 8:1 / /a rw - tmpfs t rw", None),
            ("no device", "1 2 81 / /a rw - tmpfs t rw", None),
            ("empty", "", None),
        ];
        for (name, line, expected) in cases {
            assert_eq!(parse(line.as_bytes()), expected.iter().cloned().collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn escapes() {
        let cases: &[(&[u8], &[u8])] = &[
            (br"\040", b" "),
            (br"\377\000", b"\xff\0"),
            (br"\400", br"\400"),
            (br"\04", br"\04"),
            (br"\\040", br"\ "),
            (br"a\", br"a\"),
            (br"\048", br"\048"),
            (b"\xe4", b"\xe4"),
        ];
        for (field, expected) in cases {
            assert_eq!(unescape(field), *expected, "{:?}", String::from_utf8_lossy(field));
        }
    }

    #[test]
    fn the_uppermost_of_several_mounts_is_the_one_that_counts() {
        let line = |id, parent, at: &str| format!("{id} {parent} 0:{id} / {at} rw - tmpfs t rw\n");
        let stacked = parse([line(10, 1, "/a"), line(30, 10, "/a"), line(20, 30, "/a"), line(40, 20, "/a/b")].concat().as_bytes());
        assert_eq!(topmost(&stacked, Path::new("/a")).map(|entry| entry.mount_id), Some(20));
        assert_eq!(topmost(&stacked, Path::new("/a/b")).map(|entry| entry.mount_id), Some(40));
        assert_eq!(topmost(&stacked, Path::new("/b")), None);
    }

    #[test]
    fn the_mount_id_of_a_path_is_that_of_its_entry() {
        let entry = at(Path::new("/proc")).expect("readable").expect("/proc is mounted");
        assert_eq!(mount_id_at(Path::new("/proc")).expect("an id"), entry.mount_id);
        assert_eq!(mount_id_at(Path::new("/proc/self/fd")).expect("an id"), entry.mount_id);
    }

    #[test]
    fn a_mount_is_found_by_every_path_to_it() {
        let folder = tempfile::tempdir().expect("folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).expect("link");
        for path in [Path::new("/proc"), Path::new("/./proc/"), Path::new("/proc/self/.."), &link] {
            let (found, entry) = find(path).expect("found");
            assert_eq!(
                (found.as_path(), entry.map(|entry| entry.fs_type).as_deref()),
                (Path::new("/proc"), Some("proc")),
                "{}",
                path.display()
            );
        }
        let (found, entry) = find(folder.path()).expect("found");
        assert_eq!((found, entry), (folder.path().canonicalize().expect("path"), None));
        assert_eq!(find(&folder.path().join("none")).expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn nothing_changes_while_nobody_mounts() {
        // Other tests mount meanwhile, so only an end of the wait is certain.
        let changes = Changes::watch().expect("readable");
        assert!(changes.wait(Duration::from_millis(1)).is_ok());
    }
}
