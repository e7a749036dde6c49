//! The command line: forms, exit codes, hints, the shape of `status --json`, and what stays behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getsid};
use serde_json::{Value, json};

use crate::common::kitfs::{Host, Mode, binary, mount_entry};
use crate::common::pack::MANIFEST;
use crate::common::process::{Output, Running, run, within};
use crate::common::registry::{Auth, Fault, Registry, Target, Times};
use crate::common::shown::read;
use crate::kits::standard;

const LIMIT: Duration = Duration::from_secs(60);

/// A host, a registry with the standard kit as `acme/standard:v1`, and the reference.
fn stage() -> (Host, Registry, String) {
    let registry = Registry::start();
    let reference = standard().serve(&registry, "acme/standard", "v1");
    (Host::new(Mode::Passthrough), registry, reference)
}

fn refused(output: &Output, code: i32, hint: bool) {
    assert_eq!(output.code(), code, "{output:#?}");
    assert!(output.stderr.contains("error: "), "{output:#?}");
    assert!(!hint || output.stderr.contains("hint: "), "{output:#?}");
    assert!(!output.stderr.contains('\u{1b}') && !output.stderr.contains("panicked"), "{output:#?}");
}

#[test]
fn what_is_no_command_is_a_matter_of_usage() {
    let host = Host::new(Mode::Passthrough);
    let wrong: [&[&str]; 9] = [
        &["mount"],
        &["mount", "a"],
        &["mount", "a", "b", "c"],
        &["mount", "--no-such-option", "a", "b"],
        &["mount", "--prefetch", "some", "a/b:c", "/mnt"],
        &["no-such-command"],
        &["umount"],
        &["verify"],
        &["completions", "no-such-shell"],
    ];
    for arguments in wrong {
        let output = host.kitfs(arguments);
        assert_eq!(output.code(), 2, "{arguments:?}: {output:#?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_malformed_reference_is_refused_with_a_hint() {
    let host = Host::new(Mode::Passthrough);
    let point = host.folder("mnt");
    for reference in
        ["", "UPPER/case:v1", "host/a b:v1", "host/a:v1@sha256:12", "host/../a:v1", "host/a:", "oci:", "host/a@md5:00", "host//a:v1"]
    {
        let output = host.kitfs(&[OsStr::new("mount"), OsStr::new(reference), point.as_os_str()]);
        assert!([1, 2].contains(&output.code()), "{reference}: {output:#?}");
        assert!(output.stderr.contains("error: "), "{reference}: {output:#?}");
        assert!(mount_entry(&point).is_none());
    }
    refused(&host.kitfs(&["inspect", "host/A:v1"]), 2, true);
}

#[test]
fn what_is_not_there_or_not_ours_to_read_is_five() {
    let (host, registry, reference) = stage();
    for missing in [reference.replace(":v1", ":v2"), reference.replace("standard", "nothing")] {
        for verb in [&["pull", "--plain-http"][..], &["inspect", "--plain-http"]] {
            refused(&host.kitfs(&[verb, &[missing.as_str()]].concat()), 5, false);
        }
        refused(&host.try_mount(&missing, &[]).expect_err("nothing there"), 5, false);
    }
    registry.require(Auth::Basic("user".into(), "password".into()));
    refused(&host.try_mount(&reference, &[]).expect_err("no credentials"), 5, true);
    registry.require(Auth::None);
    registry.fault(Target::Manifests, Times::Always, Fault::status(403));
    refused(&host.try_mount(&reference, &[]).expect_err("forbidden"), 5, false);
}

#[test]
fn what_is_no_kit_is_four() {
    let (host, registry, _) = stage();
    let config = registry.blob("{}");
    let image = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
    });
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] });
    registry.manifest("acme/image", "v1", MANIFEST, image.to_string());
    registry.manifest("acme/index", "v1", "application/vnd.oci.image.index.v1+json", index.to_string());
    registry.manifest("acme/text", "v1", MANIFEST, "not \u{1b}[31m JSON");
    for name in ["image", "index", "text"] {
        refused(&host.try_mount(&format!("{}/acme/{name}:v1", registry.host()), &[]).expect_err("no kit"), 4, false);
    }
}

#[test]
fn a_registry_that_is_not_there_or_speaks_otherwise_is_one() {
    let (host, registry, reference) = stage();
    let point = host.folder("mnt");
    // https unless told otherwise, on loopback too.
    let output = host.kitfs(&[OsStr::new("mount"), OsStr::new(&reference), point.as_os_str()]);
    refused(&output, 1, true);
    assert!(output.stderr.contains("--plain-http"), "{output:#?}");
    registry.fault(Target::Any, Times::Always, Fault::status(500));
    let output = host.try_mount(&reference, &[]).expect_err("500");
    refused(&output, 1, false);
    assert!(output.took < Duration::from_secs(60));
    registry.stop();
    let output = host.try_mount(&reference, &[]).expect_err("refused");
    refused(&output, 1, false);
    assert!(output.took < Duration::from_secs(60));
}

