//! A cache of another version: one that an older release left, with indexes of any version, beside what a newer one keeps.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kit, Kitfile, Packing, Tree};
use crate::common::process::{run, within};
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree};

const LIMIT: Duration = Duration::from_secs(60);

/// Where a cache was recorded. `cache/` is the cache as `kitfs pull` left it, `kits.txt` has a line for each kit in it: its name, its reference, its digest.
const RECORDED: [&str; 1] = ["tests/fixtures/caches/v1-index-1.tar.gz"];

/// The bytes of an index that say of which version it is, behind its eight magic ones.
const INDEX_VERSION: std::ops::Range<usize> = 8..12;

/// What was recorded: each way of packing that a cache keeps in its own way, in few bytes.
fn recorded_kits() -> [(&'static str, Kit); 3] {
    let tree = Tree::new()
        .file("model/weights.bin", vec![7; 2 << 20])
        .file("model/config.json", r#"{"hidden_size":384}"#)
        .file_with_mode("src/run.sh", 0o755, "#!/bin/sh\n")
        .file("rows.csv", "a,b\n".repeat(1000));
    let packed = |name, packing| Kitfile::new(name).packing(packing).model("model").code("src").dataset("rows.csv").pack(&tree);
    [("plain", packed("plain", Packing::Plain)), ("gzip", packed("gzip", Packing::Gzip)), ("raw", raw())]
}

fn raw() -> Kit {
    let tree = Tree::new().file("weights.bin", vec![9; 2 << 20]).file("empty", "");
    Kitfile::new("raw").raw().model("weights.bin").docs("empty").pack(&tree)
}

/// Makes the record of the present version. Run by hand when the format changes; older ones stay as they are:
/// `cargo test --test mounts versions::record -- --ignored`.
#[test]
#[ignore = "writes a fixture"]
fn record() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let mut names = String::new();
    for (name, kit) in recorded_kits() {
        let reference = kit.serve(&registry, &format!("recorded/{name}"), "v1");
        host.kitfs(&["pull", "--plain-http", &reference]).ok();
        names += &format!("{name} {reference} {}\n", kit.digest());
    }
    fs::write(host.path("kits.txt"), names).expect("room");
    fs::create_dir_all("tests/fixtures/caches").expect("room");
    let pack = "exec tar -C \"$1\" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - cache kits.txt | gzip -9n > \"$2\"";
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(host.path("")).arg(RECORDED[0]), LIMIT).ok();
}

/// A host with a recorded cache, and no network; and what is in it.
fn restored(recorded: &str) -> (Host, Vec<(String, String, Kit)>) {
    let host = Host::new(Mode::Passthrough);
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(recorded);
    run(Command::new("tar").arg("-C").arg(host.path("")).args(["--no-same-owner", "-xzf"]).arg(archive), LIMIT).ok();
    let names = fs::read_to_string(host.path("kits.txt")).expect("recorded");
    let mut kits: BTreeMap<&str, Kit> = recorded_kits().into();
    let found = names.lines().map(|line| {
        let [name, reference, digest] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        (reference.to_owned(), digest.to_owned(), kits.remove(name).expect("known"))
    });
    let found = found.collect();
    assert!(kits.is_empty(), "recorded was {names}");
    (host, found)
}

/// Mounts every recorded kit, by its tag and by its digest, where there is nobody who could be asked.
fn assert_usable(host: &Host, kits: &[(String, String, Kit)]) {
    for (reference, digest, kit) in kits {
        for name in [reference, &format!("{}@{digest}", reference.trim_end_matches(":v1"))] {
            let mount = host.mount_with(name, &["--offline", "--prefetch", "none"]);
            assert_eq!(mount.status()["digest"], digest.as_str());
            let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
            within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
        }
    }
}

fn indexes(host: &Host) -> Vec<PathBuf> {
    let listed = fs::read_dir(host.cache().join("v1/index")).expect("there").map(|entry| entry.expect("readable").path());
    let indexes: Vec<_> = listed.collect();
    assert!(indexes.len() >= 8, "{indexes:?}");
    indexes
}

/// Every path below with what tells whether somebody touched it.
fn marks(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("there").map(|entry| entry.expect("readable")) {
        let (path, metadata) = (entry.path(), entry.metadata().expect("there"));
        let content = if metadata.is_file() { fs::read(&path).expect("ours") } else { Vec::new() };
        if metadata.is_dir() {
            all.extend(marks(&path));
        }
        all.insert(path, (metadata.ino(), metadata.modified().expect("known"), content));
    }
    all
}

