//! What a tree knows before any layer is here: the paths that the plan names, and whose they are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slotted;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use super::sight::Standing;
use super::{DeclaredFile, Group, Indexed, KITFILE, Place, Tree, TreeError};
use crate::filter::Shown;
use crate::node::SLOTS_MAX;
use crate::path::RelPath;

#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) path: RelPath,
    /// Anchors one level below, in byte order of their names.
    pub(super) children: Vec<usize>,
    /// The group with exactly this declared path.
    pub(super) declared: Option<Group>,
    /// The group with the longest declared path that covers this one.
    pub(super) owner: Option<Group>,
    /// Rank among the anchors that no layer declares.
    pub(super) unowned: usize,
    /// The first slot with a layer whose names begin in or below this folder, so that unpacking it makes the folder.
    pub(super) made_by: Option<u16>,
    /// Nothing at or below it can show, whatever there is.
    pub(super) left_out: bool,
    /// All of the declared path shows.
    pub(super) taken: bool,
    /// All of a declared path below it shows, so that it does, too.
    pub(super) taken_below: bool,
    /// How it stands, once that is known for good. Only used if there are globs.
    pub(super) settled: OnceLock<Standing>,
}

#[derive(Debug)]
pub(super) struct GroupOf {
    pub(super) path: RelPath,
    pub(super) anchor: usize,
    /// Slots of the members, in manifest order.
    pub(super) slots: Vec<u16>,
    /// Bytes of all members.
    pub(super) size: u64,
    /// The last attempt to have it failed.
    pub(super) failing: AtomicBool,
    /// What a raw layer is; it has its path for itself.
    pub(super) file: Option<DeclaredFile>,
    pub(super) known: OnceLock<Indexed>,
}

impl Tree {
    /// The tree of a plan's layers, none of them known yet. `places` are in manifest order: the n-th has slot n + 1. Without a size there is no
    /// generated Kitfile, and nothing else in its place.
    pub fn new(places: Vec<Place>, kitfile_size: Option<u64>, shown: Shown) -> Result<Self, TreeError> {
        if places.len() > SLOTS_MAX {
            return Err(TreeError::TooManyLayers(places.len()));
        }
        let mut groups: Vec<GroupOf> = Vec::new();
        let mut by_path: BTreeMap<RelPath, Group> = BTreeMap::new();
        let mut members = Vec::with_capacity(places.len());
        for (rank, place) in places.into_iter().enumerate() {
            if kitfile_size.is_some() && place.path.as_bytes() == KITFILE {
                return Err(TreeError::OverKitfile(place.digest));
            }
            let group = match by_path.entry(place.path.clone()) {
                Slotted::Occupied(group) => {
                    let of = &groups[group.get().0];
                    if place.file.is_some() || of.file.is_some() {
                        let first: &(Group, Place) = &members[usize::from(of.slots[0]) - 1];
                        let layers = Box::new([first.1.digest, place.digest]);
                        return Err(TreeError::Collision { layers, path: place.path.to_string() });
                    }
                    *group.get()
                }
                Slotted::Vacant(vacant) => {
                    groups.push(GroupOf {
                        path: place.path.clone(),
                        anchor: 0,
                        slots: Vec::new(),
                        size: 0,
                        failing: AtomicBool::new(false),
                        file: place.file,
                        known: OnceLock::new(),
                    });
                    *vacant.insert(Group(groups.len() - 1))
                }
            };
            groups[group.0].slots.push(rank as u16 + 1);
            groups[group.0].size = groups[group.0].size.saturating_add(place.size);
            members.push((group, place));
        }

        let mut paths: BTreeMap<RelPath, usize> = BTreeMap::from([(RelPath::root(), 0)]);
        for path in by_path.keys().chain(&shown.left_out) {
            let mut next = Some(path.clone());
            while let Some(path) = next {
                next = path.parent();
                paths.insert(path, 0);
            }
        }
        for (rank, slot) in paths.values_mut().enumerate() {
            *slot = rank;
        }
        let mut anchors: Vec<Anchor> = Vec::with_capacity(paths.len());
        let mut unowned = Vec::new();
        for (path, &rank) in &paths {
            // The root is always slot 0's, whoever declares it: the protocol fixes its id.
            let declared = by_path.get(path).copied();
            let parent = path.parent().map(|parent| paths[&parent]);
            let owner = declared.or_else(|| parent.and_then(|parent| anchors[parent].owner));
            if let Some(parent) = parent {
                anchors[parent].children.push(rank);
            }
            let in_slot_zero = declared.is_none() || path.is_root();
            anchors.push(Anchor {
                path: path.clone(),
                children: Vec::new(),
                declared,
                owner,
                unowned: unowned.len(),
                made_by: None,
                left_out: false,
                taken: false,
                taken_below: false,
                settled: OnceLock::new(),
            });
            if in_slot_zero {
                unowned.push(rank);
            }
            if let Some(group) = declared {
                groups[group.0].anchor = rank;
            }
        }
        for rank in 0..anchors.len() {
            let mut children = std::mem::take(&mut anchors[rank].children);
            children.sort_by(|a, b| anchors[*a].path.name().cmp(anchors[*b].path.name()));
            anchors[rank].children = children;
        }
        for of in groups.iter().filter(|of| of.file.is_some()) {
            if of.path.is_root() || !anchors[of.anchor].children.is_empty() {
                let layer = members[usize::from(of.slots[0]) - 1].1.digest;
                return Err(TreeError::FileOverFolder { layer, path: of.path.to_string() });
            }
        }
        let mut tree = Self { anchors, unowned, groups, members, kitfile_size, shown };
        tree.note_what_the_plan_tells();
        Ok(tree)
    }

    fn note_what_the_plan_tells(&mut self) {
        let anchors_of = |tree: &Self, path: &RelPath| -> Vec<usize> {
            std::iter::successors(Some(path.clone()), RelPath::parent).filter_map(|path| tree.anchor_at(&path)).collect()
        };
        for slot in (1..=self.members.len() as u16).rev() {
            for rank in anchors_of(self, &self.members[usize::from(slot) - 1].1.prefix) {
                self.anchors[rank].made_by = Some(slot);
            }
        }
        for path in &self.shown.left_out {
            if let Ok(rank) = self.anchors.binary_search_by(|anchor| anchor.path.cmp(path)) {
                // Another layer at the same path would have been left out as well.
                self.anchors[rank].left_out = true;
            }
        }
        for group in 0..self.groups.len() {
            let path = &self.groups[group].path;
            if self.shown.globs.takes_all(&self.shown.globs.reach(path)) {
                let anchor = self.groups[group].anchor;
                for rank in anchors_of(self, path) {
                    if rank == anchor {
                        self.anchors[rank].taken = true;
                    } else {
                        self.anchors[rank].taken_below = true;
                    }
                }
            }
        }
    }
}
