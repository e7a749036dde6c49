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
