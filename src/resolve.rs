//! From a reference to a kit and to the kits that it refers to: what `mount`, `pull`, `inspect` and `verify` do first, and do alike.
//!
//! A tag is asked for once; from then on its digest is the only name. Manifest and config are checked before they are read, and kept in
//! the cache, so that a kit that was here once needs no network by digest, and none by tag if the user says so. No layer is touched.

mod choose;
mod follow;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::admission::NotAdmitted;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::ErrorClass;
use crate::filter::Selection;
use crate::kit::{Documents, Kit, KitError, Lineage, LineageError};
use crate::oci::{Reference, Transport};
use crate::source::{self, Pin, Source, SourceError, SourceOptions};
use crate::store::{Store, StoreError};
use crate::verify::{Mismatch, Verified};

pub use choose::{Choice, ChoiceError};

/// A kit that stands on one digest, as does everything that it refers to.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The plan.
    pub lineage: Lineage,
    /// Where each of its kits was found, in their order: the one that was asked for is first.
    pub found: Vec<Found>,
}

/// Where a kit was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The reference that was resolved.
    pub reference: Reference,
    /// Who says that its manifest is the one.
    pub pin: PinnedBy,
    /// Where layers can be had.
    pub source: Arc<dyn Source>,
}

impl Pinned {
    /// The kit that was asked for.
    pub fn kit(&self) -> &Kit {
        self.lineage.root()
    }

    /// Where it was found.
    pub fn root(&self) -> &Found {
        &self.found[0]
    }

    /// Where the layer at `position` of the lineage can be had.
    pub fn source_of(&self, position: usize) -> &Arc<dyn Source> {
        &self.found[self.lineage.owner(position)].source
    }
}

/// One kit, before anything that it refers to is looked for.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// What it is called: the reference that was asked for, or the one in the Kitfile that refers to it.
    pub name: String,
    /// Where it was found.
    pub found: Found,
    /// The kit.
    pub kit: Kit,
    /// Its documents.
    pub documents: Documents,
    /// The index that it was chosen from, if what was found is one.
    pub index: Option<Digest>,
    /// Whether what was found came from its source just now, and not out of the cache.
    pub is_fresh: bool,
}

/// Asked about each kit, the one that was asked for first; what a kit refers to is looked for only if it says yes.
pub type Gate<'g> = dyn FnMut(&Arrived) -> Result<(), NotAdmitted> + 'g;

/// Lets every kit through: for whoever only looks at kits, and shows nothing that is in them.
pub fn ungated(_: &Arrived) -> Result<(), NotAdmitted> {
    Ok(())
}

/// Who says that a manifest is the one that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinnedBy {
    /// Whoever wrote the reference, with the digest in it.
    User,
    /// The source, which was asked just now.
    Source,
    /// The cache, which knows what the source said last.
    Cache,
}

impl PinnedBy {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "reference",
            Self::Source => "source",
            Self::Cache => "cache",
        }
    }
}

/// Why a reference came to no kit.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The source did not give what was asked for.
    #[error("cannot resolve {reference}")]
    Source {
        /// The reference.
        reference: String,
        /// True if the cache knows what it meant last.
        remembered: bool,
        /// What the source said.
        #[source]
        source: Box<SourceError>,
    },
    /// A document is not what its digest says, also when it was fetched once more.
    #[error("the {what} of {reference} is not what its digest says")]
    Content {
        /// The reference.
        reference: String,
        /// `manifest` or `config`.
        what: &'static str,
        /// Expected and got.
        #[source]
        source: Box<Mismatch>,
    },
    /// It is no kit that may be mounted.
    #[error("{reference} cannot be used")]
    Kit {
        /// The reference, with the digest that it was resolved to.
        reference: String,
        /// Why not.
        #[source]
        source: Box<KitError>,
    },
    /// It is an OCI index, and which kit is meant cannot be said.
    #[error("{reference} cannot be used")]
    Choice {
        /// The reference.
        reference: String,
        /// Why not.
        #[source]
        source: Box<ChoiceError>,
    },
    /// It may not be mounted, or that could not be decided.
    #[error(transparent)]
    NotAdmitted(#[from] Box<NotAdmitted>),
    /// A kit that it refers to came to none.
    #[error("cannot follow the references {}", chain.join(" => "))]
    Reference {
        /// The references from the one that was asked for to the one that failed.
        chain: Vec<String>,
        /// Why it did.
        #[source]
        source: Box<ResolveError>,
    },
    /// A kit is in none of the places where it could be.
    #[error("{reference} is not to be had: looked for {}", looked_for.join(", then for "))]
    Nowhere {
        /// The reference in the Kitfile.
        reference: String,
        /// What was looked for.
        looked_for: Vec<String>,
        /// What the last place said.
        #[source]
        source: Box<ResolveError>,
    },
    /// The kits cannot be put together.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing may be asked for, and the cache does not know the reference.
    #[error("{reference} was never resolved with this cache, and `--offline` forbids to ask for it")]
    NeverResolved {
        /// The reference.
        reference: String,
    },
    /// Nothing may be asked for, and a document is not in the cache.
    #[error("the {what} {digest} is not in the cache, and `--offline` forbids to ask for it")]
    NotCached {
        /// `manifest` or `config`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
}

impl ResolveError {
    /// The error itself, without the way to it.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::Reference { source, .. } | Self::Nowhere { source, .. } => source.innermost(),
            error => error,
        }
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Source { source, .. } => ErrorClass::of_source(source),
            Self::Content { .. } => ErrorClass::Content,
            Self::Kit { .. } | Self::Choice { .. } | Self::Lineage(_) => ErrorClass::Refused,
            Self::NotAdmitted(error) => error.class(),
            Self::Reference { source, .. } | Self::Nowhere { source, .. } => source.class(),
            Self::Store(error) => error.class(),
            Self::NeverResolved { .. } | Self::NotCached { .. } => ErrorClass::Network,
        }
    }
}

