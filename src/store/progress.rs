//! Progress records: what whoever works on a layer tells everybody else on this host.
//!
//! A record has a fixed size and stands at the beginning of the lock file that its writer holds, so that it can be written when the disk
//! is full. It is written in place with one call and carries a checksum; a reader that meets one half written reads again. A record
//! that cannot be written is not an error of the work it tells of: at worst its writer is taken for stopped, and somebody works beside it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::locks::IngestLock;
use crate::failure::{ErrorClass, chain};
use crate::limits;
use crate::rehearsal::step;

/// How far the work on a layer is, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, or what was last.
    pub state: Activity,
    /// Bytes of the blob that are here (or were read again, while it is checked).
    pub fetched: u64,
    /// Bytes of the blob.
    pub size: u64,
    /// What the last attempt that failed ran into, until one succeeds.
    pub error: Option<String>,
    /// Its class.
    pub class: Option<ErrorClass>,
    /// When its source wants to be asked again, if it said so.
    pub retry_at: Option<SystemTime>,
    /// Where the bytes come from.
    pub source: String,
    /// Who works, or did.
    pub pid: u32,
}

/// What is done for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Bytes are fetched.
    Fetching,
    /// What is on disk is read again and hashed.
    Checking,
    /// The layer is here.
    Done,
    /// The last attempt failed.
    Failed,
    /// Whoever worked on it died.
    Interrupted,
}

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// A random number for each attempt.
    pub(super) attempt: u64,
    /// Grows with each sign of life.
    pub(super) tick: u64,
    pub(super) pid: u32,
    pub(super) source: String,
    pub(super) state: Activity,
    pub(super) fetched: u64,
    pub(super) size: u64,
    pub(super) fault: Option<Fault>,
    /// Seconds since 1970, to tell which of several records is the newest. Nothing else is decided by it.
    at: u64,
}

/// An error as others can know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) class: ErrorClass,
    pub(super) text: String,
    /// Seconds since 1970.
    retry_at: Option<u64>,
}

impl Record {
    /// Reads the record of a lock file; `None` if there is no valid one.
    pub(super) fn read(file: &File) -> Option<Self> {
        step("read:progress").ok()?;
        // Twice: a record that is being written while we read has a wrong checksum, and is whole a moment later.
        (0..2).find_map(|_| {
            let mut bytes = vec![0; limits::PROGRESS_BYTES];
            file.read_exact_at(&mut bytes, 0).ok()?;
            Self::decode(&bytes)
        })
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (checksum, rest) = bytes.split_at_checked(8)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let text = rest.get(..end)?;
        let expected = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
        if crc32fast::hash(text) != expected {
            return None;
        }
        serde_json::from_slice(text).ok()
    }

    /// The bytes of the record; texts are cut until it fits.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut record = self.clone();
        let mut room = limits::PROGRESS_TEXT_BYTES;
        loop {
            if let Some(fault) = &mut record.fault {
                shorten(&mut fault.text, room);
            }
            shorten(&mut record.source, room);
            let text = serde_json::to_vec(&record).ok()?;
            if text.len() + 8 < limits::PROGRESS_BYTES {
                let mut bytes = format!("{:08x}", crc32fast::hash(&text)).into_bytes();
                bytes.extend_from_slice(&text);
                bytes.resize(limits::PROGRESS_BYTES, 0);
                return Some(bytes);
            }
            room = (room > 0).then_some(room / 2)?;
        }
    }

    /// The record as others see it. `alive` says whether its writer holds the lock.
    pub(super) fn progress(self, alive: bool) -> Progress {
        let working = matches!(self.state, Activity::Fetching | Activity::Checking);
        let state = if working && !alive { Activity::Interrupted } else { self.state };
        let (error, class, retry_at) = match self.fault {
            Some(fault) => (Some(fault.text.clone()), Some(fault.class), fault.retry_at()),
            None => (None, None, None),
        };
        Progress { state, fetched: self.fetched, size: self.size, error, class, retry_at, source: self.source, pid: self.pid }
    }

    /// When it was written, in seconds since 1970.
    pub(super) fn at(&self) -> u64 {
        self.at
    }
}

