//! ModelPack artifacts and models of Docker Model Runner, beyond what the fixtures have of them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::common::kitfs::{Host, Mode};
use crate::common::modelpack::{FILEPATH, METADATA, Pack, tar};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{All, Shown, assert_shows};
use crate::kits::{MIB, bytes};

crate::in_both_modes!(
    a_model_of_docker_model_runner_is_shown_under_names_that_tools_know,
    names_sizes_and_modes_of_bare_files_cost_no_fetch,
    a_configuration_does_not_bring_the_weights,
    small_files_of_configuration_come_by_themselves,
);

const LIMIT: Duration = Duration::from_secs(60);

const WEIGHT: &str = "cncf.model.weight.v1.raw";
const CONFIG: &str = "cncf.model.weight.config.v1.raw";

/// Pieces of weights, what belongs to them, and one layer that nothing says the place of.
fn docker() -> Pack {
    Pack::docker()
        .layer("cncf.model.weight.v1.gguf", &[], bytes(1, 3 * MIB))
        .layer("docker.ai.gguf.v3", &[], bytes(2, MIB / 2))
        .layer("docker.ai.mmproj", &[], bytes(3, 4000))
        .layer("docker.ai.license", &[], "MIT")
        .layer("docker.ai.license", &[(FILEPATH, "legal/LICENSE.llama")], "Llama")
        .layer("docker.ai.chat.template.jinja", &[], "{{ messages }}")
        .layer("docker.ai.vllm.config.tar", &[(FILEPATH, "vllm-config-123.tar")], tar(&[("config.json", "{}"), ("merges.txt", "a b")]))
        .layer("docker.ai.model.file", &[], "nobody says what this is")
}

fn file(mode: u32, content: &[u8]) -> Shown {
    Shown::File { mode, size: content.len() as u64, sha256: crate::common::registry::sha256(content) }
}

fn a_model_of_docker_model_runner_is_shown_under_names_that_tools_know(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let pack = docker();
    let reference = pack.serve(&registry, "ai/tiny");
    let layer = |position: usize| file(0o644, &pack.layers[position].blob);
    let wanted = [
        ("model-00001-of-00002.gguf", layer(0)),
        ("model-00002-of-00002.gguf", layer(1)),
        ("mmproj.gguf", layer(2)),
        ("LICENSE", layer(3)),
        ("legal", Shown::Folder { mode: 0o755 }),
        ("legal/LICENSE.llama", layer(4)),
        ("chat_template.jinja", layer(5)),
        ("config.json", file(0o644, b"{}")),
        ("merges.txt", file(0o644, b"a b")),
    ];
    let wanted: All = wanted.into_iter().map(|(path, shown)| (path.as_bytes().to_vec(), shown)).collect();
    let mount = host.mount(&reference);
    let point = mount.point().to_owned();
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    let weights = mount.path("model-00001-of-00002.gguf");
    assert_eq!(xattr(&weights, "user.kitfs.layer").as_deref(), Some(pack.layers[0].digest.as_str()));
    assert_eq!(xattr(&weights, "user.kitfs.media-type").as_deref(), Some("application/vnd.cncf.model.weight.v1.gguf"));
    // What the config says: when it was packed.
    assert_eq!(fs::metadata(&weights).expect("shown").mtime(), 1_746_440_430);
    let paths: Vec<String> = mount.status()["layers"].as_array().expect("layers").iter().map(text("path")).collect();
    assert_eq!(
        paths,
        [
            "model-00001-of-00002.gguf",
            "model-00002-of-00002.gguf",
            "mmproj.gguf",
            "LICENSE",
            "legal/LICENSE.llama",
            "chat_template.jinja",
            "."
        ]
    );

    let json = inspect(&host, &reference);
    assert_eq!((json["artifact"].as_str(), &json["kitfile"]), (Some("docker-model"), &Value::Null), "{json:#}");
    assert_eq!((json["model"]["format"].as_str(), json["model"]["parameters"].as_str()), (Some("gguf"), Some("361.82 M")));
    let kinds: Vec<String> = json["layers"].as_array().expect("layers").iter().map(text("kind")).collect();
    assert_eq!(kinds, ["model", "model", "modelpart", "docs", "docs", "modelconfig", "modelconfig"]);
    let unplaced = json["unplaced_layers"].as_array().expect("a list");
    assert_eq!(unplaced.iter().map(text("digest")).collect::<Vec<_>>(), [pack.layers[7].digest.clone()]);
    assert_eq!(registry.asked(&pack.layers[7].digest), 0);
    let human = host.kitfs(&["inspect", "--plain-http", &reference]).ok().stdout;
    for part in
        ["docker-model", "361.82 M", "llama", "model at model-00001-of-00002.gguf", "not mounted, since nothing says where it belongs"]
    {
        assert!(human.contains(part), "{part} in {human}");
    }
}

