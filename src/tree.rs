//! The tree of a mount: declared paths, and the indexes of the layers that are known so far.
//!
//! The tree is a function of manifest and config. A path belongs to the layer with the longest declared path that covers it; layers with
//! the same declared path form a *group* that becomes known together. So every question has one of three answers: this is it, there
//! is no such thing (final), or it depends on a group whose index is not here yet. Nothing is guessed, and the order in which layers
//! arrive cannot be seen.
//!
//! A *raw* layer is one file, which the plan describes: it stands alone at its declared path and is known without an index, but for its size if
//! it is compressed and the manifest does not say it.
//!
//! *Anchors* are the paths that are known from the plan alone: declared paths and all their ancestors. Every ancestor of an anchor is an
//! anchor, so below any other folder only its group's indexes speak.
//!
//! This module does not know how an index gets here, nor what a request is: see [`crate::fs`].

mod anchor;
mod check;
mod error;
mod listing;
mod sight;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::digest::Digest;
use crate::filter::Shown;
use crate::index::{Index, IndexError, Kind, RAW_RANK};
use crate::node::NodeId;
use crate::path::RelPath;
use anchor::{Anchor, GroupOf};
use sight::Sight;

pub use error::TreeError;

/// Where a layer's files stand in the mount.
#[derive(Debug, Clone)]
pub struct Place {
    /// The layer's own digest, for messages.
    pub digest: Digest,
    /// The declared path: everything that the layer brings lies at or below it, or is a folder above it.
    pub path: RelPath,
    /// What is put before every name in the archive.
    pub prefix: RelPath,
    /// Bytes of the layer: what it costs to know more.
    pub size: u64,
    /// For a raw layer: the file that it is, which stands at `path`.
    pub file: Option<DeclaredFile>,
}

/// A file that the plan knows without an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeclaredFile {
    /// Permission bits.
    pub mode: u32,
    /// Modification time in seconds, 0 if the plan has none.
    pub mtime: i64,
    /// Size in bytes; if the plan does not know it, the layer's index does.
    pub size: Option<u64>,
}

/// A set of layers with the same declared path, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(pub usize);

/// A file or folder of the mount, as far as the plan or an index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A path that the plan knows, by its rank among them; 0 is the root.
    Anchor(usize),
    /// The generated Kitfile.
    Kitfile,
    /// An entry of a layer's index.
    Entry {
        /// The layer's slot, from 1.
        slot: u16,
        /// The rank in its index, from 1.
        entry: u32,
    },
}

/// What stands at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// File or folder.
    pub kind: Kind,
    /// Permission bits as they are shown.
    pub mode: u32,
    /// Size in bytes, 0 for folders.
    pub size: u64,
    /// Modification time in seconds, 0 if the archive has none.
    pub mtime: i64,
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It is there, and this is what it is.
    Found(Node, Attributes),
    /// There is nothing of that name, for good.
    Absent,
    /// It is a file, and this is what is known of it; its size is not (here it is 0), and the group's index will tell.
    Unsized(Node, Attributes),
    /// There may be something of that name; what it is, the group's index will tell.
    Unknown(Node, Group),
    /// Not even the folder's own names are known before the group is.
    Cold(Group),
}

/// The answer to a question about one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<T> {
    /// This is it.
    Is(T),
    /// It turned out that there is nothing (only a placeholder can).
    Absent,
    /// It depends on a group that is not known yet.
    Unknown(Group),
}

/// A name in a folder's listing.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The node.
    pub node: Node,
    /// What it is, if that is known.
    pub attributes: Option<Attributes>,
}

/// The file that a node stands for: an entry of a layer's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAt {
    /// The layer's slot, from 1.
    pub slot: u16,
    /// The rank in its index.
    pub entry: u32,
}

/// The tree; see the module's text.
#[derive(Debug)]
pub struct Tree {
    anchors: Vec<Anchor>,
    /// Anchors that no layer declares, in byte order; their rank + 1 is their entry in slot 0.
    unowned: Vec<usize>,
    groups: Vec<GroupOf>,
    /// For each layer the group it belongs to.
    members: Vec<(Group, Place)>,
    /// `None` if the generated Kitfile does not show.
    kitfile_size: Option<u64>,
    shown: Shown,
}

#[derive(Debug)]
struct Indexed {
    /// One per member.
    indexes: Vec<Index>,
    /// For the group's anchor and those below it that the group owns: the entry in each member's index, if it has one.
    entries: BTreeMap<usize, Vec<Option<u32>>>,
    /// What shows of them; `None` if everything does.
    sight: Option<Sight>,
}

