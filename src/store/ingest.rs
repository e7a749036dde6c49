//! Storing a layer: its bytes are checked, uncompressed, cut and written in one pass, and it gets its place when everything matched.
//!
//! Nobody outside of the store can reach an ingest, and inside there is one way to the end: [`Ingest::commit`], which finishes the check first.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FlockOperation;

use super::Inner;
use super::cut::{COMMITTED, Cut, Reserve, Written, committed, data_name, facts};
use super::dir::Dir;
use super::durable::{self, How, Job};
use super::error::{StoreError, disk, not_refused};
use super::layer::{Parts, VerifiedLayer};
use super::locks::{DecisionLock, Lock, UseLock, try_lock};
use super::recall::{VISIBLE, Visible, content_algorithm, expect_content};
use super::replay::{Broken, Follow, Replay};
use super::work::WorkDir;
use crate::archive::{SplitError, Splitter};
use crate::digest::Digest;
use crate::index::{Index, Stored};
use crate::inflate::{Inflate, InflateError};
use crate::layer::{Archive, Compression, LayerKey, LayerSpec};
use crate::limits;
use crate::rehearsal::point;
use crate::verify::{Check, HashThread, Matched, Unverified};

/// A layer that is being stored.
pub(super) struct Ingest<'store> {
    store: &'store Arc<Inner>,
    spec: &'store LayerSpec,
    check: Check,
    pipe: Pipe,
    splitter: Splitter,
    cut: Cut,
    /// Bytes of the uncompressed stream.
    stream_size: u64,
    /// Why the content may not be shown. It is only believed if the digest matches; until that is known, everything is hashed, but nothing
    /// stored any more.
    defect: Option<StoreError>,
    // Last, so that it is removed when everything in it is closed.
    work: WorkDir<'store>,
}

/// How the blob becomes the uncompressed stream.
enum Pipe {
    /// It is it.
    Plain,
    /// By inflating; the content has a digest of its own.
    Compressed(Box<Inflate>, HashThread),
}

impl<'store> Ingest<'store> {
    /// Begins with nothing.
    pub(super) fn begin(store: &'store Arc<Inner>, spec: &'store LayerSpec) -> Result<Self, StoreError> {
        let work = WorkDir::begin(store, &spec.key())?;
        let cut = Cut::begin(work.dir(), work.builder()?, Self::reserve(store, spec, 0))?;
        let pipe = match Inflate::new(spec.compression, spec.descriptor.size).map_err(|error| inflate_failed(spec, error))? {
            None => Pipe::Plain,
            Some(inflate) => {
                let content = HashThread::start(content_algorithm(spec)).map_err(disk("starting a thread to hash"))?;
                Pipe::Compressed(Box::new(inflate), content)
            }
        };
        let splitter = splitter(spec);
        let check = Check::beside(&spec.descriptor).map_err(disk("starting a thread to hash"))?;
        Ok(Self { store, spec, check, pipe, splitter, cut, stream_size: 0, defect: None, work })
    }

    /// Goes on from what an interrupted ingest of a plain layer left: its bytes are hashed and split again. `None` if there is nothing to go on
    /// from. What is left of compressed layers is removed.
    pub(super) fn resume(
        store: &'store Arc<Inner>,
        spec: &'store LayerSpec,
        tick: &mut dyn FnMut(u64),
    ) -> Result<Option<Self>, StoreError> {
        let Some(work) = WorkDir::find(store, &spec.key())? else { return Ok(None) };
        if spec.compression != Compression::None {
            return Ok(None);
        }
        for made_at_the_end in ["index", VISIBLE] {
            work.dir().unlink(made_at_the_end)?;
        }
        let mut check = Check::beside(&spec.descriptor).map_err(disk("starting a thread to hash"))?;
        let mut splitter = splitter(spec);
        let mut follow = Follow::new(Some(work.builder()?));
        let resumed = {
            let Some(mut replay) = Replay::begin(work.dir())? else { return Ok(None) };
            let layer = spec.descriptor.digest;
            let outcome = replay.by_headers(&mut splitter, &mut follow, &mut |piece| {
                check.admit(Unverified::new(piece)).map_err(|mismatch| StoreError::content(layer, mismatch))?;
                tick(check.seen());
                Ok(())
            });
            match outcome {
                Ok(()) => replay.resumed(&follow, &splitter),
                Err(Broken::Failed(error @ StoreError::Disk { .. })) => return Err(error),
                // Not what we would have written; nobody is blamed.
                Err(Broken::Failed(_) | Broken::Split(_)) => return Ok(None),
            }
        };
        let Some(builder) = follow.into_builder() else { return Ok(None) };
        let stream_size = check.seen();
        if stream_size == 0 {
            return Ok(None);
        }
        let cut = Cut::resume(work.dir(), builder, Self::reserve(store, spec, stream_size), &resumed)?;
        Ok(Some(Self { store, spec, check, pipe: Pipe::Plain, splitter, cut, stream_size, defect: None, work }))
    }

