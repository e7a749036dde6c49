//! Each fault of a registry, what comes out of it, and how often it was asked.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use kitfs::registry::{Cut, Timing};
use kitfs::source::{Source as _, SourceError};

use super::client::{Came, MANY, ONE, content, descriptor, kind, open, options, read, timing};
use crate::common::registry::{Fault, Gate, ONCE, Registry, Target, Times};

const SIZE: u64 = 100_000;

/// What is expected of a fetch.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    /// The right bytes to the end.
    Right,
    /// So many bytes, right or wrong, and an orderly end: the check has to refuse them.
    Bytes(u64),
    /// An error of this kind.
    Error(&'static str),
}
use Expected::{Bytes, Error, Right};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_outcome() {
    let always = Times::Always;
    let status = Fault::status;
    // fault, how often, from which offset, what comes, how often the registry was asked over one connection
    let table: Vec<(Fault, Times, u64, Expected, usize)> = vec![
        (status(408), ONCE, 0, Right, 2),
        (status(429), Times::First(2), 0, Right, 3),
        (status(500), ONCE, 0, Right, 2),
        (status(503), ONCE, 50, Right, 2),
        (status(503), always, 0, Error("unavailable"), 3),
        (status(501), always, 0, Error("unavailable"), 1),
        (Fault::retry_after(503, 0), ONCE, 0, Right, 2),
        (Fault::retry_after(429, 31), always, 0, Error("unavailable"), 1),
        (status(404), always, 0, Error("not found"), 1),
        (status(410), always, 0, Error("not found"), 1),
        (status(403), always, 0, Error("denied"), 1),
        (status(401), always, 0, Error("denied"), 1),
        (status(418), always, 0, Error("protocol"), 1),
        (status(204), always, 0, Error("protocol"), 1),
        (status(304), always, 0, Error("protocol"), 1),
        (Fault::Reset, ONCE, 0, Right, 2),
        (Fault::Reset, always, 0, Error("unavailable"), 3),
        (Fault::ResetAt(50_000), ONCE, 0, Right, 2),
        (Fault::Cut(50_000), ONCE, 0, Right, 2),
        (Fault::Cut(50_000), always, 0, Error("unavailable"), 3),
        (Fault::Cut(50_000), always, 50_000, Error("unavailable"), 3),
        (Fault::Slow(2_000_000), always, 0, Right, 1),
        (Fault::Flip(70_000), always, 0, Bytes(SIZE), 1),
        (Fault::Swap(vec![7; SIZE as usize]), always, 0, Bytes(SIZE), 1),
        (Fault::Append(vec![7; 9]), always, 0, Bytes(SIZE + 1), 1),
        (Fault::Append(vec![7; 9]), always, 99_990, Bytes(11), 1),
        (Fault::Truncate(50_000), ONCE, 0, Right, 2),
        (Fault::Truncate(50_000), always, 0, Bytes(50_000), 2),
        (Fault::Truncate(50_000), always, 60_000, Bytes(0), 2),
        (Fault::Truncate(0), always, 0, Bytes(0), 2),
        (Fault::WrongLength(-10), ONCE, 0, Right, 2),
        (Fault::WrongLength(-10), always, 0, Error("protocol"), 3),
        (Fault::WrongLength(-10), always, 10, Error("protocol"), 3),
        (Fault::IgnoreRange, always, 40_000, Right, 1),
        (Fault::WrongRange, ONCE, 40_000, Right, 2),
        (Fault::WrongRange, always, 40_000, Error("protocol"), 3),
        (Fault::NoContentRange, ONCE, 40_000, Right, 2),
        (Fault::NoContentRange, always, 40_000, Error("protocol"), 3),
        (Fault::LyingRange, always, 40_000, Bytes(60_000), 1),
        (Fault::RedirectLoop, always, 0, Error("protocol"), 11),
        (Fault::RedirectTo("ftp://127.0.0.1/x".into()), always, 0, Error("unavailable"), 1),
        (Fault::RedirectTo("http://[::1".into()), always, 0, Error("protocol"), 1),
    ];
    let content = content(SIZE as usize);
    let wanted = descriptor(&content);
    for (fault, times, from, expected, asked) in table {
        for cut in [ONE, MANY] {
            let registry = Registry::start();
            let digest = registry.blob(content.clone());
            registry.fault(Target::Ask(digest.clone()), times, fault.clone());
            let case = format!("{fault:?} {times:?} from {from}, {cut:?}");
            let came = read(&open(&registry.host(), ":v1", &options(cut)), &wanted, &content, from).await;
            match (expected, &came) {
                (Right, Came { bytes, right: true, error: None }) => assert_eq!(*bytes, SIZE - from, "{case}"),
                // Without ranges all the surplus is in one answer, with them only where the last one ends: the first byte of it is enough.
                (Bytes(count), Came { bytes, error: None, .. }) => assert_eq!(*bytes, count, "{case}"),
                (Error(expected), Came { right: true, error: Some(error), .. }) => assert_eq!(kind(error), expected, "{case}: {error:?}"),
                _ => panic!("{case}: expected {expected:?}, got {came:?}"),
            }
            if cut == ONE {
                let log = registry.log();
                assert_eq!(log.iter().filter(|request| request.path.ends_with(&digest)).count(), asked, "{case}: {log:#?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_on_where_it_broke_off() {
    let content = content(SIZE as usize);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.fault(Target::Content(digest), ONCE, Fault::Cut(50_000));
    let came = read(&open(&registry.host(), ":v1", &options(ONE)), &descriptor(&content), &content, 0).await;
    assert!(came.right && came.error.is_none(), "{came:?}");
    let ranges: Vec<_> = registry.log().into_iter().map(|request| request.range).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-".into())]);
    registry.await_log("each byte once", |log| log.iter().map(|request| request.sent).sum::<u64>() == SIZE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_resets_the_count_of_attempts() {
    let content = content(SIZE as usize);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    // Nine answers that break off, each a little further on.
    for offset in 1..10 {
        registry.fault(Target::Content(digest.clone()), ONCE, Fault::Cut(offset * 10_000));
    }
    let came = read(&open(&registry.host(), ":v1", &options(ONE)), &descriptor(&content), &content, 0).await;
    assert!(came.right && came.error.is_none() && came.bytes == SIZE, "{came:?}");
    assert_eq!(registry.asked(&digest), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_a_stall() {
    let content = content(SIZE as usize);
    let stall = Duration::from_millis(150);
    for cut in [ONE, MANY] {
        for fault in [|gate| Fault::Hold(gate), |gate| Fault::HoldAt(30_000, gate)] {
            let registry = Registry::start();
            let digest = registry.blob(content.clone());
            registry.fault(Target::Content(digest.clone()), Times::Always, fault(Gate::new()));
            let mut options = options(cut);
            options.timing = Timing { stall, ..timing() };
            let came = read(&open(&registry.host(), ":v1", &options), &descriptor(&content), &content, 0).await;
            assert!(matches!(came.error, Some(SourceError::Stalled { .. })) && came.right, "{came:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_hears_of_it_in_time_however_the_attempts_go() {
    let content = content(1000);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.fault(Target::Content(digest), Times::Always, Fault::Hold(Gate::new()));
    let mut options = options(ONE);
    options.timing = Timing { silence: Duration::from_millis(150), ..timing() };
    let came = read(&open(&registry.host(), ":v1", &options), &descriptor(&content), &content, 0).await;
    assert!(matches!(came.error, Some(SourceError::Stalled { .. })), "{came:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_beyond_the_limit_is_reported_with_its_time() {
    let content = content(1000);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.fault(Target::Content(digest.clone()), Times::Always, Fault::retry_after(429, 600));
    let came = read(&open(&registry.host(), ":v1", &options(ONE)), &descriptor(&content), &content, 0).await;
    let Some(SourceError::Unavailable { retry_at: Some(at), reason, .. }) = came.error else { panic!("{came:?}") };
    let wait = at.duration_since(SystemTime::now()).expect("in the future");
    assert!((590..=600).contains(&wait.as_secs()), "{wait:?}");
    // The registry's words are repeated, its escape sequences are not.
    assert!(reason.contains("429") && reason.contains("SCRIPTED") && !reason.contains('\u{1b}'), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_come_at_once_and_in_order() {
    let content = content(SIZE as usize);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    // One range waits until two others were answered to their ends.
    let gate = Gate::new();
    registry.fault(Target::Content(digest.clone()), ONCE, Fault::HoldAt(20_000, gate.clone()));
    let source = open(&registry.host(), ":v1", &options(MANY));
    let wanted = descriptor(&content);
    let waiter = tokio::task::spawn_blocking(move || {
        registry.await_log("two ranges beside the one that is held", |log| {
            log.iter().filter(|request| request.sent == 16_384).count() >= 2 && log.iter().any(|request| request.sent < 16_384)
        });
        gate.open();
        registry
    });
    let came = read(&source, &wanted, &content, 0).await;
    let registry = waiter.await.expect("it came");
    assert!(came.right && came.error.is_none() && came.bytes == SIZE, "{came:?}");
    let mut ranges: Vec<_> = registry.log().into_iter().filter_map(|request| request.range).collect();
    ranges.sort_by_key(|range| range.len());
    assert_eq!(registry.asked(&digest), 7, "{ranges:?}");
    assert!(ranges.iter().any(|range| range == "bytes=98304-"), "the last one is open, to see what lies beyond: {ranges:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_ignores_ranges_is_read_over_one_connection() {
    let content = content(SIZE as usize);
    let wanted = descriptor(&content);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.fault(Target::Content(digest.clone()), Times::Always, Fault::IgnoreRange);
    for from in [0, 30_000] {
        registry.clear_log();
        let came = read(&open(&registry.host(), ":v1", &options(MANY)), &wanted, &content, from).await;
        assert!(came.right && came.error.is_none() && came.bytes == SIZE - from, "{came:?}");
        registry.await_log("the whole blob", |log| log.iter().map(|request| request.sent).sum::<u64>() == SIZE);
        assert_eq!(registry.asked(&digest), 1);
    }
    // One that does so only now and then.
    for n in 2..=7 {
        registry.mend();
        registry.fault(Target::Content(digest.clone()), Times::Nth(n), Fault::IgnoreRange);
        let came = read(&open(&registry.host(), ":v1", &options(MANY)), &wanted, &content, 0).await;
        assert!(came.right && came.error.is_none() && came.bytes == SIZE, "the {n}th: {came:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_offset_and_cut_gives_the_rest() {
    let content = content(1000);
    let wanted = descriptor(&content);
    let registry = Registry::start();
    registry.blob(content.clone());
    for bytes in [1, 7, 250, 499, 500, 999, 1000, 1001] {
        for from in [0, 1, 499, 500, 501, 999, 1000] {
            // Many ranges of a byte each are the same case as some.
            if bytes == 1 && from < 900 {
                continue;
            }
            let cut = Cut { bytes, connections: 3, starved_percent: 0 };
            let came = read(&open(&registry.host(), ":v1", &options(cut)), &wanted, &content, from).await;
            assert!(came.right && came.error.is_none() && came.bytes == 1000 - from, "{cut:?} from {from}: {came:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_for_where_nothing_is_wanted() {
    let registry = Registry::start();
    let empty = descriptor(b"");
    let source = open(&registry.host(), ":v1", &options(ONE));
    assert_eq!(read(&source, &empty, b"", 0).await.bytes, 0);
    drop(source.blob(&descriptor(b"never polled"), 0));
    assert!(registry.log().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_were_promised_beyond_the_blob_are_not_missed() {
    let content = content(SIZE as usize);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.fault(Target::Content(digest.clone()), Times::Always, Fault::WrongLength(10));
    let came = read(&open(&registry.host(), ":v1", &options(ONE)), &descriptor(&content), &content, 0).await;
    assert!(came.right && came.error.is_none() && came.bytes == SIZE, "{came:?}");
    assert_eq!(registry.asked(&digest), 1);
}

/// A fast source gets one connection, a slow one gets several: where reading is not what takes the time, more of it does not help.
#[tokio::test(flavor = "multi_thread")]
async fn further_connections_come_only_where_the_first_was_waited_for() {
    for (patience, several) in [(101, false), (1, true)] {
        let registry = Registry::start();
        let content = vec![7; 256 << 10];
        let digest = registry.blob(content.clone());
        if several {
            // A range comes in two parts with a pause between them: whoever reads waits for that, however busy the host is.
            registry.fault(Target::Content(digest.clone()), Times::Always, Fault::Slow(160 << 10));
        }
        let cut = Cut { bytes: 16 << 10, connections: 3, starved_percent: patience };
        let wanted = descriptor(&content);
        assert_eq!(wanted.digest.to_string(), digest);
        let source = open(&registry.host(), ":v1", &options(cut));
        let mut stream = source.blob(&wanted, 0);
        let mut length = 0;
        while let Some(bytes) = stream.next().await {
            length += bytes.expect("an honest registry").len();
        }
        assert_eq!(length, content.len());
        let asked = registry.asked(&digest);
        assert_eq!(asked, if several { 16 } else { 2 }, "one range, then the rest in one or in ranges");
    }
}
