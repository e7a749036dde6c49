//! What is told of a decision: the report of it, and what is kept of one that admitted.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Question;
use super::deciding::{Answer, AuthorityAnswer, AuthorityCase, PolicyAnswer, PolicyCase, SetCase};
use super::docket::Seen;
use super::input::{Facing, rfc3339, source};
use super::judging::predicate_type;
use super::nearest::rank;
use super::record::{Admission, Counted, DecidedPolicy, NamedRoot};
use super::report::{AuthorityReport, CandidateReport, PolicyReport, ReasonReport, Report, SetReport, TimeReport};
use super::rules::{Demand, DemandSigner};
use crate::digest::Digest;
use crate::policy::Mode;
use crate::policy::authority::Action;
use crate::policy::rego::Rule;
use crate::policy::set::MatchedBy;
use crate::referrers::Ended;
use crate::signature::{Denial, Facts, Identity, Reason, SignedBy};

/// The code of what could not be decided.
const UNREAD: &str = "unread";

/// All that is known when a decision is closed.
pub(super) struct Account<'a> {
    pub(super) question: &'a Question,
    pub(super) now: Timestamp,
    pub(super) seen: &'a [Seen],
    pub(super) sets: &'a [SetCase<'a>],
    /// The answers of each set's policies.
    pub(super) answers: &'a [Vec<PolicyAnswer>],
    pub(super) answer: Answer,
    pub(super) require_policy: bool,
    pub(super) ended: &'a Ended,
}

/// A reason, and what it is worth.
struct Miss {
    /// Whatever was found would not have helped.
    last: bool,
    rank: usize,
    reason: ReasonReport,
}

