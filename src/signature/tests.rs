use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::digest::Digest;
use crate::limits;
use jiff::Timestamp;

const DIGEST: &str = "sha256:98d5bb40b4a10c712223aa7fc5099ac2426bcce667101cb71d250e80df360e6a";
const ROOT: &[u8] = include_bytes!("../../tests/fixtures/signed/keyless-rekor1/trusted_root.json");
const KEY: &[u8] = include_bytes!("../../tests/fixtures/signed/key-p256-bundle/cosign.pub");

/// A bundle that is well-formed, but for what it says.
const BUNDLE: &str = r#"{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},
"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}"#;

fn code(bundle: &[u8]) -> &'static str {
    let root = TrustedRoot::read(ROOT).expect("a trusted root");
    let key = PublicKey::from_pem(KEY).expect("a key");
    let about = About { digest: DIGEST.parse().expect("a digest"), artifact: None };
    let expectation =
        Expectation { signer: Signer::Key(&key), content: Content::Signature, log: false, timestamp: false, forms: Forms::Attached };
    judge(bundle, &about, &expectation, &root, Timestamp::UNIX_EPOCH).expect_err("nobody signed it").reason.code()
}

#[test]
fn a_bundle_is_read_strictly() {
    assert_eq!(code(BUNDLE.as_bytes()), "wrong-key");
    let message = r#""messageSignature":{"signature":"AAAA"},"dsseEnvelope":"#;
    for (from, to, expected) in [
        (r#"{"mediaType""#, r#"{"mediaType":"x","mediaType""#, "bad-json"),
        (r#"{"mediaType""#, r#"{"extra":1,"mediaType""#, "unknown-member"),
        (r#""hint":"x""#, r#""hint":"x","rawBytes":"AAAA""#, "unknown-member"),
        (r#"{"sig":"AAAA"}"#, r#"{"sig":"AAAA"},{"sig":"AAAA"}"#, "dsse-signatures"),
        (r#"{"sig":"AAAA"}"#, "", "dsse-signatures"),
        (r#"{"sig":"AAAA"}"#, r#"{"sig":"AAAB="}"#, "bad-json"),
        (r#""dsseEnvelope":"#, message, "two-contents"),
        (r#"{"publicKey":"#, r#"{"certificate":{"rawBytes":"AAAA"},"publicKey":"#, "key-kind"),
        (r#""publicKey":{"hint":"x"}"#, r#""certificate":{"rawBytes":"AAAA"}"#, "key-kind"),
        ("bundle.v0.3+json", "bundle+json;version=0.1", "bundle-version"),
        ("bundle.v0.3+json", "bundle+json;version=9", "bundle-version"),
        (r#""verificationMaterial":{"publicKey""#, r#""verificationMaterial":{"tlogEntries":{},"publicKey""#, "bad-json"),
        (r#""payload":"e30=","#, "", "bad-json"),
    ] {
        assert!(BUNDLE.contains(from), "{from}");
        assert_eq!(code(BUNDLE.replacen(from, to, 1).as_bytes()), expected, "{to}");
    }
    assert_eq!(code(b""), "bad-json");
    let deep = BUNDLE.replacen("{", &format!(r#"{{"x":{}{},"#, "[".repeat(200_000), "]".repeat(200_000)), 1);
    assert_eq!(code(deep.as_bytes()), "bad-json");
    let mut long = BUNDLE.as_bytes().to_vec();
    long.resize(limits::BUNDLE_BYTES as usize, b' ');
    assert_eq!(code(&long), "wrong-key");
    long.push(b' ');
    assert_eq!(code(&long), "too-big");
    let entry = r#"{"logId":{"keyId":"AAAA"},"kindVersion":{"kind":"dsse","version":"0.0.1"},"canonicalizedBody":"AAAA"}"#;
    let entries = [entry; limits::BUNDLE_LOG_ENTRIES + 1].join(",");
    assert_eq!(code(BUNDLE.replacen(r#""publicKey""#, &format!(r#""tlogEntries":[{entries}],"publicKey""#), 1).as_bytes()), "too-many");
}

#[test]
fn a_statement_is_read_strictly_and_is_about_the_digest() {
    let digest: Digest = DIGEST.parse().expect("a digest");
    let good = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"name":"n","digest":{{"sha256":"{}"}},"annotations":{{"a":"b","n":1}}}}],"predicateType":"t","predicate":{{"free":{{"x":[]}}}}}}"#,
        digest.hex()
    );
    let read = statement::read(good.as_bytes(), &digest).expect("a statement");
    assert_eq!(read.predicate_type, "t");
    assert_eq!(read.annotations, [("a".to_owned(), "b".to_owned()), ("n".to_owned(), "1".to_owned())]);
    assert_eq!(read.text, good);
    for (from, to, expected) in [
        ("Statement/v1", "Statement/v2", "statement-type"),
        ("98d5", "98d6", "wrong-digest"),
        ("sha256\":\"98", "sha512\":\"98", "digest-algorithm"),
        ("sha256\":\"98d5", "sha256\":\"98D5", "wrong-digest"),
        ("\"subject\":[", "\"subject\":[],\"subjects\":[", "unknown-member"),
        ("\"name\":\"n\",", "\"name\":\"n\",\"name\":\"n\",", "bad-json"),
        ("\"predicateType\":\"t\",", "", "bad-json"),
    ] {
        assert!(good.contains(from), "{from}");
        let denial = statement::read(good.replacen(from, to, 1).as_bytes(), &digest).expect_err(to);
        assert_eq!(denial.reason.code(), expected, "{to}");
    }
    let none = br#"{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"t","predicate":{}}"#;
    assert_eq!(statement::read(none, &digest).expect_err("no subject").reason, Reason::SubjectCount);
}

#[test]
fn a_pattern_matches_the_whole_text() {
    for (pattern, text, matches) in [
        ("a|ab", "ab", true),
        ("a|ab", "abc", false),
        ("b", "abc", false),
        (".*@example\\.com", "x@example.com", true),
        (".*@example\\.com", "x@example.com.evil.test", false),
        (".*@example\\.com", "x@example.com\nevil", false),
        ("(?m)^a$", "a\nb", false),
        (".*", "", false),
    ] {
        assert_eq!(Matcher::pattern(pattern).expect(pattern).matches(text), matches, "{pattern} {text:?}");
    }
    for bad in ["a)|(b", "(", "(?x)a # b", "a{1000}{1000}"] {
        assert!(Matcher::pattern(bad).is_err(), "{bad}");
    }
    assert!(!Matcher::Exact(String::new()).matches(""));
}

#[test]
fn a_key_is_one_pem_block_of_a_kind_that_is_taken() {
    let text = str::from_utf8(KEY).expect("text");
    let key = PublicKey::from_pem(KEY).expect("a key");
    assert_eq!(key.refused(), None);
    for bad in [String::new(), format!("x{text}"), format!("{text}{text}"), text.replace("PUBLIC KEY", "CERTIFICATE"), " ".repeat(20_000)] {
        assert!(PublicKey::from_pem(bad.as_bytes()).is_err(), "{bad}");
    }
    // P-521 and RSA with 1024 bits: well-formed, and refused when they are used.
    for (refused, why) in [(P521, "P-384"), (RSA_1024, "1024")] {
        let key = PublicKey::from_pem(refused.as_bytes()).expect("well-formed");
        assert!(key.refused().is_some_and(|text| text.contains(why)), "{:?}", key.refused());
    }
}

/// Their hash is part of what is wanted of a key, and goes with it; all sorts of signatures are held to it in the tests of the fixtures.
#[test]
fn an_rsa_key_may_be_in_its_older_form() {
    let spki = STANDARD.decode(RSA_1024.lines().filter(|line| !line.starts_with('-')).collect::<String>()).expect("base64");
    let key = PublicKey::from_der(&spki).expect("a key");
    // What is in the bit string at its end.
    let older = &spki[22..];
    assert_eq!(PublicKey::from_pkcs1_der(older).expect("a key"), key);
    let only = key.clone().only(Some(Hash::Sha256));
    assert!(only != key && only.hash() == Some(Hash::Sha256) && only.fingerprint() == key.fingerprint());
    let longer = [older, &[0]].concat();
    let three = {
        let mut three = older.to_vec();
        three[2] += 3;
        [three, vec![2, 1, 1]].concat()
    };
    for bad in [&spki[..], &older[..older.len() - 1], &longer, &three, b""] {
        assert!(matches!(PublicKey::from_pkcs1_der(bad), Err(KeyError::Der(_))), "{bad:?}");
    }
    for bad in [older, &spki[..spki.len() - 1], &[&spki[..], &[0]].concat(), b""] {
        assert!(matches!(PublicKey::from_der(bad), Err(KeyError::Der(_))), "{bad:?}");
    }
}

const P521: &str = "-----BEGIN PUBLIC KEY-----\n\
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQA9hxjKwQSo/rbFsBr/Wb2Qh4oBnrb\n\
twAaIFBXO3UZ6Qi4BBice0mLdSnkSvTC9adY6DqbRYoNt0VrCEGo+Ok2sUYAg1Ec\n\
27xmUU0MlYB+pAWsCKtu+yuOYsUgzZlRNLCCi4lP31Zng+Bxi2av0RfkJSWVCAJG\n\
uzoklFePEtp3s6etHG8=\n\
-----END PUBLIC KEY-----";
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDW+RxXxT4KiR8RZG+NmM8eoR71\n\
41sOJE9itpy22V247MhMEpnw2Y59g4Oa23BnBfEMCo0eTowpAoo4u3jctfAOVinh\n\
vxon1zL8qi6LJvla3a6fnFYvDQ1P0sRG3KKrxKR+tl+0c0PFZWEE080DgGruEuiN\n\
jYeSzBpUM1tKou/xFwIDAQAB\n\
-----END PUBLIC KEY-----";

#[test]
fn the_roots_that_are_built_in_can_be_read() {
    for name in BUILT_IN {
        let root = TrustedRoot::built_in(name).expect(name);
        assert!(root.authorities().iter().any(|authority| authority.role == Role::CertificateAuthority), "{name}");
        assert_eq!(root.logs_nothing(), name == "github");
    }
    assert!(TrustedRoot::built_in("sigstore").is_none());
}

#[test]
fn a_root_is_read_strictly() {
    let text = str::from_utf8(ROOT).expect("text");
    for (bad, what) in [
        (text.replacen('{', r#"{"tlogs":[],"#, 1), "a member twice"),
        (text.replacen('{', r#"{"extra":null,"#, 1), "a member that there is not"),
        (text.replacen("\"validFor\"", "\"validUntil\"", 1), "a member that there is not, below"),
        (text.replacen("\"start\"", "\"begin\"", 1), "a member that there is not, deep"),
        (text.replace("trustedroot+json;version=0.1", "bundle+json"), "another document"),
        ("{}".to_owned(), "nothing"),
        (" ".repeat(limits::TRUSTED_ROOT_BYTES as usize + 1), "too large"),
    ] {
        assert_ne!(bad, text, "{what}");
        assert!(TrustedRoot::read(bad.as_bytes()).is_err(), "{what}");
    }
}

#[test]
fn codes_are_unique_and_stable_words() {
    let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    assert!(codes.iter().all(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
    let all = codes.len();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), all);
}
