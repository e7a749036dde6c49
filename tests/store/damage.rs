//! What was changed on disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use kitfs::digest::{Algorithm, Digest};
use kitfs::layer::Compression;
use kitfs::store::{Recall, Store, StoreError, Verdict, VerifiedLayer};

use crate::bench::{Bench, assert_doubtful, ensure, ready};
use crate::sample::{Sample, plain, read_all, sample};
use crate::scripted::Scripted;

pub fn flip(path: &Path, at: u64) {
    let before = fs::metadata(path).expect("there");
    let mut permissions = before.permissions();
    permissions.set_mode(0o644);
    fs::set_permissions(path, permissions).expect("ours");
    let file = File::options().read(true).write(true).open(path).expect("ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("long enough");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("room");
    // As it was, but for the change time, which nobody can set.
    file.set_times(fs::FileTimes::new().set_modified(before.modified().expect("supported"))).expect("ours");
    fs::set_permissions(path, before.permissions()).expect("ours");
}

pub fn truncate(path: &Path) {
    let length = fs::metadata(path).expect("there").len();
    File::options().write(true).open(path).expect("root, or ours").set_len(length - 1).expect("shorter");
}

pub fn append(path: &Path) {
    File::options().append(true).open(path).expect("root, or ours").write_all(b"more").expect("room");
}

fn touch(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).expect("ours");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("there");
}

#[test]
fn what_was_changed_on_disk_is_never_given_out() {
    type Damage = (&'static str, fn(&Path), bool);
    let damages: [Damage; 5] = [
        ("flipped", |path| flip(path, 100), true),
        ("truncated", truncate, true),
        ("longer", append, true),
        ("removed", remove, true),
        ("touched", touch, false),
    ];
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for (damage, apply, refetched) in damages {
            for what in ["pack", "data", "index"] {
                let (bench, sample) = (Bench::new(), sample(13, compression, compression == Compression::None));
                let source = Scripted::new(&sample, []);
                let old = bench.ensure(&sample, &source).expect("stored");
                bench.store.sync(&old).expect("durable");
                let path = match what {
                    "pack" => bench.layer_dir(&sample).join("pack"),
                    "data" => bench.data_file(&sample),
                    _ => bench.index(&sample),
                };
                if what == "index" && damage == "longer" {
                    continue; // Its old mapping would be larger than what this test wants to show.
                }
                apply(&path);
                let fresh = Store::open(&bench.cache()).expect("the same cache");
                // A data file is looked at when it is opened, the index block by block.
                let served = match fresh.recall(&sample.spec).expect("readable") {
                    Recall::Ready(layer) => read_all(&layer),
                    Recall::Doubtful => {
                        Err(StoreError::Doubtful { layer: sample.spec.descriptor.digest, file: String::new(), reason: String::new() })
                    }
                    Recall::Absent => panic!("{damage} {what}: absent"),
                };
                match served {
                    Ok(files) => {
                        assert!(what == "index", "{damage} {what}: served without a look");
                        assert_eq!(files, sample.files, "{damage} {what}");
                    }
                    Err(error) => {
                        assert!(error.is_doubtful(), "{damage} {what}: {error}");
                        assert_doubtful(&fresh, &sample);
                    }
                }
                let layer = ensure(&fresh, &bench.runtime, &sample, &source).expect("verified once more");
                assert_eq!(read_all(&layer).expect("there"), sample.files, "{damage} {what}");
                let expected = if refetched && what != "index" { vec![0, 0] } else { vec![0] };
                assert_eq!(source.asked(), expected, "{damage} {what} {compression:?}");
                ready(fresh.recall(&sample.spec));
                ready(bench.store.recall(&sample.spec));
                assert_eq!(fresh.verify(&sample.spec).expect("readable"), Verdict::Sound);
            }
        }
    }
}

#[test]
fn who_has_a_layer_open_notices_too() {
    let (bench, sample) = (Bench::new(), plain(14));
    let source = Scripted::new(&sample, []);
    let layer = bench.ensure(&sample, &source).expect("stored");
    bench.store.sync(&layer).expect("durable");
    flip(&bench.data_file(&sample), 5);
    let error = read_all(&layer).expect_err("a change");
    assert!(error.is_doubtful(), "{error}");
    assert_doubtful(&bench.store, &sample);
    let renewed = bench.ensure(&sample, &source).expect("fetched again");
    assert_eq!(read_all(&renewed).expect("there"), sample.files);
    assert_eq!(source.asked(), [0, 0]);
    // The old one's files are gone from their names: it is told so, and never gets others.
    assert!(read_all(&layer).expect_err("gone").is_doubtful());
    ready(bench.store.recall(&sample.spec));
}

