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

use std::ops::Deref;

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};

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

impl Unverified<Bytes> {
    /// How many bytes there are; their number says nothing about them.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the three checks against `descriptor`.
    pub fn verify(self, descriptor: &Descriptor) -> Result<Verified<Bytes>, Mismatch> {
        let mut check = Check::new(descriptor);
        let bytes = check.admit(self)?;
        check.finish()?;
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
    hasher: Hasher,
    seen: u64,
}

impl Check {
    /// A check of nothing yet.
    pub fn new(descriptor: &Descriptor) -> Self {
        Self { hasher: Hasher::new(descriptor.digest.algorithm()), descriptor: descriptor.clone(), seen: 0 }
    }

    /// Counts and hashes `chunk` and hands it back to be *stored*, not shown: it is believed only once [`Check::finish`] says so.
    /// For the store's ingest alone (`tests/architecture.rs` holds everybody else to that).
    pub(crate) fn admit(&mut self, chunk: Unverified<Bytes>) -> Result<Bytes, Mismatch> {
        self.seen += chunk.0.len() as u64;
        if self.seen > self.descriptor.size {
            return Err(Mismatch::TooLong { digest: self.descriptor.digest, expected: self.descriptor.size });
        }
        self.hasher.update(&chunk.0);
        Ok(chunk.0)
    }

    /// How many bytes were admitted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// True if everything that was admitted is exactly what the descriptor says.
    pub fn finish(self) -> Result<(), Mismatch> {
        let Descriptor { digest: expected, size, .. } = self.descriptor;
        if self.seen < size {
            return Err(Mismatch::TooShort { digest: expected, expected: size, got: self.seen });
        }
        let got = self.hasher.finish();
        if got == expected { Ok(()) } else { Err(Mismatch::Digest { expected, got }) }
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
    fn a_mismatch_names_both_digests() {
        let wanted = descriptor(Algorithm::Sha256, b"a");
        let error = Unverified::new(Bytes::from_static(b"b")).verify(&wanted).expect_err("other bytes");
        let text = error.to_string();
        assert!(text.contains(&wanted.digest.to_string()) && text.contains(&Digest::of(Algorithm::Sha256, b"b").to_string()), "{text}");
    }
}
