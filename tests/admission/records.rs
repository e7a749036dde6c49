//! What is left of a decision: lines of audit, summaries, attributes of the root, status.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kitfs::digest::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::asked::{Asked, Scene, assert_refused};
use crate::common::registry::{Fault, Target, Times};

/// Each line of an audit log.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "whole lines only: {text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn attribute(path: &Path, name: &str) -> String {
    let mut value = vec![0; 4096];
    let length = rustix::fs::getxattr(path, name, &mut value).unwrap_or_else(|error| panic!("{name}: {error}"));
    value.truncate(length);
    String::from_utf8(value).expect("text")
}

#[test]
fn a_decision_a_mount_and_an_umount_are_a_line_of_audit_each() {
    let scene = Scene::new();
    let log = scene.host.path("audit.json");
    let asked = scene.asked.clone().with(&["--audit-log", log.to_str().expect("ours")]);
    assert_refused(&asked.mount(&scene.host).expect_err("unsigned"), None);
    let refused = lines(&log);
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert_eq!(refused[0]["action_id"], 2, "denied: {refused:#?}");
    assert!(refused[0].to_string().contains(&scene.kit.digest()), "{refused:#?}");

    scene.sign();
    let mount = asked.mount(&scene.host).expect("signed");
    let after = lines(&log);
    assert!(after.len() >= 2 && after[1]["action_id"] == 1, "allowed: {after:#?}");
    assert!(after.iter().any(|line| line["activity_id"] == 12), "mounted: {after:#?}");
    assert!(after.iter().all(|line| line["class_uid"] == 1001 && line["time"].is_number()), "{after:#?}");
    mount.umount().ok();
    let ended = lines(&log);
    assert_eq!(ended.last().expect("a line")["activity_id"], 13, "{ended:#?}");
}

#[test]
fn content_that_is_not_what_its_digest_says_is_recorded_before_there_is_a_mount() {
    let config = Digest::of(Algorithm::Sha256, &Scene::new().kit.config).to_string();
    for is_config in [true, false] {
        let scene = Scene::new();
        scene.sign();
        let blob = if is_config { config.clone() } else { scene.kit.layers[0].digest.clone() };
        scene.registry.fault(Target::Content(blob.clone()), Times::Always, Fault::Flip(0));
        let log = scene.host.path("audit.json");
        let pulled = scene.asked.clone().with(&["--audit-log", log.to_str().expect("ours")]).pull(&scene.host);
        assert_eq!(pulled.code(), 4, "{pulled:#?}");
        let lines = lines(&log);
        let last = lines.last().expect("a line");
        assert_eq!((&last["metadata"]["event_code"], &last["component"]), (&json!("mismatch"), &json!(blob)), "{lines:#?}");
        assert_eq!(lines.len(), if is_config { 1 } else { 2 }, "what is no kit is not decided on: {lines:#?}");
    }
}

#[test]
fn what_cannot_be_recorded_is_not_mounted() {
    let scene = Scene::new();
    scene.sign();
    let nowhere = scene.host.path("nowhere/audit.json");
    let elsewhere = scene.host.path("elsewhere.json");
    let link = scene.host.path("link.json");
    symlink(&elsewhere, &link).expect("a link");
    for path in [nowhere, link] {
        let asked = scene.asked.clone().with(&["--audit-log", path.to_str().expect("ours")]);
        let output = asked.mount(&scene.host).expect_err("no record");
        assert!(output.code() == 1 && output.stderr.contains("audit"), "{output:#?}");
        let mount = asked.with(&["--audit-best-effort"]).mount(&scene.host).expect("as well as it can");
        // A failure at umount blocks nothing.
        mount.umount().ok();
        assert!(!mount.is_mounted());
    }
    assert!(!elsewhere.exists(), "no link is followed");
}

#[test]
fn a_summary_has_the_fields_of_its_specification() {
    let scene = Scene::new();
    let file = scene.host.path("vsa.json");
    let asked = scene.asked.clone().with(&["--vsa", file.to_str().expect("ours"), "--vsa-verifier-id", "https://verifier.test/kitfs"]);
    let attached = [false, true].map(|signed| {
        let attached = signed.then(|| scene.sign());
        let answer = asked.explain(&scene.host);
        let summary: Value = serde_json::from_slice(&fs::read(&file).expect("a summary")).expect("JSON");
        assert_eq!(summary["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(summary["predicateType"], "https://slsa.dev/verification_summary/v1");
        assert_eq!(format!("sha256:{}", summary["subject"][0]["digest"]["sha256"].as_str().expect("a digest")), scene.kit.digest());
        let predicate = &summary["predicate"];
        assert_eq!(predicate["verifier"]["id"], "https://verifier.test/kitfs");
        assert!(predicate["verifier"]["version"].is_object() && predicate["slsaVersion"].is_string(), "{predicate:#}");
        let time: jiff::Timestamp = predicate["timeVerified"].as_str().expect("a time").parse().expect("RFC 3339");
        assert!((jiff::Timestamp::now().as_second() - time.as_second()).abs() < 600);
        assert_eq!(predicate["resourceUri"], format!("oci://{}", scene.asked.reference));
        assert_eq!(predicate["policy"]["digest"]["sha256"].as_str().map(str::len), Some(64));
        // No level of SLSA was verified, so none is claimed.
        let (result, levels) = if answer.decision() == "admit" { ("PASSED", "KITFS_ADMITTED") } else { ("FAILED", "FAILED") };
        assert_eq!((&predicate["verificationResult"], &predicate["verifiedLevels"]), (&json!(result), &json!([levels])));
        (attached, summary)
    });
    let (Some(bundle), summary) = &attached[1] else { panic!("signed the second time") };
    let inputs = summary["predicate"]["inputAttestations"].as_array().expect("what it rests on");
    assert!(
        inputs.iter().any(|input| format!("sha256:{}", input["digest"]["sha256"].as_str().unwrap_or_default()) == bundle.blob),
        "{inputs:#?}"
    );
    // Nothing is summed up of what has no digest.
    fs::remove_file(&file).expect("there");
    let other = Asked { reference: format!("{}/acme/none:v1", scene.registry.host()), ..asked };
    assert_eq!(other.explain(&scene.host).output.code(), 5);
    assert!(!file.exists());
}

#[test]
fn the_root_and_the_status_say_by_whom_and_by_what_it_was_admitted() {
    let scene = Scene::new();
    scene.sign();
    let answer = scene.explain();
    let policy = answer.report["evidence"]["policies"][0]["digest"].as_str().expect("a digest").to_owned();
    let signer = answer.report["evidence"]["counted"][0]["signer"].as_str().expect("a signer").to_owned();
    let mount = scene.asked.mount(&scene.host).expect("signed");
    assert!(attribute(mount.point(), "user.kitfs.signer").contains(&signer));
    assert!(attribute(mount.point(), "user.kitfs.policy").contains(&policy));
    assert_eq!(attribute(mount.point(), "user.kitfs.decision"), "admitted");
    let status = mount.status().to_string();
    assert!(status.contains(&policy) && status.contains(&signer), "{status}");
    mount.umount().ok();
    let plain = Asked::new(&scene.asked.reference).mount(&scene.host).expect("no policy");
    assert_eq!(attribute(plain.point(), "user.kitfs.decision"), "no-policy");
    assert!(rustix::fs::getxattr(plain.point(), "user.kitfs.signer", &mut [0_u8; 256]).is_err());
}
