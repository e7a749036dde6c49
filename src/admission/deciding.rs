//! What follows from what was found: for an authority, a policy, a set.
//!
//! Each has one of three answers: met, refused, or open, where something that could not be read might have changed it. Only what nothing unread
//! could change is a refusal, and only what nothing unread could change is met.

use super::account;
use super::input::Facing;
use super::judging::predicate_type;
use super::nearest::nearest;
use super::rules::{Demand, DemandSigner, RuleSet};
use super::{Provenance, Question};
use crate::failure::ErrorClass;
use crate::policy::authority::{Action, Attestation, Authority};
use crate::policy::rego::{Rule, Verdict};
use crate::policy::set::{Match, MatchedBy};
use crate::policy::{Mode, Set};
use crate::referrers::{Ended, Gap};
use crate::signature::{Denial, Facts, Reason};

/// The answer of a policy or a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Met,
    Refused,
    /// Not known, for a trouble of this kind.
    Open(ErrorClass),
}

/// A set before a kit.
#[derive(Debug)]
pub(super) struct SetCase<'a> {
    /// `host` or `caller`.
    pub(super) name: &'static str,
    /// Whether it refuses anything.
    pub(super) enforces: bool,
    /// Whether a policy that refuses covers the kit.
    pub(super) covered: bool,
    pub(super) policies: Vec<PolicyCase<'a>>,
}

/// A policy that matches, before a kit.
#[derive(Debug)]
pub(super) struct PolicyCase<'a> {
    pub(super) matched: Match<'a>,
    /// Whether `static: pass` counts.
    passes: bool,
    pub(super) authorities: Vec<AuthorityCase<'a>>,
}

/// An authority before a kit.
#[derive(Debug)]
pub(super) struct AuthorityCase<'a> {
    pub(super) authority: &'a Authority,
    pub(super) demand: &'a Demand,
    /// What each candidate that it was asked about is to it: the candidate's number, and the judgement.
    pub(super) heard: Vec<(usize, Result<Facts, Denial>)>,
}

/// What an authority says in the end.
#[derive(Debug)]
pub(super) struct AuthorityAnswer {
    pub(super) met: bool,
    /// Whether nothing that is still found could change that.
    closed: bool,
    /// Why it is unmet, if that is not a candidate's fault.
    pub(super) why: Option<Denial>,
    /// Candidates that were verified, and which a rule does not allow.
    pub(super) disallowed: Vec<(usize, Denial)>,
    /// The nearest misses: of each thing that is wanted, the one of the candidate that came closest.
    pub(super) misses: Vec<(Option<usize>, Denial)>,
}

/// What a policy says in the end.
#[derive(Debug)]
pub(super) struct PolicyAnswer {
    pub(super) answer: Answer,
    pub(super) authorities: Vec<AuthorityAnswer>,
    /// Why it refuses or is open, whatever was found.
    pub(super) why: Option<Denial>,
    /// What its own rule says, if it was asked.
    pub(super) rule: Option<Result<(), Denial>>,
    /// What that was given.
    pub(super) input: Option<serde_json::Value>,
}

impl<'a> SetCase<'a> {
    pub(super) fn new(name: &'static str, rules: &'a RuleSet, question: &Question) -> Self {
        let matches = rules.set().matching(&question.names);
        let covered = Set::covers(&matches);
        let policies = matches.into_iter().map(|matched| PolicyCase::new(matched, rules, question)).collect();
        Self { name, enforces: rules.set().enforces(), covered, policies }
    }

    /// Whether nothing that could be found admits the kit.
    pub(super) fn is_hopeless(&self) -> bool {
        self.enforces && (!self.covered || self.policies.iter().any(|policy| policy.enforces() && policy.is_hopeless()))
    }

    /// The set's answer by those of its policies. What refuses does so whatever the others would say.
    pub(super) fn answer(&self, answers: &[PolicyAnswer]) -> Answer {
        if !self.enforces {
            return Answer::Met;
        }
        if !self.covered {
            return Answer::Refused;
        }
        let enforced = self.policies.iter().zip(answers).filter(|(policy, _)| policy.enforces());
        all(enforced.map(|(_, answer)| answer.answer))
    }
}

/// The answer where all have to be met: a refusal is one whatever is open.
pub(super) fn all(answers: impl Iterator<Item = Answer>) -> Answer {
    answers.fold(Answer::Met, |before, answer| match (before, answer) {
        (Answer::Refused, _) | (_, Answer::Refused) => Answer::Refused,
        (Answer::Open(one), Answer::Open(other)) => Answer::Open(graver(one, other)),
        (Answer::Open(class), _) | (_, Answer::Open(class)) => Answer::Open(class),
        (Answer::Met, Answer::Met) => Answer::Met,
    })
}

