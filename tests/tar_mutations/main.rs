//! Archives that no honest tool makes, against what other readers see in them.
//!
//! Good archives are changed at random, and for each of them there are two outcomes: kitfs refuses it, or Python's `tarfile` and GNU tar
//! both see what kitfs sees, name for name, with types, modes, sizes and contents. What the two see differently among themselves, and
//! kitfs reads as kit does, is a named exception (`exceptions.rs`), and each is as narrow as it can be told.
//!
//! * `KITFS_TAR_SEED`: the first seed; each archive has one of its own, which a failure names.
//! * `KITFS_TAR_MUTATIONS`: how many archives there are.
//! * `KITFS_TAR_KEEP`: a directory where archives are left that are read wrongly.
//! * `KITFS_TAR_GO=1`: Go's `archive/tar`, with which kit itself reads, is asked too (where there is a `go`). It has no exceptions.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

mod exceptions;
mod generate;
mod readers;
#[path = "../../fuzz/sink.rs"]
mod sink;

use std::collections::BTreeMap;
use std::path::Path;

use fastrand::Rng;
use generate::Archive;
use readers::{Answer, Seen, Subject};

/// How many archives there are where nobody says so: seconds.
const MUTATIONS: u64 = 2000;
/// Archives that one process of a reader is handed.
const BATCH: usize = 1000;

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn a_changed_archive_is_refused_or_read_as_python_and_gnu_tar_read_it() {
    let first = setting("KITFS_TAR_SEED", 1);
    let count = setting("KITFS_TAR_MUTATIONS", MUTATIONS);
    let go = setting("KITFS_TAR_GO", 0) == 1;
    let fixtures = layers_of_fixtures();
    assert!(fixtures.len() > 20, "{} layers in the fixtures", fixtures.len());
    let mut tally: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut batch = Vec::new();
    for seed in first..first + count {
        let bytes = mutation(seed, &fixtures);
        match readers::ours(&bytes) {
            Err(_) => *tally.entry("refused").or_default() += 1,
            Ok(seen) => batch.push(Subject::new(seed, bytes, seen)),
        }
        if batch.len() == BATCH || seed + 1 == first + count {
            judge(&std::mem::take(&mut batch), go, &mut tally, &mut wrong);
        }
    }
    println!("{tally:#?}");
    let few: Vec<&String> = wrong.iter().take(if go { 2000 } else { 20 }).collect();
    assert!(wrong.is_empty(), "{} of {count} archives; KITFS_TAR_SEED=<seed> KITFS_TAR_MUTATIONS=1 shows one:\n{few:#?}", wrong.len());
    if count >= MUTATIONS {
        // Otherwise the changes are so many that nothing is tested, or so few.
        for (outcome, least) in [("refused", count / 5), ("agreed", count / 5)] {
            assert!(tally.get(outcome).copied().unwrap_or_default() >= least, "too few {outcome}: {tally:#?}");
        }
    }
}

/// The archive of a seed.
fn mutation(seed: u64, fixtures: &[Archive]) -> Vec<u8> {
    // Neighbouring seeds are not alike.
    let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let others: Vec<Archive> = (0..2).map(|_| generate::good(&mut random)).collect();
    let mut archive = if random.u8(0..4) == 0 { fixtures[random.usize(0..fixtures.len())].clone() } else { generate::good(&mut random) };
    generate::mutate(&mut random, &mut archive, &others)
}

/// Asks the other readers about archives that kitfs reads.
fn judge(batch: &[Subject], go: bool, tally: &mut BTreeMap<&'static str, u64>, wrong: &mut Vec<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    for (number, subject) in batch.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{number}.tar")), &subject.bytes).expect("room");
    }
    let python = readers::script("python3", &["tests/tar_mutations/reader.py"], dir.path(), batch.len());
    let gnu = readers::gnu_tar(dir.path(), batch.len());
    let go = go.then(|| readers::script("go", &["run", "tests/tar_mutations/reader.go"], dir.path(), batch.len()));
    for (number, subject) in batch.iter().enumerate() {
        let mut outcome = "agreed";
        let mut excepted: Vec<&'static str> = Vec::new();
        let answers = [("python", Some(&python[number])), ("gnu", Some(&gnu[number])), ("go", go.as_ref().map(|go| &go[number]))];
        for (reader, answer) in answers {
            let Some(answer) = answer else { continue };
            let Err(difference) = same(&subject.ours, answer) else { continue };
            match exceptions::explain(reader, subject, answer) {
                Some(exceptions) => excepted.extend(exceptions),
                None => {
                    outcome = "wrong";
                    if let Some(keep) = std::env::var_os("KITFS_TAR_KEEP") {
                        std::fs::write(Path::new(&keep).join(format!("{}.tar", subject.seed)), &subject.bytes).expect("room");
                    }
                    wrong.push(format!("seed {}: {reader}: {difference}", subject.seed));
                }
            }
        }
        for exception in &excepted {
            *tally.entry(exception).or_default() += 1;
        }
        if outcome == "agreed" && !excepted.is_empty() {
            outcome = "excepted";
        }
        *tally.entry(outcome).or_default() += 1;
    }
}

fn same(ours: &[Seen], theirs: &Answer) -> Result<(), String> {
    if let Some(complaint) = &theirs.complaint {
        return Err(format!("refused: {complaint}"));
    }
    for (ours, theirs) in ours.iter().zip(&theirs.entries) {
        if ours != theirs {
            return Err(format!("we see {ours:?}, it sees {theirs:?}"));
        }
    }
    if ours.len() != theirs.entries.len() {
        return Err(format!("we see {} entries, it sees {}: {:?}", ours.len(), theirs.entries.len(), theirs.entries));
    }
    Ok(())
}

/// The plain tar layers of all kits and hostile kits.
fn layers_of_fixtures() -> Vec<Archive> {
    let mut archives = Vec::new();
    for kind in ["kits", "hostile"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
        let mut cases: Vec<_> = std::fs::read_dir(folder).expect("the fixtures").map(|entry| entry.expect("an entry").path()).collect();
        cases.sort();
        for case in cases {
            let layout = std::fs::read(case.join("layout.tar")).expect("a layout");
            let layout = Archive::parse(&layout).unwrap_or_else(|| panic!("{}", case.display()));
            let blobs = layout.pieces.into_iter().map(|piece| piece.content);
            let tars = blobs.filter(|blob| blob.len() < 32 << 10 && blob.get(257..262) == Some(b"ustar"));
            archives.extend(tars.filter_map(|blob| Archive::parse(&blob)).filter(|archive| !archive.pieces.is_empty()));
        }
    }
    archives
}
