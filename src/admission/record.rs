//! What is kept of a decision that admitted: in the plan of a mount, in its status and attributes, in records.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Why a kit was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The reference as it was given.
    pub reference: String,
    /// What the caller claimed that it is.
    pub claim: Option<String>,
    /// The manifest.
    pub digest: Digest,
    /// When it was decided.
    pub at: Timestamp,
    /// The policies that matched, in both sets.
    pub policies: Vec<DecidedPolicy>,
    /// The trust roots that those policies stand on.
    pub trust_roots: Vec<NamedRoot>,
    /// The signatures and attestations that met an authority.
    pub counted: Vec<Counted>,
    /// What would have been refused if it were not only warned of, and what else there is to be said.
    pub warnings: Vec<String>,
}

/// A policy that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedPolicy {
    /// `host` or `caller`.
    pub set: String,
    /// Its name.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// `enforce` or `warn`.
    pub mode: String,
    /// Whether it is met. Only one that warns may not be.
    pub met: bool,
}

/// A trust root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRoot {
    /// `host` or `caller`.
    pub set: String,
    /// Its name.
    pub name: String,
    /// The SHA-256 of its file.
    pub digest: Digest,
}

/// A signature or attestation that met an authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The policy's name.
    pub policy: String,
    /// The authority's name.
    pub authority: String,
    /// The bundle or layer.
    pub digest: Digest,
    /// The manifest that it was found in.
    pub manifest: Digest,
    /// `bundle` or `legacy`.
    pub format: String,
    /// What it states; a signature has none in the older format.
    pub predicate_type: Option<String>,
    /// Who signed, for people: a certificate's subject, or `key sha256:…`.
    pub signer: String,
    /// The certificate's issuer.
    pub issuer: Option<String>,
    /// The certificate's subject.
    pub subject: Option<String>,
    /// The key's fingerprint.
    pub key: Option<String>,
    /// The authenticated times by which it was signed.
    pub times: Vec<Timestamp>,
    /// Where its log entry stands.
    pub log_index: Option<u64>,
}

impl Admission {
    /// Whether no policy was there to ask. One that only warns is none.
    pub fn without_policy(&self) -> bool {
        self.policies.iter().all(|policy| policy.mode == "warn")
    }

    /// Who signed, each once.
    pub fn signers(&self) -> Vec<&str> {
        let mut signers: Vec<&str> = self.counted.iter().map(|counted| counted.signer.as_str()).collect();
        signers.sort_unstable();
        signers.dedup();
        signers
    }
}
