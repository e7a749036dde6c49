//! Killed at each named step of the store: whoever comes after finds nothing wrong, leaves nothing behind, and fetches nothing that was here.
//!
//! [`TABLE`] names every step that the code has, with the scenario in which a process is killed at it; a step that is come by and not in it fails the test,
//! and so does one that nobody comes by. `KITFS_TEST_THOROUGH=1` kills at every step of every scenario, when it is come by first and last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::pack::{Kitfile, Tree};
use crate::common::process::{Running, within};
use crate::common::registry::{Fault, Gate, Target, Times};
use crate::common::shown::read;
use crate::kits::{MIB, bytes};
use crate::stage::{ARCHIVE, Served, Stage, damage_indexes, damage_layers, name_of, pull};

/// The kinds that have another layer, too.
const KINDS: &[usize] = &[0, 1, 2, 3, 4];

const LIMIT: Duration = Duration::from_secs(90);

/// Scenarios, and the steps at which a process is killed in each.
pub const TABLE: &[(&str, &str)] = &[
    (
        "pull",
        "chmod:data chmod:durable chmod:new-document chmod:new-index chmod:pack chmod:visible create:begun create:data \
         create:durable create:new-document create:new-index create:pack create:probe create:scratch create:visible \
         durable:begin fetch:chunk fetch:mine ingest:end ingest:placed list:ingests list:layer list:layers list:locks \
         list:trash lock:attached lock:decision lock:evict lock:ingest lock:ingest-lock lock:look-ingest-lock lock:use \
         lock:use-exclusive lock:visible map:index map:new-index map:scratch mkdir:ingest mkdir:probe mkdir:shelf open:attached \
         open:attached-lock open:data open:decision-lock open:document open:evict-lock open:index open:ingest open:ingest-lock \
         open:layer open:limit open:new-document open:new-index open:pack open:probe open:reference open:shelf open:use-lock \
         open:visible read:progress rename:attached rename:document rename:index rename:layer rename:probe rename:reference \
         reserve:data rmdir:probe stat:data stat:document stat:durable stat:ingest stat:layer stat:pack stat:pin \
         stat:use-lock stat:visible statfs:cache sync:attached sync:document sync:documents sync:durable sync:index \
         sync:indexes sync:layer sync:layers sync:references sync:stored sync:visible touch:use-lock truncate:new-index \
         unlink:begun unlink:probe unlink:scratch write:begun write:data write:index-checksums write:index-header \
         write:new-document write:new-index write:pack write:probe write:progress write:scratch write:visible sync:shelves \
         sync:top lock:draft stat:probe list:attached list:documents list:references stat:attached stat:reference",
    ),
    (
        "resume",
        "open:begun read:attached read:begun read:data read:document read:pack read:reference read:visible reopen:data \
         reopen:pack sync:data sync:pack truncate:data truncate:pack unlink:new-index unlink:visible ingest:end write:data \
         unlink:scratch rename:index rename:layer ingest:placed",
    ),
    (
        "evict",
        "evict:away evict:chosen open:trash rename:trash rmdir:trash unlink:data unlink:durable unlink:pack lock:use-exclusive \
         lock:decision list:top",
    ),
    (
        "index",
        "read:index recheck:begin recheck:sound rmdir:ingest create:begun write:new-index map:new-index chmod:new-index \
         read:data rename:index",
    ),
    (
        "damage",
        "withdraw:begin recheck:begin rename:trash unlink:data unlink:pack unlink:durable rmdir:trash write:data rename:layer \
         create:durable",
    ),
    (
        "boot",
        "sync:pack sync:data mkdir:ingest read:pack rename:index recheck:sound sync:visible sync:index sync:layers \
         create:durable sync:durable",
    ),
    ("sync", "lock:visible durable:begin sync:pack sync:data read:pack sync:index create:durable chmod:durable sync:durable"),
    ("limits", "create:new-limit open:pin read:limit rename:limit sync:new-limit sync:pins write:new-limit stat:new-limit"),
    ("unpin", "list:pins unlink:pin"),
    ("wait", "read:progress lock:ingest-lock fetch:mine reopen:pack rename:layer"),
    ("suspend", "ingest:suspend"),
    ("worker", "read:served"),
    // What only chance brings by.
    ("sometimes", "stat:begun stat:new-index stat:scratch stat:new-document open:new-limit unlink:new-limit unlink:new-document"),
];

pub fn is_thorough() -> bool {
    std::env::var_os("KITFS_TEST_THOROUGH").is_some()
}

