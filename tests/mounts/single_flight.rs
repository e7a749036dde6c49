//! One fetch for all mounts and processes of a host, whatever becomes of the one who fetches.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::{Running, await_blocked, signal_process, within};
use crate::common::registry::{Auth, Fault, Gate, Registry, Target, Times};
use crate::common::shown::read;
use crate::kits::{MIB, bytes, parts};

crate::in_both_modes!(
    many_readers_of_many_mounts_cause_one_fetch,
    a_killed_fetcher_does_not_fail_the_others,
    a_stopped_fetcher_does_not_fail_the_others,
    a_fetcher_without_credentials_does_not_fail_the_others,
    a_killed_worker_s_fetch_goes_on_where_it_was,
);

const LIMIT: Duration = Duration::from_secs(90);

fn reader(mount: &Mount, name: &str) -> Running {
    let mut process = Running::start(Command::new("sha256sum").arg(mount.path(name)));
    await_blocked(&mut process);
    process
}

fn assert_right(process: Running, kit: &Kit, name: &str) {
    let wanted = crate::common::registry::sha256(kit.tree.content(name));
    let output = process.wait(LIMIT).ok();
    assert!(wanted.ends_with(output.stdout.split(' ').next().unwrap_or_default()) && !output.stdout.is_empty(), "{output:?}");
}

fn many_readers_of_many_mounts_cause_one_fetch(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("plain/part.bin", bytes(1, 20 * MIB)).file("zipped/part.bin", bytes(2, 10 * MIB));
    let kit = Kitfile::new("flight").dataset("plain").gzip().dataset("zipped").pack(&tree);
    let reference = kit.serve(&registry, "acme/flight", "v1");
    let gates: Vec<_> = kit.layers.iter().map(|layer| registry.hold(&layer.digest)).collect();
    let mounts = [(); 3].map(|()| host.mount(&reference));
    let names = ["plain/part.bin", "zipped/part.bin"];
    let readers: Vec<_> = (0..24).map(|number| (names[number % 2], reader(&mounts[number % 3], names[number % 2]))).collect();
    gates.iter().for_each(Gate::open);
    for (name, process) in readers {
        assert_right(process, &kit, name);
    }
    for layer in &kit.layers {
        assert_eq!(registry.sent(&layer.digest), layer.blob.len() as u64, "each byte of {} once", layer.path);
    }
}

/// The layer is held in the middle while the first of two mounts fetches it and the second waits.
struct Two {
    host: Host,
    registry: Registry,
    kit: Kit,
    mounts: [Mount; 2],
    gate: Gate,
}

impl Two {
    fn new(mode: Mode) -> Self {
        let host = Host::new(mode);
        let registry = Registry::start();
        let kit = parts(&["data"], 24 * MIB);
        let reference = kit.serve(&registry, "acme/two", "v1");
        let gate = Gate::new();
        registry.fault(Target::Content(kit.layers[0].digest.clone()), Times::Always, Fault::HoldAt(12 * MIB as u64, gate.clone()));
        let mounts = [host.mount(&reference), host.mount(&reference)];
        Self { host, registry, kit, mounts, gate }
    }

    fn readers(&self) -> [Running; 2] {
        let first = reader(&self.mounts[0], "data/part.bin");
        self.gate.await_held(1);
        [first, reader(&self.mounts[1], "data/part.bin")]
    }
}

fn a_killed_fetcher_does_not_fail_the_others(mode: Mode) {
    let two = Two::new(mode);
    let [first, second] = two.readers();
    two.registry.mend();
    for pid in [two.mounts[0].supervisor_pid(), two.mounts[0].worker_pid()] {
        signal_process(pid, Signal::KILL);
    }
    assert_right(second, &two.kit, "data/part.bin");
    // Nobody serves the first one any more; it ends with an error.
    assert_ne!(first.wait(LIMIT).code(), 0);
    assert!(two.host.cache().join("v1/layers").join(two.kit.layers[0].stored_name()).exists());
}

