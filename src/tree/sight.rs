//! What the globs of a mount let show.
//!
//! Files and empty folders show if the globs say so; any other folder shows if something in it does, so that none is left that only seems to
//! be empty. Below the anchors that is a function of one group's indexes, computed once when they come ([`Sight`]). An anchor may depend on
//! several groups: one that is known and shows something is enough; that nothing shows is said when all are known, and then for good. So under
//! globs a folder is listed, or asked for, at the price of the layers that may be all there is in it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;

use super::{Group, Known, Tree, TreeError};
use crate::filter::Reach;
use crate::index::{Index, Kind};

/// What shows of a group's indexes.
#[derive(Debug)]
pub(super) struct Sight {
    /// For each member the entries that show. An anchor's bit says whether anything in it does that is no anchor itself.
    shows: Vec<Bits>,
    /// Anchors that have something in them that is no anchor.
    filled: HashSet<usize>,
}

/// How an anchor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It shows.
    Shows,
    /// It is there, and does not show.
    Hidden,
    /// It is not there.
    Missing,
    /// That depends on this group.
    Unknown(Group),
}

#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u32) -> Self {
        Self(vec![0; (len as usize).div_ceil(64)])
    }

    fn has(&self, rank: u32) -> bool {
        self.0.get(rank as usize / 64).is_some_and(|word| word >> (rank % 64) & 1 != 0)
    }

    fn set(&mut self, rank: u32) {
        if let Some(word) = self.0.get_mut(rank as usize / 64) {
            *word |= 1 << (rank % 64);
        }
    }
}

impl Sight {
    /// True if an entry shows that is no anchor.
    pub(super) fn shows(&self, member: usize, entry: u32) -> bool {
        self.shows.get(member).is_some_and(|bits| bits.has(entry))
    }
}

impl Tree {
    /// What shows of a group, given where its anchors are in its indexes.
    pub(super) fn sight(
        &self,
        group: Group,
        indexes: &[Index],
        entries: &BTreeMap<usize, Vec<Option<u32>>>,
    ) -> Result<Option<Sight>, TreeError> {
        if self.shown.globs.is_empty() {
            return Ok(None);
        }
        let mut sight = Sight { shows: Vec::new(), filled: HashSet::new() };
        for (member, index) in indexes.iter().enumerate() {
            let failed = self.index_error(self.groups[group.0].slots[member]);
            let mut bits = Bits::new(index.len());
            let mut anchored = HashSet::new();
            let mut pending: VecDeque<(u32, Reach)> = VecDeque::new();
            for (&rank, of) in entries {
                let Some(entry) = of[member] else { continue };
                anchored.insert(entry);
                let mut others = index.entry(entry).map_err(&failed)?.child_count;
                for &child in &self.anchors[rank].children {
                    if let Some(entry) = index.lookup(entry, self.anchors[child].path.name()).map_err(&failed)? {
                        anchored.insert(entry);
                        others -= 1;
                    }
                }
                if others > 0 {
                    sight.filled.insert(rank);
                    pending.push_back((entry, self.shown.globs.reach(&self.anchors[rank].path)));
                }
            }
            while let Some((folder, reach)) = pending.pop_front() {
                if !self.shown.globs.may_show_below(&reach) {
                    continue;
                }
                for child in index.children(folder).map_err(&failed)? {
                    if anchored.contains(&child) {
                        continue;
                    }
                    let reach = self.shown.globs.step(&reach, index.name(child).map_err(&failed)?);
                    let record = index.entry(child).map_err(&failed)?;
                    if record.child_count > 0 {
                        pending.push_back((child, reach));
                    } else if self.shown.globs.shows(&reach, record.kind == Kind::Folder)
                        && (record.kind == Kind::File || !self.is_filled_by_another(group, member, indexes, index, child)?)
                    {
                        bits.set(child);
                    }
                }
            }
            // A parent's rank is below its children's.
            for entry in (1..index.len()).rev() {
                if bits.has(entry) && !anchored.contains(&entry) {
                    bits.set(index.entry(entry).map_err(&failed)?.parent);
                }
            }
            sight.shows.push(bits);
        }
        Ok(Some(sight))
    }

