//! What is stored, how it stands on disk, and who holds it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kitfs::failure::ErrorClass;
use kitfs::layer::{Archive, Compression};
use kitfs::path::RelPath;
use kitfs::store::{Activity, Content, LayerState, Recall, Store, StoreError, Verdict};

use crate::bench::{Bench, listing, ready};
use crate::damage::flip;
use crate::sample::{pack, plain, raw, read_all, sample};
use crate::scripted::Scripted;

#[test]
fn a_layer_is_stored_as_it_is_and_recalled() {
    for (compression, with_diff_id) in
        [(Compression::None, true), (Compression::Gzip, true), (Compression::Gzip, false), (Compression::Zstd, true)]
    {
        let (bench, sample) = (Bench::new(), sample(1, compression, with_diff_id));
        let key = sample.spec.key();
        assert!(matches!(bench.store.recall(&sample.spec), Ok(Recall::Absent)));
        assert!(bench.store.names(&sample.spec).expect("readable").is_none());
        assert_eq!(bench.store.state(&key), LayerState::Absent);
        assert_eq!(bench.store.progress(&key), None);

        let source = Scripted::new(&sample, []);
        let layer = bench.ensure(&sample, &source).expect("stored");
        assert_eq!(read_all(&layer).expect("there"), sample.files);
        assert_eq!(source.asked(), [0]);
        assert_eq!(bench.store.state(&key), LayerState::Cached);
        assert_eq!(bench.store.layers().expect("readable"), [key]);
        let progress = bench.store.progress(&key).expect("a record");
        assert_eq!((progress.state, progress.fetched, progress.error), (Activity::Done, sample.blob.len() as u64, None));

        let again = ready(bench.store.recall(&sample.spec));
        assert_eq!(read_all(&again).expect("there"), sample.files);
        assert_eq!(read_all(&bench.ensure(&sample, &source).expect("here")).expect("there"), sample.files);
        assert_eq!(source.asked(), [0], "nothing was fetched twice");
        let names = bench.store.names(&sample.spec).expect("readable").expect("indexed");
        assert!(names.find(&RelPath::parse(b"model/tokenizer/vocab.txt").expect("a path")).expect("sound").is_some());

        bench.store.sync(&layer).expect("durable");
        assert!(bench.layer_dir(&sample).join("durable").exists());
        assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Sound);
        // The files' bytes stand on disk once.
        let stored: u64 = listing(&bench.layer_dir(&sample))
            .iter()
            .filter(|name| *name == "pack" || name.ends_with(".data"))
            .map(|name| fs::metadata(bench.layer_dir(&sample).join(name)).expect("there").len())
            .sum();
        assert_eq!(stored, sample.tar.len() as u64);
    }
}

#[test]
fn directories_are_ours_and_files_are_for_reading() {
    let (bench, sample) = (Bench::new(), plain(2));
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    bench.await_settled(&sample);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    for dir in ["", "v1", "v1/layers", "v1/locks", "v1/index", "v1/blobs"] {
        assert_eq!(mode(&bench.cache().join(dir)), 0o700, "{dir}");
    }
    assert_eq!(mode(&bench.layer_dir(&sample)), 0o700);
    for name in listing(&bench.layer_dir(&sample)) {
        assert_eq!(mode(&bench.layer_dir(&sample).join(&name)), 0o444, "{name}");
    }
    assert_eq!(mode(&bench.index(&sample)), 0o444);
    // No descriptor that could write is left open on what is in its place.
    for entry in fs::read_dir("/proc/self/fd").expect("proc") {
        let entry = entry.expect("an entry");
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if target.starts_with(bench.cache().join("v1/layers")) || target.starts_with(bench.cache().join("v1/index")) {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", entry.file_name().display())).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim().to_owned();
            let flags = i32::from_str_radix(&flags, 8).expect("octal");
            assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "{}", target.display());
        }
    }
}

#[test]
fn a_directory_of_others_or_for_others_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |mode: u32| {
        let path = dir.path().join(format!("{mode:o}"));
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        Store::open(&path)
    };
    assert!(open(0o755).is_ok(), "others may look at its name");
    assert!(matches!(open(0o777), Err(StoreError::Writable { .. })));
    assert!(matches!(open(0o770), Err(StoreError::Writable { .. })));
    if rustix::process::geteuid().is_root() {
        let path = dir.path().join("foreign");
        fs::create_dir(&path).expect("made");
        std::os::unix::fs::chown(&path, Some(12345), None).expect("root may");
        assert!(matches!(Store::open(&path), Err(StoreError::Owner { got: 12345, .. })));
    }
    // A link in the place of one of our directories is not followed.
    let path = dir.path().join("linked");
    fs::create_dir(&path).expect("made");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
    std::os::unix::fs::symlink(dir.path().join("755/v1"), path.join("v1")).expect("linked");
    assert!(Store::open(&path).is_err());
}

