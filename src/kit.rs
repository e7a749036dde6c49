//! From manifest and config to a plan: which layers a kit has, and where each belongs.
//!
//! [`Kit::plan`] is the whole of it. It decides what is a kit and of which [`Family`], pairs every entry of the config with a layer of the
//! manifest, and gives each layer the path that it owns. Nothing is fetched for it, and what two readers could place differently is refused.
//! What is *in* a layer is for [`crate::store`] and the tree.

pub(crate) mod config;
mod error;
mod legacy;
mod lineage;
mod media;
mod modelpack;
mod raw;
mod reference;
mod select;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::SystemTime;

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::json::Json;
use crate::kitfile;
use crate::layer::{Archive, Compression, LayerKey, LayerSpec, RawFile};
use crate::limits;
use crate::oci::{self, Manifest};
use crate::path::RelPath;
use crate::verify::{Mismatch, Verified};
use config::{Config, Content};
use media::{Coding, Format, Media};
use raw::Metadata;

pub use config::ConfigError;
pub use error::KitError;
pub use lineage::{Documents, Growing, Lineage, LineageError, Member, Part, Wanted};
pub use raw::RawError;
pub use reference::KitReference;

/// The name of the generated file at the root of every mount, which no layer may own.
pub const KITFILE: &str = "Kitfile";

/// A kit as it will be mounted.
#[derive(Debug, Clone)]
pub struct Kit {
    /// What sort of artifact it is.
    pub family: Family,
    /// The manifest; its digest is the kit's only name.
    pub manifest: Descriptor,
    /// The layers that are placed, in the manifest's order.
    pub layers: Vec<KitLayer>,
    /// The bytes of the generated [`KITFILE`]. Only a ModelPack can be without: what was not packed from a Kitfile has none.
    pub kitfile: Option<Bytes>,
    /// When the kit was packed, if the manifest says so.
    pub created: Option<SystemTime>,
    /// The version of kit that packed it, if the manifest says so.
    pub packed_by: Option<String>,
    /// What the config says about the kit as a whole.
    pub summary: Summary,
    /// The kit whose model is this one's. See [`Lineage`] for what becomes of it.
    pub model_reference: Option<KitReference>,
    /// Datasets that live elsewhere.
    pub remote: Vec<RemoteDataset>,
    /// Layers that neither the config nor an annotation places. They are not mounted.
    pub unplaced: Vec<Descriptor>,
}

/// The families of artifacts that are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `application/vnd.kitops.modelkit.*`: what `kit pack` makes.
    ModelKit,
    /// `application/vnd.cncf.model.*`, before it `application/vnd.cnai.model.*`: what modctl makes, and `kit pack --use-model-pack`.
    ModelPack,
    /// A config of `application/vnd.docker.ai.model.*`: what Docker Model Runner makes.
    DockerModel,
}

/// A layer and its place.
#[derive(Debug, Clone)]
pub struct KitLayer {
    /// What to fetch and how to check and cut it.
    pub spec: LayerSpec,
    /// What the kit uses it for.
    pub kind: LayerKind,
    /// The declared path: all that the layer may bring is this file, or is in this folder.
    pub path: RelPath,
    /// What to put before each name in the archive. The root for kits from 0.5 on.
    pub prefix: RelPath,
    /// The name that the Kitfile gives it.
    pub name: Option<String>,
    /// The path as it is spelled there, or in the annotation that places the layer.
    pub spelled: String,
    /// For a raw layer, and only for one: what the manifest says of its file, which stands at `path`.
    pub file: Option<RawFile>,
}

/// What a kit uses a layer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The model itself.
    Model,
    /// A further part of the model.
    ModelPart,
    /// What a model needs beside its weights, a tokenizer or a configuration. Kits have such files as [`LayerKind::ModelPart`]s.
    ModelConfig,
    /// Code.
    Code,
    /// A dataset.
    Dataset,
    /// Documents.
    Docs,
    /// A prompt: a layer of code with a subtype.
    Prompt,
    /// A bundle of an MCP server, always a raw layer.
    McpServer,
}

