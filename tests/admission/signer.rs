//! What the tests sign is what the judge takes, so that a denial elsewhere is never the signer's fault.

use std::fs;

use serde_json::json;

use crate::common::kitfs::{Host, Mode};
use crate::common::registry::sha256;
use crate::common::signer::{SIGNATURE, Signer};

#[test]
fn what_is_signed_is_verified_and_by_nobody_else() {
    let host = Host::new(Mode::Cached);
    let (signer, stranger, digest) = (Signer::new(), Signer::new(), sha256(b"a manifest"));
    let bundle = host.path("bundle.json");
    fs::write(&bundle, signer.bundle(&digest, SIGNATURE, &json!({}))).expect("room");
    for (key, digest, code) in [(&signer, digest.clone(), 0), (&stranger, digest, 1), (&signer, sha256(b"another"), 1)] {
        let pem = host.path("key.pub");
        fs::write(&pem, key.pem()).expect("room");
        let (bundle, pem) = (bundle.to_str().expect("ours"), pem.to_str().expect("ours"));
        let output = host.kitfs(&["verify-bundle", "--insecure-ignore-tlog", "--bundle", bundle, "--key", pem, &digest]);
        assert_eq!(output.code(), code, "{output:#?}");
    }
}

#[test]
fn its_policies_load() {
    let host = Host::new(Mode::Cached);
    let file = host.path("policy.yaml");
    let more = "signatureFormat: bundle\nattestations:\n  - name: scan\n    predicateType: https://scan.test/v1";
    for more in ["", more] {
        fs::write(&file, Signer::new().policy("signed", "kits.test/acme/**", more)).expect("room");
        host.kitfs(&["policy", "check", file.to_str().expect("ours")]).ok();
    }
}
