//! The store through its public face, with a source that does what each test tells it to.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::failure::ErrorClass;
use kitfs::fetch::{Fetcher, Wanted};
use kitfs::layer::{Archive, Compression, LayerSpec};
use kitfs::path::RelPath;
use kitfs::source::{Attached, Attachments, BlobStream, DocumentKind, Resolved, Source, SourceError};
use kitfs::store::{Activity, Content, LayerState, Recall, Store, StoreError, Verdict, VerifiedLayer};
use kitfs::verify::{Mismatch, Unverified, Verified};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

// ---- what is stored

/// A layer with its files, as a test knows it.
struct Sample {
    files: BTreeMap<String, Vec<u8>>,
    /// The uncompressed content.
    tar: Bytes,
    blob: Bytes,
    spec: LayerSpec,
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Two big files with small ones around them.
fn sample(seed: u64, compression: Compression, with_diff_id: bool) -> Sample {
    let files: BTreeMap<String, Vec<u8>> = [
        ("model/config.json".to_owned(), b"{}".to_vec()),
        ("model/empty".to_owned(), Vec::new()),
        ("model/one.safetensors".to_owned(), noise(seed, 3_000_001)),
        ("model/tokenizer/vocab.txt".to_owned(), noise(seed + 1, 40_000)),
        ("model/two.safetensors".to_owned(), noise(seed + 2, 2 << 20)),
    ]
    .into();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &content[..]).expect("a tar entry");
    }
    let tar = Bytes::from(builder.into_inner().expect("a tar"));
    pack(files, tar, Archive::Tar, compression, with_diff_id)
}

/// One file of noise, which is declared to have `declared` bytes.
fn raw(seed: u64, length: usize, compression: Compression, declared: Option<u64>) -> Sample {
    let content = noise(seed, length);
    pack([("file".to_owned(), content.clone())].into(), content.into(), Archive::Raw { size: declared }, compression, true)
}

fn pack(files: BTreeMap<String, Vec<u8>>, tar: Bytes, archive: Archive, compression: Compression, with_diff_id: bool) -> Sample {
    let blob = match compression {
        Compression::None => tar.clone(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
            encoder.write_all(&tar).expect("into memory");
            Bytes::from(encoder.finish().expect("into memory"))
        }
        Compression::Zstd => {
            let mut blob = Vec::with_capacity(zstd_safe::compress_bound(tar.len()));
            zstd_safe::compress(&mut blob, &tar, 1).expect("into memory");
            Bytes::from(blob)
        }
    };
    let descriptor = Descriptor { media_type: "x/layer".into(), digest: Digest::of(Algorithm::Sha256, &blob), size: blob.len() as u64 };
    let diff_id = with_diff_id.then(|| Digest::of(Algorithm::Sha256, &tar));
    Sample { files, tar, blob, spec: LayerSpec { descriptor, diff_id, archive, compression } }
}

fn plain(seed: u64) -> Sample {
    sample(seed, Compression::None, true)
}

/// All bytes of all files, as the store gives them out.
fn read_all(layer: &VerifiedLayer) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let index = layer.index();
    let mut files = BTreeMap::new();
    for rank in 0..index.len() {
        let entry = index.entry(rank).expect("an entry");
        if entry.kind != kitfs::index::Kind::File {
            continue;
        }
        let bytes = match layer.content(rank)? {
            Content::Data(file, size) => read_at(&file, 0, size),
            Content::Packed { pack, offset, size } => read_at(&pack, offset, size),
        };
        files.insert(index.path(rank).expect("a path").to_string(), bytes);
    }
    Ok(files)
}

fn read_at(file: &File, offset: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).expect("small")];
    file.read_exact_at(&mut bytes, offset).expect("as long as it says");
    bytes
}

// ---- where it comes from

/// What a source does when it is asked for a blob.
#[derive(Clone)]
enum Step {
    Whole,
    /// Other bytes from offset 0.
    Instead(Bytes),
    /// An error after so many bytes.
    Fail(usize, fn() -> SourceError),
    /// After so many bytes it waits to be let on.
    Gate(usize, Arc<Semaphore>, Arc<Semaphore>),
}

