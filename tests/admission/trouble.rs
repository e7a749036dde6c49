//! What comes after a decision: revocation, dead workers, registries that are gone.

use std::fs;
use std::time::Duration;

use crate::asked::{Answer, Asked, REPOSITORY, Scene};
use crate::common::process::within;
use crate::common::registry::{Fault, Target, Times};
use crate::common::signer::Signer;

#[test]
fn a_mount_outlives_a_revocation_and_explain_says_what_is_now() {
    let scene = Scene::new();
    scene.sign();
    let mount = scene.asked.mount(&scene.host).expect("signed");
    let of_mount = |options: &[String]| {
        let mut arguments: Vec<&str> = vec!["explain", "--json", "--plain-http"];
        arguments.extend(options.iter().map(String::as_str));
        arguments.push(mount.point().to_str().expect("ours"));
        Answer::read(scene.host.kitfs(&arguments))
    };
    let answer = of_mount(&scene.asked.options);
    answer.assert_admitted();
    assert_eq!(answer.report["digest"], scene.kit.digest());
    // The tag moves, the mount does not.
    crate::asked::kit_of("Another.").serve(&scene.registry, REPOSITORY, "v1");
    assert_eq!(of_mount(&scene.asked.options).report["digest"], scene.kit.digest());
    let revoked = Asked::new(&scene.asked.reference).policy(&scene.host, &Signer::new().policy("others", "**", ""));
    of_mount(&revoked.options).assert_denied("wrong-key");
    let path = mount.path("README.md");
    assert_eq!(within(Duration::from_secs(60), "a read", move || fs::read(path)).expect("readable"), b"Read me.");
    mount.umount().ok();
}

#[test]
fn a_new_worker_decides_nothing_and_asks_nobody() {
    let scene = Scene::new();
    scene.sign();
    let mount = scene.asked.mount(&scene.host).expect("signed");
    let read = |mount: &crate::common::kitfs::Mount| {
        let path = mount.path("README.md");
        within(Duration::from_secs(60), "a read", move || fs::read(path)).expect("readable")
    };
    assert_eq!(read(&mount), b"Read me.");
    scene.registry.clear_log();
    scene.registry.fault(Target::Any, Times::Always, Fault::status(503));
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    assert_eq!(read(&mount), b"Read me.");
    assert!(scene.registry.log().is_empty(), "{:#?}", scene.registry.log());
    scene.registry.stop();
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    assert_eq!(read(&mount), b"Read me.");
    mount.umount().ok();
}

#[test]
fn what_was_pulled_admits_without_its_registry_and_says_so() {
    let scene = Scene::new();
    scene.sign();
    // Also without a policy everything that is attached comes along.
    Asked::new(&scene.asked.reference).pull(&scene.host).ok();
    scene.registry.stop();
    let pinned = format!("{}@{}", scene.asked.reference, scene.kit.digest());
    let asked = Asked { reference: pinned, ..scene.asked.clone() };
    let answer = asked.explain(&scene.host);
    answer.assert_admitted();
    assert!(
        !answer.report["unread"].as_array().expect("what was not read").is_empty()
            || !answer.report["warnings"].as_array().expect("warnings").is_empty()
    );
    asked.mount(&scene.host).expect("admitted by what was kept").umount().ok();
    // What does not suffice is not known, unless nothing else is wanted.
    let other = Signer::new().policy("others", "**", "");
    let unmet = Asked { options: Vec::new(), ..asked }.policy(&scene.host, &other);
    unmet.explain(&scene.host).assert_undecided();
    unmet.with(&["--offline"]).explain(&scene.host).assert_denied("wrong-key");
}

#[test]
fn candidates_that_are_kept_are_verified_anew() {
    let scene = Scene::new();
    let attached = scene.sign();
    scene.asked.pull(&scene.host).ok();
    scene.registry.stop();
    let offline = scene.asked.clone().with(&["--offline"]);
    offline.explain(&scene.host).assert_admitted();
    let mut changed = 0;
    let mut folders = vec![scene.host.cache()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name().is_some_and(|name| name.to_string_lossy().contains(attached.blob.trim_start_matches("sha256:"))) {
                let mut content = fs::read(&entry).expect("readable");
                let last = content.len() - 20;
                content[last] ^= 1;
                fs::remove_file(&entry).expect("there");
                fs::write(&entry, content).expect("room");
                changed += 1;
            }
        }
    }
    assert!(changed > 0, "the bundle is kept under its digest");
    assert_ne!(offline.explain(&scene.host).decision(), "admit");
}
