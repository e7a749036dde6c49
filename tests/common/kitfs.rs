//! The binary under test, on a host of its own: cache, run directory, home and environment belong to one test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::process::{Output, Running, await_end, run, signal_process};

/// How long a command may take that has nothing to wait for but itself.
pub const SOON: Duration = Duration::from_secs(60);

/// The two ways in which a mount serves file contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Passthrough,
    Cached,
}

/// Makes two tests of each function that takes a [`Mode`].
#[macro_export]
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => {
        mod passthrough {
            $(#[test] fn $name() { super::$name($crate::common::kitfs::Mode::Passthrough); })*
        }
        mod cached {
            $(#[test] fn $name() { super::$name($crate::common::kitfs::Mode::Cached); })*
        }
    };
}

/// The program under test: the one of this build, or the one that `KITFS_TEST_BINARY` names (a release build, say).
pub fn binary() -> PathBuf {
    std::env::var_os("KITFS_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_kitfs").into(), PathBuf::from)
}

/// A cache, a run directory and an environment.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: tempfile::TempDir,
    mode: Mode,
    next: AtomicUsize,
}

impl Host {
    pub fn new(mode: Mode) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount: run them as root");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: modprobe fuse, or `--device /dev/fuse` for a container");
        // In the target folder and not in /tmp, which may be an overlay or a tmpfs: passthrough depends on where the cache is.
        let folder = tempfile::Builder::new().prefix("host-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        for name in ["home", "run", "tmp", "root"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        Self(Arc::new(Inner { folder, mode, next: AtomicUsize::new(0) }))
    }

    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// A path in the host's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.folder.path().join(name)
    }

    /// A new empty folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(&format!("{name}-{number}"));
        fs::create_dir(&path).expect("a new folder");
        path
    }

    pub fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// What `kitfs` of a debug build takes for `/` where the host's policies and trust roots are looked for: those of this machine decide nothing here.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// `kitfs` with arguments, in the host's environment and no other.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(binary());
        self.environment(&mut command).args(arguments);
        command
    }

    /// Gives a command the host's environment, and nothing of the test's own.
    pub fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env_clear();
        for name in ["PATH", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if self.0.mode == Mode::Cached {
            command.env("KITFS_NO_PASSTHROUGH", "1");
        }
        command
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.home())
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.run_dir())
            .env("KITFS_RUN_DIR", self.run_dir())
            .env("KITFS_TEST_HOST", self.root())
            .env("KITFS_CACHE_DIR", self.cache())
    }

    /// Runs `kitfs` to its end.
    pub fn kitfs<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        run(&mut self.command(arguments), SOON)
    }

    /// Mounts with `--prefetch none`, so that the test alone decides what is fetched.
    pub fn mount(&self, reference: &str) -> Mount {
        self.mount_with(reference, &["--prefetch", "none"])
    }

    pub fn mount_with(&self, reference: &str, options: &[&str]) -> Mount {
        self.try_mount(reference, options).unwrap_or_else(|output| panic!("mount {reference}: {output:#?}"))
    }

    /// Mounts, or says how that failed. `--plain-http` is given unless `--ca-cert` is.
    pub fn try_mount(&self, reference: &str, options: &[&str]) -> Result<Mount, Output> {
        self.try_mount_in(reference, options, &[])
    }

    /// Mounts with more variables in the environment, or says how that failed.
    pub fn try_mount_in(&self, reference: &str, options: &[&str], environment: &[(&str, &OsStr)]) -> Result<Mount, Output> {
        let point = self.folder("mnt");
        let mut command = self.mount_command(reference, &point, options);
        let output = run(command.envs(environment.iter().copied()), SOON + Duration::from_secs(30));
        // The guard exists even when the mount failed: whatever is left there is taken down.
        let mount = Mount { host: self.clone(), point };
        if output.status.success() {
            Ok(mount)
        } else {
            assert!(!mount.is_mounted(), "a mount that failed is there: {output:#?}");
            Err(output)
        }
    }

    /// `kitfs mount`, not yet run.
    pub fn mount_command(&self, reference: &str, point: &Path, options: &[&str]) -> Command {
        let mut command = self.command(&["mount"]);
        if !["oci:", "oci-archive:", "kitops:"].iter().any(|transport| reference.starts_with(transport)) && !options.contains(&"--ca-cert")
        {
            command.arg("--plain-http");
        }
        command.args(options).arg(reference).arg(point);
        command
    }

    /// A guard for what another command mounted.
    pub fn guard(&self, point: &Path) -> Mount {
        Mount { host: self.clone(), point: point.to_owned() }
    }

    /// `kitfs status --json`.
    pub fn status(&self) -> Value {
        let output = self.kitfs(&["status", "--json"]).ok();
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
    }

    /// Every process that runs in this host's environment.
    pub fn processes(&self) -> Vec<i32> {
        let mark = [b"KITFS_RUN_DIR=", self.run_dir().as_os_str().as_bytes()].concat();
        let pids = fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == mark)
        })
        .collect()
    }

    /// Waits until no process of this host runs; says which still do after `limit`.
    pub fn await_quiet(&self, limit: Duration) -> Result<(), Vec<i32>> {
        let until = Instant::now() + limit;
        for pid in self.processes() {
            await_end(pid, until.saturating_duration_since(Instant::now()));
        }
        let left = self.processes();
        if left.is_empty() { Ok(()) } else { Err(left) }
    }
}