/// Where a scenario kills, with the kind of kit: at the steps of the table, or at all that were come by, each the first and the last time. `traces` are those of all kinds.
fn plan(name: &str, traces: &[(usize, Vec<String>)]) -> Vec<(usize, String)> {
    let mine = steps_of(name);
    traces.iter().for_each(|(_, trace)| assert_named(name, trace));
    if !is_thorough() {
        return mine.into_iter().enumerate().map(|(number, step)| (kind_for(name, step, number, traces), step.to_owned())).collect();
    }
    let mut all = Vec::new();
    for (kind, trace) in traces {
        let kind = *kind;
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for step in trace {
            *times.entry(step).or_default() += 1;
        }
        all.extend(times.keys().map(|step| (kind, (*step).to_owned())));
        all.extend(times.iter().filter(|(_, times)| **times > 1).map(|(step, times)| (kind, format!("{step}@{times}"))));
    }
    all
}

/// The kind of kit with which somebody comes by the step; another one for each `number`, if there are several.
pub fn kind_for(name: &str, step: &str, number: usize, traces: &[(usize, Vec<String>)]) -> usize {
    let mut rotated = traces.iter().cycle().skip(number).take(traces.len());
    let found = rotated.find(|(_, trace)| trace.iter().any(|passed| passed == step));
    found.unwrap_or_else(|| panic!("{name}: nobody comes by {step}")).0
}

pub fn steps_of(name: &str) -> Vec<&'static str> {
    TABLE.iter().find(|(scenario, _)| *scenario == name).expect("in the table").1.split_whitespace().collect()
}

/// Every step that was come by is in the table.
pub fn assert_named(name: &str, trace: &[String]) {
    let all: BTreeSet<&str> = TABLE.iter().flat_map(|(_, steps)| steps.split_whitespace()).collect();
    let unnamed: BTreeSet<_> = trace.iter().filter(|step| !all.contains(step.as_str())).collect();
    assert!(unnamed.is_empty(), "{name}: steps that are not in the table: {unnamed:?}");
}

/// What is there before, and the command that comes by the steps. Of each kit once.
pub struct Scenario {
    pub name: &'static str,
    pub kinds: &'static [usize],
    prepare: fn(&Stage, &Served),
    arguments: fn(&Served) -> Vec<String>,
}

/// Those that are a command; others are made by hand below.
pub const SCENARIOS: [Scenario; 9] = [
    Scenario { name: "pull", kinds: KINDS, prepare: |_, _| {}, arguments: |served| owned(&pull(served)) },
    // What the first one left behind is gone on with.
    Scenario {
        name: "resume",
        kinds: &[ARCHIVE],
        prepare: |stage, served| stage.killed_at("write:data@2", &pull(served)),
        arguments: |served| owned(&pull(served)),
    },
    Scenario {
        name: "evict",
        kinds: KINDS,
        prepare: |stage, served| drop(stage.pull(served).ok()),
        arguments: |_| owned(&["cache", "prune", "--all"]),
    },
    // An index that is lost or damaged is made anew from what is here.
    Scenario {
        name: "index",
        kinds: KINDS,
        prepare: |stage, served| {
            stage.pull(served).ok();
            damage_indexes(stage, served);
        },
        arguments: |served| owned(&pull(served)),
    },
    // A layer that is not what it was is withdrawn and fetched again.
    Scenario {
        name: "damage",
        kinds: KINDS,
        prepare: |stage, served| {
            stage.pull(served).ok();
            damage_layers(stage, served);
        },
        arguments: |served| owned(&["verify", "--repair", "--plain-http", &served.reference]),
    },
    // What was stored in another boot and never synced is verified before it is used.
    Scenario {
        name: "boot",
        kinds: KINDS,
        prepare: |stage, served| {
            stage.killed_at("durable:begin", &pull(served));
            stage.steps.boot(&format!("boot of {}", name_of(served)));
        },
        arguments: |served| owned(&pull(served)),
    },
    // What was stored in this boot and not synced by whoever did is synced by the next one.
    Scenario {
        name: "sync",
        kinds: KINDS,
        prepare: |stage, served| stage.killed_at("durable:begin", &pull(served)),
        arguments: |served| owned(&pull(served)),
    },
    // Pins and limits, another limit each time.
    Scenario {
        name: "limits",
        kinds: KINDS,
        prepare: |stage, served| drop(stage.pull(served).ok()),
        arguments: |served| {
            let number: u64 = name_of(served).trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().expect("a number");
            owned(&["pull", "--plain-http", "--pin", "--cache-size", &format!("{}GiB", 20 + number), &served.reference])
        },
    },
    Scenario {
        name: "unpin",
        kinds: KINDS,
        prepare: |stage, served| drop(stage.kitfs(&["pull", "--plain-http", "--pin", &served.reference]).ok()),
        arguments: |_| owned(&["cache", "unpin", "--all"]),
    },
];

