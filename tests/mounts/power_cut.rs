//! A power cut at each named step: what was not synced is gone, cut short or zeros, names that were not synced are as before or as now, and no reader ever
//! sees a wrong byte of it.
//!
//! There is no device mapper on the machines that this runs on, so the disk is a model. A command runs with `* stop`: at each step it stands still, and
//! the cache is looked at. The trace says what was synced up to then; all else is uncertain, and is made worse in several ways. Each outcome is written to a
//! host of its own, which is in another boot, and on which change times tell nothing (a copy could not have those of its original, and a power cut would
//! not change them). Then the kit is mounted there and all of it is read.
//!
//! `KITFS_TEST_THOROUGH=1` tries all outcomes of each step; without it every third change gets one, another one than its neighbours.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode};
use crate::common::process::{Running, within};
use crate::common::registry::{Fault, Target, Times};
use crate::common::shown::{assert_shows, of_tree};
use crate::common::steps::Steps;
use crate::killed_at::{is_thorough, owned};
use crate::stage::{Served, Stage, damage_indexes, damage_layers, pull};

const LIMIT: Duration = Duration::from_secs(90);

/// Its number and when it was made: numbers are used again.
type Inode = (u64, i64);
type Names = BTreeMap<String, Inode>;

/// A cache as it is at one moment.
#[derive(Clone, Default)]
struct Snapshot {
    root: Inode,
    folders: HashMap<Inode, Names>,
    files: HashMap<Inode, Kept>,
}

#[derive(Clone)]
struct Kept {
    mode: u32,
    content: Arc<Vec<u8>>,
    /// Tells whether it has to be read again.
    stamp: (u64, i64, i64),
}

impl Snapshot {
    fn take(cache: &Path, before: &Self) -> Self {
        let mut snapshot = Self { root: inode_of(&fs::metadata(cache).expect("a cache")), ..Self::default() };
        snapshot.walk(cache, snapshot.root, before);
        snapshot
    }

    fn walk(&mut self, folder: &Path, inode: Inode, before: &Self) {
        let mut names = Names::new();
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let metadata = entry.metadata().expect("known");
            names.insert(entry.file_name().into_string().expect("UTF-8"), inode_of(&metadata));
            if metadata.is_dir() {
                self.walk(&entry.path(), inode_of(&metadata), before);
                continue;
            }
            let stamp = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
            let content = match before.files.get(&inode_of(&metadata)) {
                Some(kept) if kept.stamp == stamp => Arc::clone(&kept.content),
                _ => Arc::new(fs::read(entry.path()).expect("ours")),
            };
            self.files.insert(inode_of(&metadata), Kept { mode: metadata.mode() & 0o7777, content, stamp });
        }
        self.folders.insert(inode, names);
    }
}

fn inode_of(metadata: &fs::Metadata) -> Inode {
    let made = metadata.created().expect("a filesystem that tells").duration_since(std::time::UNIX_EPOCH).expect("a clock");
    (metadata.ino(), made.as_nanos() as i64)
}

/// What is certain to be on disk.
struct Disk {
    now: Snapshot,
    /// As they were when they were synced.
    folders: HashMap<Inode, Names>,
    files: HashMap<Inode, Arc<Vec<u8>>>,
    /// The last that was seen of every file, whether it has a name or not.
    ever: HashMap<Inode, Kept>,
}

/// What becomes of names that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entries {
    Kept,
    Undone,
    /// Some folders so and some so, as no filesystem with a journal would have it.
    Mixed(u64),
}

/// What becomes of bytes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bytes {
    Gone,
    Half,
    Zeros,
    Kept,
}

const OUTCOMES: [(Entries, Bytes); 11] = [
    (Entries::Kept, Bytes::Zeros),
    (Entries::Undone, Bytes::Half),
    (Entries::Kept, Bytes::Gone),
    (Entries::Mixed(1), Bytes::Zeros),
    (Entries::Undone, Bytes::Zeros),
    (Entries::Kept, Bytes::Half),
    (Entries::Undone, Bytes::Gone),
    (Entries::Mixed(2), Bytes::Half),
    (Entries::Kept, Bytes::Kept),
    (Entries::Undone, Bytes::Kept),
    (Entries::Mixed(3), Bytes::Kept),
];

/// Of so many changes one is tried, where not all are.
const EACH: usize = 3;

/// A file's mode and content.
type ImageFile = (u32, Arc<Vec<u8>>);

/// A cache to be written: files, and folders.
#[derive(Default)]
struct Image {
    entries: BTreeMap<String, Option<ImageFile>>,
    number: DefaultHasher,
}

