//! Opens the source that a reference names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::offline::Offline;
use super::{Source, SourceError};
use crate::layout::Layout;
use crate::limits;
use crate::oci::{Reference, RegistryName, Transport};
use crate::registry::{Cut, Reached, Registry, RegistryOptions};

/// What a user may say about how sources are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOptions {
    /// http instead of https.
    pub plain_http: bool,
    /// A PEM file with certificates to trust beside the system's.
    pub ca_cert: Option<PathBuf>,
    /// No registry is asked for anything.
    pub offline: bool,
    /// Where kit keeps what is its own.
    pub kitops_home: Option<PathBuf>,
    /// Connections that fetch one blob, if not [`limits::CONNECTIONS`].
    #[serde(default)]
    pub connections: Option<u16>,
}

/// The source that `reference` names. Nothing is asked of it yet; logins come from this process's environment.
pub fn open(reference: &Reference, options: &SourceOptions) -> Result<Arc<dyn Source>, SourceError> {
    let digest = reference.digest();
    Ok(match reference.transport() {
        Transport::Registry(name) if options.offline => Arc::new(Offline::new(name)),
        Transport::Registry(name) => Arc::new(Registry::new(name, digest, &options.of_registry())?),
        Transport::Layout(name) => Arc::new(Layout::folder(name, digest)?),
        Transport::Archive(name) => Arc::new(Layout::archive(name, digest)),
        Transport::Kitops(name) => {
            let home = options.kitops_home.as_ref().ok_or_else(|| SourceError::NotFound {
                place: reference.to_string(),
                what: "kit's storage (neither KITOPS_HOME nor XDG_DATA_HOME nor HOME says where it is)".to_owned(),
            })?;
            Arc::new(Layout::kitops(name, digest, home)?)
        }
    })
}

/// Asks the registry of `name` whether it is one, as nobody in particular. What `offline` says is for the caller to follow.
pub async fn reach(name: &RegistryName, options: &SourceOptions) -> Result<Reached, SourceError> {
    Registry::new(name, None, &options.of_registry())?.reach().await
}

impl SourceOptions {
    fn of_registry(&self) -> RegistryOptions {
        let Self { plain_http, ca_cert, connections, .. } = self.clone();
        let default = RegistryOptions::default();
        let cut = Cut { connections: connections.map_or(default.cut.connections, usize::from), ..default.cut };
        RegistryOptions { plain_http, ca_cert, cut, ..default }
    }
}

/// When all the asking has to be done that comes before a mount shows and begins now.
pub fn before_mount() -> Instant {
    Instant::now() + Duration::from_secs(limits::BEFORE_MOUNT_S)
}

/// Does `work`, which asks `source` for manifest and config, until `until` at most.
pub async fn asking<T, E: From<SourceError>>(
    source: &dyn Source,
    until: Instant,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout_at(until.into(), work).await.unwrap_or_else(|_| {
        let (place, what) = (source.name().to_owned(), "manifest and config".to_owned());
        Err(SourceError::Late { place, what, seconds: limits::BEFORE_MOUNT_S, source: None }.into())
    })
}
