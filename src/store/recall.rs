//! Finding a layer in the cache: what is believed without looking at every byte, and why.
//!
//! A layer that is found was verified by whoever stored it. That this still holds is an assertion about the cache's owner (nobody else can write below
//! a 0700 directory of ours, and a layer gets its name only after its check), and about accidents: size, mode and change time of each file are what
//! the index says, and the files were either synced to disk or written since this host booted.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, PoisonError};

use rustix::fs::FlockOperation;

use super::Inner;
use super::cut::PACK;
use super::dir::Dir;
use super::durable::{self, How, Job};
use super::error::{StoreError, disk};
use super::layer::{Parts, VerifiedLayer, check_pack};
use super::locks::{Lock, UseLock, try_lock};
use crate::archive::SplitError;
use crate::digest::{Algorithm, Digest};
use crate::index::Index;
use crate::layer::{Archive, Compression, LayerKey, LayerSpec};
use crate::limits;
use crate::verify::Mismatch;

/// What a look into the cache came to.
#[derive(Debug)]
pub enum Recall {
    /// It is here.
    Ready(VerifiedLayer),
    /// It is here, but must be verified once more before it is used: [`super::Store::ensure`] does.
    Doubtful,
    /// It is not here.
    Absent,
}

/// The file that says that everything of a layer is on disk.
pub(super) const DURABLE: &str = "durable";
/// The file that says who stored a layer, and when.
pub(super) const VISIBLE: &str = "visible";

/// What stands in `visible`: the boot in which the layer was stored, and the digest and size of its uncompressed content, so that it can be verified
/// without its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visible {
    pub(super) boot: Option<String>,
    pub(super) content: Digest,
}

impl Visible {
    pub(super) fn encode(&self) -> String {
        format!("boot {}\ncontent {}\n", self.boot.as_deref().unwrap_or_default(), self.content)
    }

