//! Where a mount says what it does: a file in its run directory that turns over, the journal, or the terminal it was started from.
//!
//! Supervisor and worker write to one file, each line by one `write`, and either may be the one that turns it over. Nothing that comes from a registry
//! or an archive can end a line or speak to a terminal: every line goes out without control characters. A line that comes again and again is left out after
//! a few times, and how often it was is said later ([`tell_left_out`]).

mod journal;
mod repeats;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, stat};
use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::journal::Journal;
use self::repeats::Repeats;
use crate::limits::LOG_BYTES;

/// Where it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The journal, or standard error: whatever that is.
    Stderr,
    /// A file that turns over.
    File(PathBuf),
}

/// For whom it is said. Where nobody says, it is for people, and the journal gets entries with fields of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

impl Format {
    /// As it is given.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
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
pub struct Line<'a> {
    output: &'a Output,
    level: Level,
}

/// Where lines go.
#[derive(Debug)]
pub struct Output {
    file: Option<LogFile>,
    format: Format,
    /// Each line begins with its priority, as the journal takes it from standard error.
    priorities: bool,
}

/// What was left out of this process's log; there is one log in a process.
static REPEATS: OnceLock<Repeats> = OnceLock::new();

/// From now on, everything is said at `destination`, at the level that `RUST_LOG` asks for. A format that was asked for is kept to in the journal as well.
pub fn init(destination: &Destination, format: Option<Format>) -> io::Result<()> {
    let asked = std::env::var("RUST_LOG").ok();
    install(destination, format, filter(asked.clone()))?;
    if let Some(asked) = asked.filter(|asked| !asked.trim().is_empty() && EnvFilter::try_new(asked).is_err()) {
        tracing::warn!(asked, "RUST_LOG cannot be read, so `info` is taken");
    }
    Ok(())
}

fn install(destination: &Destination, format: Option<Format>, filter: EnvFilter) -> io::Result<()> {
    let (file, priorities) = match destination {
        Destination::Stderr => (None, stderr_is_journal()),
        Destination::File(path) => (Some(LogFile::open(path)?), false),
    };
    let repeats = REPEATS.get_or_init(Repeats::default).clone();
    // A journal that does not listen gets lines by way of standard error, as from any other program.
    if priorities
        && format.is_none()
        && let Ok(journal) = Journal::open()
    {
        return tracing_subscriber::registry().with(filter).with(journal).with(repeats).try_init().map_err(io::Error::other);
    }
    let format = format.unwrap_or_default();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false).with_writer(Output {
        file,
        format,
        priorities,
    });
    match format {
        Format::Text => lines.finish().with(repeats).try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).finish().with(repeats).try_init(),
    }
    .map_err(io::Error::other)
}

/// Says which lines were left out, as far as it is known by now. To be called now and then.
pub fn tell_left_out() {
    REPEATS.get().into_iter().for_each(|repeats| repeats.tell(false));
}

/// The same for all that were left out: the process ends.
pub fn finish() {
    REPEATS.get().into_iter().for_each(|repeats| repeats.tell(true));
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
        Line { output: self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        Line { output: self, level: *about.level() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut text = without_controls(line, self.output.format);
        if self.output.priorities {
            text = format!("<{}>{text}", priority(self.level)).into();
        }
        match &self.output.file {
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

/// The priority of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn without_controls(line: &[u8], format: Format) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    let (body, end) = text.strip_suffix('\n').map_or((text.as_ref(), ""), |body| (body, "\n"));
    let is_bad = |c: char| c.is_control() && c != '\t';
    if !body.contains(is_bad) {
        return text;
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in body.chars() {
        match format {
            _ if !is_bad(c) => clean.push(c),
            Format::Text => clean.extend(c.escape_debug()),
            // JSON leaves in what is above its own control characters, and has an escape of its own for it.
            Format::Json => clean.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
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
        supervisor.write(b"1234\n").expect("written");
        worker.write(b"5678\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("1234\n5678\n", ""));
        supervisor.write(b"9\n").expect("written");
        worker.write(b"10\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("9\n10\n", "1234\n5678\n"));
        worker.write(b"a line over the limit\n").expect("written");
        assert_eq!((content("log").as_str(), content("log.1").as_str()), ("a line over the limit\n", "9\n10\n"));
        std::fs::remove_dir_all(home.path()).expect("removed");
        supervisor.write(b"the folder is gone\n").expect("written all the same");
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
            assert_eq!(without_controls(line, Format::Text), *expected);
        }
    }

    #[test]
    fn a_line_of_json_stays_json() {
        let line = format!("{}\n", serde_json::json!({ "message": "\u{9b}31m \u{7f} \u{7}" }));
        let clean = without_controls(line.as_bytes(), Format::Json);
        assert!(!clean.trim_end().contains(char::is_control), "{clean}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&clean).expect("JSON")["message"], "\u{9b}31m \u{7f} \u{7}");
    }

    #[test]
    fn the_journal_is_told_how_grave_it_is() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
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
