//! Reading an index that is mapped. Nothing in the file is believed further than its checksum and the bounds allow.

use std::cmp::Ordering;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{self, AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap};

use super::format::{BLOCK, DATA, DataRecord, HEADER, Header, Layout, RECORD, Record};
use super::{Entry, FileFacts, IndexError, Kind, Segment};
use crate::digest::Digest;
use crate::limits::{INDEX_RENEWALS, LAYER_ENTRIES, PATH_DEPTH};
use crate::path::{RelPath, is_component};
use crate::rehearsal::step;

/// A mapped index. Clones share the mapping.
#[derive(Clone)]
pub struct Index(Arc<Mapped>);

struct Mapped {
    map: Mmap,
    header: Header,
    layout: Layout,
    /// One bit for each block whose checksum was found right.
    checked: Box<[AtomicU64]>,
    /// Some of it could not be read, or was not what had been written.
    failing: AtomicBool,
    /// What says the same, and is read in its place since then.
    renewed: OnceLock<Index>,
}

impl Index {
    /// Maps `file` as the index of the layer `expect`.
    pub fn map(file: &File, expect: &Digest) -> Result<Self, IndexError> {
        let unmapped = |source| IndexError::Io { what: "cannot map the index", source };
        step("map:index").map_err(unmapped)?;
        // SAFETY: The map is only sound as long as nobody changes the file. Files of the store are never written once they are in place,
        // replacements come by rename; who else may write there is the cache's owner, against whom kitfs does not defend. All that is read
        // from the map are bytes, copied or compared before they are used, and every number that comes out of them is checked at each use.
        let map = unsafe { Mmap::map(file) }.map_err(unmapped)?;
        populate(&map, &(0..HEADER as u64))?;
        let header = Header::decode(&map)?;
        if header.layer != *expect {
            return Err(IndexError::WrongLayer { expected: Box::new(*expect), got: Box::new(header.layer) });
        }
        let layout = Layout::new(header.entries, header.names_size, header.data_files)
            .filter(|layout| layout.checksums.end == map.len() as u64)
            .ok_or_else(|| damaged(format!("it has {} bytes, which are not those of {} entries", map.len(), header.entries)))?;
        if header.entries == 0 || header.entries > LAYER_ENTRIES || header.data_files > header.entries {
            return Err(damaged(format!("{} entries and {} data files are not possible", header.entries, header.data_files)));
        }
        let blocks = (layout.checked.end - layout.checked.start).div_ceil(BLOCK);
        let checked = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self(Arc::new(Mapped { map, header, layout, checked, failing: AtomicBool::new(false), renewed: OnceLock::new() })))
    }

    /// From now on reads names and entries from `other`, if some of this one proved unreadable and the two say the same. Whoever has borrowed from this
    /// one, or has a clone of it, need not know. For the sake of who has borrowed, all that it was read from before stay mapped; so this is done
    /// [`INDEX_RENEWALS`] times.
    pub fn renew(&self, other: &Self) {
        let last = self.0.last();
        let same = last.header.table_checksum == other.table_checksum() && last.header.entries == other.len();
        let another = !std::ptr::eq(last, &raw const *other.0.last());
        if last.failing.load(atomic::Ordering::Relaxed) && same && another && self.renewals() < INDEX_RENEWALS {
            // Another thread may have been faster with one that is as good.
            let _as_good = last.renewed.set(other.clone());
        }
    }

    /// True if it was renewed as often as it may be, and proved unreadable all the same.
    pub fn is_spent(&self) -> bool {
        self.renewals() >= INDEX_RENEWALS && self.0.last().failing.load(atomic::Ordering::Relaxed)
    }

    fn renewals(&self) -> usize {
        self.0.all().skip(1).count()
    }

    /// How many entries there are, the root included.
    #[expect(clippy::len_without_is_empty, reason = "there is always a root")]
    pub fn len(&self) -> u32 {
        self.0.header.entries
    }

    /// The entry of this rank.
    pub fn entry(&self, rank: u32) -> Result<Entry, IndexError> {
        let record = self.0.record(rank)?;
        Ok(Entry {
            parent: record.parent,
            kind: record.kind,
            mode: u32::from(record.mode),
            mtime: record.mtime,
            size: record.size,
            place: record.place,
            stream_offset: record.stream_offset,
            first_child: record.first_child,
            child_count: record.child_count,
            implied: record.implied,
        })
    }

    /// The last component of the entry's path; empty for the root.
    pub fn name(&self, rank: u32) -> Result<&[u8], IndexError> {
        self.0.name(rank, &self.0.record(rank)?)
    }

    /// The ranks of what is in a folder, in order of names; none for a file.
    pub fn children(&self, rank: u32) -> Result<Range<u32>, IndexError> {
        let record = self.0.record(rank)?;
        Ok(record.first_child..record.first_child + record.child_count)
    }

    /// The child of `parent` with this name.
    pub fn lookup(&self, parent: u32, name: &[u8]) -> Result<Option<u32>, IndexError> {
        let Range { start: mut low, end: mut high } = self.children(parent)?;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                Ordering::Equal => return Ok(Some(middle)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The entry at `path`.
    pub fn find(&self, path: &RelPath) -> Result<Option<u32>, IndexError> {
        let mut rank = 0;
        for name in path.components() {
            match self.lookup(rank, name)? {
                Some(child) => rank = child,
                None => return Ok(None),
            }
        }
        Ok(Some(rank))
    }

    /// Where the entry is below the root of the archive.
    pub fn path(&self, rank: u32) -> Result<RelPath, IndexError> {
        let mut names = Vec::new();
        let mut at = rank;
        while at != 0 {
            let record = self.0.record(at)?;
            names.push(self.0.name(at, &record)?);
            if names.len() > PATH_DEPTH {
                return Err(damaged(format!("entry {rank} is too deep")));
            }
            at = record.parent;
        }
        names.reverse();
        RelPath::parse(&names.join(&b'/')).map_err(|error| damaged(format!("entry {rank}: {error}")))
    }

    /// How many files there are.
    pub fn files(&self) -> u64 {
        self.0.header.files
    }

    /// The sum of all files' sizes in bytes.
    pub fn total_size(&self) -> u64 {
        self.0.header.total_size
    }

    /// A checksum over what the entries say and how they are numbered; a function of the layer's bytes alone, not of how they are stored.
    pub fn table_checksum(&self) -> u64 {
        self.0.header.table_checksum
    }

    /// The digest of the layer.
    pub fn layer(&self) -> Digest {
        self.0.header.layer
    }

    /// The size of the layer's blob.
    pub fn blob_size(&self) -> u64 {
        self.0.header.blob_size
    }

    /// The digest of the uncompressed stream, if it was computed.
    pub fn uncompressed(&self) -> Option<Digest> {
        self.0.header.uncompressed
    }

    /// The size of the uncompressed stream.
    pub fn uncompressed_size(&self) -> u64 {
        self.0.header.uncompressed_size
    }

    /// What `fstat` must say of `pack`.
    pub fn pack(&self) -> FileFacts {
        self.0.header.pack
    }

    /// How many data files there are.
    pub fn data_files(&self) -> u32 {
        self.0.header.data_files
    }

    /// What `fstat` must say of a data file; `None` if there is no such file.
    pub fn data(&self, ordinal: u32) -> Result<Option<FileFacts>, IndexError> {
        let (mut low, mut high) = (0, self.data_files());
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.0.data(middle)?;
            match record.ordinal.cmp(&ordinal) {
                Ordering::Equal => return Ok(Some(record.facts)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The pieces that the uncompressed stream is put together from, in its order.
    pub fn segments(&self) -> Segments<'_> {
        Segments { index: self, next: 0, stream: 0, pack: 0, waiting: None, failed: false }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("layer", &self.layer()).field("entries", &self.len()).finish()
    }
}

/// The segments of an index, see [`Index::segments`]. After an error there are no more.
#[derive(Debug)]
pub struct Segments<'a> {
    index: &'a Index,
    /// Which data file comes next.
    next: u32,
    stream: u64,
    pack: u64,
    /// A data file whose bytes of `pack` before it were given already.
    waiting: Option<Segment>,
    failed: bool,
}

impl Segments<'_> {
    fn advance(&mut self) -> Result<Option<Segment>, IndexError> {
        if let Some(data) = self.waiting.take() {
            return Ok(Some(data));
        }
        let pack_size = self.index.pack().size;
        if self.next == self.index.data_files() {
            let size = pack_size.checked_sub(self.pack).ok_or_else(|| damaged("the segments need more than `pack` has"))?;
            let offset = std::mem::replace(&mut self.pack, pack_size);
            return Ok((size > 0).then_some(Segment::Pack { offset, size }));
        }
        let record = self.index.0.data(self.next)?;
        let size = record.stream_offset.checked_sub(self.stream).filter(|size| *size <= pack_size.saturating_sub(self.pack));
        let end = record.stream_offset.checked_add(record.facts.size);
        let (Some(size), Some(end)) = (size, end) else {
            return Err(damaged(format!("data file {} is out of order", record.ordinal)));
        };
        self.next += 1;
        self.stream = end;
        let data = Segment::Data { ordinal: record.ordinal, size: record.facts.size };
        if size == 0 {
            return Ok(Some(data));
        }
        self.waiting = Some(data);
        let offset = self.pack;
        self.pack += size;
        Ok(Some(Segment::Pack { offset, size }))
    }
}

impl Iterator for Segments<'_> {
    type Item = Result<Segment, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}

