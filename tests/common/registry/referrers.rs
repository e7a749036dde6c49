//! What is attached to a manifest, as a registry with the referrers API lists it, and as a client leaves it in one without.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Manifest, State, sha256};

/// The media type of every list.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The tag at which clients list what is attached to `subject` where the registry does not.
pub fn fallback_tag(subject: &str) -> String {
    subject.replacen(':', "-", 1)
}

/// A manifest that is attached to another one.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    /// What a registry says of it.
    listed: Value,
    /// What Cosign says of it.
    left: Value,
}

impl Attached {
    pub(super) fn new(digest: &str, media_type: &str, content: &[u8]) -> Self {
        let manifest: Value = serde_json::from_slice(content).unwrap_or_default();
        let config = &manifest["config"]["mediaType"];
        let own = &manifest["artifactType"];
        let bare = |kind: &Value| json!({ "mediaType": media_type, "digest": digest, "size": content.len(), "artifactType": kind });
        let mut listed = bare(if own.is_string() { own } else { config });
        if manifest["annotations"].is_object() {
            listed["annotations"] = manifest["annotations"].clone();
        }
        Self { listed, left: bare(config) }
    }
}

impl State {
    /// A manifest, or the list that a client would have made of it where there is no API.
    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<Manifest> {
        let found = self.manifests.get(&(repository.to_owned(), name.to_owned()));
        found.cloned().or_else(|| {
            let subject = name.strip_prefix("sha256-").filter(|_| self.page.is_none())?;
            let attached = self.attached.get(&(repository.to_owned(), format!("sha256:{subject}")))?;
            let content = index(attached.iter().map(|attached| attached.left.clone()).collect());
            Some(Manifest { media_type: INDEX.to_owned(), digest: sha256(&content), content: Arc::new(content) })
        })
    }

    /// One page of the API, counted from 0, and whether there is another one; `None` where there is no API.
    pub(super) fn referrers(&self, repository: &str, subject: &str, page: usize) -> Option<(Vec<u8>, bool)> {
        let size = self.page?.max(1);
        let all = self.attached.get(&(repository.to_owned(), subject.to_owned())).map_or(&[][..], Vec::as_slice);
        let rest = all.get(page.saturating_mul(size)..).unwrap_or_default();
        let listed = rest.iter().take(size).map(|attached| attached.listed.clone());
        Some((index(listed.collect()), rest.len() > size))
    }
}

fn index(manifests: Vec<Value>) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into_bytes()
}
