//! The short cuts of the command line, named as cosign names them: one policy of the caller's, for every kit.

use std::collections::BTreeMap;

use super::authority::{Attestation, Authority, Key, Keyless, Signer, Witness, predicate_type};
use super::document::{Mode, Policy};
use super::images::Glob;
use super::rego::{Place, RegoError, Rule};
use crate::digest::{Algorithm, Digest};
use crate::signature::{ExpressionError, Identity, Matcher, PemError, PemKey};

/// What was typed, with files read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shortcut {
    /// `--key`: what stands in the file.
    pub key: Option<String>,
    /// `--certificate-identity`.
    pub identity: Option<String>,
    /// `--certificate-identity-regexp`.
    pub identity_regexp: Option<String>,
    /// `--certificate-oidc-issuer`.
    pub issuer: Option<String>,
    /// `--certificate-oidc-issuer-regexp`.
    pub issuer_regexp: Option<String>,
    /// `--annotations`, each `KEY=VALUE`.
    pub annotations: Vec<String>,
    /// `--insecure-ignore-tlog`.
    pub ignore_log: bool,
    /// `--use-signed-timestamps`.
    pub timestamps: bool,
    /// `--type`.
    pub predicate_type: Option<String>,
    /// `--rego`: what stands in the file.
    pub rego: Option<String>,
}

