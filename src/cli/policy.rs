//! `kitfs policy check`: what policies match and want, without a kit.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::args::{Policy as Arguments, PolicyCheck, PolicyCommand};
use super::error::CliError;
use super::print;
use super::report::{self, Exit, escaped};
use crate::admission::roots::Roots;
use crate::admission::{Demand, DemandSigner, Host, RootPart, RuleError, RuleSet};
use crate::policy::authority::{Action, Authority, Format};
use crate::policy::rego::Rule;
use crate::policy::{Mode, Policy, Set};
use crate::signature::{Hash, Identity, Matcher, PublicKey};

pub(super) fn run(arguments: &Arguments) -> Result<Exit, CliError> {
    match &arguments.command {
        PolicyCommand::Check(arguments) => check(arguments),
    }
}

fn check(arguments: &PolicyCheck) -> Result<Exit, CliError> {
    let host = Host::this().roots().map_err(RuleError::from)?;
    let roots = Roots::of_caller(&arguments.trusted_root).map_err(RuleError::from)?.over(&host);
    let mut files = Vec::new();
    let mut exit = Exit::Done;
    for path in &arguments.files {
        match Set::of_files(&[path]).map_err(RuleError::from).and_then(|set| RuleSet::load(set, &roots)) {
            Ok(rules) => files.push(File::new(path, &rules)),
            // All of them are looked at, so that one run tells all that is wrong.
            Err(error) => exit = exit.max(report::error(&CliError::from(RuleError::File { path: path.clone(), source: Box::new(error) }))),
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
    /// No entry is wanted because the root of the signer lists neither logs nor CT logs.
    log_waived: bool,
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
    /// Of the key in DER.
    sha256: String,
    /// Why it is of a kind that is refused, so that nothing it signs counts.
    refused: Option<String>,
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
    /// The SHA-256 of its file.
    digest: String,
    /// Only those with this address.
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
    /// Whether it could read where the kit would be mounted, which nobody knows before.
    reads_mount_path: bool,
}

impl File {
    fn new(path: &Path, rules: &RuleSet) -> Self {
        let policies = rules.set().policies().iter().map(|policy| Shown::new(policy, rules.demands(policy)));
        Self { file: path.to_string_lossy().into_owned(), policies: policies.collect() }
    }

    fn text(&self) -> String {
        self.policies.iter().map(|policy| policy.text(&self.file)).collect()
    }
}

impl Shown {
    fn new(policy: &Policy, demands: &[Demand]) -> Self {
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
            authorities: policy.authorities.iter().zip(demands).map(|(authority, demand)| ShownAuthority::new(authority, demand)).collect(),
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
            _ = writeln!(text, "  and over all that met them: {}", rule.text());
        }
        text.push('\n');
        text
    }
}

impl ShownAuthority {
    fn new(authority: &Authority, demand: &Demand) -> Self {
        let key = |key: &PublicKey| ShownKey {
            sha256: key.fingerprint().hex(),
            refused: key.refused().map(str::to_owned),
            hash: key.hash().map(Hash::name),
        };
        let place = |part: &Option<RootPart>| part.as_ref().map(Place::new);
        Self {
            name: authority.name.clone(),
            kind: match &demand.signer {
                DemandSigner::Key(_) => "key",
                DemandSigner::Identities(_) => "keyless",
                DemandSigner::Static(Action::Pass) => "pass",
                DemandSigner::Static(Action::Fail) => "fail",
            },
            key: match &demand.signer {
                DemandSigner::Key(of_whom) => Some(key(of_whom)),
                DemandSigner::Identities(_) | DemandSigner::Static(_) => None,
            },
            identities: match &demand.signer {
                DemandSigner::Identities(identities) => identities.iter().map(ShownIdentity::new).collect(),
                DemandSigner::Key(_) | DemandSigner::Static(_) => Vec::new(),
            },
            log: place(&demand.sources.logs).filter(|_| demand.log),
            log_waived: demand.waives_log(),
            timestamp: place(&demand.sources.timestamps).filter(|_| demand.timestamp),
            keyless: place(&demand.sources.certificates),
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
            line(6, format!("sha256:{}{hash}", key.sha256));
            if let Some(why) = &key.refused {
                line(6, format!("whose signatures are all refused: {why}"));
            }
        }
        for (position, identity) in self.identities.iter().enumerate() {
            let or = if position == 0 { "" } else { "or " };
            let shown = |text: &str, is_expression| if is_expression { format!("/{text}/") } else { text.to_owned() };
            let subject = shown(&identity.subject, identity.subject_is_expression);
            let issuer = shown(&identity.issuer, identity.issuer_is_expression);
            line(6, format!("{or}subject {subject}, issuer {issuer}"));
        }
        if let Some(place) = &self.keyless {
            line(6, format!("from a CA of {}", place.text()));
        }
        for attestation in &self.attestations {
            line(6, format!("{}: {}", attestation.name, attestation.predicate_type));
            if let Some(rule) = &attestation.rego {
                line(8, format!("for each of them {}", rule.text()));
            }
        }
        match (&self.log, &self.keyless) {
            (Some(place), _) => line(6, format!("with an entry in a log of {}", place.text())),
            (None, Some(place)) => line(6, format!("no log: {} lists none, neither of signatures nor of certificates", place.text())),
            (None, None) => line(6, "no log: with or without an entry".to_owned()),
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

impl Place {
    fn new(part: &RootPart) -> Self {
        Self { trust_root: part.name.clone(), digest: part.digest.to_string(), url: part.url.clone() }
    }

    fn text(&self) -> String {
        let url = self.url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default();
        format!("the trust root {}{url} ({})", self.trust_root, self.digest)
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
        let dialect = rule.dialect();
        Self { rule: dialect.rule(), version: dialect.version(), reads_mount_path: rule.reads_mount_path() }
    }

    fn text(&self) -> String {
        let path = if self.reads_mount_path { "; it may read where the kit is mounted" } else { "" };
        format!("`{}` is true, in Rego {}{path}", self.rule, self.version)
    }
}
