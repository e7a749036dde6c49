//! Trees of every shape, in pieces of every size, come out as they went in.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::tests::{Sink, split};
use super::*;
use crate::digest::{Algorithm, Digest};
use crate::index::{FileFacts, Index, IndexBuilder, Segment, Stored};
use crate::inflate::{Inflate, InflateError};
use crate::layer::Compression;

/// How an entry is written.
#[derive(Debug, Clone, Copy)]
enum Writing {
    /// With a GNU long name if needed.
    Gnu,
    /// With PAX records for the name and the size.
    Pax,
}

#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    mode: u32,
    mtime: i64,
    content: Vec<u8>,
    writing: Writing,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[ab]".prop_map(String::into_bytes),
        2 => "[a-c.!/]{1,4}".prop_map(|name| name.replace('/', "-").into_bytes()),
        1 => proptest::collection::vec(1u8..=255, 1..6),
        1 => "[xy]{90,255}".prop_map(String::into_bytes),
    ]
    .prop_filter("one component", |name| crate::path::is_component(name))
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![3 => 0usize..20, 1 => 500usize..530, 1 => 1000usize..6000];
    let writing = prop_oneof![Just(Writing::Gnu), Just(Writing::Pax)];
    (any::<bool>(), 0u32..0o10000, 0i64..1 << 33, content, any::<u8>(), writing).prop_map(|(file, mode, mtime, size, seed, writing)| Node {
        kind: if file { Kind::File } else { Kind::Folder },
        mode,
        mtime,
        content: if file { (0..size).map(|at| seed.wrapping_add((at % 251) as u8)).collect() } else { Vec::new() },
        writing,
    })
}

/// Paths with their nodes in the order of the stream; every file has one path, and nothing is below a file.
fn trees() -> impl Strategy<Value = Vec<(RelPath, Node)>> {
    let path =
        proptest::collection::vec(name(), 1..6).prop_map(|names| names.join(&b'/')).prop_map(|path| RelPath::parse(&path).expect("clean"));
    proptest::collection::vec((path, node()), 0..40).prop_map(|mut nodes| {
        let mut files: BTreeSet<RelPath> = BTreeSet::new();
        let mut folders: BTreeSet<RelPath> = BTreeSet::new();
        nodes.retain(|(path, node)| {
            let above: Vec<RelPath> = std::iter::successors(path.parent(), RelPath::parent).collect();
            let fits = !files.contains(path) && !above.iter().any(|folder| files.contains(folder));
            let fits = fits && (node.kind == Kind::Folder || !folders.contains(path));
            if fits {
                folders.extend(above);
                if node.kind == Kind::File {
                    files.insert(path.clone())
                } else {
                    folders.insert(path.clone())
                };
            }
            fits
        });
        nodes
    })
}

fn header_of_long_name(path: &[u8]) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(path.len() as u64 + 1);
    header.set_cksum();
    header
}

fn write_tar(nodes: &[(RelPath, Node)], trailing: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, node) in nodes {
        let mut header = Header::new_gnu();
        header.set_entry_type(if node.kind == Kind::File { EntryType::Regular } else { EntryType::Directory });
        header.set_mode(node.mode);
        header.set_mtime(node.mtime as u64);
        header.set_size(node.content.len() as u64);
        match node.writing {
            Writing::Gnu => {
                let path = path.as_bytes();
                if path.len() > 100 {
                    builder.append(&header_of_long_name(path), [path, b"\0"].concat().as_slice()).expect("to memory");
                }
                let short = path.get(..100).unwrap_or(path);
                header.as_old_mut().name[..short.len()].copy_from_slice(short);
                header.set_cksum();
                builder.append(&header, node.content.as_slice()).expect("to memory");
            }
            Writing::Pax => {
                let (size, mtime) = (node.content.len().to_string(), format!("{}.25", node.mtime));
                let records = [("path", path.as_bytes()), ("size", size.as_bytes()), ("mtime", mtime.as_bytes())];
                builder.append_pax_extensions(records).expect("to memory");
                header.set_path("short").expect("it fits");
                header.set_cksum();
                builder.append(&header, node.content.as_slice()).expect("to memory");
            }
        }
    }
    let mut stream = builder.into_inner().expect("to memory");
    stream.extend_from_slice(trailing);
    stream
}

/// The tree that the entries make, implied folders included, in order of rank.
fn by_rank(nodes: &[(RelPath, Node)]) -> Vec<(RelPath, Option<Node>)> {
    let mut tree: BTreeMap<RelPath, Option<Node>> = BTreeMap::from([(RelPath::root(), None)]);
    for (path, node) in nodes {
        for folder in std::iter::successors(path.parent(), RelPath::parent) {
            tree.entry(folder).or_default();
        }
        let known = tree.entry(path.clone()).or_default();
        if known.is_none() {
            *known = Some(node.clone());
        }
    }
    let mut ranked: Vec<_> = tree.into_iter().collect();
    // Breadth first: a stable sort by depth of what is sorted by path.
    ranked.sort_by_key(|(path, _)| path.depth());
    ranked
}