/// Plays its steps, one for each question, and then gives whole blobs.
struct Scripted {
    name: String,
    blob: Bytes,
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<u64>>,
    delivered: AtomicU64,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Scripted {
    fn named(name: &str, blob: &Bytes, steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            blob: blob.clone(),
            steps: Mutex::new(steps.into_iter().collect()),
            asked: Mutex::default(),
            delivered: AtomicU64::new(0),
        })
    }

    fn new(sample: &Sample, steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Self::named("test", &sample.blob, steps)
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().expect("no panic").clone()
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        unreachable!("the store resolves nothing")
    }

    fn attached<'a>(&'a self, _: &'a Attachments) -> BoxFuture<'a, Attached> {
        unreachable!("the store asks for no documents")
    }

    fn document_as<'a>(&'a self, _: &'a Descriptor, _: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        unreachable!("the store asks for no documents")
    }

    fn blob(&self, _: &Descriptor, from: u64) -> BlobStream {
        self.asked.lock().expect("no panic").push(from);
        let step = self.steps.lock().expect("no panic").pop_front().unwrap_or(Step::Whole);
        let from = usize::try_from(from).expect("small");
        let (whole, end, after) = match step {
            Step::Whole => (self.blob.clone(), None, None),
            Step::Instead(other) => (other, None, None),
            Step::Fail(at, error) => (self.blob.clone(), Some(at), Some(stream::once(async move { Err(error()) }).boxed())),
            Step::Gate(at, reached, on) => {
                let rest = self.blob.slice(at..);
                let wait = async move {
                    reached.add_permits(1);
                    on.acquire().await.expect("open").forget();
                    Ok(Unverified::new(rest))
                };
                (self.blob.clone(), Some(at), Some(stream::once(wait).boxed()))
            }
        };
        let end = end.unwrap_or(whole.len()).max(from);
        let bytes = whole.slice(from.min(whole.len())..end.min(whole.len()));
        self.delivered.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // Pieces of a size that fits to nothing.
        let pieces: Vec<_> = bytes.chunks(70_001).map(|piece| Ok(Unverified::new(bytes.slice_ref(piece)))).collect();
        let pieces = stream::iter(pieces).boxed();
        match after {
            Some(after) => pieces.chain(after).boxed(),
            None => pieces,
        }
    }
}

fn denied() -> SourceError {
    SourceError::Denied { place: "test".into(), what: "the layer".into(), status: "403".into() }
}

fn broken() -> SourceError {
    SourceError::Unavailable { place: "test".into(), what: "the layer".into(), reason: "reset".into(), retry_at: None, source: None }
}

// ---- where it goes

