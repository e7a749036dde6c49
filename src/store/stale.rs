//! Documents that go: manifests, configs, signatures and the records of them, once there are too many.
//!
//! They are small and kept for good, which lets a kit be mounted and decided on without a network; but whoever explains a thousand kits, or one to which
//! thousands of things are attached, must not fill the disk with them. What goes first was only found attached to something, or is named by nothing;
//! then comes what belongs to a kit that was resolved or has layers here, and each time that which was not used for longest. No mount that lives needs any
//! of it: its plan has its manifests and configs. The size that all of them have together is bounded, and so is their number.

use std::collections::HashSet;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use serde::Deserialize;

use super::Inner;
use super::attached;
use super::dir::Dir;
use super::documents;
use super::error::{StoreError, disk};
use crate::digest::Digest;
use crate::layer::LayerKey;
use crate::limits;

/// A file that could go.
struct Candidate<'store> {
    dir: &'store Dir,
    name: String,
    size: u64,
    used: SystemTime,
    worth: Worth,
}

/// What it is good for, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// No record leads to it.
    Unnamed,
    /// It was found attached to something.
    Found,
    /// It is of a kit that was resolved, or that has layers here; or it admitted one.
    OfAKit,
}

/// The digests that matter in a manifest; of anything else, nothing.
#[derive(Debug, Default, Deserialize)]
struct Named {
    config: Option<Pointer>,
    #[serde(default)]
    layers: Vec<Pointer>,
}

#[derive(Debug, Deserialize)]
struct Pointer {
    digest: Digest,
}

/// Removes documents until they keep to their limits. With `unnamed`, all that nothing names too, unless it came a moment ago.
pub(super) fn bound(store: &Inner, unnamed: bool) -> Result<(), StoreError> {
    let mut candidates = Vec::new();
    for dir in [&store.blobs, &store.references, &store.attached] {
        for name in documents_in(dir)? {
            if let Some(stat) = dir.stat(&name)?
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            {
                let since = Duration::new(u64::try_from(stat.st_mtime).unwrap_or(0), 0);
                let (size, used) = (u64::try_from(stat.st_size).unwrap_or(0), UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH));
                candidates.push(Candidate { dir, name, size, used, worth: Worth::OfAKit });
            }
        }
    }
    let mut bytes = candidates.iter().map(|candidate| candidate.size).fold(0, u64::saturating_add);
    let mut count = candidates.len();
    let is_over = |bytes, count| bytes > limits::DOCUMENTS_BYTES || count > limits::DOCUMENTS;
    if !unnamed && !is_over(bytes, count) {
        return Ok(());
    }
    judge(store, &mut candidates)?;
    candidates.sort_by_key(|candidate| (candidate.worth, candidate.used));
    for Candidate { dir, name, size, worth, .. } in candidates {
        if unnamed && worth == Worth::Unnamed || is_over(bytes, count) {
            dir.unlink(&name)?;
            bytes = bytes.saturating_sub(size);
            count -= 1;
        }
    }
    Ok(())
}

/// The names of documents. What is called otherwise was put there by another version, or by nobody that we know.
fn documents_in(dir: &Dir) -> Result<impl Iterator<Item = String>, StoreError> {
    Ok(dir.list()?.into_iter().filter(|name| Digest::from_file_name(name).is_some()))
}

/// Finds out what each blob is good for.
fn judge(store: &Inner, candidates: &mut [Candidate<'_>]) -> Result<(), StoreError> {
    let layers = store.layers.list()?.into_iter().chain(store.pinned.list()?);
    let here: HashSet<Digest> = layers.filter_map(|name| LayerKey::from_file_name(&name)).map(|key| key.digest).collect();
    let (mut found, mut of_a_kit) = (HashSet::<Digest>::new(), HashSet::<Digest>::new());
    let name_all = |set: &mut HashSet<Digest>, manifest: Digest| -> Result<(), StoreError> {
        if set.insert(manifest) {
            let Named { config, layers } = read(store, &manifest.file_name())?;
            set.extend(config.into_iter().chain(layers).map(|pointer| pointer.digest));
        }
        Ok(())
    };
    for name in documents_in(&store.references)? {
        if let Some(manifest) = documents::remembered_as(store, &name)? {
            name_all(&mut of_a_kit, manifest)?;
        }
    }
    for subject in store.attached.list()?.iter().filter_map(|name| Digest::from_file_name(name)) {
        for kept in attached::kept(store, &subject)? {
            name_all(if kept.met { &mut of_a_kit } else { &mut found }, kept.digest)?;
        }
    }
    for candidate in candidates.iter().filter(|candidate| std::ptr::eq(candidate.dir, &store.blobs)) {
        let Some(digest) = Digest::from_file_name(&candidate.name) else { continue };
        let named = if of_a_kit.contains(&digest) { Named::default() } else { read(store, &candidate.name)? };
        if named.layers.iter().any(|layer| here.contains(&layer.digest)) {
            of_a_kit.insert(digest);
            of_a_kit.extend(named.config.map(|config| config.digest));
        }
    }
    for candidate in candidates.iter_mut().filter(|candidate| std::ptr::eq(candidate.dir, &store.blobs)) {
        candidate.worth = match Digest::from_file_name(&candidate.name) {
            Some(digest) if of_a_kit.contains(&digest) => Worth::OfAKit,
            Some(digest) if found.contains(&digest) => Worth::Found,
            // Its record may come yet.
            _ if is_young(candidate.used) => Worth::Found,
            _ => Worth::Unnamed,
        };
    }
    Ok(())
}

/// It came or was used a moment ago. A time in the future is no reason to keep anything.
fn is_young(used: SystemTime) -> bool {
    used.elapsed().is_ok_and(|since| since < Duration::from_secs(limits::UNNAMED_DOCUMENT_SECONDS))
}

/// What a blob names, if it is a manifest. Nothing is believed of it but what it is kept for, so it need not be what its name says.
fn read(store: &Inner, name: &str) -> Result<Named, StoreError> {
    let Some(file) = store.blobs.open(name)? else { return Ok(Named::default()) };
    let mut text = Vec::new();
    file.take(limits::MANIFEST_BYTES).read_to_end(&mut text).map_err(disk(format!("reading {}", store.blobs.path_of(name).display())))?;
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}
