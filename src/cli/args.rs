//! What may be typed: commands, options, and the variables that stand for options.
//!
//! A reference is taken as any text here, so that [`super::report`] can say what is wrong with it and give a hint.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::daemon::SupervisorArgs;
use crate::filter::{Filter, Glob, Globs, Selection};
use crate::log::Format;
use crate::metrics::Address;
use crate::plan::Prefetch;
use crate::protocol::PROTOCOL_COMMAND;
use crate::store::CacheSize;
use crate::vsa::VerifierId;
use crate::worker;

/// What stands at the end of every help.
const AFTER_HELP: &str = "\
References:
  HOST/REPOSITORY[:TAG][@DIGEST]  a kit in a registry; HOST has a `.` or a port, or is `localhost`
  oci:DIR[:NAME][@DIGEST]         a kit in an OCI image layout
  oci-archive:FILE[:NAME][@DIGEST]
                                  a kit in a tar of such a layout, plain or gzip
  kitops:[HOST/]REPOSITORY[:TAG][@DIGEST]
                                  a kit in the local storage of kit ($KITOPS_HOME)
  An OCI index stands for the kit in it if there is only one.

Environment:
  Each long option can be given as KITFS_ and its name: KITFS_CACHE_DIR=DIR, KITFS_PLAIN_HTTP=1. Those that say what is trusted cannot.
  Switches take 1, true, yes, on and 0, false, no, off. What may be repeated is given one a line. An option on the command line wins.
  NO_COLOR turns colours off; HTTPS_PROXY, HTTP_PROXY and NO_PROXY are followed.

Exit codes:
  0  done
  1  failed: network, disk, permission, already mounted
  2  usage
  3  refused by policy
  4  the content is not what its digest says, or not a kit that may be shown
  5  no such reference, or not allowed to read it";

/// Mounts KitOps ModelKits: lazily fetched, verified, read-only.
#[derive(Debug, Parser)]
#[command(name = "kitfs", version, after_help = AFTER_HELP, max_term_width = 120, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount a kit; returns when the mount serves
    Mount(Box<Mount>),
    /// Unmount
    Umount(Umount),
    /// Show mounts, their layers, progress and errors
    Status(Status),
    /// Look whether this host can mount kits, and say what to do if not
    ///
    /// Each line says `ok`, `warn` or `fail`. Ends with 0 if nothing fails, else with 1. The cache and the run directory are made if they are not there.
    Doctor(Doctor),
    /// Fetch every layer of kits into the cache, and wait until they are safely on disk
    Pull(Box<Pull>),
    /// Show what a kit is, without fetching any layer
    Inspect(Inspect),
    /// Tell whether a kit may be mounted, and why
    ///
    /// Decides without mounting: what policies match, what they want, what is attached to the kit, and for each signature why it counts or not.
    /// Ends with 0 if the kit is admitted, with 3 if it is refused, with 1 or 4 if that could not be decided, and with 2 if there is no policy or
    /// one that cannot be kept to. For a folder where a kit is mounted the decision is taken again for that kit.
    Explain(Box<Explain>),
    /// Recompute every digest from what is on disk
    ///
    /// Ends with 0 if all that is there matches, absent layers are listed. A damaged layer is named with both digests, withdrawn from the
    /// cache, and makes the exit code 4.
    Verify(Verify),
    /// Verify a Sigstore bundle of a file or a digest
    ///
    /// Ends with 0 if the wanted one signed it, and with 1 if not, or if that cannot be told.
    VerifyBundle(VerifyBundle),
    /// Show whom trusted roots trust
    Trust(Trust),
    /// Look after the cache
    Cache(Cache),
    /// Work with policies, which say whose kits may be mounted
    Policy(Policy),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page
    Man,
    /// Own a mount; started by `kitfs mount`
    #[command(name = "__supervisor", hide = true)]
    Supervisor(SupervisorArgs),
    /// Serve a mount; started by its supervisor
    #[command(name = "__worker", hide = true)]
    Worker(Box<worker::Inherited>),
    /// Say which protocol workers of this program speak; asked by the supervisor of a mount that an older one made
    #[command(name = PROTOCOL_COMMAND, hide = true)]
    Protocol,
}

/// Which cache.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheDir {
    /// Keep layers in DIR [default: /var/cache/kitfs for root, else $XDG_CACHE_HOME/kitfs]
    #[arg(long, value_name = "DIR", env = "KITFS_CACHE_DIR", hide_env = true)]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// How large it may become.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source and cache")]
