//! What is attached to a manifest in a registry: the referrers API, the index that stands in for it, and the tags of Cosign's older format.
//!
//! Registries without the API say so in many ways, and one passes the request to a host that knows nothing of it. All of that only means that
//! the index at the tag is the list. What the registry itself cannot give just now is no answer: neither here nor there.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, LINK};
use reqwest::Url;

use super::endpoint::Endpoint;
use super::retry::Failure;
use super::{Document, Registry, Size, media_type, said_digest};
use crate::digest::{Algorithm, Digest};
use crate::failure::chain;
use crate::limits;
use crate::oci::{IMAGE_INDEX, Index, IndexError};
use crate::source::{Attached, AttachedBy, ListedManifest, SourceError, tags};
use crate::verify::Unverified;

/// What a registry says that has no list of referrers, or knows of no such request.
const NO_API: [u16; 5] = [400, 404, 405, 406, 501];

/// What came for a page.
enum Page {
    /// There is no such API.
    None,
    /// It is larger than any may be.
    TooLarge,
    /// A list.
    List { bytes: u64, index: Index, malformed: Vec<IndexError>, next: Result<Option<Url>, String> },
}

impl Registry {
    /// See [`crate::source::Source::attached`].
    pub(super) async fn attached_now(&self, subject: &Digest) -> Attached {
        let [index, signatures, attestations] = tags(subject);
        let (mut attached, signatures, attestations) = futures_util::join!(
            self.referrers(subject, &index),
            self.by_name(subject, &signatures, AttachedBy::SignatureName),
            self.by_name(subject, &attestations, AttachedBy::AttestationName),
        );
        attached.append(signatures);
        attached.append(attestations);
        attached
    }

    /// The referrers, by the API and, where that has none, by the index at `tag`.
    async fn referrers(&self, subject: &Digest, tag: &str) -> Attached {
        let mut attached = Attached::default();
        self.by_api(subject, &mut attached).await;
        if attached.listed.is_empty() && attached.malformed.is_empty() {
            self.by_index(subject, tag, &mut attached).await;
        }
        attached
    }

    async fn by_api(&self, subject: &Digest, attached: &mut Attached) {
        let what = format!("referrers of {subject}");
        let found_at = format!("referrers of {}", self.endpoint.place);
        attached.searched.push(found_at.clone());
        let mut url = self.endpoint.url("referrers", &subject.to_string());
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        let gap = |reason: &str| (found_at.clone(), self.endpoint.protocol(&what, reason.to_owned()));
        loop {
            if seen.len() == limits::REFERRER_PAGES {
                attached.capped.push(format!("{found_at}: the list has more than {} pages", limits::REFERRER_PAGES));
                return;
            }
            if !seen.insert(url.clone()) {
                attached.gaps.push(gap("the pages of the list lead back to one that was there before"));
                return;
            }
            let next = match self.page(&url, &what).await {
                Ok(Page::None) if seen.len() == 1 => return,
                Ok(Page::None) => {
                    attached.gaps.push(gap("the list goes on at a page that is none"));
                    return;
                }
                Ok(Page::TooLarge) => {
                    attached.capped.push(format!("{found_at}: a page of the list has more than {} bytes", limits::MANIFEST_BYTES));
                    return;
                }
                Ok(Page::List { bytes: more, index, malformed, next }) => {
                    bytes += more;
                    if !list(attached, &found_at, index, malformed) {
                        return;
                    }
                    next
                }
                Err(error) => {
                    attached.gaps.push((found_at, error));
                    return;
                }
            };
            if bytes > limits::REFERRER_LIST_BYTES {
                attached.capped.push(format!("{found_at}: the list has more than {} bytes", limits::REFERRER_LIST_BYTES));
                return;
            }
            match next {
                Ok(None) => return,
                Ok(Some(next)) => url = next,
                Err(reason) => {
                    attached.gaps.push(gap(&reason));
                    return;
                }
            }
        }
    }