/// What a config says about a kit as a whole. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The name of the package.
    pub name: String,
    /// The version of the package.
    pub version: String,
    /// What it is.
    pub description: String,
    /// Its license, or several with commas between them.
    pub license: String,
    /// Who made it.
    pub authors: Vec<String>,
    /// The model, if anything is said of it.
    pub model: Option<ModelSummary>,
}

/// What a config says about its model. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelSummary {
    /// Its name.
    pub name: String,
    /// The framework that it is for.
    pub framework: String,
    /// The format of its files.
    pub format: String,
    /// Its version.
    pub version: String,
    /// Its architecture, which only a ModelPack tells.
    pub architecture: String,
    /// How many parameters it has, as in `8b`. Only a ModelPack tells it.
    pub parameters: String,
    /// The precision of its weights, which only a ModelPack tells.
    pub precision: String,
    /// How it is quantized, which only a ModelPack tells.
    pub quantization: String,
}

/// A dataset that a config only gives an address of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDataset {
    /// Where it would stand in the mount.
    pub path: RelPath,
    /// Where it is.
    pub address: String,
    /// The same, if it is another kit.
    pub reference: Option<KitReference>,
}

impl Kit {
    /// Makes the plan of a kit.
    pub fn plan(manifest: &Verified<Bytes>, config: &Verified<Bytes>) -> Result<Self, KitError> {
        let document = Manifest::parse(manifest)?;
        let family = recognise(&document)?;
        check_config(&document, config.descriptor())?;
        let contents = match family {
            Family::ModelKit => model_kit(&document, config)?,
            Family::ModelPack | Family::DockerModel => modelpack::contents(&document, family, config)?,
        };
        let Contents { layers, unplaced, kitfile, summary, model_reference, remote, created } = contents;
        let annotation = |key: &str| document.annotations.get(key).filter(|text| !text.is_empty());
        Ok(Self {
            family,
            manifest: manifest.descriptor().clone(),
            layers,
            kitfile,
            created: annotation("org.opencontainers.image.created").and_then(|text| time(text)).or(created),
            packed_by: annotation("ml.kitops.modelkit.cli-version").cloned(),
            summary,
            model_reference,
            remote,
            unplaced,
        })
    }

    /// The config of the kit that `manifest` is the manifest of, if it is one: what must be fetched before there can be a plan.
    pub fn config(manifest: &Verified<Bytes>) -> Result<Descriptor, KitError> {
        let document = Manifest::parse(manifest)?;
        recognise(&document)?;
        if document.config.size > limits::CONFIG_BYTES {
            return Err(KitError::ConfigTooLarge(document.config.size));
        }
        Ok(document.config)
    }
}

impl LayerKind {
    /// True for everything that a filter for the model, or a reference to it, means.
    pub fn is_of_model(self) -> bool {
        matches!(self, Self::Model | Self::ModelPart | Self::ModelConfig)
    }

    /// The kind as it is named in a filter and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::ModelPart => "modelpart",
            Self::ModelConfig => "modelconfig",
            Self::Code => "code",
            Self::Dataset => "dataset",
            Self::Docs => "docs",
            Self::Prompt => "prompt",
            Self::McpServer => "mcpserver",
        }
    }
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ModelKit => "ModelKit",
            Self::ModelPack => "ModelPack",
            Self::DockerModel => "model of Docker Model Runner",
        })
    }
}

