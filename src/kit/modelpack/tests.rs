use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::raw::{DRAFT_FILE_METADATA, FILE_METADATA};
use super::*;
use crate::failure::chain;
use crate::fixtures::verified;
use crate::kit::Kit;
use crate::layer::Archive;
use crate::oci::IMAGE_MANIFEST;

const PACK_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.ai.model.config.v0.1+json";
const WEIGHT: &str = "application/vnd.cncf.model.weight.v1.raw";
const GGUF: &str = "application/vnd.docker.ai.gguf.v3";
const FILE: [&str; 2] = [FILE_METADATA, DRAFT_FILE_METADATA];
const LICENSE: &str = "application/vnd.docker.ai.license";

/// A digest that is told from others by its number.
fn digest(number: usize) -> String {
    format!("sha256:{number:064x}")
}

/// The layer with this number, which is its size too.
fn layer(media_type: &str, number: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest(number), "size": number })
}

fn annotated(media_type: &str, number: usize, annotations: &[(&str, &str)]) -> Value {
    let mut layer = layer(media_type, number);
    layer["annotations"] = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect::<Map<_, _>>().into();
    layer
}

fn placed(media_type: &str, number: usize, path: &str) -> Value {
    annotated(media_type, number, &[(PATH[0], path)])
}

/// The plan of these layers, with the contents that the config lists.
fn plan_with(config_type: &str, config: Value, layers: &[Value], kitfile: Option<Value>) -> Result<Kit, KitError> {
    let config = verified(config_type, Bytes::from(config.to_string()));
    let mut manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": config_type, "digest": config.descriptor().digest.to_string(), "size": config.descriptor().size },
        "layers": layers,
    });
    if let Some(kitfile) = kitfile {
        let text = kitfile.as_str().map_or_else(|| kitfile.to_string(), str::to_owned);
        manifest["annotations"] = json!({ KITFILE_ANNOTATION: text });
    }
    Kit::plan(&verified(IMAGE_MANIFEST, Bytes::from(manifest.to_string())), &config)
}

fn plan(layers: &[Value]) -> Result<Kit, KitError> {
    plan_with(PACK_CONFIG, json!({}), layers, None)
}

fn docker(layers: &[Value]) -> Result<Kit, KitError> {
    plan_with(DOCKER_CONFIG, json!({}), layers, None)
}

fn paths(kit: &Kit) -> Vec<String> {
    kit.layers.iter().map(|layer| layer.path.to_string()).collect()
}

/// The layers by their numbers.
fn unplaced(kit: &Kit) -> Vec<u64> {
    kit.unplaced.iter().map(|layer| layer.size).collect()
}

fn refused(outcome: Result<Kit, KitError>, part: &str) {
    let text = chain(&outcome.expect_err(part));
    assert!(text.contains(part), "{part}: {text}");
}

#[test]
fn an_annotation_says_where_a_layer_belongs() {
    let [today, draft] = PATH;
    for (annotations, path) in [
        (&[(today, "w/m.gguf")][..], "w/m.gguf"),
        (&[(today, "./w//m.gguf")], "w/m.gguf"),
        (&[(today, "a/../m..gguf")], "m..gguf"),
        (&[(draft, "w/m.gguf")], "w/m.gguf"),
        (&[(today, "m"), (draft, "./m")], "m"),
        (&[(today, ""), (draft, "m")], "m"),
        (&[(TITLE, "m.gguf")], "m.gguf"),
        (&[(today, "m"), (TITLE, "The model")], "m"),
        // Nothing is generated that could stand there.
        (&[(today, "Kitfile")], "Kitfile"),
    ] {
        assert_eq!(paths(&plan(&[annotated(WEIGHT, 1, annotations)]).expect(path)), [path], "{annotations:?}");
    }
    for (annotations, part) in [
        (&[(today, "/m")][..], "absolute"),
        (&[(today, "../m")], "`..`"),
        (&[(draft, "a/../../m")], "`..`"),
        (&[(TITLE, "../m")], "`..`"),
        (&[(TITLE, "/m")], "absolute"),
        (&[(today, "a\0b")], "NUL"),
        (&[(today, "a"), (draft, "b")], "`a` by one annotation and `b` by another"),
    ] {
        let text = chain(&plan(&[layer("x/y", 2), annotated(WEIGHT, 1, annotations)]).expect_err(part));
        assert!(text.contains("the manifest's `layers[1]`") && text.contains(part), "{part}: {text}");
    }
    for root in [".", "a/.."] {
        refused(plan(&[placed(WEIGHT, 1, root)]), "its path is the root folder");
    }
}

