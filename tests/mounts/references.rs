//! Kits that refer to other kits: their models stand in one root, each is pinned, and nothing is asked for that is not needed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::fixtures::case;
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Packing, Tree};
use crate::common::process::{Output, within};
use crate::common::registry::{Auth, Registry, sha256};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::bytes;

crate::in_both_modes!(
    all_models_stand_in_one_root_and_every_kit_is_pinned,
    only_what_is_touched_is_asked_for_and_only_models,
    a_worker_goes_on_without_the_registries,
    a_parent_stays_with_its_digest_when_its_tag_moves,
    datasets_that_are_kits_come_when_they_are_wanted,
    files_of_two_kits_at_one_place_are_refused,
    what_one_kit_says_of_a_layer_holds_in_the_other,
);

const LIMIT: Duration = Duration::from_secs(60);

/// Three kits in registries of their own: the top refers to the middle, that to the base.
struct Family {
    registries: [Registry; 3],
    kits: [Kit; 3],
    references: [String; 3],
    /// What a mount of the top shows.
    tree: Tree,
}

impl Family {
    fn new() -> Self {
        let registries = [Registry::start(), Registry::start(), Registry::start()];
        let trees = [
            Tree::new().file("adapters/top.bin", bytes(1, 50_000)).file("README.md", "top\n"),
            Tree::new().file("adapters/mid.bin", bytes(2, 60_000)).file("mid.py", "mid\n").file("data/mid.csv", "mid\n"),
            Tree::new().file("weights/base.bin", bytes(3, 2_000_000)).file("weights/vocab.txt", "a b\n").file("NOTICE", "base\n"),
        ];
        let base = Kitfile::new("base").model("weights/base.bin").part("weights/vocab.txt").docs("NOTICE").pack(&trees[2]);
        let base_reference = base.serve(&registries[2], "acme/base", "v1");
        let mid =
            Kitfile::new("mid").refers(&base_reference).gzip().part("adapters/mid.bin").code("mid.py").dataset("data").pack(&trees[1]);
        let mid_reference = mid.serve(&registries[1], "acme/mid", "v1");
        let top = Kitfile::new("top").refers(&mid_reference).part("adapters/top.bin").docs("README.md").pack(&trees[0]);
        let top_reference = top.serve(&registries[0], "acme/top", "v1");
        let mut tree = top.tree.clone();
        for (kit, own) in [(&mid, "adapters"), (&base, "weights")] {
            tree.0.extend(kit.tree.0.clone().into_iter().filter(|(path, _)| path.starts_with(own.as_bytes())));
        }
        Self { registries, kits: [top, mid, base], references: [top_reference, mid_reference, base_reference], tree }
    }

    fn reference(&self) -> &str {
        &self.references[0]
    }

    /// The paths of all layers that somebody asked for, kit by kit.
    fn asked(&self) -> [Vec<&str>; 3] {
        [0, 1, 2].map(|number| {
            let layers = self.kits[number].layers.iter();
            layers.filter(|layer| self.registries[number].asked(&layer.digest) > 0).map(|layer| layer.path.as_str()).collect()
        })
    }

    fn assert_whole(&self, mount: &Mount) {
        let (point, wanted) = (mount.point().to_owned(), of_tree(&self.tree));
        within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    }
}

fn refused(host: &Host, reference: &str, options: &[&str], code: i32, parts: &[&str]) -> Output {
    let output = host.try_mount(reference, options).expect_err(reference);
    assert_eq!(output.code(), code, "{output:#?}");
    assert!(parts.iter().all(|part| output.stderr.contains(part)), "{parts:?}: {output:#?}");
    output
}

