//! The host's policies beside the caller's: each set decides for itself, and no option takes anything from the host's. They are found where the variable
//! for tests says, which only a debug build knows; whose they are, and who may write them, matters there too.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;

use crate::asked::{Asked, REPOSITORY, Scene, assert_no_layers, assert_refused, kit_of};
use crate::common::fixtures::case;
use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kitfile, Tree};
use crate::common::registry::Registry;
use crate::common::signer::Signer;

const POLICIES: &str = "policy.d";
const ROOTS: &str = "trusted-roots.d";

/// Makes a folder below `/etc/kitfs`, as an administrator has it.
fn folder(host: &Host, name: &str) -> PathBuf {
    let path = host.root().join("etc/kitfs").join(name);
    fs::create_dir_all(&path).expect("room");
    for folder in path.ancestors().take_while(|folder| *folder != host.path("")) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    path
}

/// Writes a file of the host's, as an administrator has it.
fn write(host: &Host, of: &str, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder(host, of).join(name);
    fs::write(&path, content).expect("room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    path
}

/// A kit, a policy of the host's that wants `administrator`, and the caller's that wants the scene's signer.
fn scene() -> (Scene, Signer) {
    let (scene, administrator) = (Scene::new(), Signer::new());
    write(&scene.host, POLICIES, "10-host.yaml", administrator.policy("of-the-host", "**", ""));
    (scene, administrator)
}

#[test]
fn both_sets_have_to_admit() {
    for signed in [&[][..], &["host"], &["caller"], &["host", "caller"]] {
        let (scene, administrator) = scene();
        for by in signed {
            let signer = if *by == "host" { &administrator } else { &scene.signer };
            signer.attach(&scene.registry, REPOSITORY, &scene.kit.digest());
        }
        let is_admitted = signed.len() == 2;
        let answer = scene.explain();
        assert_eq!(answer.decision(), if is_admitted { "admit" } else { "deny" }, "{signed:?}: {answer:#?}");
        // Each says for itself what it decided.
        for (set, policy) in [("host", "of-the-host"), ("caller", "signed")] {
            let sets = answer.report["sets"].as_array().expect("sets");
            let found = sets.iter().find(|found| found["name"] == set).unwrap_or_else(|| panic!("{set}: {answer:#?}"));
            assert_eq!((&found["met"], &found["policies"][0]["name"]), (&signed.contains(&set).into(), &policy.into()), "{answer:#?}");
        }
        let text = scene.host.kitfs(&scene.asked.arguments(&["explain"])).stdout;
        assert!(text.contains("policies of the host: ") && text.contains("policies of the command line: "), "{text}");
        if !is_admitted {
            assert_refused(&scene.asked.mount(&scene.host).expect_err("not by both"), None);
            assert_refused(&scene.asked.pull(&scene.host), None);
            assert_no_layers(&scene.host.cache());
            continue;
        }
        let mount = scene.asked.mount(&scene.host).expect("by both");
        let status = mount.status();
        let sets: Vec<_> = status["admissions"][0]["policies"].as_array().expect("policies").iter().map(|policy| &policy["set"]).collect();
        assert_eq!(sets, ["host", "caller"], "{status:#}");
        mount.umount().ok();
    }
}

#[test]
fn the_host_s_set_decides_without_any_option() {
    let (scene, administrator) = scene();
    let plain = Asked::new(&scene.asked.reference);
    plain.explain(&scene.host).assert_denied("unsigned");
    assert_refused(&plain.mount(&scene.host).expect_err("unsigned"), None);
    administrator.attach(&scene.registry, REPOSITORY, &scene.kit.digest());
    plain.explain(&scene.host).assert_admitted();
    plain.with(&["--require-policy"]).mount(&scene.host).expect("there is one").umount().ok();
}

#[test]
fn no_option_takes_anything_from_the_host_s_demand() {
    let (scene, _) = scene();
    scene.sign();
    let key = scene.host.path("caller.pub");
    fs::write(&key, scene.signer.pem()).expect("room");
    let key = key.to_str().expect("ours");
    let pass = scene.host.path("pass.yaml");
    fs::write(
        &pass,
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: of-the-host\nspec:\n  images:\n    - glob: '**'\n  \
         mode: warn\n  authorities:\n    - name: key\n      static:\n        action: fail\n",
    )
    .expect("room");
    let options: [&[&str]; 7] = [
        &["--key", key, "--insecure-ignore-tlog"],
        // One that only warns, under the same name.
        &["--policy", pass.to_str().expect("ours")],
        &["--as", "kits.test/other/kit:v1"],
        &["--trusted-root", "sigstore-public-good"],
        &["--offline"],
        &["--audit-log", "/dev/null", "--audit-best-effort"],
        &[],
    ];
    for options in options {
        let asked = Asked::new(&scene.asked.reference).with(options);
        assert_eq!(asked.explain(&scene.host).decision(), "deny", "{options:?}");
        assert_refused(&asked.mount(&scene.host).expect_err("the host's is not met"), None);
    }
    let none = Asked::new(&scene.asked.reference).with(&["--allow-no-policy"]);
    assert_eq!(none.explain(&scene.host).decision(), "deny");
    for (name, value) in [("KITFS_REQUIRE_POLICY", "0"), ("KITFS_POLICY", "/dev/null"), ("KITFS_AS", "kits.test/other/kit:v1")] {
        let set = [(name, OsStr::new(value))];
        assert_refused(&scene.host.try_mount_in(&scene.asked.reference, &[], &set).expect_err("the host's is not met"), None);
    }
}

#[test]
fn a_claim_brings_a_kit_under_the_host_s_policy_which_it_then_has_to_meet() {
    let (scene, administrator) = (Scene::new(), Signer::new());
    write(&scene.host, POLICIES, "10-host.yaml", administrator.policy("of-the-host", "kits.test/acme/**", ""));
    let plain = Asked::new(&scene.asked.reference);
    let claimed = plain.clone().with(&["--as", "kits.test/acme/demo:v1"]);
    plain.explain(&scene.host).assert_denied("no-policy");
    claimed.explain(&scene.host).assert_denied("unsigned");
    administrator.attach(&scene.registry, REPOSITORY, &scene.kit.digest());
    claimed.explain(&scene.host).assert_admitted();
    plain.explain(&scene.host).assert_denied("no-policy");
}

#[test]
fn an_empty_folder_covers_nothing_so_that_all_is_denied() {
    let scene = Scene::new();
    scene.sign();
    scene.explain().assert_admitted();
    folder(&scene.host, POLICIES);
    for asked in
        [scene.asked.clone(), Asked::new(&scene.asked.reference), Asked::new(&scene.asked.reference).with(&["--as", "kits.test/a:v1"])]
    {
        asked.explain(&scene.host).assert_denied("no-policy");
        assert_refused(&asked.mount(&scene.host).expect_err("nothing covers it"), None);
        assert_refused(&asked.pull(&scene.host), None);
    }
    assert_eq!(scene.layers_asked(), 0);
}

#[test]
fn the_host_s_policies_never_see_the_caller_s_trusted_root() {
    let (right, other) = (case("signed/keyless-rekor1"), case("signed/root-window-ca"));
    let policy = fs::read_to_string(right.path("policy.yaml")).expect("a policy");
    let root = right.path("trusted_root.json");
    let root = root.to_str().expect("ours");
    let registry = Registry::start();
    registry.list_referrers(50);
    let claimed = Asked::new(&right.serve(&registry)).with(&["--as", right.reference()]);
    let given = claimed.clone().with(&["--trusted-root", root]);

    // The host has none of that name: nothing is decided, whatever the caller brings.
    let host = Host::new(Mode::Cached);
    write(&host, POLICIES, "10-host.yaml", &policy);
    for asked in [&claimed, &given] {
        let answer = asked.explain(&host);
        assert!(answer.output.code() == 2 && answer.output.stderr.contains("policies of this host"), "{answer:#?}");
    }
    // It has one that trusted the authority no more by then. The caller's counts for the caller's policy and for no other.
    write(&host, ROOTS, "trusted-root.json", fs::read(other.path("trusted_root.json")).expect("a root"));
    let both = given.clone().with(&["--policy", right.path("policy.yaml").to_str().expect("ours")]);
    for asked in [&claimed, &given, &both] {
        let answer = asked.explain(&host);
        assert_eq!((answer.decision(), answer.code()), ("deny", "ca-window"), "{answer:#?}");
        let sets = answer.report["sets"].as_array().expect("sets");
        let met = |name: &str| sets.iter().find(|set| set["name"] == name).map(|set| set["met"] == true);
        assert_eq!(met("host"), Some(false), "{answer:#?}");
        assert!(met("caller").is_none_or(|met| met), "{answer:#?}");
    }
    // The right one, where the administrator put it.
    write(&host, ROOTS, "trusted-root.json", fs::read(root).expect("a root"));
    claimed.explain(&host).assert_admitted();
    // The caller's policies see the host's roots, beneath those of the caller.
    both.explain(&host).assert_admitted();
    claimed.with(&["--policy", right.path("policy.yaml").to_str().expect("ours")]).explain(&host).assert_admitted();
}

/// What became of a host, and what is said of it.
type Trouble = (&'static str, fn(&Host, &str), &'static str);

const TROUBLE: &[Trouble] = &[
    ("a policy that is none", |host, _| _ = write(host, POLICIES, "20.yaml", "kind: Secret\n"), "20.yaml"),
    ("an empty policy", |host, _| _ = write(host, POLICIES, "20.yaml", ""), "20.yaml"),
    (
        "a field that is not known",
        |host, good| _ = write(host, POLICIES, "20.yaml", good.replace("spec:", "spec:\n  unknown: 1")),
        "unknown",
    ),
    ("another ending", |host, good| _ = write(host, POLICIES, "20.yml", good), "does not end with `.yaml`"),
    ("a folder among the files", |host, _| _ = folder(host, "policy.d/20.yaml"), "is a folder"),
    ("a link to nothing", |host, _| symlink("none", folder(host, POLICIES).join("20.yaml")).expect("room"), "is not there"),
    (
        "a file where the folder belongs",
        |host, _| {
            fs::remove_dir_all(folder(host, POLICIES)).expect("ours");
            write(host, ".", POLICIES, "");
        },
        "is a file",
    ),
    (
        "a file of another user",
        |host, good| chown(write(host, POLICIES, "20.yaml", good), Some(65_534), None).expect("root"),
        "belongs to user 65534",
    ),
    ("a folder of another user", |host, _| chown(folder(host, POLICIES), Some(65_534), None).expect("root"), "belongs to user 65534"),
    (
        "a file that others may write",
        |host, good| {
            let file = write(host, POLICIES, "20.yaml", good);
            fs::set_permissions(file, fs::Permissions::from_mode(0o666)).expect("ours");
        },
        "mode 0666",
    ),
    (
        "a folder that others may write",
        |host, _| {
            fs::set_permissions(folder(host, POLICIES), fs::Permissions::from_mode(0o777)).expect("ours");
        },
        "mode 0777",
    ),
    (
        "a folder above that others may write",
        |host, _| {
            fs::set_permissions(host.root().join("etc"), fs::Permissions::from_mode(0o757)).expect("ours");
        },
        "mode 0757",
    ),
    ("a trusted root that is none", |host, _| _ = write(host, ROOTS, "a.json", "{}"), "a.json"),
    ("a trusted root of another user", |host, _| chown(folder(host, ROOTS), Some(65_534), None).expect("root"), "belongs to user 65534"),
];

#[test]
fn what_the_host_has_and_cannot_be_trusted_or_read_decides_nothing() {
    for (what, happen, said) in TROUBLE {
        let scene = Scene::new();
        scene.sign();
        let good = scene.signer.policy("good", "**", "");
        write(&scene.host, POLICIES, "10.yaml", &good);
        scene.explain().assert_admitted();
        scene.registry.clear_log();
        happen(&scene.host, &good);
        for asked in [scene.asked.clone(), Asked::new(&scene.asked.reference)] {
            let outputs = [
                asked.explain(&scene.host).output,
                asked.pull(&scene.host),
                asked.mount(&scene.host).expect_err("the host's policies do not load"),
            ];
            for output in outputs {
                assert!(output.code() == 2 && output.stderr.contains(said), "{what}: {output:#?}");
            }
        }
        assert!(scene.registry.log().is_empty(), "{what}: {:#?}", scene.registry.log());
    }
}

#[test]
fn what_a_kit_refers_to_is_decided_by_both_sets() {
    let (host, registry, administrator, caller) = (Host::new(Mode::Cached), Registry::start(), Signer::new(), Signer::new());
    registry.list_referrers(50);
    let base = kit_of("The base.");
    let known = base.serve(&registry, "acme/base", "v1");
    let root = Kitfile::new("root").docs("README.md").refers(&known).pack(&Tree::new().file("README.md", "The root."));
    write(&host, POLICIES, "10-host.yaml", administrator.policy("of-the-host", "**", ""));
    let asked = Asked::new(&root.serve(&registry, "acme/root", "v1")).policy(&host, &caller.policy("signed", "**", ""));
    for signer in [&administrator, &caller] {
        signer.attach(&registry, "acme/root", &root.digest());
    }
    let refused = || {
        let output = asked.mount(&host).expect_err("the base is not admitted by both");
        assert_refused(&output, None);
        assert!(output.stderr.contains("acme/base"), "{output:#?}");
        assert_no_layers(&host.cache());
    };
    refused();
    caller.attach(&registry, "acme/base", &base.digest());
    refused();
    administrator.attach(&registry, "acme/base", &base.digest());
    let mount = asked.mount(&host).expect("both admit both");
    let status = mount.status();
    for admission in [0, 1] {
        let policies = status["admissions"][admission]["policies"].as_array().expect("policies");
        assert_eq!(policies.iter().map(|policy| &policy["set"]).collect::<Vec<_>>(), ["host", "caller"], "{status:#}");
    }
    mount.umount().ok();
}
