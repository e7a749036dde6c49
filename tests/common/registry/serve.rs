//! The wire of the fault registry: connections, requests, answers, and what goes wrong with them.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;

use super::{Auth, Fault, Host, Request, Rule, Shared, Target, Times, Url};

/// A CA of one run, and what the registry shows of it.
pub(super) struct Tls {
    config: Arc<rustls::ServerConfig>,
    ca: tempfile::NamedTempFile,
}

impl Tls {
    pub(super) fn new() -> Self {
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "a CA for one test");
        let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let names = ["127.0.0.1", "127.0.0.2", "localhost"].map(String::from).to_vec();
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a fitting key");
        let file = tempfile::Builder::new().prefix("ca-").suffix(".pem").tempfile().expect("a file for the CA");
        std::fs::write(file.path(), ca_certificate.pem()).expect("a file for the CA");
        Self { config: Arc::new(config), ca: file }
    }

    pub(super) fn config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }

    pub(super) fn ca(&self) -> &Path {
        self.ca.path()
    }
}

pub(super) fn accept(shared: &Arc<Shared>, host: Host, listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut state = shared.state();
        if state.stopping {
            break;
        }
        let Ok(stream) = stream else { continue };
        let id = state.unique();
        if let Ok(clone) = stream.try_clone() {
            state.connections.insert(id, clone);
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // Whatever ends a connection is the client's affair.
            drop(Connection { shared: &shared, host, raw: None, wire: None }.run(stream));
            shared.change(|state| {
                state.connections.remove(&id);
                state.threads -= 1;
            });
        });
    }
    shared.change(|state| state.threads -= 1);
}

trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

struct Connection<'a> {
    shared: &'a Arc<Shared>,
    host: Host,
    raw: Option<TcpStream>,
    wire: Option<Box<dyn Duplex>>,
}

/// The path of what was asked for. A client that takes us for its proxy names the host that it means before it: any host is ours then.
fn own_path(target: &str) -> &str {
    let meant = target.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    meant.unwrap_or(target)
}

/// A parsed request.
struct Head {
    method: String,
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

/// What is said when nothing goes wrong.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    content: Arc<Vec<u8>>,
    /// Content with a digest: ranges and damage apply.
    digest: Option<String>,
    target: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ping,
    Token,
    Manifest,
    Blob,
    Redirect,
    Referrers,
    Other,
}

