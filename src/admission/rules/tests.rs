use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use super::*;
use crate::failure::chain;
use crate::policy::document;

const KEY: &str = "\n-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd30l3LdAhWd9PDHnMpwJcaMJpD\nqwZzM97kqlTjvQOxJN9hmO3ERrnJs5HmPzLFRqB44XsHPMhi3sCOxS3n9w==\n-----END PUBLIC KEY-----\n";
/// The trusted root of a signed case: it has two logs, of which one is of version 2.
const ROOT: &str = "tests/fixtures/signed/keyless-rekor1/trusted_root.json";
const IDENTITIES: &str = "identities: [{issuer: 'https://i.test', subject: a@b.test}]";

fn roots(texts: &[&str]) -> Roots {
    let texts: Vec<String> = texts.iter().map(|text| text.replace("ROOT", &format!("{}/{ROOT}", env!("CARGO_MANIFEST_DIR")))).collect();
    Roots::of_caller(&texts).expect("trusted roots")
}

fn set(authority: &str) -> Set {
    let text = format!(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: p}}\nspec: {{images: [{{glob: '**'}}], authorities: [{{name: a, {authority}}}]}}\n"
    );
    Set::new(document::policies(text.as_bytes(), "test").unwrap_or_else(|error| panic!("{text}: {}", chain(&error))))
}

fn demand(authority: &str, roots: &Roots) -> Result<Demand, String> {
    let rules = RuleSet::load(set(authority), roots).map_err(|error| chain(&error))?;
    Ok(rules.demands(&rules.set().policies()[0])[0].clone())
}