fn all_models_stand_in_one_root_and_every_kit_is_pinned(mode: Mode) {
    let (host, family) = (Host::new(mode), Family::new());
    let mount = host.mount(family.reference());
    family.assert_whole(&mount);
    let kitfile = fs::read_to_string(mount.path("Kitfile")).expect("the Kitfile");
    assert!(kitfile.contains("name: top") && kitfile.contains(&family.references[1]), "{kitfile}");
    let entry = |number: usize| {
        let (reference, digest) = (&family.references[number], family.kits[number].digest());
        json!({ "reference": reference, "digest": digest, "pinned_by": "source", "source": reference, "part": "model", "path": "." })
    };
    let status = mount.status();
    assert_eq!((&status["digest"], &status["references"]), (&json!(family.kits[0].digest()), &json!([entry(1), entry(2)])), "{status:#}");
    assert_eq!(status["layers"].as_array().expect("layers").len(), 5);
    let inspect = host.kitfs(&["inspect", "--plain-http", "--json", family.reference()]).ok();
    let inspect: Value = serde_json::from_str(&inspect.stdout).expect("JSON");
    assert_eq!((&inspect["references"], &inspect["digest"]), (&status["references"], &status["digest"]));
    let kits: Vec<_> = inspect["layers"].as_array().expect("layers").iter().map(|layer| layer["kit"].clone()).collect();
    assert_eq!(kits, [2, 2, 1, 0, 0].map(|number: usize| json!(family.kits[number].digest())));
    for command in ["inspect", "status"] {
        let arguments: &[&str] = if command == "inspect" { &[command, "--plain-http", family.reference()] } else { &[command] };
        let text = host.kitfs(arguments).ok().stdout;
        assert!((0..3).all(|number| text.contains(&family.kits[number].digest()) && text.contains(&family.references[number])), "{text}");
    }
    // Everything that works on a kit works on what it refers to.
    let pulled = host.kitfs(&["pull", "--plain-http", family.reference()]).ok();
    assert!(pulled.stdout.contains("5 layers"), "{pulled:#?}");
    let verified = host.kitfs(&["verify", "--plain-http", family.reference()]).ok();
    assert_eq!(verified.stdout.lines().filter(|line| line.ends_with(": matches")).count(), 5, "{verified:#?}");
    // And none of it needs a registry again.
    mount.umount().ok();
    family.registries.iter().for_each(Registry::stop);
    let by_digest = format!("{}@{}", family.reference(), family.kits[0].digest());
    for reference in [family.reference(), &by_digest] {
        let mount = host.mount_with(reference, &["--offline"]);
        family.assert_whole(&mount);
        let status = mount.status();
        let pins: Vec<_> = status["references"].as_array().expect("references").iter().map(|kit| kit["pinned_by"].clone()).collect();
        assert_eq!(pins, ["cache", "cache"]);
    }
    // A tag of a parent has to be asked for unless it is said that it need not be.
    refused(&host, &by_digest, &[], 1, &["cannot follow", &family.references[1], "--offline"]);
}

fn only_what_is_touched_is_asked_for_and_only_models(mode: Mode) {
    let (host, family) = (Host::new(mode), Family::new());
    let mount = host.mount(family.reference());
    let mut names: Vec<_> = fs::read_dir(mount.point()).expect("the root").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["Kitfile", "README.md", "adapters", "weights"]);
    assert_eq!(family.asked(), [vec![], vec![], vec![]] as [Vec<&str>; 3]);
    let path = mount.path("weights/vocab.txt");
    assert!(within(LIMIT, "a read", move || read(&path)).is_ok());
    assert_eq!(family.asked(), [vec![], vec![], vec!["weights/vocab.txt"]] as [Vec<&str>; 3]);
    family.assert_whole(&mount);
    let models = [vec!["adapters/top.bin", "README.md"], vec!["adapters/mid.bin"], vec!["weights/base.bin", "weights/vocab.txt"]];
    assert_eq!(family.asked(), models);
    // A kit that refers to the same parent finds its layers in the cache.
    mount.umount().ok();
    family.registries[2].clear_log();
    let other = Kitfile::new("other").refers(&family.references[2]).pack(&Tree::new());
    let mount = host.mount(&other.serve(&family.registries[0], "acme/other", "v1"));
    let path = mount.path("weights/base.bin");
    assert!(within(LIMIT, "a read", move || read(&path)).is_ok());
    assert_eq!(family.asked()[2], Vec::<&str>::new());
    mount.umount().ok();
    // With prefetch, what is fetched is what is shown.
    let host = Host::new(mode);
    family.registries.iter().for_each(Registry::clear_log);
    let mount = host.mount_with(family.reference(), &["--prefetch", "all"]);
    for (number, paths) in models.iter().enumerate() {
        paths.iter().for_each(|path| mount.await_layer(&family.kits[number].layer(path).digest, "cached"));
    }
    assert_eq!(family.asked(), models);
}

