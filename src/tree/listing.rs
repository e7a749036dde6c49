//! Listings: names of the plan and names of indexes, merged in name order, from any position on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Child, KITFILE, Known, Node, Tree, TreeError};
use crate::node::NodeId;

impl Tree {
    /// Calls `each` with the position after it and every name in `folder`, in name order, from `position` on, until it breaks.
    pub fn list(
        &self,
        folder: Node,
        position: u64,
        each: &mut dyn FnMut(u64, Child<'_>) -> ControlFlow<()>,
    ) -> Result<Known<()>, TreeError> {
        let statics: Vec<(&[u8], Node)> = match folder {
            Node::Anchor(rank) => {
                let children = self.anchors[rank].children.iter();
                let mut statics: Vec<_> = children.map(|&child| (self.anchors[child].path.name(), Node::Anchor(child))).collect();
                if rank == 0 && self.kitfile_size.is_some() {
                    statics.push((KITFILE, Node::Kitfile));
                    statics.sort_by(|one, other| one.0.cmp(other.0));
                }
                statics
            }
            _ => Vec::new(),
        };
        let sources = match self.sources(folder)? {
            Known::Is(sources) => sources,
            Known::Absent => Vec::new(),
            Known::Unknown(group) => return Ok(Known::Unknown(group)),
        };
        match sources[..] {
            [] => {
                self.list_merged(&statics, &[], position, each)?;
            }
            [(slot, entry)] => self.list_one(&statics, slot, entry, position, each)?,
            _ => self.list_merged(&statics, &sources, position, each)?,
        }
        Ok(Known::Is(()))
    }

    /// The index folders whose children a folder shows, in manifest order.
    fn sources(&self, folder: Node) -> Result<Known<Vec<(u16, u32)>>, TreeError> {
        let group = match folder {
            Node::Kitfile => return Ok(Known::Absent),
            Node::Entry { slot, .. } => self.group_of(slot),
            Node::Anchor(rank) => match self.anchors[rank].owner {
                None => return Ok(Known::Absent),
                Some(group) => group,
            },
        };
        let Some(indexed) = self.groups[group.0].known.get() else { return Ok(Known::Unknown(group)) };
        let slots = self.groups[group.0].slots.iter().copied();
        match folder {
            Node::Anchor(rank) => {
                let entries = indexed.entries.get(&rank).map(Vec::as_slice).unwrap_or_default();
                Ok(Known::Is(slots.zip(entries).filter_map(|(slot, entry)| Some((slot, (*entry)?))).collect()))
            }
            Node::Entry { slot, entry } if indexed.indexes.len() == 1 => Ok(Known::Is(vec![(slot, entry)])),
            _ => {
                let path = self.path(folder)?;
                let mut sources = Vec::new();
                for slot in slots {
                    if let Some(entry) = self.find_in(slot, &indexed.indexes[self.member(slot)], &path)? {
                        sources.push((slot, entry));
                    }
                }
                Ok(Known::Is(sources))
            }
        }
    }

    /// Statics merged with one index folder. Positions are found by binary search, so that a folder of a million names is not walked
    /// again for each buffer of it.
    fn list_one(
        &self,
        statics: &[(&[u8], Node)],
        slot: u16,
        folder: u32,
        position: u64,
        each: &mut dyn FnMut(u64, Child<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let index = self.index(slot).ok_or(TreeError::NoSuchNode(NodeId::new(slot, folder, 0)))?;
        let failed = self.index_error(slot);
        let children = index.children(folder).map_err(&failed)?;
        // Index children that a static shadows (a folder entry of an anchor) do not count.
        let mut shadowed = Vec::new();
        let mut before = Vec::new();
        for (name, _) in statics {
            let (mut low, mut high) = (children.start, children.end);
            while low < high {
                let middle = low + (high - low) / 2;
                if index.name(middle).map_err(&failed)? < *name { low = middle + 1 } else { high = middle }
            }
            before.push(low);
            if low < children.end && index.name(low).map_err(&failed)? == *name {
                shadowed.push(low);
            }
        }
        let rank_of = |child: u32, statics_before: usize| {
            let hidden = shadowed.partition_point(|&other| other < child);
            u64::from(child - children.start) - hidden as u64 + statics_before as u64
        };
        let mut next_static = statics.len();
        for (rank, &low) in before.iter().enumerate() {
            if rank_of(low, rank) >= position {
                next_static = rank;
                break;
            }
        }
        let mut child = children.start;
        {
            let (mut low, mut high) = (children.start, children.end);
            while low < high {
                let middle = low + (high - low) / 2;
                let statics_before = before.partition_point(|&start| start <= middle);
                if rank_of(middle, statics_before) < position { low = middle + 1 } else { high = middle }
            }
            child = child.max(low);
        }
        let mut at = position;
        loop {
            while shadowed.binary_search(&child).is_ok() {
                child += 1;
            }
            let static_first = next_static < statics.len() && before[next_static] <= child;
            let (name, node, attributes) = if static_first || (child >= children.end && next_static < statics.len()) {
                let (name, node) = statics[next_static];
                next_static += 1;
                match self.attributes(node)? {
                    Known::Absent => (name, node, None),
                    Known::Is(attributes) => (name, node, Some(Some(attributes))),
                    Known::Unknown(_) => (name, node, Some(None)),
                }
            } else if child < children.end {
                let attributes = self.shown(slot, index, child)?;
                let name = index.name(child).map_err(&failed)?;
                child += 1;
                (name, Node::Entry { slot, entry: child - 1 }, Some(Some(attributes)))
            } else {
                return Ok(());
            };
            at += 1;
            // A declared path that its layer turned out not to have keeps its position, so that positions never move.
            let Some(attributes) = attributes else { continue };
            if each(at, Child { name, node, attributes }).is_break() {
                return Ok(());
            }
        }
    }

    /// Statics merged with any number of index folders, by a sorted list of all names: for groups, which are rare and small.
    fn list_merged(
        &self,
        statics: &[(&[u8], Node)],
        sources: &[(u16, u32)],
        position: u64,
        each: &mut dyn FnMut(u64, Child<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let mut names: BTreeMap<&[u8], Node> = BTreeMap::new();
        for &(slot, folder) in sources.iter().rev() {
            let index = self.index(slot).ok_or(TreeError::NoSuchNode(NodeId::new(slot, folder, 0)))?;
            let failed = self.index_error(slot);
            for entry in index.children(folder).map_err(&failed)? {
                names.insert(index.name(entry).map_err(&failed)?, Node::Entry { slot, entry });
            }
        }
        names.extend(statics.iter().copied());
        for (at, (name, node)) in names.into_iter().enumerate().skip(usize::try_from(position).unwrap_or(usize::MAX)) {
            let attributes = match self.attributes(node)? {
                Known::Absent => continue,
                Known::Is(attributes) => Some(attributes),
                Known::Unknown(_) => None,
            };
            if each(at as u64 + 1, Child { name, node, attributes }).is_break() {
                break;
            }
        }
        Ok(())
    }
}