impl Disk {
    /// All that is there now is on disk.
    fn new(cache: &Path) -> Self {
        let now = Snapshot::take(cache, &Snapshot::default());
        let files = now.files.iter().map(|(inode, kept)| (*inode, Arc::clone(&kept.content))).collect();
        Self { folders: now.folders.clone(), files, ever: now.files.clone(), now }
    }

    /// Looks again; `synced` is what was synced since the last time, so what it was then is on disk.
    fn look(&mut self, cache: &Path, synced: &[u64]) {
        let before = &self.now;
        let now = Snapshot::take(cache, before);
        let is_synced = |(number, _): &Inode| synced.contains(number);
        for (inode, names) in now.folders.iter().filter(|(inode, _)| is_synced(inode)) {
            self.folders.insert(*inode, before.folders.get(inode).unwrap_or(names).clone());
        }
        for (inode, kept) in now.files.iter().filter(|(inode, _)| is_synced(inode)) {
            self.files.insert(*inode, Arc::clone(&before.files.get(inode).unwrap_or(kept).content));
        }
        self.ever.extend(now.files.iter().map(|(inode, kept)| (*inode, kept.clone())));
        self.now = now;
    }

    fn outcome(&self, entries: Entries, bytes: Bytes) -> Image {
        let mut image = Image::default();
        self.write(self.now.root, "", entries, bytes, &mut image);
        image
    }

    fn write(&self, folder: Inode, path: &str, entries: Entries, bytes: Bytes, image: &mut Image) {
        let undone = match entries {
            Entries::Kept => false,
            Entries::Undone => true,
            Entries::Mixed(seed) => fastrand::Rng::with_seed(seed.wrapping_mul(folder.0)).bool(),
        };
        let names = if undone { self.folders.get(&folder) } else { self.now.folders.get(&folder).or(self.folders.get(&folder)) };
        for (name, inode) in names.into_iter().flatten() {
            let path = format!("{path}{name}");
            match self.ever.get(inode) {
                Some(file) => {
                    let bytes = if self.is_synced(*inode, file) { Bytes::Kept } else { bytes };
                    // What stands in locks decides nothing after a boot.
                    if !path.starts_with("v1/locks/") {
                        (&path, Arc::as_ptr(&file.content), bytes).hash(&mut image.number);
                    }
                    image.entries.insert(path, Some((file.mode, left(file, bytes))));
                }
                None => {
                    path.hash(&mut image.number);
                    image.entries.insert(path.clone(), None);
                    self.write(*inode, &format!("{path}/"), entries, bytes, image);
                }
            }
        }
    }

    fn is_synced(&self, inode: Inode, file: &Kept) -> bool {
        self.files.get(&inode).is_some_and(|synced| Arc::ptr_eq(synced, &file.content) || *synced == file.content)
    }

    /// Tells whether something is uncertain in another way than before.
    fn number(&self) -> [u64; 2] {
        [Entries::Kept, Entries::Undone].map(|entries| self.outcome(entries, Bytes::Gone).number.finish())
    }
}

/// What is left of a file.
fn left(file: &Kept, bytes: Bytes) -> Arc<Vec<u8>> {
    Arc::new(match bytes {
        Bytes::Kept => return Arc::clone(&file.content),
        Bytes::Gone => Vec::new(),
        Bytes::Half => file.content[..file.content.len() / 2].to_vec(),
        Bytes::Zeros => vec![0; file.content.len()],
    })
}

impl Image {
    fn write(&self, cache: &Path) {
        let _ = fs::remove_dir_all(cache);
        fs::create_dir(cache).expect("a folder");
        fs::set_permissions(cache, fs::Permissions::from_mode(0o700)).expect("ours");
        for (path, file) in &self.entries {
            let path = cache.join(path);
            match file {
                None => fs::create_dir(&path).expect("a folder"),
                Some((mode, content)) => {
                    fs::write(&path, &**content).expect("room");
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("ours");
                }
            }
        }
    }

    /// The contents of files of layers that are in their place.
    fn data(&self) -> Vec<Arc<Vec<u8>>> {
        let data = self.entries.iter().filter(|(path, _)| path.starts_with("v1/layers/") && path.ends_with(".data"));
        data.filter_map(|(_, file)| file.as_ref().map(|(_, content)| Arc::clone(content))).collect()
    }

    fn holds(&self, contents: &[Arc<Vec<u8>>]) -> bool {
        self.data().iter().any(|content| contents.iter().any(|other| Arc::ptr_eq(content, other)))
    }

    fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }
}

