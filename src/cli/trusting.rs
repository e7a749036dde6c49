//! What the options about trust mean: which rules a kit has to meet, and what is written down of the decisions.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::args::{self, Trusting, Wanted};
use super::error::CliError;
use super::report;
use super::{Session, document, remark};
use crate::admission::{CallerRules, Decision, Host, RuleError, Rulebook};
use crate::audit::{Attempt, Audit, Event, Ground};
use crate::digest::Digest;
use crate::failure::chain;
use crate::gate::{AdmittedKits, Gate, Passage, Search};
use crate::limits;
use crate::oci::Reference;
use crate::plan::AuditPlan;
use crate::policy::Name;
use crate::policy::shortcut::{self, Shortcut};
use crate::vsa::{self, Statement, VerifierId};

/// What a kit has to meet.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) rulebook: Rulebook,
    /// What the caller says that it is.
    pub(super) claim: Option<Name>,
}

impl Trust {
    /// Loads policies and trust roots, those of this host and those that were named. Whatever is wrong with them ends the command before anything is asked for.
    pub(super) fn load(arguments: &Trusting) -> Result<Self, CliError> {
        let claim = arguments.r#as.as_deref().map(claim).transpose()?;
        let caller = CallerRules {
            files: arguments.policy.clone(),
            shortcut: shortcut(arguments)?,
            trusted_roots: arguments.trusted_root.clone(),
            require_policy: arguments.require_policy,
        };
        let rulebook = Rulebook::load(&Host::this(), &caller)?;
        if rulebook.caller.is_none() && !arguments.trusted_root.is_empty() {
            report::warning(
                "`--trusted-root` says whom the policies of this command trust, and it has none: nothing is asked of the kit for it",
            );
        }
        Ok(Self { rulebook, claim })
    }

    /// Whether there is any policy.
    pub(super) fn has_policies(&self) -> bool {
        self.rulebook.host.is_some() || self.rulebook.caller.is_some()
    }

    /// Takes what a mount was claimed to be for the claim, if none was made.
    pub(super) fn or_claim(&mut self, text: Option<&str>) {
        self.claim = self.claim.take().or_else(|| Name::of_kit(text?).ok());
    }
}

impl Session {
    /// What kits are decided on by.
    pub(super) fn gate<'a>(&'a self, trust: &'a Trust, search: Search) -> Gate<'a> {
        Gate { rulebook: &trust.rulebook, access: self.access(), claim: trust.claim.clone(), mountpoint: None, search }
    }

    /// Finds a kit and what it refers to, all of which has to be admitted. What was decided is recorded, however it was.
    pub(super) fn admitted(
        &self,
        gate: &Gate<'_>,
        reference: &Reference,
        wanted: &Wanted,
        records: &Records,
    ) -> Result<AdmittedKits, CliError> {
        let passage = gate.kits(reference, wanted.selection(), wanted.include_remote);
        let recorded = records.write(&passage);
        for warning in passage.decisions.iter().flat_map(|decision| &decision.report.warnings) {
            report::warning(warning);
        }
        let kits = passage.kits.map_err(|error| {
            // That it is refused is what counts, and is told.
            if let Err(error) = &recorded {
                report::warning(&chain(error));
            }
            records.failed(reference, None, error.into())
        })?;
        recorded?;
        remark(reference, kits.pinned());
        Ok(kits)
    }
}

/// What is written down of decisions.
#[derive(Debug)]
pub(super) struct Records {
    audit: Option<Audit>,
    summary: Option<(PathBuf, VerifierId)>,
    attempt: Attempt,
}

impl Records {
    /// What the options ask for. A record that cannot be written is an error now, before anything is asked for.
    pub(super) fn open(audit: &args::Audit, summary: Option<&args::Summary>, attempt: Attempt) -> Result<Self, CliError> {
        let best_effort = audit.audit_best_effort;
        let audit = audit.audit_log.as_deref().map(|path| Audit::open(path, best_effort)).transpose()?;
        let summary = summary.and_then(|summary| Some((summary.vsa.clone()?, summary.vsa_verifier_id.clone().unwrap_or_default())));
        Ok(Self { audit, summary, attempt })
    }

