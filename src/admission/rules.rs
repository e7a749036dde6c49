//! Policies with everything that they refer to: keys read, trust roots found. What cannot be found is an error before anything is decided.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::roots::{DEFAULT, Root, Roots, RootsError};
use crate::digest::Digest;
use crate::policy::authority::{Action, Authority, Key, Signer, Witness};
use crate::policy::host::HostFiles;
use crate::policy::set::SetError;
use crate::policy::shortcut::{Shortcut, ShortcutError};
use crate::policy::{Policy, Set};
use crate::rehearsal;
use crate::signature::{Identity, KeyError, Part, PublicKey, Role, RootError, TrustedRoot};

/// Where a host keeps its policies.
const HOST_POLICIES: &str = "/etc/kitfs/policy.d";
/// Where a host keeps its trust roots.
pub const HOST_ROOTS: &str = "/etc/kitfs/trusted-roots.d";
/// Addresses of the public good's services, which name its trust root where no name does.
const PUBLIC: [&str; 2] = ["https://fulcio.sigstore.dev", "https://rekor.sigstore.dev"];
/// The name of that root.
const PUBLIC_GOOD: &str = "sigstore-public-good";

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

/// Where the rules of a host are.
#[derive(Debug, Clone)]
pub struct Host {
    files: HostFiles,
    policies: PathBuf,
    roots: PathBuf,
}

/// The rules that the caller adds to the host's.
#[derive(Debug, Clone, Default)]
pub struct CallerRules {
    /// Files with policies.
    pub files: Vec<PathBuf>,
    /// What the short cuts say; nothing, if none was used.
    pub shortcut: Shortcut,
    /// Trust roots, each as `[NAME=]FILE`. The host's policies do not see them.
    pub trusted_roots: Vec<String>,
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
    /// Which of those are meant, and of which addresses.
    pub sources: Sources,
    /// Whether a log entry is wanted, as [`crate::signature::Expectation::log`] has it.
    pub log: bool,
    /// Whether a timestamp is wanted.
    pub timestamp: bool,
}

/// Where certificate authorities, logs and timestamp authorities of a demand come from; `None`, where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Sources {
    /// Certificate authorities and certificate logs.
    pub certificates: Option<RootPart>,
    /// Logs.
    pub logs: Option<RootPart>,
    /// Timestamp authorities.
    pub timestamps: Option<RootPart>,
}

/// Those of a trust root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RootPart {
    /// Its name.
    pub name: String,
    /// The SHA-256 of its file.
    pub digest: Digest,
    /// Only those with this address.
    pub url: Option<String>,
}

/// Who must have signed.
#[derive(Debug, Clone)]
pub enum DemandSigner {
    /// The owner of this key, which may be of a kind that is refused, or of whose signatures only those with one hash count.
    Key(PublicKey),
    /// One of these.
    Identities(Vec<Identity>),
    /// Nobody: it is decided already.
    Static(Action),
}

/// Why policies cannot be kept to.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The host's cannot.
    #[error("the policies of this host cannot be kept to")]
    Host(#[source] Box<RuleError>),
    /// The caller's cannot.
    #[error("the policies of the command line cannot be kept to")]
    Caller(#[source] Box<RuleError>),
    /// Those in a file cannot.
    #[error("the policies in `{}` cannot be kept to", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<RuleError>,
    },
    /// A policy does not load.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The short cuts make no policy.
    #[error(transparent)]
    Shortcut(#[from] ShortcutError),
    /// A trust root does not load.
    #[error(transparent)]
    Roots(#[from] RootsError),
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
    /// What it wants of trust roots is not in them.
    #[error("policy `{policy}`, authority `{authority}`: the trust root `{root}`")]
    Root {
        /// The policy.
        policy: String,
        /// The authority.
        authority: String,
        /// The name.
        root: String,
        /// What is wrong with it.
        #[source]
        source: Box<RootError>,
    },
    /// Nothing could say when anything was signed.
    #[error(
        "policy `{policy}`, authority `{authority}`: the trust root `{root}` knows no logs, so that certificates count only with a timestamp: `rfc3161timestamp` has to ask for one"
    )]
    NoTime {
        /// The policy.
        policy: String,
        /// The authority.
        authority: String,
        /// The name.
        root: String,
    },
}