#[test]
fn a_place_that_cannot_be_mounted_on_is_refused_with_a_hint() {
    let (host, _registry, reference) = stage();
    let mount_at = |point: &Path| run(&mut host.mount_command(&reference, point, &[]), LIMIT);
    let output = mount_at(&host.path("no/such/folder"));
    assert!([1, 2].contains(&output.code()), "{output:#?}");
    refused(&output, output.code(), true);
    let full = host.folder("full");
    fs::write(full.join("file"), "").expect("room");
    let output = mount_at(&full);
    refused(&output, output.code(), true);
    assert!([1, 2].contains(&output.code()) && fs::read_dir(&full).expect("ours").count() == 1);
    let output = mount_at(&full.join("file"));
    refused(&output, output.code(), true);
    let mount = host.mount(&reference);
    let output = mount_at(mount.point());
    refused(&output, 1, true);
    assert_eq!(read(&mount.path("README.md")).as_deref(), Ok(&b"# hello\n"[..]));
    mount.umount().ok();
    assert!(!mount.is_mounted(), "there was one mount, not two");
}

#[test]
fn nothing_of_the_caller_stays_open_in_the_background() {
    let (host, _registry, reference) = stage();
    let point = host.folder("mnt");
    let (marker, pipe) = (host.path("marker"), host.path("pipe"));
    fs::write(&marker, "").expect("room");
    let command = host.mount_command(&reference, &point, &[]);
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| format!("'{}'", word.to_string_lossy())).collect();
    // $(…) ends when everybody has closed the pipe. Descriptor 9 and the lock on it must not stay either.
    let script = format!(
        "mkfifo {pipe}; exec 9<>{marker} 8<>{pipe}; flock 9; out=$({mount} 2>&1) && echo \"done:$out\"; exec 9>&-; flock --nonblock {marker} true && echo free",
        pipe = pipe.display(),
        marker = marker.display(),
        mount = words.join(" ")
    );
    let mut shell = Command::new("bash");
    host.environment(&mut shell).args(["-c", &script]);
    let mount = host.guard(&point);
    let output = run(&mut shell, LIMIT).ok();
    assert!(output.stdout.contains("done:") && output.stdout.contains("free"), "{output:#?}");
    let ours = getsid(None).expect("a session");
    let processes = host.processes();
    assert!(processes.len() >= 2, "supervisor and worker: {processes:?}");
    for pid in processes {
        let session = Pid::from_raw(pid).and_then(|pid| getsid(Some(pid)).ok()).expect("a session");
        assert_ne!(session, ours, "{pid} belongs to its own session");
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert!(target != marker && target != pipe, "{pid} holds {}", target.display());
            assert!(!target.starts_with("/dev/pts") && !target.starts_with("/dev/tty"), "{pid} holds a terminal");
        }
    }
    assert!(mount.is_mounted());
}

