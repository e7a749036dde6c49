//! What a filter or a glob leaves out is not there, and is never asked for.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use ignore::gitignore::GitignoreBuilder;
use serde_json::Value;

use crate::common::fixtures::{Tried, case, cases};
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{All, Shown, assert_shows, of_lines, of_tree, walk};
use crate::fixtures_mount::now;
use crate::kits::standard;

crate::in_both_modes!(
    every_filter_of_the_fixtures_shows_what_kit_unpacks,
    what_globs_leave_is_what_a_gitignore_leaves,
    a_layer_that_globs_rule_out_is_never_fetched,
    a_selection_outlives_the_worker,
);

const LIMIT: Duration = Duration::from_secs(120);

/// `-f` before each.
fn options<'a>(filters: &[&'a str]) -> Vec<&'a str> {
    filters.iter().flat_map(|filter| ["-f", *filter]).collect()
}

fn layers(of: &Value) -> Vec<String> {
    of["layers"].as_array().expect("layers").iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn inspect(host: &Host, reference: &str, options: &[&str]) -> Value {
    let output = host.kitfs(&[&["inspect", "--json", "--plain-http", reference], options].concat()).ok();
    serde_json::from_str(&output.stdout).expect("JSON")
}

fn shows(mount: &Mount, wanted: &All) {
    let (point, wanted) = (mount.point().to_owned(), wanted.clone());
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn every_filter_of_the_fixtures_shows_what_kit_unpacks(mode: Mode) {
    let mut seen = 0;
    for case in now() {
        for Tried { filters, outcome } in case.filters() {
            println!("{} {filters:?}", case.name);
            seen += 1;
            let (host, registry) = (Host::new(mode), Registry::start());
            // What is referred to has the names of other hosts, which only a layout has for all of them.
            let refers = !case.list("references").is_empty();
            let reference = if refers { case.unpack(&host.folder("layout")) } else { case.serve(&registry) };
            let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
            let options = options(&filters);
            match outcome {
                Err(error) => refused(&host, &reference, &options, &error),
                Ok(tree) => {
                    let all = layers(&inspect(&host, &reference, &[]));
                    let mount = host.mount_with(&reference, &[&options[..], &["--prefetch", "all"]].concat());
                    shows(&mount, &of_lines(&tree));
                    let taken = layers(&inspect(&host, &reference, &options));
                    mount
                        .await_status("just the layers that are taken", |status| (layers(status) == taken).then_some(()))
                        .expect("mounted");
                    for digest in all.iter().filter(|_| !refers) {
                        assert_eq!(registry.asked(digest) > 0, taken.contains(digest), "{digest}");
                    }
                }
            }
        }
    }
    assert!(seen >= 38, "{seen} filters");
}

/// The patterns of `modctl fetch` are globs over whole paths, which a slash at the start says here. It makes folders with modes of its own.
#[test]
fn what_modctl_fetches_by_patterns_can_be_included() {
    let mut seen = 0;
    for case in cases("kits") {
        for (patterns, fetched) in case.fetched_by_modctl() {
            println!("{} {patterns:?}", case.name);
            seen += 1;
            let host = Host::new(Mode::Passthrough);
            let reference = case.unpack(&host.folder("layout"));
            let globs: Vec<String> = patterns.iter().map(|pattern| format!("--include=/{pattern}")).collect();
            let mount = host.mount_with(&reference, &globs.iter().map(String::as_str).collect::<Vec<_>>());
            let files = |all: All| all.into_iter().filter(|(_, shown)| matches!(shown, Shown::File { .. })).collect::<All>();
            let point = mount.point().to_owned();
            let shown = within(LIMIT, "reading everything", move || walk(&point)).expect("readable");
            assert_eq!(files(shown), files(of_lines(&fetched)), "{} {patterns:?}", case.name);
        }
    }
    assert!(seen >= 5, "{seen} lists of patterns");
}

/// Kit's words up to what it offers instead, which is more today than it was.
fn refused(host: &Host, reference: &str, options: &[&str], error: &str) {
    let words = error.trim_start_matches("[ERROR] Invalid arguments: ").split(" (must be").next().expect("one at least");
    for command in ["mount", "pull", "inspect", "verify"] {
        let point = host.folder("refused");
        let mut arguments = [&[command], options, &["--plain-http", reference]].concat();
        if command == "mount" {
            arguments.push(point.to_str().expect("ours"));
        }
        let output = host.kitfs(&arguments);
        assert!(output.code() == 2 && output.stderr.contains(words), "{command}: {output:#?}");
    }
}

/// What is left of a tree: the files and empty folders that a line of a `.gitignore` matches, or does not, and what they stand in.
fn left(all: &All, include: &[&str], exclude: &[&str]) -> All {
    let any = |globs: &[&str], path: &Path, folder: bool| {
        globs.iter().any(|glob| {
            let mut line = GitignoreBuilder::new("");
            line.add_line(None, glob).expect("a glob");
            let line = line.build().expect("a glob");
            let mut above = path.ancestors().filter(|path| !path.as_os_str().is_empty());
            // Not by its own walk upwards, which takes the root for a folder that `*/` means.
            above.any(|of| line.matched(of, folder || of != path).is_ignore())
        })
    };
    let above = |path: &[u8]| Path::new(OsStr::from_bytes(path)).parent().expect("no root").as_os_str().as_bytes().to_vec();
    let filled: BTreeSet<Vec<u8>> = all.keys().map(|path| above(path)).collect();
    let mut wanted = BTreeSet::new();
    for (path, shown) in all {
        let folder = matches!(shown, Shown::Folder { .. });
        let name = Path::new(OsStr::from_bytes(path));
        let leaf = !folder || !filled.contains(path);
        if leaf && (include.is_empty() || any(include, name, folder)) && !any(exclude, name, folder) {
            wanted.extend(std::iter::successors(Some(path.clone()), |path| Some(above(path)).filter(|path| !path.is_empty())));
        }
    }
    all.iter().filter(|(path, _)| wanted.contains(*path)).map(|(path, shown)| (path.clone(), shown.clone())).collect()
}

fn what_globs_leave_is_what_a_gitignore_leaves(mode: Mode) {
    let globs: &[(&[&str], &[&str])] = &[
        (&["*.csv", "*.md"], &[]),
        (&[], &["*.csv", "*.bin", "Kitfile"]),
        (&["/proj/model/**", "main-dir"], &["*.log", "more/"]),
        (&[], &["data", "src/", "red/**"]),
        (&["**/*.[a-m]*"], &["/docs"]),
        (&["empty"], &[]),
    ];
    // Kits with layers in each other's folders, at the root, at one path; of both ages.
    let kits = [
        "context-root",
        "empty-folders",
        "filters",
        "nested-paths",
        "odd-names",
        "era-0.4.0-legacy-names",
        "era-0.4.0-one-blob-three-places",
    ];
    for case in kits.map(|name| case(&format!("kits/{name}"))) {
        let host = Host::new(mode);
        let reference = case.unpack(&host.folder("layout"));
        let all = of_lines(&case.tree().expect("a tree"));
        for (include, exclude) in globs {
            println!("{} {include:?} {exclude:?}", case.name);
            let options = include.iter().flat_map(|glob| ["--include", *glob]);
            let options: Vec<&str> = options.chain(exclude.iter().flat_map(|glob| ["--exclude", *glob])).collect();
            shows(&host.mount_with(&reference, &options), &left(&all, include, exclude));
        }
    }
}

fn a_layer_that_globs_rule_out_is_never_fetched(mode: Mode) {
    let kit = standard();
    let all = of_tree(&kit.tree);
    for (include, exclude, fetched) in [
        (&["/model/"][..], &[][..], &["model"][..]),
        (&["/model/**", "/src/*.sh"], &["*.json"], &["model", "src"]),
        (&[], &["model", "data/"], &["tokenizer", "src", "README.md"]),
        (&[], &["data/**", "*.txt"], &["model", "tokenizer", "src", "README.md"]),
        (&["nothing/*"], &[], &[]),
    ] {
        let (host, registry) = (Host::new(mode), Registry::start());
        let reference = kit.serve(&registry, "acme/standard", "v1");
        let options = include.iter().flat_map(|glob| ["--include", *glob]);
        let options: Vec<&str> = options.chain(exclude.iter().flat_map(|glob| ["--exclude", *glob])).collect();
        let mount = host.mount_with(&reference, &[&options[..], &["--prefetch", "all"]].concat());
        shows(&mount, &left(&all, include, exclude));
        let asked: Vec<&str> =
            kit.layers.iter().filter(|layer| registry.asked(&layer.digest) > 0).map(|layer| layer.path.as_str()).collect();
        assert_eq!(asked, fetched, "{include:?} {exclude:?}");
        let named = |status: &Value| {
            let paths = status["layers"].as_array()?.iter().filter_map(|layer| layer["path"].as_str());
            paths.eq(fetched.iter().copied()).then_some(())
        };
        mount.await_status("just the layers that may show something", named).expect("mounted");
        // `pull` and `verify` mean the same layers.
        let pulled = host.kitfs(&[&["pull", "--plain-http", &reference], &options[..]].concat()).ok();
        let layers = if fetched.len() == 1 { "layer" } else { "layers" };
        assert!(pulled.stdout.contains(&format!(": {} {layers} in the cache", fetched.len())), "{pulled:#?}");
        let verified = host.kitfs(&[&["verify", "--plain-http", &reference], &options[..]].concat()).ok();
        assert_eq!(verified.stdout.lines().filter(|line| line.ends_with(": matches")).count(), fetched.len(), "{verified:#?}");
    }
}

fn a_selection_outlives_the_worker(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let variables =
        [("KITFS_FILTER", "model\ncode,docs"), ("KITFS_EXCLUDE", "*.json\nlib/")].map(|(name, value)| (name, OsStr::new(value)));
    let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &variables).expect("mounted");
    let mut all = of_tree(&kit.tree);
    all.retain(|path, _| !path.starts_with(b"data") && path != b"Kitfile");
    let wanted = left(&all, &[], &["*.json", "lib/"]);
    let open = fs::File::open(mount.path("model/model.safetensors")).expect("a file");
    let worker = mount.kill_worker();
    mount.await_other_worker(worker);
    shows(&mount, &wanted);
    assert_eq!(open.metadata().expect("open").len(), fs::metadata(mount.path("model/model.safetensors")).expect("there").len());
    let data = kit.layers.iter().find(|layer| layer.path == "data").expect("a dataset");
    assert_eq!(registry.asked(&data.digest), 0);
}

#[test]
fn a_mount_with_globs_that_mean_nothing_is_refused() {
    let host = Host::new(Mode::Cached);
    let reference = case("kits/all-kinds-plain").unpack(&host.folder("layout"));
    for (option, glob, part) in
        [("--include", "!x", "starts with `!`"), ("--exclude", "./x", "a component `.`"), ("--exclude", "a[", "unclosed")]
    {
        let output = host.try_mount(&reference, &[option, glob]).expect_err("no glob");
        assert!(output.code() == 2 && output.stderr.contains(part), "{output:#?}");
    }
}
