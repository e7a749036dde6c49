//! Fetches that were broken off.

use kitfs::failure::ErrorClass;
use kitfs::layer::Compression;
use kitfs::store::{Store, Verdict};

use crate::bench::{Bench, ensure, listing};
use crate::damage::flip;
use crate::sample::{plain, raw, read_all, sample};
use crate::scripted::{Scripted, Step, broken};

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