fn a_worker_goes_on_without_the_registries(mode: Mode) {
    let (host, family) = (Host::new(mode), Family::new());
    let mount = host.mount(family.reference());
    let path = mount.path("weights/base.bin");
    assert!(within(LIMIT, "a read", move || read(&path)).is_ok());
    let before = mount.status()["references"].clone();
    family.registries[1].stop();
    family.registries[2].stop();
    let old = mount.kill_worker();
    mount.await_other_worker(old);
    assert_eq!(mount.status()["references"], before);
    let paths = ["weights/base.bin", "adapters/top.bin"].map(|name| (mount.path(name), family.tree.content(name).to_vec()));
    for (path, right) in paths {
        assert_eq!(within(LIMIT, "a read", move || read(&path)).as_deref(), Ok(right.as_slice()));
    }
    // What is not here comes from the registry of its own kit, which is gone.
    let path = mount.path("adapters/mid.bin");
    assert_eq!(within(LIMIT, "a read", move || read(&path)), Err(rustix::io::Errno::IO.raw_os_error()));
    let error = mount.layer(&family.kits[1].layer("adapters/mid.bin").digest)["error"].clone();
    assert!(error.as_str().is_some_and(|error| error.contains(&family.registries[1].host())), "{error}");
}

fn a_parent_stays_with_its_digest_when_its_tag_moves(mode: Mode) {
    let (host, family) = (Host::new(mode), Family::new());
    let old = host.mount(family.reference());
    let moved = Kitfile::new("base").model("weights/base.bin").pack(&Tree::new().file("weights/base.bin", bytes(9, 1000)));
    moved.serve(&family.registries[2], "acme/base", "v1");
    let killed = old.kill_worker();
    old.await_other_worker(killed);
    family.assert_whole(&old);
    assert_eq!(old.status()["references"][1]["digest"], family.kits[2].digest());
    let new = host.mount(family.reference());
    assert_eq!(new.status()["references"][1]["digest"], moved.digest());
    assert_eq!(read(&new.path("weights/base.bin")), Ok(bytes(9, 1000)));
    assert!(fs::metadata(new.path("weights/vocab.txt")).is_err());
}

