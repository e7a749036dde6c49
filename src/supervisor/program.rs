//! The program that workers are: the supervisor's own, or the one that took its place on disk.
//!
//! An upgrade replaces a file while mounts live, and a mount may live for months. The supervisor stays what it is. The next worker is the new program if only
//! those can have put it there who could have mounted, if it says that it speaks our protocol ([`crate::protocol`]), and if it comes to serve. In every other case it
//! is the old one, which the kernel keeps for as long as it runs, whatever became of its name.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};

use super::worker::clear_signals;
use crate::clock::timespec;
use crate::daemon;
use crate::failure::chain;
use crate::limits::{PROTOCOL_ANSWER_BYTES, PROTOCOL_ANSWER_LIMIT};
use crate::policy::host::{HostError, HostFiles};
use crate::protocol::{PROTOCOL, PROTOCOL_COMMAND, Spoken};
use crate::rehearsal;

/// What workers are made of.
#[derive(Debug)]
pub(super) struct Program {
    /// The file that this process runs.
    own: Place,
    /// Where it was when this process started.
    path: PathBuf,
    files: HostFiles,
    /// `path` as those who judge files of the host name it.
    named: PathBuf,
    /// What was found there last, if it was another file.
    judged: Option<Judged>,
}

/// A program to start, and its version.
#[derive(Debug)]
pub(super) struct Chosen {
    /// What to run. Good for as long as the [`Program`] is left alone.
    pub(super) path: PathBuf,
    pub(super) version: String,
    /// It is not the supervisor's own.
    pub(super) succeeds: bool,
}

/// Which file it is.
type Place = (u64, u64);

/// A file that took our place, as it was when it was looked at; `None` if there is none.
type Found = Option<(Place, u64, (i64, i64))>;

#[derive(Debug)]
struct Judged {
    found: Found,
    successor: Option<(File, Spoken)>,
}

/// Why a program that took our place is not what workers are made of.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("there is none any more")]
    Gone,
    #[error("others than its owner and root could have put it there")]
    Untrusted(#[source] HostError),
    #[error("it runs with the rights of its owner (mode {0:04o})")]
    Privileged(u32),
    #[error("it cannot be looked at")]
    Unreadable(#[source] io::Error),
    #[error("it cannot be run")]
    Unrunnable(#[source] io::Error),
    #[error("it does not say which protocol it speaks ({0})")]
    Speechless(&'static str),
    #[error("it speaks protocol {0}, and the mount was made with {PROTOCOL}")]
    Foreign(u32),
}

impl Program {
    /// That of this process, which has just started.
    pub(super) fn own() -> io::Result<Self> {
        let link = fs::read_link(OWN)?;
        // It may have been replaced since whoever mounts was started.
        let path = link.to_str().and_then(|link| link.strip_suffix(" (deleted)")).map_or_else(|| link.clone(), PathBuf::from);
        let (files, named) = match rehearsal::host().and_then(|top| Some((HostFiles::at(&top), path.strip_prefix(&top).ok()?.to_owned()))) {
            Some(rehearsed) => rehearsed,
            None => (HostFiles::of_this_host(), path.clone()),
        };
        Ok(Self { own: place(&fs::metadata(OWN)?), path, files, named, judged: None })
    }

    /// What the next worker is made of. A file that took our place is asked once, which takes a moment, and [`PROTOCOL_ANSWER_LIMIT`] at most.
    pub(super) fn next(&mut self) -> Chosen {
        let own = || Chosen { path: OWN.into(), version: Spoken::own().version, succeeds: false };
        let found = fs::metadata(&self.path).ok().map(|file| (place(&file), file.len(), (file.ctime(), file.ctime_nsec())));
        if found.is_some_and(|(place, ..)| place == self.own) {
            self.judged = None;
            return own();
        }
        if self.judged.as_ref().is_none_or(|judged| judged.found != found) {
            let program = self.path.display();
            let successor = match self.judge() {
                Ok(successor) => {
                    let Spoken { protocol, version } = &successor.1;
                    tracing::info!(%program, version, protocol, "the program was replaced, and workers are of the new one from now on");
                    Some(successor)
                }
                Err(error) => {
                    tracing::warn!(%program, error = chain(&error), "the program was replaced, and workers stay with the one that this mount began with");
                    None
                }
            };
            self.judged = Some(Judged { found, successor });
        }
        match self.judged.as_ref().and_then(|judged| judged.successor.as_ref()) {
            Some((file, Spoken { version, .. })) => Chosen { path: by_descriptor(file), version: version.clone(), succeeds: true },
            None => own(),
        }
    }

    /// A worker of the new program ended before it came to serve: there will be none of it again.
    pub(super) fn reject(&mut self) {
        if let Some(judged) = &mut self.judged
            && judged.successor.take().is_some()
        {
            let program = self.path.display();
            tracing::warn!(%program, "the new program does not come to serve, and workers stay with the one that this mount began with");
        }
    }

    fn judge(&self) -> Result<(File, Spoken), Unfit> {
        let file = self.files.open(&self.named).map_err(Unfit::Untrusted)?.ok_or(Unfit::Gone)?;
        let mode = file.metadata().map_err(Unfit::Unreadable)?.mode() & 0o7777;
        if mode & 0o6000 != 0 {
            return Err(Unfit::Privileged(mode));
        }
        match ask(&by_descriptor(&file))? {
            spoken if spoken.protocol == PROTOCOL => Ok((file, spoken)),
            other => Err(Unfit::Foreign(other.protocol)),
        }
    }
}

const OWN: &str = "/proc/self/exe";

fn place(file: &Metadata) -> Place {
    (file.dev(), file.ino())
}

/// A path that means this very file, to this process and to one that it starts. A script cannot be run by it, since whoever reads the script would have to
/// open it once more.
fn by_descriptor(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// Asks a program which protocol it speaks. It knows nothing of ours while it answers, and ends with the question.
fn ask(program: &Path) -> Result<Spoken, Unfit> {
    let deadline = Instant::now() + PROTOCOL_ANSWER_LIMIT;
    let (answer, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Unfit::Unrunnable(errno.into()))?;
    let mut command = Command::new(program);
    command.arg0("kitfs").arg(PROTOCOL_COMMAND).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(ours).stderr(Stdio::null());
    // SAFETY: between fork and exec only calls are made that are async-signal-safe.
    unsafe { command.pre_exec(clear_signals) };
    let mut child = command.spawn().map_err(Unfit::Unrunnable)?;
    // It holds the pipe's other end, and with it the end of the answer.
    drop(command);
    let heard = listen(answer, deadline);
    let status = match heard {
        Ok(_) => daemon::ended(&mut child, deadline.saturating_duration_since(Instant::now())),
        Err(_) => None,
    };
    end(&mut child);
    let spoken = Spoken::read(&heard?).ok_or(Unfit::Speechless("its answer is none"))?;
    match status {
        Some(status) if status.success() => Ok(spoken),
        Some(_) => Err(Unfit::Speechless("it fails")),
        None => Err(Unfit::Speechless("it hangs")),
    }
}

/// Everything that is said until the other side ends, within bounds.
fn listen(answer: OwnedFd, deadline: Instant) -> Result<Vec<u8>, Unfit> {
    let mut answer = File::from(answer);
    let mut heard = Vec::new();
    let mut buffer = [0; PROTOCOL_ANSWER_BYTES];
    while heard.len() < PROTOCOL_ANSWER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(&answer, PollFlags::IN)], Some(&timespec(left))) {
            Ok(0) => return Err(Unfit::Speechless("it hangs")),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Unfit::Unrunnable(errno.into())),
            Ok(_) => match answer.read(&mut buffer).map_err(Unfit::Unrunnable)? {
                0 => return Ok(heard),
                length => heard.extend_from_slice(&buffer[..length]),
            },
        }
    }
    Err(Unfit::Speechless("it says too much"))
}

