//! What is in a manifest that is attached to another: which of its layers could be a signature or an attestation.
//!
//! Strict where two readers could see two things, and generous where a tool wrote more than is needed here: `urls` and `data` of a descriptor are
//! never used, so they may stand there. Media types outside of the layers decide nothing.

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::chain;
use crate::json::{Json, JsonError, Object};
use crate::limits;
use crate::oci::{self, DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST};
use crate::signature::{Denial, LayerKind, Reason};
use crate::source::AttachedBy;
use crate::verify::Verified;

/// Docker's name for a manifest, which old signatures are stored in.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// How the media types of all versions of bundles begin.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// The payload of a signature in Cosign's older format.
const SIGNATURE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// An attestation in Cosign's older format.
const ATTESTATION: &str = "application/vnd.dsse.envelope.v1+json";

/// A layer that could be a signature or an attestation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The blob.
    pub descriptor: Descriptor,
    /// What it is to be.
    pub kind: PieceKind,
}

/// What a layer is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceKind {
    /// A Sigstore bundle.
    Bundle,
    /// It does not say; it counts if it is a bundle.
    Unnamed,
    /// A signature or an attestation in Cosign's older format.
    Layer {
        /// Which of the two.
        kind: LayerKind,
        /// The annotations of its descriptor.
        annotations: Vec<(String, String)>,
    },
}

/// The pieces of a manifest that is attached to `subject` in this way, each or why it fails. None: it is something else.
pub fn pieces(manifest: &Verified<Bytes>, by: AttachedBy, subject: &Digest) -> Result<Vec<Result<Piece, Denial>>, Denial> {
    let bad = |error: JsonError| Denial::new(Reason::BadJson, format!("the manifest cannot be read: {}", chain(&error)));
    let json = Json::parse(manifest).map_err(bad)?;
    let known = ["schemaVersion", "mediaType", "layers", "subject", "manifests"];
    let document = json.object("", &known).map_err(bad)?;
    match document.string("mediaType").map_err(bad)? {
        None | Some(IMAGE_MANIFEST | DOCKER_MANIFEST) => {}
        // A list, or something that has no layers: nobody keeps a signature there.
        Some(_) if document.get("layers").is_none() => return Ok(Vec::new()),
        Some(IMAGE_INDEX | DOCKER_MANIFEST_LIST) => return Err(malformed("it says that it is an index, and has layers")),
        Some(other) => return Err(malformed(&format!("its media type is `{other}`, expected `{IMAGE_MANIFEST}`"))),
    }
    if document.get("manifests").is_some() {
        return if document.get("layers").is_some() { Err(malformed("it has both `manifests` and `layers`")) } else { Ok(Vec::new()) };
    }
    match document.required_size("schemaVersion").map_err(bad)? {
        2 => {}
        other => return Err(malformed(&format!("its schemaVersion is {other}, expected 2"))),
    }
    if by == AttachedBy::Subject {
        check_subject(&document, subject)?;
    }
    let layers = document.array("layers").map_err(bad)?;
    if layers.len() > limits::LAYERS {
        let text = format!("the manifest lists {} layers, {} are allowed", layers.len(), limits::LAYERS);
        return Err(Denial::new(Reason::TooMany, text));
    }
    let is_only = layers.len() == 1;
    Ok(layers.into_iter().filter_map(|(at, layer)| piece(layer, &at, by, is_only).transpose()).collect())
}

/// Whether content that does not say what it is looks like a bundle.
pub(super) fn is_bundle(content: &[u8]) -> bool {
    let Ok(json) = Json::parse(content) else { return false };
    json.object("", &[]).is_ok_and(|document| document.get("verificationMaterial").is_some())
}

fn malformed(what: &str) -> Denial {
    Denial::new(Reason::BadJson, format!("the manifest cannot be used: {what}"))
}

