//! A layout that is a tar of a folder, plain or gzip, and is never unpacked to a folder.
//!
//! What is asked of it first makes a [`Table`] of where the layout's files stand: one look at each header, between which a plain archive
//! is skipped. From then on a file is a range of the archive's bytes. A compressed archive has no such ranges: it is inflated once for the
//! table (and its small files kept), and again up to each blob that is wanted, see [`super::unpack`].
//!
//! Of the members only the files of a layout count. A link or a device in the place of one is refused, elsewhere it is ignored, as by the
//! tools that unpack such an archive and then open a few files of it. Two members of one name are refused: which of them is the file
//! depends on the reader.
//!
//! The table is only good for the very file that it was made from. A file that was replaced is looked at anew; one that changes while
//! something is read from it ends the reading.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::folder::{Range, failed};
use super::unpack::{Packed, Unpacker};
use super::{Content, Stop};
use crate::archive::{BLOCK_BYTES, Begins, Member, MemberError, MemberKind, Members, padding};
use crate::digest::Digest;
use crate::failure::chain;
use crate::inflate::InflateError;
use crate::limits;
use crate::path::Escaped;
use crate::source::SourceError;

/// What docker writes for itself, with or without a layout beside it.
const DOCKER_MANIFEST: &str = "manifest.json";

/// An archive of a layout.
pub(super) struct Archive {
    name: String,
    path: PathBuf,
    table: Mutex<Option<Arc<Table>>>,
}

/// What stands where in an archive.
pub(super) struct Table {
    pub(super) file: Arc<File>,
    pub(super) identity: Identity,
    is_packed: bool,
    spans: HashMap<String, Span>,
    /// Contents of small files of a compressed archive.
    kept: HashMap<String, Bytes>,
    /// Where inflating can go on.
    pub(super) parked: Mutex<Vec<Unpacker>>,
    /// Another file stood there before.
    replaced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u64,
    length: u64,
}

