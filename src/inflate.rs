//! Gzip and zstd, pushed: members of the one (RFC 1952), or frames of the other (RFC 8878), in a row become one stream of bytes.
//!
//! Nobody has verified what comes in. Every checksum and length that a member or frame has is checked, a stream that is cut anywhere is an
//! error at the end, and no more than [`expansion_limit`] bytes ever come out. Zeros after the last gzip member, which tapes and block
//! devices leave, are ignored; other bytes are not, though Go's tar reader never looks at them: a blob that is only partly gzip is not what
//! its media type says. After a zstd frame nothing but another one may stand (a skippable one is one), as for `zstd -d` and for Go.
//!
//! Both decoders are Rust (the one of zstd forbids `unsafe`; a test compares it with the C library, which was its only equal in speed). That of
//! zstd is given a window limit, knows none of the formats from before zstd 0.8, and no dictionary. Large windows wait for each other (`windows`).

mod windows;

use std::error::Error;
use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};
use mzstd::{
    DecodeError, DecodeFailure, DecodeLimits, DecodeOperation, DecodeProgress, DecoderConfig, DecoderSessionOwned, DecoderStatus,
    Decompressor, FrameMode, InvalidDataKind,
};

use crate::layer::Compression;
use crate::limits::{EXPANSION_FLOOR_BYTES, EXPANSION_RATIO, ZSTD_WINDOW_LOG};
use windows::{Room, Wanted, Windows};

/// Bytes that are uncompressed at a time: what zstd puts into one block.
const CHUNK: usize = 128 << 10;
/// The window that RFC 1951 allows, as a power of two.
const WINDOW_BITS: u8 = 15;
/// The first byte of every gzip member.
const MAGIC: u8 = 0x1f;

/// Why a blob is no compressed stream that may be used.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// Header, content, checksum or length of a part is wrong.
    #[error("{part} {number} is wrong near byte {offset} of the blob")]
    Content {
        /// What a part is.
        part: Part,
        /// Which one, from 1.
        number: u64,
        /// How many bytes of the blob were used before.
        offset: u64,
        /// The decoder's word.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A zstd frame refers further back than is allowed.
    #[error("{part} {number}, at byte {offset} of the blob, needs a window of more than {limit} bytes", limit = 1_u64 << ZSTD_WINDOW_LOG)]
    Window {
        /// A zstd frame.
        part: Part,
        /// Which one, from 1.
        number: u64,
        /// Where it begins.
        offset: u64,
    },
    /// Something else follows a part.
    #[error("byte {offset} of the blob, after {before} {part}s, does not begin another one, nor is it padding")]
    Garbage {
        /// What a part is.
        part: Part,
        /// Where the garbage begins.
        offset: u64,
        /// How many parts came before.
        before: u64,
    },
    /// The blob ends inside a part.
    #[error("the blob is cut at byte {offset}, inside {part} {number}")]
    Cut {
        /// What a part is.
        part: Part,
        /// How many bytes there are.
        offset: u64,
        /// Which part, from 1.
        number: u64,
    },
    /// The blob has no part.
    #[error("the blob is empty, it should have at least one {0}")]
    Empty(Part),
    /// More comes out than any honest layer would have.
    #[error("a blob of {size} bytes would become more than {limit} bytes")]
    Expansion {
        /// The size of the blob.
        size: u64,
        /// See [`expansion_limit`].
        limit: u64,
    },
    /// There is no memory for a decoder.
    #[error("no memory to uncompress with")]
    Memory,
}

impl InflateError {
    /// True if the *layer* must not be shown; otherwise the trouble is this host's.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Memory)
    }
}

/// What a compressed stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// RFC 1952.
    Member,
    /// RFC 8878.
    Frame,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Member => "gzip member",
            Self::Frame => "zstd frame",
        })
    }
}

/// How many bytes may come out of a blob of `size` bytes.
pub fn expansion_limit(size: u64) -> u64 {
    size.saturating_mul(EXPANSION_RATIO).max(EXPANSION_FLOOR_BYTES)
}

/// A decoder that is pushed bytes in pieces of any size. After an error it is of no more use.
pub struct Inflate {
    decoder: Decoder,
    state: State,
    size: u64,
    limit: u64,
    /// Bytes of the blob that were used.
    taken: u64,
    /// Where the last part began.
    began: u64,
    /// Bytes that came out.
    given: u64,
    /// The first bytes of the last zstd frame, in which its header says how large a window it needs.
    head: Vec<u8>,
    /// Whether the last zstd frame has the room for its window, or needs none.
    has_room: bool,
    /// Room for the largest window so far.
    room: Option<Room>,
    windows: &'static Windows,
    /// Parts that were begun.
    parts: u64,
    chunk: Box<[u8]>,
}