fn check_subject(document: &Object<'_>, wanted: &Digest) -> Result<(), Denial> {
    let not = |text: String| Err(Denial::new(Reason::ReferrerSubject, text));
    let Some(subject) = document.get("subject") else {
        return not(format!("the manifest has no `subject`, it would have to be {wanted}"));
    };
    let digest = subject.object("subject", &["digest"]).and_then(|subject| subject.required_string("digest"));
    match digest {
        Ok(digest) if digest == wanted.to_string() => Ok(()),
        Ok(digest) => not(format!("the manifest's `subject` is {digest}, not {wanted}")),
        Err(error) => not(format!("the manifest's `subject` cannot be read: {}", chain(&error))),
    }
}

/// What a layer is; `None` if it is something else.
fn piece(layer: &Json, at: &str, by: AttachedBy, is_only: bool) -> Result<Option<Piece>, Denial> {
    let bad = |error: &dyn std::error::Error| Denial::new(Reason::BadJson, format!("the manifest cannot be read: {}", chain(error)));
    let object = layer.object(at, &["mediaType", "digest", "size", "annotations"]).map_err(|error| bad(&error))?;
    let kind = match object.string("mediaType").map_err(|error| bad(&error))?.unwrap_or_default() {
        SIGNATURE => layer_kind(LayerKind::Signature, &object).map_err(|error| bad(&error))?,
        ATTESTATION => layer_kind(LayerKind::Attestation, &object).map_err(|error| bad(&error))?,
        // Where Cosign's older format is, a bundle would have no `subject` around it.
        _ if by != AttachedBy::Subject => return Ok(None),
        bundle if bundle.starts_with(BUNDLE) => PieceKind::Bundle,
        _ if is_only => PieceKind::Unnamed,
        _ => return Ok(None),
    };
    let descriptor = oci::descriptor(layer, at).map_err(|error| bad(&error))?;
    // What is something else may be as large as it likes.
    let is_other = kind == PieceKind::Unnamed && descriptor.size > limits::BUNDLE_BYTES;
    Ok((!is_other).then_some(Piece { descriptor, kind }))
}