fn datasets_that_are_kits_come_when_they_are_wanted(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let tree = Tree::new().file("train/a.csv", "1,2\n").file("model.bin", "m").file("code.py", "c");
    let sets = Kitfile::new("sets").model("model.bin").code("code.py").dataset("train").pack(&tree);
    let sets_reference = sets.serve(&registry, "acme/sets", "v1");
    let top = Kitfile::new("top").dataset("near").remote("far/sets", &sets_reference).remote("bucket", "s3://bucket/key");
    let top = top.pack(&Tree::new().file("near/b.csv", "3\n"));
    let reference = top.serve(&registry, "acme/top", "v1");

    let output = host.kitfs(&["inspect", "--json", "--plain-http", &reference]).ok();
    let shown: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let not_here = json!([{ "path": "far/sets", "address": sets_reference }, { "path": "bucket", "address": "s3://bucket/key" }]);
    assert_eq!((&shown["remote"], &shown["references"]), (&not_here, &json!([])));
    let mount = host.mount(&reference);
    assert_eq!(mount.status()["remote"], not_here);
    let (point, wanted) = (mount.point().to_owned(), of_tree(&top.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    for absent in ["far", "bucket"] {
        assert!(fs::symlink_metadata(mount.path(absent)).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound), "{absent}");
    }
    mount.umount().ok();
    let point = host.folder("mnt");
    let output = crate::common::process::run(&mut host.mount_command(&reference, &point, &[]), LIMIT).ok();
    let warnings: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{output:#?}");
    assert!(warnings[0].contains(&sets_reference) && warnings[0].contains("--include-remote"), "{output:#?}");
    assert!(warnings[1].contains("s3://bucket/key") && !warnings[1].contains("--include-remote"), "{output:#?}");
    host.guard(&point).umount().ok();

    let mount = host.mount_with(&reference, &["--include-remote", "--prefetch", "none"]);
    let status = mount.status();
    assert_eq!(status["remote"], json!([not_here[1]]));
    assert_eq!(status["references"][0]["digest"], sets.digest());
    assert_eq!((&status["references"][0]["path"], &status["references"][0]["part"]), (&json!("far/sets"), &json!("datasets")));
    let mut all = top.tree.clone();
    all = all.folder("far", 0o755).folder("far/sets", 0o755).folder("far/sets/train", 0o755).file("far/sets/train/a.csv", "1,2\n");
    let wanted = of_tree(&all);
    let point = mount.point().to_owned();
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    for path in ["model.bin", "code.py"] {
        assert_eq!(registry.asked(&sets.layer(path).digest), 0, "{path}");
    }
}

fn files_of_two_kits_at_one_place_are_refused(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let base = Kitfile::new("base").model("model").pack(&Tree::new().file("model/w.bin", "parent").file("model/only", "parent"));
    let base_reference = base.serve(&registry, "acme/base", "v1");
    let child = Tree::new().file("model/w.bin", "child").file("ok/file", "ok");
    let top = Kitfile::new("top").refers(&base_reference).dataset("model").dataset("ok").pack(&child);
    let reference = top.serve(&registry, "acme/top", "v1");
    let mount = match host.try_mount(&reference, &["--prefetch", "none"]) {
        Ok(mount) => mount,
        Err(output) => return assert_eq!(output.code(), 4, "{output:#?}"),
    };
    for name in ["model/w.bin", "model/only"] {
        let path = mount.path(name);
        assert!(within(LIMIT, "a read", move || read(&path)).is_err(), "{name}");
    }
    assert_eq!(read(&mount.path("ok/file")), Ok(b"ok".to_vec()));
}

#[test]
fn a_reference_that_leads_to_no_kit_ends_the_mount_and_is_named() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let top = |to: &str| {
        let kit = Kitfile::new("top").refers(to).dataset("data").pack(&Tree::new().file("data/a", "a"));
        kit.serve(&registry, "acme/top", "v1")
    };
    let host_name = registry.host();
    let missing = format!("{host_name}/acme/missing:v1");
    refused(&host, &top(&missing), &[], 5, &["cannot follow the references", &format!("acme/top:v1 => {missing}"), "not found"]);
    // The kit itself is remembered by now.
    refused(&host, &top(&missing), &["--offline"], 1, &["cannot follow", &missing, "was never resolved"]);
    // An artifact of another sort.
    let image = json!({ "schemaVersion": 2, "layers": [], "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json", "digest": crate::common::registry::sha256(b"{}"), "size": 2,
    }});
    registry.blob_as(&crate::common::registry::sha256(b"{}"), b"{}".to_vec());
    registry.manifest("acme/image", "v1", crate::common::pack::MANIFEST, image.to_string());
    refused(&host, &top(&format!("{host_name}/acme/image:v1")), &[], 4, &["acme/image:v1", "neither a ModelKit nor a ModelPack"]);
    // A registry that lets only others in, and one that is not there.
    let (closed, gone) = (Registry::start(), Registry::start());
    closed.require(Auth::Basic("user".into(), "password".into()));
    refused(&host, &top(&format!("{}/acme/base:v1", closed.host())), &[], 5, &["acme/base:v1", "not allowed"]);
    gone.stop();
    refused(&host, &top(&format!("{}/acme/base:v1", gone.host())), &[], 1, &["cannot follow", "acme/base:v1"]);
    // Kit's own storage, with and without the word for it; never a folder of this host.
    for local in ["localhost/base:v1", "base:v1", "oci:base"] {
        refused(&host, &top(local), &[], 5, &[local, "kitops:", "not found"]);
    }
    let image_index = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    registry.manifest("acme/index", "v1", "application/vnd.oci.image.index.v1+json", image_index);
    let output = host.try_mount(&top(&format!("{host_name}/acme/index:v1")), &[]).expect_err("no kit");
    assert!([4, 5].contains(&output.code()) && output.stderr.contains("acme/index:v1"), "{output:#?}");
}

