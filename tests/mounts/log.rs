//! What a mount logs: an event a line, in both formats, and no line a read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::kitfs::{Host, Mode, SOON};
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

/// What a journal gets, in its own protocol.
struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    fn at(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        Self { socket, path }
    }

    /// The next entry that says this.
    fn next(&self, message: &str) -> BTreeMap<String, String> {
        loop {
            let mut entry = vec![0; 256 << 10];
            let length = self.socket.recv(&mut entry).unwrap_or_else(|error| panic!("no `{message}` in the journal: {error}"));
            let mut rest = &entry[..length];
            let mut fields = BTreeMap::new();
            while let Some(end) = rest.iter().position(|byte| matches!(byte, b'=' | b'\n')) {
                let (name, (kind, after)) = (&rest[..end], rest[end..].split_first().expect("more"));
                let (value, left) = match kind {
                    b'=' => after.split_at(after.iter().position(|byte| *byte == b'\n').expect("an end")),
                    _ => {
                        let (size, value) = after.split_at(8);
                        value.split_at(u64::from_le_bytes(size.try_into().expect("8 bytes")) as usize)
                    }
                };
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
                assert_eq!(fields.insert(text(name), text(value)), None, "twice");
                rest = &left[1..];
            }
            // What finds out whether somebody listens is empty.
            if fields.get("MESSAGE").is_some_and(|said| said.starts_with(message)) {
                return fields;
            }
        }
    }
}

/// A mount in a namespace of its own where the journal is this test's, with `options`; its standard error goes where the journal's stream would.
fn in_journal(host: &Host, journal: &Journal, reference: &str, point: &Path, options: &[&str]) -> Running {
    let script = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal; : >/run/systemd/journal/socket
        mount --bind \"$JOURNAL\" /run/systemd/journal/socket
        export JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2)
        exec \"$@\"";
    let mount = host.mount_command(reference, point, &[&["--prefetch", "none", "--foreground"], options].concat());
    let mut command = Command::new("unshare");
    host.environment(&mut command).env("JOURNAL", &journal.path).args(["-m", "sh", "-c", script, "sh"]);
    Running::start(command.arg(mount.get_program()).args(mount.get_args()))
}

#[test]
fn the_journal_gets_entries_with_priorities_and_fields() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let (layer, point) = (kit.layer("model"), host.folder("mnt"));
    let journal = Journal::at(host.path("journal"));
    let process = in_journal(&host, &journal, &reference, &point, &[]);
    let mounted = journal.next("mounted");
    assert_eq!((mounted["PRIORITY"].as_str(), mounted["SYSLOG_IDENTIFIER"].as_str()), ("6", "kitfs"), "{mounted:#?}");
    assert_eq!((&mounted["KITFS_REFERENCE"], &mounted["KITFS_DIGEST"]), (&reference, &kit.digest()), "{mounted:#?}");
    assert!(mounted["MESSAGE"].contains(&format!("reference={reference}")), "the line is for people: {mounted:#?}");
    assert_eq!(mounted["KITFS_TARGET"], "kitfs::supervisor");

    registry.fault(Target::Content(layer.digest.clone()), ONCE, Fault::Flip(7));
    // The mount is only seen from where the process stands.
    let inside = Path::new("/proc").join(process.pid().to_string()).join("root").join(point.strip_prefix("/").expect("absolute"));
    read(&inside.join("model/model.safetensors")).expect("the second copy is right");
    let mismatch = journal.next("a layer does not match");
    assert_eq!((mismatch["PRIORITY"].as_str(), &mismatch["KITFS_LAYER"]), ("4", &layer.digest), "{mismatch:#?}");
    assert!(mismatch["KITFS_ERROR"].contains(&layer.digest) && mismatch["MESSAGE"].contains("error="), "{mismatch:#?}");
    let fetched = journal.next("layer fetched");
    assert_eq!(fetched["KITFS_BYTES"], layer.blob.len().to_string(), "{fetched:#?}");
    process.signal(Signal::TERM);
    journal.next("unmounted");
    let output = process.wait(SOON).ok();
    assert_eq!(output.stderr, "", "nothing is said twice");
}

#[test]
fn a_format_that_was_asked_for_is_kept_to_in_the_journal() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    for format in ["json", "text"] {
        let (point, journal) = (host.folder("mnt"), Journal::at(host.path(format)));
        let process = in_journal(&host, &journal, &reference, &point, &["--log-format", format]);
        let status = || host.status()["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(|mount| mount["state"] == "serving"));
        while !status() {
            std::thread::yield_now();
        }
        process.signal(Signal::TERM);
        let said = process.wait(SOON).ok().stderr;
        // By way of standard error, each line with its priority before it.
        assert!(said.lines().count() > 1 && said.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{said}");
        assert_eq!(said.lines().all(|line| line.contains(">{\"timestamp\":")), format == "json", "{said}");
    }
}

#[test]
fn text_is_for_people_and_rust_log_says_how_much() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    assert!(mount.log().lines().any(|line| line.contains(" INFO ") && line.contains("mounted")), "{}", mount.log());
    mount.umount().ok();
    let misread = host.try_mount_in(&reference, &[], &[("RUST_LOG", OsStr::new("=="))]).expect("a mount");
    let log = misread.log();
    assert!(log.contains("RUST_LOG cannot be read") && log.contains("mounted"), "{log}");
    drop(misread);
    let quiet = host.try_mount_in(&reference, &[], &[("RUST_LOG", OsStr::new("error"))]).expect("a mount");
    assert_eq!(quiet.log(), "");
}
