//! A registry inside the test process that misbehaves as it is told.
//!
//! It serves what the distribution spec asks for (`/v2/`, manifests by tag and digest, blobs with ranges) over HTTP or TLS, from memory,
//! on a loopback port of its own, and writes down every request. A script of [`Fault`]s says what goes wrong with which request; a fault
//! that waits, waits for a [`Gate`], so that a test needs no sleeping. As an HTTP proxy it stands for every other registry. It knows nothing of kits, and stands on nothing else of this
//! folder, so that a unit test can include it by path.
//!
//! What is attached to a manifest it lists by the referrers API, in pages, or in the index at the tag that stands for it where there is no API.

mod referrers;
mod serve;

pub use referrers::fallback_tag;

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sha2::Digest as _;

/// The registry; it ends when it is dropped, whatever its clients do.
pub struct Registry {
    shared: Arc<Shared>,
    address: SocketAddr,
    storage: SocketAddr,
    tls: Option<serve::Tls>,
}

/// Which requests a fault is for.
#[derive(Debug, Clone)]
pub enum Target {
    /// Every one, on both hosts.
    Any,
    /// `GET /v2/`.
    Ping,
    /// The token endpoint.
    Token,
    /// Manifests, by tag or digest.
    Manifests,
    /// The answer that brings the content with this digest: of the registry, or of the storage host it redirects to.
    Content(String),
    /// The registry's own answer for this blob or tag, whatever it is: a redirect, or that there is none.
    Ask(String),
    /// A page of referrers.
    Referrers,
}

/// How often a fault happens. Requests that it cannot be seen in (a range without the flipped byte) do not count.
#[derive(Debug, Clone, Copy)]
pub enum Times {
    /// Each time.
    Always,
    /// The first `n` times.
    First(u64),
    /// Only the n-th time, counted from 1.
    Nth(u64),
}

/// Once, then never again.
pub const ONCE: Times = Times::First(1);

/// What goes wrong. Offsets are those of the whole content, not of the range that was asked for.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An HTTP status instead of the answer, with headers.
    Status(u16, Vec<(String, String)>),
    /// The connection is reset before any byte of the answer.
    Reset,
    /// The connection is reset when the content has come up to here.
    ResetAt(u64),
    /// No byte of the answer until the gate opens.
    Hold(Gate),
    /// No byte of the content from here on until the gate opens.
    HoldAt(u64, Gate),
    /// So many bytes of content a second.
    Slow(u64),
    /// The connection ends in an orderly way when the content has come up to here, though `Content-Length` promised more.
    Cut(u64),
    /// The lowest bit of this byte is another one.
    Flip(u64),
    /// The content is only so long, and the headers say so.
    Truncate(u64),
    /// The content goes on with these bytes, and the headers say so.
    Append(Vec<u8>),
    /// Another content altogether.
    Swap(Vec<u8>),
    /// `Content-Length` is wrong by so much.
    WrongLength(i64),
    /// Ranges are ignored: 200 with the whole content.
    IgnoreRange,
    /// 206 with another range than the one asked for, honestly labelled.
    WrongRange,
    /// 206 labelled with the asked range, but with bytes from elsewhere in the content.
    LyingRange,
    /// 206 without `Content-Range`.
    NoContentRange,
    /// A redirect to itself.
    RedirectLoop,
    /// A redirect to this address.
    RedirectTo(String),
}

impl Fault {
    /// An HTTP status without more ado.
    pub fn status(code: u16) -> Self {
        Self::Status(code, Vec::new())
    }

    /// An HTTP status with `Retry-After`.
    pub fn retry_after(code: u16, seconds: u64) -> Self {
        Self::Status(code, vec![("Retry-After".into(), seconds.to_string())])
    }
}

/// Who may read.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Everybody.
    None,
    /// Whoever has this user name and password.
    Basic(String, String),
    /// Whoever has a token; they are given to whoever has this user name and password, or to everybody, for so many seconds.
    Bearer {
        /// User name and password.
        credentials: Option<(String, String)>,
        /// How long a token is good.
        seconds: u64,
    },
}

/// Which of the two hosts was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The registry, 127.0.0.1.
    Registry,
    /// The storage it redirects to, 127.0.0.2.
    Storage,
}

/// One request as it was answered (so far).
#[derive(Debug, Clone)]
pub struct Request {
    /// Which host.
    pub host: Host,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The digest of what was asked for, if it is known.
    pub digest: Option<String>,
    /// The status of the answer, 0 while there is none.
    pub status: u16,
    /// Bytes of content that were sent.
    pub sent: u64,
}

/// Something that requests can be held at until it is opened.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    held: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        lock(&self.0.0).open = true;
        self.0.1.notify_all();
    }

    /// Waits until `count` requests have been held here (in all); panics when that takes too long.
    pub fn await_held(&self, count: usize) {
        let state = lock(&self.0.0);
        let (state, timeout) =
            self.0.1.wait_timeout_while(state, PATIENCE, |state| state.held < count).unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "only {} of {count} requests reached the gate within {PATIENCE:?}", state.held);
    }

    /// How many requests have come here.
    pub fn held(&self) -> usize {
        lock(&self.0.0).held
    }

    fn pass(&self) {
        let mut state = lock(&self.0.0);
        state.held += 1;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |state| !state.open).unwrap_or_else(PoisonError::into_inner));
    }
}

