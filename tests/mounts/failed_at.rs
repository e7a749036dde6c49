//! Failed at each named step of the store: what it was and where is said, nobody gets a wrong byte, and the same command or mount goes on when it is over.
//!
//! Every step of [`killed_at::TABLE`] is failed, but for the few in [`NOT_FAILED`]. The scenarios are those of `killed_at`, and a step is failed in the first of
//! them that has it, with one of the errnos that its call can return. `KITFS_TEST_THOROUGH=1` fails the steps of each scenario with each of them.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use crate::common::kitfs::{Host, Mode};
use crate::common::process::{Output, run};
use crate::common::registry::Registry;
use crate::common::steps::Steps;
use crate::disk::{assert_clean, restarts, try_read};
use crate::killed_at::{SCENARIOS, Scenario, TABLE, as_text, assert_named, is_thorough, kind_for, named_in_code, steps_of};
use crate::kits::{MIB, parts};
use crate::stage::{ARCHIVE, Stage};

/// Longer than any error may take to come, and any wait after it.
const LIMIT: Duration = Duration::from_secs(60);

/// Steps of a worker that no command comes by.
const OF_A_WORKER: [&str; 1] = ["read:served"];

/// Steps that a process comes by for the first layer only.
const ONCE_A_PROCESS: [&str; 2] = ["sync:shelves", "sync:top"];

/// Steps that are not failed, and why; points between two calls apart, where nothing can fail.
const NOT_FAILED: [(&str, &str); 4] = [
    ("stat:begun", "only who counts an ingest that another process is at comes by, and only in the moment that the file is there"),
    ("stat:scratch", "the same"),
    ("stat:new-index", "the same"),
    ("stat:new-document", "the same, of a document"),
];

/// Steps that a command can do without, so that it ends well: what is told to others, what is looked at only to remove it, what is found out about the
/// filesystem, and what is read instead of being fetched or made again.
const DONE_WITHOUT: [&str; 29] = [
    "read:progress",
    "write:progress",
    "touch:use-lock",
    "chmod:durable",
    "sync:durable",
    "list:trash",
    "rename:trash",
    "rmdir:ingest",
    "lock:look-ingest-lock",
    "list:documents",
    "list:references",
    "stat:reference",
    "list:attached",
    "open:attached",
    "stat:attached",
    "read:attached",
    "rename:attached",
    "lock:attached",
    "open:attached-lock",
    "mkdir:probe",
    "create:probe",
    "open:probe",
    "write:probe",
    "stat:probe",
    "rename:probe",
    "unlink:probe",
    "rmdir:probe",
    "read:begun",
    "read:index",
];

/// Steps that are come by only after another one failed: scenario, what fails first and what then.
const AFTER_ANOTHER: [(&str, &str, &str); 3] = [
    ("pull", "write:new-document", "unlink:new-document"),
    ("limits", "write:new-limit", "unlink:new-limit"),
    // What could not be removed is left for whoever cleans up to find.
    ("limits", "write:new-limit", "open:new-limit"),
];

const FULL: [(&str, i32); 4] = [("ENOSPC", libc::ENOSPC), ("EDQUOT", libc::EDQUOT), ("EIO", libc::EIO), ("EROFS", libc::EROFS)];
const OPENING: [(&str, i32); 6] = [FULL[0], FULL[1], FULL[2], FULL[3], ("EMFILE", libc::EMFILE), ("ENFILE", libc::ENFILE)];
const LOCKING: [(&str, i32); 2] = [("EIO", libc::EIO), ("ENOLCK", libc::ENOLCK)];

/// The errnos of a disk in trouble that the call of a step can return.
fn errnos(step: &str) -> &'static [(&'static str, i32)] {
    match step.split(':').next().expect("a call") {
        "open" | "create" | "reopen" | "map" | "list" => &OPENING,
        "lock" => &LOCKING,
        "read" | "stat" | "statfs" => &FULL[2..3],
        "mkdir" | "rename" | "unlink" | "rmdir" | "write" | "sync" | "truncate" | "reserve" | "chmod" | "touch" => &FULL,
        call => panic!("a call that this test does not know: {call}"),
    }
}

/// How often all is done.
fn rounds() -> usize {
    if is_thorough() { OPENING.len() } else { 1 }
}

/// The one that a step is failed with: another one for each `number`, and in each round; none when it had all of them.
fn chosen(step: &str, number: usize, round: usize) -> Option<(&'static str, i32)> {
    let errnos = errnos(step);
    (round < errnos.len()).then(|| errnos[(number + round) % errnos.len()])
}

fn points() -> BTreeSet<String> {
    named_in_code("point")
}