    async fn page(&self, url: &Url, what: &str) -> Result<Page, SourceError> {
        let endpoint = &*self.endpoint;
        let size = Size::Shown(limits::MANIFEST_BYTES);
        // A list that says it is one and is none came damaged.
        let agrees = |headers: &HeaderMap, bytes: &Bytes| !says_index(headers) || Index::of_referrers(bytes).is_ok();
        let no_api = AtomicBool::new(false);
        let answer = async || {
            let mut response = endpoint.ask(url, what, Some(IMAGE_INDEX), None).await?;
            match response.status().as_u16() {
                200 => self.received(&mut response, what, size).await,
                status => {
                    no_api.fetch_or(NO_API.contains(&status), Ordering::Relaxed);
                    Err(endpoint.refused(response, what).await)
                }
            }
        };
        let attempt = || async {
            let (outcome, led) = endpoint.watching(url, answer()).await;
            match outcome {
                // What another host says, or does not say, is not the registry's word.
                Err(Failure::Again { error, .. } | Failure::Final(error)) if led => {
                    no_api.store(true, Ordering::Relaxed);
                    Err(Failure::Final(error))
                }
                outcome => outcome,
            }
        };
        let document = match self.trying(what, size, agrees, attempt).await {
            Ok(document) => document,
            Err(_) if no_api.load(Ordering::Relaxed) => return Ok(Page::None),
            Err(error) => return Err(error),
        };
        let bytes = document.bytes.len() as u64;
        if bytes > limits::MANIFEST_BYTES {
            return Ok(Page::TooLarge);
        }
        match Index::of_referrers(&document.bytes) {
            Ok((index, malformed)) => Ok(Page::List { bytes, index, malformed, next: next_page(endpoint, url, &document.headers) }),
            Err(error) if says_index(&document.headers) => Err(endpoint.protocol(what, chain(&error))),
            Err(_) => Ok(Page::None),
        }
    }

    /// The index at `tag`. Some registries answer with the subject itself where the tag reads like its digest.
    async fn by_index(&self, subject: &Digest, tag: &str, attached: &mut Attached) {
        let found_at = self.tag_place(tag);
        attached.searched.push(found_at.clone());
        let document = match self.tagged(tag).await {
            Ok(Some(document)) => document,
            Ok(None) => return,
            Err(error) => {
                attached.gaps.push((found_at, error));
                return;
            }
        };
        if document.bytes.len() as u64 > limits::MANIFEST_BYTES {
            attached.capped.push(format!("{found_at} has more than {} bytes", limits::MANIFEST_BYTES));
            return;
        }
        if Digest::of(subject.algorithm(), &document.bytes) == *subject {
            return;
        }
        match Index::of_referrers(&document.bytes) {
            Ok((index, malformed)) => _ = list(attached, &found_at, index, malformed),
            Err(error) if says_index(&document.headers) => {
                attached.gaps.push((found_at, self.endpoint.protocol(&format!("tag {tag}"), chain(&error))));
            }
            Err(_) => {}
        }
    }

    /// The manifest at `tag`, as it is: nobody else describes it.
    async fn by_name(&self, subject: &Digest, tag: &str, by: AttachedBy) -> Attached {
        let mut attached = Attached::default();
        let found_at = self.tag_place(tag);
        attached.searched.push(found_at.clone());
        match self.tagged(tag).await {
            Ok(Some(document)) if document.bytes.len() as u64 > limits::MANIFEST_BYTES => {
                attached.capped.push(format!("{found_at} has more than {} bytes", limits::MANIFEST_BYTES));
            }
            Ok(Some(document)) => {
                let is_subject = Digest::of(subject.algorithm(), &document.bytes) == *subject;
                let media_type = media_type(&document);
                let document = Unverified::new(document.bytes);
                let descriptor = document.describe(Algorithm::Sha256, &media_type);
                if !is_subject {
                    let (document, artifact_type, annotations) = (Some(document), None, Vec::new());
                    attached.list(ListedManifest { descriptor, document, by, found_at, artifact_type, annotations });
                }
            }
            Ok(None) => {}
            Err(error) => attached.gaps.push((found_at, error)),
        }
        attached
    }