/// What tells whether a file is still the same: device, inode, size, time of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// Something else stands there now.
    #[error("the archive was changed while it was read")]
    Changed,
    /// Nobody waits for it.
    #[error("nobody waits for it any more")]
    Stopped,
    /// It cannot be read.
    #[error("cannot read the archive")]
    Read(#[from] io::Error),
    /// It is no regular file.
    #[error("it is no regular file")]
    NoFile,
    /// It is compressed in another way.
    #[error("it is compressed with {0}; a plain tar and one compressed with gzip are understood")]
    Compression(&'static str),
    /// It is compressed, and cannot be inflated.
    #[error("cannot uncompress the archive")]
    Inflate(#[from] InflateError),
    /// It is no tar.
    #[error("cannot read the archive's table of contents")]
    Member(#[from] MemberError),
    /// It ends too early.
    #[error("the archive ends at byte {offset}, inside {inside}")]
    Cut { offset: u64, inside: String },
    /// A member has a name of the layout and is no file.
    #[error("its `{name}` is {what}, and no regular file")]
    Kind { name: String, what: String },
    /// A name stands there twice.
    #[error("it has `{0}` twice")]
    Twice(String),
}

impl ArchiveError {
    pub(super) fn into_source(self, name: &str) -> SourceError {
        let (place, what) = (name.to_owned(), "the archive".to_owned());
        match self {
            Self::Changed | Self::Stopped => {
                SourceError::Unavailable { place, what, reason: self.to_string(), retry_at: None, source: None }
            }
            Self::Read(source) => SourceError::Local { path: place, source },
            error => SourceError::Protocol { place, what, reason: chain(&error) },
        }
    }
}

impl Archive {
    pub(super) fn new(path: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), path: path.to_owned(), table: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens a file of the layout.
    pub(super) fn open_member(&self, path: &[&str], what: &str, stop: &Stop) -> Result<Content, SourceError> {
        let table = self.table(stop)?;
        let member = path.join("/");
        if let Some(content) = table.kept.get(&member) {
            return Ok(Content::Kept(content.clone()));
        }
        let Some(Span { start, length }) = table.spans.get(&member).copied() else { return Err(self.lacks(&table, what)) };
        Ok(if table.is_packed {
            Content::Packed(Packed::new(table, start, length))
        } else {
            Content::Range(Range { file: Arc::clone(&table.file), start, length, identity: Some(table.identity) })
        })
    }

    fn lacks(&self, table: &Table, what: &str) -> SourceError {
        let place = self.name.clone();
        if !table.spans.contains_key("oci-layout") && table.spans.contains_key(DOCKER_MANIFEST) {
            let reason = format!(
                "this is an archive of `docker save` (it has {DOCKER_MANIFEST} and no oci-layout), which cannot hold a ModelKit; an OCI \
                 archive is what `skopeo copy … oci-archive:FILE` writes"
            );
            return SourceError::Protocol { place, what: "the archive".to_owned(), reason };
        }
        let replaced = if table.replaced { " (the archive was replaced after it was first read)" } else { "" };
        SourceError::NotFound { place, what: format!("{what}{replaced}") }
    }

    /// The table of the file that is there now.
    pub(super) fn table(&self, stop: &Stop) -> Result<Arc<Table>, SourceError> {
        // Whoever comes while the table is made waits for it. One who was stopped leaves the work to the next.
        let mut known = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = &*known {
            match self.path.metadata() {
                // A file that is gone from its place can still be read by us.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::clone(table)),
                Ok(metadata) if Identity::new(&metadata) == table.identity => return Ok(Arc::clone(table)),
                _ => tracing::warn!(archive = %self.path.display(), "the archive was replaced or changed, it is looked at anew"),
            }
        }
        let replaced = known.take().is_some();
        let file = self.open_archive()?;
        let table = Table::read(file, replaced, stop).map_err(|error| error.into_source(&self.name))?;
        Ok(Arc::clone(known.insert(Arc::new(table))))
    }

    fn open_archive(&self) -> Result<File, SourceError> {
        // NONBLOCK: a FIFO must not keep us; it means nothing to a regular file.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = File::options().read(true).custom_flags(flags).open(&self.path);
        opened.map_err(|error| match error.raw_os_error() {
            Some(errno) => failed(&self.path, &self.name, "the archive", rustix::io::Errno::from_raw_os_error(errno)),
            None => SourceError::Local { path: self.name.clone(), source: error },
        })
    }
}

impl Identity {
    fn new(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), size: metadata.size(), changed: (metadata.mtime(), metadata.mtime_nsec()) }
    }

    /// Says whether `file` is still what it was.
    pub(super) fn check(&self, file: &File) -> Result<(), ArchiveError> {
        if Self::new(&file.metadata()?) == *self { Ok(()) } else { Err(ArchiveError::Changed) }
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl Table {
    fn read(file: File, replaced: bool, stop: &Stop) -> Result<Self, ArchiveError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ArchiveError::NoFile);
        }
        let identity = Identity::new(&metadata);
        let mut magic = [0; 6];
        let length = read_at(&file, &mut magic, 0)?;
        let is_packed = match magic.get(..length).unwrap_or_default() {
            [0x1f, 0x8b, ..] => true,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(ArchiveError::Compression("zstd")),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(ArchiveError::Compression("xz")),
            [b'B', b'Z', b'h', ..] => return Err(ArchiveError::Compression("bzip2")),
            _ => false,
        };
        let file = Arc::new(file);
        let mut table = Self {
            file: Arc::clone(&file),
            identity,
            is_packed,
            spans: HashMap::new(),
            kept: HashMap::new(),
            parked: Mutex::default(),
            replaced,
        };
        let mut tape = if is_packed { Tape::Packed(Unpacker::new(file, identity)?) } else { Tape::Plain { file, identity, position: 0 } };
        table.scan(&mut tape, stop)?;
        // What a gzip stream is worth only its end says.
        tape.skip(u64::MAX, stop)?;
        identity.check(&table.file)?;
        Ok(table)
    }

    fn scan(&mut self, tape: &mut Tape, stop: &Stop) -> Result<(), ArchiveError> {
        let mut members = Members::default();
        let mut kept_bytes = 0;
        loop {
            let offset = tape.position();
            let cut = |inside: &str| ArchiveError::Cut { offset, inside: inside.to_owned() };
            let header = tape.read(BLOCK_BYTES, stop)?;
            if header.is_empty() {
                return Ok(());
            }
            let header: &[u8; BLOCK_BYTES] = header.as_slice().try_into().map_err(|_| cut("a header"))?;
            match members.header(offset, header)? {
                Begins::Nothing => {}
                Begins::End => return Ok(()),
                Begins::Extension(size) => {
                    // Bounded by `Members`.
                    let wanted = usize::try_from(size).unwrap_or(usize::MAX);
                    let content = tape.read(wanted, stop)?;
                    if content.len() < wanted {
                        return Err(cut("an extended header"));
                    }
                    members.extension(offset, &content)?;
                    tape.skip(padding(size), stop)?;
                }
                Begins::Member(member) => {
                    let span = Span { start: tape.position(), length: member.size };
                    if let Some(name) = self.note(&member, span)? {
                        let is_small = member.size <= limits::ARCHIVE_KEPT_MEMBER_BYTES.min(limits::ARCHIVE_KEPT_BYTES - kept_bytes);
                        if self.is_packed && is_small {
                            kept_bytes += member.size;
                            let wanted = usize::try_from(member.size).unwrap_or(usize::MAX);
                            self.kept.insert(name, tape.read(wanted, stop)?.into());
                        }
                    }
                    let left = span.length - (tape.position() - span.start);
                    if !tape.skip(left, stop)? {
                        return Err(cut(&format!("the {} bytes of `{}`", member.size, Escaped(&member.name))));
                    }
                    // The last one may be missing, as for Go.
                    tape.skip(padding(span.length), stop)?;
                }
            }
        }
    }

    /// Writes a member down if its name is one of a layout, and says that name.
    fn note(&mut self, member: &Member, span: Span) -> Result<Option<String>, ArchiveError> {
        let Some(name) = layout_name(&member.name) else { return Ok(None) };
        match &member.kind {
            MemberKind::File => {}
            MemberKind::Folder => return Err(ArchiveError::Kind { name, what: "a folder".to_owned() }),
            MemberKind::Other(what) => return Err(ArchiveError::Kind { name, what: what.clone() }),
        }
        match self.spans.entry(name.clone()) {
            Entry::Occupied(_) => Err(ArchiveError::Twice(name)),
            Entry::Vacant(vacant) => {
                vacant.insert(span);
                Ok(Some(name))
            }
        }
    }
}

