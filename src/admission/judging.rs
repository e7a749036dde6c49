//! One candidate before one authority: whether it counts, and if not, why.

use jiff::Timestamp;

use super::Question;
use super::rules::{Demand, DemandSigner};
use crate::digest::Digest;
use crate::policy::authority::{Authority, Format};
use crate::policy::{Name, Names};
use crate::referrers::{Candidate, Content};
use crate::signature::{self, About, Denial, Expectation, Facts, Forms, Layer, Reason, Signer};

/// What `candidate` is to an authority: `None` if it was looked for in a repository that is not the authority's.
pub(super) fn judge(
    candidate: &Candidate,
    authority: &Authority,
    demand: &Demand,
    question: &Question,
    now: Timestamp,
) -> Option<Result<Facts, Denial>> {
    if candidate.repository != authority.source {
        return None;
    }
    let signer = match &demand.signer {
        // By a key that is refused nothing is verified: the authority is unmet, whatever was found.
        DemandSigner::Static(_) => return None,
        DemandSigner::Key(key) if key.refused().is_some() => return None,
        DemandSigner::Key(key) => Signer::Key(key),
        DemandSigner::Identities(identities) => Signer::AnyOf(identities),
    };
    Some(Hearing { candidate, authority, demand, question, signer, now }.judge())
}

/// One candidate before one authority that it could count for.
struct Hearing<'a> {
    candidate: &'a Candidate,
    authority: &'a Authority,
    demand: &'a Demand,
    question: &'a Question,
    signer: Signer<'a>,
    now: Timestamp,
}

impl Hearing<'_> {
    fn judge(&self) -> Result<Facts, Denial> {
        let Self { candidate, authority, .. } = self;
        if let Some(format) = authority.format.filter(|format| *format != candidate.format) {
            return refused(Reason::Format, format!("it is in the format `{}`, wanted is `{}`", candidate.format.name(), format.name()));
        }
        let content = candidate.content.as_ref().map_err(Clone::clone)?;
        let about = self.about()?;
        let facts = self.verified(content, &about)?;
        self.check_name(&facts)?;
        self.check_annotations(&facts)?;
        self.check_stated(&facts)?;
        Ok(facts)
    }

    /// What it has to be about: the kit, or the index that the kit was chosen from. Of that only signatures count, since an attestation of
    /// an index says nothing about what is in it.
    fn about(&self) -> Result<Digest, Denial> {
        let Self { candidate: Candidate { subject, .. }, question, .. } = self;
        if *subject == question.digest {
            return Ok(*subject);
        }
        if question.index != Some(*subject) {
            return refused(Reason::ReferrerSubject, format!("it is attached to {subject}, not to {}", question.digest));
        }
        if !self.authority.attestations.is_empty() {
            return refused(Reason::WrongDigest, format!("it is about the index {subject}, an attestation has to be about the kit itself"));
        }
        Ok(*subject)
    }

    fn verified(&self, content: &Content, about: &Digest) -> Result<Facts, Denial> {
        // Where statements are wanted, those of all types are verified at once, and the type is looked at afterwards.
        let wanted = match self.authority.attestations.as_slice() {
            [] => signature::Content::Signature,
            [attestation] => signature::Content::Attestation(&attestation.predicate_type),
            _ => signature::Content::Anything,
        };
        let Demand { root, log, timestamp, .. } = self.demand;
        let expectation = Expectation { signer: self.signer, content: wanted, log: *log, timestamp: *timestamp, forms: Forms::Attached };
        match (content, self.candidate.format) {
            (Content::Bundle(bytes), Format::Bundle) => {
                signature::judge(bytes, &About { digest: *about, artifact: None }, &expectation, root, self.now)
            }
            (Content::Layer { kind, blob, annotations }, Format::Legacy) => {
                signature::judge_layer(&Layer { kind: *kind, blob, annotations }, about, &expectation, root, self.now)
            }
            // Whoever found it has to know what it found, or a policy that wants one format would be met by the other.
            _ => refused(Reason::Format, "it is not in the format that it was found as"),
        }
    }

    /// The older format names the repository that the signer meant.
    fn check_name(&self, facts: &Facts) -> Result<(), Denial> {
        let Some(payload) = &facts.payload else { return Ok(()) };
        let said = &payload.docker_reference;
        let Some(asked) = asked(&self.question.names) else {
            return refused(
                Reason::DockerReference,
                format!("it is for `{said}`, and the kit has no name to compare that with (`--as` gives it one)"),
            );
        };
        match Name::of_docker_reference(said) {
            Ok(name) if name.fits(asked) => Ok(()),
            Ok(_) => refused(Reason::DockerReference, format!("it is for `{said}`, not for {asked}")),
            Err(error) => refused(Reason::DockerReference, format!("it is for `{said}`, which names no repository: {error}")),
        }
    }

    fn check_annotations(&self, facts: &Facts) -> Result<(), Denial> {
        let there = annotations(facts);
        for (name, wanted) in &self.authority.annotations {
            match there.iter().find(|(other, _)| other == name) {
                Some((_, value)) if value == wanted => {}
                Some((_, value)) => {
                    return refused(Reason::Annotations, format!("its annotation `{name}` is `{value}`, wanted is `{wanted}`"));
                }
                None => return refused(Reason::Annotations, format!("it has no annotation `{name}`, wanted is `{wanted}`")),
            }
        }
        Ok(())
    }

    fn check_stated(&self, facts: &Facts) -> Result<(), Denial> {
        let wanted = &self.authority.attestations;
        let stated = predicate_type(facts);
        if wanted.is_empty() || wanted.iter().any(|attestation| Some(attestation.predicate_type.as_str()) == stated) {
            return Ok(());
        }
        let types: Vec<&str> = wanted.iter().map(|attestation| attestation.predicate_type.as_str()).collect();
        let is = stated.map_or_else(|| "it is a signature".to_owned(), |stated| format!("it is an attestation of type {stated}"));
        refused(Reason::PredicateType, format!("{is}, wanted is {}", types.join(" or ")))
    }
}

/// What a legacy signature's name is compared with: the claim, or else the real name.
fn asked(names: &Names) -> Option<&Name> {
    names.claim.as_ref().or(names.real.as_ref())
}

/// What the signer added, in either format.
pub(super) fn annotations(facts: &Facts) -> &[(String, String)] {
    match (&facts.statement, &facts.payload) {
        (Some(statement), _) => &statement.annotations,
        (None, Some(payload)) => &payload.annotations,
        (None, None) => &[],
    }
}

/// The type of what is stated. A signature of the older format states nothing.
pub(super) fn predicate_type(facts: &Facts) -> Option<&str> {
    facts.statement.as_ref().map(|statement| statement.predicate_type.as_str())
}

fn refused<T>(reason: Reason, message: impl Into<String>) -> Result<T, Denial> {
    Err(Denial::new(reason, message))
}
