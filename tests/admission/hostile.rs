//! What a registry or a signer says to lead kitfs elsewhere, or to speak to a terminal.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::asked::{Asked, REPOSITORY, Scene};
use crate::common::pack::MANIFEST;
use crate::common::process::Output;
use crate::common::registry::{Registry, fallback_tag, sha256};
use crate::common::signer::{BUNDLE, SIGNATURE, Signer, attach};

#[test]
fn addresses_in_what_is_attached_are_not_followed() {
    let (scene, elsewhere) = (Scene::new(), Registry::start());
    let digest = scene.kit.digest();
    let bundle = scene.signer.bundle(&digest, SIGNATURE, &json!({}));
    let payload = b"{}".to_vec();
    // The other server has what is good; the kit's own registry has not.
    let urls = |digest: &str| json!([format!("http://{}/v2/{REPOSITORY}/blobs/{digest}", elsewhere.host())]);
    for content in [&bundle, &payload] {
        elsewhere.blob(content.clone());
    }
    let blob = |media_type: &str, content: &[u8]| {
        let digest = sha256(content);
        json!({ "mediaType": media_type, "digest": digest, "size": content.len(), "urls": urls(&digest) })
    };
    let subject = json!({ "mediaType": MANIFEST, "digest": digest, "size": scene.kit.manifest.len(), "urls": urls(&digest) });
    let around = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "subject": subject,
        "config": blob("application/vnd.oci.empty.v1+json", b"{}"), "layers": [blob(BUNDLE, &bundle)],
        "annotations": { "org.opencontainers.image.source": urls(&digest)[0] },
    });
    scene.registry.attach(REPOSITORY, &digest, MANIFEST, around.to_string());
    let mut legacy = blob("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
    legacy["annotations"] = json!({ "dev.cosignproject.cosign/signature": "AAAA" });
    let image = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": blob("application/vnd.oci.image.config.v1+json", b"{}"), "layers": [legacy] });
    scene.registry.manifest(REPOSITORY, &format!("{}.sig", fallback_tag(&digest)), MANIFEST, image.to_string());

    assert_eq!(scene.explain().decision(), "deny");
    assert_eq!(scene.asked.mount(&scene.host).expect_err("its signature is elsewhere").code(), 3);
    assert!(scene.registry.asked(&sha256(&bundle)) > 0, "it was looked for where it belongs");
    assert!(elsewhere.log().is_empty(), "{:#?}", elsewhere.log());
    // Once it is where it belongs, it counts.
    scene.registry.blob(bundle);
    scene.explain().assert_admitted();
    assert!(elsewhere.log().is_empty(), "{:#?}", elsewhere.log());
}

/// Clears the screen, turns the direction of writing, rings, hides, and begins a line of its own.
const EVIL: &str = "evil\u{1b}[2J\u{202e}\u{7}\u{200b}\u{9b}1m\r\nforged: line";

