//! The fixtures: cases with their layout and what they must look like.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use super::pack::MANIFEST;
use super::process::{require, run};
use super::registry::{Registry, fallback_tag};

/// One folder of `tests/fixtures/kits` or `tests/fixtures/hostile`.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    folder: PathBuf,
    layout: PathBuf,
    json: Value,
}

/// One line of a `tree*.jsonl`.
#[derive(Debug)]
pub struct Line {
    pub path: Vec<u8>,
    pub folder: bool,
    pub mode: u32,
    pub size: u64,
    pub sha256: String,
    pub generated: bool,
}

/// Filters that were tried on a kit.
#[derive(Debug)]
pub struct Tried {
    /// One text for each `--filter`.
    pub filters: Vec<String>,
    /// What they leave, or kit's error.
    pub outcome: Result<Vec<Line>, String>,
}

/// The files of a `layout.tar`.
#[derive(Debug)]
pub struct Layout(BTreeMap<String, Vec<u8>>);

/// The cases of one kind (`kits`, `hostile`, `signed`), by name.
pub fn cases(kind: &str) -> Vec<Case> {
    let folder = root().join(kind);
    let mut cases: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .map(|path| Case::load(&path))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty(), "no cases in {}", folder.display());
    cases
}

/// One case, `kits/all-kinds-plain`.
pub fn case(path: &str) -> Case {
    Case::load(&root().join(path))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

impl Case {
    fn load(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("case.json")).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        Self { name, folder: folder.to_owned(), layout: folder.join("layout.tar"), json }
    }

    /// A text field of `case.json`.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.json.get(field)?.as_str()
    }

    /// A list of texts of `case.json`, empty if there is none.
    pub fn list(&self, field: &str) -> Vec<&str> {
        self.json.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub fn reference(&self) -> &str {
        self.text("reference").expect("`reference` in case.json")
    }

    pub fn digest(&self) -> &str {
        self.text("digest").expect("`digest` in case.json")
    }

    /// All filters that were tried on the kit.
    pub fn filters(&self) -> Vec<Tried> {
        let tried = self.json.get("filters").and_then(Value::as_array).into_iter().flatten();
        tried
            .map(|tried| {
                let texts = tried["filter"].as_array().expect("a list of filters").iter();
                let filters = texts.map(|text| text.as_str().expect("a filter").to_owned()).collect();
                let outcome = match tried["error"].as_str() {
                    Some(error) => Err(error.to_owned()),
                    None => {
                        let name = tried["tree"].as_str().expect("a tree or an error");
                        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
                        Ok(text.lines().map(Line::parse).collect())
                    }
                };
                Tried { filters, outcome }
            })
            .collect()
    }

    /// What `modctl fetch` takes of a ModelPack for each list of patterns that was tried.
    pub fn fetched_by_modctl(&self) -> Vec<(Vec<String>, Vec<Line>)> {
        let tried = self.json.get("modctl_fetch").and_then(Value::as_array).into_iter().flatten();
        tried
            .map(|tried| {
                let patterns = tried["patterns"].as_array().expect("a list of patterns").iter();
                let name = tried["tree"].as_str().expect("a tree");
                let text = fs::read_to_string(self.folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
                let patterns = patterns.map(|pattern| pattern.as_str().expect("a pattern").to_owned());
                (patterns.collect(), text.lines().map(Line::parse).collect())
            })
            .collect()
    }

    /// What a mount shows, if that is known.
    pub fn tree(&self) -> Option<Vec<Line>> {
        let name = self.text("mount_tree").or(self.text("tree")).unwrap_or("tree.jsonl");
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.lines().map(Line::parse).collect())
    }

    /// A file of the case.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// References into `kitops-home.tar`, with what a mount shows of each; nothing of one that is not there.
    pub fn kit_home(&self) -> Vec<(String, Option<Vec<Line>>)> {
        let list = self.json.get("kit_home").and_then(Value::as_array).into_iter().flatten();
        list.map(|entry| {
            let tree = entry.get("tree").and_then(Value::as_str).map(|name| {
                let text = fs::read_to_string(self.path(name)).expect("a tree");
                text.lines().map(Line::parse).collect()
            });
            assert_eq!(tree.is_none(), entry.get("error").is_some(), "{entry}");
            (entry["reference"].as_str().expect("a reference").to_owned(), tree)
        })
        .collect()
    }

    /// Makes the layout as large as the case wants it, in `folder`; nothing if it is that large as it is.
    pub fn grow(&mut self, folder: &Path) {
        if self.json.get("grow").is_none() {
            return;
        }
        let grown = folder.join(format!("{}.tar", self.name));
        require("python3", "apt-get install python3");
        let script = self.folder.with_file_name("grow.py");
        run(Command::new("python3").arg(script).arg(&self.folder).arg(&grown), Duration::from_secs(120)).ok();
        self.layout = grown;
    }

    pub fn layout(&self) -> Layout {
        let path = &self.layout;
        let mut archive = tar::Archive::new(fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            if entry.header().entry_type().is_file() {
                let name = entry.path().expect("a name").to_string_lossy().trim_start_matches("./").to_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("a whole entry");
                files.insert(name, content);
            }
        }
        Layout(files)
    }

    /// Puts everything of the case into the registry, whether its digests are right or not, and says the case's reference there.
    pub fn serve(&self, registry: &Registry) -> String {
        self.layout().serve(registry);
        let (_, name) = self.reference().split_once('/').expect("a registry in the reference");
        format!("{}/{name}", registry.host())
    }

    /// Says the case's reference in an archive: the layout as it came, or compressed into `folder`.
    pub fn archive(&self, folder: &Path, gzip: bool) -> String {
        let mut path = self.layout.clone();
        if gzip {
            let tar = fs::read(&path).expect("a fixture");
            path = folder.join("layout.tar.gz");
            let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&path).expect("room"), flate2::Compression::fast());
            encoder.write_all(&tar).and_then(|()| encoder.finish().map(drop)).expect("room");
        }
        format!("oci-archive:{}:{}", path.display(), self.reference())
    }

    /// Puts everything of the case into a registry that stands for the one of the case's reference.
    pub fn serve_as_proxy(&self, registry: &Registry) -> String {
        self.layout().serve(registry);
        self.reference().to_owned()
    }

    /// Unpacks the layout into a folder and says the case's reference there.
    pub fn unpack(&self, folder: &Path) -> String {
        for (name, content) in self.layout().0 {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            fs::write(path, content).expect("room");
        }
        format!("oci:{}:{}", folder.display(), self.reference())
    }
}

