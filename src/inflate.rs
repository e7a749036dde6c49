//! Gzip, pushed: RFC 1952 members in a row become one stream of bytes.
//!
//! Nobody has verified what comes in. Every member's checksum and length are checked, a stream that is cut anywhere is an error at the
//! end, and no more than [`expansion_limit`] bytes ever come out. Zeros after the last member, which tapes and block devices leave, are
//! ignored; other bytes are not, though Go's tar reader never looks at them: a blob that is only partly gzip is not what its media type
//! says.

use flate2::{Decompress, DecompressError, FlushDecompress, Status};

use crate::limits::{EXPANSION_FLOOR_BYTES, EXPANSION_RATIO};

/// Bytes that are uncompressed at a time.
const CHUNK: usize = 128 << 10;
/// The window that RFC 1951 allows, as a power of two.
const WINDOW_BITS: u8 = 15;
/// The first byte of every member.
const MAGIC: u8 = 0x1f;

/// Why a blob is no gzip stream that may be used.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// Header, content, checksum or length of a member is wrong.
    #[error("gzip member {member} is wrong near byte {offset} of the blob")]
    Content {
        /// Which member, from 1.
        member: u64,
        /// How many bytes of the blob were used before.
        offset: u64,
        /// The decoder's word.
        #[source]
        source: DecompressError,
    },
    /// Something else follows a member.
    #[error("byte {offset} of the blob, after {members} gzip members, is neither another member nor zero padding")]
    Garbage {
        /// Where it is.
        offset: u64,
        /// How many members came before.
        members: u64,
    },
    /// The blob ends inside a member.
    #[error("the gzip stream is cut at byte {offset}, inside member {member}")]
    Cut {
        /// How many bytes there are.
        offset: u64,
        /// Which member, from 1.
        member: u64,
    },
    /// The blob has no member.
    #[error("the blob is empty, not a gzip stream")]
    Empty,
    /// More comes out than any honest layer would have.
    #[error("a blob of {size} bytes would become more than {limit} bytes")]
    Expansion {
        /// The size of the blob.
        size: u64,
        /// See [`expansion_limit`].
        limit: u64,
    },
}

/// How many bytes may come out of a blob of `size` bytes.
pub fn expansion_limit(size: u64) -> u64 {
    size.saturating_mul(EXPANSION_RATIO).max(EXPANSION_FLOOR_BYTES)
}

/// A gzip decoder that is pushed bytes in pieces of any size. After an error it is of no more use.
pub struct Inflate {
    state: State,
    size: u64,
    limit: u64,
    /// Bytes of the blob that were used.
    taken: u64,
    /// Bytes that came out.
    given: u64,
    /// Members that were begun.
    members: u64,
    chunk: Box<[u8]>,
}

enum State {
    /// A member begins, or the padding, or the end.
    Between,
    Member(Decompress),
    Padding,
}

impl Inflate {
    /// A decoder for a blob of `size` bytes, as its descriptor says.
    pub fn new(size: u64) -> Self {
        Self {
            state: State::Between,
            size,
            limit: expansion_limit(size),
            taken: 0,
            given: 0,
            members: 0,
            chunk: vec![0; CHUNK].into_boxed_slice(),
        }
    }