impl Family {
    /// What an `artifactType` or the media type of a config says.
    fn of(claim: &str) -> Option<Self> {
        match claim {
            "application/vnd.kitops.modelkit.manifest.v1+json" | "application/vnd.kitops.modelkit.config.v1+json" => Some(Self::ModelKit),
            "application/vnd.cncf.model.manifest.v1+json" | "application/vnd.cncf.model.config.v1+json" => Some(Self::ModelPack),
            "application/vnd.cnai.model.manifest.v1+json" | "application/vnd.cnai.model.config.v1+json" => Some(Self::ModelPack),
            "application/vnd.docker.ai.model.config.v0.1+json" | "application/vnd.docker.ai.model.config.v0.2+json" => {
                Some(Self::DockerModel)
            }
            _ => None,
        }
    }
}

/// Tells the families apart. As for kit, one of the two claims is enough, but they may not contradict each other.
fn recognise(manifest: &Manifest) -> Result<Family, KitError> {
    let (artifact_type, config) = (manifest.artifact_type.as_deref(), manifest.config.media_type.as_str());
    match (artifact_type.and_then(Family::of), Family::of(config)) {
        (Some(one), Some(other)) if one != other => Err(KitError::TwoFamilies {
            artifact_type: artifact_type.unwrap_or_default().to_owned(),
            config: config.to_owned(),
            families: [one, other],
        }),
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => {
            let artifact_type = artifact_type.unwrap_or("-").to_owned();
            Err(KitError::NotAKit { artifact_type, config: config.to_owned() })
        }
    }
}

/// What a plan is made of, whatever the family.
struct Contents {
    layers: Vec<KitLayer>,
    unplaced: Vec<Descriptor>,
    kitfile: Option<Bytes>,
    summary: Summary,
    model_reference: Option<KitReference>,
    remote: Vec<RemoteDataset>,
    /// When the config says that it was packed; the manifest's word goes before it.
    created: Option<SystemTime>,
}

fn model_kit(manifest: &Manifest, config: &Verified<Bytes>) -> Result<Contents, KitError> {
    let media_type = &config.descriptor().media_type;
    let json = Json::parse(config).map_err(ConfigError::from)?;
    let config = Config::from_json(&json)?;
    // Members that nobody knows are left alone, so that the config of anything else is read as the Kitfile that says nothing.
    if config == Config::default() && matches!(json, Json::Object(members) if !members.is_empty()) {
        return Err(KitError::NoKitfile { config: media_type.clone() });
    }
    let raw = raw_entries(&config);
    let (layers, unplaced) = if legacy::is_legacy(&raw) { legacy::place(manifest, &raw)? } else { place(manifest, entries(&config)?)? };
    let kitfile = Some(kitfile::render(&config));
    let (summary, model_reference, remote) = (summary(&config), model_reference(&config), remote(&config)?);
    Ok(Contents { layers, unplaced, kitfile, summary, model_reference, remote, created: None })
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().and_then(|time| SystemTime::try_from(time).ok())
}

fn check_config(manifest: &Manifest, given: &Descriptor) -> Result<(), KitError> {
    if given.size > limits::CONFIG_BYTES {
        return Err(KitError::ConfigTooLarge(given.size));
    }
    if given.digest != manifest.config.digest {
        return Err(KitError::OtherConfig(Box::new(Mismatch::Digest { expected: manifest.config.digest, got: given.digest })));
    }
    Ok(())
}

/// An entry of the config that has a layer.
struct Entry {
    at: String,
    kind: LayerKind,
    path: RelPath,
    name: Option<String>,
    spelled: String,
    digest: Digest,
    diff_id: Option<Digest>,
}

/// An entry of the config as it stands there.
struct Raw<'a> {
    at: String,
    kind: LayerKind,
    path: &'a str,
    name: &'a str,
    content: Content,
    /// Whether it may be without a layer although the others have one.
    bodiless: bool,
}

