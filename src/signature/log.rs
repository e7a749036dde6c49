//! What logs and timestamp authorities say of a bundle, as far as `sigstore-verify` leaves it to its caller.
//!
//! The crate verifies inclusion proofs where there are any, takes a checkpoint by any log of the root for that of an entry's own, and asks
//! of the window of a log only that it covers the log's own time. Here each entry has a proof, its checkpoint is signed by its own log,
//! and the log's window covers every time of the candidate.

use std::time::SystemTime;

use jiff::Timestamp;
use sigstore_verify::rekor::body::RekorEntryBody;
use sigstore_verify::tsa::{Error as TimestampError, verify_timestamp_for_authority};
use sigstore_verify::types::bundle::TransparencyLogEntry;
use sigstore_verify::types::{Bundle, DerPublicKey, DsseEnvelope, HashAlgorithm, KindVersion, SignatureBytes, SignatureContent, TimeRange};

use super::key::PublicKey;
use super::reason::{Denial, Reason};
use super::trusted_root::{TrustedRoot, key_of};
use crate::digest::{Algorithm, Digest};

/// What proves that an entry is in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// An inclusion proof, under a checkpoint.
    Inclusion,
    /// The log's promise, which is all that Cosign's older format has.
    Promise,
}

/// Whether each log entry has its proof and is of a log of the trusted root.
pub(super) fn check_listed(bundle: &Bundle, root: &TrustedRoot, proof: Proof) -> Result<(), Denial> {
    for entry in &bundle.verification_material.tlog_entries {
        if proof == Proof::Inclusion && entry.inclusion_proof.is_none() {
            return Denial::because(Reason::NoInclusionProof, "a log entry has no inclusion proof, only a promise at best");
        }
        if root.log(entry.log_id.key_id.as_bytes()).is_none() {
            let message = format!("the log {} is not in the trusted root", hex::encode(entry.log_id.key_id.as_bytes()));
            return Denial::because(Reason::UntrustedLog, message);
        }
    }
    Ok(())
}

/// The times that logs promise. They are authenticated once the promises were verified.
pub(super) fn promised_times(bundle: &Bundle) -> Vec<Timestamp> {
    let entries = bundle.verification_material.tlog_entries.iter();
    let promised = entries.filter(|entry| entry.inclusion_promise.is_some() && entry.kind_version != KindVersion::HashedRekordV002);
    promised.filter_map(|entry| entry.integrated_time).map(moment).collect()
}

/// The times of all timestamps, each of which must verify over `signature`.
pub(super) fn timestamps(bundle: &Bundle, signature: &SignatureBytes, root: &TrustedRoot) -> Result<Vec<Timestamp>, Denial> {
    let tokens = &bundle.verification_material.timestamp_verification_data.rfc3161_timestamps;
    let mut times = Vec::new();
    for token in tokens {
        let mut outside = None;
        let mut last = "the trusted root has no timestamp authority".to_owned();
        let mut time = None;
        for authority in root.timestamp_authorities() {
            match verify_timestamp_for_authority(&token.signed_timestamp, signature, authority) {
                Ok(found) => {
                    time = Some(moment(found));
                    break;
                }
                Err(TimestampError::TimestampOutsideValidity { time }) => outside = Some(moment(time)),
                Err(error) => last = error.to_string(),
            }
        }
        match (time, outside) {
            (Some(time), _) => times.push(time),
            (None, Some(time)) => {
                let message = format!("the timestamp says {time}, which is outside of its authority's window in the trusted root");
                return Denial::because(Reason::TsaWindow, message);
            }
            (None, None) => return Denial::because(Reason::Timestamp, format!("a timestamp does not verify: {last}")),
        }
    }
    Ok(times)
}

pub(super) fn signature_of(bundle: &Bundle) -> Result<&SignatureBytes, Denial> {
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => Ok(&envelope.signature.sig),
        SignatureContent::MessageSignature(message) => Ok(&message.signature),
        _ => Denial::because(Reason::BundleVersion, "the bundle has a content that is not known"),
    }
}

