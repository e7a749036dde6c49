//! Logins, tokens, redirects, TLS.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use kitfs::credentials::Credentials;
use kitfs::oci::IMAGE_MANIFEST;
use kitfs::registry::RegistryOptions;
use kitfs::source::{Source as _, SourceError};

use super::client::{MANY, ONE, content, descriptor, kind, open, options, read};
use crate::common::registry::{Auth, Fault, Host, ONCE, Registry, Target, Times};

const SIZE: usize = 100_000;

/// A credential file that knows `user:password` at the registry.
struct Login {
    dir: tempfile::TempDir,
}

impl Login {
    fn new(registry: &Registry, user: &str, password: &str) -> Self {
        let login = Self { dir: tempfile::tempdir().expect("a folder") };
        login.set(registry, user, password);
        login
    }

    fn set(&self, registry: &Registry, user: &str, password: &str) {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let text = serde_json::json!({ "auths": { registry.host(): { "auth": auth } } }).to_string();
        fs::write(self.file(), text).expect("written");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    fn options(&self) -> RegistryOptions {
        RegistryOptions { credentials: Credentials::from_files([self.file()]), ..options(MANY) }
    }
}

fn basic() -> Auth {
    Auth::Basic("me".into(), "s3cret".into())
}

fn bearer(credentials: Option<(&str, &str)>) -> Auth {
    Auth::Bearer { credentials: credentials.map(|(user, password)| (user.into(), password.into())), seconds: 3600 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read() {
    let content = content(SIZE);
    let wanted = descriptor(&content);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.manifest("acme/minilm", "v1", IMAGE_MANIFEST, "{}");
    let good = Login::new(&registry, "me", "s3cret");
    let bad = Login::new(&registry, "me", "wr0ng");
    for (auth, login, allowed) in [
        (Auth::None, None, true),
        (Auth::None, Some(&bad), true),
        (basic(), Some(&good), true),
        (basic(), Some(&bad), false),
        (basic(), None, false),
        (bearer(None), None, true),
        (bearer(Some(("me", "s3cret"))), Some(&good), true),
        (bearer(Some(("me", "s3cret"))), Some(&bad), false),
        (bearer(Some(("me", "s3cret"))), None, false),
    ] {
        let case = format!("{auth:?} {}", login.map_or("anonymous".to_owned(), |login| login.file().display().to_string()));
        registry.require(auth);
        registry.clear_log();
        let options = login.map_or_else(|| options(MANY), Login::options);
        let source = open(&registry.host(), ":v1", &options);
        match source.resolve().await {
            Ok(_) => assert!(allowed, "{case}"),
            Err(error @ SourceError::Denied { .. }) => {
                assert!(!allowed, "{case}: {error}");
                let origin = login.map_or("no login for".to_owned(), |login| login.file().display().to_string());
                let shown = format!("{error} {error:?}");
                assert!(shown.contains(&origin) && !shown.contains("wr0ng"), "{case}: {shown}");
            }
            Err(error) => panic!("{case}: {error:?}"),
        }
        // Nothing, with a wrong login or none; no attempt is worth repeating.
        assert!(registry.log().len() <= 3, "{case}: {:#?}", registry.log());
        let came = read(&source, &wanted, &content, 0).await;
        assert_eq!(came.error.is_none() && came.right && came.bytes == SIZE as u64, allowed, "{case}: {came:?}");
        assert_eq!(registry.asked(&digest) > 0, allowed, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_expire_while_a_blob_comes() {
    let content = content(SIZE);
    let wanted = descriptor(&content);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    registry.require(bearer(Some(("me", "s3cret"))));
    let login = Login::new(&registry, "me", "s3cret");
    let source = open(&registry.host(), ":v1", &login.options());
    for round in 0..3 {
        registry.clear_log();
        let came = read(&source, &wanted, &content, 0).await;
        assert!(came.right && came.error.is_none() && came.bytes == SIZE as u64, "{came:?}");
        let tokens = registry.log().iter().filter(|request| request.path.starts_with("/token")).count();
        assert_eq!((tokens, registry.asked(&digest)), (1, 7), "round {round}");
        registry.revoke_tokens();
    }
    // No token is good for longer than the request that it was made for.
    registry.require(Auth::Bearer { credentials: None, seconds: 0 });
    registry.clear_log();
    let error = source.resolve().await.expect_err("no token is good");
    assert_eq!((kind(&error), registry.log().len()), ("denied", 3), "{error}: {:#?}", registry.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_renewed_on_disk_is_used() {
    let content = content(1000);
    let registry = Registry::start();
    registry.blob(content.clone());
    let login = Login::new(&registry, "me", "0");
    let source = open(&registry.host(), ":v1", &login.options());
    let auths = [|password: &str| Auth::Basic("me".into(), password.into()), |password: &str| bearer(Some(("me", password)))];
    for (password, auth) in ["1", "2", "3", "4"].into_iter().zip(auths.into_iter().cycle()) {
        registry.require(auth(password));
        registry.revoke_tokens();
        let came = read(&source, &descriptor(&content), &content, 0).await;
        assert_eq!(came.error.as_ref().map(kind), Some("denied"), "{password} is not on disk yet");
        login.set(&registry, "me", password);
        let came = read(&source, &descriptor(&content), &content, 0).await;
        assert!(came.right && came.error.is_none(), "{password}: {came:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_server_that_fails_is_no_refusal() {
    let registry = Registry::start();
    registry.manifest("acme/minilm", "v1", IMAGE_MANIFEST, "{}");
    registry.require(bearer(None));
    for (fault, times, expected) in [
        (Fault::status(503), ONCE, None),
        (Fault::status(503), Times::Always, Some("unavailable")),
        (Fault::Reset, ONCE, None),
        (Fault::retry_after(429, 600), Times::Always, Some("unavailable")),
        (Fault::status(401), Times::Always, Some("denied")),
        (Fault::status(200), Times::Always, Some("protocol")),
    ] {
        registry.mend();
        registry.fault(Target::Token, times, fault.clone());
        let outcome = open(&registry.host(), ":v1", &options(ONE)).resolve().await;
        assert_eq!(outcome.as_ref().err().map(kind), expected, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_hosts_never_see_the_authorization() {
    let content = content(SIZE);
    let wanted = descriptor(&content);
    for auth in [basic(), bearer(Some(("me", "s3cret")))] {
        let registry = Registry::start();
        let digest = registry.blob(content.clone());
        registry.require(auth);
        // Each address is good for one request, so each range has to ask the registry anew.
        registry.redirect(1);
        let login = Login::new(&registry, "me", "s3cret");
        let came = read(&open(&registry.host(), ":v1", &login.options()), &wanted, &content, 0).await;
        assert!(came.right && came.error.is_none() && came.bytes == SIZE as u64, "{came:?}");
        let log = registry.log();
        let of = |host| log.iter().filter(|request| request.host == host && request.path.contains(&digest)).collect::<Vec<_>>();
        let (asked, stored) = (of(Host::Registry), of(Host::Storage));
        assert!(stored.len() == 7 && stored.iter().all(|request| request.authorization.is_none()), "{stored:#?}");
        assert!(stored.iter().all(|request| request.range.is_some()));
        assert_eq!(asked.iter().filter(|request| request.status == 307 && request.authorization.is_some()).count(), 7, "{asked:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_address_is_asked_for_anew() {
    let content = content(1000);
    let wanted = descriptor(&content);
    let registry = Registry::start();
    let digest = registry.blob(content.clone());
    for (uses, fault, expected, stored) in [
        (1, None, None, 1),
        (1, Some((ONCE, 403)), None, 2),
        (1, Some((ONCE, 404)), None, 2),
        (1, Some((ONCE, 503)), None, 2),
        (1, Some((Times::Always, 404)), Some("not found"), 2),
        (0, None, Some("denied"), 2),
    ] {
        registry.mend();
        registry.clear_log();
        registry.redirect(uses);
        if let Some((times, status)) = fault {
            registry.fault(Target::Content(digest.clone()), times, Fault::status(status));
        }
        let came = read(&open(&registry.host(), ":v1", &options(ONE)), &wanted, &content, 0).await;
        assert_eq!(came.error.as_ref().map(kind), expected, "{uses} {fault:?}: {came:?}");
        let log = registry.log();
        assert_eq!(log.iter().filter(|request| request.host == Host::Storage).count(), stored, "{uses} {fault:?}: {log:#?}");
        if let Some(error) = came.error {
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(&registry.storage_host()) && !shown.contains("signature"), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_and_never_left() {
    let content = content(SIZE);
    let wanted = descriptor(&content);
    let registry = Registry::start_tls();
    registry.blob(content.clone());
    let trusting = RegistryOptions { plain_http: false, ca_cert: Some(registry.ca().to_owned()), ..options(MANY) };
    let came = read(&open(&registry.host(), ":v1", &trusting), &wanted, &content, 0).await;
    assert!(came.right && came.error.is_none() && came.bytes == SIZE as u64, "{came:?}");

    registry.redirect(1);
    let came = read(&open(&registry.host(), ":v1", &trusting), &wanted, &content, 0).await;
    assert!(came.right && came.error.is_none(), "{came:?}");

    registry.clear_log();
    registry.redirect_to_other_scheme();
    let came = read(&open(&registry.host(), ":v1", &trusting), &wanted, &content, 0).await;
    assert!(matches!(&came.error, Some(SourceError::Protocol { reason, .. }) if reason.contains("https to http")), "{came:?}");
    assert!(registry.log().iter().all(|request| request.host == Host::Registry));

    registry.clear_log();
    let doubting = RegistryOptions { plain_http: false, ..options(MANY) };
    let error = open(&registry.host(), ":v1", &doubting).resolve().await.expect_err("an unknown authority");
    assert!(kind(&error) == "unavailable" && !error.is_not_tls(), "{error:?}");
    assert!(registry.log().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_do_not_go_to_a_token_server_without_tls() {
    let registry = Registry::start_tls();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let realm = format!("Bearer realm=\"http://{}/token\"", listener.local_addr().expect("bound"));
    registry.fault(Target::Manifests, Times::Always, Fault::Status(401, vec![("WWW-Authenticate".into(), realm)]));
    registry.manifest("acme/minilm", "v1", IMAGE_MANIFEST, "{}");
    let login = Login::new(&registry, "me", "s3cret");
    let options = RegistryOptions { plain_http: false, ca_cert: Some(registry.ca().to_owned()), ..login.options() };
    let error = open(&registry.host(), ":v1", &options).resolve().await.expect_err("refused");
    assert_eq!(kind(&error), "protocol", "{error}");
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_without_tls_is_recognised() {
    let registry = Registry::start();
    let secure = RegistryOptions { plain_http: false, ..options(ONE) };
    let error = open(&registry.host(), ":v1", &secure).resolve().await.expect_err("no TLS");
    assert!(error.is_not_tls(), "{error:?}");
    // As Go's servers answer.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut greeting = [0; 64];
            let _ = std::io::Read::read(&mut stream, &mut greeting);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent a TLS greeting\n");
        }
    });
    let error = open(&host, ":v1", &secure).resolve().await.expect_err("no TLS");
    assert!(error.is_not_tls(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_gone_is_unavailable() {
    let registry = Registry::start();
    let host = registry.host();
    drop(registry);
    let error = open(&host, ":v1", &options(ONE)).resolve().await.expect_err("gone");
    assert!(kind(&error) == "unavailable" && !error.is_not_tls(), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_ca_file_that_is_none_is_an_error_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "nothing").expect("written");
    for path in [empty, dir.path().join("missing.pem")] {
        let options = RegistryOptions { ca_cert: Some(path.clone()), ..options(ONE) };
        let reference: kitfs::oci::Reference = "reg.example/a:v1".parse().expect("a reference");
        let kitfs::oci::Transport::Registry(name) = reference.transport() else { panic!("a registry") };
        let error = kitfs::registry::Registry::new(name, None, &options).expect_err("no certificate");
        assert!(kind(&error) == "local" && error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
