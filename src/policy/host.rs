//! Files that speak for the host: read only if nobody but its administrator can have written them.
//!
//! The way to a file is walked step by step, from `/` on, with every folder and every symbolic link looked at before it is followed. What is
//! judged is what was opened, so that nothing can be put in its place between look and read. A folder that others may write is good only on
//! a mount that nobody can write: that is how Kubernetes shows a ConfigMap. Access lists need no look of their own, since the group's bits
//! of a mode say the most that a list grants.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::limits;

/// How files of the host are found and judged.
#[derive(Debug, Clone)]
pub struct HostFiles {
    /// Where the walk begins, and where absolute links begin again: `/`.
    top: PathBuf,
    /// Who may own them.
    owners: Vec<u32>,
}

/// A file of the host, with what stands in it.
pub type HostFile = (PathBuf, Vec<u8>);

/// Why a file of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It cannot be opened or read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// It is somebody else's.
    #[error("`{}` belongs to user {owner}, and may belong only to {}", path.display(), owners(allowed))]
    Owner {
        /// Which file, folder or link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it may be.
        allowed: Vec<u32>,
    },
    /// Others can write it.
    #[error("`{}` can be written by others than its owner (mode {mode:04o})", path.display())]
    Writable {
        /// Which file or folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is something else.
    #[error("`{}` is {found}, where {expected} was expected", path.display())]
    Kind {
        /// What was looked at.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// A link leads nowhere.
    #[error("`{}` is not there, and a symbolic link leads to it", path.display())]
    Dangling {
        /// Where it leads.
        path: PathBuf,
    },
    /// Links lead to links.
    #[error("more than {limit} symbolic links on the way to `{}`", path.display(), limit = limits::HOST_SYMLINKS)]
    Links {
        /// Where to.
        path: PathBuf,
    },
    /// It has another ending.
    #[error("`{}` does not end with `{ending}`: nothing else may lie here, so that nothing is passed over", path.display())]
    Entry {
        /// Which.
        path: PathBuf,
        /// The ending that was expected.
        ending: &'static str,
    },
    /// There are too many.
    #[error("more than {limit} files in `{}`", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
        /// How many there may be.
        limit: usize,
    },
    /// It is too large.
    #[error("`{}` has more than {limit} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// How many it may have.
        limit: u64,
    },
}

fn owners(allowed: &[u32]) -> String {
    allowed.iter().map(|owner| if *owner == 0 { "root".to_owned() } else { format!("user {owner}") }).collect::<Vec<_>>().join(" and ")
}

/// What a walk came to.
enum Found {
    Folder(OwnedFd),
    File(File),
}

impl HostFiles {
    /// Those of this host: root's, and the caller's own where kitfs does not run as root.
    pub fn of_this_host() -> Self {
        Self::at(Path::new("/"))
    }

    /// Those of a host whose `/` is the folder `top`, for tests: looked at all the same.
    pub fn at(top: &Path) -> Self {
        Self::below(top, rustix::process::geteuid().as_raw())
    }

    fn below(top: &Path, caller: u32) -> Self {
        let mut owners = vec![0, caller];
        owners.dedup();
        Self { top: top.to_owned(), owners }
    }

