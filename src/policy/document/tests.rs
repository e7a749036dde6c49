use super::*;

const KEY: &str = "-----BEGIN PUBLIC KEY-----\\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd30l3LdAhWd9PDHnMpwJcaMJpD\\nqwZzM97kqlTjvQOxJN9hmO3ERrnJs5HmPzLFRqB44XsHPMhi3sCOxS3n9w==\\n-----END PUBLIC KEY-----\\n";
const IDENTITIES: &str = "identities: [{issuer: 'https://i.test', subject: a@b.test}]";

/// A policy with this `spec`, in YAML's braces.
fn with_spec(spec: &str) -> String {
    format!("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: test}}\nspec:\n  {spec}\n")
}

/// A policy with this one authority.
fn with_authority(authority: &str) -> String {
    let authority = authority.replace("key: KEY", &format!("key: {{data: \"{KEY}\"}}")).replace("IDENTITIES", IDENTITIES);
    with_spec(&format!("{{images: [{{glob: h.test/**}}], authorities: [{{{authority}}}]}}"))
}

fn load(text: &str) -> Result<Vec<Policy>, DocumentError> {
    policies(text.as_bytes(), "test.yaml")
}

fn authority_of(authority: &str) -> Authority {
    let mut policies = load(&with_authority(authority)).unwrap_or_else(|error| panic!("{authority}: {}", crate::failure::chain(&error)));
    policies.remove(0).authorities.remove(0)
}