impl Connection<'_> {
    fn run(mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        self.raw = Some(stream.try_clone()?);
        self.wire = Some(match &self.shared.tls {
            None => Box::new(stream),
            Some(config) => {
                let session = rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Box::new(rustls::StreamOwned::new(session, stream))
            }
        });
        let mut buffer = Vec::new();
        while let Some(head) = self.read_head(&mut buffer)? {
            let index = self.note(&head);
            if !self.answer(&head, index)? {
                break;
            }
        }
        Ok(())
    }

    fn wire(&mut self) -> &mut dyn Duplex {
        self.wire.as_mut().expect("set before the first request")
    }

    fn read_head(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<Head>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut headers);
            if let httparse::Status::Complete(length) = request.parse(buffer).map_err(io::Error::other)? {
                let header = |name: &str| {
                    let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                    found.map(|header| String::from_utf8_lossy(header.value).into_owned())
                };
                let head = Head {
                    method: request.method.unwrap_or_default().to_owned(),
                    path: own_path(request.path.unwrap_or_default()).to_owned(),
                    range: header("range"),
                    authorization: header("authorization"),
                };
                buffer.drain(..length);
                return Ok(Some(head));
            }
            let mut chunk = [0; 8192];
            match self.wire().read(&mut chunk)? {
                0 => return Ok(None),
                read => buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Writes the request down; what is returned is its number among all there ever were.
    fn note(&self, head: &Head) -> usize {
        let mut state = self.shared.state();
        state.log.push(Request {
            host: self.host,
            method: head.method.clone(),
            path: head.path.clone(),
            range: head.range.clone(),
            authorization: head.authorization.clone(),
            digest: None,
            status: 0,
            sent: 0,
        });
        let index = state.cleared + state.log.len() - 1;
        drop(state);
        self.shared.changed.notify_all();
        index
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Request)) {
        self.shared.change(|state| {
            if let Some(request) = index.checked_sub(state.cleared).and_then(|index| state.log.get_mut(index)) {
                change(request);
            }
        });
    }

    /// Answers one request; false if the connection is at its end.
    fn answer(&mut self, head: &Head, index: usize) -> io::Result<bool> {
        let answer = self.honest(head);
        self.update(index, |request| request.digest = answer.digest.clone().or(digest_in(&head.path)));
        let asked = head.range.as_deref().and_then(parse_range).filter(|_| answer.digest.is_some() && answer.target == Kind::Blob);
        let fault = self.pick_fault(head, &answer, asked);
        match &fault {
            Some(Fault::Status(code, headers)) => {
                self.update(index, |request| request.status = *code);
                let body = br#"{"errors":[{"code":"SCRIPTED","message":"scripted \u001b[31mfault"}]}"#;
                self.head(*code, headers, body.len() as i64)?;
                if head.method != "HEAD" {
                    self.wire().write_all(body)?;
                }
                self.wire().flush()?;
                return Ok(true);
            }
            Some(Fault::Reset) => return self.reset(),
            Some(Fault::Hold(gate)) => gate.pass(),
            Some(Fault::RedirectLoop) => return self.redirect(index, &head.path.clone()),
            Some(Fault::RedirectTo(address)) => return self.redirect(index, address),
            _ => {}
        }
        if self.shared.state().stopping {
            return Ok(false);
        }
        self.content(head, index, answer, asked, fault)
    }

    fn content(
        &mut self,
        head: &Head,
        index: usize,
        answer: Answer,
        asked: Option<(u64, Option<u64>)>,
        fault: Option<Fault>,
    ) -> io::Result<bool> {
        let content: Cow<'_, [u8]> = damage(&answer.content, fault.as_ref());
        let total = content.len() as u64;
        let mut status = answer.status;
        let mut headers = answer.headers;
        let mut range = 0..total;
        if let Some((start, end)) = asked.filter(|_| !matches!(fault, Some(Fault::IgnoreRange))) {
            if start >= total {
                self.update(index, |request| request.status = 416);
                self.head(416, &[("Content-Range".into(), format!("bytes */{total}"))], 0)?;
                self.wire().flush()?;
                return Ok(true);
            }
            status = 206;
            range = start..end.map_or(total, |end| total.min(end.saturating_add(1)));
            let mut label = range.clone();
            match fault {
                Some(Fault::WrongRange) => {
                    // Shorter by a little at the front, or a byte further down where there is no room for that.
                    range = if range.end - range.start > 1 { range.start + 1..range.end } else { 0..1.min(total) };
                    label = range.clone();
                }
                Some(Fault::LyingRange) => {
                    let length = range.end - range.start;
                    let other = if range.start >= 512 { range.start - 512 } else { (range.start + 512).min(total - length) };
                    range = other..other + length;
                }
                _ => {}
            }
            if !matches!(fault, Some(Fault::NoContentRange)) {
                headers.push(("Content-Range".into(), format!("bytes {}-{}/{total}", label.start, label.end - 1)));
            }
        }
        self.update(index, |request| request.status = status);
        let length = (range.end - range.start) as i64;
        let said = if let Some(Fault::WrongLength(by)) = fault { (length + by).max(0) } else { length };
        self.head(status, &headers, said)?;
        if head.method == "HEAD" {
            self.wire().flush()?;
            return Ok(true);
        }
        self.body(index, &content, range, fault.as_ref())?;
        match fault {
            Some(Fault::ResetAt(_)) => self.reset(),
            Some(Fault::Cut(_) | Fault::WrongLength(_)) => Ok(false),
            _ => Ok(true),
        }
    }

    fn body(&mut self, index: usize, content: &[u8], range: Range<u64>, fault: Option<&Fault>) -> io::Result<()> {
        let (mut at, mut end) = (range.start, range.end);
        let mut gate = None;
        match fault {
            Some(Fault::ResetAt(offset) | Fault::Cut(offset)) => end = (*offset).clamp(at, end),
            Some(Fault::HoldAt(offset, hold)) => gate = Some(((*offset).clamp(at, end), hold)),
            _ => {}
        }
        let chunk = if let Some(Fault::Slow(rate)) = fault { (rate / 20).max(1) } else { 256 * 1024 };
        while at < end {
            if let Some((_, hold)) = gate.take_if(|(offset, _)| *offset == at) {
                self.wire().flush()?;
                hold.pass();
                if self.shared.state().stopping {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            let stop = gate.as_ref().map_or(end, |(offset, _)| *offset).min(at + chunk);
            let (from, to) = (usize::try_from(at).expect("in memory"), usize::try_from(stop).expect("in memory"));
            // Counted first: whoever has got all bytes must find them counted.
            self.update(index, |request| request.sent += stop - at);
            if let Err(error) = self.wire().write_all(&content[from..to]) {
                self.update(index, |request| request.sent -= stop - at);
                return Err(error);
            }
            at = stop;
            if matches!(fault, Some(Fault::Slow(_))) {
                self.wire().flush()?;
                let state = self.shared.state();
                let pause = Duration::from_millis(50);
                drop(self.shared.changed.wait_timeout_while(state, pause, |state| !state.stopping));
            }
        }
        self.wire().flush()
    }

    fn head(&mut self, status: u16, headers: &[(String, String)], length: i64) -> io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {status} {}\r\nContent-Length: {length}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n",
            reason(status)
        );
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.wire().write_all(text.as_bytes())
    }

    fn redirect(&mut self, index: usize, address: &str) -> io::Result<bool> {
        self.update(index, |request| request.status = 307);
        self.head(307, &[("Location".into(), address.to_owned())], 0)?;
        self.wire().flush()?;
        Ok(true)
    }

    /// Ends the connection by RST.
    fn reset(&mut self) -> io::Result<bool> {
        self.wire().flush()?;
        if let Some(raw) = &self.raw {
            rustix::net::sockopt::set_socket_linger(raw, Some(Duration::ZERO))?;
        }
        // It happens when the last descriptor closes, at the end of the connection's thread.
        Ok(false)
    }

    /// The fault that is due, if any; counts it.
    fn pick_fault(&self, head: &Head, answer: &Answer, asked: Option<(u64, Option<u64>)>) -> Option<Fault> {
        let mut state = self.shared.state();
        let length = answer.content.len() as u64;
        for rule in &mut state.rules {
            if !rule.is_for(head, answer) || !rule.fault.shows_in(asked, length, answer.digest.is_some()) {
                continue;
            }
            rule.seen += 1;
            let due = match rule.times {
                Times::Always => true,
                Times::First(count) => rule.seen <= count,
                Times::Nth(count) => rule.seen == count,
            };
            if due {
                return Some(rule.fault.clone());
            }
        }
        None
    }

    fn honest(&self, head: &Head) -> Answer {
        let path = head.path.split('?').next().unwrap_or_default();
        if self.host == Host::Storage {
            return self.storage(&head.path);
        }
        if path == "/token" {
            return self.token(head);
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return Answer::error(404, "NOT_FOUND") };
        if let Some(refusal) = self.refuse(head, rest) {
            return refusal;
        }
        if rest.is_empty() {
            return Answer { target: Kind::Ping, ..Answer::json(200, "{}".into()) };
        }
        if let Some((repository, name)) = rest.split_once("/manifests/") {
            let state = self.shared.state();
            let Some(manifest) = state.manifest(repository, name) else {
                return Answer { target: Kind::Manifest, ..Answer::error(404, "MANIFEST_UNKNOWN") };
            };
            return Answer {
                status: 200,
                headers: vec![("Content-Type".into(), manifest.media_type), ("Docker-Content-Digest".into(), manifest.digest.clone())],
                digest: Some(manifest.digest),
                content: manifest.content,
                target: Kind::Manifest,
            };
        }
        if let Some((_, digest)) = rest.split_once("/blobs/") {
            return self.blob(digest);
        }
        if let Some((repository, subject)) = rest.split_once("/referrers/") {
            return self.referrers(repository, subject, head.path.split_once("page=").and_then(|(_, page)| page.parse().ok()).unwrap_or(0));
        }
        Answer::error(404, "UNSUPPORTED")
    }

    fn referrers(&self, repository: &str, subject: &str, page: usize) -> Answer {
        let Some((content, more)) = self.shared.state().referrers(repository, subject, page) else {
            return Answer { target: Kind::Referrers, ..Answer::error(404, "UNSUPPORTED") };
        };
        let mut headers = vec![("Content-Type".into(), super::referrers::INDEX.into())];
        if more {
            headers.push(("Link".into(), format!("</v2/{repository}/referrers/{subject}?page={}>; rel=\"next\"", page + 1)));
        }
        // A page has no digest that anybody could ask for; it has one here, so that it can be damaged.
        let digest = Some(super::sha256(&content));
        Answer { status: 200, headers, content: Arc::new(content), digest, target: Kind::Referrers }
    }

    fn blob(&self, digest: &str) -> Answer {
        let mut state = self.shared.state();
        let Some(content) = state.blobs.get(digest).cloned() else {
            return Answer { digest: Some(digest.to_owned()), ..Answer::error(404, "BLOB_UNKNOWN") };
        };
        if let Some(uses) = state.url_uses {
            let id = state.unique();
            state.urls.insert(id, Url { digest: digest.to_owned(), uses });
            let scheme = if self.shared.tls.is_some() == state.other_scheme { "http" } else { "https" };
            let location = format!("{scheme}://{}/bucket/{digest}?signature={id}", self.shared.storage);
            let headers = vec![("Location".into(), location)];
            let content = Arc::default();
            return Answer { status: 307, headers, content, digest: Some(digest.to_owned()), target: Kind::Redirect };
        }
        Answer::blob(digest, content)
    }

    fn storage(&self, path: &str) -> Answer {
        let mut state = self.shared.state();
        let id = path.rsplit_once("signature=").and_then(|(_, id)| id.parse::<u64>().ok());
        let Some(url) = id.and_then(|id| state.urls.get_mut(&id)).filter(|url| url.uses > 0) else {
            return Answer { content: Arc::new(b"<Error><Code>AccessDenied</Code></Error>".to_vec()), ..Answer::error(403, "") };
        };
        url.uses -= 1;
        let digest = url.digest.clone();
        match state.blobs.get(&digest) {
            Some(content) => Answer::blob(&digest, Arc::clone(content)),
            None => Answer::error(404, "NoSuchKey"),
        }
    }

    fn refuse(&self, head: &Head, rest: &str) -> Option<Answer> {
        let state = self.shared.state();
        let challenge = match &state.auth {
            Auth::None => return None,
            Auth::Basic(user, password) => {
                if head.authorization.as_deref() == Some(&basic(user, password)) {
                    return None;
                }
                "Basic realm=\"test\"".to_owned()
            }
            Auth::Bearer { .. } => {
                let token = head.authorization.as_deref().and_then(|header| header.strip_prefix("Bearer "));
                if token.and_then(|token| state.tokens.get(token)).is_some_and(|until| Instant::now() < *until) {
                    return None;
                }
                let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
                let repository = ["/manifests/", "/blobs/", "/referrers/", "/tags/"].iter().find_map(|part| rest.split_once(part));
                let scope = repository.map_or(String::new(), |(name, _)| format!(",scope=\"repository:{name}:pull\""));
                format!("Bearer realm=\"{scheme}://{}/token\",service=\"test\"{scope}", self.shared.address)
            }
        };
        let mut answer = Answer::error(401, "UNAUTHORIZED");
        answer.headers.push(("WWW-Authenticate".into(), challenge));
        Some(answer)
    }

    fn token(&self, head: &Head) -> Answer {
        let mut state = self.shared.state();
        let Auth::Bearer { credentials, seconds } = state.auth.clone() else { return Answer::error(404, "NO_TOKENS_HERE") };
        if credentials.is_some_and(|(user, password)| head.authorization.as_deref() != Some(&basic(&user, &password))) {
            return Answer { target: Kind::Token, ..Answer::error(401, "UNAUTHORIZED") };
        }
        let token = format!("token-{}", state.unique());
        state.tokens.insert(token.clone(), Instant::now() + Duration::from_secs(seconds));
        let body = serde_json::json!({ "token": token, "access_token": token, "expires_in": seconds });
        Answer { target: Kind::Token, ..Answer::json(200, body.to_string()) }
    }
}