#[test]
fn credentials_are_those_of_each_registry() {
    use base64::Engine as _;
    let (host, family) = (Host::new(Mode::Passthrough), Family::new());
    let mut auths = serde_json::Map::new();
    for (registry, user) in family.registries.iter().zip(["top", "mid", "base"]) {
        registry.require(Auth::Basic(user.into(), "password".into()));
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("{user}:password"));
        auths.insert(registry.host(), json!({ "auth": secret }));
    }
    fs::create_dir(host.home().join(".docker")).expect("a folder");
    fs::write(host.home().join(".docker/config.json"), json!({ "auths": auths }).to_string()).expect("room");
    family.assert_whole(&host.mount(family.reference()));
}

#[test]
fn circles_and_long_chains_are_refused_with_all_their_names() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let name = |number: usize| format!("{}/acme/kit-{number}:v1", registry.host());
    let serve = |number: usize, to: Option<String>| {
        let path = format!("part-{number}");
        let tree = Tree::new().file(&path, path.clone());
        let kitfile = Kitfile::new(&path);
        let kitfile = to.map_or_else(|| kitfile.clone(), |to| kitfile.clone().refers(&to)).part(&path);
        kitfile.pack(&tree).serve(&registry, &format!("acme/kit-{number}"), "v1")
    };
    serve(10, None);
    (0..10).rev().for_each(|number| drop(serve(number, Some(name(number + 1)))));
    let mount = host.mount(&name(0));
    assert_eq!(mount.status()["references"].as_array().expect("references").len(), 10);
    for number in 0..=10 {
        assert_eq!(read(&mount.path(&format!("part-{number}"))), Ok(format!("part-{number}").into_bytes()));
    }
    mount.umount().ok();
    // The eleventh is not asked for.
    serve(11, None);
    serve(10, Some(name(11)));
    registry.clear_log();
    let chain = (0..=11).map(name).collect::<Vec<_>>().join(" => ");
    refused(&host, &name(0), &[], 4, &["more than 10 references", &chain]);
    assert!(!registry.log().iter().any(|request| request.path.contains("kit-11")), "{:#?}", registry.log());
    // A circle through the root, which is asked for by another name, and one that does not touch it.
    serve(10, Some(name(7)));
    let circle = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7].map(name).join(" => ");
    refused(&host, &name(7), &[], 4, &["circle", &[7, 8, 9, 10, 7].map(name).join(" => ")]);
    refused(&host, &name(0), &[], 4, &["more than 10 references", &circle[..circle.len() - 4]]);
    refused(&host, &name(3), &[], 4, &["circle", &[3, 4, 5, 6, 7, 8, 9, 10, 7].map(name).join(" => ")]);
    let manifest = registry.log().into_iter().rev().find(|request| request.path.ends_with("kit-7/manifests/v1"));
    let digest = manifest.and_then(|request| request.digest).expect("its digest");
    let other_name = format!("{}/acme/kit-7@{digest}", registry.host());
    let names = [&[other_name.clone()][..], &[8, 9, 10, 7].map(name)].concat().join(" => ");
    refused(&host, &other_name, &[], 4, &["circle", &names]);
}

