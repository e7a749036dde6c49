//! The judge of signatures, held to the signed fixtures: what real Cosign signed counts, and what is wrong in each bad one is found.
//!
//! Who may be mounted is decided by more than one bundle. Here each bundle of a case is judged for each authority of the case's policy, as
//! far as that alone decides the case; the cases that are decided elsewhere are listed.
#![allow(missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kitfs::digest::{Algorithm, Digest};
use kitfs::signature::{
    About, Content, Denial, Expectation, Facts, Forms, Hash, Identity, Layer, LayerKind, Matcher, Part, PublicKey, Signer, TimeSource,
    TrustedRoot, judge, judge_layer,
};
use saphyr::{LoadableYamlNode as _, Yaml};
use serde_json::{Value, json};

/// What decides a case that is no single bundle.
const DECIDED_ELSEWHERE: &[(&str, &str)] = &[
    ("rego", "by a rule over all that was verified"),
    ("no-policy", "by the names that policies cover"),
    ("not-a-kit", "by the kit"),
    ("unsigned", "by there being nothing"),
    ("format", "by there being nothing of the wanted format"),
    ("referrer-subject", "by the manifest around the bundle"),
    ("docker-reference", "by the name that was asked for"),
    ("too-many", "by how many there are"),
    ("too-big", "by a layout that is made when it is needed; the unit tests have it"),
    ("bad-json", "by a layout that is made when it is needed; the unit tests have it"),
];

struct Case {
    name: String,
    folder: PathBuf,
    json: Value,
}