fn layer_kind(kind: LayerKind, object: &Object<'_>) -> Result<PieceKind, JsonError> {
    let annotations = object.strings("annotations")?;
    Ok(PieceKind::Layer { kind, annotations: annotations.into_iter().map(|(key, text)| (key.to_owned(), text.to_owned())).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::verified;

    const KIT: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const BLOB: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn layer(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": BLOB, "size": 2 })
    }

    fn manifest(layers: &[Value], more: &Value) -> Value {
        let mut manifest = json!({ "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": layers, "subject": { "digest": KIT } });
        for (key, value) in more.as_object().expect("an object") {
            manifest[key] = value.clone();
        }
        manifest
    }

    fn read(text: &str, by: AttachedBy) -> Result<Vec<Result<Piece, Denial>>, Denial> {
        pieces(&verified("any/thing", Bytes::copy_from_slice(text.as_bytes())), by, &KIT.parse().expect("a digest"))
    }

    /// What came out of it, in short.
    fn shown(text: &str, by: AttachedBy) -> String {
        let short = |piece: &Result<Piece, Denial>| match piece {
            Ok(Piece { kind: PieceKind::Bundle, .. }) => "bundle".to_owned(),
            Ok(Piece { kind: PieceKind::Unnamed, .. }) => "unnamed".to_owned(),
            Ok(Piece { kind: PieceKind::Layer { kind, annotations }, .. }) => format!("{kind:?}{}", annotations.len()),
            Err(denial) => denial.reason.code().to_owned(),
        };
        match read(text, by) {
            Ok(pieces) => pieces.iter().map(short).collect::<Vec<_>>().join(" "),
            Err(denial) => denial.reason.code().to_owned(),
        }
    }

    #[test]
    fn what_is_looked_for_in_which_manifest() {
        let (bundle, odd) = (format!("{BUNDLE}.v0.3+json"), "text/spdx+json");
        let old = format!("{BUNDLE}+json;version=0.3");
        let none = json!({});
        let with_notes =
            json!({ "mediaType": SIGNATURE, "digest": BLOB, "size": 2, "annotations": { "a": "b" }, "urls": ["x"], "data": "e30=" });
        let experimental = json!({ "config": { "mediaType": "application/vnd.dev.cosign.artifact.sig.v1+json" }, "artifactType": 7 });
        let huge = json!({ "mediaType": odd, "digest": BLOB, "size": limits::BUNDLE_BYTES + 1 });
        let many = |count: usize| vec![layer(SIGNATURE); count];
        for (layers, more, by_subject, by_name) in [
            (vec![layer(&bundle)], &none, "bundle", ""),
            (vec![layer(&old)], &none, "bundle", ""),
            (vec![layer(odd)], &none, "unnamed", ""),
            (vec![layer(odd), layer(&bundle)], &none, "bundle", ""),
            (vec![layer(odd), layer(odd)], &none, "", ""),
            (vec![huge], &none, "", ""),
            (vec![], &none, "", ""),
            (vec![with_notes, layer(ATTESTATION), layer(odd)], &experimental, "Signature1 Attestation0", "Signature1 Attestation0"),
            (vec![layer(SIGNATURE)], &json!({ "subject": null }), "referrer-subject", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "subject": { "digest": BLOB } }), "referrer-subject", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "subject": { "digest": KIT.to_uppercase() } }), "referrer-subject", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "subject": KIT }), "referrer-subject", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "mediaType": DOCKER_MANIFEST }), "Signature0", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "mediaType": null }), "Signature0", "Signature0"),
            (vec![layer(SIGNATURE)], &json!({ "mediaType": IMAGE_INDEX }), "bad-json", "bad-json"),
            (vec![layer(SIGNATURE)], &json!({ "mediaType": "text/html" }), "bad-json", "bad-json"),
            (vec![layer(SIGNATURE)], &json!({ "manifests": [] }), "bad-json", "bad-json"),
            (vec![layer(SIGNATURE)], &json!({ "schemaVersion": 1 }), "bad-json", "bad-json"),
            (vec![], &json!({ "layers": null, "mediaType": "application/vnd.oci.artifact.manifest.v1+json" }), "", ""),
            (vec![], &json!({ "layers": null, "manifests": [], "mediaType": IMAGE_INDEX }), "", ""),
            (
                vec![json!({ "mediaType": SIGNATURE, "digest": "md5:00", "size": 2 }), layer(SIGNATURE)],
                &none,
                "bad-json Signature0",
                "bad-json Signature0",
            ),
            (vec![json!({ "mediaType": SIGNATURE, "digest": BLOB, "size": -2 })], &none, "bad-json", "bad-json"),
            (vec![json!({ "mediaType": SIGNATURE, "digest": BLOB, "size": 2, "annotations": { "a": 1 } })], &none, "bad-json", "bad-json"),
            (vec![json!(7)], &none, "bad-json", "bad-json"),
            (many(limits::LAYERS + 1), &none, "too-many", "too-many"),
        ] {
            let text = manifest(&layers, more).to_string();
            assert_eq!(shown(&text, AttachedBy::Subject), by_subject, "{}", &text[..text.len().min(300)]);
            assert_eq!(shown(&text, AttachedBy::SignatureName), by_name, "{}", &text[..text.len().min(300)]);
        }
        assert_eq!(
            read(&manifest(&many(limits::LAYERS), &none).to_string(), AttachedBy::Subject).expect("at the limit").len(),
            limits::LAYERS
        );
        for text in ["", "{", "[]", "7", r#"{"schemaVersion":2,"schemaVersion":2}"#, r#"{"schemaVersion":2,"Layers":[]}"#] {
            assert_eq!(shown(text, AttachedBy::Subject), "bad-json", "{text}");
        }
    }

    #[test]
    fn a_bundle_is_known_by_what_is_in_it() {
        for (content, expected) in [
            (r#"{"mediaType":"x","verificationMaterial":{}}"#, true),
            (r#"{"verificationMaterial":null}"#, false),
            (r#"{"spdxVersion":"SPDX-2.3"}"#, false),
            (r#"["verificationMaterial"]"#, false),
            ("<html>", false),
        ] {
            assert_eq!(is_bundle(content.as_bytes()), expected, "{content}");
        }
    }
}
