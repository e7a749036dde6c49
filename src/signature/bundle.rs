//! A Sigstore bundle, read strictly: known members only, none twice, one content, one signature.

use std::error::Error;

use sigstore_verify::types::bundle::{MediaType, VerificationMaterialContent};
use sigstore_verify::types::{Bundle, SignatureContent};

use super::reason::{Denial, Reason};
use crate::json::Json;
use crate::limits;

/// What an object may hold. A member that the format does not have could mean something to another reader.
#[derive(Debug)]
pub(super) enum Shape {
    /// A text, number, truth value or null.
    Leaf,
    /// Whatever it is.
    Any,
    List(&'static Shape),
    Object(&'static [(&'static str, Shape)]),
}

const TIMESTAMPS: Shape = Shape::Object(&[("rfc3161Timestamps", Shape::List(&Shape::Object(&[("signedTimestamp", Shape::Leaf)])))]);
const CERTIFICATE: Shape = Shape::Object(&[("rawBytes", Shape::Leaf)]);
const CHAIN: Shape = Shape::Object(&[("certificates", Shape::List(&CERTIFICATE))]);
const PROOF: Shape = Shape::Object(&[
    ("logIndex", Shape::Leaf),
    ("rootHash", Shape::Leaf),
    ("treeSize", Shape::Leaf),
    ("hashes", Shape::List(&Shape::Leaf)),
    ("checkpoint", Shape::Object(&[("envelope", Shape::Leaf)])),
]);
const ENTRY: Shape = Shape::Object(&[
    ("logIndex", Shape::Leaf),
    ("logId", Shape::Object(&[("keyId", Shape::Leaf)])),
    ("kindVersion", Shape::Object(&[("kind", Shape::Leaf), ("version", Shape::Leaf)])),
    ("integratedTime", Shape::Leaf),
    ("inclusionPromise", Shape::Object(&[("signedEntryTimestamp", Shape::Leaf)])),
    ("inclusionProof", PROOF),
    ("canonicalizedBody", Shape::Leaf),
]);
const MATERIAL: Shape = Shape::Object(&[
    ("publicKey", Shape::Object(&[("hint", Shape::Leaf)])),
    ("certificate", CERTIFICATE),
    ("x509CertificateChain", CHAIN),
    ("tlogEntries", Shape::List(&ENTRY)),
    ("timestampVerificationData", TIMESTAMPS),
]);
const ENVELOPE: Shape = Shape::Object(&[
    ("payload", Shape::Leaf),
    ("payloadType", Shape::Leaf),
    ("signatures", Shape::List(&Shape::Object(&[("sig", Shape::Leaf), ("keyid", Shape::Leaf)]))),
]);
const MESSAGE: Shape =
    Shape::Object(&[("messageDigest", Shape::Object(&[("algorithm", Shape::Leaf), ("digest", Shape::Leaf)])), ("signature", Shape::Leaf)]);
const BUNDLE: Shape = Shape::Object(&[
    ("mediaType", Shape::Leaf),
    ("verificationMaterial", MATERIAL),
    ("dsseEnvelope", ENVELOPE),
    ("messageSignature", MESSAGE),
]);

impl Shape {
    /// Whether `json` has this shape. Null stands for a member that is not there.
    pub(super) fn check(&self, json: &Json, at: &str) -> Result<(), Denial> {
        match (self, json) {
            (Self::Any, _) | (_, Json::Null) => Ok(()),
            (Self::Leaf, Json::Bool(_) | Json::Number(_) | Json::String(_)) => Ok(()),
            (Self::List(element), Json::Array(elements)) => elements.iter().try_for_each(|json| element.check(json, at)),
            (Self::Object(members), Json::Object(entries)) => {
                for (key, value) in entries {
                    let Some((_, shape)) = members.iter().find(|(name, _)| name == key) else {
                        return Denial::because(
                            Reason::UnknownMember,
                            format!("`{at}` has a member `{key}`, which the format does not have"),
                        );
                    };
                    shape.check(value, &format!("{at}.{key}"))?;
                }
                Ok(())
            }
            _ => Denial::because(Reason::BadJson, format!("`{at}` has another type than the format gives it")),
        }
    }
}

