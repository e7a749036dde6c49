//! What is attached to a manifest, as registries say it or do not.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kitfs::descriptor::Descriptor;
use kitfs::digest::Digest;
use kitfs::limits;
use kitfs::referrers::{Place, Request, search};
use kitfs::registry::{Registry, Timing};
use kitfs::source::{Attached, AttachedBy, Attachments, DocumentKind, Source as _};
use kitfs::store::Store;
use serde_json::json;

use super::client::{ONE, descriptor, kind, open, options, timing};
use super::hostile::serve;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const KIT: &[u8] = b"{\"schemaVersion\":2}";

fn kit() -> Digest {
    descriptor(KIT).digest
}

/// An answer: its status, further headers, its content.
type Answer = (u16, String, String);

fn answer(status: u16, headers: &str, content: &str) -> Answer {
    (status, headers.to_owned(), content.to_owned())
}

fn sent((status, headers, content): &Answer) -> Vec<u8> {
    let headers: String = headers.lines().map(|header| format!("{header}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n{content}", content.len()).into_bytes()
}

/// An index that lists manifests of these contents.
fn index(contents: &[&str]) -> String {
    let entry = |content: &&str| {
        let Descriptor { digest, size, .. } = descriptor(content.as_bytes());
        json!({ "mediaType": "x/y", "digest": digest, "size": size, "artifactType": "application/vnd.oci.empty.v1+json" })
    };
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": contents.iter().map(entry).collect::<Vec<_>>() }).to_string()
}

/// A registry that answers what `script` says for what follows the repository in a path, and 404 to all else.
struct Scripted {
    registry: Registry,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(timing: Timing, script: impl Fn(&str, &str) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let host = serve(move |request, own| {
            let path = request.split_whitespace().nth(1).unwrap_or_default();
            let path = path.strip_prefix("/v2/acme/minilm/").unwrap_or(path);
            log.lock().expect("no panic").push(path.to_owned());
            sent(&script(path, own).unwrap_or_else(|| answer(404, "", "")))
        });
        let mut options = options(ONE);
        options.timing = timing;
        Self { registry: open(&host, ":v1", &options), asked }
    }

    async fn attached(&self) -> Attached {
        self.registry.attached(&Attachments { subject: kit(), repository: None }).await
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().expect("no panic").iter().filter(|asked| *asked == path).count()
    }
}

fn tag(suffix: &str) -> String {
    format!("manifests/sha256-{}{suffix}", kit().hex())
}

fn digests(attached: &Attached) -> Vec<Digest> {
    attached.listed.iter().map(|listed| listed.descriptor.digest).collect()
}

fn gaps(attached: &Attached) -> Vec<&'static str> {
    attached.gaps.iter().map(|(_, error)| kind(error)).collect()
}