/// The name of a file of a layout, if `name` is one in any spelling: `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`. (And docker's.)
fn layout_name(name: &[u8]) -> Option<String> {
    let parts: Vec<&str> = std::str::from_utf8(name).ok()?.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    match parts.as_slice() {
        [name @ ("oci-layout" | "index.json" | DOCKER_MANIFEST)] => Some((*name).to_owned()),
        ["blobs", algorithm, hex] => {
            let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
            Some(format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()))
        }
        _ => None,
    }
}

/// An archive that is read from its beginning to its end.
enum Tape {
    Plain { file: Arc<File>, identity: Identity, position: u64 },
    Packed(Unpacker),
}

impl Tape {
    /// How many bytes (of what the file becomes) came before.
    fn position(&self) -> u64 {
        match self {
            Self::Plain { position, .. } => *position,
            Self::Packed(unpacker) => unpacker.position(),
        }
    }

    /// The next `most` bytes, or those up to the end.
    fn read(&mut self, most: usize, stop: &Stop) -> Result<Vec<u8>, ArchiveError> {
        match self {
            Self::Plain { file, identity, position } => {
                if stop.is_set() {
                    return Err(ArchiveError::Stopped);
                }
                let left = usize::try_from(identity.size.saturating_sub(*position)).unwrap_or(usize::MAX);
                let mut bytes = vec![0; most.min(left)];
                let length = read_at(file, &mut bytes, *position)?;
                bytes.truncate(length);
                *position += length as u64;
                Ok(bytes)
            }
            Self::Packed(unpacker) => {
                let mut bytes = Vec::new();
                unpacker.read(&mut bytes, most, stop)?;
                Ok(bytes)
            }
        }
    }

    /// Goes on by `bytes`, and says whether there were so many.
    fn skip(&mut self, bytes: u64, stop: &Stop) -> Result<bool, ArchiveError> {
        match self {
            Self::Plain { identity, position, .. } => {
                let left = identity.size.saturating_sub(*position);
                *position += bytes.min(left);
                Ok(bytes <= left)
            }
            Self::Packed(unpacker) => unpacker.skip(bytes, stop),
        }
    }
}

/// Fills `bytes` with what stands at `offset`, as far as there is anything.
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
