//! The decision, held to the signed fixtures: every case is admitted or refused as it expects, and for the reason that it names.
//!
//! What is attached to a kit is taken out of the case's layout here, without the code that looks for it in registries and layouts, so that the two
//! are tested apart.
#![allow(missing_docs, unreachable_pub)]

mod properties;
mod signing;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;
use kitfs::admission::roots::Roots;
use kitfs::admission::{Decision, Docket, Provenance, Question, RuleSet, Rulebook, Verdict};
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::kit::{Documents, Kit, KitError};
use kitfs::policy::authority::Format;
use kitfs::policy::{Name, Names, Set};
use kitfs::referrers::{Candidate, Content, Ended};
use kitfs::signature::{Denial, LayerKind, Reason};
use kitfs::verify::{Unverified, Verified};
use serde_json::Value;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Case {
    name: String,
    folder: PathBuf,
    json: Value,
    blobs: BTreeMap<String, Bytes>,
    index: Value,
}

#[test]
fn every_case_is_decided_as_it_expects() {
    let (mut admitted, mut denied, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for case in cases() {
        // A layout that has to be made large first: by the tests of the whole program.
        if case.json["grow"].is_object() {
            continue;
        }
        let reason = case.json["reason"].as_str().unwrap_or_default();
        let code = reason.split(':').next().unwrap_or_default();
        let question = match case.question() {
            Ok(question) => question,
            Err(error) => {
                assert_eq!(code, "not-a-kit", "{}: {error}", case.name);
                continue;
            }
        };
        for file in ["policy.yaml", "policy-v1.yaml"].into_iter().filter(|file| case.folder.join(file).exists()) {
            let rulebook = case.rulebook(file);
            let Decision { verdict, report } = case.decide(&question, &rulebook, &Ended::default());
            let first = report.reasons.first().map(|reason| reason.code.as_str()).unwrap_or_default();
            // By a `.sig` alone these two cannot be told apart.
            let told =
                |code: &str| if code == "wrong-key" && case.name.contains("legacy") { "bad-signature".to_owned() } else { code.to_owned() };
            match (case.json["expect"].as_str(), &verdict) {
                (Some("admit"), Verdict::Admitted(admission)) => {
                    let counted = &admission.admission().counted;
                    assert!(!counted.is_empty() && counted.iter().all(|counted| !counted.signer.is_empty()), "{}: {counted:?}", case.name);
                    admitted += 1;
                }
                (Some("deny"), Verdict::Denied) if told(first) == told(code) => _ = denied.insert(code.to_owned()),
                (expected, _) => wrong.push(format!("{} {file}: expected {expected:?} {reason}\n{}", case.name, report.text())),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(admitted >= 40, "{admitted} that are admitted");
    assert!(denied.len() >= 30, "{denied:?}");
}

/// What a warm mount pays for a signature by key.
#[test]
fn a_signature_by_key_is_decided_in_a_few_milliseconds() {
    let case = case("key-p256-bundle");
    let question = case.question().expect("a kit");
    let rulebook = case.rulebook("policy.yaml");
    let once = || {
        let began = Instant::now();
        let decision = case.decide(&question, &rulebook, &Ended::default());
        assert!(matches!(decision.verdict, Verdict::Admitted(_)));
        began.elapsed()
    };
    let best = (0..5).map(|_| once()).min().expect("five");
    assert!(best.as_millis() < 30, "{best:?}");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/signed")
}

fn case(name: &str) -> Case {
    let folder = folder().join(name);
    let json = serde_json::from_slice(&fs::read(folder.join("case.json")).expect("case.json")).expect("JSON");
    let (mut blobs, mut index) = (BTreeMap::new(), Value::Null);
    let layout = fs::File::open(folder.join("layout.tar")).expect("a layout");
    for entry in tar::Archive::new(layout).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("a whole entry");
        match path.strip_prefix("blobs/") {
            Some(digest) => _ = blobs.insert(digest.replacen('/', ":", 1), Bytes::from(content)),
            None if path == "index.json" => index = serde_json::from_slice(&content).expect("JSON"),
            None => {}
        }
    }
    Case { name: name.to_owned(), folder, json, blobs, index }
}

fn cases() -> impl Iterator<Item = Case> {
    let folders = fs::read_dir(folder()).expect("the fixtures").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> = folders
        .filter(|entry| entry.path().join("case.json").exists())
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert!(names.len() > 80, "{} cases", names.len());
    names.into_iter().map(|name| case(&name))
}

fn verified(media_type: &str, bytes: Bytes) -> Verified<Bytes> {
    let descriptor = Descriptor { media_type: media_type.into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    Unverified::new(bytes).verify(&descriptor).expect("its own digest")
}

impl Case {
    fn digest(&self) -> Digest {
        self.json["digest"].as_str().expect("a digest").parse().expect("a digest")
    }

    fn document(&self, digest: &Value) -> Value {
        serde_json::from_slice(&self.blobs[digest.as_str().expect("a digest")]).expect("JSON")
    }

    fn question(&self) -> Result<Question, Box<KitError>> {
        let manifest = verified(MANIFEST, self.blobs[&self.digest().to_string()].clone());
        let config = Kit::config(&manifest)?;
        let config = verified(&config.media_type, self.blobs[&config.digest.to_string()].clone());
        let kit = Kit::plan(&manifest, &config)?;
        let reference = self.json["reference"].as_str().expect("a reference");
        let claim = Some(Name::of_kit(reference).expect("a name"));
        Ok(Question {
            reference: format!("oci:layout:{reference}"),
            names: Names { real: None, claim },
            digest: self.digest(),
            index: None,
            documents: Documents { manifest, config },
            kit,
            provenance: Provenance::default(),
            mountpoint: Some("/mnt".into()),
            uid: 1000,
        })
    }

    fn rulebook(&self, policy: &str) -> Rulebook {
        let set = Set::of_files(&[self.folder.join(policy)]).expect("policies");
        let root = self.folder.join("trusted_root.json");
        let roots = if root.exists() { vec![root.to_str().expect("UTF-8").to_owned()] } else { Vec::new() };
        let rules = RuleSet::load(set, &Roots::of_caller(&roots).expect("a trusted root")).expect("rules");
        Rulebook { caller: Some(rules), ..Rulebook::default() }
    }

    fn decide(&self, question: &Question, rulebook: &Rulebook, ended: &Ended) -> Decision {
        let mut docket = Docket::new(question, rulebook, Timestamp::now());
        self.candidates().into_iter().for_each(|candidate| docket.add(candidate));
        docket.close(ended)
    }

    /// All that is attached to the kit: manifests with a subject, those that the index at its tag lists, and those at the tags of the older format.
    fn candidates(&self) -> Vec<Candidate> {
        let tag = self.digest().to_string().replace(':', "-");
        let mut candidates = Vec::new();
        for entry in self.index["manifests"].as_array().expect("manifests") {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
            let manifest = self.document(&entry["digest"]);
            if name.ends_with(&format!("{tag}.sig")) || name.ends_with(&format!("{tag}.att")) {
                candidates.extend(manifest["layers"].as_array().expect("layers").iter().map(|layer| self.layer(&entry["digest"], layer)));
            } else if name.ends_with(&tag) {
                candidates.extend(manifest["manifests"].as_array().expect("manifests").iter().map(|entry| self.referrer(&entry["digest"])));
            } else if manifest["subject"]["digest"].as_str() == Some(&self.digest().to_string()) {
                candidates.push(self.referrer(&entry["digest"]));
            }
        }
        candidates
    }

    fn referrer(&self, digest: &Value) -> Candidate {
        let manifest = self.document(digest);
        let bundle = manifest["layers"][0]["digest"].as_str().expect("a digest");
        let content = if manifest["subject"]["digest"].as_str() == Some(&self.digest().to_string()) {
            Ok(Content::Bundle(self.blobs[bundle].clone()))
        } else {
            Err(Denial::new(Reason::ReferrerSubject, format!("its subject is {}", manifest["subject"]["digest"])))
        };
        self.candidate(digest, bundle, Format::Bundle, content)
    }

    fn layer(&self, manifest: &Value, layer: &Value) -> Candidate {
        let digest = layer["digest"].as_str().expect("a digest");
        let kind = match layer["mediaType"].as_str() {
            Some("application/vnd.dev.cosign.simplesigning.v1+json") => LayerKind::Signature,
            _ => LayerKind::Attestation,
        };
        let annotations = layer["annotations"].as_object().into_iter().flatten();
        let annotations = annotations.map(|(name, text)| (name.clone(), text.as_str().expect("a text").to_owned())).collect();
        let content = Content::Layer { kind, blob: self.blobs[digest].clone(), annotations };
        self.candidate(manifest, digest, Format::Legacy, Ok(content))
    }

    fn candidate(&self, manifest: &Value, digest: &str, format: Format, content: Result<Content, Denial>) -> Candidate {
        Candidate {
            digest: digest.parse().expect("a digest"),
            manifest: manifest.as_str().expect("a digest").parse().expect("a digest"),
            subject: self.digest(),
            repository: None,
            found_at: "the layout".to_owned(),
            format,
            content,
        }
    }
}
