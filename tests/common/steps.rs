//! The named steps of a debug build (`src/rehearsal/steps.rs` says what they are), from outside: what happens at which, and which were come by.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A folder that `KITFS_TEST_STEPS` names.
#[derive(Debug)]
pub struct Steps(PathBuf);

impl Steps {
    /// In an empty folder of the test's own.
    pub fn new(folder: PathBuf) -> Self {
        fs::write(folder.join("trace"), "").expect("room");
        Self(folder)
    }

    /// What a process must have in its environment to take part.
    pub fn variable(&self) -> (&'static str, &OsStr) {
        ("KITFS_TEST_STEPS", self.0.as_os_str())
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// From now on this happens: lines `STEP[@N] ACTION`.
    pub fn plan(&self, lines: &str) {
        let next = self.0.join("next");
        fs::write(&next, lines).expect("room");
        fs::rename(next, self.0.join("plan")).expect("room");
    }

    /// Nothing happens any more.
    pub fn clear(&self) {
        for name in ["plan", "fired"] {
            let _ = fs::remove_file(self.0.join(name));
        }
    }

    /// Whether a `kill` or `stop` has happened since the plan was made.
    pub fn fired(&self) -> bool {
        self.0.join("fired").exists()
    }

    /// Waits until it has.
    pub fn await_fired(&self, what: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.fired() {
            assert!(Instant::now() < until, "nobody came by {what}");
            // A folder gives events to wait for, but the process may also have ended.
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The steps that were come by, in their order; several processes mix.
    pub fn trace(&self) -> Vec<String> {
        self.lines().into_iter().filter(|(name, _)| !name.starts_with('+')).map(|(name, _)| name).collect()
    }

    /// Steps with the process that came by them, and `+synced` with the inode that was.
    pub fn lines(&self) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.0.join("trace")).expect("a trace");
        let line = |line: &str| line.split_once('\t').and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
        text.lines().map(|text| line(text).unwrap_or_else(|| panic!("a trace with {text:?}"))).collect()
    }

    /// Begins a new trace.
    pub fn forget(&self) {
        fs::write(self.0.join("trace"), "").expect("room");
    }

    /// The boot that processes believe in.
    pub fn boot(&self, id: &str) {
        fs::write(self.0.join("boot"), id).expect("room");
    }

    /// Change times tell nothing, to processes that start from now on.
    pub fn timeless(&self) {
        fs::write(self.0.join("timeless"), "").expect("room");
    }
}
