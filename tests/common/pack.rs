//! A packer: makes a kit from a tree of files by the rules of kit 0.5 to 1.9, and the layers of kit 1.15 if it is told to.
//!
//! The tar bytes are those of kit ([`super::tarball`]), so that a layer gets the digest that the real kit gives it; gzip bytes
//! are another encoder's, so there only the diffId is the same. `mounts/packer.rs` proves both against fixtures of the real kit.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::registry::{Registry, sha256};
use super::tarball::member;

/// Files and folders by path (no leading slash, no `.`), the model that a mount is compared with.
#[derive(Debug, Clone, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

#[derive(Debug, Clone)]
pub enum Node {
    Folder { mode: u32 },
    File { mode: u32, content: Arc<Vec<u8>> },
}

impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file (0644), and the folders above it (0755) that are missing.
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file_with_mode(path, 0o644, content)
    }

    pub fn file_with_mode(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.put(path.as_bytes(), Node::File { mode, content: Arc::new(content.into()) });
        self
    }

    pub fn folder(mut self, path: &str, mode: u32) -> Self {
        self.put(path.as_bytes(), Node::Folder { mode });
        self
    }

    pub fn put(&mut self, path: &[u8], node: Node) {
        for (index, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                self.0.entry(path[..index].to_vec()).or_insert(Node::Folder { mode: 0o755 });
            }
        }
        self.0.insert(path.to_vec(), node);
    }

    /// Adds a file if there is none, and the folders above it that are missing.
    fn file_in_place(&mut self, path: &str, mode: u32, content: &Arc<Vec<u8>>) {
        if !self.0.contains_key(path.as_bytes()) {
            self.put(path.as_bytes(), Node::File { mode, content: Arc::clone(content) });
        }
    }

    /// The content of a file.
    pub fn content(&self, path: &str) -> &[u8] {
        match self.0.get(path.as_bytes()) {
            Some(Node::File { content, .. }) => content,
            _ => panic!("no file {path} in the tree"),
        }
    }

    /// Reads a folder of the disk, regular files and folders only.
    pub fn read(folder: &Path) -> Self {
        let mut tree = Self::new();
        let mut open = vec![folder.to_owned()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(&next).expect("a readable folder") {
                let path = entry.expect("an entry").path();
                let metadata = fs::symlink_metadata(&path).expect("an entry");
                let name = path.strip_prefix(folder).expect("below").as_os_str().as_bytes().to_vec();
                let mode = metadata.permissions().mode() & 0o7777;
                if metadata.is_dir() {
                    tree.0.insert(name, Node::Folder { mode });
                    open.push(path);
                } else if metadata.is_file() {
                    tree.0.insert(name, Node::File { mode, content: Arc::new(fs::read(&path).expect("a readable file")) });
                }
            }
        }
        tree
    }

    /// Writes it to a folder of the disk.
    pub fn write(&self, folder: &Path) {
        for (path, node) in self.walk() {
            let path = folder.join(OsStr::from_bytes(path));
            match node {
                Node::Folder { .. } => fs::create_dir_all(&path).expect("a folder"),
                Node::File { mode, content } => {
                    let mut options = fs::OpenOptions::new();
                    let mut file = options.write(true).create_new(true).mode(*mode).open(&path).expect("a new file");
                    file.write_all(content).expect("room");
                }
            }
        }
    }

    /// In the order of Go's `filepath.Walk`: a folder, then what is in it, names by their bytes.
    fn walk(&self) -> Vec<(&[u8], &Node)> {
        let mut all: Vec<_> = self.0.iter().map(|(path, node)| (path.as_slice(), node)).collect();
        all.sort_by(|(a, _), (b, _)| a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/')));
        all
    }
}

/// The kinds of layer, in the order in which a manifest has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Model,
    Part,
    Code,
    Dataset,
    Docs,
}