/// Of two troubles the one that says what to do: what may pass by itself, before what is damaged.
fn graver(one: ErrorClass, other: ErrorClass) -> ErrorClass {
    let order = |class| match class {
        ErrorClass::Network => (0, 0),
        ErrorClass::Stalled => (1, 0),
        ErrorClass::Denied => (2, 0),
        ErrorClass::Disk(errno) => (3, errno),
        ErrorClass::Missing => (4, 0),
        ErrorClass::Refused => (5, 0),
        ErrorClass::Content => (6, 0),
    };
    if order(other) < order(one) { other } else { one }
}

impl<'a> PolicyCase<'a> {
    fn new(matched: Match<'a>, rules: &'a RuleSet, question: &Question) -> Self {
        let policy = matched.policy;
        let passes = matched.by.iter().any(|by| may_pass(by, question));
        let case = |(authority, demand)| AuthorityCase { authority, demand, heard: Vec::new() };
        let authorities = policy.authorities.iter().zip(rules.demands(policy)).map(case).collect();
        Self { matched, passes, authorities }
    }

    pub(super) fn enforces(&self) -> bool {
        self.matched.policy.mode == Mode::Enforce
    }

    /// Whether a rule is asked, so that all that there is has to be known.
    pub(super) fn has_rule(&self) -> bool {
        let attestations = self.matched.policy.authorities.iter().flat_map(|authority| &authority.attestations);
        self.rule().is_some() || attestations.into_iter().any(|attestation| attestation.rule.is_some())
    }

    fn rule(&self) -> Option<&'a Rule> {
        self.matched.policy.rule.as_ref()
    }

    fn refuses(&self) -> bool {
        self.authorities.iter().any(|case| matches!(case.demand.signer, DemandSigner::Static(Action::Fail)))
    }

    fn is_hopeless(&self) -> bool {
        self.refuses() || self.authorities.iter().all(|case| case.closed(self.passes).is_some())
    }

    /// Whether it is met already, whatever else is found.
    pub(super) fn is_settled(&self) -> bool {
        !self.has_rule() && !self.refuses() && self.authorities.iter().any(|case| case.answer(self.passes, None).met)
    }

    /// Its answer. `rules` is what rules in Rego are asked about.
    pub(super) fn answer(&self, facing: &Facing<'_>, ended: &Ended) -> PolicyAnswer {
        let name = &self.matched.policy.name;
        let authorities: Vec<AuthorityAnswer> = self.authorities.iter().map(|case| case.answer(self.passes, Some(facing))).collect();
        let refused = |why, authorities| PolicyAnswer { answer: Answer::Refused, authorities, why, rule: None, input: None };
        if self.refuses() {
            let why = Denial::new(Reason::Static, format!("the policy `{name}` refuses whatever it matches"));
            return refused(Some(why), authorities);
        }
        if authorities.iter().all(|answer| answer.closed && !answer.met) {
            return refused(None, authorities);
        }
        let mut met = authorities.iter().any(|answer| answer.met);
        let (mut rule, mut input) = (None, None);
        if let Some(asked) = self.rule().filter(|_| met) {
            let given = facing.of_policy(asked, &self.authorities, &authorities);
            let said = allowed(asked, &given);
            met = said.is_ok();
            (rule, input) = (Some(said), Some(given));
        }
        let (answer, why) = self.weighed(met, &authorities, ended);
        PolicyAnswer { answer, authorities, why, rule, input }
    }

    /// The answer, given what could not be read and where it was ended.
    fn weighed(&self, met: bool, answers: &[AuthorityAnswer], ended: &Ended) -> (Answer, Option<Denial>) {
        let whole = self.has_rule();
        if met && !whole {
            return (Answer::Met, None);
        }
        let capped = || {
            let limits = ended.capped.join("; ");
            Denial::new(Reason::TooMany, format!("not all that is attached to the kit was looked at: {limits}"))
        };
        if whole && !ended.capped.is_empty() {
            return (Answer::Refused, Some(capped()));
        }
        // A rule that was content has to see what is missing, for every authority that could bring it before the rule.
        let concerned = |gap: &&Gap| {
            let mut cases = self.authorities.iter().zip(answers);
            cases.any(|(case, answer)| case.takes() && (met || !answer.closed) && case.authority.source == gap.repository)
        };
        let mut classes: Vec<ErrorClass> = ended.gaps.iter().filter(concerned).map(|gap| gap.class).collect();
        // Nobody ends a search that did not say that it may be ended; if somebody did, nobody knows what there is.
        classes.extend(ended.stopped.then_some(ErrorClass::Network));
        match classes.into_iter().reduce(graver) {
            Some(class) => (Answer::Open(class), None),
            None if met => (Answer::Met, None),
            None if !ended.capped.is_empty() => (Answer::Refused, Some(capped())),
            None => (Answer::Refused, None),
        }
    }
}