impl Account<'_> {
    /// The report of it all.
    pub(super) fn report(&self, evidence: Option<Admission>) -> Report {
        let unread = self
            .ended
            .gaps
            .iter()
            .map(|gap| ReasonReport { code: gap.class.code().to_owned(), message: format!("{}: {}", gap.what, gap.why) });
        let mut unread: Vec<ReasonReport> = unread.collect();
        unread.sort_by(|a, b| (&a.message, &a.code).cmp(&(&b.message, &b.code)));
        Report {
            decision: match self.answer {
                Answer::Met => "admit",
                Answer::Refused => "deny",
                Answer::Open(_) => "error",
            },
            reference: self.question.reference.clone(),
            claim: self.question.names.claim.as_ref().map(|claim| claim.without_digest().to_string()),
            digest: Some(self.question.digest.to_string()),
            reasons: self.reasons(&unread),
            sets: self.each_set().map(|(set, answers)| self.set(set, answers)).collect(),
            rego_input: self.rego_input(),
            evidence,
            searched: self.ended.searched.clone(),
            unread,
            warnings: self.warnings(),
        }
    }

    /// What is kept of it, if it admits.
    pub(super) fn admission(&self) -> Admission {
        let (mut policies, mut trust_roots, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for (set, policy, answer) in self.each_policy() {
            policies.push(DecidedPolicy {
                set: set.name.to_owned(),
                name: policy.matched.policy.name.clone(),
                digest: policy.matched.policy.digest,
                mode: mode(policy.matched.policy.mode).to_owned(),
                met: answer.answer == Answer::Met,
            });
            for (case, answer) in policy.authorities.iter().zip(&answer.authorities) {
                let roots = case.demand.roots.iter();
                trust_roots.extend(roots.map(|(name, digest)| NamedRoot { set: set.name.to_owned(), name: name.clone(), digest: *digest }));
                if answer.met {
                    counted.extend(case.verified().map(|(number, facts)| self.counted(policy, case, number, facts)));
                }
            }
        }
        trust_roots.sort_by(|a, b| (&a.set, &a.name, a.digest).cmp(&(&b.set, &b.name, b.digest)));
        trust_roots.dedup();
        Admission {
            reference: self.question.reference.clone(),
            claim: self.question.names.claim.as_ref().map(|claim| claim.without_digest().to_string()),
            digest: self.question.digest,
            at: self.now,
            policies,
            trust_roots,
            counted,
            warnings: self.warnings(),
        }
    }

    fn each_set(&self) -> impl Iterator<Item = (&SetCase<'_>, &[PolicyAnswer])> {
        self.sets.iter().zip(self.answers.iter().map(Vec::as_slice))
    }

    fn each_policy(&self) -> impl Iterator<Item = (&SetCase<'_>, &PolicyCase<'_>, &PolicyAnswer)> {
        self.each_set().flat_map(|(set, answers)| set.policies.iter().zip(answers).map(move |(policy, answer)| (set, policy, answer)))
    }

    fn counted(&self, policy: &PolicyCase<'_>, case: &AuthorityCase<'_>, number: usize, facts: &Facts) -> Counted {
        let seen = self.seen.get(number);
        let (issuer, subject, key) = match &facts.signer {
            SignedBy::Key(key) => (None, None, Some(key.to_string())),
            SignedBy::Certificate(certificate) => (Some(certificate.issuer.clone()), Some(certificate.subject.clone()), None),
        };
        let unknown = self.question.digest;
        Counted {
            policy: policy.matched.policy.name.clone(),
            authority: case.authority.name.clone(),
            digest: seen.map_or(unknown, |seen| seen.digest),
            manifest: seen.map_or(unknown, |seen| seen.manifest),
            format: seen.map_or("", |seen| seen.format.name()).to_owned(),
            predicate_type: predicate_type(facts).map(str::to_owned),
            signer: signer(facts),
            issuer,
            subject,
            key,
            times: facts.times.iter().map(|time| time.time).collect(),
            log_index: facts.log_index,
        }
    }

    fn reasons(&self, unread: &[ReasonReport]) -> Vec<ReasonReport> {
        if self.answer == Answer::Met {
            return Vec::new();
        }
        let mut misses = Vec::new();
        if self.require_policy && !self.sets.iter().any(|set| set.enforces) {
            misses.push(Miss::last(Reason::NoPolicy, "a policy is required, and there is none that refuses anything".to_owned()));
        }
        for set in self.sets.iter().filter(|set| set.enforces && !set.covered) {
            let message = format!("no policy of the {} covers {}", whose(set.name), self.called());
            misses.push(Miss::last(Reason::NoPolicy, message));
        }
        for (set, policy, answer) in self.each_policy() {
            if set.enforces && policy.enforces() && answer.answer != Answer::Met {
                misses.extend(self.misses(set, policy, answer));
            }
        }
        // Stable: of equally near ones the host's come first, then the order of policies and authorities decides.
        misses.sort_by_key(|miss| (!miss.last, std::cmp::Reverse(miss.rank)));
        let mut reasons: Vec<ReasonReport> = misses.into_iter().map(|miss| miss.reason).collect();
        if let Answer::Open(_) = self.answer {
            let what = unread.first().map_or("the search was ended before it was through", |reason| reason.message.as_str());
            let message = format!("it could not be decided: what could not be read might count ({what})");
            reasons.insert(0, ReasonReport { code: UNREAD.to_owned(), message });
        }
        reasons
    }

    /// Why a policy is not met.
    fn misses(&self, set: &SetCase<'_>, policy: &PolicyCase<'_>, answer: &PolicyAnswer) -> Vec<Miss> {
        let of = format!("policy `{}` of the {}", policy.matched.policy.name, whose(set.name));
        if let Some(why) = answer.why.iter().find(|why| why.reason == Reason::Static) {
            return vec![Miss::last(why.reason, format!("{} ({of})", why.message))];
        }
        let mut misses: Vec<Miss> = answer.why.iter().map(|why| Miss::last(why.reason, format!("{} ({of})", why.message))).collect();
        if let Some(Err(denial)) = &answer.rule {
            misses.push(Miss::new(denial.reason, format!("{} ({of})", denial.message)));
            return misses;
        }
        for (case, answer) in policy.authorities.iter().zip(&answer.authorities) {
            misses.extend(answer.why.iter().map(|why| Miss::new(why.reason, format!("{} ({of})", why.message))));
            for (number, denial) in &answer.misses {
                let found = number.and_then(|number| self.seen.get(number));
                let found = found.map_or_else(String::new, |seen| format!("{} {}, {}; ", seen.format.name(), seen.digest, seen.found_at));
                let message = format!("{} ({found}{of} wants {})", denial.message, wants(case));
                misses.push(Miss::new(denial.reason, message));
            }
        }
        misses
    }

    fn called(&self) -> String {
        let names = &self.question.names;
        let called: Vec<String> = names.real.iter().chain(&names.claim).map(|name| name.without_digest().to_string()).collect();
        if called.is_empty() { "a kit without a name (`--as` gives it one)".to_owned() } else { called.join(" or ") }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.question.mountpoint.is_none() {
            let names = |policy: &PolicyCase<'_>| policy.matched.policy.rule.as_ref().is_some_and(Rule::reads_mount_path);
            warnings.extend(self.each_policy().filter(|(_, policy, _)| names(policy)).map(|(set, policy, _)| {
                let (name, whose) = (&policy.matched.policy.name, whose(set.name));
                format!("the policy `{name}` of the {whose} asks where the kit is mounted (`mount.path`), which is null here")
            }));
        }
        for (set, policy, answer) in self.each_policy().filter(|(_, policy, _)| !policy.enforces()) {
            let of = format!("the policy `{}` of the {}, which only warns,", policy.matched.policy.name, whose(set.name));
            match answer.answer {
                Answer::Met => {}
                Answer::Refused => {
                    let mut misses = self.misses(set, policy, answer);
                    misses.sort_by_key(|miss| (!miss.last, std::cmp::Reverse(miss.rank)));
                    let why = misses.first().map_or(String::new(), |miss| format!(": {} [{}]", miss.reason.message, miss.reason.code));
                    warnings.push(format!("{of} would refuse this kit{why}"));
                }
                Answer::Open(_) => warnings.push(format!("{of} could not be decided: something could not be read")),
            }
        }
        warnings
    }

    fn set(&self, set: &SetCase<'_>, answers: &[PolicyAnswer]) -> SetReport {
        let policies = set.policies.iter().zip(answers).map(|(policy, answer)| self.policy(policy, answer));
        SetReport { name: set.name, enforces: set.enforces, met: set.answer(answers) == Answer::Met, policies: policies.collect() }
    }

    fn policy(&self, case: &PolicyCase<'_>, answer: &PolicyAnswer) -> PolicyReport {
        let policy = case.matched.policy;
        let authorities = case.authorities.iter().zip(&answer.authorities);
        PolicyReport {
            name: policy.name.clone(),
            digest: policy.digest.to_string(),
            mode: mode(policy.mode),
            matched_by: case.matched.by.iter().map(matched_by).collect(),
            met: answer.answer == Answer::Met,
            rule: answer.rule.as_ref().map(|said| match said {
                Ok(()) => ReasonReport { code: "allowed".to_owned(), message: "the rule allows it".to_owned() },
                Err(denial) => reason(denial),
            }),
            authorities: authorities.map(|(case, answer)| self.authority(case, answer)).collect(),
        }
    }

    fn authority(&self, case: &AuthorityCase<'_>, answer: &AuthorityAnswer) -> AuthorityReport {
        let mut heard: Vec<_> = case
            .heard
            .iter()
            .filter_map(|(number, judged)| {
                let disallowed = answer.disallowed.iter().find(|(other, _)| other == number).map(|(_, denial)| denial);
                let denial = judged.as_ref().err().or(disallowed);
                Some((self.seen.get(*number)?, judged.as_ref().ok(), denial))
            })
            .collect();
        // Stable: what counts first, then the nearest.
        heard.sort_by_key(|(_, _, denial)| std::cmp::Reverse(denial.map_or(usize::MAX, |denial| rank(denial.reason))));
        AuthorityReport {
            name: case.authority.name.clone(),
            wants: wants(case),
            met: answer.met,
            why: answer.why.as_ref().map(reason),
            candidates: heard.into_iter().map(|(seen, facts, denial)| candidate(seen, facts, denial)).collect(),
        }
    }

    fn rego_input(&self) -> Option<Value> {
        let mut inputs = Map::new();
        for (set, policy, answer) in self.each_policy() {
            let name = format!("{}/{}", set.name, policy.matched.policy.name);
            if let Some(input) = &answer.input {
                inputs.insert(name.clone(), input.clone());
            }
            for case in &policy.authorities {
                for attestation in case.authority.attestations.iter().filter(|attestation| attestation.rule.is_some()) {
                    let of_type = case.verified().filter(|(_, facts)| predicate_type(facts) == Some(&attestation.predicate_type));
                    let statements: Value = of_type.map(|(_, facts)| Facing::of_statement(facts)).collect();
                    inputs.insert(format!("{name}/{}/{}", case.authority.name, attestation.name), statements);
                }
            }
        }
        (!inputs.is_empty()).then_some(inputs.into())
    }
}