    /// Where a path of this host's is, for whoever writes there.
    pub fn place(&self, path: &Path) -> PathBuf {
        self.top.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens a file. `None` if there is none of that name.
    pub fn open(&self, path: &Path) -> Result<Option<File>, HostError> {
        match self.find(path)? {
            None => Ok(None),
            Some(Found::File(file)) => Ok(Some(file)),
            Some(Found::Folder(_)) => Err(HostError::Kind { path: path.to_owned(), found: "a folder", expected: "a file" }),
        }
    }

    /// Reads a file. `None` if there is none of that name.
    pub fn file(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, HostError> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|source| HostError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > limit {
            return Err(HostError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(Some(bytes))
    }

    /// Reads every file of a folder, in the order of their names, dot-names apart. `None` if there is no such folder.
    pub fn folder(&self, path: &Path, ending: &'static str, files: usize, bytes: u64) -> Result<Option<Vec<HostFile>>, HostError> {
        let folder = match self.find(path)? {
            None => return Ok(None),
            Some(Found::Folder(folder)) => folder,
            Some(Found::File(_)) => return Err(HostError::Kind { path: path.to_owned(), found: "a file", expected: "a folder" }),
        };
        let failed = |error: Errno| HostError::Read { path: path.to_owned(), source: error.into() };
        let listed =
            rustix::fs::openat(&folder, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::new(listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            if !name.as_bytes().ends_with(ending.as_bytes()) {
                return Err(HostError::Entry { path: path.join(name), ending });
            }
            if names.len() == files {
                return Err(HostError::TooMany { path: path.to_owned(), limit: files });
            }
            names.push(path.join(name));
        }
        names.sort();
        let read = names.into_iter().map(|path| match self.file(&path, bytes)? {
            Some(content) => Ok((path, content)),
            None => Err(HostError::Read { path, source: Errno::NOENT.into() }),
        });
        read.collect::<Result<_, _>>().map(Some)
    }

    /// Walks to `path`, and looks at all that is on the way.
    fn find(&self, path: &Path) -> Result<Option<Found>, HostError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::open(&self.top, flags | OFlags::DIRECTORY, Mode::empty());
        let top = top.map_err(|error| HostError::Read { path: "/".into(), source: error.into() })?;
        self.judge(&top, Path::new("/"), false)?;
        // From the top on, each with its path as it is told.
        let mut way = vec![(top, PathBuf::from("/"))];
        // Each with whether a link says it.
        let mut ahead: VecDeque<(OsString, bool)> = steps(path, false);
        let mut links = 0;
        while let Some((step, of_a_link)) = ahead.pop_front() {
            if step == ".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let (folder, at) = way.last().expect("the top stays");
            let here = at.join(&step);
            let failed = |error: Errno| match error {
                // Whoever made the link wanted something to be there.
                Errno::NOENT if of_a_link => HostError::Dangling { path: here.clone() },
                _ => HostError::Read { path: here.clone(), source: error.into() },
            };
            let opened = match rustix::fs::openat(folder, &step, flags, Mode::empty()) {
                Err(Errno::NOENT) if !of_a_link => return Ok(None),
                opened => opened.map_err(failed)?,
            };
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened).map_err(failed)?.st_mode);
            match kind {
                FileType::Symlink => {
                    self.judge(&opened, &here, true)?;
                    links += 1;
                    if links > limits::HOST_SYMLINKS {
                        return Err(HostError::Links { path: path.to_owned() });
                    }
                    let target = rustix::fs::readlinkat(&opened, c"", Vec::new()).map_err(failed)?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        way.truncate(1);
                    }
                    let mut steps = steps(&target, true);
                    steps.append(&mut ahead);
                    ahead = steps;
                }
                FileType::Directory => {
                    self.judge(&opened, &here, false)?;
                    way.push((opened, here));
                }
                FileType::RegularFile if ahead.is_empty() => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(folder, &step, flags, Mode::empty()).map_err(failed)?;
                    // The name may mean something else by now: what was opened is judged.
                    let stat = rustix::fs::fstat(&file).map_err(failed)?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Err(HostError::Kind { path: here, found: "no file any more", expected: "a file" });
                    }
                    self.judge(&file, &here, false)?;
                    return Ok(Some(Found::File(file.into())));
                }
                FileType::RegularFile => return Err(HostError::Kind { path: here, found: "a file", expected: "a folder" }),
                _ => return Err(HostError::Kind { path: here, found: "neither file nor folder", expected: "one of them" }),
            }
        }
        Ok(way.pop().map(|(folder, _)| Found::Folder(folder)))
    }

    /// Whether what was opened is the host's own. The permissions of a link say nothing.
    fn judge(&self, opened: impl AsFd, path: &Path, is_link: bool) -> Result<(), HostError> {
        let failed = |error: Errno| HostError::Read { path: path.to_owned(), source: error.into() };
        let stat = rustix::fs::fstat(&opened).map_err(failed)?;
        if !self.owners.contains(&stat.st_uid) {
            return Err(HostError::Owner { path: path.to_owned(), owner: stat.st_uid, allowed: self.owners.clone() });
        }
        let mode = stat.st_mode & 0o7777;
        if is_link || mode & 0o022 == 0 {
            return Ok(());
        }
        let mount = rustix::fs::fstatvfs(&opened).map_err(failed)?;
        if mount.f_flag.contains(StatVfsMountFlags::RDONLY) { Ok(()) } else { Err(HostError::Writable { path: path.to_owned(), mode }) }
    }
}

