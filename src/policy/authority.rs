//! Authorities: who has to have signed, and what has to stand beside the signature.

use std::collections::BTreeMap;

use super::name::Name;
use super::rego::Rule;
use crate::signature::{Hash, Identity};

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
    /// As it was written.
    pub pem: String,
    /// What its first line says that it is.
    pub kind: PemKind,
    /// What stands between the lines, decoded.
    pub der: Vec<u8>,
    /// The only hash that counts.
    pub hash: Option<Hash>,
}

/// What a PEM block says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemKind {
    /// `PUBLIC KEY`: a SubjectPublicKeyInfo.
    PublicKey,
    /// `RSA PUBLIC KEY`: PKCS#1.
    RsaPublicKey,
}

/// Why a text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is no PEM, or more than one block.
    #[error("not a public key in PEM: {0}")]
    Pem(String),
    /// It is not exactly one block.
    #[error("{0} PEM blocks, expected one")]
    Blocks(usize),
    /// There is something beside the block.
    #[error("there is text beside the PEM block")]
    Beside,
    /// It is another thing.
    #[error("a PEM block `{0}`, expected `PUBLIC KEY`")]
    Kind(String),
    /// There is nothing in it.
    #[error("the PEM block is empty")]
    Empty,
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

impl Key {
    /// Takes a public key in PEM, and nothing beside it.
    pub fn new(text: &str, hash: Option<Hash>) -> Result<Self, KeyError> {
        let blocks = pem::parse_many(text).map_err(|error| KeyError::Pem(error.to_string()))?;
        let [block] = &blocks[..] else { return Err(KeyError::Blocks(blocks.len())) };
        let bare = text.trim();
        if !bare.starts_with("-----BEGIN ") || !bare.ends_with("-----") || bare.matches("-----BEGIN ").count() != 1 {
            return Err(KeyError::Beside);
        }
        let kind = match block.tag() {
            "PUBLIC KEY" => PemKind::PublicKey,
            "RSA PUBLIC KEY" => PemKind::RsaPublicKey,
            other => return Err(KeyError::Kind(other.to_owned())),
        };
        if block.contents().is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self { pem: text.to_owned(), kind, der: block.contents().to_vec(), hash })
    }
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

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd30l3LdAhWd9PDHnMpwJcaMJpD\nqwZzM97kqlTjvQOxJN9hmO3ERrnJs5HmPzLFRqB44XsHPMhi3sCOxS3n9w==\n-----END PUBLIC KEY-----\n";

    #[test]
    fn a_key_is_one_pem_block_and_nothing_beside() {
        let key = Key::new(KEY, None).expect("a key");
        assert_eq!((key.kind, key.der.len()), (PemKind::PublicKey, 91));
        assert_eq!(Key::new(&format!("\n  {KEY}\n\n"), None).expect("a key").der, key.der);
        let relabelled = |label: &str| KEY.replace("PUBLIC KEY", label);
        assert_eq!(Key::new(&relabelled("RSA PUBLIC KEY"), None).expect("a label").kind, PemKind::RsaPublicKey);
        for (text, expected) in [
            (String::new(), KeyError::Blocks(0)),
            ("awskms:///alias/x".to_owned(), KeyError::Blocks(0)),
            (format!("{KEY}{KEY}"), KeyError::Blocks(2)),
            (format!("{KEY}x"), KeyError::Beside),
            (format!("x\n{KEY}"), KeyError::Beside),
            (relabelled("EC PRIVATE KEY"), KeyError::Kind("EC PRIVATE KEY".into())),
            (relabelled("CERTIFICATE"), KeyError::Kind("CERTIFICATE".into())),
            ("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n".to_owned(), KeyError::Empty),
        ] {
            assert_eq!(Key::new(&text, None).expect_err(&text), expected);
        }
        assert!(matches!(Key::new(&KEY.replace("MFkw", "MF!w"), None), Err(KeyError::Pem(_))));
        assert!(matches!(Key::new(&KEY.replace("END PUBLIC", "END PRIVATE"), None), Err(KeyError::Pem(_))));
    }

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