    /// What the processes of a mount have to know.
    pub(super) fn plan(&self) -> Option<AuditPlan> {
        self.audit.as_ref().map(Audit::plan)
    }

    /// Records `error`, if it is that a blob is not what its digest says, and hands it back. What was to happen does not happen anyway.
    pub(super) fn failed(&self, reference: &Reference, kit: Option<&Digest>, error: CliError) -> CliError {
        if let (Some(audit), Some(blob)) = (&self.audit, error.mismatched()) {
            let event = Event::mismatch_before(&reference.to_string(), kit, &self.attempt, &blob, &chain(&error));
            if let Some(error) = audit.record(&event).unwrap_or_else(Some) {
                report::warning(&chain(&error));
            }
        }
        error
    }

    /// Writes all that was decided.
    pub(super) fn write(&self, passage: &Passage) -> Result<(), CliError> {
        let now = Timestamp::now();
        if let Some(audit) = &self.audit {
            for decision in &passage.decisions {
                let event = Event::decision(&Ground::of_report(&decision.report), &self.attempt, now);
                if let Some(error) = audit.record(&event)? {
                    report::warning(&chain(&error));
                }
            }
        }
        if let Some((path, verifier)) = &self.summary {
            let mut statements = Vec::new();
            for Decision { report, .. } in &passage.decisions {
                match Statement::of(report, verifier, now) {
                    Ok(statement) => statements.push(statement),
                    Err(why) => report::warning(&format!("no verification summary of {} is written: {why}", report.reference)),
                }
            }
            vsa::write(path, &statements)?;
        }
        Ok(())
    }
}

/// `--as`: a repository and perhaps a tag. The digest is the kit's own.
fn claim(text: &str) -> Result<Name, CliError> {
    let parsed: Reference = text
        .parse()
        .map_err(|error| CliError::Claim { text: text.to_owned(), source: crate::policy::name::NameError::Reference(error) })?;
    if parsed.digest().is_some() {
        return Err(CliError::ClaimedDigest(text.to_owned()));
    }
    Name::of_kit(text).map_err(|source| CliError::Claim { text: text.to_owned(), source })
}

fn shortcut(arguments: &Trusting) -> Result<Shortcut, CliError> {
    let key = arguments.key.as_deref().map(|text| {
        let path = shortcut::key_path(text).map_err(RuleError::from)?;
        text_of(Path::new(path), limits::KEY_BYTES as u64)
    });
    let rego = arguments.rego.as_deref().map(|path| text_of(path, limits::POLICY_BYTES));
    Ok(Shortcut {
        key: key.transpose()?,
        identity: arguments.certificate_identity.clone(),
        identity_regexp: arguments.certificate_identity_regexp.clone(),
        issuer: arguments.certificate_oidc_issuer.clone(),
        issuer_regexp: arguments.certificate_oidc_issuer_regexp.clone(),
        annotations: arguments.annotations.clone(),
        ignore_log: arguments.insecure_ignore_tlog,
        timestamps: arguments.use_signed_timestamps,
        predicate_type: arguments.r#type.clone(),
        rego: rego.transpose()?,
    })
}

/// A small file of text that says what is trusted.
fn text_of(path: &Path, limit: u64) -> Result<String, CliError> {
    let unusable = |source| CliError::TrustFile { path: path.to_owned(), source };
    let bytes = match document(path, limit) {
        Err(CliError::File { source, .. }) => return Err(unusable(source)),
        other => other?,
    };
    if bytes.len() as u64 > limit {
        return Err(unusable(std::io::Error::other(format!("more than {limit} bytes"))));
    }
    String::from_utf8(bytes).map_err(|error| unusable(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}
