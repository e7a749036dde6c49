//! The filesystem without FUSE: what to answer to a question about a node, or which one layer the answer waits for.
//!
//! Everything that is shown comes from the plan (verified manifest and config), from a layer's index, or from a [`VerifiedLayer`]; there is
//! no other way to a byte. This is also the one place that turns a failure into an errno. It does not know requests and replies
//! (`crate::fuse`), nor how a layer gets here ([`crate::fetch`], [`crate::store`]).

mod holding;

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use lru::LruCache;
use rustix::io::Errno;

use crate::digest::Digest;
use crate::failure::{ErrorClass, chain};
use crate::fetch::{Failed, Fetcher, Standing, Wanted};
use crate::index::{Index, Kind};
use crate::kit::{KitLayer, LayerKind, Lineage};
use crate::layer::{Archive, LayerSpec, RawFile};
use crate::limits::{INDEX_RENEWALS, OPEN_FILES_MAX};
use crate::node::NodeId;
use crate::rehearsal;
use crate::store::{Content, LayerState, Recall, Store, StoreError, VerifiedLayer};
use crate::tree::{Attributes, Child, DeclaredFile, Group, Known, Lookup, Node, Place, Tree, TreeError};
use crate::wait::Need;
use holding::Layer;

/// The filesystem of one mount.
pub struct Fs {
    tree: Tree,
    /// The generated Kitfile; empty if there is none, and then nothing names it.
    kitfile: Bytes,
    reference: String,
    digest: Digest,
    layers: Vec<Layer>,
    /// The cache, or why it cannot be opened: then nothing is known but what the plan says, and whatever needs more is answered with that.
    store: Result<Store, StoreError>,
    fetcher: Arc<Fetcher>,
    ended: Ended,
    agree: Agree,
    /// Layers that are open though no file of theirs is, the least recently used last.
    resting: Mutex<LruCache<u16, ()>>,
    /// What a first touch of a model's layer brings after it; empty with `--prefetch none`.
    model: Vec<u16>,
    /// Those of the model whose first touch does that. Who reads a configuration may never want the weights.
    weights: Vec<u16>,
    model_touched: AtomicBool,
    /// What a file or folder without a time of its own shows, in seconds.
    created: i64,
    /// When it was put together.
    since: SystemTime,
}

/// Told when a wait is over.
pub type Ended = Box<dyn Fn(Need, Result<(), Errno>) + Send + Sync>;

/// Told a layer's slot and the checksum of its entry table; false if an earlier worker of this mount went by another table.
pub type Agree = Box<dyn Fn(u16, u64) -> bool + Send + Sync>;

/// What there is to say now.
#[derive(Debug)]
pub enum Answer<T> {
    /// The answer.
    Now(T),
    /// There is none before this came.
    Wait(Need),
}

/// How an open file is read.
#[derive(Debug)]
pub enum Opened {
    /// It has a data file of its own, which a backing file can be made of.
    Data(Arc<File>),
    /// It is in a pack, or generated: reads come to us, and stay in the page cache.
    Cached,
}

/// How a layer stands, for `kitfs status`.
#[derive(Debug)]
pub enum LayerStanding {
    /// Not here, and nobody asked for it.
    Absent,
    /// It waits for its turn.
    Waiting,
    /// It is being fetched.
    Fetching,
    /// It is in the cache.
    Cached,
    /// The last attempt failed.
    Failed(Failed),
}

/// Shown where neither archive nor manifest gives a time: zip tools refuse anything older.
const OLDEST_SHOWN: i64 = 315_532_800; // 1980-01-01

