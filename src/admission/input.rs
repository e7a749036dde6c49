//! What rules in Rego see. What is in it was verified; what is not known is absent, so that a rule that asks for it is undefined and denies.

use std::cell::OnceCell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Question;
use super::deciding::{AuthorityAnswer, AuthorityCase};
use super::judging::{annotations, predicate_type};
use crate::kit::{Family, Kit};
use crate::layer::Archive;
use crate::policy::rego::{Dialect, Rule};
use crate::signature::{Certificate, Facts, SignedBy, TimeSource};

/// The kit that rules are asked about.
#[derive(Debug)]
pub(super) struct Facing<'a> {
    question: &'a Question,
    now: Timestamp,
    /// The part of kitfs's own input that is the same for every policy. Most decisions need none.
    kit: OnceCell<Map<String, Value>>,
}

impl<'a> Facing<'a> {
    pub(super) fn new(question: &'a Question, now: Timestamp) -> Self {
        Self { question, now, kit: OnceCell::new() }
    }

    /// What the rule of an attestation sees: the statement.
    pub(super) fn of_statement(facts: &Facts) -> Value {
        let text = facts.statement.as_ref().map_or("null", |statement| &statement.text);
        // It was read strictly before, so that it is JSON.
        serde_json::from_str(text).unwrap_or_default()
    }