#[test]
fn who_has_a_layer_open_gets_nothing_of_a_pack_that_changed_or_was_withdrawn() {
    for withdrawn in [false, true] {
        let (bench, sample) = (Bench::new(), plain(15));
        let source = Scripted::new(&sample, []);
        let layer = bench.ensure(&sample, &source).expect("stored");
        bench.store.sync(&layer).expect("durable");
        let packed = (0..layer.index().len()).find(|rank| {
            let entry = layer.index().entry(*rank).expect("an entry");
            matches!(entry.place, kitfs::index::Place::Packed { .. }) && entry.size > 0
        });
        let packed = packed.expect("a small file");
        assert!(layer.content(packed).is_ok());
        if withdrawn {
            // Another file of the layer is what is damaged: the pack itself only goes.
            flip(&bench.data_file(&sample), 5);
            assert!(matches!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Damaged { .. }));
        } else {
            flip(&bench.layer_dir(&sample).join("pack"), 5);
        }
        let error = layer.content(packed).expect_err("it is not what was verified");
        assert!(error.is_doubtful(), "withdrawn {withdrawn}: {error}");
        let renewed = bench.ensure(&sample, &source).expect("fetched again");
        assert_eq!(read_all(&renewed).expect("there"), sample.files);
    }
}

#[test]
fn verify_reads_the_bytes_and_withdraws_what_is_damaged() {
    for (compression, with_diff_id) in
        [(Compression::None, true), (Compression::Gzip, true), (Compression::Gzip, false), (Compression::Zstd, true)]
    {
        for what in ["pack", "data"] {
            let (bench, sample) = (Bench::new(), sample(15, compression, with_diff_id));
            assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Absent);
            let source = Scripted::new(&sample, []);
            let layer = bench.ensure(&sample, &source).expect("stored");
            bench.store.sync(&layer).expect("durable");
            // Byte 0 of the pack is in a tar header: also there the digest is that of the stream as it is.
            let path = if what == "pack" { bench.layer_dir(&sample).join("pack") } else { bench.data_file(&sample) };
            flip(&path, 0);
            let ordinal = path.file_name().expect("a name").to_str().expect("utf-8").to_owned();
            let mut stream = sample.tar.to_vec();
            let at = if what == "pack" { 0 } else { offset_of(&sample, &ordinal, &layer) };
            stream[at] ^= 0x40;
            let got = Digest::of(Algorithm::Sha256, &stream);
            let expected = Digest::of(Algorithm::Sha256, &sample.tar);
            assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Damaged { expected, got });
            bench.assert_nothing_is_left();
            assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Absent);
            assert!(bench.store.names(&sample.spec).expect("readable").is_some(), "the names outlive the layer");
        }
    }
}

/// Where the content of a data file stands in the stream.
fn offset_of(sample: &Sample, name: &str, layer: &VerifiedLayer) -> usize {
    let index = layer.index();
    let entry = (0..index.len())
        .map(|rank| index.entry(rank).expect("an entry"))
        .find(|entry| matches!(entry.place, kitfs::index::Place::Data { ordinal } if format!("{ordinal}.data") == name));
    let at = usize::try_from(entry.expect("a data file").stream_offset).expect("small");
    assert!(at < sample.tar.len());
    at
}

#[test]
fn verify_makes_a_lost_index_anew_without_a_source() {
    let (bench, sample) = (Bench::new(), sample(16, Compression::Gzip, false));
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    let before = fs::read(bench.index(&sample)).expect("there");
    fs::remove_file(bench.index(&sample)).expect("there");
    assert_doubtful(&bench.store, &sample);
    assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Sound);
    assert_eq!(fs::read(bench.index(&sample)).expect("there"), before, "byte for byte");
    assert_eq!(read_all(&ready(bench.store.recall(&sample.spec))).expect("there"), sample.files);
}
