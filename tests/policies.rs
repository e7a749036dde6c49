//! Policies as users have them: those of the fixtures and of `examples/policies`, through the real program, and their rules over inputs.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kitfs::admission::RuleSet;
use kitfs::admission::roots::Roots;
use kitfs::policy::name::Name;
use kitfs::policy::rego::Verdict;
use kitfs::policy::set::{self, Names, Set};
use serde_json::{Value, json};

const FULCIO_GITHUB: &str = "https://token.actions.githubusercontent.com";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// On a host without any rules.
fn check(arguments: &[&Path]) -> Output {
    let host = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kitfs"));
    command.env_clear().env("NO_COLOR", "1").env("KITFS_TEST_HOST", host.path()).args(["policy", "check"]).args(arguments);
    command.output().expect("the program")
}

fn examples() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("examples/policies")).expect("the examples");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_policies_of_every_signed_case_load() {
    let mut files = 0;
    for case in std::fs::read_dir(root().join("tests/fixtures/signed")).expect("the fixtures") {
        let case = case.expect("an entry").path();
        let Ok(facts) = std::fs::read(case.join("case.json")) else { continue };
        let facts: Value = serde_json::from_slice(&facts).expect("JSON");
        for name in ["policy.yaml", "policy-v1.yaml"] {
            let path = case.join(name);
            if !path.exists() {
                continue;
            }
            files += 1;
            let set = Set::of_files(&[&path]).unwrap_or_else(|error| panic!("{}: {}", path.display(), kitfs::failure::chain(&error)));
            let names =
                Names { real: None, claim: Some(Name::of_kit(facts["reference"].as_str().expect("a reference")).expect("a reference")) };
            let covered = Set::covers(&set.matching(&names));
            let root = case.join("trusted_root.json").to_str().expect("UTF-8").to_owned();
            let rules = RuleSet::load(set, &Roots::of_caller(&[root]).expect("a trusted root"));
            let rules = rules.unwrap_or_else(|error| panic!("{}: {}", path.display(), kitfs::failure::chain(&error)));
            for policy in rules.set().policies() {
                assert_eq!(rules.demands(policy).len(), policy.authorities.len(), "{}", path.display());
            }
            // A case may have several reasons that are right, the first of which is a code.
            let uncovered = facts["reason"].as_str().is_some_and(|reason| reason.starts_with("no-policy"));
            assert_eq!(covered, !uncovered, "{}: whether a policy covers the kit", path.display());
        }
    }
    assert!(files > 100, "{files} policies; the search for them is broken");
}

#[test]
fn every_example_loads_and_is_explained() {
    let paths = examples();
    assert!(paths.len() >= 9, "{paths:?}");
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let output = check(&paths);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let output = check(&[&[Path::new("--json")], &paths[..]].concat());
    assert_eq!(output.status.code(), Some(0));
    let files: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let files = files.as_array().expect("a list");
    assert_eq!(files.len(), paths.len());
    for policy in files.iter().flat_map(|file| file["policies"].as_array().expect("policies")) {
        for said in [policy["name"].as_str(), policy["digest"].as_str(), policy["images"][0]["glob"].as_str()] {
            assert!(text.contains(said.expect("a text")), "{policy}\n{text}");
        }
        assert!(!policy["authorities"].as_array().expect("authorities").is_empty());
    }
}

#[test]
fn what_does_not_load_is_said_with_its_field_and_ends_with_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = folder.path().join("good.yaml");
    let policy = "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: good}\nspec:\n  images: [{glob: 'h.test/**'}]\n  authorities: [{static: {action: fail}}]\n";
    std::fs::write(&good, policy).expect("room");
    let bad = folder.path().join("bad.yaml");
    std::fs::write(&bad, policy.replace("{action: fail}", "{action: fail}, kms: x")).expect("room");
    let output = check(&[&bad, &folder.path().join("none.yaml"), &good]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for said in ["bad.yaml", "line 6: spec.authorities[0].kms", "kitfs does not read this field", "none.yaml", "No such file", "hint: "] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("good (") && stdout.contains("h.test/**"), "what loads is told all the same: {stdout}");
    assert_eq!(check(&[]).status.code(), Some(2));
    let wide = folder.path().join("\u{1b}[31m.yaml");
    std::fs::write(&wide, policy.replace("good", "\"a\\e[31mb\"")).expect("room");
    let output = check(&[&wide]);
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.contains(&0x1b), "nothing of a policy acts on a terminal");
}

