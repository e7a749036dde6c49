//! Which manifest is meant: the lists of a layout, by name or by digest.

use std::error::Error;

use super::{Place, Shelf, Stop, attached, kitops};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::chain;
use crate::json::{Json, JsonError};
use crate::limits;
use crate::oci::{Index, Listed};
use crate::source::SourceError;

/// How the manifests of a place are found.
pub(super) enum Listing {
    /// In its `index.json`, by this name; without one, the only manifest.
    Index(Option<String>),
    /// In the lists that kit keeps of this repository, by this tag.
    Kit { repository: String, tag: Option<String> },
}

impl Listing {
    pub(super) fn index(name: Option<&str>) -> Self {
        Self::Index(name.map(str::to_owned))
    }
}

impl Shelf {
    /// The manifest that is meant; by `digest`, if there is one.
    pub(super) fn find(&self, digest: Option<Digest>, stop: &Stop) -> Result<Descriptor, SourceError> {
        match (&self.listing, digest) {
            (Listing::Index(name), None) => self.place.select(self.place.index(stop)?, name.as_deref()),
            (Listing::Index(_), Some(digest)) => self.place.described(&self.place.index(stop)?, digest, stop),
            (Listing::Kit { repository, tag }, digest) => kitops::find(&self.place, repository, tag.as_deref(), digest, stop),
        }
    }
}

impl Place {
    /// A small JSON file.
    pub(super) fn json(&self, name: &str, stop: &Stop) -> Result<Json, SourceError> {
        let bytes = self.read(&[name], limits::LAYOUT_INDEX_BYTES, stop)?;
        Json::parse(&bytes).map_err(|error| self.malformed(name, &error))
    }

    /// The manifests that `index.json` lists.
    pub(super) fn index(&self, stop: &Stop) -> Result<Vec<Listed>, SourceError> {
        let version = |json: &Json| -> Result<String, JsonError> {
            json.object("", &["imageLayoutVersion"])?.required_string("imageLayoutVersion").map(str::to_owned)
        };
        match version(&self.json("oci-layout", stop)?).map_err(|error| self.malformed("oci-layout", &error))?.as_str() {
            "1.0.0" => {}
            other => return Err(self.wrong("oci-layout", format!("the layout has version `{other}`, `1.0.0` is understood"))),
        }
        let bytes = self.read(&["index.json"], limits::LAYOUT_INDEX_BYTES, stop)?;
        Ok(Index::of_layout(&bytes).map_err(|error| self.malformed("index.json", &error))?.manifests)
    }

    /// The manifest with this name; without one, the only manifest.
    fn select(&self, mut listed: Vec<Listed>, name: Option<&str>) -> Result<Descriptor, SourceError> {
        // `cosign save` gives what it attaches the name of the image.
        listed.retain(|entry| attached::kind(entry).is_none());
        let known = names(&listed);
        let Some(name) = name else {
            // The same manifest under several names is still one.
            let mut digests: Vec<_> = listed.iter().map(|entry| entry.descriptor.digest).collect();
            digests.sort_unstable();
            digests.dedup();
            return match (digests.len(), listed.into_iter().next()) {
                (1, Some(entry)) => Ok(entry.descriptor),
                (0, _) | (_, None) => Err(self.missing("a manifest in index.json".into())),
                (count, _) => Err(self.missing(format!("the only manifest (there are {count}, name one of {known})"))),
            };
        };
        let matching = |matches: &dyn Fn(&str) -> bool| -> Vec<&Listed> {
            listed.iter().filter(|entry| entry.name.as_deref().is_some_and(matches)).collect()
        };
        let exact = matching(&|full| full == name);
        let found = if exact.is_empty() { matching(&|full| tag(full) == Some(name)) } else { exact };
        match found.as_slice() {
            [] => Err(self.missing(format!("`{name}` (it has {known})"))),
            [first, rest @ ..] if rest.iter().all(|entry| entry.descriptor.digest == first.descriptor.digest) => {
                Ok(first.descriptor.clone())
            }
            several => {
                Err(self.missing(format!("the one manifest that `{name}` means ({} have that name, out of {known})", several.len())))
            }
        }
    }

    /// The descriptor of a manifest that the user named by digest. It need not be listed: a manifest of an index is not.
    fn described(&self, listed: &[Listed], digest: Digest, stop: &Stop) -> Result<Descriptor, SourceError> {
        if let Some(entry) = listed.iter().find(|entry| entry.descriptor.digest == digest) {
            return Ok(entry.descriptor.clone());
        }
        let size = self.open_blob(&digest, stop)?.length();
        // Nobody says what it is but the document itself.
        Ok(Descriptor { media_type: String::new(), digest, size })
    }

    pub(super) fn malformed(&self, what: &str, error: &dyn Error) -> SourceError {
        // SourceError::Protocol has no cause, so the parser's is written out.
        self.wrong(what, chain(error))
    }
}

/// The tag of a name: what follows its last colon, unless that is a port.
fn tag(name: &str) -> Option<&str> {
    name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'))
}

/// For an error: the names that there are, or digests where there is none.
fn names(listed: &[Listed]) -> String {
    several(listed.iter().map(|entry| match &entry.name {
        Some(name) => format!("`{name}`"),
        None => format!("`@{}`", entry.descriptor.digest),
    }))
}

/// For an error: the first of many names, and how many more there are.
pub(super) fn several(mut names: impl ExactSizeIterator<Item = String>) -> String {
    let mut shown: Vec<String> = names.by_ref().take(limits::LAYOUT_NAMES_SHOWN).collect();
    match (shown.is_empty(), names.len()) {
        (true, _) => return "none".to_owned(),
        (false, 0) => {}
        (false, more) => shown.push(format!("{more} more")),
    }
    shown.join(", ")
}
