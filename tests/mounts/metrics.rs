//! `--metrics` of a real mount: names, values, what they survive, and what is refused.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::registry::{Fault, ONCE, Registry, Target};
use crate::common::shown::read;
use crate::in_both_modes;
use crate::kits::standard;

in_both_modes!(a_mount_counts_what_it_does);

/// Names that others rely on, with their types and labels: added to, never changed.
const NAMES: [(&str, &str, &[&str]); 16] = [
    ("kitfs_cache_bytes", "gauge", &[]),
    ("kitfs_cache_limit_bytes", "gauge", &[]),
    ("kitfs_cache_pinned_bytes", "gauge", &[]),
    ("kitfs_errors", "counter", &["class"]),
    ("kitfs_evicted_bytes", "counter", &[]),
    ("kitfs_evictions", "counter", &[]),
    ("kitfs_fetched_bytes", "counter", &[]),
    ("kitfs_layers", "gauge", &["state"]),
    ("kitfs_mount", "info", &["reference", "digest", "mountpoint"]),
    ("kitfs_opens", "counter", &["by"]),
    ("kitfs_passthrough_opened_bytes", "counter", &[]),
    ("kitfs_served_bytes", "counter", &[]),
    ("kitfs_verification_failures", "counter", &[]),
    ("kitfs_wait_seconds", "histogram", &[]),
    ("kitfs_waiting_requests", "gauge", &[]),
    ("kitfs_worker_restarts", "counter", &[]),
];

/// A scrape: types by name, and samples by name and labels.
#[derive(Debug, Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads the text strictly: every line is a comment of a known kind or a sample of a family that was announced.
    fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("it does not end: {text}"));
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name, rest) = (words.next().expect("a kind"), words.next().expect("a name"), words.next().expect("the rest"));
                match kind {
                    "HELP" => assert!(rest.ends_with('.') && !rest.ends_with(".."), "{line}"),
                    "UNIT" => assert!(name.ends_with(rest), "{line}"),
                    "TYPE" => assert_eq!(scrape.types.insert(name.into(), rest.into()), None, "twice: {line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let name = sample.split('{').next().expect("a name");
            let suffixes = ["", "_total", "_info", "_bucket", "_sum", "_count"];
            let family = suffixes.iter().find_map(|suffix| scrape.types.get_key_value(name.strip_suffix(suffix)?));
            assert!(family.is_some(), "of no family: {line}");
            assert_eq!(scrape.samples.insert(sample.into(), value.parse().expect("a number")), None, "twice: {line}");
        }
        scrape
    }

    fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {self:#?}"))
    }
}

trait Connection: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> Connection for T {}

/// Says `request` and gives what comes until the other side hangs up.
fn ask(mut connection: impl Connection, request: &str) -> String {
    connection.write_all(request.as_bytes()).expect("said");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer
}

