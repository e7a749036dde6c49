//! The cache: layers that were verified, cut into files that the kernel can serve by itself.
//!
//! The store is one of the two modules that make a witness: a [`VerifiedLayer`] comes from an ingest that matched its descriptor, from
//! [`Store::recall`] or from [`Store::adopt`], and from nowhere else. It knows layers by what manifest and config say of them, and gets their bytes from
//! a [`Source`]; it knows neither kits nor mounts.
//!
//! # Layout
//!
//! ```text
//! <cache>/lock                       decisions about what is in its place
//!         limit                      how large the cache may become, as it was last said
//!         v1/locks/<layer>.use       flock, shared, of everybody who has the layer open; its time is when that was last so
//!            locks/evict             flock of whoever makes room
//!            locks/<layer>.ingest    flock of whoever fetches or verifies it; holds the progress record
//!            locks/<layer>.ingest.N  the same, for one who works beside a silent one (N = 1, 2)
//!            index/<layer>           the index, mapped; outlives the layer
//!            layers/<layer>/pack     the uncompressed stream without the big members' bytes
//!                           N.data   the bytes of the big member with the ordinal N
//!                           visible  in which boot it was stored, and the digest of its uncompressed content
//!                           durable  says that all of the above is on disk
//!            ingest/<layer>.<random>/  a layer that is being stored: the same files, and `begun` (boot and version)
//!            pinned/<layer>          an empty file: the layer is not evicted, whether it is here or not
//!            trash/                  what was withdrawn and is being removed
//!            blobs/<digest>          manifests and configs
//!            references/<digest of the reference>  what it was last resolved to
//!            attached/<digest>          what was found attached to the manifest with this digest, see `store/attached.rs`
//! ```
//!
//! `<digest>` is `algorithm-hex`. `<layer>` is the blob's digest and how it is read, since the same bytes may be an archive to one kit and a file to another
//! ([`LayerKey`]): `algorithm-hex` for a plain archive, otherwise with `-tar+gzip`, `-tar+zstd`, `-raw`, `-raw+gzip` or `-raw+zstd` behind it. Where a raw
//! file stands and what mode it has is not the layer's: kits that place it differently share it. It is one data file however small it is (`0.data`; there
//! is none if it is empty), beside an empty pack, and the one entry of its index. Everything below `v1` is for our user alone (0700), files in their place are 0444 and are never written or
//! cut again: others have them mapped. What replaces a file or directory comes by rename.
//!
//! # Caches of other versions
//!
//! The version of the format is a part of every path but two: `lock` and `limit` are for all versions, since they share a disk. What lies in the folder of another version
//! (`v0`, `v2`) is its own: it is not read, counted, evicted, pruned or removed. Two versions side by side are two caches; they
//! fetch what each needs, and each keeps to the limit for itself. Names in `v1` that mean nothing to us are left alone, but for `ingest` and `trash`, which hold
//! nothing that anybody could miss. A `limit` that we cannot read counts as none, and stays until somebody gives another.
//!
//! Within `v1`, an index says its own version. One of another is not read but made anew, from `pack` and data by the pass that verifies, without network; the
//! older kitfs beside us does the same with ours. Work under way says its version in `begun`, and is begun again by another. Records are JSON with room for more keys.
//!
//! # What a recalled layer rests on
//!
//! Nobody but the owner of the cache can write below `v1`; a layer is renamed into its place only after its blob matched; and each file still has
//! the size, mode and change time that its index says. That catches accidents. It does not catch somebody who acts as the same user.
//!
//! # Only the store vouches for a layer
//!
//! ```compile_fail
//! # use kitfs::store::VerifiedLayer;
//! let forged = VerifiedLayer(todo!()); // the field is private
//! ```
//! ```compile_fail
//! # use kitfs::store::layer::{Parts, VerifiedLayer};
//! # fn forge(store: &std::sync::Arc<kitfs::store::Inner>, parts: Parts) {
//! let forged = VerifiedLayer::new(store, parts); // the modules are private
//! # }
//! ```
//! ```compile_fail
//! # use kitfs::store::ingest::Ingest;
//! # fn forge(ingest: Ingest<'_>) {
//! let unchecked = ingest.commit(); // nobody else can begin one
//! # }
//! ```
//! ```compile_fail
//! # use kitfs::verify::Matched;
//! let proof = Matched(()); // what puts a layer into its place comes out of a check that ended well
//! ```