#[test]
fn it_is_told_what_each_authority_wants() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = std::fs::read_to_string(root().join("tests/fixtures/signed/key-p256-bundle/cosign.pub")).expect("a key");
    let file = |name: &str, authority: &str| {
        let path = folder.path().join(name);
        let text = format!(
            "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: p}}\nspec:\n  images: [{{glob: 'h.test/**'}}]\n  authorities: [{{name: a, {authority}}}]\n"
        );
        std::fs::write(&path, text).expect("room");
        path
    };
    let keyless = "keyless: {identities: [{issuer: 'https://i.test', subjectRegExp: '.*@b'}]";
    let by_key = file("key.yaml", &format!("key: {{data: {key:?}, hashAlgorithm: sha256}}"));
    let logged = file("logged.yaml", &format!("key: {{data: {key:?}}}, ctlog: {{url: 'https://rekor.sigstore.dev/'}}"));
    let by_name = file("name.yaml", &format!("{keyless}}}"));
    let refused = file("refused.yaml", &format!("key: {{data: {P521:?}}}"));
    let waived = file("waived.yaml", &format!("{}, trustRootRef: github}}, rfc3161timestamp: {{}}", keyless));
    let fixture = root().join("tests/fixtures/signed/keyless-rekor1/trusted_root.json");
    let digest = |bytes: &[u8]| kitfs::digest::Digest::of(kitfs::digest::Algorithm::Sha256, bytes).to_string();
    let der = {
        let base64: String = key.lines().filter(|line| !line.starts_with('-')).collect();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).expect("base64")
    };
    for (path, with_root, told, json) in [
        (&by_key, false, &["a: a signature by a key", &digest(&der), "with sha256 only", "no log"][..], ["/key/refused", "null"]),
        (
            &logged,
            false,
            &["with an entry in a log of the trust root sigstore-public-good at https://rekor.sigstore.dev (sha256:"],
            ["/log/trust_root", "\"sigstore-public-good\""],
        ),
        (
            &by_name,
            true,
            &[
                "subject /.*@b/, issuer https://i.test",
                "with an entry in a log of the trust root trusted-root",
                &digest(&std::fs::read(&fixture).expect("a root")),
            ],
            ["/log_waived", "false"],
        ),
        (&refused, false, &["whose signatures are all refused: ", "P-384"], ["/key/hash", "null"]),
        (
            &waived,
            false,
            &["no log: the trust root github (sha256:", "with a timestamp by an authority of the trust root github"],
            ["/log_waived", "true"],
        ),
    ] {
        let given: &[&Path] = if with_root { &[Path::new("--trusted-root"), &fixture] } else { &[] };
        let output = check(&[given, &[path.as_path()]].concat());
        let (text, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(told.iter().all(|told| text.contains(told)), "{told:?}: {text}");
        let output = check(&[given, &[path.as_path(), Path::new("--json")]].concat());
        let files: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let value = files[0]["policies"][0]["authorities"][0].pointer(json[0]).expect("a member");
        assert_eq!(value.to_string(), json[1], "{}", path.display());
    }
    // What it refers to has to be there, as when a kit is mounted.
    let output = check(&[&by_name, &by_key]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    for said in ["name.yaml", "policy `p`, authority `a`", "there is no trust root `trusted-root`", "hint: ", "--trusted-root FILE"] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("key.yaml"), "what loads is told all the same");
}

/// Well-formed, and of a kind that is refused.
const P521: &str = "-----BEGIN PUBLIC KEY-----\nMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQA9hxjKwQSo/rbFsBr/Wb2Qh4oBnrb\ntwAaIFBXO3UZ6Qi4BBice0mLdSnkSvTC9adY6DqbRYoNt0VrCEGo+Ok2sUYAg1Ec\n27xmUU0MlYB+pAWsCKtu+yuOYsUgzZlRNLCCi4lP31Zng+Bxi2av0RfkJSWVCAJG\nuzoklFePEtp3s6etHG8=\n-----END PUBLIC KEY-----\n";

