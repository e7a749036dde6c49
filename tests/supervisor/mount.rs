//! A mount under test: its folders, its supervisor, and how to wait for what happens to it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use kitfs::admission::{Admission, DecidedPolicy};
use kitfs::daemon::Ready;
use kitfs::digest::{Algorithm, Digest};
use kitfs::log::Destination;
use kitfs::mountinfo;
use kitfs::plan::{AuditPlan, Lacking, MountPlan};
use kitfs::run::{MountDir, MountState, Phase, RunDir};
use kitfs::supervisor;
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{SIZE, Stage, Start, byte_at};

/// How long anything may take that has nothing to wait for.
pub const SOON: Duration = Duration::from_secs(10);

/// An ordinary user.
const NOBODY: u32 = 65534;

pub struct Setup {
    pub lacking: Lacking,
    pub no_passthrough: bool,
    pub unprivileged: bool,
    /// Whether somebody waits for the mount to serve.
    pub awaited: bool,
    pub prepare: fn(&Stage),
    /// The audit file, by its name in the folder of the test, and whether best effort will do.
    pub audit: Option<(&'static str, bool)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { lacking: Lacking::default(), no_passthrough: false, unprivileged: false, awaited: true, prepare: |_| {}, audit: None }
    }
}

pub struct Mount {
    folder: tempfile::TempDir,
    pub plan: MountPlan,
    pub supervisor: Child,
    /// What the supervisor said before it served, or why it does not.
    pub said: String,
}

/// The supervisor's part of this program.
pub fn supervise(arguments: &[String]) -> ! {
    let text = fs::read(&arguments[0]).expect("the plan");
    let plan: MountPlan = serde_json::from_slice(&text).expect("a plan");
    // SAFETY: it was left open for us, and we take it once.
    let ready = unsafe { OwnedFd::from_raw_fd(arguments[1].parse().expect("a descriptor")) };
    rustix::io::fcntl_setfd(&ready, rustix::io::FdFlags::CLOEXEC).expect("an open descriptor");
    let ready = Ready::from_fd(ready);
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).with_max_level(tracing::Level::INFO).init();
    let (dir, alive) = RunDir::open(&plan.mounting.run_dir).and_then(|run| run.create(&plan.mounting.id)).expect("a run directory");
    let outcome = supervisor::run(&plan, &dir, &Destination::Stderr, alive, ready);
    if let Err(error) = &outcome {
        tracing::error!(error = error as &dyn std::error::Error, "ended");
    }
    std::process::exit(i32::from(outcome.is_err()))
}

impl Mount {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        // Not in /tmp by default: passthrough depends on the filesystem of the backing file. An ordinary user has to get there, though.
        let parent = if setup.unprivileged { std::env::temp_dir() } else { PathBuf::from(env!("CARGO_TARGET_TMPDIR")) };
        let folder = tempfile::Builder::new().prefix("supervisor-").permissions(fs::Permissions::from_mode(0o755)).tempdir_in(parent);
        let folder = folder.expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["mnt", "cache"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        let backing: Vec<u8> = (0..SIZE).map(byte_at).collect();
        fs::write(path("cache/backing"), backing).expect("room");
        // Supervisors carry plans, and look at nothing in them that was decided on; only the program makes one of what was.
        let plan = serde_json::json!({
            "id": "test", "mountpoint": path("mnt").canonicalize().expect("a path"), "reference": "oci:/kits,suid",
            "shown_source": "oci:/kits,suid@sha256:00", "digest": Digest::of(Algorithm::Sha256, b""), "run_dir": path("run"),
            "cache_dir": path("cache"), "uid": 0, "gid": 0, "allow_other": false, "no_passthrough": setup.no_passthrough, "prefetch": "none",
            "access": kitfs::source::SourceOptions::default(), "manifest": "", "config": "", "lacking": setup.lacking, "admissions": [admission()],
            "audit": setup.audit.map(|(name, best_effort)| AuditPlan { path: path(name), best_effort }),
        });
        let plan: MountPlan = serde_json::from_value(plan).expect("a plan");
        fs::write(path("plan.json"), serde_json::to_vec(&plan).expect("plain data")).expect("room");
        let stage = Stage(plan.mounting.cache_dir.clone());
        (setup.prepare)(&stage);
        let (mut reader, writer) = io::pipe().expect("a pipe");
        // Above the standard streams, and open in nobody else.
        let number = writer.as_raw_fd();
        let mut command = Command::new(if setup.unprivileged { readable_copy(folder.path()) } else { "/proc/self/exe".into() });
        command.arg("__supervisor").arg(path("plan.json")).arg(number.to_string()).stdin(std::process::Stdio::null());
        command.stdout(File::create(path("stdout")).expect("a file")).stderr(File::create(path("log")).expect("a file"));
        if setup.unprivileged {
            for name in ["", "mnt", "cache", "log"] {
                chown(path(name), Some(NOBODY), Some(NOBODY)).expect("we are root");
            }
            command.uid(NOBODY).gid(NOBODY);
        }
        // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                // A test that is broken off leaves nothing mounted.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                if libc::fcntl(number, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let supervisor = command.spawn().expect("a process");
        drop(writer);
        let mut said = String::new();
        if setup.awaited {
            reader.read_to_string(&mut said).expect("a pipe");
        }
        drop(reader);
        Self { folder, plan, supervisor, said }
    }