/// Reads a bundle of any version.
pub(super) fn read(bytes: &[u8]) -> Result<Bundle, Denial> {
    if bytes.len() as u64 > limits::BUNDLE_BYTES {
        return Denial::because(Reason::TooBig, format!("a bundle has at most {} bytes, this has {}", limits::BUNDLE_BYTES, bytes.len()));
    }
    let not =
        |error: &dyn std::fmt::Display| Denial::new(Reason::BadJson, format!("the bundle is not the JSON that it should be: {error}"));
    let json = Json::parse(bytes).map_err(|error| not(&denied(&error)))?;
    BUNDLE.check(&json, "bundle")?;
    let object = |json: &Json, key: &str| json.object("", &[]).ok().and_then(|object| object.get(key).cloned());
    let material = object(&json, "verificationMaterial").unwrap_or(Json::Null);
    let count = |json: &Json, keys: &[&str]| keys.iter().filter(|key| object(json, key).is_some()).count();
    if count(&json, &["dsseEnvelope", "messageSignature"]) > 1 {
        return Denial::because(Reason::TwoContents, "the bundle has both a `dsseEnvelope` and a `messageSignature`");
    }
    if count(&material, &["publicKey", "certificate", "x509CertificateChain"]) > 1 {
        return Denial::because(Reason::KeyKind, "the bundle has both a key and a certificate, or two sorts of certificates");
    }
    if let Some(envelope) = object(&json, "dsseEnvelope") {
        let signatures = match object(&envelope, "signatures") {
            Some(Json::Array(signatures)) => signatures.len(),
            _ => 0,
        };
        if signatures != 1 {
            return Denial::because(Reason::DsseSignatures, format!("there must be exactly one DSSE signature, there are {signatures}"));
        }
    }
    if let Some(Json::String(version)) = object(&json, "mediaType")
        && version.parse::<MediaType>().is_err()
    {
        return Denial::because(Reason::BundleVersion, format!("`{version}` is no bundle that is known"));
    }
    // The bytes were JSON, which is UTF-8.
    let text = str::from_utf8(bytes).map_err(|error| not(&error))?;
    let bundle = Bundle::from_json(text).map_err(|error| match error.to_string() {
        // The crate reads checkpoints along with the rest, and has no type for what is wrong with them. It decides nothing but the code.
        text if text.contains("checkpoint") => Denial::new(Reason::Checkpoint, format!("the checkpoint cannot be read: {text}")),
        _ => not(&error),
    })?;
    let material = &bundle.verification_material;
    let counts = [
        (material.tlog_entries.len(), limits::BUNDLE_LOG_ENTRIES, "log entries"),
        (material.timestamp_verification_data.rfc3161_timestamps.len(), limits::BUNDLE_TIMESTAMPS, "timestamps"),
        (certificates(&bundle), limits::BUNDLE_CERTIFICATES, "certificates"),
    ];
    for (count, limit, what) in counts {
        if count > limit {
            return Denial::because(Reason::TooMany, format!("a bundle has at most {limit} {what}, this has {count}"));
        }
    }
    Ok(bundle)
}

fn certificates(bundle: &Bundle) -> usize {
    match &bundle.verification_material.content {
        VerificationMaterialContent::X509CertificateChain { certificates } => certificates.len(),
        _ => 1,
    }
}

/// Whether it is of the one form that a registry's bundles have: v0.3 with an attestation in it.
pub(super) fn check_attached(bundle: &Bundle) -> Result<(), Denial> {
    if bundle.media_type() != MediaType::Bundle0_3 {
        return Denial::because(Reason::BundleVersion, format!("the bundle is `{}`, only v0.3 counts", bundle.media_type()));
    }
    match &bundle.content {
        SignatureContent::DsseEnvelope(_) => Ok(()),
        _ => Denial::because(Reason::NotASignature, "the bundle signs bytes of its own, and states nothing about a kit"),
    }
}

/// An error with its cause in one line.
pub(super) fn denied(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