mod attached;
mod cut;
mod dir;
mod documents;
mod draft;
mod durable;
mod error;
mod evict;
mod fetch;
mod flight;
mod host;
mod ingest;
mod layer;
mod locks;
mod progress;
mod quota;
mod recall;
mod recheck;
mod replay;
mod stale;
mod work;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::chain;
use crate::index::Index;
use crate::layer::{LayerKey, LayerSpec};
use crate::limits;
use crate::source::Source;
use crate::verify::Verified;

pub use attached::KeptManifest;
pub use error::StoreError;
pub use evict::{Evicted, Resident, Usage};
pub use layer::{Content, Held, VerifiedLayer};
pub use progress::{Activity, Progress};
pub use quota::{CacheSize, CacheSizeError};
pub use recall::Recall;

use dir::Dir;
use draft::Draft;
use error::disk;
use host::Abilities;
use layer::{Parts, check_pack};
use locks::{IngestLock, UseLock};
use progress::Record;
use recheck::Found;
use work::WorkDir;

/// A cache directory. Clones share what is open.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

/// What all modules of the store work on.
#[derive(Debug)]
struct Inner {
    top: Dir,
    v1: Dir,
    locks: Dir,
    index: Dir,
    layers: Dir,
    ingest: Dir,
    trash: Dir,
    pinned: Dir,
    blobs: Dir,
    references: Dir,
    attached: Dir,
    uid: u32,
    /// `None` if it cannot be known; then nothing is ever of this boot.
    boot: Option<String>,
    abilities: Abilities,
    flights: flight::Flights,
    /// The names that lead to all of these are on disk.
    rooted: AtomicBool,
    /// Layers of which a file was seen to be different, with the index that it was compared with.
    doubts: Mutex<HashMap<LayerKey, recall::Identity>>,
    unsynced: Mutex<Vec<File>>,
    /// It was seen to that documents are not too many, by this process.
    bounded: AtomicBool,
    /// Bytes of layers that were not what their digest says, from a source or from disk.
    mismatches: AtomicU64,
    evicted_layers: AtomicU64,
    evicted_bytes: AtomicU64,
    /// Bytes by which the cache was over its limit when this process made room last.
    over_limit: AtomicU64,
    /// What the cache held when it was looked at last.
    usage: Mutex<Option<(Instant, Usage)>>,
}

/// Where a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Here.
    Cached,
    /// Not here, but somebody on this host fetches it.
    Fetching,
    /// Not here.
    Absent,
}

/// What came of [`Store::verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The layer is not here.
    Absent,
    /// It is what it should be.
    Sound,
    /// It was not, and is not in the cache any more.
    Damaged {
        /// The digest of the blob, or of its uncompressed content if the blob is compressed.
        expected: Digest,
        /// What the bytes on disk have.
        got: Digest,
    },
}

