//! Every case of the signed fixtures, from every place that it can come from, by `explain`, `mount` and `pull`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::asked::{Answer, Asked, assert_no_layers, assert_refused};
use crate::common::fixtures::{Case, cases};
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::process::{Output, within};
use crate::common::registry::Registry;

/// Tests of one place are shared out, so that they run beside each other.
const SHARES: usize = 2;

/// Where the kit and what is attached to it come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Layout,
    /// A registry with the referrers API.
    Listed,
    /// A registry without it.
    Tagged,
}

macro_rules! shares {
    ($($place:ident: $name:ident),* $(,)?) => {
        $(mod $name {
            #[test] fn first() { super::all(super::Place::$place, 0); }
            #[test] fn second() { super::all(super::Place::$place, 1); }
        })*
    };
}

shares! {
    Layout: a_case_is_decided_from_a_layout,
    Listed: a_case_is_decided_from_a_registry_that_lists_referrers,
    Tagged: a_case_is_decided_from_a_registry_that_does_not,
}

fn all(place: Place, share: usize) {
    let (mut wrong, mut right) = (Vec::new(), 0);
    let cases: Vec<_> = cases("signed").into_iter().enumerate().filter(|(number, _)| number % SHARES == share).collect();
    for (_, mut case) in cases {
        match catch_unwind(AssertUnwindSafe(|| one(place, &mut case))) {
            Ok(()) => right += 1,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                wrong.push(format!("--- {} ({place:?}): {}", case.name, text.unwrap_or_default()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong, {right} right\n{}", wrong.len(), wrong.join("\n"));
    assert!(right >= 50, "{right} cases");
}

fn one(place: Place, case: &mut Case) {
    let host = Host::new(Mode::Cached);
    case.grow(&host.path("tmp"));
    let registry = Registry::start();
    if place == Place::Listed {
        // In pages, but not in hundreds of them.
        registry.list_referrers(if case.name == "referrer-flood" { 500 } else { 2 });
    }
    let reference = if place == Place::Layout { case.unpack(&host.folder("layout")) } else { case.serve(&registry) };
    let file = |name: &str| case.path(name).to_str().expect("ours").to_owned();
    let root = file("trusted_root.json");
    let asked = Asked::new(&reference).with(&["--trusted-root", &root, "--as", case.reference()]);
    let first = asked.clone().with(&["--policy", &file("policy.yaml")]);

    let answer = first.explain(&host);
    assert_decided(case, &answer);
    if case.path("policy-v1.yaml").exists() {
        assert_decided(case, &asked.with(&["--policy", &file("policy-v1.yaml")]).explain(&host));
    }
    let admitted = answer.decision() == "admit";
    match first.mount(&host) {
        Ok(mount) => {
            assert!(admitted, "mounted, though: {answer:#?}");
            assert_readable(case, mount);
        }
        Err(output) => {
            assert!(!admitted, "{output:#?}");
            assert_not_mounted(case, &answer, &output);
            assert_nothing_fetched(case, &host, &registry);
        }
    }

    // Another host, which has to do without the registry later.
    let host = Host::new(Mode::Cached);
    let pulled = first.pull(&host);
    if admitted {
        assert_eq!(pulled.code(), 0, "{pulled:#?}");
    } else {
        assert_not_mounted(case, &answer, &pulled);
        assert_nothing_fetched(case, &host, &registry);
    }
    registry.stop();
    if place == Place::Layout {
        // A layout that is gone is gone with its name.
        return;
    }
    let offline = first.with(&["--offline"]);
    let again = offline.explain(&host);
    if answer.decision() == "error" {
        assert_ne!(again.decision(), "admit", "{again:#?}");
        return;
    }
    assert_eq!(again.decision(), answer.decision(), "{again:#?}");
    if admitted {
        assert_readable(case, offline.mount(&host).unwrap_or_else(|output| panic!("{output:#?}")));
    } else {
        assert_not_mounted(case, &again, &offline.mount(&host).expect_err("refused"));
    }
}

/// What `case.json` expects.
fn assert_decided(case: &Case, answer: &Answer) {
    let decision = answer.decision();
    let expected = case.text("expect").expect("an expectation");
    let fine = decision == expected || case.list("also_ok").contains(&decision) || (may_fail(case) && decision == "error");
    assert!(fine, "{decision} instead of {expected}: {answer:#?}");
    if decision == "error" {
        return;
    }
    assert_eq!(answer.report["digest"], case.digest(), "{answer:#?}");
    assert_eq!(answer.report["claim"], case.reference(), "{answer:#?}");
    match decision {
        "deny" if expected == "deny" => {
            let wanted = case.text("reason").and_then(|reason| reason.split(':').next()).expect("a code");
            let same = wanted == answer.code() || {
                // By a `.sig` alone these two cannot be told apart.
                let alike = ["wrong-key", "bad-signature"];
                case.name.contains("legacy") && alike.contains(&wanted) && alike.contains(&answer.code())
            };
            assert!(same, "{} instead of {wanted}: {answer:#?}", answer.code());
        }
        "admit" => {
            let counted = answer.report["evidence"]["counted"].as_array().map_or(0, Vec::len);
            assert!(counted > 0, "admitted by nothing: {answer:#?}");
        }
        _ => {}
    }
}

fn may_fail(case: &Case) -> bool {
    case.text("refusal") == Some("any")
}

/// A mount or pull that must not be, and that says what `explain` said.
fn assert_not_mounted(case: &Case, answer: &Answer, output: &Output) {
    if answer.decision() == "error" || (may_fail(case) && output.code() != 3) {
        assert!([1, 4].contains(&output.code()), "{output:#?}");
        return;
    }
    assert_refused(output, None);
}

fn assert_nothing_fetched(case: &Case, host: &Host, registry: &Registry) {
    assert_no_layers(&host.cache());
    for layer in layers(case) {
        assert_eq!(registry.asked(&layer), 0, "{layer} was fetched");
    }
}

fn layers(case: &Case) -> Vec<String> {
    let manifest = case.layout().json(case.digest()).expect("a manifest");
    manifest["layers"].as_array().expect("layers").iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

/// Every file of every layer is there and right.
fn assert_readable(case: &Case, mount: Mount) {
    let mut wanted = BTreeMap::new();
    let layout = case.layout();
    for layer in layers(case) {
        let blob = layout.blob(&layer).expect("a layer");
        let mut archive = tar::Archive::new(blob);
        for entry in archive.entries().expect("a plain tar") {
            let mut entry = entry.expect("an entry");
            if entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("a whole entry");
                wanted.insert(mount.path(&entry.path().expect("a name").to_string_lossy()), content);
            }
        }
    }
    assert!(!wanted.is_empty(), "a kit without a file");
    within(Duration::from_secs(60), "reading", move || {
        for (path, content) in wanted {
            assert_eq!(fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())), content);
        }
    });
    mount.umount().ok();
    assert!(!mount.is_mounted());
}
