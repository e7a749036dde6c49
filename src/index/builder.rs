//! Building an index: entries are written to a scratch file as they come, sorted by their paths, and then laid out in order of rank.
//!
//! Nothing is kept in memory for an entry but 4 bytes while it is sorted: paths are in the mapped scratch file. Sorted by path, entries
//! come depth first, and of each depth in order of rank; so one walk with a stack gives every entry its rank, its children's ranks and its
//! place in the file, which is written as one stream for each depth.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::Mmap;
use sha2::Digest as _;

use super::format::{BLOCK, DATA, DataRecord, HEADER, Header, Layout, RECORD, Record, kind_number, kind_of, place_numbers, place_of};
use super::reader::populate;
use super::{FileFacts, IndexError, Kind, NewEntry, Place, Stored};
use crate::limits::LAYER_ENTRIES;
use crate::path::RelPath;
use crate::rehearsal::step;

/// Mode of a folder that only follows from the name of something in it.
const IMPLIED_MODE: u16 = 0o755;
/// Scratch records start at multiples of this, so that 32 bits are enough to say where: 64 GiB, which the longest paths of all entries do
/// not reach.
const ALIGN: u64 = 16;
/// Bytes of a scratch record before its path.
const SCRATCH_HEAD: usize = 48;
/// Bytes that are gathered for each depth of the tree before they are written.
const LANE: usize = 16 << 10;

/// Gathers a layer's entries.
#[derive(Debug)]
pub struct IndexBuilder {
    scratch: BufWriter<File>,
    written: u64,
    entries: u32,
    /// [`LAYER_ENTRIES`], but for tests.
    pub(super) limit: u32,
}

impl IndexBuilder {
    /// A builder without entries. `scratch` is an empty file, open for reading and writing, that nobody else uses.
    pub fn new(scratch: File) -> Self {
        Self { scratch: BufWriter::with_capacity(256 << 10, scratch), written: 0, entries: 0, limit: LAYER_ENTRIES }
    }

    /// Adds an entry, in the order of the stream. Whether it goes with the others is checked at the end.
    pub fn add(&mut self, entry: &NewEntry) -> Result<(), IndexError> {
        if self.entries >= self.limit {
            return Err(IndexError::TooMany);
        }
        let head = ScratchHead {
            size: entry.size,
            mtime: entry.mtime,
            stream_offset: entry.stream_offset,
            place: entry.place,
            mode: (entry.mode & 0o7777) as u16,
            kind: entry.kind,
        };
        let path = entry.path.as_bytes();
        let mut record = head.encode(path.len());
        // NUL is in no path and sorts before every other byte, so that comparing bytes compares components.
        record.extend(path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }));
        record.resize(record.len().next_multiple_of(ALIGN as usize), 0);
        self.scratch.write_all(&record).map_err(|source| IndexError::Io { what: "cannot write the scratch file of the index", source })?;
        self.written += record.len() as u64;
        self.entries += 1;
        Ok(())
    }

    /// How many entries were added.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Checks that the entries make one tree and writes the index to `out`, an empty file open for reading and writing. `facts` is asked
    /// once for each data file, in the order of the stream, what `fstat` says of it.
    pub fn finish(self, out: &File, stored: &Stored, facts: &mut dyn FnMut(u32) -> io::Result<FileFacts>) -> Result<(), IndexError> {
        step("write:scratch").map_err(|source| IndexError::Io { what: "cannot write the scratch file of the index", source })?;
        let scratch = self
            .scratch
            .into_inner()
            .map_err(|error| IndexError::Io { what: "cannot write the scratch file of the index", source: error.into_error() })?;
        let unmapped = |source| IndexError::Io { what: "cannot map the scratch file of the index", source };
        step("map:scratch").map_err(unmapped)?;
        // SAFETY: The file is the builder's own, nobody else writes or cuts it, and it lives as long as the map.
        let map = unsafe { Mmap::map(&scratch) }.map_err(unmapped)?;
        populate(&map, &(0..self.written))?;
        let scratch = Scratch { map: &map, end: self.written };
        let order = scratch.sorted(self.entries)?;

        let mut census = Census { limit: self.limit, ..Census::default() };
        scratch.walk(&order, &mut census)?;
        let data = census.data_files;
        let layout = Layout::new(census.entries, census.names_size(), data).ok_or(IndexError::TooMany)?;

        let mut writer = RankWriter::new(out, &layout, &census);
        scratch.walk(&order, &mut writer)?;
        writer.flush()?;
        drop(order);
        scratch.write_data_files(out, &layout, stored, facts)?;

        let mut header = Header {
            entries: census.entries,
            data_files: data,
            names_size: census.names_size(),
            layer: stored.layer,
            uncompressed: stored.uncompressed,
            blob_size: stored.blob_size,
            uncompressed_size: stored.uncompressed_size,
            files: census.files,
            total_size: census.total_size,
            table_checksum: 0,
            pack: stored.pack,
        };
        seal(out, &layout, &mut header)
    }
}

