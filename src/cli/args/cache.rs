//! What may be typed about the cache.

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Subcommand};

use super::groups::{CacheDir, Run, Sources, Wanted};

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
    #[command(flatten)]
    pub(crate) run: Run,
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
