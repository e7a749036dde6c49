//! The search itself: the cache first, then each place, several things at once and never more than the limits.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::runtime::Handle;

use super::manifest::{Piece, PieceKind, is_bundle, pieces};
use super::{Candidate, Content, Ended, Gap, Place};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::{ErrorClass, chain};
use crate::limits;
use crate::oci::IMAGE_MANIFEST;
use crate::policy::Name;
use crate::policy::authority::Format;
use crate::signature::{Denial, Reason};
use crate::source::{Attached, AttachedBy, Attachments, DocumentKind, ListedManifest, SourceError};
use crate::store::{KeptManifest, Store};
use crate::verify::{Unverified, Verified};

/// What is searched for, and where.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The manifests that things may be attached to: the kit, and the index that it was chosen from.
    pub subjects: &'a [Digest],
    /// Where, in this order.
    pub places: &'a [Place],
    /// The cache, which is one more place: the first, and the one that keeps what the others give.
    pub store: &'a Store,
    /// When the search has to end.
    pub until: Instant,
}

/// When a search has to end that begins now.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(limits::EVIDENCE_S)
}

/// Gives each candidate to `see` until it wants no more, and keeps in the cache what others gave. It blocks, and belongs on no thread of
/// `runtime`, which must have its time driver; `see` is called while it is blocked on.
///
/// What is kept is given again by the next search, whether anybody else still has it or not, and does not count against the limits.
pub fn search(request: &Request<'_>, runtime: &Handle, see: &mut dyn FnMut(Candidate) -> ControlFlow<()>) -> Ended {
    let search = Search {
        request,
        ended: RefCell::default(),
        known: RefCell::default(),
        given: RefCell::default(),
        found: RefCell::default(),
        pairs_done: Cell::new(0),
        listed: Cell::new(0),
        fetched: Cell::new(0),
        bytes: Cell::new(0),
    };
    let flow = search.everywhere(runtime, see);
    search.keep_found();
    let mut ended = search.ended.into_inner();
    ended.stopped = flow.is_break();
    ended
}

struct Search<'a> {
    request: &'a Request<'a>,
    ended: RefCell<Ended>,
    /// Manifests of which all was given.
    known: RefCell<HashSet<Key>>,
    /// Pieces that were given, by their place in the manifest.
    given: RefCell<HashSet<(Key, usize)>>,
    /// What came from elsewhere and is to be kept.
    found: RefCell<Vec<(Digest, KeptManifest)>>,
    /// Subjects at places of which all was given.
    pairs_done: Cell<usize>,
    listed: Cell<usize>,
    fetched: Cell<usize>,
    bytes: Cell<u64>,
}

/// A manifest that was found: it may be attached to two subjects, and be found for two repositories.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    subject: Digest,
    repository: Option<Name>,
    manifest: Digest,
    by: AttachedBy,
}

/// A manifest, and where it comes from.
struct Origin<'a> {
    key: Key,
    descriptor: Descriptor,
    found_at: String,
    /// `None` is the cache.
    place: Option<&'a Place>,
}

