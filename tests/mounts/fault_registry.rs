//! The fault registry itself, by a client that is nothing but a socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::fixtures::case;
use crate::common::registry::{Auth, Fault, Host, ONCE, Registry, Target, Times, fallback_tag, sha256};

/// Status, headers and body of one GET on a connection of its own.
fn get(host: &str, path: &str, headers: &str) -> std::io::Result<(u16, String, Vec<u8>)> {
    let mut stream = TcpStream::connect(host)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").as_bytes())?;
    // The registry keeps connections; nothing more is asked, so that it sees the end.
    match stream.shutdown(std::net::Shutdown::Write) {
        // It was reset before we came to that; reading says so.
        Err(error) if error.kind() == ErrorKind::NotConnected => {}
        ended => ended?,
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)? + 4;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    Ok((status, head, answer[end..].to_vec()))
}

fn blob_path(digest: &str) -> String {
    format!("/v2/a/b/blobs/{digest}")
}

#[test]
fn it_serves_what_it_holds() {
    let registry = Registry::start();
    let host = registry.host();
    let digest = registry.blob("0123456789");
    let manifest = registry.manifest("a/b", "v1", "x/y", "{}");
    assert_eq!(get(&host, "/v2/", "").expect("an answer").0, 200);
    for name in ["v1", &manifest] {
        let (status, head, body) = get(&host, &format!("/v2/a/b/manifests/{name}"), "").expect("an answer");
        assert_eq!((status, body.as_slice()), (200, &b"{}"[..]));
        assert!(head.contains(&manifest) && head.contains("x/y"), "{head}");
    }
    let (status, head, body) = get(&host, &blob_path(&digest), "Range: bytes=2-4\r\n").expect("an answer");
    assert_eq!((status, body.as_slice()), (206, &b"234"[..]));
    assert!(head.contains("Content-Range: bytes 2-4/10"), "{head}");
    assert_eq!(get(&host, &blob_path(&digest), "Range: bytes=7-\r\n").expect("an answer").2, b"789");
    assert_eq!(get(&host, &blob_path(&digest), "Range: bytes=10-\r\n").expect("an answer").0, 416);
    assert_eq!(get(&host, "/v2/a/b/manifests/v2", "").expect("an answer").0, 404);
    assert_eq!((registry.asked(&digest), registry.sent(&digest)), (3, 6));
}

#[test]
fn damage_is_seen_by_those_who_ask_for_the_damaged_bytes() {
    let registry = Registry::start();
    let host = registry.host();
    let digest = registry.blob("0123456789");
    let content = || Target::Content(digest.clone());
    let whole = || get(&host, &blob_path(&digest), "");
    registry.fault(content(), ONCE, Fault::Flip(4));
    assert_eq!(get(&host, &blob_path(&digest), "Range: bytes=0-3\r\n").expect("an answer").2, b"0123");
    assert_eq!(whole().expect("an answer").2, b"0123556789");
    assert_eq!(whole().expect("an answer").2, b"0123456789");
    for (fault, seen) in [
        (Fault::Truncate(3), &b"012"[..]),
        (Fault::Append(b"ab".to_vec()), b"0123456789ab"),
        (Fault::Swap(b"other".to_vec()), b"other"),
        (Fault::Cut(5), b"01234"),
        (Fault::WrongLength(3), b"0123456789"),
        (Fault::Slow(1000), b"0123456789"),
    ] {
        registry.mend();
        registry.fault(content(), Times::Always, fault.clone());
        assert_eq!(whole().expect("an answer").2, seen, "{fault:?}");
    }
    registry.mend();
    registry.fault(content(), Times::Nth(2), Fault::retry_after(429, 7));
    assert_eq!(whole().expect("an answer").0, 200);
    let (status, head, _) = whole().expect("an answer");
    assert!(status == 429 && head.contains("Retry-After: 7"), "{head}");
    assert_eq!(whole().expect("an answer").0, 200);
}

