//! The tree against a model that knows everything: random files, random layers, random order of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::digest::Algorithm;
use crate::filter::{Globs, ignored};
use crate::index::{FileFacts, IndexBuilder, NewEntry, Place as Stored, Stored as Facts};

/// A kit whose every file and folder is known.
#[derive(Debug, Clone)]
struct Model {
    /// Path to size; `None` for folders.
    entries: BTreeMap<String, Option<u64>>,
    /// Declared paths, one a layer; the same one twice makes a group.
    layers: Vec<String>,
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a path of the test")
}

fn digest(rank: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &rank.to_le_bytes())
}

fn index(rank: usize, entries: &[(String, Option<u64>)]) -> Index {
    let mut builder = IndexBuilder::new(tempfile::tempfile().expect("scratch"));
    for (offset, (text, size)) in entries.iter().enumerate() {
        let kind = if size.is_some() { Kind::File } else { Kind::Folder };
        let place = if size.is_some() { Stored::Packed { offset: offset as u64 } } else { Stored::None };
        let size = size.unwrap_or(0);
        builder.add(&NewEntry { path: path(text), kind, mode: 0o640, mtime: 0, size, place, stream_offset: offset as u64 }).expect("added");
    }
    let out = tempfile::tempfile().expect("file");
    let facts = FileFacts { size: 0, mode: 0o444, ctime_sec: 0, ctime_nsec: 0 };
    let stored = Facts { layer: digest(rank), blob_size: 0, uncompressed: None, uncompressed_size: 0, pack: facts };
    builder.finish(&out, &stored, &mut |_| Ok(facts)).expect("written");
    Index::map(&out, &digest(rank)).expect("readable")
}

fn place(rank: usize, text: &str, file: Option<DeclaredFile>) -> Place {
    Place { digest: digest(rank), path: path(text), prefix: RelPath::root(), size: 1, file }
}

fn tree(layers: &[&str]) -> Tree {
    filtered(layers, &Globs::default())
}

/// The tree of these layers under the globs, as a plan leaves it.
fn filtered(layers: &[&str], globs: &Globs) -> Tree {
    let left_out = layers.iter().map(|text| path(text)).filter(|path| globs.rules_out(&globs.reach(path))).collect();
    let places = layers.iter().enumerate().map(|(rank, text)| place(rank, text, None));
    let places = places.filter(|place| !globs.rules_out(&globs.reach(&place.path)));
    let kitfile = globs.shows(&globs.reach(&path("Kitfile")), false);
    Tree::new(places.collect(), kitfile.then_some(5), Shown { globs: globs.clone(), left_out }).expect("a plan")
}

fn raw(size: Option<u64>) -> Option<DeclaredFile> {
    Some(DeclaredFile { mode: 0o200, mtime: 7, size })
}

fn entries(list: &[(&str, Option<u64>)]) -> Vec<(String, Option<u64>)> {
    list.iter().map(|(text, size)| ((*text).to_owned(), *size)).collect()
}

impl Model {
    /// Declared path of the layer that owns a path.
    fn owner(&self, of: &str) -> Option<usize> {
        let covers = |declared: &str| declared == "." || of == declared || of.starts_with(&format!("{declared}/"));
        let owners = self.layers.iter().enumerate().filter(|(_, declared)| covers(declared));
        owners.max_by_key(|(rank, declared)| (path(declared).depth(), usize::MAX - rank)).map(|(rank, _)| rank)
    }

    /// What each layer's archive holds: what it owns, and the folders above it.
    fn archives(&self) -> Vec<Vec<(String, Option<u64>)>> {
        let mut archives = vec![BTreeMap::new(); self.layers.len()];
        for (text, size) in &self.entries {
            let Some(mut rank) = self.owner(text) else { continue };
            // The members of a group share what is the group's.
            let same: Vec<usize> = (0..self.layers.len()).filter(|&other| self.layers[other] == self.layers[rank]).collect();
            rank = same[text.len() % same.len()];
            archives[rank].insert(text.clone(), *size);
            let mut parent = path(text).parent();
            while let Some(above) = parent.filter(|above| !above.is_root()) {
                archives[rank].entry(above.to_string()).or_insert(None);
                parent = above.parent();
            }
        }
        archives.into_iter().map(|archive| archive.into_iter().collect()).collect()
    }

