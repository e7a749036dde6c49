//! Where bytes from outside become readable, if they are what a descriptor says.
//!
//! This is one of the two modules that make a witness (the other is [`crate::store`]). Everything that comes from a registry, a
//! layout or a cache file is an [`Unverified`] until the three checks of a [`Check`] were made: never more than `size` bytes, exactly
//! `size` bytes at the end, digest equal. They are one operation, so that none can be forgotten.
//!
//! Nobody can read what was not checked:
//!
//! ```compile_fail
//! # use kitfs::verify::Unverified;
//! let outside = Unverified::new(bytes::Bytes::from_static(b"{}"));
//! let text: &[u8] = &outside; // no Deref
//! ```
//! ```compile_fail
//! # use kitfs::verify::Unverified;
//! let outside = Unverified::new(bytes::Bytes::from_static(b"{}"));
//! let text = outside.0; // the field is private
//! ```
//! ```compile_fail
//! # use kitfs::verify::{Check, Unverified};
//! # fn steal(mut check: Check, outside: Unverified<bytes::Bytes>) {
//! let text = check.admit(outside).unwrap(); // for the store's ingest alone
//! # }
//! ```
//!
//! and nobody else can claim to have checked it:
//!
//! ```compile_fail
//! # use kitfs::{descriptor::Descriptor, verify::Verified};
//! # fn forge(descriptor: Descriptor) {
//! let forged = Verified { bytes: bytes::Bytes::new(), descriptor };
//! # }
//! ```
//!
//! The honest way:
//!
//! ```
//! # use kitfs::{descriptor::Descriptor, digest::{Algorithm, Digest}, verify::Unverified};
//! let outside = Unverified::new(bytes::Bytes::from_static(b"{}"));
//! let descriptor = Descriptor { media_type: "application/json".into(), digest: Digest::of(Algorithm::Sha256, b"{}"), size: 2 };
//! let text = outside.verify(&descriptor).unwrap();
//! assert_eq!(&*text, b"{}");
//! ```

use std::io;
use std::ops::Deref;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::limits;

/// Something from outside that nobody has checked yet. It can be checked or dropped, not read.
#[derive(Clone)]
pub struct Unverified<T>(T);

/// Bytes whose size and digest matched a descriptor in this process.
#[derive(Debug, Clone)]
pub struct Verified<T> {
    bytes: T,
    descriptor: Descriptor,
}

/// What was wrong with content that claimed to be a descriptor's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// More bytes came than the descriptor has.
    #[error("{digest}: expected {expected} bytes, got more")]
    TooLong {
        /// The digest of the descriptor.
        digest: Digest,
        /// Its size in bytes.
        expected: u64,
    },
    /// The content ended early.
    #[error("{digest}: expected {expected} bytes, got only {got}")]
    TooShort {
        /// The digest of the descriptor.
        digest: Digest,
        /// Its size in bytes.
        expected: u64,
        /// How many bytes came.
        got: u64,
    },
    /// The size is right, the content is not.
    #[error("expected digest {expected}, got {got}")]
    Digest {
        /// The digest of the descriptor.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
}

impl<T> Unverified<T> {
    /// Marks `outside` as not checked. Anybody may do that.
    pub fn new(outside: T) -> Self {
        Self(outside)
    }
}

#[expect(clippy::result_large_err, reason = "a mismatch ends the work on a blob, and names two digests")]
impl Unverified<Bytes> {
    /// How many bytes there are; their number says nothing about them.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the first `at` bytes off (all, if there are fewer), as little checked as the rest.
    pub fn split_to(&mut self, at: usize) -> Self {
        Self(self.0.split_to(at.min(self.0.len())))
    }

    /// Makes the three checks against `descriptor`.
    pub fn verify(self, descriptor: &Descriptor) -> Result<Verified<Bytes>, Mismatch> {
        let mut check = Check::new(descriptor);
        let bytes = check.admit(self)?;
        let Matched(()) = check.finish()?;
        Ok(Verified { bytes, descriptor: descriptor.clone() })
    }

    /// The descriptor that these bytes have, for content that was asked for by name and that nobody has described.
    ///
    /// It vouches for nothing: whoever uses it pins what the other side said, and must say so.
    pub fn describe(&self, algorithm: crate::digest::Algorithm, media_type: &str) -> Descriptor {
        Descriptor { media_type: media_type.to_owned(), digest: Digest::of(algorithm, &self.0), size: self.0.len() as u64 }
    }
}

impl<T> std::fmt::Debug for Unverified<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unverified(..)")
    }
}

impl<T> Verified<T> {
    /// What the bytes were checked against.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl Verified<Bytes> {
    /// The bytes without what they were checked against, for whoever only reads them. They are shared, not copied.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone()
    }
}

impl<T: AsRef<[u8]>> Deref for Verified<T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// The three checks over content that comes in pieces.
#[derive(Debug)]
pub struct Check {
    descriptor: Descriptor,
    hashing: Hashing,
    seen: u64,
}

/// Says that a [`Check`] ended well. Only [`Check::finish`] makes one; the store puts nothing into its place without it.
#[derive(Debug)]
#[must_use = "it is what may put content into its place"]
pub struct Matched(());

#[derive(Debug)]
enum Hashing {
    Here(Hasher),
    Beside(HashThread),
}

#[expect(clippy::result_large_err, reason = "a mismatch ends the work on a blob, and names two digests")]
impl Check {
    /// A check of nothing yet.
    pub fn new(descriptor: &Descriptor) -> Self {
        let hashing = Hashing::Here(Hasher::new(descriptor.digest.algorithm()));
        Self { hashing, descriptor: descriptor.clone(), seen: 0 }
    }