    /// True if a folder that is empty in one member's index is not in another's.
    fn is_filled_by_another(&self, group: Group, member: usize, indexes: &[Index], index: &Index, entry: u32) -> Result<bool, TreeError> {
        if indexes.len() == 1 {
            return Ok(false);
        }
        let slots = &self.groups[group.0].slots;
        let within = index.path(entry).map_err(self.index_error(slots[member]))?;
        // All members have the same declared path, and thereby the same prefix or paths that say the same.
        for (other, index) in indexes.iter().enumerate().filter(|(other, _)| *other != member) {
            let failed = self.index_error(slots[other]);
            let path = self.path_of(slots[member], &within)?;
            if let Some(same) = self.find_in(slots[other], index, &path)?
                && index.entry(same).map_err(&failed)?.child_count > 0
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an anchor shows.
    pub(super) fn standing(&self, rank: usize) -> Result<Standing, TreeError> {
        let anchor = &self.anchors[rank];
        if anchor.left_out {
            return Ok(Standing::Hidden);
        }
        if let Some(settled) = anchor.settled.get() {
            return Ok(*settled);
        }
        let standing = self.settle(rank)?;
        if !matches!(standing, Standing::Unknown(_)) {
            // Whoever comes second has found the same.
            _ = anchor.settled.set(standing);
        }
        Ok(standing)
    }

    fn settle(&self, rank: usize) -> Result<Standing, TreeError> {
        let anchor = &self.anchors[rank];
        if anchor.taken_below {
            return Ok(Standing::Shows);
        }
        let (mut hides, mut unknown) = (false, None);
        let mut there = rank == 0 || !anchor.children.is_empty();
        let mut kind = Kind::Folder;
        if let Some(group) = anchor.owner {
            match self.groups[group.0].known.get() {
                // What the plan knows to be a file is there, whether its layer came or not.
                _ if self.groups[group.0].file.is_some() => {
                    there = true;
                    kind = Kind::File;
                }
                None => unknown = Some(group),
                Some(indexed) => {
                    if let Some((slot, entry)) = self.first_entry(group, indexed, rank) {
                        there = true;
                        kind = indexed.indexes[self.member(slot)].entry(entry).map_err(self.index_error(slot))?.kind;
                    }
                    if let Some(sight) = &indexed.sight {
                        let members = indexed.entries.get(&rank).map(Vec::as_slice).unwrap_or_default();
                        let own = |(member, entry): (usize, &Option<u32>)| entry.is_some_and(|entry| sight.shows(member, entry));
                        if members.iter().enumerate().any(own) {
                            return Ok(Standing::Shows);
                        }
                        hides = sight.filled.contains(&rank);
                    }
                }
            }
        }
        for &child in &anchor.children {
            match self.standing(child)? {
                Standing::Shows => return Ok(Standing::Shows),
                Standing::Hidden => hides = true,
                Standing::Missing => {}
                Standing::Unknown(group) => {
                    let price = |group: Group| {
                        let of = &self.groups[group.0];
                        (of.failing.load(Ordering::Relaxed), anchor.declared != Some(group), of.size)
                    };
                    if unknown.is_none_or(|other| price(group) < price(other)) {
                        unknown = Some(group);
                    }
                }
            }
        }
        Ok(match unknown {
            Some(group) => Standing::Unknown(group),
            None if hides => Standing::Hidden,
            None if !there => Standing::Missing,
            None => {
                let (globs, folder) = (&self.shown.globs, kind == Kind::Folder);
                let reach = globs.reach(&anchor.path);
                let shows = if anchor.declared.is_some() { globs.shows_declared(&reach, folder) } else { globs.shows(&reach, folder) };
                if shows { Standing::Shows } else { Standing::Hidden }
            }
        })
    }

    /// The group that must be known before a folder can be listed, since a name in it may not show. Without globs a name of unknown kind is
    /// listed as such; with them too many would be listed that are not there.
    pub(super) fn unseen_child(&self, rank: usize) -> Result<Option<Group>, TreeError> {
        if self.shown.globs.is_empty() {
            return Ok(None);
        }
        for &child in self.anchors[rank].children.iter().filter(|&&child| !self.anchors[child].taken) {
            if let Standing::Unknown(group) = self.standing(child)? {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// What is known of an anchor, if the globs let it show.
    pub(super) fn anchor_in_sight(&self, rank: usize) -> Result<Known<()>, TreeError> {
        if rank == 0 || self.shown.globs.is_empty() {
            return Ok(Known::Is(()));
        }
        Ok(match self.standing(rank)? {
            Standing::Shows => Known::Is(()),
            Standing::Hidden | Standing::Missing => Known::Absent,
            Standing::Unknown(group) => Known::Unknown(group),
        })
    }
}