fn a_stopped_fetcher_does_not_fail_the_others(mode: Mode) {
    let two = Two::new(mode);
    let [first, second] = two.readers();
    two.registry.mend();
    let stopped = [two.mounts[0].supervisor_pid(), two.mounts[0].worker_pid()];
    for pid in stopped {
        signal_process(pid, Signal::STOP);
    }
    assert_right(second, &two.kit, "data/part.bin");
    for pid in stopped {
        signal_process(pid, Signal::CONT);
    }
    assert_right(first, &two.kit, "data/part.bin");
}

fn a_fetcher_without_credentials_does_not_fail_the_others(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = parts(&["data"], 2 * MIB);
    let reference = kit.serve(&registry, "acme/two", "v1");
    let config = host.folder("docker");
    let secret = base64::engine::general_purpose::STANDARD.encode("user:password");
    fs::write(config.join("config.json"), format!(r#"{{"auths":{{"{}":{{"auth":"{secret}"}}}}}}"#, registry.host())).expect("room");
    let without = host.mount(&reference);
    let with = host.try_mount_in(&reference, &["--prefetch", "none"], &[("DOCKER_CONFIG", config.as_os_str())]).expect("a mount");
    registry.require(Auth::Basic("user".into(), "password".into()));
    // Both ask at the same time, several of each.
    let ask = |mount: &Mount| {
        let path = mount.path("data/part.bin");
        thread::spawn(move || within(LIMIT, "a read", move || read(&path)))
    };
    let (refused, served): (Vec<_>, Vec<_>) = (0..4).map(|_| (ask(&without), ask(&with))).unzip();
    let right = kit.tree.content("data/part.bin");
    for answer in served {
        let answer = answer.join().expect("a bounded wait");
        assert!(answer.as_deref() == Ok(right), "the one with credentials reads: {:?}", answer.map(|bytes| bytes.len()));
    }
    for answer in refused {
        // An error of its own, or the bytes that the other one has fetched meanwhile.
        let answer = answer.join().expect("a bounded wait");
        assert!(answer.as_deref() == Ok(right) || answer == Err(rustix::io::Errno::IO.raw_os_error()));
    }
    let later = without.path("data/part.bin");
    let answer = within(LIMIT, "a read of what is in the cache", move || read(&later));
    assert!(answer.as_deref() == Ok(right), "what is in the cache needs no credentials: {:?}", answer.map(|bytes| bytes.len()));
}

fn a_killed_worker_s_fetch_goes_on_where_it_was(mode: Mode) {
    let two = Two::new(mode);
    let readers = two.readers();
    let layer = &two.kit.layers[0];
    two.registry.await_log("half of the layer", |log| {
        log.iter().filter(|request| request.digest.as_ref() == Some(&layer.digest)).map(|request| request.sent).sum::<u64>()
            >= 12 * MIB as u64
    });
    two.registry.mend();
    for mount in &two.mounts {
        mount.kill_worker();
    }
    for process in readers {
        assert_right(process, &two.kit, "data/part.bin");
    }
    // What was on disk was hashed again and not fetched again; what was under way in the connections may be lost.
    let sent = two.registry.sent(&layer.digest);
    assert!(sent < layer.blob.len() as u64 + 10 * MIB as u64, "{sent} bytes for {}", layer.blob.len());
}

/// A worker that started while another process fetched a layer left it out of what it prefetches, and when that process was gone nobody fetched it.
#[test]
fn what_another_process_fetches_when_a_mount_starts_is_prefetched_when_that_one_is_gone() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = parts(&["data"], 100_000);
    let reference = kit.serve(&registry, "acme/parts", "v1");
    let layer = &kit.layers[0].digest;
    let gate = registry.hold(layer);
    let pull = Running::start(&mut host.command(&["pull", "--plain-http", &reference]));
    gate.await_held(1);
    let mount = host.mount_with(&reference, &["--prefetch", "all"]);
    mount.await_layer(layer, "fetching");
    pull.signal(Signal::KILL);
    pull.wait(LIMIT);
    gate.open();
    mount.await_layer(layer, "cached");
}
