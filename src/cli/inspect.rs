//! `kitfs inspect`: what a kit is, from manifest and config alone.

use std::fmt::Write as _;
use std::time::SystemTime;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::args::Inspect;
use super::error::CliError;
use super::report::{self, Exit, escaped};
use super::{Session, print};
use crate::kit::{Family, KitLayer, ModelSummary, Summary};
use crate::plan::{ReferenceRecord, RemoteRecord};
use crate::resolve::Pinned;
use crate::store::{LayerState, Store};

pub(super) fn run(arguments: &Inspect) -> Result<Exit, CliError> {
    let session = Session::open(&arguments.sources)?;
    let pinned = session.resolve(&arguments.reference, &arguments.wanted)?;
    let shown = Shown::new(&pinned, &session.store);
    print(if arguments.json { report::json(&shown)? } else { shown.text() }.as_bytes())
}

/// What is shown of a kit. Other programs read it: fields are added, not changed.
#[derive(Debug, Serialize)]
struct Shown {
    reference: String,
    digest: String,
    /// `modelkit`, `modelpack` or `docker-model`.
    artifact: &'static str,
    packed_by: Option<String>,
    created: Option<String>,
    package: Package,
    model: Option<Model>,
    layers: Vec<Layer>,
    references: Vec<ReferenceRecord>,
    remote: Vec<RemoteRecord>,
    unplaced_layers: Vec<Unplaced>,
    kitfile: Option<String>,
}

#[derive(Debug, Serialize)]
struct Package {
    name: String,
    version: String,
    description: String,
    license: String,
    authors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Model {
    name: String,
    framework: String,
    format: String,
    version: String,
    architecture: String,
    parameters: String,
    precision: String,
    quantization: String,
}

#[derive(Debug, Serialize)]
struct Layer {
    /// The kit that brings it.
    kit: String,
    digest: String,
    media_type: String,
    kind: &'static str,
    name: Option<String>,
    path: String,
    size: u64,
    cached: bool,
}

#[derive(Debug, Serialize)]
struct Unplaced {
    digest: String,
    media_type: String,
    size: u64,
}

impl Shown {
    fn new(pinned: &Pinned, store: &Store) -> Self {
        let kit = pinned.kit();
        let Summary { name, version, description, license, authors, model } = kit.summary.clone();
        Self {
            reference: pinned.root().reference.to_string(),
            digest: kit.manifest.digest.to_string(),
            artifact: match kit.family {
                Family::ModelKit => "modelkit",
                Family::ModelPack => "modelpack",
                Family::DockerModel => "docker-model",
            },
            packed_by: kit.packed_by.clone(),
            created: kit.created.and_then(rfc3339),
            package: Package { name, version, description, license, authors },
            model: model.map(Model::new),
            layers: pinned.lineage.layers.iter().enumerate().map(|(position, layer)| Layer::new(pinned, position, layer, store)).collect(),
            references: ReferenceRecord::all(pinned),
            remote: RemoteRecord::all(pinned),
            unplaced_layers: kit
                .unplaced
                .iter()
                .map(|layer| Unplaced { digest: layer.digest.to_string(), media_type: layer.media_type.clone(), size: layer.size })
                .collect(),
            kitfile: pinned.lineage.kitfile.as_ref().map(|text| String::from_utf8_lossy(text).into_owned()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            if !value.is_empty() {
                // Writing into a String cannot fail.
                _ = writeln!(text, "{key:<12} {}", escaped(value));
            }
        };
        line("reference", &self.reference);
        line("digest", &self.digest);
        line("artifact", self.artifact);
        line("packed by", &self.packed_by.as_ref().map(|version| format!("kit {version}")).unwrap_or_default());
        line("created", self.created.as_deref().unwrap_or_default());
        let Package { name, version, description, license, authors } = &self.package;
        line("package", &words(&[name, version]));
        line("description", description);
        line("license", license);
        line("authors", &authors.join(", "));
        if let Some(Model { name, framework, format, version, architecture, parameters, precision, quantization }) = &self.model {
            line("model", &words(&[name, version]));
            line("framework", framework);
            line("format", format);
            line("architecture", architecture);
            line("parameters", parameters);
            line("weights", &words(&[precision, quantization]));
        }
        let total: u64 = self.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        line("layers", &format!("{}, {}", self.layers.len(), BinaryBytes(total)));
        for Layer { digest, media_type, kind, name, path, size, cached, .. } in &self.layers {
            let cached = if *cached { "cached" } else { "not cached" };
            let name = name.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default();
            _ = writeln!(text, "\n  {digest}");
            _ = writeln!(text, "    {kind}{} at {}, {}, {cached}", escaped(&name), escaped(path), BinaryBytes(*size));
            _ = writeln!(text, "    {}", escaped(media_type));
        }
        for ReferenceRecord { reference, digest, source, part, path, .. } in &self.references {
            _ = writeln!(text, "\n  {} at {}, from another kit:", escaped(part), escaped(path));
            _ = writeln!(text, "    {} ({})", escaped(reference), escaped(source));
            _ = writeln!(text, "    {digest}");
        }
        for RemoteRecord { path, address } in &self.remote {
            _ = writeln!(text, "\n  not part of the kit: the dataset at {}, which lives at {}", escaped(path), escaped(address));
        }
        for Unplaced { digest, media_type, size } in &self.unplaced_layers {
            _ = writeln!(text, "\n  not mounted, since nothing says where it belongs:\n  {digest}");
            _ = writeln!(text, "    {}, {}", BinaryBytes(*size), escaped(media_type));
        }
        text
    }
}

impl Model {
    fn new(model: ModelSummary) -> Self {
        let ModelSummary { name, framework, format, version, architecture, parameters, precision, quantization } = model;
        Self { name, framework, format, version, architecture, parameters, precision, quantization }
    }
}

impl Layer {
    fn new(pinned: &Pinned, position: usize, layer: &KitLayer, store: &Store) -> Self {
        let descriptor = &layer.spec.descriptor;
        Self {
            kit: pinned.lineage.members()[pinned.lineage.owner(position)].digest().to_string(),
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.clone(),
            kind: layer.kind.name(),
            name: layer.name.clone(),
            path: layer.path.text(),
            size: descriptor.size,
            cached: store.state(&layer.spec.key()) == LayerState::Cached,
        }
    }
}

fn words(words: &[&String]) -> String {
    words.iter().filter(|word| !word.is_empty()).map(|word| word.as_str()).collect::<Vec<_>>().join(" ")
}

fn rfc3339(time: SystemTime) -> Option<String> {
    jiff::Timestamp::try_from(time).ok().map(|time| time.to_string())
}