fn index_of(sink: &Sink, stream: &[u8]) -> Index {
    let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
    for entry in &sink.entries {
        builder.add(entry).expect("it fits");
    }
    let facts = |size| FileFacts { size, mode: 0o444, ctime_sec: -5, ctime_nsec: 999_999_999 };
    let layer = Digest::of(Algorithm::Sha512, stream);
    let stored = Stored {
        layer,
        blob_size: 12,
        uncompressed: Some(Digest::of(Algorithm::Sha256, stream)),
        uncompressed_size: stream.len() as u64,
        pack: facts(sink.pack.len() as u64),
    };
    let out = tempfile::tempfile().expect("a file");
    builder.finish(&out, &stored, &mut |ordinal| Ok(facts(sink.data[&ordinal].len() as u64))).expect("a good layer");
    let index = Index::map(&out, &layer).expect("a good index");
    assert_eq!((index.layer(), index.uncompressed(), index.blob_size()), (layer, stored.uncompressed, 12));
    assert_eq!((index.pack(), index.uncompressed_size()), (stored.pack, stream.len() as u64));
    index
}

fn same_tree(index: &Index, sink: &Sink, nodes: &[(RelPath, Node)]) {
    let ranked = by_rank(nodes);
    let rank: BTreeMap<&RelPath, u32> = (0..).zip(&ranked).map(|(rank, (path, _))| (path, rank)).collect();
    assert_eq!(index.len() as usize, ranked.len());
    for (path, node) in &ranked {
        let at = rank[path];
        let entry = index.entry(at).expect("a good index");
        assert_eq!(entry.parent, path.parent().map_or(0, |parent| rank[&parent]), "{path}");
        assert_eq!(index.name(at).expect("a good index"), path.name());
        assert_eq!(index.path(at).expect("a good index"), *path);
        assert_eq!(index.find(path).expect("a good index"), Some(at));
        let children: Vec<u32> =
            ranked.iter().filter(|(child, _)| child.parent().as_ref() == Some(path)).map(|(child, _)| rank[child]).collect();
        assert_eq!(index.children(at).expect("a good index").collect::<Vec<_>>(), children, "{path}");
        assert_eq!(entry.child_count as usize, children.len());
        for absent in [&b""[..], b".", b"..", b"nothing", b"\xff\xff\xff", b"a/b"] {
            let there = path.join(absent).ok().and_then(|path| rank.get(&path).copied());
            assert_eq!(index.lookup(at, absent).expect("a good index"), there);
        }
        match node {
            None => assert_eq!((entry.kind, entry.mode, entry.mtime, entry.implied), (Kind::Folder, 0o755, 0, true)),
            Some(node) => {
                assert_eq!((entry.kind, entry.mode, entry.mtime, entry.implied), (node.kind, node.mode, node.mtime, false), "{path}");
                assert_eq!(entry.size, node.content.len() as u64);
                assert_eq!(sink.content(entry.place, entry.size), node.content, "{path}");
            }
        }
    }
    let files = nodes.iter().filter(|(_, node)| node.kind == Kind::File);
    assert_eq!(index.files(), files.clone().count() as u64);
    assert_eq!(index.total_size(), files.map(|(_, node)| node.content.len() as u64).sum::<u64>());
    assert!(index.entry(index.len()).is_err() && index.name(u32::MAX).is_err());
}

fn interleaved(index: &Index, sink: &Sink) -> Vec<u8> {
    let mut stream = Vec::new();
    for segment in index.segments() {
        match segment.expect("a good index") {
            Segment::Pack { offset, size } => {
                assert!(size > 0);
                stream.extend_from_slice(&sink.pack[offset as usize..][..size as usize]);
            }
            Segment::Data { ordinal, size } => {
                assert_eq!(sink.data[&ordinal].len() as u64, size);
                assert_eq!(index.data(ordinal).expect("a good index").map(|facts| facts.size), Some(size));
                stream.extend_from_slice(&sink.data[&ordinal]);
            }
        }
    }
    assert_eq!(index.data_files() as usize, sink.data.len());
    assert_eq!(index.data(u32::MAX).expect("a good index"), None);
    stream
}

