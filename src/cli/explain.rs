//! `kitfs explain`: the decision without the mount.

use std::path::Path;

use serde::Serialize;

use super::args::Explain;
use super::error::CliError;
use super::report::{self, Exit};
use super::trusting::{Records, Trust};
use super::{Session, print, reference, umount};
use crate::admission::{ReasonReport, Report};
use crate::audit::{Attempt, Purpose};
use crate::failure::chain;
use crate::gate::{Gate, Passage, Search};
use crate::kit::KitError;
use crate::mountinfo;
use crate::resolve::{ChoiceError, ResolveError};
use crate::run::MountRecord;
use crate::signature::Reason;

pub(super) fn run(arguments: &Explain) -> Result<Exit, CliError> {
    let mut trust = Trust::load(&arguments.trusting)?;
    if !trust.has_policies() && !arguments.allow_no_policy {
        return Err(CliError::NoPolicy);
    }
    let mut sources = arguments.sources.clone();
    let mounted = mounted(arguments)?;
    let asked = match &mounted {
        Some(record) => {
            // As the mount itself was made, unless it is said otherwise.
            sources.cache.cache_dir.get_or_insert_with(|| record.cache_dir.clone());
            sources.plain_http |= record.access.plain_http;
            sources.ca_cert = sources.ca_cert.or_else(|| record.access.ca_cert.clone());
            trust.or_claim(record.admissions.first().and_then(|admission| admission.claim.as_deref()));
            reference(&record.reference)?.at(record.digest)
        }
        None => reference(&arguments.subject)?,
    };
    let session = Session::open(&sources)?;
    let mountpoint = mounted.map(|record| record.mountpoint);
    let gate = Gate { mountpoint, ..session.gate(&trust, Search::Whole) };
    let passage = gate.kits(&asked, arguments.wanted.selection(), arguments.wanted.include_remote);
    let attempt = Attempt { purpose: Purpose::Explain, mountpoint: gate.mountpoint.clone(), mount_id: None };
    Records::open(&arguments.audit, Some(&arguments.summary), attempt)?.write(&passage)?;
    let (shown, exit) = shown(&asked.to_string(), passage);
    print(if arguments.json { report::json(&shown)? } else { shown.text() }.as_bytes())?;
    Ok(exit)
}

/// The mount at the folder that was named, if it is one. A text that is no folder of a mount is a reference.
fn mounted(arguments: &Explain) -> Result<Option<MountRecord>, CliError> {
    let Ok((path, Some(_))) = mountinfo::find(Path::new(&arguments.subject)) else { return Ok(None) };
    let run_dir = umount::open(&arguments.run)?;
    for mount in run_dir.mounts()? {
        if let Some(record) = mount.read_record()?.filter(|record| record.mountpoint == path) {
            return Ok(Some(record));
        }
    }
    Err(CliError::NoSuchMount { path })
}

/// What is told of a kit and of those that it refers to. Other programs read it: fields are added, not changed.
#[derive(Debug, Serialize)]
struct Shown {
    /// Of the kit itself; decision and first reasons are those of all of them.
    #[serde(flatten)]
    report: Report,
    references: Vec<Report>,
}

impl Shown {
    fn text(&self) -> String {
        let mut text = self.report.text();
        for report in &self.references {
            text.push('\n');
            text.push_str(&report.text());
        }
        text
    }
}

fn shown(asked: &str, passage: Passage) -> (Shown, Exit) {
    let Passage { decisions, kits } = passage;
    let mut reports: Vec<Report> = decisions.into_iter().map(|decision| decision.report).collect();
    let Err(error) = kits else {
        let references = reports.split_off(1.min(reports.len()));
        return (Shown { report: reports.pop().unwrap_or_default(), references }, Exit::Done);
    };
    // The last decision is the one that went wrong; whatever goes wrong elsewhere has no decision.
    let (decision, reasons) = match (error.innermost(), reports.last()) {
        (ResolveError::NotAdmitted(_), Some(last)) => (last.decision, last.reasons.clone()),
        (other, _) if is_no_kit(other) => (ERROR, vec![reason(Reason::NotAKit.code(), &error)]),
        (other, _) => (ERROR, vec![reason(other.class().code(), &error)]),
    };
    let references = reports.split_off(1.min(reports.len()));
    let mut report = reports.pop().unwrap_or_else(|| Report { reference: asked.to_owned(), ..Report::default() });
    (report.decision, report.reasons) = (decision, reasons);
    (Shown { report, references }, CliError::Resolve(error).exit())
}

