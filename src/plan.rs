//! The plan of a mount: everything that supervisor and workers need to know, decided once by `kitfs mount`.
//!
//! It travels in a sealed memfd, so that a worker that starts a month later, with the registry gone and the cache emptied, still knows what it serves.
//! Manifest and config come along as bytes and are checked against their digests at each start.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::filter::Selection;
use crate::limits::PLAN_BYTES;
use crate::log::Format;
use crate::metrics::Address;
use crate::source::SourceOptions;

/// The plan; see the module's text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountPlan {
    /// Names the mount in the run directory.
    pub id: String,
    /// Where it is mounted, absolute, symlinks resolved.
    pub mountpoint: PathBuf,
    /// The reference as the user gave it, in canonical form.
    pub reference: String,
    /// The source that `mount` shows: `REF@digest`.
    pub shown_source: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The run directory, which holds `<id>/`.
    pub run_dir: PathBuf,
    /// The cache.
    pub cache_dir: PathBuf,
    /// Who owns what is shown.
    pub uid: u32,
    /// The group of what is shown.
    pub gid: u32,
    /// Other users may enter.
    pub allow_other: bool,
    /// Every file is read through the worker.
    pub no_passthrough: bool,
    /// What is fetched before anybody asks.
    pub prefetch: Prefetch,
    /// What of the kit shows.
    #[serde(default)]
    pub selection: Selection,
    /// How the registry is spoken to.
    pub access: SourceOptions,
    /// The manifest.
    #[serde(with = "as_base64")]
    pub manifest: Vec<u8>,
    /// The config.
    #[serde(with = "as_base64")]
    pub config: Vec<u8>,
    /// The kits that it refers to, in the order in which they were followed.
    #[serde(default)]
    pub references: Vec<PlannedKit>,
    /// Kits that stand for datasets are followed.
    #[serde(default)]
    pub include_remote: bool,
    /// Datasets that live elsewhere, for `kitfs status`.
    #[serde(default)]
    pub remote: Vec<RemoteRecord>,
    /// How supervisor and workers log.
    #[serde(default)]
    pub log_format: Format,
    /// Where metrics are told.
    #[serde(default)]
    pub metrics: Option<Address>,
    /// Pretends that the kernel lacks something. No option sets it.
    #[serde(default)]
    pub lacking: Lacking,
}

/// A kit that another one refers to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedKit {
    /// Where it was found, and what it is pinned to.
    pub found: ReferenceRecord,
    /// The manifest.
    #[serde(with = "as_base64")]
    pub manifest: Vec<u8>,
    /// The config.
    #[serde(with = "as_base64")]
    pub config: Vec<u8>,
}

/// A kit that the mounted one refers to, directly or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// The reference in the Kitfile.
    pub reference: String,
    /// The digest that it is pinned to.
    pub digest: Digest,
    /// Who says that it is the one.
    pub pinned_by: String,
    /// Where it was found.
    pub source: String,
    /// What of it is shown.
    pub part: String,
    /// The folder that stands for its root.
    pub path: String,
}

/// A dataset that a kit only gives the address of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRecord {
    /// Where it would stand.
    pub path: String,
    /// Where it is.
    pub address: String,
}

/// What is fetched before anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// Small tar layers and code.
    Small,
    /// Every layer.
    All,
}

/// Abilities of newer kernels that are treated as missing, to test the fall-backs on a kernel that has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// `FUSE_HAS_RESEND` (before Linux 6.9).
    pub resend: bool,
    /// `FUSE_PASSTHROUGH` (before Linux 6.9).
    pub passthrough: bool,
}

impl MountPlan {
    /// The plan in a memfd that nobody can change any more.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let fd = memfd_create("kitfs-plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(fd);
        serde_json::to_writer(io::BufWriter::new(&mut file), self)?;
        file.flush()?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// The plan that was sealed into `fd`.
    pub fn read(fd: impl AsFd) -> io::Result<Self> {
        let mut file = File::from(fd.as_fd().try_clone_to_owned()?);
        file.rewind()?;
        let mut text = Vec::new();
        file.take(PLAN_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

mod as_base64 {
    use super::{BASE64, Engine};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
