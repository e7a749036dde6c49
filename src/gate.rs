//! The gate that every kit passes on its way to a mount or into the cache: it is found, what is attached to it is looked for, and it is decided on,
//! before anything that it refers to is looked for and before any layer is fetched.
//!
//! Finding is [`crate::resolve`]'s and [`crate::referrers`]'s, deciding is [`crate::admission`]'s. Here they meet, with the network, the cache and the clock.

use std::ops::ControlFlow;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::admission::{Admitted, Decision, Docket, NotAdmitted, Provenance, Question, Rulebook, Verdict};
use crate::failure::{ErrorClass, chain};
use crate::filter::Selection;
use crate::oci::{Reference, Transport};
use crate::policy::{Name, Names};
use crate::referrers::{self, Ended, Gap, Place, Request};
use crate::resolve::{self, Access, Arrived, Pinned, PinnedBy, ResolveError};
use crate::source;

/// How kits are decided on.
#[derive(Debug, Clone)]
pub struct Gate<'a> {
    /// What they have to meet.
    pub rulebook: &'a Rulebook,
    /// What they are looked for with.
    pub access: Access<'a>,
    /// What the caller says that the kit is.
    pub claim: Option<Name>,
    /// Where it would be mounted.
    pub mountpoint: Option<PathBuf>,
    /// How long is looked for signatures.
    pub search: Search,
}

/// How long is looked for signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Until the answer cannot change any more.
    UntilSettled,
    /// Until there are no more: to bring them into the cache, or to tell of all of them.
    Whole,
}

/// What came of a reference.
#[derive(Debug)]
pub struct Passage {
    /// Each decision that was taken, in order; the kit that was asked for is first.
    pub decisions: Vec<Decision>,
    /// The kits, if all were let through.
    pub kits: Result<AdmittedKits, ResolveError>,
}

/// A kit and all that it refers to, each of them admitted. Only the gate makes one.
#[derive(Debug, Clone)]
pub struct AdmittedKits {
    pinned: Pinned,
    /// For each member of the lineage.
    admitted: Vec<Admitted>,
}

impl AdmittedKits {
    /// The kits.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// Why each of them was admitted, in the order of the lineage's members.
    pub fn admitted(&self) -> &[Admitted] {
        &self.admitted
    }
}