pub(crate) struct CacheLimit {
    /// Let the cache hold SIZE, from now on and for all who share it: bytes, 128MiB, 50GB, or 40% of its filesystem [default: 90%]
    #[arg(long, value_name = "SIZE", env = "KITFS_CACHE_SIZE", hide_env = true)]
    pub(crate) cache_size: Option<CacheSize>,
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

#[derive(Debug, Clone, Args)]
pub(crate) struct Mount {
    /// The kit: HOST/REPOSITORY:TAG, oci:DIR, oci-archive:FILE or kitops:REF
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// An empty folder
    #[arg(value_name = "DIR")]
    pub(crate) mountpoint: PathBuf,
    /// What to fetch before anybody asks for it: nothing, small layers and code, or everything
    #[arg(long, value_enum, value_name = "WHAT", env = "KITFS_PREFETCH", hide_env = true, default_value = "small")]
    pub(crate) prefetch: Prefetch,
    /// Let other users in
    #[arg(long, env = "KITFS_ALLOW_OTHER", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) allow_other: bool,
    /// With --allow-other: others may rely on a cache that belongs to this ordinary user
    #[arg(long, env = "KITFS_TRUST_USER_CACHE", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) trust_user_cache: bool,
    /// Show files as owned by user N [default: the caller]
    #[arg(long, value_name = "N", env = "KITFS_UID", hide_env = true)]
    pub(crate) uid: Option<u32>,
    /// Show files as owned by group N [default: the caller's]
    #[arg(long, value_name = "N", env = "KITFS_GID", hide_env = true)]
    pub(crate) gid: Option<u32>,
    /// Serve every read through kitfs instead of letting the kernel read the cache
    #[arg(long, env = "KITFS_NO_PASSTHROUGH", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) no_passthrough: bool,
    /// Stay, log to stderr, and tell systemd when the mount serves
    #[arg(long, env = "KITFS_FOREGROUND", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) foreground: bool,
    /// Log for people or, an object a line, for programs; RUST_LOG says how much
    #[arg(long, value_enum, value_name = "FORMAT", env = "KITFS_LOG_FORMAT", hide_env = true, default_value = "text")]
    pub(crate) log_format: Format,
    /// Tell metrics at ADDR: PORT (of 127.0.0.1), ADDRESS:PORT, or unix:PATH for a socket that only this user may use
    #[arg(long, value_name = "ADDR", env = "KITFS_METRICS", hide_env = true)]
    pub(crate) metrics: Option<Address>,
    #[command(flatten)]
    pub(crate) cache: CacheLimit,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) summary: Summary,
    #[command(flatten)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    pub(crate) trusting: Trusting,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Umount {
    /// Mounts to take down
    #[arg(value_name = "DIR", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) mountpoints: Vec<PathBuf>,
    /// Detach at once; files that are open stay readable until they are closed
    #[arg(long, env = "KITFS_LAZY", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) lazy: bool,
    /// Take down every mount of kitfs
    #[arg(long, env = "KITFS_ALL", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Status {
    /// Only the mount at DIR
    #[arg(value_name = "DIR")]
    pub(crate) mountpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Doctor {
    /// A registry to look at, or a kit in one
    #[arg(value_name = "REF|HOST")]
    pub(crate) target: Option<String>,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Pull {
    /// The kits: HOST/REPOSITORY:TAG, oci:DIR, oci-archive:FILE or kitops:REF
    #[arg(value_name = "REF", required = true)]
    pub(crate) references: Vec<String>,
    /// Never evict these layers, until `kitfs cache unpin`
    #[arg(long, env = "KITFS_PIN", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) pin: bool,
    #[command(flatten)]
    pub(crate) cache: CacheLimit,
    #[command(flatten)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    pub(crate) trusting: Trusting,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Inspect {
    /// The kit: HOST/REPOSITORY:TAG, oci:DIR, oci-archive:FILE or kitops:REF
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Explain {
    /// A kit, or where one is mounted
    #[arg(value_name = "REF|DIR")]
    pub(crate) subject: String,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    /// Without any policy, tell what is attached to the kit
    #[arg(long)]
    pub(crate) allow_no_policy: bool,
    #[command(flatten)]
    pub(crate) summary: Summary,
    #[command(flatten)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(flatten)]
    pub(crate) trusting: Trusting,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
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

#[derive(Debug, Clone, Args)]
pub(crate) struct Verify {
    /// The kit whose layers are verified
    #[arg(value_name = "REF", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) reference: Option<String>,
    /// Verify every layer in the cache, whatever kit it is of
    #[arg(long, env = "KITFS_ALL", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) all: bool,
    /// Fetch what was damaged or is missing
    #[arg(long, env = "KITFS_REPAIR", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new(), conflicts_with = "all")]
    pub(crate) repair: bool,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

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

#[derive(Debug, Clone, Args)]
pub(crate) struct Cache {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show its layers, the one that was not used for longest first, and how much it may hold
    Ls(CacheList),
    /// Remove what nobody uses until the cache keeps to its limit, and what was left behind by processes that died
    Prune(CachePrune),
    /// Let the layers of kits be evicted again that `kitfs pull --pin` pinned, also those that they share with other kits
    Unpin(CacheUnpin),
    /// Print where it is
    Path(CachePath),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CacheList {
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cache: CacheDir,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CachePrune {
    /// Remove every layer that nobody uses, whatever the limit is
    #[arg(long, env = "KITFS_ALL", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cache: CacheDir,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CacheUnpin {
    /// The kits
    #[arg(value_name = "REF", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) references: Vec<String>,
    /// Unpin every layer, of whatever kit
    #[arg(long, env = "KITFS_ALL", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CachePath {
    /// Print JSON
    #[arg(long, env = "KITFS_JSON", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cache: CacheDir,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
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

#[cfg(test)]
mod tests {
    use clap::{Args as _, CommandFactory as _};

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_long_option_has_its_variable() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long)) else { continue };
                let trusting = Trusting::augment_args(clap::Command::new("")).get_arguments().any(|other| other.get_long() == Some(long));
                if command.get_name() == "verify-bundle" || long == "allow-no-policy" || trusting && long != "require-policy" {
                    assert_eq!(argument.get_env(), None, "--{long}: what is trusted is not inherited");
                    continue;
                }
                let expected = format!("KITFS_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(expected.as_str()), "{}: --{long}", command.get_name());
            }
        }
    }

    #[test]
    fn the_fixed_forms_are_taken_and_others_are_not() {
        for good in [
            "mount r d",
            "mount --cache-dir c --prefetch none --plain-http --ca-cert f --offline --allow-other r d",
            "mount --log-format json --metrics 9464 --trust-user-cache --uid 1 --gid 2 --no-passthrough --foreground --prefetch all r d",
            "mount r d --prefetch=small",
            "mount -f model -f datasets:a,./b --filter kitfile --include *.bin --include /m --exclude x/ r d",
            "pull -f docs r s",
            "inspect --exclude x r",
            "verify -f code r",
            "mount --include-remote r d",
            "mount --policy f --policy g --require-policy --as h.test/a:v1 --trusted-root f --trusted-root n=g r d",
            "mount --key k -a a=b --annotations c=d --insecure-ignore-tlog --use-signed-timestamps r d",
            "mount --certificate-identity i --certificate-oidc-issuer u --type vuln --rego f r d",
            "mount --vsa f --vsa-verifier-id https://h.test/kitfs --audit-log f --audit-best-effort r d",
            "pull --certificate-identity-regexp i --certificate-oidc-issuer-regexp u --audit-log f r",
            "explain r",
            "explain --json --allow-no-policy --policy f --vsa f --audit-log f --offline --include-remote d",
            "umount d e",
            "umount --lazy d",
            "umount --all",
            "umount --all --lazy",
            "status",
            "status --json d",
            "doctor",
            "doctor --json --plain-http --cache-dir c --run-dir d localhost:5000",
            "pull r s",
            "pull --cache-dir c --plain-http --ca-cert f --offline r",
            "inspect --json r",
            "inspect --include-remote r",
            "pull --include-remote r",
            "verify --include-remote r",
            "verify r",
            "verify --repair r",
            "verify --all",
            "verify-bundle --bundle b --key k a",
            "verify-bundle --bundle b --key k --insecure-ignore-tlog --trusted-root github sha256:00",
            "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --trusted-root f a",
            "trust show",
            "trust show --trusted-root f --trusted-root n=g",
            "trust update github",
            "trust update n -o f --tuf-url u --tuf-root r",
            "policy check f g --trusted-root n=h --json",
            "completions zsh",
            "man",
        ] {
            assert!(Cli::try_parse_from(["kitfs"].into_iter().chain(good.split(' '))).is_ok(), "{good}");
        }
        for bad in [
            "",
            "mount",
            "mount r",
            "mount r d e",
            "mount --prefetch some r d",
            "mount -f models r d",
            "mount -f model -f a:b:c r d",
            "mount --include !x r d",
            "mount --exclude a//b r d",
            "mount --uid x r d",
            "mount --vsa f --vsa-verifier-id u r d",
            "mount --log-format xml r d",
            "mount --metrics host:1 r d",
            "mount --uid -1 r d",
            "umount",
            "umount --all d",
            "status d e",
            "doctor r s",
            "pull",
            "inspect",
            "inspect r s",
            "verify",
            "verify --all r",
            "verify --all --repair",
            "verify-bundle --bundle b a",
            "verify-bundle --key k a",
            "verify-bundle --bundle b --key k",
            "verify-bundle --bundle b --certificate-identity i a",
            "verify-bundle --bundle b --certificate-oidc-issuer u a",
            "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --key k a",
            "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --insecure-ignore-tlog a",
            "trust",
            "trust show x",
            "trust update",
            "trust update n m",
            "trust update n --tuf-url u",
            "trust update n --tuf-root r",
            "policy check --trusted-root f",
            "completions klingon",
            "unmount d",
        ] {
            let error = Cli::try_parse_from(["kitfs"].into_iter().chain(bad.split(' ').filter(|word| !word.is_empty()))).expect_err(bad);
            assert!(error.use_stderr() && error.exit_code() == 2, "{bad}");
        }
    }
}
