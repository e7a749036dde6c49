//! `kitfs pull`: every layer into the cache, safely.

use super::args::Pull;
use super::error::CliError;
use super::fetch::{self, Until};
use super::report::{self, Exit, escaped};
use super::{Session, print};

pub(super) fn run(arguments: &Pull) -> Result<Exit, CliError> {
    let session = Session::open(&arguments.sources)?;
    session.keep_to(&arguments.cache)?;
    let mut exit = Exit::Done;
    for reference in &arguments.references {
        // One that fails does not keep the others from coming; the exit code is that of the worst.
        if let Err(error) = pull(&session, reference, arguments) {
            exit = exit.max(report::error(&error));
        }
    }
    Ok(exit)
}

fn pull(session: &Session, reference: &str, arguments: &Pull) -> Result<(), CliError> {
    let pinned = session.resolve(reference, &arguments.wanted)?;
    if arguments.pin {
        // Before they come: nothing of it goes while the rest is fetched.
        pinned.lineage.layers.iter().try_for_each(|layer| session.store.pin(&layer.spec.key()))?;
    }
    let all: Vec<usize> = (0..pinned.lineage.layers.len()).collect();
    let layers = fetch::layers(session, &pinned, &all, Until::Durable, &|_, _| {})?;
    let named = pinned.root().reference.with_digest(pinned.kit().manifest.digest);
    print(format!("{}: {} layers in the cache\n", escaped(&named), layers.len()).as_bytes())?;
    Ok(())
}
