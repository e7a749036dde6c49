use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use futures_util::StreamExt as _;
use rustix::fs::{FileType, Mode};

use super::*;
use crate::digest::Algorithm;
use crate::oci::{IMAGE_MANIFEST, Reference, Transport};

#[cfg(test)]
mod archives;
#[cfg(test)]
mod attached;
#[cfg(test)]
mod kits;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a layout can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Folder,
    Tar,
    Gzip,
}

const FORMS: [Form; 3] = [Form::Folder, Form::Tar, Form::Gzip];

struct Fixture {
    dir: tempfile::TempDir,
    listed: Vec<String>,
    form: Form,
}

impl Fixture {
    fn new(form: Form) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("blobs/sha256")).expect("made");
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        let fixture = Self { dir, listed: Vec::new(), form };
        fixture.write_index();
        fixture
    }

    fn blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, content);
        fs::write(self.path(&digest), content).expect("written");
        digest
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    fn list(&mut self, content: &[u8], name: Option<&str>) -> Digest {
        let digest = self.blob(content);
        let annotations = name.map(|name| format!(r#","annotations":{{"{REF_NAME}":"{name}"}}"#)).unwrap_or_default();
        self.listed.push(format!(r#"{{"mediaType":"{IMAGE_MANIFEST}","digest":"{digest}","size":{}{annotations}}}"#, content.len()));
        self.write_index();
        digest
    }

    fn write_index(&self) {
        self.write("index.json", &format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.listed.join(",")));
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("written");
    }

    /// Opens it in its form, as it is now.
    fn open(&self, suffix: &str) -> Result<Layout, SourceError> {
        let dir = self.dir.path().display();
        if self.form == Form::Folder {
            return open(&format!("oci:{dir}{suffix}"));
        }
        let archive = self.dir.path().join("archive");
        fs::write(&archive, archives::packed(self.form, &archives::tar_of(self.dir.path()))).expect("written");
        open(&format!("oci-archive:{dir}/archive{suffix}"))
    }

    async fn resolve(&self, suffix: &str) -> Result<Resolved, SourceError> {
        self.open(suffix)?.resolve().await
    }
}

fn open(reference: &str) -> Result<Layout, SourceError> {
    let reference: Reference = reference.parse().expect("a reference");
    match reference.transport() {
        Transport::Layout(name) => Layout::folder(name, reference.digest()),
        Transport::Archive(name) => Ok(Layout::archive(name, reference.digest())),
        other => panic!("{other:?}"),
    }
}

async fn bytes_of(mut stream: BlobStream) -> Result<(usize, Vec<usize>), SourceError> {
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk?.len());
    }
    Ok((chunks.iter().sum(), chunks))
}

#[tokio::test]
async fn names_of_manifests() {
    for form in FORMS {
        names_of_manifests_in(form).await;
    }
}

