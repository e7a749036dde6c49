//! ModelPack artifacts, whoever made them, and the models of Docker Model Runner.
//!
//! Here it is the annotations of a layer that say where it belongs; the config lists what the layers contain. A ModelPack that kit packed
//! carries its Kitfile in an annotation of the manifest: that gives names, is shown in the mount, and has to agree with the layers. Without
//! it there is no Kitfile, as there is none when kit or modctl unpack such an artifact.
//!
//! A layer's path is the first of these that there is:
//!
//! 1. the annotation `org.cncf.model.filepath`, or `org.cnai.model.filepath` as drafts of the spec had it; both have to agree;
//! 2. the Kitfile's entry with the layer's digest;
//! 3. for a bare file, the annotation `org.opencontainers.image.title`;
//! 4. for what Docker Model Runner packs without an annotation, a name that says what it is ([`invent`]).
//!
//! A layer without any stays out of the mount. The archives of Docker Model Runner are of the root, whatever their annotation says: that names
//! the archive, not what is in it.

mod about;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::config::{Config, ConfigError};
use super::media::{Coding, Format, Media};
use super::raw::FILE_PATH;
use super::{
    Contents, Family, KitError, KitLayer, LayerKind, Raw, RawError, check_files, clean, declared, model_reference, raw_entries,
    settle_meanings, spec_of,
};
use crate::digest::Digest;
use crate::json::Json;
use crate::kitfile;
use crate::layer::RawFile;
use crate::oci::{self, Manifest};
use crate::path::RelPath;
use crate::verify::Verified;
use about::About;

/// Where kit puts the Kitfile of a ModelPack: an annotation of the manifest.
pub(super) const KITFILE_ANNOTATION: &str = "ml.kitops.modelkit.kitfile";

/// Where a layer belongs: today's key, and that of the first drafts.
const PATH: [&str; 2] = [FILE_PATH, "org.cnai.model.filepath"];
/// How tools that know no models name a file.
const TITLE: &str = "org.opencontainers.image.title";

/// What is in a ModelPack, or in a model of Docker Model Runner.
pub(super) fn contents(manifest: &Manifest, family: Family, config: &Verified<Bytes>) -> Result<Contents, KitError> {
    let about = About::parse(config, family)?;
    let diff_ids = about.of_layers(manifest)?;
    let kitfile = kitfile(manifest)?;
    let mut pack = Pack { family, has_kitfile: kitfile.is_some(), entries: entries(kitfile.as_ref())? };
    let (listed, layers) = (pack.entries.len(), manifest.layers.len());
    if listed > layers {
        return Err(KitError::Counts { at: "the Kitfile in the manifest", listed, layers });
    }
    let mut found =
        manifest.layers.iter().enumerate().map(|(position, layer)| pack.find(position, layer)).collect::<Result<Vec<_>, _>>()?;
    if let Some(Entry { at, kind, path, .. }) = pack.entries.into_iter().next() {
        return Err(KitError::NoLayerAt { at, path, kind });
    }
    invent(&mut found);
    let (mut layers, mut unplaced) = (Vec::new(), Vec::new());
    for ((layer, found), diff_id) in manifest.layers.iter().zip(found).zip(diff_ids) {
        match found {
            Some(Found { media, kind, path: Some(path), spelled, name, diff_id: other, .. }) => {
                let refused = |source| KitError::Raw { digest: layer.descriptor.digest, source };
                let (spec, file) = spec_of(layer, media, content(layer, media, diff_id, other)?).map_err(refused)?;
                if file.is_some() && path.is_root() {
                    return Err(refused(RawError::Root));
                }
                // modctl writes a mode of 0 where it knows none.
                let file = file.map(|file| if file.mode == 0 { RawFile { mode: RawFile::MODE, ..file } } else { file });
                let spelled = spelled.unwrap_or_else(|| String::from_utf8_lossy(path.as_bytes()).into_owned());
                layers.push(KitLayer { spec, kind, path, prefix: RelPath::root(), name, spelled, file });
            }
            _ => unplaced.push(layer.descriptor.clone()),
        }
    }
    settle_meanings(&mut layers)?;
    check_files(&layers)?;
    let (summary, created) = about.summary(kitfile.as_ref());
    Ok(Contents {
        layers,
        unplaced,
        kitfile: kitfile.as_ref().map(kitfile::render),
        summary,
        model_reference: kitfile.as_ref().and_then(model_reference),
        remote: kitfile.as_ref().map(super::remote).transpose()?.unwrap_or_default(),
        created,
    })
}

/// The Kitfile that the manifest carries, if it does.
fn kitfile(manifest: &Manifest) -> Result<Option<Config>, KitError> {
    let text = manifest.annotations.get(KITFILE_ANNOTATION).filter(|text| !text.is_empty());
    let parse = |text: &String| Config::from_json(&Json::parse(text.as_bytes()).map_err(ConfigError::from)?);
    text.map(parse).transpose().map_err(KitError::KitfileAnnotation)
}

