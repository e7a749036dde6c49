//! Groups of options that several commands share.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, value_parser};

use crate::filter::{Filter, Glob, Globs, Selection};
use crate::limits::{CONNECTIONS_MAX, JOBS_MAX};
use crate::store::CacheSize;
use crate::vsa::VerifierId;

/// Which cache.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheDir {
    /// Keep layers in DIR [default: /var/cache/kitfs for root, else $XDG_CACHE_HOME/kitfs]
    #[arg(long, value_name = "DIR", env = "KITFS_CACHE_DIR", hide_env = true)]
    pub(crate) cache_dir: Option<PathBuf>,
}

impl CacheDir {
    /// The cache directory: the one that was given, or the one of this user. `None` if nothing says where his home is.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        if let Some(dir) = &self.cache_dir {
            return Some(dir.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from("/var/cache/kitfs"));
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(cache.join("kitfs"))
    }
}

/// How large it may become.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source and cache")]
pub(crate) struct CacheLimit {
    /// Let the cache hold SIZE, from now on and for all who share it: bytes, 128MiB, 50GB, or 40% of its filesystem [default: 90%]
    #[arg(long, value_name = "SIZE", env = "KITFS_CACHE_SIZE", hide_env = true)]
    pub(crate) cache_size: Option<CacheSize>,
}

/// How much is fetched at once.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source and cache")]
pub(crate) struct Fetching {
    /// Fetch N layers at once, 1 to 16 [default: 4; under a mount 16 that are waited for, and 2 that are not]
    #[arg(long, value_name = "N", env = "KITFS_JOBS", hide_env = true, value_parser = value_parser!(u16).range(1..=i64::from(JOBS_MAX)))]
    pub(crate) jobs: Option<u16>,
    /// Fetch a large blob over N connections at most, 1 to 16 [default: 6]
    #[arg(long, value_name = "N", env = "KITFS_CONNECTIONS", hide_env = true, value_parser = value_parser!(u16).range(1..=i64::from(CONNECTIONS_MAX)))]
    pub(crate) connections: Option<u16>,
}

/// Where kits come from and where they are kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source and cache")]
pub(crate) struct Sources {
    #[command(flatten)]
    pub(crate) cache: CacheDir,
    /// Speak HTTP to the registry, without TLS
    #[arg(long, env = "KITFS_PLAIN_HTTP", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) plain_http: bool,
    /// Trust the certificates in FILE (PEM) beside the system's
    #[arg(long, value_name = "FILE", env = "KITFS_CA_CERT", hide_env = true)]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Ask no registry; a tag means what it meant when it was last resolved
    #[arg(long, env = "KITFS_OFFLINE", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) offline: bool,
}

/// What of a kit is wanted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What of the kit")]
pub(crate) struct Wanted {
    /// Take only these layers, as `kit unpack` does: TYPE[,TYPE...][:NAME[,NAME...]] with kitfile, model, datasets, code, prompts, docs,
    /// mcpservers; may be repeated
    #[arg(short, long, value_name = "FILTER", env = "KITFS_FILTER", hide_env = true, value_delimiter = '\n')]
    pub(crate) filter: Vec<Filter>,
    /// Show only paths that match GLOB, with the rules of .gitignore; may be repeated
    #[arg(long, value_name = "GLOB", env = "KITFS_INCLUDE", hide_env = true, value_delimiter = '\n')]
    pub(crate) include: Vec<Glob>,
    /// Do not show paths that match GLOB; may be repeated
    #[arg(long, value_name = "GLOB", env = "KITFS_EXCLUDE", hide_env = true, value_delimiter = '\n')]
    pub(crate) exclude: Vec<Glob>,
    /// Follow datasets that are kits of their own, too
    #[arg(long, env = "KITFS_INCLUDE_REMOTE", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) include_remote: bool,
}

impl Wanted {
    pub(crate) fn selection(&self) -> Selection {
        Selection { filters: self.filter.clone(), globs: Globs::new(self.include.clone(), self.exclude.clone()) }
    }
}

// But for the demand for a policy, which can only be switched on, none of these has a variable: what a shell inherits must not decide what is trusted.
/// What may be mounted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is trusted")]
pub(crate) struct Trusting {
    /// Mount only what the policies in FILE admit, beside those of this host; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Vec<PathBuf>,
    /// Refuse a kit if there is no policy at all
    #[arg(long, env = "KITFS_REQUIRE_POLICY", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) require_policy: bool,
    /// Say that the kit is REFERENCE: policies for that name have to be met, too
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) r#as: Option<String>,
    /// Whom --policy and the options below trust: a trusted_root.json, or `sigstore-public-good` or `github`, which are built in; may be repeated
    #[arg(long, value_name = "[NAME=]FILE")]
    pub(crate) trusted_root: Vec<String>,
    /// The key that must have signed (PEM, as `cosign.pub`)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<String>,
    /// Who must have signed: the e-mail address or URI in the certificate
    #[arg(long, value_name = "ID")]
    pub(crate) certificate_identity: Option<String>,
    /// The same as a regular expression, which has to match the whole of it
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) certificate_identity_regexp: Option<String>,
    /// Who must have vouched for that identity
    #[arg(long, value_name = "URL")]
    pub(crate) certificate_oidc_issuer: Option<String>,
    /// The same as a regular expression, which has to match the whole of it
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) certificate_oidc_issuer_regexp: Option<String>,
    /// What the signature has to say beside; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// With --key: do not ask for an entry in a transparency log
    #[arg(long)]
    pub(crate) insecure_ignore_tlog: bool,
    /// Ask for a signed timestamp
    #[arg(long)]
    pub(crate) use_signed_timestamps: bool,
    /// Ask for an attestation of this predicate type in place of a signature: a URI, or one of cosign's short names
    #[arg(long, value_name = "TYPE")]
    pub(crate) r#type: Option<String>,
    /// A rule in Rego that has to allow the kit, or with --type the attestation
    #[arg(long, value_name = "FILE")]
    pub(crate) rego: Option<PathBuf>,
}

/// Where running mounts are recorded.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// Record running mounts in DIR [default: /run/kitfs for root, else $XDG_RUNTIME_DIR/kitfs]
    #[arg(long, value_name = "DIR", env = "KITFS_RUN_DIR", hide_env = true)]
    pub(crate) run_dir: Option<PathBuf>,
}

/// What is written about a decision for others.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Records")]
pub(crate) struct Summary {
    /// Write what was decided to FILE, as a SLSA verification summary (in-toto statement, not signed)
    #[arg(long, value_name = "FILE", env = "KITFS_VSA", hide_env = true)]
    pub(crate) vsa: Option<PathBuf>,
    /// Who says so in that summary
    #[arg(long, value_name = "URI", env = "KITFS_VSA_VERIFIER_ID", hide_env = true)]
    pub(crate) vsa_verifier_id: Option<VerifierId>,
}

/// What is written down of what happens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Records")]
pub(crate) struct Audit {
    /// Append a line of JSON to FILE for each decision, mount, umount and mismatch; what cannot be written down does not happen
    #[arg(long, value_name = "FILE", env = "KITFS_AUDIT_LOG", hide_env = true)]
    pub(crate) audit_log: Option<PathBuf>,
    /// Mount also if that cannot be written
    #[arg(long, env = "KITFS_AUDIT_BEST_EFFORT", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) audit_best_effort: bool,
}
