//! Verifying what is stored once more: every byte is read again, and the index is made anew from nothing but these bytes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use bytes::Bytes;
use rustix::fs::Advice;

use super::Inner;
use super::cut::{COMMITTED, PACK, committed, data_name, data_ordinal, facts_of};
use super::dir::Dir;
use super::durable;
use super::error::{StoreError, disk, not_refused};
use super::locks::DecisionLock;
use super::recall::{self, DURABLE, VISIBLE, Visible, content_algorithm};
use super::replay::{Broken, Follow, Replay};
use super::work::WorkDir;
use crate::archive::{SplitError, Splitter};
use crate::digest::{Digest, Hasher};
use crate::failure::{ErrorClass, chain};
use crate::index::{FileFacts, Index, IndexBuilder, Stored};
use crate::layer::{Archive, Compression, LayerKey, LayerSpec};
use crate::rehearsal::point;
use crate::verify::HashThread;

/// What is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// What the descriptor says.
    Sound,
    /// Something else.
    Damaged {
        /// The digest that it should have: the blob's, or that of its uncompressed content.
        expected: Digest,
        /// The digest that it has.
        got: Digest,
    },
}

/// What came of reading a layer back.
pub(super) struct ReadBack {
    pub(super) found: Found,
    content: Digest,
    content_size: u64,
    /// With all entries, if it was given.
    builder: Option<IndexBuilder>,
}

/// Reads a layer back, and puts into `work` the index that follows from it. The new one is in its place at the end if the old one is not the same.
pub(super) fn recheck(
    store: &Inner,
    spec: &LayerSpec,
    dir: &Dir,
    work: &WorkDir<'_>,
    tick: &mut dyn FnMut(u64),
) -> Result<Found, StoreError> {
    let layer = spec.descriptor.digest;
    point("recheck:begin");
    let before = settle_files(store, dir)?;
    let back = read_back(store, spec, dir, Some(work.builder()?), tick)?;
    let (Found::Sound, Some(builder), Some(pack)) = (back.found, back.builder, before.get(PACK)) else { return Ok(back.found) };
    let stored = Stored {
        layer,
        blob_size: spec.descriptor.size,
        uncompressed: Some(back.content),
        uncompressed_size: back.content_size,
        pack: *pack,
    };
    // Nobody changed the files while they were read.
    for (name, then) in &before {
        if committed(dir, name).ok() != Some(*then) {
            return Err(StoreError::Doubtful { layer, file: name.clone(), reason: "it changed while it was verified".into() });
        }
    }
    let file = work.dir().create("index")?;
    let mut known = |ordinal| before.get(&data_name(ordinal)).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    builder
        .finish(&file, &stored, &mut known)
        .map_err(|error| if error.is_refusal() { refused(&layer, error) } else { not_refused("building an index", &error) })?;
    work.dir().step("chmod", "index").map_err(disk("setting the mode of an index"))?;
    rustix::fs::fchmod(&file, COMMITTED).map_err(disk("setting the mode of an index"))?;
    if !same_as_stored(store, &spec.key(), &file)? {
        install_index(store, &spec.key(), dir, work)?;
    }
    point("recheck:sound");
    recall::settle(store, &spec.key());
    Ok(Found::Sound)
}

/// Hashes all of a layer's content in the order of its stream, and tells the entries to `builder`.
pub(super) fn read_back(
    store: &Inner,
    spec: &LayerSpec,
    dir: &Dir,
    builder: Option<IndexBuilder>,
    tick: &mut dyn FnMut(u64),
) -> Result<ReadBack, StoreError> {
    let layer = spec.descriptor.digest;
    let index = recall::index(store, spec)?.map(|(_, index)| index);
    // One that is damaged further in says nothing of how the stream is put together: what is in the files tells, as if there were none.
    let index = index.filter(|index| index.segments().all(|segment| segment.is_ok()));
    let recorded = index.as_ref().and_then(Index::uncompressed).or(Visible::read(dir)?.map(|visible| visible.content));
    let expected = match (spec.compression, spec.diff_id) {
        (Compression::None, _) => Some(layer),
        (_, Some(diff_id)) => Some(diff_id),
        (_, None) => recorded,
    };
    let algorithm = expected.map_or(content_algorithm(spec), |expected| expected.algorithm());
    let nothing = Hasher::new(algorithm).finish();
    // What cannot be compared with anything is not sound: it names the blob's digest as the one that is missing.
    let damaged = |got| Found::Damaged { expected: expected.unwrap_or(layer), got };

    let Some(mut replay) = Replay::begin(dir)? else {
        return Ok(ReadBack { found: damaged(nothing), content: nothing, content_size: 0, builder: None });
    };
    // How the files were cut is read from what is there, not from what this version would do.
    let cut: HashSet<u32> = dir.list()?.iter().filter_map(|name| data_ordinal(name)).collect();
    let mut splitter = match spec.archive {
        Archive::Tar => Splitter::cutting(move |ordinal, _| cut.contains(&ordinal)),
        // All there is of it counts, whatever its size should be: the digest tells.
        Archive::Raw { .. } => Splitter::raw(None),
    };
    let mut follow = Follow::new(builder);
    let mut hash = HashThread::start(algorithm).map_err(disk("starting a thread to hash"))?;
    let mut size = 0;
    let mut admit = |piece: Bytes| {
        size += piece.len() as u64;
        hash.update(piece);
        tick(size.min(spec.descriptor.size));
        Ok(())
    };
    let mut defect: Option<SplitError> = None;
    let mut order = index.iter().flat_map(Index::segments).peekable();
    if order.peek().is_some() {
        // The digest is that of the stream as it was, also where a header is damaged: so it is put together by the index.
        for segment in order {
            let Ok(segment) = segment else { break };
            replay.by_segment(&segment, &mut |piece| {
                if defect.is_none()
                    && let Err(error) = splitter.write(&piece, &mut follow)
                {
                    defect = Some(error);
                }
                admit(piece)
            })?;
        }
    } else {
        match replay.by_headers(&mut splitter, &mut follow, &mut admit) {
            Ok(()) => {}
            Err(Broken::Split(error)) => defect = Some(error),
            Err(Broken::Failed(error)) => return Err(error),
        }
    }
    replay.rest(&mut admit)?;
    let content = hash.finish();
    if expected != Some(content) {
        return Ok(ReadBack { found: damaged(content), content, content_size: size, builder: None });
    }
    match defect.map_or_else(|| splitter.finish(&mut follow).map(drop), Err) {
        Ok(()) => Ok(ReadBack { found: Found::Sound, content, content_size: size, builder: follow.into_builder() }),
        Err(error) if error.is_refusal() => Err(refused(&layer, error)),
        Err(error) => Err(not_refused("verifying a layer", &error)),
    }
}