/// Which field is wrong, and what is said of it.
fn refused(text: &str) -> (String, String) {
    match load(text) {
        Err(DocumentError::Field { field, source, .. }) => (field, source.to_string()),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_field_that_is_not_read_is_refused_by_name() {
    for (place, field) in [("match", "spec.match"), ("remote", "spec.remote"), ("Mode", "spec.Mode")] {
        let spec = format!("{{{place}: x, images: [{{glob: h.test/**}}], authorities: [{{static: {{action: fail}}}}]}}");
        assert_eq!(refused(&with_spec(&spec)).0, field);
    }
    for (authority, field) in [
        ("key: {kms: 'awskms:///x'}", "spec.authorities[0].key.kms"),
        ("key: {secretRef: {name: x}}", "spec.authorities[0].key.secretRef"),
        ("keyless: {IDENTITIES, ca-cert: x}", "spec.authorities[0].keyless.ca-cert"),
        ("keyless: {IDENTITIES, insecureIgnoreSCT: true}", "spec.authorities[0].keyless.insecureIgnoreSCT"),
        ("keyless: {identities: [{issuer: i, subject: s, san: x}]}", "spec.authorities[0].keyless.identities[0].san"),
        ("static: {action: fail, message: no}", "spec.authorities[0].static.message"),
        ("key: KEY, ctlog: {x: y}", "spec.authorities[0].ctlog.x"),
        ("key: KEY, rfc3161timestamp: {x: y}", "spec.authorities[0].rfc3161timestamp.x"),
        ("key: KEY, attestations: [{predicateType: vuln, x: y}]", "spec.authorities[0].attestations[0].x"),
        (
            "key: KEY, attestations: [{predicateType: vuln, policy: {type: rego, configMapRef: x}}]",
            "spec.authorities[0].attestations[0].policy.configMapRef",
        ),
        ("key: KEY, source: [{oci: h.test/s, signaturePullSecrets: []}]", "spec.authorities[0].source[0].signaturePullSecrets"),
        ("key: KEY, rfc3161: {}", "spec.authorities[0].rfc3161"),
    ] {
        let (found, said) = refused(&with_authority(authority));
        assert_eq!(found, field, "{authority}");
        assert!(said.starts_with("kitfs does not read this field"), "{said}");
    }
    let whole = with_spec("{images: [{glob: h.test/**}], authorities: [{static: {action: fail}}]}");
    assert_eq!(refused(&format!("{whole}status: {{}}\n")).0, "status");
    assert_eq!(refused(&with_spec("{images: [{glob: h.test/**, x: y}], authorities: [{static: {action: fail}}]}")).0, "spec.images[0].x");
    assert_eq!(
        refused(&with_spec(
            "{policy: {type: rego, data: x, url: y}, images: [{glob: h.test/**}], authorities: [{static: {action: fail}}]}"
        ))
        .0,
        "spec.policy.url"
    );
    let metadata = whole.replace("{name: test}", "{name: test, labels: {a: b}, annotations: {c: d}, generation: 3, managedFields: [x]}");
    assert!(load(&metadata).is_ok(), "all of `metadata` is read");
}

#[test]
fn what_is_wrong_with_a_policy_is_said() {
    const IMAGES: &str = "images: [{glob: h.test/**}]";
    const FAIL: &str = "authorities: [{static: {action: fail}}]";
    for (spec, field, said) in [
        ("", "spec.images", "it is required"),
        ("{images: [{glob: h.test/**}]}", "spec.authorities", "it is required"),
        ("[x]", "spec", "a mapping was expected"),
        (&format!("{{{FAIL}}}"), "spec.images", "it is required"),
        (&format!("{{images: [], {FAIL}}}"), "spec.images", "it is given and empty"),
        (&format!("{{images: , {FAIL}}}"), "spec.images", "it is given and empty"),
        (&format!("{{images: x, {FAIL}}}"), "spec.images", "a list was expected"),
        (&format!("{{images: [x], {FAIL}}}"), "spec.images[0]", "a mapping was expected"),
        (&format!("{{images: [~], {FAIL}}}"), "spec.images[0].glob", "it is required"),
        (&format!("{{images: [{{glob: }}], {FAIL}}}"), "spec.images[0].glob", "it is given and empty"),
        (&format!("{{images: [{{glob: [x]}}], {FAIL}}}"), "spec.images[0].glob", "a text was expected"),
        (
            &format!("{{images: [{{glob: '*'}}], {FAIL}}}"),
            "spec.images[0].glob",
            "`*` leaves open which registry is meant: a host and a `/` have to stand before the first `*` (`**` alone is every kit)",
        ),
        (&format!("{{{IMAGES}, authorities: []}}"), "spec.authorities", "it is given and empty"),
        (&format!("{{{IMAGES}, authorities: ~}}"), "spec.authorities", "it is given and empty"),
        (&format!("{{{IMAGES}, authorities: [~]}}"), "spec.authorities[0]", "exactly one of `key`, `keyless` and `static` was expected"),
        (&format!("{{{IMAGES}, mode: audit, {FAIL}}}"), "spec.mode", "`audit` is not known here; `enforce`, `warn` can stand here"),
        (&format!("{{{IMAGES}, mode: , {FAIL}}}"), "spec.mode", "it is given and empty"),
        (&format!("{{{IMAGES}, policy: , {FAIL}}}"), "spec.policy.type", "it is required"),
        (
            &format!("{{{IMAGES}, policy: {{type: cue, data: x}}, {FAIL}}}"),
            "spec.policy.type",
            "`cue` is not known here; `rego` can stand here",
        ),
        (&format!("{{{IMAGES}, policy: {{type: rego}}, {FAIL}}}"), "spec.policy.data", "it is required"),
        (
            &format!("{{{IMAGES}, policy: {{type: rego, data: \"package signature\\nallow {{ true }}\"}}, {FAIL}}}"),
            "spec.policy.data",
            "the package `signature` has no meaning here: `modelkit.mount` or `sigstore` was expected",
        ),
        (
            &format!("{{{IMAGES}, authorities: [{{name: a, static: {{action: fail}}}}, {{name: a, static: {{action: fail}}}}]}}"),
            "spec.authorities[1]",
            "`a` is the name of another one, too",
        ),
        (
            &format!("{{{IMAGES}, authorities: [{{name: authority-1, static: {{action: fail}}}}, {{static: {{action: fail}}}}]}}"),
            "spec.authorities[1]",
            "`authority-1` is the name of another one, too",
        ),
        (
            "{images: [{glob: h.test/**}, {glob: '**'}], authorities: [{static: {action: pass}}]}",
            "spec.authorities[0]",
            "`static.action: pass` cannot stand in a policy for `**`, every kit",
        ),
    ] {
        assert_eq!(refused(&with_spec(spec)), (field.to_owned(), said.to_owned()), "{spec}");
    }
}

#[test]
fn what_is_wrong_with_an_authority_is_said() {
    let one = "exactly one of `key`, `keyless` and `static` was expected";
    for (authority, field, said) in [
        ("name: x", "", one),
        ("key: KEY, static: {action: fail}", "", one),
        ("key: KEY, keyless: {IDENTITIES}", "", one),
        ("name: , key: KEY", ".name", "it is given and empty"),
        ("key: ", ".key.data", "it is required"),
        ("key: {data: x}", ".key.data", "0 PEM blocks, expected one"),
        ("key: {data: }", ".key.data", "it is given and empty"),
        (
            "key: {data: x, hashAlgorithm: md5}",
            ".key.hashAlgorithm",
            "`md5` is not known here; `sha224`, `sha256`, `sha384`, `sha512` can stand here",
        ),
        ("keyless: ", ".keyless.identities", "it is required"),
        ("keyless: {url: 'https://f.test'}", ".keyless.identities", "it is required"),
        ("keyless: {identities: []}", ".keyless.identities", "it is given and empty"),
        ("keyless: {identities: }", ".keyless.identities", "it is given and empty"),
        ("keyless: {identities: [{subject: s}]}", ".keyless.identities[0]", "exactly one of `issuer` and `issuerRegExp` was expected"),
        ("keyless: {identities: [{issuer: i}]}", ".keyless.identities[0]", "exactly one of `subject` and `subjectRegExp` was expected"),
        (
            "keyless: {identities: [{issuer: i, subject: s, subjectRegExp: s}]}",
            ".keyless.identities[0]",
            "exactly one of `subject` and `subjectRegExp` was expected",
        ),
        ("keyless: {identities: [{issuer: '', subject: s}]}", ".keyless.identities[0].issuer", "it is given and empty"),
        ("keyless: {identities: [{issuer: i, subjectRegExp: ''}]}", ".keyless.identities[0].subjectRegExp", "it is given and empty"),
        (
            "keyless: {identities: [{issuer: i, subjectRegExp: 'a)|(b'}]}",
            ".keyless.identities[0].subjectRegExp",
            "`a)|(b` is no regular expression: unopened group",
        ),
        (
            "keyless: {IDENTITIES, trustRootRef: ../x}",
            ".keyless.trustRootRef",
            "`../x` is no name of a trust root (letters, digits, `.`, `_` and `-`, not starting with `.`)",
        ),
        ("keyless: {IDENTITIES, url: fulcio}", ".keyless.url", "`fulcio` is no address: `https://HOST…` was expected"),
        ("key: KEY, ctlog: {url: 'file:///x'}", ".ctlog.url", "`file:///x` is no address: `https://HOST…` was expected"),
        ("key: KEY, rfc3161timestamp: {trustRootRef: }", ".rfc3161timestamp.trustRootRef", "it is given and empty"),
        ("static: ", ".static.action", "it is required"),
        ("static: {action: maybe}", ".static.action", "`maybe` is not known here; `pass`, `fail` can stand here"),
        ("static: {action: pass}, ctlog: ", "", "`static` stands alone: there can be no `ctlog` beside it"),
        ("static: {action: pass}, rfc3161timestamp: {}", "", "`static` stands alone: there can be no `rfc3161timestamp` beside it"),
        (
            "static: {action: fail}, attestations: [{predicateType: vuln}]",
            "",
            "`static` stands alone: there can be no `attestations` beside it",
        ),
        ("static: {action: fail}, source: [{oci: h.test/s}]", "", "`static` stands alone: there can be no `source` beside it"),
        ("key: KEY, signatureFormat: simple", ".signatureFormat", "`simple` is not known here; `bundle`, `legacy` can stand here"),
        ("key: KEY, attestations: []", ".attestations", "it is given and empty"),
        ("key: KEY, attestations: ", ".attestations", "it is given and empty"),
        ("key: KEY, attestations: [{name: x}]", ".attestations[0].predicateType", "it is required"),
        (
            "key: KEY, attestations: [{predicateType: scan}]",
            ".attestations[0].predicateType",
            "`scan` is no predicate type: a URI or one of cosign's short names was expected",
        ),
        ("key: KEY, attestations: [{predicateType: vuln, policy: }]", ".attestations[0].policy.type", "it is required"),
        (
            "key: KEY, attestations: [{predicateType: vuln, policy: {type: rego, data: \"package modelkit.mount\\nallow := true\"}}]",
            ".attestations[0].policy.data",
            "the package `modelkit.mount` has no meaning here: `signature` or `sigstore` was expected",
        ),
        ("key: KEY, source: []", ".source", "it is given and empty"),
        ("key: KEY, source: [{oci: h.test/s}, {oci: h.test/t}]", ".source", "exactly one entry was expected"),
        ("key: KEY, source: [{oci: 'h.test/s:t'}]", ".source[0].oci", "`h.test/s:t` has a tag or a digest: only a repository was expected"),
        ("key: KEY, source: [{}]", ".source[0].oci", "it is required"),
    ] {
        assert_eq!(refused(&with_authority(authority)), (format!("spec.authorities[0]{field}"), said.to_owned()), "{authority}");
    }
}

#[test]
fn a_document_is_a_policy_of_a_version_that_is_known() {
    let good = with_spec("{images: [{glob: h.test/**}], authorities: [{static: {action: fail}}]}");
    assert!(load(&good.replace("v1beta1", "v1alpha1")).is_ok());
    for (text, field) in [
        (good.replace("v1beta1", "v1"), "apiVersion"),
        (good.replace("apiVersion: policy.sigstore.dev/v1beta1\n", ""), "apiVersion"),
        (good.replace("ClusterImagePolicy", "TrustRoot"), "kind"),
        (good.replace("kind: ClusterImagePolicy\n", ""), "kind"),
        (good.replace("{name: test}", "{name: }"), "metadata.name"),
        (good.replace("{name: test}", "[x]"), "metadata"),
        (good.split("spec:").next().unwrap_or_default().to_owned(), "spec"),
        (format!("{good}---\n"), "apiVersion"),
        ("- x\n".to_owned(), "the document"),
        ("x\n".to_owned(), "the document"),
    ] {
        assert_eq!(refused(&text).0, field, "{text}");
    }
    for (bytes, expected) in [
        (&b""[..], DocumentError::Nothing),
        (b"# nothing\n", DocumentError::Nothing),
        (b"a: \xff", DocumentError::NotText),
        (b"kind: a\nkind: b\n", DocumentError::Yaml(YamlError::Duplicate { line: 2, key: "kind".into() })),
    ] {
        assert_eq!(policies(bytes, "x").expect_err("wrong"), expected);
    }
    let line = match load(&good.replace("h.test/**", "'*'")) {
        Err(DocumentError::Field { line, .. }) => line,
        other => panic!("{other:?}"),
    };
    assert_eq!(line, 5);
}

#[test]
fn what_is_given_is_what_is_wanted() {
    let authority = authority_of(
        "name: a, keyless: {trustRootRef: root-1, url: 'https://f.test/', identities: [{issuerRegExp: 'https://.*', subject: s}, {issuer: i, subject: t}]}, ctlog: {url: 'https://r.test'}, rfc3161timestamp: , signatureFormat: legacy, source: [{oci: 'H.test:443/sigs'}]",
    );
    let Signer::Keyless(keyless) = &authority.signer else { panic!("{authority:?}") };
    assert_eq!(keyless.root, Witness { trust_root: Some("root-1".into()), url: Some("https://f.test".into()) });
    let matches = |identity: &Identity, issuer, subject| identity.issuer.matches(issuer) && identity.subject.matches(subject);
    assert!(matches(&keyless.identities[0], "https://x", "s") && !matches(&keyless.identities[1], "https://x", "t"));
    assert_eq!(authority.log, Some(Witness { trust_root: None, url: Some("https://r.test".into()) }));
    assert_eq!(authority.timestamp, Some(Witness::default()), "given and empty, it is wanted all the same");
    assert_eq!((authority.format, authority.source.map(|name| name.to_string())), (Some(Format::Legacy), Some("h.test/sigs".into())));
    let authority = authority_of("key: KEY, attestations: [{predicateType: vuln}, {name: b, predicateType: 'https://x.test/v1'}]");
    assert!(authority.log.is_none() && authority.timestamp.is_none() && authority.format.is_none() && authority.source.is_none());
    let wanted: Vec<_> = authority.attestations.iter().map(|wanted| (wanted.name.as_str(), wanted.predicate_type.as_str())).collect();
    assert_eq!(wanted, [("attestation-0", "https://cosign.sigstore.dev/attestation/vuln/v1"), ("b", "https://x.test/v1")]);
    assert_eq!(authority.name, "authority-0");
    let Signer::Key(key) = authority_of(&format!("key: {{data: \"{KEY}\", hashAlgorithm: sha384}}")).signer else { panic!("a key") };
    assert_eq!(key.hash, Some(Hash::Sha384));
    // P-521: a key of a kind that is refused is no error here.
    let p521 = "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQ=";
    authority_of(&format!("key: {{data: \"-----BEGIN PUBLIC KEY-----\\n{p521}\\n-----END PUBLIC KEY-----\\n\"}}"));
    assert!(matches!(authority_of("static: {action: pass}").signer, Signer::Static(Action::Pass)));
}

#[test]
fn aliases_stand_for_what_they_name() {
    let text = format!(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nspec:\n  images: [{{glob: h.test/**}}]\n  authorities:\n    - name: a\n      key: &key {{data: \"{KEY}\"}}\n    - name: b\n      key: *key\n"
    );
    let policies = load(&text).expect("a policy");
    let keys: Vec<_> = policies[0].authorities.iter().map(|authority| format!("{:?}", authority.signer)).collect();
    assert_eq!(keys[0], keys[1]);
    // What would merge mappings is a field like others, and none that is read.
    let merged = with_authority("<<: {key: KEY}");
    assert_eq!(refused(&merged).0, "spec.authorities[0].<<");
}
