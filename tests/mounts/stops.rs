//! Processes that are stopped for long, and clocks that jump meanwhile: a machine that was suspended, a container that was frozen, a debugger.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode};
use crate::common::process::{signal_process, within};
use crate::common::registry::{Fault, Gate, Registry, Target, Times};
use crate::common::shown::read;
use crate::common::steps::Steps;
use crate::killed_at::await_that;
use crate::kits::{MIB, parts};

const LIMIT: Duration = Duration::from_secs(60);

/// Longer than the silence after which somebody works beside another, and after which a worker that does not answer is replaced (30 s each).
const LONG: Duration = Duration::from_secs(34);

/// It takes half a minute, since nothing less is longer than the limits.
#[test]
fn whoever_was_stopped_together_goes_on_as_if_nothing_had_been() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let kit = parts(&["data", "other"], 24 * MIB);
    let layer = kit.layer("data").digest.clone();
    let reference = kit.serve(&registry, "acme/parts", "v1");
    let gate = Gate::new();
    registry.fault(Target::Content(layer.clone()), Times::Always, Fault::HoldAt(12 * MIB as u64, gate.clone()));
    let steps = Steps::new(host.folder("steps"));
    let mount = || host.try_mount_in(&reference, &["--prefetch", "none"], &[steps.variable()]).expect("a mount");
    let mounts = [mount(), mount()];
    let reader = |path: std::path::PathBuf| thread::spawn(move || within(LONG + LIMIT, "a read", move || read(&path)));
    let first = reader(mounts[0].path("data/part.bin"));
    gate.await_held(1);
    let second = reader(mounts[1].path("data/part.bin"));
    mounts[1].await_layer(&layer, "fetching");
    // The one who waits has looked at the one who works, and gone on waiting.
    let waiter = mounts[1].worker_pid() as u64;
    let looks = || steps.lines().iter().filter(|(step, process)| step == "read:progress" && *process == waiter).count();
    await_that("a look", || looks() >= 2);
    let processes: Vec<i32> = mounts.iter().flat_map(|mount| [mount.supervisor_pid(), mount.worker_pid()]).collect();
    processes.iter().for_each(|&pid| signal_process(pid, Signal::STOP));
    thread::sleep(LONG);
    // The one who waits goes on first, and finds that the other one has said nothing for all that time.
    let [working, waiting] = [&processes[..2], &processes[2..]];
    let before = looks();
    waiting.iter().for_each(|&pid| signal_process(pid, Signal::CONT));
    await_that("another look, and what follows from it", || looks() >= before + 3);
    working.iter().for_each(|&pid| signal_process(pid, Signal::CONT));
    // The lock of the place beside him is made when it is first tried for.
    let beside = host.cache().join("v1/locks").join(format!("{}.ingest.1", kit.layer("data").stored_name()));
    assert!(beside.with_extension("").exists() && !beside.exists(), "somebody works beside one who lives");
    registry.mend();
    gate.open();
    for reader in [first, second] {
        assert!(reader.join().expect("a bounded wait").as_deref() == Ok(kit.tree.content("data/part.bin")));
    }
    for mount in &mounts {
        assert_eq!((mount.status()["restarts"].as_u64(), mount.status()["state"].as_str()), (Some(0), Some("serving")), "{}", mount.log());
    }
    let path = mounts[1].path("other/part.bin");
    assert!(within(LIMIT, "another layer", move || read(&path)).as_deref() == Ok(kit.tree.content("other/part.bin")));
}

#[test]
fn a_stopped_supervisor_is_missed_by_nobody_who_reads() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let kit = parts(&["one", "two"], 2 * MIB);
    let mount = host.mount(&kit.serve(&registry, "acme/parts", "v1"));
    let read_part = |name: &str| {
        let path = mount.path(&format!("{name}/part.bin"));
        assert!(within(LIMIT, "a read", move || read(&path)).as_deref() == Ok(kit.tree.content(&format!("{name}/part.bin"))), "{name}");
    };
    let supervisor = mount.supervisor_pid();
    read_part("one");
    signal_process(supervisor, Signal::STOP);
    read_part("two");
    assert_eq!(mount.status()["state"], "serving");
    // It takes 10 s to give up.
    let output = mount.umount();
    assert!(output.code() == 1 && output.stderr.contains(&format!("(pid {supervisor}) does not answer")), "{output:#?}");
    assert!(mount.is_mounted());
    let worker = mount.kill_worker();
    signal_process(supervisor, Signal::CONT);
    // What it was asked meanwhile it does not do: whoever asked was told that the mount stays.
    mount.await_other_worker(worker);
    read_part("one");
    assert!(mount.is_mounted());
    mount.umount().ok();
}