fn refused(layer: &Digest, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Refused { layer: *layer, source: std::sync::Arc::new(error) }
}

/// Gives every file the mode it must have, drops what is cached of it, and says what is there. A file that is not ours is as good as none.
fn settle_files(store: &Inner, dir: &Dir) -> Result<HashMap<String, FileFacts>, StoreError> {
    let mut all = HashMap::new();
    for name in dir.list()? {
        if name != PACK && data_ordinal(&name).is_none() {
            continue;
        }
        let what = || format!("looking at {}", dir.path_of(&name).display());
        let Some(file) = dir.open(&name)? else { continue };
        let stat = rustix::fs::fstat(&file).map_err(disk(what()))?;
        if stat.st_uid != store.uid {
            return Err(StoreError::Owner { path: dir.path_of(&name), expected: store.uid, got: stat.st_uid });
        }
        let facts =
            if stat.st_mode & 0o7777 == COMMITTED.bits() { facts_of(&stat) } else { committed(dir, &name).map_err(disk(what()))? };
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        all.insert(name, facts);
    }
    Ok(all)
}

/// True if the index in its place has the very bytes of `built`.
fn same_as_stored(store: &Inner, layer: &LayerKey, built: &File) -> Result<bool, StoreError> {
    let Some(old) = store.index.open(&layer.file_name())? else { return Ok(false) };
    let compare = || -> io::Result<bool> {
        store.index.step("read", &layer.file_name())?;
        let length = built.metadata()?.len();
        if old.metadata()?.len() != length {
            return Ok(false);
        }
        let (mut ours, mut theirs) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut offset = 0;
        while offset < length {
            let count = usize::try_from(length - offset).map_or(ours.len(), |left| left.min(ours.len()));
            let (ours, theirs) = (ours.get_mut(..count).unwrap_or_default(), theirs.get_mut(..count).unwrap_or_default());
            built.read_exact_at(ours, offset)?;
            old.read_exact_at(theirs, offset)?;
            if ours != theirs {
                return Ok(false);
            }
            offset += count as u64;
        }
        Ok(true)
    };
    // An index that cannot be read is replaced.
    Ok(compare().unwrap_or(false))
}

fn install_index(store: &Inner, layer: &LayerKey, dir: &Dir, work: &WorkDir<'_>) -> Result<(), StoreError> {
    let name = layer.file_name();
    let _decision = DecisionLock::take(&store.top)?;
    if store.layers.names(&name, dir)? {
        work.dir().rename_over("index", &store.index, &name)?;
    }
    Ok(())
}

/// True if what is stored cannot be had any more, and false if it only cannot be looked at now: a full disk is no reason to throw a layer away.
pub(super) fn is_lost(error: &StoreError) -> bool {
    match error {
        StoreError::Owner { .. } | StoreError::Content { .. } => true,
        StoreError::Disk { .. } => matches!(error.class(), ErrorClass::Disk(libc::EIO | libc::EBADMSG | libc::EUCLEAN | libc::ELOOP)),
        _ => false,
    }
}

/// Makes a layer that was verified from disk durable, if it is not.
pub(super) fn make_durable(store: &Inner, spec: &LayerSpec, dir: &Dir) -> Result<(), StoreError> {
    match dir.stat(DURABLE)? {
        Some(_) => Ok(()),
        None => durable::record(store, spec, dir),
    }
}

/// Takes a layer out of its place, if `dir` is what is there, and removes it. Those who have it open keep what they have open.
pub(super) fn withdraw(store: &Inner, layer: &LayerKey, dir: &Dir) -> Result<(), StoreError> {
    point("withdraw:begin");
    let name = layer.file_name();
    let trash = format!("{name}.{:016x}", fastrand::u64(..));
    {
        let _decision = DecisionLock::take(&store.top)?;
        if !store.layers.names(&name, dir)? {
            return Ok(());
        }
        if let Err(error) = store.layers.rename_over(&name, &store.trash, &trash) {
            // On overlayfs a directory of a lower layer cannot be renamed. What makes it usable goes first.
            tracing::debug!(%layer, error = chain(&error), "a layer is removed in its place");
            dir.unlink(DURABLE)?;
            dir.unlink(VISIBLE)?;
            return store.layers.remove_tree(&name);
        }
    }
    store.doubts.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
    // What is known to be damaged must not come back by a power cut.
    store.layers.sync()?;
    store.trash.remove_tree(&trash)
}
