//! Layers with their files, as a test knows them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::layer::{Archive, Compression, LayerSpec};
use kitfs::store::{Content, StoreError, VerifiedLayer};

/// A layer with its files, as a test knows it.
pub struct Sample {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The uncompressed content.
    pub tar: Bytes,
    pub blob: Bytes,
    pub spec: LayerSpec,
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Two big files with small ones around them.
pub fn sample(seed: u64, compression: Compression, with_diff_id: bool) -> Sample {
    let files: BTreeMap<String, Vec<u8>> = [
        ("model/config.json".to_owned(), b"{}".to_vec()),
        ("model/empty".to_owned(), Vec::new()),
        ("model/one.safetensors".to_owned(), noise(seed, 3_000_001)),
        ("model/tokenizer/vocab.txt".to_owned(), noise(seed + 1, 40_000)),
        ("model/two.safetensors".to_owned(), noise(seed + 2, 2 << 20)),
    ]
    .into();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &content[..]).expect("a tar entry");
    }
    let tar = Bytes::from(builder.into_inner().expect("a tar"));
    pack(files, tar, Archive::Tar, compression, with_diff_id)
}

/// One file of noise, which is declared to have `declared` bytes.
pub fn raw(seed: u64, length: usize, compression: Compression, declared: Option<u64>) -> Sample {
    let content = noise(seed, length);
    pack([("file".to_owned(), content.clone())].into(), content.into(), Archive::Raw { size: declared }, compression, true)
}

pub fn pack(files: BTreeMap<String, Vec<u8>>, tar: Bytes, archive: Archive, compression: Compression, with_diff_id: bool) -> Sample {
    let blob = match compression {
        Compression::None => tar.clone(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
            encoder.write_all(&tar).expect("into memory");
            Bytes::from(encoder.finish().expect("into memory"))
        }
        Compression::Zstd => {
            let mut blob = Vec::with_capacity(zstd_safe::compress_bound(tar.len()));
            zstd_safe::compress(&mut blob, &tar, 1).expect("into memory");
            Bytes::from(blob)
        }
    };
    let descriptor = Descriptor { media_type: "x/layer".into(), digest: Digest::of(Algorithm::Sha256, &blob), size: blob.len() as u64 };
    let diff_id = with_diff_id.then(|| Digest::of(Algorithm::Sha256, &tar));
    Sample { files, tar, blob, spec: LayerSpec { descriptor, diff_id, archive, compression } }
}

pub fn plain(seed: u64) -> Sample {
    sample(seed, Compression::None, true)
}

/// All bytes of all files, as the store gives them out.
pub fn read_all(layer: &VerifiedLayer) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let index = layer.index();
    let mut files = BTreeMap::new();
    for rank in 0..index.len() {
        let entry = index.entry(rank).expect("an entry");
        if entry.kind != kitfs::index::Kind::File {
            continue;
        }
        let bytes = match layer.content(rank)? {
            Content::Data(file, size) => read_at(&file, 0, size),
            Content::Packed { pack, offset, size } => read_at(&pack, offset, size),
        };
        files.insert(index.path(rank).expect("a path").to_string(), bytes);
    }
    Ok(files)
}

pub fn read_at(file: &File, offset: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).expect("small")];
    file.read_exact_at(&mut bytes, offset).expect("as long as it says");
    bytes
}
