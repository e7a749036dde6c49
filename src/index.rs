//! What stands in a layer and where: a flat file that is mapped, not parsed.
//!
//! An index is built while a layer is ingested ([`IndexBuilder`]) and read ever after ([`Index`]). It says of each file and folder what an
//! archive said, where its bytes are ([`Place`]), and how `pack` and data files interleave to the layer's exact uncompressed stream
//! ([`Segment`]). It does not know the store's folders, nor which paths of the mount a layer owns.
//!
//! # Ranks
//!
//! Entries are numbered in (parent, name) order, which is breadth first: rank 0 is the root of the archive, siblings stand side by side in
//! byte order, and folders that follow from a name alone are entries like others. So a rank is a function of the layer's bytes; it is part
//! of node ids and must stay the same in every version. [`Index::table_checksum`] is computed from these facts and nothing else, to notice
//! it if not.
//!
//! # Format, version 1
//!
//! All numbers are little-endian. The parts follow each other without gaps:
//!
//! * Header, 4096 bytes: magic 8, version u32, number of entries u32, number of data files u32, 0 u32, bytes of names u64; digest of the
//!   layer (algorithm u8: 1 SHA-256, 2 SHA-512, then 64 bytes of which the first 32 or all count); digest of the uncompressed stream (the
//!   same, algorithm 0 for none); 6 zeros; size of the blob u64, size of the uncompressed stream u64, number of files u64, sum of their
//!   sizes u64, table checksum u64; `pack`: size u64, ctime seconds i64, ctime nanoseconds u32, mode u32; zeros; in the last 8 bytes the
//!   CRC-32 of everything before, as u64.
//! * Entries in order of rank, 56 bytes each: parent u32, first child u32, number of children u32, name offset u32, mtime i64, size u64,
//!   stream offset u64, place u64 (offset in `pack`, or ordinal of the data file), name length u16, mode u16, kind u8 (0 folder, 1 file),
//!   place u8 (0 none, 1 packed, 2 data), implied u8, 0 u8.
//! * Names in order of rank, nothing between them; then zeros up to a multiple of 8.
//! * Data files in the order of the stream, 48 bytes each: ordinal u32, mode u32, size u64, ctime seconds i64, ctime nanoseconds u32, 0
//!   u32, stream offset u64, 0 u64.
//! * Checksums: the CRC-32, u32, of each 64 KiB of the three parts before.
//!
//! The header is checked when the file is mapped, each 64 KiB at its first touch. The checksums are there for accidents (a disk, an
//! editor), not against somebody who may write into the cache; but whatever the bytes are, reading them gives an entry or an
//! [`IndexError`], and never anything else. So does a disk that cannot give them: the kernel is asked to read what is about to be touched for the first
//! time, and says so where a touch would be a SIGBUS.

mod builder;
mod format;
mod reader;
#[cfg(test)]
mod tests;

use std::io;

pub use builder::IndexBuilder;
#[cfg(test)]
pub(crate) use format::VERSION;
pub use reader::{Index, Segments};

use crate::digest::Digest;
use crate::limits::LAYER_ENTRIES;
use crate::path::RelPath;

/// The name that the file of a raw layer has in its index. It is never shown: where the file stands is for each kit to say.
pub const RAW_NAME: &[u8] = b"file";
/// The rank of that file: it is the only entry beside the root.
pub const RAW_RANK: u32 = 1;

/// What an entry is. Nothing else can be in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
}

/// Where the bytes of an entry are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// It has none: a folder.
    None,
    /// In `pack`, at this offset.
    Packed {
        /// Offset in `pack`, in bytes.
        offset: u64,
    },
    /// In a data file of its own.
    Data {
        /// The entry's ordinal in the stream, which names the file.
        ordinal: u32,
    },
}

/// An entry as it comes out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Where it belongs, below the root of the archive.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// The archive's permission bits, with setuid, setgid and sticky (at most `0o7777`).
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of content; 0 for folders.
    pub size: u64,
    /// Where its bytes go.
    pub place: Place,
    /// Where its content begins (or would begin) in the uncompressed stream.
    pub stream_offset: u64,
}

