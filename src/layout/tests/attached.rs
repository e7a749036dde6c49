//! What is attached to a manifest of a layout.

use serde_json::json;

use super::*;
use crate::oci::IMAGE_INDEX;
use crate::policy::Name;
use crate::source::AttachedBy;

const REPOSITORY: &str = "reg.example/a";

impl Fixture {
    /// An entry with these members beside what the content gives it.
    fn enter(&mut self, content: &[u8], more: &serde_json::Value) -> Digest {
        let digest = self.blob(content);
        self.enter_as(&digest, content.len() as u64, more);
        digest
    }

    fn enter_as(&mut self, digest: &Digest, size: u64, more: &serde_json::Value) {
        let mut entry = json!({ "mediaType": IMAGE_MANIFEST, "digest": digest, "size": size });
        for (key, value) in more.as_object().expect("members") {
            entry[key] = value.clone();
        }
        self.listed.push(entry.to_string());
        self.write_index();
    }

    async fn attached(&self, subject: &Digest, repository: Option<&str>) -> Attached {
        let repository = repository.map(|name| Name::of_repository(name).expect("a name"));
        self.open("").expect("a layout").attached(&Attachments { subject: *subject, repository }).await
    }
}

fn named(name: &str) -> serde_json::Value {
    json!({ "annotations": { REF_NAME: name } })
}

/// What `cosign save` writes of an entry: the name is the image's.
fn saved(kind: &str) -> serde_json::Value {
    json!({ "annotations": { REF_NAME: format!("{REPOSITORY}:v1"), "kind": format!("dev.cosignproject.cosign/{kind}") } })
}

fn referring(subject: &Digest, number: usize) -> Vec<u8> {
    json!({ "schemaVersion": 2, "subject": { "digest": subject }, "number": number }).to_string().into_bytes()
}

fn found(attached: &Attached) -> Vec<(Digest, AttachedBy)> {
    attached.listed.iter().map(|listed| (listed.descriptor.digest, listed.by)).collect()
}

#[tokio::test]
async fn what_is_attached_in_a_layout() {
    for form in FORMS {
        let mut layout = Fixture::new(form);
        let kit = layout.enter(br#"{"schemaVersion":2,"layers":[]}"#, &saved("image"));
        let tag = format!("sha256-{}", kit.hex());
        let unnamed = layout.enter(&referring(&kit, 1), &json!({ "artifactType": "x/y" }));
        let with_name = layout.enter(&referring(&kit, 2), &named("reg.example/a:signed"));
        let other = Digest::of(Algorithm::Sha256, b"other");
        layout.enter(&referring(&other, 3), &json!({}));
        layout.enter(b"{", &json!({}));
        layout.enter(br#"{"subject":7}"#, &json!({}));
        let broken = layout.enter(b"{{", &json!({ "artifactType": "x/y" }));
        let missing = Digest::of(Algorithm::Sha256, b"missing");
        layout.enter_as(&missing, 7, &json!({ "artifactType": "x/y" }));
        let signatures = layout.enter(b"signatures", &named(&format!("{REPOSITORY}:{tag}.sig")));
        let attestations = layout.enter(b"attestations", &named(&format!("{tag}.att")));
        let elsewhere = layout.enter(b"signatures elsewhere", &named(&format!("reg.example/b:{tag}.sig")));
        layout.enter(b"of another kit", &named(&format!("{REPOSITORY}:x{tag}.sig")));
        let listed = layout.blob(&referring(&kit, 4));
        let index = |digests: &[Digest]| {
            let entries: Vec<_> = digests.iter().map(|digest| json!({ "mediaType": "x/y", "digest": digest, "size": 1 })).collect();
            json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries }).to_string()
        };
        layout.enter(index(&[listed]).as_bytes(), &named(&format!("{REPOSITORY}:{tag}")));
        let saved_signatures = layout.enter(b"saved signatures", &saved("sigs"));
        let saved_attestations = layout.enter(b"saved attestations", &saved("atts"));
        let (subject, signature, attestation) = (AttachedBy::Subject, AttachedBy::SignatureName, AttachedBy::AttestationName);
        let attached = layout.attached(&kit, None).await;
        let expected = [
            (unnamed, subject),
            (with_name, subject),
            (broken, subject),
            (missing, subject),
            (signatures, signature),
            (attestations, attestation),
            (elsewhere, signature),
            (listed, subject),
            (saved_signatures, signature),
            (saved_attestations, attestation),
        ];
        assert_eq!(found(&attached), expected, "{form:?}");
        assert!(attached.gaps.is_empty() && attached.capped.is_empty() && attached.malformed.is_empty(), "{form:?}: {attached:?}");
        // Names of one repository: what has none, or another's, is of none.
        let of_it = [
            (with_name, subject),
            (signatures, signature),
            (listed, subject),
            (saved_signatures, signature),
            (saved_attestations, attestation),
        ];
        assert_eq!(found(&layout.attached(&kit, Some(REPOSITORY)).await), of_it, "{form:?}");
        assert_eq!(found(&layout.attached(&kit, Some("reg.example/b")).await), [(elsewhere, signature)], "{form:?}");
        // The image itself is still the one with its name.
        assert_eq!(layout.resolve(":reg.example/a:v1").await.expect("the image").descriptor.digest, kit, "{form:?}");
        let document = layout.open("").expect("a layout");
        let wanted = Descriptor { media_type: "x/y".into(), digest: listed, size: referring(&kit, 4).len() as u64 };
        assert!(document.document_as(&wanted, DocumentKind::Manifest).await.expect("there").verify(&wanted).is_ok(), "{form:?}");
        let huge = Descriptor { size: limits::BUNDLE_BYTES + 1, ..wanted };
        assert!(document.document_as(&huge, DocumentKind::Evidence).await.is_err(), "{form:?}");
    }
}