/// The fixed part of a record in the scratch file.
struct ScratchHead {
    size: u64,
    mtime: i64,
    stream_offset: u64,
    place: Place,
    mode: u16,
    kind: Kind,
}

impl ScratchHead {
    fn encode(&self, path_length: usize) -> Vec<u8> {
        let (place, value) = place_numbers(self.place);
        let mut bytes = Vec::with_capacity((SCRATCH_HEAD + path_length).next_multiple_of(ALIGN as usize));
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.mtime.to_le_bytes());
        bytes.extend_from_slice(&self.stream_offset.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
        bytes.extend_from_slice(&(path_length as u32).to_le_bytes());
        bytes.extend_from_slice(&self.mode.to_le_bytes());
        bytes.extend_from_slice(&[kind_number(self.kind), place]);
        bytes.resize(SCRATCH_HEAD, 0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut numbers = bytes.chunks_exact(8).filter_map(|chunk| chunk.first_chunk().map(|chunk| u64::from_le_bytes(*chunk)));
        let size = numbers.next()?;
        let mtime = numbers.next()?.cast_signed();
        let stream_offset = numbers.next()?;
        let value = numbers.next()?;
        let [l0, l1, l2, l3, m0, m1, kind, place] = numbers.next()?.to_le_bytes();
        let head =
            Self { size, mtime, stream_offset, place: place_of(place, value)?, mode: u16::from_le_bytes([m0, m1]), kind: kind_of(kind)? };
        Some((head, u32::from_le_bytes([l0, l1, l2, l3]) as usize))
    }
}

/// The scratch file when all entries are in it.
struct Scratch<'a> {
    map: &'a [u8],
    end: u64,
}

impl<'a> Scratch<'a> {
    /// The record at a multiple of [`ALIGN`], with its path.
    fn record(&self, at: u32) -> Result<(ScratchHead, &'a [u8]), IndexError> {
        let lost = || IndexError::Damaged { what: "the scratch file is not what was written".into() };
        let start = usize::try_from(u64::from(at) * ALIGN).map_err(|_| lost())?;
        let bytes = self.map.get(start..).ok_or_else(lost)?;
        let (head, rest) = bytes.split_at_checked(SCRATCH_HEAD).ok_or_else(lost)?;
        let (head, length) = ScratchHead::decode(head).ok_or_else(lost)?;
        Ok((head, rest.get(..length).ok_or_else(lost)?))
    }

