//! Layers that go while they are mounted, and come back.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::disk::Disk;
use crate::common::kitfs::{Host, Mode};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::read;
use crate::kits::{MIB, parts};

crate::in_both_modes!(a_layer_goes_and_comes_back_under_its_mount, a_cache_may_be_smaller_than_its_kit);

const LIMIT: Duration = Duration::from_secs(90);

fn json(host: &Host, arguments: &[&str]) -> Value {
    serde_json::from_str(&host.kitfs(arguments).ok().stdout).expect("JSON")
}

fn pruned(host: &Host) -> Value {
    json(host, &["cache", "prune", "--all", "--json"])["layers"].clone()
}

/// Waits until the worker and the supervisor have let go of all layers.
fn await_unused(host: &Host) {
    let begin = Instant::now();
    loop {
        let listed = json(host, &["cache", "ls", "--json"]);
        if listed["layers"].as_array().expect("a list").iter().all(|layer| layer["in_use"] == false) {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "{listed}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn a_layer_goes_and_comes_back_under_its_mount(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = parts(&["a"], 6 * MIB);
    let mount = host.mount(&kit.serve(&registry, "acme/kit", "v1"));
    let (path, content) = (mount.path("a/part.bin"), kit.tree.content("a/part.bin").to_vec());
    let number = fs::metadata(&path).expect("there").ino();
    let file = File::open(&path).expect("there");
    // SAFETY: nobody ever writes a file of a mount.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("mapped");
    assert_eq!(pruned(&host), 0, "it is in use");
    let used = json(&host, &["cache", "ls", "--json"]);
    let users = used["layers"][0]["in_use_by"].as_array().expect("a list");
    let pids: Vec<i64> =
        users.iter().filter(|user| user["mountpoint"].as_str() == mount.point().to_str()).filter_map(|user| user["pid"].as_i64()).collect();
    assert!([mount.supervisor_pid(), mount.worker_pid()].iter().all(|pid| pids.contains(&i64::from(*pid))), "{used:#}");
    let line = host.kitfs(&["cache", "ls"]).ok().stdout;
    assert!(line.contains(&format!("in use by {}\n", mount.point().display())), "{line}");
    assert!(map[..] == content);
    let mut end = vec![0; MIB];
    file.read_exact_at(&mut end, 5 * MIB as u64).expect("there");
    assert!(content.ends_with(&end));
    // A mapping is a use as well.
    drop(file);
    assert_eq!(pruned(&host), 0);
    drop(map);

    await_unused(&host);
    assert_eq!(pruned(&host), 1);
    assert!(fs::read_dir(host.cache().join("v1/layers")).expect("there").next().is_none());
    assert_eq!(fs::read_dir(mount.path("a")).expect("known still").count(), 1);
    assert_eq!(fs::metadata(&path).expect("known still").ino(), number);
    assert_eq!(registry.sent(&kit.layers[0].digest), kit.layers[0].blob.len() as u64);
    assert!(read(&path) == Ok(content));
    assert_eq!(fs::metadata(&path).expect("there").ino(), number);
    assert_eq!(registry.sent(&kit.layers[0].digest), 2 * kit.layers[0].blob.len() as u64);
}

fn a_cache_may_be_smaller_than_its_kit(mode: Mode) {
    let host = Host::new(mode);
    let _disk = Disk::tmpfs(host.cache(), 20 * MIB);
    let registry = Registry::start();
    let names = ["a", "b", "c", "d"];
    let kit = parts(&names, 6 * MIB);
    let mount = host.mount_with(&kit.serve(&registry, "acme/kit", "v1"), &["--prefetch", "none", "--cache-size", "100%"]);
    for name in names {
        let (path, content) = (mount.path(&format!("{name}/part.bin")), kit.tree.content(&format!("{name}/part.bin")).to_vec());
        let got = within(LIMIT, "reading", move || read(&path));
        assert!(got == Ok(content), "{name}: {:?}\n{}", got.err(), mount.log());
    }
    let listed = json(&host, &["cache", "ls", "--json"]);
    assert!(listed["layers"].as_array().is_some_and(|layers| layers.len() < names.len()), "{listed}");
    let log = mount.log();
    let evicted: Vec<&str> = log.lines().filter(|line| line.contains("layer is evicted")).collect();
    assert!(!evicted.is_empty() && evicted.iter().all(|line| line.contains("layer=") && line.contains("bytes=")), "{log}");
    mount.await_status("evictions", |status| {
        let counts = &status["counts"];
        (counts["evictions"] == evicted.len() && counts["evicted_bytes"].as_u64() >= Some(6 * MIB as u64)).then_some(())
    });
}

#[test]
fn who_fetches_more_than_the_limit_is_told() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let reference = parts(&["a", "b"], 2 * MIB).serve(&registry, "acme/kit", "v1");
    let said = host.kitfs(&["pull", "--plain-http", "--cache-size", "1MiB", &reference]).ok().stderr;
    assert!(said.contains("warning: the cache at ") && said.contains("over its limit"), "{said}");
    // Another one that finds everything here has nothing to tell of.
    let said = host.kitfs(&["pull", "--plain-http", &reference]).ok().stderr;
    assert!(!said.contains("warning"), "{said}");
    await_unused(&host);
    assert_eq!(pruned(&host), 2);
    let mount = host.mount_with(&reference, &["--prefetch", "none"]);
    read(&mount.path("a/part.bin")).expect("larger than the limit, and here all the same");
    mount.await_status("a word of it", |status| (status["counts"]["cache_over_limit_bytes"].as_u64() > Some(0)).then_some(()));
    let text = host.kitfs(&["status"]).ok().stdout;
    assert!(text.contains("over its limit"), "{text}");
}

#[test]
fn a_cache_is_looked_after_by_hand() {
    let host = Host::new(Mode::Cached);
    let registry = Registry::start();
    let reference = parts(&["a", "b"], 2 * MIB).serve(&registry, "acme/kit", "v1");
    let pull = |options: &[&str]| host.kitfs(&[&["pull", "--plain-http"], options, &[reference.as_str()]].concat()).ok();
    assert_eq!(pull(&["--cache-size", "1GiB", "--pin"]).stderr.matches("may hold").count(), 0);
    let said = pull(&["--cache-size", "2GiB"]).stderr;
    assert!(said.contains("may hold 2GiB from now on, it was 1GiB"), "{said}");
    let wrong = host.kitfs(&["pull", "--cache-size", "2gb", &reference]);
    assert!(wrong.code() == 2 && wrong.stderr.contains("GiB"), "{wrong:?}");
    assert_eq!(json(&host, &["cache", "path", "--json"])["path"], host.cache().to_str().expect("ASCII"));
    let listed = json(&host, &["cache", "ls", "--json"]);
    assert_eq!(listed["limit"], 2_u64 << 30);
    let layers = listed["layers"].as_array().expect("a list");
    assert!(layers.len() == 2 && layers.iter().all(|layer| layer["pinned"] == true), "{listed}");
    assert_eq!(pruned(&host), 0);
    let why = host.kitfs(&["cache", "prune", "--all"]).ok().stdout;
    assert!(why.starts_with("0 layers removed") && why.ends_with("stay: 2 pinned\n"), "{why}");
    assert!(host.kitfs(&["cache", "ls"]).ok().stdout.contains(", pinned\n"));
    // A tag that has moved means another kit now, and what it meant stays pinned: that must not look as if all were well.
    let other = parts(&["c"], MIB).serve(&registry, "acme/kit", "moved");
    let said = host.kitfs(&["cache", "unpin", "--plain-http", &other]).ok();
    assert!(said.stdout == "0 layers unpinned\n" && said.stderr.contains("2 layers of other kits"), "{said:?}");
    let unpinned = host.kitfs(&["cache", "unpin", "--plain-http", &reference]).ok().stdout;
    assert_eq!(unpinned, "2 layers unpinned\n");
    await_unused(&host);
    assert_eq!(pruned(&host), 2);
}