impl Gate<'_> {
    /// Finds the kit that `reference` names and what it refers to, and decides on each of them, the kit itself first. Blocks, as [`resolve::kit`] does.
    pub fn kits(&self, reference: &Reference, selection: Selection, include_remote: bool) -> Passage {
        let mut decisions: Vec<Decision> = Vec::new();
        let pinned = resolve::kit(reference, selection, include_remote, &self.access, &mut |arrived| {
            // What the caller claims is said of the kit that was asked for.
            let claim = self.claim.as_ref().filter(|_| decisions.is_empty());
            decisions.push(self.decide(arrived, claim));
            decisions.last().map_or(Ok(()), Decision::outcome)
        });
        let kits = pinned.and_then(|pinned| {
            let admitted = |digest| decisions.iter().filter_map(Decision::admitted).find(|admitted| admitted.digest() == digest).cloned();
            let members = pinned.lineage.members().iter();
            // Every member was at the gate, so there is one for each.
            let missing = |digest| NotAdmitted::Undecided {
                reference: reference.to_string(),
                message: format!("{digest} was not decided on"),
                class: ErrorClass::Refused,
            };
            let admitted: Result<_, _> = members.map(|member| admitted(member.digest()).ok_or_else(|| missing(member.digest()))).collect();
            Ok(AdmittedKits { admitted: admitted.map_err(Box::new)?, pinned })
        });
        Passage { decisions, kits }
    }

    fn decide(&self, arrived: &Arrived, claim: Option<&Name>) -> Decision {
        let question = self.question(arrived, claim);
        let now = Timestamp::now();
        let mut docket = Docket::new(&question, self.rulebook, now);
        let mut repositories = docket.repositories();
        if self.search == Search::Whole && !repositories.contains(&None) {
            repositories.push(None);
        }
        let ended = self.look(&question, arrived, repositories, &mut docket);
        let decision = docket.close(&ended);
        if let Verdict::Admitted(admitted) = &decision.verdict {
            for counted in &admitted.admission().counted {
                // Whoever once counted is the last to go from the cache; that this could not be written down changes nothing now.
                if let Err(error) = self.access.store.mark_met(&question.digest, &counted.manifest) {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a signature that counted");
                }
            }
        }
        decision
    }

    /// Looks for candidates until `docket` has what it needs.
    fn look(&self, question: &Question, arrived: &Arrived, repositories: Vec<Option<Name>>, docket: &mut Docket<'_>) -> Ended {
        if repositories.is_empty() {
            return Ended::default();
        }
        let (mut places, mut gaps) = (Vec::new(), Vec::new());
        for repository in repositories {
            match self.place(arrived, repository.clone()) {
                Ok(place) => places.push(place),
                Err(error) => {
                    let what = repository.as_ref().map_or_else(|| question.reference.clone(), |name| name.repository().to_owned());
                    gaps.push(Gap { what, why: chain(&error), class: ErrorClass::of_source(&error), repository });
                }
            }
        }
        let subjects: Vec<_> = std::iter::once(question.digest).chain(question.index).collect();
        let request = Request { subjects: &subjects, places: &places, store: self.access.store, until: referrers::deadline() };
        let mut ended = referrers::search(&request, self.access.runtime, &mut |candidate| {
            docket.add(candidate);
            if self.search == Search::UntilSettled && docket.is_settled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        ended.gaps.extend(gaps);
        ended
    }

    /// Where signatures are looked for. A registry that may not be asked stands for what the cache has of it.
    fn place(&self, arrived: &Arrived, repository: Option<Name>) -> Result<Place, source::SourceError> {
        let is_registry = matches!(arrived.found.reference.transport(), Transport::Registry(_));
        let source = match &repository {
            Some(name) if is_registry => match name.repository().parse::<Reference>() {
                Ok(reference) => source::open(&reference, self.access.options)?,
                // A name was made of a reference, and is one.
                Err(error) => {
                    let (place, reason) = (name.repository().to_owned(), error.to_string());
                    return Err(source::SourceError::Protocol { place, what: "the policy's source".into(), reason });
                }
            },
            // A layout has many repositories in it.
            _ => arrived.found.source.clone(),
        };
        Ok(Place { repository, source })
    }

    fn question(&self, arrived: &Arrived, claim: Option<&Name>) -> Question {
        let digest = arrived.kit.manifest.digest;
        let mut names = names(&arrived.found.reference);
        names.real = names.real.map(|name| name.at(digest));
        names.claim = claim.cloned().or(names.claim).map(|name| name.at(digest));
        Question {
            reference: arrived.name.clone(),
            names,
            digest,
            index: arrived.index,
            documents: arrived.documents.clone(),
            kit: arrived.kit.clone(),
            provenance: self.provenance(arrived),
            mountpoint: self.mountpoint.clone(),
            uid: rustix::process::getuid().as_raw(),
        }
    }

    fn provenance(&self, arrived: &Arrived) -> Provenance {
        let options = self.access.options;
        let is_registry = matches!(arrived.found.reference.transport(), Transport::Registry(_));
        let by_tls = is_registry && !options.plain_http && options.ca_cert.is_none() && !options.offline;
        // A kit of an index may have been in the cache; the registry did not say that it has it.
        let from_registry = by_tls && arrived.is_fresh && arrived.index.is_none();
        Provenance { from_registry, tag_resolved: from_registry && arrived.found.pin == PinnedBy::Source }
    }
}

/// What a kit is called, as far as its reference says so.
fn names(reference: &Reference) -> Names {
    match reference.transport() {
        // Beside a digest nobody asks what the tag means: it is only said.
        Transport::Registry(name) if reference.digest().is_some() => {
            Names { real: Some(Name::new(name, None, None)), claim: name.tag().map(|tag| Name::new(name, Some(tag), None)) }
        }
        Transport::Registry(name) => Names { real: Some(Name::new(name, name.tag(), None)), claim: None },
        Transport::Layout(name) | Transport::Archive(name) => {
            Names { real: None, claim: name.name().and_then(|name| Name::of_kit(name).ok()) }
        }
        Transport::Kitops(name) => Names { real: None, claim: (name.host() != "localhost").then(|| Name::new(name, name.tag(), None)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_real_only_where_a_registry_was_asked_for_it() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (reference, real, claim) in [
            ("reg.example/a/b:v1", Some("reg.example/a/b:v1"), None),
            ("reg.example:443/a/b", Some("reg.example/a/b:latest"), None),
            (&format!("reg.example/a/b@{digest}"), Some("reg.example/a/b"), None),
            (&format!("reg.example/a/b:v1@{digest}"), Some("reg.example/a/b"), Some("reg.example/a/b:v1")),
            ("oci:/kits", None, None),
            ("oci:/kits:v1", None, None),
            ("oci:/kits:reg.example/a/b:v1", None, Some("reg.example/a/b:v1")),
            ("oci-archive:/kits.tar:reg.example/a/b:v1", None, Some("reg.example/a/b:v1")),
            ("kitops:reg.example/a/b:v1", None, Some("reg.example/a/b:v1")),
            ("kitops:b:v1", None, None),
        ] {
            let names = names(&reference.parse().expect(reference));
            let shown = |name: Option<Name>| name.map(|name| name.to_string());
            assert_eq!((shown(names.real).as_deref(), shown(names.claim).as_deref()), (real, claim), "{reference}");
        }
    }
}