    /// Goes through the records in the order of the stream.
    fn each(&self, mut visit: impl FnMut(u32, ScratchHead, &'a [u8]) -> Result<(), IndexError>) -> Result<(), IndexError> {
        let mut at = 0;
        while at < self.end {
            let (head, path) = u32::try_from(at / ALIGN).map_err(|_| IndexError::TooMany).and_then(|at| self.record(at))?;
            let size = ((SCRATCH_HEAD + path.len()) as u64).next_multiple_of(ALIGN);
            visit((at / ALIGN) as u32, head, path)?;
            at += size;
        }
        Ok(())
    }

    /// Where the records are, in the order of their paths; those of one path in the order of the stream.
    fn sorted(&self, entries: u32) -> Result<Vec<u32>, IndexError> {
        let mut order = Vec::with_capacity(entries as usize);
        self.each(|at, _, _| {
            order.push(at);
            Ok(())
        })?;
        // Every record was read once above, so that none is missing here.
        let path = |at: u32| self.record(at).map_or(&[][..], |(_, path)| path);
        order.sort_unstable_by(|a, b| path(*a).cmp(path(*b)).then(a.cmp(b)));
        Ok(order)
    }

    /// Walks the tree that the sorted records make, implied folders included, and refuses what makes none.
    fn walk(&self, order: &[u32], visit: &mut impl Visit) -> Result<(), IndexError> {
        /// A folder or file that is open: everything below it comes before it is left.
        struct Open {
            /// Where its path ends in `path`.
            end: usize,
            kind: Kind,
            stream_offset: u64,
        }
        let mut stack: Vec<Open> = Vec::new();
        let mut path: &[u8] = &[];
        let root = Record {
            parent: 0,
            first_child: 0,
            child_count: 0,
            name_offset: 0,
            name_length: 0,
            mtime: 0,
            size: 0,
            stream_offset: 0,
            place: Place::None,
            mode: IMPLIED_MODE,
            kind: Kind::Folder,
            implied: true,
        };
        let mut records = order.iter().map(|at| self.record(*at)).peekable();
        // The root comes first, mentioned or not. The archive's own reader gives no file that name.
        let mut first = root;
        if let Some(Ok((head, []))) = records.peek()
            && head.kind == Kind::Folder
        {
            first = Record { mtime: head.mtime, mode: head.mode, stream_offset: head.stream_offset, implied: false, ..root };
        }
        visit.enter(0, &[], first);
        stack.push(Open { end: 0, kind: Kind::Folder, stream_offset: first.stream_offset });

        for record in records {
            let (head, next) = record?;
            let common = path.iter().zip(next).take_while(|(a, b)| a == b).count();
            let ends_there = |end: usize| end <= common && matches!(next.get(end), None | Some(0));
            while stack.len() > 1 && stack.last().is_some_and(|top| !ends_there(top.end)) {
                stack.pop();
                visit.leave(stack.len());
            }
            path = next;
            let top = stack.last().map_or((0, Kind::Folder, 0), |top| (top.end, top.kind, top.stream_offset));
            let (mut end, kind, stream_offset) = top;
            if end == next.len() {
                // The same path again: only a folder may be mentioned more than once, and the first mention counts. An implied folder
                // cannot be here: it has no record, and its own sorts before what is in it.
                match (kind, head.kind) {
                    (Kind::Folder, Kind::Folder) => continue,
                    (Kind::File, Kind::File) => {
                        return Err(IndexError::Twice { path: clean(next), first: stream_offset, second: head.stream_offset });
                    }
                    (Kind::File, Kind::Folder) => {
                        return Err(IndexError::FileAgainstFolder { file: clean(next), other: clean(next), at: stream_offset });
                    }
                    (Kind::Folder, Kind::File) => {
                        return Err(IndexError::FileAgainstFolder { file: clean(next), other: clean(next), at: head.stream_offset });
                    }
                }
            }
            if kind == Kind::File {
                let file = clean(next.get(..end).unwrap_or_default());
                return Err(IndexError::FileAgainstFolder { file, other: clean(next), at: stream_offset });
            }
            while end < next.len() {
                let start = if end == 0 { 0 } else { end + 1 };
                let rest = next.get(start..).unwrap_or_default();
                let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                end = start + name.len();
                let record = if end < next.len() {
                    root
                } else {
                    Record {
                        mtime: head.mtime,
                        size: head.size,
                        stream_offset: head.stream_offset,
                        place: head.place,
                        mode: head.mode,
                        kind: head.kind,
                        implied: false,
                        ..root
                    }
                };
                visit.enter(stack.len(), name, Record { name_length: name.len() as u16, ..record });
                stack.push(Open { end, kind: record.kind, stream_offset: record.stream_offset });
            }
            visit.check()?;
        }
        while !stack.is_empty() {
            stack.pop();
            visit.leave(stack.len());
        }
        visit.check()
    }

    fn write_data_files(
        &self,
        out: &File,
        layout: &Layout,
        stored: &Stored,
        facts: &mut dyn FnMut(u32) -> io::Result<FileFacts>,
    ) -> Result<(), IndexError> {
        let mut to = Lane::new(layout.data.start);
        let mut cut: u64 = 0;
        self.each(|_, head, _| {
            let Place::Data { ordinal } = head.place else { return Ok(()) };
            let facts = facts(ordinal).map_err(|source| IndexError::Io { what: "cannot ask for the facts of a data file", source })?;
            if facts.size != head.size {
                return Err(IndexError::Inconsistent { what: "size of a data file", expected: head.size, got: facts.size });
            }
            cut = cut.saturating_add(facts.size);
            to.put(out, &DataRecord { ordinal, facts, stream_offset: head.stream_offset }.encode())
        })?;
        to.flush(out)?;
        let whole = stored.pack.size.saturating_add(cut);
        if whole != stored.uncompressed_size {
            return Err(IndexError::Inconsistent { what: "size of pack and data files", expected: stored.uncompressed_size, got: whole });
        }
        Ok(())
    }
}

/// What is done at each entry of a walk. Depth 0 is the root.
trait Visit {
    fn enter(&mut self, depth: usize, name: &[u8], record: Record);
    /// All below the last entry of this depth was entered.
    fn leave(&mut self, depth: usize);
    /// The first error since the last call, if there was one.
    fn check(&mut self) -> Result<(), IndexError>;
}

/// Counts, so that it is known where each depth begins.
#[derive(Default)]
struct Census {
    depths: Vec<(u32, u64)>,
    entries: u32,
    limit: u32,
    files: u64,
    total_size: u64,
    data_files: u32,
}

impl Census {
    fn names_size(&self) -> u64 {
        self.depths.iter().map(|(_, names)| names).sum()
    }
}

impl Visit for Census {
    fn enter(&mut self, depth: usize, name: &[u8], record: Record) {
        if self.depths.len() <= depth {
            self.depths.resize(depth + 1, (0, 0));
        }
        if let Some((entries, names)) = self.depths.get_mut(depth) {
            *entries += 1;
            *names += name.len() as u64;
        }
        self.entries += 1;
        self.files += u64::from(record.kind == Kind::File);
        self.total_size = self.total_size.saturating_add(record.size);
        self.data_files += u32::from(matches!(record.place, Place::Data { .. }));
    }

