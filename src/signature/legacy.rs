//! Cosign's older format: a layer of the image at the tag `….sig` or `….att`, with everything else in its annotations.
//!
//! It is made into a bundle of v0.1, so that one mechanism judges both. It has the log's signed promise, and no inclusion proof.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sigstore_verify::types::{Bundle, DerCertificate, SignatureBytes};

use super::bundle::{self, Shape, denied};
use super::reason::{Denial, Reason};
use crate::digest::{Algorithm, Digest};
use crate::json::Json;
use crate::limits;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle+json;version=0.1";
const PAYLOAD_TYPE: &str = "cosign container image signature";

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

const LOG_SHAPE: Shape = Shape::Object(&[
    ("SignedEntryTimestamp", Shape::Leaf),
    (
        "Payload",
        Shape::Object(&[("body", Shape::Leaf), ("integratedTime", Shape::Leaf), ("logIndex", Shape::Leaf), ("logID", Shape::Leaf)]),
    ),
]);
const TIMESTAMP_SHAPE: Shape = Shape::Object(&[("SignedRFC3161Timestamp", Shape::Leaf)]);
const PAYLOAD_SHAPE: Shape = Shape::Object(&[
    (
        "critical",
        Shape::Object(&[
            ("identity", Shape::Object(&[("docker-reference", Shape::Leaf)])),
            ("image", Shape::Object(&[("docker-manifest-digest", Shape::Leaf)])),
            ("type", Shape::Leaf),
        ]),
    ),
    ("optional", Shape::Any),
]);

/// A layer of an image of signatures or attestations.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// What it holds, which its media type says.
    pub kind: LayerKind,
    /// The layer itself.
    pub blob: &'a [u8],
    /// The annotations of its descriptor.
    pub annotations: &'a [(String, String)],
}

/// What a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// The payload of a signature: `application/vnd.dev.cosign.simplesigning.v1+json`.
    Signature,
    /// A DSSE envelope: `application/vnd.dsse.envelope.v1+json`.
    Attestation,
}

/// What somebody signed in the older format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The repository, perhaps with a tag, that the signer meant. Whoever asks has to compare it with the name that he asked for.
    pub docker_reference: String,
    /// What the signer added: names and values.
    pub annotations: Vec<(String, String)>,
}