/// Finds the kit that `reference` names, and those that it refers to; with `include_remote` also those that stand for datasets. Each has to
/// pass the `gate`. Blocks for [`crate::limits::BEFORE_MOUNT_S`] at most, the time at the gate aside; not on a thread of `runtime`.
pub fn kit(
    reference: &Reference,
    selection: Selection,
    include_remote: bool,
    from: &Access<'_>,
    gate: &mut Gate<'_>,
) -> Result<Pinned, ResolveError> {
    follow::lineage(&mut Asking { from, until: source::before_mount() }, reference, selection, include_remote, gate)
}

/// What kits are asked for with.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// How sources are reached.
    pub options: &'a SourceOptions,
    /// What was here once.
    pub store: &'a Store,
    /// Where the network runs.
    pub runtime: &'a Handle,
}

/// How kits are asked for.
struct Asking<'a> {
    from: &'a Access<'a>,
    until: Instant,
}

impl Asking<'_> {
    /// Finds one kit, called `name`.
    fn one(&self, reference: &Reference, name: &str) -> Result<Arrived, ResolveError> {
        let Access { options, store, runtime } = *self.from;
        let resolver = Resolver { reference, store };
        let source = source::open(reference, options).map_err(|error| resolver.failed(error.into()))?;
        // Only a registry is the network.
        let answer = if options.offline && matches!(reference.transport(), Transport::Registry(_)) {
            runtime.block_on(resolver.kept())
        } else {
            runtime.block_on(source::asking(&*source, self.until, resolver.documents(&*source)))
        };
        let Answer { found: Meant { manifest, index, pin, is_fresh }, config } = answer.map_err(|failure| resolver.failed(failure))?;
        let documents = Documents { manifest, config };
        let kit = documents.plan().map_err(|error| resolver.refused(documents.manifest.descriptor().digest, error))?;
        let found = Found { reference: reference.clone(), pin, source };
        Ok(Arrived { name: name.to_owned(), found, kit, documents, index, is_fresh })
    }

    /// Lets a kit pass the gate, which has time of its own.
    fn pass(&mut self, gate: &mut Gate<'_>, arrived: &Arrived) -> Result<(), ResolveError> {
        let began = Instant::now();
        let outcome = gate(arrived);
        self.until += began.elapsed();
        Ok(outcome.map_err(Box::new)?)
    }
}

struct Resolver<'a> {
    reference: &'a Reference,
    store: &'a Store,
}

/// Manifest and config.
struct Answer {
    found: Meant,
    config: Verified<Bytes>,
}

/// What a reference means.
struct Meant {
    /// The manifest of the kit.
    manifest: Verified<Bytes>,
    /// The index that it was chosen from.
    index: Option<Digest>,
    /// Who says so.
    pin: PinnedBy,
    /// Whether the source gave it just now.
    is_fresh: bool,
}

impl Meant {
    /// The kit that was chosen from what was found.
    fn new(found: Digest, manifest: Verified<Bytes>, pin: PinnedBy, is_fresh: bool) -> Self {
        let index = Some(found).filter(|found| *found != manifest.descriptor().digest);
        Self { manifest, index, pin, is_fresh }
    }
}

