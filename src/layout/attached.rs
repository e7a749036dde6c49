//! What is attached to a manifest in a layout: manifests that say so themselves, names made of its digest as a registry's tags are, and what
//! `cosign save` marks.
//!
//! What is read here is read to find things, and is believed by nobody: whoever takes a manifest checks it again.

use super::listing::Listing;
use super::{Inner, Place, Shelf, Stop, kitops};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::chain;
use crate::json::Json;
use crate::limits;
use crate::oci::{Index, Listed};
use crate::policy::Name;
use crate::source::{Attached, AttachedBy, Attachments, ListedManifest, SourceError, tags};

/// The annotation by which `cosign save` says what an entry is, and how what it attaches begins.
const KIND: &str = "kind";
const SIGNATURES: &str = "dev.cosignproject.cosign/sigs";
const ATTESTATIONS: &str = "dev.cosignproject.cosign/atts";

/// What `cosign save` says that an entry is, if it is attached to something.
pub(super) fn kind(entry: &Listed) -> Option<AttachedBy> {
    match entry.annotations.iter().find(|(key, _)| key == KIND)?.1.as_str() {
        SIGNATURES => Some(AttachedBy::SignatureName),
        ATTESTATIONS => Some(AttachedBy::AttestationName),
        _ => None,
    }
}

/// What a manifest refers to.
enum Refers {
    To(Digest),
    Nowhere,
    /// It is not there, or no JSON.
    Unknown,
}

/// One look through a layout.
struct Search<'a> {
    layout: &'a Inner,
    wanted: &'a Attachments,
    tags: [String; 3],
    attached: Attached,
    /// Bytes that may still be read.
    room: u64,
    stop: &'a Stop,
}

impl Inner {
    /// See [`crate::source::Source::attached`].
    pub(super) fn attached(&self, wanted: &Attachments, stop: &Stop) -> Attached {
        let (attached, room) = (Attached::default(), limits::LAYOUT_REFERRER_BYTES);
        let mut search = Search { layout: self, wanted, tags: tags(&wanted.subject), attached, room, stop };
        search.attached.searched.push(self.name.clone());
        for shelf in &self.shelves {
            if let Err(error) = search.look_at(shelf) {
                search.attached.gaps.push((format!("what is attached to {} in {}", wanted.subject, self.name), error));
            }
        }
        search.attached
    }
}

