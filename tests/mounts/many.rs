//! One hundred mounts on one host.

use std::ffi::OsStr;
use std::fs;

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, mount_entry};
use crate::common::process::signal_process;
use crate::common::registry::Registry;
use crate::kits::standard;

const MOUNTS: usize = 100;

/// Continued at the end of the test, however it ends: what is stopped cannot be taken down.
struct Stopped(Vec<i32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|pid| signal_process(pid, Signal::CONT));
    }
}

/// `status` reads what supervisors and workers write down and asks none of them, so that no stopped one can make it wait, and `umount --all` leaves nothing.
#[test]
fn one_hundred_mounts_are_told_of_and_taken_down_at_once() {
    let host = Host::new(Mode::Passthrough);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/kit", "v1");
    let mounts: Vec<_> = (0..MOUNTS).map(|_| host.mount(&reference)).collect();
    let status = host.status();
    let told = |key: &str| -> Vec<i32> {
        let mounts = status["mounts"].as_array().expect("mounts");
        mounts.iter().map(|mount| mount[key].as_i64().expect("a process").try_into().expect("a pid")).collect()
    };
    let (supervisors, workers) = (told("supervisor_pid"), told("worker_pid"));
    assert_eq!((supervisors.len(), workers.len()), (MOUNTS, MOUNTS));

    let stopped = Stopped(vec![supervisors[0], workers[1], supervisors[MOUNTS - 1], workers[MOUNTS - 1]]);
    stopped.0.iter().for_each(|&pid| signal_process(pid, Signal::STOP));
    // A minute is what a command may take here at all, and 10 s what a question to one stopped supervisor would take.
    assert_eq!(host.status()["mounts"].as_array().map(Vec::len), Some(MOUNTS));
    let text = host.kitfs(&["status"]).ok().stdout;
    assert_eq!(text.matches("serving since").count(), MOUNTS, "{text}");
    drop(stopped);

    host.kitfs(&[OsStr::new("umount"), OsStr::new("--all")]).ok();
    for mount in &mounts {
        assert_eq!(mount_entry(mount.point()), None);
    }
    host.await_quiet(crate::common::kitfs::SOON).expect("no process is left");
    let left: Vec<_> = fs::read_dir(host.run_dir()).expect("the run directory").flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
}