/// How long a test waits for a request that must come.
const PATIENCE: Duration = Duration::from_secs(60);

impl Registry {
    /// A registry that speaks plain HTTP.
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// A registry that speaks TLS; [`Registry::ca`] is the file to trust.
    pub fn start_tls() -> Self {
        Self::listen(Some(serve::Tls::new()))
    }

    fn listen(tls: Option<serve::Tls>) -> Self {
        let registry = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let storage = TcpListener::bind("127.0.0.2:0").expect("a port on 127.0.0.2, the second loopback address");
        let (address, storage_address) = (registry.local_addr().expect("bound"), storage.local_addr().expect("bound"));
        let shared = Arc::new(Shared::new(address, storage_address, tls.as_ref().map(serve::Tls::config)));
        for (host, listener) in [(Host::Registry, registry), (Host::Storage, storage)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || serve::accept(&shared, host, &listener));
        }
        Self { shared, address, storage: storage_address, tls }
    }

    /// `127.0.0.1:PORT`, to begin a reference with.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.2:PORT`.
    pub fn storage_host(&self) -> String {
        self.storage.to_string()
    }

    /// The CA certificate as a PEM file, of a registry that speaks TLS.
    pub fn ca(&self) -> &Path {
        self.tls.as_ref().expect("a registry with TLS").ca()
    }

    /// Keeps a blob and says its digest (sha256).
    pub fn blob(&self, content: impl Into<Vec<u8>>) -> String {
        let content = content.into();
        let digest = sha256(&content);
        self.blob_as(&digest, content);
        digest
    }

    /// Keeps a blob under a digest that need not be its own.
    pub fn blob_as(&self, digest: &str, content: impl Into<Vec<u8>>) {
        self.shared.state().blobs.insert(digest.to_owned(), Arc::new(content.into()));
    }

    /// Keeps a manifest under its digest and a tag, and says the digest.
    pub fn manifest(&self, repository: &str, tag: &str, media_type: &str, content: impl Into<Vec<u8>>) -> String {
        let content = content.into();
        let digest = sha256(&content);
        self.manifest_as(repository, tag, &digest, media_type, content);
        digest
    }

    /// Keeps a manifest under a digest that need not be its own, and a tag.
    pub fn manifest_as(&self, repository: &str, tag: &str, digest: &str, media_type: &str, content: impl Into<Vec<u8>>) {
        let manifest = Manifest { media_type: media_type.to_owned(), digest: digest.to_owned(), content: Arc::new(content.into()) };
        let mut state = self.shared.state();
        for name in [tag, digest] {
            state.manifests.insert((repository.to_owned(), name.to_owned()), manifest.clone());
        }
    }

    /// Keeps a manifest without a tag that is attached to another one. What lists it says of it what it says of itself.
    pub fn attach(&self, repository: &str, subject: &str, media_type: &str, content: impl Into<Vec<u8>>) -> String {
        let content = content.into();
        let digest = sha256(&content);
        let descriptor = referrers::Attached::new(&digest, media_type, &content);
        self.manifest_as(repository, &digest, &digest, media_type, content);
        self.shared.state().attached.entry((repository.to_owned(), subject.to_owned())).or_default().push(descriptor);
        digest
    }

    /// Whether there is a manifest of this name or digest.
    pub fn has_manifest(&self, repository: &str, name: &str) -> bool {
        self.shared.state().manifests.contains_key(&(repository.to_owned(), name.to_owned()))
    }

    /// How large a manifest is that is there.
    pub fn size(&self, repository: &str, name: &str) -> usize {
        self.shared.state().manifests[&(repository.to_owned(), name.to_owned())].content.len()
    }

    /// Referrers are listed by the API from now on, in pages of so many.
    pub fn list_referrers(&self, page: usize) {
        self.shared.state().page = Some(page);
    }

    /// Drops a blob.
    pub fn forget(&self, digest: &str) {
        self.shared.state().blobs.remove(digest);
    }

    /// Drops a tag, or a manifest by its digest.
    pub fn forget_manifest(&self, repository: &str, name: &str) {
        self.shared.state().manifests.remove(&(repository.to_owned(), name.to_owned()));
    }

    /// From now on `fault` happens to requests for `target`. Of several that could happen the first one does.
    pub fn fault(&self, target: Target, times: Times, fault: Fault) {
        let mut state = self.shared.state();
        if let Fault::Hold(gate) | Fault::HoldAt(_, gate) = &fault {
            state.gates.push(gate.clone());
        }
        state.rules.push(Rule { target, times, fault, seen: 0 });
    }

    /// Holds the content with this digest back from the first byte on; the gate lets it go.
    pub fn hold(&self, digest: &str) -> Gate {
        let gate = Gate::new();
        self.fault(Target::Content(digest.to_owned()), Times::Always, Fault::Hold(gate.clone()));
        gate
    }

    /// Nothing goes wrong any more. What is held stays held.
    pub fn mend(&self) {
        self.shared.state().rules.clear();
    }

    /// Who may read, from now on.
    pub fn require(&self, auth: Auth) {
        self.shared.state().auth = auth;
    }

    /// Every token that was given so far is void.
    pub fn revoke_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// Blobs are redirected to the storage host from now on, by addresses that serve `uses` requests each and then are expired.
    pub fn redirect(&self, uses: u64) {
        self.shared.state().url_uses = Some(uses);
    }

    /// Every storage address that was given so far is expired.
    pub fn expire_urls(&self) {
        self.shared.state().urls.values_mut().for_each(|url| url.uses = 0);
    }

    /// The storage host's addresses have another scheme than the registry.
    pub fn redirect_to_other_scheme(&self) {
        self.shared.state().other_scheme = true;
    }

    /// Every request so far, in the order of their arrival.
    pub fn log(&self) -> Vec<Request> {
        self.shared.state().log.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        let mut state = self.shared.state();
        state.cleared += state.log.len();
        state.log.clear();
    }

    /// How many GET requests there were for this content.
    pub fn asked(&self, digest: &str) -> usize {
        self.shared.state().log.iter().filter(|request| request.is_get_of(digest)).count()
    }

    /// How many bytes of this content were sent.
    pub fn sent(&self, digest: &str) -> u64 {
        self.shared
            .state()
            .log
            .iter()
            .filter(|request| request.is_get_of(digest) && [200, 206].contains(&request.status))
            .map(|request| request.sent)
            .sum()
    }

    /// Waits until the requests so far are as wanted; panics when that takes too long.
    pub fn await_log(&self, what: &str, mut wanted: impl FnMut(&[Request]) -> bool) {
        let state = self.shared.state();
        let (state, timeout) =
            self.shared.changed.wait_timeout_while(state, PATIENCE, |state| !wanted(&state.log)).unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let log = state.log.clone();
            drop(state);
            panic!("the registry waited {PATIENCE:?} for {what}; it saw {log:#?}");
        }
    }

    /// Waits until somebody has asked for this content.
    pub fn await_asked(&self, digest: &str) {
        self.await_log(&format!("a request for {digest}"), |log| log.iter().any(|request| request.is_get_of(digest)));
    }

    /// Ends now: what is connected is cut off, a new connection is refused.
    pub fn stop(&self) {
        let mut state = self.shared.state();
        state.stopping = true;
        state.gates.drain(..).for_each(|gate| gate.open());
        state.connections.values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        drop(state);
        self.shared.changed.notify_all();
        for address in [self.address, self.storage] {
            // Wakes the thread in accept(); refused means that it has ended already.
            drop(TcpStream::connect(address));
        }
        let state = self.shared.state();
        // Bounded: a thread that does not end within this time is left behind, the test process ends without it.
        drop(self.shared.changed.wait_timeout_while(state, Duration::from_secs(5), |state| state.threads > 0));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Request {
    fn is_get_of(&self, digest: &str) -> bool {
        self.method == "GET" && ![307, 401].contains(&self.status) && self.digest.as_deref() == Some(digest)
    }
}

/// `sha256:…` of these bytes.
pub fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(content)))
}