impl Search<'_> {
    fn look_at(&mut self, shelf: &Shelf) -> Result<(), SourceError> {
        // Kit's lists of a repository name what kit took from there; its index has no names.
        if let Listing::Kit { repository, .. } = &shelf.listing
            && self.is_of(repository)
        {
            for (tag, by) in
                self.tags.clone().into_iter().zip([AttachedBy::Subject, AttachedBy::SignatureName, AttachedBy::AttestationName])
            {
                match kitops::find(&shelf.place, repository, Some(&tag), None, self.stop) {
                    Ok(descriptor) => self.named(&shelf.place, descriptor, by, &tag)?,
                    Err(SourceError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let entries = match shelf.place.index(self.stop) {
            Ok(entries) => entries,
            Err(SourceError::NotFound { .. }) if matches!(shelf.listing, Listing::Kit { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if self.stop.is_set() || self.attached.gaps.len() >= limits::LAYOUT_UNREADABLE {
                break;
            }
            let what = format!("{} of {}", entry.descriptor.digest, self.layout.name);
            match self.entry(&shelf.place, entry) {
                Ok(true) => {}
                Ok(false) => break,
                // It takes no other with it.
                Err(error) => self.attached.gaps.push((what, error)),
            }
        }
        Ok(())
    }

    /// Looks at an entry of `index.json`; false if nothing further matters.
    fn entry(&mut self, place: &Place, entry: Listed) -> Result<bool, SourceError> {
        let name = entry.name.clone().unwrap_or_default();
        let wanted = name.is_empty() && self.wanted.repository.is_none() || self.is_of(&name);
        if !wanted || entry.descriptor.digest == self.wanted.subject {
            return Ok(true);
        }
        let is_tag = |tag: &str| name == tag || name.strip_suffix(tag).is_some_and(|rest| rest.ends_with(':'));
        let by = match (kind(&entry), self.tags.iter().position(|tag| is_tag(tag))) {
            (Some(by), _) => by,
            (None, Some(0)) => AttachedBy::Subject,
            (None, Some(1)) => AttachedBy::SignatureName,
            (None, Some(_)) => AttachedBy::AttestationName,
            (None, None) => return self.referrer(place, entry),
        };
        self.named(place, entry.descriptor, by, &name).map(|()| true)
    }

    /// Whether `name` is one of the repository that is asked for, if one is.
    fn is_of(&self, name: &str) -> bool {
        match &self.wanted.repository {
            Some(repository) => Name::of_kit(name).is_ok_and(|name| name.repository() == repository.repository()),
            None => true,
        }
    }

    /// Lists what has a name: a manifest of Cosign's, or an index of referrers.
    fn named(&mut self, place: &Place, descriptor: Descriptor, by: AttachedBy, name: &str) -> Result<(), SourceError> {
        if descriptor.digest == self.wanted.subject {
            return Ok(());
        }
        // What `cosign save` wrote is found by its kind, and has no name.
        let place_of = if name.is_empty() { "index.json".to_owned() } else { format!("`{name}`") };
        let found_at = format!("{place_of} of {}", self.layout.name);
        let entry = |descriptor| ListedManifest {
            descriptor,
            document: None,
            by,
            found_at: found_at.clone(),
            artifact_type: None,
            annotations: Vec::new(),
        };
        if by != AttachedBy::Subject {
            self.attached.list(entry(descriptor));
            return Ok(());
        }
        let bytes = match self.read(place, &descriptor)? {
            Some(bytes) if Digest::of(descriptor.digest.algorithm(), &bytes) == descriptor.digest => bytes,
            // Whoever fetches it sees that it is damaged or not there.
            _ => {
                self.attached.list(entry(descriptor));
                return Ok(());
            }
        };
        // As in a registry: a manifest of that name is no list.
        let Ok((index, malformed)) = Index::of_referrers(&bytes) else { return Ok(()) };
        self.attached.malformed.extend(malformed.iter().map(|error| (found_at.clone(), chain(error))));
        for listed in index.manifests {
            let (artifact_type, annotations) = (listed.artifact_type, listed.annotations);
            if !self.attached.list(ListedManifest { artifact_type, annotations, ..entry(listed.descriptor) }) {
                break;
            }
        }
        Ok(())
    }

    /// Lists an entry if it says that it refers to the subject; false if there are more than anybody looks at.
    fn referrer(&mut self, place: &Place, entry: Listed) -> Result<bool, SourceError> {
        let Listed { descriptor, name, artifact_type, annotations, .. } = entry;
        let refers = match self.read(place, &descriptor)? {
            Some(bytes) => refers(&bytes),
            None => Refers::Unknown,
        };
        let is_listed = match refers {
            Refers::To(subject) => subject == self.wanted.subject,
            Refers::Nowhere => false,
            // A kit has a name. What has none and is called an artifact could have been a signature.
            Refers::Unknown => name.is_none() && artifact_type.is_some(),
        };
        if !is_listed {
            return Ok(true);
        }
        let (document, by, found_at) = (None, AttachedBy::Subject, format!("index.json of {}", self.layout.name));
        Ok(self.attached.list(ListedManifest { descriptor, document, by, found_at, artifact_type, annotations }))
    }

    /// The bytes of a manifest, if it is there and may be read.
    fn read(&mut self, place: &Place, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, SourceError> {
        if descriptor.size > limits::MANIFEST_BYTES {
            return Ok(None);
        }
        if descriptor.size > self.room {
            let sentence =
                format!("{}: more than {} bytes of manifests would have to be read", self.layout.name, limits::LAYOUT_REFERRER_BYTES);
            if !self.attached.capped.contains(&sentence) {
                self.attached.capped.push(sentence);
            }
            return Ok(None);
        }
        self.room -= descriptor.size;
        match self.layout.open_blob(&descriptor.digest, self.stop) {
            Ok(mut content) => content.read_most(descriptor.size, place.name(), self.stop).map(Some),
            Err(SourceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn refers(bytes: &[u8]) -> Refers {
    let Ok(json) = Json::parse(bytes) else { return Refers::Unknown };
    let subject = json.object("", &[]).ok().and_then(|document| document.get("subject").cloned());
    let Some(subject) = subject else { return Refers::Nowhere };
    let digest = subject.object("", &[]).ok().and_then(|subject| subject.string("digest").ok().flatten().map(str::parse));
    match digest {
        Some(Ok(digest)) => Refers::To(digest),
        _ => Refers::Nowhere,
    }
}
