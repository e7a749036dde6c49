//! One repository of one registry: its URLs, the HTTP client, and one request with everything that HTTP and authorization may do to it.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{ACCEPT, AUTHORIZATION, RANGE};
use oci_client::errors::OciEnvelope;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder, Response, Url};

use super::RegistryOptions;
use super::auth::{Session, challenge};
use super::retry::{Failure, Timing, retry_after};
use crate::credentials::Credentials;
use crate::limits;
use crate::source::{NotTls, SourceError};

/// See the module.
pub(super) struct Endpoint {
    pub(super) place: String,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) timing: Timing,
    pub(super) credentials: Credentials,
    /// `https://HOST/v2/`.
    api: Url,
    roots: Vec<Certificate>,
    client: OnceLock<Client>,
    /// URLs that are asked for right now, and whether the registry led from there to another host. The client's own answer does not tell where
    /// it was when nothing came.
    watched: Arc<Mutex<HashMap<Url, bool>>>,
    session: RwLock<Arc<Session>>,
    pub(super) renewing: tokio::sync::Mutex<()>,
}

/// What is wrong with a redirect.
#[derive(Debug, thiserror::Error)]
enum RedirectError {
    #[error("it redirects from https to http")]
    Downgrade,
    #[error("it redirects more than {limit} times", limit = limits::REDIRECTS)]
    TooMany,
}

/// A part of a body that was read, and how it ended.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) ending: Ending,
}

pub(super) enum Ending {
    /// The other side said that this is all.
    Complete,
    /// As much as was wanted came; there may be more.
    Cut,
    /// Something happened.
    Broken(Failure),
}

impl Endpoint {
    pub(super) fn new(host: &str, repository: &str, options: &RegistryOptions) -> Result<Self, SourceError> {
        let place = format!("{host}/{repository}");
        let scheme = if options.plain_http { "http" } else { "https" };
        // Docker Hub's name is not the name of its registry.
        let server = if matches!(host, "docker.io" | "index.docker.io") { "registry-1.docker.io" } else { host };
        let api = Url::parse(&format!("{scheme}://{server}/v2/")).map_err(|error| SourceError::Protocol {
            place: place.clone(),
            what: host.to_owned(),
            reason: format!("it does not make a URL: {error}"),
        })?;
        let roots = match &options.ca_cert {
            Some(path) => {
                let local = |source| SourceError::Local { path: path.display().to_string(), source };
                let bytes = std::fs::read(path).map_err(local)?;
                let roots =
                    Certificate::from_pem_bundle(&bytes).map_err(|error| local(io::Error::new(io::ErrorKind::InvalidData, error)))?;
                if roots.is_empty() {
                    return Err(local(io::Error::new(io::ErrorKind::InvalidData, "there is no PEM certificate in it")));
                }
                roots
            }
            None => Vec::new(),
        };
        Ok(Self {
            place,
            host: host.to_owned(),
            repository: repository.to_owned(),
            timing: options.timing,
            credentials: options.credentials.clone(),
            api,
            roots,
            client: OnceLock::new(),
            watched: Arc::default(),
            session: RwLock::default(),
            renewing: tokio::sync::Mutex::new(()),
        })
    }

    /// `…/v2/`, where a registry says how to log in.
    pub(super) fn api(&self) -> &Url {
        &self.api
    }