fn assert_inert(what: &str, text: &str) {
    let acts = text.chars().find(|letter| (letter.is_control() && *letter != '\n') || "\u{202e}\u{200b}\u{2028}".contains(*letter));
    assert_eq!(acts, None, "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("forged")), "{what}: {text:?}");
}

fn assert_said_inertly(what: &str, output: &Output) {
    assert_inert(what, &output.stdout);
    assert_inert(what, &output.stderr);
}

/// Asks in every way, and looks at all that is said or left behind. It says whether the hostile text was there at all.
fn all_is_inert(scene: &Scene, asked: &Asked, is_admitted: bool) -> bool {
    let (audit, vsa) = (scene.host.path("audit.json"), scene.host.path("vsa.json"));
    let recorded = asked.clone().with(&["--audit-log", audit.to_str().expect("ours")]);
    let summed = recorded.clone().with(&["--vsa", vsa.to_str().expect("ours")]);
    let mut seen = false;
    let mut look = |what: &str, output: &Output| {
        assert_said_inertly(what, output);
        seen |= format!("{}{}", output.stdout, output.stderr).contains("evil");
    };
    for command in [&["explain"][..], &["explain", "--json"]] {
        let output = scene.host.kitfs(&summed.arguments(command));
        assert_eq!(output.code(), if is_admitted { 0 } else { 3 }, "{output:#?}");
        look("explain", &output);
    }
    assert_inert("the summary", &fs::read_to_string(&vsa).expect("a summary"));
    match recorded.mount(&scene.host) {
        Err(output) => {
            assert!(!is_admitted, "{output:#?}");
            look("mount", &output);
        }
        Ok(mount) => {
            assert!(is_admitted, "mounted");
            let point = mount.point().to_str().expect("ours").to_owned();
            for command in [&["status"][..], &["status", "--json"], &["status", point.as_str()]] {
                look("status", &scene.host.kitfs(command));
            }
            attributes_are_inert(mount.point());
            assert_inert("the log", &mount.log());
            mount.umount().ok();
        }
    }
    look("pull", &scene.host.kitfs(&recorded.arguments(&["pull"])));
    assert_inert("the audit log", &fs::read_to_string(&audit).expect("a log"));
    seen
}

fn attributes_are_inert(root: &Path) {
    let mut names = vec![0_u8; 4096];
    let length = rustix::fs::listxattr(root, &mut names).expect("names");
    let names = String::from_utf8(names[..length].to_vec()).expect("text");
    let mut read = 0;
    for name in names.split_terminator('\0') {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::getxattr(root, name, &mut value).expect("a value");
        assert_inert(name, &String::from_utf8_lossy(&value[..length]));
        read += 1;
    }
    assert!(read >= 3, "{names:?}");
}

/// As a YAML text: JSON's escapes are its own.
fn yaml(text: &str) -> String {
    Value::from(text).to_string()
}

#[test]
fn names_in_a_policy_do_nothing_to_a_terminal() {
    for (signed, is_admitted) in [(true, true), (false, false)] {
        let scene = Scene::new();
        let text = scene.signer.policy(&yaml(EVIL), "**", "").replace("name: key", &format!("name: {}", yaml(EVIL)));
        let asked = Asked::new(&scene.asked.reference).policy(&scene.host, &text);
        if signed {
            scene.sign();
        }
        assert!(all_is_inert(&scene, &asked, is_admitted), "it is told");
        let file = asked.options.last().expect("the policy");
        for command in [&["policy", "check", file.as_str()][..], &["policy", "check", "--json", file.as_str()]] {
            let output = scene.host.kitfs(command);
            assert_eq!(output.code(), 0, "{output:#?}");
            assert_said_inertly("policy check", &output);
        }
        // What is wrong with it is told as inertly.
        let wrong = Asked::new(&scene.asked.reference).policy(&scene.host, &text.replace("key:\n        data", "nokey:\n        data"));
        let output = scene.host.kitfs(&wrong.arguments(&["explain"]));
        assert_eq!(output.code(), 2, "{output:#?}");
        assert_said_inertly("explain", &output);
    }
}

#[test]
fn what_a_signer_states_does_nothing_to_a_terminal() {
    // A rule takes what it says, or repeats it as its reason to refuse.
    let kind = "https://scan.test/v1";
    for is_admitted in [true, false] {
        let scene = Scene::new();
        scene.signer.attest(&scene.registry, REPOSITORY, &scene.kit.digest(), kind, &json!({ "word": EVIL, EVIL: EVIL }));
        let rule = format!(
            "  policy:\n    type: rego\n    data: |\n      package modelkit.mount\n\n      default allow := false\n\n      allow if {{\n        \
             some found in input.attestations\n        contains(found.predicate.word, \"evil\")\n      }}\n\n      deny contains msg if {{\n        \
             some found in input.attestations\n        msg := found.predicate.word\n        {is_admitted} == false\n      }}\n"
        );
        let wanted = format!("attestations:\n  - name: scan\n    predicateType: {kind}");
        let asked = Asked::new(&scene.asked.reference).policy(&scene.host, &(scene.signer.policy("signed", "**", &wanted) + &rule));
        assert!(all_is_inert(&scene, &asked, is_admitted), "it is told");
    }
    // A type that a terminal would act on can be stated, but not wanted.
    let scene = Scene::new();
    let evil = format!("https://{EVIL}");
    let wanted = format!("attestations:\n  - name: scan\n    predicateType: {}", yaml(&evil));
    let asked = Asked::new(&scene.asked.reference).policy(&scene.host, &scene.signer.policy("signed", "**", &wanted));
    let output = scene.host.kitfs(&asked.arguments(&["explain"]));
    assert_eq!(output.code(), 2, "{output:#?}");
    assert_said_inertly("explain", &output);

    // As another than the wanted one; the same of annotations, and of the name in the older format.
    let digest = |scene: &Scene| scene.kit.digest();
    let key = |scene: &Scene| {
        let path = scene.host.path("cosign.pub");
        fs::write(&path, scene.signer.pem()).expect("room");
        Asked::new(&scene.asked.reference).with(&["--key", path.to_str().expect("ours"), "--insecure-ignore-tlog"])
    };
    let scene = Scene::new();
    scene.signer.attest(&scene.registry, REPOSITORY, &digest(&scene), &evil, &json!({}));
    assert!(all_is_inert(&scene, &key(&scene).with(&["--type", kind]), false), "it is told");

    let scene = Scene::new();
    let annotated = scene.signer.bundle_with(&digest(&scene), SIGNATURE, &json!({}), &json!({ "stage": EVIL, EVIL: EVIL }));
    attach(&scene.registry, REPOSITORY, &digest(&scene), annotated);
    all_is_inert(&scene, &key(&scene).with(&["-a", "stage=prod"]), false);
    let scene = Scene::new();
    scene.signer.attach_legacy(&scene.registry, REPOSITORY, EVIL, &digest(&scene));
    all_is_inert(&scene, &key(&scene), false);
}

#[test]
fn what_a_certificate_says_does_nothing_to_a_terminal() {
    let scene = Scene::new();
    let mut parameters = rcgen::CertificateParams::default();
    // A name of its own cannot leave ASCII; that of a person can.
    let address = format!("https://{}", EVIL.chars().filter(char::is_ascii).collect::<String>());
    parameters.subject_alt_names = vec![rcgen::SanType::URI(address.try_into().expect("ASCII"))];
    parameters.distinguished_name.push(rcgen::DnType::CommonName, EVIL);
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": SIGNATURE, "predicate": {},
        "subject": [{ "digest": { "sha256": scene.kit.digest().trim_start_matches("sha256:") } }],
    });
    let signer = Signer::new();
    let certificate = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, signer.certificate(&parameters));
    let bundle = signer.bundle_by(&statement, &json!({ "certificate": { "rawBytes": certificate } }));
    attach(&scene.registry, REPOSITORY, &scene.kit.digest(), bundle);
    let wanted = ["--certificate-identity", "a", "--certificate-oidc-issuer", "b", "--trusted-root", "sigstore-public-good"];
    all_is_inert(&scene, &Asked::new(&scene.asked.reference).with(&wanted), false);
}
