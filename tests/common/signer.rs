//! Signs kits as Cosign does it with a key, without Cosign: bundles v0.3, and layers of the older format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::SigningKey as _;
use serde_json::{Value, json};

use super::pack::MANIFEST;
use super::registry::{Registry, fallback_tag, sha256};

/// The media type of bundles.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What a signature states.
pub const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";

const PAYLOAD: &str = "application/vnd.in-toto+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// A P-256 key of one test.
pub struct Signer(rcgen::KeyPair);

/// Where a signature stands in the registry.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The manifest around it.
    pub manifest: String,
    /// The bundle or payload.
    pub blob: String,
}

impl Signer {
    pub fn new() -> Self {
        Self(rcgen::KeyPair::generate().expect("a key"))
    }

    /// The public key, as `cosign.pub`.
    pub fn pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// A policy that wants this key for all that the glob matches, with more lines for its authority.
    pub fn policy(&self, name: &str, glob: &str, more: &str) -> String {
        let key = self.pem().replace('\n', "\n          ");
        let more = more.replace('\n', "\n      ");
        format!(
            "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: {name}\nspec:\n  images:\n    - glob: '{glob}'\n  \
             authorities:\n    - name: key\n      key:\n        data: |\n          {key}\n      {more}\n"
        )
    }

    /// A bundle that states this of the digest.
    pub fn bundle(&self, digest: &str, predicate_type: &str, predicate: &Value) -> Vec<u8> {
        self.bundle_with(digest, predicate_type, predicate, &json!({}))
    }

    /// A bundle that states this of the digest, with annotations as `cosign sign -a` makes them.
    pub fn bundle_with(&self, digest: &str, predicate_type: &str, predicate: &Value, annotations: &Value) -> Vec<u8> {
        let hex = digest.trim_start_matches("sha256:");
        let subject = json!([{ "digest": { "sha256": hex }, "annotations": annotations }]);
        let statement = json!({ "_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": predicate_type, "predicate": predicate });
        self.bundle_by(&statement, &json!({ "publicKey": { "hint": "a hint" } }))
    }

    /// A bundle with any statement and any material to verify it by.
    pub fn bundle_by(&self, statement: &Value, material: &Value) -> Vec<u8> {
        let payload = statement.to_string();
        let signature = self.sign(format!("DSSEv1 {} {PAYLOAD} {} {payload}", PAYLOAD.len(), payload.len()).as_bytes());
        let envelope = json!({ "payload": STANDARD.encode(&payload), "payloadType": PAYLOAD, "signatures": [{ "sig": signature }] });
        json!({ "mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope }).to_string().into_bytes()
    }

    /// A certificate of nobody's for this key.
    pub fn certificate(&self, parameters: &rcgen::CertificateParams) -> Vec<u8> {
        parameters.self_signed(&self.0).expect("a certificate").der().to_vec()
    }

    /// Attaches a signature of the digest to it.
    pub fn attach(&self, registry: &Registry, repository: &str, digest: &str) -> Attached {
        self.attest(registry, repository, digest, SIGNATURE, &json!({}))
    }

    /// Attaches an attestation of the digest to it.
    pub fn attest(&self, registry: &Registry, repository: &str, digest: &str, predicate_type: &str, predicate: &Value) -> Attached {
        attach(registry, repository, digest, self.bundle(digest, predicate_type, predicate))
    }

    /// Leaves a signature in the older format at its tag.
    pub fn attach_legacy(&self, registry: &Registry, repository: &str, name: &str, digest: &str) -> Attached {
        let image = json!({ "docker-manifest-digest": digest });
        let critical = json!({ "identity": { "docker-reference": name }, "image": image, "type": "cosign container image signature" });
        let payload = json!({ "critical": critical, "optional": null }).to_string();
        let annotations = json!({ "dev.cosignproject.cosign/signature": self.sign(payload.as_bytes()) });
        let layer = json!({ "mediaType": SIMPLE, "digest": sha256(payload.as_bytes()), "size": payload.len(), "annotations": annotations });
        let blob = registry.blob(payload);
        let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": registry.blob("{}"), "size": 2 });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let manifest = registry.manifest(repository, &format!("{}.sig", fallback_tag(digest)), MANIFEST, manifest.to_string());
        Attached { manifest, blob }
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes).expect("a signature"))
    }
}

/// Attaches any bytes as a bundle.
pub fn attach(registry: &Registry, repository: &str, subject: &str, bundle: impl Into<Vec<u8>>) -> Attached {
    let bundle = bundle.into();
    let layer = json!({ "mediaType": BUNDLE, "digest": sha256(&bundle), "size": bundle.len() });
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": registry.blob("{}"), "size": 2 });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
        "subject": { "mediaType": MANIFEST, "digest": subject, "size": registry.size(repository, subject) },
        "annotations": { "dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": SIGNATURE },
    });
    let blob = registry.blob(bundle);
    Attached { manifest: registry.attach(repository, subject, MANIFEST, manifest.to_string()), blob }
}
