//! A decision as others can check it: an in-toto statement with SLSA's verification summary, `PASSED` or `FAILED`.
//!
//! It says only what was decided: by which policies, on which signatures and attestations, about which manifest. No level of SLSA was verified, so none
//! is claimed. It is not signed. `cosign attest` makes statements itself and takes a predicate:
//! `cosign attest --type https://slsa.dev/verification_summary/v1 --predicate <(jq .predicate FILE) REPOSITORY@DIGEST`. As it stands the statement is signed
//! by `cosign attest-blob --statement FILE --bundle BUNDLE` (from version 3). This module decides nothing and does not know how decisions are made.
//!
//! | field | what stands there |
//! |---|---|
//! | `subject` | the manifest that was decided about, by its digest, named as it was asked for |
//! | `verifier.id`, `.version` | as [`VerifierId`] says; the version of kitfs |
//! | `timeVerified` | when it was decided |
//! | `resourceUri` | the reference that was asked for, as a URI: `oci://HOST/REPOSITORY:TAG`, and `oci:`, `oci-archive:`, `kitops:` as they are. Never the claim |
//! | `policy.digest` | that of all policies that matched, as [`digest_of_policies`] has it |
//! | `policy.uri` | the verifier's id with `#policies=` and the sets and names of those policies |
//! | `policy.annotations` | those policies, each with its own digest, mode, and whether it is met; for `PASSED` the trust roots too |
//! | `inputAttestations` | `PASSED`: what counted. `FAILED`: all that was judged, since the answer stands on all of it. Each once, by the digest of bundle or layer |
//! | `verificationResult` | `PASSED` or `FAILED` |
//! | `verifiedLevels` | `KITFS_ADMITTED` or `FAILED` |
//! | `slsaVersion` | `1.2`, whose summary this is |
//! | `pkg:generic/kitfs#claim` | what the caller claimed that the kit is, if anything |
//! | `pkg:generic/kitfs#reasons` | why it failed, the nearest miss first |
//!
//! There is none for a decision that was not taken, without a digest, or by which nothing could have been refused: [`NoSummary`].

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::admission::{CandidateReport, PolicyReport, Report};
use crate::decided::{ENFORCE, digest_of_policies};
use crate::digest::Digest;
use crate::failure::inert_json;
use crate::oci::{Reference, Transport};

/// The type of the predicate.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/verification_summary/v1";

/// Who verified, as a URI: what a consumer ties the signer of the summary to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierId(String);

/// Why a text is no id of a verifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no absolute URI without a fragment, such as `https://example.com/kitfs`", .0.escape_debug())]
pub struct NotAVerifier(String);

/// Why there is no summary of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSummary {
    /// It could not be decided, so it neither passed nor failed.
    #[error("nothing was decided")]
    Undecided,
    /// Nobody knows which kit it is about.
    #[error("the kit has no digest")]
    NoDigest,
    /// It was admitted, but by nothing that could have refused it: that would pass for a verification.
    #[error("no policy that refuses was there to verify it by")]
    NoPolicy,
}

/// A statement about one kit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: Vec<Value>,
    #[serde(rename = "predicateType")]
    predicate_type: &'static str,
    predicate: Map<String, Value>,
}

/// Why summaries were not written.
#[derive(Debug, thiserror::Error)]
pub enum VsaError {
    /// The operating system refused something.
    #[error("cannot write the verification summary `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else than a file is there, which must not be replaced.
    #[error("cannot write the verification summary `{}`: it is there, and no regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
}

/// What kitfs calls itself, and where its own fields are.
const KITFS: &str = "pkg:generic/kitfs";

impl Default for VerifierId {
    fn default() -> Self {
        Self(KITFS.to_owned())
    }
}

impl FromStr for VerifierId {
    type Err = NotAVerifier;

    fn from_str(text: &str) -> Result<Self, NotAVerifier> {
        let scheme = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).map_or("", |(scheme, _)| scheme);
        let is_scheme = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
        let fits = is_scheme && text.bytes().all(|byte| is_of_uris(byte) && byte != b'#');
        if fits { Ok(Self(text.to_owned())) } else { Err(NotAVerifier(text.to_owned())) }
    }
}

