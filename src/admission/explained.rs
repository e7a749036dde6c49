//! A decision as a person reads it: the verdict first, then the nearest miss, then the rest as a tree.

use std::fmt::{self, Display, Formatter};

use super::report::{AuthorityReport, CandidateReport, PolicyReport, ReasonReport, Report, SetReport};
use crate::failure::inert;

/// Characters of one text from outside that are shown: a screen stays readable.
const SHOWN: usize = 500;

impl Report {
    /// The decision for people. What came from outside is escaped in it; it can be printed as it is.
    pub fn text(&self) -> String {
        self.to_string()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verdict = match self.decision {
            "admit" => "admitted",
            "deny" => "refused",
            _ => "not decided",
        };
        writeln!(f, "{verdict}: {}", shown(&self.reference))?;
        if let Some((nearest, others)) = self.reasons.split_first() {
            writeln!(f, "  {}", reason(nearest))?;
            others.iter().try_for_each(|other| writeln!(f, "  also: {}", reason(other)))?;
        }
        self.evidence(f)?;
        for warning in &self.warnings {
            writeln!(f, "  warning: {}", shown(warning))?;
        }
        writeln!(f)?;
        if let Some(digest) = &self.digest {
            writeln!(f, "manifest  {digest}")?;
        }
        if let Some(claim) = &self.claim {
            writeln!(f, "claim     {} (the caller says so)", shown(claim))?;
        }
        self.sets.iter().try_for_each(|set| self.set(f, set))?;
        for place in &self.searched {
            writeln!(f, "looked in {}", shown(place))?;
        }
        self.unread.iter().try_for_each(|unread| writeln!(f, "unread    {}", reason(unread)))
    }
}

impl Report {
    fn evidence(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(evidence) = &self.evidence else { return Ok(()) };
        if evidence.without_policy() {
            return writeln!(f, "  there is no policy that refuses anything");
        }
        for signer in evidence.signers() {
            writeln!(f, "  signed by {}", shown(signer))?;
        }
        Ok(())
    }

    fn set(&self, f: &mut Formatter<'_>, set: &SetReport) -> fmt::Result {
        let name = if set.name == "host" { "policies of the host" } else { "policies of the command line" };
        let met = match (set.enforces, set.met) {
            (false, _) => "only warn",
            (true, true) => "met",
            (true, false) => "not met",
        };
        writeln!(f, "{name}: {met}")?;
        if set.policies.is_empty() {
            writeln!(f, "  none of them covers this kit")?;
        }
        set.policies.iter().try_for_each(|policy| self.policy(f, policy))
    }

    fn policy(&self, f: &mut Formatter<'_>, policy: &PolicyReport) -> fmt::Result {
        writeln!(f, "  policy `{}` ({}): {}", shown(&policy.name), policy.mode, met(policy.met))?;
        policy.matched_by.iter().try_for_each(|by| writeln!(f, "    {}", shown(by)))?;
        policy.authorities.iter().try_for_each(|one| authority(f, one))?;
        policy.rule.iter().try_for_each(|rule| writeln!(f, "    its rule: {}", reason(rule)))
    }
}

fn authority(f: &mut Formatter<'_>, authority: &AuthorityReport) -> fmt::Result {
    writeln!(f, "    authority `{}`: {}", shown(&authority.name), met(authority.met))?;
    writeln!(f, "      wants {}", shown(&authority.wants))?;
    authority.why.iter().try_for_each(|why| writeln!(f, "      {}", reason(why)))?;
    authority.candidates.iter().try_for_each(|one| candidate(f, one))
}

fn candidate(f: &mut Formatter<'_>, candidate: &CandidateReport) -> fmt::Result {
    writeln!(f, "      {} {}", candidate.format, candidate.digest)?;
    writeln!(f, "        found in {} ({})", candidate.manifest, shown(&candidate.found_at))?;
    if let Some(signer) = &candidate.signer {
        let issuer = candidate.issuer.as_ref().map(|issuer| format!(" (as {} says)", shown(issuer))).unwrap_or_default();
        writeln!(f, "        signed by {}{issuer}", shown(signer))?;
    }
    if let Some(stated) = &candidate.predicate_type {
        writeln!(f, "        states {}", shown(stated))?;
    }
    for time in &candidate.times {
        writeln!(f, "        by {} ({})", time.time, time.source)?;
    }
    if let Some(index) = candidate.log_index {
        writeln!(f, "        log entry {index}")?;
    }
    match (&candidate.message, &candidate.code) {
        (Some(message), Some(code)) => writeln!(f, "        does not count: {} [{}]", shown(message), shown(code)),
        _ => writeln!(f, "        counts"),
    }
}

fn reason(reason: &ReasonReport) -> String {
    format!("{} [{}]", shown(&reason.message), shown(&reason.code))
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "not met" }
}

fn shown(text: &str) -> String {
    inert(text, SHOWN)
}
