//! What works when the network does not.

use std::fs;
use std::time::Duration;

use crate::common::fixtures::case;
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_lines, of_tree, read};
use crate::kits::{bytes, standard};

crate::in_both_modes!(
    a_cached_kit_mounts_by_digest_without_its_registry,
    a_cached_kit_mounts_by_tag_when_told_so,
    what_is_not_in_the_cache_is_an_error_at_once,
    a_mount_stays_with_its_digest_when_the_tag_moves,
    a_layout_needs_no_registry,
);

const LIMIT: Duration = Duration::from_secs(60);

fn pulled(mode: Mode) -> (Host, Registry, Kit, String) {
    let (host, registry, kit) = (Host::new(mode), Registry::start(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1");
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    (host, registry, kit, reference)
}

fn assert_whole(mount: &Mount, kit: &Kit) {
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn a_cached_kit_mounts_by_digest_without_its_registry(mode: Mode) {
    let (host, registry, kit, reference) = pulled(mode);
    registry.stop();
    let by_digest = format!("{}@{}", reference.trim_end_matches(":v1"), kit.digest());
    assert_whole(&host.mount(&by_digest), &kit);
    assert_whole(&host.mount(&format!("{reference}@{}", kit.digest())), &kit);
}

fn a_cached_kit_mounts_by_tag_when_told_so(mode: Mode) {
    let (host, registry, kit, reference) = pulled(mode);
    // Offline is offline, even if somebody would answer.
    registry.clear_log();
    assert_whole(&host.mount_with(&reference, &["--offline"]), &kit);
    assert!(registry.log().is_empty(), "{:#?}", registry.log());
    registry.stop();
    assert_whole(&host.mount_with(&reference, &["--offline"]), &kit);
    let output = host.kitfs(&["inspect", "--offline", &reference]).ok();
    assert!(output.stderr.contains(&kit.digest()), "it says which digest the tag meant last: {output:#?}");
    // Without the word the tag has to be asked for.
    let output = host.try_mount(&reference, &[]).expect_err("no registry");
    assert_eq!(output.code(), 1, "{output:#?}");
    assert!(output.stderr.contains("hint: ") && output.stderr.contains("--offline"), "{output:#?}");
}

fn what_is_not_in_the_cache_is_an_error_at_once(mode: Mode) {
    let host = Host::new(mode);
    let (registry, kit) = (Registry::start(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let output = host.try_mount(&reference, &["--offline"]).expect_err("nothing is known of it");
    assert!([1, 5].contains(&output.code()) && output.stderr.contains("hint: "), "{output:#?}");
    let mount = host.mount(&reference);
    let path = mount.path("model/config.json");
    within(LIMIT, "a read", move || read(&path)).expect("readable");
    mount.umount().ok();
    let mount = host.mount_with(&reference, &["--offline", "--prefetch", "none"]);
    assert!(read(&mount.path("model/config.json")).is_ok());
    let path = mount.path("README.md");
    assert_eq!(within(Duration::from_secs(5), "a read", move || read(&path)), Err(rustix::io::Errno::IO.raw_os_error()));
}

fn a_mount_stays_with_its_digest_when_the_tag_moves(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kits = [1, 2].map(|seed| Kitfile::new("moving").dataset("data").pack(&Tree::new().file("data/part.bin", bytes(seed, 100_000))));
    let reference = kits[0].serve(&registry, "acme/moving", "v1");
    let old = host.mount(&reference);
    kits[1].serve(&registry, "acme/moving", "v1");
    let new = host.mount(&reference);
    for (mount, kit) in [(&old, &kits[0]), (&new, &kits[1])] {
        assert_eq!(mount.status()["digest"], kit.digest());
        assert_whole(mount, kit);
    }
}

fn a_layout_needs_no_registry(mode: Mode) {
    let host = Host::new(mode);
    let kit = standard();
    let folder = host.folder("layout");
    let reference = kit.layout(&folder, "registry.example.com/acme/standard:v1");
    let names = [
        reference,
        format!("oci:{}:v1", folder.display()),
        format!("oci:{}", folder.display()),
        format!("oci:{}@{}", folder.display(), kit.digest()),
    ];
    for name in names {
        let mount = host.mount(&name);
        assert_eq!(mount.status()["digest"], kit.digest(), "{name}");
        assert_whole(&mount, &kit);
        mount.umount().ok();
    }
    // What the cache has needs the layout no more.
    let mount = host.mount(&format!("oci:{}", folder.display()));
    fs::remove_dir_all(folder.join("blobs")).expect("ours");
    assert_whole(&mount, &kit);
    // A kit of somebody else's making, by the name that is in its index.
    let case = case("kits/nested-paths");
    let mount = host.mount(&case.unpack(&host.folder("layout")));
    let (point, wanted) = (mount.point().to_owned(), of_lines(&case.tree().expect("a tree")));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    for missing in ["oci:/no/such/folder", &format!("oci:{}:no-such-name", folder.display())] {
        let output = host.try_mount(missing, &[]).expect_err("nothing there");
        assert!([1, 5].contains(&output.code()) && output.stderr.contains("error: "), "{output:#?}");
    }
}