/// The steps of the table that are failed in this scenario: those that it is the first to have.
fn assigned(scenario: &Scenario) -> Vec<&'static str> {
    let mut left: BTreeSet<String> = points();
    left.extend(NOT_FAILED.map(|(step, _)| step.to_owned()));
    for earlier in SCENARIOS.iter().take_while(|earlier| earlier.name != scenario.name) {
        left.extend(steps_of(earlier.name).into_iter().map(str::to_owned));
    }
    steps_of(scenario.name).into_iter().filter(|step| !left.contains(*step)).collect()
}

/// A command that could not do without what failed says what it was and where.
fn assert_told(step: &str, (errno, value): (&str, i32), output: &Output) {
    let cause = io::Error::from_raw_os_error(value).to_string();
    assert_eq!(output.code(), 1, "{step} {errno}: {output:#?}");
    assert!(output.stderr.contains(&cause) || output.stderr.contains("withdrawn"), "{step} {errno}: {output:#?}");
    assert!(output.stderr.contains("/cache") || output.stderr.contains("sha256:"), "{step} {errno}: {output:#?}");
}

/// Fails the commands of scenarios at each of their steps.
fn failed_in(fits: impl Fn(&str) -> bool) {
    for round in 0..rounds() {
        SCENARIOS.iter().filter(|scenario| fits(scenario.name)).for_each(|scenario| failed_once(scenario, round));
    }
}

fn failed_once(scenario: &Scenario, round: usize) {
    let name = scenario.name;
    let (points, assigned) = (points(), assigned(scenario));
    let steps = match is_thorough() {
        true => steps_of(name).into_iter().filter(|step| !points.contains(*step)).collect(),
        false => assigned.clone(),
    };
    if steps.is_empty() {
        return;
    }
    let mut stage = Stage::new();
    // What costs least is enough where it comes by all of them, but for pulls, of which some are of other kits.
    let mut traces = scenario.traces(&mut stage, &[ARCHIVE]);
    let simple = traces[0].1.clone();
    let is_simple = |step: &str| simple.iter().any(|passed| passed == step);
    if is_thorough() || name == "pull" || !steps.iter().all(|step| is_simple(step)) {
        traces = scenario.traces(&mut stage, scenario.kinds);
    }
    let mut refused = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let Some(errno) = chosen(step, number, round) else { continue };
        let kind = match number % 4 != 3 && !is_thorough() && is_simple(step) {
            true => ARCHIVE,
            false => kind_for(name, step, number + round, &traces),
        };
        // What several layers at once come by is chance to some degree.
        let ended = (0..3).find_map(|_| {
            let (served, arguments) = scenario.begin(&mut stage, kind);
            stage.steps.forget();
            stage.steps.plan(&format!("{step} {}\n", errno.0));
            let output = stage.kitfs(&as_text(&arguments));
            stage.steps.clear();
            stage.steps.trace().iter().any(|passed| passed == step).then_some((served, output))
        });
        let (served, output) = ended.unwrap_or_else(|| panic!("{name}: nobody came by {step}"));
        // What others than the first scenario can do without is not written down, and whether one can may depend on the errno.
        let without = DONE_WITHOUT.contains(&step);
        assert!(output.code() != 0 || without || !assigned.contains(&step), "{name}: {step} {}: {output:#?}", errno.0);
        assert!(output.code() == 0 || !without || is_thorough(), "{name}: {step} {}: {output:#?}", errno.0);
        if output.code() != 0 {
            assert_told(step, errno, &output);
            refused.push(served.reference);
        }
    }
    // It is over: whatever was not done is done now. What the scenario itself damaged shows when it is read, and goes.
    if name == "damage" {
        run(&mut stage.command(&["verify", "--all"]), 5 * LIMIT);
    }
    for some in refused.chunks(32) {
        let all = [&["pull", "--plain-http"][..], &some.iter().map(String::as_str).collect::<Vec<_>>()].concat();
        run(&mut stage.command(&all), 5 * LIMIT).ok();
    }
    run(&mut stage.command(&["verify", "--all"]), 5 * LIMIT).ok();
    stage.assert_clean(name);
}

/// Each step on the way of a kit into the cache.
#[test]
fn every_step_of_a_pull_may_fail() {
    failed_in(|name| name == "pull");
}

/// The steps that the others have beside: what is resumed, evicted, repaired, looked at after a boot, limited and pinned.
#[test]
fn every_other_step_of_a_command_may_fail() {
    failed_in(|name| name != "pull");
}

/// Steps that nobody comes by unless something went wrong before.
#[test]
fn what_is_done_after_a_failure_may_fail_too() {
    for (name, first, then) in AFTER_ANOTHER {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario");
        let errnos = errnos(then);
        for errno in if is_thorough() { errnos } else { &errnos[..1] } {
            let mut stage = Stage::new();
            let (served, arguments) = scenario.begin(&mut stage, ARCHIVE);
            let left = if then.starts_with("unlink:") { then.to_owned() } else { then.replace("open:", "unlink:") };
            stage.steps.plan(&format!("{first} EIO\n{left} {}\n", errno.0));
            stage.steps.forget();
            stage.kitfs(&as_text(&arguments));
            if left != then {
                stage.steps.plan(&format!("{then} {}\n", errno.0));
                stage.kitfs(&["cache", "prune"]);
            }
            assert!(stage.steps.trace().iter().any(|step| step == then), "nobody came by {then}");
            stage.steps.clear();
            stage.pull(&served).ok();
            stage.kitfs(&["verify", "--all"]).ok();
            stage.assert_clean(then);
        }
    }
}