    fn leave(&mut self, _: usize) {}

    fn check(&mut self) -> Result<(), IndexError> {
        if self.entries > self.limit { Err(IndexError::TooMany) } else { Ok(()) }
    }
}

/// Writes each entry where its rank belongs.
struct RankWriter<'a> {
    out: &'a File,
    names_start: u64,
    depths: Vec<Depth>,
    result: Result<(), IndexError>,
}

/// The entries of one depth, which come in order of rank.
struct Depth {
    /// The rank that the next entry of this depth gets.
    next: u32,
    records: Lane,
    names: Lane,
    /// The last entry; it is written when its children are known.
    open: Option<Record>,
}

impl<'a> RankWriter<'a> {
    fn new(out: &'a File, layout: &Layout, census: &Census) -> Self {
        let mut depths = Vec::with_capacity(census.depths.len());
        let (mut rank, mut names) = (0, layout.names.start);
        for (entries, bytes) in &census.depths {
            let records = Lane::new(layout.entries.start + u64::from(rank) * RECORD as u64);
            depths.push(Depth { next: rank, records, names: Lane::new(names), open: None });
            rank += entries;
            names += bytes;
        }
        Self { out, names_start: layout.names.start, depths, result: Ok(()) }
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        for depth in &mut self.depths {
            depth.records.flush(self.out)?;
            depth.names.flush(self.out)?;
        }
        Ok(())
    }

    fn note(&mut self, result: Result<(), IndexError>) {
        if self.result.is_ok() {
            self.result = result;
        }
    }
}

impl Visit for RankWriter<'_> {
    fn enter(&mut self, depth: usize, name: &[u8], mut record: Record) {
        let children = self.depths.get(depth + 1).map_or(0, |below| below.next);
        if let Some(parent) = depth.checked_sub(1).and_then(|above| self.depths.get_mut(above)) {
            record.parent = parent.next.saturating_sub(1);
            if let Some(open) = &mut parent.open {
                open.child_count += 1;
            }
        }
        let Some(at) = self.depths.get_mut(depth) else { return };
        // Names of a layer have at most 10 million times 255 bytes.
        record.name_offset = (at.names.end() - self.names_start) as u32;
        record.first_child = if record.kind == Kind::Folder { children } else { 0 };
        at.open = Some(record);
        at.next += 1;
        let result = at.names.put(self.out, name);
        self.note(result);
    }

    fn leave(&mut self, depth: usize) {
        let Some(at) = self.depths.get_mut(depth) else { return };
        if let Some(mut record) = at.open.take() {
            if record.child_count == 0 {
                record.first_child = 0;
            }
            let result = at.records.put(self.out, &record.encode());
            self.note(result);
        }
    }

    fn check(&mut self) -> Result<(), IndexError> {
        std::mem::replace(&mut self.result, Ok(()))
    }
}

