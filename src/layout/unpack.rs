//! Reading out of the middle of a gzip stream, which can only be read from its beginning.
//!
//! An [`Unpacker`] has come some way into the stream. One that has done its work is parked in the archive's table, and whoever wants
//! something from further on goes on from there. So blobs that are read in the archive's order cost one pass, and in the worst order each
//! of them costs one pass up to it. Each pass is bounded by what [`crate::inflate::expansion_limit`] gives an archive of that size.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::Stop;
use super::archive::{ArchiveError, Identity, Table, read_at};
use crate::inflate::Inflate;
use crate::layer::Compression;
use crate::limits;

/// A gzip stream, read up to some point. After an error it is of no more use.
pub(super) struct Unpacker {
    file: Arc<File>,
    identity: Identity,
    /// Bytes of the file that were used.
    taken: u64,
    /// `None` at the end.
    inflate: Option<Box<Inflate>>,
    /// What came out of the last input, of which `used` bytes were wanted already.
    ready: Vec<u8>,
    used: usize,
    /// Bytes of the stream that were used.
    position: u64,
}

impl Unpacker {
    pub(super) fn new(file: Arc<File>, identity: Identity) -> Result<Self, ArchiveError> {
        let inflate = Inflate::new(Compression::Gzip, identity.size())?.map(Box::new);
        Ok(Self { file, identity, taken: 0, inflate, ready: Vec::new(), used: 0, position: 0 })
    }

    /// How many bytes of the stream came before.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Adds the next `most` bytes of the stream to `bytes`, or those up to its end.
    pub(super) fn read(&mut self, bytes: &mut Vec<u8>, most: usize, stop: &Stop) -> Result<(), ArchiveError> {
        let mut left = most;
        loop {
            let ready = self.ready.get(self.used..).unwrap_or_default();
            let piece = ready.get(..left.min(ready.len())).unwrap_or_default();
            bytes.extend_from_slice(piece);
            left -= piece.len();
            self.used += piece.len();
            self.position += piece.len() as u64;
            if left == 0 || !self.fill(&mut 0, stop)? {
                break;
            }
        }
        self.identity.check(&self.file)
    }

    /// Goes on by `bytes`, and says whether there were so many.
    pub(super) fn skip(&mut self, bytes: u64, stop: &Stop) -> Result<bool, ArchiveError> {
        let ready = self.ready.len() - self.used;
        let piece = usize::try_from(bytes).unwrap_or(usize::MAX).min(ready);
        self.used += piece;
        self.position += piece as u64;
        let mut left = bytes - piece as u64;
        while left > 0 && self.fill(&mut left, stop)? {}
        self.identity.check(&self.file)?;
        Ok(left == 0)
    }

    /// Makes more of the stream ready when all that was is used, but for the first `discard` bytes, which it goes over. False at the end.
    fn fill(&mut self, discard: &mut u64, stop: &Stop) -> Result<bool, ArchiveError> {
        let Some(inflate) = &mut self.inflate else { return Ok(false) };
        if stop.is_set() {
            return Err(ArchiveError::Stopped);
        }
        let mut input = [0; limits::ARCHIVE_INPUT_BYTES];
        let length = read_at(&self.file, &mut input, self.taken)?;
        self.taken += length as u64;
        self.ready.clear();
        self.used = 0;
        let (ready, position) = (&mut self.ready, &mut self.position);
        inflate.write(input.get(..length).unwrap_or_default(), &mut |made| {
            let over = usize::try_from(*discard).unwrap_or(usize::MAX).min(made.len());
            *discard -= over as u64;
            *position += over as u64;
            ready.extend_from_slice(made.get(over..).unwrap_or_default());
            Ok::<(), ArchiveError>(())
        })?;
        if length < input.len() {
            if self.taken != self.identity.size() {
                return Err(ArchiveError::Changed);
            }
            if let Some(inflate) = self.inflate.take() {
                inflate.finish()?;
            }
        }
        Ok(true)
    }
}

/// A member of a compressed archive.
pub(super) struct Packed {
    table: Arc<Table>,
    start: u64,
    length: u64,
    /// `None` after an error, and before the first byte is wanted.
    unpacker: Option<Unpacker>,
}

impl Packed {
    pub(super) fn new(table: Arc<Table>, start: u64, length: u64) -> Self {
        Self { table, start, length, unpacker: None }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What stands at `offset` of the member: `most` bytes, or those up to its end.
    pub(super) fn read(&mut self, offset: u64, most: usize, stop: &Stop) -> Result<Bytes, ArchiveError> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = most.min(left);
        if most == 0 {
            return Ok(Bytes::new());
        }
        // Less than the length, as something is left.
        let wanted = self.start + offset;
        let mut unpacker = match self.unpacker.take().filter(|unpacker| unpacker.position() <= wanted) {
            Some(unpacker) => unpacker,
            None => self.table.unpacker(wanted)?,
        };
        unpacker.skip(wanted - unpacker.position(), stop)?;
        let mut bytes = Vec::with_capacity(most);
        unpacker.read(&mut bytes, most, stop)?;
        self.unpacker = Some(unpacker);
        Ok(Bytes::from(bytes))
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Some(unpacker) = self.unpacker.take() {
            self.table.park(unpacker);
        }
    }
}

impl Table {
    /// The unpacker that has come nearest to `wanted`, or a new one.
    fn unpacker(&self, wanted: u64) -> Result<Unpacker, ArchiveError> {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parked.iter().enumerate().filter(|(_, unpacker)| unpacker.position() <= wanted);
        match before.max_by_key(|(_, unpacker)| unpacker.position()).map(|(at, _)| at) {
            Some(at) => Ok(parked.swap_remove(at)),
            None => Unpacker::new(Arc::clone(&self.file), self.identity),
        }
    }

    /// Keeps an unpacker for who wants something behind it. Those that came furthest go first: the others can still get there.
    fn park(&self, unpacker: Unpacker) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.push(unpacker);
        if parked.len() > limits::ARCHIVE_UNPACKERS
            && let Some((at, _)) = parked.iter().enumerate().max_by_key(|(_, unpacker)| unpacker.position())
        {
            parked.swap_remove(at);
        }
    }
}