enum Decoder {
    /// Made anew for each member.
    Gzip(Decompress),
    /// Begun anew for each frame.
    Zstd(Box<DecoderSessionOwned>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A part begins, or the padding, or the end.
    Between,
    Inside,
    Padding,
}

/// Bytes that the header of a zstd frame has at most (RFC 8878, 3.1.1.1, with the magic number).
const FRAME_HEAD: usize = 18;

/// What one call of a decoder came to.
struct Step {
    read: usize,
    made: usize,
    /// The part is over.
    ended: bool,
}

impl Inflate {
    /// A decoder for a blob of `size` bytes, as its descriptor says; `None` for one that is not compressed.
    pub fn new(compression: Compression, size: u64) -> Result<Option<Self>, InflateError> {
        Self::sharing(compression, size, &windows::PROCESS)
    }

    fn sharing(compression: Compression, size: u64, windows: &'static Windows) -> Result<Option<Self>, InflateError> {
        let decoder = match compression {
            Compression::None => return Ok(None),
            Compression::Gzip => Decoder::Gzip(Decompress::new_gzip(WINDOW_BITS)),
            Compression::Zstd => Decoder::Zstd(frame_decoder()),
        };
        Ok(Some(Self {
            decoder,
            state: State::Between,
            size,
            limit: expansion_limit(size),
            taken: 0,
            began: 0,
            given: 0,
            head: Vec::new(),
            has_room: false,
            room: None,
            windows,
            parts: 0,
            chunk: vec![0; CHUNK].into_boxed_slice(),
        }))
    }

