//! Authorities: who has to have signed, and what has to stand beside the signature.

use std::collections::BTreeMap;

use super::name::Name;
use super::rego::Rule;
use crate::signature::{Hash, Identity, PemKey};

/// One of those of a policy that are enough.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its name; no other authority of the policy has it.
    pub name: String,
    /// Who signs.
    pub signer: Signer,
    /// A log entry is wanted, and of which logs.
    pub log: Option<Witness>,
    /// A signed timestamp is wanted, and of which authorities.
    pub timestamp: Option<Witness>,
    /// The only format that counts; `None`: either.
    pub format: Option<Format>,
    /// Attestations that are wanted, each of them, in place of a signature.
    pub attestations: Vec<Attestation>,
    /// The repository where signatures are looked for in place of the kit's own.
    pub source: Option<Name>,
    /// Annotations that a signature has to have. Policies have none; the short cuts of the command line do.
    pub annotations: BTreeMap<String, String>,
}

/// Who signs.
#[derive(Debug, Clone)]
pub enum Signer {
    /// Whoever has a key.
    Key(Key),
    /// Whoever a certificate names.
    Keyless(Keyless),
    /// Nobody: it is decided already.
    Static(Action),
}

/// A public key, not looked into yet: a key of a kind that is refused is well-formed, and found unmet by name when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub pem: PemKey,
    /// The only hash that counts.
    pub hash: Option<Hash>,
}

/// Certificates of a CA of a trust root.
#[derive(Debug, Clone)]
pub struct Keyless {
    /// One of them has to be the signer.
    pub identities: Vec<Identity>,
    /// Where CAs and logs are looked for.
    pub root: Witness,
}

/// A part of a trust root: all of its kind in it, or those of one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Witness {
    /// The name of the trust root, if it is said.
    pub trust_root: Option<String>,
    /// Narrows to the entries with this address, without the slash at its end.
    pub url: Option<String>,
}

/// What `static` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Signatures are not asked for.
    Pass,
    /// Refused, whatever else there is.
    Fail,
}

/// The formats that cosign stores signatures in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Sigstore bundles.
    Bundle,
    /// `.sig` and `.att` manifests.
    Legacy,
}

/// An attestation that is wanted.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// Its name.
    pub name: String,
    /// The predicate type, as a URI.
    pub predicate_type: String,
    /// What every verified statement of this type has to satisfy.
    pub rule: Option<Rule>,
}

/// The predicate types that cosign has short names for.
const PREDICATES: [(&str, &str); 10] = [
    ("custom", "https://cosign.sigstore.dev/attestation/v1"),
    ("slsaprovenance", "https://slsa.dev/provenance/v0.2"),
    ("slsaprovenance02", "https://slsa.dev/provenance/v0.2"),
    ("slsaprovenance1", "https://slsa.dev/provenance/v1"),
    ("spdx", "https://spdx.dev/Document"),
    ("spdxjson", "https://spdx.dev/Document"),
    ("cyclonedx", "https://cyclonedx.org/bom"),
    ("link", "https://in-toto.io/Link/v1"),
    ("vuln", "https://cosign.sigstore.dev/attestation/vuln/v1"),
    ("openvex", "https://openvex.dev/ns"),
];

/// The predicate type that a URI or one of cosign's short names says.
pub(super) fn predicate_type(text: &str) -> Option<String> {
    let short = PREDICATES.iter().find(|(short, _)| *short == text).map(|(_, uri)| (*uri).to_owned());
    let (scheme, rest) = text.split_once(':').unwrap_or_default();
    let is_uri = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rest.is_empty()
        && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control());
    short.or_else(|| is_uri.then(|| text.to_owned()))
}

impl Format {
    /// Both, by the names that policies have for them.
    pub(super) const NAMES: [(&str, Self); 2] = [("bundle", Self::Bundle), ("legacy", Self::Legacy)];

    /// As policies name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Legacy => "legacy",
        }
    }
}

impl Action {
    /// Both, by the names that policies have for them.
    pub(super) const NAMES: [(&str, Self); 2] = [("pass", Self::Pass), ("fail", Self::Fail)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicate_types_are_uris_or_short_names() {
        for (text, expected) in [
            ("vuln", Some("https://cosign.sigstore.dev/attestation/vuln/v1")),
            ("slsaprovenance1", Some("https://slsa.dev/provenance/v1")),
            ("https://acme.example/scan/v1", Some("https://acme.example/scan/v1")),
            ("urn:acme:scan", Some("urn:acme:scan")),
            ("scan", None),
            ("", None),
            (":x", None),
            ("https:", None),
            ("https://a b", None),
        ] {
            assert_eq!(predicate_type(text).as_deref(), expected, "{text}");
        }
    }
}
