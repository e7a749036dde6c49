//! Reading a layer's uncompressed stream back from `pack` and data files, and cutting it in mind once more.
//!
//! It serves two ends: to go on with an ingest that was interrupted (the bytes on disk are a beginning of the stream), and to verify a stored layer
//! (they are all of it). Either way the archive's own headers say which bytes come from where; nothing is believed that the check at the end
//! does not cover.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use super::cut::{PACK, Resumed, data_name};
use super::dir::Dir;
use super::error::{StoreError, disk};
use crate::archive::{NewEntry, Output, SplitError, Splitter};
use crate::index::{IndexBuilder, Segment};
use crate::limits;

/// An output that writes nothing, because it is all there.
pub(super) struct Follow {
    /// `None` if nobody wants the entries.
    builder: Option<IndexBuilder>,
    pack: u64,
}

impl Follow {
    pub(super) fn new(builder: Option<IndexBuilder>) -> Self {
        Self { builder, pack: 0 }
    }

    pub(super) fn into_builder(self) -> Option<IndexBuilder> {
        self.builder
    }
}

impl Output for Follow {
    fn pack(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pack += bytes.len() as u64;
        Ok(())
    }

    fn open_data(&mut self, _: u32, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn close_data(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError> {
        if let Some(builder) = &mut self.builder {
            builder.add(entry)?;
        }
        Ok(())
    }
}

/// The files of a layer, read in the order of the stream.
pub(super) struct Replay<'dir> {
    dir: &'dir Dir,
    pack: File,
    /// Bytes of the pack that were read, but not used.
    ahead: Bytes,
    pack_offset: u64,
    data: Option<Data>,
}

struct Data {
    ordinal: u32,
    /// `None` if there is no such file.
    file: Option<File>,
    offset: u64,
}

/// Why a replay ended before the end of what is there.
pub(super) enum Broken {
    /// This host cannot read it.
    Failed(StoreError),
    /// It is no archive.
    Split(SplitError),
}

impl<'dir> Replay<'dir> {
    /// Begins at the beginning; `None` if there is no pack.
    pub(super) fn begin(dir: &'dir Dir) -> Result<Option<Self>, StoreError> {
        Ok(dir.open(PACK)?.map(|pack| Self { dir, pack, ahead: Bytes::new(), pack_offset: 0, data: None }))
    }

    /// Pushes all there is to `splitter`, and hands it to `admit` in order. Ends at the first byte that is missing.
    pub(super) fn by_headers(
        &mut self,
        splitter: &mut Splitter,
        follow: &mut Follow,
        admit: &mut dyn FnMut(Bytes) -> Result<(), StoreError>,
    ) -> Result<(), Broken> {
        loop {
            let mut piece = match splitter.open_data() {
                Some(open) => {
                    if self.data.as_ref().is_none_or(|data| data.ordinal != open.ordinal) {
                        self.open(open.ordinal).map_err(Broken::Failed)?;
                    }
                    self.data_piece(open.left).map_err(Broken::Failed)?
                }
                None => {
                    self.surplus(admit).map_err(Broken::Failed)?;
                    self.pack_piece().map_err(Broken::Failed)?
                }
            };
            if piece.is_empty() {
                return Ok(());
            }
            let from_pack = splitter.open_data().is_none();
            while !piece.is_empty() {
                let taken = splitter.push(&piece, follow).map_err(|error| {
                    // What was not split is put back, for whoever hashes on.
                    if from_pack {
                        self.ahead = piece.clone();
                    }
                    Broken::Split(error)
                })?;
                admit(piece.split_to(taken.min(piece.len()))).map_err(Broken::Failed)?;
                if from_pack && splitter.open_data().is_some() {
                    self.ahead = std::mem::take(&mut piece);
                }
            }
        }
    }

    /// Hands the next piece of the stream to `admit`, as an index says where it is. Of a data file that is longer or shorter than it was, all that is
    /// there counts.
    pub(super) fn by_segment(
        &mut self,
        segment: &Segment,
        admit: &mut dyn FnMut(Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match *segment {
            Segment::Pack { size, .. } => {
                let mut left = size;
                while left > 0 {
                    let mut piece = self.pack_piece()?;
                    if piece.is_empty() {
                        break;
                    }
                    let taken = usize::try_from(left).map_or(piece.len(), |left| piece.len().min(left));
                    self.ahead = piece.split_off(taken);
                    left -= taken as u64;
                    admit(piece)?;
                }
                Ok(())
            }
            Segment::Data { ordinal, .. } => {
                self.open(ordinal)?;
                self.surplus(admit)
            }
        }
    }

    /// Hands what is left of the pack to `admit`.
    pub(super) fn rest(&mut self, admit: &mut dyn FnMut(Bytes) -> Result<(), StoreError>) -> Result<(), StoreError> {
        loop {
            let piece = self.pack_piece()?;
            if piece.is_empty() {
                return Ok(());
            }
            admit(piece)?;
        }
    }

    /// Where writing goes on after a replay that ended without an error.
    pub(super) fn resumed(&self, follow: &Follow, splitter: &Splitter) -> Resumed {
        let data = splitter.open_data().map(|open| {
            let here = self.data.as_ref().filter(|data| data.ordinal == open.ordinal).map_or(0, |data| data.offset);
            (open.ordinal, here, here + open.left)
        });
        Resumed { pack: follow.pack, data }
    }

    fn open(&mut self, ordinal: u32) -> Result<(), StoreError> {
        let file = self.dir.open(&data_name(ordinal))?;
        self.data = Some(Data { ordinal, file, offset: 0 });
        Ok(())
    }

    /// Hands what is left of the open data file to `admit`.
    fn surplus(&mut self, admit: &mut dyn FnMut(Bytes) -> Result<(), StoreError>) -> Result<(), StoreError> {
        loop {
            let piece = self.data_piece(u64::MAX)?;
            if piece.is_empty() {
                self.data = None;
                return Ok(());
            }
            admit(piece)?;
        }
    }

    fn data_piece(&mut self, most: u64) -> Result<Bytes, StoreError> {
        let Some(Data { ordinal, file: Some(file), offset }) = &mut self.data else { return Ok(Bytes::new()) };
        let what = || format!("reading {}", self.dir.path_of(&data_name(*ordinal)).display());
        self.dir.step("read", &data_name(*ordinal)).map_err(|error| disk(what())(error))?;
        let piece = read(file, *offset, most).map_err(|error| disk(what())(error))?;
        *offset += piece.len() as u64;
        Ok(piece)
    }

    fn pack_piece(&mut self) -> Result<Bytes, StoreError> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        let what = || format!("reading {}", self.dir.path_of(PACK).display());
        self.dir.step("read", PACK).map_err(disk(what()))?;
        let piece = read(&self.pack, self.pack_offset, u64::MAX).map_err(disk(what()))?;
        self.pack_offset += piece.len() as u64;
        Ok(piece)
    }
}

/// Reads at most `most` bytes, and no more than one piece; empty at the end of the file.
fn read(file: &File, offset: u64, most: u64) -> io::Result<Bytes> {
    let length = usize::try_from(most).map_or(limits::PIECE_BYTES, |most| most.min(limits::PIECE_BYTES));
    let mut piece = BytesMut::zeroed(length);
    let mut filled = 0;
    while filled < length {
        match file.read_at(piece.get_mut(filled..).unwrap_or_default(), offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    piece.truncate(filled);
    Ok(piece.freeze())
}
