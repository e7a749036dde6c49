//! The life of a mount, with real mounts and a worker that misbehaves as it is told.
//!
//! The supervisor is the library's; it starts its own program anew for a worker, so this program is three: the tests, the supervisor and the worker. That is
//! why it has no harness: `main` has to look at its arguments first. Needs root and `/dev/fuse`.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout, clippy::print_stderr)]

mod mount;
mod server;
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The longest test takes 40 s.
const LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("__supervisor") => mount::supervise(&arguments[1..]),
        Some("__worker") => server::run(&arguments[1..]),
        _ => run_tests(&arguments),
    }
}

/// What cargo's own harness does, as far as it is needed here: filters, `--list`, and several tests at once.
fn run_tests(arguments: &[String]) -> ExitCode {
    // The number of threads is not for us to choose: the tests count on six.
    let (options, filters): (Vec<&str>, Vec<&str>) = arguments.iter().map(String::as_str).partition(|argument| argument.starts_with('-'));
    let filters: Vec<&str> =
        filters.into_iter().filter(|filter| !(options.contains(&"--test-threads") && filter.parse::<u32>().is_ok())).collect();
    let wanted = |name: &&(&str, fn())| filters.is_empty() || filters.iter().any(|filter| name.0.contains(filter));
    let tests: Vec<&(&str, fn())> = tests::ALL.iter().filter(wanted).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // Whoever starts a process while another test's worker is stopped can be held up: the child has that test's files, too, until it becomes its program.
    let (alone, together): (Vec<_>, Vec<_>) = tests.iter().copied().partition(|(name, _)| tests::ALONE.contains(name));
    let next = AtomicUsize::new(0);
    let (failed, running) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let one = |(name, test): &(&'static str, fn())| {
        let begun = Instant::now();
        running.lock().expect("no panic").insert(*name, begun);
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        running.lock().expect("no panic").remove(name);
        println!("test {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, begun.elapsed());
        if !passed {
            failed.lock().expect("no panic").push(*name);
        }
    };
    let (over, watch) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // A test may wait in the kernel for something that never comes, where no panic reaches it.
        let running = &running;
        scope.spawn(move || {
            while watch.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                let running = running.lock().expect("no panic");
                if let Some((name, _)) = running.iter().find(|(_, begun): &(_, &Instant)| begun.elapsed() > LIMIT) {
                    println!("test {name} ... FAILED: it hangs for {LIMIT:?}");
                    std::process::exit(1);
                }
            }
        });
        thread::scope(|scope| {
            // Most of the time they wait.
            for _ in 0..6.min(together.len()) {
                scope.spawn(|| {
                    while let Some(test) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                        one(test);
                    }
                });
            }
        });
        alone.iter().for_each(one);
        drop(over);
    });
    let failed = failed.into_inner().expect("no panic");
    println!("{} passed; {} failed {failed:?}", tests.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
