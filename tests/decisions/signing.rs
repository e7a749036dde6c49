//! Signers for tests: what they sign is made when it is needed, so that everything about it can be varied.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use kitfs::digest::{Algorithm, Digest};
use kitfs::policy::authority::Format;
use kitfs::referrers::{Candidate, Content};
use kitfs::signature::LayerKind;
use serde_json::{Value, json};

pub const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";
pub const SCAN: &str = "https://acme.example/scan/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";

/// Somebody with a key.
pub struct Key {
    secret: SigningKey,
    pub pem: String,
}

impl Key {
    pub fn new(seed: u8) -> Self {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        // What stands before the key in a SubjectPublicKeyInfo of Ed25519.
        let mut der = vec![0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
        der.extend(secret.verifying_key().as_bytes());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        Self { secret, pem }
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.secret.sign(bytes).to_bytes())
    }

    fn envelope(&self, statement: &Value) -> Value {
        let payload = statement.to_string();
        let signed = format!("DSSEv1 {} {STATEMENT} {} {payload}", STATEMENT.len(), payload.len());
        json!({ "payload": STANDARD.encode(&payload), "payloadType": STATEMENT, "signatures": [{ "sig": self.sign(signed.as_bytes()) }] })
    }

    /// A bundle with a signature of `about`.
    pub fn bundle(&self, about: Digest) -> Candidate {
        self.stating(about, SIGNATURE, json!({}), json!({}))
    }

    /// A bundle with a scan of `about`.
    pub fn scan(&self, about: Digest, predicate: Value) -> Candidate {
        self.stating(about, SCAN, predicate, json!({}))
    }

    pub fn stating(&self, about: Digest, predicate_type: &str, predicate: Value, annotations: Value) -> Candidate {
        let statement = statement(about, predicate_type, &predicate, &annotations);
        let bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "publicKey": { "hint": "" } },
            "dsseEnvelope": self.envelope(&statement),
        });
        let bundle = Bytes::from(bundle.to_string());
        candidate(about, Digest::of(Algorithm::Sha256, &bundle), Format::Bundle, Content::Bundle(bundle))
    }

    /// A layer of a `.sig` for `reference`.
    pub fn layer(&self, about: Digest, reference: &str, optional: Value) -> Candidate {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": reference },
                "image": { "docker-manifest-digest": about.to_string() },
                "type": "cosign container image signature",
            },
            "optional": optional,
        });
        let blob = Bytes::from(payload.to_string());
        let annotations = vec![("dev.cosignproject.cosign/signature".to_owned(), self.sign(&blob))];
        let digest = Digest::of(Algorithm::Sha256, &blob);
        candidate(about, digest, Format::Legacy, Content::Layer { kind: LayerKind::Signature, blob, annotations })
    }

    /// A layer of an `.att` with a scan.
    pub fn attestation_layer(&self, about: Digest, predicate: &Value) -> Candidate {
        let blob = Bytes::from(self.envelope(&statement(about, SCAN, predicate, &json!({}))).to_string());
        let digest = Digest::of(Algorithm::Sha256, &blob);
        candidate(about, digest, Format::Legacy, Content::Layer { kind: LayerKind::Attestation, blob, annotations: Vec::new() })
    }
}

fn statement(about: Digest, predicate_type: &str, predicate: &Value, annotations: &Value) -> Value {
    let subject = json!([{ "digest": { "sha256": about.hex() }, "annotations": annotations }]);
    json!({ "_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": predicate_type, "predicate": predicate })
}

pub fn candidate(subject: Digest, digest: Digest, format: Format, content: Content) -> Candidate {
    let manifest = Digest::of(Algorithm::Sha256, digest.to_string().as_bytes());
    Candidate { digest, manifest, subject, repository: None, found_at: "a place".to_owned(), format, content: Ok(content) }
}
