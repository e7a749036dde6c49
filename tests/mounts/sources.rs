//! Kits from archives, from kit's own storage, and out of OCI indexes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::common::fixtures::{Case, case};
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_lines, of_tree, read};
use crate::kits::{MIB, bytes, standard};

const LIMIT: Duration = Duration::from_secs(60);
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn assert_whole(mount: &Mount, kit: &Kit) {
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

/// The home of kit of the fixture, as kit leaves it now.
fn home_as_now(case: &Case, host: &Host) -> PathBuf {
    let home = host.folder("kit");
    tar::Archive::new(fs::File::open(case.path("kitops-home.tar")).expect("a fixture")).unpack(&home).expect("room");
    home
}

/// The same kits as a kit of old left them: a layout for each repository.
fn home_as_of_old(case: &Case, host: &Host) -> PathBuf {
    let (now, old) = (home_as_now(case, host).join("storage"), host.folder("old"));
    for entry in fs::read_dir(&now).expect("a home") {
        let name = entry.expect("an entry").file_name().into_string().expect("ASCII");
        let Some(encoded) = name.strip_suffix("-tags.json") else { continue };
        let repository = String::from_utf8(URL_SAFE.decode(encoded).expect("base64")).expect("a name");
        let layout = old.join("storage").join(repository);
        fs::create_dir_all(layout.join("blobs/sha256")).expect("room");
        for blob in fs::read_dir(now.join("blobs/sha256")).expect("blobs") {
            let blob = blob.expect("a blob");
            fs::copy(blob.path(), layout.join("blobs/sha256").join(blob.file_name())).expect("room");
        }
        let tags: Value = serde_json::from_slice(&fs::read(now.join(&name)).expect("tags")).expect("JSON");
        let manifests = tags.as_object().expect("tags").iter().map(|(tag, manifest)| {
            let mut manifest = manifest.clone();
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            manifest
        });
        let index = json!({ "schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>() });
        fs::write(layout.join("index.json"), index.to_string()).expect("room");
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("room");
    }
    old
}

#[test]
fn kits_own_storage_shows_its_kits_in_both_its_forms() {
    let case = case("kits/kit-home");
    let kits = case.kit_home();
    assert_eq!((kits.len(), kits.iter().filter(|(_, tree)| tree.is_none()).count()), (5, 1));
    for (mode, form) in [(Mode::Passthrough, home_as_now as fn(&Case, &Host) -> PathBuf), (Mode::Cached, home_as_of_old)] {
        let host = Host::new(mode);
        let home = form(&case, &host);
        for (reference, tree) in &kits {
            let reference = format!("kitops:{reference}");
            let mounted = host.try_mount_in(&reference, &["--prefetch", "none"], &[("KITOPS_HOME", home.as_os_str())]);
            match (mounted, tree) {
                (Ok(mount), Some(tree)) => {
                    let (point, wanted) = (mount.point().to_owned(), of_lines(tree));
                    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
                    assert!(mount.status()["reference"].as_str().is_some_and(|shown| shown.starts_with(&reference)), "{reference}");
                }
                (Err(output), None) => {
                    assert_eq!(output.code(), 5, "{output:#?}");
                    assert!(output.stderr.contains("was not found") && output.stderr.contains("hint: "), "{output:#?}");
                }
                (got, _) => panic!("{reference}: {got:?}"),
            }
        }
    }
}

#[test]
fn kits_own_storage_is_looked_for_where_kit_keeps_it() {
    let host = Host::new(Mode::Passthrough);
    let case = case("kits/kit-home");
    let home = home_as_now(&case, &host);
    let reference = "kitops:local-notes";
    let at = |variable: Option<(&str, &Path)>, folder: PathBuf| {
        fs::create_dir_all(folder.parent().expect("a parent")).expect("room");
        fs::rename(&home, &folder).expect("one disk");
        let mut command = host.command(&["inspect", "--json", reference]);
        command.envs(variable);
        // A relative folder is the caller's.
        command.current_dir(host.path(""));
        let output = crate::common::process::run(&mut command, LIMIT).ok();
        fs::rename(&folder, &home).expect("one disk");
        output
    };
    at(None, host.home().join(".local/share/kitops"));
    at(Some(("XDG_DATA_HOME", &host.path("data"))), host.path("data/kitops"));
    at(Some(("KITOPS_HOME", &host.path("elsewhere"))), host.path("elsewhere"));
    at(Some(("KITOPS_HOME", Path::new("relative"))), host.path("relative"));
    let nowhere = host.kitfs(&["inspect", reference]);
    assert!(nowhere.code() == 5 && nowhere.stderr.contains("kitops"), "{nowhere:#?}");
    // The worker looks where `kitfs mount` did.
    fs::rename(&home, host.path("relative")).expect("one disk");
    let mut command = host.mount_command(reference, &host.folder("mnt"), &["--prefetch", "none"]);
    let point = command.get_args().last().map(PathBuf::from).expect("a folder");
    let mount = host.guard(&point);
    crate::common::process::run(command.env("KITOPS_HOME", "relative").current_dir(host.path("")), LIMIT).ok();
    let tree = case.kit_home().into_iter().find(|(name, _)| name == "local-notes").and_then(|(_, tree)| tree).expect("a tree");
    let wanted = of_lines(&tree);
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    mount.umount().ok();
}

/// Packs a layout's folder, compressed or not.
fn archive(folder: &Path, file: &Path, gzip: bool) {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", folder).expect("memory");
    let tar = tar.into_inner().expect("memory");
    if gzip {
        let mut encoder = GzEncoder::new(fs::File::create(file).expect("room"), Compression::fast());
        encoder.write_all(&tar).and_then(|()| encoder.finish().map(drop)).expect("room");
    } else {
        fs::write(file, tar).expect("room");
    }
}

#[test]
fn every_command_takes_an_archive() {
    for gzip in [false, true] {
        let (host, kit) = (Host::new(Mode::Passthrough), standard());
        let (folder, file) = (host.folder("layout"), host.path("kit.tar"));
        kit.layout(&folder, "reg.example/a/b:v1");
        archive(&folder, &file, gzip);
        let reference = format!("oci-archive:{}:reg.example/a/b:v1", file.display());
        for name in [&reference, &format!("oci-archive:{}:v1", file.display()), &format!("oci-archive:{}", file.display())] {
            let output = host.kitfs(&["inspect", "--json", name]).ok();
            assert_eq!(serde_json::from_str::<Value>(&output.stdout).expect("JSON")["digest"], kit.digest());
        }
        let output = host.kitfs(&["inspect", &format!("oci-archive:{}:v2", file.display())]);
        assert!(output.code() == 5 && output.stderr.contains("`v2` (it has `reg.example/a/b:v1`)"), "{output:#?}");
        let mount = host.mount(&reference);
        assert_whole(&mount, &kit);
        mount.umount().ok();
        let output = host.kitfs(&["pull", &reference]).ok();
        assert!(output.stdout.contains(&format!("@{}: 5 layers in the cache", kit.digest())), "{output:#?}");
        host.kitfs(&["verify", &reference]).ok();
        // Nothing was unpacked anywhere.
        assert_eq!(fs::read_dir(host.path("tmp")).expect("ours").count(), 0);
    }
}

#[test]
fn an_archive_that_is_replaced_under_a_mount_is_told() {
    for gzip in [false, true] {
        let host = Host::new(Mode::Cached);
        let kits = [1, 2].map(|seed| {
            let tree = Tree::new().file("one/a.bin", bytes(seed, MIB)).file("two/b.bin", bytes(seed + 10, MIB));
            Kitfile::new("kit").dataset("one").dataset("two").pack(&tree)
        });
        let files = [0, 1].map(|which| {
            let (folder, file) = (host.folder("layout"), host.path(&format!("kit-{which}.tar")));
            kits[which].layout(&folder, "v1");
            archive(&folder, &file, gzip);
            file
        });
        let mount = host.mount(&format!("oci-archive:{}", files[0].display()));
        assert_eq!(read(&mount.path("one/a.bin")).expect("there"), kits[0].tree.content("one/a.bin"));
        fs::rename(&files[1], &files[0]).expect("one disk");
        let path = mount.path("two/b.bin");
        assert!(within(LIMIT, "a read", move || read(&path)).is_err(), "the other archive has other bytes");
        let digest = kits[0].layer("two").digest.clone();
        let error = mount.layer(&digest)["error"].as_str().expect("an error").to_owned();
        assert!(error.contains(&digest) && error.contains("the archive was replaced"), "{error}");
        assert_eq!(read(&mount.path("one/a.bin")).expect("kept"), kits[0].tree.content("one/a.bin"));
    }
}

fn entry(content: &[u8]) -> Value {
    json!({ "mediaType": MANIFEST, "digest": crate::common::registry::sha256(content), "size": content.len() })
}

fn index(entries: &[Value]) -> String {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string()
}

#[test]
fn the_only_kit_of_an_index_is_mounted() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
    kit.serve(&registry, "acme/kit", "alone");
    let image = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    registry.manifest("acme/kit", "image", MANIFEST, image);
    let of_one = registry.manifest("acme/kit", "v1", INDEX, index(&[entry(image.as_bytes()), entry(&kit.manifest)]));
    let reference = format!("{}/acme/kit:v1", registry.host());
    let mount = host.mount(&reference);
    let status = mount.status();
    // What is shown is the kit's digest, whoever led to it.
    assert_eq!((status["digest"].as_str(), status["reference"].as_str()), (Some(&*kit.digest()), Some(&*reference)));
    assert_whole(&mount, &kit);
    mount.umount().ok();
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    registry.stop();
    for reference in [reference, format!("{}/acme/kit@{of_one}", registry.host())] {
        let mount = host.mount_with(&reference, &["--offline"]);
        assert_eq!(mount.status()["digest"], kit.digest(), "{reference}");
        assert_whole(&mount, &kit);
    }
}

#[test]
fn an_index_that_means_no_one_kit_is_refused() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let kits = [1, 2].map(|seed| Kitfile::new("kit").dataset("data").pack(&Tree::new().file("data/part.bin", bytes(seed, 10_000))));
    let [mut one, mut other] = kits.each_ref().map(|kit| entry(&kit.manifest));
    one["platform"] = json!({ "os": "linux", "architecture": "arm64" });
    other["annotations"] = json!({ "org.opencontainers.image.ref.name": "q4\u{1b}[31m" });
    for (kit, tag) in kits.iter().zip(["one", "other"]) {
        kit.serve(&registry, "acme/kit", tag);
    }
    registry.manifest("acme/kit", "both", INDEX, index(&[one, other]));
    registry.manifest("acme/kit", "none", INDEX, index(&[]));
    registry.manifest("acme/kit", "page", "text/html", "<html>a portal</html>");
    registry.manifest("acme/kit", "lies", INDEX, kits[0].manifest.clone());
    let named = |tag: &str| format!("{}/acme/kit:{tag}", registry.host());
    for (tag, parts) in [
        (
            "both",
            [&*kits[0].digest(), &*kits[1].digest(), "platform linux/arm64", "name q4\\u{1b}[31m", "holds 2 ModelKits", "hint: name one"]
                .as_slice(),
        ),
        ("none", &["not a ModelKit"]),
        ("page", &["`text/html`"]),
        ("lies", &["as an image manifest has"]),
    ] {
        let output = host.try_mount(&named(tag), &[]).expect_err("no one kit");
        assert_eq!(output.code(), 4, "{tag}: {output:#?}");
        assert!(parts.iter().all(|part| output.stderr.contains(part)) && !output.stderr.contains('\u{1b}'), "{tag}: {output:#?}");
    }
    // By the hint.
    let by_digest = format!("{}/acme/kit@{}", registry.host(), kits[1].digest());
    let mount = host.mount(&by_digest);
    assert_whole(&mount, &kits[1]);
}

#[test]
fn there_is_no_storage_without_a_home() {
    let host = Host::new(Mode::Passthrough);
    let mut command = host.command(&["inspect", "kitops:a"]);
    let output = crate::common::process::run(command.env_remove("HOME"), LIMIT);
    assert!(output.code() == 5 && output.stderr.contains("KITOPS_HOME"), "{output:#?}");
}