/// An entry of the Kitfile that has a layer.
struct Entry {
    at: String,
    kind: LayerKind,
    path: RelPath,
    /// The path as the Kitfile spells it.
    spelled: String,
    name: Option<String>,
    digest: Option<Digest>,
    diff_id: Option<Digest>,
}

fn entries(kitfile: Option<&Config>) -> Result<Vec<Entry>, KitError> {
    let Some(kitfile) = kitfile else { return Ok(Vec::new()) };
    let with_layer = raw_entries(kitfile).into_iter().filter(|entry| !entry.bodiless || entry.content.digest.is_some());
    with_layer
        .map(|Raw { at, kind, path, name, content, .. }| {
            let spelled = path.to_owned();
            let path = declared(&format!("the Kitfile's `{at}`"), path)?;
            let name = Some(name).filter(|name| !name.is_empty()).map(str::to_owned);
            Ok(Entry { at, kind, path, spelled, name, digest: content.digest, diff_id: content.diff_id })
        })
        .collect()
}

struct Pack {
    family: Family,
    has_kitfile: bool,
    /// Entries of the Kitfile that no layer was found for yet.
    entries: Vec<Entry>,
}

/// What is known of a layer that has a meaning.
struct Found {
    media: Media,
    kind: LayerKind,
    path: Option<RelPath>,
    /// The path as the Kitfile spells it, if it does.
    spelled: Option<String>,
    name: Option<String>,
    diff_id: Option<Digest>,
    /// What it is called if nothing else gives it a name.
    usual: Option<Usual>,
}

impl Pack {
    /// What a layer is and where it belongs; `None` if its media type says nothing and nothing places it.
    fn find(&mut self, position: usize, layer: &oci::Layer) -> Result<Option<Found>, KitError> {
        let oci::Layer { descriptor, annotations } = layer;
        let at = format!("the manifest's `layers[{position}]`");
        let annotated = self.annotated(&at, annotations)?;
        let Some(media) = Media::of(self.family, &descriptor.media_type) else {
            if annotated.is_some() || self.entries.iter().any(|entry| entry.digest == Some(descriptor.digest)) {
                return Err(KitError::UnknownLayer { digest: descriptor.digest, media_type: descriptor.media_type.clone() });
            }
            return Ok(None);
        };
        let kind = kind(media, annotations);
        let of_docker = descriptor.media_type.starts_with("application/vnd.docker.");
        let annotated = if of_docker && media.format == Format::Tar { Some(RelPath::root()) } else { annotated };
        let entry = self.take(kind, descriptor.digest, annotated.as_ref());
        let (listed, spelled, name, diff_id) = match entry {
            Some(Entry { path, spelled, name, diff_id, .. }) => (Some(path), Some(spelled), name, diff_id),
            None => (None, None, None, None),
        };
        let title = || match annotations.get(TITLE).filter(|title| media.format == Format::Raw && !title.is_empty()) {
            Some(title) => self.path(&at, title).map(Some),
            None => Ok(None),
        };
        let path = match annotated.or(listed) {
            Some(path) => Some(path),
            None => title()?,
        };
        Ok(Some(Found { media, kind, path, spelled, name, diff_id, usual: Usual::of(&descriptor.media_type) }))
    }

    fn path(&self, at: &str, path: &str) -> Result<RelPath, KitError> {
        // Where no Kitfile is generated, a file of that name is like any other.
        if self.has_kitfile { declared(at, path) } else { clean(at, path) }
    }

    /// Where annotations place a layer.
    fn annotated(&self, at: &str, annotations: &BTreeMap<String, String>) -> Result<Option<RelPath>, KitError> {
        let path = |key: &str| match annotations.get(key).filter(|path| !path.is_empty()) {
            Some(path) => self.path(at, path).map(Some),
            None => Ok(None),
        };
        match (path(PATH[0])?, path(PATH[1])?) {
            (Some(path), Some(other)) if path != other => Err(KitError::TwoPaths { at: at.to_owned(), path, other }),
            (path, other) => Ok(path.or(other)),
        }
    }

    /// The Kitfile's entry of a layer, which no other layer can have any more.
    fn take(&mut self, kind: LayerKind, digest: Digest, path: Option<&RelPath>) -> Option<Entry> {
        let same = |entry: &Entry| {
            section(entry.kind) == section(kind)
                && match path {
                    Some(path) => entry.path == *path && entry.digest.is_none_or(|listed| listed == digest),
                    None => entry.digest == Some(digest),
                }
        };
        let position = self.entries.iter().position(same)?;
        Some(self.entries.remove(position))
    }
}