impl Fault {
    pub(super) fn of(error: &StoreError) -> Self {
        let retry_at = error.retry_at().map(seconds_of);
        Self { class: error.class(), text: chain(&error), retry_at }
    }

    pub(super) fn retry_at(&self) -> Option<SystemTime> {
        self.retry_at.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
    }
}

fn shorten(text: &mut String, room: usize) {
    text.truncate(text.floor_char_boundary(room));
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes the record of one attempt.
#[derive(Debug)]
pub(super) struct Reporter<'lock> {
    lock: &'lock IngestLock,
    record: Record,
    written: Instant,
}

impl<'lock> Reporter<'lock> {
    /// Begins an attempt. The error of the last one stays to be seen until this one succeeds.
    pub(super) fn begin(lock: &'lock IngestLock, source: &str, size: u64, state: Activity) -> Self {
        let fault = Record::read(lock.file()).and_then(|last| last.fault);
        let (attempt, pid) = (fastrand::u64(..), std::process::id());
        let record = Record { attempt, tick: 0, pid, source: source.to_owned(), state, fetched: 0, size, fault, at: 0 };
        let mut reporter = Self { lock, record, written: Instant::now() };
        reporter.write();
        reporter
    }

    /// Says that something else is done now.
    pub(super) fn activity(&mut self, state: Activity, fetched: u64) {
        self.record.state = state;
        self.record.fetched = fetched;
        self.write();
    }

    /// A sign of life: written once a second, however often it is given. True when it was written.
    pub(super) fn tick(&mut self, fetched: u64) -> bool {
        self.record.fetched = fetched;
        let due = self.written.elapsed().as_secs() >= limits::TICK_SECONDS;
        if due {
            self.write();
        }
        due
    }

    /// The attempt ended.
    pub(super) fn end<T>(mut self, outcome: &Result<T, StoreError>) {
        match outcome {
            Ok(_) => {
                self.record.fault = None;
                self.record.fetched = self.record.size;
                self.record.state = Activity::Done;
            }
            Err(error) => {
                self.record.fault = Some(Fault::of(error));
                self.record.state = Activity::Failed;
            }
        }
        self.write();
    }

    fn write(&mut self) {
        self.record.tick += 1;
        self.record.at = seconds_of(SystemTime::now());
        self.written = Instant::now();
        if let Some(bytes) = self.record.encode()
            && step("write:progress").is_ok()
        {
            let _ = self.lock.file().write_all_at(&bytes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        let fault = Some(Fault { class: ErrorClass::Disk(28), text: text.into(), retry_at: Some(7) });
        let source = "reg.example/a/b".to_owned();
        Record { attempt: u64::MAX, tick: 3, pid: 9, source, state: Activity::Failed, fetched: 5, size: 6, fault, at: 1 }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(Record::read(&file), None, "empty");
        file.write_all_at(&record("full").encode().expect("short"), 0).expect("room");
        assert_eq!(Record::read(&file), Some(record("full")));
    }

    #[test]
    fn long_texts_are_cut_and_fit() {
        for text in ["ä".repeat(9000), "\u{1}".repeat(9000), "x".repeat(limits::PROGRESS_TEXT_BYTES)] {
            let bytes = record(&text).encode().expect("it fits");
            assert_eq!(bytes.len(), limits::PROGRESS_BYTES);
            let read = Record::decode(&bytes).expect("valid").fault.expect("kept").text;
            assert!(text.starts_with(&read) && !read.is_empty());
        }
    }

    #[test]
    fn half_a_record_is_none() {
        let mut bytes = record("one").encode().expect("short");
        let other = record("two").encode().expect("short");
        let half = bytes.len() / 32;
        bytes[..half].copy_from_slice(&other[..half]);
        assert_eq!(Record::decode(&bytes), None);
        assert_eq!(Record::decode(b"00"), None);
        assert_eq!(Record::decode(&[0xff; 4096]), None);
    }

    #[test]
    fn work_without_a_lock_was_interrupted() {
        let mut working = record("x");
        working.state = Activity::Fetching;
        assert_eq!(working.clone().progress(true).state, Activity::Fetching);
        assert_eq!(working.progress(false).state, Activity::Interrupted);
        assert_eq!(record("x").progress(false).state, Activity::Failed);
    }
}