impl AuthorityCase<'_> {
    /// Whether it looks at candidates at all.
    pub(super) fn takes(&self) -> bool {
        match &self.demand.signer {
            DemandSigner::Key(key) => key.refused().is_none(),
            DemandSigner::Identities(_) => true,
            DemandSigner::Static(_) => false,
        }
    }

    /// Why it can never be met, if it cannot.
    fn closed(&self, passes: bool) -> Option<Denial> {
        match &self.demand.signer {
            DemandSigner::Key(key) => {
                let why = key.refused()?;
                Some(Denial::new(
                    Reason::KeyType,
                    format!("the authority `{}` wants a key of a kind that is refused: {why}", self.authority.name),
                ))
            }
            DemandSigner::Identities(_) => None,
            DemandSigner::Static(Action::Fail) => Some(Denial::new(Reason::Static, "it refuses")),
            DemandSigner::Static(Action::Pass) if passes => None,
            DemandSigner::Static(Action::Pass) => Some(Denial::new(
                Reason::Static,
                "`static: pass` counts only for what this run got from the registry of that name, by TLS, and by the tag where the policy names one",
            )),
        }
    }

    /// Its answer. Rules are only asked where there is something to ask them about.
    fn answer(&self, passes: bool, facing: Option<&Facing<'_>>) -> AuthorityAnswer {
        let closed = self.closed(passes);
        let mut answer = AuthorityAnswer { met: false, closed: closed.is_some(), why: closed, disallowed: Vec::new(), misses: Vec::new() };
        if answer.closed {
            return answer;
        }
        if matches!(self.demand.signer, DemandSigner::Static(_)) {
            return AuthorityAnswer { met: true, closed: true, ..answer };
        }
        if self.authority.attestations.is_empty() {
            answer.met = self.heard.iter().any(|(_, judged)| judged.is_ok());
            if !answer.met {
                answer.misses.push(self.nearest_miss(|_| true));
            }
            return answer;
        }
        answer.met = true;
        for attestation in &self.authority.attestations {
            self.ask_for(attestation, facing, &mut answer);
        }
        answer
    }

    fn ask_for(&self, wanted: &Attestation, facing: Option<&Facing<'_>>, answer: &mut AuthorityAnswer) {
        let mut found = false;
        for (number, facts) in self.verified() {
            if predicate_type(facts) != Some(&wanted.predicate_type) {
                continue;
            }
            found = true;
            let said = wanted.rule.as_ref().zip(facing).map_or(Ok(()), |(rule, _)| allowed(rule, &Facing::of_statement(facts)));
            if let Err(denial) = said {
                // It has to accept all, so nothing else that is found makes up for it.
                (answer.met, answer.closed) = (false, true);
                answer.disallowed.push((number, denial.clone()));
                answer.misses.push((Some(number), denial));
            }
        }
        if !found {
            answer.met = false;
            answer.misses.push(self.nearest_miss(|facts| predicate_type(facts) != Some(&wanted.predicate_type)));
        }
    }

    /// What was verified, each with the candidate's number.
    pub(super) fn verified(&self) -> impl Iterator<Item = (usize, &Facts)> {
        self.heard.iter().filter_map(|(number, judged)| Some((*number, judged.as_ref().ok()?)))
    }

    /// The candidate that came closest, and why it does not count. What was verified, but is `other` than what is wanted, is a miss, too.
    fn nearest_miss(&self, other: impl Fn(&Facts) -> bool) -> (Option<usize>, Denial) {
        let misses: Vec<(usize, Denial)> = self
            .heard
            .iter()
            .filter_map(|(number, judged)| match judged {
                Err(denial) => Some((*number, denial.clone())),
                Ok(facts) if other(facts) => {
                    let stated = predicate_type(facts).unwrap_or("another sort");
                    Some((
                        *number,
                        Denial::new(
                            Reason::PredicateType,
                            format!("it is an attestation of type {stated}, which is not all that is wanted"),
                        ),
                    ))
                }
                Ok(_) => None,
            })
            .collect();
        let found = nearest(misses.iter().map(|(_, denial)| denial)).cloned();
        match found {
            Some(denial) => (misses.iter().find(|(_, other)| *other == denial).map(|(number, _)| *number), denial),
            None => (None, Denial::new(Reason::Unsigned, format!("nothing was found that could be {}", account::wants(self)))),
        }
    }
}

/// Whether `static: pass` counts where a policy matches by this.
fn may_pass(by: &MatchedBy, question: &Question) -> bool {
    let Provenance { from_registry, tag_resolved } = question.provenance;
    let (Some(form), Some(real)) = (&by.form, &question.names.real) else { return false };
    let tag = real.tag().map(|tag| format!("{}:{tag}", real.repository()));
    let by_tag = tag.as_ref() == Some(form);
    from_registry && !by.claimed && (!by_tag || tag_resolved)
}

/// What a rule says of an input.
fn allowed(rule: &Rule, input: &serde_json::Value) -> Result<(), Denial> {
    match rule.evaluate(input) {
        Verdict::Allowed => Ok(()),
        Verdict::Denied(denial) => Err(Denial::new(Reason::Rego, format!("the rule does not allow it: {denial}"))),
    }
}
