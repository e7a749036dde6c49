//! Who has a mount, or files of a cache, in use.
//!
//! It reads `/proc` and compares mount ids, which needs no request to the mounted filesystem: that may be the very thing that hangs. Only what keeps this
//! mount from being taken down is listed; a copy of it in another mount namespace does not, nor do its users.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::limits::{HOLDERS_LIMIT, HOLDERS_MAX};
use crate::mountinfo::{MountEntry, mount_id_of};

/// A process that has a mount in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, as it gives it itself; not to be trusted on a terminal.
    pub name: String,
    /// How it holds the mount.
    pub holding: Holding,
}

/// How a process holds a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// By an open file.
    Descriptor(PathBuf),
    /// By a mapping of a file.
    Mapping(PathBuf),
    /// It works in a folder of it.
    WorkingFolder(PathBuf),
    /// Its root is in it.
    Root(PathBuf),
    /// Its program is in it.
    Program(PathBuf),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (how, path) = match &self.holding {
            Holding::Descriptor(path) => ("has open", path),
            Holding::Mapping(path) => ("has mapped", path),
            Holding::WorkingFolder(path) => ("works in", path),
            Holding::Root(path) => ("has its root at", path),
            Holding::Program(path) => ("runs", path),
        };
        write!(f, "{} (pid {}) {how} {}", self.name.escape_debug(), self.pid, path.to_string_lossy().escape_debug())
    }
}

/// The first of a mount's holders that can be found in the time allowed, one entry for each process.
pub fn holders(entry: &MountEntry) -> Vec<Holder> {
    let (found, holders) = channel();
    let (mount_id, device) = (entry.mount_id, entry.device);
    // On a thread of its own: reading about a process can hang with that process.
    if thread::Builder::new().name("holders".to_owned()).spawn(move || search(mount_id, device, &found)).is_err() {
        return Vec::new();
    }
    let deadline = Instant::now() + HOLDERS_LIMIT;
    let mut list = Vec::new();
    while list.len() < HOLDERS_MAX {
        match holders.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(holder) => list.push(holder),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    list
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as it gives it itself.
    pub name: String,
}

/// Who has which files of `folder` open, by name, as far as that can be found out in the time allowed. No file is touched for it.
pub fn users_of(folder: &Path) -> BTreeMap<OsString, BTreeSet<Process>> {
    let mut users = BTreeMap::<OsString, BTreeSet<Process>>::new();
    let Ok(folder) = folder.canonicalize() else { return users };
    let (found, open) = channel();
    if thread::Builder::new().name("holders".to_owned()).spawn(move || search_files(&folder, &found)).is_err() {
        return users;
    }
    let deadline = Instant::now() + HOLDERS_LIMIT;
    while let Ok((file, process)) = open.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        users.entry(file).or_default().insert(process);
    }
    users
}

fn search_files(folder: &Path, found: &Sender<(OsString, Process)>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let target = target(&descriptor.path());
            if target.parent() == Some(folder)
                && let Some(file) = target.file_name()
                && found.send((file.to_owned(), Process { pid, name: name_of(&process.path()) })).is_err()
            {
                return;
            }
        }
    }
}

fn name_of(process: &Path) -> String {
    fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned()
}

fn search(mount_id: u64, device: (u32, u32), found: &Sender<Holder>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(holding) = holding(&process.path(), mount_id, device) {
            let name = name_of(&process.path());
            if found.send(Holder { pid, name, holding }).is_err() {
                return;
            }
        }
    }
}

fn holding(process: &Path, mount_id: u64, device: (u32, u32)) -> Option<Holding> {
    // A file tells most, so it comes before the rest.
    let descriptors = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
    for descriptor in descriptors {
        if fs::read_to_string(descriptor.path()).is_ok_and(|text| mount_id_of(&text) == Some(mount_id)) {
            return Some(Holding::Descriptor(target(&process.join("fd").join(descriptor.file_name()))));
        }
    }
    for name in ["cwd", "root", "exe"] {
        let link = process.join(name);
        if leads_into(&link, mount_id) {
            let path = target(&link);
            return Some(match name {
                "cwd" => Holding::WorkingFolder(path),
                "root" => Holding::Root(path),
                _ => Holding::Program(path),
            });
        }
    }
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    maps.lines().find_map(|line| mapped(line, device)).map(Holding::Mapping)
}

/// Whether a magic link of `/proc` leads into the mount. A descriptor with O_PATH is made without asking the filesystem.
fn leads_into(link: &Path, mount_id: u64) -> bool {
    let Ok(place) = openat(CWD, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { return false };
    fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd())).is_ok_and(|text| mount_id_of(&text) == Some(mount_id))
}

fn target(link: &Path) -> PathBuf {
    fs::read_link(link).unwrap_or_default()
}

/// The file in a line of `/proc/<pid>/maps`, if it is one of the device: `start-end perms offset major:minor inode  path`.
fn mapped(line: &str, device: (u32, u32)) -> Option<PathBuf> {
    let mut fields = line.splitn(6, ' ');
    let (major, minor) = fields.nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let path = fields.nth(1)?.trim_start();
    ((number(major)?, number(minor)?) == device && !path.is_empty()).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    #[test]
    fn lines_of_maps() {
        let cases = [
            ("7f00-7f01 r--p 00000000 00:34 5                          /mnt/a kit/model", Some("/mnt/a kit/model")),
            ("7f00-7f01 r--p 00000000 00:35 5                          /mnt/other", None),
            ("7f00-7f01 rw-p 00000000 00:34 0 ", None),
            ("7f00-7f01 rw-p 00000000 00:34", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(mapped(line, (0, 52)).as_deref(), expected.map(Path::new), "{line}");
        }
    }

    #[test]
    fn a_process_is_found_by_each_way_to_hold_a_mount() {
        let folder = tempfile::tempdir().expect("folder");
        let place = folder.path().canonicalize().expect("path");
        crate::fixtures::tmpfs(&place);
        let entry = mountinfo::at(&place).expect("readable").expect("mounted");
        let is_held = |holding: Holding| {
            let name = fs::read_to_string("/proc/self/comm").expect("name").trim_end().to_owned();
            holders(&entry).contains(&Holder { pid: std::process::id(), name, holding })
        };
        assert_eq!(holders(&entry), []);
        let file = place.join("file");
        fs::write(&file, [0; 4096]).expect("file");
        let open = fs::File::open(&file).expect("open");
        assert!(is_held(Holding::Descriptor(file.clone())));
        // SAFETY: nobody changes the file while it is mapped.
        let map = unsafe { memmap2::Mmap::map(&open) }.expect("mapped");
        drop(open);
        assert!(is_held(Holding::Mapping(file)));
        drop(map);
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&place).spawn().expect("child");
        let found = holders(&entry);
        assert!(
            matches!(found.as_slice(), [Holder { pid, holding: Holding::WorkingFolder(at), .. }] if *pid == child.id() && *at == place),
            "{found:?}"
        );
        child.kill().expect("killed");
        child.wait().expect("ended");
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).expect("nobody holds it");
    }
}
