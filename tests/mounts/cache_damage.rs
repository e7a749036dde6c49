//! A cache that changed on disk: checked before use, made whole again, never served.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::within;
use crate::common::registry::{Fault, Registry, Target, Times};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{newer, standard};

const LIMIT: Duration = Duration::from_secs(120);

crate::in_both_modes!(a_cache_that_changed_on_disk_is_checked_before_use, a_lost_index_is_made_again_without_network);

/// A kit whose layers are tars, and one whose are of the newer kinds.
const KITS: [fn() -> Kit; 2] = [standard, newer];

/// An accident: a bit of a file of the cache is another one, so its ctime is too.
fn a_cache_that_changed_on_disk_is_checked_before_use(mode: Mode) {
    for kit in KITS {
        let host = Host::new(mode);
        let registry = Registry::start();
        let kit = kit();
        let reference = kit.serve(&registry, "acme/standard", "v1");
        host.kitfs(&["pull", "--plain-http", &reference]).ok();
        let pulled: u64 = kit.layers.iter().map(|layer| registry.sent(&layer.digest)).sum();
        for (index, victim) in files_below(&host.cache().join("v1/layers")).into_iter().enumerate() {
            let name = victim.file_name().expect("a name").to_string_lossy().into_owned();
            if name != "pack" && !name.ends_with(".data") {
                continue;
            }
            let mut content = fs::read(&victim).expect("a file of the cache");
            let Some(byte) = content.len().checked_sub(1 + index % content.len().max(1)) else { continue };
            content[byte] ^= 0x10;
            // Written in place, as a failing disk or a careless person would.
            fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).expect("ours");
            fs::write(&victim, content).expect("room");
        }
        let mount = host.mount(&reference);
        let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
        within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
        let sent: u64 = kit.layers.iter().map(|layer| registry.sent(&layer.digest)).sum();
        assert!(sent > pulled, "what was damaged was fetched again");
    }
}

fn a_lost_index_is_made_again_without_network(mode: Mode) {
    for kit in KITS {
        let host = Host::new(mode);
        let registry = Registry::start();
        let kit = kit();
        let reference = kit.serve(&registry, "acme/standard", "v1");
        host.kitfs(&["pull", "--plain-http", &reference]).ok();
        let mut lost = 0;
        for index in files_below(&host.cache().join("v1/index")) {
            fs::remove_file(index).expect("an index");
            lost += 1;
        }
        assert_eq!(lost, kit.layers.len());
        registry.fault(Target::Any, Times::Always, Fault::status(404));
        registry.clear_log();
        let mount = host.mount(&format!("{}/acme/standard@{}", registry.host(), kit.digest()));
        let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
        within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    }
}