    /// What is at `tag`; `None` if there is no such tag.
    async fn tagged(&self, tag: &str) -> Result<Option<Document>, SourceError> {
        let (what, url) = (format!("tag {tag}"), self.endpoint.url("manifests", tag));
        let agrees = |headers: &HeaderMap, bytes: &Bytes| match said_digest(headers) {
            Some(Ok(said)) => Digest::of(said.algorithm(), bytes) == said,
            Some(Err(_)) | None => true,
        };
        match self.fetch(&url, &what, true, Size::Shown(limits::MANIFEST_BYTES), agrees).await {
            // No header is believed, but one that contradicts the bytes says that they are damaged.
            Ok(document) if document.bytes.len() as u64 <= limits::MANIFEST_BYTES && !agrees(&document.headers, &document.bytes) => {
                Err(self.endpoint.protocol(&what, "the bytes that came are not what was announced".to_owned()))
            }
            Ok(document) => Ok(Some(document)),
            Err(SourceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tag_place(&self, tag: &str) -> String {
        format!("tag {tag} of {}", self.endpoint.place)
    }
}

/// Adds the entries of a list; false if there are more than anybody looks at.
fn list(attached: &mut Attached, found_at: &str, index: Index, malformed: Vec<IndexError>) -> bool {
    attached.malformed.extend(malformed.iter().map(|error| (found_at.to_owned(), chain(error))));
    index.manifests.into_iter().all(|listed| {
        let (descriptor, artifact_type, annotations) = (listed.descriptor, listed.artifact_type, listed.annotations);
        let (document, by, found_at) = (None, AttachedBy::Subject, found_at.to_owned());
        attached.list(ListedManifest { descriptor, document, by, found_at, artifact_type, annotations })
    })
}

fn says_index(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(IMAGE_INDEX)
}

/// Where a list goes on, which has to be in the same repository.
fn next_page(endpoint: &Endpoint, page: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
    let links = headers.get_all(LINK).iter().map(|value| value.to_str().map_err(|_| "its `Link` is no text".to_owned()));
    for link in links {
        let link = link?;
        let Some(target) = next_link(link) else { continue };
        let next =
            page.join(target).map_err(|error| format!("the list goes on at `{}`, which is no URL: {error}", target.escape_debug()))?;
        if !endpoint.is_ours(&next) {
            return Err(format!("the list goes on at `{}`, outside of this repository", target.escape_debug()));
        }
        return Ok(Some(next));
    }
    Ok(None)
}

/// The target of the first link of a `Link` header that has the relation `next`.
fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some((_, link)) = rest.split_once('<') {
        let (target, after) = link.split_once('>')?;
        // A comma ends the link, unless it stands in quotes.
        let mut quoted = false;
        let end = after.find(|letter| {
            quoted ^= letter == '"';
            letter == ',' && !quoted
        });
        let (parameters, more) = after.split_at(end.unwrap_or(after.len()));
        let is_next = parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
            let relations = value.trim().trim_matches('"').split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && relations.into_iter().any(|relation| relation.eq_ignore_ascii_case("next"))
        });
        if is_next {
            return Some(target);
        }
        rest = more;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_of_a_header() {
        for (header, expected) in [
            (r#"</v2/a/referrers/x?last=1>; rel="next""#, Some("/v2/a/referrers/x?last=1")),
            ("<b>;rel=next", Some("b")),
            (r#"<a>; rel="prev", <b>; title="x, <y>; rel=next"; REL="first NEXT""#, Some("b")),
            (r#"<a>; rel="prev"; title="x, rel=next", <c>; rel=last"#, None),
            ("<a>; rel=nextish", None),
            ("<a", None),
            ("a>; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), expected, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_is_too_strange(header in "[<>;,=\" a-z]{0,60}") {
            if let Some(target) = next_link(&header) {
                proptest::prop_assert!(header.contains(target));
            }
        }
    }
}