/// What an example's rule says over an input as the decision would make it.
fn verdict(example: &str, input: &Value) -> Verdict {
    let policies = set::of_file(&root().join("examples/policies").join(example)).expect("a policy");
    let mut rules = policies.iter().flat_map(|policy| {
        let of_attestations = policy.authorities.iter().flat_map(|authority| &authority.attestations);
        of_attestations.filter_map(|attestation| attestation.rule.as_ref()).chain(&policy.rule)
    });
    let rule = rules.next().unwrap_or_else(|| panic!("{example} has no rule"));
    assert!(rules.next().is_none(), "{example} has one rule");
    rule.evaluate(input)
}

fn input(change: impl FnOnce(&mut Value)) -> Value {
    let mut input = json!({
        "reference": "kits.example.com/acme/sentiment:v1", "claim": null,
        "repository": "kits.example.com/acme/sentiment", "tag": "v1",
        "digest": format!("sha256:{}", "0".repeat(64)), "manifest": {},
        "kitfile": {
            "manifestVersion": "1.0.0",
            "package": {"name": "sentiment", "license": "Apache-2.0"},
            "model": {"path": "model.safetensors", "license": "MIT"},
            "datasets": [{"path": "data/train.csv", "license": "CC-BY-4.0"}],
        },
        "layers": [
            {"kind": "model", "path": "model.safetensors", "archive": false, "digest": "", "size": 1, "media_type": "", "annotations": {}},
            {"kind": "datasets", "path": "data/train.csv", "archive": false, "digest": "", "size": 1, "media_type": "", "annotations": {}},
        ],
        "signatures": [{
            "authority": "release", "format": "bundle", "issuer": FULCIO_GITHUB,
            "subject": "https://github.com/acme/models/.github/workflows/release.yml@refs/heads/main", "claims": {},
            "time": "2026-11-20T10:00:00Z", "times": [], "cert_not_before": "2026-11-20T09:59:50Z", "annotations": {},
        }],
        "attestations": [{
            "authority": "scanner", "predicateType": "https://kitops.org/attestation/scan/v1", "time": "2026-11-20T10:00:00Z",
            "predicate": {"scanned_at": "2026-11-20T10:00:00Z", "findings": [{"id": "A-1", "severity": "LOW"}]},
        }],
        "mount": {"path": "/mnt", "uid": 0}, "now": "2026-11-26T10:00:00Z",
    });
    change(&mut input);
    input
}

fn provenance(builder: &str) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": [], "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"buildDefinition": {"buildType": "https://actions.github.io/buildtypes/workflow/v1"}, "runDetails": {"builder": {"id": builder}}},
    })
}

