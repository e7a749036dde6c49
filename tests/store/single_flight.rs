//! One fetch for all who ask.

use std::sync::Arc;
use std::{fs, thread};

use bytes::Bytes;
use kitfs::failure::ErrorClass;
use kitfs::store::{Activity, LayerState, Store};
use tokio::sync::Semaphore;

use crate::bench::{Bench, ensure};
use crate::sample::{plain, read_all};
use crate::scripted::{Scripted, Step};

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
