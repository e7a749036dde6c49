//! Room in the cache: which layers go, and what never does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use kitfs::failure::ErrorClass;
use kitfs::layer::{Archive, Compression};
use kitfs::source::Source;
use kitfs::store::{CacheSize, Content, Evicted, LayerState, Store, StoreError, VerifiedLayer};
use tokio::sync::Semaphore;

use crate::bench::{Bench, ensure, listing, ready};
use crate::full_disk::SmallDisk;
use crate::processes::Other;
use crate::sample::{Sample, pack, plain, raw, read_all, read_at};
use crate::scripted::{Scripted, Step};

/// Room for two of the plain samples, and not for three.
const TWO: CacheSize = CacheSize::Bytes(12 << 20);

/// Stores a layer, lets go of it, and makes it look as if that was a while ago.
fn stored(bench: &Bench, seed: u64, seconds: u64) -> Sample {
    let sample = plain(seed);
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    bench.await_settled(&sample);
    drop(layer);
    age(bench, &sample, seconds);
    sample
}

fn age(bench: &Bench, sample: &Sample, seconds: u64) {
    let lock = bench.cache().join("v1/locks").join(format!("{}.use", sample.spec.key().file_name()));
    let then = SystemTime::now() - Duration::from_secs(seconds);
    File::open(lock).and_then(|lock| lock.set_times(fs::FileTimes::new().set_modified(then))).expect("ours");
}

fn is_here(bench: &Bench, sample: &Sample) -> bool {
    bench.store.state(&sample.spec.key()) == LayerState::Cached
}

#[test]
fn what_was_not_used_for_longest_goes_and_comes_back_as_it_was() {
    let bench = Bench::new();
    assert_eq!(bench.store.set_limit(TWO).expect("room"), None);
    let (old, older) = (stored(&bench, 40, 100), stored(&bench, 50, 200));
    let index = fs::read(bench.index(&older)).expect("there");
    let third = plain(60);
    bench.ensure(&third, &Scripted::new(&third, [])).expect("stored");
    assert_eq!([&old, &older, &third].map(|sample| is_here(&bench, sample)), [true, false, true]);
    assert!(bench.store.names(&older.spec).expect("readable").is_some(), "its names are known still");
    assert_eq!(listing(&bench.cache().join("v1/trash")), Vec::<String>::new());
    // A look is a use.
    age(&bench, &old, 300);
    drop(ready(bench.store.recall(&old.spec)));
    bench.await_settled(&third);
    age(&bench, &third, 100);
    let source = Scripted::new(&older, []);
    let back = bench.ensure(&older, &source).expect("fetched again");
    assert_eq!(read_all(&back).expect("there"), older.files);
    assert_eq!(source.asked(), [0]);
    assert_eq!([&old, &older, &third].map(|sample| is_here(&bench, sample)), [true, true, false]);
    assert_eq!(fs::read(bench.index(&older)).expect("there").len(), index.len());
}

#[test]
fn what_was_just_used_stays_unless_the_disk_is_short() {
    let bench = Bench::new();
    bench.store.set_limit(TWO).expect("room");
    let samples = [40, 50, 60].map(|seed| stored(&bench, seed, 0));
    assert!(samples.iter().all(|sample| is_here(&bench, sample)), "over the limit, for a moment");
    samples.iter().for_each(|sample| age(&bench, sample, 11));
    assert_eq!(bench.store.prune(false).expect("pruned").layers, 1);
    assert_eq!(samples.map(|sample| is_here(&bench, &sample)), [false, true, true]);
}

#[test]
fn what_is_open_stays_and_files_outlive_their_layer() {
    let bench = Bench::new();
    bench.store.set_limit(CacheSize::Bytes(1)).expect("room");
    let sample = stored(&bench, 40, 0);
    let layer = ready(bench.store.recall(&sample.spec));
    age(&bench, &sample, 100);
    let resident = bench.store.residents().expect("readable").remove(0);
    assert!(resident.in_use && resident.layer == sample.spec.key() && resident.size >= sample.tar.len() as u64, "{resident:?}");
    assert_eq!(bench.store.prune(true).expect("pruned"), Evicted::default());
    // Descriptors that somebody else holds for it are as good.
    let held = layer.held().expect("descriptors");
    let data = (0..layer.index().len()).find_map(|rank| match layer.content(rank) {
        Ok(Content::Data(file, size)) => Some((file, size)),
        _ => None,
    });
    let (file, size) = data.expect("a big file");
    // SAFETY: nobody ever writes a file of a layer.
    let map = unsafe { memmap2::Mmap::map(&*file) }.expect("mapped");
    drop(layer);
    assert_eq!(bench.store.prune(true).expect("pruned"), Evicted::default());
    drop(held);
    assert_eq!(bench.store.prune(true).expect("pruned").layers, 1);
    assert!(!is_here(&bench, &sample));
    let content = read_at(&file, 0, size);
    assert!(sample.files.values().any(|file| *file == content) && content == map[..]);
}