impl Host {
    /// This one. Neither an option nor a variable says where its rules are, but for tests of debug builds.
    pub fn this() -> Self {
        rehearsal::host().map_or_else(|| Self::of(HostFiles::of_this_host()), |top| Self::at(&top))
    }

    /// One whose `/` is a folder, for tests. Whose its files are matters all the same.
    pub fn at(top: &Path) -> Self {
        Self::of(HostFiles::at(top))
    }

    fn of(files: HostFiles) -> Self {
        Self { files, policies: HOST_POLICIES.into(), roots: HOST_ROOTS.into() }
    }

    /// Its trust roots.
    pub fn roots(&self) -> Result<Roots, RootsError> {
        Roots::of_host(&self.files, &self.roots)
    }

    /// Where its trust roots are.
    pub fn roots_folder(&self) -> PathBuf {
        self.files.place(&self.roots)
    }

    fn rules(&self, roots: &Roots) -> Result<Option<RuleSet>, RuleError> {
        Set::of_host(&self.files, &self.policies)?.map(|set| RuleSet::load(set, roots)).transpose()
    }
}

impl CallerRules {
    /// Their policies: `None`, if there are none.
    fn set(&self) -> Result<Option<Set>, RuleError> {
        let mut set = Set::of_files(&self.files)?;
        if !self.shortcut.is_empty() {
            set.push(self.shortcut.policy()?);
        }
        Ok(Some(set).filter(|set| !set.policies().is_empty()))
    }
}

impl Rulebook {
    /// All rules of a host and a caller. Everything is read, needed or not: what does not load is never passed over.
    pub fn load(host: &Host, caller: &CallerRules) -> Result<Self, RuleError> {
        let of_host = |error| RuleError::Host(Box::new(error));
        let of_caller = |error| RuleError::Caller(Box::new(error));
        let host_roots = host.roots().map_err(|error| of_host(error.into()))?;
        let host_rules = host.rules(&host_roots).map_err(of_host)?;
        let caller_roots = Roots::of_caller(&caller.trusted_roots).map_err(|error| of_caller(error.into()))?.over(&host_roots);
        let set = caller.set().map_err(of_caller)?;
        let caller_rules = set.map(|set| RuleSet::load(set, &caller_roots)).transpose().map_err(of_caller)?;
        Ok(Self { host: host_rules, caller: caller_rules, require_policy: caller.require_policy })
    }
}

impl RuleSet {
    /// Finds what the policies of a set refer to.
    pub fn load(set: Set, roots: &Roots) -> Result<Self, RuleError> {
        let mut known = Known { roots, found: HashMap::new(), composed: HashMap::new() };
        let mut demands = Vec::new();
        for policy in set.policies() {
            let of_policy =
                policy.authorities.iter().map(|authority| Asking { policy: &policy.name, authority, known: &mut known }.demand());
            demands.push(of_policy.collect::<Result<_, _>>()?);
        }
        Ok(Self { set, demands })
    }

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

impl Demand {
    /// Whether certificates count without a log entry and a promise of one, because those who issue them know no logs.
    pub fn waives_log(&self) -> bool {
        matches!(self.signer, DemandSigner::Identities(_)) && !self.log
    }
}

/// Trust roots, each looked for once.
struct Known<'r> {
    roots: &'r Roots,
    found: HashMap<String, Option<Root>>,
    /// What was made of them, which many authorities have in common.
    composed: HashMap<Sources, Arc<TrustedRoot>>,
}

/// An authority of a policy, while what it refers to is looked for.
struct Asking<'a, 'r> {
    policy: &'a str,
    authority: &'a Authority,
    known: &'a mut Known<'r>,
}

/// Those of a trust root that an authority speaks of.
#[derive(Clone)]
struct Meant {
    root: Root,
    url: Option<String>,
}

impl Meant {
    fn part(&self) -> Part<'_> {
        Part { root: &self.root.root, address: self.url.as_deref() }
    }
}

impl From<&Meant> for RootPart {
    fn from(Meant { root, url }: &Meant) -> Self {
        Self { name: root.name.clone(), digest: root.root.digest(), url: url.clone() }
    }
}

impl Known<'_> {
    fn get(&mut self, name: &str) -> Option<Root> {
        self.found.entry(name.to_owned()).or_insert_with(|| self.roots.get(name)).clone()
    }
}