struct Bench {
    runtime: Runtime,
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("cache")).expect("a cache");
        Self { runtime, dir, store }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn ensure(&self, sample: &Sample, source: &Arc<Scripted>) -> Result<VerifiedLayer, StoreError> {
        ensure(&self.store, &self.runtime, sample, source)
    }

    /// Waits until whoever syncs the layer has closed all that it had open: it holds a lock on `visible` until then.
    fn await_settled(&self, sample: &Sample) {
        let visible = fs::File::open(self.layer_dir(sample).join("visible")).expect("in its place");
        rustix::fs::flock(&visible, rustix::fs::FlockOperation::LockExclusive).expect("free in the end");
    }

    fn layer_dir(&self, sample: &Sample) -> PathBuf {
        self.cache().join("v1/layers").join(sample.spec.key().file_name())
    }

    /// The name of a data file in the layer.
    fn data_file(&self, sample: &Sample) -> PathBuf {
        let names = listing(&self.layer_dir(sample));
        self.layer_dir(sample).join(names.iter().find(|name| name.ends_with(".data")).expect("a data file"))
    }

    fn index(&self, sample: &Sample) -> PathBuf {
        self.cache().join("v1/index").join(sample.spec.key().file_name())
    }

    fn assert_nothing_is_left(&self) {
        for place in ["layers", "ingest", "trash"] {
            assert_eq!(listing(&self.cache().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
    }
}

fn ensure(store: &Store, runtime: &Runtime, sample: &Sample, source: &Arc<Scripted>) -> Result<VerifiedLayer, StoreError> {
    let source: Arc<dyn Source> = Arc::clone(source) as _;
    store.ensure(&sample.spec, &source, runtime.handle())
}

fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").file_name().into_string().expect("utf-8")).collect();
    names.sort();
    names
}

fn ready(recall: Result<Recall, StoreError>) -> VerifiedLayer {
    match recall.expect("readable") {
        Recall::Ready(layer) => layer,
        other => panic!("expected a layer, got {other:?}"),
    }
}

fn assert_doubtful(store: &Store, sample: &Sample) {
    let recall = store.recall(&sample.spec).expect("readable");
    assert!(matches!(recall, Recall::Doubtful), "{recall:?}");
}

// ---- tests

#[test]
fn whoever_fetches_for_a_mount_tells_of_content_that_is_not_what_its_digest_says() {
    // What the source gives, and whether that is a mismatch.
    let sample = sample(40, Compression::None, false);
    let wrong = || Step::Instead(Bytes::from(noise(41, sample.blob.len())));
    let cases: [(Vec<Step>, bool); 4] = [
        (vec![wrong(), wrong()], true),
        (vec![Step::Instead(sample.blob.slice(1..)), Step::Instead(sample.blob.slice(1..))], true),
        (vec![Step::Fail(0, denied)], false),
        (vec![], false),
    ];
    for (number, (steps, is_mismatch)) in cases.into_iter().enumerate() {
        let bench = Bench::new();
        let source: Arc<dyn Source> = Scripted::new(&sample, steps);
        let fetcher = Fetcher::new(bench.store.clone(), vec![(sample.spec.clone(), 0)], Box::new(move |_| Ok(Arc::clone(&source))));
        let (told, tells) = std::sync::mpsc::channel();
        let witness = told.clone();
        fetcher.report_mismatches(Box::new(move |layer, message| {
            witness.send(format!("mismatch {layer} {message}")).expect("somebody listens");
        }));
        fetcher.listen(Box::new(move |_, outcome| told.send(format!("ended {}", outcome.is_ok())).expect("somebody listens")));
        assert!(matches!(fetcher.want(1), Wanted::Coming));
        let limit = std::time::Duration::from_secs(20);
        let mut heard = tells.recv_timeout(limit).expect("told");
        if is_mismatch {
            let digest = sample.spec.descriptor.digest.to_string();
            assert!(heard.starts_with(&format!("mismatch {digest} layer {digest}: ")), "case {number}: {heard}");
            heard = tells.recv_timeout(limit).expect("told");
        }
        // Whoever waits hears of it only afterwards.
        assert_eq!(heard, format!("ended {}", number == 3), "case {number}");
    }
}

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
fn no_kind_of_wrong_bytes_gets_in() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let (bench, sample, other) = (Bench::new(), sample(3, compression, true), sample(4, compression, true));
        let flip = |at: usize| {
            let mut bytes = sample.blob.to_vec();
            bytes[at] ^= 1;
            Bytes::from(bytes)
        };
        let mut swapped = sample.blob.to_vec();
        swapped.swap(1000, 2_000_000);
        let damages = [
            ("flipped in a header", flip(3)),
            ("flipped in a file", flip(1_500_000)),
            ("flipped at the end", flip(sample.blob.len() - 1)),
            ("swapped", Bytes::from(swapped)),
            ("another blob", other.blob.clone()),
            ("short", sample.blob.slice(..sample.blob.len() - 1)),
            ("empty", Bytes::new()),
            ("long", [&sample.blob[..], b"x"].concat().into()),
        ];
        for (damage, bytes) in damages {
            let source = Scripted::new(&sample, [Step::Instead(bytes.clone()), Step::Instead(bytes.clone())]);
            let error = bench.ensure(&sample, &source).expect_err(damage);
            assert_eq!(error.class(), ErrorClass::Content, "{damage}: {error}");
            assert_eq!(source.asked(), [0, 0], "{damage}: one more from scratch");
            let text = error.to_string();
            assert!(text.contains("expected") && text.contains("got"), "{damage}: {text}");
            if bytes.len() == sample.blob.len() {
                let got = Digest::of(Algorithm::Sha256, &bytes);
                assert!(text.contains(&got.to_string()) && text.contains(&sample.spec.descriptor.digest.to_string()), "{damage}: {text}");
            }
            bench.assert_nothing_is_left();
            assert!(!bench.index(&sample).exists());
            let progress = bench.store.progress(&sample.spec.key()).expect("a record");
            assert_eq!((progress.state, progress.class), (Activity::Failed, Some(ErrorClass::Content)));
            assert_eq!(bench.store.state(&sample.spec.key()), LayerState::Absent);

            // Bad once, and good when it is asked again.
            let once = Bench::new();
            let source = Scripted::new(&sample, [Step::Instead(bytes)]);
            let layer = once.ensure(&sample, &source).expect(damage);
            assert_eq!(read_all(&layer).expect("there"), sample.files);
            assert_eq!(source.asked(), [0, 0], "{damage}");
        }
    }
}

