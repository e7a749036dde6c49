use super::*;
use crate::failure::chain;
use crate::fixtures::{self, verified};
use crate::kit::tests::{annotated, datasets, digest, documents, layer};
use crate::oci;

const MODEL: &str = "application/vnd.kitops.modelkit.model.v1.tar";
const PART: &str = "application/vnd.kitops.modelkit.modelpart.v1.tar";
const DATASET: &str = "application/vnd.kitops.modelkit.dataset.v1.tar";

/// Kits by the reference that others have for them.
struct Kits<'a>(&'a [(&'a str, Documents)]);

impl Kits<'_> {
    fn grow(&self, root: &str, include_remote: bool) -> Result<Lineage, LineageError> {
        self.grow_some(root, include_remote, Selection::default())
    }

    fn grow_some(&self, root: &str, include_remote: bool, selection: Selection) -> Result<Lineage, LineageError> {
        let find = |name: &str| self.0.iter().find(|(known, _)| *known == name).map(|(_, documents)| documents.clone()).expect(name);
        let plan = |documents: &Documents| documents.plan().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let mut growing = Growing::new(root.to_owned(), plan(&find(root)), find(root), selection, include_remote)?;
        while let Some(wanted) = growing.wanted()? {
            let documents = find(wanted.reference.written());
            growing.add(wanted, plan(&documents), documents)?;
        }
        growing.finish()
    }
}

/// A kit whose model is another one, with a part of its own so that no two are equal.
fn refers(to: &str, number: u8) -> Documents {
    let config = format!(r#"{{"model":{{"path":"{to}","parts":[{{"path":"part-{number}","digest":"{}"}}]}}}}"#, digest(number));
    documents(&[layer(PART, number)], &config)
}

/// A kit with a model, a part, a dataset, and a dataset that lives elsewhere.
fn whole(number: u8, remote: &str) -> Documents {
    let config = format!(
        r#"{{"model":{{"path":"model","digest":"{}","parts":[{{"path":"extra","digest":"{}"}}]}},
            "datasets":[{{"path":"far/{number}","remotePath":"{remote}"}},{{"path":"data","digest":"{}"}}]}}"#,
        digest(number),
        digest(number + 1),
        digest(number + 2),
    );
    documents(&[layer(MODEL, number), layer(PART, number + 1), layer(DATASET, number + 2)], &config)
}

fn places(lineage: &Lineage) -> Vec<(u64, String, String, usize)> {
    let layers = lineage.layers.iter().enumerate();
    let place = |(position, layer): (usize, &KitLayer)| {
        (layer.spec.descriptor.size, layer.path.to_string(), layer.prefix.to_string(), lineage.owner(position))
    };
    layers.map(place).collect()
}

fn text(error: &LineageError) -> String {
    chain(error)
}

#[test]
fn a_model_that_is_a_kit_brings_model_and_parts_before_the_rest() {
    let kits = [("top:v1", refers("mid:v1", 1)), ("mid:v1", refers("base:v1", 2)), ("base:v1", whole(3, "s3://b/k"))];
    let lineage = Kits(&kits).grow("top:v1", true).expect("a lineage");
    let found = places(&lineage);
    let expected = [(3, "model", 2), (4, "extra", 2), (2, "part-2", 1), (1, "part-1", 0)];
    assert_eq!(found, expected.map(|(size, path, owner)| (size, path.to_owned(), ".".to_owned(), owner)));
    assert_eq!(lineage.root().manifest.digest, kits[0].1.manifest.descriptor().digest);
    // A dataset of the model's kit is nobody's business here, wherever it is.
    assert!(lineage.remote.is_empty());
    let parts: Vec<_> = lineage.members().iter().map(|member| (member.name.as_str(), member.part())).collect();
    assert_eq!(parts, [("top:v1", Part::Whole), ("mid:v1", Part::Model), ("base:v1", Part::Model)]);
}

