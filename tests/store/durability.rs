//! What was not synced when the host went down.

use std::fs;

use kitfs::store::Store;

use crate::bench::{Bench, assert_doubtful, ensure, ready};
use crate::damage::flip;
use crate::sample::{plain, read_all};
use crate::scripted::Scripted;

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
