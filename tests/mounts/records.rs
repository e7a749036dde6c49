//! What a mount tells of the decisions that it rests on, and what its processes record: with a plan as whoever decided hands it over.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Child;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kitfs::run::RunDir;
use kitfs::source::SourceOptions;
use serde_json::{Value, json};

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::Kit;
use crate::kits::standard;

crate::in_both_modes!(a_mount_tells_why_it_was_admitted_and_records_what_happens_to_it);

const AUDIT: &str = "audit.jsonl";

fn a_mount_tells_why_it_was_admitted_and_records_what_happens_to_it(mode: Mode) {
    let host = Host::new(mode);
    let kit = standard();
    let layout = host.folder("layout");
    let reference = kit.layout(&layout, "acme/standard:v1");
    let damaged = kit.layer("model");
    let blob = layout.join("blobs/sha256").join(damaged.digest.trim_start_matches("sha256:"));
    let mut bytes = fs::read(&blob).expect("a layer");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(blob, bytes).expect("room");

    let (mount, mut supervisor) = start(&host, &kit, &reference);
    let policy = format!("signed@{}", kit.config_digest());
    for (name, expected) in [
        ("user.kitfs.decision", "admitted"),
        ("user.kitfs.claim", "reg.example/acme/other:v1"),
        ("user.kitfs.signer", "alice@example.com\nbob@example.com\\nmallory"),
        ("user.kitfs.policy", &policy),
    ] {
        assert_eq!(xattr(mount.point(), name).as_deref(), Some(expected), "{name}");
        assert_eq!(xattr(&mount.path("README.md"), name), None, "only the root has {name}");
    }
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(mount.point(), &mut names[..]).expect("names");
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    assert_eq!(names.split_terminator('\0').filter(|name| name.starts_with("user.kitfs.")).count(), 6, "{names:?}");
    let status = mount.status();
    assert_eq!((&status["decision"], &status["claim"]), (&json!("admitted"), &json!("reg.example/acme/other:v1")));
    assert_eq!(status["admissions"][0]["signers"], json!(["alice@example.com", "bob@example.com\nmallory"]));

    assert_eq!(codes(&host), ["mount"]);
    let file = damaged.files.first().expect("a file").clone();
    let file = mount.point().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&file));
    assert_eq!(fs::read(file).expect_err("it is damaged").raw_os_error(), Some(libc::EIO));
    // Whoever hears of it finds it recorded.
    let events = events(&host);
    assert_eq!(codes(&host), ["mount", "mismatch"]);
    assert_eq!((&events[1]["component"], &events[1]["action"]), (&json!(damaged.digest), &json!("Denied")));
    assert!(
        events[1]["status_detail"]
            .as_str()
            .is_some_and(|detail| detail.contains(&format!("expected digest {}, got sha256:", damaged.digest)))
    );

    mount.umount().ok();
    assert!(supervisor.wait().expect("our child").success());
    assert_eq!(codes(&host), ["mount", "mismatch", "umount"]);
}

/// Does what `kitfs mount` does when all is decided.
fn start(host: &Host, kit: &Kit, reference: &str) -> (Mount, Child) {
    let point = host.folder("mnt");
    let signed_by = |signer: &str| {
        json!({
            "policy": "signed", "authority": "team", "digest": kit.digest(), "manifest": kit.digest(), "format": "bundle", "predicate_type": null,
            "signer": signer, "issuer": null, "subject": signer, "key": null, "times": [], "log_index": null,
        })
    };
    let plan = json!({
        "id": "records", "mountpoint": point, "reference": reference, "shown_source": reference, "digest": kit.digest(), "run_dir": host.run_dir(),
        "cache_dir": host.cache(), "uid": 0, "gid": 0, "allow_other": false, "no_passthrough": host.mode() == Mode::Cached, "prefetch": "none",
        "access": SourceOptions::default(), "manifest": BASE64.encode(&kit.manifest), "config": BASE64.encode(&kit.config),
        "audit": { "path": host.path(AUDIT), "best_effort": false },
        "admissions": [{
            "reference": reference, "claim": "reg.example/acme/other:v1", "digest": kit.digest(), "at": "2026-11-24T10:00:00Z",
            "policies": [{ "set": "host", "name": "signed", "digest": kit.config_digest(), "mode": "enforce", "met": true }],
            "trust_roots": [], "counted": [signed_by("bob@example.com\nmallory"), signed_by("alice@example.com")], "warnings": [],
        }],
    });
    // Whoever mounts has opened the cache before; a worker makes none.
    host.kitfs(&["cache", "ls"]).ok();
    fs::write(host.path("plan"), plan.to_string()).expect("room");
    let plan = OwnedFd::from(File::open(host.path("plan")).expect("the plan"));
    let (_, alive) = RunDir::open(&host.run_dir()).and_then(|run| run.create("records")).expect("a run directory");
    let (mut said, ready) = io::pipe().expect("a pipe");
    let passed: [(&str, RawFd); 3] =
        [("--plan-fd", plan.as_raw_fd()), ("--ready-fd", ready.as_raw_fd()), ("--alive-fd", alive.as_raw_fd())];
    let arguments = passed.iter().flat_map(|(option, number)| [OsString::from(option), number.to_string().into()]);
    let mut command = host.command(&std::iter::once(OsString::from("__supervisor")).chain(arguments).collect::<Vec<_>>());
    let numbers = passed.map(|(_, number)| number);
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let kept = numbers.iter().all(|&number| libc::fcntl(number, libc::F_SETFD, 0) >= 0);
            if kept { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    let supervisor = command.spawn().expect("a process");
    drop((plan, alive, ready));
    let mut text = String::new();
    said.read_to_string(&mut text).expect("a pipe");
    assert!(text.contains("ok"), "{text}");
    (host.guard(&point), supervisor)
}

fn events(host: &Host) -> Vec<Value> {
    let text = fs::read_to_string(host.path(AUDIT)).expect("an audit file");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn codes(host: &Host) -> Vec<String> {
    events(host).iter().map(|event| event["metadata"]["event_code"].as_str().expect("a code").to_owned()).collect()
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}
