//! The decision over one kit: candidates come in, each is judged for every authority that it could count for, and at the end it is said what follows.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::account::Account;
use super::deciding::{Answer, PolicyAnswer, SetCase, all};
use super::input::Facing;
use super::judging;
use super::report::Report;
use super::rules::Rulebook;
use super::{Admitted, NotAdmitted, Question};
use crate::digest::Digest;
use crate::failure::ErrorClass;
use crate::policy::Name;
use crate::policy::authority::Format;
use crate::referrers::{Candidate, Content, Ended};
use crate::signature::LayerKind;

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
    now: Timestamp,
    require_policy: bool,
    sets: Vec<SetCase<'a>>,
    /// Every candidate once, by what tells it from others, with its number.
    known: BTreeMap<Identity, usize>,
    seen: Vec<Seen>,
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

/// What is kept of a candidate that was judged.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) digest: Digest,
    pub(super) manifest: Digest,
    pub(super) found_at: String,
    pub(super) format: Format,
}

/// What tells candidates apart: two that do not differ in it are judged alike.
type Identity = (Digest, Digest, Digest, Option<Name>, Matter);

/// What there is to judge, as far as the digest does not say it: the format that it was found as, what it is, and annotations or why it failed.
type Matter = (&'static str, &'static str, Vec<(String, String)>);

impl<'a> Docket<'a> {
    /// Opens it. `now` is the time of the decision.
    pub fn new(question: &'a Question, rulebook: &'a Rulebook, now: Timestamp) -> Self {
        let sets = [("host", &rulebook.host), ("caller", &rulebook.caller)];
        let sets = sets.into_iter().filter_map(|(name, rules)| Some(SetCase::new(name, rules.as_ref()?, question)));
        let (sets, require_policy) = (sets.collect(), rulebook.require_policy);
        Self { question, now, require_policy, sets, known: BTreeMap::new(), seen: Vec::new() }
    }

    /// The repositories in which signatures have to be looked for: `None` is the kit's own. Empty if none can change the answer.
    pub fn repositories(&self) -> Vec<Option<Name>> {
        if self.is_hopeless() {
            return Vec::new();
        }
        // One that only warns is decided, too, and what it would do is told.
        let open = self.sets.iter().flat_map(|set| &set.policies).filter(|policy| !policy.is_settled());
        let takes = open.flat_map(|policy| &policy.authorities).filter(|case| case.takes());
        let mut repositories: Vec<Option<Name>> = takes.map(|case| case.authority.source.clone()).collect();
        repositories.sort();
        repositories.dedup();
        repositories
    }

    /// Takes a candidate and judges it.
    pub fn add(&mut self, candidate: Candidate) {
        let number = self.seen.len();
        match self.known.get(&identity(&candidate)).and_then(|known| self.seen.get_mut(*known)) {
            // It was found in another place, too. Which of them came first decides nothing, not even the words.
            Some(known) => {
                if candidate.found_at < known.found_at {
                    known.found_at = candidate.found_at;
                }
                return;
            }
            None => _ = self.known.insert(identity(&candidate), number),
        }
        for case in self.sets.iter_mut().flat_map(|set| &mut set.policies).flat_map(|policy| &mut policy.authorities) {
            if let Some(judged) = judging::judge(&candidate, case.authority, case.demand, self.question, self.now) {
                case.heard.push((number, judged));
            }
        }
        let Candidate { digest, manifest, found_at, format, .. } = candidate;
        self.seen.push(Seen { digest, manifest, found_at, format });
    }

    /// Whether the kit is admitted already, whatever else is found, and all is known that is told of it.
    pub fn is_settled(&self) -> bool {
        let required = self.require_policy && !self.sets.iter().any(|set| set.enforces);
        let covered = self.sets.iter().all(|set| set.covered || !set.enforces);
        !required && covered && self.sets.iter().flat_map(|set| &set.policies).all(|policy| policy.is_settled())
    }

    /// Says what follows from what came, and from how the search for it ended.
    pub fn close(mut self, ended: &Ended) -> Decision {
        self.put_in_order();
        let facing = Facing::new(self.question, self.now);
        let answers = |set: &SetCase<'_>| set.policies.iter().map(|policy| policy.answer(&facing, ended)).collect();
        let answers: Vec<Vec<PolicyAnswer>> = self.sets.iter().map(answers).collect();
        let mut answer = all(self.sets.iter().zip(&answers).map(|(set, answers)| set.answer(answers)));
        if self.require_policy && !self.sets.iter().any(|set| set.enforces) {
            answer = Answer::Refused;
        }
        let Self { question, now, require_policy, sets, seen, .. } = &self;
        let account = Account { question, now: *now, seen, sets, answers: &answers, answer, require_policy: *require_policy, ended };
        match answer {
            Answer::Met => {
                let admission = account.admission();
                let report = account.report(Some(admission.clone()));
                Decision { verdict: Verdict::Admitted(Box::new(Admitted { admission })), report }
            }
            Answer::Refused => Decision { verdict: Verdict::Denied, report: account.report(None) },
            Answer::Open(class) => Decision { verdict: Verdict::Undecided(class), report: account.report(None) },
        }
    }

    fn is_hopeless(&self) -> bool {
        self.require_policy && !self.sets.iter().any(|set| set.enforces) || self.sets.iter().any(SetCase::is_hopeless)
    }

    /// In which order candidates came decides nothing: not what rules see, and not what is told.
    fn put_in_order(&mut self) {
        let places: BTreeMap<usize, usize> = self.known.values().enumerate().map(|(place, number)| (*number, place)).collect();
        for case in self.sets.iter_mut().flat_map(|set| &mut set.policies).flat_map(|policy| &mut policy.authorities) {
            case.heard.sort_by_key(|(number, _)| places.get(number));
        }
    }
}

fn identity(candidate: &Candidate) -> Identity {
    let Candidate { digest, manifest, subject, repository, format, content, .. } = candidate;
    let (kind, more) = match content {
        Ok(Content::Bundle(_)) => ("bundle", Vec::new()),
        Ok(Content::Layer { kind: LayerKind::Signature, annotations, .. }) => ("signature", annotations.clone()),
        Ok(Content::Layer { kind: LayerKind::Attestation, annotations, .. }) => ("attestation", annotations.clone()),
        Err(denial) => ("", vec![(denial.reason.code().to_owned(), denial.message.clone())]),
    };
    (*digest, *manifest, *subject, repository.clone(), (format.name(), kind, more))
}
