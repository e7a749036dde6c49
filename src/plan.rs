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

use crate::admission::Admission;
use crate::digest::Digest;
use crate::filter::Selection;
use crate::gate::AdmittedKits;
use crate::kit::{KitLayer, LayerKind, Member};
use crate::layer::Archive;
use crate::limits::{PLAN_BYTES, PREFETCH_LAYER_BYTES, PREFETCH_TOTAL_BYTES};
use crate::log::Format;
use crate::metrics::Address;
use crate::resolve::{Found, Pinned};
use crate::source::SourceOptions;

/// The plan; see the module's text. It is made of kits that were admitted, and of nothing else.
///
/// ```compile_fail
/// # fn forge(plan: kitfs::plan::MountPlan) {
/// let forged = kitfs::plan::MountPlan { reference: "reg.example/other:v1".into(), ..plan };
/// # }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountPlan {
    /// What is not the kits'.
    #[serde(flatten)]
    pub mounting: Mounting,
    /// The reference as the user gave it, in canonical form.
    pub reference: String,
    /// The source that `mount` shows: `REF@digest`.
    pub shown_source: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest.
    #[serde(with = "as_base64")]
    pub manifest: Vec<u8>,
    /// The config.
    #[serde(with = "as_base64")]
    pub config: Vec<u8>,
    /// The kits that it refers to, in the order in which they were followed.
    #[serde(default)]
    pub references: Vec<PlannedKit>,
    /// Datasets that live elsewhere, for `kitfs status`.
    #[serde(default)]
    pub remote: Vec<RemoteRecord>,
    /// Why each of the kits was admitted, the root first.
    #[serde(default)]
    admissions: Vec<Admission>,
}

/// What of a plan is not the kits' but the mount's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mounting {
    /// Names the mount in the run directory.
    pub id: String,
    /// Where it is mounted, absolute, symlinks resolved.
    pub mountpoint: PathBuf,
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
    /// How many layers are fetched at once, if that was said.
    #[serde(default)]
    pub jobs: Option<u16>,
    /// What of the kit shows.
    #[serde(default)]
    pub selection: Selection,
    /// How the registry is spoken to.
    pub access: SourceOptions,
    /// Kits that stand for datasets are followed.
    #[serde(default)]
    pub include_remote: bool,
    /// Where what happens to the mount is recorded.
    #[serde(default)]
    pub audit: Option<AuditPlan>,
    /// How supervisor and workers log, if that was said.
    #[serde(default)]
    pub log_format: Option<Format>,
    /// Where metrics are told.
    #[serde(default)]
    pub metrics: Option<Address>,
    /// Pretends that the kernel lacks something. No option sets it.
    #[serde(default)]
    pub lacking: Lacking,
}

/// Where what happens to a mount is recorded, beside its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPlan {
    /// The file, absolute.
    pub path: PathBuf,
    /// The mount comes about although it cannot be recorded.
    pub best_effort: bool,
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

impl ReferenceRecord {
    /// The kits that a kit refers to.
    pub fn all(pinned: &Pinned) -> Vec<Self> {
        let members = pinned.found.iter().zip(pinned.lineage.members()).skip(1);
        let record = |(found, member): (&Found, &Member)| Self {
            reference: member.name.clone(),
            digest: member.digest(),
            pinned_by: found.pin.name().to_owned(),
            source: found.reference.to_string(),
            part: member.part().name().to_owned(),
            path: member.root().text(),
        };
        members.map(record).collect()
    }
}

impl RemoteRecord {
    /// The datasets that are not part of a kit.
    pub fn all(pinned: &Pinned) -> Vec<Self> {
        pinned.lineage.remote.iter().map(|set| Self { path: set.path.text(), address: set.address.clone() }).collect()
    }
}

fn documents(member: &Member) -> (Vec<u8>, Vec<u8>) {
    (member.documents.manifest.to_vec(), member.documents.config.to_vec())
}

/// What is fetched before anybody asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// Small tar layers and code.
    #[default]
    Small,
    /// Every layer.
    All,
}

impl Prefetch {
    /// The positions of the layers that it names, in manifest order.
    pub fn of(self, layers: &[KitLayer]) -> Vec<usize> {
        let mut room = PREFETCH_TOTAL_BYTES;
        let wanted = layers.iter().enumerate().filter(|(_, layer)| match self {
            Self::None => false,
            Self::All => true,
            Self::Small => {
                let size = layer.spec.descriptor.size;
                // A raw file is listed without being here, but for a tokenizer that will be read the list is not enough.
                let wanted = layer.spec.archive == Archive::Tar || layer.kind == LayerKind::ModelConfig;
                let small = (size <= PREFETCH_LAYER_BYTES && wanted) || layer.kind == LayerKind::Code;
                let takes = small && size <= room;
                room -= if takes { size } else { 0 };
                takes
            }
        });
        wanted.map(|(position, _)| position).collect()
    }
}

