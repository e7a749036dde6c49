//! Whether a layer may bring what it brings: everything in it has to be its group's, and no other member's.

use std::collections::BTreeMap;

use super::{Group, KITFILE, Place, Tree, TreeError};
use crate::index::{Index, Kind};
use crate::path::RelPath;

impl Tree {
    /// Refuses a member with an entry that is not the group's, and notes where the group's anchors are in its index.
    pub(super) fn check_owned(
        &self,
        group: Group,
        member: usize,
        index: &Index,
        members: usize,
        entries: &mut BTreeMap<usize, Vec<Option<u32>>>,
    ) -> Result<(), TreeError> {
        let of = &self.groups[group.0];
        let slot = of.slots[member];
        let Place { digest: layer, prefix, .. } = &self.members[usize::from(slot) - 1].1;
        let failed = self.index_error(slot);
        let not_owned = |path: &RelPath| TreeError::NotOwned { layer: *layer, path: path.to_string(), declared: of.path.to_string() };
        // Only paths that can leave the group's part are walked: those above its declared path, and its anchors.
        let mut pending = vec![(prefix.clone(), 0u32)];
        while let Some((path, entry)) = pending.pop() {
            let record = index.entry(entry).map_err(&failed)?;
            let anchor = self.anchor_at(&path);
            let inside = path.starts_with(&of.path);
            let Some(rank) = anchor else { return Err(not_owned(&path)) };
            let owner = self.anchors[rank].owner;
            if inside && owner != Some(group) {
                // Another layer's declared path: a folder entry for it says nothing new, anything else is not ours to bring.
                if record.kind != Kind::Folder || record.child_count > 0 {
                    return Err(not_owned(&path));
                }
                if self.declared_file(rank).is_some() {
                    return Err(TreeError::FolderOverFile { layer: *layer, path: path.to_string() });
                }
                continue;
            }
            if !inside && !of.path.starts_with(&path) {
                return Err(not_owned(&path));
            }
            if record.kind != Kind::Folder && (!inside || !self.anchors[rank].children.is_empty()) {
                return Err(TreeError::FileOverFolder { layer: *layer, path: path.to_string() });
            }
            if inside {
                entries.entry(rank).or_insert_with(|| vec![None; members])[member] = Some(entry);
                if path.is_root() && self.kitfile_size.is_some() && index.lookup(entry, KITFILE).map_err(&failed)?.is_some() {
                    let kitfile = path.join(KITFILE).map_err(|_| not_owned(&path))?;
                    if self.anchor_at(&kitfile).is_none() {
                        return Err(not_owned(&kitfile));
                    }
                }
                // Of what may be a million names only those are looked for that the plan has here: all others are the group's.
                for &below in &self.anchors[rank].children {
                    let below = &self.anchors[below].path;
                    if let Some(child) = index.lookup(entry, below.name()).map_err(&failed)? {
                        pending.push((below.clone(), child));
                    }
                }
                continue;
            }
            for child in index.children(entry).map_err(&failed)? {
                let below = path.join(index.name(child).map_err(&failed)?).map_err(|_| not_owned(&path))?;
                if self.anchor_at(&below).is_none() {
                    return Err(not_owned(&below));
                }
                pending.push((below, child));
            }
        }
        Ok(())
    }

    /// Refuses two members that bring the same name, unless it is a folder in both.
    pub(super) fn check_disjoint(&self, group: Group, first: usize, one: &Index, second: usize, other: &Index) -> Result<(), TreeError> {
        let of = &self.groups[group.0];
        let (first_slot, second_slot) = (of.slots[first], of.slots[second]);
        let mut pending: Vec<(RelPath, u32, u32)> = Vec::new();
        let top = self.anchors[of.anchor].path.clone();
        if let (Some(a), Some(b)) = (self.find_in(first_slot, one, &top)?, self.find_in(second_slot, other, &top)?) {
            pending.push((top, a, b));
        }
        while let Some((path, a, b)) = pending.pop() {
            let kind = |slot, index: &Index, entry| index.entry(entry).map(|entry| entry.kind).map_err(self.index_error(slot));
            if kind(first_slot, one, a)? != Kind::Folder || kind(second_slot, other, b)? != Kind::Folder {
                let digest = |slot: u16| self.members[usize::from(slot) - 1].1.digest;
                let layers = Box::new([digest(first_slot), digest(second_slot)]);
                return Err(TreeError::Collision { layers, path: path.to_string() });
            }
            for child in one.children(a).map_err(self.index_error(first_slot))? {
                let name = one.name(child).map_err(self.index_error(first_slot))?;
                if let Some(same) = other.lookup(b, name).map_err(self.index_error(second_slot))?
                    && let Ok(below) = path.join(name)
                {
                    pending.push((below, child, same));
                }
            }
        }
        Ok(())
    }
}