impl Section {
    fn base(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Part => "modelpart",
            Self::Code => "code",
            Self::Dataset => "dataset",
            Self::Docs => "docs",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    #[default]
    Plain,
    Gzip,
    Zstd,
    /// One file, as it is.
    Raw,
    RawGzip,
    RawZstd,
    /// As [`Packing::RawGzip`], but the manifest says of it only where it stands.
    RawGzipUnsized,
}

impl Packing {
    pub fn is_raw(self) -> bool {
        !matches!(self, Self::Plain | Self::Gzip | Self::Zstd)
    }

    /// The blob of a content, and what it adds to the media type.
    fn blob(self, content: Vec<u8>) -> (Vec<u8>, &'static str) {
        match self {
            Self::Plain => (content, "tar"),
            Self::Gzip => (gzip(&content), "tar+gzip"),
            Self::Zstd => (zstd(&content), "tar+zstd"),
            Self::Raw => (content, "raw"),
            Self::RawGzip | Self::RawGzipUnsized => (gzip(&content), "raw+gzip"),
            Self::RawZstd => (zstd(&content), "raw+zstd"),
        }
    }
}

/// The modification time of raw files, as their metadata has it.
pub const RAW_MTIME: i64 = 1_781_518_830;

/// What a Kitfile says of the layers.
#[derive(Debug, Clone)]
pub struct Kitfile {
    name: String,
    entries: Vec<(Section, String, Packing)>,
    packing: Packing,
    /// The kit that the model is.
    refers: Option<String>,
    /// Datasets that live elsewhere: path and address.
    remote: Vec<(String, String)>,
}

impl Kitfile {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), entries: Vec::new(), packing: Packing::Plain, refers: None, remote: Vec::new() }
    }

    /// How the entries that follow are packed.
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    pub fn gzip(self) -> Self {
        self.packing(Packing::Gzip)
    }

    pub fn plain(self) -> Self {
        self.packing(Packing::Plain)
    }

    pub fn zstd(self) -> Self {
        self.packing(Packing::Zstd)
    }

    pub fn raw(self) -> Self {
        self.packing(Packing::Raw)
    }

    pub fn entry(mut self, section: Section, path: &str) -> Self {
        self.entries.push((section, path.to_owned(), self.packing));
        self
    }

    pub fn model(self, path: &str) -> Self {
        self.entry(Section::Model, path)
    }

    pub fn part(self, path: &str) -> Self {
        self.entry(Section::Part, path)
    }

    pub fn code(self, path: &str) -> Self {
        self.entry(Section::Code, path)
    }

    pub fn dataset(self, path: &str) -> Self {
        self.entry(Section::Dataset, path)
    }

    pub fn docs(self, path: &str) -> Self {
        self.entry(Section::Docs, path)
    }

    /// The model is another kit.
    pub fn refers(mut self, reference: &str) -> Self {
        self.refers = Some(reference.to_owned());
        self
    }

    /// A dataset that lives elsewhere.
    pub fn remote(mut self, path: &str, address: &str) -> Self {
        self.remote.push((path.to_owned(), address.to_owned()));
        self
    }

    /// Packs what the entries name.
    pub fn pack(&self, tree: &Tree) -> Kit {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|(section, ..)| *section);
        let paths: Vec<String> = entries.iter().map(|(_, path, _)| clean(path)).collect();
        let mut shown = Tree::new();
        let mut layers = Vec::new();
        for ((section, written, packing), path) in entries.iter().zip(&paths) {
            let mut annotations = Map::new();
            let (content, files) = if packing.is_raw() {
                let Some(Node::File { mode, content }) = tree.0.get(path.as_bytes()) else { panic!("no file {path} in the tree") };
                // What nothing says of a mode is this.
                let mode = if *packing == Packing::RawGzipUnsized { 0o644 } else { *mode };
                shown.file_in_place(path, mode, content);
                annotations.insert("org.cncf.model.filepath".into(), path.as_str().into());
                if *packing != Packing::RawGzipUnsized {
                    annotations.insert("org.cncf.model.file.metadata+json".into(), metadata(path, mode, content.len()).into());
                }
                (content.to_vec(), vec![path.as_bytes().to_vec()])
            } else {
                layer(tree, path, &paths, &mut shown)
            };
            let diff_id = sha256(&content);
            let (blob, format) = packing.blob(content);
            layers.push(Layer {
                section: *section,
                written: written.clone(),
                path: path.clone(),
                media_type: format!("application/vnd.kitops.modelkit.{}.v1.{format}", section.base()),
                digest: sha256(&blob),
                diff_id,
                blob: Arc::new(blob),
                files,
                annotations,
            });
        }
        let config = self.config(&layers).to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": CONFIG, "digest": sha256(&config), "size": config.len() },
            // Go writes a nil slice as null.
            "layers": if layers.is_empty() { Value::Null } else { layers.iter().map(Layer::descriptor).collect() },
            "annotations": { "ml.kitops.modelkit.cli-version": "1.7.0" },
        });
        Kit { manifest: manifest.to_string().into_bytes(), config, layers, tree: shown }
    }

    fn config(&self, layers: &[Layer]) -> Value {
        let of = |section| layers.iter().filter(move |layer| layer.section == section).map(Layer::entry).collect::<Vec<_>>();
        let mut config = Map::new();
        config.insert("manifestVersion".into(), "1.0.0".into());
        config.insert("package".into(), json!({ "name": self.name }));
        let mut model = of(Section::Model).into_iter().next();
        if let Some(reference) = &self.refers {
            model = Some(json!({ "path": reference }));
        }
        let remote = self.remote.iter().map(|(path, address)| json!({ "path": path, "remotePath": address }));
        let datasets = of(Section::Dataset).into_iter().chain(remote).collect();
        let parts = of(Section::Part);
        if !parts.is_empty() {
            model.get_or_insert_with(|| json!({}))["parts"] = parts.into();
        }
        for (name, value) in
            [("model", model), ("code", some(of(Section::Code))), ("datasets", some(datasets)), ("docs", some(of(Section::Docs)))]
        {
            if let Some(value) = value {
                config.insert(name.into(), value);
            }
        }
        config.into()
    }
}

const CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A packed kit.
#[derive(Debug, Clone)]
pub struct Kit {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Layer>,
    /// What a mount shows of it, without the generated Kitfile.
    pub tree: Tree,
}

#[derive(Debug, Clone)]
pub struct Layer {
    pub section: Section,
    /// The path as the Kitfile spells it.
    pub written: String,
    /// The path cleaned, `.` for the root.
    pub path: String,
    pub media_type: String,
    pub digest: String,
    pub diff_id: String,
    pub blob: Arc<Vec<u8>>,
    /// The files in it, not the folders.
    pub files: Vec<Vec<u8>>,
    /// What the manifest notes about it.
    pub annotations: Map<String, Value>,
}

impl Layer {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.blob.len() });
        if !self.annotations.is_empty() {
            descriptor["annotations"] = self.annotations.clone().into();
        }
        descriptor
    }

    fn entry(&self) -> Value {
        json!({ "name": self.path.replace('/', "-"), "path": self.written, "digest": self.digest, "diffId": self.diff_id })
    }

    /// The name of its folder and its index in the cache: the digest, and how it is read.
    pub fn stored_name(&self) -> String {
        let name = self.digest.replace(':', "-");
        match self.media_type.rsplit_once(".v1.") {
            Some((_, "tar")) | None => name,
            Some((_, format)) => format!("{name}-{format}"),
        }
    }

    /// The offset in a plain blob of a file's content.
    pub fn offset_of(&self, content: &[u8]) -> u64 {
        let found = self.blob.windows(content.len().min(64)).position(|window| content.starts_with(window));
        found.expect("the file's content in the plain layer") as u64
    }
}

