//! Named steps: what the store asks of the disk, each call by a name, so that a test can be there when it happens.
//!
//! `KITFS_TEST_STEPS=DIR` names a folder that a process looks into at every step, and that the processes it starts look into as well:
//!
//! * `DIR/plan` has lines `STEP[@N] ACTION`. `STEP` is the name of a step, or the beginning of names with a `*` behind it. `ACTION` is `kill` (SIGKILL to
//!   the process itself), `stop` (SIGSTOP to itself: everything can be looked at and copied as it is before the step), or the name of an errno,
//!   which the step has instead of being done. `@N` begins with the N-th time that the line fits, counted by each process for itself since it first saw this
//!   plan. `kill` and `stop` happen once: who is about to do it renames the plan to `DIR/fired` first, and who cannot goes on. An errno
//!   stays for as long as the plan does. A plan is put there by a rename, so that nobody reads half of it.
//! * `DIR/trace`, if it is there, gets a line for each step that is come by: its name, a tab, the process. After a sync that succeeded comes a line `+synced`
//!   with the inode's number instead of the process.
//! * `DIR/boot`, if it is there, has the id of the boot that the process is to believe in.
//! * `DIR/timeless`, if it is there, has every file of the cache change at the time 0: so a copy of a cache, or one that somebody damaged, is as
//!   little suspicious as what a power cut leaves.
//!
//! A step comes *before* what it is named after. A name is `CALL:WHAT`, as in `write:pack` or `rename:layer`; `store/dir.rs` has what there is to name. A few
//! stand for a point between calls, as `ingest:placed` does.
//!
//! The `fail` crate was considered: its points are configured by the process that they are in, when it starts or by its own code, and they know neither
//! SIGKILL nor SIGSTOP. Here another process, the test, says what happens in a worker that lives.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::asked;

/// Comes by the step `name`.
pub(crate) fn step(name: &'static str) -> io::Result<()> {
    match folder() {
        Some(folder) => pass(folder, name),
        None => Ok(()),
    }
}

/// Comes by a step between calls: nothing can fail here, so an errno of the plan does nothing.
pub(crate) fn point(name: &'static str) {
    let _nothing_to_fail = step(name);
}

/// Comes by the step that is the system call `call` on a file that is a `what`.
pub(crate) fn step_on(call: &'static str, what: impl FnOnce() -> &'static str) -> io::Result<()> {
    match folder() {
        Some(folder) => pass(folder, &format!("{call}:{}", what())),
        None => Ok(()),
    }
}

/// What was behind this descriptor is on disk.
pub(crate) fn synced(file: impl AsFd) {
    if let Some(folder) = folder()
        && let Ok(stat) = rustix::fs::fstat(file)
    {
        write_down(folder, format!("+synced\t{}\n", stat.st_ino));
    }
}

/// The boot that a test wants this to be.
pub(crate) fn boot() -> Option<String> {
    fs::read_to_string(folder()?.join("boot")).ok()
}

/// Whether a test wants change times not to tell anything. What a process thinks of this does not change.
pub(crate) fn is_timeless() -> bool {
    static TIMELESS: OnceLock<bool> = OnceLock::new();
    *TIMELESS.get_or_init(|| folder().is_some_and(|folder| folder.join("timeless").exists()))
}

fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    if !cfg!(debug_assertions) {
        return None;
    }
    FOLDER.get_or_init(|| asked("KITFS_TEST_STEPS").map(PathBuf::from)).as_deref()
}

/// How often each line of a plan fitted; of one plan at a time.
#[derive(Default)]
struct Counts {
    plan: Option<(u64, i64, i64)>,
    times: HashMap<String, u64>,
}

static COUNTS: OnceLock<Mutex<Counts>> = OnceLock::new();

fn pass(folder: &Path, name: &str) -> io::Result<()> {
    write_down(folder, format!("{name}\t{}\n", std::process::id()));
    let Some((text, identity)) = plan(folder) else { return Ok(()) };
    let mut due = None;
    {
        let mut counts = COUNTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if counts.plan != Some(identity) {
            *counts = Counts { plan: Some(identity), times: HashMap::new() };
        }
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (step, from, action) = parse(line);
            if !fits(step, name) {
                continue;
            }
            let times = counts.times.entry(line.to_owned()).or_default();
            *times += 1;
            if *times >= from && due.is_none() {
                due = Some(action);
            }
        }
    }
    match due {
        None => Ok(()),
        Some(Action::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Action::Raise(signal)) => {
            if fs::rename(folder.join("plan"), folder.join("fired")).is_ok() {
                // SAFETY: It takes a number and touches no memory. To this thread, which so does not go on before it has the signal.
                unsafe { libc::raise(signal) };
            }
            Ok(())
        }
    }
}

