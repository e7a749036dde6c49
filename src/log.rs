//! Where a mount says what it does: a file in its run directory that turns over, the journal, or the terminal it was started from.
//!
//! Supervisor and worker write to one file, each line by one `write`, and either may be the one that turns it over. Nothing that comes from a registry
//! or an archive can end a line or speak to a terminal: every line goes out without control characters.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, stat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::limits::LOG_BYTES;

/// Where it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard error: the terminal or the journal.
    Stderr,
    /// A file that turns over.
    File(PathBuf),
}

/// The log file; when it is full it becomes `<name>.1`, and what was that is gone.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limit: u64,
    file: Mutex<File>,
}

/// Writes one line.
#[derive(Debug)]
pub struct Line<'a>(Option<&'a LogFile>);

#[derive(Debug)]
struct Output(Option<LogFile>);

/// From now on, everything is said at `destination`, at the level that `RUST_LOG` asks for.
pub fn init(destination: &Destination) -> io::Result<()> {
    let output = match destination {
        Destination::Stderr => Output(None),
        Destination::File(path) => Output(Some(LogFile::open(path)?)),
    };
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter(std::env::var("RUST_LOG").ok())).with_ansi(false).log_internal_errors(false);
    subscriber.with_writer(output).try_init().map_err(io::Error::other)
}

/// Whether standard error is the journal of systemd, which tells so by the number of its socket.
pub fn stderr_is_journal() -> bool {
    let Some(journal) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    fstat(io::stderr()).is_ok_and(|stderr| journal == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

impl LogFile {
    /// Opens or makes the log at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), limit: LOG_BYTES, file: Mutex::new(open(path)?) })
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let here = fstat(&*file)?;
        if u64::try_from(here.st_size).unwrap_or_default().saturating_add(line.len() as u64) > self.limit
            && here.st_size > 0
            && let Some(next) = self.turn_over(&file, &here)
        {
            follow(&here, &next);
            *file = next;
        }
        file.write_all(line)
    }

    /// The file to go on with; none if it cannot be had now, since a long log is better than none.
    fn turn_over(&self, full: &File, here: &Stat) -> Option<File> {
        // Not waited for: a stopped process could hold it. It lasts as long as the file is open, so whoever comes next sees what happened.
        flock(full, FlockOperation::NonBlockingLockExclusive).ok()?;
        let is_full = |there: Stat| (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino);
        if stat(&self.path).is_ok_and(is_full) {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old).ok()?;
        }
        let next = open(&self.path).ok();
        let _still_ours = flock(full, FlockOperation::Unlock);
        next
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self.0.as_ref())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(Some(self))
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = without_controls(line);
        match self.0 {
            Some(file) => file.write(text.as_bytes())?,
            None => io::stderr().write_all(text.as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(openat(CWD, path, flags, Mode::from_raw_mode(0o600))?))
}

/// Where standard output and error went to the file that is full, they go to the next one, too: what a panic says must not get lost.
fn follow(full: &Stat, next: &File) {
    for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
        if fstat(stream).is_ok_and(|there| (there.st_dev, there.st_ino) == (full.st_dev, full.st_ino)) {
            // SAFETY: both are open, and a standard stream stays open throughout; only what it leads to changes.
            unsafe { libc::dup2(next.as_raw_fd(), stream.as_raw_fd()) };
        }
    }
}

fn filter(asked: Option<String>) -> EnvFilter {
    let asked = asked.filter(|asked| !asked.trim().is_empty()).unwrap_or_else(|| "info".to_owned());
    // fuser tells of each request it does not know, and of each end of a session as of an error.
    let all = if asked.contains("fuser") { asked } else { format!("{asked},fuser=off") };
    EnvFilter::try_new(all).unwrap_or_else(|_| EnvFilter::new("info,fuser=off"))
}

fn without_controls(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    let (body, end) = text.strip_suffix('\n').map_or((text.as_ref(), ""), |body| (body, "\n"));
    let is_bad = |c: char| c.is_control() && c != '\t';
    if !body.contains(is_bad) {
        return text;
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in body.chars() {
        if is_bad(c) { clean.extend(c.escape_debug()) } else { clean.push(c) }
    }
    clean.push_str(end);
    clean.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_turns_over_once() {
        let home = tempfile::tempdir().expect("folder");
        let path = home.path().join("log");
        let small = || LogFile { limit: 10, ..LogFile::open(&path).expect("log") };
        let (supervisor, worker) = (small(), small());
        let content = |name: &str| std::fs::read_to_string(home.path().join(name)).unwrap_or_default();
        supervisor.make_writer().write_all(b"1234\n").expect("written");
        worker.make_writer().write_all(b"5678\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("1234\n5678\n", ""));
        supervisor.make_writer().write_all(b"9\n").expect("written");
        worker.make_writer().write_all(b"10\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("9\n10\n", "1234\n5678\n"));
        worker.make_writer().write_all(b"a line over the limit\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("a line over the limit\n", "9\n10\n"));
        std::fs::remove_dir_all(home.path()).expect("removed");
        supervisor.make_writer().write_all(b"the folder is gone\n").expect("written all the same");
    }

    #[test]
    fn nothing_in_a_line_can_end_it_or_speak_to_a_terminal() {
        let cases: &[(&[u8], &str)] = &[
            (b"plain \xc3\xa4\ttext\n", "plain \u{e4}\ttext\n"),
            (b"one\ntwo\r\n", "one\\ntwo\\r\n"),
            (b"\x1b[31mred\x07\n", "\\u{1b}[31mred\\u{7}\n"),
            ("\u{9b}31m\n".as_bytes(), "\\u{9b}31m\n"),
            (b"\xff", "\u{fffd}"),
        ];
        for (line, expected) in cases {
            assert_eq!(without_controls(line), *expected);
        }
    }

    #[test]
    fn filters() {
        let cases = [
            (None, "info,fuser=off"),
            (Some(" "), "info,fuser=off"),
            (Some("debug"), "debug,fuser=off"),
            (Some("fuser=debug"), "fuser=debug"),
            (Some("=="), "info,fuser=off"),
        ];
        for (asked, expected) in cases {
            assert_eq!(filter(asked.map(str::to_owned)).to_string(), EnvFilter::new(expected).to_string(), "{asked:?}");
        }
    }
}
