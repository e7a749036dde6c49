//! `--jobs` and `--connections`: what a registry sees of them, under a mount and in a command.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kitfs::limits;
use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, Mount, SOON};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::{Running, await_blocked};
use crate::common::registry::{Fault, Gate, Registry, Target, Times};
use crate::common::shown::read;
use crate::kits::{MIB, parts};

/// Every layer of the kit is held at one gate.
fn held(registry: &Registry, kit: &Kit) -> Gate {
    let gate = Gate::new();
    for layer in &kit.layers {
        registry.fault(Target::Content(layer.digest.clone()), Times::Always, Fault::Hold(gate.clone()));
    }
    gate
}

fn in_state(status: &serde_json::Value, state: &str) -> usize {
    status["layers"].as_array().map_or(0, |layers| layers.iter().filter(|layer| layer["state"] == state).count())
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[test]
fn a_mount_fetches_as_many_layers_at_once_as_it_was_told() {
    // What nobody waits for, without the option and with it.
    for (options, most) in [(&[][..], 2), (&["--jobs", "1"], 1), (&["--jobs", "4"], 4)] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let kit = parts(&NAMES, 50_000);
        let reference = kit.serve(&registry, "acme/parts", "v1");
        let gate = held(&registry, &kit);
        let mount = host.mount_with(&reference, &[options, &["--prefetch", "all"]].concat());
        gate.await_held(most);
        let waiting = NAMES.len() - most;
        let told = |status: &serde_json::Value| (in_state(status, "waiting"), in_state(status, "fetching")) == (waiting, most);
        mount.await_status("the others waiting", |status| told(status).then_some(()));
        assert_eq!(gate.held(), most, "{options:?}");
        gate.open();
        mount.await_status("all of it", |status| (in_state(status, "cached") == NAMES.len()).then_some(()));
    }
    // What somebody waits for, told to the next worker as well.
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = parts(&NAMES, 50_000);
    let reference = kit.serve(&registry, "acme/parts", "v1");
    let mount = host.mount_with(&reference, &["--prefetch", "none", "--jobs", "2"]);
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    let gate = held(&registry, &kit);
    let readers: Vec<Running> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let mut reader = Running::start(std::process::Command::new("cat").arg(mount.path(&format!("{name}/part.bin"))));
            await_blocked(&mut reader);
            reader
        })
        .collect();
    gate.await_held(2);
    mount.await_status("one waiting", |status| (in_state(status, "waiting") == 1).then_some(()));
    assert_eq!(gate.held(), 2);
    gate.open();
    readers.into_iter().for_each(|reader| drop(reader.wait(SOON).ok()));
}

/// Whoever was to come with those that have come is there, too, when another process has begun since and fetched something.
fn settle(registry: &Registry) {
    let other = parts(&["other"], 50_000).serve(registry, "acme/other", "v1");
    Host::new(Mode::Cached).kitfs(&["pull", "--plain-http", &other]).ok();
}

#[test]
fn a_pull_fetches_as_many_layers_at_once_as_it_was_told() {
    for (options, most) in [(&[][..], 4), (&["--jobs", "1"], 1), (&["--jobs", "6"], 6)] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let kit = parts(&NAMES, 50_000);
        let reference = kit.serve(&registry, "acme/parts", "v1");
        let gate = held(&registry, &kit);
        let pull = Running::start(&mut host.command(&[&["pull", "--plain-http"], options, &[&reference]].concat()));
        gate.await_held(most);
        settle(&registry);
        let asked: Vec<usize> = kit.layers.iter().map(|layer| registry.asked(&layer.digest)).filter(|times| *times > 0).collect();
        assert_eq!(asked, vec![1; most], "{options:?}");
        gate.open();
        pull.wait(SOON).ok();
    }
}

/// A layer of eight ranges.
fn wide() -> Kit {
    Kitfile::new("wide").raw().model("w.bin").pack(&Tree::new().file("w.bin", vec![1; 128 * MIB]))
}

/// The same, with a gate in the middle of its first range, and one before all others.
fn gated(registry: &Registry) -> (Kit, [Gate; 2]) {
    let (kit, gates) = (wide(), [Gate::new(), Gate::new()]);
    let content = || Target::Content(kit.layers[0].digest.clone());
    registry.fault(content(), Times::First(1), Fault::HoldAt(8 * MIB as u64, gates[0].clone()));
    registry.fault(content(), Times::Always, Fault::Hold(gates[1].clone()));
    (kit, gates)
}