/// A line for the test; one call, so that lines of several processes do not mix.
fn write_down(folder: &Path, line: String) {
    if let Ok(mut trace) = OpenOptions::new().append(true).open(folder.join("trace")) {
        let _ = trace.write_all(line.as_bytes());
    }
}

fn plan(folder: &Path) -> Option<(String, (u64, i64, i64))> {
    let mut file = File::open(folder.join("plan")).ok()?;
    let stat = file.metadata().ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some((text, (stat.ino(), stat.mtime(), stat.mtime_nsec())))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Raise(i32),
    Fail(i32),
}

const ERRNOS: [(&str, i32); 12] = [
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EIO", libc::EIO),
    ("EROFS", libc::EROFS),
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("EPERM", libc::EPERM),
    ("ENOLCK", libc::ENOLCK),
    ("EUCLEAN", libc::EUCLEAN),
    ("ENODEV", libc::ENODEV),
];

/// A line of a plan. One that is none is the test's mistake, and it hears of it.
fn parse(line: &str) -> (&str, u64, Action) {
    let parsed = line.split_once(' ').and_then(|(step, action)| {
        let (step, from) = match step.split_once('@') {
            Some((step, from)) => (step, from.parse().ok()?),
            None => (step, 1),
        };
        let action = match action {
            "kill" => Action::Raise(libc::SIGKILL),
            "stop" => Action::Raise(libc::SIGSTOP),
            name => Action::Fail(ERRNOS.iter().find(|(known, _)| *known == name)?.1),
        };
        Some((step, from, action))
    });
    match parsed {
        Some(parsed) => parsed,
        None => panic!("a plan of steps has a line that is none: {line:?}"),
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_plan() {
        assert_eq!(parse("write:pack kill"), ("write:pack", 1, Action::Raise(libc::SIGKILL)));
        assert_eq!(parse("write:*@3 ENOSPC"), ("write:*", 3, Action::Fail(libc::ENOSPC)));
        for line in ["write:pack", "write:pack@x kill", "write:pack explode"] {
            assert!(std::panic::catch_unwind(|| parse(line)).is_err(), "{line}");
        }
        for (pattern, name, expected) in
            [("a:b", "a:b", true), ("a:b", "a:bc", false), ("a:*", "a:bc", true), ("*", "a:bc", true), ("b:*", "a:b", false)]
        {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_errno_comes_from_the_wanted_time_on_until_the_plan_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let errno = |name| pass(folder.path(), name).err().and_then(|error| error.raw_os_error());
        assert_eq!(errno("write:x"), None);
        fs::write(folder.path().join("trace"), "").expect("room");
        fs::write(folder.path().join("plan"), "write:x@2 ENOSPC\nsync:* EIO\n").expect("room");
        assert_eq!([errno("write:x"), errno("write:x"), errno("write:x")], [None, Some(libc::ENOSPC), Some(libc::ENOSPC)]);
        assert_eq!([errno("sync:a"), errno("sync:b"), errno("open:b")], [Some(libc::EIO), Some(libc::EIO), None]);
        // Another plan counts anew.
        fs::write(folder.path().join("next"), "write:x@2 EDQUOT\n").expect("room");
        fs::rename(folder.path().join("next"), folder.path().join("plan")).expect("room");
        assert_eq!([errno("write:x"), errno("write:x")], [None, Some(libc::EDQUOT)]);
        fs::remove_file(folder.path().join("plan")).expect("there");
        assert_eq!(errno("write:x"), None);
        let trace = fs::read_to_string(folder.path().join("trace")).expect("readable");
        let names: Vec<_> = trace.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(names, ["write:x", "write:x", "write:x", "sync:a", "sync:b", "open:b", "write:x", "write:x", "write:x"]);
    }
}