impl Scenario {
    /// Prepares another kit, and says with which arguments the command is run.
    pub fn begin(&self, stage: &mut Stage, kind: usize) -> (Served, Vec<String>) {
        let served = stage.serve(kind);
        (self.prepare)(stage, &served);
        let arguments = (self.arguments)(&served);
        (served, arguments)
    }

    /// What the command comes by, for each of these kinds of kit, when nothing happens to it.
    pub fn traces(&self, stage: &mut Stage, kinds: &[usize]) -> Vec<(usize, Vec<String>)> {
        let trace_of = |&kind: &usize| {
            let (_, arguments) = self.begin(stage, kind);
            stage.steps.forget();
            stage.kitfs(&as_text(&arguments)).ok();
            (kind, stage.steps.trace())
        };
        kinds.iter().map(trace_of).collect()
    }
}

/// Kills the command of a scenario at each of its steps.
fn killed_in(name: &str) {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario");
    let mut stage = Stage::new();
    let traces = scenario.traces(&mut stage, scenario.kinds);
    let by_chance = steps_of("sometimes");
    for (number, (kind, step)) in plan(name, &traces).into_iter().enumerate() {
        // What several layers at once come by is chance to some degree, and how often something happens even more.
        let tries = if step.contains('@') { 1 } else { 3 };
        let Some((served, arguments)) = (0..tries).find_map(|_| {
            let (served, arguments) = scenario.begin(&mut stage, kind);
            stage.try_killed_at(&step, &as_text(&arguments)).then_some((served, arguments))
        }) else {
            assert!(step.contains('@') || by_chance.contains(&step.as_str()), "{name}: nobody came by {step}");
            continue;
        };
        // What is damaged is as good as not here, and only whoever reads all of it sees that it is.
        let complete = if name == "damage" {
            stage.kitfs(&as_text(&arguments)).ok();
            BTreeMap::new()
        } else {
            stage.complete(&served.kit)
        };
        // `verify` reads every byte each time; what a mount shows of them is the same.
        stage.assert_whole(&step, &served, &complete, is_thorough() || number % 4 == 0);
    }
    assert_named(name, &stage.steps.trace());
}

