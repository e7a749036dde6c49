//! The bytes of an index, see [`super`]: fixed records to and from numbers, without a meaning.

use std::ops::Range;

use super::{FileFacts, IndexError, Kind, Place};
use crate::digest::Digest;
use crate::limits::NAME_BYTES;

/// The version that is written and read.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 4096;
/// Bytes of an entry.
pub(super) const RECORD: usize = 56;
/// Bytes of a data file's facts.
pub(super) const DATA: usize = 48;
/// Bytes that one checksum covers.
pub(super) const BLOCK: u64 = 64 << 10;

const MAGIC: [u8; 8] = *b"\x89kitfsI\n";
const CHECKSUM_AT: usize = HEADER - 8;
const DIGEST: usize = 65;

/// Writes numbers one after the other into a record of fixed size.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        // The records are fixed and their writers below are tested to fit.
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Reads numbers one after the other; what is not there reads as zero, which the fixed records never need.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.bytes.split_first_chunk::<N>() {
            Some((chunk, rest)) => {
                self.bytes = rest;
                *chunk
            }
            None => [0; N],
        }
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.take())
    }
}

/// An entry's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) parent: u32,
    pub(super) first_child: u32,
    pub(super) child_count: u32,
    pub(super) name_offset: u32,
    pub(super) name_length: u16,
    pub(super) mtime: i64,
    pub(super) size: u64,
    pub(super) stream_offset: u64,
    pub(super) place: Place,
    pub(super) mode: u16,
    pub(super) kind: Kind,
    pub(super) implied: bool,
}

impl Record {
    pub(super) fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let mut to = Writer { bytes: &mut bytes, at: 0 };
        to.put(&self.parent.to_le_bytes());
        to.put(&self.first_child.to_le_bytes());
        to.put(&self.child_count.to_le_bytes());
        to.put(&self.name_offset.to_le_bytes());
        to.put(&self.mtime.to_le_bytes());
        to.put(&self.size.to_le_bytes());
        to.put(&self.stream_offset.to_le_bytes());
        let (place, value) = place_numbers(self.place);
        to.put(&value.to_le_bytes());
        to.put(&self.name_length.to_le_bytes());
        to.put(&self.mode.to_le_bytes());
        to.put(&[kind_number(self.kind), place, u8::from(self.implied)]);
        bytes
    }

    /// `None` if a field has a value that is never written.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader { bytes };
        let parent = from.u32();
        let first_child = from.u32();
        let child_count = from.u32();
        let name_offset = from.u32();
        let mtime = from.i64();
        let size = from.u64();
        let stream_offset = from.u64();
        let value = from.u64();
        let name_length = from.u16();
        let mode = from.u16();
        let kind = kind_of(from.u8())?;
        let place = place_of(from.u8(), value)?;
        let implied = match from.u8() {
            0 => false,
            1 => true,
            _ => return None,
        };
        let fits = match kind {
            Kind::Folder => place == Place::None && size == 0,
            Kind::File => place != Place::None && child_count == 0 && !implied,
        };
        let sound = fits && from.u8() == 0 && mode <= 0o7777 && usize::from(name_length) <= NAME_BYTES;
        let record =
            Self { parent, first_child, child_count, name_offset, name_length, mtime, size, stream_offset, place, mode, kind, implied };
        sound.then_some(record)
    }
}

/// A kind as one byte.
pub(super) fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::Folder => 0,
        Kind::File => 1,
    }
}

/// The inverse of [`kind_number`].
pub(super) fn kind_of(number: u8) -> Option<Kind> {
    match number {
        0 => Some(Kind::Folder),
        1 => Some(Kind::File),
        _ => None,
    }
}

/// A place as a byte and a number.
pub(super) fn place_numbers(place: Place) -> (u8, u64) {
    match place {
        Place::None => (0, 0),
        Place::Packed { offset } => (1, offset),
        Place::Data { ordinal } => (2, u64::from(ordinal)),
    }
}

/// The inverse of [`place_numbers`].
pub(super) fn place_of(number: u8, value: u64) -> Option<Place> {
    match (number, value) {
        (0, 0) => Some(Place::None),
        (1, offset) => Some(Place::Packed { offset }),
        (2, ordinal) => Some(Place::Data { ordinal: u32::try_from(ordinal).ok()? }),
        _ => None,
    }
}

/// A data file's facts and its place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataRecord {
    pub(super) ordinal: u32,
    pub(super) facts: FileFacts,
    pub(super) stream_offset: u64,
}