/// Ends a program that was asked, with all that it started.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _nobody_left = kill_process_group(group, Signal::KILL);
    }
    let _stuck_in_the_kernel = daemon::ended(child, PROTOCOL_ANSWER_LIMIT);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program of a shell that stands at the end of a question.
    fn answer(script: &str) -> Result<Spoken, String> {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        loop {
            match ask(&path) {
                // A program that another test is about to start has it open for writing, for a moment.
                Err(Unfit::Unrunnable(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                outcome => return outcome.map_err(|error| chain(&error)),
            }
        }
    }

    #[test]
    fn whatever_a_program_does_when_it_is_asked_ends_in_time_and_has_a_name() {
        let spoken = Spoken::own().to_string();
        let said = format!("echo '{}'", spoken.trim_end());
        assert_eq!(answer(&said), Ok(Spoken::own()));
        for (script, reason) in [
            ("exit 0", "its answer is none"),
            ("echo kitfs 0.1.0", "its answer is none"),
            (&format!("{said}; exit 1"), "it fails"),
            (&format!("{said}; kill -SEGV $$"), "it fails"),
            ("yes", "it says too much"),
            (&format!("{said}; sleep 60"), "it hangs"),
            // What it started holds the answer open, and is ended with it.
            (&format!("{said}; sleep 60 &"), "it hangs"),
        ] {
            assert_eq!(answer(script), Err(format!("it does not say which protocol it speaks ({reason})")), "{script}");
        }
        assert!(ask(Path::new("/nonexistent")).is_err_and(|error| matches!(error, Unfit::Unrunnable(_))));
    }

    #[test]
    fn while_nothing_was_replaced_workers_are_of_the_same_program() {
        let mut program = Program::own().expect("a process");
        for _ in 0..2 {
            let chosen = program.next();
            assert_eq!((chosen.path, chosen.succeeds), (PathBuf::from(OWN), false));
        }
        assert!(program.judged.is_none(), "nothing was asked");
    }
}