fn is_no_kit(error: &ResolveError) -> bool {
    match error {
        ResolveError::Kit { source, .. } => matches!(**source, KitError::NotAKit { .. } | KitError::NoKitfile { .. }),
        ResolveError::Choice { source, .. } => matches!(**source, ChoiceError::None { .. }),
        _ => false,
    }
}

/// The decision where none could be taken.
const ERROR: &str = "error";

fn reason(code: &str, error: &ResolveError) -> ReasonReport {
    ReasonReport { code: code.to_owned(), message: chain(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Decision, NotAdmitted, Verdict};
    use crate::failure::ErrorClass;

    fn decided(decision: &'static str, code: &str) -> Decision {
        let reasons = vec![ReasonReport { code: code.into(), message: "why".into() }];
        let verdict = if decision == "deny" { Verdict::Denied } else { Verdict::Undecided(ErrorClass::Network) };
        Decision { verdict, report: Report { decision, reference: "reg.example/a:v1".into(), reasons, ..Report::default() } }
    }

    fn not_admitted(decision: &Decision) -> ResolveError {
        ResolveError::NotAdmitted(Box::new(decision.outcome().expect_err("it is not")))
    }

    #[test]
    fn a_kit_that_is_referred_to_decides_for_all() {
        let decisions = vec![decided("admit", "fine"), decided("deny", "wrong-key")];
        let source = Box::new(not_admitted(&decisions[1]));
        let kits = Err(ResolveError::Reference { chain: vec!["reg.example/a:v1".into(), "reg.example/b:v1".into()], source });
        let (shown, exit) = shown("reg.example/a:v1", Passage { decisions, kits });
        let json = serde_json::to_value(&shown).expect("plain data");
        assert_eq!((json["decision"].as_str(), json["reasons"][0]["code"].as_str()), (Some("deny"), Some("wrong-key")));
        assert_eq!(json["references"][0]["decision"], "deny");
        assert_eq!(exit, Exit::Refused);
    }

    #[test]
    fn what_could_not_be_decided_is_no_refusal() {
        for (class, exit) in [
            (ErrorClass::Network, Exit::Failed),
            (ErrorClass::Stalled, Exit::Failed),
            // A signature that may not be read is not the kit.
            (ErrorClass::Denied, Exit::Failed),
            (ErrorClass::Missing, Exit::Failed),
            (ErrorClass::Content, Exit::Content),
        ] {
            let error = NotAdmitted::Undecided { reference: "reg.example/a:v1".into(), message: "it is away".into(), class };
            let passage = Passage { decisions: vec![decided("error", "unread")], kits: Err(ResolveError::NotAdmitted(Box::new(error))) };
            let (shown, got) = shown("reg.example/a:v1", passage);
            assert_eq!((shown.report.decision, shown.report.reasons[0].code.as_str(), got), ("error", "unread", exit), "{class}");
        }
    }

    #[test]
    fn what_is_no_kit_is_told_by_its_code() {
        let source = Box::new(KitError::NotAKit { artifact_type: String::new(), config: String::new() });
        let kits = Err(ResolveError::Kit { reference: "reg.example/a:v1".into(), source });
        let (shown, exit) = shown("reg.example/a:v1", Passage { decisions: Vec::new(), kits });
        assert_eq!((shown.report.decision, shown.report.reasons[0].code.as_str()), ("error", "not-a-kit"));
        assert_eq!((shown.report.reference.as_str(), exit), ("reg.example/a:v1", Exit::Content));
    }
}
