use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::*;
use crate::descriptor::Descriptor;
use crate::digest::Algorithm;
use crate::limits;
use crate::oci::{IMAGE_MANIFEST, Reference};
use crate::signature::Reason;
use crate::source::{
    self, Attached, AttachedBy, Attachments, BlobStream, DocumentKind, ListedManifest, Resolved, SourceError, SourceOptions,
};
use crate::store::Store;
use crate::verify::Unverified;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGNATURE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// What a place answers when something is asked for.
#[derive(Debug, Clone)]
enum Answer {
    Here(Bytes),
    /// Another content the first time, and then this.
    Flaky(Bytes),
    Wrong,
    Missing,
    Denied,
    Never,
}

/// A manifest, how it is attached, and what a list says that it is.
type Entry = (Descriptor, AttachedBy, Option<String>);

/// A place that has what a test puts there.
#[derive(Debug)]
struct Scripted {
    name: String,
    answers: Mutex<HashMap<Digest, Answer>>,
    /// What is listed for each subject.
    lists: Mutex<HashMap<Digest, Vec<Entry>>>,
    unread: bool,
    asked: Mutex<Vec<Digest>>,
}

impl Scripted {
    fn new(name: &str) -> Self {
        let (answers, lists, asked) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { name: name.to_owned(), answers, lists, unread: false, asked }
    }

    fn put(&self, content: &[u8]) -> Descriptor {
        let descriptor = described(content);
        self.answer(&descriptor.digest, Answer::Here(Bytes::copy_from_slice(content)));
        descriptor
    }

    fn answer(&self, digest: &Digest, answer: Answer) {
        self.answers.lock().expect("no panic").insert(*digest, answer);
    }

    fn list(&self, subject: &Digest, manifest: Descriptor, by: AttachedBy, artifact_type: Option<&str>) {
        self.lists.lock().expect("no panic").entry(*subject).or_default().push((manifest, by, artifact_type.map(str::to_owned)));
    }

    /// A referrer with these layers, listed.
    fn referrer(&self, subject: &Digest, layers: &[(&str, Descriptor)]) -> Descriptor {
        let manifest = self.put(manifest_of(subject, layers).as_bytes());
        self.list(subject, manifest.clone(), AttachedBy::Subject, None);
        manifest
    }

    /// A referrer with a bundle of this content, listed.
    fn bundle(&self, subject: &Digest, content: &str) -> (Descriptor, Descriptor) {
        let bundle = self.put(content.as_bytes());
        (self.referrer(subject, &[(BUNDLE, bundle.clone())]), bundle)
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

impl Source for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        unreachable!("nothing is resolved")
    }

    fn document_as<'a>(&'a self, descriptor: &'a Descriptor, _: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        Box::pin(async move {
            self.asked.lock().expect("no panic").push(descriptor.digest);
            let (place, what) = (self.name.clone(), descriptor.digest.to_string());
            let answer = self.answers.lock().expect("no panic").get(&descriptor.digest).cloned().unwrap_or(Answer::Missing);
            match answer {
                Answer::Here(content) => Ok(Unverified::new(content)),
                Answer::Flaky(content) => {
                    self.answer(&descriptor.digest, Answer::Here(content));
                    Ok(Unverified::new(Bytes::from_static(b"?")))
                }
                Answer::Wrong => Ok(Unverified::new(Bytes::from_static(b"?"))),
                Answer::Missing => Err(SourceError::NotFound { place, what }),
                Answer::Denied => Err(SourceError::Denied { place, what, status: "403".into() }),
                Answer::Never => std::future::pending().await,
            }
        })
    }

    fn blob(&self, _: &Descriptor, _: u64) -> BlobStream {
        unreachable!("no layer is fetched")
    }

    fn attached<'a>(&'a self, attachments: &'a Attachments) -> BoxFuture<'a, Attached> {
        Box::pin(async move {
            let mut attached = Attached::default();
            attached.searched.push(self.name.clone());
            if self.unread {
                let (place, what) = (self.name.clone(), "referrers".to_owned());
                attached.gaps.push((what.clone(), SourceError::Stalled { place, what, seconds: 1 }));
            }
            for (descriptor, by, artifact_type) in self.lists.lock().expect("no panic").get(&attachments.subject).into_iter().flatten() {
                let (descriptor, by, artifact_type) = (descriptor.clone(), *by, artifact_type.clone());
                let (found_at, document, annotations) = (self.name.clone(), None, Vec::new());
                attached.list(ListedManifest { descriptor, document, by, found_at, artifact_type, annotations });
            }
            attached
        })
    }
}

