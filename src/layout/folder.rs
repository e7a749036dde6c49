//! A layout that is a folder, and bytes of a file.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, pread};

use super::archive::Identity;
use crate::source::SourceError;

/// A folder of which only regular files are read, and no symbolic link is followed.
pub(super) struct Folder {
    name: String,
    path: PathBuf,
    dir: OwnedFd,
}

impl Folder {
    /// Opens it. The path is the user's, who may have links on the way to it; `name` is what errors call it.
    pub(super) fn open(path: &Path, name: &str) -> Result<Self, SourceError> {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(path, name, "the layout", error))?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), dir })
    }

    /// The folder that lies at `path` in this one, if there is one.
    pub(super) fn below(&self, path: &[&str]) -> Result<Option<Self>, SourceError> {
        let dir = match self.walk(path) {
            Ok(Some(dir)) => dir,
            Ok(None) | Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(&self.shown(path), &self.name, "a layout in it", error)),
        };
        // What walked was a mere path.
        let dir = openat(&dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(&self.shown(path), &self.name, "a layout in it", error))?;
        Ok(Some(Self { name: self.name.clone(), path: self.shown(path), dir }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens a regular file below the folder; no part of `path` may be a symbolic link.
    pub(super) fn open_file(&self, path: &[&str], what: &str) -> Result<Range, SourceError> {
        let error = |error| failed(&self.shown(path), &self.name, what, error);
        let Some((name, folders)) = path.split_last() else { return Err(error(Errno::INVAL)) };
        let dir = self.walk(folders).map_err(error)?;
        // NONBLOCK: a FIFO must not keep us; it means nothing to a regular file.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(dir.as_ref().unwrap_or(&self.dir), *name, flags, Mode::empty()).map_err(error)?;
        let stat = fstat(&file).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let reason = format!("{} is no regular file", self.shown(path).display());
            return Err(SourceError::Protocol { place: self.name.clone(), what: what.to_owned(), reason });
        }
        Ok(Range { file: Arc::new(File::from(file)), start: 0, length: u64::try_from(stat.st_size).unwrap_or_default(), identity: None })
    }

    /// The folder at `path`, as a place to open from. `None` if it is this one.
    fn walk(&self, path: &[&str]) -> Result<Option<OwnedFd>, Errno> {
        let mut dir: Option<OwnedFd> = None;
        for folder in path {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = Some(openat(dir.as_ref().unwrap_or(&self.dir), *folder, flags, Mode::empty())?);
        }
        Ok(dir)
    }

    fn shown(&self, path: &[&str]) -> PathBuf {
        path.iter().fold(self.path.clone(), |shown, part| shown.join(part))
    }
}

/// Some of the bytes of a file.
pub(super) struct Range {
    pub(super) file: Arc<File>,
    pub(super) start: u64,
    pub(super) length: u64,
    /// What the file must still be, if the range came from what stood in it.
    pub(super) identity: Option<Identity>,
}

impl Range {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What stands at `offset` of the range: `most` bytes, or those up to its end.
    pub(super) fn read(&self, offset: u64, most: usize, name: &str) -> Result<Bytes, SourceError> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = most.min(left);
        let mut chunk = Vec::with_capacity(most);
        while chunk.len() < most {
            let at = self.start.saturating_add(offset).saturating_add(chunk.len() as u64);
            match pread(&*self.file, spare_capacity(&mut chunk), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(SourceError::Local { path: name.to_owned(), source: error.into() }),
            }
        }
        // The capacity may be more than was asked for.
        chunk.truncate(most);
        if let Some(identity) = &self.identity {
            identity.check(&self.file).map_err(|error| error.into_source(name))?;
        }
        Ok(Bytes::from(chunk))
    }
}

/// What the operating system said, as what it means for a source.
pub(super) fn failed(path: &Path, place: &str, what: &str, error: Errno) -> SourceError {
    let (place, what) = (place.to_owned(), what.to_owned());
    match error {
        Errno::NOENT => SourceError::NotFound { place, what },
        // LOOP, or NOTDIR where a folder was opened: a symbolic link, or something else that does not belong there.
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
            SourceError::Protocol { place, what, reason: format!("{}: {}", path.display(), io::Error::from(error)) }
        }
        error => SourceError::Local { path: path.display().to_string(), source: error.into() },
    }
}