#[test]
fn every_bundle_of_the_fixtures_is_judged_as_its_case_expects() {
    let (mut admitted, mut denied, mut elsewhere, mut wrong) = (0, BTreeSet::new(), 0, Vec::new());
    for case in cases() {
        let expected = case.json["expect"].as_str().expect("an expectation");
        let reason = case.json["reason"].as_str().unwrap_or_default();
        let code = reason.split(':').next().unwrap_or_default();
        let candidates = case.candidates();
        if expected == "deny" && DECIDED_ELSEWHERE.iter().any(|(elsewhere, _)| *elsewhere == code) {
            elsewhere += 1;
            continue;
        }
        let documents = case.policy();
        let mut denials: Vec<Denial> = Vec::new();
        let met = documents.iter().all(|authorities| {
            authorities.iter().any(|authority| {
                authority.wanted.iter().all(|content| {
                    let candidates = candidates.iter().filter(|candidate| authority.takes(candidate));
                    let verdicts: Vec<_> = candidates.map(|candidate| authority.judge(candidate, &case, content)).collect();
                    let good = verdicts.iter().any(Result::is_ok);
                    denials.extend(verdicts.into_iter().filter_map(Result::err));
                    good
                })
            })
        });
        // By a `.sig` alone these two cannot be told apart.
        let told = |code| if code == "bad-signature" && case.name.contains("legacy") { "wrong-key" } else { code };
        let code = told(code);
        let codes: Vec<&str> = denials.iter().map(|denial| told(denial.reason.code())).collect();
        match expected {
            "admit" if met => admitted += 1,
            "admit" => wrong.push(format!("{}: {denials:?}", case.name)),
            // Of several candidates the nearest miss is told; a single one has to be the nearest.
            _ if met || !codes.contains(&code) || candidates.len() == 1 && codes.iter().any(|found| *found != code) => {
                wrong.push(format!("{}: met: {met}, expected {code}: {denials:?}", case.name));
            }
            _ => _ = denied.insert(code.to_owned()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(admitted >= 40, "{admitted} that are admitted");
    assert!(denied.len() >= 28, "{denied:?}");
    assert!(elsewhere < 25, "{elsewhere} that are decided elsewhere");
}

#[test]
fn what_is_believed_is_told() {
    let facts = |name: &str| -> Facts {
        let case = case(name);
        let authority = &case.policy()[0][0];
        authority.judge(&case.candidates()[0], &case, &None).expect(name)
    };
    let both = facts("keyless-rekor1");
    let sources: BTreeSet<_> = both.times.iter().map(|time| format!("{:?}", time.source)).collect();
    assert_eq!(sources.len(), 2, "a promise and a timestamp: {:?}", both.times);
    assert!(both.log_index.is_some());
    let kitfs::signature::SignedBy::Certificate(certificate) = &both.signer else { panic!("a certificate") };
    assert!(certificate.subject.ends_with("release.yml@refs/heads/main"), "{}", certificate.subject);
    assert!(both.times.iter().all(|time| certificate.not_before <= time.time && time.time <= certificate.not_after));
    let stamped = facts("keyless-rekor2");
    assert!(stamped.times.iter().all(|time| time.source == TimeSource::TimestampAuthority) && !stamped.times.is_empty());
    let key = facts("key-bundle-annotations");
    assert!(key.times.is_empty() && key.log_index.is_none());
    let annotations = key.statement.expect("a statement").annotations;
    assert!(annotations.contains(&("stage".to_owned(), "prod".to_owned())), "{annotations:?}");
}

/// Whoever watches the clock of the judge: a signature of tomorrow does not count today, and does tomorrow.
#[test]
fn the_clock_is_the_one_that_is_given() {
    let case = case("keyless-rekor2");
    let authority = &case.policy()[0][0];
    let bundle = &case.candidates()[0];
    let signed = authority.judge(bundle, &case, &None).expect("signed").times[0].time;
    for (now, code) in [
        (signed - jiff::SignedDuration::from_secs(299), None),
        (signed - jiff::SignedDuration::from_secs(301), Some("future")),
        (signed + jiff::SignedDuration::from_hours(24 * 365 * 30), None),
    ] {
        let verdict = authority.judge_at(bundle, &case, &None, now);
        assert_eq!(verdict.err().map(|denial| denial.reason.code()), code, "{now}");
    }
}

#[test]
fn the_command_says_what_the_judge_says() {
    let work = tempfile::tempdir().expect("a folder");
    let file = work.path().join("bundle.json");
    let kitfs = |case: &Case, options: &[&str], subject: &str| {
        fs::write(&file, &case.bundles()[0]).expect("room");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kitfs"));
        command.arg("verify-bundle").arg("--bundle").arg(&file).args(options).arg(subject);
        let output = command.output().expect("kitfs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code().expect("an exit code"), said)
    };
    let keyed = case("key-p256-bundle");
    let (digest, key) = (keyed.digest(), keyed.file("cosign.pub"));
    let without_log = ["--key", &key, "--insecure-ignore-tlog"];
    let (exit, said) = kitfs(&keyed, &without_log, &digest);
    assert!(exit == 0 && said.contains("signed by the key sha256:"), "{exit}: {said}");
    let (exit, said) = kitfs(&keyed, &["--key", &key], &digest);
    assert!(exit == 1 && said.contains("(no-log)") && said.contains("--insecure-ignore-tlog"), "{exit}: {said}");
    let other = digest.replace("98d5", "98d6");
    let (exit, said) = kitfs(&keyed, &without_log, &other);
    assert!(exit == 1 && said.contains("(wrong-digest)"), "{exit}: {said}");
    // The manifest itself, as a file.
    let (exit, said) = kitfs(&keyed, &without_log, &keyed.write_kit(work.path()));
    assert!(exit == 0, "{exit}: {said}");
    for (subject, expected) in [("sha256:zz", 2), ("./none", 1)] {
        let (exit, said) = kitfs(&keyed, &without_log, subject);
        assert_eq!(exit, expected, "{said}");
    }

    let keyless = case("keyless-rekor1");
    let root = keyless.file("trusted_root.json");
    let (identity, issuer) = (keyless.json["identity"].as_str(), keyless.json["issuer"].as_str());
    let options = |identity, issuer| ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer];
    let wanted = options(identity.expect("an identity"), issuer.expect("an issuer"));
    let (exit, said) = kitfs(&keyless, &[&wanted[..], &["--trusted-root", &root]].concat(), &digest);
    assert!(exit == 0 && said.contains("release.yml"), "{exit}: {said}");
    let (exit, said) = kitfs(&keyless, &wanted, &digest);
    assert!(exit == 1 && said.contains("hint: `kitfs trust show`"), "{exit}: {said}");
    let (exit, said) = kitfs(&keyless, &[&wanted[..], &["--trusted-root", &key]].concat(), &digest);
    assert!(exit == 1 && said.contains("trusted root"), "{exit}: {said}");

    let output = Command::new(env!("CARGO_BIN_EXE_kitfs")).args(["trust", "show", "--trusted-root", &format!("ours={root}")]).output();
    let shown = String::from_utf8(output.expect("kitfs").stdout).expect("text");
    assert!(shown.starts_with("ours sha256:") && shown.contains("timestamp authority   open"), "{shown}");
}

/// One byte or digit changed at a time, in everything that a bundle holds: it no longer counts, or what changed is nothing that it says.
#[test]
fn no_change_of_a_bundle_changes_what_it_says() {
    let (mut tried, mut harmless) = (0, BTreeSet::new());
    for name in ["keyless-rekor1", "keyless-rekor2", "key-bundle-rekor1", "attest-keyless-rekor2"] {
        let case = case(name);
        let authority = &case.policy()[0][0];
        let wanted = &authority.wanted[0];
        let bundle: Value = serde_json::from_slice(&case.bundles()[0]).expect("JSON");
        let said = |bundle: &Value| {
            let facts = authority.judge(&Candidate::Bundle(bundle.to_string().into_bytes()), &case, wanted)?;
            Ok::<_, Denial>(format!("{:?} {:?} {:?} {:?}", facts.signer, facts.times, facts.log_index, facts.statement))
        };
        let before = said(&bundle).expect(name);
        for place in leaves(&bundle, String::new()) {
            for change in 0..12 {
                let mut changed = bundle.clone();
                let leaf = changed.pointer_mut(&place).expect("a leaf");
                let text = changed_text(leaf.as_str().expect("a text"), change);
                *leaf = text.into();
                tried += 1;
                if let Ok(after) = said(&changed) {
                    assert_eq!(after, before, "{name}: {place}");
                    let member = place.rsplit('/').find(|name| name.parse::<usize>().is_err()).unwrap_or_default();
                    harmless.insert(member.to_owned());
                }
            }
        }
    }
    assert!(tried > 500, "{tried}");
    // A hint, the signer's name in a checkpoint (its key counts), the certificates in a token (those of the root count), and what a proof of
    // Rekor v2 repeats of its checkpoint.
    let expected = ["envelope", "hint", "logIndex", "rootHash", "signedTimestamp", "treeSize"].map(str::to_owned);
    assert!(harmless.is_subset(&expected.into()), "{harmless:?}");
}

/// A log entry that nobody asks for is not verified, but one about another signature is a sign of something.
#[test]
fn an_entry_about_another_signature_always_fails() {
    let entry = |bundle: &Value, key: &str, kind: &str| {
        let envelope = &bundle["dsseEnvelope"];
        let payload = STANDARD.decode(envelope["payload"].as_str().expect("a text")).expect("base64");
        let hash = Digest::of(Algorithm::Sha256, &payload).hex();
        let signature = json!({ "signature": envelope["signatures"][0]["sig"], "verifier": STANDARD.encode(key) });
        let hash = json!({ "algorithm": "sha256", "value": hash });
        let spec = json!({ "envelopeHash": hash, "payloadHash": hash, "signatures": [signature] });
        let body = json!({ "apiVersion": "0.0.1", "kind": kind, "spec": spec }).to_string();
        json!({ "logIndex": "7", "logId": { "keyId": STANDARD.encode([7; 32]) }, "kindVersion": { "kind": kind, "version": "0.0.1" },
            "integratedTime": "1770000000", "canonicalizedBody": STANDARD.encode(body) })
    };
    let others: Value = serde_json::from_slice(&case("key-p384-bundle").bundles()[0]).expect("JSON");
    for name in ["key-ed25519ph-bundle", "key-ed25519-bundle", "key-p256-bundle", "key-rsa-bundle"] {
        let case = case(name);
        let authority = &case.policy()[0][0];
        let bundle: Value = serde_json::from_slice(&case.bundles()[0]).expect("JSON");
        let key = fs::read_to_string(case.file("cosign.pub")).expect("a key");
        let foreign = fs::read_to_string(folder().join("key-p384-bundle/cosign.pub")).expect("a key");
        for (entry, code) in [
            (entry(&bundle, &key, "dsse"), None),
            (entry(&others, &key, "dsse"), Some("log-binding")),
            (entry(&bundle, &foreign, "dsse"), Some("log-binding")),
        ] {
            let mut bundle = bundle.clone();
            bundle["verificationMaterial"]["tlogEntries"] = json!([entry]);
            let verdict = authority.judge(&Candidate::Bundle(bundle.to_string().into_bytes()), &case, &None);
            let found = verdict.as_ref().err().map(|denial| denial.reason.code());
            assert_eq!(found, code, "{name}: {verdict:?}");
            let wanted = Authority { log: true, ..case.policy().remove(0).remove(0) };
            let verdict = wanted.judge(&Candidate::Bundle(bundle.to_string().into_bytes()), &case, &None);
            assert!(verdict.is_err(), "{name}: nothing proves that the entry is in a log");
        }
    }
}

/// A policy may limit a key to signatures with one hash. Which one a signature has follows from key and format.
#[test]
fn only_signatures_with_the_wanted_hash_count() {
    for (name, hash) in [
        ("key-p256-bundle", Hash::Sha256),
        ("key-p384-bundle", Hash::Sha384),
        ("key-rsa-bundle", Hash::Sha256),
        ("key-ed25519-bundle", Hash::Sha512),
        ("key-ed25519ph-bundle", Hash::Sha512),
        ("legacy-key-p256", Hash::Sha256),
        ("legacy-key-p384", Hash::Sha256),
        ("legacy-key-rsa", Hash::Sha256),
        ("legacy-key-ed25519", Hash::Sha512),
    ] {
        let case = case(name);
        let candidate = &case.candidates()[0];
        for wanted in [Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            let mut authority = case.policy().remove(0).remove(0);
            authority.key = authority.key.map(|key| key.only(Some(wanted)));
            let verdict = authority.judge(candidate, &case, &None);
            let found = verdict.as_ref().err().map(|denial| denial.reason.code());
            assert_eq!(found, (wanted != hash).then_some("digest-algorithm"), "{name} {wanted:?}: {verdict:?}");
        }
    }
}

/// A policy may take authorities and logs from several trusted roots, and only those of one address: all others are then unknown.
#[test]
fn a_root_is_composed_of_what_a_policy_names() {
    const LOG: &str = "https://rekor.sigstore.acme.example";
    const LOG_2: &str = "https://log2026-1.rekor.sigstore.acme.example/";
    let github = TrustedRoot::built_in("github").expect("built in");
    for (name, other_authorities, log, stamps, expected) in [
        ("keyless-rekor1", false, None, true, None),
        ("keyless-rekor1", false, Some(LOG), true, None),
        ("keyless-rekor1", false, Some(LOG_2), true, Some("untrusted-log")),
        ("keyless-rekor1", true, None, true, Some("untrusted-ca")),
        ("keyless-rekor2", false, Some(LOG_2), true, None),
        ("keyless-rekor2", false, Some(LOG), true, Some("untrusted-log")),
        ("keyless-rekor2", false, None, false, Some("timestamp")),
    ] {
        let case = case(name);
        let own = case.root();
        let certificates = Part { root: if other_authorities { &github } else { &own }, address: None };
        let logs = Part { root: &own, address: log };
        let timestamps = Part { root: if stamps { &own } else { &github }, address: None };
        let root = TrustedRoot::composed(Some(certificates), Some(logs), Some(timestamps)).expect("a root");
        let verdict = case.policy()[0][0].judge_with(&case.candidates()[0], &case, &None, Timestamp::now(), &root);
        let found = verdict.as_ref().err().map(|denial| denial.reason.code());
        assert_eq!(found, expected, "{name} {log:?}: {verdict:?}");
    }
}

/// Where the texts of a bundle stand.
fn leaves(json: &Value, at: String) -> Vec<String> {
    match json {
        Value::Object(members) => members.iter().flat_map(|(name, json)| leaves(json, format!("{at}/{name}"))).collect(),
        Value::Array(elements) => elements.iter().enumerate().flat_map(|(place, json)| leaves(json, format!("{at}/{place}"))).collect(),
        Value::String(_) => vec![at],
        _ => Vec::new(),
    }
}

/// A text with one thing changed: a bit of what it encodes, a digit, or a letter.
fn changed_text(text: &str, change: usize) -> String {
    let at = |length: usize| change * 7919 % length.max(1);
    if let Ok(number) = text.parse::<u64>() {
        return (number ^ (1 << (change % 32))).to_string();
    }
    if let Ok(mut bytes) = STANDARD.decode(text)
        && bytes.len() > 8
    {
        let at = at(bytes.len());
        bytes[at] ^= 1 << (change % 8);
        return STANDARD.encode(bytes);
    }
    let mut bytes = text.as_bytes().to_vec();
    let at = at(bytes.len());
    bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What could count for a kit.
enum Candidate {
    Bundle(Vec<u8>),
    Layer(LayerKind, Vec<u8>, Vec<(String, String)>),
}

/// An authority of a policy, as far as one bundle is concerned.
struct Authority {
    key: Option<PublicKey>,
    identities: Vec<Identity>,
    log: bool,
    timestamp: bool,
    format: Option<String>,
    /// Types of attestations; `None` is a signature.
    wanted: Vec<Option<String>>,
}

impl Authority {
    fn read(yaml: &Yaml<'_>) -> Self {
        let text = |yaml: &Yaml<'_>, name: &str| yaml.as_mapping_get(name).and_then(Yaml::as_str).map(str::to_owned);
        let key = yaml.as_mapping_get("key").and_then(|key| text(key, "data"));
        let identities = yaml.as_mapping_get("keyless").and_then(|keyless| keyless.as_mapping_get("identities"));
        let matcher = |yaml: &Yaml<'_>, name: &str| {
            let exact = text(yaml, name).map(Matcher::Exact);
            exact.unwrap_or_else(|| Matcher::pattern(&text(yaml, &format!("{name}RegExp")).expect("one of both")).expect("a pattern"))
        };
        let identity = |yaml: &Yaml<'_>| Identity { subject: matcher(yaml, "subject"), issuer: matcher(yaml, "issuer") };
        let attestations = yaml.as_mapping_get("attestations").and_then(Yaml::as_sequence);
        Self {
            key: key.map(|key| PublicKey::from_pem(key.as_bytes()).expect("a key")),
            identities: identities.and_then(Yaml::as_sequence).into_iter().flatten().map(identity).collect(),
            log: yaml.as_mapping_get("ctlog").is_some(),
            timestamp: yaml.as_mapping_get("rfc3161timestamp").is_some(),
            format: text(yaml, "signatureFormat"),
            wanted: match attestations {
                Some(attestations) => attestations.iter().map(|yaml| text(yaml, "predicateType").map(|name| long(&name))).collect(),
                None => vec![None],
            },
        }
    }

    fn takes(&self, candidate: &Candidate) -> bool {
        let other = (self.format.as_deref(), candidate);
        !matches!(other, (Some("bundle"), Candidate::Layer(..)) | (Some("legacy"), Candidate::Bundle(_)))
    }

    fn judge(&self, bundle: &Candidate, case: &Case, wanted: &Option<String>) -> Result<Facts, Denial> {
        self.judge_at(bundle, case, wanted, Timestamp::now())
    }

    fn judge_at(&self, candidate: &Candidate, case: &Case, wanted: &Option<String>, now: Timestamp) -> Result<Facts, Denial> {
        self.judge_with(candidate, case, wanted, now, &case.root())
    }

    fn judge_with(
        &self,
        candidate: &Candidate,
        case: &Case,
        wanted: &Option<String>,
        now: Timestamp,
        root: &TrustedRoot,
    ) -> Result<Facts, Denial> {
        let about = About { digest: case.digest().parse().expect("a digest"), artifact: None };
        let content = wanted.as_deref().map_or(Content::Signature, Content::Attestation);
        let signers = self.key.iter().map(Signer::Key).chain(self.identities.iter().map(Signer::Identity));
        let expect = |signer| Expectation { signer, content, log: self.log, timestamp: self.timestamp, forms: Forms::Attached };
        let verdict = |signer| match candidate {
            Candidate::Bundle(bytes) => judge(bytes, &about, &expect(signer), root, now),
            Candidate::Layer(kind, blob, annotations) => {
                let layer = Layer { kind: *kind, blob, annotations };
                judge_layer(&layer, &about.digest, &expect(signer), root, now)
            }
        };
        let mut verdicts: Vec<_> = signers.map(verdict).collect();
        let good = verdicts.iter().position(Result::is_ok).unwrap_or(0);
        verdicts.swap_remove(good)
    }
}

/// What Cosign's short names stand for.
fn long(name: &str) -> String {
    let known = BTreeMap::from([
        ("vuln", "https://cosign.sigstore.dev/attestation/vuln/v1"),
        ("cyclonedx", "https://cyclonedx.org/bom"),
        ("spdxjson", "https://spdx.dev/Document"),
        ("slsaprovenance1", "https://slsa.dev/provenance/v1"),
    ]);
    known.get(name).copied().unwrap_or(name).to_owned()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/signed")
}

fn case(name: &str) -> Case {
    let folder = folder().join(name);
    let text = fs::read(folder.join("case.json")).expect("case.json");
    Case { name: name.to_owned(), folder, json: serde_json::from_slice(&text).expect("JSON") }
}

fn cases() -> Vec<Case> {
    let names = fs::read_dir(folder()).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let mut names: Vec<_> = names.filter(|path| path.join("case.json").exists()).collect();
    names.sort();
    names.iter().map(|path| case(path.file_name().and_then(|name| name.to_str()).expect("a name"))).collect()
}

impl Case {
    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn digest(&self) -> String {
        self.json["digest"].as_str().expect("a digest").to_owned()
    }

    fn root(&self) -> TrustedRoot {
        TrustedRoot::read(&fs::read(self.file("trusted_root.json")).expect("a trusted root")).expect("a trusted root")
    }

    fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let layout = fs::File::open(self.folder.join("layout.tar")).expect("a layout");
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(layout).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").to_string_lossy().replace('/', ":");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("a whole entry");
            blobs.insert(name.trim_start_matches("blobs:").to_owned(), content);
        }
        blobs
    }

    /// The content of every manifest whose subject is the kit.
    fn bundles(&self) -> Vec<Vec<u8>> {
        let blobs = self.blobs();
        let manifests = blobs.values().filter_map(|blob| serde_json::from_slice::<Value>(blob).ok());
        let attached = manifests.filter(|manifest| manifest["subject"]["digest"].as_str() == Some(&self.digest()));
        let content = attached.filter_map(|manifest| blobs.get(manifest["layers"][0]["digest"].as_str()?).cloned());
        content.collect()
    }

    /// Bundles, and the layers of the images at the tags of the legacy format.
    fn candidates(&self) -> Vec<Candidate> {
        let blobs = self.blobs();
        let json = |name: &str| serde_json::from_slice::<Value>(&blobs[name]).expect("JSON");
        let mut all: Vec<_> = self.bundles().into_iter().map(Candidate::Bundle).collect();
        let tag = self.digest().replace(':', "-");
        for entry in json("index.json")["manifests"].as_array().expect("manifests") {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
            if !name.ends_with(&format!("{tag}.sig")) && !name.ends_with(&format!("{tag}.att")) {
                continue;
            }
            for layer in json(entry["digest"].as_str().expect("a digest"))["layers"].as_array().expect("layers") {
                let kind = match layer["mediaType"].as_str() {
                    Some("application/vnd.dev.cosign.simplesigning.v1+json") => LayerKind::Signature,
                    _ => LayerKind::Attestation,
                };
                let annotations = layer["annotations"].as_object().into_iter().flatten();
                let annotations = annotations.map(|(name, text)| (name.clone(), text.as_str().expect("a text").to_owned()));
                let blob = &blobs[layer["digest"].as_str().expect("a digest")];
                all.push(Candidate::Layer(kind, blob.clone(), annotations.collect()));
            }
        }
        all
    }

    fn write_kit(&self, folder: &Path) -> String {
        let path = folder.join("manifest.json");
        fs::write(&path, &self.blobs()[&self.digest()]).expect("room");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The authorities of each document of the policy.
    fn policy(&self) -> Vec<Vec<Authority>> {
        let text = fs::read_to_string(self.folder.join("policy.yaml")).expect("a policy");
        let documents = Yaml::load_from_str(&text).expect("YAML");
        let authorities =
            |yaml: &Yaml<'_>| yaml["spec"]["authorities"].as_sequence().expect("authorities").iter().map(Authority::read).collect();
        documents.iter().map(authorities).collect()
    }
}