    /// A check of nothing yet that hashes on a thread of its own, so that whoever admits can write meanwhile.
    pub fn beside(descriptor: &Descriptor) -> io::Result<Self> {
        let hashing = Hashing::Beside(HashThread::start(descriptor.digest.algorithm())?);
        Ok(Self { hashing, descriptor: descriptor.clone(), seen: 0 })
    }

    /// Counts and hashes `chunk` and hands it back to be *stored*, not shown: it is believed only once [`Check::finish`] says so.
    /// For the store's ingest alone (`tests/architecture.rs` holds everybody else to that).
    pub(crate) fn admit(&mut self, chunk: Unverified<Bytes>) -> Result<Bytes, Mismatch> {
        self.seen += chunk.0.len() as u64;
        if self.seen > self.descriptor.size {
            return Err(Mismatch::TooLong { digest: self.descriptor.digest, expected: self.descriptor.size });
        }
        match &mut self.hashing {
            Hashing::Here(hasher) => hasher.update(&chunk.0),
            Hashing::Beside(thread) => thread.update(chunk.0.clone()),
        }
        Ok(chunk.0)
    }

    /// How many bytes were admitted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Succeeds if everything that was admitted is exactly what the descriptor says.
    pub fn finish(self) -> Result<Matched, Mismatch> {
        let Descriptor { digest: expected, size, .. } = self.descriptor;
        if self.seen < size {
            return Err(Mismatch::TooShort { digest: expected, expected: size, got: self.seen });
        }
        let got = match self.hashing {
            Hashing::Here(hasher) => hasher.finish(),
            Hashing::Beside(thread) => thread.finish(),
        };
        if got == expected { Ok(Matched(())) } else { Err(Mismatch::Digest { expected, got }) }
    }
}

/// A [`Hasher`] on a thread of its own.
#[derive(Debug)]
pub(crate) struct HashThread {
    queue: Option<SyncSender<Vec<Bytes>>>,
    /// What is not in the queue yet; the thread is woken for a piece of [`limits::PIECE_BYTES`], not for each of many small ones.
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    thread: Option<JoinHandle<Digest>>,
}

impl HashThread {
    /// Starts the thread.
    pub(crate) fn start(algorithm: Algorithm) -> io::Result<Self> {
        let (queue, pieces) = sync_channel::<Vec<Bytes>>(limits::HASH_QUEUE_PIECES);
        let thread = std::thread::Builder::new().name("kitfs-hash".into()).spawn(move || {
            let mut hasher = Hasher::new(algorithm);
            pieces.iter().flatten().for_each(|piece| hasher.update(&piece));
            hasher.finish()
        })?;
        Ok(Self { queue: Some(queue), gathered: Vec::new(), gathered_bytes: 0, thread: Some(thread) })
    }

    /// Adds `bytes`; waits while the queue is full.
    pub(crate) fn update(&mut self, bytes: Bytes) {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes >= limits::PIECE_BYTES || self.gathered.len() >= limits::BATCH_PIECES {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        // The other end is gone only if the thread panicked, which `finish` passes on.
        if let Some(queue) = &self.queue {
            let _ = queue.send(gathered);
        }
    }

    /// The digest of everything that was added.
    pub(crate) fn finish(mut self) -> Digest {
        self.pass_on();
        self.queue = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(digest)) => digest,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("only `finish` takes the thread, and it takes the hasher itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn descriptor(algorithm: Algorithm, content: &[u8]) -> Descriptor {
        Descriptor { media_type: "x/y".into(), digest: Digest::of(algorithm, content), size: content.len() as u64 }
    }

    #[test]
    fn only_the_described_bytes_pass() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let wanted = descriptor(algorithm, b"weights");
            for (content, passes) in [(&b"weights"[..], true), (b"weightz", false), (b"weight", false), (b"weights!", false), (b"", false)]
            {
                let outcome = Unverified::new(Bytes::from_static(content)).verify(&wanted);
                assert_eq!(outcome.is_ok(), passes, "{content:?}");
            }
        }
    }

    #[test]
    fn the_first_byte_too_many_is_refused_at_once() {
        let mut check = Check::new(&descriptor(Algorithm::Sha256, b"ab"));
        assert!(check.admit(Unverified::new(Bytes::from_static(b"ab"))).is_ok());
        assert!(matches!(check.admit(Unverified::new(Bytes::from_static(b"c"))), Err(Mismatch::TooLong { expected: 2, .. })));
    }

    #[test]
    fn hashing_beside_is_the_same_check() {
        let content = Bytes::from(vec![7; 3 << 20]);
        let wanted = descriptor(Algorithm::Sha512, &content);
        for (damage, passes) in [(None, true), (Some(0), false), (Some(content.len() - 1), false)] {
            let mut sent = content.to_vec();
            if let Some(at) = damage {
                sent[at] ^= 1;
            }
            let mut rest = Unverified::new(Bytes::from(sent));
            let mut check = Check::beside(&wanted).expect("a thread");
            while !rest.is_empty() {
                check.admit(rest.split_to(100_000)).expect("not too many");
            }
            assert_eq!(check.finish().is_ok(), passes);
        }
    }

    #[test]
    fn a_mismatch_names_both_digests() {
        let wanted = descriptor(Algorithm::Sha256, b"a");
        let error = Unverified::new(Bytes::from_static(b"b")).verify(&wanted).expect_err("other bytes");
        let text = error.to_string();
        assert!(text.contains(&wanted.digest.to_string()) && text.contains(&Digest::of(Algorithm::Sha256, b"b").to_string()), "{text}");
    }
}