impl Kit {
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    pub fn config_digest(&self) -> String {
        sha256(&self.config)
    }

    /// The layer whose Kitfile path this is.
    pub fn layer(&self, path: &str) -> &Layer {
        self.layers.iter().find(|layer| layer.path == path).unwrap_or_else(|| panic!("no layer {path}"))
    }

    /// Every blob with its digest: the config, then the layers.
    pub fn blobs(&self) -> impl Iterator<Item = (String, &[u8])> {
        let layers = self.layers.iter().map(|layer| (layer.digest.clone(), layer.blob.as_slice()));
        std::iter::once((self.config_digest(), self.config.as_slice())).chain(layers)
    }

    /// Puts it into the registry and says the reference: `127.0.0.1:PORT/name:tag`.
    pub fn serve(&self, registry: &Registry, name: &str, tag: &str) -> String {
        for (digest, blob) in self.blobs() {
            registry.blob_as(&digest, blob);
        }
        registry.manifest(name, tag, MANIFEST, self.manifest.clone());
        format!("{}/{name}:{tag}", registry.host())
    }

    /// Writes an OCI image layout in which the kit has this name, and says the reference: `oci:FOLDER:NAME`.
    pub fn layout(&self, folder: &Path, name: &str) -> String {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a folder");
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("room");
        for (digest, blob) in self.blobs().chain([(self.digest(), self.manifest.as_slice())]) {
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), blob).expect("room");
        }
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": name },
            }],
        });
        fs::write(folder.join("index.json"), index.to_string()).expect("room");
        format!("oci:{}:{name}", folder.display())
    }
}

fn some(list: Vec<Value>) -> Option<Value> {
    (!list.is_empty()).then(|| list.into())
}

fn clean(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() { ".".into() } else { parts.join("/") }
}

/// `path` is `folder` or below it; `.` has everything below it.
fn is_in(path: &[u8], folder: &[u8]) -> bool {
    folder == b"." || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The tar of the layer at `path` and the files in it; what it holds is added to `shown`.
fn layer(tree: &Tree, path: &str, all: &[String], shown: &mut Tree) -> (Vec<u8>, Vec<Vec<u8>>) {
    let own = path.as_bytes();
    let inner: BTreeSet<&[u8]> = all.iter().map(String::as_bytes).filter(|other| *other != own && is_in(other, own)).collect();
    let mut tar = Vec::new();
    let mut files = Vec::new();
    for (name, node) in tree.walk() {
        let above = own != b"." && is_in(own, name) && own != name;
        let ours = is_in(name, own) && !inner.iter().any(|other| is_in(name, other));
        let root_only = !name.contains(&b'/') && NEVER_PACKED.iter().any(|never| never.as_bytes() == name);
        match node {
            _ if !(above || ours) || root_only => continue,
            Node::Folder { mode } => member(&mut tar, name, b'5', *mode, &[]),
            Node::File { mode, content } => {
                member(&mut tar, name, b'0', *mode, content);
                files.push(name.to_vec());
            }
        }
        shown.0.entry(name.to_vec()).or_insert_with(|| node.clone());
    }
    tar.resize(tar.len() + 1024, 0);
    (tar, files)
}

const NEVER_PACKED: [&str; 4] = ["Kitfile", "kitfile", ".kitfile", ".kitignore"];

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// One frame with a checksum, as kit's encoder writes it.
fn zstd(content: &[u8]) -> Vec<u8> {
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).expect("a known parameter");
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    context.compress2(&mut frame, content).expect("memory");
    frame
}

/// What kit 1.15 notes of the file of a raw layer.
fn metadata(path: &str, mode: u32, size: usize) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let mtime = "2026-06-15T10:20:30.123456789Z";
    json!({ "name": name, "mode": mode & 0o777, "uid": 0, "gid": 0, "size": size, "mtime": mtime, "typeflag": 48 }).to_string()
}
