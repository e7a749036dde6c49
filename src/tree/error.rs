//! Why layers do not fit together.

use crate::digest::Digest;
use crate::index::IndexError;
use crate::node::{NodeId, SLOTS_MAX};

/// Why a plan has no tree, or a layer no place in it.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The plan has more layers than node ids can tell apart.
    #[error("{0} layers are more than the {SLOTS_MAX} that a mount can have")]
    TooManyLayers(usize),
    /// A declared path is the generated Kitfile's.
    #[error("layer {0} is declared at `Kitfile`, where the generated Kitfile stands")]
    OverKitfile(Digest),
    /// A layer holds something outside of its declared path, or inside of another's.
    #[error("layer {layer}: `{path}` is outside of what the layer owns (its declared path is `{declared}`)")]
    NotOwned {
        /// The layer.
        layer: Digest,
        /// The entry's path in the mount.
        path: String,
        /// The layer's declared path.
        declared: String,
    },
    /// A layer has a file where the plan has a folder.
    #[error("layer {layer}: `{path}` is a file, but other layers are declared below it")]
    FileOverFolder {
        /// The layer.
        layer: Digest,
        /// The entry's path in the mount.
        path: String,
    },
    /// A layer has a folder where the plan has a file.
    #[error("layer {layer}: `{path}` is a folder, but another layer is declared to be a file there")]
    FolderOverFile {
        /// The layer.
        layer: Digest,
        /// The entry's path in the mount.
        path: String,
    },
    /// Two layers bring the same name, and one of the two is a file.
    #[error("layers {} and {} both bring `{path}`", layers[0], layers[1])]
    Collision {
        /// The layers, in manifest order.
        layers: Box<[Digest; 2]>,
        /// The path in the mount.
        path: String,
    },
    /// An index could not be read.
    #[error("index of layer {layer}")]
    Index {
        /// The layer.
        layer: Digest,
        /// What was wrong.
        #[source]
        source: IndexError,
    },
    /// The layer's entries have other numbers than they had for an earlier worker of this mount, so that open files would mean others.
    #[error("layer {0}: its entries are numbered otherwise than when the mount began; mount it anew")]
    OtherTable(Digest),
    /// A node id that no worker of this mount can have given out.
    #[error("node {0:?} is not of this mount")]
    NoSuchNode(NodeId),
}

impl TreeError {
    /// The layer whose index could not be read, if that is all that is wrong.
    pub fn unreadable(&self) -> Option<&Digest> {
        match self {
            Self::Index { layer, source } if source.is_unreadable() => Some(layer),
            _ => None,
        }
    }
}