#[test]
fn a_dataset_that_is_a_kit_brings_datasets_below_its_path_if_it_is_wanted() {
    let deep = documents(&[layer(DATASET, 9), layer(PART, 8)], &{
        let parts = format!(r#""model":{{"path":"unwanted:v1","parts":[{{"path":"p","digest":"{}"}}]}}"#, digest(8));
        format!(r#"{{{parts},"datasets":[{{"path":".","digest":"{}"}}]}}"#, digest(9))
    });
    let kits = [("top:v1", whole(1, "sets:v1")), ("sets:v1", whole(4, "deep:v1")), ("deep:v1", deep)];
    let without = Kits(&kits[..1]).grow("top:v1", false).expect("a lineage");
    assert_eq!(places(&without).iter().map(|place| place.0).collect::<Vec<_>>(), [1, 2, 3]);
    let remote: Vec<_> = without.remote.iter().map(|set| (set.path.to_string(), set.address.as_str())).collect();
    assert_eq!(remote, [("far/1".to_owned(), "sets:v1")]);
    let with = Kits(&kits).grow("top:v1", true).expect("a lineage");
    let expected = [
        (9, "far/1/far/4", "far/1/far/4", 2),
        (6, "far/1/data", "far/1", 1),
        (1, "model", ".", 0),
        (2, "extra", ".", 0),
        (3, "data", ".", 0),
    ];
    assert_eq!(places(&with), expected.map(|(size, path, prefix, owner)| (size, path.to_owned(), prefix.to_owned(), owner)));
    assert!(with.remote.is_empty());
    assert_eq!(with.empty_handed().count(), 0);
    // A kit without datasets brings nothing here.
    let kits = [("top:v1", whole(1, "sets:v1")), ("sets:v1", refers("base:v1", 4))];
    let nothing = Kits(&kits).grow("top:v1", true).expect("a lineage");
    assert_eq!(nothing.empty_handed().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["sets:v1"]);
}

#[test]
fn several_references_come_in_the_order_of_the_kitfile_and_each_before_its_own_kit() {
    let sets = |entries: &[(&str, &str)], number: u8| {
        let entries: Vec<String> = entries.iter().map(|(path, to)| format!(r#"{{"path":"{path}","remotePath":"{to}"}}"#)).collect();
        let own = format!(r#"{{"path":"own","digest":"{}"}}"#, digest(number));
        documents(&[layer(DATASET, number)], &format!(r#"{{"datasets":[{own},{}]}}"#, entries.join(",")))
    };
    let leaf = |number: u8| documents(&[layer(DATASET, number)], &datasets(&[("leaf", number)]));
    let kits = [
        ("top:v1", sets(&[("a", "a:v1"), ("b", "b:v1"), ("c", "leaf:v1")], 1)),
        ("a:v1", sets(&[("x", "leaf:v1"), ("y", "other:v1")], 2)),
        ("b:v1", leaf(3)),
        ("leaf:v1", leaf(4)),
        ("other:v1", leaf(5)),
    ];
    let lineage = Kits(&kits).grow("top:v1", true).expect("a lineage");
    // The same kit may stand in several places.
    let paths: Vec<_> = lineage.layers.iter().map(|layer| layer.path.to_string()).collect();
    assert_eq!(paths, ["a/x/leaf", "a/y/leaf", "a/own", "b/leaf", "c/leaf", "own"]);
}

#[test]
fn circles_are_refused_by_what_they_are_and_named_in_full() {
    let kits = [("a:v1", refers("b:v1", 1)), ("b:v1", refers("c:v1", 2)), ("c:v1", refers("b:v1", 3))];
    let error = Kits(&kits).grow("a:v1", false).expect_err("a circle");
    assert!(text(&error).contains("a:v1 => b:v1 => c:v1 => b:v1"), "{error}");
    // Through the root, which has another name for the user.
    let kits = [("reg.example/a:v1", refers("b:v1", 1)), ("b:v1", refers("a:latest", 2)), ("a:latest", refers("b:v1", 1))];
    let error = Kits(&kits).grow("reg.example/a:v1", false).expect_err("a circle");
    assert!(text(&error).contains("reg.example/a:v1 => b:v1 => a:latest"), "{error}");
    let itself = [("a:v1", refers("a:v1", 1))];
    assert!(matches!(Kits(&itself).grow("a:v1", false), Err(LineageError::Circle(chain)) if chain == ["a:v1", "a:v1"]));
    // Through datasets.
    let kits = [("a:v1", whole(1, "b:v1")), ("b:v1", whole(4, "a:v1"))];
    assert!(matches!(Kits(&kits).grow("a:v1", true), Err(LineageError::Circle(chain)) if chain.len() == 3));
    assert!(Kits(&kits).grow("a:v1", false).is_ok());
}

#[test]
fn ten_references_may_follow_one_another() {
    let names: Vec<String> = (0..=REFERENCES_IN_A_ROW + 1).map(|number| format!("kit-{number}:v1")).collect();
    let chain_of = |last: usize| -> Vec<(&str, Documents)> {
        let kit = |number: usize| match number {
            number if number == last => documents(&[layer(MODEL, 99)], &format!(r#"{{"model":{{"path":"m","digest":"{}"}}}}"#, digest(99))),
            number => refers(&names[number + 1], number as u8 + 1),
        };
        (0..=last).map(|number| (names[number].as_str(), kit(number))).collect()
    };
    let lineage = Kits(&chain_of(REFERENCES_IN_A_ROW)).grow("kit-0:v1", false).expect("as many as are allowed");
    assert_eq!((lineage.members().len(), lineage.layers.len()), (11, 11));
    // What is one too many is not even asked for.
    let known = chain_of(REFERENCES_IN_A_ROW + 1);
    let error = Kits(&known[..known.len() - 1]).grow("kit-0:v1", false).expect_err("one too many");
    assert!(text(&error).contains("more than 10 references") && text(&error).ends_with("kit-10:v1 => kit-11:v1"), "{error}");
}

#[test]
fn kits_documents_layers_and_paths_are_limited_in_all() {
    let referring = |count: usize| {
        let sets: Vec<String> = (0..count).map(|number| format!(r#"{{"path":"d{number}","remotePath":"leaf:v1"}}"#)).collect();
        documents(&[], &format!(r#"{{"datasets":[{}]}}"#, sets.join(",")))
    };
    let leaf = documents(&[layer(DATASET, 1)], &datasets(&[("leaf", 1)]));
    let grow = |count, leaf: &Documents| Kits(&[("top:v1", referring(count)), ("leaf:v1", leaf.clone())]).grow("top:v1", true);
    assert_eq!(grow(REFERENCED_KITS, &leaf).expect("as many as are allowed").layers.len(), REFERENCED_KITS);
    assert!(matches!(grow(REFERENCED_KITS + 1, &leaf), Err(LineageError::TooMany(chain)) if chain == ["top:v1", "leaf:v1"]));
    let unwanted = |count| Kits(&[("top:v1", referring(count))]).grow("top:v1", false);
    assert_eq!(unwanted(REMOTE_DATASETS).expect("as many as are allowed").remote.len(), REMOTE_DATASETS);
    assert!(matches!(unwanted(REMOTE_DATASETS + 1), Err(LineageError::TooManyRemote(4097))));
    // The root's own documents count too.
    let padded = documents(&[layer(DATASET, 1)], &format!("{}{}", datasets(&[("leaf", 1)]), " ".repeat(4_000_000)));
    let fits = usize::try_from(REFERRING_DOCUMENT_BYTES).expect("small") / 4_000_000;
    assert!(grow(fits, &padded).is_ok());
    assert!(matches!(grow(fits + 1, &padded), Err(LineageError::Documents(name)) if name == "top:v1"));
    let many: Vec<String> = (0..4096).map(|_| annotated(DATASET, 1, "d")).collect();
    assert!(matches!(grow(2, &documents(&many, "{}")), Err(LineageError::TooManyLayers(8192))));
    assert!(grow(1, &documents(&many, "{}")).is_ok());
    let long = format!("{}d", "d/".repeat(255));
    let error = grow(1, &documents(&[layer(DATASET, 1)], &datasets(&[(&long, 1)]))).expect_err("too deep below another");
    assert!(text(&error).contains("leaf:v1") && text(&error).contains("levels deep"), "{}", text(&error));
}

#[test]
fn kits_must_agree_on_what_a_layer_is() {
    let other = layer(PART, 1).replace(r#""size":1"#, r#""size":2"#);
    let parent = documents(&[other], &format!(r#"{{"model":{{"parts":[{{"path":"p","digest":"{}"}}]}}}}"#, digest(1)));
    let error = Kits(&[("top:v1", refers("base:v1", 1)), ("base:v1", parent)]).grow("top:v1", false).expect_err("two sizes");
    assert!(text(&error).contains("different sizes"), "{}", text(&error));
}

#[test]
fn shared_layers_are_found_across_kits() {
    let code = r#"{"model":{"path":"base:v1"},"code":[{"path":".","digest":"DIGEST"}]}"#.replace("DIGEST", &digest(1));
    let top = documents(&[layer("application/vnd.kitops.modelkit.code.v1.tar", 1)], &code);
    let base = |path: &str| documents(&[layer(MODEL, 2)], &format!(r#"{{"model":{{"path":"{path}","digest":"{}"}}}}"#, digest(2)));
    let shared = |path| Kits(&[("top:v1", top.clone()), ("base:v1", base(path))]).grow("top:v1", false).expect("a lineage").shared();
    assert_eq!(shared("model"), [1]);
    assert_eq!(shared("."), [0, 1]);
}

#[test]
fn the_chain_of_the_fixture_is_put_together() {
    let case = fixtures::cases("kits").into_iter().find(|case| case.name == "reference-chain").expect("the case");
    let kits = case.kits();
    let kits: Vec<(&str, Documents)> = kits
        .iter()
        .map(|(name, bytes)| {
            let manifest = verified(oci::IMAGE_MANIFEST, bytes.clone());
            let config = case.blob(&Kit::config(&manifest).expect("a kit"));
            (name.as_str(), Documents { manifest, config })
        })
        .collect();
    let lineage = Kits(&kits).grow("registry.example.com/team/top:v1", false).expect("a lineage");
    let paths: Vec<_> = lineage.layers.iter().map(|layer| layer.path.to_string()).collect();
    assert_eq!(paths, ["weights/base.bin", "weights/vocab.txt", "adapters/mid.bin", "adapters/top.bin", "data", "README.md"]);
}
