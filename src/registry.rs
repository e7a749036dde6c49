//! A kit out of a registry of the OCI distribution spec.
//!
//! The only module that names `oci_client`. Of it kitfs uses the words of the protocol (error envelopes, tokens, media types) and not
//! its requests: `pull_blob_stream_partial` shows neither `Content-Range` nor `Retry-After` nor where a redirect led, reads the body of an
//! error without a limit, hashes a whole blob a second time, and panics on a token that is no header's value; the manifest calls read
//! without a limit. What decides what may reach a reader has to see the answer itself, so the requests are made with `reqwest`, which
//! `oci_client` stands on too.
//!
//! A registry is not trusted with anything: whatever it says is bounded, and what comes out is [`Unverified`]. It is asked for blobs of
//! one repository by digest, never by the `urls` of a descriptor. Redirects (to storage hosts) are followed, but not from https to http,
//! and without the authorization where they lead to another host; each request asks the registry anew, so an address that expires does
//! no harm.
//!
//! How a thing may go wrong, and what happens then:
//!
//! | answer | |
//! |---|---|
//! | 408, 429, 5xx, reset, stall, short body, wrong range | up to three attempts without a new byte between them, with growing delays |
//! | `Retry-After` | waited for up to 30 s, otherwise reported at once |
//! | 401, 403 | one new session with the logins as they are on disk then; after that [`SourceError::Denied`] |
//! | 401, 403, 404 of the host that a redirect led to | the registry is asked once more |
//! | 404 | [`SourceError::NotFound`], at once |
//! | 200 where a range was asked for | read (from the start, if need be) over one connection |
//! | more bytes than the descriptor says | the first of them is passed on, for the check to refuse |
//! | 400, 404, 405, 406, 501 to a list of referrers, or no list at all | there is no such API: see `registry/attached.rs` |
//! | fewer, and the registry says twice that this is all | the stream ends, for the check to refuse |

mod attached;
mod auth;
mod endpoint;
mod piece;
mod ranges;
mod reach;
mod retry;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use oci_client::manifest::{IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE};
use reqwest::{Response, Url};

use self::endpoint::{Body, Ending, Endpoint};
use self::retry::{Failure, Tries};
use crate::credentials::Credentials;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::limits;
use crate::oci::{IMAGE_INDEX, IMAGE_MANIFEST, RegistryName};
use crate::source::{Attached, Attachments, BlobStream, DocumentKind, Pin, Resolved, Source, SourceError};
use crate::verify::Unverified;

pub use ranges::Cut;
pub use reach::{Reached, Wants};
pub use retry::Timing;

/// The header with the digest of what is sent.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// The media types that are asked for at `/manifests/`. An index may stand for the kit in it.
const MANIFEST_TYPES: [&str; 4] = [IMAGE_MANIFEST, IMAGE_INDEX, IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// How a registry is reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// http instead of https. Nothing else makes it http, not even a loopback address.
    pub plain_http: bool,
    /// A PEM file with certificates to trust beside the system's.
    pub ca_cert: Option<PathBuf>,
    /// Where to look for logins.
    pub credentials: Credentials,
    /// The waits.
    pub timing: Timing,
    /// The ranges.
    pub cut: Cut,
}

impl Default for RegistryOptions {
    /// https, the system's certificates, the logins of this process's environment.
    fn default() -> Self {
        Self {
            plain_http: false,
            ca_cert: None,
            credentials: Credentials::from_environment(),
            timing: Timing::default(),
            cut: Cut::default(),
        }
    }
}

/// One repository of a registry, and which of its manifests is meant.
pub struct Registry {
    endpoint: Arc<Endpoint>,
    tag: Option<String>,
    digest: Option<Digest>,
    cut: Cut,
}

impl Registry {
    /// Prepares to ask; nothing is sent yet. A CA file that cannot be used is an error now.
    pub fn new(reference: &RegistryName, digest: Option<Digest>, options: &RegistryOptions) -> Result<Self, SourceError> {
        let endpoint = Arc::new(Endpoint::new(reference.host(), reference.repository(), options)?);
        Ok(Self { endpoint, tag: reference.tag().map(str::to_owned), digest, cut: options.cut })
    }

