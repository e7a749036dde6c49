//! What the config of a ModelPack, or of a model of Docker Model Runner, says about it.

use std::time::SystemTime;

use bytes::Bytes;

use crate::digest::Digest;
use crate::json::{Json, JsonError, Object};
use crate::kit::config::{Config, ConfigError, text, texts};
use crate::kit::{Family, KitError, ModelSummary, Summary, summary, time};
use crate::oci::Manifest;
use crate::verify::Verified;

/// What a config says.
pub(super) struct About {
    package: Summary,
    model: ModelSummary,
    created: Option<SystemTime>,
    contents: Option<Vec<Digest>>,
    /// What the contents stand in.
    at: &'static str,
}

impl About {
    pub(super) fn parse(bytes: &Verified<Bytes>, family: Family) -> Result<Self, ConfigError> {
        let json = Json::parse(bytes)?;
        let (filesystem, at) =
            if family == Family::DockerModel { ("rootfs", "the config's `rootfs`") } else { ("modelfs", "the config's `modelfs`") };
        let document = json.object("", &["descriptor", "config", filesystem])?;
        let descriptor = inner(&document, "descriptor", DESCRIPTOR)?;
        let config = inner(&document, "config", CONFIG)?;
        // The first drafts of the spec spelled it as an image's config does.
        let contents = inner(&document, filesystem, &["type", "diffIds", "diff_ids"])?;
        let key = ["diffIds", "diff_ids"].into_iter().find(|key| contents.get(key).is_some());
        let digest = |(at, digest): (String, &Json)| {
            let text = digest.string(&at)?;
            text.parse().map_err(|source| ConfigError::Digest { at, source })
        };
        let contents = key.map(|key| contents.array(key)?.into_iter().map(digest).collect::<Result<Vec<_>, _>>()).transpose()?;
        let created = [text(&descriptor, "createdAt")?, text(&descriptor, "created")?];
        let parameters = [text(&config, "paramSize")?, text(&config, "parameters")?];
        Ok(Self {
            package: Summary {
                name: text(&descriptor, "name")?,
                version: text(&descriptor, "version")?,
                description: text(&descriptor, "description")?,
                license: texts(&descriptor, "licenses")?.join(", "),
                authors: texts(&descriptor, "authors")?,
                model: None,
            },
            model: ModelSummary {
                format: text(&config, "format")?,
                architecture: text(&config, "architecture")?,
                parameters: parameters.into_iter().find(|text| !text.is_empty()).unwrap_or_default(),
                precision: text(&config, "precision")?,
                quantization: text(&config, "quantization")?,
                ..ModelSummary::default()
            },
            created: created.iter().find_map(|text| time(text)),
            contents,
            at,
        })
    }

    /// The digest of each layer's uncompressed content, as far as the config lists them. One that lists none leaves it at the layers' own digests, as
    /// all tools do.
    pub(super) fn of_layers(&self, manifest: &Manifest) -> Result<Vec<Option<Digest>>, KitError> {
        let layers = manifest.layers.len();
        match &self.contents {
            None => Ok(vec![None; layers]),
            Some(listed) if listed.len() == layers => Ok(listed.iter().copied().map(Some).collect()),
            Some(listed) => Err(KitError::Counts { at: self.at, listed: listed.len(), layers }),
        }
    }

    /// What is said about the whole, and when it was packed. A Kitfile says more than the config, but for four things that only that knows.
    pub(super) fn summary(self, kitfile: Option<&Config>) -> (Summary, Option<SystemTime>) {
        let mut whole = kitfile.map_or(self.package, summary);
        if self.model != ModelSummary::default() {
            let model = whole.model.get_or_insert_default();
            if model.format.is_empty() {
                model.format = self.model.format;
            }
            model.architecture = self.model.architecture;
            model.parameters = self.model.parameters;
            model.precision = self.model.precision;
            model.quantization = self.model.quantization;
        }
        (whole, self.created)
    }
}

const DESCRIPTOR: &[&str] = &["createdAt", "created", "authors", "name", "version", "description", "licenses"];
const CONFIG: &[&str] = &["format", "architecture", "paramSize", "parameters", "precision", "quantization"];

fn inner<'a>(parent: &Object<'a>, key: &str, known: &[&'static str]) -> Result<Object<'a>, JsonError> {
    parent.get(key).unwrap_or(&Json::Null).object(key, known)
}
