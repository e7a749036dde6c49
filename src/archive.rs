//! Cutting a layer's content: the big files' bytes go to files of their own, everything else stays as it is.
//!
//! A [`Splitter`] is pushed the uncompressed bytes of a layer, which nobody has verified yet, and says to an [`Output`] what is in them.
//! A raw layer is a file as a whole, so all there is to do with it is to count. The rest of this is about tar.
//!
//! It reads tar as Go's `archive/tar` does, with which kit packs and unpacks: what is a file to the one is the same file to the other. It
//! refuses what a ModelKit never has (links, devices, sparse files, global headers) and what would be read in two ways. It never allocates
//! by a number that the stream claims; the longest thing it holds is an extension of 1 MiB.
//!
//! Where it is stricter than Go: an extension that no entry follows, NUL bytes inside of GNU long names, negative sizes of folders, any
//! `GNU.sparse.` record, files without a name; and what Go alone reads in its way (`tests/tar_mutations` compares it with others): digits
//! behind a NUL, blank sizes, empty names and sizes in extensions, an extension twice, two names for one entry. The order of the entries
//! and what they mean together is the business of [`crate::index`].

mod header;
mod members;
#[cfg(test)]
mod model;
mod pax;
#[cfg(test)]
mod tests;

use std::io;

use header::{BLOCK, RawHeader};
use pax::Extensions;

pub use crate::index::{Kind, NewEntry, Place};
pub use members::{BLOCK_BYTES, Begins, Member, MemberError, MemberKind, Members};

use crate::index::{IndexError, RAW_NAME};
use crate::limits::TAR_EXTENSION_BYTES;
use crate::path::{Escaped, PathError, RelPath};

/// Where the pieces of a stream go.
pub trait Output {
    /// More bytes for the end of `pack`.
    fn pack(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// A file begins whose bytes come by [`Output::data`]. `size` is only what the archive claims.
    fn open_data(&mut self, ordinal: u32, size: u64) -> io::Result<()>;
    /// More bytes of the file that was opened last.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The file that was opened last has all its bytes.
    fn close_data(&mut self) -> io::Result<()>;
    /// An entry begins; called before any of its bytes come, but for the file of a raw layer, whose size may only be known after them.
    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError>;
}

/// Why a stream cannot be cut. Offsets count the bytes of the uncompressed stream.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A header is not one that can be read.
    #[error("tar header at byte {offset}: {reason}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry is something else than a file or a folder.
    #[error("tar entry `{name}` at byte {offset} is {what}; a layer has only files and folders")]
    Kind {
        /// Where its header begins.
        offset: u64,
        /// Its name, escaped.
        name: String,
        /// What it is.
        what: String,
    },
    /// An entry has a name that has no place in a kit.
    #[error("tar entry at byte {offset}: its name cannot be shown")]
    Name {
        /// Where its header begins.
        offset: u64,
        /// What is wrong with the name.
        #[source]
        source: PathError,
    },
    /// The stream ends too early.
    #[error("the tar stream ends at byte {offset}, inside {inside}")]
    Cut {
        /// How many bytes there are.
        offset: u64,
        /// What should have come.
        inside: String,
    },
    /// A raw layer has more or fewer bytes than the manifest says.
    #[error("the file has {got} bytes, the manifest says {expected}", got = if *more { format!("more than {got}") } else { got.to_string() })]
    Size {
        /// What the manifest says.
        expected: u64,
        /// How many bytes there are, or were when there were too many.
        got: u64,
        /// There were more to come.
        more: bool,
    },
    /// What was cut could not be written.
    #[error("cannot store the layer")]
    Output(#[from] io::Error),
    /// The entries make no tree, or the index could not be written.
    #[error("the entries of the layer cannot be indexed")]
    Index(#[from] IndexError),
}

impl SplitError {
    /// True if the *layer* must not be shown; otherwise the trouble is this host's.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Output(_) => false,
            Self::Index(error) => error.is_refusal(),
            _ => true,
        }
    }
}

/// What a whole stream came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// How many entries were told.
    pub entries: u32,
    /// How many bytes the stream had.
    pub stream_size: u64,
    /// How many of them went to `pack`.
    pub pack_size: u64,
}

/// A data file that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenData {
    /// Its ordinal.
    pub ordinal: u32,
    /// How many of its bytes are still to come, as the archive claims.
    pub left: u64,
}

/// The mode that the file of a raw layer has in its index, which is not shown.
const RAW_MODE: u32 = 0o644;

