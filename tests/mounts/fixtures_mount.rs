//! Kits made by the real kit look in a mount as `kit unpack` leaves them; hostile ones do no harm.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::fixtures::{Case, cases};
use crate::common::kitfs::{Host, Mode, Mount, mount_entry};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_lines, path, read, walk};

/// Kits of other eras and formats, which this version of kitfs does not show yet: delete a line to hold it to the case.
const LATER: [(&str, &str); 6] = [
    ("era-0.1.3", "legacy names"),
    ("era-0.2.5-plain", "legacy names"),
    ("era-0.4.0-legacy-names", "legacy names"),
    ("era-0.4.0-one-blob-three-places", "legacy names"),
    ("era-0.4.0-overlap", "legacy names"),
    ("reference-chain", "model references"),
];

crate::in_both_modes!(
    a_kit_from_a_registry_shows_its_tree,
    a_kit_from_a_layout_shows_its_tree,
    a_kit_of_a_later_stage_is_refused_or_right,
    a_hostile_kit_does_no_harm_from_a_registry,
    a_hostile_kit_does_no_harm_from_a_layout,
);

/// No answer of a mount may take longer in these tests: nothing stalls here.
const LIMIT: Duration = Duration::from_secs(120);

fn now() -> Vec<Case> {
    let cases: Vec<_> = cases("kits").into_iter().filter(|case| !LATER.iter().any(|(name, _)| *name == case.name)).collect();
    assert!(cases.len() >= 20);
    cases
}

fn a_kit_from_a_registry_shows_its_tree(mode: Mode) {
    let host = Host::new(mode);
    for case in now() {
        let registry = Registry::start();
        let reference = case.serve(&registry);
        assert_case(&case, host.mount(&reference), &reference);
    }
}

fn a_kit_from_a_layout_shows_its_tree(mode: Mode) {
    let host = Host::new(mode);
    for case in now() {
        let reference = case.unpack(&host.folder("layout"));
        assert_case(&case, host.mount(&reference), &reference);
    }
}

fn assert_case(case: &Case, mount: Mount, reference: &str) {
    println!("{}", case.name);
    let status = mount.status();
    assert_eq!(status["digest"], case.digest());
    assert_eq!(status["reference"], reference);
    let (kind, source, options) = mount_entry(mount.point()).expect("a mount");
    assert_eq!(kind, "fuse.kitfs");
    assert!(source.ends_with(&format!("@{}", case.digest())), "{source}");
    assert!(["ro", "nosuid", "nodev"].iter().all(|wanted| options.split(',').any(|option| option == *wanted)), "{options}");
    let (point, wanted) = (mount.point().to_owned(), of_lines(&case.tree().expect("a tree")));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    mount.umount().ok();
    assert!(!mount.is_mounted());
}

fn a_kit_of_a_later_stage_is_refused_or_right(mode: Mode) {
    let host = Host::new(mode);
    for case in cases("kits").into_iter().filter(|case| LATER.iter().any(|(name, _)| *name == case.name)) {
        println!("{}", case.name);
        let reference = case.unpack(&host.folder("layout"));
        match host.try_mount(&reference, &[]) {
            Err(output) => assert!(output.code() == 4 && output.stderr.contains("error: "), "{output:#?}"),
            Ok(mount) => {
                let (point, wanted) = (mount.point().to_owned(), of_lines(&case.tree().expect("a tree")));
                within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
            }
        }
    }
}

fn a_hostile_kit_does_no_harm_from_a_registry(mode: Mode) {
    let host = Host::new(mode);
    for case in cases("hostile") {
        let registry = Registry::start();
        assert_harmless(&host, &case, &case.serve(&registry));
    }
}

fn a_hostile_kit_does_no_harm_from_a_layout(mode: Mode) {
    let host = Host::new(mode);
    for case in cases("hostile") {
        assert_harmless(&host, &case, &case.unpack(&host.folder("layout")));
    }
}

/// What `case.json` expects, read as its README says.
fn assert_harmless(host: &Host, case: &Case, reference: &str) {
    println!("{}", case.name);
    let expect = case.text("expect").expect("`expect` in case.json");
    let also = case.list("also_ok");
    let fine = |outcome: &str| expect == outcome || also.contains(&outcome);
    let mount = match host.try_mount(reference, &["--prefetch", "none"]) {
        Err(output) => {
            // A mount that refuses at once is as safe as one that refuses on access.
            assert!(fine("refuse-at-mount") || fine("refuse-on-access"), "{}: {output:#?}", case.name);
            assert!([1, 4].contains(&output.code()), "{}: {output:#?}", case.name);
            assert!(output.stderr.contains("error: ") && !output.stderr.contains('\u{1b}'), "{}: {output:#?}", case.name);
            return;
        }
        Ok(mount) => mount,
    };
    let point = mount.point().to_owned();
    let strings = |field: &str| case.list(field).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let (absent, must_fail, readable) = (strings("absent"), strings("must_fail"), strings("readable"));
    let (shows, refuses) = (fine("mount-ok"), fine("refuse-on-access"));
    let tree = case.tree().map(|lines| of_lines(&lines));
    let name = case.name.clone();
    within(LIMIT, &format!("looking at {name}"), move || {
        let walked = walk(&point);
        for path in &readable {
            assert!(read(&point.join(path)).is_ok(), "{name}: {path} is readable");
        }
        for path in &absent {
            assert!(fs::symlink_metadata(point.join(path)).is_err(), "{name}: {path} does not exist");
            for outside in [point.parent().expect("a parent"), Path::new("/")] {
                assert!(fs::symlink_metadata(outside.join(path)).is_err(), "{name}: {path} in {}", outside.display());
            }
        }
        match walked {
            Ok(seen) => {
                assert!(shows, "{name}: everything could be read");
                if let Some(wanted) = tree {
                    crate::common::shown::assert_same(&seen, &wanted);
                }
            }
            Err(error) => {
                assert!(refuses, "{name}: {error}");
                for path in &must_fail {
                    assert!(fails(&point, path), "{name}: {path} must fail");
                }
            }
        }
    });
}

fn fails(point: &Path, name: &str) -> bool {
    let path = path(point, name.as_bytes());
    fs::symlink_metadata(&path).is_err() || fs::File::open(&path).is_err()
}