/// The host on which the power came back.
struct After {
    host: Host,
    steps: Steps,
    seen: HashSet<u64>,
    tried: usize,
}

impl After {
    fn new() -> Self {
        let host = Host::new(Mode::Cached);
        let steps = Steps::new(host.folder("steps"));
        steps.timeless();
        steps.boot("the next one");
        Self { host, steps, seen: HashSet::new(), tried: 0 }
    }

    /// Mounts what is left and reads everything.
    fn assert_right(&mut self, what: &str, stage: &Stage, served: &Served, image: &Image, sound: bool) {
        if !self.seen.insert(image.number.finish()) {
            return;
        }
        self.tried += 1;
        image.write(&self.host.cache());
        let layers = &served.kit.layers;
        let durable = layers.iter().filter(|layer| sound && image.has(&format!("v1/layers/{}/durable", layer.stored_name())));
        let before: Vec<_> = durable.map(|layer| (layer.digest.clone(), stage.registry.sent(&layer.digest))).collect();
        self.mount(what, served, &served.reference);
        for (layer, sent) in before {
            assert_eq!(stage.registry.sent(&layer), sent, "{what}: {layer} was durable");
        }
    }

    fn mount(&self, what: &str, served: &Served, reference: &str) {
        let mount = self.host.try_mount_in(reference, &["--prefetch", "none"], &[self.steps.variable()]);
        let mount = mount.unwrap_or_else(|output| panic!("{what}: {output:#?}"));
        let (point, wanted, what) = (mount.point().to_owned(), of_tree(&served.kit.tree), what.to_owned());
        within(LIMIT, "reading everything", move || {
            let shown = std::panic::catch_unwind(|| assert_shows(&point, &wanted));
            assert!(shown.is_ok(), "after {what}");
        });
        mount.umount().ok();
    }
}