fn raw_entries(config: &Config) -> Vec<Raw<'_>> {
    let mut raw = Vec::new();
    let mut add = |at: String, kind, path, name, content, bodiless| raw.push(Raw { at, kind, path, name, content, bodiless });
    if let Some(model) = &config.model {
        let bodiless = model.path.is_empty() || model_reference(config).is_some();
        add("model".to_owned(), LayerKind::Model, model.path.as_str(), model.name.as_str(), model.content, bodiless);
        for (position, part) in model.parts.iter().enumerate() {
            add(format!("model.parts[{position}]"), LayerKind::ModelPart, &part.path, &part.name, part.content, false);
        }
    }
    for (position, code) in config.code.iter().enumerate() {
        add(format!("code[{position}]"), LayerKind::Code, &code.path, "", code.content, false);
    }
    for (position, set) in config.datasets.iter().enumerate() {
        let remote = !set.remote_path.is_empty();
        add(format!("datasets[{position}]"), LayerKind::Dataset, &set.path, &set.name, set.content, remote);
    }
    for (position, doc) in config.docs.iter().enumerate() {
        add(format!("docs[{position}]"), LayerKind::Docs, &doc.path, "", doc.content, false);
    }
    for (position, prompt) in config.prompts.iter().enumerate() {
        add(format!("prompts[{position}]"), LayerKind::Prompt, &prompt.path, &prompt.name, prompt.content, false);
    }
    for (position, server) in config.mcp_servers.iter().enumerate() {
        add(format!("mcpServers[{position}]"), LayerKind::McpServer, &server.path, &server.name, server.content, false);
    }
    raw
}

/// The entries that have a layer, in the config's order.
fn entries(config: &Config) -> Result<Vec<Entry>, KitError> {
    let raw = raw_entries(config);
    let bodies = || raw.iter().filter(|entry| !entry.bodiless || entry.content.digest.is_some());
    bodies()
        .map(|Raw { at, kind, path, name, content, .. }| {
            let digest = content.digest.ok_or_else(|| KitError::Mixed { at: at.clone() })?;
            let spelled = (*path).to_owned();
            let path = declared(&format!("the config's `{at}`"), path)?;
            let name = Some(*name).filter(|name| !name.is_empty()).map(str::to_owned);
            Ok(Entry { at: at.clone(), kind: *kind, path, name, spelled, digest, diff_id: content.diff_id })
        })
        .collect()
}