struct Shared {
    address: SocketAddr,
    storage: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    manifests: HashMap<(String, String), Manifest>,
    attached: HashMap<(String, String), Vec<referrers::Attached>>,
    /// How many referrers a page has; there is no API without it.
    page: Option<usize>,
    rules: Vec<Rule>,
    gates: Vec<Gate>,
    auth: Auth,
    tokens: HashMap<String, Instant>,
    url_uses: Option<u64>,
    other_scheme: bool,
    urls: HashMap<u64, Url>,
    log: Vec<Request>,
    /// How many requests were taken off the front of `log`, so that a request in flight finds its own.
    cleared: usize,
    connections: HashMap<u64, TcpStream>,
    threads: usize,
    next: u64,
    stopping: bool,
}

#[derive(Clone)]
struct Manifest {
    media_type: String,
    digest: String,
    content: Arc<Vec<u8>>,
}

struct Rule {
    target: Target,
    times: Times,
    fault: Fault,
    seen: u64,
}

struct Url {
    digest: String,
    uses: u64,
}

impl Shared {
    fn new(address: SocketAddr, storage: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let state = State {
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            attached: HashMap::new(),
            page: None,
            rules: Vec::new(),
            gates: Vec::new(),
            auth: Auth::None,
            tokens: HashMap::new(),
            url_uses: None,
            other_scheme: false,
            urls: HashMap::new(),
            log: Vec::new(),
            cleared: 0,
            connections: HashMap::new(),
            threads: 2,
            next: 0,
            stopping: false,
        };
        Self { address, storage, tls, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

impl State {
    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A test that panics while it holds the lock has failed already; the others go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
