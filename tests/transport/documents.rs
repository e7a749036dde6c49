//! Tags, manifests and configs.

use std::time::Duration;

use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::limits;
use kitfs::oci::IMAGE_MANIFEST;
use kitfs::registry::Timing;
use kitfs::source::{Pin, Source as _, SourceError};

use super::client::{ONE, descriptor, kind, open, options, timing};
use crate::common::blackhole::Blackhole;
use crate::common::registry::{Fault, Gate, ONCE, Registry, Target, Times};

const REPOSITORY: &str = "acme/minilm";
const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_means_what_the_registry_sends() {
    let registry = Registry::start();
    let digest: Digest = registry.manifest(REPOSITORY, "v1", IMAGE_MANIFEST, MANIFEST).parse().expect("a digest");
    for (suffix, pin) in [(":v1".to_owned(), Pin::BySource), (format!("@{digest}"), Pin::ByUser), (format!(":other@{digest}"), Pin::ByUser)]
    {
        let resolved = open(&registry.host(), &suffix, &options(ONE)).resolve().await.expect("resolved");
        let expected = Descriptor { media_type: IMAGE_MANIFEST.into(), digest, size: MANIFEST.len() as u64 };
        assert_eq!((&resolved.descriptor, resolved.pin), (&expected, pin), "{suffix}");
        assert!(resolved.manifest.verify(&resolved.descriptor).is_ok());
    }
    for suffix in [":v2".to_owned(), format!("@{}", Digest::of(Algorithm::Sha256, b"other"))] {
        registry.clear_log();
        let error = open(&registry.host(), &suffix, &options(ONE)).resolve().await.expect_err("not there");
        assert_eq!((kind(&error), registry.log().len()), ("not found", 1), "{suffix}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_the_way_to_a_manifest() {
    for (fault, times, expected, asked) in [
        (Fault::status(503), Times::First(2), Ok(true), 3),
        (Fault::status(503), Times::Always, Err("unavailable"), 3),
        (Fault::retry_after(429, 3600), Times::Always, Err("unavailable"), 1),
        (Fault::status(404), Times::Always, Err("not found"), 1),
        (Fault::status(403), Times::Always, Err("denied"), 1),
        (Fault::Reset, ONCE, Ok(true), 2),
        (Fault::Cut(5), ONCE, Ok(true), 2),
        (Fault::Cut(5), Times::Always, Err("unavailable"), 3),
        // The registry's own digest shows what is wrong; what stays wrong is the caller's to refuse.
        (Fault::Flip(5), ONCE, Ok(true), 2),
        (Fault::Flip(5), Times::Always, Ok(false), 3),
        (Fault::Truncate(5), ONCE, Ok(true), 2),
        (Fault::Truncate(5), Times::Always, Ok(false), 3),
        (Fault::Append(b" ".to_vec()), Times::Always, Ok(false), 3),
        (Fault::Swap(b"{}".to_vec()), Times::Always, Ok(false), 3),
        (Fault::Append(vec![b' '; limits::MANIFEST_BYTES as usize]), Times::Always, Err("protocol"), 1),
        (Fault::Status(200, vec![("Docker-Content-Digest".into(), "sha256:nonsense".into())]), Times::Always, Err("protocol"), 1),
        (Fault::Status(206, Vec::new()), Times::Always, Err("protocol"), 1),
    ] {
        let registry = Registry::start();
        registry.manifest(REPOSITORY, "v1", IMAGE_MANIFEST, MANIFEST);
        registry.fault(Target::Manifests, times, fault.clone());
        let outcome = open(&registry.host(), ":v1", &options(ONE)).resolve().await;
        let outcome = outcome.map(|resolved| resolved.manifest.verify(&resolved.descriptor).is_ok());
        assert_eq!(outcome.as_ref().map_err(kind), expected.as_ref().map_err(|kind| *kind), "{fault:?} {times:?}: {outcome:?}");
        let manifests = registry.log().iter().filter(|request| request.path.contains("/manifests/")).count();
        assert_eq!(manifests, asked, "{fault:?} {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_at_the_limit() {
    let registry = Registry::start();
    for (over, fits) in [(0, true), (1, false)] {
        registry.manifest(REPOSITORY, "v1", IMAGE_MANIFEST, vec![b' '; limits::MANIFEST_BYTES as usize + over]);
        let outcome = open(&registry.host(), ":v1", &options(ONE)).resolve().await;
        assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_without_a_useful_content_type_says_itself_what_it_is() {
    let registry = Registry::start();
    for (header, document, expected) in [
        ("application/vnd.oci.image.index.v1+json; charset=utf-8", "{}", "application/vnd.oci.image.index.v1+json"),
        ("application/json", r#"{"mediaType":"a/b"}"#, "a/b"),
        ("text/plain", "{}", IMAGE_MANIFEST),
        ("text/plain", "not even JSON", IMAGE_MANIFEST),
        // Not asked for: it keeps its name, by which it is refused.
        ("text/html; charset=utf-8", "{}", "text/html"),
        ("application/vnd.oci.image.config.v1+json", r#"{"mediaType":"a/b"}"#, "application/vnd.oci.image.config.v1+json"),
    ] {
        registry.manifest(REPOSITORY, "v1", header, document);
        let resolved = open(&registry.host(), ":v1", &options(ONE)).resolve().await.expect("resolved");
        assert_eq!(resolved.descriptor.media_type, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_read_to_one_byte_beyond_their_size() {
    let registry = Registry::start();
    let config = b"config";
    let digest = registry.blob(*config);
    let source = open(&registry.host(), ":v1", &options(ONE));
    let wanted = descriptor(config);
    assert!(source.document(&wanted).await.expect("read").verify(&wanted).is_ok());
    // What the descriptor says, what comes, how often it was asked for.
    for (size, length, asked) in [(6, 6, 1), (5, 6, 1), (2, 3, 1), (7, 6, 2), (0, 1, 1)] {
        registry.clear_log();
        let document = source.document(&Descriptor { size, ..wanted.clone() }).await.expect("read");
        assert_eq!((document.len(), registry.asked(&digest)), (length, asked), "{size}");
    }
    registry.clear_log();
    let huge = Descriptor { size: limits::CONFIG_BYTES + 1, ..wanted.clone() };
    assert!(matches!(source.document(&huge).await, Err(SourceError::Protocol { .. })));
    assert!(registry.log().is_empty());
    let manifest = registry.manifest(REPOSITORY, "v1", IMAGE_MANIFEST, MANIFEST);
    let wanted = Descriptor { media_type: IMAGE_MANIFEST.into(), ..descriptor(MANIFEST) };
    assert!(source.document(&wanted).await.expect("read").verify(&wanted).is_ok());
    assert!(registry.log().iter().any(|request| request.path.ends_with(&format!("/manifests/{manifest}"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_has_a_time_for_all_its_attempts() {
    let registry = Registry::start();
    registry.manifest(REPOSITORY, "v1", IMAGE_MANIFEST, MANIFEST);
    registry.fault(Target::Manifests, Times::Always, Fault::Hold(Gate::new()));
    let mut options = options(ONE);
    options.timing = Timing { document: Duration::from_millis(150), ..timing() };
    let outcome = open(&registry.host(), ":v1", &options).resolve().await;
    assert!(matches!(outcome, Err(SourceError::Late { source: None, .. })), "{outcome:?}");
    // A wait that does not fit into it is not begun.
    let registry = Registry::start();
    registry.fault(Target::Manifests, Times::Always, Fault::retry_after(503, 20));
    options.timing.document = Duration::from_secs(10);
    let outcome = open(&registry.host(), ":v1", &options).resolve().await;
    assert!(matches!(outcome, Err(SourceError::Unavailable { retry_at: Some(_), .. })), "{outcome:?}");
    assert_eq!(registry.log().len(), 1);
}

/// It was said of a connection that was never made that no byte came by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_not_made_is_told_as_that() {
    let hole = Blackhole::start("127.0.0.1:0");
    let mut options = options(ONE);
    options.timing.connect = Duration::from_millis(50);
    let error = open(&hole.address().to_string(), ":v1", &options).resolve().await.expect_err("nobody answers");
    assert_eq!(kind(&error), "unconnected");
    assert_eq!(error.to_string(), format!("{}/acme/minilm: tag v1: no connection within 0 s", hole.address()));
    // Also if the time for all attempts ends first, as it does with the limits as they are.
    options.timing = Timing { connect: Duration::from_secs(1), document: Duration::from_millis(1500), ..options.timing };
    let error = open(&hole.address().to_string(), ":v1", &options).resolve().await.expect_err("nobody answers");
    let SourceError::Late { source: Some(last), .. } = &error else { panic!("{error:?}") };
    assert_eq!((kind(last), error.to_string().contains("tag v1: it did not come within 1 s")), ("unconnected", true), "{error}");
}
