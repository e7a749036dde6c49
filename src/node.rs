//! Node ids: how the kernel names a file or folder of a mount, and how a worker that knows nothing of its predecessor reads that name.
//!
//! A node id is `incarnation (27 bits) · slot (13) · entry (24)`, and nothing else: no table, no hash, no state. Slot 0 holds the
//! folders that no layer owns and the generated `Kitfile`; slot n is the n-th layer of the plan. Entry 0 of a layer is its declared path,
//! the others are ranks in the layer's index. Folders have incarnation 0 and files start at 1, so the placeholder of a name whose
//! kind is not known never shares an id with the file that it turns out to be.

use std::fmt;

/// Bits of a node id that say which entry of a slot is meant.
const ENTRY_BITS: u32 = 24;
/// Bits of a node id that say which slot is meant.
const SLOT_BITS: u32 = 13;
/// How often a file can be replaced during one mount before ids would repeat.
const INCARNATION_MAX: u32 = (1 << (64 - ENTRY_BITS - SLOT_BITS)) - 1;

/// The most layers that a mount can have (slot 0 is taken).
pub const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;
/// The most entries that a layer's index can have.
pub const ENTRIES_MAX: usize = 1 << ENTRY_BITS;

/// A node id as it goes over the FUSE wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// The root of the mount, as the protocol wants it.
    pub const ROOT: Self = Self(1);

    /// The id of an entry; `slot` and `entry` come from a plan and an index that keep to [`SLOTS_MAX`] and [`ENTRIES_MAX`].
    pub fn new(slot: u16, entry: u32, incarnation: u32) -> Self {
        debug_assert!(usize::from(slot) <= SLOTS_MAX && (entry as usize) < ENTRIES_MAX);
        let incarnation = u64::from(incarnation.min(INCARNATION_MAX));
        Self(incarnation << (ENTRY_BITS + SLOT_BITS) | u64::from(slot) << ENTRY_BITS | u64::from(entry))
    }

    /// The id that the kernel sent.
    pub fn from_wire(id: u64) -> Self {
        Self(id)
    }

    /// The id as the kernel wants it.
    pub fn to_wire(self) -> u64 {
        self.0
    }

    /// Which slot the entry belongs to.
    pub fn slot(self) -> u16 {
        (self.0 >> ENTRY_BITS & ((1 << SLOT_BITS) - 1)) as u16
    }

    /// Which entry of the slot is meant.
    pub fn entry(self) -> u32 {
        (self.0 & ((1 << ENTRY_BITS) - 1)) as u32
    }

    /// 0 for folders; for files, 1 plus the number of times that the file was replaced while it was open.
    pub fn incarnation(self) -> u32 {
        (self.0 >> (ENTRY_BITS + SLOT_BITS)) as u32
    }

    /// The number that `stat` shows: the same for a path in every mount of the digest with the same filters, whatever the incarnation.
    pub fn inode(self) -> u64 {
        self.0 & ((1 << (ENTRY_BITS + SLOT_BITS)) - 1)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.slot(), self.entry(), self.incarnation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_id_comes_back() {
        for (slot, entry, incarnation) in [(0, 1, 0), (1, 0, 1), (SLOTS_MAX as u16, ENTRIES_MAX as u32 - 1, INCARNATION_MAX)] {
            let id = NodeId::new(slot, entry, incarnation);
            assert_eq!((id.slot(), id.entry(), id.incarnation()), (slot, entry, incarnation));
            assert_eq!(NodeId::from_wire(id.to_wire()), id);
            assert_eq!(id.inode(), NodeId::new(slot, entry, 0).to_wire());
        }
        assert_eq!(NodeId::new(0, 1, 0), NodeId::ROOT);
    }
}
