//! What may be typed about trust: bundles, trusted roots, policies.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, ArgGroup, Args, Subcommand};

// No option that says what is trusted has a variable: what a shell inherits must not decide it.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("signer").required(true).multiple(true).args(["key", "certificate_identity", "certificate_oidc_issuer"]))]
pub(crate) struct VerifyBundle {
    /// The bundle
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    /// Who must have signed: the e-mail address or URI in the certificate
    #[arg(long, value_name = "ID", requires = "certificate_oidc_issuer", conflicts_with = "key")]
    pub(crate) certificate_identity: Option<String>,
    /// Who must have vouched for that identity
    #[arg(long, value_name = "URL", requires = "certificate_identity", conflicts_with = "key")]
    pub(crate) certificate_oidc_issuer: Option<String>,
    /// The key that must have signed (PEM, as `cosign.pub`)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Whom to trust: a trusted_root.json, or `sigstore-public-good` or `github`, which are built in
    #[arg(long, value_name = "FILE", default_value = "sigstore-public-good")]
    pub(crate) trusted_root: String,
    /// With --key: do not ask for an entry in a transparency log
    #[arg(long, conflicts_with_all = ["certificate_identity", "certificate_oidc_issuer"])]
    pub(crate) insecure_ignore_tlog: bool,
    /// The file that was signed, or its digest
    #[arg(value_name = "ARTIFACT_OR_sha256:HEX")]
    pub(crate) artifact: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Trust {
    #[command(subcommand)]
    pub(crate) command: TrustCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TrustCommand {
    /// Show authorities and logs, their windows, and the digest of each trusted root [default: those of the host and those that are built in]
    Show(TrustShow),
    /// Fetch the trusted root of an instance of Sigstore by TUF, and write it where the host's trusted roots are
    ///
    /// Nothing else fetches a trusted root: no kit, no decision and no cache ever changes whom this host trusts.
    Update(TrustUpdate),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrustShow {
    /// A trusted_root.json, or `sigstore-public-good` or `github`; may be repeated
    #[arg(long, value_name = "[NAME=]FILE")]
    pub(crate) trusted_root: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrustUpdate {
    /// What policies call it: `sigstore-public-good`, `github`, or with --tuf-url any name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Write FILE [default: /etc/kitfs/trusted-roots.d/NAME.json]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The TUF repository of another instance
    #[arg(long, value_name = "URL", requires = "tuf_root")]
    pub(crate) tuf_url: Option<String>,
    /// That repository's root.json, with which trust in it begins
    #[arg(long, value_name = "FILE", requires = "tuf_url")]
    pub(crate) tuf_root: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Load policies and tell what they match and what they want, without a kit
    ///
    /// Ends with 0 if all of them can be kept to, else with 2 and what is wrong: kitfs reads a part of ClusterImagePolicy, and passes over no
    /// field that it does not read. Nothing is mounted or fetched.
    Check(PolicyCheck),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PolicyCheck {
    /// Files with one policy or several
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// A trusted_root.json that they may name, as when a kit is mounted; may be repeated
    #[arg(long, value_name = "[NAME=]FILE")]
    pub(crate) trusted_root: Vec<String>,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}