/// A manifest on its way.
enum Step<'a> {
    Here(Rc<Origin<'a>>, Verified<Bytes>),
    ToFetch(Rc<Origin<'a>>),
    Failed(Part<'a>),
}

/// A piece of a manifest.
struct Part<'a> {
    origin: Rc<Origin<'a>>,
    /// Where it stands in it.
    position: usize,
    /// How many pieces the manifest has.
    of: usize,
    /// The manifest, if it was had.
    manifest: Option<Verified<Bytes>>,
    piece: Result<Piece, Denial>,
    /// The fetch of the manifest counted for it.
    counted: bool,
}

/// A piece on its way.
enum Blob {
    Here(Verified<Bytes>),
    ToFetch,
    Failed(Denial),
}

/// Why something was not had.
enum Trouble {
    Failed(Denial),
    Unread(SourceError),
}

impl<'a> Search<'a> {
    fn everywhere(&self, runtime: &Handle, see: &mut dyn FnMut(Candidate) -> ControlFlow<()>) -> ControlFlow<()> {
        let Ok(missing) = self.in_store(see) else { return ControlFlow::Break(()) };
        let until = tokio::time::Instant::from_std(self.request.until);
        let timed = runtime.block_on(async { tokio::time::timeout_at(until, self.at_places(see)).await });
        match timed {
            Ok(flow) => flow?,
            Err(_) => self.out_of_time(),
        }
        // What the cache lost or never had, and nobody gave either.
        for part in missing {
            if self.given.borrow_mut().insert((part.origin.key.clone(), part.position)) {
                let denial = Denial::new(Reason::BlobDigest, "its manifest is in the cache, and it is not");
                see(part.candidate(Err(denial)))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// What the cache keeps. It comes back with what is missing of it; `Err` if no more is wanted.
    fn in_store(&self, see: &mut dyn FnMut(Candidate) -> ControlFlow<()>) -> Result<Vec<Part<'a>>, ()> {
        let mut missing = Vec::new();
        self.ended.borrow_mut().searched.push("the cache".to_owned());
        for subject in self.request.subjects {
            let kept = self.request.store.attached(subject).unwrap_or_else(|error| {
                self.gap(format!("what the cache has for {subject}"), chain(&error), error.class(), None);
                Vec::new()
            });
            for kept in kept {
                let mut places = self.request.places.iter().map(|place| &place.repository);
                let Some(repository) = places.find(|place| place.as_ref().map(Name::repository) == kept.repository.as_deref()) else {
                    continue;
                };
                let key = Key { subject: *subject, repository: repository.clone(), manifest: kept.digest, by: kept.by };
                let descriptor = Descriptor { media_type: IMAGE_MANIFEST.to_owned(), digest: kept.digest, size: kept.size };
                let origin = Rc::new(Origin { key, descriptor, found_at: "the cache".to_owned(), place: None });
                let Some(manifest) = self.stored(&origin.descriptor) else { continue };
                let parts = Part::all(&origin, &manifest, false);
                let mut is_whole = parts.len() <= kept.candidates;
                for part in parts.into_iter().take(kept.candidates) {
                    let content = match &part.piece {
                        Err(denial) => Err(denial.clone()),
                        Ok(piece) if piece.descriptor.size > limits::BUNDLE_BYTES => Err(too_big(piece)),
                        Ok(piece) => match self.stored(&piece.descriptor) {
                            Some(blob) => match content(piece, &blob) {
                                Some(content) => Ok(content),
                                None => continue,
                            },
                            None => {
                                is_whole = false;
                                missing.push(part);
                                continue;
                            }
                        },
                    };
                    self.given.borrow_mut().insert((origin.key.clone(), part.position));
                    if see(part.candidate(content)).is_break() {
                        return Err(());
                    }
                }
                if is_whole {
                    self.known.borrow_mut().insert(origin.key.clone());
                }
            }
        }
        Ok(missing)
    }

    async fn at_places(&self, see: &mut dyn FnMut(Candidate) -> ControlFlow<()>) -> ControlFlow<()> {
        let pairs = self.pairs();
        let asked = stream::iter(pairs).map(|(place, subject)| async move {
            let attachments = Attachments { subject: *subject, repository: place.repository.clone() };
            (place, subject, place.source.attached(&attachments).await)
        });
        let mut answers = pin!(asked.buffered(limits::EVIDENCE_REQUESTS));
        while let Some((place, subject, attached)) = answers.next().await {
            let steps = self.steps(place, subject, attached);
            let manifests = stream::iter(steps).map(|step| self.parts(self.begin(step))).buffered(limits::EVIDENCE_REQUESTS);
            let parts = manifests.flat_map(stream::iter).map(|part| self.candidate(self.begin_part(part)));
            let mut candidates = pin!(parts.buffered(limits::EVIDENCE_REQUESTS));
            while let Some(candidate) = candidates.next().await {
                if let Some(candidate) = candidate {
                    see(candidate)?;
                }
            }
            self.pairs_done.set(self.pairs_done.get() + 1);
        }
        ControlFlow::Continue(())
    }

    fn pairs(&self) -> Vec<(&'a Place, &'a Digest)> {
        let Request { places, subjects, .. } = self.request;
        places.iter().flat_map(|place| subjects.iter().map(move |subject| (place, subject))).collect()
    }

    /// What a place has attached, what is likely to count first. The hints of a list decide nothing but that.
    fn steps(&self, place: &'a Place, subject: &Digest, attached: Attached) -> Vec<Step<'a>> {
        let Attached { mut listed, malformed, gaps, capped, searched, .. } = attached;
        for (what, error) in gaps {
            self.gap(what, chain(&error), ErrorClass::of_source(&error), place.repository.as_ref());
        }
        capped.into_iter().for_each(|sentence| self.cap(sentence));
        self.ended.borrow_mut().searched.extend(searched);
        listed.retain(|manifest| {
            let is_referrer = manifest.by == AttachedBy::Subject;
            let fits = !is_referrer || self.listed.get() < limits::REFERRERS;
            if !fits {
                self.cap(format!("more than {} referrers are listed ({})", limits::REFERRERS, manifest.found_at));
            } else if is_referrer {
                self.listed.set(self.listed.get() + 1);
            }
            fits
        });
        listed.sort_by_key(rank);
        let manifests = listed.into_iter().map(|manifest| {
            let ListedManifest { descriptor, document, by, found_at, .. } = manifest;
            let key = Key { subject: *subject, repository: place.repository.clone(), manifest: descriptor.digest, by };
            let origin = Rc::new(Origin { key, descriptor, found_at, place: Some(place) });
            self.described(origin, document)
        });
        let failed = malformed.into_iter().enumerate().map(|(position, (found_at, why))| {
            // Such an entry has no digest of its own that could be told.
            let key = Key { subject: *subject, repository: place.repository.clone(), manifest: *subject, by: AttachedBy::Subject };
            let descriptor = Descriptor { media_type: String::new(), digest: *subject, size: 0 };
            let denial = Denial::new(Reason::BadJson, format!("an entry of the list cannot be read: {why}"));
            Step::Failed(Part::failed(Rc::new(Origin { key, descriptor, found_at, place: Some(place) }), position, denial))
        });
        manifests.chain(failed).collect()
    }

    /// A manifest that came with its list is here already.
    fn described(&self, origin: Rc<Origin<'a>>, document: Option<Unverified<Bytes>>) -> Step<'a> {
        let Some(document) = document else { return Step::ToFetch(origin) };
        match document.verify(&origin.descriptor) {
            Ok(manifest) => Step::Here(origin, manifest),
            Err(mismatch) => Step::Failed(Part::failed(origin, 0, Denial::new(Reason::BlobDigest, mismatch.to_string()))),
        }
    }

    /// Decides in the order of the list what is fetched, so that the limits do not depend on who answers first.
    fn begin(&self, step: Step<'a>) -> Option<Step<'a>> {
        let origin = match &step {
            Step::Here(origin, _) | Step::ToFetch(origin) => Rc::clone(origin),
            Step::Failed(_) => return Some(step),
        };
        if !self.known.borrow_mut().insert(origin.key.clone()) {
            return None;
        }
        let size = origin.descriptor.size;
        match step {
            Step::Here(..) => self.take(0, size).then_some(step),
            _ if size > limits::MANIFEST_BYTES => {
                let text = format!("the manifest has {size} bytes, {} are allowed", limits::MANIFEST_BYTES);
                Some(Step::Failed(Part::failed(origin, 0, Denial::new(Reason::TooBig, text))))
            }
            _ => match self.stored(&origin.descriptor) {
                Some(manifest) => Some(Step::Here(origin, manifest)),
                None => self.take(usize::from(origin.is_counted()), size).then_some(step),
            },
        }
    }

    /// The pieces of a manifest, which is fetched if it is not here.
    async fn parts(&self, step: Option<Step<'a>>) -> Vec<Part<'a>> {
        let (origin, manifest, counted) = match step {
            None => return Vec::new(),
            Some(Step::Failed(part)) => return vec![part],
            Some(Step::Here(origin, manifest)) => (origin, manifest, false),
            Some(Step::ToFetch(origin)) => match self.fetch(&origin, &origin.descriptor, DocumentKind::Manifest).await {
                Ok(manifest) => {
                    let counted = origin.is_counted();
                    (origin, manifest, counted)
                }
                Err(Trouble::Failed(denial)) => return vec![Part::failed(origin, 0, denial)],
                Err(Trouble::Unread(error)) => {
                    self.unread_candidate(&origin, &origin.descriptor, &error);
                    return Vec::new();
                }
            },
        };
        Part::all(&origin, &manifest, counted)
    }

    /// Decides what of a piece is fetched, in order as [`Search::begin`] does.
    fn begin_part(&self, part: Part<'a>) -> Option<(Part<'a>, Blob)> {
        if !self.given.borrow_mut().insert((part.origin.key.clone(), part.position)) {
            return None;
        }
        let blob = match &part.piece {
            Err(denial) => Blob::Failed(denial.clone()),
            Ok(piece) if piece.descriptor.size > limits::BUNDLE_BYTES => Blob::Failed(too_big(piece)),
            Ok(piece) => match self.stored(&piece.descriptor) {
                Some(blob) => Blob::Here(blob),
                None if self.take(usize::from(!part.counted), piece.descriptor.size) => Blob::ToFetch,
                None => return None,
            },
        };
        Some((part, blob))
    }

    /// The candidate that a piece is, which is fetched if it is not here.
    async fn candidate(&self, begun: Option<(Part<'a>, Blob)>) -> Option<Candidate> {
        let (part, blob) = begun?;
        let content = match (blob, &part.piece) {
            (Blob::Failed(denial), _) => Err(denial),
            (_, Err(denial)) => Err(denial.clone()),
            (Blob::Here(blob), Ok(piece)) => Ok(content(piece, &blob)?),
            (Blob::ToFetch, Ok(piece)) => match self.fetch(&part.origin, &piece.descriptor, DocumentKind::Evidence).await {
                Ok(blob) => {
                    let content = content(piece, &blob)?;
                    self.put(&blob);
                    Ok(content)
                }
                Err(Trouble::Failed(denial)) => Err(denial),
                Err(Trouble::Unread(error)) => {
                    self.unread_candidate(&part.origin, &piece.descriptor, &error);
                    return None;
                }
            },
        };
        self.note(&part);
        Some(part.candidate(content))
    }

    /// Fetches something and checks it; what does not match is fetched once more.
    async fn fetch(&self, origin: &Origin<'_>, descriptor: &Descriptor, kind: DocumentKind) -> Result<Verified<Bytes>, Trouble> {
        let failed = |why: String| Trouble::Failed(Denial::new(Reason::BlobDigest, why));
        let Some(place) = origin.place else { return Err(failed(format!("{} is not in the cache", descriptor.digest))) };
        let mut attempt = 1;
        loop {
            let mismatch = match place.source.document_as(descriptor, kind).await {
                Ok(document) => match document.verify(descriptor) {
                    Ok(document) => return Ok(document),
                    Err(mismatch) => mismatch,
                },
                Err(error) if ErrorClass::of_source(&error) == ErrorClass::Missing => {
                    return Err(failed(format!("it is listed, but {}", chain(&error))));
                }
                Err(error) => return Err(Trouble::Unread(error)),
            };
            if attempt == limits::EVIDENCE_ATTEMPTS || !self.take(0, descriptor.size) {
                return Err(failed(format!("{}: {mismatch}", place.source.name())));
            }
            attempt += 1;
        }
    }

    /// Whether there is room for as many more; if not, that is told.
    fn take(&self, candidates: usize, bytes: u64) -> bool {
        let fetched = self.fetched.get().saturating_add(candidates);
        let sum = self.bytes.get().saturating_add(bytes);
        if fetched > limits::CANDIDATES {
            self.cap(format!("more than {} candidates would have to be fetched", limits::CANDIDATES));
            return false;
        }
        if sum > limits::EVIDENCE_BYTES {
            self.cap(format!("more than {} bytes would have to be fetched", limits::EVIDENCE_BYTES));
            return false;
        }
        self.fetched.set(fetched);
        self.bytes.set(sum);
        true
    }

    fn cap(&self, sentence: String) {
        let capped = &mut self.ended.borrow_mut().capped;
        if !capped.contains(&sentence) {
            capped.push(sentence);
        }
    }

    fn gap(&self, what: String, why: String, class: ErrorClass, repository: Option<&Name>) {
        self.ended.borrow_mut().gaps.push(Gap { what, why, class, repository: repository.cloned() });
    }

    fn unread_candidate(&self, origin: &Origin<'_>, descriptor: &Descriptor, error: &SourceError) {
        let what = format!("{} ({})", descriptor.digest, origin.found_at);
        self.gap(what, chain(error), ErrorClass::of_source(error), origin.key.repository.as_ref());
    }

    /// Each place that was not searched to its end is one that could not be read.
    fn out_of_time(&self) {
        for (place, subject) in self.pairs().into_iter().skip(self.pairs_done.get()) {
            let what = format!("what is attached to {subject} in {}", place.source.name());
            let why = format!("the search did not end within the {} s that there are for it", limits::EVIDENCE_S);
            self.gap(what, why, ErrorClass::Stalled, place.repository.as_ref());
        }
    }

    /// A document of the cache. One that cannot be read is fetched like one that is not there.
    fn stored(&self, descriptor: &Descriptor) -> Option<Verified<Bytes>> {
        self.request.store.document(descriptor).unwrap_or_else(|error| {
            tracing::warn!(digest = %descriptor.digest, error = chain(&error), "a document of the cache cannot be read");
            None
        })
    }

    /// Keeps a document. The decision does not depend on it.
    fn put(&self, document: &Verified<Bytes>) {
        if let Err(error) = self.request.store.put_document(document) {
            tracing::warn!(digest = %document.descriptor().digest, error = chain(&error), "what was found cannot be kept in the cache");
        }
    }

    /// Keeps the manifest that a candidate is in.
    fn note(&self, part: &Part<'_>) {
        let Some(document) = &part.manifest else { return };
        let Key { subject, repository, manifest, by } = &part.origin.key;
        let repository = repository.as_ref().map(|name| name.repository().to_owned());
        let (digest, size) = (*manifest, part.origin.descriptor.size);
        // Of one that has more than is kept, the first are.
        let candidates = part.of.min(limits::KEPT_CANDIDATES);
        let kept = (*subject, KeptManifest { digest, size, by: *by, repository, candidates, met: false });
        let found = &mut *self.found.borrow_mut();
        if !found.contains(&kept) {
            self.put(document);
            found.push(kept);
        }
    }

    fn keep_found(&self) {
        let found = self.found.borrow();
        for subject in self.request.subjects {
            let of_it = found.iter().filter(|(of, _)| of == subject).map(|(_, kept)| kept.clone());
            if let Err(error) = self.request.store.keep_attached(subject, &of_it.collect::<Vec<_>>()) {
                tracing::warn!(%subject, error = chain(&error), "what was found cannot be kept in the cache");
            }
        }
    }
}

impl Origin<'_> {
    /// A referrer is a candidate as soon as it is fetched; of what stands under a name each piece is.
    fn is_counted(&self) -> bool {
        self.key.by == AttachedBy::Subject
    }
}

impl<'a> Part<'a> {
    /// All pieces of a manifest, or the one that says why there are none.
    fn all(origin: &Rc<Origin<'a>>, manifest: &Verified<Bytes>, counted: bool) -> Vec<Self> {
        let pieces = pieces(manifest, origin.key.by, &origin.key.subject).unwrap_or_else(|denial| vec![Err(denial)]);
        let of = pieces.len();
        let part = |(position, piece)| Self {
            origin: Rc::clone(origin),
            position,
            of,
            manifest: Some(manifest.clone()),
            piece,
            counted: counted && position == 0,
        };
        pieces.into_iter().enumerate().map(part).collect()
    }

    /// What stands for a manifest that was not had.
    fn failed(origin: Rc<Origin<'a>>, position: usize, denial: Denial) -> Self {
        Self { origin, position, of: 1, manifest: None, piece: Err(denial), counted: true }
    }

    fn candidate(&self, content: Result<Content, Denial>) -> Candidate {
        let Key { subject, repository, manifest, by } = self.origin.key.clone();
        let named = match by {
            AttachedBy::Subject => Format::Bundle,
            AttachedBy::SignatureName | AttachedBy::AttestationName => Format::Legacy,
        };
        let (digest, format) = match &self.piece {
            Ok(Piece { descriptor, kind: PieceKind::Layer { .. } }) => (descriptor.digest, Format::Legacy),
            Ok(Piece { descriptor, .. }) => (descriptor.digest, Format::Bundle),
            Err(_) => (manifest, named),
        };
        Candidate { digest, manifest, subject, repository, found_at: self.origin.found_at.clone(), format, content }
    }
}

/// What is judged of a piece; `None` if it is something else after all.
fn content(piece: &Piece, blob: &Verified<Bytes>) -> Option<Content> {
    let bytes = blob.to_bytes();
    match &piece.kind {
        PieceKind::Bundle => Some(Content::Bundle(bytes)),
        PieceKind::Unnamed => is_bundle(blob).then_some(Content::Bundle(bytes)),
        PieceKind::Layer { kind, annotations } => Some(Content::Layer { kind: *kind, blob: bytes, annotations: annotations.clone() }),
    }
}

fn too_big(piece: &Piece) -> Denial {
    let Descriptor { digest, size, .. } = &piece.descriptor;
    Denial::new(Reason::TooBig, format!("{digest} has {size} bytes, {} are allowed", limits::BUNDLE_BYTES))
}

/// What is fetched first: what is likely to be a signature, as far as the list tells.
fn rank(manifest: &ListedManifest) -> u8 {
    // The empty config's type is what Cosign's own list has for its bundles.
    const LIKELY: [&str; 5] = ["sigstore", "cosign", "dsse", "in-toto", "vnd.oci.empty"];
    let notes_bundle = || manifest.annotations.iter().any(|(key, _)| key.starts_with("dev.sigstore.bundle"));
    match (manifest.by, &manifest.artifact_type) {
        (AttachedBy::SignatureName | AttachedBy::AttestationName, _) => 1,
        (AttachedBy::Subject, Some(kind)) if !LIKELY.iter().any(|likely| kind.contains(likely)) && !notes_bundle() => 2,
        (AttachedBy::Subject, _) => 0,
    }
}