fn steps(path: &Path, of_a_link: bool) -> VecDeque<(OsString, bool)> {
    let steps = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some((name.to_owned(), of_a_link)),
        Component::ParentDir => Some(("..".into(), of_a_link)),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::process::Command;
    use std::thread;

    use super::*;

    const FOLDER: &str = "/etc/kitfs/policy.d";
    const OTHER: u32 = 65_534;

    /// A root of its own with one policy in it.
    struct Top(tempfile::TempDir);

    impl Top {
        fn new() -> Self {
            assert!(rustix::process::geteuid().is_root(), "what belongs to whom can only be tested as root");
            let top = Self(tempfile::tempdir().expect("a folder"));
            top.mode("/", 0o755);
            fs::create_dir_all(top.path(FOLDER)).expect("room");
            for folder in ["/etc", "/etc/kitfs", FOLDER] {
                top.mode(folder, 0o755);
            }
            top.write("/etc/kitfs/policy.d/a.yaml");
            top
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path.trim_start_matches('/'))
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).expect("ours");
        }

        fn write(&self, path: &str) {
            fs::write(self.path(path), path).expect("room");
            self.mode(path, 0o644);
        }

        fn read(&self, caller: u32) -> Result<Option<Vec<String>>, HostError> {
            let files = HostFiles::below(self.0.path(), caller).folder(Path::new(FOLDER), ".yaml", 3, 100)?;
            Ok(files.map(|files| files.into_iter().map(|(_, bytes)| String::from_utf8(bytes).expect("text")).collect()))
        }
    }

    /// What happens to a host before its policies are read, and what is said then.
    type Case = (&'static str, fn(&Top), &'static str);

    #[test]
    fn what_others_could_have_written_is_refused() {
        let cases: &[Case] = &[
            (
                "folder writable by its group",
                |top| top.mode(FOLDER, 0o775),
                "`/etc/kitfs/policy.d` can be written by others than its owner (mode 0775)",
            ),
            ("folder above writable by all", |top| top.mode("/etc", 0o1777), "`/etc` can be written by others than its owner (mode 1777)"),
            ("the top writable", |top| top.mode("/", 0o757), "`/` can be written by others than its owner (mode 0757)"),
            (
                "file writable by its group",
                |top| top.mode("/etc/kitfs/policy.d/a.yaml", 0o664),
                "`/etc/kitfs/policy.d/a.yaml` can be written by others than its owner (mode 0664)",
            ),
            (
                "file of another user",
                |top| chown(top.path("/etc/kitfs/policy.d/a.yaml"), Some(OTHER), None).expect("root"),
                "`/etc/kitfs/policy.d/a.yaml` belongs to user 65534, and may belong only to root",
            ),
            (
                "folder of another user",
                |top| chown(top.path("/etc/kitfs"), Some(OTHER), None).expect("root"),
                "`/etc/kitfs` belongs to user 65534, and may belong only to root",
            ),
            (
                "link of another user",
                |top| {
                    symlink("a.yaml", top.path("/etc/kitfs/policy.d/b.yaml")).expect("room");
                    std::os::unix::fs::lchown(top.path("/etc/kitfs/policy.d/b.yaml"), Some(OTHER), None).expect("root");
                },
                "`/etc/kitfs/policy.d/b.yaml` belongs to user 65534, and may belong only to root",
            ),
            (
                "link through a folder that others write",
                |top| {
                    fs::create_dir(top.path("/tmp")).expect("room");
                    top.write("/tmp/x.yaml");
                    top.mode("/tmp", 0o1777);
                    symlink("/tmp/x.yaml", top.path("/etc/kitfs/policy.d/b.yaml")).expect("room");
                },
                "`/tmp` can be written by others than its owner (mode 1777)",
            ),
            (
                "folder that is a link to one of another user",
                |top| {
                    fs::rename(top.path(FOLDER), top.path("/elsewhere")).expect("room");
                    chown(top.path("/elsewhere"), Some(OTHER), None).expect("root");
                    symlink("../../elsewhere", top.path(FOLDER)).expect("room");
                },
                "`/elsewhere` belongs to user 65534, and may belong only to root",
            ),
            (
                "link to nothing",
                |top| symlink("none", top.path("/etc/kitfs/policy.d/b.yaml")).expect("room"),
                "`/etc/kitfs/policy.d/none` is not there, and a symbolic link leads to it",
            ),
            (
                "folder that is a link to nothing",
                |top| {
                    fs::rename(top.path(FOLDER), top.path("/elsewhere")).expect("room");
                    symlink("/none", top.path(FOLDER)).expect("room");
                },
                "`/none` is not there, and a symbolic link leads to it",
            ),
            (
                "links in a circle",
                |top| symlink("b.yaml", top.path("/etc/kitfs/policy.d/b.yaml")).expect("room"),
                "more than 40 symbolic links on the way to `/etc/kitfs/policy.d/b.yaml`",
            ),
            (
                "other ending",
                |top| top.write("/etc/kitfs/policy.d/b.yml"),
                "`/etc/kitfs/policy.d/b.yml` does not end with `.yaml`: nothing else may lie here, so that nothing is passed over",
            ),
            (
                "a folder in it",
                |top| fs::create_dir(top.path("/etc/kitfs/policy.d/b.yaml")).expect("room"),
                "`/etc/kitfs/policy.d/b.yaml` is a folder, where a file was expected",
            ),
            (
                "a pipe in it",
                |top| {
                    let pipe = top.path("/etc/kitfs/policy.d/b.yaml");
                    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from(0o644), 0).expect("root");
                },
                "`/etc/kitfs/policy.d/b.yaml` is neither file nor folder, where one of them was expected",
            ),
            (
                "a file in its place",
                |top| {
                    fs::remove_dir_all(top.path(FOLDER)).expect("ours");
                    top.write(FOLDER);
                },
                "`/etc/kitfs/policy.d` is a file, where a folder was expected",
            ),
            (
                "a file above it",
                |top| {
                    fs::remove_dir_all(top.path("/etc/kitfs")).expect("ours");
                    top.write("/etc/kitfs");
                },
                "`/etc/kitfs` is a file, where a folder was expected",
            ),
            (
                "too many",
                |top| ["b", "c", "d"].iter().for_each(|name| top.write(&format!("/etc/kitfs/policy.d/{name}.yaml"))),
                "more than 3 files in `/etc/kitfs/policy.d`",
            ),
            (
                "too large",
                |top| fs::write(top.path("/etc/kitfs/policy.d/a.yaml"), [b'#'; 101]).expect("room"),
                "`/etc/kitfs/policy.d/a.yaml` has more than 100 bytes",
            ),
        ];
        for (name, prepare, expected) in cases {
            let top = Top::new();
            prepare(&top);
            match top.read(0) {
                Err(error) => assert_eq!(&error.to_string(), expected, "{name}"),
                Ok(files) => panic!("{name}: {files:?}"),
            }
        }
    }

    #[test]
    fn what_only_the_administrator_can_have_written_is_read() {
        let top = Top::new();
        top.write("/etc/kitfs/policy.d/.hidden");
        // As Kubernetes lays out a ConfigMap.
        fs::create_dir(top.path("/etc/kitfs/policy.d/..data_1")).expect("room");
        top.mode("/etc/kitfs/policy.d/..data_1", 0o755);
        top.write("/etc/kitfs/policy.d/..data_1/c.yaml");
        symlink("..data_1", top.path("/etc/kitfs/policy.d/..data")).expect("room");
        symlink("..data/c.yaml", top.path("/etc/kitfs/policy.d/c.yaml")).expect("room");
        symlink("/etc/kitfs/./policy.d/../policy.d/a.yaml", top.path("/etc/kitfs/policy.d/b.yaml")).expect("room");
        let read = top.read(0).expect("all is root's").expect("a folder");
        let a = "/etc/kitfs/policy.d/a.yaml";
        assert_eq!(read, [a, a, "/etc/kitfs/policy.d/..data_1/c.yaml"]);
        // A link on the way is no reason to expect something behind it.
        fs::rename(top.path("/etc"), top.path("/usr-etc")).expect("ours");
        symlink("usr-etc", top.path("/etc")).expect("room");
        assert_eq!(top.read(0).expect("all is root's").expect("a folder").len(), 3);
        fs::remove_dir_all(top.path("/usr-etc/kitfs")).expect("ours");
        assert!(top.read(0).expect("nothing there is no error").is_none());
        let top = Top::new();
        for missing in [FOLDER, "/etc/kitfs", "/etc"] {
            fs::remove_dir_all(top.path(missing)).expect("ours");
            assert!(top.read(0).expect("nothing there is no error").is_none(), "{missing}");
        }
        let top = Top::new();
        fs::remove_file(top.path(a)).expect("ours");
        assert_eq!(top.read(0).expect("root's").expect("a folder").len(), 0, "an empty folder is a set");
    }

    /// As Kubernetes mounts a ConfigMap: a folder of mode 0777, on a mount that is read-only.
    #[test]
    fn what_nobody_can_write_on_its_mount_may_be_writable_by_its_mode() {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
        let top = Top::new();
        top.mode(FOLDER, 0o777);
        top.mode("/etc/kitfs/policy.d/a.yaml", 0o666);
        let folder = top.path(FOLDER);
        // Mounts of a thread of its own: nobody else sees them, and they end with it.
        let look = || {
            // SAFETY: nothing but this thread has another view of the file system then, and it opens files by paths only.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("root may have mounts of its own");
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("root");
            mount_bind(&folder, &folder).expect("root");
            let writable = top.read(0);
            assert!(matches!(&writable, Err(HostError::Writable { mode: 0o777, .. })), "{writable:?}");
            mount_remount(&folder, MountFlags::BIND | MountFlags::RDONLY, c"").expect("root");
            assert_eq!(top.read(0).expect("nobody can write it").expect("a folder").len(), 1);
            mount_remount(&folder, MountFlags::BIND, c"").expect("root");
            chown(folder.join("a.yaml"), Some(OTHER), None).expect("root");
            mount_remount(&folder, MountFlags::BIND | MountFlags::RDONLY, c"").expect("root");
            let owned = top.read(0);
            assert!(matches!(&owned, Err(HostError::Owner { owner: OTHER, .. })), "the owner counts always: {owned:?}");
        };
        thread::scope(|scope| scope.spawn(look).join().expect("no panic"));
    }

    #[test]
    fn the_caller_is_as_good_as_root_only_for_himself() {
        let top = Top::new();
        chown(top.path("/etc/kitfs/policy.d/a.yaml"), Some(OTHER), None).expect("root");
        assert_eq!(top.read(OTHER).expect("root's and his").expect("a folder").len(), 1);
        assert!(matches!(top.read(1000), Err(HostError::Owner { owner: OTHER, .. })));
    }

    #[test]
    fn another_user_trusts_root_and_himself() {
        const VARIABLE: &str = "KITFS_TEST_HOST_FILES";
        if let Some(top) = std::env::var_os(VARIABLE) {
            let files = HostFiles { top: top.into(), ..HostFiles::of_this_host() };
            assert_eq!(files.owners, [0, OTHER]);
            let read = files.folder(Path::new(FOLDER), ".yaml", 3, 100);
            assert_eq!(read.expect("root's and his").expect("a folder").len(), 2);
            let secret = files.folder(Path::new("/secret"), ".yaml", 3, 100);
            assert!(
                matches!(&secret, Err(HostError::Read { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied),
                "{secret:?}"
            );
            return;
        }
        let top = Top::new();
        top.write("/etc/kitfs/policy.d/b.yaml");
        chown(top.path("/etc/kitfs/policy.d/b.yaml"), Some(OTHER), None).expect("root");
        fs::create_dir(top.path("/secret")).expect("room");
        top.mode("/secret", 0o700);
        let mut command = Command::new("/proc/self/exe");
        command.args(["policy::host::tests::another_user_trusts_root_and_himself", "--exact", "--nocapture"]);
        std::os::unix::process::CommandExt::uid(&mut command, OTHER);
        let output = command.env(VARIABLE, top.path("/")).output().expect("this program again");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn this_host_begins_at_its_root() {
        let files = HostFiles::of_this_host();
        assert_eq!(files.top, Path::new("/"));
        assert!(files.file(Path::new("/no-folder-of-this-name/file"), 1).is_ok_and(|file| file.is_none()));
    }
}