    /// Takes the next bytes of the blob. `alive` is called with how many there are while a decoder waits for memory.
    pub(super) fn write(&mut self, mut chunk: Unverified<Bytes>, alive: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let layer = self.spec.descriptor.digest;
        while !chunk.is_empty() {
            let piece = chunk.split_to(limits::PIECE_BYTES);
            let piece = self.check.admit(piece).map_err(|mismatch| StoreError::content(layer, mismatch))?;
            if self.defect.is_none() {
                match self.take(&piece, alive) {
                    Err(error @ StoreError::Refused { .. }) => self.defect = Some(error),
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// How many bytes of the blob are here.
    pub(super) fn seen(&self) -> u64 {
        self.check.seen()
    }

    /// Leaves what was written for somebody to go on with, if that is possible.
    pub(super) fn suspend(mut self) {
        point("ingest:suspend");
        if matches!(self.pipe, Pipe::Plain) && self.defect.is_none() && self.check.seen() > 0 && self.cut.flush().is_ok() {
            self.work.keep();
        }
    }

    /// Ends the check and puts the layer into its place. `None` if somebody else was faster.
    pub(super) fn commit(self) -> Result<Option<VerifiedLayer>, StoreError> {
        let Self { store, spec, check, pipe, splitter, mut cut, stream_size, defect, mut work } = self;
        let layer = spec.descriptor.digest;
        point("ingest:end");
        let matched = check.finish().map_err(|mismatch| StoreError::content(layer, mismatch))?;
        // From here on the bytes are the layer's, and so is what is wrong with them.
        if let Some(defect) = defect {
            return Err(defect);
        }
        let content = match pipe {
            Pipe::Plain => layer,
            Pipe::Compressed(inflate, content) => {
                inflate.finish().map_err(|error| inflate_failed(spec, error))?;
                content.finish()
            }
        };
        splitter.finish(&mut cut).map_err(|error| split_failed(&layer, &mut cut, error))?;
        expect_content(spec, &content, stream_size)?;

        let Written { builder, pack, kept } = cut.finish()?;
        let what = || format!("indexing layer {layer}");
        let pack_facts = facts(&pack).map_err(disk(what()))?;
        let stored = Stored {
            layer,
            blob_size: spec.descriptor.size,
            uncompressed: Some(content),
            uncompressed_size: stream_size,
            pack: pack_facts,
        };
        let dir = Arc::clone(work.dir());
        let index = dir.create("index")?;
        builder
            .finish(&index, &stored, &mut |ordinal| committed(&dir, &data_name(ordinal)))
            .map_err(|error| if error.is_refusal() { refused(&layer, error) } else { not_refused(&what(), &error) })?;
        dir.step("chmod", "index").map_err(disk(what()))?;
        rustix::fs::fchmod(&index, COMMITTED).map_err(disk(what()))?;
        let index_file = reopen(&dir, "index")?;
        drop(index);
        let index = Index::map(&index_file, &layer).map_err(|error| not_refused(&what(), &error))?;
        let visible = write_visible(store, &dir, content)?;

        let lock = UseLock::take(&store.locks, &spec.key())?;
        if !place(store, &spec.key(), &mut work, matched)? {
            return Ok(None);
        }
        point("ingest:placed");
        let how = kept.map_or(How::Reread, How::Kept);
        let in_place = || {
            let fd = dir.duplicate().map_err(disk("keeping a layer's directory open"))?;
            Ok::<_, StoreError>(Dir::adopt(fd, store.layers.path_of(&spec.key().file_name())))
        };
        durable::start(Job { store: Arc::clone(store), spec: spec.clone(), dir: in_place()?, _lock: visible, how });
        let parts = Parts { spec: spec.clone(), lock, dir: in_place()?, pack, index_file, index };
        Ok(Some(VerifiedLayer::new(store, parts)))
    }

    fn take(&mut self, piece: &Bytes, alive: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let layer = self.spec.descriptor.digest;
        let seen = self.check.seen();
        let Self { spec, pipe, splitter, cut, stream_size, .. } = self;
        match pipe {
            Pipe::Plain => {
                *stream_size += piece.len() as u64;
                cut.piece(piece);
                splitter.write(piece, cut).map_err(|error| split_failed(&layer, cut, error))
            }
            Pipe::Compressed(inflate, content) => {
                let outcome = inflate.write::<PipeError>(piece, &mut |made| {
                    if made.is_empty() {
                        alive(seen);
                        return Ok(());
                    }
                    *stream_size += made.len() as u64;
                    let made = Bytes::copy_from_slice(made);
                    content.update(made.clone());
                    cut.piece(&made);
                    Ok(splitter.write(&made, cut)?)
                });
                outcome.map_err(|error| match error {
                    PipeError::Inflate(error) => inflate_failed(spec, error),
                    PipeError::Split(error) => split_failed(&layer, cut, error),
                })
            }
        }
    }

    fn reserve(store: &Inner, spec: &LayerSpec, seen: u64) -> Reserve {
        match spec.compression {
            _ if !store.abilities.fallocate => Reserve::Never,
            Compression::None => Reserve::Whole(spec.descriptor.size.saturating_sub(seen)),
            Compression::Gzip | Compression::Zstd => Reserve::Steps,
        }
    }
}

enum PipeError {
    Inflate(InflateError),
    Split(SplitError),
}

impl From<InflateError> for PipeError {
    fn from(error: InflateError) -> Self {
        Self::Inflate(error)
    }
}

impl From<SplitError> for PipeError {
    fn from(error: SplitError) -> Self {
        Self::Split(error)
    }
}

fn refused(layer: &Digest, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Refused { layer: *layer, source: Arc::new(error) }
}

/// How the content of a layer is cut.
fn splitter(spec: &LayerSpec) -> Splitter {
    match (spec.archive, spec.compression) {
        (Archive::Tar, _) => Splitter::new(limits::DATA_FILE_BYTES),
        (Archive::Raw { size: None }, Compression::None) => Splitter::raw(Some(spec.descriptor.size)),
        (Archive::Raw { size }, _) => Splitter::raw(size),
    }
}

/// Whose fault it was: the layer's, or that there is no memory.
fn inflate_failed(spec: &LayerSpec, error: InflateError) -> StoreError {
    if error.is_refusal() {
        return refused(&spec.descriptor.digest, error);
    }
    disk(format!("storing layer {}", spec.descriptor.digest))(rustix::io::Errno::NOMEM)
}

/// Whose fault it was: the archive's, or the disk's.
fn split_failed(layer: &Digest, cut: &mut Cut, error: SplitError) -> StoreError {
    match cut.take_failure() {
        Some(failure) => failure,
        None if error.is_refusal() => refused(layer, error),
        None => not_refused(&format!("storing layer {layer}"), &error),
    }
}

/// Writes `visible` and locks it, so that nobody syncs the layer before us.
fn write_visible(store: &Inner, dir: &Dir, content: Digest) -> Result<Lock, StoreError> {
    let what = || format!("writing {}", dir.path_of(VISIBLE).display());
    let mut file = dir.create(VISIBLE)?;
    let text = Visible { boot: store.boot.clone(), content }.encode();
    dir.step("write", VISIBLE).map_err(disk(what()))?;
    file.write_all(text.as_bytes()).map_err(disk(what()))?;
    dir.step("chmod", VISIBLE).map_err(disk(what()))?;
    rustix::fs::fchmod(&file, COMMITTED).map_err(disk(what()))?;
    let file = reopen(dir, VISIBLE)?;
    try_lock(&file, "visible", FlockOperation::NonBlockingLockExclusive).map_err(disk(what()))?;
    Ok(Lock::of(file))
}

/// Opens a file that was just written for reading. The writing descriptor may be closed only after that, see [`durable`].
fn reopen(dir: &Dir, name: &str) -> Result<File, StoreError> {
    dir.open(name)?.ok_or_else(|| disk(format!("opening {}", dir.path_of(name).display()))(rustix::io::Errno::NOENT))
}

/// The one step that makes a layer visible: index first, then the directory, if nobody was faster. Asks for the proof that it matched.
fn place(store: &Inner, layer: &LayerKey, work: &mut WorkDir<'_>, _: Matched) -> Result<bool, StoreError> {
    let name = layer.file_name();
    let _decision = DecisionLock::take(&store.top)?;
    if store.layers.stat(&name)?.is_some() {
        return Ok(false);
    }
    work.dir().rename_over("index", &store.index, &name)?;
    work.rename(&store.layers, &name)
}
