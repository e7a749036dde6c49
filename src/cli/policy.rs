//! `kitfs policy check`: what policies match and want, without a kit.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::args::{Policy as Arguments, PolicyCheck, PolicyCommand};
use super::error::CliError;
use super::print;
use super::report::{self, Exit, escaped};
use crate::policy::authority::{Action, Authority, Format, Keyless, PemKind, Signer, Witness};
use crate::policy::rego::Rule;
use crate::policy::set::of_file;
use crate::policy::{Mode, Policy};
use crate::signature::{Identity, Matcher};

pub(super) fn run(arguments: &Arguments) -> Result<Exit, CliError> {
    match &arguments.command {
        PolicyCommand::Check(arguments) => check(arguments),
    }
}

fn check(arguments: &PolicyCheck) -> Result<Exit, CliError> {
    let mut files = Vec::new();
    let mut exit = Exit::Done;
    for path in &arguments.files {
        match of_file(path) {
            Ok(policies) => files.push(File::new(path, &policies)),
            // All of them are looked at, so that one run tells all that is wrong.
            Err(error) => exit = exit.max(report::error(&CliError::Rules(error.into()))),
        }
    }
    let shown = if arguments.json { report::json(&files)? } else { files.iter().map(File::text).collect() };
    Ok(exit.max(print(shown.as_bytes())?))
}

/// What is shown of a file. Other programs read it: fields are added, not changed.
#[derive(Debug, Serialize)]
struct File {
    file: String,
    policies: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    digest: String,
    /// `enforce` or `warn`.
    mode: &'static str,
    images: Vec<Image>,
    /// One of them is enough.
    authorities: Vec<ShownAuthority>,
    rego: Option<ShownRule>,
}

