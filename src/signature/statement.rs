//! What an attestation states: an in-toto statement, read strictly.

use serde_json::Value;

use super::reason::{Denial, Reason};
use crate::digest::Digest;
use crate::json::Json;
use crate::signature::bundle::{Shape, denied};

/// The payload type of a statement.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What Cosign states when it signs and attests nothing else.
pub(super) const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";
const TYPES: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];

const SHAPE: Shape = Shape::Object(&[
    ("_type", Shape::Leaf),
    ("predicateType", Shape::Leaf),
    ("predicate", Shape::Any),
    (
        "subject",
        Shape::List(&Shape::Object(&[
            ("name", Shape::Leaf),
            ("uri", Shape::Leaf),
            ("digest", Shape::Any),
            ("content", Shape::Leaf),
            ("downloadLocation", Shape::Leaf),
            ("mediaType", Shape::Leaf),
            ("annotations", Shape::Any),
        ])),
    ),
]);

/// A statement that is about the wanted digest.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The type of its predicate.
    pub predicate_type: String,
    /// The annotations of the subject that has the digest: names and values, values that are no texts as JSON.
    pub annotations: Vec<(String, String)>,
    /// All of it, as JSON: what was signed.
    pub text: String,
}

/// Reads a statement that must be about `digest`.
pub(super) fn read(payload: &[u8], digest: &Digest) -> Result<Statement, Denial> {
    let not =
        |error: &dyn std::fmt::Display| Denial::new(Reason::BadJson, format!("the statement is not the JSON that it should be: {error}"));
    let json = Json::parse(payload).map_err(|error| not(&denied(&error)))?;
    SHAPE.check(&json, "statement")?;
    let statement = json.object("statement", &[]).map_err(|error| not(&error))?;
    let kind = statement.required_string("_type").map_err(|error| not(&error))?;
    if !TYPES.contains(&kind) {
        return Denial::because(Reason::StatementType, format!("`_type` is `{kind}`, which is no in-toto statement that is known"));
    }
    let predicate_type = statement.required_string("predicateType").map_err(|error| not(&error))?;
    let subjects = statement.array("subject").map_err(|error| not(&error))?;
    if subjects.is_empty() {
        return Denial::because(Reason::SubjectCount, "the statement has no subject");
    }
    let mut annotations = None;
    let mut others = Vec::new();
    for (place, subject) in &subjects {
        let subject = subject.object(place, &[]).map_err(|error| not(&error))?;
        let digests = subject.strings("digest").map_err(|error| not(&error))?;
        match digests.iter().find(|(algorithm, _)| *algorithm == digest.algorithm().name()) {
            Some((_, hex)) if *hex == digest.hex() => annotations = annotations.or(Some(texts(subject.get("annotations")))),
            Some((_, hex)) => others.push(*hex),
            None => {}
        }
    }
    let Some(annotations) = annotations else {
        return match others.first() {
            Some(hex) => Denial::because(Reason::WrongDigest, format!("it is about sha256:{hex}, not about {digest}")),
            None => Denial::because(Reason::DigestAlgorithm, format!("no subject has a {} digest", digest.algorithm().name())),
        };
    };
    if predicate_type == SIGNATURE && subjects.len() > 1 {
        return Denial::because(Reason::SubjectCount, format!("a signature must be about one thing, this is about {}", subjects.len()));
    }
    // Bytes that are JSON are UTF-8.
    let text = String::from_utf8(payload.to_vec()).map_err(|error| not(&error))?;
    Ok(Statement { predicate_type: predicate_type.to_owned(), annotations, text })
}

/// Annotations as texts.
pub(super) fn texts(annotations: Option<&Json>) -> Vec<(String, String)> {
    let Some(Json::Object(entries)) = annotations else { return Vec::new() };
    let text = |value: &Json| match value {
        Json::String(text) => text.clone(),
        other => value_of(other).to_string(),
    };
    entries.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Number(number.clone()),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(elements) => elements.iter().map(value_of).collect(),
        Json::Object(entries) => entries.iter().map(|(name, value)| (name.clone(), value_of(value))).collect(),
    }
}