/// Runs a command on a cache that is all on disk, and cuts the power at each of its steps.
fn cut_at_each_step(name: &str, kind: usize, prepare: impl Fn(&Stage, &Served), arguments: impl Fn(&Served) -> Vec<String>) {
    let mut stage = Stage::new();
    stage.steps.timeless();
    stage.steps.boot("the first");
    let served = stage.serve(kind);
    // An empty folder, so that also the cache's own folders are made under way.
    fs::create_dir(stage.host.cache()).expect("a folder");
    fs::set_permissions(stage.host.cache(), fs::Permissions::from_mode(0o700)).expect("ours");
    prepare(&stage, &served);
    let mut disk = Disk::new(&stage.host.cache());
    let mut after = After::new();
    let (mut stops, mut turns) = (0_usize, Turns { last: disk.number(), changes: 0, damaged: Vec::new() });
    if ["damage", "withdrawn"].contains(&name) {
        turns.damaged = disk.outcome(Entries::Kept, Bytes::Kept).data();
    }
    stage.steps.forget();
    stage.steps.plan("* stop");
    let arguments = arguments(&served);
    let mut process = Running::start(&mut stage.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    while await_stop(&stage.steps, &mut process) {
        stops += 1;
        let (step, synced) = come_by(&stage.steps);
        disk.look(&stage.host.cache(), &synced);
        try_outcomes(&mut after, &format!("{name}, {step} (stop {stops})"), &stage, &served, &disk, &mut turns);
        stage.steps.clear();
        stage.steps.plan("* stop");
        process.signal(Signal::CONT);
    }
    stage.steps.clear();
    let output = process.wait(LIMIT);
    assert_eq!(output.code(), if name == "withdrawn" { 4 } else { 0 }, "{name}: {output:#?}");
    let (_, synced) = come_by(&stage.steps);
    disk.look(&stage.host.cache(), &synced);
    try_outcomes(&mut after, &format!("{name}, the end"), &stage, &served, &disk, &mut turns);
    assert!(stops > 20, "{name}: only {stops} stops");
    println!("{name}: {stops} stops, {} changes, {} outcomes", turns.changes, after.tried);
    for outcome in [Entries::Kept, Entries::Undone].map(|entries| disk.outcome(entries, Bytes::Kept)) {
        assert!(!outcome.holds(&turns.damaged), "{name}: what was withdrawn comes back");
    }
    if !["evict", "withdrawn"].contains(&name) {
        // It ended well, so all of it is on disk, and nobody need be asked.
        stage.registry.fault(Target::Any, Times::Always, Fault::status(503));
        let by_digest = format!("{}@{}", served.reference.trim_end_matches(":v1"), served.kit.digest());
        for (entries, bytes) in OUTCOMES.into_iter().filter(|(entries, _)| !matches!(entries, Entries::Mixed(_))) {
            disk.outcome(entries, bytes).write(&after.host.cache());
            after.mount(&format!("{name}, the end, {entries:?}, {bytes:?}, offline"), &served, &by_digest);
        }
    }
}

/// Which outcomes are tried next.
struct Turns {
    last: [u64; 2],
    changes: usize,
    /// What nobody may see.
    damaged: Vec<Arc<Vec<u8>>>,
}

fn try_outcomes(after: &mut After, what: &str, stage: &Stage, served: &Served, disk: &Disk, turns: &mut Turns) {
    let number = disk.number();
    if number == turns.last {
        return;
    }
    turns.last = number;
    turns.changes += 1;
    for (number, (entries, bytes)) in OUTCOMES.into_iter().enumerate() {
        if !is_thorough() && !turns.changes.is_multiple_of(EACH) || !is_thorough() && number != turns.changes / EACH % OUTCOMES.len() {
            continue;
        }
        // What is damaged, and whose change times do not tell, nobody sees. And no disk makes of one rename two.
        let (image, what) = (disk.outcome(entries, bytes), format!("{what}, {entries:?}, {bytes:?}"));
        if !image.holds(&turns.damaged) {
            after.assert_right(&what, stage, served, &image, !matches!(entries, Entries::Mixed(_)));
        }
    }
}

/// Waits until the process stands still; false if it has ended.
fn await_stop(steps: &Steps, process: &mut Running) -> bool {
    let until = Instant::now() + LIMIT;
    loop {
        if !process.is_running() {
            return false;
        }
        if steps.fired() && is_stopped(process.pid()) {
            return true;
        }
        assert!(Instant::now() < until, "it neither ends nor comes by a step");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Whether every thread of a process has come to a stop.
fn is_stopped(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a child").flatten();
    let state = |path: std::path::PathBuf| fs::read_to_string(path.join("status")).unwrap_or_default();
    tasks.map(|task| state(task.path())).all(|status| status.contains("\nState:\tT (stopped)"))
}

/// The step that it stands at, and what was synced since the last time.
fn come_by(steps: &Steps) -> (String, Vec<u64>) {
    let lines = steps.lines();
    steps.forget();
    let synced: BTreeSet<_> = lines.iter().filter(|(name, _)| name == "+synced").map(|(_, inode)| *inode).collect();
    let step = lines.iter().rev().find(|(name, _)| name != "+synced").map(|(name, _)| name.clone());
    (step.unwrap_or_default(), synced.into_iter().collect())
}

fn whole(stage: &Stage, served: &Served) {
    stage.pull(served).ok();
}

#[test]
fn a_power_cut_in_a_pull_of_archives() {
    cut_at_each_step("archives", 0, |_, _| {}, |served| owned(&pull(served)));
}

#[test]
fn a_power_cut_in_a_pull_of_raw_files() {
    cut_at_each_step("raw", 2, |_, _| {}, |served| owned(&pull(served)));
}

#[test]
fn a_power_cut_in_an_eviction() {
    cut_at_each_step("evict", 1, whole, |_| owned(&["cache", "prune", "--all"]));
}

#[test]
fn a_power_cut_in_the_repair_of_an_index() {
    let damaged = |stage: &Stage, served: &Served| {
        whole(stage, served);
        damage_indexes(stage, served);
    };
    cut_at_each_step("index", 0, damaged, |served| owned(&pull(served)));
}

#[test]
fn a_power_cut_in_the_repair_of_a_layer() {
    let damaged = |stage: &Stage, served: &Served| {
        whole(stage, served);
        damage_layers(stage, served);
    };
    cut_at_each_step("damage", 4, damaged, |served| owned(&["verify", "--repair", "--plain-http", &served.reference]));
}

/// Who was told that a layer is damaged and withdrawn does not find it again.
#[test]
fn a_power_cut_does_not_bring_a_withdrawn_layer_back() {
    let damaged = |stage: &Stage, served: &Served| {
        whole(stage, served);
        damage_layers(stage, served);
    };
    cut_at_each_step("withdrawn", 0, damaged, |served| owned(&["verify", "--plain-http", &served.reference]));
}

/// Two cuts: what the first one left is verified, and the second one comes meanwhile.
#[test]
fn a_power_cut_in_the_verification_after_a_power_cut() {
    let cut = |stage: &Stage, served: &Served| {
        stage.killed_at("durable:begin", &pull(served));
        stage.steps.boot("the second");
    };
    cut_at_each_step("boot", 0, cut, |served| owned(&pull(served)));
}