#[test]
fn verify_names_damage_withdraws_it_and_repairs() {
    let host = Host::new(Mode::Passthrough);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    host.kitfs(&["verify", "--plain-http", &reference]).ok();
    let victim = files_below(&host.cache().join("v1/layers")).into_iter().find(|path| path.extension() == Some(OsStr::new("data")));
    let victim = victim.expect("a file of its own for the big member");
    let mut content = fs::read(&victim).expect("a file of the cache");
    content[77] ^= 1;
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).expect("ours");
    fs::write(&victim, content).expect("room");

    let output = host.kitfs(&["verify", "--plain-http", &reference]);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code(), 4, "{output:#?}");
    assert!(said.contains(&kit.layer("model").digest) && said.matches("sha256:").count() >= 2, "{said}");
    assert!(!victim.exists(), "it is withdrawn");
    let output = host.kitfs(&["verify", "--plain-http", &reference]).ok();
    assert!(format!("{}{}", output.stdout, output.stderr).contains(&kit.layer("model").digest), "absent layers are listed: {output:#?}");
    host.kitfs(&["verify", "--repair", "--plain-http", &reference]).ok();
    assert_eq!(registry.sent(&kit.layer("model").digest), 2 * kit.layer("model").blob.len() as u64);
    host.kitfs(&["verify", "--all"]).ok();
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// A disk that spoils each index, also those that are made anew: some are made, then the names are errors, until the mount is made anew.
#[test]
fn an_index_that_is_damaged_again_and_again_is_an_error_in_the_end() {
    let host = Host::new(Mode::Cached);
    let mut tree = Tree::new();
    for number in 0..4000 {
        tree = tree.file(&format!("many/{number:04}.txt"), number.to_string());
    }
    let kit = Kitfile::new("many").dataset("many").pack(&tree);
    let layout = host.path("layout");
    let mount = host.mount_with(&kit.layout(&layout, "v1"), &["--prefetch", "all"]);
    mount.await_layer(&kit.layer("many").digest, "cached");
    let folder = host.cache().join("v1/index");
    let whole = fs::read(&files_below(&folder)[0]).expect("an index");
    // The checksums of all blocks of 64 KiB, which stand at the end: whatever was not looked at yet is not right any more.
    let spoil = |index: &Path| {
        let file = fs::File::options().write(true).open(index).expect("root");
        let at = whole.len() - 4 * (whole.len() / (64 << 10) + 1);
        let other: Vec<u8> = whole[at..].iter().map(|byte| !byte).collect();
        file.write_all_at(&other, at as u64).expect("written");
    };
    let mut numbers = 0..4000;
    let mut next_error = || {
        let (point, numbers) = (mount.point().to_owned(), &mut numbers);
        let mut paths = numbers.map(move |number| point.join(format!("many/{number:04}.txt")));
        paths.find_map(|path| within(LIMIT, "reading", move || read(&path)).err()).expect("an error before the last file")
    };
    let spent = "is not made anew any more";
    let mut renewals = 0;
    let mut shown = fs::metadata(&files_below(&folder)[0]).expect("an index").ino();
    while !mount.log().contains(spent) {
        spoil(&files_below(&folder)[0]);
        assert_eq!(next_error(), libc::EIO, "{}", mount.log());
        let made = |_: &_| {
            let found = fs::metadata(files_below(&folder).first()?).ok()?.ino();
            (found != shown || mount.log().contains(spent)).then_some(found)
        };
        let found = mount.await_status("a new index, or the end of them", made).expect("one of the two");
        renewals += usize::from(found != shown);
        assert!(renewals <= kitfs::limits::INDEX_RENEWALS, "{}", mount.log());
        shown = found;
    }
    assert_eq!(renewals, kitfs::limits::INDEX_RENEWALS);
    let worker = mount.worker_pid();
    let mapped = fs::read_to_string(format!("/proc/{worker}/maps")).expect("it lives").matches("/index").count();
    assert!((renewals..=renewals + 4).contains(&mapped), "{mapped} are mapped");
    assert_eq!(next_error(), libc::EIO);
    assert_eq!(mount.status()["restarts"], 0);
}

/// What a disk forgot in the middle of an index is noticed when somebody asks for it: he gets an error, and the next one a name.
#[test]
fn a_damaged_block_of_an_index_is_made_again_under_its_mount() {
    let host = Host::new(Mode::Cached);
    let registry = Registry::start();
    let mut tree = Tree::new();
    for number in 0..4000_usize {
        tree = tree.file(&format!("many/folder-{:02}/{number:04}.txt", number % 40), number.to_string());
    }
    let kit = Kitfile::new("many").dataset("many").pack(&tree);
    let reference = kit.serve(&registry, "acme/many", "v1");
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    let [index] = &files_below(&host.cache().join("v1/index"))[..] else { panic!("one layer") };
    let before = fs::read(index).expect("an index");
    let mut content = before.clone();
    let middle = content.len() * 2 / 3;
    content[middle] ^= 0x10;
    fs::write(index, content).expect("root");
    registry.fault(Target::Any, Times::Always, Fault::status(404));
    let mount = host.mount(&format!("{}/acme/many@{}", registry.host(), kit.digest()));
    let name = |number: usize| format!("many/folder-{:02}/{number:04}.txt", number % 40);
    let shown = |number: usize| {
        let path = mount.path(&name(number));
        within(LIMIT, "reading", move || read(&path))
    };
    let until = Instant::now() + LIMIT;
    let mut errors = 0;
    while let Some(error) = (0..4000).find_map(|number| shown(number).err()) {
        assert_eq!(error, libc::EIO, "{}", mount.log());
        assert!(Instant::now() < until, "{}", mount.log());
        errors += 1;
    }
    assert!(errors > 0, "it was damaged");
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    assert!(fs::read(index).expect("an index") == before, "it is whole");
    assert_eq!(mount.status()["restarts"], 0);
}
