//! Which policy a kit has to meet: names and claims, options and variables, `static`, what a kit refers to.

use std::ffi::OsStr;
use std::fs;

use serde_json::json;

use crate::asked::{Answer, Asked, REPOSITORY, Scene, assert_no_layers, assert_refused, kit, kit_of};
use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kitfile, MANIFEST, Tree};
use crate::common::registry::{Registry, sha256};
use crate::common::signer::Signer;

/// A policy that needs nobody's signature.
fn static_policy(glob: &str, action: &str) -> String {
    format!(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: static\nspec:\n  images:\n    - glob: '{glob}'\n  \
         authorities:\n    - name: static\n      static:\n        action: {action}\n"
    )
}

#[test]
fn without_a_policy_it_is_mounted_unless_one_is_required() {
    let scene = Scene::new();
    let plain = Asked::new(&scene.asked.reference);
    plain.mount(&scene.host).expect("no policy").umount().ok();
    assert_eq!(scene.host.kitfs(&plain.arguments(&["explain"])).code(), 2);
    assert_eq!(scene.host.kitfs(&plain.arguments(&["explain", "--allow-no-policy"])).code(), 0);
    let required = plain.clone().with(&["--require-policy"]);
    assert_refused(&required.mount(&scene.host).expect_err("no policy"), None);
    assert_refused(&required.pull(&scene.host), None);
    let demand = [("KITFS_REQUIRE_POLICY", OsStr::new("1"))];
    assert_refused(&scene.host.try_mount_in(&plain.reference, &[], &demand).expect_err("no policy"), None);
    // It can be switched on by the variable, but nothing can be switched off.
    let off = [("KITFS_REQUIRE_POLICY", OsStr::new("0"))];
    assert_refused(&scene.host.try_mount_in(&plain.reference, &["--require-policy"], &off).expect_err("no policy"), None);
    scene.host.try_mount_in(&plain.reference, &[], &off).expect("nothing is demanded").umount().ok();
    for (name, value) in
        [("KITFS_POLICY", "/nowhere"), ("KITFS_TRUSTED_ROOT", "/nowhere"), ("KITFS_AS", "kits.test/other/kit"), ("KITFS_KEY", "/nowhere")]
    {
        let ignored = [(name, OsStr::new(value))];
        scene.host.try_mount_in(&plain.reference, &[], &ignored).unwrap_or_else(|output| panic!("{name}: {output:#?}")).umount().ok();
    }
}

#[test]
fn a_policy_that_only_warns_refuses_nothing_and_is_none() {
    let scene = Scene::new();
    let text = scene.signer.policy("signed", "**", "").replace("spec:\n", "spec:\n  mode: warn\n");
    let warned = Asked::new(&scene.asked.reference).policy(&scene.host, &text);
    let mount = warned.mount(&scene.host).expect("it only warns");
    mount.umount().ok();
    assert_refused(&warned.with(&["--require-policy"]).mount(&scene.host).expect_err("none that refuses"), None);
}

#[test]
fn what_does_not_load_decides_nothing() {
    let scene = Scene::new();
    scene.sign();
    for text in ["", "a: [", "kind: Secret", &scene.signer.policy("signed", "**", "unknown: 1")] {
        let asked = Asked::new(&scene.asked.reference).policy(&scene.host, text);
        for code in
            [asked.explain(&scene.host).output.code(), asked.pull(&scene.host).code(), asked.mount(&scene.host).expect_err("none").code()]
        {
            assert_eq!(code, 2, "{text}");
        }
    }
    assert_eq!(scene.layers_asked(), 0);
}

#[test]
fn a_claim_brings_a_kit_under_a_policy_and_out_of_none() {
    let scene = Scene::new();
    let other = Signer::new();
    let real = format!("{}/**", scene.registry.host());
    // One by the name that it has, one by the name that is claimed.
    let policies = [scene.signer.policy("real", &real, ""), other.policy("claimed", "kits.test/acme/**", "")].join("---\n");
    let plain = Asked::new(&scene.asked.reference).policy(&scene.host, &policies);
    let claimed = plain.clone().with(&["--as", "kits.test/acme/demo:v1"]);
    plain.explain(&scene.host).assert_denied("unsigned");
    scene.sign();
    plain.explain(&scene.host).assert_admitted();
    claimed.explain(&scene.host).assert_denied("wrong-key");
    other.attach(&scene.registry, REPOSITORY, &scene.kit.digest());
    let answer = claimed.explain(&scene.host);
    answer.assert_admitted();
    assert_eq!(answer.report["claim"], "kits.test/acme/demo:v1");
    // Nothing covers what neither name is covered by.
    let elsewhere = Asked::new(&scene.asked.reference).policy(&scene.host, &other.policy("claimed", "kits.test/acme/**", ""));
    elsewhere.explain(&scene.host).assert_denied("no-policy");
    elsewhere.with(&["--as", "kits.test/../demo"]).explain(&scene.host).assert_usage();
}

