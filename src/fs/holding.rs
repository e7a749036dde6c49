//! What of each layer is open, for whom and until when: what is held cannot be evicted, and has descriptors.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lru::LruCache;
use rustix::io::Errno;

use super::{Answer, Fs, Opened, disk, errno};
use crate::layer::LayerSpec;
use crate::limits::{HANDLE_GRACE, RESTING_LAYERS_MAX};
use crate::node::NodeId;
use crate::store::{Content, Held, Recall, VerifiedLayer};
use crate::tree::{Known, Node};
use crate::wait::Need;

pub(super) struct Layer {
    pub(super) spec: LayerSpec,
    pub(super) state: Mutex<Open>,
}

/// A layer's content is held only while files of it are open, and a little longer: what is held cannot be evicted.
#[derive(Default)]
pub(super) struct Open {
    pub(super) layer: Option<VerifiedLayer>,
    /// Files of their own that were read through us lately, by rank: a reader that goes through one must not open it for each piece.
    pub(super) files: Option<LruCache<u32, (Arc<File>, u64)>>,
    pub(super) handles: u64,
    pub(super) idle_since: Option<Instant>,
    /// The supervisor holds it too, for the next worker.
    pub(super) handed: bool,
}

impl Open {
    pub(super) fn close(&mut self) {
        self.files = None;
        if let Some(layer) = self.layer.take() {
            // The time that it rested here is part of the time in which it is not evicted.
            layer.rested(self.idle_since.map(|since| since.elapsed()).unwrap_or_default());
        }
        self.idle_since = None;
    }
}

impl Fs {
    /// OPEN: when it answers, every byte behind the node is verified and on local disk, and stays there until [`Fs::released`] was called
    /// as often as `opened` says so. `hand` is given what the next worker must inherit, before the first handle of a layer counts.
    pub fn open(&self, id: NodeId, hand: &mut dyn FnMut(u16, Held)) -> Result<Answer<Opened>, Errno> {
        let node = self.node(id)?;
        if node == Node::Kitfile {
            return Ok(Answer::Now(Opened::Cached));
        }
        let at = match self.tree.file(node) {
            Ok(Known::Is(at)) => at,
            Ok(Known::Absent) => return Err(Errno::STALE),
            Ok(Known::Unknown(group)) => return Ok(Answer::Wait(Need::Names(group))),
            Err(error) => return Err(self.damaged(&error)),
        };
        let mut open = self.open_layer(at.slot);
        let Some(layer) = self.recall(at.slot, &mut open)? else { return Ok(Answer::Wait(Need::Content(at.slot))) };
        let opened = match layer.content(at.entry) {
            Ok(Content::Data(file, _)) => Opened::Data(file),
            Ok(Content::Packed { .. }) => Opened::Cached,
            Err(error) => {
                // What is in the cache is not what it was: it is checked from disk, or fetched, before anything of it is used.
                tracing::warn!(layer = %self.spec(at.slot).descriptor.digest, %error, "cached layer is checked again");
                open.close();
                return Ok(Answer::Wait(Need::Content(at.slot)));
            }
        };
        if !open.handed {
            match layer.held() {
                Ok(held) => hand(at.slot, held),
                Err(error) => return Err(disk("descriptors of a layer", &error)),
            }
            open.handed = true;
        }
        open.handles += 1;
        open.idle_since = None;
        Ok(Answer::Now(opened))
    }

    /// A file that [`Fs::open`] answered for was closed.
    pub fn released(&self, id: NodeId) {
        let slot = match self.node(id) {
            Ok(node) => match self.tree.file(node) {
                Ok(Known::Is(at)) => at.slot,
                _ => return,
            },
            Err(_) => return,
        };
        let mut open = self.open_layer(slot);
        open.handles = open.handles.saturating_sub(1);
        if open.handles == 0 {
            open.idle_since = Some(Instant::now());
            drop(open);
            self.rest(slot);
        }
    }

    /// Goes on with what an earlier worker had open.
    pub fn adopt(&self, slot: u16, held: Held, handles: u64) {
        let mut open = self.open_layer(slot);
        match self.store().map(|store| store.adopt(self.spec(slot), held)) {
            Ok(Ok(layer)) => open.layer = Some(layer),
            // The supervisor has it still, for a worker that has a cache.
            Err(_) => {}
            Ok(Err(error)) => tracing::warn!(slot, %error, "a layer that was open before the restart is opened anew"),
        }
        open.handed = true;
        open.handles = handles;
        open.idle_since = (handles == 0).then(Instant::now);
        drop(open);
        if let Err(error) = self.learn(self.tree.group_of(slot)) {
            tracing::warn!(%error, "layer cannot be shown");
        }
    }

    /// Lets go of layers that nobody has had open for a while; `let_go` hears which the supervisor need not hold any more.
    pub fn let_go_of_idle(&self, let_go: &mut dyn FnMut(u16)) {
        for (rank, layer) in self.layers.iter().enumerate() {
            let mut open = layer.state.lock().unwrap_or_else(PoisonError::into_inner);
            let closed = open.layer.is_none() && open.handed;
            if open.handles == 0 && (closed || open.idle_since.is_some_and(|since| since.elapsed() >= HANDLE_GRACE)) {
                // What pins blocks goes first, the lock with it; then the supervisor's copy.
                open.close();
                if std::mem::take(&mut open.handed) {
                    let_go(rank as u16 + 1);
                }
            }
        }
    }

    pub(super) fn open_layer(&self, slot: u16) -> MutexGuard<'_, Open> {
        self.layers[usize::from(slot) - 1].state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer if it is open or can be opened without waiting.
    pub(super) fn recall(&self, slot: u16, open: &mut Open) -> Result<Option<VerifiedLayer>, Errno> {
        if open.layer.is_none() {
            let store = self.store().map_err(|error| errno(&error.class()))?;
            match store.recall(self.spec(slot)) {
                Ok(Recall::Ready(layer)) => {
                    open.layer = Some(layer);
                    open.idle_since = (open.handles == 0).then(Instant::now);
                }
                Ok(Recall::Doubtful | Recall::Absent) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(open.layer.clone())
    }

    /// Notes that a layer is open though none of its files need be, and closes the one that has rested longest if too many do: each has descriptors.
    pub(super) fn rest(&self, slot: u16) {
        let longest = {
            let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
            resting.put(slot, ());
            if resting.len() <= RESTING_LAYERS_MAX { None } else { resting.pop_lru() }
        };
        if let Some((slot, ())) = longest {
            let mut open = self.open_layer(slot);
            if open.handles == 0 {
                open.close();
            }
        }
    }
}