#[test]
fn ranges_can_be_ignored_shifted_or_lied_about() {
    let registry = Registry::start();
    let digest = registry.blob((0..2000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let range = || get(&registry.host(), &blob_path(&digest), "Range: bytes=600-609\r\n").expect("an answer");
    let right = range().2;
    let with = |fault| {
        registry.mend();
        registry.fault(Target::Content(digest.clone()), Times::Always, fault);
        range()
    };
    let (status, _, body) = with(Fault::IgnoreRange);
    assert_eq!((status, body.len()), (200, 2000));
    let (status, head, body) = with(Fault::WrongRange);
    assert_eq!((status, body.as_slice()), (206, &right[1..]));
    assert!(head.contains("bytes 601-609/2000"), "{head}");
    let (status, head, body) = with(Fault::LyingRange);
    assert!(status == 206 && head.contains("bytes 600-609/2000") && body != right && body.len() == 10, "{head}");
    assert!(!with(Fault::NoContentRange).1.contains("Content-Range"));
}

#[test]
fn connections_break_where_they_are_told_to() {
    let registry = Registry::start();
    let digest = registry.blob("0123456789");
    registry.fault(Target::Content(digest.clone()), Times::Nth(1), Fault::Reset);
    registry.fault(Target::Content(digest.clone()), Times::First(1), Fault::ResetAt(5));
    for _ in 0..2 {
        let error = get(&registry.host(), &blob_path(&digest), "").expect_err("no whole answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error:?}");
    }
    assert!(get(&registry.host(), &blob_path(&digest), "").is_ok());
}

#[test]
fn a_held_request_goes_on_when_the_gate_opens_and_a_stopped_registry_is_gone() {
    let registry = Arc::new(Registry::start());
    let digest = registry.blob("0123456789");
    let gate = registry.hold(&digest);
    let asker = Arc::clone(&registry);
    let path = blob_path(&digest);
    let waiting = thread::spawn(move || get(&asker.host(), &path, ""));
    gate.await_held(1);
    assert!(!waiting.is_finished());
    gate.open();
    assert_eq!(waiting.join().expect("no panic").expect("an answer").2, b"0123456789");

    let gate = crate::common::registry::Gate::new();
    registry.mend();
    registry.fault(Target::Any, Times::Always, Fault::HoldAt(4, gate.clone()));
    let (asker, path) = (Arc::clone(&registry), blob_path(&digest));
    let waiting = thread::spawn(move || get(&asker.host(), &path, ""));
    gate.await_held(1);
    registry.await_log("four bytes", |log| log.last().is_some_and(|request| request.sent == 4));
    let start = Instant::now();
    registry.stop();
    assert!(start.elapsed() < Duration::from_secs(4));
    drop(waiting.join().expect("no panic"));
    // Another test's registry may have the port by now, but nobody serves what this one had.
    assert!(get(&registry.host(), &blob_path(&digest), "").map_or(true, |answer| answer.2 != b"0123456789"));
}

#[test]
fn it_knows_who_may_read() {
    let registry = Registry::start();
    let (host, digest) = (registry.host(), registry.blob("0123456789"));
    registry.require(Auth::Basic("u".into(), "p".into()));
    let (status, head, _) = get(&host, &blob_path(&digest), "").expect("an answer");
    assert!(status == 401 && head.contains("WWW-Authenticate: Basic"), "{head}");
    assert_eq!(get(&host, &blob_path(&digest), "Authorization: Basic dTpw\r\n").expect("an answer").0, 200);

    registry.require(Auth::Bearer { credentials: Some(("u".into(), "p".into())), seconds: 60 });
    let (status, head, _) = get(&host, &blob_path(&digest), "").expect("an answer");
    assert!(
        status == 401 && head.contains(&format!("Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:a/b:pull\"")),
        "{head}"
    );
    assert_eq!(get(&host, "/token?service=test", "").expect("an answer").0, 401);
    let (_, _, body) = get(&host, "/token?service=test", "Authorization: Basic dTpw\r\n").expect("an answer");
    let token: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let header = format!("Authorization: Bearer {}\r\n", token["token"].as_str().expect("a token"));
    assert_eq!(get(&host, &blob_path(&digest), &header).expect("an answer").0, 200);
    registry.revoke_tokens();
    assert_eq!(get(&host, &blob_path(&digest), &header).expect("an answer").0, 401);
}

#[test]
fn redirects_lead_to_another_host_and_expire() {
    let registry = Registry::start();
    let digest = registry.blob("0123456789");
    registry.redirect(2);
    let (status, head, _) = get(&registry.host(), &blob_path(&digest), "").expect("an answer");
    let location = head.lines().find_map(|line| line.strip_prefix("Location: http://")).expect("a location");
    assert_eq!(status, 307);
    let (storage, path) = location.split_once('/').expect("a path");
    assert_eq!(storage, registry.storage_host());
    for wanted in [200, 200, 403] {
        let answer = get(storage, &format!("/{path}"), "Authorization: Bearer leaked\r\n").expect("an answer");
        assert_eq!(answer.0, wanted);
    }
    let leaked = registry.log().iter().filter(|request| request.host == Host::Storage && request.authorization.is_some()).count();
    assert_eq!((leaked, registry.sent(&digest)), (3, 20));
}

/// All that the API lists of a manifest, page by page, and how many pages there were.
fn referrers(registry: &Registry, subject: &str) -> (Vec<serde_json::Value>, usize) {
    let (mut all, mut pages) = (Vec::new(), 0);
    let mut next = Some(format!("/v2/acme/sentiment/referrers/{subject}"));
    while let Some(path) = next {
        let (status, head, body) = get(&registry.host(), &path, "").expect("an answer");
        assert!(status == 200 && head.contains("Content-Type: application/vnd.oci.image.index.v1+json"), "{head}");
        let page: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        all.extend(page["manifests"].as_array().expect("a list").iter().cloned());
        pages += 1;
        let link = head.lines().find_map(|line| line.strip_prefix("Link: <"));
        next = link.map(|link| link.strip_suffix(">; rel=\"next\"").expect("the next page").to_owned());
    }
    (all, pages)
}

#[test]
fn referrers_come_in_pages_or_stand_in_the_index_at_the_tag() {
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    // Thirteen of it stand in the layout without a name.
    let case = case("signed/good-among-bad");
    let registry = Registry::start();
    case.serve(&registry);
    let subject = case.digest();
    let api = format!("/v2/acme/sentiment/referrers/{subject}");
    assert_eq!(get(&registry.host(), &api, "").expect("an answer").0, 404);
    let tag = format!("/v2/acme/sentiment/manifests/{}", fallback_tag(subject));
    let (status, head, body) = get(&registry.host(), &tag, "").expect("an answer");
    assert!(status == 200 && head.contains(&sha256(&body)), "{head}");
    let index: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let left = index["manifests"].as_array().expect("a list").clone();
    assert!(left.len() == 13 && left.iter().all(|entry| entry.get("annotations").is_none()), "{left:#?}");
    assert!(left.iter().any(|entry| entry["artifactType"] == "application/vnd.oci.empty.v1+json"), "{left:#?}");

    registry.list_referrers(5);
    assert_eq!(get(&registry.host(), &tag, "").expect("an answer").0, 404);
    let (listed, pages) = referrers(&registry, subject);
    assert_eq!(pages, 3);
    assert!(listed.iter().any(|entry| entry["artifactType"] == bundle && entry["annotations"].is_object()), "{listed:#?}");
    let digests = |list: &[serde_json::Value]| list.iter().map(|entry| entry["digest"].clone()).collect::<Vec<_>>();
    assert_eq!(digests(&listed), digests(&left));
    for digest in digests(&listed) {
        let path = format!("/v2/acme/sentiment/manifests/{}", digest.as_str().expect("a digest"));
        assert_eq!(sha256(&get(&registry.host(), &path, "").expect("an answer").2), digest);
    }
    // Of what nothing is attached to there is an empty list.
    assert_eq!(referrers(&registry, &sha256(b"other")), (Vec::new(), 1));
    registry.list_referrers(13);
    assert_eq!(referrers(&registry, subject).1, 1);
}

#[test]
fn an_index_at_the_tag_of_a_layout_is_served_as_it_came_and_listed_by_the_api() {
    let case = case("signed/referrer-of-another");
    let registry = Registry::start();
    case.serve(&registry);
    let tag = fallback_tag(case.digest());
    let (_, _, body) = get(&registry.host(), &format!("/v2/acme/sentiment/manifests/{tag}"), "").expect("an answer");
    assert_eq!(case.layout().blob(&sha256(&body)), Some(&body[..]), "the layout's own");
    registry.list_referrers(1);
    let (listed, _) = referrers(&registry, case.digest());
    let layout = case.layout();
    let foreign = listed.iter().any(|entry| {
        let manifest = layout.json(entry["digest"].as_str().expect("a digest")).expect("a manifest");
        manifest["subject"]["digest"] != case.digest()
    });
    assert!(foreign, "{listed:#?}");
}

#[test]
fn referrers_and_tags_break_as_they_are_told_to() {
    let case = case("signed/both-formats");
    let registry = Registry::start();
    case.serve(&registry);
    registry.list_referrers(1);
    let api = format!("/v2/acme/sentiment/referrers/{}", case.digest());
    let sig = format!("{}.sig", fallback_tag(case.digest()));
    let whole = get(&registry.host(), &api, "").expect("an answer").2;
    for (fault, seen) in [
        (Fault::Flip(3), 200),
        (Fault::Truncate(20), 200),
        (Fault::Swap(b"[]".to_vec()), 200),
        (Fault::status(503), 503),
        (Fault::RedirectTo("http://127.0.0.1:1/".into()), 307),
    ] {
        registry.mend();
        registry.fault(Target::Referrers, ONCE, fault.clone());
        let (status, _, body) = get(&registry.host(), &api, "").expect("an answer");
        assert!(status == seen && body != whole, "{fault:?}: {status}");
        assert_eq!(get(&registry.host(), &api, "").expect("an answer").2, whole, "{fault:?}");
    }
    for (target, path) in [(Target::Ask(sig.clone()), format!("/v2/acme/sentiment/manifests/{sig}")), (Target::Referrers, api)] {
        registry.mend();
        registry.fault(target, Times::Nth(2), Fault::Reset);
        assert_eq!(get(&registry.host(), &path, "").expect("an answer").0, 200);
        assert_eq!(get(&registry.host(), &path, "").expect_err("no answer").kind(), ErrorKind::ConnectionReset);
    }
    // A request for referrers is none for their subject.
    assert_eq!(registry.asked(case.digest()), 0);
}

#[test]
fn it_speaks_tls() {
    let registry = Registry::start_tls();
    let digest = registry.blob("0123456789");
    let pem = std::fs::read_to_string(registry.ca()).expect("a CA");
    assert!(pem.contains("BEGIN CERTIFICATE"));
    let url = format!("https://{}{}", registry.host(), blob_path(&digest));
    // curl is what everybody has; without it there is nothing to compare with.
    let output = std::process::Command::new("curl").arg("-sS").arg("--cacert").arg(registry.ca()).arg(url).output();
    let output = output.expect("curl: apt-get install curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0123456789", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_real_registry_takes_what_the_packer_made() {
    use crate::common::docker_registry::DockerRegistry;
    use crate::common::pack::{Kitfile, Tree};
    let kit = Kitfile::new("small").docs("README.md").pack(&Tree::new().file("README.md", "hello"));
    let registry = DockerRegistry::start();
    let reference = registry.push(&kit, "acme/small", "v1");
    assert_eq!(reference, format!("{}/acme/small:v1", registry.host()));
    let (status, head, body) =
        get(registry.host(), "/v2/acme/small/manifests/v1", "Accept: application/vnd.oci.image.manifest.v1+json\r\n").expect("an answer");
    assert!(status == 200 && body == kit.manifest && head.contains(&kit.digest()), "{head}");
}
