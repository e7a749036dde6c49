//! The cache between processes, which may die anywhere.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use kitfs::store::{LayerState, Store, Verdict};
use tokio::sync::Semaphore;

use crate::bench::{Bench, ensure, listing};
use crate::sample::{plain, read_all};
use crate::scripted::{Scripted, Step};

/// Another process: this test binary, running [`another_process`].
pub struct Other {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Other {
    /// Fetches the plain sample with this seed; `gate` makes it stop for ever after so many bytes.
    pub fn start(bench: &Bench, seed: u64, gate: Option<usize>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("ourselves"));
        command.args(["--exact", "processes::another_process", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("STORE_TEST_CACHE", bench.cache()).env("STORE_TEST_SEED", seed.to_string());
        command.env("STORE_TEST_GATE", gate.map(|at| at.to_string()).unwrap_or_default());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// Waits for what it has to say.
    pub fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).expect("readable") > 0, "it ended without a word");
            // The harness does not end its own line before the test begins to print.
            if let Some((_, said)) = line.split_once("STORE: ") {
                return said.trim().to_owned();
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
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