impl fmt::Display for VerifierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Statement {
    /// The summary of a decision that was taken at `at`.
    pub fn of(report: &Report, verifier: &VerifierId, at: Timestamp) -> Result<Self, NoSummary> {
        let passed = match report.decision {
            "admit" => true,
            "deny" => false,
            _ => return Err(NoSummary::Undecided),
        };
        let digest: Digest = report.digest.as_ref().and_then(|digest| digest.parse().ok()).ok_or(NoSummary::NoDigest)?;
        let policies: Vec<(&str, &PolicyReport)> =
            report.sets.iter().flat_map(|set| set.policies.iter().map(|policy| (set.name, policy))).collect();
        if passed && !policies.iter().any(|(_, policy)| policy.mode == ENFORCE) {
            return Err(NoSummary::NoPolicy);
        }
        let mut predicate = Map::new();
        let mut field = |name: &str, value: Value| predicate.insert(name.to_owned(), value);
        field("verifier", json!({ "id": verifier.0, "version": { "kitfs": env!("CARGO_PKG_VERSION") } }));
        field("timeVerified", json!(at.to_string()));
        field("resourceUri", json!(resource_uri(&report.reference)));
        field("policy", policy(report, verifier, &policies));
        field("inputAttestations", Value::Array(inputs(&policies, passed)));
        field("verificationResult", json!(if passed { "PASSED" } else { "FAILED" }));
        field("verifiedLevels", json!([if passed { "KITFS_ADMITTED" } else { "FAILED" }]));
        field("slsaVersion", json!("1.2"));
        if let Some(claim) = &report.claim {
            field(&format!("{KITFS}#claim"), json!(claim));
        }
        if !passed {
            field(&format!("{KITFS}#reasons"), json!(report.reasons));
        }
        let subject = vec![json!({ "name": report.reference, "digest": digest_set(&digest) })];
        Ok(Self { kind: "https://in-toto.io/Statement/v1", subject, predicate_type: PREDICATE_TYPE, predicate })
    }

    /// As one line of JSON, without what a terminal would act on.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        Ok(inert_json(&serde_json::to_string(self)?) + "\n")
    }
}

/// Writes a statement a line to `path`, the kit's own first, those of kits that it refers to behind it; so the file of a kit that refers to none is one
/// JSON document. What was in the file is replaced as a whole, and where there is nothing to be written it goes: an old summary must not pass for that of
/// this decision.
pub fn write(path: &Path, statements: &[Statement]) -> Result<(), VsaError> {
    let failed = |source| VsaError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => return Err(VsaError::NotAFile { path: path.to_owned() }),
        Ok(_) if statements.is_empty() => return std::fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) if statements.is_empty() => return Ok(()),
        _ => {}
    }
    let lines = statements.iter().map(Statement::line).collect::<Result<String, _>>().map_err(|error| failed(error.into()))?;
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{:016x}", fastrand::u64(..)));
    let unfinished = path.with_file_name(unfinished);
    replace(path, &unfinished, lines.as_bytes()).map_err(|error| {
        // It is only there if it was made; the error is what counts.
        _ = std::fs::remove_file(&unfinished);
        failed(error)
    })
}

fn replace(path: &Path, unfinished: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn policy(report: &Report, verifier: &VerifierId, policies: &[(&str, &PolicyReport)]) -> Value {
    let digest = digest_of_policies(policies.iter().map(|(_, policy)| policy.digest.as_str()));
    let names: Vec<String> = policies.iter().map(|(set, policy)| format!("{set}:{}", encoded(&policy.name, |_| false))).collect();
    let listed: Vec<Value> = policies
        .iter()
        .map(|(set, policy)| json!({ "set": set, "name": policy.name, "digest": policy.digest, "mode": policy.mode, "met": policy.met }))
        .collect();
    let mut annotations = json!({ "policies": listed });
    if let Some(evidence) = &report.evidence {
        annotations["trustRoots"] = json!(evidence.trust_roots);
    }
    json!({ "uri": format!("{verifier}#policies={}", names.join(",")), "digest": digest_set(&digest), "annotations": annotations })
}

fn inputs(policies: &[(&str, &PolicyReport)], passed: bool) -> Vec<Value> {
    let mut candidates: Vec<&CandidateReport> = policies
        .iter()
        .flat_map(|(_, policy)| policy.authorities.iter().flat_map(|authority| &authority.candidates))
        .filter(|candidate| candidate.counts || !passed)
        .collect();
    candidates.sort_by(|a, b| a.digest.cmp(&b.digest));
    candidates.dedup_by(|a, b| a.digest == b.digest);
    // One whose digest is of another sort than ours was never had, so nothing rests on it.
    let described = candidates.into_iter().filter_map(|candidate| {
        let digest: Digest = candidate.digest.parse().ok()?;
        Some(json!({
            "name": candidate.found_at,
            "digest": digest_set(&digest),
            "annotations": { "manifest": candidate.manifest, "format": candidate.format, "predicateType": candidate.predicate_type },
        }))
    });
    described.collect()
}

/// in-toto's way to write a digest.
fn digest_set(digest: &Digest) -> Value {
    json!({ digest.algorithm().name(): digest.hex() })
}

/// A reference as a URI. The transports other than registries have a scheme already.
fn resource_uri(reference: &str) -> String {
    let registry = reference.parse().is_ok_and(|parsed: Reference| matches!(parsed.transport(), Transport::Registry(_)));
    let scheme = if registry { "oci://" } else { "" };
    format!("{scheme}{}", encoded(reference, |byte| b":/@".contains(&byte)))
}

/// `text` with everything percent-encoded that is not for any place of a URI, or for this one.
fn encoded(text: &str, also: impl Fn(u8) -> bool) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut uri, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also(byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
        uri
    })
}