#[test]
fn a_layout_has_what_its_kits_refer_to() {
    let host = Host::new(Mode::Passthrough);
    let case = case("kits/reference-chain");
    let folder = host.folder("layout");
    let reference = case.unpack(&folder);
    let mount = host.mount_with(&reference, &["--offline"]);
    let references = mount.status()["references"].clone();
    let sources: Vec<_> = references.as_array().expect("references").iter().map(|kit| kit["source"].clone()).collect();
    let beside = |name: &str| json!(format!("oci:{}:registry.example.com/team/{name}:v1", folder.display()));
    assert_eq!(sources, [beside("mid"), beside("base")]);
    assert!(read(&mount.path("weights/base.bin")).is_ok());
    mount.umount().ok();
    // As does an archive of it.
    let archive = host.path("layout.tar");
    crate::common::process::sh(&format!("tar -cf {} -C {} .", archive.display(), folder.display()), LIMIT).ok();
    let mount = host.mount_with(&format!("oci-archive:{}:{}", archive.display(), case.reference()), &["--offline"]);
    assert!(mount.status()["references"][1]["source"].as_str().is_some_and(|source| source.starts_with("oci-archive:")));
    assert!(read(&mount.path("weights/vocab.txt")).is_ok());
    mount.umount().ok();
    // What is not in the layout is looked for where its name says; local names have no such place.
    let registry = Registry::start();
    let base = Kitfile::new("base").model("w").pack(&Tree::new().file("w", "base"));
    let far = base.serve(&registry, "acme/base", "v1");
    let layout = |to: &str, name: &str| {
        let kit = Kitfile::new("top").refers(to).pack(&Tree::new());
        kit.layout(&host.folder("layout"), name)
    };
    let mount = host.mount_with(&layout(&far, "top:v1"), &["--plain-http"]);
    assert_eq!(mount.status()["references"][0]["source"], far);
    assert_eq!(read(&mount.path("w")), Ok(b"base".to_vec()));
    mount.umount().ok();
    refused(&host, &layout("base:v1", "top:v1"), &[], 5, &["base:v1", "looked for", ":localhost/base:v1, then for kitops:base:v1"]);
    // A kit that is its own model, by the name that it has in the layout and without a registry.
    refused(&host, &layout("top:v1", "top:v1"), &[], 4, &["circle", "top:v1 => top:v1"]);
}

/// What kit itself keeps: a name without a registry means that, and a kit from there has its parents there.
#[test]
fn kit_s_own_storage_has_what_has_no_registry() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let base = Kitfile::new("base").model("w").pack(&Tree::new().file("w", "base"));
    keep(&host, &[("localhost/acme/base", &base)]);
    for local in ["acme/base:v1", "localhost/acme/base:v1"] {
        let top = Kitfile::new("top").refers(local).pack(&Tree::new());
        let mount = host.mount_with(&top.serve(&registry, "acme/top", "v1"), &["--prefetch", "none"]);
        let reference = &mount.status()["references"][0];
        assert_eq!((&reference["source"], &reference["digest"]), (&json!("kitops:acme/base:v1"), &json!(base.digest())));
        let old = mount.kill_worker();
        mount.await_other_worker(old);
        assert_eq!(read(&mount.path("w")), Ok(b"base".to_vec()));
        mount.umount().ok();
    }
    // From kit's storage, a parent of a registry is one that kit has pulled.
    let host = Host::new(Mode::Passthrough);
    let top = Kitfile::new("top").refers("registry.example.com/acme/base:v1").pack(&Tree::new());
    keep(&host, &[("registry.example.com/acme/base", &base), ("localhost/top", &top)]);
    let mount = host.mount("kitops:top:v1");
    assert_eq!(mount.status()["references"][0]["source"], "kitops:registry.example.com/acme/base:v1");
    assert_eq!(read(&mount.path("w")), Ok(b"base".to_vec()));
}

