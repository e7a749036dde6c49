//! What a mount logs: an event a line, in both formats, and no line a read.

use std::ffi::OsStr;

use serde_json::Value;

use crate::common::kitfs::{Host, Mode};
use crate::common::process::Running;
use crate::common::registry::{Fault, ONCE, Registry, Target};
use crate::common::shown::read;
use crate::kits::standard;

/// The lines of a log in JSON, each of which has to be an object with a time, a level and one message.
fn lines(log: &str) -> Vec<Value> {
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "message", "target"] {
            assert!(value[key].is_string() && line.matches(&format!("\"{key}\":")).count() == 1, "{key}: {line}");
        }
        value
    };
    log.lines().map(line).collect()
}

fn of<'l>(lines: &'l [Value], message: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line["message"] == message).collect()
}

#[test]
fn every_event_that_matters_is_a_line_of_json() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let (layer, size) = (kit.layer("model"), kit.layer("model").blob.len() as u64);
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let mut command = host.mount_command(&reference, &point, &["--prefetch", "none", "--foreground", "--log-format", "json"]);
    let mut process = Running::start(&mut command);
    while !(mount.find_status().is_some_and(|status| status["state"] == "serving")) {
        assert!(process.is_running(), "it does not serve");
    }
    registry.fault(Target::Content(layer.digest.clone()), ONCE, Fault::Flip(size / 2));
    let path = mount.path("model/model.safetensors");
    read(&path).expect("the second copy is right");
    for _ in 0..50 {
        read(&path).expect("it is here");
    }
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    mount.umount().ok();
    let output = process.wait(crate::common::kitfs::SOON).ok();
    let lines = lines(&output.stderr);

    let mounted = of(&lines, "mounted");
    assert_eq!((mounted.len(), &mounted[0]["reference"], &mounted[0]["passthrough"]), (1, &reference.clone().into(), &false.into()));
    let fetched: Vec<_> = of(&lines, "layer fetched").into_iter().filter(|line| line["layer"] == layer.digest).collect();
    assert_eq!((fetched.len(), fetched[0]["bytes"].as_u64()), (1, Some(size)), "{lines:#?}");
    assert!(fetched[0]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0) && fetched[0]["bytes_per_second"].as_u64() > Some(0));
    assert_eq!(of(&lines, "a layer does not match").len(), 1, "{lines:#?}");
    assert_eq!(of(&lines, "worker ended, the next one goes on").len(), 1, "{lines:#?}");
    assert_eq!(of(&lines, "unmounted").len(), 1, "{lines:#?}");
    assert!(lines.len() < 20, "no line a read: {lines:#?}");
}

#[test]
fn a_retry_is_a_line_and_the_format_is_inherited() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let layer = kit.layer("model");
    let json = [("KITFS_LOG_FORMAT", OsStr::new("json"))];
    let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &json).expect("a mount");
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    registry.fault(Target::Content(layer.digest.clone()), ONCE, Fault::status(503));
    read(&mount.path("model/model.safetensors")).expect("tried again");
    let lines = lines(&mount.log());
    let again = of(&lines, "trying again");
    assert_eq!((again.len(), &again[0]["level"]), (1, &"WARN".into()), "{lines:#?}");
    assert!(again[0]["error"].as_str().is_some_and(|error| error.contains("503")) && again[0]["seconds"].is_f64(), "{lines:#?}");
}

#[test]
fn text_is_for_people_and_rust_log_says_how_much() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    assert!(mount.log().lines().any(|line| line.contains(" INFO ") && line.contains("mounted")), "{}", mount.log());
    mount.umount().ok();
    let quiet = host.try_mount_in(&reference, &[], &[("RUST_LOG", OsStr::new("error"))]).expect("a mount");
    assert_eq!(quiet.log(), "");
}
