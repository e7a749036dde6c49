//! Kit's own storage.

use super::*;
use crate::fixtures;
use crate::oci::RegistryName;

/// A home of kit, as the fixture has it.
fn home() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let tar = fs::File::open(fixtures::case("kits", "kit-home").folder.join("kitops-home.tar")).expect("a fixture");
    tar::Archive::new(tar).unpack(folder.path()).expect("room");
    folder
}

fn named(reference: &str) -> (RegistryName, Option<Digest>) {
    let parsed: Reference = format!("kitops:{reference}").parse().expect(reference);
    let Transport::Kitops(name) = parsed.transport() else { panic!("{reference}") };
    (name.clone(), parsed.digest())
}

async fn resolve(home: &Path, reference: &str) -> Result<Resolved, SourceError> {
    let (name, digest) = named(reference);
    Layout::kitops(&name, digest, home)?.resolve().await
}

const V1: &str = "sha256:f4176019aafd686ebe2154eb8e9fa26f3ad5c3a4a13cfeef2b16787777ab08ef";
const V2: &str = "sha256:3101df7208039f8f93fc2d3c336af9b92c37ace7aab10cec7318db7582745ed8";
const NOTES: &str = "sha256:cdf80c6d004f6926320e811ca1379495bf8439454d5ccb521a81e8556801497c";