fn scrape(connection: impl Connection) -> Scrape {
    let answer = ask(connection, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    Scrape::read(body)
}

fn unix(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The address that stands in the log.
fn port(mount: &Mount) -> String {
    let log = mount.log();
    let (_, rest) = log.split_once("http://").unwrap_or_else(|| panic!("no address in {log}"));
    rest.split("/metrics").next().expect("an address").to_owned()
}

fn a_mount_counts_what_it_does(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let socket = host.path("m.sock");
    let address = format!("unix:{}", socket.display());
    let mount = host.mount_with(&reference, &["--prefetch", "none", "--metrics", &address]);
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);

    let begun = scrape(unix(&socket));
    let types: Vec<(&str, &str)> = begun.types.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
    assert_eq!(types, NAMES.map(|(name, kind, _)| (name, kind)));
    for (name, _, labels) in NAMES.iter().filter(|(_, _, labels)| !labels.is_empty()) {
        let sample = begun.samples.keys().find(|sample| sample.starts_with(name) && sample.contains('{')).expect("a sample");
        assert!(labels.iter().all(|label| sample.contains(&format!("{label}=\""))), "{sample}");
    }
    assert!(begun.samples.keys().any(|sample| sample.contains(&reference) && sample.contains(&kit.digest())), "{begun:#?}");
    assert_eq!(begun.value("kitfs_layers{state=\"absent\"}"), kit.layers.len() as f64);

    let (model, size) = (kit.layer("model"), kit.layer("model").blob.len());
    registry.fault(Target::Content(model.digest.clone()), ONCE, Fault::Flip(size as u64 / 2));
    read(&mount.path("model/model.safetensors")).expect("the second copy is right");
    let small = read(&mount.path("model/config.json")).expect("it is here");
    let after = scrape(unix(&socket));
    assert_eq!(after.value("kitfs_verification_failures_total"), 1.0);
    assert_eq!(after.value("kitfs_fetched_bytes_total"), 2.0 * size as f64);
    assert_eq!(after.value("kitfs_layers{state=\"cached\"}"), 1.0);
    assert!(after.value("kitfs_wait_seconds_count") >= 1.0 && after.value("kitfs_wait_seconds_sum") > 0.0);
    let served = after.value("kitfs_served_bytes_total");
    match mode {
        Mode::Passthrough => {
            assert_eq!((served, after.value("kitfs_opens_total{by=\"kernel\"}")), (small.len() as f64, 1.0), "{after:#?}");
            assert_eq!(after.value("kitfs_opens_total{by=\"kitfs\"}"), 1.0);
            assert_eq!(after.value("kitfs_passthrough_opened_bytes_total"), 5.0 * crate::kits::MIB as f64);
        }
        Mode::Cached => {
            assert!(served >= (5 * crate::kits::MIB + small.len()) as f64, "{served}");
            assert_eq!((after.value("kitfs_opens_total{by=\"kernel\"}"), after.value("kitfs_opens_total{by=\"kitfs\"}")), (0.0, 2.0));
        }
    }

    registry.fault(Target::Content(kit.layer("src").digest.clone()), crate::common::registry::Times::Always, Fault::status(404));
    read(&mount.path("src/train.sh")).expect_err("not there");
    let last = scrape(unix(&socket));
    assert_eq!(last.value("kitfs_errors_total{class=\"missing\"}"), 1.0);
    assert!(last.value("kitfs_cache_limit_bytes") > 0.0 && last.value("kitfs_cache_pinned_bytes") == 0.0);

    // `kitfs status` shows the same, written down each second.
    let counts = |status: &serde_json::Value| status["counts"].clone();
    let waits = last.value("kitfs_wait_seconds_count");
    let is_all = |counts: &serde_json::Value| counts["errors"]["missing"] == 1 && counts["waits"].as_f64() == Some(waits);
    let shown = mount.await_status("the error", |status| is_all(&status["counts"]).then(|| counts(status)));
    let shown = shown.expect("counts");
    for (key, sample) in [
        ("fetched_bytes", "kitfs_fetched_bytes_total"),
        ("served_bytes", "kitfs_served_bytes_total"),
        ("passthrough_opens", "kitfs_opens_total{by=\"kernel\"}"),
        ("passthrough_opened_bytes", "kitfs_passthrough_opened_bytes_total"),
        ("served_opens", "kitfs_opens_total{by=\"kitfs\"}"),
        ("waits", "kitfs_wait_seconds_count"),
        ("verification_failures", "kitfs_verification_failures_total"),
        ("evictions", "kitfs_evictions_total"),
        ("evicted_bytes", "kitfs_evicted_bytes_total"),
    ] {
        assert_eq!(shown[key].as_f64(), Some(last.value(sample)), "{key}");
    }
    assert_eq!(mount.status()["settings"]["metrics"], address);

    // The address outlives the worker; its counters do not, but for the one of restarts.
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    let anew = scrape(unix(&socket));
    assert_eq!((anew.value("kitfs_worker_restarts_total"), anew.value("kitfs_fetched_bytes_total")), (1.0, 0.0));
    // What `status` shows goes on.
    let on = mount.await_status("counts", |status| (status["counts"]["fetched_bytes"].as_u64() > Some(0)).then(|| counts(status)));
    assert_eq!(on.expect("counts")["verification_failures"], 1);
    mount.umount().ok();
    host.await_quiet(Duration::from_secs(10)).expect("it ends");
    assert!(!socket.exists());
}

#[test]
fn a_port_is_one_of_loopback_and_answers_nothing_else() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let mount = host.mount_with(&reference, &["--prefetch", "none", "--metrics", "0"]);
    let address = port(&mount);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let connect = || TcpStream::connect(&address).expect("a connection");
    scrape(connect());
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        (&format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(8 << 10)), "431"),
    ] {
        assert_eq!(ask(connect(), request).split(' ').nth(1), Some(status), "{request}");
    }
    // Those who say nothing are hung up on, and keep nobody else waiting for long.
    let mut silent: Vec<TcpStream> = (0..4).map(|_| connect()).collect();
    scrape(connect());
    for connection in &mut silent {
        connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        assert_eq!(connection.read(&mut [0; 1]).expect("hung up on"), 0);
    }
    // Taken by one mount, it is no other's; nothing is mounted then.
    let error = host.try_mount(&reference, &["--metrics", &address]).expect_err("in use");
    let named = format!("cannot tell metrics at http://{address}/metrics");
    assert!(error.code() == 1 && error.stderr.contains(&named) && error.stderr.contains("hint: "), "{error:#?}");
}

#[test]
fn nothing_listens_unless_it_is_asked_to() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    let threads = std::fs::read_dir(format!("/proc/{}/task", mount.worker_pid())).expect("a worker").flatten();
    let names: Vec<String> = threads.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default()).collect();
    assert!(!names.is_empty() && !names.iter().any(|name| name.starts_with("metrics")), "{names:?}");
    assert!(!mount.log().contains("metrics"), "{}", mount.log());
}
