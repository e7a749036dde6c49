//! Kits made by the real kit look in a mount as `kit unpack` leaves them; hostile ones do no harm.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::fixtures::{Case, case, cases};
use crate::common::kitfs::{Host, Mode, Mount, mount_entry};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_lines, path, read, walk};

crate::in_both_modes!(
    a_kit_from_a_registry_shows_its_tree,
    a_kit_from_a_layout_shows_its_tree,
    a_file_in_two_layers_refuses_the_kit_whichever_came_first,
    a_blob_in_three_places_comes_once,
    a_hostile_kit_does_no_harm_from_a_registry,
    a_hostile_kit_does_no_harm_from_a_layout,
);

/// No answer of a mount may take longer in these tests: nothing stalls here.
const LIMIT: Duration = Duration::from_secs(120);

/// Two layers of it bring the same file. Kit does not unpack it either, and its `deviation` leaves the choice.
const OVERLAP: &str = "era-0.4.0-overlap";

/// Every case that is shown.
pub fn now() -> Vec<Case> {
    let cases: Vec<_> = cases("kits").into_iter().filter(|case| case.name != OVERLAP).collect();
    assert!(cases.len() >= 35);
    cases
}

fn a_kit_from_a_registry_shows_its_tree(mode: Mode) {
    let host = Host::new(mode);
    for case in now() {
        let registry = Registry::start();
        if case.list("references").is_empty() {
            let reference = case.serve(&registry);
            assert_case(&case, host.mount(&reference), &reference);
            continue;
        }
        // What it refers to has full names, so every registry has to be this one.
        let (reference, proxy) = (case.serve_as_proxy(&registry), format!("http://{}", registry.host()));
        let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &[("HTTP_PROXY", OsStr::new(&proxy))]);
        assert_case(&case, mount.unwrap_or_else(|output| panic!("{output:#?}")), &reference);
    }
}

fn a_kit_from_a_layout_shows_its_tree(mode: Mode) {
    let host = Host::new(mode);
    for case in now() {
        let reference = case.unpack(&host.folder("layout"));
        assert_case(&case, host.mount(&reference), &reference);
    }
}

/// How blobs come into the cache does not depend on how files are served, so one mode is enough here.
#[test]
fn a_kit_from_an_archive_shows_its_tree() {
    for gzip in [false, true] {
        let host = Host::new(if gzip { Mode::Cached } else { Mode::Passthrough });
        for case in now() {
            let reference = case.archive(&host.folder("archive"), gzip);
            assert_case(&case, host.mount(&reference), &reference);
        }
    }
}

#[test]
fn a_hostile_kit_does_no_harm_from_an_archive() {
    let host = Host::new(Mode::Cached);
    for (position, case) in cases("hostile").into_iter().enumerate() {
        let reference = case.archive(&host.folder("archive"), position % 2 == 0);
        assert_harmless(&host, &case, &reference);
    }
}

fn assert_case(case: &Case, mount: Mount, reference: &str) {
    println!("{}", case.name);
    let status = mount.status();
    assert_eq!(status["digest"], case.digest());
    assert_eq!(status["reference"], reference);
    let followed = status["references"].as_array().expect("references").iter();
    assert_eq!(followed.map(|kit| kit["reference"].as_str().expect("a reference")).collect::<Vec<_>>(), case.list("references"));
    let (kind, source, options) = mount_entry(mount.point()).expect("a mount");
    assert_eq!(kind, "fuse.kitfs");
    assert!(source.ends_with(&format!("@{}", case.digest())), "{source}");
    assert!(["ro", "nosuid", "nodev"].iter().all(|wanted| options.split(',').any(|option| option == *wanted)), "{options}");
    let (point, wanted) = (mount.point().to_owned(), of_lines(&case.tree().expect("a tree")));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    mount.umount().ok();
    assert!(!mount.is_mounted());
}

fn a_file_in_two_layers_refuses_the_kit_whichever_came_first(mode: Mode) {
    let case = case(&format!("kits/{OVERLAP}"));
    assert_eq!(case.text("unpack"), Some("error"));
    for first in [None, Some("datasets"), Some("docs")] {
        let host = Host::new(mode);
        let reference = case.unpack(&host.folder("layout"));
        if let Some(first) = first {
            host.kitfs(&["pull", "-f", first, &reference]).ok();
        }
        let output = host.try_mount(&reference, &[]).expect_err("the same file twice");
        assert!(output.code() == 4 && output.stderr.contains("`all/notes` is outside of what the layer owns"), "{output:#?}");
        // Each of them can be shown alone.
        for (filter, file) in [("datasets", "all/a.txt"), ("docs", "all/notes/n.md")] {
            let mount = host.mount_with(&reference, &["-f", filter]);
            assert!(read(&mount.path(file)).is_ok(), "{file}");
        }
    }
}

fn a_blob_in_three_places_comes_once(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let case = case("kits/era-0.4.0-one-blob-three-places");
    let mount = host.mount(&case.serve(&registry));
    let sets = mount.await_status("three datasets", |status| {
        let sets: Vec<_> = status["layers"].as_array()?.iter().filter(|layer| layer["path"] != "m.bin").cloned().collect();
        (sets.len() == 3).then_some(sets)
    });
    let sets = sets.expect("mounted");
    let (digest, size) = (sets[0]["digest"].as_str().expect("a digest").to_owned(), sets[0]["size"].as_u64().expect("a size"));
    assert!(sets.iter().all(|layer| layer["digest"] == *digest));
    let paths = ["green/set/rows.csv", "blue/nested/set/rows.csv", "red/set/rows.csv"].map(|path| mount.path(path));
    within(LIMIT, "reading in three places", move || {
        let open = paths.each_ref().map(|path| fs::File::open(path).expect("readable"));
        let read = paths.each_ref().map(|path| fs::read(path).expect("readable"));
        assert!(read[0].len() == 900 && read.iter().all(|content| *content == read[0]));
        use std::os::unix::fs::MetadataExt as _;
        let inodes: std::collections::BTreeSet<u64> = open.iter().map(|file| file.metadata().expect("open").ino()).collect();
        assert_eq!(inodes.len(), 3, "they are three files");
    });
    assert_eq!(registry.sent(&digest), size);
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
