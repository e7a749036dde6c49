//! What the OCI specs define and kitfs needs: references, image manifests and lists of them.
//!
//! A [`Reference`] says where a kit is; its parts are well-formed, so they may be put into a URL or compared as they are. A
//! [`Manifest`] says what belongs to it and comes only from bytes that were checked. This module does not know what makes a manifest a
//! kit (that is [`crate::kit`]), nor how anything is fetched.

mod index;
mod manifest;
mod reference;

pub(crate) use index::descriptor;
pub use index::{Index, IndexError, Listed};
pub use manifest::{Layer, Manifest, ManifestError};
pub use reference::{LayoutName, Reference, ReferenceError, RegistryName, Transport};

/// The media type of an OCI image manifest.
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The media type of an OCI index, a list of manifests.
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Docker's name for the same.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The annotation that names a manifest in a list.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
