//! Whether a kit may be mounted: the decision, and the value that says so.
//!
//! [`Docket`] is the whole of it, a pure function of a [`Question`], the [`Rulebook`], candidates and a clock: it fetches nothing, so what it said can be
//! said again. Nothing but it makes an [`Admitted`], and nothing is mounted or fetched without one.

mod docket;
mod record;
mod report;
mod rules;

use std::path::PathBuf;

use crate::digest::Digest;
use crate::kit::{Documents, Kit};
use crate::policy::Names;

pub use docket::{Decision, Docket, Verdict};
pub use record::{Admission, Counted, DecidedPolicy, NamedRoot};
pub use report::{AuthorityReport, CandidateReport, PolicyReport, ReasonReport, Report, SetReport, TimeReport};
pub use rules::{Demand, DemandSigner, RuleError, RuleSet, Rulebook};

/// That a kit may be mounted. Made by the decision alone, about one digest, once.
///
/// ```compile_fail
/// # fn forge(admission: kitfs::admission::Admission) {
/// let forged = kitfs::admission::Admitted { admission };
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Admitted {
    admission: Admission,
}

impl Admitted {
    /// The manifest that may be mounted.
    pub fn digest(&self) -> Digest {
        self.admission.digest
    }

    /// Why, to be kept.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }
}

/// What is to be decided.
#[derive(Debug, Clone)]
pub struct Question {
    /// The reference as it is shown.
    pub reference: String,
    /// What the kit is called. The real name has the digest.
    pub names: Names,
    /// The manifest that would be mounted.
    pub digest: Digest,
    /// The index that it was chosen from, if the reference named one. That the manifest is in it was checked.
    pub index: Option<Digest>,
    /// Manifest and config.
    pub documents: Documents,
    /// What they mean.
    pub kit: Kit,
    /// Who says that this is the kit of that name.
    pub provenance: Provenance,
    /// Where it would be mounted; `None` if it is not asked for that.
    pub mountpoint: Option<PathBuf>,
    /// Who asks.
    pub uid: u32,
}

/// How a name came to a digest, which `static: pass` rests on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Provenance {
    /// This run had the manifest, or the registry's word that it has it, from the repository of the real name, by TLS under the system's roots alone.
    pub from_registry: bool,
    /// This run asked that repository for the tag of the real name, and it was this digest.
    pub tag_resolved: bool,
}