/// Makes a bundle of a layer.
pub(super) fn bundle(layer: &Layer<'_>) -> Result<Bundle, Denial> {
    if layer.blob.len() as u64 > limits::BUNDLE_BYTES {
        return Denial::because(
            Reason::TooBig,
            format!("a layer has at most {} bytes, this has {}", limits::BUNDLE_BYTES, layer.blob.len()),
        );
    }
    let annotation =
        |name| layer.annotations.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str()).filter(|text| !text.is_empty());
    let mut material = match annotation(CERTIFICATE) {
        Some(text) => {
            let certificate = DerCertificate::from_pem(text);
            let certificate =
                certificate.map_err(|error| Denial::new(Reason::UntrustedCa, format!("the certificate cannot be read: {error}")))?;
            json!({ "x509CertificateChain": { "certificates": [{ "rawBytes": certificate.to_base64() }] } })
        }
        None => json!({ "publicKey": { "hint": "" } }),
    };
    if let Some(text) = annotation(LOG_ENTRY) {
        material["tlogEntries"] = json!([log_entry(&parsed(text.as_bytes(), &LOG_SHAPE, LOG_ENTRY)?)?]);
    }
    if let Some(text) = annotation(TIMESTAMP) {
        let stamp = parsed(text.as_bytes(), &TIMESTAMP_SHAPE, TIMESTAMP)?;
        let stamp = text_of(&stamp, &["SignedRFC3161Timestamp"])?;
        material["timestampVerificationData"] = json!({ "rfc3161Timestamps": [{ "signedTimestamp": stamp }] });
    }
    let content = match layer.kind {
        LayerKind::Signature => {
            let Some(signature) = annotation(SIGNATURE) else {
                return Denial::because(Reason::BadSignature, "the layer has no signature");
            };
            let digest = STANDARD.encode(Digest::of(Algorithm::Sha256, layer.blob).as_bytes());
            json!({ "messageDigest": { "algorithm": "SHA2_256", "digest": digest }, "signature": signature }).to_string()
        }
        // It is one whole object, as was just seen, so nothing of it can end up beside it.
        LayerKind::Attestation => match Json::parse(layer.blob) {
            Ok(Json::Object(_)) => String::from_utf8_lossy(layer.blob).into_owned(),
            Ok(_) => return Denial::because(Reason::BadJson, "the layer is no DSSE envelope"),
            Err(error) => return Denial::because(Reason::BadJson, format!("the layer is no DSSE envelope: {}", denied(&error))),
        },
    };
    let member = if layer.kind == LayerKind::Signature { "messageSignature" } else { "dsseEnvelope" };
    bundle::read(format!(r#"{{"mediaType":"{MEDIA_TYPE}","verificationMaterial":{material},"{member}":{content}}}"#).as_bytes())
}

/// What a timestamp of such a layer is about, where that is not the signature.
pub(super) fn stamped(layer: &Layer<'_>) -> Option<SignatureBytes> {
    (layer.kind == LayerKind::Attestation).then(|| SignatureBytes::from_bytes(layer.blob))
}

/// Reads the payload of a signature, which must be about `digest`.
pub(super) fn payload(blob: &[u8], digest: &Digest) -> Result<Payload, Denial> {
    let json = parsed(blob, &PAYLOAD_SHAPE, "payload")?;
    let kind = text_of(&json, &["critical", "type"])?;
    if kind != PAYLOAD_TYPE {
        return Denial::because(Reason::PayloadKind, format!("`critical.type` is `{kind}`, wanted is {PAYLOAD_TYPE}"));
    }
    let about = text_of(&json, &["critical", "image", "docker-manifest-digest"])?;
    if about != digest.to_string() {
        return Denial::because(Reason::WrongDigest, format!("it is about {about}, not about {digest}"));
    }
    let docker_reference = text_of(&json, &["critical", "identity", "docker-reference"])?.to_owned();
    let optional = json.object("payload", &[]).ok().and_then(|payload| payload.get("optional").cloned());
    if !matches!(optional, None | Some(Json::Object(_))) {
        return Denial::because(Reason::BadJson, "`optional` of the payload is no object");
    }
    Ok(Payload { docker_reference, annotations: super::statement::texts(optional.as_ref()) })
}

fn parsed(bytes: &[u8], shape: &Shape, what: &str) -> Result<Json, Denial> {
    let json = Json::parse(bytes).map_err(|error| Denial::new(Reason::BadJson, format!("`{what}` cannot be read: {}", denied(&error))))?;
    shape.check(&json, what)?;
    Ok(json)
}

fn value_of<'j>(json: &'j Json, path: &[&str]) -> Result<&'j Json, Denial> {
    let mut at = json;
    for name in path {
        let Json::Object(entries) = at else { break };
        let Some((_, value)) = entries.iter().find(|(key, _)| key == name) else {
            return Denial::because(Reason::BadJson, format!("`{}` is missing", path.join(".")));
        };
        at = value;
    }
    Ok(at)
}

fn text_of<'j>(json: &'j Json, path: &[&str]) -> Result<&'j str, Denial> {
    match value_of(json, path)? {
        Json::String(text) => Ok(text),
        _ => Denial::because(Reason::BadJson, format!("`{}` is no text", path.join("."))),
    }
}

fn log_entry(json: &Json) -> Result<serde_json::Value, Denial> {
    let number = |name| match value_of(json, &["Payload", name])? {
        Json::Number(number) if number.is_u64() => Ok(number.to_string()),
        _ => Denial::because(Reason::BadJson, format!("`Payload.{name}` is no number")),
    };
    let body = text_of(json, &["Payload", "body"])?;
    let decoded = STANDARD.decode(body).map_err(|error| Denial::new(Reason::BadJson, format!("the log entry cannot be read: {error}")))?;
    let decoded = parsed(&decoded, &Shape::Any, "log entry")?;
    let id = text_of(json, &["Payload", "logID"])?;
    let id = hex::decode(id).map_err(|error| Denial::new(Reason::BadJson, format!("`Payload.logID` cannot be read: {error}")))?;
    Ok(json!({
        "logIndex": number("logIndex")?,
        "logId": { "keyId": STANDARD.encode(id) },
        "kindVersion": { "kind": text_of(&decoded, &["kind"])?, "version": text_of(&decoded, &["apiVersion"])? },
        "integratedTime": number("integratedTime")?,
        "inclusionPromise": { "signedEntryTimestamp": text_of(json, &["SignedEntryTimestamp"])? },
        "canonicalizedBody": body,
    }))
}