#[test]
fn every_policy_that_matches_has_to_be_met() {
    let scene = Scene::new();
    let other = Signer::new();
    scene.sign();
    let both = [scene.signer.policy("one", "**", ""), other.policy("two", &format!("{}/acme/*", scene.registry.host()), "")].join("---\n");
    let asked = Asked::new(&scene.asked.reference).policy(&scene.host, &both);
    asked.explain(&scene.host).assert_denied("wrong-key");
    other.attach(&scene.registry, REPOSITORY, &scene.kit.digest());
    asked.explain(&scene.host).assert_admitted();
    // In files of their own it is the same.
    let apart = scene.asked.clone().policy(&scene.host, &Signer::new().policy("third", "**", ""));
    apart.explain(&scene.host).assert_denied("wrong-key");
}

#[test]
fn static_pass_counts_only_by_a_registry_s_word_over_tls() {
    // Never by plain HTTP, by a CA of the caller's, from a layout, by a claim or offline: the system's roots know no registry of ours.
    let scene = Scene::new();
    let host = scene.registry.host();
    let asked = |text: &str| Asked::new(&scene.asked.reference).policy(&scene.host, text);
    let plain = asked(&static_policy(&format!("{host}/**"), "pass"));
    for asked in [plain.clone(), plain.clone().with(&["--offline"])] {
        assert_eq!(asked.explain(&scene.host).decision(), "deny");
    }
    asked(&static_policy("kits.test/**", "pass")).with(&["--as", "kits.test/acme/demo:v1"]).explain(&scene.host).assert_refused();
    let layout = scene.kit.layout(&scene.host.folder("layout"), "kits.test/acme/demo:v1");
    Asked::new(&layout).policy(&scene.host, &static_policy("kits.test/**", "pass")).explain(&scene.host).assert_refused();
    let tls = Registry::start_tls();
    let reference = scene.kit.serve(&tls, REPOSITORY, "v1");
    let trusting = Asked::new(&reference).policy(&scene.host, &static_policy(&format!("{}/**", tls.host()), "pass"));
    trusting.with(&["--ca-cert", tls.ca().to_str().expect("ours")]).explain(&scene.host).assert_refused();
    // `fail` refuses whatever else there is.
    scene.sign();
    let text = scene.signer.policy("signed", "**", "") + "    - name: never\n      static:\n        action: fail\n";
    asked(&text).explain(&scene.host).assert_refused();
    assert_eq!(scene.layers_asked(), 0);
}

#[test]
fn short_cuts_say_what_cosign_says_by_them() {
    let scene = Scene::new();
    let pem = |signer: &Signer, name: &str| {
        let path = scene.host.path(name);
        fs::write(&path, signer.pem()).expect("room");
        path.to_str().expect("ours").to_owned()
    };
    let (key, other) = (pem(&scene.signer, "cosign.pub"), pem(&Signer::new(), "other.pub"));
    let asked = |options: &[&str]| Asked::new(&scene.asked.reference).with(options).explain(&scene.host);
    asked(&["--key", &key, "--insecure-ignore-tlog"]).assert_denied("unsigned");
    scene.sign();
    asked(&["--key", &key, "--insecure-ignore-tlog"]).assert_admitted();
    // A log entry is wanted, and whose log it is has to be said.
    asked(&["--key", &key, "--trusted-root", "sigstore-public-good"]).assert_denied("no-log");
    let unsaid = asked(&["--key", &key]);
    unsaid.assert_usage();
    assert!(unsaid.output.stderr.contains("--trusted-root sigstore-public-good"), "{unsaid:#?}");
    asked(&["--key", &other, "--insecure-ignore-tlog"]).assert_denied("wrong-key");
    asked(&["--key", &key, "--insecure-ignore-tlog", "-a", "stage=prod"]).assert_denied("annotations");
    let identity = ["--certificate-identity", "https://ci.test/a", "--certificate-oidc-issuer", "https://issuer.test"];
    asked(&[&identity[..], &["--trusted-root", "sigstore-public-good"]].concat()).assert_denied("key-kind");
    for usage in
        [&["--certificate-identity", "a"][..], &["-a", "a=b"], &["--key", "awskms://a"], &[&identity[..], &["--key", &key]].concat()]
    {
        asked(usage).assert_usage();
    }
    let scan = "https://scan.test/v1";
    asked(&["--key", &key, "--insecure-ignore-tlog", "--type", scan]).assert_denied("predicate-type");
    scene.signer.attest(&scene.registry, REPOSITORY, &scene.kit.digest(), scan, &json!({ "findings": [] }));
    asked(&["--key", &key, "--insecure-ignore-tlog", "--type", scan]).assert_admitted();
    let rule = scene.host.path("rule.rego");
    for (count, decision) in [(0, "admit"), (1, "deny")] {
        fs::write(&rule, format!("package signature\n\nallow {{\n  count(input.predicate.findings) == {count}\n}}\n")).expect("room");
        let answer = asked(&["--key", &key, "--insecure-ignore-tlog", "--type", scan, "--rego", rule.to_str().expect("ours")]);
        assert_eq!(answer.decision(), decision, "{answer:#?}");
    }
}