#[test]
fn status_has_the_shape_that_others_rely_on() {
    let (host, registry, reference) = stage();
    let kit = standard();
    assert_eq!(host.status(), json!({ "mounts": [] }));
    let mount = host.mount(&reference);
    let path = mount.path("model/config.json");
    within(LIMIT, "a read", move || read(&path)).expect("readable");
    let gate = registry.hold(&kit.layer("data").digest);
    let mut waiting = Running::start(Command::new("ls").arg(mount.path("data")));
    gate.await_held(1);
    mount.await_layer(&kit.layer("data").digest, "fetching");

    let status = mount.status();
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_else(|| panic!("a text instead of {value} in {status:#}"));
    assert_eq!(text(&status["mountpoint"]), mount.point().to_str().expect("ours"));
    assert_eq!(text(&status["reference"]), reference);
    assert_eq!(text(&status["digest"]), kit.digest());
    assert_eq!(text(&status["state"]), "serving");
    assert_eq!(text(&status["cache_dir"]), host.cache().to_str().expect("ours"));
    assert!(Path::new(&text(&status["log"])).is_file() && text(&status["log"]).starts_with(host.run_dir().to_str().expect("ours")));
    let since = text(&status["since"]);
    assert!(since.len() >= 20 && since.starts_with("20") && since.ends_with('Z') && since.as_bytes()[10] == b'T', "{since}");
    assert_eq!(status["restarts"], 0);
    assert!(status["passthrough"].is_boolean() && status["supervisor_pid"].is_u64() && status["worker_pid"].is_u64(), "{status:#}");
    let layers = status["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), kit.layers.len());
    for (layer, wanted) in layers.iter().zip(&kit.layers) {
        assert_eq!(text(&layer["digest"]), wanted.digest);
        assert_eq!(text(&layer["media_type"]), wanted.media_type);
        assert_eq!(text(&layer["path"]), wanted.path);
        assert_eq!(layer["size"], wanted.blob.len());
        let fetched = layer["fetched"].as_u64().expect("a number");
        let (state, rest) = match wanted.path.as_str() {
            "model" => ("cached", fetched == wanted.blob.len() as u64),
            "data" => ("fetching", fetched == 0),
            _ => ("absent", fetched == 0),
        };
        assert!(text(&layer["state"]) == state && rest, "{layer:#}");
        assert!(layer["error"].is_null() && layer["retry_at"].is_null(), "{layer:#}");
    }
    let one: Value =
        serde_json::from_str(&host.kitfs(&[OsStr::new("status"), OsStr::new("--json"), mount.point().as_os_str()]).ok().stdout)
            .expect("JSON");
    assert_eq!(one["mounts"].as_array().map(Vec::len), Some(1));
    let human = host.kitfs(&["status"]).ok();
    assert!(human.stdout.contains(mount.point().to_str().expect("ours")) && human.stdout.contains("acme/standard"), "{}", human.stdout);
    assert_ne!(host.kitfs(&["status", "/no/such/mount"]).code(), 0);
    gate.open();
    waiting.said();
    waiting.wait(LIMIT).ok();
    mount.umount().ok();
    host.await_quiet(LIMIT).expect("an unmounted host is quiet");
    assert_eq!(host.status(), json!({ "mounts": [] }));
}

#[test]
fn every_way_to_unmount_leaves_nothing_behind() {
    let (host, _registry, reference) = stage();
    let ways: [(&str, &str); 5] = [
        ("kitfs umount", "\"$KITFS\" umount \"$POINT\""),
        ("kitfs umount --all", "\"$KITFS\" umount --all"),
        ("kitfs umount --lazy", "\"$KITFS\" umount --lazy \"$POINT\""),
        ("umount", "umount \"$POINT\""),
        ("fusermount3 -u", "fusermount3 -u \"$POINT\""),
    ];
    for (name, way) in ways {
        let mount = host.mount(&reference);
        assert!(read(&mount.path("Kitfile")).is_ok());
        let mut shell = Command::new("bash");
        host.environment(&mut shell).env("KITFS", binary()).env("POINT", mount.point());
        run(shell.args(["-c", way]), LIMIT).ok();
        assert!(!mount.is_mounted(), "{name}");
        host.await_quiet(Duration::from_secs(10)).unwrap_or_else(|left| panic!("{name} left {left:?} behind"));
        assert_eq!(host.status(), json!({ "mounts": [] }), "{name}");
        assert_eq!(fs::read_dir(mount.point()).expect("ours").count(), 0, "{name}");
    }
    let output = host.kitfs(&[OsStr::new("umount"), host.folder("plain").as_os_str()]);
    refused(&output, 1, false);
}

#[test]
fn umount_names_who_still_reads() {
    let (host, _registry, reference) = stage();
    let mount = host.mount(&reference);
    let path = mount.path("model/model.safetensors");
    let file = within(LIMIT, "an open", move || File::open(path).expect("open"));
    let start = Instant::now();
    let output = mount.umount();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    refused(&output, 1, true);
    assert!(output.stderr.contains(&std::process::id().to_string()), "{output:#?}");
    assert!(mount.is_mounted() && read(&mount.path("README.md")).is_ok());
    // Lazily it goes at once, and the open file goes on.
    host.kitfs(&[OsStr::new("umount"), OsStr::new("--lazy"), mount.point().as_os_str()]).ok();
    assert!(!mount.is_mounted());
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let right = standard().tree.content("model/model.safetensors").to_vec();
    within(LIMIT, "an open file", move || assert!(fs::read(again).expect("goes on") == right));
    drop(file);
    host.await_quiet(Duration::from_secs(10)).expect("it ends with the last file");
}

#[test]
fn in_the_foreground_it_stays_says_when_it_is_ready_and_ends_by_sigterm() {
    let (host, _registry, reference) = stage();
    let point = host.folder("mnt");
    let socket = host.path("notify");
    let notify = UnixDatagram::bind(&socket).expect("a socket");
    notify.set_read_timeout(Some(LIMIT)).expect("a socket");
    let mut command = host.mount_command(&reference, &point, &["--foreground"]);
    let mut process = Running::start(command.env("NOTIFY_SOCKET", &socket));
    let mount = host.guard(&point);
    let mut message = [0; 4096];
    loop {
        let length = notify.recv(&mut message).expect("READY=1");
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        if text.lines().any(|line| line == "READY=1") {
            break;
        }
    }
    assert!(mount.is_mounted() && process.is_running());
    let path = mount.path("model/config.json");
    within(LIMIT, "a read", move || read(&path)).expect("readable");
    let start = Instant::now();
    process.signal(Signal::TERM);
    let output = process.wait(LIMIT);
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(start.elapsed() < Duration::from_secs(5) && !mount.is_mounted());
    host.await_quiet(Duration::from_secs(5)).expect("nothing is left behind");
}

#[test]
fn ctrl_c_while_mounting_leaves_nothing() {
    let (host, registry, _) = stage();
    let tree = crate::common::pack::Tree::new().file("top", "1").file("a/x", "x");
    let kit = crate::common::pack::Kitfile::new("shared").code(".").dataset("a").pack(&tree);
    let reference = kit.serve(&registry, "acme/shared", "v1");
    let gate = registry.hold(&kit.layer(".").digest);
    let point = host.folder("mnt");
    let process = Running::start(&mut host.mount_command(&reference, &point, &[]));
    let mount = host.guard(&point);
    gate.await_held(1);
    process.signal(Signal::INT);
    let output = process.wait(Duration::from_secs(10));
    assert!(!output.status.success());
    host.await_quiet(Duration::from_secs(10)).expect("nothing is left behind");
    assert!(!mount.is_mounted());
}

#[test]
fn inspect_says_what_is_known_and_fetches_no_layer() {
    let (host, registry, reference) = stage();
    let kit = standard();
    let output = host.kitfs(&["inspect", "--json", "--plain-http", &reference]).ok();
    let json: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(json["digest"], kit.digest());
    let layers = json["layers"].as_array().expect("layers");
    for (layer, wanted) in layers.iter().zip(&kit.layers) {
        assert_eq!((layer["digest"].as_str(), layer["path"].as_str()), (Some(wanted.digest.as_str()), Some(wanted.path.as_str())));
        assert_eq!((layer["media_type"].as_str(), &layer["size"]), (Some(wanted.media_type.as_str()), &json!(wanted.blob.len())));
        assert_eq!(layer["cached"], false, "{layer}");
    }
    assert_eq!(layers.len(), kit.layers.len());
    let human = host.kitfs(&["inspect", "--plain-http", &reference]).ok().stdout;
    for text in [kit.digest().as_str(), "1.7.0", "standard", kit.layer("model").digest.as_str()] {
        assert!(human.contains(text), "{text} in {human}");
    }
    assert!(kit.layers.iter().all(|layer| registry.asked(&layer.digest) == 0));
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    let output = host.kitfs(&["inspect", "--json", "--plain-http", &reference]).ok();
    let json: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert!(json["layers"].as_array().expect("layers").iter().all(|layer| layer["cached"] == true), "{json:#}");
}

#[test]
fn pull_fetches_everything_once_and_says_so_in_plain_lines() {
    let (host, registry, reference) = stage();
    let kit = standard();
    for _ in 0..2 {
        let output = host.kitfs(&["pull", "--plain-http", &reference]).ok();
        assert!(!format!("{}{}", output.stdout, output.stderr).contains(['\u{1b}', '\r']), "{output:#?}");
    }
    for layer in &kit.layers {
        assert_eq!(registry.sent(&layer.digest), layer.blob.len() as u64);
        let layer = host.cache().join("v1/layers").join(layer.stored_name());
        assert!(layer.join("visible").exists() && layer.join("durable").exists(), "pull waits until it is durable");
    }
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(host.cache()).expect("a cache").permissions().mode() & 0o777, 0o700);
}