/// A [`ResolveError`] that does not know its reference yet.
enum Failure {
    Source(Box<SourceError>),
    Content { what: &'static str, mismatch: Box<Mismatch> },
    Kit { manifest: Digest, error: Box<KitError> },
    Choice(Box<ChoiceError>),
    Store(StoreError),
    NeverResolved,
    NotCached { what: &'static str, digest: Digest },
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(Box::new(error))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Resolver<'_> {
    async fn documents(&self, source: &dyn Source) -> Result<Answer, Failure> {
        let found = match self.kept_by_digest()? {
            Some(found) => {
                let digest = found.descriptor().digest;
                Meant::new(digest, self.chosen(found, Some(source)).await?, PinnedBy::User, false)
            }
            None => self.resolve(source).await?,
        };
        let descriptor = self.config_of(&found.manifest)?;
        let config = match self.store.document(&descriptor)? {
            Some(config) => config,
            None => self.fetch(source, &descriptor, "config").await?,
        };
        Ok(Answer { found, config })
    }

    /// The manifest, if the reference names its digest and the cache has it.
    fn kept_by_digest(&self) -> Result<Option<Verified<Bytes>>, StoreError> {
        let Some(digest) = self.reference.digest() else { return Ok(None) };
        let Some(descriptor) = self.store.remembered(&digest.to_string())? else { return Ok(None) };
        // What is remembered is the size; the digest is the user's.
        self.store.document(&Descriptor { digest, ..descriptor })
    }

    async fn resolve(&self, source: &dyn Source) -> Result<Meant, Failure> {
        let mut resolved = source.resolve().await?;
        let mut checked = resolved.manifest.verify(&resolved.descriptor);
        if checked.is_err() {
            resolved = source.resolve().await?;
            checked = resolved.manifest.verify(&resolved.descriptor);
        }
        let manifest = checked.map_err(|mismatch| Failure::Content { what: "manifest", mismatch: Box::new(mismatch) })?;
        let pin = match resolved.pin {
            Pin::ByUser => PinnedBy::User,
            Pin::BySource => PinnedBy::Source,
        };
        self.store.put_document(&manifest)?;
        self.store.remember(&manifest.descriptor().digest.to_string(), manifest.descriptor())?;
        let found = manifest.descriptor().clone();
        let manifest = self.chosen(manifest, Some(source)).await?;
        if pin == PinnedBy::Source {
            // The index itself where it is one: what is said of it holds for the kit in it, also offline.
            self.store.remember(&self.reference.to_string(), &found)?;
        }
        Ok(Meant::new(found.digest, manifest, pin, true))
    }

    async fn fetch(&self, source: &dyn Source, descriptor: &Descriptor, what: &'static str) -> Result<Verified<Bytes>, Failure> {
        let mut checked = source.document(descriptor).await?.verify(descriptor);
        if checked.is_err() {
            checked = source.document(descriptor).await?.verify(descriptor);
        }
        let document = checked.map_err(|mismatch| Failure::Content { what, mismatch: Box::new(mismatch) })?;
        self.store.put_document(&document)?;
        Ok(document)
    }

    async fn kept(&self) -> Result<Answer, Failure> {
        let (found, pin) = match self.reference.digest() {
            Some(digest) => (self.kept_by_digest()?.ok_or(Failure::NotCached { what: "manifest", digest })?, PinnedBy::User),
            None => {
                let descriptor = self.store.remembered(&self.reference.to_string())?.ok_or(Failure::NeverResolved)?;
                let missing = Failure::NotCached { what: "manifest", digest: descriptor.digest };
                (self.store.document(&descriptor)?.ok_or(missing)?, PinnedBy::Cache)
            }
        };
        let digest = found.descriptor().digest;
        let found = Meant::new(digest, self.chosen(found, None).await?, pin, false);
        let descriptor = self.config_of(&found.manifest)?;
        let config = self.store.document(&descriptor)?;
        Ok(Answer { found, config: config.ok_or(Failure::NotCached { what: "config", digest: descriptor.digest })? })
    }

    fn config_of(&self, manifest: &Verified<Bytes>) -> Result<Descriptor, Failure> {
        Kit::config(manifest).map_err(|error| Failure::Kit { manifest: manifest.descriptor().digest, error: Box::new(error) })
    }

    fn failed(&self, failure: Failure) -> ResolveError {
        let reference = self.reference.to_string();
        match failure {
            Failure::Source(source) => {
                // Only for a hint, which is of use where `--offline` means something. If it cannot be read, there is none.
                let is_registry = matches!(self.reference.transport(), Transport::Registry(_));
                let remembered = is_registry && self.store.remembered(&reference).is_ok_and(|descriptor| descriptor.is_some());
                ResolveError::Source { reference, remembered, source }
            }
            Failure::Content { what, mismatch } => ResolveError::Content { reference, what, source: mismatch },
            Failure::Kit { manifest, error } => self.refused(manifest, *error),
            Failure::Choice(source) => ResolveError::Choice { reference, source },
            Failure::Store(error) => ResolveError::Store(error),
            Failure::NeverResolved => ResolveError::NeverResolved { reference },
            Failure::NotCached { what, digest } => ResolveError::NotCached { what, digest },
        }
    }

    fn refused(&self, manifest: Digest, error: KitError) -> ResolveError {
        ResolveError::Kit { reference: self.reference.with_digest(manifest), source: Box::new(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::runtime::Runtime;

    use super::*;
    use crate::fixtures::{self, Case};

    struct Stage {
        folder: tempfile::TempDir,
        store: Store,
        runtime: Runtime,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let store = Store::open(&folder.path().join("cache")).expect("a cache");
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
            Self { folder, store, runtime }
        }

        fn resolve(&self, reference: &str, offline: bool) -> Result<Pinned, ResolveError> {
            let options = SourceOptions { offline, ..SourceOptions::default() };
            let from = Access { options: &options, store: &self.store, runtime: self.runtime.handle() };
            kit(&reference.parse().expect(reference), Selection::default(), false, &from, &mut ungated)
        }
    }

    fn case(kind: &str, name: &str) -> Case {
        fixtures::cases(kind).into_iter().find(|case| case.name == name).expect(name)
    }

    #[test]
    fn a_kit_that_was_here_once_needs_its_source_no_more() {
        let stage = Stage::new();
        let layout = stage.folder.path().join("layout");
        let reference = case("kits", "all-kinds-plain").lay_out(&layout);
        let pinned = stage.resolve(&reference, false).expect("a kit");
        assert_eq!((pinned.root().pin, pinned.kit().layers.len()), (PinnedBy::Source, 9));
        let digest = pinned.kit().manifest.digest;
        fs::remove_dir_all(layout.join("blobs")).expect("ours");
        assert!(matches!(stage.resolve(&reference, false), Err(ResolveError::Source { remembered: false, .. })));
        let again = stage.resolve(&format!("{reference}@{digest}"), false).expect("all of it is kept");
        assert_eq!((again.root().pin, &again.kit().kitfile), (PinnedBy::User, &pinned.kit().kitfile));
        // Content is known by its digest, wherever it came from.
        let elsewhere = stage.resolve(&format!("127.0.0.1:1/acme/kit:v1@{digest}"), true).expect("kept");
        assert_eq!((elsewhere.root().pin, elsewhere.kit().manifest.digest), (PinnedBy::User, digest));
    }

    #[test]
    fn offline_takes_what_a_tag_meant_last() {
        let stage = Stage::new();
        let reference = "127.0.0.1:1/acme/kit:v1";
        let error = stage.resolve(reference, true).expect_err("nothing is known of it");
        assert!(matches!(error, ResolveError::NeverResolved { .. }), "{error}");
        let case = case("kits", "all-kinds-plain");
        let manifest = case.manifest();
        stage.store.remember(reference, manifest.descriptor()).expect("room");
        let missing = |what| matches!(stage.resolve(reference, true), Err(ResolveError::NotCached { what: got, .. }) if got == what);
        assert!(missing("manifest"));
        stage.store.put_document(&manifest).expect("room");
        assert!(missing("config"));
        let config = case.blob(&Kit::config(&manifest).expect("a kit"));
        stage.store.put_document(&config).expect("room");
        let pinned = stage.resolve(reference, true).expect("everything is there");
        assert_eq!((pinned.root().pin, pinned.kit().manifest.digest), (PinnedBy::Cache, manifest.descriptor().digest));
        let refused = stage.runtime.block_on(pinned.root().source.resolve()).expect_err("offline is offline");
        assert!(refused.to_string().contains("--offline"), "{refused}");
    }

    #[test]
    fn what_is_wrong_is_named_and_classed() {
        for (name, class, part) in [
            ("config-bit-flip", ErrorClass::Content, "the config of oci:"),
            ("config-not-json", ErrorClass::Refused, "cannot be used"),
            ("manifest-5mib", ErrorClass::Network, "cannot resolve"),
        ] {
            let stage = Stage::new();
            let reference = case("hostile", name).lay_out(&stage.folder.path().join("layout"));
            let error = stage.resolve(&reference, false).expect_err(name);
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_kept_document_that_was_damaged_is_fetched_again() {
        let stage = Stage::new();
        let layout = stage.folder.path().join("layout");
        let reference = case("kits", "all-kinds-plain").lay_out(&layout);
        let pinned = stage.resolve(&reference, false).expect("a kit");
        for kept in fs::read_dir(stage.folder.path().join("cache/v1/blobs")).expect("the documents") {
            let path = kept.expect("a document").path();
            let mut bytes = fs::read(&path).expect("ours");
            bytes[7] ^= 1;
            fs::remove_file(&path).expect("ours");
            fs::write(&path, bytes).expect("room");
        }
        let pinned_again = stage.resolve(&format!("{reference}@{}", pinned.kit().manifest.digest), false).expect("fetched again");
        assert_eq!(pinned_again.kit().kitfile, pinned.kit().kitfile);
    }
}