    /// Takes the next bytes of the blob and gives what they become to `out`.
    pub fn write<E: From<InflateError>>(&mut self, mut bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while let Some(first) = bytes.first() {
            match &mut self.state {
                State::Between if *first == MAGIC => {
                    self.members += 1;
                    self.state = State::Member(Decompress::new_gzip(WINDOW_BITS));
                }
                State::Between if *first == 0 && self.members > 0 => self.state = State::Padding,
                State::Between => return Err(InflateError::Garbage { offset: self.taken, members: self.members }.into()),
                State::Padding => {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    self.taken += zeros as u64;
                    if zeros < bytes.len() {
                        return Err(InflateError::Garbage { offset: self.taken, members: self.members }.into());
                    }
                    bytes = &[];
                }
                State::Member(_) => {
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
            State::Member(_) => Err(InflateError::Cut { offset: self.taken, member: self.members }),
            State::Between if self.members == 0 => Err(InflateError::Empty),
            State::Between | State::Padding => Ok(self.given),
        }
    }

    /// Uncompresses until the input is used up or the member is over; says how much was used.
    fn decode<E: From<InflateError>>(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<usize, E> {
        let mut used = 0;
        while let State::Member(decoder) = &mut self.state {
            let (before_in, before_out) = (decoder.total_in(), decoder.total_out());
            let rest = bytes.get(used..).unwrap_or_default();
            let status = decoder.decompress(rest, &mut self.chunk, FlushDecompress::None).map_err(|source| InflateError::Content {
                member: self.members,
                offset: self.taken,
                source,
            })?;
            let (read, made) = (decoder.total_in() - before_in, decoder.total_out() - before_out);
            if status == Status::StreamEnd {
                self.state = State::Between;
            }
            used += read as usize;
            self.taken += read;
            self.given += made;
            if self.given > self.limit {
                return Err(InflateError::Expansion { size: self.size, limit: self.limit }.into());
            }
            let made = self.chunk.get(..made as usize).unwrap_or_default();
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
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, GzBuilder, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn inflate(blob: &[u8], piece: usize) -> Result<Vec<u8>, InflateError> {
        let mut inflate = Inflate::new(blob.len() as u64);
        let mut content = Vec::new();
        for bytes in blob.chunks(piece) {
            inflate.write(bytes, &mut |bytes| {
                content.extend_from_slice(bytes);
                Ok::<(), InflateError>(())
            })?;
        }
        assert_eq!(inflate.finish()?, content.len() as u64);
        Ok(content)
    }

    #[test]
    fn members_are_one_stream() {
        let mut named = GzBuilder::new().filename("x").comment("y").extra("zz").write(Vec::new(), Compression::fast());
        named.write_all(b"named").expect("to memory");
        let blob = [gzip(b"one "), gzip(b""), gzip(b"two "), named.finish().expect("to memory")].concat();
        for piece in [1, 2, 7, 1000] {
            assert_eq!(inflate(&blob, piece).expect("good"), b"one two named", "{piece}");
        }
    }

    #[test]
    fn only_zeros_may_follow() {
        let blob = gzip(b"content");
        for padding in [1, 512, 10_000] {
            let padded = [blob.as_slice(), &vec![0; padding]].concat();
            assert_eq!(inflate(&padded, 100).expect("padded"), b"content");
            let more = [padded.as_slice(), &gzip(b"more")].concat();
            assert!(matches!(inflate(&more, 100), Err(InflateError::Garbage { members: 1, .. })));
        }
        let garbage = [blob.as_slice(), b"garbage"].concat();
        assert!(matches!(inflate(&garbage, 3), Err(InflateError::Garbage { offset, members: 1 }) if offset == blob.len() as u64));
        assert!(matches!(inflate(b"\0\0", 3), Err(InflateError::Garbage { offset: 0, members: 0 })));
        assert!(matches!(inflate(b"plain text", 3), Err(InflateError::Garbage { offset: 0, members: 0 })));
        assert!(matches!(inflate(b"", 3), Err(InflateError::Empty)));
    }

    #[test]
    fn every_cut_is_noticed() {
        let blob = [gzip(b"first"), gzip(b"second")].concat();
        let boundary = gzip(b"first").len();
        for length in 1..blob.len() {
            let outcome = inflate(&blob[..length], 5);
            assert_eq!(outcome.is_ok(), length == boundary, "{length}");
        }
    }

    #[test]
    fn checksum_and_length_count() {
        let blob = gzip(b"some content that is checked");
        for from_end in 1..=8 {
            let mut wrong = blob.clone();
            let at = blob.len() - from_end;
            wrong[at] ^= 0x10;
            assert!(matches!(inflate(&wrong, 64), Err(InflateError::Content { member: 1, .. })), "{from_end}");
        }
        let mut wrong = blob;
        wrong[2] = 7;
        assert!(matches!(inflate(&wrong, 64), Err(InflateError::Content { .. })), "method");
    }

    #[test]
    fn expansion_ends_at_the_limit() {
        assert_eq!(expansion_limit(0), EXPANSION_FLOOR_BYTES);
        assert_eq!(expansion_limit(1 << 20), 500 << 20);
        assert_eq!(expansion_limit(u64::MAX), u64::MAX);
        let blob = gzip(&vec![0; 3 * CHUNK]);
        for (limit, passes) in [(3 * CHUNK as u64, true), (3 * CHUNK as u64 - 1, false)] {
            let mut inflate = Inflate::new(blob.len() as u64);
            inflate.limit = limit;
            let mut given = 0;
            let outcome = inflate.write(&blob, &mut |bytes| {
                given += bytes.len() as u64;
                Ok::<(), InflateError>(())
            });
            assert_eq!(outcome.is_ok(), passes, "{limit}");
            assert!(given <= limit);
        }
    }

    #[test]
    fn an_error_of_the_receiver_is_handed_back() {
        #[derive(Debug)]
        enum Either {
            Inflate,
            Receiver,
        }
        impl From<InflateError> for Either {
            fn from(_: InflateError) -> Self {
                Self::Inflate
            }
        }
        let outcome = Inflate::new(100).write(&gzip(b"x"), &mut |_| Err(Either::Receiver));
        assert!(matches!(outcome, Err(Either::Receiver)));
        assert!(matches!(Inflate::new(100).write(b"x", &mut |_| Ok::<(), Either>(())), Err(Either::Inflate)));
    }

    proptest! {
        // Contents larger than a chunk, which take a while to generate.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pieces_do_not_matter(
            content in proptest::collection::vec(0u8..4, 0..300_000),
            piece in 1usize..70_000,
            cut in any::<prop::sample::Index>(),
        ) {
            let (a, b) = content.split_at(cut.index(content.len() + 1));
            let blob = [gzip(a), gzip(b)].concat();
            prop_assert_eq!(inflate(&blob, piece).expect("good"), content);
        }

    }

    proptest! {
        #[test]
        fn garbage_never_panics(blob in proptest::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>()) {
            let _ = inflate(&blob, 17);
            let mut blob = gzip(&blob);
            let at = flip.index(blob.len());
            blob[at] ^= 1;
            let _ = inflate(&blob, 17);
        }
    }
}
