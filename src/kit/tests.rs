use super::*;
use crate::digest::Algorithm;
use crate::failure::chain;
use crate::filter::{Globs, Selection};
use crate::fixtures::{self, verified};

const TAR: &str = "application/vnd.kitops.modelkit.dataset.v1.tar";

fn plan_case(case: &fixtures::Case) -> Result<Kit, KitError> {
    let manifest = case.manifest();
    Kit::plan(&manifest, &case.blob(&Kit::config(&manifest)?))
}

/// A digest that is told from others by its number.
pub(super) fn digest(number: u8) -> String {
    format!("sha256:{}", format!("{number:02x}").repeat(32))
}

pub(super) fn layer(media_type: &str, number: u8) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{number}}}"#, digest(number))
}

pub(super) fn annotated(media_type: &str, number: u8, path: &str) -> String {
    layer(media_type, number).replace('}', &format!(r#","annotations":{{"org.cncf.model.filepath":"{path}"}}}}"#))
}

pub(super) fn documents(layers: &[String], config: &str) -> Documents {
    let media_type = "application/vnd.kitops.modelkit.config.v1+json";
    let config = verified(media_type, Bytes::copy_from_slice(config.as_bytes()));
    let Descriptor { digest, size, .. } = config.descriptor();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}},"layers":[{}]}}"#,
        layers.join(",")
    );
    Documents { manifest: verified(oci::IMAGE_MANIFEST, Bytes::from(manifest)), config }
}

fn plan(layers: &[String], config: &str) -> Result<Kit, KitError> {
    documents(layers, config).plan()
}