impl Store {
    /// Opens the cache below `dir`, made if it is not there. Refuses a directory that somebody else owns or may write into, and filesystems on which locks,
    /// renames and change times cannot be relied on.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_in_boot(dir, host::boot_id())
    }

    /// [`Store::open`] with a boot id of the caller's choice: what was stored under another one (or under none) and was not synced is verified once more
    /// before it is used.
    pub fn open_in_boot(dir: &Path, boot: Option<String>) -> Result<Self, StoreError> {
        Dir::make_top(dir)?;
        Self::open_top(Dir::open_top(dir, rustix::process::geteuid().as_raw())?, boot)
    }

    /// Opens a cache that was open before, by whoever goes on with it. One that is gone is not made anew: where a filesystem was unmounted, that would be on the
    /// disk below.
    pub fn reopen(dir: &Path) -> Result<Self, StoreError> {
        let top = Dir::open_top(dir, rustix::process::geteuid().as_raw())?;
        match top.open_dir("v1")? {
            Some(_) => Self::open_top(top, host::boot_id()),
            None => Err(disk(format!("opening {}", top.path_of("v1").display()))(rustix::io::Errno::NOENT)),
        }
    }

    fn open_top(top: Dir, boot: Option<String>) -> Result<Self, StoreError> {
        let uid = rustix::process::geteuid().as_raw();
        host::refuse_unsuitable(&top)?;
        let v1 = top.subdirectory("v1", uid)?;
        let sub = |name| v1.subdirectory(name, uid);
        let ingest = sub("ingest")?;
        let abilities = host::probe(&ingest)?;
        let inner = Inner {
            locks: sub("locks")?,
            index: sub("index")?,
            layers: sub("layers")?,
            trash: sub("trash")?,
            pinned: sub("pinned")?,
            blobs: sub("blobs")?,
            references: sub("references")?,
            attached: sub("attached")?,
            ingest,
            top,
            v1,
            uid,
            boot,
            abilities,
            flights: flight::Flights::default(),
            rooted: AtomicBool::new(false),
            doubts: Mutex::default(),
            unsynced: Mutex::default(),
            bounded: AtomicBool::new(false),
            mismatches: AtomicU64::new(0),
            evicted_layers: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
            over_limit: AtomicU64::new(0),
            usage: Mutex::default(),
        };
        let store = Self(Arc::new(inner));
        // What is in the cache can be used, whatever was left behind in it.
        if let Err(error) = store.sweep() {
            tracing::warn!(error = chain(&error), "what was left behind could not be looked at");
        }
        Ok(store)
    }

    /// Who owns the cache. What it says is only as good as this user; for others it is verified only if they trust him.
    pub fn owner_uid(&self) -> u32 {
        self.0.uid
    }

    /// The type of the filesystem that the cache is on, as the kernel's table of mounts has it.
    pub fn filesystem(&self) -> Option<String> {
        host::mount_type(&self.0.top)
    }

    /// The bytes that are free there; `None` on a filesystem that knows no size.
    pub fn room(&self) -> Result<Option<u64>, StoreError> {
        evict::room(&self.0.top)
    }

    /// Why nothing could be written there when the cache was opened, if that was so. What is in it can be read all the same.
    pub fn trouble(&self) -> Option<&StoreError> {
        self.0.abilities.trouble.as_ref()
    }

    /// Whether space can be reserved there, so that a full disk is noticed before a fetch and not in it.
    pub fn can_reserve(&self) -> bool {
        self.0.abilities.fallocate
    }

    /// How often [`Store::ensure`] met a layer whose bytes were not what its digest says, in this process.
    pub fn mismatches(&self) -> u64 {
        self.0.mismatches.load(Ordering::Relaxed)
    }

    /// What this process has evicted.
    pub fn evicted(&self) -> Evicted {
        Evicted { layers: self.0.evicted_layers.load(Ordering::Relaxed), bytes: self.0.evicted_bytes.load(Ordering::Relaxed) }
    }

    /// By how many bytes the cache was to become larger than its limit when this process made room last, because what could go was not enough.
    pub fn over_limit(&self) -> u64 {
        self.0.over_limit.load(Ordering::Relaxed)
    }

    /// What the cache holds, or held a moment ago ([`limits::USAGE_AGE`]): it is told by looking at every file in it.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut known = self.0.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, usage)) = *known
            && at.elapsed() < limits::USAGE_AGE
        {
            return Ok(usage);
        }
        let usage = evict::usage(&self.0)?;
        *known = Some((Instant::now(), usage));
        Ok(usage)
    }

    /// Where the cache is.
    pub fn dir(&self) -> &Path {
        self.0.top.path()
    }

    /// The names in a layer, if this host ever stored it, whether it is here or not. Touches no network and never waits.
    pub fn names(&self, spec: &LayerSpec) -> Result<Option<Index>, StoreError> {
        Ok(recall::index(&self.0, spec)?.map(|(_, index)| index))
    }

    /// Looks whether the layer is here. Cheap: no byte of it is read, and nothing is waited for.
    ///
    /// That what is found is verified is an assertion about the cache's owner, see the module's documentation.
    pub fn recall(&self, spec: &LayerSpec) -> Result<Recall, StoreError> {
        recall::recall(&self.0, spec)
    }

    /// Gets the layer: recalls it, or verifies once more what is doubtful, or fetches it. Blocks, possibly for as long as a large layer takes, so it
    /// belongs on a thread of its own (not one of `runtime`, which must have its time driver).
    ///
    /// Of all who ask at once, in this process and others, one works and the rest wait. One that died is replaced at once (by way of what it left, for
    /// plain layers), one that gives no sign of life for [`limits::SILENCE_SECONDS`] is worked beside. What a source said is told to nobody who has another
    /// one; errors of the disk are everybody's. A blob that does not match is fetched once more from scratch.
    pub fn ensure(&self, spec: &LayerSpec, source: &Arc<dyn Source>, runtime: &Handle) -> Result<VerifiedLayer, StoreError> {
        fetch::ensure(&self.0, spec, source, runtime)
    }

    /// [`Store::ensure`] for a layer that nobody waits for: no other one is evicted for it. Where that would be needed it is an error, as on a full disk.
    pub fn prefetch(&self, spec: &LayerSpec, source: &Arc<dyn Source>, runtime: &Handle) -> Result<VerifiedLayer, StoreError> {
        fetch::prefetch(&self.0, spec, source, runtime)
    }

    /// Sets how large the cache may become, for all who share it. Says what it was, if somebody had said something else.
    pub fn set_limit(&self, size: CacheSize) -> Result<Option<CacheSize>, StoreError> {
        quota::give(&self.0.top, size)
    }

    /// How many bytes the cache may hold now.
    pub fn limit(&self) -> Result<u64, StoreError> {
        evict::limit(&self.0)
    }

    /// Keeps the layer from being evicted, whether it is here already or comes later.
    pub fn pin(&self, layer: &LayerKey) -> Result<(), StoreError> {
        self.0.pinned.lock_file(&layer.file_name()).map(drop)?;
        self.0.pinned.sync()
    }

    /// Lets the layer be evicted again; false if it was not pinned.
    pub fn unpin(&self, layer: &LayerKey) -> Result<bool, StoreError> {
        let name = layer.file_name();
        let was = self.0.pinned.stat(&name)?.is_some();
        self.0.pinned.unlink(&name)?;
        Ok(was)
    }

    /// The layers that are pinned.
    pub fn pinned(&self) -> Result<Vec<LayerKey>, StoreError> {
        Ok(self.0.pinned.list()?.iter().filter_map(|name| LayerKey::from_file_name(name)).collect())
    }

    /// The file that whoever uses the layer holds open.
    pub fn use_lock(&self, layer: &LayerKey) -> PathBuf {
        self.0.locks.path_of(&UseLock::name(layer))
    }

    /// The layers that are here, the one that was not used for longest first.
    pub fn residents(&self) -> Result<Vec<Resident>, StoreError> {
        evict::residents(&self.0)
    }

    /// Removes what others left behind when they died, and evicts layers that nobody uses: until the cache keeps to its limit, or all of them. Documents
    /// keep to theirs, and with `all` those go too that nothing names.
    pub fn prune(&self, all: bool) -> Result<Evicted, StoreError> {
        self.0.remove_leftovers()?;
        WorkDir::discard(&self.0)?;
        let evicted = evict::prune(&self.0, all)?;
        stale::bound(&self.0, all)?;
        Ok(evicted)
    }

    /// Waits until the layer (and every document put here before) would survive a power cut.
    pub fn sync(&self, layer: &VerifiedLayer) -> Result<(), StoreError> {
        documents::sync(&self.0)?;
        durable::wait(&self.0, layer)
    }

    /// How far whoever works on the layer is, in any process, or how the last one ended; `None` if nobody ever did.
    pub fn progress(&self, layer: &LayerKey) -> Option<Progress> {
        let mut all = Vec::new();
        for place in 0..limits::FETCHERS_PER_LAYER {
            if let Ok(Some(file)) = IngestLock::look(&self.0.locks, layer, place)
                && let Some(record) = Record::read(&file)
            {
                all.push((IngestLock::held(&file), record));
            }
        }
        // Those at work before those that ended, the newest first.
        all.into_iter().max_by_key(|(held, record)| (*held, record.at())).map(|(held, record)| record.progress(held))
    }

    /// Whether the layer is here, on its way or neither. Cheap.
    pub fn state(&self, layer: &LayerKey) -> LayerState {
        if let Ok(Some(_)) = self.0.layers.stat(&layer.file_name()) {
            return LayerState::Cached;
        }
        let worked_on = |place| matches!(IngestLock::look(&self.0.locks, layer, place), Ok(Some(file)) if IngestLock::held(&file));
        if (0..limits::FETCHERS_PER_LAYER).any(worked_on) { LayerState::Fetching } else { LayerState::Absent }
    }

    /// Keeps a document. It is durable after the next [`Store::sync`].
    pub fn put_document(&self, document: &Verified<Bytes>) -> Result<(), StoreError> {
        documents::put(&self.0, document)
    }

    /// A document that was kept; hashed now, and removed if it is not what `descriptor` says.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Option<Verified<Bytes>>, StoreError> {
        documents::get(&self.0, descriptor)
    }

    /// Keeps what `reference` was resolved to.
    pub fn remember(&self, reference: &str, manifest: &Descriptor) -> Result<(), StoreError> {
        documents::remember(&self.0, reference, manifest)
    }

    /// What `reference` was resolved to when it last was.
    pub fn remembered(&self, reference: &str) -> Result<Option<Descriptor>, StoreError> {
        documents::remembered(&self.0, reference)
    }

    /// Keeps that these manifests were found attached to `subject`. They and what is in them are kept with [`Store::put_document`].
    pub fn keep_attached(&self, subject: &Digest, manifests: &[KeptManifest]) -> Result<(), StoreError> {
        attached::keep(&self.0, subject, manifests)
    }

    /// What was kept as attached to `subject`: what met an authority first, and then the latest first.
    pub fn attached(&self, subject: &Digest) -> Result<Vec<KeptManifest>, StoreError> {
        attached::kept(&self.0, subject)
    }

    /// Keeps that what is in `manifest` met an authority, so that it is the last to be forgotten. Nothing else follows from it.
    pub fn mark_met(&self, subject: &Digest, manifest: &Digest) -> Result<(), StoreError> {
        attached::mark_met(&self.0, subject, manifest)
    }

    /// Reads the whole layer back from disk and compares its digest with the descriptor (of a compressed one: the digest of its uncompressed content with
    /// the `diffId`, or with the one that was recorded). A damaged layer is withdrawn, and so is one that the disk cannot read (which is an error). A lost or
    /// damaged index is made anew.
    pub fn verify(&self, spec: &LayerSpec) -> Result<Verdict, StoreError> {
        let store = &*self.0;
        let layer = &spec.key();
        if store.layers.stat(&layer.file_name())?.is_none() {
            return Ok(Verdict::Absent);
        }
        let _in_use = UseLock::take(&store.locks, layer)?;
        let Some(dir) = store.layers.open_dir(&layer.file_name())? else { return Ok(Verdict::Absent) };
        let work = WorkDir::begin(store, layer)?;
        let found = recheck::recheck(store, spec, &dir, &work, &mut |_| {});
        match &found {
            Ok(Found::Damaged { .. }) => recheck::withdraw(store, layer, &dir)?,
            Err(error) if recheck::is_lost(error) => recheck::withdraw(store, layer, &dir)?,
            _ => {}
        }
        Ok(match found? {
            Found::Sound => Verdict::Sound,
            Found::Damaged { expected, got } => Verdict::Damaged { expected, got },
        })
    }

    /// Notes that the index of a layer proved unreadable: [`Store::ensure`] makes a new one.
    pub fn doubt(&self, spec: &LayerSpec) -> Result<(), StoreError> {
        let layer = &spec.key();
        if let Some(index) = self.0.index.open(&layer.file_name())? {
            recall::doubt(&self.0, layer, &index);
        }
        Ok(())
    }

    /// The layers that are here.
    pub fn layers(&self) -> Result<Vec<LayerKey>, StoreError> {
        let mut layers: Vec<_> = self.0.layers.list()?.iter().filter_map(|name| LayerKey::from_file_name(name)).collect();
        layers.sort_unstable();
        Ok(layers)
    }

    /// Takes over a layer that was kept in use while the process that had it open died. Its descriptors say the same as then, or it is doubtful.
    pub fn adopt(&self, spec: &LayerSpec, held: Held) -> Result<VerifiedLayer, StoreError> {
        let (layer, key) = (spec.descriptor.digest, spec.key());
        let doubtful = |file: &str, reason| StoreError::Doubtful { layer, file: file.to_owned(), reason };
        let (index_file, pack) = (File::from(held.index), File::from(held.pack));
        let index = Index::map(&index_file, &layer).map_err(|error| doubtful("index", error.to_string()))?;
        if !recall::is_read_so(spec, &index) {
            return Err(doubtful("index", "it is of the same blob, read in another way".into()));
        }
        recall::agrees(spec, &index)?;
        check_pack(&pack, &index).map_err(|reason| doubtful("pack", reason))?;
        let dir = Dir::adopt(held.dir, self.0.layers.path_of(&key.file_name()));
        let parts = Parts { spec: spec.clone(), lock: UseLock::adopt(held.lock), dir, pack, index_file, index };
        Ok(VerifiedLayer::new(&self.0, parts))
    }

    /// Removes what others left behind when they died. Large files take their time, so only looking is done here.
    fn sweep(&self) -> Result<(), StoreError> {
        if self.0.trash.list()?.is_empty() && self.0.ingest.list()?.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.0);
        let swept = thread::Builder::new().name("kitfs-sweep".into()).spawn(move || {
            if let Err(error) = store.remove_leftovers() {
                tracing::warn!(error = chain(&error), "what was left behind could not be removed");
            }
        });
        swept.map(drop).map_err(disk("starting a thread to remove what was left behind"))
    }
}

impl Inner {
    /// Makes the names durable that lead to the store's directories. Whoever made them may have died before; so each process does it, once.
    fn root(&self) -> Result<(), StoreError> {
        if !self.rooted.load(Ordering::Relaxed) {
            self.v1.sync()?;
            self.top.sync()?;
            self.rooted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for name in self.trash.list()? {
            self.trash.remove_tree(&name)?;
        }
        Draft::sweep(&self.ingest, documents::DRAFT)?;
        Draft::sweep(&self.top, quota::DRAFT)?;
        WorkDir::sweep(self)
    }
}