/// What a layer is for.
fn kind(media: Media, annotations: &BTreeMap<String, String>) -> LayerKind {
    let says = |key: &str, value: &str| annotations.get(key).is_some_and(|said| said == value);
    match media.kind {
        LayerKind::Code if says("ml.kitops.modelkit.layer-subtype", "prompt") => LayerKind::Prompt,
        // The one kind of layer that the first draft had, and what it said beside it.
        LayerKind::ModelPart if says("org.cnai.model.model", "true") => LayerKind::Model,
        LayerKind::ModelPart if says("org.cnai.model.config", "true") => LayerKind::ModelConfig,
        LayerKind::ModelPart if says("org.cnai.model.readme", "true") || says("org.cnai.model.license", "true") => LayerKind::Docs,
        kind => kind,
    }
}

/// A Kitfile has one model and parts of it, a ModelPack any number of weights; which of them an entry means, its path or digest says.
fn section(kind: LayerKind) -> LayerKind {
    match kind {
        kind if kind.is_of_model() => LayerKind::Model,
        LayerKind::Prompt => LayerKind::Code,
        kind => kind,
    }
}

/// The digest of a layer's uncompressed content, if anything says it. All that do have to agree.
fn content(layer: &oci::Layer, media: Media, config: Option<Digest>, kitfile: Option<Digest>) -> Result<Option<Digest>, KitError> {
    let digest = layer.descriptor.digest;
    // Digests of two algorithms cannot be compared; the store checks the content by each.
    let plain = (media.coding == Coding::None).then_some(digest);
    let said: Vec<Digest> = [config, kitfile, plain].into_iter().flatten().collect();
    let differs =
        |one: &Digest| said.iter().find(|other| other.algorithm() == one.algorithm() && *other != one).map(|other| (*one, *other));
    match said.iter().find_map(differs) {
        Some((one, other)) => Err(KitError::TwoContents { digest, said: Box::new([one, other]) }),
        None => Ok(config.or(kitfile)),
    }
}

/// How a file is called that only its media type tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Usual {
    stem: &'static str,
    extension: &'static str,
    /// Several are pieces of one, which readers find by their numbers: `model-00001-of-00002.gguf`.
    pieces: bool,
}

impl Usual {
    fn of(media_type: &str) -> Option<Self> {
        let usual = |stem, extension, pieces| Some(Self { stem, extension, pieces });
        match media_type {
            "application/vnd.cncf.model.weight.v1.gguf" | "application/vnd.docker.ai.gguf.v3" => usual("model", ".gguf", true),
            "application/vnd.cncf.model.weight.v1.safetensors" | "application/vnd.docker.ai.safetensors" => {
                usual("model", ".safetensors", true)
            }
            "application/vnd.docker.ai.dduf" => usual("model", ".dduf", true),
            "application/vnd.docker.ai.mmproj" | "application/vnd.docker.ai.gguf.v3.mmproj" => usual("mmproj", ".gguf", false),
            "application/vnd.docker.ai.gguf.v3.lora" => usual("adapter", ".gguf", false),
            "application/vnd.docker.ai.chat.template.jinja" => usual("chat_template", ".jinja", false),
            "application/vnd.docker.ai.license" => usual("LICENSE", "", false),
            _ => None,
        }
    }

    fn piece(self, number: usize, of: usize) -> String {
        format!("{}-{number:05}-of-{of:05}{}", self.stem, self.extension)
    }

    fn numbered(self, number: usize) -> String {
        match number {
            1 => format!("{}{}", self.stem, self.extension),
            number => format!("{}-{number}{}", self.stem, self.extension),
        }
    }
}

/// Gives those a name that nothing else gives one, in the manifest's order: `model.gguf`, `LICENSE`, `LICENSE-2`. Several pieces of one model are
/// numbered as the tools number them that read them. Names that other layers were given are left to them.
fn invent(found: &mut [Option<Found>]) {
    let mut taken: BTreeSet<RelPath> = found.iter().flatten().filter_map(|found| found.path.clone()).collect();
    let mut nameless: BTreeMap<Usual, Vec<&mut Found>> = BTreeMap::new();
    for found in found.iter_mut().flatten().filter(|found| found.path.is_none()) {
        if let Some(usual) = found.usual {
            nameless.entry(usual).or_default().push(found);
        }
    }
    for (usual, files) in nameless {
        let of = files.len();
        let mut names = (1..).map_while(|number| RelPath::parse(usual.numbered(number).as_bytes()).ok());
        for (position, found) in files.into_iter().enumerate() {
            found.path = if usual.pieces && of > 1 {
                RelPath::parse(usual.piece(position + 1, of).as_bytes()).ok()
            } else {
                names.find(|name| !taken.contains(name))
            };
            taken.extend(found.path.clone());
        }
    }
}

#[cfg(test)]
mod tests;