#[test]
fn what_nothing_places_stays_out_and_what_has_no_meaning_is_refused() {
    let tar = "application/vnd.cncf.model.code.v1.tar";
    // A tar has names of its own, so that a title is not where it belongs.
    let kit = plan(&[layer(WEIGHT, 1), annotated(tar, 2, &[(TITLE, "x.tar")]), layer("x/y", 3), placed(tar, 4, ".")]).expect("a plan");
    assert_eq!((paths(&kit), unplaced(&kit)), (vec![".".to_owned()], vec![1, 2, 3]));
    assert_eq!(kit.kitfile, None);
    for media_type in [
        "application/vnd.cncf.model.weight.v1.raw+gzip",
        "application/vnd.cncf.model.firmware.v1.tar",
        "application/vnd.kitops.modelkit.model.v1.tar",
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ] {
        refused(plan(&[placed(media_type, 1, "m")]), &format!("the layer {} is of the unknown media type `{media_type}`", digest(1)));
        // Named by the Kitfile alone.
        let kitfile = json!({ "model": { "path": "m", "digest": digest(1) } });
        refused(plan_with(PACK_CONFIG, json!({}), &[layer(media_type, 1)], Some(kitfile)), "unknown media type");
    }
}

#[test]
fn kinds_tell_weights_from_what_goes_with_them() {
    let kind = |media_type: &str, annotations: &[(&str, &str)]| {
        let layer = annotated(media_type, 1, &[annotations, &[(PATH[1], "x")]].concat());
        plan(&[layer]).expect(media_type).layers[0].kind
    };
    for (base, expected) in [
        ("weight", LayerKind::Model),
        ("weight.config", LayerKind::ModelConfig),
        ("doc", LayerKind::Docs),
        ("code", LayerKind::Code),
        ("dataset", LayerKind::Dataset),
    ] {
        assert_eq!(kind(&format!("application/vnd.cncf.model.{base}.v1.raw"), &[]), expected);
        assert_eq!(kind(&format!("application/vnd.cnai.model.{base}.v1.tar+gzip"), &[]), expected);
    }
    assert_eq!(kind("application/vnd.cncf.model.code.v1.tar", &[("ml.kitops.modelkit.layer-subtype", "prompt")]), LayerKind::Prompt);
    for (key, expected) in [
        ("org.cnai.model.model", LayerKind::Model),
        ("org.cnai.model.config", LayerKind::ModelConfig),
        ("org.cnai.model.readme", LayerKind::Docs),
        ("org.cnai.model.license", LayerKind::Docs),
        ("other", LayerKind::ModelPart),
    ] {
        assert_eq!(kind("application/vnd.cnai.model.layer.v1.tar", &[(key, "true")]), expected, "{key}");
    }
}

