//! What comes and is not what its digest says, or is no layer.

use std::sync::Arc;

use bytes::Bytes;
use kitfs::digest::{Algorithm, Digest};
use kitfs::failure::ErrorClass;
use kitfs::fetch::{Fetcher, Wanted};
use kitfs::layer::Compression;
use kitfs::metrics::Meter;
use kitfs::source::{Source, SourceError};
use kitfs::store::{Activity, LayerState, Recall, StoreError};
use kitfs::verify::Mismatch;

use crate::bench::Bench;
use crate::sample::{noise, plain, read_all, sample};
use crate::scripted::{Scripted, Step, broken, denied};

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
        let fetcher = Fetcher::new(
            Ok(bench.store.clone()),
            vec![(sample.spec.clone(), 0)],
            Box::new(move |_| Ok(Arc::clone(&source))),
            Meter::default(),
        );
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