#[test]
fn a_root_is_found_by_its_name_or_by_the_address_of_the_public_good() {
    let keyless = |more: &str| format!("keyless: {{{IDENTITIES}{more}}}");
    let by_key = |more: &str| format!("key: {{data: {KEY:?}}}{more}");
    let public = ", url: 'https://fulcio.sigstore.dev'";
    for (given, authority, expected) in [
        (&["ROOT"][..], keyless(""), Ok(&["trusted-root"][..])),
        (&["x=ROOT"], keyless(", trustRootRef: x"), Ok(&["x"])),
        (&[], keyless(", trustRootRef: sigstore-public-good"), Ok(&["sigstore-public-good"])),
        (&[], keyless(public), Ok(&["sigstore-public-good"])),
        (&["sigstore-public-good"], keyless(public), Ok(&["trusted-root"])),
        (&[], keyless(&format!("{public}, trustRootRef: x")), Err("there is no trust root `x`")),
        (&["x=ROOT"], keyless(""), Err("there is no trust root `trusted-root`")),
        (&["ROOT"], keyless(public), Err("it has no certificate authority at https://fulcio.sigstore.dev")),
        (&["ROOT"], keyless(", url: 'https://fulcio.sigstore.acme.example/'"), Ok(&["trusted-root"])),
        (&["ROOT", "x=ROOT"], format!("{}, ctlog: {{trustRootRef: x}}", keyless("")), Ok(&["trusted-root", "x"])),
        (&["x=ROOT"], format!("{}, rfc3161timestamp: {{}}", keyless(", trustRootRef: x")), Ok(&["x"])),
        (&[], by_key(""), Ok(&[])),
        (&["ROOT"], by_key(", ctlog: {}"), Ok(&["trusted-root"])),
        (&[], by_key(", ctlog: {url: 'https://rekor.sigstore.dev/'}"), Ok(&["sigstore-public-good"])),
        (&[], by_key(", ctlog: {}"), Err("there is no trust root `trusted-root`")),
        (&[], by_key(", rfc3161timestamp: {trustRootRef: y}"), Err("there is no trust root `y`")),
        (&["ROOT"], by_key(", rfc3161timestamp: {url: 'https://tsa.test'}"), Err("it has no timestamp authority at https://tsa.test")),
        (&["ROOT"], by_key(", ctlog: {url: 'https://rekor.test'}"), Err("it has no transparency log at https://rekor.test")),
        (&[], "static: {action: fail}".to_owned(), Ok(&[])),
    ] {
        match (demand(&authority, &roots(given)), expected) {
            (Ok(demand), Ok(expected)) => {
                let names: Vec<&str> = demand.roots.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names, expected, "{given:?} {authority}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.contains("policy `p`, authority `a`") && error.contains(expected), "{given:?} {authority}: {error}");
            }
            (found, expected) => panic!("{given:?} {authority}: {found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn logs_are_waived_only_where_the_issuer_knows_none_and_a_timestamp_is_wanted() {
    let keyless = format!("keyless: {{{IDENTITIES}}}");
    let both = ["ROOT", "github=github"];
    let github = format!("keyless: {{{IDENTITIES}, trustRootRef: github}}");
    for (given, authority, log, timestamp) in [
        (&["ROOT"][..], keyless.clone(), true, false),
        (&["ROOT"], format!("{keyless}, rfc3161timestamp: {{}}"), true, true),
        (&["github"], format!("{keyless}, rfc3161timestamp: {{}}"), false, true),
        (&["github"], format!("{keyless}, rfc3161timestamp: {{}}, ctlog: {{}}"), true, true),
        (&both, format!("{github}, rfc3161timestamp: {{trustRootRef: trusted-root}}"), false, true),
        (&both, format!("{github}, ctlog: {{trustRootRef: trusted-root}}"), true, false),
        (&both, format!("{keyless}, ctlog: {{trustRootRef: github}}"), true, false),
    ] {
        let demand = demand(&authority, &roots(given)).unwrap_or_else(|error| panic!("{authority}: {error}"));
        assert_eq!((demand.log, demand.timestamp, demand.waives_log()), (log, timestamp, !log), "{given:?} {authority}");
    }
    let error = demand(&keyless, &roots(&["github"])).expect_err("nothing says when");
    assert!(error.contains("`trusted-root` knows no logs") && error.contains("rfc3161timestamp"), "{error}");
    for (more, log) in [("", false), (", ctlog: {}", true), (", rfc3161timestamp: {}", false)] {
        let demand = demand(&format!("key: {{data: {KEY:?}}}{more}"), &roots(&["ROOT"])).expect(more);
        assert_eq!((demand.log, demand.waives_log(), demand.timestamp), (log, false, more.contains("3161")), "{more}");
    }
}

#[test]
fn an_authority_sees_those_that_it_names_and_no_others() {
    let of = |demand: &Demand, role| demand.root.authorities().iter().filter(|authority| authority.role == role).count();
    let count = |demand: &Demand| {
        [Role::CertificateAuthority, Role::CertificateLog, Role::Log, Role::TimestampAuthority].map(|role| of(demand, role))
    };
    let keyless = |more: &str| format!("keyless: {{{IDENTITIES}}}{more}");
    for (authority, expected) in [
        (keyless(""), [1, 1, 2, 1]),
        (keyless(", ctlog: {url: 'https://rekor.sigstore.acme.example'}"), [1, 1, 1, 1]),
        (keyless(", ctlog: {url: 'https://rekor.sigstore.acme.example/'}"), [1, 1, 1, 1]),
        (keyless(", rfc3161timestamp: {url: 'https://tsa.sigstore.acme.example/api/v1/timestamp'}"), [1, 1, 2, 1]),
        (keyless(", ctlog: {trustRootRef: github}"), [1, 1, 0, 1]),
        (format!("key: {{data: {KEY:?}}}"), [0, 0, 0, 0]),
        (format!("key: {{data: {KEY:?}}}, ctlog: {{}}"), [0, 0, 2, 0]),
        (format!("key: {{data: {KEY:?}}}, rfc3161timestamp: {{}}"), [0, 0, 0, 1]),
        ("static: {action: fail}".to_owned(), [0, 0, 0, 0]),
    ] {
        let demand = demand(&authority, &roots(&["ROOT"])).unwrap_or_else(|error| panic!("{authority}: {error}"));
        assert_eq!(count(&demand), expected, "{authority}");
    }
    let named = demand(&keyless(", ctlog: {url: 'https://rekor.sigstore.acme.example', trustRootRef: x}"), &roots(&["ROOT", "x=ROOT"]));
    let Sources { certificates: Some(certificates), logs: Some(logs), timestamps: Some(timestamps) } = named.expect("a demand").sources
    else {
        panic!("all three")
    };
    assert_eq!((certificates.name.as_str(), logs.name.as_str(), timestamps.name.as_str()), ("trusted-root", "x", "trusted-root"));
    assert_eq!((certificates.url, logs.url.as_deref()), (None, Some("https://rekor.sigstore.acme.example")));
}

#[test]
fn a_key_that_is_none_does_not_load_and_one_that_is_refused_does() {
    // P-521: well-formed, and refused when it is asked for.
    let refused = "-----BEGIN PUBLIC KEY-----\nMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQA9hxjKwQSo/rbFsBr/Wb2Qh4oBnrb\ntwAaIFBXO3UZ6Qi4BBice0mLdSnkSvTC9adY6DqbRYoNt0VrCEGo+Ok2sUYAg1Ec\n27xmUU0MlYB+pAWsCKtu+yuOYsUgzZlRNLCCi4lP31Zng+Bxi2av0RfkJSWVCAJG\nuzoklFePEtp3s6etHG8=\n-----END PUBLIC KEY-----\n";
    let of = |key: &str, more: &str| demand(&format!("key: {{data: {key:?}{more}}}"), &Roots::default());
    let DemandSigner::Key(key) = of(refused, "").expect("it is well-formed").signer else { panic!("a key") };
    assert!(key.refused().is_some_and(|why| why.contains("P-384")));
    let DemandSigner::Key(key) = of(KEY, ", hashAlgorithm: sha512").expect("a key").signer else { panic!("a key") };
    assert_eq!((key.refused(), key.hash()), (None, Some(crate::signature::Hash::Sha512)));
    for bad in
        [KEY.replace("MFkw", "MFkx"), KEY.replace("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd3", "AAAA"), KEY.replace("PUBLIC", "RSA PUBLIC")]
    {
        let error = of(&bad, "").expect_err(&bad);
        assert!(error.contains("policy `p`, authority `a`: the key"), "{error}");
    }
}

/// A host of its own.
struct TestHost(tempfile::TempDir);

impl TestHost {
    fn new(policies: &[(&str, &str)], roots: &[(&str, &str)]) -> Self {
        let host = Self(tempfile::tempdir().expect("a folder"));
        for (folder, files) in [(HOST_POLICIES, policies), (HOST_ROOTS, roots)] {
            if files.is_empty() {
                continue;
            }
            fs::create_dir_all(host.place(folder)).expect("room");
            for folder in ["/etc", "/etc/kitfs", folder] {
                fs::set_permissions(host.place(folder), fs::Permissions::from_mode(0o755)).expect("ours");
            }
            for (name, content) in files {
                let path = host.place(folder).join(name);
                fs::write(&path, content).expect("room");
                fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
            }
        }
        host
    }

    fn place(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn load(&self, caller: &CallerRules) -> Result<Rulebook, String> {
        Rulebook::load(&Host::at(self.0.path()), caller).map_err(|error| chain(&error))
    }
}

fn root_text() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(ROOT)).expect("the fixture")
}

fn policy(root: &str) -> String {
    format!(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: of-{root}}}\nspec: {{images: [{{glob: '**'}}], authorities: [{{keyless: {{{IDENTITIES}, trustRootRef: {root}}}}}]}}\n"
    )
}