#[test]
fn the_kit_is_decided_before_what_it_refers_to_is_looked_for() {
    let (host, registry, signer) = (Host::new(Mode::Cached), Registry::start(), Signer::new());
    registry.list_referrers(50);
    let base = kit_of("The base.");
    let known = base.serve(&registry, "acme/base", "v1");
    let root = Kitfile::new("root").docs("README.md").refers(&known).pack(&Tree::new().file("README.md", "The root."));
    let asked = Asked::new(&root.serve(&registry, "acme/root", "v1")).policy(&host, &signer.policy("signed", "**", ""));
    let base_asked = || registry.log().iter().filter(|request| request.path.contains("/acme/base/")).count();
    assert_refused(&asked.mount(&host).expect_err("unsigned"), None);
    assert_refused(&asked.pull(&host), None);
    assert_eq!(base_asked(), 0, "the base of a kit that is refused");
    signer.attach(&registry, "acme/root", &root.digest());
    let output = asked.mount(&host).expect_err("the base is unsigned");
    assert_refused(&output, None);
    assert!(base_asked() > 0 && output.stderr.contains("acme/base"), "{output:#?}");
    assert_no_layers(&host.cache());
    signer.attach(&registry, "acme/base", &base.digest());
    let mount = asked.mount(&host).expect("both are signed");
    assert_eq!(fs::read(mount.path("README.md")).expect("readable"), b"The root.");
    mount.umount().ok();
    // A claim is about the kit that was asked for, and not about its base.
    let named = signer.policy("root", "kits.test/acme/root", "");
    let claimed = Asked::new(&asked.reference).policy(&host, &named).with(&["--as", "kits.test/acme/root:v1"]);
    assert_refused(&claimed.mount(&host).expect_err("the base has no policy"), None);
}

#[test]
fn a_signature_of_the_index_counts_for_the_kit_that_was_chosen_from_it() {
    let (host, registry, signer, kit) = (Host::new(Mode::Cached), Registry::start(), Signer::new(), kit());
    registry.list_referrers(50);
    kit.serve(&registry, REPOSITORY, "single");
    let entry = json!({ "mediaType": MANIFEST, "digest": kit.digest(), "size": kit.manifest.len() });
    let list = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": list, "manifests": [entry] }).to_string();
    let digest = registry.manifest(REPOSITORY, "v1", list, index);
    let host_name = registry.host();
    let of =
        |name: &str, more: &str| Asked::new(&format!("{host_name}/{REPOSITORY}{name}")).policy(&host, &signer.policy("signed", "**", more));
    of(":v1", "").explain(&host).assert_denied("unsigned");
    signer.attach(&registry, REPOSITORY, &digest);
    let answer = of(":v1", "").explain(&host);
    answer.assert_admitted();
    assert_eq!(answer.report["digest"], kit.digest());
    // Whoever asks for the kit itself has not asked for the index.
    of(&format!("@{}", kit.digest()), "").explain(&Host::new(Mode::Cached)).assert_denied("unsigned");
    // What is attested of the index is not attested of the kit.
    let scan = "attestations:\n  - name: scan\n    predicateType: https://scan.test/v1";
    signer.attest(&registry, REPOSITORY, &digest, "https://scan.test/v1", &json!({}));
    assert_eq!(of(":v1", scan).explain(&host).decision(), "deny");
    signer.attest(&registry, REPOSITORY, &kit.digest(), "https://scan.test/v1", &json!({}));
    of(":v1", scan).explain(&host).assert_admitted();
}

#[test]
fn signatures_of_a_source_are_looked_for_there_and_nowhere_else() {
    let scene = Scene::new();
    let kept = format!("source:\n  - oci: {}/acme/signatures", scene.registry.host());
    let asked = Asked::new(&scene.asked.reference).policy(&scene.host, &scene.signer.policy("signed", "**", &kept));
    scene.sign();
    asked.explain(&scene.host).assert_denied("unsigned");
    scene.kit.serve(&scene.registry, "acme/signatures", "v1");
    scene.signer.attach(&scene.registry, "acme/signatures", &scene.kit.digest());
    asked.explain(&scene.host).assert_admitted();
}

#[test]
fn another_kit_s_bundle_does_not_count_wherever_it_is_attached() {
    let scene = Scene::new();
    let other = scene.signer.bundle(&sha256(b"another"), crate::common::signer::SIGNATURE, &json!({}));
    crate::common::signer::attach(&scene.registry, REPOSITORY, &scene.kit.digest(), other);
    scene.explain().assert_denied("wrong-digest");
}

impl Answer {
    /// Whatever the reason is.
    fn assert_refused(&self) {
        assert_eq!(self.decision(), "deny", "{self:#?}");
    }

    /// The command line or a policy is wrong.
    fn assert_usage(&self) {
        assert_eq!(self.output.code(), 2, "{self:#?}");
    }
}