/// Reads a layer's content that comes in pieces of any size. After an error it is of no more use.
pub struct Splitter {
    cut: Box<dyn FnMut(u32, u64) -> bool + Send>,
    state: State,
    block: Box<[u8; BLOCK]>,
    /// Bytes of `block` that came.
    filled: usize,
    extensions: Extensions,
    /// Bytes of the extensions of the entry to come, all together.
    extension_bytes: u64,
    /// Bytes of the stream that were used.
    position: u64,
    /// Bytes of the stream that went to data files; the others are in `pack`.
    cut_away: u64,
    ordinal: u32,
}

/// What the next byte belongs to.
enum State {
    /// A header, or the first zero block.
    Header,
    /// The block after one of zeros, which must be another.
    SecondZero,
    /// The content of an extension, to which some padding belongs.
    Extension { kind: ExtensionKind, offset: u64, content: Vec<u8>, left: u64, padding: u64 },
    /// The content of a file that stays in `pack`.
    Packed { left: u64, padding: u64 },
    /// The content of a file of its own.
    Data { ordinal: u32, left: u64, padding: u64 },
    /// What fills the last block of a content.
    Padding { left: u64 },
    /// What comes after the end.
    Trailing,
    /// The content of a raw layer, which has no headers; its size, if the manifest says so.
    Raw { size: Option<u64> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExtensionKind {
    Pax,
    LongName,
    LongLink,
}

impl Splitter {
    /// Takes all for one file, of `size` bytes if that is known. It becomes a data file however small it is (an empty one never): a kit has few of them, and
    /// so the blob is stored as it is and can be gone on with.
    pub fn raw(size: Option<u64>) -> Self {
        Self { state: State::Raw { size }, ..Self::new(u64::MAX) }
    }

    /// Cuts out every file of at least `threshold` bytes (an empty one never).
    pub fn new(threshold: u64) -> Self {
        Self::cutting(move |_, size| size >= threshold)
    }

    /// Cuts out the files for which `cut` says so, by ordinal and size: to go through a stream again that was cut before. Empty ones are
    /// never asked for.
    pub fn cutting(cut: impl FnMut(u32, u64) -> bool + Send + 'static) -> Self {
        Self {
            cut: Box::new(cut),
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            extensions: Extensions::default(),
            extension_bytes: 0,
            position: 0,
            cut_away: 0,
            ordinal: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn write(&mut self, mut bytes: &[u8], out: &mut dyn Output) -> Result<(), SplitError> {
        while !bytes.is_empty() {
            let taken = self.push(bytes, out)?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes the next bytes of the stream, but none beyond the beginning or the end of a data file, and says how many: at least one.
    /// Whoever puts the stream together from `pack` and data files asks [`Splitter::open_data`] in between which one has the next bytes.
    pub fn push(&mut self, bytes: &[u8], out: &mut dyn Output) -> Result<usize, SplitError> {
        if let State::Raw { size } = self.state {
            return self.push_raw(bytes, size, out);
        }
        if let State::Data { ordinal, left, padding } = self.state {
            let piece = first(bytes, left);
            out.data(piece)?;
            self.position += piece.len() as u64;
            self.cut_away += piece.len() as u64;
            let left = left - piece.len() as u64;
            self.state = if left == 0 {
                out.close_data()?;
                State::after_content(padding)
            } else {
                State::Data { ordinal, left, padding }
            };
            return Ok(piece.len());
        }
        let mut taken = 0;
        let mut opened = None;
        while opened.is_none()
            && let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty())
        {
            let (count, data) = self.step(rest, out)?;
            taken += count;
            opened = data;
        }
        // One call for all that stays, so that thousands of small files cost no more than one.
        out.pack(bytes.get(..taken).unwrap_or_default())?;
        if let Some(OpenData { ordinal, left }) = opened {
            out.open_data(ordinal, left)?;
        }
        Ok(taken)
    }

    /// The data file whose bytes come next, if they do not belong to `pack`.
    pub fn open_data(&self) -> Option<OpenData> {
        match self.state {
            State::Data { ordinal, left, .. } => Some(OpenData { ordinal, left }),
            State::Raw { size } => Some(OpenData { ordinal: 0, left: size.map_or(u64::MAX, |size| size.saturating_sub(self.position)) }),
            _ => None,
        }
    }

    /// Says that the stream is over. It may be so where Go's reader accepts it: between entries, after one block of zeros, in the padding
    /// of the last file.
    pub fn finish(mut self, out: &mut dyn Output) -> Result<Split, SplitError> {
        if let State::Raw { size } = self.state {
            self.finish_raw(size, out)?;
        }
        let inside = match &self.state {
            State::Header | State::SecondZero if self.filled > 0 => Some("a header".to_owned()),
            State::Extension { .. } => Some("an extended header".to_owned()),
            State::Packed { left, .. } | State::Data { left, .. } => Some(format!("a file of which {left} bytes are missing")),
            State::Header | State::SecondZero | State::Padding { .. } | State::Trailing | State::Raw { .. } => None,
        };
        match inside {
            Some(inside) => Err(SplitError::Cut { offset: self.position, inside }),
            None if !self.extensions.is_empty() => {
                Err(SplitError::Cut { offset: self.position, inside: "an entry of which only the extended header is there".into() })
            }
            None => Ok(Split { entries: self.ordinal, stream_size: self.position, pack_size: self.position - self.cut_away }),
        }
    }

    /// Uses up some of `bytes`, which all belong to `pack`, and says how many. With it comes the data file that begins directly after them.
    fn step(&mut self, bytes: &[u8], out: &mut dyn Output) -> Result<(usize, Option<OpenData>), SplitError> {
        let count = match &mut self.state {
            State::Header | State::SecondZero => {
                let space = self.block.get_mut(self.filled..).unwrap_or_default();
                let piece = first(bytes, space.len() as u64);
                if let Some(space) = space.get_mut(..piece.len()) {
                    space.copy_from_slice(piece);
                }
                self.filled += piece.len();
                self.position += piece.len() as u64;
                if self.filled == BLOCK {
                    self.filled = 0;
                    self.block_is_full(out)?;
                }
                piece.len()
            }
            State::Extension { content, left, .. } => {
                let piece = first(bytes, *left);
                // At most TAR_EXTENSION_BYTES, see `extension`; grown by what came, not by what was said.
                content.extend_from_slice(piece);
                *left -= piece.len() as u64;
                self.position += piece.len() as u64;
                if *left == 0 {
                    self.extension_is_full()?;
                }
                piece.len()
            }
            State::Packed { left, padding } => {
                let count = first(bytes, *left).len();
                *left -= count as u64;
                self.position += count as u64;
                if *left == 0 {
                    self.state = State::after_content(*padding);
                }
                count
            }
            State::Padding { left } => {
                let count = first(bytes, *left).len();
                *left -= count as u64;
                self.position += count as u64;
                if *left == 0 {
                    self.state = State::Header;
                }
                count
            }
            State::Trailing => {
                self.position += bytes.len() as u64;
                bytes.len()
            }
            State::Data { .. } | State::Raw { .. } => 0,
        };
        Ok((count, self.open_data()))
    }

    fn push_raw(&mut self, bytes: &[u8], size: Option<u64>, out: &mut dyn Output) -> Result<usize, SplitError> {
        let after = self.position + bytes.len() as u64;
        if let Some(expected) = size.filter(|size| after > *size) {
            return Err(SplitError::Size { expected, got: expected, more: true });
        }
        if self.position == 0 {
            out.open_data(0, size.unwrap_or(0))?;
        }
        out.data(bytes)?;
        self.position = after;
        self.cut_away = after;
        Ok(bytes.len())
    }

    fn finish_raw(&mut self, size: Option<u64>, out: &mut dyn Output) -> Result<(), SplitError> {
        let got = self.position;
        if let Some(expected) = size.filter(|size| *size != got) {
            return Err(SplitError::Size { expected, got, more: false });
        }
        let place = if got == 0 {
            Place::Packed { offset: 0 }
        } else {
            out.close_data()?;
            Place::Data { ordinal: 0 }
        };
        let path = RelPath::parse(RAW_NAME).map_err(|source| SplitError::Name { offset: 0, source })?;
        self.ordinal = 1;
        out.entry(&NewEntry { path, kind: Kind::File, mode: RAW_MODE, mtime: 0, size: got, place, stream_offset: 0 })
    }

    fn block_is_full(&mut self, out: &mut dyn Output) -> Result<(), SplitError> {
        let offset = self.position - BLOCK as u64;
        let zero = self.block.iter().all(|byte| *byte == 0);
        if let State::SecondZero = self.state {
            if zero {
                self.state = State::Trailing;
                return Ok(());
            }
            return Err(SplitError::Header { offset, reason: "one block of zeros stands between two entries".into() });
        }
        if zero {
            if !self.extensions.is_empty() {
                return Err(SplitError::Header { offset, reason: "the archive ends after an extended header without its entry".into() });
            }
            self.state = State::SecondZero;
            return Ok(());
        }
        let header = RawHeader::read(&self.block).map_err(|reason| SplitError::Header { offset, reason: reason.into() })?;
        match header.type_flag {
            b'x' => self.extension(ExtensionKind::Pax, offset, header.size),
            b'L' => self.extension(ExtensionKind::LongName, offset, header.size),
            b'K' => self.extension(ExtensionKind::LongLink, offset, header.size),
            _ => self.begin_entry(offset, header, out),
        }
    }

    fn extension(&mut self, kind: ExtensionKind, offset: u64, size: u64) -> Result<(), SplitError> {
        self.extension_bytes = self.extension_bytes.saturating_add(size);
        if self.extension_bytes > TAR_EXTENSION_BYTES {
            let reason =
                format!("extended headers of one entry with {} bytes, at most {TAR_EXTENSION_BYTES} are allowed", self.extension_bytes);
            return Err(SplitError::Header { offset, reason });
        }
        self.state = State::Extension { kind, offset, content: Vec::new(), left: size, padding: padding(size) };
        if size == 0 { self.extension_is_full() } else { Ok(()) }
    }

    fn extension_is_full(&mut self) -> Result<(), SplitError> {
        let State::Extension { kind, offset, content, padding, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        self.state = State::after_content(padding);
        let read = match kind {
            ExtensionKind::Pax => self.extensions.read_pax(&content),
            ExtensionKind::LongName => self.extensions.read_long_name(&content),
            ExtensionKind::LongLink => {
                self.extensions.note();
                Ok(())
            }
        };
        read.map_err(|reason| SplitError::Header { offset, reason })
    }

    fn begin_entry(&mut self, offset: u64, header: RawHeader, out: &mut dyn Output) -> Result<(), SplitError> {
        let extensions = std::mem::take(&mut self.extensions);
        self.extension_bytes = 0;
        let bad = |reason: String| SplitError::Header { offset, reason };
        let sparse = extensions.is_sparse();
        let size = extensions.size().map_err(bad)?.unwrap_or(header.size);
        let mtime = extensions.mtime().map_err(bad)?.unwrap_or(header.mtime);
        let name = extensions.into_name().map_err(bad)?.unwrap_or(header.name);

        let kind = match header.type_flag {
            b'0' => Ok(Kind::File),
            // As old archives wrote folders. Go does so for this type only: of type '0' a trailing slash is just cleaned away.
            0 if name.ends_with(b"/") && size > 0 => return Err(bad("a folder (type NUL and a slash) with content".into())),
            0 if name.ends_with(b"/") => Ok(Kind::Folder),
            0 => Ok(Kind::File),
            b'5' => Ok(Kind::Folder),
            other => Err(header::describe(other)),
        };
        let kind = if sparse { Err("a sparse file (PAX records `GNU.sparse.`)".into()) } else { kind };
        let kind = kind.map_err(|what| SplitError::Kind { offset, name: Escaped(&name).to_string(), what })?;
        let path = RelPath::parse(&name).map_err(|source| SplitError::Name { offset, source })?;
        if path.is_root() && kind == Kind::File {
            return Err(bad("a file without a name".into()));
        }
        let ordinal = self.ordinal;
        // How many there may be is the index's business; here they only have to stay apart.
        self.ordinal = ordinal.checked_add(1).ok_or(IndexError::TooMany)?;

        // The content of a folder is not there, whatever its size says.
        let size = if kind == Kind::Folder { 0 } else { size };
        let stream_offset = self.position;
        let (place, state) = if kind == Kind::Folder {
            (Place::None, State::Header)
        } else if size > 0 && (self.cut)(ordinal, size) {
            (Place::Data { ordinal }, State::Data { ordinal, left: size, padding: padding(size) })
        } else {
            (Place::Packed { offset: self.position - self.cut_away }, State::packed(size))
        };
        self.state = state;
        out.entry(&NewEntry { path, kind, mode: header.mode, mtime, size, place, stream_offset })
    }
}

impl State {
    fn packed(size: u64) -> Self {
        if size == 0 { Self::Header } else { Self::Packed { left: size, padding: padding(size) } }
    }

    fn after_content(padding: u64) -> Self {
        if padding == 0 { Self::Header } else { Self::Padding { left: padding } }
    }
}

/// What is missing to a whole number of blocks.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// At most `limit` bytes.
fn first(bytes: &[u8], limit: u64) -> &[u8] {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(bytes.len());
    bytes.get(..limit).unwrap_or(bytes)
}