/// Why short cuts make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShortcutError {
    /// They name nobody who signs.
    #[error(
        "nobody is named who has to have signed: `--key`, or `--certificate-identity` with `--certificate-oidc-issuer`, is needed beside these options"
    )]
    Nobody,
    /// They name both a key and an identity.
    #[error("`--key` and `--certificate-…` ask for different signers; a policy can ask for both")]
    Both,
    /// Identity or issuer is missing.
    #[error("`{0}` is needed, too: an identity is what one issuer says")]
    Half(&'static str),
    /// The same thing is asked for exactly and by an expression.
    #[error("`{0}` and `{0}-regexp` cannot both be given")]
    Twice(&'static str),
    /// An identity or issuer is empty.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// An expression is wrong.
    #[error("`{0}`")]
    Expression(&'static str, #[source] ExpressionError),
    /// The key is kept elsewhere.
    #[error("`--key {0}`: only keys in files are read, not those of a key management, a URL or a cluster")]
    Elsewhere(String),
    /// The key is no key.
    #[error("`--key`")]
    Key(#[source] PemError),
    /// An annotation is no pair.
    #[error("the annotation `{0}` is not KEY=VALUE")]
    Annotation(String),
    /// An annotation is asked for twice, with two values.
    #[error("the annotation `{0}` cannot have two values")]
    AnnotationTwice(String),
    /// Annotations are of signatures.
    #[error("`--annotations` are those of a signature, and with `--type` an attestation is asked for")]
    AnnotationsOfAttestation,
    /// A certificate without a log entry is not enough.
    #[error("`--insecure-ignore-tlog` is for keys only: a certificate counts for nothing without a log entry")]
    IgnoreLog,
    /// It is no predicate type.
    #[error("`--type {0}` is neither a URI nor one of cosign's names for a predicate")]
    Type(String),
    /// A rule over a statement of no type.
    #[error("`--rego` with this package is about an attestation: `--type` says of which type")]
    NoType,
    /// The rule is wrong.
    #[error("`--rego`")]
    Rego(#[source] RegoError),
}

/// Refuses the names of keys that are kept elsewhere, before anything of that name is looked for among the files.
pub fn key_path(text: &str) -> Result<&str, ShortcutError> {
    let elsewhere = text.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty() && !scheme.contains('/'));
    if elsewhere { Err(ShortcutError::Elsewhere(text.to_owned())) } else { Ok(text) }
}

impl Shortcut {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The policy that they form.
    pub fn policy(&self) -> Result<Policy, ShortcutError> {
        let keyless = self.identity.is_some() || self.identity_regexp.is_some() || self.issuer.is_some() || self.issuer_regexp.is_some();
        let signer = match (&self.key, keyless) {
            (Some(_), true) => return Err(ShortcutError::Both),
            (None, false) => return Err(ShortcutError::Nobody),
            (Some(key), false) => Signer::Key(Key { pem: PemKey::read(key).map_err(ShortcutError::Key)?, hash: None }),
            (None, true) => {
                let subject = wanted("--certificate-identity", self.identity.as_deref(), self.identity_regexp.as_deref())?;
                let issuer = wanted("--certificate-oidc-issuer", self.issuer.as_deref(), self.issuer_regexp.as_deref())?;
                Signer::Keyless(Keyless { identities: vec![Identity { issuer, subject }], root: Witness::default() })
            }
        };
        if self.ignore_log && keyless {
            return Err(ShortcutError::IgnoreLog);
        }
        let annotations = annotations(&self.annotations)?;
        let place = self.rego.as_deref().map(Place::of);
        let rule = |wanted| match (&self.rego, place) {
            (Some(text), Some(place)) if place == wanted => Rule::compile(place, text).map(Some).map_err(ShortcutError::Rego),
            _ => Ok(None),
        };
        let attestations = match &self.predicate_type {
            Some(_) if !annotations.is_empty() => return Err(ShortcutError::AnnotationsOfAttestation),
            Some(text) => {
                let uri = predicate_type(text).ok_or_else(|| ShortcutError::Type(text.clone()))?;
                vec![Attestation { name: text.clone(), predicate_type: uri, rule: rule(Place::Attestation)? }]
            }
            None if place == Some(Place::Attestation) => {
                // What is wrong with the rule itself is said first.
                rule(Place::Attestation)?;
                return Err(ShortcutError::NoType);
            }
            None => Vec::new(),
        };
        let authority = Authority {
            name: "command line".to_owned(),
            signer,
            log: (!self.ignore_log).then(Witness::default),
            timestamp: self.timestamps.then(Witness::default),
            format: None,
            attestations,
            source: None,
            annotations,
        };
        Ok(Policy {
            name: "command line".to_owned(),
            digest: self.digest(),
            mode: Mode::Enforce,
            images: vec![Glob::new("**").expect("`**` is a glob")],
            authorities: vec![authority],
            rule: rule(Place::Policy)?,
        })
    }

    /// Short cuts have no bytes of their own. These are all that was asked for, each with its length before it.
    fn digest(&self) -> Digest {
        let switch = |on: bool| on.then(|| "1".to_owned());
        let options = [
            ("key", self.key.clone()),
            ("certificate-identity", self.identity.clone()),
            ("certificate-identity-regexp", self.identity_regexp.clone()),
            ("certificate-oidc-issuer", self.issuer.clone()),
            ("certificate-oidc-issuer-regexp", self.issuer_regexp.clone()),
            ("insecure-ignore-tlog", switch(self.ignore_log)),
            ("use-signed-timestamps", switch(self.timestamps)),
            ("type", self.predicate_type.clone()),
            ("rego", self.rego.clone()),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let annotations = self.annotations.iter().map(|pair| ("annotations", pair.clone()));
        let text: String = given.chain(annotations).map(|(name, value)| format!("{name} {}\n{value}\n", value.len())).collect();
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }
}

fn wanted(option: &'static str, exact: Option<&str>, expression: Option<&str>) -> Result<Matcher, ShortcutError> {
    match (exact, expression) {
        (Some(_), Some(_)) => Err(ShortcutError::Twice(option)),
        (Some(""), None) => Err(ShortcutError::Empty(option)),
        (Some(text), None) => Ok(Matcher::Exact(text.to_owned())),
        (None, Some(text)) => Matcher::pattern(text).map_err(|error| ShortcutError::Expression(option, error)),
        (None, None) => Err(ShortcutError::Half(option)),
    }
}

fn annotations(pairs: &[String]) -> Result<BTreeMap<String, String>, ShortcutError> {
    let mut annotations = BTreeMap::new();
    for pair in pairs {
        let (key, value) =
            pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| ShortcutError::Annotation(pair.clone()))?;
        if annotations.insert(key.to_owned(), value.to_owned()).is_some_and(|before| before != value) {
            return Err(ShortcutError::AnnotationTwice(key.to_owned()));
        }
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rego::Dialect;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd30l3LdAhWd9PDHnMpwJcaMJpD\nqwZzM97kqlTjvQOxJN9hmO3ERrnJs5HmPzLFRqB44XsHPMhi3sCOxS3n9w==\n-----END PUBLIC KEY-----\n";
    const COSIGN: &str = "package signature\nallow { true }";
    const MOUNT: &str = "package modelkit.mount\nallow := true";

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn by_key() -> Shortcut {
        Shortcut { key: some(KEY), ..Shortcut::default() }
    }

    fn by_identity() -> Shortcut {
        Shortcut { identity: some("a@b.test"), issuer: some("https://i.test"), ..Shortcut::default() }
    }

    #[test]
    fn a_key_or_an_identity_makes_a_policy_for_every_kit() {
        let policy = by_key().policy().expect("a policy");
        assert!(policy.images.iter().all(Glob::is_everything) && policy.images.len() == 1 && policy.mode == Mode::Enforce);
        let [authority] = &policy.authorities[..] else { panic!("one authority") };
        assert!(matches!(authority.signer, Signer::Key(_)) && authority.log.is_some() && authority.timestamp.is_none());
        let policy = Shortcut { ignore_log: true, timestamps: true, annotations: vec!["stage=prod=1".into()], ..by_key() }.policy();
        let [authority] = &policy.expect("a policy").authorities[..] else { panic!("one authority") };
        assert!(authority.log.is_none() && authority.timestamp.is_some());
        assert_eq!(authority.annotations, BTreeMap::from([("stage".to_owned(), "prod=1".to_owned())]));
        let policy = by_identity().policy().expect("a policy");
        let [Authority { signer: Signer::Keyless(keyless), log: Some(_), .. }] = &policy.authorities[..] else { panic!("{policy:?}") };
        assert!(keyless.identities[0].issuer.matches("https://i.test") && keyless.identities[0].subject.matches("a@b.test"));
        let by_expression = Shortcut { identity: None, identity_regexp: some(".*@b\\.test"), ..by_identity() };
        assert!(by_expression.policy().is_ok());
    }

    #[test]
    fn a_rule_stands_where_its_package_belongs() {
        let typed = Shortcut { predicate_type: some("vuln"), ..by_key() };
        let policy = Shortcut { rego: some(COSIGN), ..typed.clone() }.policy().expect("a policy");
        let attestation = &policy.authorities[0].attestations[0];
        assert_eq!(attestation.predicate_type, "https://cosign.sigstore.dev/attestation/vuln/v1");
        assert_eq!(attestation.rule.as_ref().map(Rule::dialect), Some(Dialect::Cosign));
        assert!(policy.rule.is_none());
        for shortcut in [by_key(), typed] {
            let policy = Shortcut { rego: some(MOUNT), ..shortcut }.policy().expect("a policy");
            assert_eq!(policy.rule.as_ref().map(Rule::dialect), Some(Dialect::ModelKit));
            assert!(policy.authorities[0].attestations.iter().all(|attestation| attestation.rule.is_none()));
        }
    }

    #[test]
    fn what_makes_no_policy_is_said() {
        use ShortcutError as E;
        for (shortcut, expected) in [
            (Shortcut { timestamps: true, ..Shortcut::default() }, E::Nobody),
            (Shortcut { key: some(KEY), ..by_identity() }, E::Both),
            (Shortcut { issuer: None, ..by_identity() }, E::Half("--certificate-oidc-issuer")),
            (Shortcut { identity: None, ..by_identity() }, E::Half("--certificate-identity")),
            (Shortcut { identity_regexp: some("a"), ..by_identity() }, E::Twice("--certificate-identity")),
            (Shortcut { identity: some(""), ..by_identity() }, E::Empty("--certificate-identity")),
            (
                Shortcut { issuer: None, issuer_regexp: some(""), ..by_identity() },
                E::Expression("--certificate-oidc-issuer", ExpressionError::Empty),
            ),
            (Shortcut { key: some("x"), ..Shortcut::default() }, E::Key(PemError::Blocks(0))),
            (Shortcut { ignore_log: true, ..by_identity() }, E::IgnoreLog),
            (Shortcut { annotations: vec!["stage".into()], ..by_key() }, E::Annotation("stage".into())),
            (Shortcut { annotations: vec!["=x".into()], ..by_key() }, E::Annotation("=x".into())),
            (Shortcut { annotations: vec!["a=1".into(), "a=2".into()], ..by_key() }, E::AnnotationTwice("a".into())),
            (Shortcut { annotations: vec!["a=1".into()], predicate_type: some("vuln"), ..by_key() }, E::AnnotationsOfAttestation),
            (Shortcut { predicate_type: some("scan"), ..by_key() }, E::Type("scan".into())),
            (Shortcut { rego: some(COSIGN), ..by_key() }, E::NoType),
            (
                Shortcut { rego: some("package signature"), predicate_type: some("vuln"), ..by_key() },
                E::Rego(RegoError::NoRule("signature.allow")),
            ),
        ] {
            assert_eq!(shortcut.policy().expect_err("wrong"), expected);
        }
    }

    #[test]
    fn keys_elsewhere_are_refused_by_name() {
        for text in [
            "awskms:///alias/x",
            "gcpkms://x",
            "azurekms://x",
            "hashivault://x",
            "k8s://ns/x",
            "https://h.test/cosign.pub",
            "env://KEY",
            "gitlab://x",
        ] {
            assert_eq!(key_path(text), Err(ShortcutError::Elsewhere(text.into())));
        }
        for text in ["cosign.pub", "/etc/keys/cosign.pub", "./a:b.pub"] {
            assert_eq!(key_path(text), Ok(text));
        }
    }

    #[test]
    fn the_digest_tells_short_cuts_apart() {
        let all = [
            by_key(),
            by_identity(),
            Shortcut { ignore_log: true, ..by_key() },
            Shortcut { timestamps: true, ..by_key() },
            Shortcut { annotations: vec!["a=1".into()], ..by_key() },
            Shortcut { annotations: vec!["a=1".into(), "b=2".into()], ..by_key() },
            Shortcut { annotations: vec!["a=1\nb=2".into()], ..by_key() },
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(|shortcut| shortcut.digest().to_string()).collect();
        assert_eq!(digests.len(), all.len());
        assert!(Shortcut::default().is_empty() && !by_key().is_empty());
    }
}