#[test]
fn a_config_that_claims_another_content_is_not_believed() {
    let (bench, mut wrong) = (Bench::new(), sample(5, Compression::Gzip, true));
    let right = wrong.spec.diff_id;
    wrong.spec.diff_id = Some(Digest::of(Algorithm::Sha256, b"something else"));
    let source = Scripted::new(&wrong, []);
    let error = bench.ensure(&wrong, &source).expect_err("another content");
    assert!(
        matches!(&error, StoreError::Uncompressed { mismatch, .. }
        if matches!(**mismatch, Mismatch::Digest { got, .. } if Some(got) == right)),
        "{error}"
    );
    assert_eq!((error.class(), source.asked()), (ErrorClass::Content, vec![0]));
    bench.assert_nothing_is_left();

    // Nor later, when the layer is here because another config was right.
    let good = sample(5, Compression::Gzip, true);
    bench.ensure(&good, &source).expect("stored");
    assert!(matches!(bench.store.recall(&wrong.spec), Err(StoreError::Uncompressed { .. })));
    let mut as_plain = good.spec.clone();
    as_plain.compression = Compression::None;
    assert!(matches!(bench.store.recall(&as_plain), Ok(Recall::Absent)), "the same blob, but another layer");
}

#[test]
fn a_right_blob_that_is_no_archive_is_refused_not_damaged() {
    for blob in [noise(6, 300_000), vec![b'x'; 512]] {
        let bench = Bench::new();
        let blob = Bytes::from(blob);
        let mut sample = plain(6);
        sample.spec.descriptor.digest = Digest::of(Algorithm::Sha256, &blob);
        sample.spec.descriptor.size = blob.len() as u64;
        sample.spec.diff_id = None;
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            sample.spec.compression = compression;
            let source = Scripted::named("test", &blob, []);
            let error = bench.ensure(&sample, &source).expect_err("no archive");
            assert_eq!((error.class(), source.asked()), (ErrorClass::Refused, vec![0]), "{error}");
            bench.assert_nothing_is_left();
        }
    }
}

#[test]
fn what_was_fetched_before_a_break_is_not_fetched_again() {
    let sample = plain(7);
    // In the first header, in the first small file, in a data file, behind one, and with everything but the end.
    for at in [100, 700, 1_000_000, 3_060_000, sample.blob.len() - 10, sample.blob.len()] {
        let bench = Bench::new();
        let source = Scripted::new(&sample, [Step::Fail(at, broken)]);
        let error = bench.ensure(&sample, &source).expect_err("broken off");
        assert_eq!(error.class(), ErrorClass::Network);
        let layer = bench.ensure(&sample, &source).expect("the rest");
        assert_eq!(read_all(&layer).expect("there"), sample.files, "{at}");
        let expected: &[u64] = if at == sample.blob.len() { &[0] } else { &[0, at as u64] };
        assert_eq!(source.asked(), expected);
        assert_eq!(source.delivered(), sample.blob.len() as u64);
        bench.store.sync(&layer).expect("durable");
        assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Sound);
        assert_eq!(listing(&bench.cache().join("v1/ingest")), Vec::<String>::new());
    }
}

