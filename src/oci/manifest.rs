//! Image manifests, read strictly and only from checked bytes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST};
use crate::descriptor::Descriptor;
use crate::digest::DigestError;
use crate::json::{Json, JsonError, Object};
use crate::limits;
use crate::verify::Verified;

/// An OCI image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is: always the image manifest's media type, whether the document says so itself or not.
    pub media_type: String,
    /// What kind of artifact it says it is.
    pub artifact_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The layers in their order. A digest may stand there several times.
    pub layers: Vec<Layer>,
    /// The manifest's own annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A layer as a manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// What the manifest notes about it.
    pub annotations: BTreeMap<String, String>,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than any manifest may be.
    #[error("the manifest has {0} bytes, {limit} are allowed", limit = limits::MANIFEST_BYTES)]
    TooLarge(u64),
    /// It is no JSON of the shape that the spec gives.
    #[error("the manifest is malformed")]
    Malformed(#[from] JsonError),
    /// It is a list of manifests.
    #[error("this is an OCI index, a list of manifests")]
    Index,
    /// It has another media type.
    #[error("the manifest's media type is `{0}`, expected `{IMAGE_MANIFEST}`")]
    MediaType(String),
    /// It follows another version of the schema.
    #[error("the manifest's schemaVersion is {0}, expected 2")]
    SchemaVersion(u64),
    /// A digest in it cannot be used.
    #[error("the manifest's `{at}`")]
    Digest {
        /// Where the digest stands.
        at: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// It lists too many layers.
    #[error("the manifest lists {0} layers, {limit} are allowed", limit = limits::LAYERS)]
    Layers(usize),
    /// Its layers are larger than any kit may be.
    #[error("the manifest's layers have {0} bytes together, {limit} are allowed", limit = limits::KIT_BYTES)]
    LayerBytes(u64),
    /// It says that content is to be had, or taken, from outside its repository.
    #[error("the manifest's `{at}` is not allowed: content comes only from the manifest's own repository")]
    Elsewhere {
        /// Where it says so.
        at: String,
    },
    /// It has what a manifest and what an index has, so that two readers would see two things.
    #[error("the manifest has `manifests` as an index has, and `{0}` as an image manifest has")]
    Ambiguous(&'static str),
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(bytes: &Verified<Bytes>) -> Result<Self, ManifestError> {
        let size = bytes.descriptor().size;
        if size > limits::MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(size));
        }
        // A registry names the type in a header as well, and the two are what one reader or another goes by.
        let check = |claimed: &str| match claimed {
            IMAGE_MANIFEST => Ok(()),
            IMAGE_INDEX | DOCKER_MANIFEST_LIST => Err(ManifestError::Index),
            other => Err(ManifestError::MediaType(other.to_owned())),
        };
        let announced = bytes.descriptor().media_type.as_str();
        if !announced.is_empty() {
            check(announced)?;
        }
        let json = Json::parse(bytes)?;
        let known = ["schemaVersion", "mediaType", "artifactType", "config", "layers", "annotations", "manifests"];
        let document = json.object("", &known)?;
        document.string("mediaType")?.map_or(Ok(()), check)?;
        if document.get("manifests").is_some() {
            let other = ["config", "layers"].into_iter().find(|key| document.get(key).is_some());
            return Err(other.map_or(ManifestError::Index, ManifestError::Ambiguous));
        }
        match document.required_size("schemaVersion")? {
            2 => {}
            other => return Err(ManifestError::SchemaVersion(other)),
        }
        let config = document.get("config").ok_or_else(|| document.missing("config"))?;
        let (config, _) = descriptor(config, "config")?;
        let layers = document.array("layers")?;
        if layers.len() > limits::LAYERS {
            return Err(ManifestError::Layers(layers.len()));
        }
        let layers = layers
            .into_iter()
            .map(|(at, layer)| {
                let (descriptor, annotations) = descriptor(layer, &at)?;
                Ok(Layer { descriptor, annotations })
            })
            .collect::<Result<Vec<_>, ManifestError>>()?;
        let bytes = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.descriptor.size));
        if bytes > limits::KIT_BYTES {
            return Err(ManifestError::LayerBytes(bytes));
        }
        Ok(Self {
            media_type: IMAGE_MANIFEST.to_owned(),
            artifact_type: document.string("artifactType")?.filter(|text| !text.is_empty()).map(str::to_owned),
            config,
            layers,
            annotations: annotations(&document)?,
        })
    }
}