/// What a registry that answers `api` to a list of referrers, and `[b]` at the tag, has attached; and how often each was asked for.
async fn with_api(api: Answer) -> (Attached, usize, usize) {
    let scripted = Scripted::new(Timing { stall: Duration::from_millis(500), ..timing() }, move |path, _| match path {
        path if path.starts_with("referrers/") => Some(api.clone()),
        path if path == tag("") => Some(answer(200, &format!("Content-Type: {INDEX}"), &index(&["b"]))),
        _ => None,
    });
    let attached = scripted.attached().await;
    assert_eq!(scripted.asked(&tag(".sig")) + scripted.asked(&tag(".att")), 2, "the older tags are always asked for");
    let asked = scripted.asked(&format!("referrers/{}", kit()));
    (attached, asked, scripted.asked(&tag("")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_api_the_index_at_the_tag_is_the_list() {
    let json = "Content-Type: application/json";
    // Elsewhere: a host that refuses, one that fails, one that shows a page, one that says nothing, and none at all.
    let refuses = serve(|_, _| sent(&answer(403, "", "")));
    let fails = serve(|_, _| sent(&answer(500, "", "")));
    let shows = serve(|_, _| sent(&answer(200, "Content-Type: text/html", "<html>")));
    let breaks = serve(|_, _| b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec());
    let silent = serve(|_, _| {
        std::thread::sleep(Duration::from_secs(20));
        Vec::new()
    });
    let nobody = "127.0.0.1:1".to_owned();
    let elsewhere = |host: &String| answer(307, &format!("Location: http://{host}/somewhere?token=1"), "");
    for (what, api, found, asked_tag) in [
        ("400", answer(400, "", ""), "b", 1),
        ("404", answer(404, json, r#"{"errors":[{"code":"NOT_FOUND","message":""}]}"#), "b", 1),
        ("405", answer(405, "", ""), "b", 1),
        ("406", answer(406, "", ""), "b", 1),
        ("501", answer(501, "", ""), "b", 1),
        ("a page", answer(200, "Content-Type: text/html", "<html>"), "b", 1),
        ("nothing", answer(200, "", ""), "b", 1),
        ("a manifest", answer(200, json, r#"{"schemaVersion":2,"config":{},"layers":[]}"#), "b", 1),
        ("an empty list", answer(200, json, &index(&[])), "b", 1),
        ("within itself", answer(307, "Location: /v2/acme/minilm/other", ""), "b", 1),
        ("refuses", elsewhere(&refuses), "b", 1),
        ("fails", elsewhere(&fails), "b", 1),
        ("shows", elsewhere(&shows), "b", 1),
        ("breaks", elsewhere(&breaks), "b", 1),
        ("silent", elsewhere(&silent), "b", 1),
        ("nobody", elsewhere(&nobody), "b", 1),
        ("a list", answer(200, json, &index(&["a"])), "a", 0),
    ] {
        let (attached, _, tags) = with_api(api).await;
        assert_eq!((digests(&attached), gaps(&attached)), (vec![descriptor(found.as_bytes()).digest], vec![]), "{what}: {attached:?}");
        assert_eq!((tags, attached.capped.len()), (asked_tag, 0), "{what}");
        assert_eq!(attached.listed[0].artifact_type.as_deref(), Some("application/vnd.oci.empty.v1+json"), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registry_cannot_say_now_is_no_answer() {
    let html = "<html>".to_owned();
    for (what, api, expected, attempts) in [
        ("401", answer(401, "", ""), "denied", 1),
        ("403", answer(403, "", ""), "denied", 1),
        ("429", answer(429, "Retry-After: 3600", ""), "unavailable", 1),
        ("500", answer(500, "", ""), "unavailable", 3),
        ("503", answer(503, "", ""), "unavailable", 3),
        ("damaged", (200, format!("Content-Type: {INDEX}"), html), "protocol", 3),
    ] {
        let (attached, asked, tags) = with_api(api).await;
        assert_eq!((gaps(&attached), asked), (vec![expected], attempts), "{what}: {attached:?}");
        // What the tag has counts all the same.
        assert_eq!((digests(&attached), tags), (vec![descriptor(b"b").digest], 1), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_may_have_pages() {
    let api = format!("/v2/acme/minilm/referrers/{}", kit());
    let next = |target: &str| format!("Content-Type: {INDEX}\nLink: <{target}>; rel=\"next\"");
    // What the first page says that comes next, and what is there; what is found, and what is missed.
    for (what, first, second, found, missed) in [
        ("relative", next("?page=2"), answer(200, "", &index(&["b"])), 2, None),
        ("of the host", next(&format!("{api}?page=2")), answer(200, "", &index(&["b"])), 2, None),
        ("absolute", next(&format!("http://OWN{api}?page=2")), answer(200, "", &index(&["b"])), 2, None),
        ("unquoted", next("?page=2").replace('"', ""), answer(200, "", &index(&["b"])), 2, None),
        ("the last", "Link: <?page=2>; rel=\"prev\"".to_owned(), answer(500, "", ""), 1, None),
        ("to itself", next(&api), answer(500, "", ""), 1, Some("protocol")),
        ("and back", next("?page=2"), answer(200, &next(&api), &index(&["b"])), 2, Some("protocol")),
        ("another host", next(&format!("http://127.0.0.1:1{api}?page=2")), answer(500, "", ""), 1, Some("protocol")),
        ("another scheme", next(&format!("https://OWN{api}?page=2")), answer(500, "", ""), 1, Some("protocol")),
        ("another repository", next("/v2/acme/minilm2/referrers/x"), answer(500, "", ""), 1, Some("protocol")),
        ("climbing", next("../../../secret/referrers/x"), answer(500, "", ""), 1, Some("protocol")),
        ("no URL", next("http://[/"), answer(500, "", ""), 1, Some("protocol")),
        ("missing", next("?page=2"), answer(404, "", ""), 1, Some("protocol")),
        ("a page", next("?page=2"), answer(200, "", "<html>"), 1, Some("protocol")),
        ("failing", next("?page=2"), answer(503, "", ""), 1, Some("unavailable")),
        ("forbidden", next("?page=2"), answer(403, "", ""), 1, Some("denied")),
    ] {
        let scripted = Scripted::new(timing(), move |path, own| match path {
            path if path.ends_with("page=2") => Some((second.0, second.1.replace("OWN", own), second.2.clone())),
            path if path.starts_with("referrers/") => Some(answer(200, &first.replace("OWN", own), &index(&["a"]))),
            _ => None,
        });
        let attached = scripted.attached().await;
        let expected: Vec<_> = ["a", "b"].iter().take(found).map(|content| descriptor(content.as_bytes()).digest).collect();
        assert_eq!((digests(&attached), gaps(&attached)), (expected, missed.into_iter().collect()), "{what}: {attached:?}");
        assert!(attached.capped.is_empty(), "{what}: {attached:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_ends_somewhere() {
    let contents: Vec<String> = (0..=limits::REFERRERS).map(|number| number.to_string()).collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let large = index(&["a"]) + &" ".repeat(limits::MANIFEST_BYTES as usize);
    let filled = index(&["a"]) + &" ".repeat(limits::MANIFEST_BYTES as usize - 1000);
    for (what, page, found, capped) in [
        ("all there may be", answer(200, "", &index(&contents[1..])), limits::REFERRERS, None),
        // The one too many shows that there are more.
        ("one more", answer(200, "", &index(&contents)), limits::REFERRERS + 1, None),
        ("a large page", answer(200, "", &large), 0, Some("4194304 bytes")),
        ("large pages", answer(200, "NEXT", &filled), 5, Some("16777216 bytes")),
        ("empty pages", answer(200, "NEXT", &index(&[])), 0, Some("1000 pages")),
    ] {
        let pages = Mutex::new(0);
        let scripted = Scripted::new(timing(), move |path, _| {
            path.starts_with("referrers/").then(|| {
                let mut number = pages.lock().expect("no panic");
                *number += 1;
                (page.0, page.1.replace("NEXT", &format!("Link: <?page={number}>; rel=next")), page.2.clone())
            })
        });
        let attached = scripted.attached().await;
        assert_eq!((attached.listed.len(), gaps(&attached)), (found, vec![]), "{what}");
        assert_eq!(attached.capped.len(), usize::from(capped.is_some()), "{what}: {:?}", attached.capped);
        assert!(capped.is_none_or(|words| attached.capped[0].contains(words)), "{what}: {:?}", attached.capped);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_at_a_tag() {
    let manifest = r#"{"schemaVersion":2,"layers":[]}"#;
    let large = " ".repeat(limits::MANIFEST_BYTES as usize + 1);
    let said = |content: &str| format!("Docker-Content-Digest: {}", descriptor(content.as_bytes()).digest);
    let kit_text = String::from_utf8_lossy(KIT).into_owned();
    let broken = index(&["b"]).replacen("sha256:", "sha999:", 1);
    for (what, suffix, content, found, missed, capped, malformed) in [
        ("signatures", ".sig", answer(200, &said(manifest), manifest), Some(manifest), None, 0, 0),
        ("attestations", ".att", answer(200, "", manifest), Some(manifest), None, 0, 0),
        ("whatever it is", ".sig", answer(200, "Content-Type: text/html", "<html>"), Some("<html>"), None, 0, 0),
        ("the kit itself", ".sig", answer(200, "", &kit_text), None, None, 0, 0),
        ("damaged", ".sig", answer(200, &said("other"), manifest), None, Some("protocol"), 0, 0),
        ("failing", ".att", answer(500, "", ""), None, Some("unavailable"), 0, 0),
        ("forbidden", ".att", answer(403, "", ""), None, Some("denied"), 0, 0),
        ("large", ".sig", answer(200, "", &large), None, None, 1, 0),
        ("a list", "", answer(200, "", &index(&["b"])), Some("b"), None, 0, 0),
        ("the kit, as if it were the list", "", answer(200, &format!("Content-Type: {INDEX}"), &kit_text), None, None, 0, 0),
        ("a manifest", "", answer(200, "", manifest), None, None, 0, 0),
        ("a list that is none", "", answer(200, &format!("Content-Type: {INDEX}"), manifest), None, Some("protocol"), 0, 0),
        ("an entry that is none", "", answer(200, "", &broken), None, None, 0, 1),
        ("a large list", "", answer(200, "", &large), None, None, 1, 0),
        ("a list that fails", "", answer(502, "", ""), None, Some("unavailable"), 0, 0),
    ] {
        let path_of = tag(suffix);
        let scripted = Scripted::new(timing(), move |path, _| (path == path_of).then(|| content.clone()));
        let attached = scripted.attached().await;
        let expected: Vec<_> = found.iter().map(|content| descriptor(content.as_bytes()).digest).collect();
        assert_eq!((digests(&attached), gaps(&attached)), (expected, missed.into_iter().collect()), "{what}: {attached:?}");
        assert_eq!((attached.capped.len(), attached.malformed.len()), (capped, malformed), "{what}: {attached:?}");
        for listed in attached.listed {
            let by = match suffix {
                ".sig" => AttachedBy::SignatureName,
                ".att" => AttachedBy::AttestationName,
                _ => AttachedBy::Subject,
            };
            assert_eq!(listed.by, by, "{what}");
            assert!(listed.document.is_none_or(|document| document.verify(&listed.descriptor).is_ok()), "{what}");
        }
        assert_eq!(attached.searched.len(), 4, "{what}: {:?}", attached.searched);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thing_is_asked_for_as_what_it_is_wanted_for() {
    let content = "x".repeat(limits::CONFIG_BYTES as usize + 1);
    let (wanted, small) = (descriptor(content.as_bytes()), descriptor(b"{}"));
    let (digest, other) = (wanted.digest, small.digest);
    let scripted = Scripted::new(timing(), move |path, _| match path {
        path if path == format!("blobs/{digest}") => Some(answer(200, "", &content)),
        path if path == format!("manifests/{other}") => Some(answer(200, "", "{}")),
        _ => None,
    });
    let source = &scripted.registry;
    assert!(source.document_as(&wanted, DocumentKind::Evidence).await.expect("a bundle").verify(&wanted).is_ok());
    assert_eq!(kind(&source.document(&wanted).await.expect_err("larger than a config")), "protocol");
    let huge = Descriptor { size: limits::BUNDLE_BYTES + 1, ..wanted };
    assert_eq!(kind(&source.document_as(&huge, DocumentKind::Evidence).await.expect_err("larger than a bundle")), "protocol");
    assert!(source.document_as(&small, DocumentKind::Manifest).await.expect("a manifest").verify(&small).is_ok());
    assert_eq!(kind(&source.document(&small).await.expect_err("no manifest by its type")), "not found");
}

/// A registry that answers ever more slowly does not hold a decision up for longer than there is for it.
#[test]
fn a_search_ends_in_time() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pages = Mutex::new(0);
    let scripted = Scripted::new(timing(), move |path, _| {
        path.starts_with("referrers/").then(|| {
            let mut number = pages.lock().expect("no panic");
            *number += 1;
            std::thread::sleep(Duration::from_millis(50));
            answer(200, &format!("Link: <?page={number}>; rel=next"), &index(&["a"]))
        })
    });
    let cache = tempfile::tempdir().expect("a folder");
    let store = Store::open(cache.path()).expect("a cache");
    let places = [Place { repository: None, source: Arc::new(scripted.registry) }];
    let begin = Instant::now();
    let request = Request { subjects: &[kit()], places: &places, store: &store, until: begin + Duration::from_millis(400) };
    let ended = search(&request, runtime.handle(), &mut |_| std::ops::ControlFlow::Continue(()));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(ended.gaps.iter().any(|gap| gap.class == kitfs::failure::ErrorClass::Stalled), "{ended:?}");
    assert!(!ended.stopped && ended.capped.is_empty(), "{ended:?}");
}
