//! The decision over one kit: candidates come in, each is judged for every authority that it could count for, and at the end it is said what follows.

use jiff::Timestamp;

use super::report::Report;
use super::rules::Rulebook;
use super::{Admitted, NotAdmitted, Question};
use crate::failure::ErrorClass;
use crate::policy::Name;
use crate::referrers::{Candidate, Ended};

/// What was decided.
#[derive(Debug)]
pub struct Decision {
    /// What follows.
    pub verdict: Verdict,
    /// The decision explained.
    pub report: Report,
}

/// What follows from a decision.
#[derive(Debug)]
pub enum Verdict {
    /// It may be mounted.
    Admitted(Box<Admitted>),
    /// It may not.
    Denied,
    /// It could not be decided, for a trouble of this kind.
    Undecided(ErrorClass),
}

/// The decision over one kit, while candidates come in.
#[derive(Debug)]
pub struct Docket<'a> {
    question: &'a Question,
    rulebook: &'a Rulebook,
    now: Timestamp,
}

impl Decision {
    /// Why the kit may not be mounted, if it may not.
    pub fn outcome(&self) -> Result<(), NotAdmitted> {
        let (code, message) = self.report.reasons.first().map(|reason| (reason.code.clone(), reason.message.clone())).unwrap_or_default();
        let reference = self.report.reference.clone();
        match &self.verdict {
            Verdict::Admitted(_) => Ok(()),
            Verdict::Denied => Err(NotAdmitted::Refused { reference, code, message }),
            Verdict::Undecided(class) => Err(NotAdmitted::Undecided { reference, message, class: *class }),
        }
    }

    /// That it may be mounted, if it may.
    pub fn admitted(&self) -> Option<&Admitted> {
        match &self.verdict {
            Verdict::Admitted(admitted) => Some(admitted),
            _ => None,
        }
    }
}

impl<'a> Docket<'a> {
    /// Opens it. `now` is the time of the decision.
    pub fn new(question: &'a Question, rulebook: &'a Rulebook, now: Timestamp) -> Self {
        Self { question, rulebook, now }
    }

    /// The repositories in which signatures have to be looked for: `None` is the kit's own. Empty if none can change the answer.
    pub fn repositories(&self) -> Vec<Option<Name>> {
        Vec::new()
    }

    /// Takes a candidate and judges it.
    pub fn add(&mut self, candidate: Candidate) {
        _ = candidate;
    }

    /// Whether the kit is admitted already, whatever else is found.
    pub fn is_settled(&self) -> bool {
        false
    }

    /// Says what follows from what came, and from how the search for it ended.
    pub fn close(self, ended: &Ended) -> Decision {
        _ = (self.question, self.rulebook, self.now, ended);
        unreachable!("written by the helper for the decision")
    }
}