/// Whether the entries' own logs signed their checkpoints, and their windows cover each of `times`: all authenticated times of the
/// candidate. If there is none, nothing says that the log did not sign after its end, and its window has to cover `now`.
pub(super) fn check_logs(bundle: &Bundle, root: &TrustedRoot, times: &[Timestamp], now: Timestamp, proof: Proof) -> Result<(), Denial> {
    for entry in &bundle.verification_material.tlog_entries {
        let Some(log) = root.log(entry.log_id.key_id.as_bytes()) else {
            return Denial::because(Reason::UntrustedLog, "the log is not in the trusted root");
        };
        if proof == Proof::Inclusion && !key_of(log).is_some_and(|key| signs_checkpoint(entry, &key)) {
            return Denial::because(Reason::Checkpoint, format!("the checkpoint is not signed by the entry's own log, {}", log.base_url));
        }
        let Some(window) = log.public_key.valid_for else { continue };
        let now = [now];
        let covered = if times.is_empty() { &now } else { times };
        if let Some(time) = covered.iter().find(|time| !covers(window, **time)) {
            let message = format!("the window of the log {} in the trusted root does not cover {time}", log.base_url);
            return Denial::because(Reason::LogWindow, message);
        }
    }
    Ok(())
}

/// Whether an entry is about this signature by this key. The crate finds that out, too, but only of signatures that it can verify.
pub(super) fn is_about(entry: &TransparencyLogEntry, envelope: &DsseEnvelope, key: &PublicKey) -> bool {
    match RekorEntryBody::parse(&entry.canonicalized_body, entry.kind_version) {
        Ok(RekorEntryBody::DsseV001(body)) => {
            let (hash, [logged]) = (&body.spec.payload_hash, body.spec.signatures.as_slice()) else { return false };
            let verifier = str::from_utf8(logged.verifier.as_bytes()).ok().and_then(|pem| DerPublicKey::from_pem(pem).ok());
            hash.algorithm == HashAlgorithm::Sha2256
                && hash.value == Digest::of(Algorithm::Sha256, envelope.payload.as_bytes()).hex()
                && logged.signature == envelope.signature.sig
                && verifier.as_ref() == Some(key.spki())
        }
        Ok(RekorEntryBody::HashedRekordV002(body)) => {
            let logged = &body.spec.hashed_rekord_v002;
            logged.data.algorithm == HashAlgorithm::Sha2512
                && logged.data.digest.as_bytes() == Digest::of(Algorithm::Sha512, &envelope.pae()).as_bytes()
                && logged.signature.content == envelope.signature.sig
                && logged.signature.verifier.public_key.as_ref().is_some_and(|logged| logged.raw_bytes == *key.spki())
        }
        _ => false,
    }
}

/// A time of the crate, which has another version of jiff. Both have the same range; what were outside of it would be in the future.
pub(super) fn moment(theirs: impl Into<SystemTime>) -> Timestamp {
    Timestamp::try_from(theirs.into()).unwrap_or(Timestamp::MAX)
}

/// Whether a window of a trusted root, its ends included, covers a time.
fn covers(window: TimeRange, time: Timestamp) -> bool {
    moment(window.start) <= time && window.end.is_none_or(|end| time <= moment(end))
}

fn signs_checkpoint(entry: &TransparencyLogEntry, key: &sigstore_crypto::VerificationKey) -> bool {
    let Some(checkpoint) = entry.inclusion_proof.as_ref().and_then(|proof| proof.checkpoint.checkpoint()) else { return false };
    let hint = entry.log_id.key_id.as_bytes().get(..4);
    let mut own = checkpoint.signatures().iter().filter(|signature| Some(signature.key_id.as_slice()) == hint);
    own.any(|signature| key.verify(checkpoint.signed_data(), &signature.signature).is_ok())
}