impl Miss {
    fn new(code: Reason, message: String) -> Self {
        Self { last: false, rank: rank(code), reason: ReasonReport { code: code.code().to_owned(), message } }
    }

    fn last(code: Reason, message: String) -> Self {
        Self { last: true, ..Self::new(code, message) }
    }
}

/// What an authority wants, for people.
pub(super) fn wants(case: &AuthorityCase<'_>) -> String {
    let Demand { signer, log, timestamp, .. } = case.demand;
    let by = match signer {
        DemandSigner::Key(key) => format!("the key {}", key.fingerprint()),
        DemandSigner::Identities(identities) => identities.iter().map(of_identity).collect::<Vec<_>>().join(" or by "),
        DemandSigner::Static(Action::Pass) => return "no signature".to_owned(),
        DemandSigner::Static(Action::Fail) => return "nothing: it refuses".to_owned(),
    };
    let authority = case.authority;
    let types: Vec<&str> = authority.attestations.iter().map(|attestation| attestation.predicate_type.as_str()).collect();
    let what = match types.as_slice() {
        [] => "a signature".to_owned(),
        [one] => format!("an attestation of type {one}"),
        several => format!("attestations of the types {}", several.join(" and ")),
    };
    let mut text = format!("{what} by {by}");
    if let Some(format) = authority.format {
        text += &format!(", in the format `{}`", format.name());
    }
    if *log {
        text += ", with a log entry";
    } else if case.demand.waives_log() {
        text += ", with no log";
    }
    if *timestamp {
        text += ", with a timestamp";
    }
    for (name, value) in &authority.annotations {
        text += &format!(", annotated `{name}={value}`");
    }
    if let Some(source) = &authority.source {
        text += &format!(", kept in {source}");
    }
    text
}