#[derive(Debug, Serialize)]
struct Image {
    glob: String,
    /// What names are held against.
    patterns: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownAuthority {
    name: String,
    /// `key`, `keyless`, `pass` or `fail`.
    kind: &'static str,
    /// A key's PEM block, and its digest.
    key: Option<ShownKey>,
    identities: Vec<ShownIdentity>,
    /// Of keyless signers: where their CA is looked for.
    keyless: Option<Place>,
    /// Where a log entry has to be, if one is wanted.
    log: Option<Place>,
    /// No entry is wanted if the root of the signer lists neither logs nor CT logs.
    log_waivable: bool,
    timestamp: Option<Place>,
    /// `bundle` or `legacy`; either, if there is none.
    format: Option<&'static str>,
    /// Each of them is wanted, in place of a signature.
    attestations: Vec<ShownAttestation>,
    /// The repository where signatures are looked for, if it is not the kit's.
    source: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownKey {
    kind: &'static str,
    sha256: String,
    /// The only hash that counts.
    hash: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct ShownIdentity {
    issuer: String,
    /// Whether the issuer is a regular expression.
    issuer_is_expression: bool,
    subject: String,
    subject_is_expression: bool,
}

#[derive(Debug, Serialize)]
struct Place {
    trust_root: String,
    /// The root that is meant where there is none of that name.
    otherwise: Option<&'static str>,
    url: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownAttestation {
    name: String,
    predicate_type: String,
    rego: Option<ShownRule>,
}

#[derive(Debug, Serialize)]
struct ShownRule {
    /// What has to be `true`.
    rule: &'static str,
    /// The version of Rego.
    version: &'static str,
}

impl File {
    fn new(path: &Path, policies: &[Policy]) -> Self {
        Self { file: path.to_string_lossy().into_owned(), policies: policies.iter().map(Shown::new).collect() }
    }

    fn text(&self) -> String {
        self.policies.iter().map(|policy| policy.text(&self.file)).collect()
    }
}

impl Shown {
    fn new(policy: &Policy) -> Self {
        let image = |glob: &crate::policy::images::Glob| Image {
            glob: glob.as_str().to_owned(),
            patterns: glob.patterns().into_iter().map(str::to_owned).collect(),
        };
        Self {
            name: policy.name.clone(),
            digest: policy.digest.to_string(),
            mode: match policy.mode {
                Mode::Enforce => "enforce",
                Mode::Warn => "warn",
            },
            images: policy.images.iter().map(image).collect(),
            authorities: policy.authorities.iter().map(ShownAuthority::new).collect(),
            rego: policy.rule.as_ref().map(ShownRule::new),
        }
    }

    fn text(&self, file: &str) -> String {
        let mut text = format!("{} ({})\n  {}\n", escaped(&self.name), escaped(file), self.digest);
        // Writing into a String cannot fail.
        for Image { glob, patterns } in &self.images {
            let patterns: Vec<&String> = patterns.iter().filter(|pattern| *pattern != glob).collect();
            let means = patterns.iter().map(|pattern| format!(", which is `{}`", escaped(pattern))).collect::<String>();
            let every = if glob == "**" { ", every kit" } else { "" };
            _ = writeln!(text, "  matches `{}`{every}{means}", escaped(glob));
        }
        if self.mode == "warn" {
            _ = writeln!(text, "  only warns: it refuses nothing, and covers nothing by itself");
        }
        if self.authorities.iter().any(|authority| authority.kind == "fail") {
            _ = writeln!(text, "  refuses all of them, whoever signed");
        } else {
            let one = if self.authorities.len() > 1 { "one of these" } else { "this" };
            _ = writeln!(text, "  wants {one}:");
        }
        for authority in &self.authorities {
            authority.tell(&mut text);
        }
        if let Some(rule) = &self.rego {
            _ = writeln!(text, "  and over all that met them: `{}` is true, in Rego {}", rule.rule, rule.version);
        }
        text.push('\n');
        text
    }
}

impl ShownAuthority {
    fn new(authority: &Authority) -> Self {
        let identities = |keyless: &Keyless| keyless.identities.iter().map(ShownIdentity::new).collect();
        // Logs and timestamps are of the signer's root, where they name none.
        let of_signer = match &authority.signer {
            Signer::Keyless(keyless) => Place::new(&keyless.root, FULCIO, None),
            Signer::Key(_) | Signer::Static(_) => Place::new(&Witness::default(), FULCIO, None),
        };
        let beside = |witness: &Witness, public: &str| Place::new(witness, public, Some(&of_signer.trust_root));
        // A certificate is good for nothing without a log entry, whether the policy says so or not.
        let every_log = matches!(authority.signer, Signer::Keyless(_)).then(Witness::default);
        Self {
            name: authority.name.clone(),
            kind: match &authority.signer {
                Signer::Key(_) => "key",
                Signer::Keyless(_) => "keyless",
                Signer::Static(Action::Pass) => "pass",
                Signer::Static(Action::Fail) => "fail",
            },
            key: match &authority.signer {
                Signer::Key(key) => Some(ShownKey {
                    kind: match key.kind {
                        PemKind::PublicKey => "PUBLIC KEY",
                        PemKind::RsaPublicKey => "RSA PUBLIC KEY",
                    },
                    sha256: crate::digest::Digest::of(crate::digest::Algorithm::Sha256, &key.der).hex(),
                    hash: key.hash.map(|hash| hash.name()),
                }),
                Signer::Keyless(_) | Signer::Static(_) => None,
            },
            identities: match &authority.signer {
                Signer::Keyless(keyless) => identities(keyless),
                Signer::Key(_) | Signer::Static(_) => Vec::new(),
            },
            log: authority.log.as_ref().or(every_log.as_ref()).map(|witness| beside(witness, REKOR)),
            log_waivable: matches!(authority.signer, Signer::Keyless(_)) && authority.log.is_none() && authority.timestamp.is_some(),
            timestamp: authority.timestamp.as_ref().map(|witness| beside(witness, "")),
            keyless: matches!(authority.signer, Signer::Keyless(_)).then_some(of_signer),
            format: authority.format.map(Format::name),
            attestations: authority
                .attestations
                .iter()
                .map(|attestation| ShownAttestation {
                    name: attestation.name.clone(),
                    predicate_type: attestation.predicate_type.clone(),
                    rego: attestation.rule.as_ref().map(ShownRule::new),
                })
                .collect(),
            source: authority.source.as_ref().map(ToString::to_string),
        }
    }

    fn tell(&self, text: &mut String) {
        let mut line = |depth: usize, line: String| _ = writeln!(text, "{}{}", " ".repeat(depth), escaped(&line));
        let what = if self.attestations.is_empty() { "a signature" } else { "attestations" };
        match self.kind {
            "pass" => return line(4, format!("{}: nothing, if the registry itself says by TLS what the reference means", self.name)),
            "fail" => return line(4, format!("{}: `static.action: fail`", self.name)),
            "key" => line(4, format!("{}: {what} by a key", self.name)),
            _ => line(4, format!("{}: {what} by a certificate", self.name)),
        }
        if let Some(key) = &self.key {
            let hash = key.hash.map(|hash| format!(", with {hash} only")).unwrap_or_default();
            line(6, format!("{} of sha256:{}{hash}", key.kind, key.sha256));
        }
        for (position, identity) in self.identities.iter().enumerate() {
            let or = if position == 0 { "" } else { "or " };
            line(6, format!("{or}subject {}, issuer {}", identity.subject, identity.issuer));
        }
        if let Some(place) = &self.keyless {
            line(6, format!("from a CA of {}", place.text()));
        }
        for attestation in &self.attestations {
            line(6, format!("{}: {}", attestation.name, attestation.predicate_type));
            if let Some(rule) = &attestation.rego {
                line(8, format!("for each of them `{}` is true, in Rego {}", rule.rule, rule.version));
            }
        }
        match &self.log {
            Some(place) if self.log_waivable => {
                line(6, format!("with an entry in a log of {}, unless that root lists neither logs nor CT logs", place.text()));
            }
            Some(place) => line(6, format!("with an entry in a log of {}", place.text())),
            None => line(6, "with or without a log entry".to_owned()),
        }
        if let Some(place) = &self.timestamp {
            line(6, format!("with a timestamp by an authority of {}", place.text()));
        }
        if let Some(format) = self.format {
            line(6, format!("in the format `{format}`, and no other"));
        }
        if let Some(source) = &self.source {
            line(6, format!("looked for in {source}"));
        }
    }
}

/// Addresses of the public good's services, which name its trust root where nothing else does.
const FULCIO: &str = "https://fulcio.sigstore.dev";
const REKOR: &str = "https://rekor.sigstore.dev";

impl Place {
    /// Where a witness is looked for: in the root that it names, in another's, or in the one that `public` is the address of.
    fn new(witness: &Witness, public: &str, default: Option<&str>) -> Self {
        let named = witness.trust_root.as_deref().or(default).unwrap_or("trusted-root");
        let is_public = witness.trust_root.is_none() && witness.url.as_deref() == Some(public);
        Self { trust_root: named.to_owned(), otherwise: is_public.then_some("sigstore-public-good"), url: witness.url.clone() }
    }

    fn text(&self) -> String {
        let otherwise = self.otherwise.map(|root| format!(" (or, where there is none of that name, {root})")).unwrap_or_default();
        let url = self.url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default();
        format!("the trust root {}{otherwise}{url}", self.trust_root)
    }
}

impl ShownIdentity {
    fn new(identity: &Identity) -> Self {
        let is_expression = |wanted: &Matcher| matches!(wanted, Matcher::Pattern(_));
        Self {
            issuer: identity.issuer.as_str().to_owned(),
            issuer_is_expression: is_expression(&identity.issuer),
            subject: identity.subject.as_str().to_owned(),
            subject_is_expression: is_expression(&identity.subject),
        }
    }
}

impl ShownRule {
    fn new(rule: &Rule) -> Self {
        Self { rule: rule.dialect().rule(), version: rule.dialect().version() }
    }
}