    /// The layers that are declared to be files: of those that have a file for themselves some, and the sizes of some of these are declared too.
    fn raw(&self, which: u8, sized: u8) -> Vec<Option<DeclaredFile>> {
        let layers = self.layers.iter().enumerate();
        let alone = |text: &String| self.layers.iter().filter(|other| *other == text).count() == 1;
        let file = |(rank, text): (usize, &String)| {
            let size = (*self.entries.get(text)?).filter(|_| alone(text) && which >> rank & 1 == 1)?;
            raw((sized >> rank & 1 == 1).then_some(size))
        };
        layers.map(file).collect()
    }

    /// Every path that a mount has to show in the end.
    fn shown(&self) -> BTreeMap<String, Option<u64>> {
        let mut shown: BTreeMap<String, Option<u64>> =
            self.entries.iter().filter(|(text, _)| self.owner(text).is_some()).map(|(text, size)| (text.clone(), *size)).collect();
        let folders: Vec<RelPath> = shown.keys().map(|text| path(text)).chain(self.layers.iter().map(|text| path(text))).collect();
        for folder in folders {
            let mut parent = folder.parent();
            while let Some(above) = parent.filter(|above| !above.is_root()) {
                shown.entry(above.to_string()).or_insert(None);
                parent = above.parent();
            }
        }
        shown.insert("Kitfile".into(), Some(5));
        shown
    }
}

/// Follows a path as the kernel would, as far as the tree can say.
fn walk(tree: &Tree, text: &str) -> Lookup {
    let mut at = Lookup::Found(Node::Anchor(0), Attributes { kind: Kind::Folder, mode: 0, size: 0, mtime: 0 });
    for name in path(text).components() {
        let node = match at {
            Lookup::Found(node, Attributes { kind: Kind::Folder, .. }) => node,
            Lookup::Found(..) => return Lookup::Absent,
            other => return other,
        };
        at = tree.lookup(node, name).expect("sound indexes");
    }
    at
}

fn list(tree: &Tree, folder: Node, position: u64) -> Vec<(u64, String)> {
    let mut names = Vec::new();
    let known = tree
        .list(folder, position, &mut |at, child| {
            names.push((at, String::from_utf8(child.name.to_vec()).expect("names of the test")));
            ControlFlow::Continue(())
        })
        .expect("sound indexes");
    assert!(matches!(known, Known::Is(())));
    names
}

