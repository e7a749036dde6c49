//! What a place says is attached to a manifest: signatures and attestations, as far as a list can tell.
//!
//! Nothing of it is believed. A list names manifests; what they are, and whether they are about the manifest at all, is in them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::SourceError;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::limits;
use crate::policy::Name;
use crate::verify::Unverified;

/// What is asked of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachments {
    /// The manifest that things are attached to.
    pub subject: Digest,
    /// Only what has a name of this repository counts. It is for places that hold several; a registry's source is of one anyway.
    pub repository: Option<Name>,
}

/// How a manifest is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachedBy {
    /// It says itself whom it refers to, in `subject`.
    Subject,
    /// It is found by a name made of the digest, as Cosign's older signatures are.
    SignatureName,
    /// The same for its older attestations.
    AttestationName,
}

/// A manifest that a place lists.
#[derive(Debug)]
pub struct ListedManifest {
    /// The manifest.
    pub descriptor: Descriptor,
    /// The manifest itself, if the place had to give it to say so. It is as little checked as anything else.
    pub document: Option<Unverified<Bytes>>,
    /// How it is attached.
    pub by: AttachedBy,
    /// Where it is listed, for people.
    pub found_at: String,
    /// What the list says that it is. It decides nothing.
    pub artifact_type: Option<String>,
    /// What the list notes about it. It decides nothing.
    pub annotations: Vec<(String, String)>,
}

/// What a place has attached to a manifest.
#[derive(Debug, Default)]
pub struct Attached {
    /// The manifests, in the order of the lists; some may stand there twice.
    pub listed: Vec<ListedManifest>,
    /// Entries of lists that cannot be read: where, and why.
    pub malformed: Vec<(String, String)>,
    /// Lists that could not be read.
    pub gaps: Vec<(String, SourceError)>,
    /// Limits that were met, each as a sentence with its numbers.
    pub capped: Vec<String>,
    /// Where was looked, for people.
    pub searched: Vec<String>,
    referrers: usize,
}

impl Attached {
    /// Adds a manifest; false if there are more referrers now than anybody looks at. The first too many is kept, to show that there are more.
    pub fn list(&mut self, manifest: ListedManifest) -> bool {
        self.referrers += usize::from(manifest.by == AttachedBy::Subject);
        self.listed.push(manifest);
        self.referrers <= limits::REFERRERS
    }

    /// Adds what was found elsewhere.
    pub fn append(&mut self, other: Self) {
        let Self { listed, malformed, gaps, capped, searched, referrers } = other;
        self.listed.extend(listed);
        self.malformed.extend(malformed);
        self.gaps.extend(gaps);
        self.capped.extend(capped);
        self.searched.extend(searched);
        self.referrers += referrers;
    }
}

/// The tags under which things are attached to `subject` where nothing better is there: an index of referrers, and Cosign's older
/// signatures and attestations.
pub(crate) fn tags(subject: &Digest) -> [String; 3] {
    // The distribution spec cuts what is longer than a tag has room for.
    let hex = subject.hex();
    let base = format!("{}-{}", subject.algorithm().name(), hex.get(..limits::TAG_DIGEST_HEX).unwrap_or(&hex));
    [base.clone(), format!("{base}.sig"), format!("{base}.att")]
}