#[test]
fn every_rule_of_the_examples_admits_and_denies() {
    let set = |pointer: &'static str, value: Value| input(move |input| *input.pointer_mut(pointer).expect("a member") = value);
    let without = |pointer: &'static str, member: &'static str| {
        input(move |input| drop(input.pointer_mut(pointer).and_then(Value::as_object_mut).and_then(|object| object.remove(member))))
    };
    let trusted = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/generator_generic_slsa3.yml@refs/tags/v2.1.0";
    let stale = json!({"scanned_at": "2026-10-20T10:00:00Z", "findings": []});
    let critical = json!({"scanned_at": "2026-11-20T10:00:00Z", "findings": [{"id": "A-2", "severity": "CRITICAL"}]});
    let lower_case = json!({"scanned_at": "2026-11-20T10:00:00Z", "findings": [{"id": "A-2", "severity": "critical"}]});
    let ahead = json!({"scanned_at": "2026-11-30T10:00:00Z", "findings": []});
    let by_key = |annotations: Value| json!([{"authority": "release", "format": "bundle", "key": "x", "time": "2026-11-25T10:00:00Z", "annotations": annotations}]);
    let one = |layer: Value| json!([layer]);
    let cases: Vec<(&str, Value, bool)> = vec![
        ("slsa-provenance.yaml", provenance(trusted), true),
        ("slsa-provenance.yaml", provenance("https://github.com/evil/.github/workflows/x.yml@refs/heads/main"), false),
        ("slsa-provenance.yaml", provenance(&trusted.replace("@refs/tags/v2.1.0", "@refs/heads/main")), false),
        ("slsa-provenance.yaml", json!({"predicateType": "https://slsa.dev/provenance/v1", "predicate": {}}), false),
        ("scanned.yaml", input(|_| ()), true),
        ("scanned.yaml", set("/attestations/0/predicate", critical), false),
        ("scanned.yaml", set("/attestations/0/predicate", lower_case), false),
        ("scanned.yaml", set("/attestations/0/predicate", stale), false),
        ("scanned.yaml", set("/attestations/0/predicate", ahead), false),
        ("scanned.yaml", set("/attestations/0/predicate", json!({"scanned_at": "2026-11-20T10:00:00Z"})), false),
        ("scanned.yaml", set("/attestations/0/predicate", json!({"findings": []})), false),
        ("scanned.yaml", set("/attestations", json!([])), false),
        ("licences.yaml", input(|_| ()), true),
        ("licences.yaml", set("/kitfile/model/license", json!("Proprietary")), false),
        ("licences.yaml", set("/kitfile/datasets/0/license", json!("CC-BY-NC-4.0")), false),
        ("licences.yaml", without("/kitfile/package", "license"), false),
        ("licences.yaml", without("/kitfile/model", "license"), true),
        ("licences.yaml", set("/kitfile/model/license", json!("")), false),
        ("licences.yaml", set("/kitfile", Value::Null), false),
        ("no-pickle.yaml", input(|_| ()), true),
        ("no-pickle.yaml", set("/layers/0/path", json!("model.pkl")), false),
        ("no-pickle.yaml", set("/layers/0/path", json!("model.bin")), false),
        ("no-pickle.yaml", set("/layers/0/archive", json!(true)), false),
        ("no-pickle.yaml", without("/layers/0", "archive"), false),
        ("no-pickle.yaml", set("/layers", json!([])), false),
        ("no-pickle.yaml", set("/layers", one(json!({"kind": "docs", "path": "README.MD", "archive": false}))), true),
        (
            "no-pickle.yaml",
            input(|input| {
                input["layers"][0]["archive"] = json!(true);
                input["attestations"][0]["predicate"]["pickle_free"] = json!(true);
            }),
            true,
        ),
        (
            "no-pickle.yaml",
            input(|input| {
                input["layers"][0]["archive"] = json!(true);
                input["attestations"][0]["predicate"]["pickle_free"] = json!("yes");
            }),
            false,
        ),
        ("not-before.yaml", input(|_| ()), true),
        ("not-before.yaml", set("/signatures/0/cert_not_before", json!("2026-05-31T23:59:59Z")), false),
        ("not-before.yaml", set("/signatures", by_key(json!({}))), false),
        ("not-before.yaml", set("/signatures", by_key(json!({"released": "2026-06-01T00:00:00Z"}))), true),
        ("not-before.yaml", set("/signatures", by_key(json!({"released": "2026-05-01T00:00:00Z"}))), false),
        ("not-before.yaml", set("/signatures", by_key(json!({"released": "soon"}))), false),
        ("not-before.yaml", set("/signatures", json!([])), false),
    ];
    let mut seen = BTreeSet::new();
    for (example, input, admitted) in cases {
        let verdict = verdict(example, &input);
        assert_eq!(verdict == Verdict::Allowed, admitted, "{example}: {verdict:?} for {input}");
        seen.insert((example, admitted));
    }
    for path in examples() {
        let policies = set::of_file(&path).expect("a policy");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let has_rule = policies.iter().any(|policy| {
            policy.rule.is_some()
                || policy.authorities.iter().flat_map(|authority| &authority.attestations).any(|wanted| wanted.rule.is_some())
        });
        assert_eq!(has_rule, seen.contains(&(name, true)) && seen.contains(&(name, false)), "{name} is tried both ways");
    }
}