fn described(content: &[u8]) -> Descriptor {
    Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, content), size: content.len() as u64 }
}

fn manifest_of(subject: &Digest, layers: &[(&str, Descriptor)]) -> String {
    let layer = |(media_type, blob): &(&str, Descriptor)| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let layers: Vec<Value> = layers.iter().map(layer).collect();
    json!({ "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": layers, "subject": { "digest": subject } }).to_string()
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    runtime: Runtime,
    kit: Digest,
    until: std::time::Instant,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a cache");
        let runtime = Runtime::new().expect("a runtime");
        Self { _dir: dir, store, runtime, kit: Digest::of(Algorithm::Sha256, b"kit"), until: deadline() }
    }

    fn places(&self, places: &[Place], subjects: &[Digest]) -> (Vec<Candidate>, Ended) {
        let request = Request { subjects, places, store: &self.store, until: self.until };
        let mut seen = Vec::new();
        let ended = search(&request, self.runtime.handle(), &mut |candidate| {
            seen.push(candidate);
            ControlFlow::Continue(())
        });
        (seen, ended)
    }

    fn search(&self, source: &Arc<Scripted>) -> (Vec<Candidate>, Ended) {
        self.places(&[place(source)], &[self.kit])
    }
}

fn place(source: &Arc<Scripted>) -> Place {
    Place { repository: None, source: Arc::clone(source) as Arc<dyn Source> }
}

/// The digest of a candidate, and the code of what is wrong with it.
fn shown(candidate: &Candidate) -> (Digest, &'static str) {
    (candidate.digest, candidate.content.as_ref().map_or_else(|denial| denial.reason.code(), |_| "ok"))
}

fn all_shown(candidates: &[Candidate]) -> Vec<(Digest, &'static str)> {
    candidates.iter().map(shown).collect()
}

