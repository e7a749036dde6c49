//! The packer of these tests against the real kit: from the same files it must make the same layers.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::sync::Arc;

use serde_json::Value;

use crate::common::fixtures::{Case, Layout, cases};
use crate::common::pack::{Kitfile, Node, Packing, Section, Tree};
use crate::common::registry::sha256;

/// Cases whose layers do not follow from the tree alone.
const NOT_FROM_THE_TREE: [(&str, &str); 4] = [
    ("ignored-folder-exception", "the tree shows folders that .kitignore kept out of the layer"),
    ("mode-bits", "unpacking lost the setgid bit of folders"),
    ("reference-chain", "the tree holds files of the kits it refers to"),
    ("same-digest-twice", "two datasets were ignored by .kitignore"),
];

#[test]
fn the_same_files_make_the_layers_of_the_real_kit() {
    let (mut plain, mut zipped) = (0, 0);
    for case in cases("kits") {
        let by_kit = case.text("tool").is_some_and(|tool| ["kit 0.5.0", "kit 1.7.0"].contains(&tool));
        if !by_kit || NOT_FROM_THE_TREE.iter().any(|(name, _)| *name == case.name) {
            continue;
        }
        let layout = case.layout();
        let manifest = layout.json(case.digest()).expect("a manifest");
        let config = layout.json(manifest["config"]["digest"].as_str().expect("a digest")).expect("a config");
        let zip = manifest["layers"].to_string().contains("+gzip");
        let kit = kitfile(&config, if zip { Packing::Gzip } else { Packing::Plain }).pack(&tree(&case, &layout, &manifest));
        let wanted: Vec<_> =
            entries(&config).into_iter().map(|(section, entry)| (section, text(entry, "path"), text(entry, "diffId"))).collect();
        let made: Vec<_> = kit.layers.iter().map(|layer| (layer.section, layer.written.clone(), layer.diff_id.clone())).collect();
        assert_eq!(made, wanted, "{}", case.name);
        for (layer, wanted) in kit.layers.iter().zip(manifest["layers"].as_array().into_iter().flatten()) {
            assert_eq!(layer.media_type, text(wanted, "mediaType"), "{}", case.name);
            if zip {
                zipped += 1;
            } else {
                assert_eq!(
                    (&layer.digest, layer.blob.len() as u64),
                    (&text(wanted, "digest"), wanted["size"].as_u64().expect("a size")),
                    "{}",
                    case.name
                );
                plain += 1;
            }
        }
    }
    assert!(plain > 30 && zipped > 10, "{plain} plain and {zipped} gzip layers were compared");
}

#[test]
fn a_long_name_and_an_executable_come_back_out_of_a_layer() {
    let long = format!("d/{}", "n".repeat(200));
    let tree = Tree::new().file(&long, "x").file_with_mode("d/run", 0o755, "#!/bin/sh\n");
    let kit = Kitfile::new("long").dataset("d").pack(&tree);
    let mut archive = tar::Archive::new(kit.layers[0].blob.as_slice());
    let members: Vec<_> = archive
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.path().expect("a name").to_string_lossy().into_owned(), entry.header().mode().expect("a mode")))
        .collect();
    assert_eq!(members, [("d".into(), 0o755), (long, 0o644), ("d/run".into(), 0o755)]);
}

fn entries(config: &Value) -> Vec<(Section, &Value)> {
    let list = |value: &'static str, section| config[value].as_array().into_iter().flatten().map(move |entry| (section, entry));
    let model = config.get("model").into_iter();
    let parts = model.clone().flat_map(|model| model["parts"].as_array().into_iter().flatten()).map(|part| (Section::Part, part));
    let model = model.filter(|model| model.get("digest").is_some()).map(|model| (Section::Model, model));
    model
        .chain(parts)
        .chain(list("code", Section::Code))
        .chain(list("datasets", Section::Dataset))
        .chain(list("docs", Section::Docs))
        .collect()
}

fn kitfile(config: &Value, packing: Packing) -> Kitfile {
    entries(config)
        .into_iter()
        .fold(Kitfile::new("again").packing(packing), |kitfile, (section, entry)| kitfile.entry(section, &text(entry, "path")))
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// What `kit unpack` wrote, contents from the layers.
fn tree(case: &Case, layout: &Layout, manifest: &Value) -> Tree {
    let mut contents: HashMap<String, Arc<Vec<u8>>> = HashMap::new();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let blob = layout.blob(&text(layer, "digest")).expect("a blob");
        let mut content = Vec::new();
        if text(layer, "mediaType").ends_with("+gzip") {
            flate2::read::GzDecoder::new(blob).read_to_end(&mut content).expect("gzip");
        } else {
            content.extend_from_slice(blob);
        }
        for entry in tar::Archive::new(content.as_slice()).entries().expect("a tar") {
            let mut file = Vec::new();
            entry.expect("an entry").read_to_end(&mut file).expect("a file");
            contents.insert(sha256(&file), Arc::new(file));
        }
    }
    let nodes: BTreeMap<_, _> = case
        .tree()
        .expect("a tree")
        .into_iter()
        .filter(|line| !line.generated)
        .map(|line| {
            let node = if line.folder {
                Node::Folder { mode: line.mode }
            } else {
                let content = contents.get(&format!("sha256:{}", line.sha256)).expect("the content in a layer");
                assert_eq!(content.len() as u64, line.size);
                Node::File { mode: line.mode, content: Arc::clone(content) }
            };
            (line.path, node)
        })
        .collect();
    Tree(nodes)
}