/// A mount that is taken down at the end of the test, whatever state it is in.
#[derive(Debug)]
pub struct Mount {
    host: Host,
    point: PathBuf,
}

impl Mount {
    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The mount's object in `status --json`.
    pub fn status(&self) -> Value {
        self.find_status().unwrap_or_else(|| panic!("{} is not in the status", self.point.display()))
    }

    pub fn find_status(&self) -> Option<Value> {
        let point = self.point.to_str().expect("ours");
        self.host.status()["mounts"].as_array()?.iter().find(|mount| mount["mountpoint"] == point).cloned()
    }

    /// One layer of the status, by its digest.
    pub fn layer(&self, digest: &str) -> Value {
        let status = self.status();
        let layers = status["layers"].as_array().expect("layers");
        layers.iter().find(|layer| layer["digest"] == digest).cloned().unwrap_or_else(|| panic!("no layer {digest} in {status:#}"))
    }

    pub fn supervisor_pid(&self) -> i32 {
        pid(&self.status()["supervisor_pid"]).expect("a supervisor")
    }

    /// The worker that runs now; waits until there is one.
    pub fn worker_pid(&self) -> i32 {
        self.await_status("a worker", |status| pid(&status["worker_pid"])).expect("a worker")
    }

    /// Asks for the status until it is as wanted; panics after a minute.
    pub fn await_status<T>(&self, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let until = Instant::now() + SOON;
        loop {
            let status = self.status();
            if let Some(found) = wanted(&status) {
                return Some(found);
            }
            assert!(Instant::now() < until, "{SOON:?} without {what}: {status:#}");
            // The status of another process gives no event to wait for.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a layer is in this state.
    pub fn await_layer(&self, digest: &str, state: &str) {
        self.await_status(&format!("{digest} being {state}"), |status| {
            status["layers"].as_array()?.iter().any(|layer| layer["digest"] == digest && layer["state"] == state).then_some(())
        });
    }

    /// Kills the worker and says which it was.
    pub fn kill_worker(&self) -> i32 {
        let pid = self.worker_pid();
        signal_process(pid, Signal::KILL);
        pid
    }

    /// Waits until another worker than `old` serves.
    pub fn await_other_worker(&self, old: i32) -> i32 {
        let found = self
            .await_status("a new worker", |status| pid(&status["worker_pid"]).filter(|new| *new != old && status["state"] == "serving"));
        found.expect("a new worker")
    }

    /// What stands in the log.
    pub fn log(&self) -> String {
        self.status()["log"].as_str().map(|path| fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
    }

    /// Whether the mount table has it.
    pub fn is_mounted(&self) -> bool {
        mount_entry(&self.point).is_some()
    }

    /// `kitfs umount` without more.
    pub fn umount(&self) -> Output {
        self.host.kitfs(&[OsStr::new("umount"), self.point.as_os_str()])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut lazily = self.host.command(&[OsStr::new("umount"), OsStr::new("--lazy"), self.point.as_os_str()]);
        let mut process = Running::start(&mut lazily);
        if !await_end(process.pid(), Duration::from_secs(10)) {
            process.signal(Signal::KILL);
        }
        let _ = process.is_running();
        while self.is_mounted() {
            // What kitfs does not take down, the kernel does.
            if rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        // The processes of a host end with its last mount; those of a test that failed are ended here.
        let others = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().contains(&*self.host.path("mnt").to_string_lossy());
        if !others && let Err(left) = self.host.await_quiet(if thread::panicking() { Duration::ZERO } else { Duration::from_secs(10) }) {
            left.into_iter().for_each(|pid| signal_process(pid, Signal::KILL));
        }
    }
}

/// Type, source and options of the mount at this path, from the mount table.
pub fn mount_entry(point: &Path) -> Option<(String, String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().rev().find(|line| line.split(' ').nth(4).is_some_and(|path| Path::new(path) == point))?;
    let (left, right) = line.split_once(" - ")?;
    let mut fields = right.split(' ');
    let (kind, source) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    Some((kind, source, left.split(' ').nth(5)?.to_owned()))
}

fn pid(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
}