fn model() -> impl Strategy<Value = Model> {
    let name = prop::sample::select(vec!["a", "b", "c", "ab", "Kit"]);
    let deep = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let files = prop::collection::btree_map(deep.clone(), 0..9u64, 0..24);
    let folders = prop::collection::btree_set(deep.clone(), 0..6);
    let layers = prop::collection::vec(prop_oneof![4 => deep, 1 => Just(".".to_owned())], 1..6);
    (files, folders, layers).prop_map(|(files, folders, layers)| {
        let mut entries: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for (text, size) in files {
            entries.insert(text, Some(size));
        }
        for text in folders {
            entries.entry(text).or_insert(None);
        }
        // A name is a file or a folder: what has something below it, declared or not, is a folder.
        let below: BTreeSet<String> = entries
            .keys()
            .chain(layers.iter())
            .flat_map(|text| {
                let above = std::iter::successors(path(text).parent(), RelPath::parent);
                above.filter(|above| !above.is_root()).map(|above| above.to_string()).collect::<Vec<_>>()
            })
            .collect();
        for text in below {
            if let Some(size) = entries.get_mut(&text) {
                *size = None;
            }
        }
        Model { entries, layers }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_models_and_comes_when_it_can(model in model(), order in any::<prop::sample::Index>(), from in 0..12u64, which: u8, sized: u8) {
        let raw = model.raw(which, sized);
        let places = model.layers.iter().zip(&raw).enumerate().map(|(rank, (text, file))| place(rank, text, *file));
        let tree = Tree::new(places.collect(), Some(5), Shown::default()).expect("a plan");
        let archives = model.archives();
        let shown = model.shown();
        let mut groups: Vec<Group> = tree.groups().collect();
        let turn = order.index(groups.len());
        groups.rotate_left(turn);
        for known in 0..=groups.len() {
            for (text, size) in &shown {
                let group = model.owner(text).map(|rank| tree.group_of(rank as u16 + 1));
                match walk(&tree, text) {
                    Lookup::Found(node, attributes) => {
                        prop_assert_eq!(attributes.kind == Kind::File, size.is_some(), "{}", text);
                        prop_assert_eq!(attributes.size, size.unwrap_or(0), "{}", text);
                        prop_assert_eq!(tree.path(node).expect("known").to_string(), text.as_str());
                        let id = tree.id(node, attributes.kind, 0);
                        prop_assert_eq!(tree.node(id).expect("an id of this tree"), node);
                    }
                    Lookup::Absent => prop_assert!(false, "{} is denied", text),
                    Lookup::Unsized(node, attributes) => {
                        prop_assert!(size.is_some() && tree.is_declared_file(node) && attributes.size == 0, "{}", text);
                        prop_assert!(matches!(tree.attributes(node), Ok(Known::Unknown(waits)) if Some(waits) == group && !tree.is_known(waits)));
                        prop_assert!(matches!(tree.file(node), Ok(Known::Is(_))), "it can be opened");
                    }
                    Lookup::Unknown(_, waits) | Lookup::Cold(waits) => {
                        prop_assert!(!tree.is_known(waits));
                        // It waits for what covers it and nothing else.
                        let covers = model.layers[tree.slots(waits)[0] as usize - 1].clone();
                        prop_assert!(covers == "." || path(text).starts_with(&path(&covers)), "{} waits for {}, owner {:?}", text, covers, group);
                    }
                }
            }
            for absent in ["nothing", "a/nothing", "a/b/nothing", "Kitfil"] {
                prop_assert!(!matches!(walk(&tree, absent), Lookup::Found(..)), "{}", absent);
            }
            if let Some(&group) = groups.get(known) {
                let rank = tree.slots(group)[0] as usize - 1;
                if let Some(file) = raw[rank] {
                    prop_assert_eq!(tree.is_known(group), file.size.is_some());
                    if file.size.is_none() {
                        let size = model.entries[&model.layers[rank]];
                        tree.learn(group, vec![index(rank, &[("file".to_owned(), size)])]).expect("a file");
                    }
                    continue;
                }
                let indexes = tree.slots(group).iter().map(|&slot| index(slot as usize - 1, &archives[slot as usize - 1])).collect();
                tree.learn(group, indexes).expect("disjoint layers");
            }
        }
        // All is known: listings are whole, in order, and the same from any position on.
        let folders = shown.iter().filter(|(_, size)| size.is_none()).map(|(text, _)| text.as_str()).chain(["."]);
        for folder in folders {
            let Lookup::Found(node, _) = walk(&tree, folder) else { panic!("{folder} is known") };
            let parent = path(folder);
            let expected: Vec<String> = shown.keys().map(|text| path(text)).filter(|text| text.parent().as_ref() == Some(&parent)).map(|text| String::from_utf8_lossy(text.name()).into_owned()).collect::<BTreeSet<_>>().into_iter().collect();
            let all = list(&tree, node, 0);
            prop_assert_eq!(all.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>(), expected, "{}", folder);
            let rest: Vec<_> = all.iter().filter(|(at, _)| *at > from).cloned().collect();
            prop_assert_eq!(list(&tree, node, from), rest, "{} from {}", folder, from);
            let above = tree.parent(node).expect("known");
            prop_assert_eq!(tree.path(above).expect("known"), parent.parent().unwrap_or_else(RelPath::root));
        }
    }
}

#[test]
fn what_a_layer_does_not_own_refuses_it_whenever_it_comes() {
    for (layers, slot, archive, wrong) in [
        (&["m"][..], 1, &[("m/x", Some(1)), ("n/x", Some(1))][..], "n"),
        (&["m"], 1, &[("x", Some(1))], "x"),
        (&[".", "m"], 1, &[("m/x", Some(1))], "m"),
        (&[".", "m"], 1, &[("m", Some(1))], "m"),
        (&["a/b"], 1, &[("a", Some(1))], "a"),
        (&["a", "a/b/c"], 1, &[("a/b", Some(1))], "a/b"),
        (&["."], 1, &[("Kitfile", Some(1))], "Kitfile"),
    ] {
        let tree = tree(layers);
        let error = tree.learn(tree.group_of(slot), vec![index(slot as usize - 1, &entries(archive))]).expect_err(wrong);
        assert!(error.to_string().contains(&format!("`{wrong}`")), "{layers:?} {archive:?}: {error}");
        assert!(!tree.is_known(tree.group_of(slot)));
    }
}

#[test]
fn members_of_a_group_share_folders_and_no_name() {
    let one = entries(&[("d", None), ("d/a", Some(1)), ("d/s", None), ("d/s/a", Some(1))]);
    let other = entries(&[("d", None), ("d/b", Some(2)), ("d/s", None), ("d/s/b", Some(2))]);
    let shared = tree(&["d", "d"]);
    shared.learn(Group(0), vec![index(0, &one), index(1, &other)]).expect("disjoint");
    let Lookup::Found(folder, _) = walk(&shared, "d/s") else { panic!("a folder of both") };
    assert_eq!(list(&shared, folder, 0).into_iter().map(|(_, name)| name).collect::<Vec<_>>(), ["a", "b"]);
    for clash in [&[("d/a", Some(3))][..], &[("d/a/x", Some(3))], &[("d/s", Some(3))]] {
        let tree = tree(&["d", "d"]);
        let error = tree.learn(Group(0), vec![index(0, &one), index(1, &entries(clash))]).expect_err("a collision");
        assert!(matches!(error, TreeError::Collision { .. }), "{clash:?}: {error}");
    }
}

#[test]
fn without_a_generated_kitfile_the_name_is_like_any_other() {
    let bare = |layers: &[&str]| {
        let place = |(rank, text): (usize, &&str)| place(rank, text, None);
        Tree::new(layers.iter().enumerate().map(place).collect(), None, Shown::default()).expect("a plan")
    };
    let names = |tree: &Tree| list(tree, Node::Anchor(0), 0).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    let tree = bare(&["here"]);
    assert_eq!((walk(&tree, "Kitfile"), names(&tree)), (Lookup::Absent, vec!["here".to_owned()]));
    // The number that the generated one would have.
    let free = NodeId::new(0, tree.unowned.len() as u32 + 1, 1);
    assert!(matches!(tree.node(free), Err(TreeError::NoSuchNode(_))));
    assert_eq!(tree.known_entries(), 2);
    for declared in ["Kitfile", "."] {
        let tree = bare(&[declared]);
        tree.learn(Group(0), vec![index(0, &entries(&[("Kitfile", Some(9))]))]).expect("owned");
        assert!(matches!(walk(&tree, "Kitfile"), Lookup::Found(_, Attributes { size: 9, .. })), "{declared}");
        assert_eq!(names(&tree), ["Kitfile"], "{declared}");
    }
}

#[test]
fn a_declared_path_that_its_layer_does_not_have_is_absent_in_the_end() {
    let tree = tree(&["gone", "here"]);
    assert!(matches!(walk(&tree, "gone"), Lookup::Unknown(..)));
    tree.learn(tree.group_of(1), vec![index(0, &[])]).expect("an empty layer");
    assert_eq!(walk(&tree, "gone"), Lookup::Absent);
    assert_eq!(list(&tree, Node::Anchor(0), 0).into_iter().map(|(_, name)| name).collect::<Vec<_>>(), ["Kitfile", "here"]);
}

#[test]
fn a_declared_file_is_known_without_its_layer() {
    let places = vec![place(0, ".", None), place(1, "w/m.bin", raw(Some(9))), place(2, "z.gz", raw(None))];
    let tree = Tree::new(places, Some(5), Shown::default()).expect("a plan");
    let Lookup::Found(node, attributes) = walk(&tree, "w/m.bin") else { panic!("known") };
    assert_eq!(attributes, Attributes { kind: Kind::File, mode: 0o644, size: 9, mtime: 7 });
    assert_eq!(tree.file(node).expect("sound"), Known::Is(FileAt { slot: 2, entry: RAW_RANK }));
    assert_eq!(tree.lookup(node, b"x").expect("sound"), Lookup::Absent);
    assert_eq!(tree.layer_of(node), Some(2));
    let Lookup::Unsized(node, attributes) = walk(&tree, "z.gz") else { panic!("a file") };
    assert_eq!((attributes.kind, attributes.mode, attributes.mtime), (Kind::File, 0o644, 7));
    assert_eq!(tree.lookup(node, b"x").expect("sound"), Lookup::Absent);
    // The kernel keeps the id that it got before the size was known.
    let id = tree.id(node, Kind::File, 0);
    tree.learn(tree.group_of(3), vec![index(2, &entries(&[("file", Some(3))]))]).expect("a file");
    assert!(matches!(walk(&tree, "z.gz"), Lookup::Found(same, Attributes { size: 3, .. }) if tree.id(same, Kind::File, 0) == id));
    // Another layer that is at its place is refused, whatever it has there.
    for wrong in [&[("w", None), ("w/m.bin", None)][..], &[("w", None), ("w/m.bin", Some(1))], &[("w", Some(1))], &[("z.gz", None)]] {
        tree.learn(Group(0), vec![index(0, &entries(wrong))]).expect_err("in the way");
    }
}

#[test]
fn a_declared_file_stands_alone() {
    for (one, other) in [("m", "m"), ("m", "m/x"), ("m/x", "m"), ("x", "."), (".", "x")] {
        for swap in [false, true] {
            let mut places = [place(0, one, raw(Some(1))), place(1, other, None)];
            if swap {
                places.swap(0, 1);
            }
            let in_the_way = path(other).starts_with(&path(one));
            assert_eq!(Tree::new(places.into(), Some(5), Shown::default()).is_err(), in_the_way, "{one} and {other}");
        }
        assert!(Tree::new(vec![place(0, one, raw(None)), place(1, other, raw(None))], Some(5), Shown::default()).is_err());
    }
}

#[test]
fn a_placeholder_never_has_the_id_of_the_file_that_it_proves_to_be() {
    let tree = tree(&["w.bin"]);
    let Lookup::Unknown(node, group) = walk(&tree, "w.bin") else { panic!("unknown") };
    let placeholder = tree.id(node, Kind::Folder, 0);
    tree.learn(group, vec![index(0, &entries(&[("w.bin", Some(7))]))]).expect("owned");
    let Lookup::Found(node, attributes) = walk(&tree, "w.bin") else { panic!("known") };
    let file = tree.id(node, attributes.kind, 0);
    assert_ne!(placeholder, file);
    assert_eq!(placeholder.inode(), file.inode());
    assert_eq!(tree.node(placeholder).expect("an id"), tree.node(file).expect("an id"));
}

/// True if a glob says by name that it means all of a folder which a layer is declared at.
fn means_all_of(glob: &str, declared: &str) -> bool {
    let whole = ["/**/*", "/**", "/*"].iter().find_map(|end| Some(format!("/{}", glob.strip_suffix(end)?.trim_start_matches('/'))));
    let folder = whole.or_else(|| glob.strip_suffix('/').map(str::to_owned));
    let by_name = |folder: &String| folder.rsplit('/').next().is_some_and(|name| !name.is_empty() && !name.contains(['*', '?', '[']));
    folder.filter(by_name).is_some_and(|folder| ignored(&folder, declared, true))
}

impl Model {
    /// The same with something at every declared path.
    fn without_missing(mut self) -> Self {
        for declared in self.layers.iter().filter(|declared| *declared != ".") {
            self.entries.entry(declared.clone()).or_insert(None);
        }
        self
    }

    /// Every path that a mount with these globs has to show in the end.
    fn in_sight(&self, include: &[String], exclude: &[String]) -> BTreeSet<String> {
        let all = self.shown();
        let filled: BTreeSet<String> = all.keys().filter_map(|text| Some(path(text).parent()?.to_string())).collect();
        let leaves = all.iter().filter(|(text, size)| size.is_some() || !filled.contains(*text));
        let shows = |text: &str, folder: bool| {
            let declared = self.layers.iter().any(|declared| declared == text);
            let matches = |glob: &String| ignored(glob, text, folder) || declared && means_all_of(glob, text);
            (include.is_empty() || include.iter().any(matches)) && !exclude.iter().any(matches)
        };
        let leaves = leaves.filter(|(text, size)| shows(text, size.is_none())).map(|(text, _)| path(text));
        let above = leaves.flat_map(|leaf| std::iter::successors(Some(leaf), RelPath::parent).collect::<Vec<_>>());
        above.filter(|path| !path.is_root()).map(|path| path.to_string()).collect()
    }
}

fn some_globs() -> impl Strategy<Value = Vec<String>> {
    let glob = prop::sample::select(vec![
        "a", "/a", "a/", "/b/", "a/*", "a/**", "/c/**", "*", "*/", "**/b", "a/**/b", "[bc]", "?", "ab", "/*/b", "*b", "c/*/", "Kit*",
        "a/b", "b/a/",
    ]);
    prop::collection::vec(glob.prop_map(str::to_owned), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn under_globs_every_answer_is_the_models_whatever_came_first(
        model in model(),
        include in some_globs(),
        exclude in some_globs(),
        order in any::<prop::sample::Index>(),
        from in 0..12u64,
    ) {
        let model = model.without_missing();
        let parsed = |texts: &[String]| texts.iter().map(|text| text.parse().expect(text)).collect();
        let globs = Globs::new(parsed(&include), parsed(&exclude));
        let layers: Vec<&str> = model.layers.iter().map(String::as_str).collect();
        let kept: Vec<usize> = (0..layers.len()).filter(|&rank| !globs.rules_out(&globs.reach(&path(layers[rank])))).collect();
        let tree = filtered(&layers, &globs);
        let (archives, all, in_sight) = (model.archives(), model.shown(), model.in_sight(&include, &exclude));
        let mut groups: Vec<Group> = tree.groups().collect();
        if !groups.is_empty() {
            let turn = order.index(groups.len());
            groups.rotate_left(turn);
        }
        for known in 0..=groups.len() {
            for (text, size) in &all {
                match walk(&tree, text) {
                    Lookup::Found(_, attributes) => {
                        prop_assert!(in_sight.contains(text), "{} shows; {} known", text, known);
                        prop_assert_eq!((attributes.kind == Kind::File, attributes.size), (size.is_some(), size.unwrap_or(0)), "{}", text);
                    }
                    Lookup::Absent => prop_assert!(!in_sight.contains(text), "{} is denied; {} known", text, known),
                    Lookup::Unsized(..) => prop_assert!(false, "no layer is a bare file"),
                    Lookup::Unknown(_, waits) | Lookup::Cold(waits) => prop_assert!(!tree.is_known(waits), "{}", text),
                }
            }
            // A listing that is given is the last one.
            for folder in all.iter().filter(|(_, size)| size.is_none()).map(|(text, _)| text.as_str()).chain(["."]) {
                if let Lookup::Found(node, _) = walk(&tree, folder) {
                    let mut names = BTreeSet::new();
                    let listed = tree.list(node, 0, &mut |_, child| {
                        names.insert(String::from_utf8_lossy(child.name).into_owned());
                        ControlFlow::Continue(())
                    });
                    let parent = path(folder);
                    let children = in_sight.iter().map(|text| path(text)).filter(|text| text.parent().as_ref() == Some(&parent));
                    match listed.expect("sound indexes") {
                        Known::Is(()) => prop_assert_eq!(names, children.map(|text| String::from_utf8_lossy(text.name()).into_owned()).collect()),
                        Known::Absent => prop_assert!(false, "{} is there", folder),
                        Known::Unknown(group) => prop_assert!(!tree.is_known(group)),
                    }
                }
            }
            if let Some(&group) = groups.get(known) {
                let ranks = tree.slots(group).iter().map(|&slot| kept[usize::from(slot) - 1]);
                tree.learn(group, ranks.map(|rank| index(rank, &archives[rank])).collect()).expect("disjoint layers");
            }
        }
        for folder in in_sight.iter().filter(|text| all[*text].is_none()).map(String::as_str).chain(["."]) {
            let Lookup::Found(node, _) = walk(&tree, folder) else { panic!("{folder} is known") };
            let parent = path(folder);
            let children = in_sight.iter().map(|text| path(text)).filter(|text| text.parent().as_ref() == Some(&parent));
            let expected: BTreeSet<String> = children.map(|text| String::from_utf8_lossy(text.name()).into_owned()).collect();
            let listed = list(&tree, node, 0);
            prop_assert_eq!(listed.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>(), "{}", folder);
            let rest: Vec<_> = listed.into_iter().filter(|(at, _)| *at > from).collect();
            prop_assert_eq!(list(&tree, node, from), rest, "{} from {}", folder, from);
        }
    }
}

fn exclude(texts: &[&str]) -> Globs {
    Globs::new(Vec::new(), texts.iter().map(|text| text.parse().expect(text)).collect())
}

#[test]
fn a_folder_above_a_layer_that_was_left_out_is_not_taken_for_empty() {
    // The layer at the root has the folder above the other's, as kit packs it, and nothing in it.
    let archive = entries(&[("a", None), ("a/b", None), ("e", None), ("x", Some(1))]);
    for (globs, names) in [(exclude(&["a/b"]), &["Kitfile", "e", "x"][..]), (exclude(&["x"]), &["Kitfile", "a", "e"])] {
        let tree = filtered(&[".", "a/b"], &globs);
        for group in tree.groups() {
            let archive = if tree.slots(group) == [1] { archive.clone() } else { entries(&[("a/b/f", Some(1))]) };
            tree.learn(group, vec![index(usize::from(tree.slots(group)[0]) - 1, &archive)]).expect("owned");
        }
        assert_eq!(list(&tree, Node::Anchor(0), 0).into_iter().map(|(_, name)| name).collect::<Vec<_>>(), names);
    }
}

#[test]
fn a_folder_above_layers_waits_for_the_cheapest_that_may_show_something() {
    let sizes = [("a/big", 9), ("a/small", 1), ("a/middle", 5)];
    let place = |(rank, (text, size)): (usize, &(&str, u64))| Place {
        digest: digest(rank),
        path: path(text),
        prefix: RelPath::root(),
        size: *size,
        file: None,
    };
    let tree = |globs: Globs| {
        Tree::new(sizes.iter().enumerate().map(place).collect(), None, Shown { globs, left_out: Vec::new() }).expect("a plan")
    };
    let waits = |tree: &Tree| match walk(tree, "a") {
        Lookup::Unknown(_, group) => Some(tree.slots(group)[0]),
        Lookup::Found(..) => None,
        other => panic!("{other:?}"),
    };
    let globs = tree(exclude(&["*.tmp"]));
    assert_eq!(waits(&globs), Some(2));
    globs.note_failing(globs.group_of(2), true);
    assert_eq!(waits(&globs), Some(3), "another that may be had");
    globs.note_failing(globs.group_of(2), false);
    globs.learn(globs.group_of(2), vec![index(1, &entries(&[("a/small/x.tmp", Some(1))]))]).expect("owned");
    assert_eq!(waits(&globs), Some(3));
    globs.learn(globs.group_of(3), vec![index(2, &entries(&[("a/middle/x", Some(1))]))]).expect("owned");
    assert_eq!(waits(&globs), None, "one that shows something is enough");
    assert!(matches!(walk(&globs, "a/small"), Lookup::Absent));
    // Nothing has to be fetched for what the plan tells.
    assert_eq!(waits(&tree(exclude(&["/b"]))), None);
    assert_eq!(waits(&tree(Globs::new(vec!["/a/".parse().expect("a glob")], Vec::new()))), None);
    assert_eq!(walk(&globs, "Kitfile"), Lookup::Absent);
}

#[test]
fn a_folder_that_an_earlier_layer_made_has_the_mode_that_it_was_made_with() {
    let place =
        |rank: usize, text: &str, prefix: &str| Place { digest: digest(rank), path: path(text), prefix: path(prefix), size: 1, file: None };
    for (places, mode) in [
        ([place(0, "m/net", "m"), place(1, ".", ".")], 0o755),
        ([place(0, ".", "."), place(1, "m/net", "m")], 0o640 | 0o555),
        ([place(0, "m/net", "."), place(1, ".", ".")], 0o640 | 0o555),
    ] {
        let root = places.iter().position(|place| place.path.is_root()).expect("there is one") as u16 + 1;
        let tree = Tree::new(places.to_vec(), Some(5), Shown::default()).expect("a plan");
        tree.learn(tree.group_of(root), vec![index(usize::from(root) - 1, &entries(&[("m", None)]))]).expect("owned");
        let Lookup::Found(_, attributes) = walk(&tree, "m") else { panic!("a folder of the plan") };
        assert_eq!(attributes.mode, mode);
    }
}