impl Layout {
    /// The blob with this digest.
    pub fn blob(&self, digest: &str) -> Option<&[u8]> {
        self.0.get(&format!("blobs/{}", digest.replacen(':', "/", 1))).map(Vec::as_slice)
    }

    /// The document with this digest.
    pub fn json(&self, digest: &str) -> Option<Value> {
        serde_json::from_slice(self.blob(digest)?).ok()
    }

    fn serve(&self, registry: &Registry) {
        for (path, content) in &self.0 {
            if let Some(digest) = path.strip_prefix("blobs/") {
                registry.blob_as(&digest.replacen('/', ":", 1), content.clone());
            }
        }
        let index: Value = serde_json::from_slice(&self.0["index.json"]).expect("an index");
        for manifest in index["manifests"].as_array().expect("manifests") {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let Some((repository, tag, digest)) = name_of(manifest) else { continue };
            let content = self.blob(digest).expect("the manifest").to_vec();
            registry.manifest_as(repository, tag, digest, &text(&manifest["mediaType"]), content);
        }
        self.attach(registry, &index);
    }

    /// Attaches what has a subject to it, in every repository that has the subject, and what an index at a subject's tag lists: as it
    /// is listed, then what nobody lists.
    fn attach(&self, registry: &Registry, index: &Value) {
        let listed = |index: &Value| -> Vec<String> {
            let entries = index["manifests"].as_array().into_iter().flatten();
            entries.filter_map(|entry| entry["digest"].as_str().map(str::to_owned)).collect()
        };
        let names: Vec<_> = named(index).collect();
        let mut done = BTreeSet::new();
        let mut attach = |repository: &str, subject: &str, digest: &str| {
            let Some(content) = self.blob(digest) else { return };
            if registry.has_manifest(repository, subject) && done.insert([repository, subject, digest].map(str::to_owned)) {
                registry.attach(repository, subject, MANIFEST, content);
            }
        };
        let subject = |digest: &str| Some(self.json(digest)?["subject"]["digest"].as_str()?.to_owned());
        for digest in listed(index) {
            let subject = subject(&digest);
            names.iter().for_each(|(repository, ..)| subject.iter().for_each(|subject| attach(repository, subject, &digest)));
        }
        for (repository, tag, list) in &names {
            let kit = names.iter().find(|(other, _, kit)| other == repository && fallback_tag(kit) == *tag);
            let (Some((.., subject)), Some(list)) = (kit, self.json(list)) else { continue };
            listed(&list).iter().for_each(|digest| attach(repository, subject, digest));
        }
        // No manifest is that large, and what is no manifest need not be parsed.
        let blobs = self.0.iter().filter(|(_, content)| content.len() <= 4 << 20 && content.starts_with(b"{"));
        for digest in blobs.filter_map(|(path, _)| Some(path.strip_prefix("blobs/")?.replacen('/', ":", 1))) {
            let subject = subject(&digest);
            names.iter().for_each(|(repository, ..)| subject.iter().for_each(|subject| attach(repository, subject, &digest)));
        }
    }
}

/// The names of a layout: repository without its host, tag, digest.
fn named(index: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    index["manifests"].as_array().expect("manifests").iter().filter_map(name_of)
}

fn name_of(manifest: &Value) -> Option<(&str, &str, &str)> {
    let name = manifest["annotations"]["org.opencontainers.image.ref.name"].as_str()?;
    let name = name.split_once('/').filter(|(host, _)| host.contains(['.', ':'])).map_or(name, |(_, name)| name);
    let (repository, tag) = name.rsplit_once(':').expect("a tag");
    Some((repository, tag, manifest["digest"].as_str().expect("a digest")))
}

impl Line {
    fn parse(line: &str) -> Self {
        let json: Value = serde_json::from_str(line).expect("a line of JSON");
        let path = match json["path_b64"].as_str() {
            Some(exact) => base64::engine::general_purpose::STANDARD.decode(exact).expect("base64"),
            None => json["path"].as_str().expect("a path").as_bytes().to_vec(),
        };
        let mode = match &json["mode"] {
            Value::String(octal) => u32::from_str_radix(octal, 8).expect("octal"),
            number => u32::try_from(number.as_u64().expect("a mode")).expect("a mode"),
        };
        Self {
            path,
            folder: json["type"] == "dir",
            mode,
            size: json["size"].as_u64().unwrap_or_default(),
            sha256: json["sha256"].as_str().unwrap_or_default().to_owned(),
            generated: json["generated"].as_bool().unwrap_or_default(),
        }
    }
}