#[test]
fn what_is_pinned_stays_until_it_is_not() {
    let bench = Bench::new();
    bench.store.set_limit(CacheSize::Bytes(1)).expect("room");
    let sample = plain(40);
    bench.store.pin(&sample.spec.key()).expect("before it is here");
    bench.store.pin(&sample.spec.key()).expect("once more");
    let sample = stored(&bench, 40, 100);
    assert_eq!(bench.store.prune(true).expect("pruned"), Evicted::default());
    assert!(bench.store.residents().expect("readable").iter().all(|resident| resident.pinned && !resident.in_use));
    assert_eq!(bench.store.pinned().expect("readable"), [sample.spec.key()]);
    assert_eq!([0; 2].map(|_| bench.store.unpin(&sample.spec.key()).expect("ours")), [true, false]);
    assert_eq!(bench.store.prune(true).expect("pruned").layers, 1);
}

#[test]
fn one_larger_than_the_limit_comes_all_the_same() {
    let bench = Bench::new();
    bench.store.set_limit(CacheSize::Bytes(1 << 20)).expect("room");
    let old = stored(&bench, 40, 100);
    let sample = plain(50);
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("there is disk");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert!(!is_here(&bench, &old));
}

/// A cache on a disk of its own, with one layer in it that was used just now.
fn small(bytes: u64) -> (SmallDisk, Bench, Store, Sample) {
    let (disk, bench, sample) = (SmallDisk::mount(bytes), Bench::new(), plain(40));
    let store = Store::open(disk.0.path()).expect("a cache");
    store.set_limit(CacheSize::Percent(100)).expect("room");
    let layer = ensure(&store, &bench.runtime, &sample, &Scripted::new(&sample, [])).expect("room");
    store.sync(&layer).expect("durable");
    drop(layer);
    settled(&store);
    (disk, bench, store, sample)
}

/// Waits until nobody syncs any more.
fn settled(store: &Store) {
    while store.residents().expect("readable").iter().any(|resident| resident.in_use) {
        thread::yield_now();
    }
}

#[test]
fn a_full_disk_is_made_room_on_and_never_in_vain() {
    let (_disk, bench, store, first) = small(8 << 20);
    let huge = raw(50, 9 << 20, Compression::None, None);
    let source = Scripted::new(&huge, []);
    let error = ensure(&store, &bench.runtime, &huge, &source).expect_err("larger than the disk");
    assert_eq!((error.class(), source.asked()), (ErrorClass::Disk(libc::ENOSPC), vec![]), "{error}");
    assert_eq!(store.state(&first.spec.key()), LayerState::Cached, "nothing was evicted");

    let second = plain(60);
    let source: Arc<dyn Source> = Scripted::new(&second, []) as _;
    let error = store.prefetch(&second.spec, &source, bench.runtime.handle()).expect_err("nobody waits for it");
    assert_eq!(error.class(), ErrorClass::Disk(libc::ENOSPC));
    assert_eq!(store.state(&first.spec.key()), LayerState::Cached);
    let layer = ensure(&store, &bench.runtime, &second, &Scripted::new(&second, [])).expect("the other one goes");
    assert_eq!(read_all(&layer).expect("there"), second.files);
    assert_eq!(store.state(&first.spec.key()), LayerState::Absent);
}

#[test]
fn one_who_lets_go_in_time_is_waited_for() {
    let (_disk, bench, store, first) = small(8 << 20);
    let layer = ready(store.recall(&first.spec));
    let second = plain(60);
    let source = Scripted::new(&second, []);
    thread::scope(|scope| {
        let coming = scope.spawn(|| ensure(&store, &bench.runtime, &second, &source).map(|layer| read_all(&layer)));
        while store.state(&second.spec.key()) != LayerState::Fetching {
            thread::yield_now();
        }
        drop(layer);
        assert_eq!(coming.join().expect("no panic").expect("room in the end").expect("there"), second.files);
    });
}

#[test]
fn one_that_grows_when_it_is_uncompressed_gets_more_room() {
    let (_disk, bench, store, first) = small(16 << 20);
    let zeros = vec![0; 12 << 20];
    let files: BTreeMap<_, _> = [("file".to_owned(), zeros.clone())].into();
    let sample = pack(files, zeros.into(), Archive::Raw { size: None }, Compression::Gzip, true);
    let layer = ensure(&store, &bench.runtime, &sample, &Scripted::new(&sample, [])).expect("room in the end");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert_eq!(store.state(&first.spec.key()), LayerState::Absent);
}