impl Answer {
    fn json(status: u16, body: String) -> Self {
        let headers = vec![("Content-Type".into(), "application/json".into())];
        Self { status, headers, content: Arc::new(body.into_bytes()), digest: None, target: Kind::Other }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::json(status, serde_json::json!({ "errors": [{ "code": code, "message": code }] }).to_string())
    }

    fn blob(digest: &str, content: Arc<Vec<u8>>) -> Self {
        let headers = vec![
            ("Content-Type".into(), "application/octet-stream".into()),
            ("Accept-Ranges".into(), "bytes".into()),
            ("Docker-Content-Digest".into(), digest.to_owned()),
        ];
        Self { status: 200, headers, content, digest: Some(digest.to_owned()), target: Kind::Blob }
    }
}

impl Rule {
    fn is_for(&self, head: &Head, answer: &Answer) -> bool {
        match &self.target {
            Target::Any => true,
            Target::Ping => answer.target == Kind::Ping || head.path == "/v2/",
            Target::Token => answer.target == Kind::Token,
            Target::Manifests => answer.target == Kind::Manifest,
            Target::Content(digest) => answer.target != Kind::Redirect && answer.status == 200 && answer.digest.as_ref() == Some(digest),
            Target::Referrers => answer.target == Kind::Referrers,
            Target::Ask(digest) => head.path.ends_with(digest.as_str()),
        }
    }
}

