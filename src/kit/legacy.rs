//! Kits packed before kit 0.5, whose config names no digests.
//!
//! There the n-th layer of a kind belongs to the n-th entry of that kind, and names in an archive are relative to the folder that the layer's
//! path is in, so that one and the same blob can stand in several places. Nothing says what a layer's uncompressed content is.

use std::collections::HashMap;

use super::media::{Format, Media};
use super::{KitError, KitLayer, LayerKind, Raw, declared, settle_meanings, spec_of};
use crate::descriptor::Descriptor;
use crate::oci::Manifest;
use crate::path::RelPath;

/// True if there are layers to be paired and no entry says which is its.
pub(super) fn is_legacy(entries: &[Raw<'_>]) -> bool {
    entries.iter().all(|entry| entry.content.digest.is_none()) && entries.iter().any(|entry| !entry.bodiless)
}

/// Pairs layers and entries by their order, and says which layers are none of a kit.
pub(super) fn place(manifest: &Manifest, entries: &[Raw<'_>]) -> Result<(Vec<KitLayer>, Vec<Descriptor>), KitError> {
    let kinds: Vec<Option<Media>> = manifest.layers.iter().map(|layer| Media::parse(&layer.descriptor.media_type)).collect();
    let mut open = HashMap::new();
    for kind in [LayerKind::Model, LayerKind::ModelPart, LayerKind::Code, LayerKind::Dataset, LayerKind::Docs, LayerKind::Prompt] {
        let layers = kinds.iter().flatten().filter(|media| media.kind == kind).count();
        open.insert(kind, with_layers(kind, layers, entries)?.into_iter());
    }
    let (mut layers, mut unplaced) = (Vec::new(), Vec::new());
    for (layer, media) in manifest.layers.iter().zip(kinds) {
        let descriptor = &layer.descriptor;
        let Some(media) = media else {
            unplaced.push(descriptor.clone());
            continue;
        };
        let Some(entry) = open.get_mut(&media.kind).and_then(Iterator::next) else {
            unreachable!("as many entries of a kind were taken as there are layers of it");
        };
        if media.format != Format::Tar {
            // Nothing of that age makes such a layer, and there is nothing that would name its file.
            return Err(KitError::UnknownLayer { digest: descriptor.digest, media_type: descriptor.media_type.clone() });
        }
        let path = declared(&format!("the config's `{}`", entry.at), entry.path)?;
        let (spec, file) = spec_of(layer, media, None).map_err(|source| KitError::Raw { digest: descriptor.digest, source })?;
        layers.push(KitLayer {
            spec,
            file,
            kind: media.kind,
            prefix: path.parent().unwrap_or_else(RelPath::root),
            path,
            name: Some(entry.name).filter(|name| !name.is_empty()).map(str::to_owned),
            spelled: entry.path.to_owned(),
        });
    }
    settle_meanings(&mut layers)?;
    Ok((layers, unplaced))
}

/// The entries of a kind that have a layer, if there are as many as layers.
fn with_layers<'a, 'b>(kind: LayerKind, layers: usize, entries: &'a [Raw<'b>]) -> Result<Vec<&'a Raw<'b>>, KitError> {
    let of_kind = || entries.iter().filter(move |entry| entry.kind == kind);
    let bodies: Vec<&Raw<'b>> = of_kind().filter(|entry| !entry.bodiless).collect();
    if bodies.len() == layers {
        return Ok(bodies);
    }
    // A model without a path may be all of the folder that was packed.
    let pathless: Vec<&Raw<'b>> = of_kind().filter(|entry| !entry.bodiless || entry.path.is_empty()).collect();
    if kind == LayerKind::Model && pathless.len() == layers {
        return Ok(pathless);
    }
    Err(KitError::Numbers { kind, layers, entries: bodies.len() })
}