async fn names_of_manifests_in(form: Form) {
    let mut layout = Fixture::new(form);
    assert!(matches!(layout.resolve("").await, Err(SourceError::NotFound { .. })));
    let first = layout.list(b"first", Some("reg.example/a:v1"));
    assert_eq!(layout.resolve("").await.expect("the only one").descriptor.digest, first);
    let second = layout.list(b"second", Some("v2"));
    let third = layout.list(b"third", Some("reg.example/a:v2"));
    layout.list(b"fourth", Some("reg.example/b:v3"));
    layout.list(b"fifth", Some("reg.example:5000/b:v3"));
    let sixth = layout.list(b"sixth", None);
    let seventh = layout.blob(b"seventh");
    for (suffix, expected) in [
        (":reg.example/a:v1", Ok((first, Pin::BySource))),
        (":v1", Ok((first, Pin::BySource))),
        (":v2", Ok((second, Pin::BySource))),
        (":reg.example/a:v2", Ok((third, Pin::BySource))),
        (&format!("@{sixth}"), Ok((sixth, Pin::ByUser))),
        (&format!(":v1@{sixth}"), Ok((sixth, Pin::ByUser))),
        (&format!("@{seventh}"), Ok((seventh, Pin::ByUser))),
        ("", Err("the only manifest (there are 6, name one of `reg.example/a:v1`, `v2`")),
        (":v3", Err("the one manifest that `v3` means (2 have that name")),
        (":v4", Err("`v4` (it has `reg.example/a:v1`")),
        (":5000/b", Err("`5000/b`")),
        (&format!("@{}", Digest::of(Algorithm::Sha256, b"nothing")), Err("was not found")),
    ] {
        match (layout.resolve(suffix).await, expected) {
            (Ok(resolved), Ok((digest, pin))) => {
                assert_eq!((resolved.descriptor.digest, resolved.pin), (digest, pin), "{suffix}");
                assert!(resolved.manifest.verify(&resolved.descriptor).is_ok(), "{suffix}");
            }
            (Err(error @ SourceError::NotFound { .. }), Err(part)) => assert!(error.to_string().contains(part), "{suffix}: {error}"),
            (got, expected) => panic!("{suffix}: expected {expected:?}, got {got:?}"),
        }
    }
    let missing = open(&format!("oci:{}/missing", layout.dir.path().display()));
    assert!(matches!(missing, Err(SourceError::NotFound { .. })));
    let missing = open(&format!("oci-archive:{}/missing", layout.dir.path().display())).expect("nothing was looked at");
    assert!(matches!(missing.resolve().await, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn what_is_no_layout_is_refused() {
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let entry = |digest: &str, size: &str| format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":{size}}}"#);
    let index = |entries: &str| format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    let good = entry(&digest.to_string(), "1");
    let many = |count: usize| index(&vec![good.as_str(); count].join(","));
    let padded = |bytes: u64| format!("{}{}", index(&good), " ".repeat(bytes as usize - index(&good).len()));
    for (form, name, text, expected) in [
        ("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#.to_owned(), Some("version `2.0.0`")),
        ("oci-layout", "{}".to_owned(), Some("missing")),
        ("oci-layout", "[]".to_owned(), Some("an object")),
        ("index.json", "{".to_owned(), Some("JSON")),
        ("index.json", r#"{"schemaVersion":1,"manifests":[]}"#.to_owned(), Some("schemaVersion 1")),
        ("index.json", r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.to_owned(), Some("manifests")),
        ("index.json", index(&entry("sha256:00", "1")), Some("manifests[0].digest")),
        ("index.json", index(&entry("sha256:../../../etc/passwd", "1")), Some("manifests[0].digest")),
        ("index.json", index(&entry(&digest.to_string(), "-1")), Some("manifests[0].size")),
        ("index.json", index(&entry(&digest.to_string(), "1.5")), Some("manifests[0].size")),
        ("index.json", index(&entry(&digest.to_string(), &(limits::MANIFEST_BYTES + 1).to_string())), Some("are allowed")),
        ("index.json", index(&good), None),
        ("index.json", many(limits::LAYOUT_MANIFESTS), None),
        ("index.json", many(limits::LAYOUT_MANIFESTS + 1), Some("10000 are allowed")),
        ("index.json", padded(limits::LAYOUT_INDEX_BYTES), None),
        ("index.json", padded(limits::LAYOUT_INDEX_BYTES + 1), Some("more than 4194304 bytes")),
    ]
    .into_iter()
    .flat_map(|(name, text, expected)| FORMS.map(|form| (form, name, text.clone(), expected)))
    {
        let layout = Fixture::new(form);
        layout.blob(b"x");
        layout.write(name, &text);
        let shown = &text[..text.len().min(100)];
        match (layout.resolve("").await, expected) {
            (Ok(_), None) => {}
            (Err(error @ SourceError::Protocol { .. }), Some(part)) => {
                assert!(error.to_string().contains(part), "{form:?} {shown}: {error}")
            }
            (got, _) => panic!("{form:?} {shown}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn a_blob_comes_in_chunks_from_any_offset() {
    for form in FORMS {
        a_blob_comes_in_chunks_from_any_offset_of(form).await;
    }
}

async fn a_blob_comes_in_chunks_from_any_offset_of(form: Form) {
    let layout = Fixture::new(form);
    let content: Vec<u8> = (0..limits::LAYOUT_CHUNK_BYTES * 2 + 5).map(|n| (n % 251) as u8).collect();
    let digest = layout.blob(&content);
    let size = content.len() as u64;
    let source = layout.open("").expect("a folder");
    let described = |size| Descriptor { media_type: "x/y".into(), digest, size };
    let (count, chunks) = bytes_of(source.blob(&described(size), 0)).await.expect("read");
    assert_eq!((count as u64, chunks.len()), (size, 3));
    for (size_said, from, expected) in [
        (size, 7, size - 7),
        (size, size, 0),
        (size - 1, 0, size),
        (size - 1, size - 1, 1),
        (5, 0, 6),
        (size + 9, 0, size),
        (u64::MAX, 0, size),
        (size, u64::MAX, 0),
    ] {
        let (count, _) = bytes_of(source.blob(&described(size_said), from)).await.expect("read");
        assert_eq!(count as u64, expected, "{size_said} from {from}");
    }
    let wanted = described(size);
    let Some(Ok(first)) = source.blob(&wanted, 0).next().await else { panic!("a chunk") };
    assert_eq!(first.describe(Algorithm::Sha256, "").digest, Digest::of(Algorithm::Sha256, &content[..limits::LAYOUT_CHUNK_BYTES]));
}

#[tokio::test]
async fn only_regular_files_below_the_folder_are_opened() {
    let layout = Fixture::new(Form::Folder);
    let source = layout.open("").expect("a folder");
    let named = |name: &str| Digest::of(Algorithm::Sha256, name.as_bytes());
    symlink("/etc/passwd", layout.path(&named("link"))).expect("made");
    symlink("../../index.json", layout.path(&named("inside"))).expect("made");
    fs::create_dir(layout.path(&named("folder"))).expect("made");
    rustix::fs::mknodat(rustix::fs::CWD, layout.path(&named("fifo")), FileType::Fifo, Mode::RUSR, 0).expect("made");
    for name in ["link", "inside", "folder", "fifo"] {
        let descriptor = Descriptor { media_type: "x/y".into(), digest: named(name), size: 5 };
        let blob = bytes_of(source.blob(&descriptor, 0)).await;
        assert!(matches!(blob, Err(SourceError::Protocol { .. })), "{name}: {blob:?}");
        let document = source.document(&descriptor).await;
        assert!(matches!(document, Err(SourceError::Protocol { .. })), "{name}: {document:?}");
    }
    let missing = Descriptor { media_type: "x/y".into(), digest: named("missing"), size: 5 };
    assert!(matches!(bytes_of(source.blob(&missing, 0)).await, Err(SourceError::NotFound { .. })));

    let other = Fixture::new(Form::Folder);
    let digest = other.blob(b"outside");
    fs::remove_dir_all(layout.dir.path().join("blobs")).expect("gone");
    symlink(other.dir.path().join("blobs"), layout.dir.path().join("blobs")).expect("made");
    let descriptor = Descriptor { media_type: "x/y".into(), digest, size: 7 };
    assert!(matches!(bytes_of(source.blob(&descriptor, 0)).await, Err(SourceError::Protocol { .. })));
}

#[tokio::test]
async fn a_document_shows_that_it_is_too_long_or_too_short() {
    for form in FORMS {
        a_document_shows_it_in(form).await;
    }
}

async fn a_document_shows_it_in(form: Form) {
    let layout = Fixture::new(form);
    let digest = layout.blob(b"config");
    let source = layout.open("").expect("a folder");
    for (size, expected) in [(6, 6), (5, 6), (3, 4), (9, 6)] {
        let descriptor = Descriptor { media_type: "x/y".into(), digest, size };
        assert_eq!(source.document(&descriptor).await.expect("read").len(), expected);
    }
    let huge = Descriptor { media_type: "x/y".into(), digest, size: limits::CONFIG_BYTES + 1 };
    assert!(matches!(source.document(&huge).await, Err(SourceError::Protocol { .. })));
}