fn names_sizes_and_modes_of_bare_files_cost_no_fetch(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let executable = r#"{"name":"run.py","mode":493,"size":9,"mtime":"2023-11-14T22:13:20Z","typeflag":0}"#;
    let pack = Pack::model_pack()
        .layer(WEIGHT, &[(FILEPATH, "w/model.gguf")], bytes(1, 2 * MIB))
        .layer("cncf.model.code.v1.raw", &[(FILEPATH, "run.py"), (METADATA, executable)], "print(1)\n")
        .layer("cncf.model.doc.v1.raw", &[(FILEPATH, "EMPTY.md")], "")
        // Equal bytes at two places, with modes of their own; and no Kitfile is generated that this one could be taken for.
        .layer("cncf.model.doc.v1.raw", &[(FILEPATH, "Kitfile"), (METADATA, r#"{"mode":384}"#)], "");
    let mount = host.mount(&pack.serve(&registry, "packs/listed"));
    for (path, size, mode) in [("w/model.gguf", 2 * MIB as u64, 0o644), ("run.py", 9, 0o755), ("EMPTY.md", 0, 0o644), ("Kitfile", 0, 0o644)]
    {
        let metadata = fs::metadata(mount.path(path)).expect(path);
        assert_eq!((metadata.len(), metadata.mode() & 0o7777), (size, mode), "{path}");
    }
    let time = fs::metadata(mount.path("run.py")).expect("shown").mtime();
    assert_eq!(time, 1_700_000_000);
    let mut names: Vec<_> = fs::read_dir(mount.point()).expect("the root").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["EMPTY.md", "Kitfile", "run.py", "w"]);
    assert!(pack.layers.iter().all(|layer| registry.asked(&layer.digest) == 0));
    let path = mount.path("w/model.gguf");
    let right = pack.layers[0].blob.clone();
    within(LIMIT, "a read", move || assert_eq!(fs::read(path).expect("readable"), *right));
    assert_eq!(registry.sent(&pack.layers[0].digest), 2 * MIB as u64);
}

/// Weights of which no one is small enough to come by itself, and a configuration too.
fn large() -> Pack {
    Pack::model_pack()
        .layer(WEIGHT, &[(FILEPATH, "model-00001-of-00002.safetensors")], bytes(1, 17 * MIB))
        .layer(WEIGHT, &[(FILEPATH, "model-00002-of-00002.safetensors")], bytes(2, 17 * MIB))
        .layer(CONFIG, &[(FILEPATH, "tokenizer.model")], bytes(3, 17 * MIB))
        .layer(CONFIG, &[(FILEPATH, "config.json")], r#"{"hidden_size":384}"#)
        .layer("cncf.model.dataset.v1.raw", &[(FILEPATH, "data/train.csv")], bytes(4, 17 * MIB))
}

fn a_configuration_does_not_bring_the_weights(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let pack = large();
    let mount = host.mount_with(&pack.serve(&registry, "packs/large"), &["--prefetch", "small"]);
    let digest = |position: usize| &pack.layers[position].digest;
    let read = |path: &str| {
        let path = mount.path(path);
        within(LIMIT, "a read", move || fs::read(path).expect("readable"));
    };
    read("tokenizer.model");
    assert_eq!([0, 1, 4].map(|position| registry.asked(digest(position))), [0; 3]);
    read("model-00001-of-00002.safetensors");
    mount.await_layer(digest(1), "cached");
    assert_eq!(registry.asked(digest(4)), 0);
}

fn small_files_of_configuration_come_by_themselves(mode: Mode) {
    let (host, registry) = (Host::new(mode), Registry::start());
    let pack = large();
    let mount = host.mount_with(&pack.serve(&registry, "packs/large"), &[]);
    mount.await_layer(&pack.layers[3].digest, "cached");
    assert!([0, 1, 2, 4].iter().all(|position| registry.asked(&pack.layers[*position].digest) == 0));
}

#[test]
fn a_model_pack_by_the_first_drafts_is_shown_too() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let at = |path| [("org.cnai.model.filepath", path)];
    let metadata = [("org.cnai.model.filepath", "run.sh"), ("org.cnai.model.file.metadata+json", r#"{"mode":493}"#)];
    let pack = Pack::draft()
        .layer("cnai.model.weight.v1.tar", &at("w/m.bin"), tar(&[("w/m.bin", "weights")]))
        .layer("cnai.model.doc.v1.tar", &at("README.md"), tar(&[("README.md", "# hello")]))
        .layer("cnai.model.layer.v1.tar", &[at("LICENSE"), [("org.cnai.model.license", "true")]].concat(), tar(&[("LICENSE", "MIT")]))
        .layer("cnai.model.code.v1.raw", &metadata, "true");
    let reference = pack.serve(&registry, "packs/draft");
    let wanted = [
        ("w", Shown::Folder { mode: 0o755 }),
        ("w/m.bin", file(0o644, b"weights")),
        ("README.md", file(0o644, b"# hello")),
        ("LICENSE", file(0o644, b"MIT")),
        ("run.sh", file(0o755, b"true")),
    ];
    let mount = host.mount(&reference);
    let (point, wanted) = (mount.point().to_owned(), wanted.into_iter().map(|(path, shown)| (path.as_bytes().to_vec(), shown)).collect());
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    let json = inspect(&host, &reference);
    assert_eq!((json["artifact"].as_str(), json["package"]["version"].as_str()), (Some("modelpack"), Some("7")), "{json:#}");
    let kinds: Vec<String> = json["layers"].as_array().expect("layers").iter().map(text("kind")).collect();
    assert_eq!(kinds, ["model", "docs", "docs", "code"]);
}

#[test]
fn what_two_readers_could_place_differently_is_refused_at_mount() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let tar_type = "cncf.model.code.v1.tar";
    let at = |path| [(FILEPATH, path)];
    for (name, pack, part) in [
        ("same", Pack::model_pack().layer(WEIGHT, &at("m"), "1").layer(CONFIG, &at("./m"), "2"), "`m`"),
        ("below", Pack::model_pack().layer(WEIGHT, &at("m"), "1").layer(CONFIG, &at("m/c"), "2"), "`m`"),
        ("tar", Pack::model_pack().layer(WEIGHT, &at("m"), "1").layer(tar_type, &at("m"), tar(&[("m", "2")])), "`m`"),
        ("climbs", Pack::model_pack().layer(WEIGHT, &at("../m"), "1"), "`..`"),
        ("unknown", Pack::model_pack().layer("cncf.model.weight.v1.raw+gzip", &at("m"), "1"), "cncf.model.weight.v1.raw+gzip"),
        ("container", Pack::docker().layer("oci.image.layer.v1.tar", &at("m"), "1"), "oci.image.layer.v1.tar"),
        ("size", Pack::model_pack().layer(WEIGHT, &[(FILEPATH, "m"), (METADATA, r#"{"size":2}"#)], "1"), "blob has 1 bytes"),
        ("link", Pack::model_pack().layer(WEIGHT, &[(FILEPATH, "m"), (METADATA, r#"{"typeflag":50}"#)], "1"), "typeflag"),
    ] {
        let output = host.try_mount(&pack.serve(&registry, &format!("packs/{name}")), &[]).expect_err(name);
        assert_eq!(output.code(), 4, "{name}: {output:#?}");
        assert!(output.stderr.contains("error: ") && output.stderr.contains(part), "{name}: {part} in {}", output.stderr);
        assert!(pack.layers.iter().all(|layer| registry.asked(&layer.digest) == 0), "{name}");
    }
}

fn inspect(host: &Host, reference: &str) -> Value {
    let output = host.kitfs(&["inspect", "--json", "--plain-http", reference]).ok();
    serde_json::from_str(&output.stdout).expect("JSON")
}

fn text(key: &str) -> impl Fn(&Value) -> String + '_ {
    move |value| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned()
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}
