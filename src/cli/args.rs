//! What may be typed: commands, options, and the variables that stand for options.
//!
//! A reference is taken as any text here, so that [`super::report`] can say what is wrong with it and give a hint.

mod cache;
mod groups;
mod trust;

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::daemon::SupervisorArgs;
use crate::log::Format;
use crate::metrics::Address;
use crate::plan::Prefetch;
use crate::protocol::PROTOCOL_COMMAND;
use crate::worker;

pub(crate) use cache::{Cache, CacheCommand, CacheList, CachePath, CachePrune, CacheUnpin};
pub(crate) use groups::{Audit, CacheDir, CacheLimit, Fetching, Run, Sources, Summary, Trusting, Wanted};
pub(crate) use trust::{Policy, PolicyCheck, PolicyCommand, Trust, TrustCommand, TrustShow, TrustUpdate, VerifyBundle};

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
    /// Return when all that --prefetch names has come, and show how far it is; the mount serves meanwhile, and stays if something does not come
    #[arg(long, env = "KITFS_WAIT", hide_env = true, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new(), conflicts_with = "foreground")]
    pub(crate) wait: bool,
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
    /// Log for people or, an object a line, for programs; RUST_LOG says how much [default: text; fields of its own in the journal of systemd]
    #[arg(long, value_enum, value_name = "FORMAT", env = "KITFS_LOG_FORMAT", hide_env = true)]
    pub(crate) log_format: Option<Format>,
    /// Tell metrics at ADDR: PORT (of 127.0.0.1), ADDRESS:PORT, or unix:PATH for a socket that only this user may use
    #[arg(long, value_name = "ADDR", env = "KITFS_METRICS", hide_env = true)]
    pub(crate) metrics: Option<Address>,
    #[command(flatten)]
    pub(crate) fetching: Fetching,
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
    pub(crate) fetching: Fetching,
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

#[derive(Debug, Clone, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests;
