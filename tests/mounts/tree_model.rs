//! Random trees, split into layers at random and asked in random order, against the model of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kitfile, Node, Packing, Section, Tree};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree, path};
use crate::kits::bytes;

crate::in_both_modes!(every_answer_is_the_model_s);

const LIMIT: Duration = Duration::from_secs(60);

/// Mounts are dear; the trees are wide, so that each of them asks many questions.
const CASES: u32 = 25;

const PACKINGS: [Packing; 7] =
    [Packing::Plain, Packing::Gzip, Packing::Zstd, Packing::Raw, Packing::RawGzip, Packing::RawZstd, Packing::RawGzipUnsized];

#[derive(Debug, Clone)]
enum Question {
    Stat(Index),
    Read(Index),
    Part(Index, u32, u16),
    List(Index),
    Missing(Index),
}

#[derive(Debug, Clone)]
struct Plan {
    tree: Tree,
    /// Which paths are layers, beside which of the root.
    layers: Vec<(Index, Section, Packing)>,
    root: bool,
    questions: Vec<Question>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let name = prop_oneof![8 => "[a-d]{1,2}", 1 => "[a-z]{150}", 1 => "[ -.0-~é\\u{1f916}]{1,12}"];
    let name = name.prop_filter("a name", |name: &String| ![".", ".."].contains(&name.as_str()) && !name.is_empty());
    let file = prop::collection::vec(name, 1..5);
    let size = prop_oneof![Just(0_usize), 1..600_usize, 4000..5000_usize, 60_000..140_000_usize, Just(1_300_000)];
    let mode = prop::sample::select(vec![0o644_u32, 0o755, 0o600, 0o000, 0o4755]);
    let files = prop::collection::vec((file, size, mode, any::<u64>(), prop::bool::weighted(0.15)), 1..40);
    let layer = (
        any::<Index>(),
        prop::sample::select(vec![Section::Dataset, Section::Code, Section::Docs]),
        prop::sample::select(PACKINGS.to_vec()),
    );
    let question = prop_oneof![
        any::<Index>().prop_map(Question::Stat),
        any::<Index>().prop_map(Question::Read),
        (any::<Index>(), any::<u32>(), any::<u16>()).prop_map(|(index, at, length)| Question::Part(index, at, length)),
        any::<Index>().prop_map(Question::List),
        any::<Index>().prop_map(Question::Missing),
    ];
    (files, prop::collection::vec(layer, 0..8), any::<bool>(), prop::collection::vec(question, 60)).prop_map(
        |(files, layers, root, questions)| {
            let mut tree = Tree::new();
            for (parts, size, mode, seed, folder) in files {
                let path = parts.join("/");
                let below_a_file =
                    (1..parts.len()).any(|depth| matches!(tree.0.get(parts[..depth].join("/").as_bytes()), Some(Node::File { .. })));
                if !below_a_file && !tree.0.contains_key(path.as_bytes()) {
                    let content = Arc::new(bytes(seed, size));
                    tree.put(path.as_bytes(), if folder { Node::Folder { mode: 0o700 } } else { Node::File { mode, content } });
                }
            }
            Plan { tree, layers, root, questions }
        },
    )
}

fn every_answer_is_the_model_s(mode: Mode) {
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, max_shrink_iters: 40, ..Config::default() });
    let result = runner.run(&plan(), |plan| {
        check(mode, plan);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn check(mode: Mode, plan: Plan) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let paths: Vec<_> = plan.tree.0.keys().cloned().collect();
    let mut chosen = BTreeSet::new();
    let mut kitfile = Kitfile::new("random");
    for (index, section, packing) in &plan.layers {
        // The Kitfile's paths are texts, and two layers of one path would be a group with the same names.
        let path = String::from_utf8(index.get(&paths).clone()).expect("a text");
        if chosen.insert(path.clone()) {
            let is_file = matches!(plan.tree.0.get(path.as_bytes()), Some(Node::File { .. }));
            let packing = if is_file || !packing.is_raw() { *packing } else { Packing::Plain };
            kitfile = kitfile.packing(packing).entry(*section, &path);
        }
    }
    if plan.root || chosen.is_empty() {
        kitfile = kitfile.plain().code(".");
    }
    let kit = kitfile.pack(&plan.tree);
    let mount = host.mount(&kit.serve(&registry, "acme/random", "v1"));
    let (point, questions) = (mount.point().to_owned(), plan.questions);
    within(LIMIT, "the questions", move || {
        let shown: Vec<_> = kit.tree.0.iter().collect();
        for question in questions.iter().filter(|_| !shown.is_empty()) {
            ask(&point, &kit.tree, &shown, question);
        }
        assert_shows(&point, &of_tree(&kit.tree));
    });
}

fn ask(point: &Path, tree: &Tree, shown: &[(&Vec<u8>, &Node)], question: &Question) {
    let pick = |index: &Index| *index.get(shown);
    match question {
        Question::Stat(index) => {
            let (name, node) = pick(index);
            let metadata = fs::symlink_metadata(path(point, name)).expect("stat");
            match node {
                Node::Folder { .. } => assert!(metadata.is_dir()),
                Node::File { content, .. } => assert!(metadata.is_file() && metadata.len() == content.len() as u64),
            }
        }
        Question::Read(index) => {
            let (name, node) = pick(index);
            match (node, fs::read(path(point, name))) {
                (Node::Folder { .. }, answer) => assert!(answer.is_err_and(|error| error.kind() == std::io::ErrorKind::IsADirectory)),
                (Node::File { content, .. }, answer) => assert!(answer.expect("readable") == **content),
            }
        }
        Question::Part(index, at, length) => {
            let (name, Node::File { content, .. }) = pick(index) else { return };
            let at = *at as usize % (content.len() + 10);
            let mut buffer = vec![0; usize::from(*length)];
            let file = fs::File::open(path(point, name)).expect("open");
            let read = file.read_at(&mut buffer, at as u64).expect("pread");
            assert!(buffer[..read] == content[at.min(content.len())..(at + read).min(content.len())]);
            assert!(read > 0 || buffer.is_empty() || at >= content.len());
        }
        Question::List(index) => {
            let (name, node) = pick(index);
            let answer = fs::read_dir(path(point, name));
            let Node::Folder { .. } = node else {
                assert!(answer.is_err_and(|error| error.kind() == std::io::ErrorKind::NotADirectory));
                return;
            };
            let seen: BTreeSet<_> =
                answer.expect("listed").map(|entry| entry.expect("an entry").file_name().into_encoded_bytes()).collect();
            let prefix = [name.as_slice(), b"/"].concat();
            let below = tree.0.keys().filter_map(|path| path.strip_prefix(prefix.as_slice()));
            assert_eq!(seen, below.filter(|rest| !rest.contains(&b'/')).map(<[u8]>::to_vec).collect());
        }
        Question::Missing(index) => {
            let (name, node) = pick(index);
            let missing = fs::symlink_metadata(path(point, name).join("no such name")).expect_err("missing").kind();
            let wanted = if matches!(node, Node::Folder { .. }) { std::io::ErrorKind::NotFound } else { std::io::ErrorKind::NotADirectory };
            assert_eq!(missing, wanted);
        }
    }
}