/// Pairs layers and entries. The same digest may stand on both sides several times; then the first is paired with the first, or with the one that has the
/// path that the manifest notes.
fn place(manifest: &Manifest, entries: Vec<Entry>) -> Result<(Vec<KitLayer>, Vec<Descriptor>), KitError> {
    let mut open: BTreeMap<(Digest, &'static str), VecDeque<Entry>> = BTreeMap::new();
    for entry in entries {
        open.entry((entry.digest, entry.kind.name())).or_default().push_back(entry);
    }
    let (mut layers, mut unplaced) = (Vec::new(), Vec::new());
    for (position, layer) in manifest.layers.iter().enumerate() {
        let oci::Layer { descriptor, annotations } = layer;
        let noted = annotations.get(raw::FILE_PATH);
        let Some(media) = Media::parse(&descriptor.media_type) else {
            let named = open.keys().any(|(digest, _)| *digest == descriptor.digest);
            if named || noted.is_some() {
                return Err(KitError::UnknownLayer { digest: descriptor.digest, media_type: descriptor.media_type.clone() });
            }
            unplaced.push(descriptor.clone());
            continue;
        };
        let kind = match annotations.get("ml.kitops.modelkit.layer-subtype").map(String::as_str) {
            Some("prompt") if media.kind == LayerKind::Code => LayerKind::Prompt,
            _ => media.kind,
        };
        let spelled = noted;
        let noted = noted.map(|path| declared(&format!("the manifest's `layers[{position}]`"), path));
        let entry = open.get_mut(&(descriptor.digest, kind.name())).and_then(|same| {
            let named = same.iter().position(|entry| matches!(&noted, Some(Ok(path)) if *path == entry.path));
            same.remove(named.unwrap_or(0))
        });
        let refused = |source| KitError::Raw { digest: descriptor.digest, source };
        let (path, name, spelled, diff_id) = match (entry, noted) {
            (Some(Entry { path: config, .. }), Some(Ok(annotation))) if media.format == Format::Raw && config != annotation => {
                return Err(refused(RawError::OtherPath { config, annotation }));
            }
            (Some(_), Some(Err(error))) if media.format == Format::Raw => return Err(error),
            (Some(_), None) if media.format == Format::Raw => return Err(refused(RawError::NoPath)),
            (Some(entry), _) => (entry.path, entry.name, entry.spelled, entry.diff_id),
            (None, Some(path)) => (path?, None, spelled.cloned().unwrap_or_default(), None),
            (None, None) => {
                unplaced.push(descriptor.clone());
                continue;
            }
        };
        let (spec, file) = spec_of(layer, media, diff_id).map_err(refused)?;
        if file.is_some() && path.is_root() {
            return Err(refused(RawError::Root));
        }
        layers.push(KitLayer { spec, kind, path, prefix: RelPath::root(), name, spelled, file });
    }
    if let Some(entry) = open.into_values().flatten().next() {
        return Err(KitError::NoSuchLayer { at: entry.at, digest: entry.digest, kind: entry.kind });
    }
    settle_meanings(&mut layers)?;
    check_files(&layers)?;
    Ok((layers, unplaced))
}

/// What is fetched for a layer, how it is read, and for a raw one what its file is.
fn spec_of(layer: &oci::Layer, media: Media, diff_id: Option<Digest>) -> Result<(LayerSpec, Option<RawFile>), RawError> {
    let oci::Layer { descriptor, annotations } = layer;
    let compression = match media.coding {
        Coding::None => Compression::None,
        Coding::Gzip => Compression::Gzip,
        Coding::Zstd => Compression::Zstd,
    };
    let (archive, file) = match media.format {
        Format::Tar => (Archive::Tar, None),
        Format::Raw => {
            let noted = [raw::FILE_METADATA, raw::DRAFT_FILE_METADATA].iter().find_map(|key| annotations.get(*key));
            let metadata = noted.map(|text| Metadata::parse(text)).transpose()?.unwrap_or_default();
            (Archive::Raw { size: metadata.size_of(descriptor, compression)? }, Some(metadata.file()))
        }
    };
    Ok((LayerSpec { descriptor: descriptor.clone(), diff_id, archive, compression }, file))
}

/// The store knows a layer by its blob and how that is read, so all that is said of one layer must agree. What is said in one place only
/// (of two equal files one may have metadata, and an older kit has no diffIds) holds in all of them, so that nothing is checked less.
fn settle_meanings(layers: &mut [KitLayer]) -> Result<(), KitError> {
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    let mut known: HashMap<LayerKey, (Archive, Option<Digest>)> = HashMap::new();
    for KitLayer { spec, .. } in layers.iter() {
        let Descriptor { digest, size, .. } = spec.descriptor;
        let (archive, diff_id) = known.entry(spec.key()).or_insert((spec.archive, spec.diff_id));
        let agreed = match (&*archive, spec.archive) {
            (Archive::Tar, Archive::Tar) => Some(Archive::Tar),
            (Archive::Raw { size: first }, Archive::Raw { size: second }) => either(*first, second).map(|size| Archive::Raw { size }),
            // The key tells them apart.
            _ => None,
        };
        match (agreed, either(*diff_id, spec.diff_id)) {
            (Some(agreed), Some(agreed_diff_id)) if *sizes.entry(digest).or_insert(size) == size => {
                (*archive, *diff_id) = (agreed, agreed_diff_id);
            }
            _ => return Err(KitError::TwoMeanings(digest)),
        }
    }
    for KitLayer { spec, .. } in layers {
        if let Some(&(archive, diff_id)) = known.get(&spec.key()) {
            (spec.archive, spec.diff_id) = (archive, diff_id);
        }
    }
    Ok(())
}

/// What two places say, of which one or both may be silent. `None` if they say different things.
fn either<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => Some(one.or(other)),
    }
}