#[tokio::test]
async fn names_are_those_of_kit() {
    let home = home();
    for (reference, expected) in [
        ("registry.example.com/acme/vision:v1", Ok(V1)),
        ("registry.example.com/acme/vision:v2", Ok(V2)),
        ("registry.example.com/acme/vision:stable", Ok(V2)),
        (&format!("registry.example.com/acme/vision@{V1}"), Ok(V1)),
        (&format!("registry.example.com/acme/vision:v9@{V1}"), Ok(V1)),
        ("local-notes:latest", Ok(NOTES)),
        ("local-notes", Ok(NOTES)),
        ("localhost/local-notes:latest", Err("localhost/localhost/local-notes:latest (it has none of that repository)")),
        ("registry.example.com/acme/vision:v3", Err("(it has `stable`, `v1`, `v2` of that repository)")),
        ("registry.example.com/acme/vision", Err("acme/vision:latest")),
        ("registry.example.com/acme/other:v1", Err("it has none")),
        ("acme/vision:v1", Err("localhost/acme/vision:v1")),
        // It is in the storage, but not of this repository.
        (&format!("registry.example.com/acme/vision@{NOTES}"), Err("was not found")),
    ] {
        match (resolve(home.path(), reference).await, expected) {
            (Ok(resolved), Ok(digest)) => {
                assert_eq!(resolved.descriptor.digest.to_string(), digest, "{reference}");
                assert!(resolved.manifest.verify(&resolved.descriptor).is_ok(), "{reference}");
            }
            (Err(error @ SourceError::NotFound { .. }), Err(part)) => assert!(error.to_string().contains(part), "{reference}: {error}"),
            (got, _) => panic!("{reference}: {got:?}"),
        }
    }
    assert!(matches!(resolve(&home.path().join("missing"), "local-notes").await, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn the_old_form_is_a_layout_for_each_repository() {
    let home = home();
    let storage = home.path().join("storage");
    let old = storage.join("registry.example.com/acme/vision");
    let mut layout = Fixture::new(Form::Folder);
    let moved = layout.list(b"of old", Some("v1"));
    let only = layout.list(b"older", Some("v0"));
    fs::create_dir_all(old.parent().expect("a parent")).expect("made");
    fs::rename(layout.dir.path(), &old).expect("one disk");
    let digest = async |reference: &str| resolve(home.path(), reference).await.map(|resolved| resolved.descriptor.digest);
    // Kit would move it over what is there.
    assert_eq!(digest("registry.example.com/acme/vision:v1").await.expect("there"), moved);
    assert_eq!(digest("registry.example.com/acme/vision:v0").await.expect("there"), only);
    assert_eq!(digest("registry.example.com/acme/vision:v2").await.expect("there").to_string(), V2);
    assert_eq!(digest(&format!("registry.example.com/acme/vision@{only}")).await.expect("there"), only);
    // Blobs are found in both.
    let (name, _) = named("registry.example.com/acme/vision:v2");
    let source = Layout::kitops(&name, None, home.path()).expect("a home");
    for (digest, size) in [(moved, 6), (V2.parse().expect("a digest"), 569)] {
        let wanted = Descriptor { media_type: IMAGE_MANIFEST.into(), digest, size };
        assert!(source.document(&wanted).await.expect("there").verify(&wanted).is_ok(), "{digest}");
    }
    // Only the old form, as an old kit left it.
    for new in fs::read_dir(&storage).expect("ours").map(|entry| entry.expect("ours").path()).filter(|path| path.is_file()) {
        fs::remove_file(new).expect("ours");
    }
    assert_eq!(digest("registry.example.com/acme/vision:v0").await.expect("there"), only);
    assert!(matches!(digest("registry.example.com/acme/vision:v2").await, Err(SourceError::NotFound { .. })));
    // A link is none of kit's doing.
    fs::rename(storage.join("registry.example.com"), home.path().join("elsewhere")).expect("one disk");
    symlink(home.path().join("elsewhere"), storage.join("registry.example.com")).expect("made");
    assert!(matches!(digest("registry.example.com/acme/vision:v0").await, Err(SourceError::Protocol { .. })));
}

#[tokio::test]
async fn lists_that_are_wrong_are_named() {
    let home = home();
    let tags = home.path().join("storage/bG9jYWxob3N0L2xvY2FsLW5vdGVz-tags.json");
    let index = home.path().join("storage/bG9jYWxob3N0L2xvY2FsLW5vdGVz-index.json");
    let entry = |digest: &str, size: &str| format!(r#"{{"latest":{{"mediaType":"{IMAGE_MANIFEST}","digest":"{digest}","size":{size}}}}}"#);
    let many: Vec<String> = (0..=limits::LAYOUT_MANIFESTS).map(|n| format!(r#""t{n}":0"#)).collect();
    for (text, part) in [
        (r#"{"latest":{"mediaType":"#.to_owned(), "JSON"),
        ("[]".to_owned(), "no object of tags"),
        (r#"{"latest":[]}"#.to_owned(), "latest"),
        (r#"{"latest":{},"latest":{}}"#.to_owned(), "twice"),
        (entry("sha256:../../../../etc/passwd", "1"), "latest.digest"),
        (entry(NOTES, "-1"), "latest.size"),
        (entry(NOTES, &(limits::MANIFEST_BYTES + 1).to_string()), "are allowed"),
        (format!("{{{}}}", many.join(",")), "10001 tags"),
        (" ".repeat(limits::LAYOUT_INDEX_BYTES as usize + 1), "more than"),
    ] {
        fs::write(&tags, &text).expect("written");
        let error = resolve(home.path(), "local-notes").await.expect_err(part);
        assert!(matches!(error, SourceError::Protocol { .. }) && error.to_string().contains(part), "{part}: {error}");
    }
    fs::write(&index, r#"{"schemaVersion":1,"manifests":[]}"#).expect("written");
    let error = resolve(home.path(), &format!("local-notes@{NOTES}")).await.expect_err("another version");
    assert!(error.to_string().contains("schemaVersion 1"), "{error}");
    fs::remove_file(&tags).expect("ours");
    symlink("/etc/passwd", &tags).expect("made");
    assert!(matches!(resolve(home.path(), "local-notes").await, Err(SourceError::Protocol { .. })));
}

#[tokio::test]
async fn a_list_that_kit_is_writing_is_read_again() {
    let home = home();
    let tags = home.path().join("storage/bG9jYWxob3N0L2xvY2FsLW5vdGVz-tags.json");
    let text = fs::read(&tags).expect("there");
    // A FIFO would be refused, so the other half comes by time; too late, and the test would fail.
    fs::write(&tags, &text[..text.len() / 2]).expect("written");
    let writing = std::thread::spawn(move || {
        std::thread::sleep(limits::KIT_STORAGE_PAUSE / 2);
        fs::write(&tags, &text).expect("written");
    });
    let resolved = resolve(home.path(), "local-notes").await;
    writing.join().expect("written");
    assert_eq!(resolved.expect("whole by then").descriptor.digest.to_string(), NOTES);
}