/// The characters that RFC 3986 lets a URI have.
fn is_of_uris(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::SetReport;
    use crate::digest::Algorithm;
    use crate::fixtures::{admission, refused, report_of};

    const REFERENCE: &str = "reg.example/acme/m:v1";

    fn at() -> Timestamp {
        "2026-11-24T10:00:00Z".parse().expect("a time")
    }

    fn value(report: &Report) -> Value {
        let statement = Statement::of(report, &VerifierId::default(), at()).expect("a summary");
        serde_json::from_str(&statement.line().expect("plain data")).expect("JSON")
    }

    /// What the specification says of a field: how it is called, whether it must be there, and what may stand there.
    type Field = (&'static str, bool, fn(&Value) -> bool);

    fn is_uri(value: &Value) -> bool {
        value
            .as_str()
            .is_some_and(|text| text.split_once(':').is_some_and(|(scheme, _)| !scheme.is_empty()) && text.bytes().all(is_of_uris))
    }

    fn is_digest_set(value: &Value) -> bool {
        value.as_object().is_some_and(|set| {
            !set.is_empty()
                && set
                    .iter()
                    .all(|(name, hex)| ["sha256", "sha512"].contains(&name.as_str()) && hex.as_str().is_some_and(|hex| hex.len() >= 64))
        })
    }

    /// in-toto's statement v1 and the predicate of the verification summary v1, field for field.
    const FIELDS: &[Field] = &[
        ("/_type", true, |value| value == "https://in-toto.io/Statement/v1"),
        ("/subject", true, |value| value.as_array().is_some_and(|subjects| subjects.len() == 1)),
        ("/subject/0/name", false, Value::is_string),
        ("/subject/0/digest", true, is_digest_set),
        ("/predicateType", true, |value| value == "https://slsa.dev/verification_summary/v1"),
        ("/predicate/verifier", true, Value::is_object),
        ("/predicate/verifier/id", true, is_uri),
        ("/predicate/verifier/version", false, |value| {
            value.as_object().is_some_and(|versions| !versions.is_empty() && versions.values().all(Value::is_string))
        }),
        ("/predicate/timeVerified", false, |value| {
            value.as_str().is_some_and(|time| time.ends_with('Z') && time.parse::<Timestamp>().is_ok())
        }),
        ("/predicate/resourceUri", true, is_uri),
        ("/predicate/policy", true, Value::is_object),
        ("/predicate/policy/uri", true, is_uri),
        ("/predicate/policy/digest", false, is_digest_set),
        ("/predicate/policy/annotations", false, Value::is_object),
        ("/predicate/inputAttestations", false, |value| {
            value.as_array().is_some_and(|inputs| inputs.iter().all(|input| is_digest_set(&input["digest"])))
        }),
        ("/predicate/verificationResult", true, |value| ["PASSED", "FAILED"].contains(&value.as_str().unwrap_or_default())),
        // What is not SLSA's own must not begin like it, and no level of SLSA was verified.
        ("/predicate/verifiedLevels", true, |value| {
            value
                .as_array()
                .is_some_and(|levels| levels.iter().all(|level| level.as_str().is_some_and(|level| !level.starts_with("SLSA_"))))
        }),
        ("/predicate/slsaVersion", false, |value| value == "1.2"),
    ];

    #[test]
    fn each_field_is_what_the_specification_says() {
        let mut claimed = admission(REFERENCE, &["alice@example.com"]);
        claimed.claim = Some("reg.example/acme/other:v1".into());
        for report in [report_of(claimed.clone()), refused(claimed)] {
            let statement = value(&report);
            for (pointer, required, fits) in FIELDS {
                match statement.pointer(pointer) {
                    Some(value) => assert!(fits(value), "{pointer}: {value}"),
                    None => assert!(!required, "{pointer} is missing"),
                }
            }
            // There is nothing else but extensions, whose names are URIs.
            for (prefix, object) in [("/", &statement), ("/predicate/", &statement["predicate"])] {
                for name in object.as_object().expect("an object").keys() {
                    let known = FIELDS.iter().any(|(pointer, ..)| *pointer == format!("{prefix}{name}"));
                    assert!(known || name == "predicate" || is_uri(&json!(name)), "{prefix}{name}");
                }
            }
        }
    }

    #[test]
    fn a_passed_summary_says_what_it_rests_on() {
        let admission = admission(REFERENCE, &["alice@example.com", "bob@example.com"]);
        let statement = value(&report_of(admission.clone()));
        let predicate = &statement["predicate"];
        assert_eq!(statement["subject"], json!([{ "name": REFERENCE, "digest": { "sha256": admission.digest.hex() } }]));
        assert_eq!(predicate["verifier"]["id"], "pkg:generic/kitfs");
        assert_eq!(predicate["verifier"]["version"]["kitfs"], env!("CARGO_PKG_VERSION"));
        assert_eq!(predicate["timeVerified"], "2026-11-24T10:00:00Z");
        assert_eq!(predicate["resourceUri"], "oci://reg.example/acme/m:v1");
        assert_eq!(predicate["policy"]["uri"], "pkg:generic/kitfs#policies=host:signed");
        let digest = Digest::of(Algorithm::Sha256, format!("{}\n", admission.policies[0].digest).as_bytes());
        assert_eq!(predicate["policy"]["digest"]["sha256"], digest.hex());
        assert_eq!(predicate["policy"]["annotations"]["trustRoots"][0]["name"], "trusted-root");
        let mut inputs: Vec<String> = admission.counted.iter().map(|counted| counted.digest.hex()).collect();
        inputs.sort_unstable();
        let found: Vec<&str> = predicate["inputAttestations"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|input| input["digest"]["sha256"].as_str())
            .collect();
        assert_eq!(found, inputs);
        assert_eq!((&predicate["verificationResult"], &predicate["verifiedLevels"]), (&json!("PASSED"), &json!(["KITFS_ADMITTED"])));
        assert_eq!((predicate.get("pkg:generic/kitfs#claim"), predicate.get("pkg:generic/kitfs#reasons")), (None, None));
    }

    #[test]
    fn a_failed_summary_says_why_and_names_all_that_was_judged() {
        let statement = value(&refused(admission(REFERENCE, &["alice", "bob"])));
        let predicate = &statement["predicate"];
        assert_eq!((&predicate["verificationResult"], &predicate["verifiedLevels"]), (&json!("FAILED"), &json!(["FAILED"])));
        assert_eq!(predicate["inputAttestations"].as_array().map(Vec::len), Some(2));
        assert_eq!(predicate["pkg:generic/kitfs#reasons"][0]["code"], "wrong-key");
        assert_eq!(predicate["policy"]["annotations"].get("trustRoots"), None);
    }

    #[test]
    fn what_did_not_count_is_no_input_of_what_passed() {
        let mut report = report_of(admission(REFERENCE, &["alice", "eve"]));
        let candidates = &mut report.sets[0].policies[0].authorities[0].candidates;
        candidates[1].counts = false;
        let counted = candidates[0].digest.clone();
        // Two authorities that it counts for make one input of it.
        let twice = report.sets[0].policies[0].authorities[0].clone();
        report.sets[0].policies[0].authorities.push(twice);
        let inputs = value(&report)["predicate"]["inputAttestations"].clone();
        assert_eq!(inputs.as_array().map(Vec::len), Some(1));
        assert_eq!(format!("sha256:{}", inputs[0]["digest"]["sha256"].as_str().expect("a digest")), counted);
    }

    #[test]
    fn a_claim_is_shown_as_one() {
        let mut claimed = admission("oci:/kits:v1", &["alice"]);
        claimed.claim = Some("reg.example/acme/other:v1".into());
        let statement = value(&report_of(claimed));
        assert_eq!(statement["predicate"]["pkg:generic/kitfs#claim"], "reg.example/acme/other:v1");
        assert_eq!(statement["predicate"]["resourceUri"], "oci:/kits:v1");
        assert_eq!(statement["subject"][0]["name"], "oci:/kits:v1");
    }

    #[test]
    fn nothing_passes_that_was_not_verified() {
        let change = |change: fn(&mut Report)| {
            let mut report = report_of(admission(REFERENCE, &["alice"]));
            change(&mut report);
            Statement::of(&report, &VerifierId::default(), at()).map(|_| ())
        };
        type Change = fn(&mut Report);
        let cases: [(Change, Result<(), NoSummary>); 8] = [
            (|_| {}, Ok(())),
            (|report| report.decision = "error", Err(NoSummary::Undecided)),
            (|report| report.decision = "anything", Err(NoSummary::Undecided)),
            (|report| report.digest = None, Err(NoSummary::NoDigest)),
            (|report| report.digest = Some("sha1:00".into()), Err(NoSummary::NoDigest)),
            (|report| report.sets.clear(), Err(NoSummary::NoPolicy)),
            (|report| report.sets[0].policies[0].mode = "warn", Err(NoSummary::NoPolicy)),
            // Refused because no policy covers it: that fails by the policies that there are not.
            (
                |report| {
                    (report.decision, report.sets) =
                        ("deny", vec![SetReport { name: "host", enforces: true, met: false, policies: vec![] }])
                },
                Ok(()),
            ),
        ];
        for (number, (report, expected)) in cases.into_iter().enumerate() {
            assert_eq!(change(report), expected, "case {number}");
        }
    }

    #[test]
    fn references_become_uris() {
        for (reference, uri) in [
            ("reg.example:5000/acme/m:v1", "oci://reg.example:5000/acme/m:v1"),
            ("oci:/kits/my kit:v#1", "oci:/kits/my%20kit:v%231"),
            ("oci-archive:kits\u{202e}.tar", "oci-archive:kits%E2%80%AE.tar"),
            ("kitops:reg.example/acme/m:v1", "kitops:reg.example/acme/m:v1"),
        ] {
            assert_eq!(resource_uri(reference), uri);
        }
    }

    #[test]
    fn a_verifier_is_a_uri_without_a_fragment() {
        for text in ["https://example.com/kitfs", "pkg:generic/kitfs", "urn:example:x"] {
            assert_eq!(text.parse::<VerifierId>().expect(text).to_string(), text);
        }
        for text in ["", "kitfs", ":x", "https:", "1x:y", "https://a b", "https://a#b", "https://a\n", "https://\u{e9}"] {
            assert_eq!(text.parse::<VerifierId>(), Err(NotAVerifier(text.into())));
        }
        let statement = Statement::of(&report_of(admission(REFERENCE, &["a"])), &"https://ci.example/v".parse().expect("a URI"), at());
        let predicate = statement.expect("a summary").predicate;
        assert_eq!(predicate["verifier"]["id"], "https://ci.example/v");
        assert_eq!(predicate["policy"]["uri"], "https://ci.example/v#policies=host:signed");
    }

    #[test]
    fn files_are_written_whole_or_not_at_all() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("vsa.json");
        let names = || std::fs::read_dir(home.path()).expect("a folder").count();
        let one = Statement::of(&report_of(admission(REFERENCE, &["a\u{1b}[2J"])), &VerifierId::default(), at()).expect("a summary");
        write(&path, &[]).expect("nothing to write");
        assert_eq!(names(), 0);
        write(&path, &[one.clone(), one.clone()]).expect("written");
        let text = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 2);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\u{1b}'));
        write(&path, std::slice::from_ref(&one)).expect("replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), one.line().expect("plain data"));
        assert_eq!(names(), 1);
        write(&path, &[]).expect("removed");
        assert_eq!(names(), 0);

        std::os::unix::fs::symlink("/nonexistent", &path).expect("a link");
        assert!(matches!(write(&path, std::slice::from_ref(&one)), Err(VsaError::NotAFile { .. })));
        assert!(matches!(write(&path, &[]), Err(VsaError::NotAFile { .. })));
        assert!(matches!(write(home.path(), std::slice::from_ref(&one)), Err(VsaError::NotAFile { .. })));
        let error = write(&home.path().join("missing/vsa.json"), &[one]).expect_err("no folder");
        assert!(matches!(&error, VsaError::Io { path, .. } if path.ends_with("missing/vsa.json")), "{error}");
        assert_eq!(names(), 1);
    }
}
