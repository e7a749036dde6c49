//! The command line: what the user typed, what it means, and what he is told.
//!
//! Each command is a module; what they share is here. Nothing below this module prints.

#![expect(clippy::result_large_err, reason = "a command has one error, and then it ends")]

mod args;
mod attend;
mod cache;
mod doctor;
mod error;
mod explain;
mod fetch;
mod inspect;
mod manual;
mod mount;
mod policy;
mod pull;
mod report;
mod serve;
mod status;
mod trust;
mod trusting;
mod umount;
mod verify;
mod verify_bundle;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use indicatif::BinaryBytes;
use tokio::runtime::Runtime;

use crate::credentials;
use crate::limits;
use crate::oci::Reference;
use crate::protocol::Spoken;
use crate::resolve::{self, Access, Pinned, PinnedBy};
use crate::source::SourceOptions;
use crate::store::Store;
use args::{CacheDir, CacheLimit, Cli, Command, Fetching, Sources, Wanted};
use error::CliError;
use report::Exit;

/// Does what the command line says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap as well. If nobody reads them there is nobody to tell.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => report::error(&error).into(),
    }
}

fn dispatch(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::VerifyBundle(arguments) => verify_bundle::run(&arguments),
        Command::Trust(arguments) => trust::run(&arguments),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Completions(arguments) => print(&manual::completions(arguments.shell)),
        Command::Man => print(&manual::page().map_err(CliError::Output)?),
        Command::Supervisor(arguments) => serve::supervisor(&arguments),
        Command::Worker(arguments) => serve::worker(&arguments),
        Command::Protocol => print(Spoken::own().to_string().as_bytes()),
    }
}

/// Writes to stdout. A reader that has gone away is no failure: it has what it wanted.
fn print(bytes: &[u8]) -> Result<Exit, CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(Exit::Done),
    }
}

/// What every command with a reference works with.
struct Session {
    store: Store,
    options: SourceOptions,
    runtime: Runtime,
    /// Layers that are fetched at once.
    jobs: usize,
}

impl Session {
    fn open(sources: &Sources) -> Result<Self, CliError> {
        Ok(Self { store: store(sources)?, options: options(sources)?, runtime: runtime()?, jobs: limits::PULLS_MAX })
    }

    /// Fetches as much at once as was said, if anything was.
    fn fetching(self, fetching: &Fetching) -> Self {
        let options = SourceOptions { connections: fetching.connections, ..self.options };
        Self { options, jobs: fetching.jobs.map_or(self.jobs, usize::from), ..self }
    }

    /// Lets the cache hold as much as was said, if anything was.
    fn keep_to(&self, limit: &CacheLimit) -> Result<(), CliError> {
        if let Some(size) = limit.cache_size
            && let Some(before) = self.store.set_limit(size)?
        {
            report::note(&format!("the cache at {} may hold {size} from now on, it was {before}", self.store.dir().display()));
        }
        Ok(())
    }

    /// Says that the cache is larger than it may be, if that came about by what this command fetched.
    fn warn_if_over_limit(&self) {
        let (over, dir) = (self.store.over_limit(), self.store.dir().display());
        if over > 0 {
            report::warning(&format!(
                "the cache at {dir} is {} over its limit, since what could go was not enough: what is open, pinned or was used a moment ago stays; \
                 `kitfs cache ls` shows it, `kitfs cache prune` makes it keep to its limit later",
                BinaryBytes(over)
            ));
        }
    }

    /// Resolves a reference and what it refers to for whoever only looks at kits, and leaves of it what is wanted.
    fn resolve(&self, text: &str, wanted: &Wanted) -> Result<Pinned, CliError> {
        let reference = reference(text)?;
        let pinned = resolve::kit(&reference, wanted.selection(), wanted.include_remote, &self.access(), &mut resolve::ungated)?;
        remark(&reference, &pinned);
        Ok(pinned)
    }

    fn access(&self) -> Access<'_> {
        Access { options: &self.options, store: &self.store, runtime: self.runtime.handle() }
    }
}

/// Says what there is to be said of kits that were found: that an answer is an old one, that there is nothing, that something is elsewhere.
fn remark(reference: &Reference, pinned: &Pinned) {
    let layers: usize = pinned.lineage.members().iter().map(|member| member.kit.layers.len()).sum();
    if layers > 0 && pinned.lineage.layers.is_empty() && pinned.lineage.kitfile.is_none() {
        report::warning(&format!("of {layers} layers of {reference} none is taken: `kitfs inspect` without filters shows their names"));
    }
    for (found, member) in pinned.found.iter().zip(pinned.lineage.members()).filter(|(found, _)| found.pin == PinnedBy::Cache) {
        let (reference, digest) = (&found.reference, member.digest());
        report::note(&format!("offline: {reference} is taken for {digest}, which it meant when it was last resolved"));
    }
    for set in &pinned.lineage.remote {
        let cure = if set.reference.is_some() { "; it is a kit, which `--include-remote` mounts" } else { "" };
        report::warning(&format!("the dataset at `{}` is not part of the kit: it lives at {}{cure}", set.path.text(), set.address));
    }
    for member in pinned.lineage.empty_handed() {
        let (part, path) = (member.part().name(), member.root().text());
        report::warning(&format!("{} is referred to for the {part} at `{path}`, and has nothing of it", member.name));
    }
}

fn store(sources: &Sources) -> Result<Store, CliError> {
    Ok(Store::open(&cache_dir(&sources.cache)?)?)
}

fn options(sources: &Sources) -> Result<SourceOptions, CliError> {
    // Said in the mount's plan, so that its worker looks where this command did.
    let kitops_home = credentials::kit_home().map(absolute).transpose()?;
    let ca_cert = sources.ca_cert.clone().map(absolute).transpose()?;
    Ok(SourceOptions { plain_http: sources.plain_http, ca_cert, offline: sources.offline, kitops_home, connections: None })
}

fn runtime() -> Result<Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("net").enable_all().build();
    runtime.map_err(CliError::Runtime)
}

/// A relative path is the caller's; what stays in the background stands elsewhere.
fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(&path).map_err(|source| CliError::Folder { path, source })
}

/// Where the cache is.
fn cache_dir(cache: &CacheDir) -> Result<PathBuf, CliError> {
    absolute(cache.path().ok_or(CliError::NoCacheDir)?)
}

/// All of a file that was named, up to one byte more than `limit`, so that whoever reads it can tell.
fn document(path: &Path, limit: u64) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|source| CliError::File { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// A reference as it is meant from the current folder.
fn reference(text: &str) -> Result<Reference, CliError> {
    let reference: Reference = text.parse().map_err(CliError::Reference)?;
    let base = std::env::current_dir().map_err(|source| CliError::Folder { path: ".".into(), source })?;
    Ok(reference.absolute(&base))
}