fn of_identity(identity: &Identity) -> String {
    format!("{} (as {} says)", identity.subject, identity.issuer)
}

fn matched_by(by: &MatchedBy) -> String {
    match &by.form {
        Some(form) => format!("`{}` matches {form}{}", by.glob, if by.claimed { ", which is claimed" } else { "" }),
        None => format!("`{}` matches every kit", by.glob),
    }
}

fn candidate(seen: &Seen, facts: Option<&Facts>, denial: Option<&Denial>) -> CandidateReport {
    let issuer = |facts: &Facts| match &facts.signer {
        SignedBy::Key(_) => None,
        SignedBy::Certificate(certificate) => Some(certificate.issuer.clone()),
    };
    let times = facts.map(|facts| facts.times.as_slice()).unwrap_or_default();
    CandidateReport {
        digest: seen.digest.to_string(),
        manifest: seen.manifest.to_string(),
        found_at: seen.found_at.clone(),
        format: seen.format.name(),
        predicate_type: facts.and_then(predicate_type).map(str::to_owned),
        signer: facts.map(signer),
        issuer: facts.and_then(issuer),
        times: times.iter().map(|time| TimeReport { source: source(time.source), time: rfc3339(time.time) }).collect(),
        log_index: facts.and_then(|facts| facts.log_index),
        counts: denial.is_none(),
        code: denial.map(|denial| denial.reason.code().to_owned()),
        message: denial.map(|denial| denial.message.clone()),
    }
}

fn reason(denial: &Denial) -> ReasonReport {
    ReasonReport { code: denial.reason.code().to_owned(), message: denial.message.clone() }
}

fn signer(facts: &Facts) -> String {
    match &facts.signer {
        SignedBy::Key(key) => named(key),
        SignedBy::Certificate(certificate) => certificate.subject.clone(),
    }
}

fn named(key: &Digest) -> String {
    format!("key {key}")
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Warn => "warn",
    }
}

fn whose(set: &str) -> &str {
    if set == "host" { "host" } else { "command line" }
}
