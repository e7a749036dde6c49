//! Why something is no kit that may be mounted.

use super::config::ConfigError;
use super::raw::RawError;
use super::{Family, LayerKind, modelpack};
use crate::digest::Digest;
use crate::limits;
use crate::oci::ManifestError;
use crate::path::{PathError, RelPath};
use crate::verify::Mismatch;

/// Why manifest and config make no kit that may be mounted.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// It is some other artifact.
    #[error("neither a ModelKit nor a ModelPack: its artifactType is `{artifact_type}` and its config is `{config}`")]
    NotAKit {
        /// What the manifest calls itself, or a dash.
        artifact_type: String,
        /// The media type of the config.
        config: String,
    },
    /// It calls itself a ModelKit, and its config is something else.
    #[error("its config `{config}` has nothing that the Kitfile of a ModelKit has")]
    NoKitfile {
        /// The media type of the config.
        config: String,
    },
    /// It calls itself two things, so that two readers would read it by two sets of rules.
    #[error("its artifactType `{artifact_type}` says that it is a {0}, its config `{config}` that it is a {1}", families[0], families[1])]
    TwoFamilies {
        /// What the manifest calls itself.
        artifact_type: String,
        /// The media type of the config.
        config: String,
        /// What the two mean.
        families: [Family; 2],
    },
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The config is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config is larger than any may be.
    #[error("the config has {0} bytes, {limit} are allowed", limit = limits::CONFIG_BYTES)]
    ConfigTooLarge(u64),
    /// The config that was given is not the manifest's.
    #[error("the config is not the one that the manifest names")]
    OtherConfig(#[source] Box<Mismatch>),
    /// An entry of the config has no layer.
    #[error(
        "config and manifest disagree: the config's `{at}` is the layer {digest}, and the manifest has no (further) {kind} layer of that digest"
    )]
    NoSuchLayer {
        /// Which entry.
        at: String,
        /// The digest that it gives.
        digest: Digest,
        /// What kind of layer it would be.
        kind: LayerKind,
    },
    /// The Kitfile that the manifest of a ModelPack carries cannot be used.
    #[error("the Kitfile in the manifest's annotation `{}` cannot be used", modelpack::KITFILE_ANNOTATION)]
    KitfileAnnotation(#[source] ConfigError),
    /// An entry of that Kitfile has no layer.
    #[error("the Kitfile in the manifest and its layers disagree: `{at}` is the {kind} at `{path}`, and there is no (further) such layer")]
    NoLayerAt {
        /// Which entry.
        at: String,
        /// The path that it gives.
        path: RelPath,
        /// What kind of layer it would be.
        kind: LayerKind,
    },
    /// Something lists the layers, and not as many as there are.
    #[error("config and manifest disagree: {at} lists {listed} layers, the manifest has {layers}")]
    Counts {
        /// What lists them.
        at: &'static str,
        /// How many it lists.
        listed: usize,
        /// How many there are.
        layers: usize,
    },
    /// What the layer contains is said twice, and not the same. Of a layer that is not compressed its own digest says it too.
    #[error("config and manifest disagree: the content of the layer {digest}, uncompressed, is {} by one word and {} by another", said[0], said[1])]
    TwoContents {
        /// The layer.
        digest: Digest,
        /// What the two say.
        said: Box<[Digest; 2]>,
    },
    /// Two annotations give a layer two places.
    #[error("{at} is `{path}` by one annotation and `{other}` by another")]
    TwoPaths {
        /// Which layer.
        at: String,
        /// What today's annotation says.
        path: RelPath,
        /// What the older annotation says.
        other: RelPath,
    },
    /// Some entries have digests, as kit writes them from 0.5 on, and this one has none, as before.
    #[error("the config's `{at}` has no digest although other entries have one")]
    Mixed {
        /// Which entry.
        at: String,
    },
    /// The config of a kit before 0.5 has more entries of a kind than there are layers, or fewer.
    #[error(
        "config and manifest disagree: the manifest has {layers} {kind} layers, the config has {entries} {kind} entries, and in a kit from before \
         0.5 only their order says which belong together"
    )]
    Numbers {
        /// Which kind.
        kind: LayerKind,
        /// How many layers of it there are.
        layers: usize,
        /// How many entries of it there are.
        entries: usize,
    },
    /// A layer that the config or an annotation places is of a kind that has no meaning in a kit.
    #[error("the layer {digest} is of the unknown media type `{media_type}`")]
    UnknownLayer {
        /// Which layer.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// One digest stands in several places with different facts.
    #[error("the layer {0} stands there several times with different sizes or diffIds")]
    TwoMeanings(Digest),
    /// A layer that is one bare file is refused.
    #[error("the raw layer {digest}")]
    Raw {
        /// Which layer.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: RawError,
    },
    /// Where a raw layer's file stands, another layer is declared, or below it.
    #[error("a raw layer is the file `{path}`, and the layer {other} is declared at `{at}`")]
    FileInTheWay {
        /// The raw layer's path.
        path: RelPath,
        /// The other layer.
        other: Digest,
        /// Its path.
        at: RelPath,
    },
    /// A path leads out of the kit, or cannot exist.
    #[error("the path of {at} is not allowed")]
    Path {
        /// Which entry or layer.
        at: String,
        /// What is wrong with it.
        #[source]
        source: PathError,
    },
    /// A layer would own the place of the generated file.
    #[error("{at} has the path `{path}`, which is the place of the generated Kitfile")]
    Reserved {
        /// Which entry or layer.
        at: String,
        /// Its path.
        path: RelPath,
    },
}