fn descriptor(json: &Json, at: &str) -> Result<(Descriptor, BTreeMap<String, String>), ManifestError> {
    let object = json.object(at, &["mediaType", "digest", "size", "urls", "data", "annotations"])?;
    for elsewhere in ["urls", "data"] {
        match object.get(elsewhere) {
            None => {}
            Some(Json::Array(urls)) if urls.is_empty() => {}
            Some(_) => return Err(ManifestError::Elsewhere { at: object.place(elsewhere) }),
        }
    }
    let digest =
        object.required_string("digest")?.parse().map_err(|source| ManifestError::Digest { at: object.place("digest"), source })?;
    let media_type = object.required_string("mediaType")?.to_owned();
    let size = object.required_size("size")?;
    Ok((Descriptor { media_type, digest, size }, annotations(&object)?))
}

fn annotations(object: &Object<'_>) -> Result<BTreeMap<String, String>, JsonError> {
    Ok(object.strings("annotations")?.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::failure::chain;
    use crate::verify::Unverified;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse_as(media_type: &str, text: &str) -> Result<Manifest, ManifestError> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let descriptor =
            Descriptor { media_type: media_type.into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
        Manifest::parse(&Unverified::new(bytes).verify(&descriptor).expect("its own digest"))
    }

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        parse_as(IMAGE_MANIFEST, text)
    }

    fn config() -> String {
        format!(r#""config":{{"mediaType":"c","digest":"{DIGEST}","size":0}}"#)
    }

    fn with_layers(layers: &str) -> String {
        format!(r#"{{"schemaVersion":2,{},"layers":{layers}}}"#, config())
    }

    #[test]
    fn a_manifest_of_every_era_is_read() {
        let old = parse(&format!(r#"{{"schemaVersion":2,{},"layers":null}}"#, config())).expect("no layers");
        assert_eq!((old.layers.len(), old.artifact_type, old.media_type.as_str()), (0, None, IMAGE_MANIFEST));
        assert!(parse(&format!(r#"{{"schemaVersion":2,{}}}"#, config())).expect("no layers").layers.is_empty());
        assert!(parse(&with_layers("[]")).expect("no layers").layers.is_empty());
        let new = format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","artifactType":"a","unknown":[1],"subject":null,{},
            "layers":[{{"mediaType":"l","digest":"{DIGEST}","size":7,"urls":[],"data":null,"annotations":{{"k":"v"}}}}],
            "annotations":{{"x":"y"}}}}"#,
            config()
        );
        let new = parse(&new).expect("everything");
        assert_eq!(new.artifact_type.as_deref(), Some("a"));
        assert_eq!(new.layers[0].descriptor.size, 7);
        assert_eq!(new.layers[0].annotations["k"], "v");
        assert_eq!(new.annotations["x"], "y");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let layer = |fields: &str| with_layers(&format!(r#"[{{"mediaType":"l","digest":"{DIGEST}","size":1{fields}}}]"#));
        for (text, part) in [
            ("[]".to_owned(), "`the document` should be an object, it is an array"),
            ("{}".to_owned(), "`schemaVersion` is missing"),
            (format!(r#"{{"schemaVersion":1,{}}}"#, config()), "schemaVersion is 1, expected 2"),
            (format!(r#"{{"schemaVersion":"2",{}}}"#, config()), "`schemaVersion` should be"),
            (format!(r#"{{"schemaVersion":2,"schemaVersion":2,{}}}"#, config()), "`schemaVersion` stands there twice"),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{IMAGE_INDEX}",{}}}"#, config()), "OCI index"),
            (format!(r#"{{"schemaVersion":2,"mediaType":"application/json",{}}}"#, config()), "media type is `application/json`"),
            (format!(r#"{{"schemaVersion":2,"manifests":[],{}}}"#, config()), "`manifests` as an index has, and `config`"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), "OCI index"),
            (r#"{"schemaVersion":2}"#.to_owned(), "`config` is missing"),
            (r#"{"schemaVersion":2,"config":[]}"#.to_owned(), "`config` should be an object"),
            (with_layers("{}"), "`layers` should be an array, it is an object"),
            (with_layers("[7]"), "`layers[0]` should be an object, it is a number"),
            (with_layers("[null]"), "`layers[0].digest` is missing"),
            (layer(r#","size":1"#), "`size` stands there twice"),
            (layer(r#","annotations":{"a":1}"#), "`layers[0].annotations.a` should be a string, it is a number"),
            (layer(r#","urls":["https://x.example/"]"#), "`layers[0].urls` is not allowed"),
            (layer(r#","data":"AA==""#), "`layers[0].data` is not allowed"),
            (layer(r#","Digest":"""#), "`layers[0].Digest` is spelled like `digest`"),
            (with_layers(&format!(r#"[{{"mediaType":"l","digest":"{DIGEST}","size":-1}}]"#)), "it is negative"),
            (with_layers(&format!(r#"[{{"mediaType":"l","digest":"{DIGEST}","size":1.0}}]"#)), "it is another number"),
            (
                with_layers(r#"[{"mediaType":"l","digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}]"#),
                "algorithm `md5` is not supported",
            ),
            (with_layers(r#"[{"mediaType":"l","digest":"sha256:00","size":1}]"#), "`layers[0].digest`"),
            (with_layers(&format!(r#"[{{"digest":"{DIGEST}","size":1}}]"#)), "`layers[0].mediaType` is missing"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(chain(&error).contains(part), "{text}: {}", chain(&error));
        }
        let plain = with_layers("[]");
        assert!(matches!(parse_as(IMAGE_INDEX, &plain), Err(ManifestError::Index)));
        assert!(matches!(parse_as("text/html", &plain), Err(ManifestError::MediaType(_))));
    }

    #[test]
    fn layers_and_bytes_are_limited() {
        let layers = |count| {
            let layer = format!(r#"{{"mediaType":"l","digest":"{DIGEST}","size":1}}"#);
            with_layers(&format!("[{}]", vec![layer; count].join(",")))
        };
        assert_eq!(parse(&layers(limits::LAYERS)).expect("as many as are allowed").layers.len(), limits::LAYERS);
        assert!(matches!(parse(&layers(limits::LAYERS + 1)), Err(ManifestError::Layers(4097))));
        let sizes = |sizes: &[u64]| {
            let layer = |size: &u64| format!(r#"{{"mediaType":"l","digest":"{DIGEST}","size":{size}}}"#);
            with_layers(&format!("[{}]", sizes.iter().map(layer).collect::<Vec<_>>().join(",")))
        };
        assert!(parse(&sizes(&[limits::KIT_BYTES - 1, 1])).is_ok());
        assert!(matches!(parse(&sizes(&[limits::KIT_BYTES, 1])), Err(ManifestError::LayerBytes(_))));
        assert!(matches!(parse(&sizes(&[i64::MAX as u64; 3])), Err(ManifestError::LayerBytes(u64::MAX))));
        let padded = |length: u64| format!("{}{}", with_layers("[]"), " ".repeat(length as usize - with_layers("[]").len()));
        assert!(parse(&padded(limits::MANIFEST_BYTES)).is_ok());
        assert!(matches!(parse(&padded(limits::MANIFEST_BYTES + 1)), Err(ManifestError::TooLarge(_))));
    }
}
