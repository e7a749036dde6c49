//! A cache, and what a test looks at in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kitfs::source::Source;
use kitfs::store::{Recall, Store, StoreError, VerifiedLayer};
use tokio::runtime::Runtime;

use crate::sample::Sample;
use crate::scripted::Scripted;

pub struct Bench {
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Bench {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("cache")).expect("a cache");
        Self { runtime, dir, store }
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub fn ensure(&self, sample: &Sample, source: &Arc<Scripted>) -> Result<VerifiedLayer, StoreError> {
        ensure(&self.store, &self.runtime, sample, source)
    }

    /// Waits until whoever syncs the layer has closed all that it had open: it holds a lock on `visible` until then.
    pub fn await_settled(&self, sample: &Sample) {
        let visible = fs::File::open(self.layer_dir(sample).join("visible")).expect("in its place");
        rustix::fs::flock(&visible, rustix::fs::FlockOperation::LockExclusive).expect("free in the end");
    }

    pub fn layer_dir(&self, sample: &Sample) -> PathBuf {
        self.cache().join("v1/layers").join(sample.spec.key().file_name())
    }

    /// The name of a data file in the layer.
    pub fn data_file(&self, sample: &Sample) -> PathBuf {
        let names = listing(&self.layer_dir(sample));
        self.layer_dir(sample).join(names.iter().find(|name| name.ends_with(".data")).expect("a data file"))
    }

    pub fn index(&self, sample: &Sample) -> PathBuf {
        self.cache().join("v1/index").join(sample.spec.key().file_name())
    }

    pub fn assert_nothing_is_left(&self) {
        for place in ["layers", "ingest", "trash"] {
            assert_eq!(listing(&self.cache().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
    }
}

pub fn ensure(store: &Store, runtime: &Runtime, sample: &Sample, source: &Arc<Scripted>) -> Result<VerifiedLayer, StoreError> {
    let source: Arc<dyn Source> = Arc::clone(source) as _;
    store.ensure(&sample.spec, &source, runtime.handle())
}

pub fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").file_name().into_string().expect("utf-8")).collect();
    names.sort();
    names
}

pub fn ready(recall: Result<Recall, StoreError>) -> VerifiedLayer {
    match recall.expect("readable") {
        Recall::Ready(layer) => layer,
        other => panic!("expected a layer, got {other:?}"),
    }
}

pub fn assert_doubtful(store: &Store, sample: &Sample) {
    let recall = store.recall(&sample.spec).expect("readable");
    assert!(matches!(recall, Recall::Doubtful), "{recall:?}");
}
