//! Kits that several themes use.

use crate::common::pack::{Kit, Kitfile, Tree};

pub const MIB: usize = 1024 * 1024;

/// Bytes that do not compress and that are others for each seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content
}

/// Weights, a tokenizer, code, a dataset of small files in gzip, docs: six layers, none at a shared path.
pub fn standard() -> Kit {
    let mut tree = Tree::new()
        .file("model/model.safetensors", bytes(1, 5 * MIB))
        .file("model/config.json", r#"{"hidden_size":384}"#)
        .file("tokenizer/vocab.txt", bytes(2, 30_000))
        .file_with_mode("src/train.sh", 0o755, "#!/bin/sh\necho trained\n")
        .file("src/lib/util.py", "def f(): return 1\n")
        .file("README.md", "# hello\n");
    for number in 0..60_usize {
        tree = tree.file(&format!("data/shard-{}/{number:03}.txt", number % 3), bytes(100 + number as u64, number * 37));
    }
    let kit = Kitfile::new("standard").model("model").part("tokenizer").code("src").docs("README.md").gzip().dataset("data");
    kit.pack(&tree)
}

/// A dataset layer for each name, with one file `part.bin` of this size in it.
pub fn parts(names: &[&str], size: usize) -> Kit {
    let tree = names
        .iter()
        .enumerate()
        .fold(Tree::new(), |tree, (index, name)| tree.file(&format!("{name}/part.bin"), bytes(1000 + index as u64, size)));
    names.iter().fold(Kitfile::new("parts"), |kitfile, name| kitfile.dataset(name)).pack(&tree)
}