/// An entry as an index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The rank of the folder that it is in; the root is its own parent.
    pub parent: u32,
    /// What it is.
    pub kind: Kind,
    /// The archive's permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of content; 0 for folders.
    pub size: u64,
    /// Where its bytes are.
    pub place: Place,
    /// Where its content begins in the uncompressed stream; 0 for implied folders.
    pub stream_offset: u64,
    /// The rank of its first child; meaningless without children.
    pub first_child: u32,
    /// How many children it has.
    pub child_count: u32,
    /// True for a folder that the archive does not mention, but has something in. Its mode is `0o755`, its mtime 0.
    pub implied: bool,
}

/// What `fstat` says of a file of the store; another answer later means that somebody touched it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// Bytes.
    pub size: u64,
    /// Permission bits (`st_mode & 0o7777`).
    pub mode: u32,
    /// Last change, seconds.
    pub ctime_sec: i64,
    /// Last change, nanoseconds beside the seconds.
    pub ctime_nsec: u32,
}

/// What is known of a layer when all of it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The digest of the blob.
    pub layer: Digest,
    /// The size of the blob.
    pub blob_size: u64,
    /// The digest of the uncompressed stream, if it was computed.
    pub uncompressed: Option<Digest>,
    /// The size of the uncompressed stream.
    pub uncompressed_size: u64,
    /// The `pack` file.
    pub pack: FileFacts,
}

/// A piece of the uncompressed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of `pack`.
    Pack {
        /// Offset in `pack`.
        offset: u64,
        /// How many; never 0.
        size: u64,
    },
    /// All bytes of a data file.
    Data {
        /// Which.
        ordinal: u32,
        /// How many.
        size: u64,
    },
}

/// Why an index could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The layer has two files of one name.
    #[error("the file `{path}` is in the layer twice (at bytes {first} and {second} of the stream)")]
    Twice {
        /// The name.
        path: RelPath,
        /// Where the one is in the stream.
        first: u64,
        /// Where the other is.
        second: u64,
    },
    /// The layer has a name as file and as folder.
    #[error("`{file}` is a file (at byte {at} of the stream), but `{other}` needs it to be a folder")]
    FileAgainstFolder {
        /// The file.
        file: RelPath,
        /// The folder of the same name, or what is below it.
        other: RelPath,
        /// Where the file is in the stream.
        at: u64,
    },
    /// There are more entries than a layer may have.
    #[error("the layer has more than {LAYER_ENTRIES} entries")]
    TooMany,
    /// The file to be built or read could not be.
    #[error("{what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// What the builder was told contradicts itself.
    #[error("the index would be wrong: {what}: expected {expected}, got {got}")]
    Inconsistent {
        /// What does not fit.
        what: &'static str,
        /// The number that follows from the entries.
        expected: u64,
        /// The number that was given.
        got: u64,
    },
    /// The file is no index, or of another version.
    #[error("not an index of version {expected}: {found}")]
    Version {
        /// The version that this program reads.
        expected: u32,
        /// What was found.
        found: String,
    },
    /// The index belongs to another layer.
    #[error("the index is that of layer {got}, expected {expected}")]
    WrongLayer {
        /// Whose index was asked for.
        expected: Box<Digest>,
        /// Whose it is.
        got: Box<Digest>,
    },
    /// The bytes are not what was written, or never were an index.
    #[error("the index is damaged: {what}")]
    Damaged {
        /// Where, and what does not hold.
        what: String,
    },
    /// There is no entry of this rank.
    #[error("the index has no entry {rank}, only {len}")]
    NoEntry {
        /// The rank that was asked for.
        rank: u32,
        /// How many entries there are.
        len: u32,
    },
}

impl IndexError {
    /// True if the *layer* must not be shown; otherwise the trouble is this host's.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Twice { .. } | Self::FileAgainstFolder { .. } | Self::TooMany)
    }

    /// True if it is not known what the index said: an index made anew from the layer's bytes will tell.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Damaged { .. })
    }
}