/// The soak found it: one who fetched ahead had no room and may not make any, and whoever waited for the same layer was told so, in this process and in others.
#[test]
fn no_room_for_one_who_fetches_ahead_is_no_answer_for_those_who_wait() {
    for another_process in [false, true] {
        let (disk, bench, store, first) = small(16 << 20);
        let zeros = vec![0; 12 << 20];
        let files: BTreeMap<_, _> = [("file".to_owned(), zeros.clone())].into();
        let sample = pack(files, zeros.into(), Archive::Raw { size: None }, Compression::Gzip, true);
        let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let ahead: Arc<dyn Source> = Scripted::new(&sample, [Step::Gate(0, Arc::clone(&reached), Arc::clone(&on))]) as _;
        let waiting = if another_process { Store::open(disk.0.path()).expect("the same cache") } else { store.clone() };
        // In one process those who wait for the same source hear what it said.
        let source: Arc<dyn Source> = if another_process { Scripted::new(&sample, []) as _ } else { Arc::clone(&ahead) };
        thread::scope(|scope| {
            let prefetch = scope.spawn(|| store.prefetch(&sample.spec, &ahead, bench.runtime.handle()).map(drop));
            bench.runtime.block_on(reached.acquire()).expect("open").forget();
            let (say, said) = std::sync::mpsc::channel();
            let (bench, sample, waiting, source) = (&bench, &sample, &waiting, &source);
            let reader = scope.spawn(move || {
                say.send(rustix::thread::gettid()).expect("somebody listens");
                waiting.ensure(&sample.spec, source, bench.runtime.handle()).map(|layer| read_all(&layer))
            });
            // It waits for the one who works: nothing else that it does takes it to sleep.
            let stat = format!("/proc/self/task/{}/stat", said.recv().expect("it says").as_raw_nonzero());
            while !fs::read_to_string(&stat).expect("it runs").contains(") S ") {
                thread::yield_now();
            }
            on.add_permits(1);
            assert_eq!(prefetch.join().expect("no panic").expect_err("no room").class(), ErrorClass::Disk(libc::ENOSPC));
            assert_eq!(reader.join().expect("no panic").expect("room, if others go").expect("there"), sample.files);
        });
        assert_eq!(store.state(&first.spec.key()), LayerState::Absent);
    }
}

/// An overlay at a path, taken down at the end.
struct Overlay(tempfile::TempDir);