/// A run of bytes of the file that grows at its end, next to other such runs.
struct Lane {
    at: u64,
    bytes: Vec<u8>,
}

impl Lane {
    fn new(at: u64) -> Self {
        Self { at, bytes: Vec::new() }
    }

    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn put(&mut self, out: &File, bytes: &[u8]) -> Result<(), IndexError> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= LANE { self.flush(out) } else { Ok(()) }
    }

    fn flush(&mut self, out: &File) -> Result<(), IndexError> {
        step("write:new-index").map_err(writing)?;
        out.write_all_at(&self.bytes, self.at).map_err(writing)?;
        self.at = self.end();
        self.bytes.clear();
        Ok(())
    }
}

/// Reads back what was written for the checksums over it, and writes them and the header.
fn seal(out: &File, layout: &Layout, header: &mut Header) -> Result<(), IndexError> {
    // The padding after the names may be all that is left unwritten at the end.
    step("truncate:new-index").map_err(writing)?;
    out.set_len(layout.checksums.end).map_err(writing)?;
    let unmapped = |source| IndexError::Io { what: "cannot map the index", source };
    step("map:new-index").map_err(unmapped)?;
    // SAFETY: The file is the builder's own until it is finished: nobody else writes or cuts it, and here it is written only when the map
    // is gone.
    let map = unsafe { Mmap::map(out) }.map_err(unmapped)?;
    populate(&map, &(0..layout.checksums.end))?;
    let part = |range: &Range<u64>| map.get(range.start as usize..range.end as usize).unwrap_or_default();
    header.table_checksum = table_checksum(part(&layout.entries), part(&layout.names))?;
    let checksums: Vec<u8> = part(&layout.checked).chunks(BLOCK as usize).flat_map(|block| crc32fast::hash(block).to_le_bytes()).collect();
    drop(map);
    step("write:index-checksums").map_err(writing)?;
    out.write_all_at(&checksums, layout.checksums.start).map_err(writing)?;
    step("write:index-header").map_err(writing)?;
    out.write_all_at(&header.encode(), 0).map_err(writing)
}

/// A checksum over what the layer says and how it is numbered; not where it is stored, and nothing of the format, both of which may change.
fn table_checksum(entries: &[u8], names: &[u8]) -> Result<u64, IndexError> {
    let mut table = sha2::Sha256::new();
    let mut facts = Vec::with_capacity(RECORD);
    for bytes in entries.chunks_exact(RECORD) {
        let lost = || IndexError::Damaged { what: "an entry is not what was written".into() };
        let record = Record::decode(bytes).ok_or_else(lost)?;
        let start = record.name_offset as usize;
        let name = names.get(start..start + usize::from(record.name_length)).ok_or_else(lost)?;
        facts.clear();
        facts.extend_from_slice(&record.parent.to_le_bytes());
        facts.extend_from_slice(&record.name_length.to_le_bytes());
        facts.extend_from_slice(&record.mode.to_le_bytes());
        facts.extend_from_slice(&record.mtime.to_le_bytes());
        facts.extend_from_slice(&record.size.to_le_bytes());
        facts.extend_from_slice(&record.stream_offset.to_le_bytes());
        facts.push(kind_number(record.kind));
        facts.extend_from_slice(name);
        table.update(&facts);
    }
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..]: [u8; 32] = table.finalize().into();
    Ok(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))
}

fn writing(source: io::Error) -> IndexError {
    IndexError::Io { what: "cannot write the index", source }
}

fn clean(path: &[u8]) -> RelPath {
    let path: Vec<u8> = path.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
    RelPath::parse(&path).unwrap_or_default()
}

const _: () = assert!(HEADER.is_multiple_of(8) && RECORD.is_multiple_of(8) && DATA.is_multiple_of(8));
const _: () = assert!(BLOCK.is_multiple_of(8));