impl Mapped {
    /// This one, or the one that it was renewed by last.
    fn last(&self) -> &Self {
        self.all().last().unwrap_or(self)
    }

    /// This one and those that it was renewed by, each by the next.
    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |mapped| mapped.renewed.get().map(|next| &*next.0))
    }

    /// A fixed record and what must hold in every index, so that whoever goes on from it needs no checks of his own.
    fn record(&self, rank: u32) -> Result<Record, IndexError> {
        let len = self.header.entries;
        if rank >= len {
            return Err(IndexError::NoEntry { rank, len });
        }
        let at = self.last();
        let record = Record::decode(at.bytes(&at.layout.entries, u64::from(rank) * RECORD as u64, RECORD as u64)?);
        record
            .filter(|record| match record.kind {
                Kind::Folder => record.first_child.checked_add(record.child_count).is_some_and(|end| end <= len),
                Kind::File => record.first_child == 0,
            })
            .filter(|record| record.child_count == 0 || record.first_child > rank)
            .filter(|record| if rank == 0 { record.parent == 0 && record.kind == Kind::Folder } else { record.parent < rank })
            .ok_or_else(|| damaged(format!("entry {rank} makes no sense")))
    }

    fn name(&self, rank: u32, record: &Record) -> Result<&[u8], IndexError> {
        let at = self.last();
        let name = at.bytes(&at.layout.names, u64::from(record.name_offset), u64::from(record.name_length))?;
        let sound = if rank == 0 { name.is_empty() } else { is_component(name) };
        if sound { Ok(name) } else { Err(damaged(format!("the name of entry {rank} is not possible"))) }
    }

    fn data(&self, number: u32) -> Result<DataRecord, IndexError> {
        Ok(DataRecord::decode(self.bytes(&self.layout.data, u64::from(number) * DATA as u64, DATA as u64)?))
    }

    /// Bytes of a part, after the checksums of the blocks that they are in were checked.
    fn bytes(&self, part: &Range<u64>, offset: u64, size: u64) -> Result<&[u8], IndexError> {
        let out_of_bounds = || damaged(format!("{size} bytes at {offset} are out of bounds"));
        let start = part.start.checked_add(offset).ok_or_else(out_of_bounds)?;
        let end = start.checked_add(size).filter(|end| *end <= part.end).ok_or_else(out_of_bounds)?;
        let bytes = self.slice(start..end).ok_or_else(out_of_bounds)?;
        if !bytes.is_empty() {
            let base = self.layout.checked.start;
            for block in (start - base) / BLOCK..=(end - 1 - base) / BLOCK {
                self.check(block)?;
            }
        }
        Ok(bytes)
    }

    fn check(&self, block: u64) -> Result<(), IndexError> {
        let beyond = || damaged(format!("there is no block {block}"));
        let word = usize::try_from(block / 64).ok().and_then(|word| self.checked.get(word)).ok_or_else(beyond)?;
        let bit = 1 << (block % 64);
        // The bytes are the same for every thread, so nothing needs to be ordered by the bit.
        if word.load(atomic::Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        let start = self.layout.checked.start + block * BLOCK;
        let content = start..(start + BLOCK).min(self.layout.checked.end);
        let at = self.layout.checksums.start + block * 4;
        for range in [&content, &(at..at + 4)] {
            populate(&self.map, range).inspect_err(|_| self.failing.store(true, atomic::Ordering::Relaxed))?;
        }
        let content = self.slice(content).ok_or_else(beyond)?;
        let stored = self.slice(at..at + 4).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        if stored != Some(crc32fast::hash(content)) {
            self.failing.store(true, atomic::Ordering::Relaxed);
            return Err(damaged(format!("the checksum of block {block} does not match")));
        }
        word.fetch_or(bit, atomic::Ordering::Relaxed);
        Ok(())
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.map.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }
}

/// Has the kernel read a part of a map in, so that a disk that cannot give it is an error here, and not a SIGBUS where it is touched. Pages that are dropped
/// later can still be that; but not again and again, since whoever is started anew comes by here first.
pub(super) fn populate(map: &Mmap, range: &Range<u64>) -> Result<(), IndexError> {
    let end = (range.end as usize).min(map.len());
    let start = (range.start as usize).min(end);
    match map.advise_range(Advice::PopulateRead, start, end - start) {
        // Before Linux 5.14 there is no such thing.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
            Err(IndexError::Io { what: "cannot read the index", source: io::Error::from_raw_os_error(libc::EIO) })
        }
        other => other.map_err(|source| IndexError::Io { what: "cannot read the index", source }),
    }
}

fn damaged(what: impl Into<String>) -> IndexError {
    IndexError::Damaged { what: what.into() }
}