#[test]
fn what_may_happen_to_a_candidate() {
    let other = Digest::of(Algorithm::Sha256, b"other");
    let kit = Digest::of(Algorithm::Sha256, b"kit");
    let bundle = || described(b"bundle");
    let manifest = |layers: &[(&str, Descriptor)]| manifest_of(&kit, layers);
    let large = Descriptor { size: limits::BUNDLE_BYTES + 1, ..bundle() };
    // What the manifest is, what is answered when it and the blob are asked for, and what comes of it; no code is a gap.
    for (what, manifest, answer, blob, expected, asked) in [
        ("good", manifest(&[(BUNDLE, bundle())]), None, Answer::Here(Bytes::from_static(b"bundle")), Some("ok"), 2),
        ("again", manifest(&[(BUNDLE, bundle())]), None, Answer::Flaky(Bytes::from_static(b"bundle")), Some("ok"), 3),
        ("damaged", manifest(&[(BUNDLE, bundle())]), None, Answer::Wrong, Some("blob-digest"), 3),
        ("not there", manifest(&[(BUNDLE, bundle())]), None, Answer::Missing, Some("blob-digest"), 2),
        ("not allowed", manifest(&[(BUNDLE, bundle())]), None, Answer::Denied, None, 2),
        ("too big", manifest(&[(BUNDLE, large.clone())]), None, Answer::Never, Some("too-big"), 1),
        ("other subject", manifest_of(&other, &[(BUNDLE, bundle())]), None, Answer::Never, Some("referrer-subject"), 1),
        ("no JSON", "{".to_owned(), None, Answer::Never, Some("bad-json"), 1),
        ("manifest damaged", manifest(&[]), Some(Answer::Wrong), Answer::Never, Some("blob-digest"), 2),
        ("manifest not there", manifest(&[]), Some(Answer::Missing), Answer::Never, Some("blob-digest"), 1),
        ("manifest not allowed", manifest(&[]), Some(Answer::Denied), Answer::Never, None, 1),
        ("legacy", manifest(&[(SIGNATURE, bundle())]), None, Answer::Here(Bytes::from_static(b"bundle")), Some("ok"), 2),
        ("of no type", manifest(&[("x/y", described(br#"{"verificationMaterial":{}}"#))]), None, Answer::Never, Some("ok"), 2),
    ] {
        let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
        source.put(br#"{"verificationMaterial":{}}"#);
        let listed = source.put(manifest.as_bytes());
        answer.into_iter().for_each(|answer| source.answer(&listed.digest, answer));
        source.answer(&bundle().digest, blob);
        source.list(&bench.kit, listed.clone(), AttachedBy::Subject, None);
        let (seen, ended) = bench.search(&source);
        let codes: Vec<_> = seen.iter().map(|candidate| shown(candidate).1).collect();
        assert_eq!(codes, expected.into_iter().collect::<Vec<_>>(), "{what}: {ended:?}");
        assert_eq!((ended.gaps.len(), ended.stopped, ended.capped.len()), (usize::from(expected.is_none()), false, 0), "{what}: {ended:?}");
        assert_eq!(source.asked(), asked, "{what}");
        assert!(seen.iter().all(|seen| seen.manifest == listed.digest && seen.subject == bench.kit && seen.found_at == "place"), "{what}");
        // Whoever asks again is given the same by the cache, where it was ever had.
        let (again, _) = bench.search(&Arc::new(Scripted::new("empty")));
        let had = seen.iter().filter(|seen| seen.content.is_ok() || !["manifest damaged", "manifest not there"].contains(&what));
        assert_eq!(all_shown(&again), had.map(shown).collect::<Vec<_>>(), "{what}");
        assert!(again.iter().all(|seen| seen.found_at == "the cache"), "{what}");
    }
}

#[test]
fn something_else_is_no_candidate() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    let sbom = source.put(br#"{"spdxVersion":"SPDX-2.3"}"#);
    source.referrer(&bench.kit, &[("text/spdx+json", sbom.clone())]);
    source.referrer(&bench.kit, &[("text/spdx+json", Descriptor { size: limits::BUNDLE_BYTES + 1, ..sbom.clone() })]);
    source.referrer(&bench.kit, &[("a/b", sbom.clone()), ("c/d", sbom)]);
    let index = source.put(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#);
    source.list(&bench.kit, index, AttachedBy::Subject, None);
    let (seen, ended) = bench.search(&source);
    assert!(seen.is_empty() && ended.gaps.is_empty() && ended.capped.is_empty(), "{seen:?} {ended:?}");
    assert!(bench.store.attached(&bench.kit).expect("read").is_empty(), "what is no candidate is not kept");
}

#[test]
fn the_hints_of_a_list_only_order_it() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    let bundle = |text: &str, artifact_type: Option<&str>| {
        let blob = source.put(text.as_bytes());
        let manifest = source.put(manifest_of(&bench.kit, &[(BUNDLE, blob.clone())]).as_bytes());
        source.list(&bench.kit, manifest, AttachedBy::Subject, artifact_type);
        blob.digest
    };
    let unlikely = bundle("1", Some("text/spdx+json"));
    let named = source.put(manifest_of(&bench.kit, &[(SIGNATURE, source.put(b"2"))]).as_bytes());
    source.list(&bench.kit, named, AttachedBy::SignatureName, None);
    let likely = [bundle("3", Some("application/vnd.oci.empty.v1+json")), bundle("4", Some(BUNDLE)), bundle("5", None)];
    let (seen, _) = bench.search(&source);
    let order: Vec<_> = seen.iter().map(|candidate| candidate.digest).collect();
    assert_eq!(order, [likely[0], likely[1], likely[2], described(b"2").digest, unlikely]);
}

#[test]
fn the_limits_are_met_exactly() {
    // Referrers, and layers under a name, of which each is a candidate.
    for (referrers, layers, seen, capped) in [
        (limits::CANDIDATES, 0, limits::CANDIDATES, None),
        (limits::CANDIDATES + 1, 0, limits::CANDIDATES, Some("256 candidates")),
        (0, limits::CANDIDATES, limits::CANDIDATES, None),
        (0, limits::CANDIDATES + 1, limits::CANDIDATES, Some("256 candidates")),
        (limits::REFERRERS, 0, limits::CANDIDATES, Some("256 candidates")),
        (limits::REFERRERS + 1, 0, limits::CANDIDATES, Some("1000 referrers")),
    ] {
        let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
        for number in 0..referrers {
            source.bundle(&bench.kit, &number.to_string());
        }
        if layers > 0 {
            let blobs: Vec<_> = (0..layers).map(|number| (SIGNATURE, source.put(number.to_string().as_bytes()))).collect();
            let manifest = source.put(manifest_of(&bench.kit, &blobs).as_bytes());
            source.list(&bench.kit, manifest, AttachedBy::SignatureName, None);
        }
        let (first, ended) = bench.search(&source);
        assert_eq!(first.len(), seen, "{referrers} {layers}: {:?}", ended.capped);
        assert!(first.iter().all(|candidate| candidate.content.is_ok()), "{referrers} {layers}");
        match capped {
            None => assert!(ended.capped.is_empty(), "{:?}", ended.capped),
            Some(words) => assert!(ended.capped.iter().any(|sentence| sentence.contains(words)), "{:?}", ended.capped),
        }
        assert!(ended.gaps.is_empty(), "{:?}", ended.gaps);
    }
}

#[test]
fn what_the_cache_has_does_not_count_against_the_limits() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    for number in 0..10 {
        source.bundle(&bench.kit, &format!("old {number}"));
    }
    assert_eq!(bench.search(&source).0.len(), 10);
    let asked = source.asked();
    for number in 0..limits::CANDIDATES {
        source.bundle(&bench.kit, &format!("new {number}"));
    }
    let (seen, ended) = bench.search(&source);
    assert_eq!((seen.len(), ended.capped.len()), (limits::CANDIDATES + 10, 0));
    assert_eq!(source.asked() - asked, 2 * limits::CANDIDATES, "what is kept is not fetched again");
    assert_eq!(bench.store.attached(&bench.kit).expect("read").len(), limits::KEPT_CANDIDATES);
}

#[test]
fn bytes_have_a_limit_too() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    let large = vec![b' '; limits::BUNDLE_BYTES as usize];
    for number in 0..5_u8 {
        let mut content = large.clone();
        content[0] = b'0' + number;
        let blob = source.put(&content);
        source.referrer(&bench.kit, &[(BUNDLE, blob)]);
    }
    let (seen, ended) = bench.search(&source);
    // Three, since manifests count as well.
    assert_eq!((seen.len(), ended.gaps.len()), (3, 0));
    assert!(matches!(&ended.capped[..], [sentence] if sentence.contains("67108864 bytes")), "{:?}", ended.capped);
}

#[test]
fn what_does_not_come_in_time_is_an_outage() {
    let mut bench = Bench::new();
    let (slow, good) = (Arc::new(Scripted::new("slow")), Arc::new(Scripted::new("good")));
    let (_, first) = slow.bundle(&bench.kit, "first");
    let (_, never) = slow.bundle(&bench.kit, "never");
    slow.answer(&never.digest, Answer::Never);
    good.bundle(&bench.kit, "good");
    bench.until = std::time::Instant::now() + std::time::Duration::from_millis(300);
    let (seen, ended) = bench.places(&[place(&slow), place(&good)], &[bench.kit]);
    assert_eq!(all_shown(&seen), [(first.digest, "ok")]);
    let gaps: Vec<_> = ended.gaps.iter().map(|gap| (gap.class, gap.what.contains("slow"))).collect();
    assert_eq!(gaps, [(ErrorClass::Stalled, true), (ErrorClass::Stalled, false)], "{:?}", ended.gaps);
    assert!(ended.capped.is_empty() && !ended.stopped);
    assert_eq!(bench.store.attached(&bench.kit).expect("read").len(), 1, "what came is kept");
}

#[test]
fn a_place_that_cannot_be_read_takes_nothing_from_the_others() {
    let bench = Bench::new();
    let mut bad = Scripted::new("bad");
    bad.unread = true;
    let good = Arc::new(Scripted::new("good"));
    let (manifest, bundle) = good.bundle(&bench.kit, "good");
    let index = Digest::of(Algorithm::Sha256, b"index");
    let (_, of_index) = good.bundle(&index, "of the index");
    let name = Name::of_repository("h.test/signatures").expect("a name");
    let elsewhere = Place { repository: Some(name.clone()), ..place(&good) };
    let (seen, ended) = bench.places(&[place(&Arc::new(bad)), elsewhere.clone()], &[bench.kit, index]);
    let found: Vec<_> = seen.iter().map(|seen| (seen.digest, seen.subject, seen.repository.clone())).collect();
    assert_eq!(found, [(bundle.digest, bench.kit, Some(name.clone())), (of_index.digest, index, Some(name))]);
    assert_eq!(ended.gaps.iter().map(|gap| (gap.class, gap.repository.is_none())).collect::<Vec<_>>(), [(ErrorClass::Stalled, true); 2]);
    assert_eq!(ended.searched, ["the cache", "bad", "bad", "good", "good"]);
    // What was found for one repository is not there for another.
    let empty = Arc::new(Scripted::new("empty"));
    assert!(bench.places(&[place(&empty)], &[bench.kit]).0.is_empty());
    assert_eq!(bench.places(&[Place { source: empty, ..elsewhere }], &[bench.kit]).0.len(), 1);
    // The same manifest twice in one list, and in two places, is one; for two repositories it is two.
    good.list(&bench.kit, manifest, AttachedBy::Subject, None);
    assert_eq!(bench.places(&[place(&good), place(&good)], &[bench.kit]).0.len(), 1);
}

#[test]
fn whoever_has_enough_ends_the_search() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    for number in 0..50 {
        source.bundle(&bench.kit, &number.to_string());
    }
    let places = [place(&source)];
    let request = Request { subjects: &[bench.kit], places: &places, store: &bench.store, until: bench.until };
    let mut seen = Vec::new();
    let ended = search(&request, bench.runtime.handle(), &mut |candidate| {
        seen.push(candidate.digest);
        if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(ended.stopped && seen.len() == 3 && source.asked() < 100, "{ended:?}");
    assert_eq!(seen, [described(b"0").digest, described(b"1").digest, described(b"2").digest]);
    // The cache alone can be enough.
    let asked = source.asked();
    let ended = search(&request, bench.runtime.handle(), &mut |_| ControlFlow::Break(()));
    assert!(ended.stopped && source.asked() == asked && ended.searched == ["the cache"], "{ended:?}");
}

#[test]
fn what_the_cache_lost_is_fetched_again_or_told() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    let blobs = [(SIGNATURE, source.put(b"one")), (SIGNATURE, source.put(b"two"))];
    let manifest = source.put(manifest_of(&bench.kit, &blobs).as_bytes());
    source.list(&bench.kit, manifest, AttachedBy::SignatureName, None);
    assert_eq!(bench.search(&source).0.len(), 2);
    let [(_, one), (_, two)] = &blobs;
    let damage = || {
        let file = bench.store.dir().join("v1/blobs").join(two.digest.file_name());
        fs::remove_file(&file).expect("kept");
        fs::write(&file, b"tvo").expect("damaged");
    };
    damage();
    let (again, _) = bench.search(&source);
    assert_eq!(all_shown(&again), [(one.digest, "ok"), (two.digest, "ok")]);
    assert_eq!(again[1].found_at, "place");
    damage();
    let (alone, _) = bench.search(&Arc::new(Scripted::new("empty")));
    assert_eq!(all_shown(&alone), [(one.digest, "ok"), (two.digest, "blob-digest")]);
}

#[test]
fn of_too_many_layers_the_first_are_kept() {
    let (bench, source) = (Bench::new(), Arc::new(Scripted::new("place")));
    let count = limits::KEPT_CANDIDATES + 10;
    let blobs: Vec<_> = (0..count).map(|number| (SIGNATURE, source.put(number.to_string().as_bytes()))).collect();
    let manifest = source.put(manifest_of(&bench.kit, &blobs).as_bytes());
    source.list(&bench.kit, manifest, AttachedBy::SignatureName, None);
    let (first, ended) = bench.search(&source);
    assert_eq!((first.len(), ended.capped.len()), (limits::CANDIDATES, 1));
    let (kept, _) = bench.search(&Arc::new(Scripted::new("empty")));
    assert_eq!(all_shown(&kept), all_shown(&first));
    // With those of the cache for nothing there is room for the rest.
    let (all, ended) = bench.search(&source);
    assert_eq!((all.len(), ended.capped.len()), (count, 0));
}

/// All signed fixtures, from a layout; and then from the cache alone, as without the network.
#[test]
fn the_candidates_of_the_signed_fixtures_are_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/signed");
    let mut cases: Vec<_> = fs::read_dir(root).expect("the fixtures").map(|entry| entry.expect("an entry").path()).collect();
    cases.retain(|case| case.join("layout.tar").exists());
    assert!(cases.len() > 90, "{} cases", cases.len());
    let special: BTreeMap<&str, usize> = [
        ("good-among-bad", 12),
        ("hints-lie", 1),
        ("attest-wrong-type", 1),
        ("legacy-many-layers", 5),
        ("legacy-att-many-layers", 3),
        ("both-formats", 2),
        ("copied-legacy", 1),
        ("referrer-of-another", 1),
        ("signature-and-attestation", 2),
        ("unsigned", 0),
    ]
    .into();
    for folder in cases {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let dir = tempfile::tempdir().expect("a folder");
        tar::Archive::new(fs::File::open(folder.join("layout.tar")).expect("a layout")).unpack(dir.path()).expect("unpacked");
        let case: Value = serde_json::from_slice(&fs::read(folder.join("case.json")).expect("a case")).expect("JSON");
        let kit: Digest = case["digest"].as_str().expect("a digest").parse().expect("a digest");
        let expected = expected(dir.path(), &kit);
        if let Some(count) = special.get(name.as_str()) {
            assert_eq!(expected.len(), *count, "{name}");
        }
        let reference: Reference = format!("oci:{}@{kit}", dir.path().display()).parse().expect("a reference");
        let source = source::open(&reference, &SourceOptions::default()).expect("a source");
        let bench = Bench::new();
        let (seen, ended) = bench.places(&[Place { repository: None, source }], &[kit]);
        let set = |seen: &[Candidate]| seen.iter().map(|seen| (seen.digest.to_string(), shown(seen).1, seen.format)).collect::<Vec<_>>();
        let mut found = set(&seen);
        found.sort_by_key(|(digest, code, format)| (digest.clone(), *code, *format == Format::Bundle));
        assert_eq!(found, expected, "{name}");
        assert!(ended.gaps.is_empty() && ended.capped.is_empty(), "{name}: {ended:?}");
        // The same of a policy that looks in the kit's own repository, by name; what has no name is of none.
        let repository = Name::of_kit(case["reference"].as_str().expect("a reference")).expect("a name");
        let source = source::open(&reference, &SourceOptions::default()).expect("a source");
        let (named, _) = bench.places(&[Place { repository: Some(repository), source: Arc::clone(&source) }], &[kit]);
        assert!(named.iter().all(|named| set(&seen).contains(&set(std::slice::from_ref(named))[0])), "{name}");
        assert!(named.len() == seen.len() || named.iter().all(|seen| seen.format == Format::Legacy), "{name}");
        let stranger = Name::of_repository("elsewhere.test/acme").expect("a name");
        assert!(bench.places(&[Place { repository: Some(stranger), source }], &[kit]).0.is_empty(), "{name}");
        // And from the cache.
        let offline: Reference = format!("h.test/a/b@{kit}").parse().expect("a reference");
        let source = source::open(&offline, &SourceOptions { offline: true, ..SourceOptions::default() }).expect("a source");
        let (kept, ended) = bench.places(&[Place { repository: None, source }], &[kit]);
        assert_eq!(
            set(&kept).into_iter().map(|kept| kept.0).collect::<BTreeSet<_>>(),
            found.into_iter().map(|found| found.0).collect(),
            "{name}"
        );
        assert!(ended.gaps.is_empty() && ended.searched == ["the cache"], "{name}: {ended:?}");
    }
}

/// What the blobs of a layout say that is attached to `kit`, without asking the code under test.
fn expected(layout: &Path, kit: &Digest) -> Vec<(String, &'static str, Format)> {
    let blob = |digest: &str| fs::read(layout.join("blobs").join(digest.replacen(':', "/", 1))).expect("a blob");
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("an index")).expect("JSON");
    let tag = format!(":sha256-{}", kit.hex());
    let mut found = BTreeMap::new();
    let mut look = |entry: &Value, by_name: bool| {
        let digest = entry["digest"].as_str().expect("a digest");
        let manifest: Value = serde_json::from_slice(&blob(digest)).expect("JSON");
        let subject = manifest["subject"]["digest"].as_str();
        if !by_name && subject != Some(kit.to_string().as_str()) {
            found.insert((digest.to_owned(), 0), (digest.to_owned(), Reason::ReferrerSubject.code(), Format::Bundle));
            return;
        }
        for (position, layer) in manifest["layers"].as_array().expect("layers").iter().enumerate() {
            let layer = (layer["mediaType"].as_str().expect("a type"), layer["digest"].as_str().expect("a digest"));
            let format = if by_name { Format::Legacy } else { Format::Bundle };
            if by_name || layer.0.contains("sigstore.bundle") {
                found.insert((digest.to_owned(), position), (layer.1.to_owned(), "ok", format));
            }
        }
    };
    for entry in index["manifests"].as_array().expect("manifests") {
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
        let document: Value = serde_json::from_slice(&blob(entry["digest"].as_str().expect("a digest"))).expect("JSON");
        if name.ends_with(&format!("{tag}.sig")) || name.ends_with(&format!("{tag}.att")) {
            look(entry, true);
        } else if name.ends_with(&tag) {
            document["manifests"].as_array().expect("a list").iter().for_each(|entry| look(entry, false));
        } else if !document["subject"].is_null() {
            look(entry, false);
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_key(|(digest, code, format)| (digest.clone(), *code, *format == Format::Bundle));
    found
}