#[test]
fn options_may_stand_in_the_environment() {
    let (host, _registry, reference) = stage();
    let inspect = |value: &str| run(host.command(&["inspect", &reference]).env("KITFS_PLAIN_HTTP", value), LIMIT);
    for yes in ["1", "true", "yes", "on"] {
        inspect(yes).ok();
    }
    for no in ["0", "false", "no", "off"] {
        assert_eq!(inspect(no).code(), 1, "{no}");
    }
    assert_eq!(inspect("perhaps").code(), 2);
    let other = host.path("another-cache");
    run(host.command(&["pull", "--plain-http", &reference]).env("KITFS_CACHE_DIR", &other), LIMIT).ok();
    let layers = |cache: &Path| fs::read_dir(cache.join("v1/layers")).expect("a cache").count();
    // What was inspected is kept where it was inspected, but that has no layers.
    assert_eq!((layers(&other), layers(&host.cache())), (standard().layers.len(), 0));
    // The option wins.
    host.kitfs(&["pull", "--plain-http", "--cache-dir", host.cache().to_str().expect("ours"), &reference]).ok();
    assert_eq!(layers(&host.cache()), standard().layers.len());
}

#[test]
fn completions_and_the_manual_come_from_the_options() {
    let host = Host::new(Mode::Passthrough);
    for shell in ["bash", "zsh", "fish"] {
        let output = host.kitfs(&["completions", shell]).ok();
        assert!(output.stdout.contains("kitfs") && output.stdout.contains("prefetch"), "{shell}");
    }
    assert!(host.kitfs(&["man"]).ok().stdout.contains(".TH"));
    assert!(host.kitfs(&["--version"]).ok().stdout.starts_with("kitfs "));
    let help = host.kitfs(&["mount", "--help"]).ok().stdout;
    for option in [
        "--cache-dir",
        "--prefetch",
        "--plain-http",
        "--ca-cert",
        "--offline",
        "--allow-other",
        "--trust-user-cache",
        "--uid",
        "--gid",
        "--no-passthrough",
        "--foreground",
    ] {
        assert!(help.contains(option), "{option} in {help}");
    }
}