impl Overlay {
    /// Over the cache of `bench`, with a disk of its own for what changes.
    fn over(bench: &Bench) -> (SmallDisk, Self) {
        let (disk, merged) = (SmallDisk::mount(64 << 20), tempfile::tempdir().expect("a directory"));
        let [upper, work] = ["upper", "work"].map(|name| disk.0.path().join(name));
        [&upper, &work].into_iter().for_each(|dir| fs::create_dir(dir).expect("a folder"));
        fs::set_permissions(&upper, fs::metadata(bench.cache()).expect("there").permissions()).expect("ours");
        let [lower, upper, work] = [&bench.cache(), &upper, &work].map(|path| path.display().to_string());
        let options = std::ffi::CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}")).expect("no NUL");
        rustix::mount::mount("overlay", merged.path(), "overlay", rustix::mount::MountFlags::empty(), &*options)
            .expect("these tests mount: run them as root, with overlayfs");
        (disk, Self(merged))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A layer below an overlay cannot be renamed away: the directory is of another filesystem (EXDEV). It is removed in its place.
#[test]
fn a_layer_below_an_overlay_goes_in_its_place_and_comes_back() {
    let bench = Bench::new();
    let sample = stored(&bench, 40, 100);
    let (_disk, overlay) = Overlay::over(&bench);
    let store = Store::open(overlay.0.path()).expect("a cache");
    assert_eq!(store.state(&sample.spec.key()), LayerState::Cached);
    let place = |dir: &str| listing(&overlay.0.path().join("v1").join(dir));
    let name = sample.spec.key().file_name();
    let renamed = fs::rename(overlay.0.path().join("v1/layers").join(&name), overlay.0.path().join("v1/trash").join(&name));
    assert_eq!(renamed.expect_err("the case is not made").raw_os_error(), Some(libc::EXDEV));

    assert_eq!(store.prune(true).expect("pruned").layers, 1);
    assert_eq!((place("layers"), place("trash")), (vec![], vec![]));
    assert_eq!(store.state(&sample.spec.key()), LayerState::Absent);
    assert!(is_here(&bench, &sample), "what is below stays as it was");
    let source = Scripted::new(&sample, []);
    let layer = ensure(&store, &bench.runtime, &sample, &source).expect("fetched again");
    assert_eq!((read_all(&layer).expect("there"), source.asked()), (sample.files.clone(), vec![0]));
    // One that somebody has open stays, there as well.
    assert_eq!(store.prune(true).expect("pruned"), Evicted::default());
    store.sync(&layer).expect("durable");
    drop(layer);
    settled(&store);
    assert_eq!(store.prune(true).expect("pruned").layers, 1);
    assert_eq!((place("layers"), place("trash")), (vec![], vec![]));
}

#[test]
fn the_time_that_a_layer_rested_counts_and_a_later_use_of_others_stays() {
    let bench = Bench::new();
    let sample = stored(&bench, 40, 100);
    let layer = ready(bench.store.recall(&sample.spec));
    let last_use = || bench.store.residents().expect("readable").remove(0).last_use.elapsed().expect("in the past");
    let other = ready(bench.store.recall(&sample.spec));
    age(&bench, &sample, 100);
    layer.rested(Duration::from_secs(9));
    drop(layer);
    let since = last_use();
    assert!((8..60).contains(&since.as_secs()), "{since:?}");
    // It was used after that.
    age(&bench, &sample, 3);
    other.rested(Duration::from_secs(50));
    drop(other);
    assert!(last_use() < Duration::from_secs(45));
}

#[test]
fn many_who_come_and_go_at_once_leave_nothing_behind() {
    let (_disk, bench, store, _) = small(24 << 20);
    let samples: Vec<Sample> = (0..6).map(|number| plain(100 + 10 * number)).collect();
    let other = Store::open(store.dir()).expect("the same cache");
    thread::scope(|scope| {
        for number in 0..4 {
            let (samples, runtime) = (&samples, &bench.runtime);
            let store = if number % 2 == 0 { store.clone() } else { other.clone() };
            scope.spawn(move || {
                for round in 0..6 {
                    let sample = &samples[(round + number) % samples.len()];
                    let layer: Result<VerifiedLayer, StoreError> = ensure(&store, runtime, sample, &Scripted::new(sample, []));
                    assert_eq!(read_all(&layer.expect("room")).expect("there"), sample.files);
                }
            });
        }
    });
    settled(&store);
    assert!(store.prune(true).expect("pruned").layers > 0);
    for place in ["layers", "ingest", "trash"] {
        assert_eq!(listing(&store.dir().join("v1").join(place)), Vec::<String>::new(), "{place}");
    }
}

#[test]
fn what_a_killed_process_left_is_pruned() {
    let bench = Bench::new();
    let mut other = Other::start(&bench, 25, Some(2_000_000));
    assert_eq!((other.says(), other.says()), ("began".into(), "gate".into()));
    assert_eq!(bench.store.prune(true).expect("pruned"), Evicted::default());
    assert_eq!(listing(&bench.cache().join("v1/ingest")).len(), 1, "it is being worked on");
    drop(other);
    assert_eq!(bench.store.prune(true).expect("pruned"), Evicted::default());
    bench.assert_nothing_is_left();
}

#[test]
fn a_clock_that_went_back_makes_no_layer_the_latest_for_years() {
    let bench = Bench::new();
    let ahead = stored(&bench, 40, 0);
    let lock = bench.cache().join("v1/locks").join(format!("{}.use", ahead.spec.key().file_name()));
    let years = SystemTime::now() + Duration::from_secs(10 * 365 * 86_400);
    File::open(&lock).and_then(|lock| lock.set_times(fs::FileTimes::new().set_modified(years))).expect("ours");
    let seen = bench.store.residents().expect("readable").remove(0).last_use;
    assert!(seen <= SystemTime::now(), "{seen:?}");
    assert!(fs::metadata(&lock).expect("there").modified().expect("known") <= SystemTime::now(), "from now on it ages");
    let later = stored(&bench, 50, 0);
    let order: Vec<_> = bench.store.residents().expect("readable").into_iter().map(|resident| resident.layer).collect();
    assert_eq!(order, [ahead.spec.key(), later.spec.key()]);
}

#[test]
fn a_document_that_is_being_written_keeps_nobody_from_pruning() {
    let bench = Bench::new();
    let sample = stored(&bench, 40, 100);
    let ingest = bench.cache().join("v1/ingest");
    let [written, old, ahead] = ["document.1", "document.2", "document.3"].map(|name| ingest.join(name));
    let now = SystemTime::now();
    let hours = Duration::from_secs(7200);
    for (path, time) in [(&written, now - hours), (&old, now - hours), (&ahead, now + hours)] {
        fs::write(path, "half").expect("room");
        File::open(path).and_then(|file| file.set_times(fs::FileTimes::new().set_modified(time))).expect("ours");
    }
    let writer = File::open(&written).expect("there");
    writer.try_lock().expect("whoever writes one holds it");
    assert_eq!(bench.store.prune(true).expect("pruned").layers, 1);
    assert!(!is_here(&bench, &sample));
    assert_eq!(
        [&written, &old, &ahead].map(|path| path.exists()),
        [true, false, false],
        "what was left behind goes, whatever the clock was"
    );
    drop(writer);
    bench.store.prune(false).expect("pruned");
    assert!(!written.exists());
}