    /// Takes the next bytes of the blob and gives what they become to `out`; nothing, once a second, while a large window waits for its turn.
    pub fn write<E: From<InflateError>>(&mut self, mut bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while let Some(first) = bytes.first() {
            match self.state {
                State::Between => self.begin(*first)?,
                State::Padding => {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    self.taken += zeros as u64;
                    if zeros < bytes.len() {
                        return Err(self.garbage(self.taken).into());
                    }
                    bytes = &[];
                }
                State::Inside => {
                    let used = self.decode(bytes, out)?;
                    bytes = bytes.get(used..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// Says that the blob is over, and how many bytes came out of it.
    pub fn finish(self) -> Result<u64, InflateError> {
        match self.state {
            State::Inside => Err(InflateError::Cut { part: self.part(), offset: self.taken, number: self.parts }),
            State::Between if self.parts == 0 => Err(InflateError::Empty(self.part())),
            State::Between | State::Padding => Ok(self.given),
        }
    }

    fn part(&self) -> Part {
        match self.decoder {
            Decoder::Gzip(_) => Part::Member,
            Decoder::Zstd(_) => Part::Frame,
        }
    }

    fn garbage(&self, offset: u64) -> InflateError {
        InflateError::Garbage { part: self.part(), offset, before: self.parts }
    }

    /// Looks at the first byte after a part.
    fn begin(&mut self, first: u8) -> Result<(), InflateError> {
        match &mut self.decoder {
            Decoder::Gzip(decoder) if first == MAGIC => {
                if self.parts > 0 {
                    *decoder = Decompress::new_gzip(WINDOW_BITS);
                }
            }
            Decoder::Gzip(_) if first == 0 && self.parts > 0 => {
                self.state = State::Padding;
                return Ok(());
            }
            Decoder::Gzip(_) => return Err(self.garbage(self.taken)),
            // There are many ways for a frame to begin, and its decoder says if this is none of them.
            Decoder::Zstd(decoder) => {
                if self.parts > 0 {
                    decoder.reinit();
                }
            }
        }
        self.state = State::Inside;
        self.began = self.taken;
        self.head.clear();
        self.has_room = matches!(self.decoder, Decoder::Gzip(_));
        self.parts += 1;
        Ok(())
    }

    /// Uncompresses until the input is used up or the part is over; says how much was used.
    fn decode<E: From<InflateError>>(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<usize, E> {
        let mut used = 0;
        while self.state == State::Inside {
            let mut rest = bytes.get(used..).unwrap_or_default();
            if !self.has_room {
                // The decoder takes its memory for what follows the header: the bytes come one by one until then.
                rest = rest.get(..1).unwrap_or_default();
                self.make_room(rest, out)?;
                if self.has_room {
                    rest = bytes.get(used..).unwrap_or_default();
                }
            }
            let Step { read, made, ended } = self.step(rest)?;
            self.head.extend(rest.iter().take(read).take(FRAME_HEAD - self.head.len()));
            used += read;
            self.taken += read as u64;
            self.given += made as u64;
            if ended {
                self.state = State::Between;
            }
            if self.given > self.limit {
                return Err(InflateError::Expansion { size: self.size, limit: self.limit }.into());
            }
            let made = self.chunk.get(..made).unwrap_or_default();
            if !made.is_empty() {
                out(made)?;
            }
            // A full chunk may not have been all, even without input: only a chunk with room says that there is no more.
            if used == bytes.len() && made.len() < CHUNK {
                break;
            }
        }
        Ok(used)
    }

    /// Takes room for the window of a frame, if `next` is what its header lacks.
    fn make_room<E: From<InflateError>>(&mut self, next: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let begin = [&self.head, next].concat();
        let bytes = match windows::wanted(&begin) {
            Wanted::Unknown => return Ok(()),
            Wanted::Nothing => 0,
            Wanted::Bytes(bytes) => bytes,
        };
        if self.room.as_ref().map_or(0, Room::bytes) < bytes {
            if self.room.take().is_some() {
                // The memory of the frames before goes first, and what the decoder has read of this one with it.
                let mut fresh = frame_decoder();
                fresh.process(&self.head, &mut self.chunk, DecodeOperation::Process).map_err(|failure| self.wrong_frame(failure))?;
                self.decoder = Decoder::Zstd(fresh);
            }
            self.room = Some(self.windows.take(bytes, &mut || out(&[]))?);
        }
        self.has_room = true;
        Ok(())
    }

    /// Fills the chunk once, as far as `bytes` goes.
    fn step(&mut self, bytes: &[u8]) -> Result<Step, InflateError> {
        match &mut self.decoder {
            Decoder::Gzip(decoder) => {
                let (before_in, before_out) = (decoder.total_in(), decoder.total_out());
                let outcome = decoder.decompress(bytes, &mut self.chunk, FlushDecompress::None);
                let (read, made) = ((decoder.total_in() - before_in) as usize, (decoder.total_out() - before_out) as usize);
                let status = outcome.map_err(|source| self.wrong(source.into()))?;
                Ok(Step { read, made, ended: status == Status::StreamEnd })
            }
            Decoder::Zstd(decoder) => {
                let outcome = decoder.process(bytes, &mut self.chunk, DecodeOperation::Process);
                let DecodeProgress { consumed, produced, status } = outcome.map_err(|failure| self.wrong_frame(failure))?;
                Ok(Step { read: consumed, made: produced, ended: status == DecoderStatus::Finished })
            }
        }
    }

    fn wrong(&self, source: Box<dyn Error + Send + Sync>) -> InflateError {
        InflateError::Content { part: self.part(), number: self.parts, offset: self.taken, source }
    }

    fn wrong_frame(&self, DecodeFailure { error, .. }: DecodeFailure) -> InflateError {
        match error {
            DecodeError::InvalidData { kind: InvalidDataKind::Magic } => {
                InflateError::Garbage { part: Part::Frame, offset: self.began, before: self.parts - 1 }
            }
            DecodeError::WindowLimitExceeded { .. } => InflateError::Window { part: Part::Frame, number: self.parts, offset: self.began },
            DecodeError::AllocationFailed => InflateError::Memory,
            error => self.wrong(error.into()),
        }
    }
}

/// A decoder of one zstd frame that keeps to the limits. It gives out what it has made, even of a frame that turns out to be wrong at its end.
fn frame_decoder() -> Box<DecoderSessionOwned> {
    const LIMITS: DecodeLimits = match DecodeLimits::DEFAULT.with_max_window_log(ZSTD_WINDOW_LOG) {
        Ok(limits) => limits,
        Err(_) => panic!("the format has no such window"),
    };
    let config = DecoderConfig::DEFAULT.with_frame_mode(FrameMode::Single).with_limits(LIMITS);
    Box::new(Decompressor::new(config).into_session())
}

#[cfg(test)]
mod tests;