/// What was said of how a mount works, for `kitfs status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// See [`Mounting::selection`].
    pub selection: Selection,
    /// See [`Mounting::include_remote`].
    pub include_remote: bool,
    /// See [`Mounting::prefetch`].
    pub prefetch: Prefetch,
    /// See [`Mounting::jobs`].
    pub jobs: Option<u16>,
    /// See [`SourceOptions::connections`].
    pub connections: Option<u16>,
    /// See [`Mounting::allow_other`].
    pub allow_other: bool,
    /// Where metrics are told.
    pub metrics: Option<String>,
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
    /// The plan to mount `kits`, all of which were admitted.
    pub fn new(kits: &AdmittedKits, mounting: Mounting) -> Self {
        let pinned = kits.pinned();
        let (root, digest) = (pinned.root(), pinned.kit().manifest.digest);
        let members = pinned.lineage.members();
        let planned = |(found, member): (ReferenceRecord, &Member)| {
            let (manifest, config) = documents(member);
            PlannedKit { found, manifest, config }
        };
        let (manifest, config) = documents(&members[0]);
        Self {
            mounting,
            reference: root.reference.to_string(),
            shown_source: root.reference.with_digest(digest),
            digest,
            manifest,
            config,
            references: ReferenceRecord::all(pinned).into_iter().zip(&members[1..]).map(planned).collect(),
            remote: RemoteRecord::all(pinned),
            admissions: kits.admitted().iter().map(|admitted| admitted.admission().clone()).collect(),
        }
    }

    /// A plan for tests of what only carries plans: of a kit that nobody admitted.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        let mounting = Mounting {
            id: crate::run::new_id(),
            mountpoint: "/nonexistent/kit".into(),
            run_dir: "/nonexistent".into(),
            cache_dir: "/nonexistent".into(),
            uid: 0,
            gid: 0,
            allow_other: false,
            no_passthrough: false,
            prefetch: Prefetch::None,
            jobs: None,
            selection: Selection::default(),
            access: SourceOptions::default(),
            include_remote: false,
            audit: None,
            log_format: None,
            metrics: None,
            lacking: Lacking::default(),
        };
        Self {
            mounting,
            reference: "reg.example/a:v1".to_owned(),
            shown_source: "reg.example/a:v1".to_owned(),
            digest: Digest::of(crate::digest::Algorithm::Sha256, b"{}"),
            manifest: b"{}".to_vec(),
            config: b"{}".to_vec(),
            references: Vec::new(),
            remote: Vec::new(),
            admissions: Vec::new(),
        }
    }

    /// One in which nothing is left out, to notice that the form changed.
    #[cfg(test)]
    pub(crate) fn full() -> Self {
        let digest = Digest::of(crate::digest::Algorithm::Sha256, b"{}");
        let found = ReferenceRecord {
            reference: "reg.example/base:v1".into(),
            digest,
            pinned_by: "source".into(),
            source: "reg.example/base:v1".into(),
            part: "model".into(),
            path: ".".into(),
        };
        let nothing = Self::of_nothing();
        let mounting = Mounting {
            id: "0".into(),
            selection: Selection { filters: vec!["model:name".parse().expect("a filter")], ..Selection::default() },
            access: SourceOptions {
                plain_http: true,
                ca_cert: Some("/ca".into()),
                offline: true,
                kitops_home: Some("/home".into()),
                connections: Some(2),
            },
            jobs: Some(3),
            audit: Some(AuditPlan { path: "/audit".into(), best_effort: true }),
            log_format: Some(Format::Text),
            metrics: Some(Address::Unix("/metrics".into())),
            ..nothing.mounting
        };
        Self {
            mounting,
            references: vec![PlannedKit { found, manifest: b"{}".to_vec(), config: b"{}".to_vec() }],
            remote: vec![RemoteRecord { path: "far".into(), address: "s3://bucket".into() }],
            admissions: vec![crate::fixtures::admission("reg.example/a:v1", &["alice@example.com"])],
            ..nothing
        }
    }

    /// The same with these admissions.
    #[cfg(test)]
    pub(crate) fn admitted_by(self, admissions: Vec<Admission>) -> Self {
        Self { admissions, ..self }
    }

    /// Why each of the kits was admitted: the one that was asked for first, then those of [`MountPlan::references`] in their order.
    pub fn admissions(&self) -> &[Admission] {
        &self.admissions
    }

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
