//! What was found attached to a manifest, so that it is found again where nobody else can be asked.
//!
//! `attached/<digest of the subject>` is a JSON document, at most 256 KiB:
//!
//! ```json
//! { "version": 1, "manifests": [
//!   { "digest": "sha256:…", "size": 812, "by": "subject", "repository": null, "candidates": 1, "met": false } ] }
//! ```
//!
//! `by` is `subject`, `signature-name` or `attestation-name`; `repository` is the one that it was looked for in, where that was not the subject's own;
//! `candidates` is how many things to judge are in it. What once met an authority stands first, then what came last. A record that is not
//! exactly so is none. It is replaced by rename, under the lock `locks/attached`. Manifests, bundles and layers themselves are in `blobs/` and are
//! hashed at each use: nothing rests on this record but what is looked at.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::Inner;
use super::documents;
use super::error::{StoreError, disk};
use super::locks::RecordLock;
use crate::digest::Digest;
use crate::limits;
use crate::source::AttachedBy;

/// A manifest that was found attached to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptManifest {
    /// The manifest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How it is attached.
    pub by: AttachedBy,
    /// The repository that it was looked for in, where that is not the subject's own.
    pub repository: Option<String>,
    /// How many things to judge are in it.
    pub candidates: usize,
    /// Whether something in it once met an authority.
    pub met: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    manifests: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    digest: Digest,
    size: u64,
    by: AttachedBy,
    repository: Option<String>,
    candidates: usize,
    met: bool,
}

const VERSION: u32 = 1;

impl KeptManifest {
    fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.by == other.by && self.repository == other.repository
    }
}

/// See [`super::Store::keep_attached`].
pub(super) fn keep(store: &Inner, subject: &Digest, manifests: &[KeptManifest]) -> Result<(), StoreError> {
    if manifests.is_empty() {
        return Ok(());
    }
    change(store, subject, |kept| {
        let mut merged: Vec<KeptManifest> = Vec::new();
        // What is found again is as new as what is found for the first time.
        for manifest in manifests.iter().chain(kept.iter()) {
            if !merged.iter().any(|there| there.is_same(manifest)) {
                let met = kept.iter().any(|there| there.is_same(manifest) && there.met);
                merged.push(KeptManifest { met: met || manifest.met, ..manifest.clone() });
            }
        }
        merged
    })
}

/// See [`super::Store::mark_met`].
pub(super) fn mark_met(store: &Inner, subject: &Digest, manifest: &Digest) -> Result<(), StoreError> {
    change(store, subject, |kept| {
        let mark = |kept: &KeptManifest| KeptManifest { met: kept.met || kept.digest == *manifest, ..kept.clone() };
        kept.iter().map(mark).collect()
    })
}

/// See [`super::Store::attached`].
pub(super) fn kept(store: &Inner, subject: &Digest) -> Result<Vec<KeptManifest>, StoreError> {
    let name = subject.file_name();
    let Some(file) = store.attached.open(&name)? else { return Ok(Vec::new()) };
    let what = || format!("reading {}", store.attached.path_of(&name).display());
    store.attached.step("read", &name).map_err(disk(what()))?;
    let mut text = Vec::new();
    file.take(limits::ATTACHED_RECORD_BYTES + 1).read_to_end(&mut text).map_err(disk(what()))?;
    let Some(manifests) = decode(&text) else {
        tracing::warn!(%subject, "the record of what is attached to it is damaged");
        return Ok(Vec::new());
    };
    Ok(manifests)
}

fn change(store: &Inner, subject: &Digest, change: impl FnOnce(&[KeptManifest]) -> Vec<KeptManifest>) -> Result<(), StoreError> {
    let _lock = RecordLock::take(&store.locks)?;
    let kept = kept(store, subject)?;
    let changed = trimmed(change(&kept));
    if changed == kept {
        return Ok(());
    }
    let text = encode(&changed).map_err(|error| disk("writing down what is attached")(std::io::Error::from(error)))?;
    documents::write(store, &store.attached, &subject.file_name(), &text)
}

/// What there is room for: first what met an authority.
fn trimmed(mut manifests: Vec<KeptManifest>) -> Vec<KeptManifest> {
    manifests.sort_by_key(|manifest| !manifest.met);
    let mut candidates = 0;
    manifests.retain(|manifest| {
        let sum = manifest.candidates.saturating_add(candidates);
        let fits = sum <= limits::KEPT_CANDIDATES;
        if fits {
            candidates = sum;
        }
        fits
    });
    manifests
}

fn encode(manifests: &[KeptManifest]) -> serde_json::Result<Vec<u8>> {
    let entry = |kept: &KeptManifest| {
        let KeptManifest { digest, size, by, repository, candidates, met } = kept.clone();
        Entry { digest, size, by, repository, candidates, met }
    };
    serde_json::to_vec(&Record { version: VERSION, manifests: manifests.iter().map(entry).collect() })
}