proptest! {
    #[test]
    fn trees_come_out_as_they_went_in(
        nodes in trees(),
        pieces in proptest::collection::vec(1usize..3000, 1..8),
        threshold in prop_oneof![Just(0u64), 1u64..20, 500u64..6000, Just(u64::MAX)],
        trailing in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        let stream = write_tar(&nodes, &trailing);
        let (mut sink, mut splitter) = (Sink::default(), Splitter::new(threshold));
        let mut rest = stream.as_slice();
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            splitter.write(now, &mut sink).expect("a good archive");
            rest = later;
        }
        splitter.finish(&mut sink).expect("a good archive");
        prop_assert_eq!(sink.entries.len(), nodes.len());
        for entry in &sink.entries {
            let cut = entry.kind == Kind::File && entry.size > 0 && entry.size >= threshold;
            prop_assert_eq!(matches!(entry.place, Place::Data { .. }), cut);
            prop_assert_eq!(&stream[entry.stream_offset as usize..][..entry.size as usize], sink.content(entry.place, entry.size));
        }

        let index = index_of(&sink, &stream);
        same_tree(&index, &sink, &nodes);
        prop_assert!(interleaved(&index, &sink) == stream, "pack and data files make another stream");

        let (other, _) = split(&stream, threshold / 2 + 7, 1000).expect("a good archive");
        prop_assert_eq!(index_of(&other, &stream).table_checksum(), index.table_checksum(), "it depends on how entries are stored");
    }

    #[test]
    fn any_bytes_are_an_error_or_an_archive(
        nodes in trees(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        fix in any::<bool>(),
    ) {
        let mut stream = write_tar(&nodes, &[]);
        for (at, byte) in &flips {
            let at = at.index(stream.len());
            stream[at] = *byte;
            // Half of them with a checksum that is right, so that what is wrong is found behind it.
            let start = at - at % BLOCK;
            if fix && let Some(block) = stream.get_mut(start..start + BLOCK) {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let mut outcomes = [1, 100, stream.len()].map(|piece| match split(&stream, 50, piece) {
            Ok((sink, split)) => Ok((sink.entries, sink.pack, split)),
            Err(error) => Err(error.to_string()),
        });
        let [a, b, c] = &mut outcomes;
        prop_assert!(a == b && b == c, "the pieces make a difference");
    }
}

/// Every tar layer that is in the fixtures as an OCI layout in a tar file, with its media type.
fn layers_of_kits() -> Vec<(String, Vec<u8>, String)> {
    let kits = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kits");
    let mut layers = Vec::new();
    for kit in std::fs::read_dir(&kits).into_iter().flatten() {
        let kit = kit.expect("a readable folder").path();
        let Ok(layout) = std::fs::read(kit.join("layout.tar")) else { continue };
        let (sink, _) = split(&layout, 1, 1 << 20).expect("a good archive");
        let blobs: BTreeMap<&[u8], &[u8]> =
            sink.entries.iter().map(|entry| (entry.path.name(), sink.content(entry.place, entry.size))).collect();
        for blob in blobs.values() {
            let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(blob) else { continue };
            for layer in manifest["layers"].as_array().into_iter().flatten() {
                let (media_type, digest) = (layer["mediaType"].as_str().expect("a text"), layer["digest"].as_str().expect("a text"));
                if [".tar", "+gzip", "+zstd"].iter().any(|end| media_type.ends_with(end)) && media_type.contains(".tar") {
                    let hex = digest.split(':').next_back().expect("one part at least");
                    layers.push((kit.display().to_string(), blobs[hex.as_bytes()].to_vec(), media_type.to_owned()));
                }
            }
        }
    }
    assert_eq!(layers.is_empty(), !kits.exists(), "the fixtures have layers");
    layers
}

#[test]
fn layers_of_the_real_kit_come_out_whole() {
    for (kit, blob, media_type) in layers_of_kits() {
        let mut stream = Vec::new();
        let compression = match media_type.split_once('+') {
            Some((_, "gzip")) => Compression::Gzip,
            Some((_, "zstd")) => Compression::Zstd,
            _ => Compression::None,
        };
        match Inflate::new(compression, blob.len() as u64).expect("memory") {
            Some(mut inflate) => {
                let written = inflate.write(&blob, &mut |bytes| {
                    stream.extend_from_slice(bytes);
                    Ok::<(), InflateError>(())
                });
                written.and_then(|()| inflate.finish()).unwrap_or_else(|error| panic!("{kit}: {error}"));
            }
            None => stream = blob,
        }
        for threshold in [1, 1000, u64::MAX] {
            let (sink, _) = split(&stream, threshold, 12_345).unwrap_or_else(|error| panic!("{kit}: {error}"));
            let index = index_of(&sink, &stream);
            assert!(interleaved(&index, &sink) == stream, "{kit}: pack and data files make another stream");
            for entry in sink.entries.iter().filter(|entry| entry.kind == Kind::File) {
                let rank = index.find(&entry.path).expect("a good index").expect("it was added");
                assert_eq!(index.entry(rank).expect("a good index").place, entry.place, "{kit}: {}", entry.path);
            }
        }
    }
}
