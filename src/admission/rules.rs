//! Policies with everything that they refer to: keys read, trust roots found. What cannot be found is an error before anything is decided.

use std::sync::Arc;

use crate::digest::Digest;
use crate::policy::authority::Action;
use crate::policy::{Policy, Set};
use crate::signature::{Identity, KeyError, PublicKey, TrustedRoot};

/// All that a kit has to meet: the host's policies and the caller's, decided separately.
#[derive(Debug, Default)]
pub struct Rulebook {
    /// The host's.
    pub host: Option<RuleSet>,
    /// The caller's.
    pub caller: Option<RuleSet>,
    /// A kit for which there is no policy at all is refused.
    pub require_policy: bool,
}

/// A set of policies, ready to decide.
#[derive(Debug)]
pub struct RuleSet {
    set: Set,
    /// For each policy its authorities, in their order.
    demands: Vec<Vec<Demand>>,
}

/// One authority, ready to judge.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Who must have signed.
    pub signer: DemandSigner,
    /// Whom it trusts for certificates, logs and timestamps: those of the trust roots that it names, narrowed to the addresses that it names.
    pub root: Arc<TrustedRoot>,
    /// The trust roots that this is made of: names and digests.
    pub roots: Vec<(String, Digest)>,
    /// Whether a log entry is wanted, as [`crate::signature::Expectation::log`] has it.
    pub log: bool,
    /// Whether a timestamp is wanted.
    pub timestamp: bool,
}

/// Who must have signed.
#[derive(Debug, Clone)]
pub enum DemandSigner {
    /// The owner of this key, which may be of a kind that is refused.
    Key(PublicKey),
    /// One of these.
    Identities(Vec<Identity>),
    /// Nobody: it is decided already.
    Static(Action),
}

/// Why policies cannot be kept to.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// A key in it is none.
    #[error("policy `{policy}`, authority `{authority}`: the key")]
    Key {
        /// The policy.
        policy: String,
        /// The authority.
        authority: String,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// It names a trust root that there is not.
    #[error("policy `{policy}`, authority `{authority}`: there is no trust root `{root}`")]
    NoRoot {
        /// The policy.
        policy: String,
        /// The authority.
        authority: String,
        /// The name.
        root: String,
    },
}

impl RuleSet {
    /// The policies.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// A policy's authorities, ready to judge, in their order. `policy` is one of [`Set::policies`].
    pub fn demands(&self, policy: &Policy) -> &[Demand] {
        let position = self.set.policies().iter().position(|other| std::ptr::eq(other, policy));
        position.map_or(&[], |position| &self.demands[position])
    }
}