#[test]
fn the_config_lists_what_layers_contain() {
    let gzip = "application/vnd.cncf.model.code.v1.tar+gzip";
    let layers = [placed(WEIGHT, 1, "m"), placed(gzip, 2, "src")];
    let with = |modelfs: Value| plan_with(PACK_CONFIG, json!({ "modelfs": modelfs }), &layers, None);
    let contents = |kit: Kit| kit.layers.iter().map(|layer| layer.spec.diff_id.map(|digest| digest.to_string())).collect::<Vec<_>>();
    for key in ["diffIds", "diff_ids"] {
        let kit = with(json!({ "type": "layers", key: [digest(1), digest(9)] })).expect("a plan");
        assert_eq!(contents(kit), [Some(digest(1)), Some(digest(9))], "{key}");
    }
    for none in [json!(null), json!({}), json!({ "type": "layers" }), json!({ "diffIds": null })] {
        assert_eq!(contents(with(none).expect("a plan")), [None, None]);
    }
    for (listed, part) in [
        (json!([]), "the config's `modelfs` lists 0 layers, the manifest has 2"),
        (json!([digest(1)]), "lists 1 layers"),
        (json!([digest(1), digest(9), digest(9)]), "lists 3 layers"),
        (json!([digest(3), digest(9)]), "is sha256:"),
        (json!([digest(1), "sha256:00"]), "`modelfs.diffIds[1]`"),
        (json!([digest(1), 7]), "`modelfs.diffIds[1]` should be a string"),
        (json!({}), "`modelfs.diffIds` should be an array"),
    ] {
        refused(with(json!({ "diffIds": listed })), part);
    }
    refused(with(json!({ "DiffIds": [] })), "but for the case");
    refused(with(json!([])), "`modelfs` should be an object");
    // Layers that stay out of the mount count too.
    let layers = [layer(WEIGHT, 1), placed(gzip, 2, "src")];
    let kit = plan_with(PACK_CONFIG, json!({ "modelfs": { "diffIds": [digest(1), digest(9)] } }), &layers, None).expect("a plan");
    assert_eq!(contents(kit), [Some(digest(9))]);
    // A model of Docker Model Runner has them where an image has.
    let rootfs = json!({ "rootfs": { "type": "rootfs", "diff_ids": [digest(2)] } });
    refused(plan_with(DOCKER_CONFIG, rootfs.clone(), &[layer(GGUF, 1)], None), "config and manifest disagree: the content of the layer");
    assert!(plan_with(DOCKER_CONFIG, rootfs.clone(), &[layer(GGUF, 2)], None).is_ok());
    refused(plan_with(DOCKER_CONFIG, rootfs, &[], None), "the config's `rootfs` lists 1 layers");
}

