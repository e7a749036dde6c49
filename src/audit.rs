//! What happened to mounts, for those who have to answer for it: a line of JSON for each decision, mount, end of a mount, and mismatch.
//!
//! Each line goes to the log and, where one was asked for, to a file that is only ever appended to. What a line says is the business of [`Event`];
//! this module sees to it that it is there, as a whole, or that somebody hears that it is not. A mount that has to be recorded and cannot be does not
//! come about; nothing that ends waits for a record.
//!
//! The file is opened anew for each line, so that it can be moved away and begun again at any time. It is made with mode 0600: it tells who mounts what
//! where, and by whom it was signed. Whoever wants others to read it makes it beforehand. The user who mounts must be able to write to it as its owner:
//! the worker, which records mismatches, has no right to write to others' files even as root.

mod event;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

pub use self::event::{Attempt, Event, Ground, Purpose, Subject};
use crate::plan::{AuditPlan, MountPlan};
use crate::run::MountRecord;

/// A file of events.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
    best_effort: bool,
}

/// Why an event was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The operating system refused something.
    #[error("cannot record it in `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else than a file is there: it would keep nothing, or let us wait.
    #[error("cannot record it in `{}`: expected a regular file, it is {found}", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Only a part of it was written, as on a full disk.
    #[error("cannot record it in `{}`: {written} of {expected} bytes were written", path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Bytes of the line.
        expected: usize,
        /// Bytes that are there.
        written: usize,
    },
}

impl Audit {
    /// A file of events at `path`, which is tried at once unless best effort will do: nobody should wait for a kit that cannot be mounted.
    pub fn open(path: &Path, best_effort: bool) -> Result<Self, AuditError> {
        let path = std::path::absolute(path).map_err(|source| AuditError::Io { path: path.to_owned(), source })?;
        if !best_effort {
            open(&path)?;
        }
        Ok(Self { path, best_effort })
    }

    /// What the processes of a mount have to know of it.
    pub fn plan(&self) -> AuditPlan {
        AuditPlan { path: self.path.clone(), best_effort: self.best_effort }
    }

    /// Records an event, in the log too. With best effort a failure is told of, but is none.
    pub fn record(&self, event: &Event) -> Result<Option<AuditError>, AuditError> {
        let line = event.line();
        log(&line);
        match append(&self.path, &line) {
            Ok(()) => Ok(None),
            Err(error) if self.best_effort => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }
}

/// The record of one mount, from before it shows until after it is gone. Every event goes to the log, whether there is a file or not.
#[derive(Debug)]
pub struct Trail {
    audit: Option<Audit>,
    subject: Subject,
    ended: OnceLock<()>,
}

impl Trail {
    /// The record of the mount of this plan.
    pub fn new(plan: &MountPlan) -> Self {
        Self::of(Subject::of(plan), plan.mounting.audit.as_ref())
    }

    /// The record of a mount that left this behind, for whoever finds it dead.
    pub fn of_dead(record: &MountRecord) -> Self {
        Self::of(Subject::of_record(record), record.audit.as_ref())
    }

    fn of(subject: Subject, audit: Option<&AuditPlan>) -> Self {
        let audit = audit.map(|AuditPlan { path, best_effort }| Audit { path: path.clone(), best_effort: *best_effort });
        Self { audit, subject, ended: OnceLock::new() }
    }

    /// Says in the log by which decisions it is mounted, and records that it is about to show.
    ///
    /// # Errors
    ///
    /// It must not show, since that would not be recorded.
    pub fn begin(&self) -> Result<(), AuditError> {
        for admission in self.subject.admissions() {
            // Whoever decided has recorded it; the log of the mount was not there yet.
            log(&Event::decision(&Ground::of(admission), &self.subject.attempt(), admission.at).line());
        }
        match self.record(&Event::mount(&self.subject)) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => {
                tell(&error, "mount");
                Ok(())
            }
            Err(error) => {
                _ = self.ended.set(());
                Err(error)
            }
        }
    }

    /// Records, once, that it is gone from its place, or why it never came there. What keeps it from being recorded is said in the log, and handed back.
    pub fn end(&self, failure: Option<&str>) -> Option<AuditError> {
        self.ended.set(()).ok()?;
        let error = self.record(&Event::umount(&self.subject, failure)).unwrap_or_else(Some)?;
        tell(&error, "umount");
        Some(error)
    }

    /// Records that what came for a layer is not it, also after it was fetched once more. Where the second attempt was right, only the log tells of the
    /// first.
    pub fn mismatch(&self, layer: &str, message: &str) {
        if let Some(error) = self.record(&Event::mismatch(&self.subject, layer, message)).unwrap_or_else(Some) {
            tell(&error, "mismatch");
        }
    }

    fn record(&self, event: &Event) -> Result<Option<AuditError>, AuditError> {
        if let Some(audit) = &self.audit {
            return audit.record(event);
        }
        log(&event.line());
        Ok(None)
    }
}

fn log(line: &str) {
    tracing::info!(target: "kitfs::audit", "{}", line.trim_end());
}

fn tell(error: &AuditError, event: &str) {
    tracing::error!(error = error as &dyn std::error::Error, event, "an event was not recorded");
}

/// Opens the file to append to it, and makes it if it is not there. Nothing that could block or act is opened.
fn open(path: &Path) -> Result<File, AuditError> {
    let failed = |source: io::Error| AuditError::Io { path: path.to_owned(), source };
    // Even opening a device can do something. What is there afterwards may be another thing, so what was opened is looked at too.
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => return Err(AuditError::NotAFile { path: path.to_owned(), found: kind(there.file_type()) }),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?);
    let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(AuditError::NotAFile { path: path.to_owned(), found: "something else" });
    }
    Ok(file)
}

fn kind(found: std::fs::FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a folder",
        found if found.is_symlink() => "a symbolic link",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        found if found.is_char_device() || found.is_block_device() => "a device",
        _ => "something else",
    }
}

/// Appends a line by one write, and waits until it is on disk.
fn append(path: &Path, line: &str) -> Result<(), AuditError> {
    let failed = |source: io::Error| AuditError::Io { path: path.to_owned(), source };
    let mut file = open(path)?;
    let written = loop {
        match rustix::io::write(&file, line.as_bytes()) {
            // Nothing was written yet.
            Err(Errno::INTR) => {}
            written => break written.map_err(|errno| failed(errno.into()))?,
        }
    };
    if written < line.len() {
        // The next line must not begin in the middle of this one. If there is no room for that either, the error says all there is to say.
        _ = file.write_all(b"\n");
        return Err(AuditError::CutShort { path: path.to_owned(), expected: line.len(), written });
    }
    file.sync_all().map_err(failed)?;
    if fstat(&file).is_ok_and(|stat| stat.st_size == line.len() as i64) {
        // It may have been made just now, and its name has to last, too.
        File::open(path.parent().unwrap_or(Path::new("/"))).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
