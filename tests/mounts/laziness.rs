//! Nothing is asked of a registry before somebody needs it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kit, Kitfile, Packing, RAW_MTIME, Tree};
use crate::common::process::{run, sh, signal_process, within};
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree};
use crate::kits::{MIB, bytes, standard};

use std::path::Path;
use std::process::Command;
use std::time::Duration;

crate::in_both_modes!(
    known_names_ask_for_no_layer,
    one_layer_comes_for_one_read_of_it,
    a_shared_folder_is_waited_for_and_nothing_else,
    names_once_seen_are_known_to_the_next_mount,
    small_layers_and_code_come_by_themselves,
    the_model_s_layers_follow_its_first,
    everything_comes_by_itself_when_asked_to,
    raw_files_are_known_before_they_come,
    a_raw_file_of_unknown_size_is_a_file_all_the_same,
    once_all_names_are_known_listing_them_again_asks_nobody,
);

const LIMIT: Duration = Duration::from_secs(60);

fn asked(registry: &Registry, kit: &Kit) -> Vec<String> {
    kit.layers.iter().filter(|layer| registry.asked(&layer.digest) > 0).map(|layer| layer.path.clone()).collect()
}

fn known_names_ask_for_no_layer(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let mut names: Vec<_> = fs::read_dir(mount.point()).expect("the root").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["Kitfile", "README.md", "data", "model", "src", "tokenizer"]);
    assert!(fs::read_to_string(mount.path("Kitfile")).expect("the Kitfile").contains("standard"));
    assert_eq!(fs::metadata(mount.point()).expect("the root").mode() & 0o7777, 0o755);
    assert!(fs::metadata(mount.path("missing")).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
    let attributes = |name: &str| {
        let path = mount.path(name);
        assert_eq!(xattr(&path, "user.kitfs.digest").as_deref(), Some(kit.digest().as_str()), "{name}");
        assert!(xattr(&path, "user.kitfs.reference").is_some_and(|reference| reference.contains("acme/standard")), "{name}");
        let layer = kit.layers.iter().find(|layer| layer.path == name);
        assert_eq!(xattr(&path, "user.kitfs.layer"), layer.map(|layer| layer.digest.clone()), "{name}");
        assert_eq!(xattr(&path, "user.kitfs.media-type"), layer.map(|layer| layer.media_type.clone()), "{name}");
    };
    attributes("");
    attributes("Kitfile");
    host.kitfs(&["inspect", "--plain-http", &format!("{}/acme/standard:v1", registry.host())]).ok();
    host.kitfs(&["status"]).ok();
    sh(&format!("df {0} && stat -f {0}", mount.point().display()), LIMIT).ok();
    assert_eq!(asked(&registry, &kit), Vec::<String>::new());
    // The kernel itself asks for the mode of a name of unknown kind before it asks for its attributes; that wait is `stat`'s.
    for name in ["model", "data", "README.md"] {
        attributes(name);
    }
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}

fn one_layer_comes_for_one_read_of_it(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let path = mount.path("tokenizer/vocab.txt");
    let right = kit.tree.content("tokenizer/vocab.txt").to_vec();
    within(LIMIT, "a read", move || assert_eq!(fs::read(path).expect("readable"), right));
    assert_eq!(asked(&registry, &kit), ["tokenizer"]);
    // All names in the layer are known now, so none of them asks again.
    let sent = registry.sent(&kit.layer("tokenizer").digest);
    assert_eq!(sent, kit.layer("tokenizer").blob.len() as u64);
    sh(&format!("ls -lR {0}/tokenizer && find {0}/tokenizer -type f | xargs cat", mount.point().display()), LIMIT).ok();
    assert!(fs::metadata(mount.path("tokenizer/none")).is_err());
    assert_eq!(registry.sent(&kit.layer("tokenizer").digest), sent);
    assert_eq!(asked(&registry, &kit), ["tokenizer"]);
}