/// A raw layer is a file, so nothing else may stand at its path or below it.
fn check_files(layers: &[KitLayer]) -> Result<(), KitError> {
    let mut sorted: Vec<&KitLayer> = layers.iter().collect();
    // In this order what is at or below a path follows it directly.
    sorted.sort_by(|one, other| one.path.cmp(&other.path));
    for pair in sorted.windows(2) {
        let [above, below] = [pair[0], pair[1]];
        if below.path.starts_with(&above.path) && (above.file.is_some() || (below.file.is_some() && above.path == below.path)) {
            let (file, other) = if above.file.is_some() { (above, below) } else { (below, above) };
            let (path, at) = (file.path.clone(), other.path.clone());
            return Err(KitError::FileInTheWay { path, other: other.spec.descriptor.digest, at });
        }
    }
    Ok(())
}

/// The path that a layer of a kit owns, which is not the place of the generated Kitfile.
fn declared(at: &str, path: &str) -> Result<RelPath, KitError> {
    let path = clean(at, path)?;
    if path.components().next() == Some(KITFILE.as_bytes()) {
        return Err(KitError::Reserved { at: at.to_owned(), path });
    }
    Ok(path)
}

/// A path as kit means it: cleaned, and the folder that was packed if it is empty.
fn clean(at: &str, path: &str) -> Result<RelPath, KitError> {
    let refuse = |source| KitError::Path { at: at.to_owned(), source };
    let mut clean: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            // One that nothing stands before leads out, which the parser below will say.
            ".." if clean.last().is_some_and(|last| *last != "..") => _ = clean.pop(),
            "" | "." => {}
            part => clean.push(part),
        }
    }
    let clean = clean.join("/");
    let clean = if path.starts_with('/') { format!("/{clean}") } else { clean };
    RelPath::parse(clean.as_bytes()).map_err(refuse)
}

/// The kit that a model without a layer of its own is to be had from.
fn model_reference(config: &Config) -> Option<KitReference> {
    let model = config.model.as_ref().filter(|model| model.content.digest.is_none())?;
    KitReference::parse(&model.path)
}

/// The layers that the listing of a directory depends on which other layers share: those at the root, and those whose path is above another
/// layer's. Positions in `layers`.
fn shared(layers: &[KitLayer]) -> Vec<usize> {
    // In this order what is below a path follows it directly.
    let mut paths: Vec<&RelPath> = layers.iter().map(|layer| &layer.path).collect();
    paths.sort();
    paths.dedup();
    let above: HashSet<&RelPath> = paths.windows(2).filter(|pair| pair[1].starts_with(pair[0])).map(|pair| pair[0]).collect();
    let shared = |layer: &KitLayer| layer.path.is_root() || above.contains(&layer.path);
    layers.iter().enumerate().filter(|(_, layer)| shared(layer)).map(|(position, _)| position).collect()
}

fn remote(config: &Config) -> Result<Vec<RemoteDataset>, KitError> {
    let sets = config.datasets.iter().enumerate().filter(|(_, set)| !set.remote_path.is_empty() && set.content.digest.is_none());
    sets.map(|(position, set)| {
        let path = declared(&format!("the config's `datasets[{position}]`"), &set.path)?;
        Ok(RemoteDataset { path, address: set.remote_path.clone(), reference: KitReference::parse(&set.remote_path) })
    })
    .collect()
}

fn summary(config: &Config) -> Summary {
    let package = &config.package;
    Summary {
        name: package.name.clone(),
        version: package.version.clone(),
        description: package.description.clone(),
        license: package.license.clone(),
        authors: package.authors.clone(),
        model: config.model.as_ref().map(|model| ModelSummary {
            name: model.name.clone(),
            framework: model.framework.clone(),
            format: model.format.clone(),
            version: model.version.clone(),
            ..ModelSummary::default()
        }),
    }
}

#[cfg(test)]
mod tests;