#[test]
fn the_host_sees_its_own_roots_and_the_caller_both() {
    let text = root_text();
    let at = format!("{}/{ROOT}", env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = |root: &str| {
        let path = folder.path().join(format!("{root}.yaml"));
        fs::write(&path, policy(root)).expect("room");
        path
    };
    let caller = |root: &str, given: &[&str]| CallerRules {
        files: vec![file(root)],
        trusted_roots: given.iter().map(|given| given.replace("ROOT", &at)).collect(),
        ..CallerRules::default()
    };
    let nobody = CallerRules::default();
    let none = TestHost::new(&[], &[]);
    let book = none.load(&nobody).expect("nothing");
    assert!(book.host.is_none() && book.caller.is_none() && !book.require_policy);
    assert!(none.load(&CallerRules { require_policy: true, ..CallerRules::default() }).expect("nothing").require_policy);
    let empty = TestHost::new(&[(".x", "")], &[]);
    assert!(
        empty.load(&nobody).expect("an empty set").host.is_some_and(|rules| rules.set().policies().is_empty()),
        "an empty folder is a set"
    );

    let with = TestHost::new(&[("a.yaml", &policy("ours"))], &[("ours.json", &text), ("theirs.json", &text)]);
    let book = with.load(&caller("theirs", &[])).expect("both");
    let of = |rules: &Option<RuleSet>| {
        let rules = rules.as_ref().expect("a set");
        rules.demands(&rules.set().policies()[0])[0].roots.clone()
    };
    let digest = TrustedRoot::read(text.as_bytes()).expect("a root").digest();
    assert_eq!((of(&book.host), of(&book.caller)), (vec![("ours".to_owned(), digest)], vec![("theirs".to_owned(), digest)]));

    // What the caller names is his, also under a name that the host has.
    let github = TrustedRoot::built_in("github").expect("built in").digest();
    let book = with.load(&caller("ours", &["ours=sigstore-public-good"])).expect("both");
    assert_eq!(of(&book.host), [("ours".to_owned(), digest)]);
    assert!(of(&book.caller)[0].1 != digest && of(&book.caller)[0].1 != github);
    let without = TestHost::new(&[("a.yaml", &policy("ours"))], &[]);
    let error = without.load(&caller("ours", &["ours=ROOT"])).expect_err("not for the host");
    assert!(error.contains("the policies of this host") && error.contains("there is no trust root `ours`"), "{error}");
    assert!(none.load(&caller("ours", &["ours=ROOT"])).is_ok());
    let error = none.load(&caller("ours", &["ROOT"])).expect_err("another name");
    assert!(error.contains("the policies of the command line") && error.contains("there is no trust root `ours`"), "{error}");

    // A file of the host's takes the place of what is built in.
    let replaced = TestHost::new(&[("a.yaml", &policy("sigstore-public-good"))], &[("sigstore-public-good.json", &text)]);
    let book = replaced.load(&caller("sigstore-public-good", &[])).expect("both");
    assert_eq!((of(&book.host)[0].1, of(&book.caller)[0].1), (digest, digest));
}

#[test]
fn what_does_not_load_is_said_with_whose_it_is() {
    let text = root_text();
    let good = policy("sigstore-public-good");
    let roots =
        |texts: &[&str]| CallerRules { trusted_roots: texts.iter().map(|&text| text.to_owned()).collect(), ..CallerRules::default() };
    let nobody = CallerRules::default();
    for (policies, host_roots, caller, expected) in [
        (&[("a.yaml", "x")][..], &[][..], &nobody, &["of this host", "a.yaml"][..]),
        (&[("a.yml", good.as_str())], &[], &nobody, &["of this host", "does not end with `.yaml`"]),
        (&[], &[("a.json", "{}")], &nobody, &["of this host", "a.json", "cannot be used"]),
        (&[], &[("a.txt", text.as_str())], &nobody, &["of this host", "does not end with `.json`"]),
        (&[], &[("a b.json", text.as_str())], &nobody, &["of this host", "gives its trusted root no name"]),
        (&[], &[], &roots(&["github", "sigstore-public-good"]), &["of the command line", "two trusted roots `trusted-root`"]),
        (&[], &[], &roots(&["x=github", "x=github"]), &["of the command line", "two trusted roots `x`"]),
        (&[], &[], &roots(&["/no/such/file"]), &["of the command line", "/no/such/file", "No such file"]),
        (&[], &[], &roots(&["/dev/null"]), &["of the command line", "/dev/null", "not a trusted root"]),
        (
            &[],
            &[],
            &CallerRules { shortcut: Shortcut { timestamps: true, ..Shortcut::default() }, ..CallerRules::default() },
            &["of the command line", "nobody is named"],
        ),
        (
            &[],
            &[],
            &CallerRules { shortcut: Shortcut { key: Some(KEY.to_owned()), ..Shortcut::default() }, ..CallerRules::default() },
            &["of the command line", "policy `command line`", "there is no trust root `trusted-root`"],
        ),
    ] {
        let error = TestHost::new(policies, host_roots).load(caller).expect_err("it does not load");
        assert!(expected.iter().all(|expected| error.contains(expected)), "{expected:?}: {error}");
    }
    let many: Vec<(String, &str)> =
        (0..=crate::limits::TRUSTED_ROOT_FILES).map(|number| (format!("{number}.json"), text.as_str())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    let error = TestHost::new(&[], &many).load(&nobody).expect_err("too many");
    assert!(error.contains("more than 64 files"), "{error}");
    assert!(TestHost::new(&[], &many[1..]).load(&nobody).is_ok());
    // Whose files they are matters for roots as for policies.
    let host = TestHost::new(&[], &[("a.json", &text)]);
    chown(host.place(HOST_ROOTS).join("a.json"), Some(65_534), None).expect("root");
    let error = host.load(&nobody).expect_err("somebody else's");
    assert!(error.contains("belongs to user 65534"), "{error}");
}
