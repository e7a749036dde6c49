//! What the fuzz targets do with their input: they panic if something does not hold.
//!
//! Each target of `fuzz_targets/` is one call into this file, and `tests/fuzz_targets.rs` makes the same calls with a stable toolchain.

mod sink;

use std::io::{Read as _, Seek as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kitfs::admission::roots::Roots;
use kitfs::admission::{Decision, Docket, Provenance, Question, RuleSet, Rulebook, Verdict};
use kitfs::archive::{Kind, Place};
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::filter::{Filter, FilterType, Glob, Globs, Selection};
use kitfs::index::{Index, Segment};
use kitfs::inflate::{Inflate, InflateError, expansion_limit};
use kitfs::kit::{Documents, Growing, Kit};
use kitfs::layer::Compression;
use kitfs::oci::Reference;
use kitfs::policy::authority::Format;
use kitfs::policy::{Name, Names, Set, document};
use kitfs::referrers::{self, Ended, PieceKind, pieces};
use kitfs::signature::{
    About, Content, Expectation, Forms, Identity, Layer, LayerKind, Matcher, PublicKey, Signer, TrustedRoot, judge, judge_layer,
};
use kitfs::source::AttachedBy;
use kitfs::verify::{Unverified, Verified};
use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::Value;

#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../tests/decisions/signing.rs"]
mod signing;

use sink::Sink;

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
#[allow(dead_code, reason = "each fuzz target calls its own")]
pub const TARGETS: [Target; 13] = [
    ("tar", tar),
    ("gzip", gzip),
    ("zstd", zstd),
    ("filter", filter),
    ("plan", plan),
    ("reference", reference),
    ("kitfile", kitfile),
    ("index", index),
    ("bundle", bundle),
    ("policy", policy),
    ("attached", attached),
    ("decision", decision),
    ("predicate", predicate),
];

/// A tar stream → index: whatever is accepted can be read back from its index, and the pieces in which it came make no difference.
pub fn tar(stream: &[u8]) {
    let whole = Sink::cut(stream, 100, stream.len().max(1));
    let pieces = Sink::cut(stream, 100, 7);
    assert!(whole.is_ok() == pieces.is_ok());
    let (Ok(whole), Ok(pieces)) = (whole, pieces) else { return };
    assert!(whole.entries == pieces.entries && whole.pack == pieces.pack && whole.data == pieces.data);

    let Ok((file, layer)) = whole.index(stream) else { return };
    let index = Index::map(&file, &layer).expect("it was just written");
    for entry in &whole.entries {
        let rank = index.find(&entry.path).expect("a sound index").expect("it was added");
        let found = index.entry(rank).expect("a sound index");
        assert_eq!((found.kind, found.size), (entry.kind, entry.size));
        assert!(entry.kind == Kind::Folder || found.place == entry.place);
        let start = entry.stream_offset as usize;
        assert!(stream[start..][..entry.size as usize] == *whole.content(entry));
    }
    let mut again = Vec::new();
    for segment in index.segments() {
        match segment.expect("a sound index") {
            Segment::Pack { offset, size } => again.extend_from_slice(&whole.pack[offset as usize..][..size as usize]),
            Segment::Data { ordinal, .. } => again.extend_from_slice(&whole.data[&ordinal]),
        }
    }
    assert!(again == stream);
    walk(&index);
}

/// The index file of a tar stream, to begin with.
#[allow(dead_code, reason = "the fuzz targets get theirs from a corpus")]
pub fn index_of(stream: &[u8]) -> Option<Vec<u8>> {
    let (mut file, _) = Sink::cut(stream, 100, stream.len().max(1)).ok()?.index(stream).ok()?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("readable");
    Some(bytes)
}

/// What becomes of a compressed blob that comes in pieces, if it is accepted. What comes out is bounded in any case.
fn uncompressed(compression: Compression, blob: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut inflate = Inflate::new(compression, blob.len() as u64).expect("memory").expect("compressed");
    let mut content = Vec::new();
    let mut ended = Ok(());
    for piece in blob.chunks(piece) {
        ended = ended.and_then(|()| {
            inflate.write(piece, &mut |bytes| {
                content.extend_from_slice(bytes);
                Ok::<(), InflateError>(())
            })
        });
    }
    assert!(content.len() as u64 <= expansion_limit(blob.len() as u64));
    (ended.is_ok() && inflate.finish().is_ok()).then_some(content)
}

/// A gzip blob → what is stored: what comes out is bounded, and what another decoder makes of it.
pub fn gzip(blob: &[u8]) {
    let Some(content) = uncompressed(Compression::Gzip, blob, 11) else { return };
    let mut other = Vec::new();
    // It takes zeros after the end for the beginning of a member that is cut.
    let unpadded = blob.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let read = flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut other);
    assert!(read.is_ok() || unpadded < blob.len());
    assert!(other == content);
    tar(&content);
}