pub(super) fn datasets(entries: &[(&str, u8)]) -> String {
    let entries: Vec<String> =
        entries.iter().map(|(path, number)| format!(r#"{{"path":"{path}","digest":"{}"}}"#, digest(*number))).collect();
    format!(r#"{{"datasets":[{}]}}"#, entries.join(","))
}

#[test]
fn every_fixture_is_planned() {
    for case in fixtures::cases("kits") {
        let outcome = plan_case(&case);
        let kit = outcome.unwrap_or_else(|error| panic!("{}: {}", case.name, chain(&error)));
        assert_eq!(kit.manifest.digest.to_string(), case.case["digest"].as_str().expect("a digest"));
        match std::fs::read(case.folder.join("Kitfile")).ok() {
            None if kit.family == Family::ModelKit => {}
            written => assert_eq!(kit.kitfile.as_deref(), written.as_deref(), "{}", case.name),
        }
        assert!(kit.unplaced.is_empty(), "{}", case.name);
    }
}

#[test]
fn hostile_fixtures_are_refused_where_manifest_and_config_are_wrong() {
    let refused = [
        ("config-bit-flip", "the config is not the one that the manifest names: expected digest"),
        ("config-names-other-layer", "no (further) dataset layer of that digest"),
        ("config-not-json", "the config is malformed"),
        ("manifest-5mib", "the manifest has"),
        ("mixed-eras", "has no digest although other entries have one"),
        ("raw-climbs", "`..`"),
    ];
    for case in fixtures::cases("hostile") {
        let outcome = plan_case(&case);
        match refused.iter().find(|(name, _)| *name == case.name) {
            Some((_, part)) => {
                let text = chain(&outcome.expect_err(&case.name));
                assert!(text.contains(part), "{}: {text}", case.name);
            }
            None => {
                let kit = outcome.unwrap_or_else(|error| panic!("{}: {}", case.name, chain(&error)));
                assert_eq!(kit.unplaced.len(), usize::from(case.name == "unknown-layer-kind"), "{}", case.name);
            }
        }
    }
}

#[test]
fn paths_are_cleaned_as_kit_cleans_them() {
    for (written, path) in [
        ("data", "data"),
        ("./data/", "data"),
        ("", "."),
        (".", "."),
        ("./", "."),
        ("a//b/./c", "a/b/c"),
        ("a/../b", "b"),
        ("a/b/../../c", "c"),
        ("..a/b..", "..a/b.."),
        ("sub/Kitfile", "sub/Kitfile"),
    ] {
        let kit = plan(&[layer(TAR, 1)], &datasets(&[(written, 1)])).expect(written);
        assert_eq!(kit.layers[0].path.to_string(), path, "{written}");
        assert!(kit.layers[0].prefix.is_root());
    }
    let long = "a/".repeat(300);
    for (written, part) in [
        ("/data", "absolute"),
        ("//", "absolute"),
        ("..", "`..`"),
        ("../data", "`..`"),
        ("a/../../b", "`..`"),
        ("../../x", "`..`"),
        ("a\\u0000b", "NUL"),
        (&long, "levels deep"),
        ("Kitfile", "the generated Kitfile"),
        ("./Kitfile/x", "the generated Kitfile"),
    ] {
        let text = chain(&plan(&[layer(TAR, 1)], &datasets(&[(written, 1)])).expect_err(written));
        assert!(text.contains("datasets[0]") && text.contains(part), "{written}: {text}");
    }
}

#[test]
fn entries_and_layers_are_paired_by_digest() {
    let paths = |kit: &Kit| kit.layers.iter().map(|layer| (layer.spec.descriptor.size, layer.path.to_string())).collect::<Vec<_>>();
    // In the manifest's order, whatever the config's is.
    let kit = plan(&[layer(TAR, 1), layer(TAR, 2)], &datasets(&[("b", 2), ("a", 1)])).expect("a plan");
    assert_eq!(paths(&kit), [(1, "a".into()), (2, "b".into())]);
    // One digest several times: the first belongs to the first.
    let kit = plan(&[layer(TAR, 1), layer(TAR, 2), layer(TAR, 1)], &datasets(&[("a", 1), ("b", 1), ("c", 2)])).expect("a plan");
    assert_eq!(paths(&kit), [(1, "a".into()), (2, "c".into()), (1, "b".into())]);
    // Not named by the config: placed by an annotation, or left out.
    let kit = plan(&[annotated(TAR, 1, "./x/"), layer(TAR, 2)], "{}").expect("a plan");
    assert_eq!(paths(&kit), [(1, "x".into())]);
    assert_eq!(kit.unplaced.len(), 1);
    // The config decides over the annotation.
    let kit = plan(&[annotated(TAR, 1, "x")], &datasets(&[("a", 1)])).expect("a plan");
    assert_eq!(paths(&kit), [(1, "a".into())]);
}

#[test]
fn config_and_manifest_that_disagree_are_refused() {
    let model = "application/vnd.kitops.modelkit.model.v1.tar";
    let unknown = "application/vnd.kitops.modelkit.firmware.v1.tar";
    let other_size = layer(TAR, 1).replace(r#""size":1"#, r#""size":2"#);
    let two = datasets(&[("a", 1), ("b", 1)]);
    let digests =
        format!(r#"{{"datasets":[{{"digest":"{0}","diffId":"{0}"}},{{"digest":"{0}","diffId":"{1}","path":"b"}}]}}"#, digest(1), digest(2));
    for (layers, config, part) in [
        (vec![], datasets(&[("a", 1)]), "`datasets[0]` is the layer sha256:0101"),
        (vec![layer(TAR, 1)], two.clone(), "`datasets[1]` is the layer"),
        (vec![layer(model, 1)], datasets(&[("a", 1)]), "no (further) dataset layer"),
        (vec![layer(unknown, 1)], datasets(&[("a", 1)]), "unknown media type"),
        (vec![annotated(unknown, 1, "x")], "{}".into(), "unknown media type"),
        (vec![annotated("application/vnd.oci.image.layer.v1.tar", 1, "x")], "{}".into(), "unknown media type"),
        (vec![annotated(TAR, 1, "../x")], "{}".into(), "the path of the manifest's `layers[0]` is not allowed"),
        (vec![layer(TAR, 1), other_size], two, "different sizes"),
        (vec![layer(TAR, 1), layer(TAR, 1)], digests, "or diffIds"),
        (vec![layer(TAR, 1)], r#"{"datasets":[{"path":"a","digest":"sha256:00"}]}"#.into(), "the config's `datasets[0].digest`"),
        (vec![layer(TAR, 1)], r#"{"datasets":[{"path":7}]}"#.into(), "`datasets[0].path` should be a string, it is a number"),
        (vec![layer(TAR, 1)], r#"{"datasets":{}}"#.into(), "`datasets` should be an array"),
        (vec![layer(TAR, 1)], r#"{"datasets":[],"datasets":[]}"#.into(), "stands there twice"),
        (vec![layer(TAR, 1)], r#"{"Datasets":[]}"#.into(), "but for the case"),
    ] {
        let text = chain(&plan(&layers, &config).expect_err(&config));
        assert!(text.contains(part), "{config}: {text}");
    }
}

/// Two equal files, of which only one has metadata, made a kit that was refused; and so did one layer in a kit with diffIds and in one without.
#[test]
fn what_is_said_of_a_layer_once_holds_wherever_it_stands() {
    let gz = format!("{RAW}+gzip");
    let sized = |path: &str| raw(&gz, 1, path, r#"{"size":2}"#);
    let silent = |path: &str| raw(&gz, 1, path, "");
    let three = datasets(&[("a", 1), ("b", 1), ("c", 1)]);
    for layers in [[silent("a"), silent("b"), sized("c")], [silent("a"), sized("b"), silent("c")], [sized("a"), silent("b"), sized("c")]] {
        let kit = plan(&layers, &three).expect("a plan");
        assert!(kit.layers.iter().all(|layer| layer.spec.archive == Archive::Raw { size: Some(2) }), "{layers:?}");
    }
    let text = chain(&plan(&[sized("a"), silent("b"), raw(&gz, 1, "c", r#"{"size":3}"#)], &three).expect_err("two sizes"));
    assert!(text.contains("different sizes"), "{text}");

    let entry = |path: &str, diff_id: &str| format!(r#"{{"path":"{path}","digest":"{}"{diff_id}}}"#, digest(1));
    let said = format!(r#","diffId":"{}""#, digest(7));
    for (first, second) in [("", said.as_str()), (said.as_str(), "")] {
        let config = format!(r#"{{"datasets":[{},{}]}}"#, entry("a", first), entry("b", second));
        let kit = plan(&[layer(TAR, 1), layer(TAR, 1)], &config).expect("a plan");
        let diff_ids: Vec<_> = kit.layers.iter().map(|layer| layer.spec.diff_id.expect("one").to_string()).collect();
        assert_eq!(diff_ids, [digest(7), digest(7)]);
    }
}

/// A raw layer with annotations: its path, and its metadata if there are any.
fn raw(media_type: &str, number: u8, path: &str, metadata: &str) -> String {
    let mut annotations = format!(r#""org.cncf.model.filepath":"{path}""#);
    if !metadata.is_empty() {
        annotations += &format!(r#","org.cncf.model.file.metadata+json":{}"#, serde_json::Value::from(metadata));
    }
    layer(media_type, number).replace('}', &format!(r#","annotations":{{{annotations}}}}}"#))
}

const RAW: &str = "application/vnd.kitops.modelkit.dataset.v1.raw";

#[test]
fn raw_layers_are_files_as_the_manifest_says() {
    let known = r#"{"mode":320,"size":1,"mtime":"1970-01-01T00:01:00Z","typeflag":48}"#;
    for (suffix, metadata, archive, file) in [
        ("", known, Archive::Raw { size: Some(1) }, RawFile { mode: 0o500, mtime: 60 }),
        ("", "", Archive::Raw { size: Some(1) }, RawFile { mode: 0o644, mtime: 0 }),
        ("+gzip", "", Archive::Raw { size: None }, RawFile { mode: 0o644, mtime: 0 }),
        ("+zstd", r#"{"size":77}"#, Archive::Raw { size: Some(77) }, RawFile { mode: 0o644, mtime: 0 }),
    ] {
        let layer = raw(&format!("{RAW}{suffix}"), 1, "./d//m.bin", metadata);
        let kit = plan(&[layer], &datasets(&[("d/m.bin", 1)])).unwrap_or_else(|error| panic!("{suffix} {metadata}: {}", chain(&error)));
        let KitLayer { spec, path, file: shown, .. } = &kit.layers[0];
        assert_eq!((spec.archive, *shown, path.to_string()), (archive, Some(file), "d/m.bin".into()), "{suffix} {metadata}");
    }
    // One blob at two places, in whatever order: each entry belongs to the layer that notes its path.
    let layers = [raw(RAW, 1, "b", ""), raw(RAW, 1, "a", r#"{"mode":384}"#)];
    let kit = plan(&layers, &datasets(&[("a", 1), ("b", 1)])).expect("a plan");
    let shown = kit.layers.iter().map(|layer| (layer.path.to_string(), layer.file.map(|file| file.mode))).collect::<Vec<_>>();
    assert_eq!(shown, [("b".into(), Some(0o644)), ("a".into(), Some(0o600))]);
    // A file that is itself a tar may be shown as the one and as the other.
    let kit = plan(&[raw(RAW, 1, "a.tar", ""), layer(TAR, 1)], &datasets(&[("a.tar", 1), ("b", 1)])).expect("a plan");
    assert_ne!(kit.layers[0].spec.key(), kit.layers[1].spec.key());
    let bundle = raw("application/vnd.kitops.modelkit.mcpb.v1.raw", 1, "s.mcpb", "");
    let config = format!(r#"{{"mcpServers":[{{"name":"s","path":"s.mcpb","digest":"{}"}}]}}"#, digest(1));
    assert_eq!(plan(&[bundle], &config).expect("a plan").layers[0].kind, LayerKind::McpServer);
}

#[test]
fn raw_layers_without_a_place_of_their_own_are_refused() {
    let one = |path: &str| datasets(&[(path, 1)]);
    let two = |first: &str, second: &str| datasets(&[(first, 1), (second, 2)]);
    let gz = format!("{RAW}+gzip");
    for (layers, config, part) in [
        (vec![layer(RAW, 1)], one("a"), "no annotation `org.cncf.model.filepath`"),
        (vec![raw(RAW, 1, "b", "")], one("a"), "`org.cncf.model.filepath` says `b`"),
        (vec![raw(RAW, 1, "../a", "")], one("a"), "`..`"),
        (vec![raw(RAW, 1, "/a", "")], one("a"), "absolute"),
        (vec![raw(RAW, 1, ".", "")], one("."), "root folder"),
        (vec![raw(RAW, 1, "Kitfile", "")], one("Kitfile"), "generated Kitfile"),
        (vec![raw(RAW, 1, "a", r#"{"size":2}"#)], one("a"), "its blob has 1 bytes"),
        (vec![raw(RAW, 1, "a", r#"{"typeflag":50}"#)], one("a"), "`typeflag` 50"),
        (vec![raw(RAW, 1, "a", "{")], one("a"), "malformed"),
        (vec![raw(RAW, 1, "a", ""), raw(RAW, 2, "a", "")], two("a", "a"), "is the file `a`"),
        (vec![raw(RAW, 1, "a", ""), raw(RAW, 1, "a", "")], datasets(&[("a", 1), ("a", 1)]), "is the file `a`"),
        (vec![layer(TAR, 1), raw(RAW, 2, "a", "")], two("a", "a"), "is the file `a`"),
        (vec![layer(TAR, 1), raw(RAW, 2, "a", "")], two("a/b", "a"), "is declared at `a/b`"),
        (vec![raw(&gz, 1, "a", r#"{"size":2}"#), raw(&gz, 1, "b", r#"{"size":3}"#)], datasets(&[("a", 1), ("b", 1)]), "different sizes"),
    ] {
        let text = chain(&plan(&layers, &config).expect_err(&layers.join(" ")));
        assert!(text.contains(part), "{layers:?}: {text}");
    }
    plan(&[layer(TAR, 1), raw(RAW, 2, "a/b", "")], &two("a", "a/b")).expect("a file in another layer's folder");
}

#[test]
fn what_has_no_layer_is_told_from_what_misses_one() {
    let part = "application/vnd.kitops.modelkit.modelpart.v1.tar";
    let parts = |model: &str| format!(r#"{{"model":{{{model}"parts":[{{"path":"p","digest":"{}"}}]}}}}"#, digest(1));
    // A model that consists of its parts.
    assert_eq!(plan(&[layer(part, 1)], &parts("")).expect("a plan").layers.len(), 1);
    assert!(matches!(plan(&[layer(part, 1)], &parts(r#""path":"m","#)), Err(KitError::Mixed { at }) if at == "model"));
    for reference in
        ["reg.example/a/b:v1", "a/b:v1", "weights:v2", "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
    {
        let kit = plan(&[layer(part, 1)], &parts(&format!(r#""path":"{reference}","#))).expect("a plan");
        assert_eq!((kit.layers.len(), kit.model_reference.expect("a reference").written()), (1, reference));
    }
    let remote = format!(r#"{{"datasets":[{{"path":"far","remotePath":"s3://b/k"}},{{"path":"a","digest":"{}"}}]}}"#, digest(1));
    let kit = plan(&[layer(TAR, 1)], &remote).expect("a plan");
    assert_eq!((kit.layers.len(), kit.remote[0].address.as_str(), kit.remote[0].path.to_string().as_str()), (1, "s3://b/k", "far"));
    assert_eq!((kit.remote[0].reference.as_ref(), kit.model_reference), (None, None));
    // What has a layer is no reference, whatever it is called.
    let model = "application/vnd.kitops.modelkit.model.v1.tar";
    let kit = plan(&[layer(model, 1)], &format!(r#"{{"model":{{"path":"weights:v2","digest":"{}"}}}}"#, digest(1))).expect("a plan");
    assert_eq!((kit.layers[0].path.to_string().as_str(), kit.model_reference), ("weights:v2", None));
    assert!(plan(&[], "{}").expect("a plan").layers.is_empty());
}

#[test]
fn before_0_5_the_order_says_what_belongs_together() {
    let (model, code) = ("application/vnd.kitops.modelkit.model.v1.tar", "application/vnd.kitops.modelkit.code.v1.tar+gzip");
    let places = |kit: &Kit| {
        let place = |layer: &KitLayer| (layer.spec.descriptor.size, layer.path.to_string(), layer.prefix.to_string());
        kit.layers.iter().map(place).collect::<Vec<_>>()
    };
    let config = r#"{"model":{"path":"./m/w.bin"},"code":[{"path":"."}],"datasets":[{"path":"red/set"},{"path":"x//blue/set/"}]}"#;
    // The manifest's order is its own; the same blob stands in two places.
    let kit = plan(&[layer(TAR, 1), layer(code, 2), layer(model, 3), layer(TAR, 1)], config).expect("a plan");
    let expected = [(1, "red/set", "red"), (2, ".", "."), (3, "m/w.bin", "m"), (1, "x/blue/set", "x/blue")];
    assert_eq!(places(&kit), expected.map(|(size, path, prefix)| (size, path.to_owned(), prefix.to_owned())));
    assert_eq!(kit.layers[3].spelled, "x//blue/set/");
    assert!(kit.layers.iter().all(|layer| layer.spec.diff_id.is_none()));
    // A layer of another sort is none of the kit's.
    let foreign = "application/vnd.oci.image.layer.v1.tar";
    let kit = plan(&[layer(foreign, 9), layer(TAR, 1)], r#"{"datasets":[{"path":"a"}]}"#).expect("a plan");
    assert_eq!((places(&kit), kit.unplaced.len()), (vec![(1, "a".to_owned(), ".".to_owned())], 1));
    // A model without a path is no layer, or all of the folder that was packed.
    let pathless = r#"{"model":{"name":"m"},"datasets":[{"path":"a"}]}"#;
    assert_eq!(places(&plan(&[layer(TAR, 1)], pathless).expect("a plan")).len(), 1);
    assert_eq!(places(&plan(&[layer(model, 2), layer(TAR, 1)], pathless).expect("a plan"))[0], (2, ".".to_owned(), ".".to_owned()));
    let two = r#"{"datasets":[{"path":"a"},{"path":"b"}]}"#;
    for (layers, config, part) in [
        (vec![layer(TAR, 1)], two, "the manifest has 1 dataset layers, the config has 2 dataset entries"),
        (vec![layer(TAR, 1), layer(TAR, 2), layer(TAR, 3)], two, "the manifest has 3 dataset layers, the config has 2 dataset entries"),
        (vec![layer(TAR, 1), layer(TAR, 2), layer(code, 3)], two, "the manifest has 1 code layers, the config has 0 code entries"),
        (vec![], two, "the manifest has 0 dataset layers"),
        (vec![layer("application/vnd.kitops.modelkit.dataset.v1.raw", 1)], r#"{"datasets":[{"path":"a"}]}"#, "unknown media type"),
        (vec![layer(TAR, 1)], r#"{"datasets":[{"path":"../a"}]}"#, "the path of the config's `datasets[0]` is not allowed"),
        (vec![layer(TAR, 1)], r#"{"datasets":[{"path":"Kitfile"}]}"#, "the generated Kitfile"),
    ] {
        let text = chain(&plan(&layers, config).expect_err(config));
        assert!(text.contains(part), "{config}: {text}");
    }
}

#[test]
fn what_is_not_wanted_is_left_out_of_the_plan() {
    let select = |filters: &[&str], include: &[&str], exclude: &[&str]| {
        let globs = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect();
        let filters = filters.iter().map(|text| text.parse().expect(text)).collect();
        let selection = Selection { filters, globs: Globs::new(globs(include), globs(exclude)) };
        let config = datasets(&[("a", 1), ("./b/", 2), ("c/d", 3)]);
        let documents = documents(&[layer(TAR, 1), layer(TAR, 2), layer(TAR, 3)], &config);
        let kit = documents.plan().expect("a plan");
        let kit = Growing::new("a".to_owned(), kit, documents, selection, false).and_then(Growing::finish).expect("a lineage");
        let paths = kit.layers.iter().map(|layer| layer.path.to_string()).collect::<Vec<_>>().join(" ");
        (paths, kit.kitfile.is_some(), kit.shown.left_out.len())
    };
    for (filters, include, exclude, paths, kitfile, left_out) in [
        (&[][..], &[][..], &[][..], "a b c/d", true, 0),
        (&["datasets"], &[], &[], "a b c/d", false, 0),
        (&["datasets:a", "datasets:./b/", "kitfile"], &[], &[], "a b", true, 0),
        (&["datasets:b"], &[], &[], "", false, 0),
        (&["model"], &[], &[], "", false, 0),
        (&[], &["c/**", "/Kitfile"], &[], "c/d", true, 2),
        (&[], &["c/**", "Kitfile"], &[], "a b c/d", true, 0),
        (&[], &[], &["a", "/Kitfile"], "b c/d", false, 1),
        (&["datasets:a,c/d"], &[], &["a/"], "c/d", false, 1),
    ] {
        assert_eq!(select(filters, include, exclude), (paths.to_owned(), kitfile, left_out), "{filters:?} {include:?} {exclude:?}");
    }
}

#[test]
fn shared_layers_are_those_at_the_root_or_above_others() {
    for (paths, shared) in [
        (&["a", "b"][..], &[][..]),
        (&["."], &[0]),
        (&["a", "."], &[1]),
        (&["a", "a/b", "ab"], &[0]),
        (&["a/b", "a", "a/b/c", "a/b-c"], &[0, 1]),
        (&["a", "a"], &[]),
        (&["a", "a", "a/b"], &[0, 1]),
    ] {
        let entries: Vec<(&str, u8)> = paths.iter().copied().zip(1..).collect();
        let layers: Vec<String> = (1..=paths.len() as u8).map(|number| layer(TAR, number)).collect();
        assert_eq!(super::shared(&plan(&layers, &datasets(&entries)).expect("a plan").layers), shared, "{paths:?}");
    }
}

#[test]
fn only_a_kit_is_planned() {
    let manifest = |artifact_type: &str, config: &str| {
        let digest = Digest::of(Algorithm::Sha256, b"{}");
        let text = format!(
            r#"{{"schemaVersion":2,"artifactType":"{artifact_type}","config":{{"mediaType":"{config}","digest":"{digest}","size":2}}}}"#
        );
        let config = verified(config, Bytes::from_static(b"{}"));
        Kit::plan(&verified(oci::IMAGE_MANIFEST, Bytes::from(text)), &config)
    };
    let config = "application/vnd.kitops.modelkit.config.v1+json";
    assert!(manifest("", config).is_ok());
    assert!(manifest("application/vnd.kitops.modelkit.manifest.v1+json", "x/y").is_ok());
    let (pack, draft) = ("application/vnd.cncf.model.manifest.v1+json", "application/vnd.cnai.model.manifest.v1+json");
    let (docker, docker_2) = ("application/vnd.docker.ai.model.config.v0.1+json", "application/vnd.docker.ai.model.config.v0.2+json");
    for (artifact_type, config, family) in [
        ("", config, Family::ModelKit),
        ("application/vnd.kitops.modelkit.manifest.v1+json", config, Family::ModelKit),
        ("x/y", config, Family::ModelKit),
        (pack, "application/vnd.cncf.model.config.v1+json", Family::ModelPack),
        (pack, "application/vnd.oci.empty.v1+json", Family::ModelPack),
        ("", "application/vnd.cncf.model.config.v1+json", Family::ModelPack),
        (draft, "application/vnd.cnai.model.config.v1+json", Family::ModelPack),
        (draft, "application/vnd.cncf.model.config.v1+json", Family::ModelPack),
        ("", docker, Family::DockerModel),
        ("", docker_2, Family::DockerModel),
    ] {
        assert_eq!(manifest(artifact_type, config).expect(config).family, family, "{artifact_type} {config}");
    }
    for (artifact_type, config) in [(pack, config), (draft, config), (pack, docker)] {
        let error = manifest(artifact_type, config).expect_err(config);
        assert!(matches!(error, KitError::TwoFamilies { .. }) && error.to_string().contains(artifact_type), "{error}");
    }
    for other in ["application/vnd.cncf.model.config.v2+json", "application/vnd.docker.ai.model.config.v9+json"] {
        assert!(matches!(manifest("", other), Err(KitError::NotAKit { .. })), "{other}");
    }
    let text = manifest("", "application/vnd.oci.image.config.v1+json").expect_err("an image").to_string();
    assert!(text.contains("neither a ModelKit nor") && text.contains("oci.image.config"), "{text}");
    for (text, expected) in [(r#"{"architecture":"amd64","rootfs":{}}"#, false), (r#"{"package":{"name":"x"},"other":1}"#, true)] {
        let bytes = Bytes::from(text);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{digest}","size":{}}}}}"#, bytes.len());
        let planned = Kit::plan(&verified(oci::IMAGE_MANIFEST, Bytes::from(manifest)), &verified(config, bytes));
        assert_eq!(planned.is_ok(), expected, "{text}: {planned:?}");
        assert!(matches!(planned, Ok(_) | Err(KitError::NoKitfile { .. })), "{planned:?}");
    }
    let other = verified(config, Bytes::from_static(b"{ }"));
    let case = fixtures::cases("kits").remove(0);
    assert!(matches!(Kit::plan(&case.manifest(), &other), Err(KitError::OtherConfig(_))));
}

#[test]
fn the_config_is_limited() {
    let padded = |length: u64| format!("{{{}}}", " ".repeat(length as usize - 2));
    assert!(plan(&[], &padded(limits::CONFIG_BYTES)).is_ok());
    assert!(matches!(plan(&[], &padded(limits::CONFIG_BYTES + 1)), Err(KitError::ConfigTooLarge(_))));
}