impl Fs {
    /// The filesystem of a plan. Layers that this host ever indexed are known at once, without their content.
    pub fn new(
        lineage: &Lineage,
        reference: String,
        store: Result<Store, StoreError>,
        fetcher: Arc<Fetcher>,
        prefetch_model: bool,
        ended: Ended,
        agree: Agree,
    ) -> Result<Arc<Self>, TreeError> {
        let tree = tree(lineage)?;
        let kit = lineage.root();
        let layers = lineage.layers.iter().map(|layer| Layer { spec: layer.spec.clone(), state: Mutex::default() }).collect();
        let of_model = || (1..).zip(&lineage.layers).filter(|(_, layer)| prefetch_model && layer.kind.is_of_model());
        let model = of_model().map(|(slot, _)| slot).collect();
        let weights = of_model().filter(|(_, layer)| layer.kind != LayerKind::ModelConfig).map(|(slot, _)| slot).collect();
        let created = kit.created.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs() as i64);
        let fs = Arc::new(Self {
            tree,
            kitfile: lineage.kitfile.clone().unwrap_or_default(),
            reference,
            digest: kit.manifest.digest,
            layers,
            store,
            fetcher: Arc::clone(&fetcher),
            ended,
            agree,
            resting: Mutex::new(LruCache::unbounded()),
            model,
            weights,
            model_touched: AtomicBool::new(false),
            created: created.unwrap_or(OLDEST_SHOWN).max(OLDEST_SHOWN),
            since: SystemTime::now(),
        });
        let weak: Weak<Self> = Arc::downgrade(&fs);
        fetcher.listen(Box::new(move |slot, outcome| {
            if let Some(fs) = weak.upgrade() {
                fs.fetched(slot, outcome);
            }
        }));
        for group in fs.tree.groups() {
            // What is wrong with an index here is wrong when somebody asks, and said then.
            if let Err(error) = fs.learn(group) {
                tracing::warn!(%error, "layer cannot be shown");
            }
        }
        Ok(fs)
    }

    /// The reference that was mounted.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The manifest's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The tree, for what is only about names.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The layers' specs in manifest order; the n-th has slot n + 1.
    pub fn specs(&self) -> impl Iterator<Item = &LayerSpec> {
        self.layers.iter().map(|layer| &layer.spec)
    }

    /// The modification time that is shown for one that the archive gives.
    pub fn shown_time(&self, mtime: i64) -> i64 {
        if mtime == 0 { self.created } else { mtime.max(0) }
    }

    /// The node of an id from the kernel.
    pub fn node(&self, id: NodeId) -> Result<Node, Errno> {
        self.tree.node(id).map_err(|error| self.damaged(&error))
    }

    /// LOOKUP, which must not wait if it can be helped: a waiting lookup makes its neighbours unkillable. It waits in one case: the index
    /// of a shared folder was deleted from under the mount, and there is nothing else to say.
    pub fn lookup(&self, folder: Node, name: &[u8]) -> Result<Answer<Lookup>, Errno> {
        match self.tree.lookup(folder, name) {
            // The kernel sends GETATTR of a placeholder before it looks up in it. One that comes anyway looks its folder up again.
            Ok(Lookup::Cold(group)) if self.store.is_ok() && !self.tree.is_shared_directory(group) => Err(Errno::STALE),
            // Without a cache the wait is over before it begins, and the answer is what is wrong.
            Ok(Lookup::Cold(group)) => Ok(Answer::Wait(Need::Names(group))),
            Ok(found) => Ok(Answer::Now(found)),
            Err(error) => Err(self.damaged(&error)),
        }
    }

    /// GETATTR. A placeholder that turned out to be no folder is ESTALE: the kernel looks the name up again.
    pub fn attributes(&self, id: NodeId) -> Result<Answer<Attributes>, Errno> {
        let node = self.node(id)?;
        match self.tree.attributes(node) {
            Ok(Known::Is(attributes)) if self.tree.id(node, attributes.kind, 0).incarnation() == 0 && id.incarnation() > 0 => {
                Err(Errno::STALE)
            }
            Ok(Known::Is(attributes)) if attributes.kind == Kind::File && id.incarnation() == 0 => Err(Errno::STALE),
            Ok(Known::Is(attributes)) => Ok(Answer::Now(attributes)),
            Ok(Known::Absent) => Err(Errno::STALE),
            Ok(Known::Unknown(group)) => Ok(Answer::Wait(Need::Names(group))),
            Err(error) => Err(self.damaged(&error)),
        }
    }

    /// READDIR: calls `each` for the names from `position` on.
    pub fn list(&self, folder: Node, position: u64, each: &mut dyn FnMut(u64, Child<'_>) -> ControlFlow<()>) -> Result<Answer<()>, Errno> {
        match self.tree.list(folder, position, each) {
            Ok(Known::Unknown(group)) => Ok(Answer::Wait(Need::Names(group))),
            Ok(_) => Ok(Answer::Now(())),
            Err(error) => Err(self.damaged(&error)),
        }
    }

    /// READ: fills `buffer` from `offset` on, as far as the file goes, and says how much that was.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<Answer<usize>, Errno> {
        let node = self.node(id)?;
        if node == Node::Kitfile {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.kitfile.len());
            let rest = &self.kitfile[from..];
            let length = rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            return Ok(Answer::Now(length));
        }
        let at = match self.tree.file(node) {
            Ok(Known::Is(at)) => at,
            Ok(Known::Absent) => return Err(Errno::STALE),
            Ok(Known::Unknown(group)) => return Ok(Answer::Wait(Need::Names(group))),
            Err(error) => return Err(self.damaged(&error)),
        };
        let content = {
            let mut open = self.open_layer(at.slot);
            let Some(layer) = self.recall(at.slot, &mut open)? else { return Ok(Answer::Wait(Need::Content(at.slot))) };
            match open.files.as_mut().and_then(|files| files.get(&at.entry)) {
                Some((file, size)) => Ok(Content::Data(Arc::clone(file), *size)),
                None => layer.content(at.entry).inspect(|content| {
                    if let Content::Data(file, size) = content {
                        open.files.get_or_insert_with(|| LruCache::new(OPEN_FILES_MAX)).put(at.entry, (Arc::clone(file), *size));
                    }
                }),
            }
        };
        let (file, start, size) = match content {
            Ok(Content::Data(file, size)) => (file, 0, size),
            Ok(Content::Packed { pack, offset, size }) => (pack, offset, size),
            Err(error) => {
                tracing::warn!(layer = %self.spec(at.slot).descriptor.digest, %error, "cached layer is checked again");
                self.open_layer(at.slot).close();
                return Ok(Answer::Wait(Need::Content(at.slot)));
            }
        };
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        // Exactly that much is there: anything less is a damaged disk, and must not look like the end of the file.
        match rehearsal::step("read:served").and_then(|()| file.read_exact_at(&mut buffer[..length], start + offset)) {
            Ok(()) => Ok(Answer::Now(length)),
            Err(error) => Err(disk("read from the cache", &error)),
        }
    }

    /// Sees to it that what is needed comes. Called after the request was parked, so that whatever happens now finds it.
    pub fn demand(&self, need: Need) {
        match need {
            Need::Content(slot) => self.demand_content(slot),
            Need::Names(group) => {
                match self.learn(group) {
                    Ok(true) => return (self.ended)(need, Ok(())),
                    Ok(false) => {}
                    // It is made anew, and then the group is learned.
                    Err(error) if error.unreadable().is_some() => {
                        let _told_to_whoever_reads = self.damaged(&error);
                        return;
                    }
                    Err(error) => return self.refuse(group, &error),
                }
                for &slot in self.tree.slots(group) {
                    if self.index_of(slot).is_none() {
                        self.demand_content(slot);
                    }
                }
            }
        }
    }

    /// How a layer stands.
    pub fn standing(&self, slot: u16) -> LayerStanding {
        match self.fetcher.standing(slot) {
            Standing::Queued => LayerStanding::Waiting,
            Standing::Running => LayerStanding::Fetching,
            Standing::Failed(failed) => LayerStanding::Failed(failed),
            Standing::Idle => match self.store().map(|store| store.state(&self.spec(slot).key())) {
                Ok(LayerState::Cached) => LayerStanding::Cached,
                Ok(LayerState::Fetching) => LayerStanding::Fetching,
                Ok(LayerState::Absent) => LayerStanding::Absent,
                Err(error) => LayerStanding::Failed(Failed { class: error.class(), message: chain(error), retry_at: self.since }),
            },
        }
    }

    /// How many bytes of what is needed have come, from whichever process fetches them.
    pub fn fetched_bytes(&self, need: Need) -> u64 {
        let slots: &[u16] = match &need {
            Need::Content(slot) => std::slice::from_ref(slot),
            Need::Names(group) => self.tree.slots(*group),
        };
        let layers = slots.iter().map(|&slot| self.spec(slot).key());
        layers.filter_map(|layer| self.store().ok()?.progress(&layer)).map(|progress| progress.fetched).sum()
    }

    /// The cache. That there is none was said once, when it was found out.
    fn store(&self) -> Result<&Store, &StoreError> {
        self.store.as_ref()
    }

    fn spec(&self, slot: u16) -> &LayerSpec {
        &self.layers[usize::from(slot) - 1].spec
    }

    fn index_of(&self, slot: u16) -> Option<Index> {
        if let Some(index) = self.tree.index(slot) {
            return Some(index.clone());
        }
        if let Some(layer) = &self.open_layer(slot).layer {
            return Some(layer.index().clone());
        }
        // An index that cannot be read is as good as none: the layer is checked again and gets a new one.
        self.store().ok()?.names(self.spec(slot)).inspect_err(|error| tracing::warn!(%error, "index of a layer")).ok().flatten()
    }

    /// Makes a group known, if all its indexes are here.
    fn learn(&self, group: Group) -> Result<bool, TreeError> {
        if self.tree.is_known(group) {
            return Ok(true);
        }
        let indexes: Option<Vec<Index>> = self.tree.slots(group).iter().map(|&slot| self.index_of(slot)).collect();
        match indexes {
            None => Ok(false),
            Some(indexes) => {
                for (&slot, index) in self.tree.slots(group).iter().zip(&indexes) {
                    if !(self.agree)(slot, index.table_checksum()) {
                        return Err(TreeError::OtherTable(self.spec(slot).descriptor.digest));
                    }
                }
                self.tree.learn(group, indexes).map(|()| true)
            }
        }
    }

    fn demand_content(&self, slot: u16) {
        let here = {
            let mut open = self.open_layer(slot);
            self.recall(slot, &mut open).map(|layer| layer.is_some())
        };
        match here {
            Ok(true) => return self.arrived(slot),
            Err(errno) => return self.end(slot, Err(errno)),
            Ok(false) => {}
        }
        if self.weights.contains(&slot) && !self.model_touched.swap(true, Ordering::Relaxed) {
            let others = self.model.iter().copied().filter(|&other| other != slot);
            let absent =
                others.filter(|&other| self.store().is_ok_and(|store| matches!(store.recall(self.spec(other)), Ok(Recall::Absent))));
            let absent: Vec<u16> = absent.collect();
            let wanted = self.fetcher.want(slot);
            self.fetcher.prefetch(absent);
            return self.wanted(slot, wanted);
        }
        let wanted = self.fetcher.want(slot);
        self.wanted(slot, wanted);
    }

    fn wanted(&self, slot: u16, wanted: Wanted) {
        if let Wanted::Failing(failed) = wanted {
            self.end(slot, Err(errno(&failed.class)));
        }
    }

    fn fetched(&self, slot: u16, outcome: Result<VerifiedLayer, Failed>) {
        match outcome {
            Err(failed) => self.end(slot, Err(errno(&failed.class))),
            Ok(layer) => {
                if let Some(known) = self.tree.index(slot) {
                    known.renew(layer.index());
                }
                {
                    let mut open = self.open_layer(slot);
                    open.close();
                    open.layer = Some(layer);
                    // What the supervisor holds may be of a copy that was withdrawn.
                    open.handed = false;
                    open.idle_since = (open.handles == 0).then(Instant::now);
                }
                self.rest(slot);
                self.arrived(slot);
            }
        }
    }

    fn arrived(&self, slot: u16) {
        let group = self.tree.group_of(slot);
        match self.learn(group) {
            Ok(known) => {
                (self.ended)(Need::Content(slot), Ok(()));
                if known {
                    (self.ended)(Need::Names(group), Ok(()));
                }
            }
            // It was made a moment ago, so the disk is what fails.
            Err(error) if error.unreadable().is_some() => {
                tracing::error!(error = chain(&error), "layer cannot be shown");
                let class = ErrorClass::Disk(libc::EIO);
                self.fetcher.refuse(slot, class, chain(&error));
                self.end(slot, Err(errno(&class)));
            }
            Err(error) => self.refuse(group, &error),
        }
    }

    fn end(&self, slot: u16, outcome: Result<(), Errno>) {
        let group = self.tree.group_of(slot);
        self.tree.note_failing(group, outcome.is_err());
        (self.ended)(Need::Content(slot), outcome);
        (self.ended)(Need::Names(group), outcome);
    }

    /// A group whose layers are what their digests say, but do not fit into this kit.
    fn refuse(&self, group: Group, error: &TreeError) {
        let errno = self.damaged(error);
        for &slot in self.tree.slots(group) {
            self.fetcher.refuse(slot, ErrorClass::Refused, error.to_string());
            self.end(slot, Err(errno));
        }
    }

    fn damaged(&self, error: &TreeError) -> Errno {
        match error {
            TreeError::NoSuchNode(_) => Errno::STALE,
            _ => {
                tracing::error!(error = chain(error), "layer cannot be shown");
                if let Some(layer) = error.unreadable() {
                    self.renew_index(layer);
                }
                Errno::IO
            }
        }
    }

    /// Has the index of a layer made anew from the layer's own files, or with the layer. Whoever asked gets an error meanwhile, the next one an answer, but
    /// not for ever.
    fn renew_index(&self, layer: &Digest) {
        let slots = (1..).zip(self.specs()).filter(|(_, spec)| spec.descriptor.digest == *layer);
        for (slot, spec) in slots {
            if self.tree.index(slot).is_some_and(Index::is_spent) {
                tracing::error!(%layer, times = INDEX_RENEWALS, "the index is damaged again and is not made anew any more: until a new mount, its names are errors");
                continue;
            }
            match self.store().map(|store| store.doubt(spec)) {
                Ok(Ok(())) => {
                    let wanted = self.fetcher.want(slot);
                    self.wanted(slot, wanted);
                }
                Ok(Err(error)) => self.end(slot, Err(self.failed(&error))),
                Err(error) => self.end(slot, Err(errno(&error.class()))),
            }
        }
    }

    fn failed(&self, error: &StoreError) -> Errno {
        tracing::warn!(error = chain(error), "cache");
        errno(&error.class())
    }
}

