//! Directories of the store: everything in them is named relative to a descriptor, and no symbolic link is followed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::error::{StoreError, disk};
use crate::rehearsal;

/// An open directory, with the path it was opened by for messages.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Makes the top of a cache with mode 0700 if it is not there.
    pub(super) fn make_top(path: &Path) -> Result<(), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(disk(format!("creating {}", path.display())))
    }

    /// Opens the top of a cache. Here alone a symbolic link is followed: where a cache lies is its owner's decision. It must be `uid`'s, and nobody
    /// else may write into it.
    pub(super) fn open_top(path: &Path, uid: u32) -> Result<Self, StoreError> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(disk(format!("opening {}", path.display())))?;
        let dir = Self { fd, path: path.to_owned() };
        let stat = dir.owned_by(uid)?;
        if stat.st_mode & 0o022 != 0 {
            return Err(StoreError::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
        }
        Ok(dir)
    }

    /// Opens the directory `name`, made if it is not there; its mode becomes 0700 whatever it was.
    pub(super) fn subdirectory(&self, name: &str, uid: u32) -> Result<Self, StoreError> {
        self.step("mkdir", name).map_err(self.at("creating", name))?;
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(disk(format!("creating {}", self.path_of(name).display()))(error)),
        }
        let dir = self.open_dir(name)?.ok_or_else(|| disk(format!("opening {}", self.path_of(name).display()))(Errno::NOENT))?;
        if dir.owned_by(uid)?.st_mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(&dir.fd, Mode::RWXU).map_err(disk(format!("setting the mode of {}", dir.path.display())))?;
        }
        Ok(dir)
    }

    /// Opens the directory `name`; `None` if there is none.
    pub(super) fn open_dir(&self, name: &str) -> Result<Option<Self>, StoreError> {
        self.step("open", name).map_err(self.at("opening", name))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.path_of(name) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(disk(format!("opening {}", self.path_of(name).display()))(error)),
        }
    }

    /// Makes the directory `name`, which must not be there. Whoever opens it next may find it removed by somebody who sweeps.
    pub(super) fn create_dir(&self, name: &str) -> Result<(), StoreError> {
        self.step("mkdir", name).map_err(self.at("creating", name))?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(self.at("creating", name))
    }

    /// Makes the file `name`, which must not be there, for reading and writing by us alone.
    pub(super) fn create(&self, name: &str) -> Result<File, StoreError> {
        self.step("create", name).map_err(self.at("creating", name))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(self.at("creating", name))?;
        Ok(File::from(fd))
    }

    /// Opens the file `name` for reading; `None` if there is none. Anything but a regular file is an error.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, StoreError> {
        self.step("open", name).map_err(self.at("opening", name))?;
        self.open_with(name, OFlags::RDONLY)
    }

    /// Opens the file `name` to go on writing it. For files of an ingest that is under way, never for one in its place.
    pub(super) fn open_writable(&self, name: &str) -> Result<Option<File>, StoreError> {
        self.step("reopen", name).map_err(self.at("opening", name))?;
        // Whoever wrote it may have died after he gave it the mode of a file in its place, and not everybody may write such a one.
        if let Some(file) = self.open_with(name, OFlags::RDONLY)? {
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(self.at("setting the mode of", name))?;
        }
        self.open_with(name, OFlags::RDWR)
    }

    /// Opens a file that is locked or written in place for ever (a lock, a progress record), made if it is not there.
    pub(super) fn lock_file(&self, name: &str) -> Result<File, StoreError> {
        self.step("open", name).map_err(self.at("opening", name))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(self.at("opening", name))?;
        Ok(File::from(fd))
    }

    fn open_with(&self, name: &str, access: OFlags) -> Result<Option<File>, StoreError> {
        match rustix::fs::openat(&self.fd, name, access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(self.at("looking at", name))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(self.at("opening", name)(io::Error::other("not a regular file")));
                }
                Ok(Some(File::from(fd)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.at("opening", name)(error)),
        }
    }

    /// What `name` is; `None` if there is no such thing.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        self.step("stat", name).map_err(self.at("looking at", name))?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.at("looking at", name)(error)),
        }
    }

    /// True if `name` in this directory is what is open as `held`.
    pub(super) fn names(&self, name: &str, held: impl AsFd) -> Result<bool, StoreError> {
        let held = rustix::fs::fstat(held).map_err(self.at("looking at", name))?;
        Ok(self.stat(name)?.is_some_and(|stat| stat.st_ino == held.st_ino && stat.st_dev == held.st_dev))
    }

    /// Renames `name` to `to` in `target`, over whatever is there.
    pub(super) fn rename_over(&self, name: &str, target: &Self, to: &str) -> Result<(), StoreError> {
        target.step("rename", to).map_err(self.at("renaming", name))?;
        rustix::fs::renameat(&self.fd, name, &target.fd, to).map_err(self.at("renaming", name))
    }

    /// Renames `name` to `to` in `target`; false if something is there already.
    pub(super) fn rename_new(&self, name: &str, target: &Self, to: &str) -> Result<bool, StoreError> {
        target.step("rename", to).map_err(self.at("renaming", name))?;
        match rustix::fs::renameat_with(&self.fd, name, &target.fd, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(self.at("renaming", name)(error)),
        }
    }

    /// Unlinks the file `name`, if it is there.
    pub(super) fn unlink(&self, name: &str) -> Result<(), StoreError> {
        self.step("unlink", name).map_err(self.at("removing", name))?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.at("removing", name)(error)),
        }
    }

    /// Removes the directory `name` and the files in it (the store's directories hold no others). One that is not there is removed already.
    pub(super) fn remove_tree(&self, name: &str) -> Result<(), StoreError> {
        if let Some(dir) = self.open_dir(name)? {
            for file in dir.list()? {
                dir.unlink(&file)?;
            }
        }
        self.step("rmdir", name).map_err(self.at("removing", name))?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.at("removing", name)(error)),
        }
    }

    /// The names in the directory; those that are not UTF-8 are not ours and left out.
    pub(super) fn list(&self) -> Result<Vec<String>, StoreError> {
        let what = || format!("listing {}", self.path.display());
        self.step_here("list").map_err(disk(what()))?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(disk(what()))? {
            let name = OsString::from_vec(entry.map_err(disk(what()))?.file_name().to_bytes().to_vec());
            if let Ok(name) = name.into_string()
                && name != "."
                && name != ".."
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let what = || format!("syncing {}", self.path.display());
        self.step_here("sync").map_err(disk(what()))?;
        fsync(&self.fd).map_err(disk(what()))
    }

    /// Makes what is in `file` durable, which is `name` here.
    pub(super) fn sync_file(&self, name: &str, file: &File) -> Result<(), StoreError> {
        let what = || format!("syncing {}", self.path_of(name).display());
        self.step("sync", name).map_err(disk(what()))?;
        fsync(file).map_err(disk(what()))
    }

    /// The path that the directory was opened by. It may have been renamed since.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name`, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A second descriptor of the same directory.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// A directory that somebody else opened for us.
    pub(super) fn adopt(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// The number of the descriptor, for `/proc/self/fdinfo`.
    pub(super) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn owned_by(&self, uid: u32) -> Result<Stat, StoreError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(disk(format!("looking at {}", self.path.display())))?;
        if stat.st_uid != uid {
            return Err(StoreError::Owner { path: self.path.clone(), expected: uid, got: stat.st_uid });
        }
        Ok(stat)
    }

    /// Comes by a step that is done with the file `name`, here or by who has it open.
    pub(super) fn step(&self, call: &'static str, name: &str) -> io::Result<()> {
        rehearsal::step_on(call, || what(&self.path, name))
    }

    fn step_here(&self, call: &'static str) -> io::Result<()> {
        rehearsal::step_on(call, || what_directory(&self.path))
    }

    fn at<E: Into<io::Error>>(&self, what: &str, name: &str) -> impl FnOnce(E) -> StoreError {
        disk(format!("{what} {}", self.path_of(name).display()))
    }
}