impl DataRecord {
    pub(super) fn encode(&self) -> [u8; DATA] {
        let mut bytes = [0; DATA];
        let mut to = Writer { bytes: &mut bytes, at: 0 };
        to.put(&self.ordinal.to_le_bytes());
        to.put(&self.facts.mode.to_le_bytes());
        to.put(&self.facts.size.to_le_bytes());
        to.put(&self.facts.ctime_sec.to_le_bytes());
        to.put(&self.facts.ctime_nsec.to_le_bytes());
        to.put(&[0; 4]);
        to.put(&self.stream_offset.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let mut from = Reader { bytes };
        let ordinal = from.u32();
        let mode = from.u32();
        let size = from.u64();
        let ctime_sec = from.i64();
        let ctime_nsec = from.u32();
        let _ = from.u32();
        let stream_offset = from.u64();
        Self { ordinal, facts: FileFacts { size, mode, ctime_sec, ctime_nsec }, stream_offset }
    }
}

/// Everything that an index knows beside its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) entries: u32,
    pub(super) data_files: u32,
    pub(super) names_size: u64,
    pub(super) layer: Digest,
    pub(super) uncompressed: Option<Digest>,
    pub(super) blob_size: u64,
    pub(super) uncompressed_size: u64,
    pub(super) files: u64,
    pub(super) total_size: u64,
    pub(super) table_checksum: u64,
    pub(super) pack: FileFacts,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        let mut to = Writer { bytes: &mut bytes, at: 0 };
        to.put(&MAGIC);
        to.put(&VERSION.to_le_bytes());
        to.put(&self.entries.to_le_bytes());
        to.put(&self.data_files.to_le_bytes());
        to.put(&[0; 4]);
        to.put(&self.names_size.to_le_bytes());
        to.put(&digest_bytes(Some(&self.layer)));
        to.put(&digest_bytes(self.uncompressed.as_ref()));
        to.at = to.at.next_multiple_of(8);
        for number in [self.blob_size, self.uncompressed_size, self.files, self.total_size, self.table_checksum, self.pack.size] {
            to.put(&number.to_le_bytes());
        }
        to.put(&self.pack.ctime_sec.to_le_bytes());
        to.put(&self.pack.ctime_nsec.to_le_bytes());
        to.put(&self.pack.mode.to_le_bytes());
        let checksum = u64::from(crc32fast::hash(&bytes[..CHECKSUM_AT]));
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let damaged = |what: &str| IndexError::Damaged { what: format!("header: {what}") };
        let (Some(content), Some(mut checksum)) = (bytes.get(..CHECKSUM_AT), bytes.get(CHECKSUM_AT..HEADER).map(|bytes| Reader { bytes }))
        else {
            return Err(damaged("it is cut short"));
        };
        let mut from = Reader { bytes: content };
        if from.take() != MAGIC {
            return Err(IndexError::Version { expected: VERSION, found: "another kind of file".into() });
        }
        // Asked before the checksum: another version may have it elsewhere.
        let version = from.u32();
        if version != VERSION {
            return Err(IndexError::Version { expected: VERSION, found: format!("version {version}") });
        }
        if checksum.u64() != u64::from(crc32fast::hash(content)) {
            return Err(damaged("its checksum does not match"));
        }
        let entries = from.u32();
        let data_files = from.u32();
        let _ = from.u32();
        let names_size = from.u64();
        let layer = digest_of(from.take()).map_err(|()| damaged("unknown digest algorithm"))?;
        let layer = layer.ok_or_else(|| damaged("the layer's digest is missing"))?;
        let uncompressed = digest_of(from.take()).map_err(|()| damaged("unknown digest algorithm"))?;
        let _: [u8; (2 * DIGEST).next_multiple_of(8) - 2 * DIGEST] = from.take();
        let mut number = || from.u64();
        let [blob_size, uncompressed_size, files, total_size, table_checksum, size] = std::array::from_fn(|_| number());
        let pack = FileFacts { size, ctime_sec: from.i64(), ctime_nsec: from.u32(), mode: from.u32() };
        Ok(Self {
            entries,
            data_files,
            names_size,
            layer,
            uncompressed,
            blob_size,
            uncompressed_size,
            files,
            total_size,
            table_checksum,
            pack,
        })
    }
}

/// Where the parts of an index are in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) entries: Range<u64>,
    pub(super) names: Range<u64>,
    pub(super) data: Range<u64>,
    /// Entries, names and data: what the checksums cover.
    pub(super) checked: Range<u64>,
    pub(super) checksums: Range<u64>,
}

impl Layout {
    /// `None` if the numbers are absurd.
    pub(super) fn new(entries: u32, names_size: u64, data_files: u32) -> Option<Self> {
        let start = HEADER as u64;
        let entries = start..start + u64::from(entries) * RECORD as u64;
        let names = entries.end..entries.end.checked_add(names_size)?;
        let data_start = names.end.checked_next_multiple_of(8)?;
        let data = data_start..data_start.checked_add(u64::from(data_files) * DATA as u64)?;
        let checked = start..data.end;
        let blocks = (checked.end - checked.start).div_ceil(BLOCK);
        let checksums = checked.end..checked.end.checked_add(blocks * 4)?;
        Some(Self { entries, names, data, checked, checksums })
    }
}

fn digest_bytes(digest: Option<&Digest>) -> [u8; DIGEST] {
    let mut bytes = [0; DIGEST];
    if let Some(digest) = digest {
        bytes[0] = match digest {
            Digest::Sha256(_) => 1,
            Digest::Sha512(_) => 2,
        };
        let value = digest.as_bytes();
        bytes[1..=value.len()].copy_from_slice(value);
    }
    bytes
}

fn digest_of(bytes: [u8; DIGEST]) -> Result<Option<Digest>, ()> {
    let mut from = Reader { bytes: &bytes };
    match from.u8() {
        0 => Ok(None),
        1 => Ok(Some(Digest::Sha256(from.take()))),
        2 => Ok(Some(Digest::Sha512(from.take()))),
        _ => Err(()),
    }
}
