//! `kitfs explain`: the decision without the mount.

use std::path::Path;

use serde::Serialize;

use super::args::Explain;
use super::error::CliError;
use super::report::{self, Exit};
use super::trusting::{Records, Trust};
use super::{Session, print, reference, umount};
use crate::admission::{NotAdmitted, ReasonReport, Report};
use crate::audit::{Attempt, Purpose};
use crate::failure::chain;
use crate::gate::{Gate, Passage, Search};
use crate::mountinfo;
use crate::resolve::ResolveError;
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
            sources.cache_dir.get_or_insert_with(|| record.cache_dir.clone());
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
    let mut reports = decisions.into_iter().map(|decision| decision.report);
    let (root, references) = (reports.next(), reports.collect());
    let mut report = root.unwrap_or_else(|| Report { reference: asked.to_owned(), ..Report::default() });
    let Err(error) = kits else { return (Shown { report, references }, Exit::Done) };
    let (decision, reason) = failure(&error);
    report.decision = decision;
    if report.reasons.first().is_none_or(|first| first.code != reason.code) {
        report.reasons.insert(0, reason);
    }
    (Shown { report, references }, CliError::Resolve(error).exit())
}

/// What the failure of one of the kits makes of the decision on all of them, and why.
fn failure(error: &ResolveError) -> (&'static str, ReasonReport) {
    let code = match error.innermost() {
        ResolveError::NotAdmitted(refused) => match &**refused {
            NotAdmitted::Refused { code, message, .. } => {
                return ("deny", ReasonReport { code: code.clone(), message: message.clone() });
            }
            NotAdmitted::Undecided { message, class, .. } => {
                return ("error", ReasonReport { code: class.code().to_owned(), message: message.clone() });
            }
        },
        ResolveError::Kit { .. } | ResolveError::Choice { .. } => Reason::NotAKit.code(),
        other => other.class().code(),
    };
    ("error", ReasonReport { code: code.to_owned(), message: chain(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ErrorClass;

    fn refused(code: &str) -> NotAdmitted {
        NotAdmitted::Refused { reference: "reg.example/a:v1".into(), code: code.into(), message: "signed by another".into() }
    }

    #[test]
    fn a_kit_that_is_referred_to_decides_for_all() {
        let report = |decision, code: &str| Report {
            decision,
            reference: "reg.example/a:v1".into(),
            reasons: vec![ReasonReport { code: code.into(), message: "why".into() }],
            ..Report::default()
        };
        let inner = ResolveError::NotAdmitted(Box::new(refused("wrong-key")));
        let error = ResolveError::Reference { chain: vec!["reg.example/a:v1".into(), "reg.example/b:v1".into()], source: Box::new(inner) };
        let (decision, reason) = failure(&error);
        assert_eq!((decision, reason.code.as_str()), ("deny", "wrong-key"));
        assert_eq!(CliError::Resolve(error).exit(), Exit::Refused);
        let shown = Shown { report: report("deny", "wrong-key"), references: vec![report("deny", "wrong-key")] };
        let json = serde_json::to_value(&shown).expect("plain data");
        assert_eq!((json["decision"].as_str(), json["references"][0]["reasons"][0]["code"].as_str()), (Some("deny"), Some("wrong-key")));
    }

    #[test]
    fn what_could_not_be_decided_is_no_refusal() {
        let undecided = |class| NotAdmitted::Undecided { reference: "reg.example/a:v1".into(), message: "it is away".into(), class };
        for (class, code, exit) in [
            (ErrorClass::Network, "network", Exit::Failed),
            (ErrorClass::Stalled, "stalled", Exit::Failed),
            (ErrorClass::Content, "content", Exit::Content),
        ] {
            let error = ResolveError::NotAdmitted(Box::new(undecided(class)));
            let (decision, reason) = failure(&error);
            assert_eq!((decision, reason.code.as_str()), ("error", code));
            assert_eq!(CliError::Resolve(error).exit(), exit);
        }
    }
}
