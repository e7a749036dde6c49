//! A decision as it is explained: `kitfs explain --json` prints it. The names are stable.

use serde::Serialize;

use super::record::Admission;

/// A decision, explained. The nearest miss stands first among the reasons.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// `admit`, `deny` or `error`.
    pub decision: &'static str,
    /// The reference as it was given.
    pub reference: String,
    /// What the caller claims that it is.
    pub claim: Option<String>,
    /// The manifest.
    pub digest: Option<String>,
    /// Why it is not admitted; what there is to know beside, if it is.
    pub reasons: Vec<ReasonReport>,
    /// The sets of policies.
    pub sets: Vec<SetReport>,
    /// What rules in Rego were given, by policy.
    pub rego_input: Option<serde_json::Value>,
    /// Why it is admitted.
    pub evidence: Option<Admission>,
    /// Where was looked for signatures.
    pub searched: Vec<String>,
    /// What could not be read.
    pub unread: Vec<ReasonReport>,
    /// What there is to be said beside.
    pub warnings: Vec<String>,
}

/// A reason: a code for programs, a sentence for people. The sentence may hold text from outside: escape it before it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReasonReport {
    /// The code.
    pub code: String,
    /// The sentence.
    pub message: String,
}

/// A set of policies.
#[derive(Debug, Clone, Serialize)]
pub struct SetReport {
    /// `host` or `caller`.
    pub name: &'static str,
    /// Whether it refuses anything.
    pub enforces: bool,
    /// Whether it admits.
    pub met: bool,
    /// Its policies that match, and why.
    pub policies: Vec<PolicyReport>,
}

/// A policy that matches.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyReport {
    /// Its name.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub digest: String,
    /// `enforce` or `warn`.
    pub mode: &'static str,
    /// The globs that match, each with what it matches.
    pub matched_by: Vec<String>,
    /// Whether it is met.
    pub met: bool,
    /// What its own rule says; null if it has none or was not asked.
    pub rule: Option<ReasonReport>,
    /// Its authorities.
    pub authorities: Vec<AuthorityReport>,
}

/// An authority.
#[derive(Debug, Clone, Serialize)]
pub struct AuthorityReport {
    /// Its name.
    pub name: String,
    /// What it wants, for people.
    pub wants: String,
    /// Whether it is met.
    pub met: bool,
    /// Why it is not, if that is not a candidate's fault.
    pub why: Option<ReasonReport>,
    /// What was found, the nearest miss first.
    pub candidates: Vec<CandidateReport>,
}

/// What was found, as one authority sees it.
#[derive(Debug, Clone, Serialize)]
pub struct CandidateReport {
    /// The bundle or layer.
    pub digest: String,
    /// The manifest that it was found in.
    pub manifest: String,
    /// Where it was found.
    pub found_at: String,
    /// `bundle` or `legacy`.
    pub format: &'static str,
    /// What it states, if that was verified.
    pub predicate_type: Option<String>,
    /// Who signed, if that was verified.
    pub signer: Option<String>,
    /// The certificate's issuer, if that was verified.
    pub issuer: Option<String>,
    /// The authenticated times by which it was signed.
    pub times: Vec<TimeReport>,
    /// Where its log entry stands.
    pub log_index: Option<u64>,
    /// Whether it counts.
    pub counts: bool,
    /// Why not.
    pub code: Option<String>,
    /// Why not, as a sentence.
    pub message: Option<String>,
}

/// An authenticated time.
#[derive(Debug, Clone, Serialize)]
pub struct TimeReport {
    /// `log` or `timestamp-authority`.
    pub source: &'static str,
    /// RFC 3339, UTC.
    pub time: String,
}