/// What the tests here fail is all that there is.
#[test]
fn every_step_of_the_table_is_failed() {
    let mut failed: BTreeSet<&str> = SCENARIOS.iter().flat_map(assigned).collect();
    failed.extend(AFTER_ANOTHER.map(|(_, _, step)| step));
    failed.extend(OF_A_WORKER);
    let points = points();
    let not_failed = NOT_FAILED.map(|(step, _)| step);
    let all: BTreeSet<&str> = TABLE.iter().flat_map(|(_, steps)| steps.split_whitespace()).collect();
    let forgotten: Vec<_> =
        all.iter().filter(|step| !failed.contains(**step) && !not_failed.contains(step) && !points.contains(**step)).collect();
    assert!(forgotten.is_empty(), "steps that no test fails: {forgotten:?}");
    let strange: Vec<_> =
        failed.iter().filter(|step| not_failed.contains(step) || points.contains(**step) || !all.contains(**step)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    failed.into_iter().for_each(|step| assert!(!errnos(step).is_empty()));
}

/// What a reader hears if the worker hears this.
fn heard(errno: i32) -> i32 {
    if matches!(errno, libc::EROFS | libc::ENOLCK) { libc::EIO } else { errno }
}

/// Waits until a process has come by a step; false if none does for a while.
fn await_step(steps: &Steps, name: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while !steps.trace().iter().any(|other| other == name) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Each step on the way of a layer to a reader fails once, each with another errno.
#[test]
fn every_step_of_a_worker_may_fail() {
    (0..rounds()).for_each(fails_in_a_worker);
}

fn fails_in_a_worker(round: usize) {
    // Not by passthrough, so that the worker reads, too.
    let host = Host::new(Mode::Cached);
    let registry = Registry::start();
    let steps = Steps::new(host.folder("steps"));
    let labels: Vec<String> = (0..110).map(|number| format!("part-{number:03}")).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let kit = parts(&labels, MIB + 1000);
    let reference = kit.serve(&registry, "acme/kit", "v1");
    let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &[steps.variable()]).expect("a mount");
    let worker = mount.worker_pid();
    let file = |number: usize| format!("{}/part.bin", labels[number]);
    // The way as it is.
    steps.forget();
    assert!(try_read(&mount, &file(0)).is_ok());
    assert!(await_step(&steps, "sync:durable"));
    let points = points();
    let mut names: Vec<String> = Vec::new();
    for (name, process) in steps.lines() {
        if !name.starts_with('+') && process == worker as u64 && !names.contains(&name) && !points.contains(&name) {
            names.push(name);
        }
    }
    assert_named("a worker", &names);
    assert!(names.len() > 60 && names.len() < labels.len(), "{names:?}");
    assert!(OF_A_WORKER.iter().all(|name| names.iter().any(|other| other == name)), "{names:?}");
    // Those that a process comes by once need another process each time, so they come last.
    let (mut names, once): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| !ONCE_A_PROCESS.contains(&name.as_str()));
    assert_eq!(once.len(), ONCE_A_PROCESS.len(), "{once:?}");
    let often = names.len();
    names.extend(once);
    let (mut failed, mut killed) = (Vec::new(), 0);
    for (number, name) in names.iter().enumerate() {
        if number == often {
            assert_eq!((mount.worker_pid(), restarts(&mount)), (worker, 0));
        }
        let Some((errno, value)) = chosen(name, number, round) else { continue };
        if number >= often {
            mount.await_other_worker(mount.kill_worker());
            killed += 1;
        }
        steps.forget();
        steps.plan(&format!("{name} {errno}\n"));
        match try_read(&mount, &file(number + 1)) {
            Ok(content) => assert!(content == kit.tree.content(&file(number + 1)), "{name} {errno}"),
            Err(error) => {
                assert_eq!(error, heard(value), "{name} {errno}\n{}", mount.log());
                failed.push(name);
            }
        }
        assert!(await_step(&steps, name), "nobody came by {name}");
        steps.clear();
    }
    assert!(failed.len() > 40 || round > 0, "{failed:?}");
    for number in 0..names.len() + 1 {
        let until = Instant::now() + LIMIT;
        while try_read(&mount, &file(number)).map(|content| assert!(content == kit.tree.content(&file(number)))).is_err() {
            assert!(Instant::now() < until, "{} does not come back\n{}", file(number), mount.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    assert_eq!(restarts(&mount), killed);
    mount.umount().ok();
    assert_clean(&host);
}