    async fn resolve_now(&self) -> Result<Resolved, SourceError> {
        if let Some(digest) = self.digest {
            let what = format!("manifest {digest}");
            let url = self.endpoint.url("manifests", &digest.to_string());
            let document = self.fetch(&url, &what, true, Size::AtMost(limits::MANIFEST_BYTES), |_, _| true).await?;
            let media_type = media_type(&document);
            let descriptor = Descriptor { media_type, digest, size: document.bytes.len() as u64 };
            return Ok(Resolved { descriptor, manifest: Unverified::new(document.bytes), pin: Pin::ByUser });
        }
        let tag = self.tag.as_deref().unwrap_or("latest");
        let what = format!("tag {tag}");
        let url = self.endpoint.url("manifests", tag);
        let agrees = |headers: &HeaderMap, bytes: &Bytes| match said_digest(headers) {
            Some(Ok(said)) => Digest::of(said.algorithm(), bytes) == said,
            _ => true,
        };
        let document = self.fetch(&url, &what, true, Size::AtMost(limits::MANIFEST_BYTES), agrees).await?;
        let said = said_digest(&document.headers).transpose().map_err(|reason| self.endpoint.protocol(&what, reason))?;
        let media_type = media_type(&document);
        let size = document.bytes.len() as u64;
        let manifest = Unverified::new(document.bytes);
        let descriptor = match said {
            // What the registry said is what the caller checks the bytes against, so that a lie shows as one.
            Some(digest) => Descriptor { media_type, digest, size },
            None => manifest.describe(Algorithm::Sha256, &media_type),
        };
        Ok(Resolved { descriptor, manifest, pin: Pin::BySource })
    }

    async fn document_now(&self, descriptor: &Descriptor, kind: DocumentKind) -> Result<Unverified<Bytes>, SourceError> {
        let announced = kind == DocumentKind::Announced && MANIFEST_TYPES.contains(&descriptor.media_type.as_str());
        let is_manifest = announced || kind == DocumentKind::Manifest;
        let (kind, limit) = (if is_manifest { "manifests" } else { "blobs" }, kind.limit());
        let what = format!("{} {}", if is_manifest { "manifest" } else { "document" }, descriptor.digest);
        if descriptor.size > limit {
            return Err(self.endpoint.protocol(&what, format!("it has {} bytes, {limit} are allowed", descriptor.size)));
        }
        let url = self.endpoint.url(kind, &descriptor.digest.to_string());
        let document = self.fetch(&url, &what, is_manifest, Size::Exactly(descriptor.size), |_, _| true).await?;
        Ok(Unverified::new(document.bytes))
    }

    /// Fetches a whole small document. One of another size than expected is returned as it is (cut after the first byte too many) if the
    /// registry sends it so twice; one that `agrees` does not like, if it is so at each attempt.
    async fn fetch(
        &self,
        url: &Url,
        what: &str,
        is_manifest: bool,
        size: Size,
        agrees: impl Fn(&HeaderMap, &Bytes) -> bool,
    ) -> Result<Document, SourceError> {
        let accept = is_manifest.then(|| MANIFEST_TYPES.join(", "));
        self.trying(what, size, agrees, || self.attempt(url, what, accept.as_deref(), size)).await
    }

    /// Makes attempts at a document until one is good, in the time that there is for it.
    async fn trying<F: Future<Output = Result<Document, Failure>>>(
        &self,
        what: &str,
        size: Size,
        agrees: impl Fn(&HeaderMap, &Bytes) -> bool,
        attempt: impl Fn() -> F,
    ) -> Result<Document, SourceError> {
        let timing = self.endpoint.timing;
        // A wait that the time for the document has no room for is no wait: its cause is reported, not the end of the time.
        let mut tries = Tries::new(Timing { silence: timing.document.min(timing.silence), ..timing });
        let attempts = async {
            let mut short = None;
            loop {
                let (document, failure) = match attempt().await {
                    Ok(document) => {
                        let length = document.bytes.len() as u64;
                        let complete = !matches!(size, Size::Exactly(size) if length < size) || short == Some(length);
                        if complete && agrees(&document.headers, &document.bytes) {
                            return Ok(document);
                        }
                        short = Some(length);
                        let reason = format!("the {length} bytes that came are not what was announced");
                        (Some(document), Failure::again(self.endpoint.protocol(what, reason)))
                    }
                    Err(failure) => (None, failure),
                };
                match (tries.again(failure).await, document) {
                    (Ok(()), _) => {}
                    (Err(_), Some(document)) => return Ok(document),
                    (Err(error), None) => return Err(error),
                }
            }
        };
        let Ok(ended) = tokio::time::timeout(timing.document, attempts).await else {
            let (place, what, seconds) = (self.endpoint.place.clone(), what.to_owned(), timing.document.as_secs());
            return Err(SourceError::Late { place, what, seconds, source: tries.last().map(Box::new) });
        };
        ended
    }

