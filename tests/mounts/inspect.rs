//! What `kitfs inspect` says of every fixture, word for word, with what it says to a program below what it says to a person.
//!
//! A change that is meant is taken over with `INSTA_UPDATE=always scripts/test --test mounts inspect::`.

use crate::common::fixtures::{Case, cases};
use crate::common::kitfs::{Host, Mode};

#[test]
fn of_every_kit() {
    let host = Host::new(Mode::Cached);
    for case in cases("kits") {
        let said = inspected(&host, &case, "layout");
        insta::assert_snapshot!(format!("kit-{}", case.name), said);
    }
}

/// Some of them are refused already, in one sentence; what is wrong with the layers of others is not looked at.
#[test]
fn of_every_hostile_kit() {
    let host = Host::new(Mode::Cached);
    for case in cases("hostile") {
        let said = inspected(&host, &case, "layout");
        insta::assert_snapshot!(format!("hostile-{}", case.name), said);
    }
}

/// Of kits in other places, one each: all that differs is the reference.
#[test]
fn of_a_kit_in_an_archive() {
    let host = Host::new(Mode::Cached);
    let case = cases("kits").into_iter().find(|case| case.name == "all-kinds-plain").expect("the case");
    insta::assert_snapshot!("archive", shown(&host, &case.archive(&host.folder("archive"), false), "layout.tar"));
}

fn inspected(host: &Host, case: &Case, folder: &str) -> String {
    let folder = host.folder(folder);
    let reference = case.unpack(&folder);
    shown(host, &reference, folder.to_str().expect("ours"))
}

/// Both forms, with the place of the kit, which is another one each time, left out.
fn shown(host: &Host, reference: &str, place: &str) -> String {
    let (person, program) = (host.kitfs(&["inspect", reference]), host.kitfs(&["inspect", "--json", reference]));
    assert_eq!(person.code(), program.code(), "{person:#?}");
    let mut said = format!("exit code {}\n{}{}\n{}", person.code(), person.stdout, person.stderr, program.stdout);
    let at = reference.find(place).map(|at| (reference.find(':').expect("a transport") + 1, at + place.len()));
    if let Some((start, end)) = at {
        said = said.replace(&reference[start..end], "PLACE");
    }
    said
}
