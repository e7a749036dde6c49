//! Kit's own storage: what `kit pack` and `kit pull` leave on this host.
//!
//! Kit has had two forms of it below `storage/` in its home:
//!
//! * now: one layout for all repositories. Beside it, for each repository, `<base64 of REGISTRY/REPOSITORY>-index.json`, which lists its
//!   manifests by digest, and `…-tags.json`, an object of tags and descriptors. The layout's own `index.json` has no names;
//! * before: a layout of its own for each repository, at `REGISTRY/REPOSITORY`, with tags as names. Kit moves them into the new form when
//!   it is next used, over what is there; so the old form is looked at first.
//!
//! Kit verifies nothing of it when it unpacks, and writes its lists in place and without a lock.

use std::path::Path;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;

use super::listing::{Listing, several};
use super::{Folder, Place, Shelf, Stop};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::failure::chain;
use crate::json::Json;
use crate::limits;
use crate::oci::{Index, RegistryName, descriptor};
use crate::source::SourceError;

/// What kit's storage below `home` is called, and where a kit is looked for in it.
pub(super) fn shelves(reference: &RegistryName, home: &Path) -> Result<(String, Vec<Shelf>), SourceError> {
    let storage = home.join("storage");
    let name = format!("kitops:{}", storage.display());
    let (host, repository) = (reference.host(), reference.repository());
    let folder = Folder::open(&storage, &name)?;
    let parts: Vec<&str> = [host].into_iter().chain(repository.split('/')).collect();
    let mut shelves = Vec::new();
    if let Some(old) = folder.below(&parts)? {
        shelves.push(Shelf { place: Place::Folder(old), listing: Listing::Index(reference.tag().map(str::to_owned)) });
    }
    let listing = Listing::Kit { repository: format!("{host}/{repository}"), tag: reference.tag().map(str::to_owned) };
    shelves.push(Shelf { place: Place::Folder(folder), listing });
    Ok((name, shelves))
}

/// The manifest that the lists of a repository have for a tag, or have at all.
pub(super) fn find(
    place: &Place,
    repository: &str,
    tag: Option<&str>,
    digest: Option<Digest>,
    stop: &Stop,
) -> Result<Descriptor, SourceError> {
    let encoded = URL_SAFE.encode(repository);
    if let Some(digest) = digest {
        let missing = || place.missing(format!("{repository}@{digest}"));
        let index = list(place, &format!("{encoded}-index.json"), stop, |json| Index::of_json(&json).map_err(|error| chain(&error)))?;
        let listed = index.ok_or_else(missing)?.manifests.into_iter().find(|listed| listed.descriptor.digest == digest);
        return listed.map(|listed| listed.descriptor).ok_or_else(missing);
    }
    let tag = tag.unwrap_or("latest");
    let tags = list(place, &format!("{encoded}-tags.json"), stop, |json| match json {
        Json::Object(tags) if tags.len() <= limits::LAYOUT_MANIFESTS => Ok(tags),
        Json::Object(tags) => Err(format!("it has {} tags, {} are allowed", tags.len(), limits::LAYOUT_MANIFESTS)),
        _ => Err("it is no object of tags".to_owned()),
    })?;
    let tags = tags.unwrap_or_default();
    match tags.iter().find(|(name, _)| name == tag) {
        Some((_, json)) => descriptor(json, tag).map_err(|error| place.malformed(&format!("{repository}:{tag}"), &error)),
        None => {
            let known = several(tags.iter().map(|(name, _)| format!("`{name}`")));
            Err(place.missing(format!("{repository}:{tag} (it has {known} of that repository)")))
        }
    }
}

/// Reads one of kit's lists; `None` if there is none. One that is no JSON may be half written, and is given some time.
fn list<T>(place: &Place, name: &str, stop: &Stop, read: impl Fn(Json) -> Result<T, String>) -> Result<Option<T>, SourceError> {
    let mut tries = 1;
    loop {
        let bytes = match place.read(&[name], limits::LAYOUT_INDEX_BYTES, stop) {
            Err(SourceError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        match Json::parse(&bytes) {
            Ok(json) => return read(json).map(Some).map_err(|reason| place.wrong(name, reason)),
            Err(_) if tries < limits::KIT_STORAGE_READS && !stop.is_set() => {
                tries += 1;
                thread::sleep(limits::KIT_STORAGE_PAUSE);
            }
            Err(error) => return Err(place.malformed(name, &error)),
        }
    }
}