/// A zstd blob → what is stored: what comes out is bounded, and the same in whatever pieces the blob comes.
pub fn zstd(blob: &[u8]) {
    let whole = uncompressed(Compression::Zstd, blob, blob.len().max(1));
    assert!(whole == uncompressed(Compression::Zstd, blob, 11));
    if let Some(content) = whole {
        tar(&content);
    }
}

/// A filter and a glob, as a user writes them: both go through a plan and come back the same, and a filter has types of kit's alone.
pub fn filter(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(filter) = text.parse::<Filter>() {
        assert!(FilterType::ALL.into_iter().any(|kind| filter.has(kind)), "{text}");
        let sealed = serde_json::to_string(&filter).expect("a text");
        assert_eq!(serde_json::from_str::<Filter>(&sealed).expect("its own spelling"), filter);
    }
    if let Ok(glob) = text.parse::<Glob>() {
        let globs = Globs::new(vec![glob], Vec::new());
        let sealed = serde_json::to_string(&globs).expect("a text");
        assert_eq!(serde_json::from_str::<Globs>(&sealed).expect("its own spelling"), globs);
        let reach = globs.root();
        // What rules a folder out shows nothing below it.
        assert!(!globs.rules_out(&reach) || !globs.may_show_below(&reach), "{text}");
    }
}