#[test]
fn what_an_older_release_left_is_used_without_network() {
    for recorded in RECORDED {
        let (host, kits) = restored(recorded);
        let layers = fs::read_dir(host.cache().join("v1/layers")).expect("there").count();
        assert_usable(&host, &kits);
        host.kitfs(&["verify", "--all"]).ok();
        assert_eq!(fs::read_dir(host.cache().join("v1/layers")).expect("there").count(), layers, "nothing was withdrawn");
    }
}

#[test]
fn an_index_of_any_other_version_is_made_again_without_network() {
    for recorded in RECORDED {
        for version in [0_u32, 2, 0xffff_ffff] {
            let (host, kits) = restored(recorded);
            let mut right = Vec::new();
            for index in indexes(&host) {
                let bytes = fs::read(&index).expect("ours");
                right.extend(<[u8; 4]>::try_from(&bytes[INDEX_VERSION]));
                let other = host.path("other-index");
                fs::write(&other, bytes).expect("room");
                fs::File::options()
                    .write(true)
                    .open(&other)
                    .expect("ours")
                    .write_all_at(&version.to_le_bytes(), INDEX_VERSION.start as u64)
                    .expect("room");
                fs::rename(other, index).expect("the same disk");
            }
            assert_usable(&host, &kits);
            for index in indexes(&host) {
                assert!(
                    right.contains(&<[u8; 4]>::try_from(&fs::read(&index).expect("ours")[INDEX_VERSION]).expect("four")),
                    "{}",
                    index.display()
                );
            }
        }
    }
}

#[test]
fn what_belongs_to_another_version_is_never_touched() {
    let (host, kits) = restored(RECORDED[0]);
    let cache = host.cache();
    let (v1, v2, v0) = (cache.join("v1"), cache.join("v2"), cache.join("v0"));
    for folder in [&v2, &v0] {
        for name in
            ["layers/sha256-00", "ingest/sha256-00.0123456789abcdef", "trash/sha256-00.0123456789abcdef", "locks", "index", "made-tomorrow"]
        {
            fs::create_dir_all(folder.join(name)).expect("room");
            fs::write(folder.join(name).join("pack"), name).expect("room");
        }
    }
    // The same layers, of another version.
    for layer in fs::read_dir(v1.join("layers")).expect("there").map(|entry| entry.expect("readable").file_name()) {
        fs::create_dir(v2.join("layers").join(&layer)).expect("room");
        fs::write(v2.join("layers").join(&layer).join("chunks"), "of tomorrow").expect("room");
        fs::write(v2.join("locks").join(layer).with_extension("use"), "").expect("room");
    }
    // Beside them, and where we look: names that are none of ours.
    symlink("v2", cache.join("latest")).expect("room");
    for folder in ["", "layers", "index", "locks", "pinned", "references", "blobs", "attached"] {
        let at = if folder.is_empty() { v1.clone() } else { v1.join(folder) };
        fs::create_dir(at.join("made-tomorrow")).expect("room");
        fs::write(at.join("made-tomorrow/content"), "of tomorrow").expect("room");
        fs::write(at.join("note-of-tomorrow"), "of tomorrow").expect("room");
    }
    fs::write(cache.join("limit"), "policy: generous\nversion: 2\n").expect("room");
    let theirs = || -> BTreeMap<_, _> {
        let mark = |path: &Path| path.to_string_lossy().contains("tomorrow") || !path.starts_with(&v1);
        // The lock is for all versions, and what is written into it is for nobody.
        marks(&cache).into_iter().filter(|(path, _)| mark(path) && *path != v1 && *path != cache.join("lock")).collect()
    };
    let before = theirs();
    assert!(before.len() > 40, "{before:?}");
    let unchanged = |after: &str| assert_eq!(theirs(), before, "after {after}");
    assert_usable(&host, &kits);
    unchanged("mounts");
    let listed: Value = serde_json::from_str(&host.kitfs(&["cache", "ls", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(listed["layers"].as_array().map(Vec::len), Some(fs::read_dir(v1.join("layers")).expect("there").count() - 2), "{listed}");
    host.kitfs(&["cache", "prune"]).ok();
    unchanged("prune");
    host.kitfs(&["verify", "--all"]).ok();
    host.kitfs(&["cache", "prune", "--all"]).ok();
    unchanged("prune --all");
    assert_eq!(fs::read_dir(v1.join("layers")).expect("there").count(), 2, "ours went");
    // A limit that is given replaces whatever stands there: the last one wins, whoever it was.
    let (registry, kit) = (Registry::start(), raw());
    let reference = kit.serve(&registry, "acme/raw", "v1");
    host.kitfs(&["pull", "--plain-http", "--cache-size", "1GiB", &reference]).ok();
    assert_eq!(fs::read_to_string(cache.join("limit")).expect("there"), "1GiB\n");
}
