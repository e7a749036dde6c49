//! Manifests, and references that are remembered.

use std::collections::BTreeSet;
use std::fs::{File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::source::AttachedBy;
use kitfs::store::{KeptManifest, Store};
use kitfs::verify::{Unverified, Verified};

use crate::bench::Bench;
use crate::damage::{append, flip, truncate};
use crate::sample::plain;
use crate::scripted::Scripted;

#[test]
fn documents_are_hashed_at_each_use() {
    let bench = Bench::new();
    let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
    let descriptor = Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    let document: Verified<Bytes> = Unverified::new(bytes.clone()).verify(&descriptor).expect("right");
    assert!(bench.store.document(&descriptor).expect("readable").is_none());
    bench.store.put_document(&document).expect("room");
    bench.store.put_document(&document).expect("room");
    assert_eq!(&*bench.store.document(&descriptor).expect("readable").expect("kept"), &bytes[..]);
    let path = bench.cache().join("v1/blobs").join(descriptor.digest.file_name());
    for damage in [|path: &Path| flip(path, 3), truncate, append] {
        bench.store.put_document(&document).expect("room");
        damage(&path);
        assert!(bench.store.document(&descriptor).expect("readable").is_none());
        assert!(!path.exists());
    }
}

#[test]
fn a_reference_is_remembered() {
    let bench = Bench::new();
    let descriptor = |text: &str| Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, text.as_bytes()), size: 7 };
    let name = "reg.example:5000/../a/b:v1";
    assert_eq!(bench.store.remembered(name).expect("readable"), None);
    for text in ["one", "two"] {
        bench.store.remember(name, &descriptor(text)).expect("room");
        assert_eq!(bench.store.remembered(name).expect("readable"), Some(descriptor(text)));
    }
    assert_eq!(bench.store.remembered("other").expect("readable"), None);
}

/// A document of so many bytes that nobody reads, last used so many seconds ago.
fn put(bench: &Bench, dir: &str, name: &str, bytes: u64, ago: u64) {
    let file = File::create(bench.cache().join("v1").join(dir).join(name)).expect("room");
    file.set_len(bytes).expect("a size");
    file.set_times(FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(ago))).expect("ours");
}

fn age(bench: &Bench, dir: &str, digest: &Digest, ago: u64) {
    let file = File::open(bench.cache().join("v1").join(dir).join(digest.file_name())).expect("there");
    file.set_times(FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(ago))).expect("ours");
}

fn document(bench: &Bench, text: &str) -> Descriptor {
    let bytes = Bytes::from(text.to_owned());
    let descriptor = Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    bench.store.put_document(&Unverified::new(bytes).verify(&descriptor).expect("right")).expect("room");
    descriptor
}

fn blobs(bench: &Bench) -> BTreeSet<String> {
    crate::bench::listing(&bench.cache().join("v1/blobs")).into_iter().collect()
}

#[test]
fn documents_that_are_too_many_go_and_those_of_kits_are_the_last() {
    const DAY: u64 = 86_400;
    let bench = Bench::new();
    let config = document(&bench, "config");
    let resolved = document(&bench, &format!(r#"{{"config":{{"digest":"{}"}}}}"#, config.digest));
    bench.store.remember("reg.example/a:v1", &resolved).expect("room");
    // Of a kit that nobody remembers, one of whose layers is here (pinned is as good).
    let sample = plain(40);
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    let kept = document(&bench, &format!(r#"{{"layers":[{{"digest":"{}"}}]}}"#, layer.spec().descriptor.digest));
    let bundle = document(&bench, "what signed it");
    let signature = document(&bench, &format!(r#"{{"layers":[{{"digest":"{}"}}]}}"#, bundle.digest));
    let attached = |of: &Descriptor, met| KeptManifest {
        digest: of.digest,
        size: of.size,
        by: AttachedBy::Subject,
        repository: None,
        candidates: 1,
        met,
    };
    let other = document(&bench, "found, and it met nobody");
    bench.store.keep_attached(&resolved.digest, &[attached(&signature, true), attached(&other, false)]).expect("room");
    let (old, new) = (document(&bench, "named by nobody"), document(&bench, "named by nobody yet"));
    for named in [&config, &resolved, &kept, &bundle, &signature, &old] {
        age(&bench, "blobs", &named.digest, 30 * DAY);
    }
    age(&bench, "blobs", &other.digest, 2 * DAY);
    let all = [&config, &resolved, &kept, &bundle, &signature, &other, &old, &new].map(|document| document.digest.file_name());

    // Within the limits everything stays, unless what nothing names is to go.
    bench.store.prune(false).expect("pruned");
    assert_eq!(blobs(&bench), all.iter().cloned().collect());
    bench.store.prune(true).expect("pruned");
    assert_eq!(blobs(&bench), all.iter().filter(|name| **name != old.digest.file_name()).cloned().collect());

    // Too many bytes that nothing names, all used lately: first what was not used for longest, and nothing of a kit.
    let flood = [0, 1, 2].map(|number| Digest::of(Algorithm::Sha256, &[number]).file_name());
    for (number, name) in flood.iter().enumerate() {
        put(&bench, "blobs", name, 200 << 20, DAY + number as u64);
    }
    // The next process that puts something sees to it.
    let next = Store::open(&bench.cache()).expect("a cache");
    let bytes = Bytes::from_static(b"one more");
    let descriptor = Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    next.put_document(&Unverified::new(bytes).verify(&descriptor).expect("right")).expect("room");
    let left = blobs(&bench);
    assert!(left.contains(&flood[0]) && left.contains(&flood[1]) && !left.contains(&flood[2]), "{left:?}");
    for stays in [&config, &resolved, &kept, &bundle, &signature, &other, &new, &descriptor] {
        assert!(left.contains(&stays.digest.file_name()), "{stays:?}");
    }
    assert_eq!(next.remembered("reg.example/a:v1").expect("readable"), Some(resolved.clone()));
    // A use is noted.
    age(&bench, "blobs", &config.digest, 30 * DAY);
    assert!(bench.store.document(&config).expect("readable").is_some());
    let used = std::fs::metadata(bench.cache().join("v1/blobs").join(config.digest.file_name())).and_then(|file| file.modified());
    assert!(used.expect("there").elapsed().expect("past") < Duration::from_secs(DAY));
    // What was only found goes before what is of a kit.
    for (number, name) in flood.iter().enumerate() {
        put(&bench, "attached", name, 200 << 20, number as u64);
    }
    bench.store.prune(false).expect("pruned");
    assert!(!blobs(&bench).contains(&other.digest.file_name()));
}