#[test]
fn damage_in_what_was_left_behind_is_nobodys_fault() {
    let (bench, sample) = (Bench::new(), plain(8));
    let source = Scripted::new(&sample, [Step::Fail(2_500_000, broken), Step::Whole, Step::Instead(sample.tar.slice(1..))]);
    bench.ensure(&sample, &source).expect_err("broken off");
    let ingest = bench.cache().join("v1/ingest");
    let left = ingest.join(listing(&ingest).first().expect("left behind"));
    let name = listing(&left).into_iter().find(|name| name.ends_with(".data")).expect("a data file");
    flip(&left.join(name), 17);
    // The rest, then from scratch wrong, then from scratch right: the resumed one does not count.
    let layer = bench.ensure(&sample, &source).expect("the third");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert_eq!(source.asked(), [0, 2_500_000, 0, 0]);
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
fn an_interrupted_raw_layer_is_gone_on_with() {
    let (bench, sample) = (Bench::new(), raw(33, 5 << 20, Compression::None, None));
    for fail in [0, 1, 2_500_000] {
        let source = Scripted::new(&sample, [Step::Fail(fail, broken)]);
        bench.ensure(&sample, &source).expect_err("broken off");
        assert_eq!(listing(&bench.cache().join("v1/ingest")).len(), usize::from(fail > 0));
    }
    let source = Scripted::new(&sample, []);
    let layer = bench.ensure(&sample, &source).expect("the rest");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert!(source.asked()[..] == [2_500_000] || source.asked()[..] == [2_500_001], "{:?}", source.asked());
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
fn compressed_layers_and_other_boots_start_over() {
    let gzip = sample(9, Compression::Gzip, true);
    let bench = Bench::new();
    let source = Scripted::new(&gzip, [Step::Fail(1_000_000, broken)]);
    bench.ensure(&gzip, &source).expect_err("broken off");
    bench.assert_nothing_is_left();
    bench.ensure(&gzip, &source).expect("again");
    assert_eq!(source.asked(), [0, 0]);

    let sample = plain(9);
    let bench = Bench::new();
    let source = Scripted::new(&sample, [Step::Fail(1_000_000, broken)]);
    bench.ensure(&sample, &source).expect_err("broken off");
    let later = Store::open_in_boot(&bench.cache(), Some("another boot".into())).expect("the same cache");
    ensure(&later, &bench.runtime, &sample, &source).expect("again");
    assert_eq!(source.asked(), [0, 0]);
}

#[test]
fn errors_of_a_source_are_passed_on_with_their_class() {
    let (bench, sample) = (Bench::new(), plain(10));
    for (error, class) in [(denied as fn() -> SourceError, ErrorClass::Denied), (broken, ErrorClass::Network)] {
        let source = Scripted::new(&sample, [Step::Fail(0, error)]);
        let found = bench.ensure(&sample, &source).expect_err("an error");
        assert_eq!(found.class(), class);
        assert!(std::error::Error::source(&found).is_some());
        let progress = bench.store.progress(&sample.spec.key()).expect("a record");
        assert_eq!(progress.class, Some(class));
        bench.assert_nothing_is_left();
    }
}

// ---- single flight

#[test]
fn many_who_ask_at_once_fetch_once() {
    let (bench, sample) = (Bench::new(), plain(11));
    let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let source = Scripted::new(&sample, [Step::Gate(1_000_000, Arc::clone(&reached), Arc::clone(&on))]);
    // A second store of the same cache stands for a second process: they know of each other by the locks alone.
    let second = Store::open(&bench.cache()).expect("the same cache");
    thread::scope(|scope| {
        let ask = |store: &Store| {
            let store = store.clone();
            let (source, sample, runtime) = (&source, &sample, &bench.runtime);
            scope.spawn(move || read_all(&ensure(&store, runtime, sample, source).expect("stored")).expect("there"))
        };
        let mut readers = vec![ask(&bench.store)];
        bench.runtime.block_on(reached.acquire()).expect("open").forget();
        assert_eq!(second.state(&sample.spec.key()), LayerState::Fetching);
        let progress = second.progress(&sample.spec.key()).expect("a record");
        assert_eq!((progress.state, progress.size), (Activity::Fetching, sample.blob.len() as u64));
        for _ in 0..6 {
            readers.push(ask(&bench.store));
            readers.push(ask(&second));
        }
        on.add_permits(1);
        for reader in readers {
            assert_eq!(reader.join().expect("no panic"), sample.files);
        }
    });
    assert_eq!(source.asked(), [0]);
}

#[test]
fn what_one_source_said_is_no_answer_of_another() {
    let (bench, sample) = (Bench::new(), plain(12));
    for second in [bench.store.clone(), Store::open(&bench.cache()).expect("the same cache")] {
        let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        // Stops at 0 bytes, then delivers other bytes: a failure of its own, twice.
        let bad = Scripted::named("bad", &Bytes::from(vec![0; sample.blob.len()]), [Step::Gate(0, Arc::clone(&reached), Arc::clone(&on))]);
        let good = Scripted::named("good", &sample.blob, []);
        thread::scope(|scope| {
            let first = scope.spawn(|| bench.ensure(&sample, &bad).map(drop));
            bench.runtime.block_on(reached.acquire()).expect("open").forget();
            let other = scope.spawn(|| ensure(&second, &bench.runtime, &sample, &good).map(|layer| read_all(&layer)));
            on.add_permits(1);
            assert_eq!(first.join().expect("no panic").expect_err("bad").class(), ErrorClass::Content);
            assert_eq!(other.join().expect("no panic").expect("good").expect("there"), sample.files);
        });
        let layer = sample.spec.key().file_name();
        bench.await_settled(&sample);
        fs::remove_dir_all(bench.cache().join("v1/layers").join(layer)).expect("for the next round");
    }
}

// ---- on disk

fn flip(path: &Path, at: u64) {
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

fn truncate(path: &Path) {
    let length = fs::metadata(path).expect("there").len();
    File::options().write(true).open(path).expect("root, or ours").set_len(length - 1).expect("shorter");
}

fn append(path: &Path) {
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

#[test]
fn another_boot_verifies_what_was_not_synced() {
    let (bench, sample) = (Bench::new(), plain(17));
    let source = Scripted::new(&sample, []);
    let layer = bench.ensure(&sample, &source).expect("stored");
    bench.store.sync(&layer).expect("durable");
    drop(layer);
    for boot in [Some("later".to_owned()), None] {
        let later = Store::open_in_boot(&bench.cache(), boot.clone()).expect("the same cache");
        ready(later.recall(&sample.spec));
        // As if the power had gone before the sync was done.
        fs::remove_file(bench.layer_dir(&sample).join("durable")).expect("there");
        assert_doubtful(&later, &sample);
        let layer = ensure(&later, &bench.runtime, &sample, &source).expect("verified");
        assert_eq!(read_all(&layer).expect("there"), sample.files);
        assert_eq!(source.asked(), [0], "without its source");
        assert!(bench.layer_dir(&sample).join("durable").exists());
    }
    // And if what is on disk is not what was written:
    fs::remove_file(bench.layer_dir(&sample).join("durable")).expect("there");
    flip(&bench.data_file(&sample), 77);
    let later = Store::open_in_boot(&bench.cache(), None).expect("the same cache");
    let layer = ensure(&later, &bench.runtime, &sample, &source).expect("fetched again");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert_eq!(source.asked(), [0, 0]);
}

#[test]
fn whoever_finds_a_layer_unsynced_syncs_it() {
    let (bench, sample) = (Bench::new(), plain(18));
    let layer = bench.ensure(&sample, &Scripted::new(&sample, [])).expect("stored");
    bench.store.sync(&layer).expect("durable");
    fs::remove_file(bench.layer_dir(&sample).join("durable")).expect("there");
    let layer = ready(bench.store.recall(&sample.spec));
    bench.store.sync(&layer).expect("durable again");
    assert!(bench.layer_dir(&sample).join("durable").exists());
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

// ---- a full disk

/// A tmpfs of its own; `None` where the tests may not mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let size = std::ffi::CString::new(format!("size={bytes},mode=0700")).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, &*size).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_else() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let sample = sample(21, compression, true);
        let Some(disk) = SmallDisk::mount(6 << 20) else { return };
        let filler = disk.0.path().join("filler");
        let store = Store::open(disk.0.path()).expect("a cache");
        let bench = Bench::new();
        // There is room when the fetch begins, and none any more when the bytes come.
        let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let source = Scripted::new(&sample, [Step::Gate(0, Arc::clone(&reached), Arc::clone(&on))]);
        let outcome = thread::scope(|scope| {
            let fetch = scope.spawn(|| ensure(&store, &bench.runtime, &sample, &source));
            bench.runtime.block_on(reached.acquire()).expect("open").forget();
            fs::write(&filler, vec![1; 2 << 20]).expect("room");
            on.add_permits(1);
            fetch.join().expect("no panic")
        });
        let error = outcome.expect_err("no room");
        assert_eq!(error.class(), ErrorClass::Disk(libc::ENOSPC), "{}", error);
        for place in ["layers", "ingest", "trash", "index"] {
            assert_eq!(listing(&disk.0.path().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
        assert_eq!(store.progress(&sample.spec.key()).expect("a record").class, Some(ErrorClass::Disk(libc::ENOSPC)));
        // It works as soon as there is room.
        fs::remove_file(&filler).expect("there");
        let layer = ensure(&store, &bench.runtime, &sample, &source).expect("room");
        assert_eq!(read_all(&layer).expect("there"), sample.files);
        // And what is here can be opened when it is full again.
        store.sync(&layer).expect("durable");
        while File::options().append(true).create(true).open(&filler).and_then(|mut file| file.write_all(&[1; 4096])).is_ok() {}
        let full = Store::open(disk.0.path()).expect("a full cache");
        assert_eq!(read_all(&ready(full.recall(&sample.spec))).expect("there"), sample.files);
    }
}

#[test]
fn a_layer_larger_than_the_disk_is_refused_before_it_is_fetched() {
    for compression in [Compression::None, Compression::Gzip] {
        let sample = sample(23, compression, true);
        let Some(disk) = SmallDisk::mount(3 << 20) else { return };
        let (store, bench) = (Store::open(disk.0.path()).expect("a cache"), Bench::new());
        let source = Scripted::new(&sample, []);
        let error = ensure(&store, &bench.runtime, &sample, &source).expect_err("no room");
        assert_eq!(error.class(), ErrorClass::Disk(libc::ENOSPC), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("has {} bytes", sample.blob.len())) && text.contains("has room for"), "{text}");
        assert_eq!(source.asked(), [0_u64; 0], "nothing was asked for");
        for place in ["layers", "ingest", "trash", "index"] {
            assert_eq!(listing(&disk.0.path().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
    }
}

// ---- other processes

/// Another process: this test binary, running [`another_process`].
struct Other {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Other {
    /// Fetches the plain sample with this seed; `gate` makes it stop for ever after so many bytes.
    fn start(bench: &Bench, seed: u64, gate: Option<usize>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("ourselves"));
        command.args(["--exact", "another_process", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("STORE_TEST_CACHE", bench.cache()).env("STORE_TEST_SEED", seed.to_string());
        command.env("STORE_TEST_GATE", gate.map(|at| at.to_string()).unwrap_or_default());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// Waits for what it has to say.
    fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).expect("readable") > 0, "it ended without a word");
            // The harness does not end its own line before the test begins to print.
            if let Some((_, said)) = line.split_once("STORE: ") {
                return said.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it lives");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "what the tests start in other processes"]
fn another_process() {
    let Some(cache) = std::env::var_os("STORE_TEST_CACHE") else { return };
    let seed: u64 = std::env::var("STORE_TEST_SEED").expect("given").parse().expect("a number");
    let gate: Option<usize> = std::env::var("STORE_TEST_GATE").expect("given").parse().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let sample = plain(seed);
    let store = Store::open(Path::new(&cache)).expect("the cache");
    let reached = Arc::new(Semaphore::new(0));
    let steps = gate.map(|at| Step::Gate(at, Arc::clone(&reached), Arc::new(Semaphore::new(0))));
    let source = Scripted::new(&sample, steps);
    let tell = |text: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "STORE: {text}").and_then(|()| out.flush()).expect("somebody listens");
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            if runtime.block_on(reached.acquire()).is_ok() {
                tell("gate");
            }
        });
        tell("began");
        let layer = ensure(&store, &runtime, &sample, &source).expect("stored");
        assert_eq!(read_all(&layer).expect("there"), sample.files);
        reached.close();
        tell(&format!("done {}", source.delivered()));
    });
}

#[test]
fn processes_fetch_each_byte_once() {
    let (bench, sample) = (Bench::new(), plain(22));
    let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let source = Scripted::new(&sample, [Step::Gate(500_000, Arc::clone(&reached), Arc::clone(&on))]);
    thread::scope(|scope| {
        let first = scope.spawn(|| bench.ensure(&sample, &source).map(drop));
        bench.runtime.block_on(reached.acquire()).expect("open").forget();
        let mut others: Vec<_> = (0..3).map(|_| Other::start(&bench, 22, None)).collect();
        for other in &mut others {
            assert_eq!(other.says(), "began");
        }
        on.add_permits(1);
        for other in &mut others {
            assert_eq!(other.says(), "done 0");
        }
        first.join().expect("no panic").expect("stored");
    });
    assert_eq!(source.asked(), [0]);
}

#[test]
fn a_killed_fetcher_is_taken_over_where_it_was() {
    let (bench, sample) = (Bench::new(), plain(23));
    let at = 2_000_000;
    let mut other = Other::start(&bench, 23, Some(at));
    assert_eq!(other.says(), "began");
    assert_eq!(other.says(), "gate");
    assert_eq!(bench.store.state(&sample.spec.key()), LayerState::Fetching);
    let source = Scripted::new(&sample, []);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| read_all(&bench.ensure(&sample, &source).expect("taken over")).expect("there"));
        other.child.kill().expect("it lives");
        assert_eq!(waiting.join().expect("no panic"), sample.files);
    });
    // All that it had written is used; what it had gathered for the next write, less than one piece of 1 MiB, came again.
    let [from] = source.asked()[..] else { panic!("asked {:?}", source.asked()) };
    assert!(from >= at as u64 - (1 << 20) && from <= at as u64, "{from}");
    assert_eq!(from + source.delivered(), sample.blob.len() as u64);
}

/// What another process has done so far, as far as the cache shows it.
type Sight = (&'static str, fn(&Path, &str) -> bool);

#[test]
fn a_process_may_be_killed_anywhere() {
    fn in_work(v1: &Path, layer: &str, file: &str) -> bool {
        listing(&v1.join("ingest")).iter().any(|name| name.starts_with(layer) && v1.join("ingest").join(name).join(file).exists())
    }
    let sights: [Sight; 6] = [
        ("work", |v1, layer| listing(&v1.join("ingest")).iter().any(|name| name.starts_with(layer))),
        ("data", |v1, layer| in_work(v1, layer, "1.data") || in_work(v1, layer, "2.data")),
        ("visible", |v1, layer| in_work(v1, layer, "visible")),
        ("index", |v1, layer| v1.join("index").join(layer).exists()),
        ("layer", |v1, layer| v1.join("layers").join(layer).exists()),
        ("durable", |v1, layer| v1.join("layers").join(layer).join("durable").exists()),
    ];
    let sample = plain(25);
    let layer = sample.spec.key().file_name();
    for (name, sight) in sights {
        let bench = Bench::new();
        let mut other = Other::start(&bench, 25, None);
        let v1 = bench.cache().join("v1");
        // It may be faster than we look: then it has everything, and dies later than meant.
        while !sight(&v1, &layer) && !v1.join("layers").join(&layer).exists() {
            thread::yield_now();
        }
        other.child.kill().expect("not reaped");
        other.child.wait().expect("ours");
        let source = Scripted::new(&sample, []);
        let stored = bench.ensure(&sample, &source).expect(name);
        assert_eq!(read_all(&stored).expect("there"), sample.files, "{name}");
        bench.store.sync(&stored).expect("durable");
        assert_eq!(bench.store.verify(&sample.spec).expect("readable"), Verdict::Sound);
        assert_eq!(listing(&v1.join("ingest")), Vec::<String>::new(), "{name}");
        assert_eq!(listing(&v1.join("layers")).len(), 1, "{name}");
    }
}

#[test]
fn a_stopped_fetcher_is_worked_beside() {
    let (bench, sample) = (Bench::new(), plain(24));
    let mut other = Other::start(&bench, 24, Some(1_000_000));
    assert_eq!((other.says(), other.says()), ("began".into(), "gate".into()));
    other.signal(rustix::process::Signal::STOP);
    let source = Scripted::new(&sample, []);
    let layer = bench.ensure(&sample, &source).expect("worked beside");
    assert_eq!(read_all(&layer).expect("there"), sample.files);
    assert_eq!(source.asked(), [0], "what the other one writes is not touched");
    other.signal(rustix::process::Signal::CONT);
    assert_eq!(other.says(), format!("done {}", 1_000_000), "it finds that it is done");
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let bench = Bench::new();
    let trash = bench.cache().join("v1/trash/sha256-x.1");
    let ingest = bench.cache().join("v1/ingest/sha256-x.2");
    for dir in [&trash, &ingest] {
        fs::create_dir(dir).expect("made");
        fs::write(dir.join("pack"), b"x").expect("room");
    }
    let _again = Store::open(&bench.cache()).expect("the same cache");
    // It happens in the background: wait until nobody has a reason to be there.
    while trash.exists() || ingest.exists() {
        thread::yield_now();
    }
    let mut text = String::new();
    File::open("/proc/self/comm").and_then(|mut file| file.read_to_string(&mut text)).expect("proc");
    assert!(fs::metadata(bench.cache().join("v1/trash")).expect("there").is_dir());
    assert_eq!(fs::metadata(bench.cache().join("v1")).expect("there").uid(), rustix::process::geteuid().as_raw());
}