impl DeclaredFile {
    fn shown(&self, size: u64) -> Attributes {
        Attributes { kind: Kind::File, mode: self.mode & 0o777 | 0o444, size, mtime: self.mtime }
    }
}

/// The mode of a folder that no archive describes.
const IMPLIED_MODE: u32 = 0o755;
/// The mode of the generated Kitfile.
const KITFILE_MODE: u32 = 0o644;
/// The name of the generated Kitfile.
pub const KITFILE: &[u8] = b"Kitfile";

impl Tree {
    /// All groups, in the order in which the manifest first names them.
    pub fn groups(&self) -> impl Iterator<Item = Group> + '_ {
        (0..self.groups.len()).map(Group)
    }

    /// The group that a layer belongs to.
    pub fn group_of(&self, slot: u16) -> Group {
        self.members[usize::from(slot) - 1].0
    }

    /// The slots of a group's layers, in manifest order.
    pub fn slots(&self, group: Group) -> &[u16] {
        &self.groups[group.0].slots
    }

    /// True if the listing of a folder that other layers stand in depends on this group, so that a mount waits for it.
    pub fn is_shared_directory(&self, group: Group) -> bool {
        let anchor = self.groups[group.0].anchor;
        anchor == 0 || self.anchors[anchor].children.iter().any(|&child| !self.anchors[child].left_out)
    }

    /// Notes whether a group can be had. What could as well be told by another then waits for that; no answer depends on it.
    pub fn note_failing(&self, group: Group, failing: bool) {
        self.groups[group.0].failing.store(failing, Ordering::Relaxed);
    }

    /// True if nothing about the group's names has to be waited for: its indexes are here, or the plan says it all.
    pub fn is_known(&self, group: Group) -> bool {
        let of = &self.groups[group.0];
        of.known.get().is_some() || of.file.is_some_and(|file| file.size.is_some())
    }

    /// True if nothing about any name has to be waited for, ever again.
    pub fn is_complete(&self) -> bool {
        self.groups().all(|group| self.is_known(group))
    }

    /// True for what the plan knows to be a file, whether its size is known or not.
    pub fn is_declared_file(&self, node: Node) -> bool {
        matches!(node, Node::Anchor(rank) if self.declared_file(rank).is_some())
    }

    /// The index of a layer, if its group is known.
    pub fn index(&self, slot: u16) -> Option<&Index> {
        let group = self.group_of(slot);
        self.groups[group.0].known.get().map(|indexed| &indexed.indexes[self.member(slot)])
    }

    /// Files and folders that are known so far.
    pub fn known_entries(&self) -> u64 {
        let indexed = self.groups.iter().filter_map(|group| group.known.get());
        let entries: u64 = indexed.flat_map(|indexed| &indexed.indexes).map(|index| u64::from(index.len())).sum();
        entries + self.anchors.len() as u64 + u64::from(self.kitfile_size.is_some())
    }

    /// Takes the indexes of a group's layers (in manifest order), if every entry in them is the group's to bring. Once known, a
    /// group stays known: its index is a function of its layers' bytes.
    pub fn learn(&self, group: Group, indexes: Vec<Index>) -> Result<(), TreeError> {
        let of = &self.groups[group.0];
        assert_eq!(indexes.len(), of.slots.len(), "one index per member");
        let mut entries: BTreeMap<usize, Vec<Option<u32>>> = BTreeMap::new();
        if of.file.is_some() {
            // Its only entry has a name that means nothing.
            entries.insert(of.anchor, vec![Some(RAW_RANK)]);
            let _same = of.known.set(Indexed { indexes, entries, sight: None });
            return Ok(());
        }
        for (member, index) in indexes.iter().enumerate() {
            self.check_owned(group, member, index, indexes.len(), &mut entries)?;
        }
        for second in 1..indexes.len() {
            for first in 0..second {
                self.check_disjoint(group, first, &indexes[first], second, &indexes[second])?;
            }
        }
        let sight = self.sight(group, &indexes, &entries)?;
        // Two threads may come with the same indexes; the first one's stay, and both are right.
        let _same = of.known.set(Indexed { indexes, entries, sight });
        Ok(())
    }

    /// The node of an id that the kernel sent.
    pub fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        let unknown = TreeError::NoSuchNode(id);
        let (slot, entry) = (id.slot(), id.entry());
        if slot == 0 {
            return match (entry as usize).checked_sub(1) {
                Some(rank) if rank < self.unowned.len() => Ok(Node::Anchor(self.unowned[rank])),
                Some(rank) if rank == self.unowned.len() && self.kitfile_size.is_some() => Ok(Node::Kitfile),
                _ => Err(unknown),
            };
        }
        let (group, _) = self.members.get(usize::from(slot) - 1).ok_or(unknown)?;
        if entry == 0 {
            return Ok(Node::Anchor(self.groups[group.0].anchor));
        }
        Ok(Node::Entry { slot, entry })
    }

    /// The id of a node, given what it is and how often it was replaced.
    pub fn id(&self, node: Node, kind: Kind, replaced: u32) -> NodeId {
        let incarnation = if kind == Kind::Folder { 0 } else { replaced + 1 };
        match node {
            Node::Anchor(rank) => {
                let anchor = &self.anchors[rank];
                match anchor.declared {
                    Some(group) if !anchor.path.is_root() => NodeId::new(self.groups[group.0].slots[0], 0, incarnation),
                    _ => NodeId::new(0, anchor.unowned as u32 + 1, incarnation),
                }
            }
            Node::Kitfile => NodeId::new(0, self.unowned.len() as u32 + 1, incarnation),
            Node::Entry { slot, entry } => NodeId::new(slot, entry, incarnation),
        }
    }

    /// The layer that alone owns a node, if one does.
    pub fn layer_of(&self, node: Node) -> Option<u16> {
        match node {
            Node::Kitfile => None,
            Node::Entry { slot, .. } => Some(slot),
            Node::Anchor(rank) => {
                let group = self.anchors[rank].declared?;
                match self.groups[group.0].slots[..] {
                    [slot] => Some(slot),
                    _ => None,
                }
            }
        }
    }

    /// What stands at a node.
    pub fn attributes(&self, node: Node) -> Result<Known<Attributes>, TreeError> {
        match node {
            Node::Kitfile => Ok(match self.kitfile_size {
                Some(size) => Known::Is(Attributes { kind: Kind::File, mode: KITFILE_MODE, size, mtime: 0 }),
                None => Known::Absent,
            }),
            Node::Entry { slot, entry } => {
                let group = self.group_of(slot);
                let Some(indexed) = self.groups[group.0].known.get() else { return Ok(Known::Unknown(group)) };
                if !self.is_in_sight(indexed, slot, entry) {
                    return Ok(Known::Absent);
                }
                Ok(Known::Is(self.attributes_of(slot, &indexed.indexes[self.member(slot)], entry)?))
            }
            Node::Anchor(rank) => self.anchor_attributes(rank),
        }
    }

    /// Which entry of which layer holds a file's content. `Unknown` for what is a placeholder still, `Absent` for folders.
    pub fn file(&self, node: Node) -> Result<Known<FileAt>, TreeError> {
        match node {
            Node::Kitfile => Ok(Known::Absent),
            Node::Entry { slot, entry } => match self.attributes(node)? {
                Known::Unknown(group) => Ok(Known::Unknown(group)),
                Known::Is(Attributes { kind: Kind::File, .. }) => Ok(Known::Is(FileAt { slot, entry })),
                _ => Ok(Known::Absent),
            },
            Node::Anchor(rank) => {
                if let Some((group, _)) = self.declared_file(rank) {
                    return Ok(Known::Is(FileAt { slot: self.groups[group.0].slots[0], entry: RAW_RANK }));
                }
                let Some(group) = self.anchors[rank].declared else { return Ok(Known::Absent) };
                let Some(indexed) = self.groups[group.0].known.get() else { return Ok(Known::Unknown(group)) };
                let Some((slot, entry)) = self.first_entry(group, indexed, rank) else { return Ok(Known::Absent) };
                match self.anchor_in_sight(rank)? {
                    Known::Is(()) => {}
                    Known::Absent => return Ok(Known::Absent),
                    Known::Unknown(group) => return Ok(Known::Unknown(group)),
                }
                let attributes = self.attributes_of(slot, &indexed.indexes[self.member(slot)], entry)?;
                Ok(if attributes.kind == Kind::File { Known::Is(FileAt { slot, entry }) } else { Known::Absent })
            }
        }
    }

    /// The folder that a folder stands in; the root's is the root. Files are not asked for.
    pub fn parent(&self, node: Node) -> Result<Node, TreeError> {
        match node {
            Node::Kitfile => Ok(Node::Anchor(0)),
            Node::Anchor(rank) => {
                let parent = self.anchors[rank].path.parent();
                Ok(Node::Anchor(parent.and_then(|path| self.anchor_at(&path)).unwrap_or(0)))
            }
            Node::Entry { slot, .. } => {
                let path = self.path(node)?;
                let parent = path.parent().unwrap_or_else(RelPath::root);
                if let Some(rank) = self.anchor_at(&parent) {
                    return Ok(Node::Anchor(rank));
                }
                let group = self.group_of(slot);
                Ok(self.find_in_group(group, &parent)?.unwrap_or(Node::Anchor(0)))
            }
        }
    }

    /// The path of a node in the mount.
    pub fn path(&self, node: Node) -> Result<RelPath, TreeError> {
        match node {
            Node::Kitfile => Ok(RelPath::parse(KITFILE).unwrap_or_else(|_| RelPath::root())),
            Node::Anchor(rank) => Ok(self.anchors[rank].path.clone()),
            Node::Entry { slot, entry } => {
                let id = NodeId::new(slot, entry, 0);
                let index = self.index(slot).ok_or(TreeError::NoSuchNode(id))?;
                self.path_of(slot, &index.path(entry).map_err(self.index_error(slot))?)
            }
        }
    }

    /// What stands at `name` in `folder`.
    pub fn lookup(&self, folder: Node, name: &[u8]) -> Result<Lookup, TreeError> {
        match folder {
            Node::Kitfile => Ok(Lookup::Absent),
            Node::Entry { slot, entry } => {
                let group = self.group_of(slot);
                let Some(indexed) = self.groups[group.0].known.get() else { return Ok(Lookup::Cold(group)) };
                if indexed.indexes.len() == 1 {
                    return self.lookup_in(slot, indexed, entry, name);
                }
                let path = self.path(folder)?;
                for &slot in &self.groups[group.0].slots {
                    if let Some(entry) = self.find_in(slot, &indexed.indexes[self.member(slot)], &path)?
                        && let found @ Lookup::Found(..) = self.lookup_in(slot, indexed, entry, name)?
                    {
                        return Ok(found);
                    }
                }
                Ok(Lookup::Absent)
            }
            Node::Anchor(rank) => self.lookup_in_anchor(rank, name),
        }
    }

    /// The path in the mount of what stands at `within` in a layer's archive.
    fn path_of(&self, slot: u16, within: &RelPath) -> Result<RelPath, TreeError> {
        let mut path = self.members[usize::from(slot) - 1].1.prefix.clone();
        for component in within.components() {
            path = path.join(component).map_err(|_| TreeError::NoSuchNode(NodeId::new(slot, 0, 0)))?;
        }
        Ok(path)
    }

    /// True if the globs let an entry show that is no anchor.
    fn is_in_sight(&self, indexed: &Indexed, slot: u16, entry: u32) -> bool {
        indexed.sight.as_ref().is_none_or(|sight| sight.shows(self.member(slot), entry))
    }

    fn member(&self, slot: u16) -> usize {
        let group = self.group_of(slot);
        self.groups[group.0].slots.iter().position(|&other| other == slot).expect("a slot is a member of its own group")
    }

    fn index_error(&self, slot: u16) -> impl Fn(IndexError) -> TreeError + '_ {
        move |source| TreeError::Index { layer: self.members[usize::from(slot) - 1].1.digest, source }
    }

    fn anchor_at(&self, path: &RelPath) -> Option<usize> {
        self.anchors.binary_search_by(|anchor| anchor.path.cmp(path)).ok()
    }

    /// The first member of the group, in manifest order, whose index has the anchor.
    fn first_entry(&self, group: Group, indexed: &Indexed, rank: usize) -> Option<(u16, u32)> {
        let entries = indexed.entries.get(&rank)?;
        self.groups[group.0].slots.iter().zip(entries).find_map(|(&slot, &entry)| Some((slot, entry?)))
    }

    fn declared_file(&self, rank: usize) -> Option<(Group, DeclaredFile)> {
        let group = self.anchors[rank].declared?;
        Some((group, self.groups[group.0].file?))
    }

    fn anchor_attributes(&self, rank: usize) -> Result<Known<Attributes>, TreeError> {
        match self.anchor_in_sight(rank)? {
            Known::Is(()) => {}
            Known::Absent => return Ok(Known::Absent),
            Known::Unknown(group) => return Ok(Known::Unknown(group)),
        }
        let anchor = &self.anchors[rank];
        if let Some((group, file)) = self.declared_file(rank) {
            let of = &self.groups[group.0];
            let size = match (file.size, of.known.get()) {
                (Some(size), _) => size,
                (None, Some(indexed)) => indexed.indexes[0].entry(RAW_RANK).map_err(self.index_error(of.slots[0]))?.size,
                (None, None) => return Ok(Known::Unknown(group)),
            };
            return Ok(Known::Is(file.shown(size)));
        }
        let folder = Attributes { kind: Kind::Folder, mode: IMPLIED_MODE, size: 0, mtime: 0 };
        let Some(group) = anchor.owner else { return Ok(Known::Is(folder)) };
        let Some(indexed) = self.groups[group.0].known.get() else {
            // The root and the folders above declared paths are there whatever their owner says; only their mode is the owner's.
            let certain = rank == 0 || anchor.declared.is_none();
            return Ok(if certain { Known::Is(folder) } else { Known::Unknown(group) });
        };
        match self.first_entry(group, indexed, rank) {
            // A layer of a kit before 0.5 names no folder above its own, and unpacking it makes them; the first mode wins.
            Some((slot, _)) if rank != 0 && anchor.made_by.is_some_and(|earlier| earlier < slot) => Ok(Known::Is(folder)),
            Some((slot, entry)) if rank != 0 => Ok(Known::Is(self.attributes_of(slot, &indexed.indexes[self.member(slot)], entry)?)),
            _ if rank == 0 || !anchor.children.is_empty() => Ok(Known::Is(folder)),
            _ => Ok(Known::Absent),
        }
    }

    fn attributes_of(&self, slot: u16, index: &Index, entry: u32) -> Result<Attributes, TreeError> {
        let entry = index.entry(entry).map_err(self.index_error(slot))?;
        let readable = if entry.kind == Kind::Folder { 0o555 } else { 0o444 };
        let size = if entry.kind == Kind::Folder { 0 } else { entry.size };
        Ok(Attributes { kind: entry.kind, mode: entry.mode & 0o777 | readable, size, mtime: entry.mtime })
    }

    fn lookup_in(&self, slot: u16, indexed: &Indexed, folder: u32, name: &[u8]) -> Result<Lookup, TreeError> {
        let index = &indexed.indexes[self.member(slot)];
        match index.lookup(folder, name).map_err(self.index_error(slot))? {
            Some(entry) if self.is_in_sight(indexed, slot, entry) => {
                Ok(Lookup::Found(Node::Entry { slot, entry }, self.attributes_of(slot, index, entry)?))
            }
            _ => Ok(Lookup::Absent),
        }
    }

    fn lookup_in_anchor(&self, rank: usize, name: &[u8]) -> Result<Lookup, TreeError> {
        let anchor = &self.anchors[rank];
        if let Ok(child) = anchor.children.binary_search_by(|&child| self.anchors[child].path.name().cmp(name)) {
            let node = Node::Anchor(anchor.children[child]);
            return Ok(match self.attributes(node)? {
                Known::Is(attributes) => Lookup::Found(node, attributes),
                Known::Absent => Lookup::Absent,
                Known::Unknown(group) => match self.declared_file(anchor.children[child]) {
                    Some((_, file)) => Lookup::Unsized(node, file.shown(0)),
                    None => Lookup::Unknown(node, group),
                },
            });
        }
        if self.declared_file(rank).is_some() {
            return Ok(Lookup::Absent);
        }
        if rank == 0 && name == KITFILE && self.kitfile_size.is_some() {
            let Known::Is(attributes) = self.attributes(Node::Kitfile)? else { return Ok(Lookup::Absent) };
            return Ok(Lookup::Found(Node::Kitfile, attributes));
        }
        let Some(group) = anchor.owner else { return Ok(Lookup::Absent) };
        let Some(indexed) = self.groups[group.0].known.get() else { return Ok(Lookup::Cold(group)) };
        let entries = indexed.entries.get(&rank).map(Vec::as_slice).unwrap_or_default();
        for (&slot, entry) in self.groups[group.0].slots.iter().zip(entries) {
            if let Some(entry) = *entry
                && let found @ Lookup::Found(..) = self.lookup_in(slot, indexed, entry, name)?
            {
                return Ok(found);
            }
        }
        Ok(Lookup::Absent)
    }

    fn find_in(&self, slot: u16, index: &Index, path: &RelPath) -> Result<Option<u32>, TreeError> {
        let prefix = &self.members[usize::from(slot) - 1].1.prefix;
        match path.strip_prefix(prefix) {
            Some(within) => index.find(&within).map_err(self.index_error(slot)),
            None => Ok(None),
        }
    }

    fn find_in_group(&self, group: Group, path: &RelPath) -> Result<Option<Node>, TreeError> {
        let Some(indexed) = self.groups[group.0].known.get() else { return Ok(None) };
        for &slot in &self.groups[group.0].slots {
            if let Some(entry) = self.find_in(slot, &indexed.indexes[self.member(slot)], path)? {
                return Ok(Some(Node::Entry { slot, entry }));
            }
        }
        Ok(None)
    }
}