/// Makes what is behind a descriptor durable.
pub(super) fn fsync(file: impl AsFd) -> io::Result<()> {
    rustix::fs::fsync(&file)?;
    rehearsal::synced(file);
    Ok(())
}

/// What the file or directory `name` in `folder` is to the store, for the names of steps.
fn what(folder: &Path, name: &str) -> &'static str {
    let folder = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match (folder, name) {
        ("v1", _) | (_, "v1") => "shelf",
        ("locks", "evict") => "evict-lock",
        ("locks", "attached") => "attached-lock",
        ("locks", _) if name.ends_with(".use") => "use-lock",
        ("locks", _) => "ingest-lock",
        ("index", _) => "index",
        ("layers", _) => "layer",
        ("trash", _) => "trash",
        ("pinned", _) => "pin",
        ("blobs", _) => "document",
        ("references", _) => "reference",
        ("attached", _) => "attached",
        ("ingest", _) if name.starts_with("document.") => "new-document",
        ("ingest", _) if name.starts_with("probe.") => "probe",
        ("ingest", _) => "ingest",
        (_, "lock") => "decision-lock",
        (_, "limit") => "limit",
        (_, "pack") => "pack",
        (_, "index") => "new-index",
        (_, "scratch") => "scratch",
        (_, "begun") => "begun",
        (_, "visible") => "visible",
        (_, "durable") => "durable",
        _ if folder.starts_with("probe.") => "probe",
        _ if name.starts_with("limit.") => "new-limit",
        _ if name.ends_with(".data") => "data",
        _ => "other",
    }
}

/// The same for a directory itself.
fn what_directory(path: &Path) -> &'static str {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    match name(path).as_str() {
        "v1" => "shelves",
        "locks" => "locks",
        "index" => "indexes",
        "layers" => "layers",
        "trash" => "trash",
        "pinned" => "pins",
        "blobs" => "documents",
        "references" => "references",
        "attached" => "attached",
        "ingest" => "ingests",
        _ if path.parent().is_some_and(|parent| ["layers", "ingest", "trash"].contains(&name(parent).as_str())) => "layer",
        _ => "top",
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A worker has no capability to write what its owner must not write: it was EACCES, and a reader's EIO.
    #[test]
    fn a_file_whose_writer_died_when_it_was_closed_is_written_on() {
        let path = tempfile::tempdir().expect("a directory");
        let dir = Dir::open_top(path.path(), rustix::process::geteuid().as_raw()).expect("ours");
        let file = dir.create("pack").expect("room");
        file.set_permissions(PermissionsExt::from_mode(0o444)).expect("ours");
        dir.open_writable("pack").expect("ours").expect("there");
        assert_eq!(file.metadata().expect("known").permissions().mode() & 0o7777, 0o600);
    }
}
