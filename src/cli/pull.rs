//! `kitfs pull`: every layer into the cache, safely.

use super::args::Pull;
use super::error::CliError;
use super::fetch::{self, Until};
use super::report::{self, Exit, escaped};
use super::trusting::{Records, Trust};
use super::{Session, print, reference};
use crate::audit::{Attempt, Purpose};
use crate::gate::{Gate, Search};

pub(super) fn run(arguments: &Pull) -> Result<Exit, CliError> {
    let trust = Trust::load(&arguments.trusting)?;
    let session = Session::open(&arguments.sources)?.fetching(&arguments.fetching);
    session.keep_to(&arguments.cache)?;
    let attempt = Attempt { purpose: Purpose::Pull, mountpoint: None, mount_id: None };
    let records = Records::open(&arguments.audit, None, attempt)?;
    // All that is attached to a kit comes along, so that it can be decided on without a network.
    let gate = session.gate(&trust, Search::Whole);
    let mut exit = Exit::Done;
    for reference in &arguments.references {
        // One that fails does not keep the others from coming; the exit code is that of the worst.
        if let Err(error) = pull(&session, &gate, reference, arguments, &records) {
            exit = exit.max(report::error(&error));
        }
    }
    session.warn_if_over_limit();
    Ok(exit)
}

fn pull(session: &Session, gate: &Gate<'_>, text: &str, arguments: &Pull, records: &Records) -> Result<(), CliError> {
    let reference = reference(text)?;
    let kits = session.admitted(gate, &reference, &arguments.wanted, records)?;
    let pinned = kits.pinned();
    if arguments.pin {
        // Before they come: nothing of it goes while the rest is fetched.
        pinned.lineage.layers.iter().try_for_each(|layer| session.store.pin(&layer.spec.key()))?;
    }
    let all: Vec<usize> = (0..pinned.lineage.layers.len()).collect();
    let layers = fetch::layers(session, pinned, &all, Until::Durable, &|_, _| {})
        .map_err(|error| records.failed(&reference, Some(&pinned.kit().manifest.digest), error))?;
    let named = pinned.root().reference.with_digest(pinned.kit().manifest.digest);
    print(format!("{}: {} in the cache\n", escaped(&named), report::counted(layers.len() as u64)).as_bytes())?;
    Ok(())
}