pub fn as_text(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

pub fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

#[test]
fn a_killed_pull() {
    killed_in("pull");
}

#[test]
fn a_killed_resumption() {
    killed_in("resume");
}

#[test]
fn a_killed_eviction() {
    killed_in("evict");
}

#[test]
fn a_killed_repair_of_an_index() {
    killed_in("index");
}

#[test]
fn a_killed_repair_of_a_layer() {
    killed_in("damage");
}

#[test]
fn a_killed_verification_after_a_boot() {
    killed_in("boot");
}

#[test]
fn a_killed_sync_for_another() {
    killed_in("sync");
}

#[test]
fn a_killed_change_of_a_limit() {
    killed_in("limits");
}

#[test]
fn a_killed_change_of_a_pin() {
    killed_in("unpin");
}

/// The source fails in the middle, and who puts away what came is killed at it.
#[test]
fn a_killed_suspension() {
    let mut stage = Stage::new();
    for step in steps_of("suspend") {
        let served = stage.serve(ARCHIVE);
        let layer = Target::Content(served.kit.layers[0].digest.clone());
        stage.registry.fault(layer.clone(), Times::First(1), Fault::Cut(2 * MIB as u64));
        stage.registry.fault(layer, Times::Always, Fault::status(404));
        stage.killed_at(step, &pull(&served));
        stage.registry.mend();
        stage.assert_whole(step, &served, &BTreeMap::new(), true);
    }
}

/// The steps that the code names in calls of `call`, which is `step` or `point`.
pub fn named_in_code(call: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(next) = open.pop() {
        if next.is_dir() {
            open.extend(fs::read_dir(next).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if !next.ends_with("rehearsal/steps.rs") {
            let text = fs::read_to_string(next).expect("a source");
            let named_call = format!("{call}(\"");
            let names = text.split(&named_call).skip(1).filter_map(|rest| rest.split('"').next());
            named.extend(names.filter(|name| name.contains(':')).map(str::to_owned));
        }
    }
    assert!(named.len() > 8, "the looking is broken: {named:?}");
    named
}

/// What the code names is in the table, whether somebody came by it or not.
#[test]
fn every_step_of_the_code_is_in_the_table() {
    assert_named("the code", &["step", "point"].map(named_in_code).into_iter().flatten().collect::<Vec<_>>());
}

/// Who waits for another process, and goes on where that one was killed, is killed at it.
#[test]
fn a_killed_waiter() {
    let (name, mut stage) = ("wait", Stage::new());
    for step in steps_of(name) {
        let served = stage.serve(ARCHIVE);
        let layer = &served.kit.layers[0];
        let gate = Gate::new();
        stage.registry.fault(Target::Content(layer.digest.clone()), Times::First(1), Fault::HoldAt(MIB as u64, gate.clone()));
        let first = Running::start(&mut stage.host.command(&pull(&served)));
        gate.await_held(1);
        stage.steps.plan(&format!("{step} kill"));
        let second = Running::start(&mut stage.command(&pull(&served)));
        if !["read:progress", "lock:ingest-lock"].contains(&step) {
            // It waits, and then the first one is no more.
            let looked = || stage.steps.lines().iter().filter(|(step, pid)| step == "read:progress" && *pid == second.pid() as u64).count();
            await_that("it waits", || looked() >= 2);
            first.signal(rustix::process::Signal::KILL);
        }
        let output = second.wait(LIMIT);
        assert!(stage.steps.fired() && output.signal() == Some(9), "{step}: {output:#?}");
        stage.steps.clear();
        drop(first);
        gate.open();
        let complete = stage.complete(&served.kit);
        stage.assert_whole(step, &served, &complete, true);
    }
    assert_named(name, &stage.steps.trace());
}

/// The worker of a live mount is killed at every step of a fetch, and its readers notice nothing.
#[test]
fn a_killed_worker() {
    let (name, mut stage) = ("worker", Stage::new());
    let parts: Vec<String> = (0..120).map(|number| format!("part-{number}")).collect();
    let tree = parts.iter().enumerate().fold(Tree::new(), |tree, (number, part)| {
        let tree = tree.file(&format!("{part}/big.bin"), bytes(5000 + number as u64, MIB + number));
        tree.file(&format!("{part}/small.txt"), format!("small {number}"))
    });
    let kit = parts.iter().fold(Kitfile::new("parts"), |kitfile, part| kitfile.dataset(part)).pack(&tree);
    let served = stage.serve_kit(kit);
    let mount = stage.mount(&served);
    let show = |part: &str| {
        for file in ["big.bin", "small.txt"] {
            let (path, wanted) = (mount.path(&format!("{part}/{file}")), served.kit.tree.content(&format!("{part}/{file}")).to_vec());
            let got = within(LIMIT, "a read", move || read(&path));
            assert!(got.as_ref() == Ok(&wanted), "{part}/{file}: {:?}\n{}", got.map(|got| got.len()), mount.log());
        }
    };
    let mut parts = parts.iter();
    stage.steps.forget();
    let first = parts.next().expect("a part");
    show(first);
    let durable = |part: &str| stage.cache("layers").join(served.kit.layer(part).stored_name()).join("durable");
    await_that("a layer is durable", || durable(first).exists());
    let passed: BTreeSet<String> = stage.steps.trace().into_iter().collect();
    plan(name, &[(ARCHIVE, passed.iter().cloned().collect())]);
    for step in &passed {
        let part = parts.next().expect("as many parts as steps");
        // Those that a process comes by once: the one that is there may have, for a layer that was not safely on disk yet.
        if ["sync:shelves", "sync:top"].contains(&step.as_str()) {
            let old = mount.kill_worker();
            mount.await_other_worker(old);
        }
        stage.steps.plan(&format!("{step} kill"));
        show(part);
        stage.steps.await_fired(step);
        stage.steps.clear();
        show(part);
        let layer = served.kit.layer(part);
        assert!(stage.registry.sent(&layer.digest) <= 2 * layer.blob.len() as u64, "{step}");
    }
    let restarts = mount.status()["restarts"].as_u64();
    assert!(restarts.is_some_and(|restarts| restarts >= passed.len() as u64), "{restarts:?} for {} steps", passed.len());
    mount.umount().ok();
    drop(mount);
    assert_named(name, &stage.steps.trace());
    // Nobody waits for what was stored and not synced when it was killed: the next one to look for it does.
    stage.pull(&served).ok();
    stage.assert_clean(name);
}

pub fn await_that(what: &str, mut wanted: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !wanted() {
        assert!(Instant::now() < until, "{LIMIT:?} and not yet: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