#[test]
fn a_large_blob_gets_as_many_connections_as_it_was_told() {
    for (options, most) in [(&[][..], limits::CONNECTIONS), (&["--connections", "2"], 2)] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let (kit, [first, others]) = gated(&registry);
        let reference = kit.serve(&registry, "acme/wide", "v1");
        let begun = Instant::now();
        // The worker knows it by the plan, a command by itself.
        let mount = host.mount_with(&reference, &[options, &["--prefetch", "all"]].concat());
        // Further connections come when most of the time of the first was waiting, so it is held for thrice what half of it took, on a busy host, too; not
        // for so long that it is given up.
        first.await_held(1);
        thread::sleep((begun.elapsed() * 3).min(Duration::from_secs(limits::STALL_S) * 3 / 4));
        first.open();
        // Ranges and not requests: what is held is given up in the end, and asked for again.
        let ranges = || {
            let log = registry.log().into_iter();
            let asked = log.filter(|request| request.digest.as_ref() == Some(&kit.layers[0].digest)).map(|request| request.range);
            asked.collect::<BTreeSet<_>>()
        };
        let until = Instant::now() + SOON;
        while ranges().len() < 1 + most {
            assert!(Instant::now() < until, "{options:?}: {:?}", ranges());
            thread::sleep(Duration::from_millis(20));
        }
        settle(&registry);
        assert_eq!(ranges().len(), 1 + most, "{options:?}: {:?}", ranges());
        assert_eq!(mount.status()["settings"]["connections"].as_u64(), (!options.is_empty()).then_some(2));
        others.open();
        mount.await_layer(&kit.layers[0].digest, "cached");
    }
    // One connection is one request.
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = wide();
    let reference = kit.serve(&registry, "acme/wide", "v1");
    host.kitfs(&["pull", "--plain-http", "--connections", "1", &reference]).ok();
    assert_eq!(registry.asked(&kit.layers[0].digest), 1);
}

/// Waits until a mount serves whose command may not have ended.
fn await_serving(mount: &Mount) {
    let until = Instant::now() + SOON;
    while mount.find_status().is_none_or(|status| status["state"] != "serving") {
        assert!(Instant::now() < until, "{} does not serve", mount.point().display());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mount_that_waits_returns_with_everything_and_stays_without() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = parts(&NAMES, 50_000);
    let reference = kit.serve(&registry, "acme/parts", "v1");
    let gate = held(&registry, &kit);
    let point = host.folder("mnt");
    let guard = host.guard(&point);
    let mounting = Running::start(&mut host.mount_command(&reference, &point, &["--prefetch", "all", "--wait"]));
    // It serves before anything has come.
    await_serving(&guard);
    gate.await_held(2);
    gate.open();
    let said = mounting.wait(SOON).ok();
    for name in NAMES {
        let path = guard.path(&format!("{name}/part.bin"));
        assert!(read(&path) == Ok(kit.tree.content(&format!("{name}/part.bin")).to_vec()), "{name}");
    }
    assert_eq!(said.stderr.matches("in the cache").count(), NAMES.len(), "a line a layer: {}", said.stderr);
    for layer in &kit.layers {
        assert_eq!(registry.sent(&layer.digest), layer.blob.len() as u64, "each byte once, whoever fetched it");
    }
    guard.umount().ok();
    host.kitfs(&["cache", "prune", "--all"]).ok();

    registry.mend();
    registry.fault(Target::Content(kit.layers[2].digest.clone()), Times::Always, Fault::status(404));
    let point = host.folder("mnt");
    let guard = host.guard(&point);
    let mounting = Running::start(&mut host.mount_command(&reference, &point, &["--prefetch", "all", "--wait"]));
    let failed = mounting.wait(SOON);
    assert!(failed.code() == 5 && failed.stderr.contains("c/") | failed.stderr.contains("at c"), "{failed:#?}");
    assert!(failed.stderr.contains("is mounted all the same"), "{failed:#?}");
    assert!(guard.is_mounted() && Path::new(&guard.path("a/part.bin")).exists());

    // Whoever does not want to wait any more has a mount all the same.
    let (registry, point) = (Registry::start(), host.folder("mnt"));
    let kit = parts(&["x", "y"], 60_000);
    let reference = kit.serve(&registry, "acme/more", "v1");
    let (gate, guard) = (held(&registry, &kit), host.guard(&point));
    let mounting = Running::start(&mut host.mount_command(&reference, &point, &["--prefetch", "all", "--wait"]));
    await_serving(&guard);
    gate.await_held(2);
    mounting.signal(Signal::INT);
    drop(mounting.wait(SOON));
    gate.open();
    guard.await_status("the rest", |status| (in_state(status, "cached") == 2).then_some(()));
}
