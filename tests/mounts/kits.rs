//! Kits that several themes use.

use crate::common::pack::{Kit, Kitfile, Packing, Tree};

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

/// What kit 1.15 packs beside plain and gzip tars: raw files in all their forms, and a tar in zstd.
pub fn newer() -> Kit {
    let mut tree = Tree::new()
        .file("w/model.safetensors", bytes(1, 3 * MIB + 5))
        .file_with_mode("w/tokenizer.json", 0o600, "{}")
        .file_with_mode("run.sh", 0o755, "#!/bin/sh\necho ran\n")
        .file("rows.csv", "a,b\n".repeat(300_000))
        .file("notes.txt", "notes\n".repeat(500))
        .file("empty", "");
    for number in 0..40_usize {
        tree = tree.file(&format!("data/{number:02}.bin"), bytes(200 + number as u64, number * 50_000));
    }
    let kit = Kitfile::new("newer").raw().model("w/model.safetensors").part("w/tokenizer.json").docs("empty").zstd().dataset("data");
    let kit = kit.packing(Packing::RawZstd).dataset("rows.csv").packing(Packing::RawGzip).docs("run.sh");
    kit.packing(Packing::RawGzipUnsized).docs("notes.txt").pack(&tree)
}

/// A dataset layer for each name, with one file `part.bin` of this size in it.
pub fn parts(names: &[&str], size: usize) -> Kit {
    let tree = names
        .iter()
        .enumerate()
        .fold(Tree::new(), |tree, (index, name)| tree.file(&format!("{name}/part.bin"), bytes(1000 + index as u64, size)));
    names.iter().fold(Kitfile::new("parts"), |kitfile, name| kitfile.dataset(name)).pack(&tree)
}