    /// `…/v2/REPOSITORY/KIND/NAME`.
    pub(super) fn url(&self, kind: &str, name: &str) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(self.repository.split('/')).push(kind).push(name);
        }
        url
    }

    pub(super) fn is_https(&self) -> bool {
        self.api.scheme() == "https"
    }

    pub(super) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_session(&self, session: Session) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(session);
    }

    /// The client, made at the first request: a mount whose kit is in the cache does not pay for reading the system's certificates.
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = self.build_client().map_err(|error| {
            Failure::Final(self.unavailable(&self.host, "the HTTP client cannot be made".into(), Some(Box::new(error))))
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    fn build_client(&self) -> reqwest::Result<Client> {
        let builder = || {
            let watched = Arc::clone(&self.watched);
            Client::builder()
                .user_agent(concat!("kitfs/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.timing.connect)
                .referer(false)
                .redirect(Policy::custom(move |attempt| {
                    if let Some(first) = attempt.previous().first()
                        && first.origin() != attempt.url().origin()
                        && let Some(led) = watched.lock().unwrap_or_else(PoisonError::into_inner).get_mut(first)
                    {
                        *led = true;
                    }
                    let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
                    if attempt.previous().len() > limits::REDIRECTS {
                        attempt.error(RedirectError::TooMany)
                    } else if from_https && attempt.url().scheme() != "https" {
                        attempt.error(RedirectError::Downgrade)
                    } else {
                        attempt.follow()
                    }
                }))
        };
        match builder().tls_certs_merge(self.roots.iter().cloned()).build() {
            // A host without any certificates can still use plain HTTP.
            Err(_) if !self.is_https() => builder().tls_certs_only(self.roots.iter().cloned()).build(),
            built => built,
        }
    }

    /// Asks for `url`. What comes back has status 200, 206 or 416; all else is a failure. One new authorization, and one new redirect
    /// where the target of the first refused, are part of it.
    pub(super) async fn get(&self, url: &Url, what: &str, accept: Option<&str>, range: Option<&str>) -> Result<Response, Failure> {
        let response = self.ask(url, what, accept, range).await?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            _ => Err(self.refused(response, what).await),
        }
    }

    /// The same, with any status.
    pub(super) async fn ask(&self, url: &Url, what: &str, accept: Option<&str>, range: Option<&str>) -> Result<Response, Failure> {
        let mut renewed = false;
        let mut redirected_anew = false;
        loop {
            let session = self.session();
            let mut request = self.client()?.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(authorization) = session.authorization() {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(request, what).await?;
            let target = response.url().clone();
            // A registry may redirect within itself; then the answer is its own.
            let elsewhere = target.origin() != url.origin();
            match response.status().as_u16() {
                401 | 403 if elsewhere && !redirected_anew => redirected_anew = true,
                404 | 410 if elsewhere && !redirected_anew => redirected_anew = true,
                401 | 403 if !elsewhere && !renewed => {
                    renewed = true;
                    if !self.renew(&session, challenge(response.headers()), what).await? {
                        return Ok(response);
                    }
                }
                _ => return Ok(response),
            }
        }
    }

    /// Does `work`, which asks for `url`, and says whether the registry led to another host meanwhile.
    pub(super) async fn watching<T>(&self, url: &Url, work: impl Future<Output = T>) -> (T, bool) {
        let watched = || self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched().insert(url.clone(), false);
        // Of a work that is dropped an entry stays behind, which says nothing to the next one.
        let done = work.await;
        let led = watched().remove(url).unwrap_or_default();
        (done, led)
    }

    /// Whether `url` is this registry's own, and of the repository.
    pub(super) fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.api.origin() && url.path().starts_with(&format!("{}{}/", self.api.path(), self.repository))
    }

    /// Sends one request; the head of the answer has to come before the stall limit.
    pub(super) async fn send(&self, request: RequestBuilder, what: &str) -> Result<Response, Failure> {
        match tokio::time::timeout(self.timing.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.transport(what, error)),
            Err(_) => Err(self.stalled(what)),
        }
    }

    /// The next bytes of a body; `None` at its end. An empty chunk is never returned.
    pub(super) async fn chunk(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>, Failure> {
        loop {
            match tokio::time::timeout(self.timing.stall, response.chunk()).await {
                Ok(Ok(Some(chunk))) if chunk.is_empty() => {}
                Ok(Ok(chunk)) => return Ok(chunk),
                Ok(Err(error)) => return Err(self.transport(what, error)),
                Err(_) => return Err(self.stalled(what)),
            }
        }
    }

    /// The body up to `most` bytes.
    pub(super) async fn body(&self, response: &mut Response, what: &str, most: u64) -> Body {
        let mut bytes = BytesMut::new();
        let ending = loop {
            match self.chunk(response, what).await {
                Ok(Some(mut chunk)) => {
                    let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(bytes.len());
                    chunk.truncate(room);
                    bytes.extend_from_slice(&chunk);
                    if chunk.len() == room {
                        break Ending::Cut;
                    }
                }
                Ok(None) => break Ending::Complete,
                Err(failure) => break Ending::Broken(failure),
            }
        };
        Body { bytes: bytes.freeze(), ending }
    }

    /// What an answer means that is not what was asked for.
    pub(super) async fn refused(&self, mut response: Response, what: &str) -> Failure {
        let status = response.status();
        let after = retry_after(response.headers());
        let place = self.place_of(response.url());
        let words = self.words(&mut response).await;
        let shown = if words.is_empty() { status.to_string() } else { format!("{status}: {words}") };
        let what = what.to_owned();
        match status.as_u16() {
            404 | 410 => Failure::Final(SourceError::NotFound { place, what }),
            401 | 403 | 407 | 451 => {
                let status = format!("{shown}; {}", self.session().origin());
                Failure::Final(SourceError::Denied { place, what, status })
            }
            code @ (408 | 429 | 500..=599) => {
                let retry_at = after.and_then(|after| SystemTime::now().checked_add(after));
                let error = SourceError::Unavailable { place, what, reason: shown, retry_at, source: None };
                // The other 5xx say that it will not be different soon.
                if matches!(code, 501 | 505) { Failure::Final(error) } else { Failure::Again { error, after } }
            }
            _ => Failure::Final(SourceError::Protocol { place, what, reason: format!("unexpected answer: {shown}") }),
        }
    }

    /// The registry's own words about an error, short and without anything that a terminal would obey.
    async fn words(&self, response: &mut Response) -> String {
        let patience = std::time::Duration::from_millis(limits::ERROR_BODY_MS).min(self.timing.stall);
        let body = tokio::time::timeout(patience, self.body(response, "", limits::ERROR_BODY_BYTES)).await;
        let Ok(Body { bytes, ending: Ending::Complete }) = body else { return String::new() };
        let Ok(OciEnvelope { errors }) = serde_json::from_slice(&bytes) else { return String::new() };
        let Some(error) = errors.into_iter().next() else { return String::new() };
        let code = serde_json::to_value(&error.code).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default();
        let text = if error.message.is_empty() { code } else { format!("{code} ({})", error.message) };
        text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(limits::ERROR_WORDS).collect()
    }

    pub(super) fn protocol(&self, what: &str, reason: String) -> SourceError {
        SourceError::Protocol { place: self.place.clone(), what: what.to_owned(), reason }
    }

    pub(super) fn unavailable(&self, what: &str, reason: String, source: Option<Box<dyn Error + Send + Sync>>) -> SourceError {
        SourceError::Unavailable { place: self.place.clone(), what: what.to_owned(), reason, retry_at: None, source }
    }

    fn stalled(&self, what: &str) -> Failure {
        Failure::again(SourceError::Stalled { place: self.place.clone(), what: what.to_owned(), seconds: self.timing.stall.as_secs() })
    }

    /// A URL as a place: without query and fragment, which of a storage host's URL are a credential.
    fn place_of(&self, url: &Url) -> String {
        if url.origin() == self.api.origin() {
            return self.place.clone();
        }
        let mut url = url.clone();
        url.set_query(None);
        url.set_fragment(None);
        // They fail only for URLs without a host, which cannot be asked for.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.to_string()
    }

    /// What the HTTP client's error means.
    fn transport(&self, what: &str, error: reqwest::Error) -> Failure {
        let place = error.url().map_or_else(|| self.place.clone(), |url| self.place_of(url));
        let secure = error.url().is_none_or(|url| url.scheme() == "https");
        let error = error.without_url();
        let what = what.to_owned();
        if error.is_timeout() {
            let seconds = self.timing.connect.as_secs();
            return Failure::again(match error.is_connect() {
                true => SourceError::Unconnected { place, what, seconds },
                false => SourceError::Stalled { place, what, seconds },
            });
        }
        let unavailable = |place, reason: &str, source| SourceError::Unavailable {
            place,
            what: what.clone(),
            reason: reason.to_owned(),
            retry_at: None,
            source: Some(source),
        };
        if error.is_redirect() {
            let reason = deepest(&error).to_string();
            return Failure::Final(SourceError::Protocol { place, what, reason });
        }
        if !error.is_connect() {
            // What is no request cannot become one.
            let hopeless = error.is_builder();
            let error = unavailable(place, "the connection broke", Box::new(error));
            return if hopeless { Failure::Final(error) } else { Failure::again(error) };
        }
        let kind = causes(&error).filter_map(|cause| cause.downcast_ref::<io::Error>()).last().map(io::Error::kind);
        match kind {
            // rustls' errors: a certificate that does not convince, or bytes that are no TLS. Neither gets better by trying again.
            Some(io::ErrorKind::InvalidData) => {
                // The type behind it is rustls' own; a test holds us to its words.
                let foreign = deepest(&error).to_string().contains("corrupt message");
                let source: Box<dyn Error + Send + Sync> = if foreign { Box::new(NotTls::new(error)) } else { Box::new(error) };
                Failure::Final(unavailable(place, "no TLS connection could be made", source))
            }
            // It hung up on the greeting, as servers do that expected something else; or it just hung up.
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) if secure => {
                Failure::again(unavailable(place, "no TLS connection could be made", Box::new(NotTls::new(error))))
            }
            _ => Failure::again(unavailable(place, "cannot connect", Box::new(error))),
        }
    }
}

/// An error and its causes. An [`io::Error`] is asked for what it wraps, which its `source()` skips.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

fn deepest<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}

/// The length that an answer's head says its body has.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