impl Fault {
    /// Whether a client could notice this fault in the answer to a request for this range of this content.
    fn shows_in(&self, asked: Option<(u64, Option<u64>)>, length: u64, is_content: bool) -> bool {
        let (start, end) = asked.map_or((0, u64::MAX), |(start, end)| (start, end.map_or(u64::MAX, |end| end.saturating_add(1))));
        match self {
            Self::Flip(offset) => is_content && (start..end).contains(offset),
            Self::Truncate(offset) => is_content && *offset < end.min(length),
            Self::ResetAt(offset) | Self::Cut(offset) | Self::HoldAt(offset, _) => is_content && *offset < end.min(length),
            Self::Append(_) => is_content && end >= length,
            Self::Swap(_) => is_content,
            Self::IgnoreRange | Self::NoContentRange => asked.is_some(),
            Self::WrongRange | Self::LyingRange => asked.is_some() && length > 1,
            _ => true,
        }
    }
}

fn damage<'a>(content: &'a [u8], fault: Option<&Fault>) -> Cow<'a, [u8]> {
    match fault {
        Some(Fault::Flip(offset)) => {
            let mut other = content.to_vec();
            if let Some(byte) = usize::try_from(*offset).ok().and_then(|offset| other.get_mut(offset)) {
                *byte ^= 1;
            }
            Cow::Owned(other)
        }
        Some(Fault::Truncate(length)) => Cow::Borrowed(&content[..content.len().min(usize::try_from(*length).unwrap_or(usize::MAX))]),
        Some(Fault::Append(more)) => Cow::Owned([content, more].concat()),
        Some(Fault::Swap(other)) => Cow::Owned(other.clone()),
        _ => Cow::Borrowed(content),
    }
}

/// `bytes=a-b` or `bytes=a-`, the forms that a client of blobs uses.
fn parse_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (start, end) = header.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().ok()?, if end.is_empty() { None } else { Some(end.parse().ok()?) }))
}

fn digest_in(path: &str) -> Option<String> {
    let (before, name) = path.split('?').next()?.rsplit_once('/')?;
    name.starts_with("sha").then(|| name.to_owned()).filter(|name| name.contains(':') && !before.ends_with("/referrers"))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        _ => "Scripted",
    }
}