#[test]
fn nothing_from_outside_reaches_the_terminal_unescaped() {
    let (host, registry, _) = stage();
    let tree = crate::common::pack::Tree::new().file("d\u{1b}]0;x\u{7}/f\u{1b}[31m", "x");
    let kit = crate::common::pack::Kitfile::new("evil \u{1b}[2J").dataset("d\u{1b}]0;x\u{7}").pack(&tree);
    let reference = kit.serve(&registry, "acme/evil", "v1");
    let layer = &kit.layers[0].digest;
    registry.fault(Target::Content(layer.clone()), Times::Always, Fault::status(400));
    let mount = host.mount(&reference);
    let path = mount.path("d\u{1b}]0;x\u{7}");
    within(LIMIT, "a listing", move || assert!(fs::read_dir(path).is_err()));
    for arguments in [
        &["status"][..],
        &["inspect", "--plain-http", &reference],
        &["pull", "--plain-http", &reference],
        &["verify", "--plain-http", &reference],
    ] {
        let output = host.kitfs(arguments);
        assert!(!format!("{}{}", output.stdout, output.stderr).contains(['\u{1b}', '\u{7}']), "{arguments:?}: {output:?}");
    }
}

#[test]
fn an_ordinary_user_mounts_by_fusermount() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let device = fs::metadata("/dev/fuse").expect("/dev/fuse").permissions().mode();
    assert_eq!(device & 0o666, 0o666, "ordinary users need the device, as udev gives it to them: chmod 666 /dev/fuse");
    let (host, _registry, reference) = stage();
    fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    let point = host.folder("mnt");
    for path in [host.path("home"), host.path("run"), host.path("tmp"), point.clone()] {
        chown(path, Some(65_534), Some(65_534)).expect("root may");
    }
    let own = host.path("home/cache");
    let user = |words: &[&OsStr]| {
        let mut command = Command::new("setpriv");
        host.environment(&mut command).env("KITFS_CACHE_DIR", &own);
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).args(words);
        run(&mut command, LIMIT)
    };
    let program = binary();
    let kitfs = program.as_os_str();
    let words = |more: &[&'static str]| -> Vec<&OsStr> { [kitfs].into_iter().chain(more.iter().map(|word| OsStr::new(*word))).collect() };
    let mount = host.guard(&point);
    let mut line = words(&["mount", "--plain-http"]);
    line.extend([OsStr::new(&reference), point.as_os_str()]);
    user(&line).ok();
    assert!(mount.is_mounted());
    let file = point.join("model/config.json");
    assert!(user(&[OsStr::new("cat"), file.as_os_str()]).ok().stdout.contains("hidden_size"));
    let mut line = words(&["umount"]);
    line.push(point.as_os_str());
    user(&line).ok();
    assert!(!mount.is_mounted());
    // Everybody would see what only this user's word stands for.
    let mut line = words(&["mount", "--plain-http", "--allow-other"]);
    line.extend([OsStr::new(&reference), point.as_os_str()]);
    refused(&user(&line), 1, true);
    host.await_quiet(Duration::from_secs(10)).expect("nothing is left behind");
}