#[test]
fn the_file_of_a_raw_layer_is_known_from_its_annotation() {
    let file = |text: &str| plan(&[annotated(WEIGHT, 5, &[(PATH[0], "m"), (FILE[0], text)])]);
    let mode = |mode| RawFile { mode, mtime: 0 };
    for (text, expected) in [
        (
            r#"{"name":"x","mode":420,"uid":0,"gid":0,"size":5,"mtime":"2023-11-14T22:13:20Z","typeflag":48}"#,
            RawFile { mode: 0o644, mtime: 1_700_000_000 },
        ),
        (r#"{"mode":384,"typeflag":0}"#, mode(0o600)),
        (r#"{"mode":2541}"#, mode(0o755)),
        // What nobody knew when it was packed.
        (r#"{"mode":0,"mtime":"0001-01-01T00:00:00Z"}"#, mode(0o644)),
        (r#"{"mode":null}"#, mode(0o644)),
        ("{}", mode(0o644)),
    ] {
        let kit = file(text).expect(text);
        assert_eq!((kit.layers[0].file, kit.layers[0].spec.archive), (Some(expected), Archive::Raw { size: Some(5) }), "{text}");
    }
    for (text, part) in [
        (r#"{"size":6}"#, "its blob has 5 bytes"),
        (r#"{"size":-1}"#, "it is negative"),
        (r#"{"mode":"0644"}"#, "`mode` should be"),
        (r#"{"mode":1,"mode":2}"#, "stands there twice"),
        (r#"{"mtime":"yesterday"}"#, "`yesterday`"),
        (r#"{"typeflag":5}"#, "`typeflag` 5"),
        (r#"{"typeflag":50}"#, "`typeflag` 50"),
        ("[]", "should be an object"),
        ("{", "not the JSON that it should be"),
    ] {
        refused(file(text), part);
    }
    // Drafts of the spec had another key, and an archive says all of this itself.
    let kit = plan(&[annotated(WEIGHT, 5, &[(PATH[1], "m"), (FILE[1], r#"{"mode":448}"#)])]).expect("a plan");
    assert_eq!(kit.layers[0].file, Some(mode(0o700)));
    let tar = "application/vnd.cncf.model.weight.v1.tar";
    let kit = plan(&[annotated(tar, 5, &[(PATH[0], "m"), (FILE[0], r#"{"mode":448,"size":1}"#)])]).expect("a plan");
    assert_eq!((kit.layers[0].file, kit.layers[0].spec.archive), (None, Archive::Tar));
}

#[test]
fn two_files_of_the_same_bytes_may_differ_in_name_mode_and_time() {
    let file = |path, mode: &str| annotated(WEIGHT, 1, &[(PATH[0], path), (FILE[0], mode)]);
    let kit = plan(&[file("a/__init__.py", r#"{"mode":420}"#), file("b/__init__.py", r#"{"mode":493}"#)]).expect("a plan");
    assert_eq!(paths(&kit), ["a/__init__.py", "b/__init__.py"]);
    let modes: Vec<_> = kit.layers.iter().map(|layer| layer.file.map(|file| file.mode)).collect();
    assert_eq!(modes, [Some(0o644), Some(0o755)]);
}

#[test]
fn a_kitfile_in_the_manifest_gives_names_and_has_to_agree() {
    let doc = "application/vnd.cncf.model.doc.v1.tar+gzip";
    let layers = [
        placed(WEIGHT, 1, "w/m.gguf"),
        placed("application/vnd.cncf.model.weight.config.v1.raw", 2, "w/config.json"),
        placed("application/vnd.cncf.model.dataset.v1.tar", 3, "data"),
        placed(doc, 4, "README.md"),
        layer("application/vnd.cncf.model.code.v1.tar", 5),
    ];
    let kitfile = json!({
        "manifestVersion": "1.0.0",
        "package": { "name": "mp" },
        "model": { "name": "m", "path": "./w/m.gguf", "format": "gguf", "digest": digest(1), "diffId": digest(1),
                   "parts": [{ "path": "w/config.json", "digest": digest(2) }] },
        "code": [{ "path": "src/", "digest": digest(5) }],
        "datasets": [{ "name": "d", "path": "data" }, { "path": "far", "remotePath": "s3://b/k" }],
        "docs": [{ "path": "README.md", "digest": digest(4), "diffId": digest(9) }],
    });
    let plan = |kitfile: &Value, layers: &[Value]| plan_with(PACK_CONFIG, json!({}), layers, Some(kitfile.clone()));
    let kit = plan(&kitfile, &layers).expect("a plan");
    assert_eq!(paths(&kit), ["w/m.gguf", "w/config.json", "data", "README.md", "src"]);
    let names: Vec<_> = kit.layers.iter().map(|layer| layer.name.as_deref()).collect();
    assert_eq!(names, [Some("m"), None, Some("d"), None, None]);
    assert_eq!(kit.layers[3].spec.diff_id.map(|digest| digest.to_string()), Some(digest(9)));
    let text = String::from_utf8(kit.kitfile.expect("generated").to_vec()).expect("UTF-8");
    assert!(text.starts_with("manifestVersion: 1.0.0\npackage:\n  name: mp\nmodel:\n  name: m\n  path: ./w/m.gguf\n"), "{text}");
    assert!(!text.contains("sha256"), "{text}");
    assert_eq!((kit.summary.name.as_str(), kit.remote[0].address.as_str()), ("mp", "s3://b/k"));

    let changed = |pointer: &str, value: Value| {
        let mut changed = kitfile.clone();
        *changed.pointer_mut(pointer).expect(pointer) = value;
        changed
    };
    for (kitfile, part) in [
        (changed("/model/path", json!("w/other.gguf")), "`model` is the model at `w/other.gguf`, and there is no"),
        (changed("/model/digest", json!(digest(7))), "`model` is the model at `w/m.gguf`"),
        (changed("/docs/0/path", json!("data")), "`docs[0]` is the docs at `data`"),
        (changed("/docs/0/path", json!("../x")), "the path of the Kitfile's `docs[0]` is not allowed"),
        (changed("/docs/0/path", json!("Kitfile")), "the place of the generated Kitfile"),
        (changed("/code/0/digest", json!(null)), "`code[0]` is the code at `src`"),
        (changed("/model/diffId", json!(digest(8))), "is sha256:"),
        (changed("/docs", json!({})), "`docs` should be an array"),
        (changed("/datasets", json!(vec![json!({ "path": "data" }); 4])), "the Kitfile in the manifest lists 8 layers, the manifest has 5"),
        (json!("{"), "cannot be used"),
    ] {
        refused(plan(&kitfile, &layers), part);
    }
    // Where a Kitfile is generated, no layer may have its place.
    let mut over = layers.to_vec();
    over[4] = placed("application/vnd.cncf.model.code.v1.tar", 5, "Kitfile");
    refused(plan(&kitfile, &over), "the place of the generated Kitfile");
    // What config and Kitfile say of a compressed layer's content.
    let listed = |last: usize| json!({ "modelfs": { "diffIds": [digest(1), digest(2), digest(3), digest(last), digest(5)] } });
    assert!(plan_with(PACK_CONFIG, listed(9), &layers, Some(kitfile.clone())).is_ok());
    refused(plan_with(PACK_CONFIG, listed(8), &layers, Some(kitfile.clone())), "by one word and");
}

#[test]
fn equal_layers_go_to_the_entries_with_their_paths() {
    let layers = [placed(WEIGHT, 1, "b"), placed(WEIGHT, 1, "a")];
    let part = |name: &str, path: &str| json!({ "name": name, "path": path, "digest": digest(1) });
    let kitfile = json!({ "model": { "parts": [part("first", "a"), part("second", "b")] } });
    let kit = plan_with(PACK_CONFIG, json!({}), &layers, Some(kitfile)).expect("a plan");
    let names: Vec<_> = kit.layers.iter().map(|layer| layer.name.clone().unwrap_or_default()).collect();
    assert_eq!(names, ["second", "first"]);
}

#[test]
fn files_without_a_name_are_called_what_they_are() {
    let template = "application/vnd.docker.ai.chat.template.jinja";
    let projector = "application/vnd.docker.ai.mmproj";
    let lora = "application/vnd.docker.ai.gguf.v3.lora";
    let tensors = "application/vnd.docker.ai.safetensors";
    let model_pack_gguf = "application/vnd.cncf.model.weight.v1.gguf";
    let model_pack_tensors = "application/vnd.cncf.model.weight.v1.safetensors";
    for (layers, expected) in [
        (vec![layer(GGUF, 1)], &["model.gguf"][..]),
        (vec![layer(model_pack_gguf, 1)], &["model.gguf"]),
        (vec![layer(model_pack_tensors, 1), layer(LICENSE, 2)], &["model.safetensors", "LICENSE"]),
        (vec![layer("application/vnd.docker.ai.dduf", 1)], &["model.dduf"]),
        (
            vec![layer(GGUF, 1), layer(projector, 2), layer(template, 3), layer(LICENSE, 4), layer(lora, 5)],
            &["model.gguf", "mmproj.gguf", "chat_template.jinja", "LICENSE", "adapter.gguf"],
        ),
        // Pieces in the manifest's order, under the names by which readers find the next.
        (
            vec![layer(tensors, 1), layer(LICENSE, 2), layer(model_pack_tensors, 3), layer(tensors, 4)],
            &["model-00001-of-00003.safetensors", "LICENSE", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"],
        ),
        (vec![layer(LICENSE, 1), layer(LICENSE, 2), layer(LICENSE, 3)], &["LICENSE", "LICENSE-2", "LICENSE-3"]),
        (vec![layer(projector, 1), layer(projector, 2)], &["mmproj.gguf", "mmproj-2.gguf"]),
        // What has a name keeps it, wherever it stands.
        (vec![layer(LICENSE, 1), placed(LICENSE, 2, "LICENSE"), layer(LICENSE, 3)], &["LICENSE-2", "LICENSE", "LICENSE-3"]),
        (vec![layer(GGUF, 1), placed(GGUF, 2, "model.gguf")], &["model-2.gguf", "model.gguf"]),
        (vec![annotated(GGUF, 1, &[(TITLE, "qwen.gguf")])], &["qwen.gguf"]),
        (vec![placed("application/vnd.docker.ai.model.file", 1, "text_encoder/config.json")], &["text_encoder/config.json"]),
        // The archives hold what stands at the root; their annotation is the name of a temporary file.
        (
            vec![
                placed("application/vnd.docker.ai.vllm.config.tar", 1, "vllm-config-7.tar"),
                layer("application/vnd.docker.ai.dir.tar", 2),
            ],
            &[".", "."],
        ),
    ] {
        assert_eq!(paths(&docker(&layers).expect("a plan")), expected);
    }
    let kit = docker(&[layer("application/vnd.docker.ai.model.file", 1), layer("x/y", 2)]).expect("a plan");
    assert_eq!((kit.layers.len(), unplaced(&kit)), (0, vec![1, 2]));
    // A ModelPack has no such names but for the two media types that only Docker Model Runner writes.
    let kit = plan(&[layer(model_pack_gguf, 1), layer(WEIGHT, 2)]).expect("a plan");
    assert_eq!((paths(&kit), unplaced(&kit)), (vec!["model.gguf".to_owned()], vec![2]));
}

#[test]
fn what_a_config_says_about_the_whole_is_told() {
    let config = json!({
        "descriptor": { "createdAt": "2023-11-14T22:13:20Z", "name": "llama", "version": "3", "description": "d", "authors": ["a", null], "licenses": ["MIT", "X"] },
        "config": { "format": "gguf", "architecture": "transformer", "paramSize": "8b", "precision": "bf16", "quantization": "awq" },
    });
    let kit = plan_with(PACK_CONFIG, config.clone(), &[], None).expect("a plan");
    let model = kit.summary.model.clone().expect("a model");
    let told = [kit.summary.name.as_str(), &kit.summary.version, &kit.summary.description, &kit.summary.license, &model.format];
    assert_eq!(told, ["llama", "3", "d", "MIT, X", "gguf"]);
    assert_eq!(
        [model.architecture.as_str(), &model.parameters, &model.precision, &model.quantization],
        ["transformer", "8b", "bf16", "awq"]
    );
    assert_eq!(kit.created, super::super::time("2023-11-14T22:13:20Z"));
    // The Kitfile says it better.
    let kitfile = json!({ "package": { "name": "other" }, "model": { "name": "m", "format": "safetensors" } });
    let kit = plan_with(PACK_CONFIG, config, &[], Some(kitfile)).expect("a plan");
    let model = kit.summary.model.clone().expect("a model");
    assert_eq!([kit.summary.name.as_str(), &model.name, &model.format, &model.precision], ["other", "m", "safetensors", "bf16"]);
    // Docker Model Runner's config.
    let config = json!({ "descriptor": { "created": "2023-11-14T22:13:20Z" }, "config": { "format": "gguf", "parameters": "361.82 M", "size": "1 GB" } });
    let kit = plan_with(DOCKER_CONFIG, config, &[], None).expect("a plan");
    assert_eq!(kit.summary.model.expect("a model").parameters, "361.82 M");
    assert_eq!(kit.created, super::super::time("2023-11-14T22:13:20Z"));
    assert_eq!(plan(&[]).expect("a plan").summary.model, None);
    refused(plan_with(PACK_CONFIG, json!({ "config": { "format": 7 } }), &[], None), "`config.format` should be a string");
}

proptest! {
    /// Whatever layers there are: each is placed once or left out, and names that were given are kept. Only two that were given the same are refused.
    #[test]
    fn every_layer_has_one_place_or_none(
        layers in proptest::collection::vec((0..6_usize, proptest::option::of("[a-d]{1,3}|LICENSE|LICENSE-2|model\\.gguf|mmproj-3\\.gguf")), 0..20),
    ) {
        let media = [GGUF, LICENSE, WEIGHT, "application/vnd.docker.ai.mmproj", "application/vnd.docker.ai.safetensors", "x/y"];
        // A path would make the last refuse it all, as another test shows.
        let layers: Vec<_> = layers.into_iter().map(|(kind, path)| (media[kind], path.filter(|_| kind != 5))).collect();
        let list = layers.iter().enumerate().map(|(position, (media, path))| match path {
            Some(path) => placed(media, position, path),
            None => layer(media, position),
        });
        let outcome = docker(&list.collect::<Vec<_>>());
        let given: Vec<&String> = layers.iter().filter_map(|(_, path)| path.as_ref()).collect();
        let same = given.iter().collect::<BTreeSet<_>>().len() < given.len();
        prop_assert_eq!(matches!(outcome, Err(KitError::FileInTheWay { .. })), same);
        let Ok(kit) = outcome else { return Ok(()) };
        prop_assert_eq!(kit.layers.len() + kit.unplaced.len(), layers.len());
        prop_assert_eq!(paths(&kit).into_iter().collect::<BTreeSet<_>>().len(), kit.layers.len());
        for layer in &kit.layers {
            if let (_, Some(path)) = &layers[layer.spec.descriptor.size as usize] {
                prop_assert_eq!(&layer.path.to_string(), path);
            }
        }
        let left_out = layers.iter().filter(|(media, path)| path.is_none() && [WEIGHT, "x/y"].contains(media)).count();
        prop_assert_eq!(kit.unplaced.len(), left_out);
    }
}
