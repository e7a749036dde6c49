//! `kitfs verify`: what is on disk, against the digests.

use super::args::Verify;
use super::error::CliError;
use super::fetch::{self, Until};
use super::report::{self, Exit};
use super::{Session, print};
use crate::descriptor::Descriptor;
use crate::layer::{Archive, LayerKey, LayerSpec};
use crate::store::{Store, StoreError, Verdict};

pub(super) fn run(arguments: &Verify) -> Result<Exit, CliError> {
    let session = Session::open(&arguments.sources)?;
    match &arguments.reference {
        Some(reference) => kit(&session, reference, arguments),
        None => all(&session.store),
    }
}

fn kit(session: &Session, reference: &str, arguments: &Verify) -> Result<Exit, CliError> {
    let pinned = session.resolve(reference, &arguments.wanted)?;
    let mut bad = Vec::new();
    let mut exit = Exit::Done;
    for (position, layer) in pinned.lineage.layers.iter().enumerate() {
        match one(&session.store, &layer.spec)? {
            Outcome::Sound => {}
            Outcome::Absent => bad.push(position),
            Outcome::Damaged => {
                bad.push(position);
                exit = Exit::Content;
            }
        }
    }
    if arguments.repair && !bad.is_empty() {
        fetch::layers(session, &pinned, &bad, Until::Durable, &|_, _| {})?;
        exit = Exit::Done;
    }
    Ok(exit)
}

fn all(store: &Store) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    for layer in store.layers()? {
        match spec(store, layer)? {
            Some(spec) if one(store, &spec)? == Outcome::Damaged => exit = Exit::Content,
            Some(_) => {}
            None => report::warning(&format!("{layer}: its index is lost; `kitfs verify` with the reference of its kit verifies it")),
        }
    }
    Ok(exit)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sound,
    Absent,
    Damaged,
}

/// Verifies one layer and says what came of it.
fn one(store: &Store, spec: &LayerSpec) -> Result<Outcome, CliError> {
    let digest = spec.descriptor.digest;
    let (outcome, word) = match store.verify(spec)? {
        Verdict::Sound => (Outcome::Sound, "matches"),
        Verdict::Absent => (Outcome::Absent, "absent"),
        Verdict::Damaged { expected, got } => {
            report::note(&format!("{digest}: damaged and withdrawn: expected {expected}, got {got}"));
            return Ok(Outcome::Damaged);
        }
    };
    print(format!("{digest}: {word}\n").as_bytes())?;
    Ok(outcome)
}

/// What the index of a layer says about it, for a layer whose manifest is not at hand.
fn spec(store: &Store, layer: LayerKey) -> Result<Option<LayerSpec>, StoreError> {
    let describe = |size, diff_id| {
        let descriptor = Descriptor { media_type: String::new(), digest: layer.digest, size };
        let archive = if layer.is_tar { Archive::Tar } else { Archive::Raw { size: None } };
        LayerSpec { descriptor, diff_id, archive, compression: layer.compression }
    };
    let index = store.names(&describe(0, None))?;
    Ok(index.map(|index| describe(index.blob_size(), index.uncompressed())))
}