/// What the plan knows of the file that a raw layer is.
fn declared_file(layer: &KitLayer) -> Option<DeclaredFile> {
    match (layer.spec.archive, layer.file) {
        (Archive::Raw { size }, Some(RawFile { mode, mtime })) => Some(DeclaredFile { mode, mtime, size }),
        _ => None,
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("reference", &self.reference).field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The tree of a kit and what it refers to, none of whose layers is known yet.
pub fn tree(lineage: &Lineage) -> Result<Tree, TreeError> {
    let places = lineage.layers.iter().map(|layer| Place {
        digest: layer.spec.descriptor.digest,
        path: layer.path.clone(),
        prefix: layer.prefix.clone(),
        size: layer.spec.descriptor.size,
        file: declared_file(layer),
    });
    Tree::new(places.collect(), lineage.kitfile.as_ref().map(|kitfile| kitfile.len() as u64), lineage.shown.clone())
}

/// What a reader gets for each kind of failure. Damage, refusals and the network are all EIO: the reader can do nothing about any of them,
/// and `kitfs status` says which it was. A stall is told apart because waiting longer may help, and a full disk because somebody can act.
pub fn errno(class: &ErrorClass) -> Errno {
    match class {
        ErrorClass::Content | ErrorClass::Refused | ErrorClass::Missing | ErrorClass::Denied | ErrorClass::Network => Errno::IO,
        ErrorClass::Stalled => Errno::TIMEDOUT,
        ErrorClass::Disk(errno) => match Errno::from_raw_os_error(*errno) {
            passed @ (Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE) => passed,
            _ => Errno::IO,
        },
    }
}

fn disk(what: &str, error: &std::io::Error) -> Errno {
    tracing::error!(%error, what, "cache");
    errno(&ErrorClass::of_disk(error))
}
