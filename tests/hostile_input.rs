//! What an honest tool never makes, rule by rule: the table of what is refused, and what looks odd and is right.
//!
//! A row names its rule. Layers go through a real store, so that what is refused is refused when it would be committed, before a byte shows;
//! manifests and configs go through the plan, before anything is fetched. The reader of tar has more cases beside its code, and
//! `tar_mutations` has those that nobody thought of.
#![allow(missing_docs, unreachable_pub)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::failure::{ErrorClass, chain};
use kitfs::filter::Shown;
use kitfs::index::Kind;
use kitfs::kit::Kit;
use kitfs::layer::{Archive, Compression, LayerSpec};
use kitfs::limits;
use kitfs::path::RelPath;
use kitfs::source::{Attached, Attachments, BlobStream, DocumentKind, Resolved, Source, SourceError};
use kitfs::store::{LayerState, Store, StoreError, VerifiedLayer};
use kitfs::tree::{Place, Tree};
use kitfs::verify::{Unverified, Verified};
use tokio::runtime::Runtime;

// ---- archives

const BLOCK: usize = 512;

fn header(name: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    for (at, field) in [(100, "0000644\0"), (108, "0001750\0"), (116, "0000000\0"), (136, "00000000000\0"), (257, "ustar\x0000")] {
        block[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    sealed(block)
}

fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn with(mut block: [u8; BLOCK], at: usize, bytes: &[u8]) -> [u8; BLOCK] {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    sealed(block)
}

fn after(block: [u8; BLOCK], content: &[u8]) -> Vec<u8> {
    let mut bytes = [block.as_slice(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn member(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    after(header(name, kind, content.len() as u64), content)
}

fn file(name: &str) -> Vec<u8> {
    member(name.as_bytes(), b'0', b"x")
}

fn folder(name: &str) -> Vec<u8> {
    member(name.as_bytes(), b'5', b"")
}

/// A file whose name is in a PAX record.
fn named(name: &[u8]) -> Vec<u8> {
    [pax(b"path", name), file("short")].concat()
}

fn pax(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).expect("some length fits");
    member(b"pax", b'x', &[length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat())
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("to memory");
    encoder.finish().expect("to memory")
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).expect("a known parameter");
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    context.compress2(&mut frame, content).expect("room");
    frame
}

// ---- a store that they come into

#[derive(Debug)]
struct Blob(Bytes);

impl Source for Blob {
    fn name(&self) -> &str {
        "test"
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Resolved, SourceError>> {
        unreachable!("a layer is all that is asked for")
    }

    fn attached<'a>(&'a self, _: &'a Attachments) -> BoxFuture<'a, Attached> {
        unreachable!("a layer is all that is asked for")
    }

    fn document_as<'a>(&'a self, _: &'a Descriptor, _: DocumentKind) -> BoxFuture<'a, Result<Unverified<Bytes>, SourceError>> {
        unreachable!("a layer is all that is asked for")
    }

    fn blob(&self, _: &Descriptor, from: u64) -> BlobStream {
        let pieces: Vec<_> = self
            .0
            .slice((from as usize).min(self.0.len())..)
            .chunks(7001)
            .map(|piece| Ok(Unverified::new(Bytes::copy_from_slice(piece))))
            .collect();
        stream::iter(pieces).boxed()
    }
}

struct Bench {
    cache: tempfile::TempDir,
    store: Store,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        let store = Store::open(cache.path()).expect("a cache");
        Self { cache, store, runtime: Runtime::new().expect("a runtime") }
    }

    fn ensure(&self, blob: &[u8], compression: Compression) -> (LayerSpec, Result<VerifiedLayer, StoreError>) {
        let descriptor = Descriptor { media_type: "x/layer".into(), digest: Digest::of(Algorithm::Sha256, blob), size: blob.len() as u64 };
        let spec = LayerSpec { descriptor, diff_id: None, archive: Archive::Tar, compression };
        let source: Arc<dyn Source> = Arc::new(Blob(Bytes::copy_from_slice(blob)));
        let outcome = self.store.ensure(&spec, &source, self.runtime.handle());
        (spec, outcome)
    }

    fn plain(&self, blob: &[u8]) -> VerifiedLayer {
        self.ensure(blob, Compression::None).1.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }
}

/// `folder/` and `file` for each entry but the root.
fn shown(layer: &VerifiedLayer) -> Vec<String> {
    let index = layer.index();
    let text = |rank| {
        let path = index.path(rank).expect("a sound index").to_string();
        if index.entry(rank).expect("a sound index").kind == Kind::Folder { format!("{path}/") } else { path }
    };
    (1..index.len()).map(text).collect()
}

enum Outcome {
    /// Refused, and the error says this.
    Refused(&'static str),
    Shows(&'static [&'static str]),
    /// One entry, whatever its name.
    ShowsOne,
}
use Outcome::{Refused, Shows, ShowsOne};

/// Kind and rule; the layer; what becomes of it.
type Row = (&'static str, Vec<Vec<u8>>, Outcome);

fn rows() -> Vec<Row> {
    let hundred_deep = |levels: usize| "d/".repeat(levels).into_bytes();
    let long = [[b'n'; 200].as_slice(); 21].join(&b'/');
    let size = |field: &[u8]| after(with(header(b"a", b'0', 0), 124, field), b"");
    let v7 = with(header(b"a", 0, 1), 257, &[0; 8]);
    let limit = limits::TAR_EXTENSION_BYTES as usize;
    vec![
        ("names: absolute", vec![named(b"/etc/passwd")], Refused("is absolute")),
        ("names: absolute, in the header", vec![file("/x")], Refused("is absolute")),
        ("names: a component `..`", vec![named(b"a/../../b")], Refused("component `..`")),
        ("names: `..` at the end", vec![folder("a/..")], Refused("component `..`")),
        ("names: empty", vec![member(b"", b'0', b"x")], Refused("without a name")),
        ("names: empty, in a PAX record", vec![named(b"")], Refused("`path` is empty")),
        ("names: NUL in a PAX record", vec![named(b"a\0b")], Refused("NUL")),
        ("names: NUL in a GNU long name", vec![member(b"L", b'L', b"a\0b\0"), file("a")], Refused("NUL")),
        ("names: a field ends at its first NUL", vec![member(b"a\0b", b'0', b"x")], Shows(&["a"])),
        ("names: 255 bytes a component", vec![named(&[b'n'; 255]), end()], ShowsOne),
        ("names: 256 bytes a component", vec![named(&[b'n'; 256])], Refused("256 bytes, at most 255")),
        ("names: over 4,096 in all", vec![named(&long)], Refused("at most 4096")),
        ("names: over 256 deep", vec![named(&hundred_deep(257))], Refused("more than 256 levels deep")),
        (
            "names: `./x`, `a//b`, a slash at the end",
            vec![folder("./"), file("./x"), file("a//b"), folder("c/")],
            Shows(&["a/", "c/", "x", "a/b"]),
        ),
        ("names: that only contain `..`", vec![file("a..b"), file("..c"), file("...")], Shows(&["...", "..c", "a..b"])),
        ("names: bytes that are no UTF-8", vec![member(b"\xff\xfe", b'0', b"x")], Shows(&["\\xff\\xfe"])),
        ("kinds: symbolic link", vec![file("a"), member(b"b", b'2', b"")], Refused("a symbolic link")),
        ("kinds: hard link", vec![file("a"), member(b"b", b'1', b"")], Refused("a hard link")),
        ("kinds: character device", vec![member(b"b", b'3', b"")], Refused("a character device")),
        ("kinds: block device", vec![member(b"b", b'4', b"")], Refused("a block device")),
        ("kinds: FIFO", vec![member(b"b", b'6', b"")], Refused("a FIFO")),
        ("kinds: contiguous", vec![member(b"b", b'7', b"")], Refused("type `7`")),
        ("kinds: old sparse form", vec![member(b"b", b'S', b"")], Refused("a sparse file")),
        ("kinds: PAX sparse forms", vec![pax(b"GNU.sparse.major", b"1"), file("a")], Refused("a sparse file")),
        ("kinds: global PAX header", vec![member(b"g", b'g', b""), file("a")], Refused("a global extended header")),
        ("kinds: unknown", vec![member(b"b", b'Z', b"")], Refused("unknown type `Z`")),
        ("collisions: the same file twice", vec![file("d/a"), file("d/a")], Refused("`d/a` is in the layer twice")),
        ("collisions: the same file in two spellings", vec![file("d/a"), file("./d//a")], Refused("`d/a` is in the layer twice")),
        ("collisions: a repeated folder", vec![folder("d"), file("d/a"), folder("d")], Shows(&["d/", "d/a"])),
        ("collisions: file, then folder", vec![file("d"), file("d/a")], Refused("`d` is a file")),
        ("collisions: folder, then file", vec![file("d/a"), file("d")], Refused("`d` is a file")),
        ("sizes: PAX record over 1 MiB", vec![pax(b"comment", &vec![b'c'; limit]), file("a")], Refused("at most 1048576")),
        (
            "sizes: PAX records and long name over 1 MiB in all",
            vec![pax(b"comment", &vec![b'c'; limit - 100]), member(b"L", b'L', &[b'n'; 101]), file("a")],
            Refused("at most 1048576"),
        ),
        ("sizes: long name over 1 MiB", vec![member(b"L", b'L', &vec![b'n'; limit + 1]), file("a")], Refused("at most 1048576")),
        ("archives: truncated inside a header", vec![file("a"), file("b")[..100].to_vec()], Refused("inside a header")),
        (
            "archives: truncated inside a file",
            vec![member(b"a", b'0', &[b'x'; 900])[..BLOCK + 899].to_vec()],
            Refused("1 bytes are missing"),
        ),
        ("archives: truncated inside an extension", vec![pax(b"path", b"a")[..BLOCK + 3].to_vec()], Refused("inside an extended header")),
        (
            "archives: bad checksum",
            vec![{
                let mut bad = file("a");
                bad[0] = b'b';
                bad
            }],
            Refused("checksum"),
        ),
        ("archives: a size that is negative", vec![size(&[0xff; 12])], Refused("size is negative")),
        ("archives: a size that is no number", vec![size(b"0x5\0")], Refused("size is not a number")),
        ("archives: a size that overflows", vec![size(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")], Refused("size is not a number")),
        ("archives: a size that only claims", vec![size(b"\x80\0\0\0\x3f\xff\xff\xff\xff\xff\xff\xff")], Refused("bytes are missing")),
        ("archives: a PAX size that is negative", vec![pax(b"size", b"-1"), file("a")], Refused("PAX size `-1`")),
        ("archives: a PAX size that overflows", vec![pax(b"size", b"9223372036854775808"), file("a")], Refused("PAX size")),
        (
            "archives: base-256 size",
            vec![after(with(header(b"a", b'0', 0), 124, b"\x80\0\0\0\0\0\0\0\0\0\0\x03"), b"xyz"), file("b")],
            Shows(&["a", "b"]),
        ),
        (
            "archives: a PAX size wins",
            vec![pax(b"size", b"600"), after(header(b"a", b'0', 0), &[b'x'; 600]), file("b")],
            Shows(&["a", "b"]),
        ),
        ("archives: V7 header", vec![after(v7, b"x")], Shows(&["a"])),
        ("archives: type NUL", vec![member(b"a", 0, b"x"), member(b"d/", 0, b"")], Shows(&["a", "d/"])),
        ("archives: no end blocks", vec![file("a")], Shows(&["a"])),
        ("archives: one end block", vec![file("a"), vec![0; BLOCK]], Shows(&["a"])),
        ("archives: one zero block between entries", vec![file("a"), vec![0; BLOCK], file("b")], Refused("one block of zeros")),
        ("archives: data after the end", vec![file("a"), end(), file("b"), b"odd".to_vec()], Shows(&["a"])),
        ("archives: an extension of nothing", vec![pax(b"path", b"a"), end()], Refused("without its entry")),
    ]
}

#[test]
fn layers_are_refused_before_a_byte_shows_or_read_as_go_reads_them() {
    let bench = Bench::new();
    for (rule, parts, outcome) in rows() {
        let blob = parts.concat();
        // Compressed it is the same, and ends at the same limit.
        for (blob, compression) in [(blob.clone(), Compression::None), (gzip(&blob), Compression::Gzip)] {
            expect(&bench, rule, &blob, compression, &outcome);
        }
    }
}

fn expect(bench: &Bench, rule: &str, blob: &[u8], compression: Compression, outcome: &Outcome) {
    let (spec, layer) = bench.ensure(blob, compression);
    match (outcome, layer) {
        (Shows(expected), Ok(layer)) => assert_eq!(shown(&layer), *expected, "{rule}"),
        (ShowsOne, Ok(layer)) => assert_eq!(shown(&layer).len(), 1, "{rule}"),
        (Refused(part), Err(error)) => {
            let text = chain(&error);
            assert!(text.contains(part) && text.contains(&spec.descriptor.digest.to_string()), "{rule}: {text}");
            assert_eq!(error.class(), ErrorClass::Refused, "{rule}: {text}");
            assert!(!text.chars().any(char::is_control), "{rule}: {text:?}");
            // A process that another test starts has the lock, too, until it becomes its program.
            let until = Instant::now() + Duration::from_secs(10);
            while bench.store.state(&spec.key()) == LayerState::Fetching && Instant::now() < until {
                std::thread::yield_now();
            }
            assert_eq!(bench.store.state(&spec.key()), LayerState::Absent, "{rule}");
            let left = ["layers", "index"].map(|place| bench.cache.path().join("v1").join(place).join(spec.key().file_name()));
            assert!(left.iter().all(|path| !path.exists()), "{rule}: something is visible");
        }
        (Shows(_) | ShowsOne, Err(error)) => panic!("{rule}: {}", chain(&error)),
        (Refused(_), Ok(layer)) => panic!("{rule}: it shows {:?}", shown(&layer)),
    }
}

#[test]
fn compressed_layers_are_bounded_and_checked() {
    let bench = Bench::new();
    let tar = [file("a"), end()].concat();
    let good = gzip(&tar);
    let (mut crc, mut length) = (good.clone(), good.clone());
    let at = good.len();
    crc[at - 8] ^= 1;
    length[at - 1] ^= 1;
    let zeros = vec![0; limits::EXPANSION_FLOOR_BYTES as usize + (1 << 20)];
    let bomb = gzip(&[header(b"a", b'0', zeros.len() as u64).as_slice(), &zeros].concat());
    for (rule, blob, outcome) in [
        ("compressed: a bomb", bomb, Refused("would become more than")),
        ("compressed: a wrong CRC", crc, Refused("gzip member 1 is wrong")),
        ("compressed: a wrong length", length, Refused("gzip member 1 is wrong")),
        ("compressed: cut", good[..at - 9].to_vec(), Refused("is cut at byte")),
        ("compressed: no gzip", tar.clone(), Refused("after 0 gzip members, does not begin another one")),
        ("compressed: nothing", Vec::new(), Refused("the blob is empty")),
        ("compressed: several members", [gzip(&tar[..700]), gzip(b""), gzip(&tar[700..])].concat(), Shows(&["a"])),
        ("compressed: zero padding", [good.as_slice(), &[0; 1000]].concat(), Shows(&["a"])),
    ] {
        expect(&bench, rule, &blob, Compression::Gzip, &outcome);
    }
    let good = zstd(&tar);
    let mut sum = good.clone();
    *sum.last_mut().expect("a checksum") ^= 1;
    // A frame that says that it needs a window of 256 MiB, with one empty block.
    let window = b"\x28\xb5\x2f\xfd\x00\x90\x01\0\0".to_vec();
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    for (rule, blob, outcome) in [
        (
            "compressed: a zstd bomb",
            zstd(&[header(b"a", b'0', zeros.len() as u64).as_slice(), &zeros].concat()),
            Refused("would become more than"),
        ),
        ("compressed: a wrong zstd checksum", sum, Refused("zstd frame 1 is wrong")),
        ("compressed: zstd cut", good[..good.len() - 9].to_vec(), Refused("is cut at byte")),
        ("compressed: a large zstd window", window, Refused("needs a window of more than")),
        ("compressed: no zstd", tar.clone(), Refused("after 0 zstd frames, does not begin another one")),
        ("compressed: nothing", Vec::new(), Refused("the blob is empty")),
        ("compressed: zeros after zstd", [good.as_slice(), &[0; 1000]].concat(), Refused("does not begin another one")),
        ("compressed: several frames", [&zstd(&tar[..700])[..], skippable, &zstd(b""), &zstd(&tar[700..])].concat(), Shows(&["a"])),
    ] {
        expect(&bench, rule, &blob, Compression::Zstd, &outcome);
    }
}

#[test]
fn layers_that_collide_are_refused_in_whatever_order_they_come() {
    // Declared path and archive of two layers, and what is wrong.
    type Pair = [(&'static str, Vec<Vec<u8>>); 2];
    let rows: [(&str, Pair, Option<&str>); 9] = [
        ("the same file", [("d", vec![file("d/a")]), ("d", vec![file("d/a"), file("d/b")])], Some("both bring `d/a`")),
        ("a file against a folder", [("d", vec![folder("d/a")]), ("d", vec![file("d/a")])], Some("both bring `d/a`")),
        ("a file against what needs a folder", [("d", vec![file("d/a/x")]), ("d", vec![file("d/a")])], Some("both bring `d/a`")),
        ("a folder in both is fine", [("d", vec![folder("d"), file("d/a")]), ("d", vec![folder("d"), file("d/b")])], None),
        ("outside of what it owns", [("d", vec![file("d/a")]), ("e", vec![file("e/a"), file("f")])], Some("`f` is outside")),
        ("inside of what the other owns", [("d", vec![file("d/a")]), ("e", vec![file("d/b")])], Some("is outside")),
        ("over what the other owns below", [("d", vec![file("d/e/x")]), ("d/e", vec![file("d/e/x")])], Some("`d/e` is outside")),
        ("a file where the other's folder is", [("d", vec![file("d/e")]), ("d/e/f", vec![file("d/e/f")])], Some("`d/e` is a file")),
        ("the Kitfile", [(".", vec![file("Kitfile")]), ("d", vec![file("d/a")])], Some("`Kitfile` is outside")),
    ];
    for (rule, pair, wrong) in rows {
        let blobs: Vec<Vec<u8>> = pair.iter().map(|(_, parts)| parts.concat()).collect();
        let mut outcomes = Vec::new();
        for order in [[0, 1], [1, 0]] {
            let bench = Bench::new();
            let places = pair.iter().zip(&blobs).map(|((path, _), blob)| Place {
                digest: Digest::of(Algorithm::Sha256, blob),
                path: RelPath::parse(path.as_bytes()).expect("a path"),
                prefix: RelPath::root(),
                size: blob.len() as u64,
                file: None,
            });
            let tree = Tree::new(places.collect(), Some(10), Shown::default()).expect("a plan");
            let mut here: [Option<VerifiedLayer>; 2] = [None, None];
            let mut errors = Vec::new();
            for arriving in order {
                here[arriving] = Some(bench.plain(&blobs[arriving]));
                let group = tree.group_of(arriving as u16 + 1);
                let members: Option<Vec<_>> =
                    tree.slots(group).iter().map(|slot| here[usize::from(*slot) - 1].as_ref().map(|layer| layer.index().clone())).collect();
                if let Some(Err(text)) = members.map(|members| tree.learn(group, members).map_err(|error| chain(&error))) {
                    errors.push(text);
                    assert!(!tree.is_known(group), "{rule}: a byte of it shows");
                }
            }
            outcomes.push(errors);
        }
        assert_eq!(outcomes[0], outcomes[1], "{rule}: the order of arrival shows");
        match wrong {
            None => assert!(outcomes[0].is_empty(), "{rule}: {outcomes:?}"),
            Some(wrong) => assert!(outcomes[0].iter().any(|text| text.contains(wrong)), "{rule}: {outcomes:?}"),
        }
    }
}

// ---- manifests and configs

const CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.kitops.modelkit.dataset.v1.tar";

fn verified(media_type: &str, text: &str) -> Verified<Bytes> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let descriptor = Descriptor { media_type: media_type.into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    Unverified::new(bytes).verify(&descriptor).expect("its own digest")
}

fn digest() -> String {
    Digest::of(Algorithm::Sha256, b"a layer").to_string()
}

/// The plan of a kit with this config and these layers; `change` makes the manifest wrong.
fn plan(config: &str, layers: &str, change: impl FnOnce(String) -> String) -> Result<Kit, String> {
    let config = verified(CONFIG, config);
    let Descriptor { digest, size, .. } = config.descriptor();
    let manifest = change(format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{CONFIG}","digest":"{digest}","size":{size}}},"layers":[{layers}]}}"#
    ));
    Kit::plan(&verified(MANIFEST, &manifest), &config).map_err(|error| chain(&error))
}

fn layer(media_type: &str, more: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":9{more}}}"#, digest())
}

fn dataset(path: &str) -> String {
    format!(r#"{{"datasets":[{{"path":"{path}","digest":"{}"}}]}}"#, digest())
}

#[test]
fn manifests_that_two_readers_could_take_differently_are_refused() {
    assert!(plan(&dataset("d"), &layer(TAR, ""), |manifest| manifest).is_ok());
    let replace = |from: &'static str, to: &'static str| move |manifest: String| manifest.replacen(from, to, 1);
    type Change = Box<dyn FnOnce(String) -> String>;
    let same = || -> Change { Box::new(|manifest| manifest) };
    let rows: Vec<(&str, String, Change, &str)> = vec![
        ("a key twice", layer(TAR, ""), Box::new(replace("{", r#"{"schemaVersion":2,"#)), "`schemaVersion` stands there twice"),
        ("a key twice, in a layer", layer(TAR, r#","size":9"#), same(), "`size` stands there twice"),
        ("a key in another case", layer(TAR, r#","Size":9"#), same(), "`layers[0].Size` is spelled like `size`"),
        ("schemaVersion", layer(TAR, ""), Box::new(replace(r#""schemaVersion":2"#, r#""schemaVersion":1"#)), "schemaVersion is 1"),
        ("a wrong type", layer(TAR, ""), Box::new(replace(r#""schemaVersion":2"#, r#""schemaVersion":"2""#)), "`schemaVersion` should be"),
        ("mediaType", layer(TAR, ""), Box::new(replace("{", r#"{"mediaType":"text/html","#)), "media type is `text/html`"),
        ("an index", layer(TAR, ""), Box::new(replace("{", r#"{"manifests":[],"#)), "`manifests` as an index has"),
        ("urls", layer(TAR, r#","urls":["https://elsewhere.example/"]"#), same(), "`layers[0].urls` is not allowed"),
        ("data", layer(TAR, r#","data":"AA==""#), same(), "`layers[0].data` is not allowed"),
        (
            "a container's layer",
            layer("application/vnd.oci.image.layer.v1.tar+gzip", ""),
            same(),
            "unknown media type `application/vnd.oci.image",
        ),
        (
            "a foreign layer",
            layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ""),
            same(),
            "unknown media type `application/vnd.docker",
        ),
        ("an unknown kind", layer("application/vnd.kitops.modelkit.hologram.v1.tar", ""), same(), "unknown media type"),
        ("a negative size", layer(TAR, "").replace(":9", ":-9"), same(), "it is negative"),
        ("a size that is no whole number", layer(TAR, "").replace(":9", ":9.5"), same(), "it is another number"),
        ("a size over all limits", layer(TAR, "").replace(":9", ":9223372036854775807"), same(), "bytes together"),
        ("an unsupported algorithm", layer(TAR, "").replace("sha256:", "md5:"), same(), "algorithm `md5` is not supported"),
        ("a malformed digest", layer(TAR, "").replace("sha256:", "sha256:0"), same(), "`layers[0].digest`"),
        ("config and manifest that disagree", String::new(), same(), "config and manifest disagree"),
        ("a layer of another kind", layer(TAR, "").replace(".dataset.", ".docs."), same(), "config and manifest disagree"),
        (
            "depth",
            layer(TAR, ""),
            Box::new(|manifest| manifest.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(200), "]".repeat(200)), 1)),
            "levels deep",
        ),
        (
            "more than 4 MiB",
            layer(TAR, ""),
            Box::new(|manifest| manifest + &" ".repeat(limits::MANIFEST_BYTES as usize)),
            "4194304 are allowed",
        ),
        ("more than 4,096 layers", vec![layer(TAR, ""); limits::LAYERS + 1].join(","), same(), "4096 are allowed"),
        (
            "an annotation that climbs",
            layer(TAR, r#","annotations":{"org.cncf.model.filepath":"../x"}"#).replacen(
                &digest(),
                &format!("sha256:{}", "b".repeat(64)),
                1,
            ) + ","
                + &layer(TAR, ""),
            same(),
            "`layers[0]` is not allowed",
        ),
    ];
    for (rule, layers, change, part) in rows {
        let text = plan(&dataset("d"), &layers, change).err().unwrap_or_else(|| panic!("{rule}: it has a plan"));
        assert!(text.contains(part), "{rule}: {text}");
    }
    let config = verified(CONFIG, &dataset("d"));
    let manifest =
        format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{CONFIG}","digest":"{}","size":9}}}}"#, config.descriptor().digest);
    let served_as = verified("application/vnd.oci.image.index.v1+json", &manifest);
    assert!(Kit::plan(&served_as, &config).is_err_and(|error| chain(&error).contains("OCI index")), "what the registry said counts, too");
    // Neither the config nor an annotation places it: left out, and listed.
    let kit = plan("{}", &layer("application/vnd.oci.image.layer.v1.tar", ""), |manifest| manifest).expect("a plan");
    assert_eq!((kit.layers.len(), kit.unplaced.len()), (0, 1));
}

#[test]
fn configs_that_lead_elsewhere_are_refused() {
    let mut deep = String::new();
    write!(deep, r#"{{"model":{{"parameters":{}{}}}}}"#, "[".repeat(200), "]".repeat(200)).expect("to memory");
    for (rule, config, part) in [
        ("a path that climbs", dataset("../x"), "component `..`"),
        ("a path that climbs behind a folder", dataset("a/../../x"), "component `..`"),
        ("a path that is absolute", dataset("/x"), "is absolute"),
        ("a path with a NUL", dataset("a\\u0000b"), "NUL"),
        ("the place of the Kitfile", dataset("Kitfile"), "the generated Kitfile"),
        ("a path of a wrong type", dataset("x").replace(r#""x""#, "7"), "should be a string"),
        ("a section of a wrong type", r#"{"datasets":{}}"#.into(), "should be an array"),
        ("a key twice", r#"{"model":{},"model":{}}"#.into(), "stands there twice"),
        ("depth", deep, "levels deep"),
        ("not JSON", "datasets: []".into(), "not the JSON that it should be"),
        ("more than 4 MiB", "{}".to_owned() + &" ".repeat(limits::CONFIG_BYTES as usize), "4194304 are allowed"),
    ] {
        let text = plan(&config, &layer(TAR, ""), |manifest| manifest).err().unwrap_or_else(|| panic!("{rule}: it has a plan"));
        assert!(text.contains(part), "{rule}: {text}");
    }
}

// ---- terminals

#[test]
fn nothing_that_a_terminal_acts_on_is_printed() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).and_then(|()| fs::write(path, content)).expect("room");
    };
    let blob = |content: &str| {
        let digest = Digest::of(Algorithm::Sha256, content.as_bytes()).to_string();
        write(&format!("blobs/{}", digest.replacen(':', "/", 1)), content);
        (digest, content.len())
    };
    // Colours, a title, a carriage return, and letters that turn the direction of writing.
    let evil = r"a\u001b[31m\u001b]0;title\u0007\r\u202egnp.exe\u2066\u009b1m";
    let layer = blob(&String::from_utf8([file("d/a"), end()].concat()).expect("ASCII"));
    let described = format!(
        r#"{{"package":{{"name":"{evil}","description":"{evil}","authors":["{evil}"]}},"datasets":[{{"name":"{evil}","path":"{evil}","digest":"{}"}}]}}"#,
        layer.0
    );
    let config = blob(&described);
    let manifest = blob(&format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{CONFIG}","digest":"{}","size":{}}},"layers":[{{"mediaType":"{TAR}","digest":"{}","size":{}}}],"annotations":{{"ml.kitops.modelkit.cli-version":"{evil}"}}}}"#,
        config.0, config.1, layer.0, layer.1
    ));
    let name = "x\\u001b[31m\\u202e";
    write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    write(
        "index.json",
        &format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}]}}"#,
            manifest.0, manifest.1
        ),
    );
    let right = format!("oci:{}@{}", dir.path().display(), manifest.0);
    let missing = format!("oci:{}:none", dir.path().display());
    for arguments in
        [&["inspect", &right][..], &["inspect", "--json", &right], &["inspect", &missing], &["inspect", "a\u{1b}[31m\u{202e}/b"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_kitfs"))
            .args(arguments)
            .env("KITFS_CACHE_DIR", dir.path().join("cache"))
            .output()
            .expect("kitfs");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        let active = text.chars().find(|letter| letter.is_control() && *letter != '\n' || "\u{202e}\u{2066}".contains(*letter));
        assert!(!text.is_empty() && active.is_none(), "{arguments:?}: {active:?} in {text:?}");
        let escape = if arguments[1] == "--json" { "\\u001b" } else { "\\u{1b}" };
        assert!(text.contains(escape), "{arguments:?}: {text}");
        if arguments[1] == "--json" {
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        }
    }
}