/// The listing of a folder that is a layer's root and has other layers below depends on that layer.
fn a_shared_folder_is_waited_for_and_nothing_else(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("top.py", "1").file("a/x", "x").file("a/inner/y", "y").file("b/z", bytes(5, MIB));
    let kit = Kitfile::new("shared").code(".").dataset("a").dataset("a/inner").model("b").pack(&tree);
    let mount = host.mount(&kit.serve(&registry, "acme/shared", "v1"));
    let mut first = asked(&registry, &kit);
    first.sort();
    assert_eq!(first, [".", "a"]);
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn names_once_seen_are_known_to_the_next_mount(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    mount.umount().ok();
    // The index outlives the layer itself.
    host.await_quiet(LIMIT).expect("an unmounted host is quiet");
    fs::remove_dir_all(host.cache().join("v1/layers")).expect("the layers");
    fs::create_dir(host.cache().join("v1/layers")).expect("room");
    registry.clear_log();
    let mount = host.mount(&reference);
    let listing = sh(&format!("find {} -ls", mount.point().display()), LIMIT).ok();
    assert!(listing.stdout.contains("data/shard-2/059.txt"), "{}", listing.stdout);
    assert_eq!(asked(&registry, &kit), Vec::<String>::new());
    let path = mount.path("model/config.json");
    within(LIMIT, "a read", move || fs::read(path).expect("readable"));
    assert_eq!(asked(&registry, &kit), ["model"]);
}

fn small_layers_and_code_come_by_themselves(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new()
        .file("small/a", bytes(1, MIB))
        .file("large/b", bytes(2, 17 * MIB))
        .file("code/c", bytes(3, 17 * MIB))
        .file("raw", "raw");
    let kit = Kitfile::new("prefetch").dataset("small").dataset("large").code("code").raw().docs("raw").pack(&tree);
    let mount = host.mount_with(&kit.serve(&registry, "acme/prefetch", "v1"), &[]);
    for path in ["small", "code"] {
        mount.await_layer(&kit.layer(path).digest, "cached");
    }
    // Nothing is learned from a raw layer but its bytes.
    for path in ["large", "raw"] {
        assert_eq!(registry.asked(&kit.layer(path).digest), 0, "{path}");
    }
}

fn the_model_s_layers_follow_its_first(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("model/a", bytes(1, 17 * MIB)).file("part/b", bytes(2, 17 * MIB)).file("data/c", bytes(3, 17 * MIB));
    let kit = Kitfile::new("follow").model("model").part("part").dataset("data").pack(&tree);
    let mount = host.mount_with(&kit.serve(&registry, "acme/follow", "v1"), &["--prefetch", "small"]);
    assert_eq!(asked(&registry, &kit), Vec::<String>::new());
    let path = mount.path("model/a");
    within(LIMIT, "a read", move || fs::read(path).expect("readable"));
    mount.await_layer(&kit.layer("part").digest, "cached");
    assert_eq!(registry.asked(&kit.layer("data").digest), 0);
}

fn everything_comes_by_itself_when_asked_to(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount_with(&kit.serve(&registry, "acme/standard", "v1"), &["--prefetch", "all"]);
    for layer in &kit.layers {
        mount.await_layer(&layer.digest, "cached");
        assert_eq!(registry.sent(&layer.digest), layer.blob.len() as u64);
    }
    let copy = host.folder("copy");
    run(Command::new("cp").arg("-r").arg(mount.path(".")).arg(&copy), LIMIT).ok();
    assert_shows(&copy, &of_tree(&kit.tree));
}

/// Names, sizes, modes and times of raw files stand in the manifest.
fn raw_files_are_known_before_they_come(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new()
        .file("w/model.safetensors", bytes(1, 3 * MIB))
        .file_with_mode("w/tokenizer.json", 0o600, "{}")
        .file_with_mode("bin/run.sh", 0o755, "#!/bin/sh\necho ran\n")
        .file("data/rows.csv", "a,b\n".repeat(9000))
        .file("empty", "");
    let kit = Kitfile::new("raw").raw().model("w/model.safetensors").part("w/tokenizer.json").docs("empty");
    let kit = kit.packing(Packing::RawZstd).dataset("data/rows.csv").packing(Packing::RawGzip).docs("bin/run.sh").pack(&tree);
    let mount = host.mount(&kit.serve(&registry, "acme/raw", "v1"));
    let point = mount.point().display().to_string();
    let listing = sh(&format!("cd {point} && ls -lR . && find . -type f -size +1M && du -ab . && test -x bin/run.sh"), LIMIT).ok();
    assert!(listing.stdout.contains("./w/model.safetensors\n"), "{}", listing.stdout);
    for layer in &kit.layers {
        let metadata = fs::metadata(mount.path(&layer.path)).expect("known");
        assert_eq!(metadata.len(), kit.tree.content(&layer.path).len() as u64, "{}", layer.path);
        assert_eq!(metadata.mtime(), RAW_MTIME, "{}", layer.path);
        assert_eq!(xattr(&mount.path(&layer.path), "user.kitfs.layer").as_ref(), Some(&layer.digest), "{}", layer.path);
    }
    assert_eq!(fs::metadata(mount.path("bin/run.sh")).expect("known").mode(), 0o100_755);
    assert_eq!(fs::metadata(mount.path("w/tokenizer.json")).expect("known").mode(), 0o100_644, "readable for all");
    assert!(fs::metadata(mount.path("w/model.safetensors/x")).is_err() && fs::metadata(mount.path("w/none")).is_err());
    assert_eq!(asked(&registry, &kit), Vec::<String>::new(), "nothing of this needs a layer");
    // What runs or reads one of them gets that one, and nothing else.
    let ran = sh(&format!("{point}/bin/run.sh"), LIMIT).ok();
    assert_eq!(ran.stdout, "ran\n");
    assert_eq!(asked(&registry, &kit), ["bin/run.sh"]);
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn a_raw_file_of_unknown_size_is_a_file_all_the_same(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("data/one.csv", "1,2\n".repeat(5000)).file("data/two.csv", "3,4\n".repeat(7000));
    let kit = Kitfile::new("unsized").packing(Packing::RawGzipUnsized).dataset("data/one.csv").docs("data/two.csv").pack(&tree);
    let mount = host.mount(&kit.serve(&registry, "acme/unsized", "v1"));
    let folder = mount.path("data");
    let kinds: Vec<_> = fs::read_dir(&folder).expect("known").map(|entry| entry.expect("an entry").file_type().expect("known")).collect();
    assert!(kinds.len() == 2 && kinds.iter().all(fs::FileType::is_file), "{kinds:?}");
    assert_eq!(asked(&registry, &kit), Vec::<String>::new(), "a listing with kinds needs no size");
    let path = mount.path("data/one.csv");
    let size = within(LIMIT, "a stat", move || fs::metadata(path).map(|metadata| metadata.len()));
    assert_eq!(size.expect("it came"), 20_000);
    assert_eq!(asked(&registry, &kit), ["data/one.csv"]);
    // Opened without a look at it before.
    let path = mount.path("data/two.csv");
    let right = kit.tree.content("data/two.csv").to_vec();
    within(LIMIT, "a read", move || assert!(fs::read(path).expect("it came") == right));
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

/// A process that goes on when this is dropped, also by a test that fails.
struct Stopped(i32);

impl Stopped {
    fn now(pid: i32) -> Self {
        signal_process(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal_process(self.0, Signal::CONT);
    }
}

fn once_all_names_are_known_listing_them_again_asks_nobody(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount_with(&kit.serve(&registry, "acme/standard", "v1"), &["--prefetch", "none"]);
    // Not `find` or `ls`, which ask for more than names and sizes.
    let list = || {
        let point = mount.point().to_owned();
        within(LIMIT / 4, "a listing of everything", move || {
            let (mut seen, mut folders) = (Vec::new(), vec![point]);
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(&folder).expect("a folder") {
                    let path = entry.expect("an entry").path();
                    let metadata = fs::symlink_metadata(&path).expect("attributes");
                    if metadata.is_dir() {
                        folders.push(path.clone());
                    }
                    seen.push((path, metadata.is_dir(), metadata.size()));
                }
            }
            seen
        })
    };
    // The first one fetches what it lists; with the second the kernel hears that it need not ask.
    let first = list();
    assert!(list() == first);
    let stopped = Stopped::now(mount.worker_pid());
    assert!(list() == first);
    drop(stopped);
}