    pub(super) fn read(dir: &Dir) -> Result<Option<Self>, StoreError> {
        let Some(file) = dir.open(VISIBLE)? else { return Ok(None) };
        let mut text = String::new();
        match dir.step("read", VISIBLE).and_then(|()| file.take(limits::RECORD_BYTES).read_to_string(&mut text)) {
            Ok(_) => Ok(Self::decode(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(disk(format!("reading {}", dir.path_of(VISIBLE).display()))(error)),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let boot = lines.next()?.strip_prefix("boot ")?;
        let content = lines.next()?.strip_prefix("content ")?.parse().ok()?;
        Some(Self { boot: (!boot.is_empty()).then(|| boot.to_owned()), content })
    }
}

/// Tells an index file from the one that replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    changed: (i64, u64),
}

impl Identity {
    fn of(file: &File) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        Some(Self { inode: stat.st_ino, changed: (stat.st_ctime, stat.st_ctime_nsec) })
    }
}

/// Remembers that the layer, as this index describes it, was seen to be different. Forgotten when it was verified once more.
pub(super) fn doubt(store: &Inner, layer: &LayerKey, index: &File) {
    if let Some(identity) = Identity::of(index) {
        store.doubts.lock().unwrap_or_else(PoisonError::into_inner).insert(*layer, identity);
    }
}

/// The doubt is settled.
pub(super) fn settle(store: &Inner, layer: &LayerKey) {
    store.doubts.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
}

/// The index of a layer, whether it is stored or not; `None` also for one that cannot be read.
pub(super) fn index(store: &Inner, spec: &LayerSpec) -> Result<Option<(File, Index)>, StoreError> {
    let layer = spec.key();
    let Some(file) = store.index.open(&layer.file_name())? else { return Ok(None) };
    match Index::map(&file, &layer.digest) {
        Ok(index) if is_read_so(spec, &index) => {
            agrees(spec, &index)?;
            Ok(Some((file, index)))
        }
        Ok(_) => {
            tracing::debug!(%layer, "an index is of the same blob, read in another way");
            Ok(None)
        }
        Err(error) => {
            tracing::debug!(%layer, %error, "an index cannot be used");
            Ok(None)
        }
    }
}

/// Whether an index can be that of a layer that is read as `spec` says. The name of its file says so, but whoever moves files moves names, and caches of
/// before kept compressed archives under the bare digest.
pub(super) fn is_read_so(spec: &LayerSpec, index: &Index) -> bool {
    let plain = index.uncompressed().is_none_or(|content| content == spec.descriptor.digest);
    let one_file = || index.len() == 2 && index.files() == 1;
    plain == (spec.compression == Compression::None) && (spec.archive == Archive::Tar || one_file())
}

/// Refuses to use a layer for a manifest or config that claims something else of its content.
pub(super) fn agrees(spec: &LayerSpec, index: &Index) -> Result<(), StoreError> {
    match index.uncompressed() {
        Some(content) => expect_content(spec, &content, index.uncompressed_size()),
        None => Ok(()),
    }
}

/// Compares digest and size of the content with what manifest and config claim, if they do and the digests can be compared.
pub(super) fn expect_content(spec: &LayerSpec, got: &Digest, size: u64) -> Result<(), StoreError> {
    let layer = spec.descriptor.digest;
    if let Some(expected) = spec.diff_id
        && expected.algorithm() == got.algorithm()
        && expected != *got
    {
        return Err(StoreError::Uncompressed { layer, mismatch: Box::new(Mismatch::Digest { expected, got: *got }) });
    }
    match spec.archive {
        Archive::Raw { size: Some(expected) } if expected != size => {
            Err(StoreError::Refused { layer, source: Arc::new(SplitError::Size { expected, got: size, more: false }) })
        }
        _ => Ok(()),
    }
}

/// The algorithm by which the content of a layer is digested.
pub(super) fn content_algorithm(spec: &LayerSpec) -> Algorithm {
    match (spec.compression, spec.diff_id) {
        (Compression::None, _) => spec.descriptor.digest.algorithm(),
        (_, Some(diff_id)) => diff_id.algorithm(),
        (_, None) => Algorithm::Sha256,
    }
}

/// See [`super::Store::recall`].
pub(super) fn recall(store: &Arc<Inner>, spec: &LayerSpec) -> Result<Recall, StoreError> {
    let layer = &spec.key();
    let name = layer.file_name();
    // The lock first: what is opened before it could be evicted in between.
    let Some(lock) = UseLock::existing(&store.locks, layer)? else { return Ok(Recall::Absent) };
    let Some(dir) = store.layers.open_dir(&name)? else { return Ok(Recall::Absent) };
    let Some((index_file, index)) = index(store, spec)? else { return Ok(Recall::Doubtful) };
    let known = store.doubts.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied();
    if known.is_some() && known == Identity::of(&index_file) {
        return Ok(Recall::Doubtful);
    }
    let durable = dir.stat(DURABLE)?.is_some();
    if !durable && !of_this_boot(store, &dir)? {
        return Ok(Recall::Doubtful);
    }
    let Some(pack) = dir.open(PACK)? else { return Ok(Recall::Doubtful) };
    if let Err(reason) = check_pack(&pack, &index) {
        tracing::warn!(%layer, %reason, "a file of the cache is not as it was when it was verified");
        return Ok(Recall::Doubtful);
    }
    if !durable {
        sync_if_nobody_does(store, spec, &dir)?;
    }
    Ok(Recall::Ready(VerifiedLayer::new(store, Parts { spec: spec.clone(), lock, dir, pack, index_file, index })))
}

fn of_this_boot(store: &Inner, dir: &Dir) -> Result<bool, StoreError> {
    let stored = Visible::read(dir)?.and_then(|visible| visible.boot);
    Ok(stored.is_some() && stored == store.boot)
}

/// Whoever stored the layer died before it was synced: somebody must do it for him.
fn sync_if_nobody_does(store: &Arc<Inner>, spec: &LayerSpec, dir: &Dir) -> Result<(), StoreError> {
    let Some(visible) = dir.open(VISIBLE)? else { return Ok(()) };
    let free = try_lock(&visible, "visible", FlockOperation::NonBlockingLockExclusive)
        .map_err(disk(format!("locking {}", dir.path_of(VISIBLE).display())))?;
    if free && dir.stat(DURABLE)?.is_none() {
        let dir = Dir::adopt(dir.duplicate().map_err(disk("keeping a layer's directory open"))?, dir.path().to_owned());
        durable::start(Job { store: Arc::clone(store), spec: spec.clone(), dir, _lock: Lock::of(visible), how: How::Reread });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_is_read_as_it_was_written() {
        let content = Digest::of(Algorithm::Sha512, b"x");
        for boot in [None, Some("2b6f0cc9-04d1-4b1b-a6f6-f1f6d7f5d2f0".to_owned())] {
            let visible = Visible { boot, content };
            assert_eq!(Visible::decode(&visible.encode()), Some(visible));
        }
        for text in ["", "boot x", "boot x\ncontent sha256:00\n", "x\ny\n"] {
            assert_eq!(Visible::decode(text), None, "{text:?}");
        }
    }
}