    async fn attempt(&self, url: &Url, what: &str, accept: Option<&str>, size: Size) -> Result<Document, Failure> {
        let mut response = self.endpoint.get(url, what, accept, None).await?;
        if response.status() != http::StatusCode::OK {
            return Err(self.endpoint.refused(response, what).await);
        }
        self.received(&mut response, what, size).await
    }

    /// The document of a good answer.
    async fn received(&self, response: &mut Response, what: &str, size: Size) -> Result<Document, Failure> {
        let headers = response.headers().clone();
        let (Size::AtMost(limit) | Size::Exactly(limit) | Size::Shown(limit)) = size;
        let Body { bytes, ending } = self.endpoint.body(response, what, limit.saturating_add(1)).await;
        match (ending, size) {
            (_, Size::AtMost(limit)) if bytes.len() as u64 > limit => {
                Err(Failure::Final(self.endpoint.protocol(what, format!("it has more than {limit} bytes"))))
            }
            // The rest cannot matter: one byte too many is there already.
            (_, Size::Exactly(size) | Size::Shown(size)) if bytes.len() as u64 > size => Ok(Document { bytes, headers }),
            (Ending::Broken(failure), _) => Err(failure),
            (Ending::Complete | Ending::Cut, _) => Ok(Document { bytes, headers }),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("place", &self.endpoint.place).field("tag", &self.tag).field("digest", &self.digest).finish()
    }
}

impl Source for Registry {
    fn name(&self) -> &str {
        &self.endpoint.place
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        Box::pin(self.resolve_now())
    }

    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, kind: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        Box::pin(self.document_now(descriptor, kind))
    }

    fn blob(&self, descriptor: &Descriptor, from: u64) -> BlobStream {
        ranges::blob(Arc::clone(&self.endpoint), descriptor.digest, descriptor.size, from, self.cut)
    }

    fn attached<'a>(&'a self, attachments: &'a Attachments) -> BoxFuture<'a, Attached> {
        Box::pin(self.attached_now(&attachments.subject))
    }
}

/// How large a document may be.
#[derive(Debug, Clone, Copy)]
enum Size {
    /// Its descriptor says so.
    Exactly(u64),
    /// Nobody has described it.
    AtMost(u64),
    /// The same, but one that is larger is no error: its first byte too many shows it.
    Shown(u64),
}

/// A document as it came.
struct Document {
    bytes: Bytes,
    headers: HeaderMap,
}

/// The digest that an answer's head names; Err if it is none.
fn said_digest(headers: &HeaderMap) -> Option<Result<Digest, String>> {
    let text = headers.get(CONTENT_DIGEST)?.to_str().unwrap_or("?").trim();
    // Some proxies send it empty.
    if text.is_empty() { None } else { Some(text.parse().map_err(|error| format!("its Docker-Content-Digest is malformed: {error}"))) }
}

/// The media type of a manifest: what the head says, if it says anything of use, otherwise what the document says of itself.
fn media_type(document: &Document) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        media_type: Option<String>,
    }
    let header = document.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let header = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // What says nothing of use: stores of files without an idea of what is in them. Anything else was not asked for, but it is what the
    // registry says that this is, and whoever reads it refuses it by that name.
    if !["", "application/json", "application/octet-stream", "binary/octet-stream", "text/plain"].contains(&header.as_str()) {
        return header;
    }
    let named = serde_json::from_slice::<Named>(&document.bytes).ok().and_then(|named| named.media_type);
    named.unwrap_or_else(|| IMAGE_MANIFEST.to_owned())
}