impl Asking<'_, '_> {
    fn demand(mut self) -> Result<Demand, RuleError> {
        let Authority { log, timestamp, .. } = self.authority;
        match &self.authority.signer {
            Signer::Key(key) => {
                let signer = DemandSigner::Key(self.key(key)?);
                // A key needs no root but for what the policy wants beside it.
                let logs = log.as_ref().map(|log| self.meant(log, None)).transpose()?;
                let stamps = timestamp.as_ref().map(|timestamp| self.meant(timestamp, None)).transpose()?;
                self.composed(signer, None, logs, stamps, log.is_some())
            }
            Signer::Keyless(keyless) => {
                let first = self.meant(&keyless.root, None)?;
                let all = Witness::default();
                let logs = self.meant(log.as_ref().unwrap_or(&all), Some(&first.root))?;
                let stamps = self.meant(timestamp.as_ref().unwrap_or(&all), Some(&first.root))?;
                let waived = first.root.root.logs_nothing() && log.is_none();
                if waived && timestamp.is_none() {
                    let (policy, authority) = self.names();
                    return Err(RuleError::NoTime { policy, authority, root: first.root.name });
                }
                let signer = DemandSigner::Identities(keyless.identities.clone());
                self.composed(signer, Some(first), Some(logs), Some(stamps), !waived)
            }
            Signer::Static(action) => self.composed(DemandSigner::Static(*action), None, None, None, false),
        }
    }

    fn names(&self) -> (String, String) {
        (self.policy.to_owned(), self.authority.name.clone())
    }

    fn key(&self, key: &Key) -> Result<PublicKey, RuleError> {
        let (policy, authority) = self.names();
        PublicKey::of(&key.pem).map(|read| read.only(key.hash)).map_err(|source| RuleError::Key { policy, authority, source })
    }

    /// What a witness speaks of: in the root that it names, or in `first`, or in the default one.
    fn meant(&mut self, witness: &Witness, first: Option<&Root>) -> Result<Meant, RuleError> {
        let url = witness.url.clone();
        let name = match (&witness.trust_root, first) {
            (Some(name), _) => name,
            (None, Some(first)) => return Ok(Meant { root: first.clone(), url }),
            (None, None) => DEFAULT,
        };
        let is_public = witness.trust_root.is_none() && url.as_deref().is_some_and(|url| PUBLIC.contains(&url));
        let root = self.known.get(name).or_else(|| is_public.then(|| self.known.get(PUBLIC_GOOD)).flatten());
        let (policy, authority) = self.names();
        let root = root.ok_or_else(|| RuleError::NoRoot { policy, authority, root: name.to_owned() })?;
        Ok(Meant { root, url })
    }

    fn composed(
        &mut self,
        signer: DemandSigner,
        certificates: Option<Meant>,
        logs: Option<Meant>,
        stamps: Option<Meant>,
        log: bool,
    ) -> Result<Demand, RuleError> {
        let [of_certificates, of_logs, of_stamps] = [&certificates, &logs, &stamps].map(|meant| meant.as_ref().map(RootPart::from));
        let sources = Sources { certificates: of_certificates, logs: of_logs, timestamps: of_stamps };
        let root = match self.known.composed.get(&sources) {
            Some(root) => Arc::clone(root),
            None => {
                let [of_certificates, of_logs, of_stamps] = [&certificates, &logs, &stamps].map(|meant| meant.as_ref().map(Meant::part));
                let root = TrustedRoot::composed(of_certificates, of_logs, of_stamps).map_err(|source| {
                    let meant = match &source {
                        RootError::Address { role: Role::Log, .. } => &logs,
                        RootError::Address { role: Role::TimestampAuthority, .. } => &stamps,
                        _ => &certificates,
                    };
                    let (policy, authority) = self.names();
                    let root = meant.as_ref().map(|meant| meant.root.name.clone()).unwrap_or_default();
                    RuleError::Root { policy, authority, root, source: Box::new(source) }
                })?;
                let root = Arc::new(root);
                self.known.composed.insert(sources.clone(), Arc::clone(&root));
                root
            }
        };
        let used = [&sources.certificates, &sources.logs, &sources.timestamps].into_iter().flatten();
        let mut roots: Vec<(String, Digest)> = used.map(|part| (part.name.clone(), part.digest)).collect();
        roots.sort();
        roots.dedup();
        Ok(Demand { signer, root, roots, sources, log, timestamp: self.authority.timestamp.is_some() })
    }
}

#[cfg(test)]
mod tests;
