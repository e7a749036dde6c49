//! Raw layers beside archives: one blob may be the one to one kit and the other to another, and what is a file is stored as it is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kitfile, Packing, Tree};
use crate::common::process::{Running, within};
use crate::common::registry::{Fault, Gate, Registry, Target, Times};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{MIB, bytes, newer};

crate::in_both_modes!(
    a_blob_that_means_several_things_is_each_of_them,
    everything_of_a_newer_kit_is_shown_and_verified,
    a_raw_file_is_gone_on_with_after_a_crash,
    a_file_that_is_larger_or_smaller_than_declared_is_refused,
);

const LIMIT: Duration = Duration::from_secs(60);

fn a_blob_that_means_several_things_is_each_of_them(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let folder = Tree::new().file("d/x.bin", bytes(1, MIB + MIB / 2)).file("d/y", "y");
    let tar = Kitfile::new("tar").gzip().dataset("d").pack(&folder);
    let blob = tar.layers[0].blob.to_vec();
    let inner = Kitfile::new("inner").dataset("d").pack(&folder).layers[0].blob.to_vec();
    let packed = Kitfile::new("packed").packing(Packing::RawGzip).dataset("d.tar").pack(&Tree::new().file("d.tar", inner));
    let file = Kitfile::new("file").raw().dataset("d.tgz").pack(&Tree::new().file("d.tgz", blob.clone()));
    let elsewhere = Tree::new().file_with_mode("a/b/other", 0o755, blob);
    let elsewhere = Kitfile::new("elsewhere").raw().code("a/b/other").pack(&elsewhere);
    let digest = tar.layers[0].digest.clone();
    // A fetch for each meaning; the same meaning at another place and with another mode is the same.
    let mut mounts = Vec::new();
    for (name, kit, fetches) in [("tar", &tar, 1), ("packed", &packed, 2), ("file", &file, 3), ("elsewhere", &elsewhere, 3)] {
        assert_eq!(kit.layers[0].digest, digest, "{name}: it is about one blob");
        let reference = kit.serve(&registry, &format!("acme/{name}"), "v1");
        let mount = host.mount(&reference);
        let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
        within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
        assert_eq!(registry.asked(&digest), fetches, "{name}");
        mount.await_layer(&digest, "cached");
        host.kitfs(&["verify", "--plain-http", &reference]).ok();
        mounts.push((mount, kit));
    }
    for (mount, kit) in &mounts {
        assert_shows(mount.point(), &of_tree(&kit.tree));
    }
    let stored: BTreeSet<String> = fs::read_dir(host.cache().join("v1/layers"))
        .expect("a cache")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    let name = digest.replace(':', "-");
    assert_eq!(stored, ["-raw", "-raw+gzip", "-tar+gzip"].map(|meaning| format!("{name}{meaning}")).into());
    host.kitfs(&["verify", "--all"]).ok();
}

fn everything_of_a_newer_kit_is_shown_and_verified(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = newer();
    let reference = kit.serve(&registry, "acme/newer", "v1");
    let inspected = host.kitfs(&["inspect", "--plain-http", &reference]).ok();
    for layer in &kit.layers {
        assert!(inspected.stdout.contains(&layer.media_type) && inspected.stdout.contains(&layer.digest), "{}", inspected.stdout);
    }
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    host.kitfs(&["verify", "--plain-http", &reference]).ok();
    host.kitfs(&["verify", "--all"]).ok();
    registry.clear_log();
    let mount = host.mount(&reference);
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    assert!(kit.layers.iter().all(|layer| registry.asked(&layer.digest) == 0), "everything was pulled");
    let layers = mount.status()["layers"].as_array().expect("layers").clone();
    assert!(layers.iter().all(|layer| layer["state"] == "cached"), "{layers:#?}");
    // What is a file is stored as one, without a copy and however small, and an empty one not at all.
    for layer in kit.layers.iter().filter(|layer| layer.media_type.ends_with(".raw")) {
        let stored = host.cache().join("v1/layers").join(layer.stored_name());
        let data = stored.join("0.data");
        assert_eq!(fs::read(&data).unwrap_or_default(), *layer.blob, "{}", layer.path);
        assert_eq!(
            (data.exists(), fs::metadata(stored.join("pack")).expect("a pack").len()),
            (!layer.blob.is_empty(), 0),
            "{}",
            layer.path
        );
    }
}

fn a_raw_file_is_gone_on_with_after_a_crash(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let size = 8 * MIB;
    let kit = Kitfile::new("crash").raw().model("m.bin").pack(&Tree::new().file("m.bin", bytes(1, size)));
    let digest = kit.layers[0].digest.clone();
    let gate = Gate::new();
    registry.fault(Target::Content(digest.clone()), Times::Always, Fault::HoldAt(6 * MIB as u64, gate.clone()));
    let mount = host.mount(&kit.serve(&registry, "acme/crash", "v1"));
    let copy = host.folder("copy").join("m.bin");
    let reader = Running::start(Command::new("cp").arg(mount.path("m.bin")).arg(&copy));
    mount.await_status("most of it has come", |status| (status["layers"][0]["fetched"].as_u64() >= Some(5 * MIB as u64)).then_some(()));
    mount.await_other_worker(mount.kill_worker());
    gate.open();
    reader.wait(LIMIT).ok();
    assert!(fs::read(&copy).expect("a copy") == kit.tree.content("m.bin"));
    let sent = registry.sent(&digest);
    assert!(sent < (size + 2 * MIB) as u64, "{sent} bytes were sent for a file of {size}: what had come was not fetched again");
}

/// What is declared is shown before the layer comes, so it has to be true.
fn a_file_that_is_larger_or_smaller_than_declared_is_refused(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("m.bin", "x".repeat(10_000)).file("good", "good");
    for packing in [Packing::RawGzip, Packing::RawZstd] {
        for declared in [9_999, 10_001] {
            let mut kit = Kitfile::new("size").packing(packing).model("m.bin").docs("good").pack(&tree);
            kit.manifest = String::from_utf8(kit.manifest)
                .expect("JSON")
                .replace("\\\"size\\\":10000", &format!("\\\"size\\\":{declared}"))
                .into_bytes();
            let mount = host.mount(&kit.serve(&registry, "acme/size", &format!("v{declared}")));
            let path = mount.path("m.bin");
            assert_eq!(fs::metadata(&path).expect("known").size(), declared, "it is as declared as long as nobody looks");
            let outcome = within(LIMIT, "an open", move || File::open(&path).map(drop).map_err(|error| error.raw_os_error()));
            assert_eq!(outcome, Err(Some(5)), "{packing:?} {declared}");
            let error = mount.layer(&kit.layer("m.bin").digest)["error"].as_str().expect("an error").to_owned();
            assert!(error.contains(&declared.to_string()), "{error}");
            assert_eq!(read(&mount.path("good")).as_deref(), Ok(&b"good"[..]));
        }
    }
}
