//! A source that does what each test tells it to.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use kitfs::descriptor::Descriptor;
use kitfs::source::{Attached, Attachments, BlobStream, DocumentKind, Resolved, Source, SourceError};
use kitfs::verify::Unverified;
use tokio::sync::Semaphore;

use crate::sample::Sample;

/// What a source does when it is asked for a blob.
#[derive(Clone)]
pub enum Step {
    Whole,
    /// Other bytes from offset 0.
    Instead(Bytes),
    /// An error after so many bytes.
    Fail(usize, fn() -> SourceError),
    /// After so many bytes it waits to be let on.
    Gate(usize, Arc<Semaphore>, Arc<Semaphore>),
}

/// Plays its steps, one for each question, and then gives whole blobs.
pub struct Scripted {
    pub name: String,
    pub blob: Bytes,
    pub steps: Mutex<VecDeque<Step>>,
    pub asked: Mutex<Vec<u64>>,
    pub delivered: AtomicU64,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Scripted {
    pub fn named(name: &str, blob: &Bytes, steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            blob: blob.clone(),
            steps: Mutex::new(steps.into_iter().collect()),
            asked: Mutex::default(),
            delivered: AtomicU64::new(0),
        })
    }

    pub fn new(sample: &Sample, steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Self::named("test", &sample.blob, steps)
    }

    pub fn asked(&self) -> Vec<u64> {
        self.asked.lock().expect("no panic").clone()
    }

    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        unreachable!("the store resolves nothing")
    }

    fn attached<'a>(&'a self, _: &'a Attachments) -> BoxFuture<'a, Attached> {
        unreachable!("the store asks for no documents")
    }

    fn document_as<'a>(&'a self, _: &'a Descriptor, _: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        unreachable!("the store asks for no documents")
    }

    fn blob(&self, _: &Descriptor, from: u64) -> BlobStream {
        self.asked.lock().expect("no panic").push(from);
        let step = self.steps.lock().expect("no panic").pop_front().unwrap_or(Step::Whole);
        let from = usize::try_from(from).expect("small");
        let (whole, end, after) = match step {
            Step::Whole => (self.blob.clone(), None, None),
            Step::Instead(other) => (other, None, None),
            Step::Fail(at, error) => (self.blob.clone(), Some(at), Some(stream::once(async move { Err(error()) }).boxed())),
            Step::Gate(at, reached, on) => {
                let rest = self.blob.slice(at..);
                let wait = async move {
                    reached.add_permits(1);
                    on.acquire().await.expect("open").forget();
                    Ok(Unverified::new(rest))
                };
                (self.blob.clone(), Some(at), Some(stream::once(wait).boxed()))
            }
        };
        let end = end.unwrap_or(whole.len()).max(from);
        let bytes = whole.slice(from.min(whole.len())..end.min(whole.len()));
        self.delivered.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // Pieces of a size that fits to nothing.
        let pieces: Vec<_> = bytes.chunks(70_001).map(|piece| Ok(Unverified::new(bytes.slice_ref(piece)))).collect();
        let pieces = stream::iter(pieces).boxed();
        match after {
            Some(after) => pieces.chain(after).boxed(),
            None => pieces,
        }
    }
}

pub fn denied() -> SourceError {
    SourceError::Denied { place: "test".into(), what: "the layer".into(), status: "403".into() }
}

pub fn broken() -> SourceError {
    SourceError::Unavailable { place: "test".into(), what: "the layer".into(), reason: "reset".into(), retry_at: None, source: None }
}
