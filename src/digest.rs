//! Digests: how content is named, and how a name is computed from bytes.
//!
//! A [`Digest`] is the parsed form of the distribution spec's `algorithm:hex`; a value of this type is well-formed, so it may be used
//! as part of a file name. This module does not know who is allowed to believe a digest: that is [`crate::verify`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A well-formed digest of one of the two algorithms that the OCI image spec registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256, what every kit and registry writes.
    Sha256([u8; 32]),
    /// SHA-512, which the OCI image spec registers too.
    Sha512([u8; 64]),
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `:` between algorithm and hex.
    #[error("`{0}` is not a digest: expected `algorithm:hex`")]
    Form(String),
    /// The algorithm is neither `sha256` nor `sha512`.
    #[error("the digest algorithm `{0}` is not supported (sha256 and sha512 are)")]
    Algorithm(String),
    /// The hex part has another length than the algorithm gives, or other characters than `0-9a-f`.
    #[error("`{0}` is not a digest: expected {1} lower-case hex characters after the colon")]
    Hex(String, usize),
}

/// The digest algorithms that kitfs knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm of this digest.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw bytes of the digest, 32 or 64.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The lower-case hex part alone.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// The form that serves as a file name: `algorithm-hex`.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm().name(), self.hex())
    }

    /// The inverse of [`Digest::file_name`]; `None` for any other name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (algorithm, hex) = name.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    /// The first 12 hex characters, for messages in which the whole digest stands nearby.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl Algorithm {
    /// The name as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(text.to_owned()))?;
        // The hex crate takes upper-case letters, the spec does not; two spellings of one digest would be two names.
        let lower = hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let malformed = |length| DigestError::Hex(text.to_owned(), length);
        match algorithm {
            "sha256" => {
                let mut bytes = [0; 32];
                if !lower || hex::decode_to_slice(hex, &mut bytes).is_err() {
                    return Err(malformed(64));
                }
                Ok(Self::Sha256(bytes))
            }
            "sha512" => {
                let mut bytes = [0; 64];
                if !lower || hex::decode_to_slice(hex, &mut bytes).is_err() {
                    return Err(malformed(128));
                }
                Ok(Self::Sha512(bytes))
            }
            other => Err(DigestError::Algorithm(other.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest over bytes that come in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(sha2::Sha512::new())),
        })
    }

    /// Adds `bytes` to what was seen.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything that was seen.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_prints_as_it_was_parsed() {
        let digest: Digest = EMPTY.parse().expect("well-formed");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::of(Algorithm::Sha256, b""));
        assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let long = format!("{EMPTY}0");
        for text in ["", "sha256", "sha256:", "md5:00", "sha256:zz", &EMPTY[..70], &upper, &long, "sha256:../../etc/passwd"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