#[test]
fn a_raw_layer_is_stored_as_the_file_that_it_is() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for (length, declared) in [(0, true), (1, true), (70_000, false), (3_000_001, true), (3_000_001, false)] {
            let (bench, sample) = (Bench::new(), raw(31, length, compression, declared.then_some(length as u64)));
            let source = Scripted::new(&sample, []);
            let layer = bench.ensure(&sample, &source).expect("stored");
            assert_eq!(read_all(&layer).expect("there"), sample.files);
            let data = bench.layer_dir(&sample).join("0.data");
            match layer.content(kitfs::index::RAW_RANK).expect("there") {
                Content::Data(_, size) => assert!(size == length as u64 && fs::read(&data).expect("there") == sample.tar),
                Content::Packed { size, .. } => assert!(size == 0 && length == 0 && !data.exists()),
            }
            assert_eq!(fs::metadata(bench.layer_dir(&sample).join("pack")).expect("there").len(), 0);
            assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Sound);
            assert_eq!(bench.store.layers().expect("readable"), [sample.spec.key()]);
            // Its index follows from it.
            let index = fs::read(bench.index(&sample)).expect("there");
            fs::remove_file(bench.index(&sample)).expect("ours");
            assert!(matches!(bench.store.recall(&sample.spec), Ok(Recall::Doubtful)));
            assert_eq!(read_all(&bench.ensure(&sample, &source).expect("made anew")).expect("there"), sample.files);
            assert!(fs::read(bench.index(&sample)).expect("there") == index, "an index is a function of the layer and its files");
            // Nobody has to be asked for nothing.
            assert_eq!(source.asked().len(), usize::from(!sample.blob.is_empty()));
            if length > 0 {
                drop(layer);
                flip(&data, length as u64 - 1);
                assert!(matches!(bench.store.verify(&sample.spec), Ok(Verdict::Damaged { .. })));
                assert_eq!(read_all(&bench.ensure(&sample, &source).expect("fetched again")).expect("there"), sample.files);
                assert_eq!(source.asked(), [0, 0]);
            }
        }
    }
}

#[test]
fn a_raw_layer_of_another_size_than_declared_is_refused() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        for wrong in [0, 99_999, 100_001] {
            let (bench, sample) = (Bench::new(), raw(32, 100_000, compression, Some(wrong)));
            let source = Scripted::new(&sample, []);
            let error = bench.ensure(&sample, &source).expect_err("another size");
            assert!(matches!(error, StoreError::Refused { .. }) && error.class() == ErrorClass::Refused, "{error}");
            bench.assert_nothing_is_left();
            // Nor later, when it is here because another manifest was right, or says nothing.
            for right in [Some(100_000), None] {
                let sample = raw(32, 100_000, compression, right);
                bench.ensure(&sample, &source).expect("stored");
            }
            assert!(matches!(bench.store.recall(&sample.spec), Err(StoreError::Refused { .. })));
        }
    }
}

#[test]
fn one_blob_read_in_several_ways_is_several_layers() {
    let bench = Bench::new();
    let tar = sample(34, Compression::Gzip, true);
    let as_file =
        pack([("file".to_owned(), tar.blob.to_vec())].into(), tar.blob.clone(), Archive::Raw { size: None }, Compression::None, true);
    let unpacked =
        pack([("file".to_owned(), tar.tar.to_vec())].into(), tar.tar.clone(), Archive::Raw { size: None }, Compression::Gzip, true);
    let all = [&tar, &as_file, &unpacked];
    assert!(all.iter().all(|sample| sample.blob == tar.blob), "one blob");
    for (before, sample) in all.iter().enumerate() {
        assert!(matches!(bench.store.recall(&sample.spec), Ok(Recall::Absent)));
        assert_eq!((bench.store.state(&sample.spec.key()), bench.store.layers().expect("readable").len()), (LayerState::Absent, before));
        bench.ensure(sample, &Scripted::new(sample, [])).expect("stored");
    }
    for sample in all {
        assert_eq!(read_all(&ready(bench.store.recall(&sample.spec))).expect("there"), sample.files);
    }
    // Whoever moves files moves names: an index of the same blob that was read in another way is as good as none.
    fs::copy(bench.index(&tar), bench.cache().join("other")).expect("room");
    fs::rename(bench.cache().join("other"), bench.index(&as_file)).expect("ours");
    assert!(matches!(bench.store.recall(&as_file.spec), Ok(Recall::Doubtful)));
    let source = Scripted::new(&as_file, []);
    assert_eq!(read_all(&bench.ensure(&as_file, &source).expect("made anew")).expect("there"), as_file.files);
    assert_eq!(source.asked(), Vec::<u64>::new());
}

#[test]
fn a_layer_is_handed_over_with_its_lock() {
    let (bench, sample) = (Bench::new(), plain(19));
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    let held = layer.held().expect("descriptors");
    drop(layer);
    let name = format!("v1/locks/{}.use", sample.spec.key().file_name());
    let lock = File::open(bench.cache().join(name)).expect("there");
    let free = || rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
    assert!(!free(), "the lock lives in what was handed over");
    let adopted = bench.store.adopt(&sample.spec, held).expect("as it was");
    assert_eq!(read_all(&adopted).expect("there"), sample.files);
    assert!(!free());
    drop(adopted);
    assert!(free());
}

#[test]
fn a_recall_leaves_nothing_open() {
    let (bench, sample) = (Bench::new(), plain(20));
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    bench.await_settled(&sample);
    // Those of this cache alone: other tests run beside this one.
    let open = || {
        let targets = fs::read_dir("/proc/self/fd").expect("proc").filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(bench.cache())).count()
    };
    let before = open();
    for _ in 0..200 {
        ready(bench.store.recall(&sample.spec));
    }
    assert_eq!(open(), before, "nothing stays open");
}