    /// What the rule of a policy sees: of candidates only what counts for an authority that is met.
    pub(super) fn of_policy(&self, rule: &Rule, cases: &[AuthorityCase<'_>], answers: &[AuthorityAnswer]) -> Value {
        let met: Vec<&AuthorityCase<'_>> = cases.iter().zip(answers).filter(|(_, answer)| answer.met).map(|(case, _)| case).collect();
        match rule.dialect() {
            Dialect::ModelKit => self.of_ours(&met),
            Dialect::Cosign | Dialect::PolicyController => of_policy_controller(&met),
        }
    }

    fn of_ours(&self, met: &[&AuthorityCase<'_>]) -> Value {
        let (mut signatures, mut attestations) = (Vec::new(), Vec::new());
        for case in met {
            for (_, facts) in case.verified() {
                if case.authority.attestations.is_empty() {
                    signatures.push(signature(case, facts));
                } else {
                    attestations.push(attestation(case, facts));
                }
            }
        }
        let mut input = self.kit.get_or_init(|| self.kit()).clone();
        input.insert("signatures".into(), signatures.into());
        input.insert("attestations".into(), attestations.into());
        input.into()
    }

    fn kit(&self) -> Map<String, Value> {
        let Question { names, digest, documents, kit, provenance, mountpoint, uid, .. } = self.question;
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let manifest = parsed(&documents.manifest);
        let layers = layers(kit, &manifest);
        let mut input = Map::new();
        if let Some(real) = &names.real {
            let tag = real.tag().filter(|_| provenance.tag_resolved);
            let reference = tag.map_or_else(|| format!("{}@{digest}", real.repository()), |tag| format!("{}:{tag}", real.repository()));
            input.insert("reference".into(), reference.into());
            input.insert("repository".into(), real.repository().into());
            if let Some(tag) = tag {
                input.insert("tag".into(), tag.into());
            }
        }
        if let Some(claim) = &names.claim {
            input.insert("claim".into(), claim.to_string().into());
        }
        input.insert("digest".into(), digest.to_string().into());
        input.insert("manifest".into(), manifest);
        // The config of other families is no Kitfile.
        let kitfile = if kit.family == Family::ModelKit { parsed(&documents.config) } else { Value::Null };
        input.insert("kitfile".into(), kitfile);
        input.insert("layers".into(), layers);
        let path = mountpoint.as_ref().map(|path| path.to_string_lossy().into_owned());
        input.insert("mount".into(), json!({ "path": path, "uid": uid }));
        input.insert("now".into(), rfc3339(self.now).into());
        input
    }
}

/// The layers that are placed, as manifest and Kitfile say.
fn layers(kit: &Kit, manifest: &Value) -> Value {
    let described = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut next = 0;
    let layer = kit.layers.iter().map(|layer| {
        let descriptor = &layer.spec.descriptor;
        let digest = descriptor.digest.to_string();
        // Both are in the manifest's order, of which some may be left out here.
        let is_it = |described: &Value| described["digest"].as_str() == Some(&digest);
        let position = described.iter().skip(next).position(is_it).map(|position| position + next);
        next = position.map_or(next, |position| position + 1);
        let annotations = position.and_then(|position| described.get(position)?.get("annotations").cloned());
        json!({
            "digest": digest,
            "size": descriptor.size,
            "media_type": descriptor.media_type,
            "kind": layer.kind.name(),
            "path": if layer.path.is_root() { ".".into() } else { String::from_utf8_lossy(layer.path.as_bytes()) },
            "archive": layer.spec.archive == Archive::Tar,
            "annotations": annotations.filter(Value::is_object).unwrap_or_else(|| json!({})),
        })
    });
    layer.collect()
}

fn signature(case: &AuthorityCase<'_>, facts: &Facts) -> Value {
    let mut signature = Map::new();
    let mut put = |name: &str, value: Value| _ = signature.insert(name.into(), value);
    put("authority", case.authority.name.as_str().into());
    // A bundle holds a statement, a layer of the older format a payload.
    put("format", if facts.payload.is_some() { "legacy" } else { "bundle" }.into());
    match &facts.signer {
        SignedBy::Key(key) => put("key", key.to_string().into()),
        SignedBy::Certificate(certificate) => {
            put("issuer", certificate.issuer.as_str().into());
            put("subject", certificate.subject.as_str().into());
            put("claims", claims(certificate));
            put("cert_not_before", rfc3339(certificate.not_before).into());
        }
    }
    if let Some(time) = time(facts) {
        put("time", time);
    }
    let times = facts.times.iter().map(|time| json!({ "source": source(time.source), "time": rfc3339(time.time) }));
    put("times", times.collect());
    if let Some(index) = facts.log_index {
        put("log_index", index.into());
    }
    let annotations: Map<String, Value> = annotations(facts).iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    put("annotations", annotations.into());
    signature.into()
}

fn attestation(case: &AuthorityCase<'_>, facts: &Facts) -> Value {
    let mut statement = Facing::of_statement(facts);
    let mut attestation = json!({
        "authority": case.authority.name,
        "predicateType": predicate_type(facts),
        "predicate": statement.get_mut("predicate").map(Value::take),
    });
    if let Some(time) = time(facts) {
        attestation["time"] = time;
    }
    attestation
}

fn of_policy_controller(met: &[&AuthorityCase<'_>]) -> Value {
    let matches: Map<String, Value> = met.iter().map(|case| (case.authority.name.clone(), matches_of(case))).collect();
    json!({ "authorityMatches": matches })
}

fn matches_of(case: &AuthorityCase<'_>) -> Value {
    let wanted = &case.authority.attestations;
    if wanted.is_empty() {
        let signatures: Vec<Value> = case.verified().map(|(_, facts)| by(facts).into()).collect();
        return json!({ "signatures": signatures });
    }
    let of = |predicate: &str| -> Value {
        let found = case.verified().filter(|(_, facts)| predicate_type(facts) == Some(predicate));
        let found = found.map(|(_, facts)| {
            let mut attestation = by(facts);
            attestation.insert("predicateType".into(), predicate.into());
            let text = facts.statement.as_ref().map(|statement| STANDARD.encode(&statement.text));
            attestation.insert("payload".into(), text.into());
            Value::from(attestation)
        });
        found.collect()
    };
    let attestations: Map<String, Value> = wanted.iter().map(|wanted| (wanted.name.clone(), of(&wanted.predicate_type))).collect();
    json!({ "attestations": attestations })
}

fn by(facts: &Facts) -> Map<String, Value> {
    match &facts.signer {
        SignedBy::Key(_) => Map::new(),
        SignedBy::Certificate(certificate) => [("issuer", &certificate.issuer), ("subject", &certificate.subject)]
            .map(|(name, text)| (name.into(), text.as_str().into()))
            .into_iter()
            .collect(),
    }
}

/// What Fulcio says of a build, by the names that it documents.
fn claims(certificate: &Certificate) -> Value {
    let claims = &certificate.claims;
    let named = [
        ("buildSignerURI", &claims.build_signer_uri),
        ("buildSignerDigest", &claims.build_signer_digest),
        ("runnerEnvironment", &claims.runner_environment),
        ("sourceRepositoryURI", &claims.source_repository_uri),
        ("sourceRepositoryDigest", &claims.source_repository_digest),
        ("sourceRepositoryRef", &claims.source_repository_ref),
        ("sourceRepositoryIdentifier", &claims.source_repository_identifier),
        ("sourceRepositoryOwnerURI", &claims.source_repository_owner_uri),
        ("sourceRepositoryOwnerIdentifier", &claims.source_repository_owner_identifier),
        ("buildConfigURI", &claims.build_config_uri),
        ("buildConfigDigest", &claims.build_config_digest),
        ("buildTrigger", &claims.build_trigger),
        ("runInvocationURI", &claims.run_invocation_uri),
        ("sourceRepositoryVisibilityAtSigning", &claims.source_repository_visibility_at_signing),
    ];
    let there = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_deref()?.into())));
    Value::Object(there.collect())
}

/// The earliest authenticated time.
fn time(facts: &Facts) -> Option<Value> {
    facts.times.iter().map(|time| time.time).min().map(|time| rfc3339(time).into())
}

/// Who vouches for a time.
pub(super) fn source(source: TimeSource) -> &'static str {
    match source {
        TimeSource::Log => "log",
        TimeSource::TimestampAuthority => "timestamp-authority",
    }
}

/// RFC 3339, in UTC.
pub(super) fn rfc3339(time: Timestamp) -> String {
    time.to_string()
}