/// Makes verified bytes, as a source and a check make them.
fn verified(media_type: &str, bytes: &[u8]) -> Verified<Bytes> {
    let bytes = Bytes::copy_from_slice(bytes);
    let descriptor = Descriptor { media_type: media_type.into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    Unverified::new(bytes).verify(&descriptor).expect("its own digest")
}

/// What stands in a seed's manifest for the digest of its config.
pub const CONFIG_DIGEST: &str = "@config-digest@";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest, a NUL byte, a config → plan: what is planned is inside of the mount, and has a tree and a Kitfile that YAML libraries read.
pub fn plan(documents: &[u8]) {
    let mut parts = documents.splitn(2, |byte| *byte == 0);
    let (manifest, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let digest = Digest::of(Algorithm::Sha256, config).to_string();
    let manifest = String::from_utf8_lossy(manifest).replace(CONFIG_DIGEST, &digest);
    let (manifest, config) = (verified(MANIFEST, manifest.as_bytes()), verified("", config));
    let asked = Kit::config(&manifest);
    let Ok(kit) = Kit::plan(&manifest, &config) else { return };
    assert!(asked.is_ok_and(|asked| asked.digest == config.descriptor().digest));
    for layer in &kit.layers {
        assert!(layer.path.components().all(|part| part != b".." && !part.contains(&0)));
    }
    if let Some(kitfile) = &kit.kitfile {
        let text = std::str::from_utf8(kitfile).expect("UTF-8");
        Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
    let documents = Documents { manifest, config };
    let lineage = Growing::new("kit".to_owned(), kit, documents, Selection::default(), false).and_then(Growing::finish);
    let Ok(lineage) = lineage else { return };
    assert!(lineage.shared().iter().all(|position| *position < lineage.layers.len()));
    kitfs::fs::tree(&lineage).expect("whatever has a plan has a tree");
}

/// A reference, as a user or a Kitfile writes it: the canonical spelling is read as the same.
pub fn reference(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(reference) = text.parse::<Reference>() else { return };
    let canonical = reference.to_string();
    assert!(!canonical.chars().any(char::is_control));
    assert_eq!(canonical.parse::<Reference>().as_ref(), Ok(&reference), "{canonical}");
}

/// A file of policies → policies or an error that can be told; what loads can be told too, has digests of its own bytes, and is the same when it
/// is loaded again.
pub fn policy(bytes: &[u8]) {
    let policies = match document::policies(bytes, "fuzz") {
        Ok(policies) => policies,
        Err(error) => return assert!(!kitfs::failure::chain(&error).is_empty()),
    };
    assert!(!policies.is_empty());
    let again = document::policies(bytes, "fuzz").expect("it loaded before");
    assert_eq!(format!("{policies:?}"), format!("{again:?}"));
    if let [only] = &policies[..] {
        assert_eq!(only.digest, Digest::of(Algorithm::Sha256, bytes));
    }
    for policy in &policies {
        assert!(!policy.images.is_empty() && !policy.authorities.is_empty());
    }
    let set = Set::new(policies);
    let name = Some("kits.example.test/acme/sentiment:v1".parse::<Name>().expect("a reference"));
    let by_name = set.matching(&Names { real: name.clone(), claim: None }).len();
    let by_both = set.matching(&Names { real: name.clone(), claim: name }).len();
    assert_eq!(by_name, by_both, "a claim that says the same changes nothing");
    assert!(set.matching(&Names::default()).len() <= by_name, "what a kit without a name has to meet, every kit has to meet");
}

/// A JSON value → the Kitfile with it as parameters → the same value, read by a YAML library.
pub fn kitfile(parameters: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(parameters) else { return };
    if is_lossy(&value) {
        return;
    }
    let config = serde_json::json!({ "manifestVersion": "1.0.0", "model": { "name": "m", "parameters": value } });
    let config = verified("application/vnd.kitops.modelkit.config.v1+json", config.to_string().as_bytes());
    let Descriptor { media_type, digest, size } = config.descriptor();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": { "mediaType": media_type, "digest": digest, "size": size } });
    let Ok(kit) = Kit::plan(&verified(MANIFEST, manifest.to_string().as_bytes()), &config) else { return };
    let text = std::str::from_utf8(kit.kitfile.as_deref().expect("a ModelKit has one")).expect("UTF-8");
    let documents = Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let read = &documents[0]["model"];
    match &value {
        // Kit leaves out what is nothing.
        Value::Null => assert!(read.as_mapping().is_some_and(|model| model.len() == 1), "{text}"),
        value => assert_same(&read["parameters"], value, text),
    }
}

/// True for what go-yaml itself does not read back as it wrote it (line feeds at the start of a literal), and for what YAML libraries read
/// otherwise than go-yaml: the line separators of YAML 1.1, and numbers beyond a double, which are texts for go-yaml.
fn is_lossy(value: &Value) -> bool {
    let huge = |text: &str| text.contains(|letter: char| letter.is_ascii_digit()) && text.parse::<f64>().is_ok_and(f64::is_infinite);
    let lossy = |text: &str| text.starts_with('\n') || text.contains(['\u{2028}', '\u{2029}']) || huge(text);
    match value {
        Value::String(text) => lossy(text),
        Value::Array(elements) => elements.iter().any(is_lossy),
        Value::Object(entries) => entries.iter().any(|(key, value)| lossy(key) || is_lossy(value)),
        _ => false,
    }
}

fn assert_same(yaml: &Yaml<'_>, json: &Value, text: &str) {
    match (yaml, json) {
        (Yaml::Value(Scalar::Null), Value::Null) => {}
        (Yaml::Value(Scalar::Boolean(got)), Value::Bool(expected)) => assert_eq!(got, expected, "{text}"),
        (Yaml::Value(Scalar::Integer(got)), Value::Number(expected)) => assert_eq!(Some(*got as f64), expected.as_f64(), "{text}"),
        (Yaml::Value(Scalar::FloatingPoint(got)), Value::Number(expected)) => {
            assert_eq!(Some(got.into_inner()), expected.as_f64(), "{text}");
        }
        (Yaml::Value(Scalar::String(got)), Value::String(expected)) => assert_eq!(got, expected, "{text}"),
        (Yaml::Sequence(got), Value::Array(expected)) => {
            assert_eq!(got.len(), expected.len(), "{text}");
            got.iter().zip(expected).for_each(|(got, expected)| assert_same(got, expected, text));
        }
        (Yaml::Mapping(got), Value::Object(expected)) => {
            assert_eq!(got.len(), expected.len(), "{text}");
            for (key, value) in expected {
                let found = got.iter().find(|(got, _)| got.as_str() == Some(key)).unwrap_or_else(|| panic!("{key:?}\n{text}"));
                assert_same(found.1, value, text);
            }
        }
        (got, expected) => panic!("{got:?} for {expected:?}\n{text}"),
    }
}

/// An index file → what a worker asks of it: an answer or an error, and every answer is one that makes sense.
pub fn index(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let Some(layer) = repair(&mut bytes) else { return };
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("room");
    if let Ok(index) = Index::map(&file, &layer) {
        walk(&index);
    }
}

/// Sets the checksums, so that what is wrong is found behind them, and says whose index it claims to be.
fn repair(bytes: &mut [u8]) -> Option<Digest> {
    const HEADER: usize = 4096;
    let number = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let (entries, data_files, names) = (number(bytes, 12)?, number(bytes, 16)?, number(bytes, 24)?);
    let header = crc32fast::hash(bytes.get(..HEADER - 8)?);
    bytes.get_mut(HEADER - 8..HEADER)?.copy_from_slice(&u64::from(header).to_le_bytes());
    let end = (HEADER + entries.checked_mul(56)?).checked_add(names)?.next_multiple_of(8).checked_add(data_files.checked_mul(48)?)?;
    if end <= bytes.len() {
        let (content, checksums) = bytes.split_at_mut(end);
        for (block, checksum) in content.get(HEADER..)?.chunks(64 << 10).zip(checksums.chunks_mut(4)) {
            let length = checksum.len();
            checksum.copy_from_slice(&crc32fast::hash(block).to_le_bytes()[..length]);
        }
    }
    match bytes.get(32)? {
        1 => Some(Digest::Sha256(*bytes.get(33..)?.first_chunk()?)),
        2 => Some(Digest::Sha512(*bytes.get(33..)?.first_chunk()?)),
        _ => None,
    }
}

/// Asks an index everything that can be asked.
fn walk(index: &Index) {
    // Bounded, because the number is only what the file says.
    for rank in (0..index.len()).take(500).chain([u32::MAX]) {
        let _ = index.path(rank);
        let Ok(entry) = index.entry(rank) else { continue };
        let _ = index.name(rank).map(|name| assert!(rank == 0 || kitfs::path::is_component(name)));
        if let Place::Data { ordinal } = entry.place {
            let _ = index.data(ordinal);
        }
        assert!(rank == 0 || entry.parent < rank);
        let children = index.children(rank).expect("the entry is good");
        assert!(children.end <= index.len());
        for child in children.take(20) {
            if let Ok(name) = index.name(child) {
                let _ = index.lookup(rank, name);
            }
        }
        let _ = index.lookup(rank, b"none");
    }
    let mut pack = 0;
    for segment in index.segments().take(500) {
        if let Ok(Segment::Pack { offset, size }) = segment {
            assert!(offset == pack && size > 0);
            pack += size;
        }
    }
    assert!(pack <= index.pack().size);
}

/// What the owner of the fixtures' P-256 key and its workflow ever signed about [`KIT`], but for the annotations.
const SIGNED: [&str; 4] = ["{}", r#"{"stage":"prod","ticket":"ACME-42"}"#, r#"{"stage":"dev"}"#, r#"{"released":"2026-03-11T11:59:00Z"}"#];
/// When it is judged.
const NOW: &str = "2026-11-01T00:00:00Z";
const KIT: &str = "sha256:98d5bb40b4a10c712223aa7fc5099ac2426bcce667101cb71d250e80df360e6a";

/// A bundle, or a part of the older format → a judgement: it never panics, and what it lets pass was really signed, byte for byte.
pub fn bundle(bytes: &[u8]) {
    thread_local! {
        static TRUSTED: (TrustedRoot, PublicKey, Identity) = trusted();
    }
    let now = NOW.parse().expect("a time");
    let about = About { digest: KIT.parse().expect("a digest"), artifact: None };
    TRUSTED.with(|(root, key, identity)| {
        for signer in [Signer::Key(key), Signer::Identity(identity)] {
            for log in [true, false] {
                let expectation = Expectation { signer, content: Content::Signature, log, timestamp: false, forms: Forms::Attached };
                if let Ok(facts) = judge(bytes, &about, &expectation, root, now) {
                    let text = facts.statement.expect("a signature states something").text;
                    assert!(was_signed(&text), "{text}");
                }
                // The same in what Cosign's older format has: an envelope, a payload, and what stands in annotations.
                let annotation = |name: &str| [(format!("dev.sigstore.cosign/{name}"), String::from_utf8_lossy(bytes).into_owned())];
                for kind in [LayerKind::Attestation, LayerKind::Signature] {
                    for annotations in [&annotation("bundle"), &annotation("rfc3161timestamp"), &annotation("certificate")] {
                        let layer = Layer { kind, blob: bytes, annotations };
                        let verdict = judge_layer(&layer, &about.digest, &expectation, root, now);
                        assert!(verdict.is_err(), "nobody signed that");
                    }
                }
                let anything = Expectation { content: Content::Anything, timestamp: log, forms: Forms::All, ..expectation };
                let about = About { artifact: Some(b"another thing"), ..about };
                if let Ok(facts) = judge(bytes, &about, &anything, root, now) {
                    assert!(facts.statement.is_some(), "nobody signed those bytes");
                }
            }
        }
    });
}

/// A manifest that is said to be attached to a kit: what is looked for in it is in it, and as a referrer it says whom it refers to.
pub fn attached(bytes: &[u8]) {
    let kit: Digest = KIT.parse().expect("a digest");
    let manifest = verified("", bytes);
    let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let layers = json["layers"].as_array().map_or(0, Vec::len);
    for by in [AttachedBy::Subject, AttachedBy::SignatureName, AttachedBy::AttestationName] {
        let Ok(pieces) = pieces(&manifest, by, &kit) else { continue };
        assert!(pieces.len() <= layers && layers <= kitfs::limits::LAYERS || pieces.is_empty(), "{} of {layers}", pieces.len());
        for piece in pieces.into_iter().flatten() {
            let is_it = |layer: &Value| {
                layer["digest"] == piece.descriptor.digest.to_string() && layer["size"].as_u64() == Some(piece.descriptor.size)
            };
            assert!(json["layers"].as_array().into_iter().flatten().any(is_it), "a layer of the manifest");
            match piece.kind {
                PieceKind::Layer { .. } => {}
                PieceKind::Bundle | PieceKind::Unnamed => assert!(by == AttachedBy::Subject, "nothing says what it is about"),
            }
            assert!(by != AttachedBy::Subject || json["subject"]["digest"] == KIT, "it is about something else");
        }
    }
}

/// Whether the owner of the key signed this statement.
fn was_signed(text: &str) -> bool {
    let hex = KIT.trim_start_matches("sha256:");
    SIGNED.iter().any(|annotations| {
        let subject = format!(r#"{{"digest":{{"sha256":"{hex}"}},"annotations":{annotations}}}"#);
        let kind = "https://sigstore.dev/cosign/sign/v1";
        text == format!(r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{subject}],"predicateType":"{kind}","predicate":{{}}}}"#)
    })
}

/// Bytes of what is attached to a kit → a decision: it never panics, admits only what was really signed, and what it tells can be shown.
pub fn decision(bytes: &[u8]) {
    thread_local! {
        static CASE: (Question, Rulebook) = {
            let key = include_str!("../tests/fixtures/signed/key-p256-bundle/cosign.pub");
            (question(), rulebook(&format!("authorities: [{{key: {{data: {key:?}}}}}]")))
        };
    }
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let blob = Bytes::copy_from_slice(bytes);
    let layer = |kind| referrers::Content::Layer { kind, blob: blob.clone(), annotations: Vec::new() };
    let annotated = vec![("dev.cosignproject.cosign/signature".to_owned(), String::from_utf8_lossy(bytes).into_owned())];
    CASE.with(|(question, rulebook)| {
        let candidates = [
            (Format::Bundle, referrers::Content::Bundle(blob.clone())),
            (Format::Legacy, layer(LayerKind::Attestation)),
            (Format::Legacy, layer(LayerKind::Signature)),
            (
                Format::Legacy,
                referrers::Content::Layer { kind: LayerKind::Signature, blob: Bytes::from_static(b"{}"), annotations: annotated },
            ),
        ];
        let mut docket = Docket::new(question, rulebook, NOW.parse().expect("a time"));
        for (format, content) in candidates {
            docket.add(signing::candidate(question.digest, digest, format, content));
        }
        let Decision { verdict, report } = docket.close(&Ended::default());
        let text = report.text();
        assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
        match verdict {
            Verdict::Admitted(admitted) => {
                assert!(admitted.admission().counted.iter().all(|counted| counted.format == "bundle"), "nobody signed the others");
                let bundle: Value = serde_json::from_slice(bytes).expect("a bundle that counts is JSON");
                let payload = bundle["dsseEnvelope"]["payload"].as_str().expect("it states something");
                let payload = STANDARD.decode(payload).expect("base64");
                assert!(was_signed(&String::from_utf8_lossy(&payload)), "nobody signed that");
            }
            Verdict::Denied => assert!(report.evidence.is_none() && !report.reasons.is_empty()),
            Verdict::Undecided(class) => panic!("everything was read: {class}"),
        }
    });
}

/// What a rule wants to see, and no predicate has.
const SECRET: &str = "f1b8c3f4d92a4d0f8a4c9d8e0b7a6c5d";

/// A predicate, signed by whom the policy trusts → rules in Rego: they see it, and whatever it is, they do not allow it.
pub fn predicate(bytes: &[u8]) {
    thread_local! {
        static CASE: (Question, signing::Key, [Rulebook; 2]) = {
            let key = signing::Key::new(1);
            let scan = |rule: &str| {
                let attestation = format!("attestations: [{{name: scan, predicateType: '{}'{rule}}}]", signing::SCAN);
                format!("authorities: [{{key: {{data: {:?}}}, {attestation}}}]", key.pem)
            };
            let rego = |text: String| format!(", policy: {{type: rego, data: {text:?}}}");
            let one = scan(&rego(format!("package signature\nallow {{ input.predicate.secret == \"{SECRET}\" }}\n")));
            let text = format!("package modelkit.mount\nallow if input.attestations[_].predicate.secret == \"{SECRET}\"\n");
            let all = format!("{}{}", scan(""), rego(text));
            (question(), key, [rulebook(&one), rulebook(&all)])
        };
    }
    let predicate = serde_json::from_slice(bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(bytes)));
    CASE.with(|(question, key, rulebooks)| {
        for rulebook in rulebooks {
            let mut docket = Docket::new(question, rulebook, NOW.parse().expect("a time"));
            docket.add(key.scan(question.digest, predicate.clone()));
            let decision = docket.close(&Ended::default());
            assert!(matches!(decision.verdict, Verdict::Denied), "{}", decision.report.text());
        }
    });
}

/// A question about a kit with nothing in it, under the digest that the fixtures' signatures are about.
fn question() -> Question {
    let verified = |media_type: &str, text: String| -> Verified<Bytes> {
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(Algorithm::Sha256, text.as_bytes()),
            size: text.len() as u64,
        };
        Unverified::new(Bytes::from(text)).verify(&descriptor).expect("its own digest")
    };
    let config = verified("application/vnd.kitops.modelkit.config.v1+json", "{}".to_owned());
    let Descriptor { media_type, digest, size } = config.descriptor();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}}}"#);
    let manifest = verified("application/vnd.oci.image.manifest.v1+json", manifest);
    Question {
        reference: "h.test/a".to_owned(),
        names: Names { real: Some(Name::of_kit("h.test/a").expect("a name")), claim: None },
        digest: KIT.parse().expect("a digest"),
        index: None,
        kit: Kit::plan(&manifest, &config).expect("a kit"),
        documents: Documents { manifest, config },
        provenance: Provenance::default(),
        mountpoint: None,
        uid: 0,
    }
}

/// A policy of the host's for every kit.
fn rulebook(spec: &str) -> Rulebook {
    let text = format!("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nspec: {{images: [{{glob: '**'}}], {spec}}}\n");
    let set = Set::new(document::policies(text.as_bytes(), "fuzz").expect("a policy"));
    let rules = RuleSet::load(set, &Roots::of_caller(&[]).expect("no roots")).expect("rules");
    Rulebook { host: Some(rules), ..Rulebook::default() }
}

/// Whom the fixtures trust.
fn trusted() -> (TrustedRoot, PublicKey, Identity) {
    let root = TrustedRoot::read(include_bytes!("../tests/fixtures/signed/keyless-rekor1/trusted_root.json"));
    let key = PublicKey::from_pem(include_bytes!("../tests/fixtures/signed/key-p256-bundle/cosign.pub"));
    let exactly = |text: &str| Matcher::Exact(text.to_owned());
    let subject = exactly("https://github.com/acme/models/.github/workflows/release.yml@refs/heads/main");
    let identity = Identity { subject, issuer: exactly("https://token.actions.githubusercontent.com") };
    (root.expect("a trusted root"), key.expect("a key"), identity)
}