#[tokio::test]
async fn an_image_that_cosign_saved_is_the_only_one() {
    let mut layout = Fixture::new(Form::Folder);
    let kit = layout.enter(b"kit", &saved("image"));
    layout.enter(b"signatures", &saved("sigs"));
    assert_eq!(layout.resolve("").await.expect("the only one").descriptor.digest, kit);
    // Without the name, as older versions write it.
    let mut layout = Fixture::new(Form::Folder);
    let kit = layout.enter(b"kit", &json!({ "annotations": { "kind": "dev.cosignproject.cosign/image" } }));
    let signatures = layout.enter(b"signatures", &json!({ "annotations": { "kind": "dev.cosignproject.cosign/sigs" } }));
    assert_eq!(layout.resolve("").await.expect("the only one").descriptor.digest, kit);
    assert_eq!(found(&layout.attached(&kit, None).await), [(signatures, AttachedBy::SignatureName)]);
}

#[tokio::test]
async fn an_index_at_the_name_is_looked_into_only_if_it_is_one() {
    let kit = Digest::of(Algorithm::Sha256, b"kit");
    let name = named(&format!("sha256-{}", kit.hex()));
    let entry = |digest: &str| json!({ "mediaType": "x/y", "digest": digest, "size": 1 });
    let index = |entries: &[serde_json::Value]| json!({ "schemaVersion": 2, "manifests": entries }).to_string();
    let odd = index(&[entry("md5:00"), entry(&kit.to_string())]);
    for (content, listed, malformed) in [
        (odd.as_str(), 1, 1),
        (index(&[]).as_str(), 0, 0),
        (r#"{"schemaVersion":2,"config":{},"layers":[]}"#, 0, 0),
        ("<html>", 0, 0),
        // A registry that takes the tag for the digest shows the kit itself.
        ("kit", 0, 0),
    ] {
        let mut layout = Fixture::new(Form::Folder);
        layout.enter(content.as_bytes(), &name);
        let attached = layout.attached(&kit, None).await;
        assert_eq!((attached.listed.len(), attached.malformed.len(), attached.gaps.len()), (listed, malformed, 0), "{content}");
    }
    // Damaged or gone, it is listed for what it was to be: whoever fetches it sees what is wrong.
    for damage in [true, false] {
        let mut layout = Fixture::new(Form::Folder);
        let digest = layout.enter(index(&[]).as_bytes(), &name);
        fs::remove_file(layout.path(&digest)).expect("there");
        if damage {
            fs::write(layout.path(&digest), index(&[entry(&kit.to_string())])).expect("written");
        }
        assert_eq!(found(&layout.attached(&kit, None).await), [(digest, AttachedBy::Subject)], "{damage}");
    }
}

#[tokio::test]
async fn a_layout_is_not_read_for_ever() {
    let kit = Digest::of(Algorithm::Sha256, b"kit");
    let name = named(&format!("sha256-{}", kit.hex()));
    let digest = |number: usize| Digest::of(Algorithm::Sha256, &number.to_le_bytes());
    for (count, expected) in [(limits::REFERRERS, limits::REFERRERS), (limits::REFERRERS + 5, limits::REFERRERS + 1)] {
        let mut layout = Fixture::new(Form::Folder);
        let entries: Vec<_> = (0..count).map(|number| json!({ "mediaType": "x/y", "digest": digest(number), "size": 1 })).collect();
        layout.enter(json!({ "schemaVersion": 2, "manifests": entries }).to_string().as_bytes(), &name);
        assert_eq!(layout.attached(&kit, None).await.listed.len(), expected, "the one too many shows that there are more");
    }
    let most = usize::try_from(limits::LAYOUT_REFERRER_BYTES / limits::MANIFEST_BYTES).expect("small");
    for (count, capped) in [(most, 0), (most + 1, 1)] {
        let mut layout = Fixture::new(Form::Folder);
        for number in 0..count {
            layout.enter_as(&digest(number), limits::MANIFEST_BYTES, &json!({}));
        }
        let attached = layout.attached(&kit, None).await;
        assert_eq!((attached.capped.len(), attached.listed.len()), (capped, 0), "{:?}", attached.capped);
    }
    let broken = Fixture::new(Form::Folder);
    broken.write("index.json", "{");
    assert_eq!(broken.attached(&kit, None).await.gaps.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_read_takes_no_other_with_it() {
    let kit = Digest::of(Algorithm::Sha256, b"kit");
    for (count, gaps, listed) in [(1, 1, 1), (limits::LAYOUT_UNREADABLE, limits::LAYOUT_UNREADABLE, 0)] {
        let mut layout = Fixture::new(Form::Folder);
        for number in 0..count {
            let digest = layout.enter(&referring(&kit, number), &json!({}));
            fs::remove_file(layout.path(&digest)).expect("there");
            symlink("/dev/null", layout.path(&digest)).expect("made");
        }
        let good = layout.enter(&referring(&kit, 1000), &json!({}));
        let attached = layout.attached(&kit, None).await;
        let expected: Vec<_> = [(good, AttachedBy::Subject)].into_iter().take(listed).collect();
        assert_eq!((attached.gaps.len(), found(&attached)), (gaps, expected), "{attached:?}");
    }
}

#[tokio::test]
async fn kits_storage_has_tags_of_its_own() {
    let home = tempfile::tempdir().expect("a folder");
    let mut layout = Fixture::new(Form::Folder);
    let kit = Digest::of(Algorithm::Sha256, b"kit");
    let referrer = layout.enter(&referring(&kit, 1), &json!({}));
    let signatures = layout.blob(b"signatures");
    let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE, text);
    let tag = format!("sha256-{}.sig", kit.hex());
    let tags = json!({ tag: { "mediaType": IMAGE_MANIFEST, "digest": signatures, "size": 10 } });
    layout.write(&format!("{}-tags.json", encode(REPOSITORY)), &tags.to_string());
    fs::create_dir_all(home.path()).expect("made");
    fs::rename(layout.dir.path(), home.path().join("storage")).expect("one disk");
    let attached = async |reference: &str, repository: Option<&str>| {
        let reference: Reference = format!("kitops:{reference}").parse().expect("a reference");
        let Transport::Kitops(name) = reference.transport() else { panic!("{reference}") };
        let layout = Layout::kitops(name, None, home.path()).expect("a home");
        let repository = repository.map(|name| Name::of_repository(name).expect("a name"));
        let attached = layout.attached(&Attachments { subject: kit, repository }).await;
        assert!(attached.gaps.is_empty(), "{attached:?}");
        found(&attached)
    };
    let (by_subject, by_name) = ((referrer, AttachedBy::Subject), (signatures, AttachedBy::SignatureName));
    assert_eq!(attached("reg.example/a:v1", None).await, [by_name, by_subject]);
    assert_eq!(attached("reg.example/a:v1", Some(REPOSITORY)).await, [by_name]);
    assert_eq!(attached("reg.example/b:v1", None).await, [by_subject]);
    assert_eq!(attached("reg.example/b:v1", Some(REPOSITORY)).await, []);
}