fn decode(text: &[u8]) -> Option<Vec<KeptManifest>> {
    if text.len() as u64 > limits::ATTACHED_RECORD_BYTES {
        return None;
    }
    let record: Record = serde_json::from_slice(text).ok().filter(|record: &Record| record.version == VERSION)?;
    let manifests = record.manifests.into_iter().map(|entry| {
        let Entry { digest, size, by, repository, candidates, met } = entry;
        KeptManifest { digest, size, by, repository, candidates, met }
    });
    Some(trimmed(manifests.collect()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::digest::Algorithm;
    use crate::store::Store;

    fn manifest(number: usize) -> KeptManifest {
        let digest = Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        KeptManifest { digest, size: number as u64, by: AttachedBy::Subject, repository: None, candidates: 1, met: false }
    }

    fn store() -> (tempfile::TempDir, Store, Digest) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a cache");
        (dir, store, Digest::of(Algorithm::Sha256, b"subject"))
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let (dir, store, subject) = store();
        assert!(store.attached(&subject).expect("read").is_empty());
        let other = KeptManifest { repository: Some("h.test/s".into()), by: AttachedBy::SignatureName, candidates: 3, ..manifest(1) };
        store.keep_attached(&subject, &[manifest(1), other.clone()]).expect("kept");
        store.keep_attached(&subject, &[manifest(2), manifest(1)]).expect("kept");
        let again = Store::open(dir.path()).expect("a cache");
        assert_eq!(again.attached(&subject).expect("read"), [manifest(2), manifest(1), other]);
        assert!(again.attached(&Digest::of(Algorithm::Sha256, b"other")).expect("read").is_empty());
    }

    #[test]
    fn what_met_an_authority_is_the_last_to_go() {
        let (_dir, store, subject) = store();
        let all: Vec<_> = (0..limits::KEPT_CANDIDATES).map(manifest).collect();
        store.keep_attached(&subject, &all).expect("kept");
        assert_eq!(store.attached(&subject).expect("read").len(), limits::KEPT_CANDIDATES);
        // The oldest of all, as it stands last.
        let good = all.last().expect("some").digest;
        store.mark_met(&subject, &good).expect("marked");
        store.mark_met(&subject, &Digest::of(Algorithm::Sha256, b"unknown")).expect("nothing to mark");
        let flood: Vec<_> = (1000..1000 + limits::KEPT_CANDIDATES).map(manifest).collect();
        store.keep_attached(&subject, &flood).expect("kept");
        let kept = store.attached(&subject).expect("read");
        assert_eq!(kept.len(), limits::KEPT_CANDIDATES);
        assert!(kept[0].met && kept[0].digest == good, "{:?}", kept[0]);
        assert_eq!(kept[1..], flood[..limits::KEPT_CANDIDATES - 1]);
        // Found again, and not judged this time: it met one all the same.
        store.keep_attached(&subject, &[KeptManifest { met: false, ..kept[0].clone() }]).expect("kept");
        assert!(store.attached(&subject).expect("read")[0].met);
        // One that is larger than all the room there is leaves the others alone.
        store.keep_attached(&subject, &[KeptManifest { candidates: usize::MAX, ..manifest(7) }]).expect("no room");
        assert_eq!(store.attached(&subject).expect("read"), kept);
    }

    #[test]
    fn a_damaged_record_is_none() {
        let (dir, store, subject) = store();
        store.keep_attached(&subject, &[manifest(1)]).expect("kept");
        let path = dir.path().join("v1/attached").join(subject.file_name());
        let good = fs::read_to_string(&path).expect("a record");
        let large = good.clone() + &" ".repeat(limits::ATTACHED_RECORD_BYTES as usize);
        for (text, count) in [
            (good.as_str(), 1),
            ("", 0),
            ("[]", 0),
            (&good[..good.len() - 1], 0),
            (&good.replace(r#""version":1"#, r#""version":2"#), 0),
            (&good.replace(r#""met""#, r#""more":1,"met""#), 0),
            (&good.replace("sha256:", "sha256:/"), 0),
            (&large, 0),
        ] {
            fs::remove_file(&path).expect("there");
            fs::write(&path, text).expect("written");
            assert_eq!(store.attached(&subject).expect("read").len(), count, "{}", &text[..text.len().min(200)]);
        }
        store.keep_attached(&subject, &[manifest(2)]).expect("kept anew");
        assert_eq!(store.attached(&subject).expect("read"), [manifest(2)]);
    }

    #[test]
    fn a_full_record_is_within_its_limit() {
        let long = KeptManifest { repository: Some("r".repeat(limits::REFERENCE_NAME_BYTES)), ..manifest(1) };
        let all = vec![long; limits::KEPT_CANDIDATES];
        assert!((encode(&all).expect("plain data").len() as u64) < limits::ATTACHED_RECORD_BYTES);
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let (dir, _, subject) = store();
        thread::scope(|scope| {
            for writer in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    let store = Store::open(dir).expect("a cache");
                    for number in 0..10 {
                        store.keep_attached(&subject, &[manifest(writer * 100 + number)]).expect("kept");
                    }
                });
            }
        });
        assert_eq!(Store::open(dir.path()).expect("a cache").attached(&subject).expect("read").len(), 40);
    }
}