    pub fn stage(&self) -> Stage {
        Stage(self.plan.mounting.cache_dir.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.plan.mounting.mountpoint.join(name)
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::open(&self.plan.mounting.run_dir).expect("a run directory")
    }

    pub fn dir(&self) -> MountDir {
        self.run_dir().mount(&self.plan.mounting.id).expect("it lives")
    }

    pub fn state(&self) -> MountState {
        self.dir().read_state().expect("readable").expect("written")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The events in the audit file `name`: each its code and its status.
    pub fn recorded(&self, name: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.folder.path().join(name)).expect("an audit file");
        let events = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON"));
        let shown = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        events.map(|event: serde_json::Value| (shown(&event["metadata"]["event_code"]), shown(&event["status"]))).collect()
    }

    /// A file in the folder of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn is_mounted(&self) -> bool {
        mountinfo::at(&self.plan.mounting.mountpoint).expect("readable").is_some()
    }

    pub fn starts(&self) -> Vec<Start> {
        self.stage().starts()
    }

    /// The worker that serves now.
    pub fn worker(&self) -> u32 {
        until("a worker serves", SOON, || match self.state() {
            MountState { state: Phase::Serving | Phase::Stopping, worker_pid, .. } => worker_pid,
            _ => None,
        })
    }

    /// Ends the worker and waits for the next one.
    pub fn replace_worker(&self, signal: Signal) -> u32 {
        let old = self.worker();
        signal_process(old, signal);
        until("another worker serves", Duration::from_secs(45), || Some(self.worker()).filter(|new| *new != old))
    }

    /// Waits until the supervisor has ended, and sees that nothing is left.
    pub fn ended(&mut self) -> ExitStatus {
        let supervisor = &mut self.supervisor;
        let status = until("the supervisor ends", SOON, || supervisor.try_wait().expect("our child"));
        assert!(!self.is_mounted(), "it is still mounted");
        let left: Vec<_> =
            fs::read_dir(&self.plan.mounting.run_dir).expect("readable").map(|entry| entry.expect("readable").file_name()).collect();
        assert!(left.is_empty(), "left in the run directory: {left:?}");
        status
    }

    pub fn unmounted(mut self) {
        kitfs::umount::umount(&self.plan.mounting.mountpoint, false, &self.run_dir()).expect("nobody uses it");
        assert!(self.ended().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- log of {}\n{}---", self.plan.mounting.mountpoint.display(), self.log());
        }
        // Whatever a failed test has left.
        if let Ok(None) = self.supervisor.try_wait() {
            signal_process(self.supervisor.id(), Signal::KILL);
            let _reaped = self.supervisor.wait();
        }
        while self.is_mounted() {
            if rustix::mount::unmount(&self.plan.mounting.mountpoint, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
    }
}

/// By a policy, with a claim.
fn admission() -> Admission {
    let digest = Digest::of(Algorithm::Sha256, b"");
    let policy = DecidedPolicy { set: "host".into(), name: "signed".into(), digest, mode: "enforce".into(), met: true };
    Admission {
        reference: "oci:/kits,suid".into(),
        claim: Some("reg.example/acme/m:v1".into()),
        digest,
        at: "2026-11-24T10:00:00Z".parse().expect("a time"),
        policies: vec![policy],
        trust_roots: Vec::new(),
        counted: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Calls `look` until it finds something.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal_process(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    // It may have ended by itself.
    let _gone = kill_process(pid, signal);
}

/// Reads a file of the mount to its end and compares.
pub fn read_through(path: &Path) -> io::Result<()> {
    check(&File::open(path)?)
}

/// Reads an open file of the mount to its end and compares.
pub fn check(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut offset = 0;
    while offset < SIZE {
        let length = file.read_at(&mut buffer, offset)?;
        assert!(length > 0, "the file ends at {offset}");
        let right = buffer[..length].iter().zip(offset..).all(|(&byte, at)| byte == byte_at(at));
        assert!(right, "wrong bytes behind {offset}");
        offset += length as u64;
    }
    Ok(())
}

/// Opens a file on another thread.
pub fn opening(path: PathBuf) -> thread::JoinHandle<io::Result<File>> {
    thread::spawn(move || File::open(path))
}

/// Waits until `number` opens wait inside the worker.
pub fn until_parked(mount: &Mount, number: usize) {
    until("the opens wait", SOON, || fs::read_to_string(mount.stage().0.join("parked")).ok().filter(|text| *text == number.to_string()));
}

fn readable_copy(folder: &Path) -> PathBuf {
    let copy = folder.join("program");
    fs::copy("/proc/self/exe", &copy).expect("room");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("ours");
    copy
}