/// Puts kits into kit's storage, each as `v1` of its repository.
fn keep(host: &Host, kits: &[(&str, &Kit)]) {
    use base64::Engine as _;
    let storage = host.home().join(".local/share/kitops/storage");
    for (repository, kit) in kits {
        kit.layout(&storage, "unused");
        let descriptor = json!({ "mediaType": crate::common::pack::MANIFEST, "digest": kit.digest(), "size": kit.manifest.len() });
        let name = base64::engine::general_purpose::URL_SAFE.encode(repository);
        fs::write(storage.join(format!("{name}-tags.json")), json!({ "v1": descriptor }).to_string()).expect("room");
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        fs::write(storage.join(format!("{name}-index.json")), index.to_string()).expect("room");
    }
}

#[test]
fn the_loop_of_the_fixture_is_named_in_full() {
    let host = Host::new(Mode::Passthrough);
    let case = case("hostile/reference-loop");
    let reference = case.unpack(&host.folder("layout"));
    let [a, b] = ["bad/reference-loop:v1", "bad/loop-b:v1"].map(|name| format!("registry.example.com/{name}"));
    refused(&host, &reference, &[], 4, &["circle", &format!("{reference} => {b} => {a}")]);
    assert!(Path::new(&host.cache()).is_dir());
}

/// Old kits have no diffIds and say less of a file, but a layer that a newer one has, too, is one layer: what that one says is asked of both.
fn what_one_kit_says_of_a_layer_holds_in_the_other(mode: Mode) {
    let wrong = sha256(b"something else");
    let trees = ["base.bin", "top.bin"].map(|name| Tree::new().file(name, bytes(7, 300_000)));
    let old = |kit: Kitfile| kit.packing(Packing::RawGzipUnsized).part("base.bin");
    let new = |kit: Kitfile| kit.packing(Packing::RawGzip).part("top.bin");
    for (base_is_old, is_right) in [(true, true), (false, true), (true, false), (false, false)] {
        let (host, registry) = (Host::new(mode), Registry::start());
        let packed = |kit: Kitfile, is_old: bool| {
            let mut kit = if is_old { old(kit).pack(&trees[0]) } else { new(kit).pack(&trees[1]) };
            let mut config: Value = serde_json::from_slice(&kit.config).expect("JSON");
            let part = &mut config["model"]["parts"][0];
            assert_eq!(part["diffId"], kit.layers[0].diff_id, "{part}");
            if is_old {
                part.as_object_mut().expect("an object").remove("diffId");
            } else if !is_right {
                part["diffId"] = wrong.as_str().into();
            }
            kit.config = config.to_string().into_bytes();
            let mut manifest: Value = serde_json::from_slice(&kit.manifest).expect("JSON");
            manifest["config"]["digest"] = kit.config_digest().into();
            manifest["config"]["size"] = kit.config.len().into();
            kit.manifest = manifest.to_string().into_bytes();
            kit
        };
        let base = packed(Kitfile::new("base"), base_is_old);
        let top = packed(Kitfile::new("top").refers(&base.serve(&registry, "acme/base", "v1")), !base_is_old);
        let digest = &base.layers[0].digest;
        assert_eq!(*digest, top.layers[0].digest, "it is about one layer");
        let mount = host.mount(&top.serve(&registry, "acme/top", "v1"));
        if is_right {
            let mut wanted = top.tree.clone();
            wanted.0.extend(base.tree.0.clone());
            let (point, wanted) = (mount.point().to_owned(), of_tree(&wanted));
            within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
            assert_eq!(registry.asked(digest), 1, "one layer is fetched once");
        } else {
            let path = mount.path("base.bin");
            let outcome =
                within(LIMIT, "an open", move || fs::read(path).map(|content| content.len()).map_err(|error| error.raw_os_error()));
            assert_eq!(outcome, Err(Some(5)), "the old kit's file is not what the new one says");
            let status = mount.status();
            let layer = status["layers"].as_array().expect("layers").iter().find(|layer| layer["path"] == "base.bin").expect("its layer");
            let error = layer["error"].as_str().expect("an error");
            assert!(error.contains(&wrong), "{error}");
        }
    }
}
