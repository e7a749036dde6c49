//! Policies as they are written: `ClusterImagePolicy` documents, of which kitfs reads a part and refuses the rest by name.
//!
//! A field that is not read would be a demand that is not made, so there is none that is passed over. What is given and empty is an error,
//! too: whoever writes a list of nothing meant something else.

use std::collections::BTreeSet;

use super::authority::{Action, Attestation, Authority, Format, Key, Keyless, Signer, Witness, predicate_type};
use super::images::{Glob, GlobError};
use super::name::{Name, NameError};
use super::rego::{Place, RegoError, Rule};
use super::yaml::{self, Node, Value, YamlError};
use crate::digest::{Algorithm, Digest};
use crate::limits;
use crate::signature::{ExpressionError, Hash, Identity, Matcher, PemError, PemKey};

/// One policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What `metadata.name` says, or else what it was made of.
    pub name: String,
    /// The SHA-256 of its bytes: of the whole file where it is the only one in it, else of its part.
    pub digest: Digest,
    /// Whether it refuses, or only says that it would.
    pub mode: Mode,
    /// Which kits it is about: those that one of these matches.
    pub images: Vec<Glob>,
    /// Who has to have signed; one of them is enough.
    pub authorities: Vec<Authority>,
    /// What has to hold for all that met an authority.
    pub rule: Option<Rule>,
}

/// What becomes of a kit that does not meet a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    Enforce,
    /// It is said that it would be.
    Warn,
}

/// Why a file is no file of policies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is too large.
    #[error("more than {limit} bytes", limit = limits::POLICY_BYTES)]
    TooLarge,
    /// It is no text.
    #[error("not in UTF-8, which YAML is written in here")]
    NotText,
    /// It is no YAML, or not of a kind that a policy may be.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// There is nothing in it.
    #[error("there is no policy in it")]
    Nothing,
    /// A field is wrong.
    #[error("line {line}: {field}")]
    Field {
        /// Where.
        line: usize,
        /// Which: `spec.authorities[0].key.data`.
        field: String,
        /// What is wrong with it.
        #[source]
        source: FieldError,
    },
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// kitfs does not read it.
    #[error("kitfs does not read this field, and passes over none; here it reads {0}")]
    Unknown(String),
    /// It is not there.
    #[error("it is required")]
    Missing,
    /// It is given and empty.
    #[error("it is given and empty")]
    Empty,
    /// It is something else than a text, a list or a mapping.
    #[error("{0} was expected")]
    Kind(&'static str),
    /// It has a value that it cannot have.
    #[error("`{found}` is not known here; {known} can stand here")]
    Value {
        /// What stands there.
        found: String,
        /// What may.
        known: String,
    },
    /// There is not exactly one of several.
    #[error("exactly one of {0} was expected")]
    OneOf(&'static str),
    /// It has not exactly one entry.
    #[error("exactly one entry was expected")]
    OneEntry,
    /// Another has this name.
    #[error("`{0}` is the name of another one, too")]
    SameName(String),
    /// It cannot stand beside `static`.
    #[error("`static` stands alone: there can be no `{0}` beside it")]
    BesideStatic(&'static str),
    /// `static: pass` would let in whatever has any name, or none.
    #[error("`static.action: pass` cannot stand in a policy for `**`, every kit")]
    PassForAll,
    /// It is no name of a trust root.
    #[error("`{0}` is no name of a trust root (letters, digits, `.`, `_` and `-`, not starting with `.`)")]
    RootName(String),
    /// It is no address.
    #[error("`{0}` is no address: `https://HOST…` was expected")]
    Address(String),
    /// It is neither a URI nor one of cosign's names.
    #[error("`{0}` is no predicate type: a URI or one of cosign's short names was expected")]
    PredicateType(String),
    /// It is no glob.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// It is no expression.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// It is no key.
    #[error(transparent)]
    Key(#[from] PemError),
    /// It is no repository.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is no rule.
    #[error(transparent)]
    Rego(#[from] RegoError),
}

/// Reads the policies of a file. `origin` names those that have no name.
pub fn policies(bytes: &[u8], origin: &str) -> Result<Vec<Policy>, DocumentError> {
    if bytes.len() as u64 > limits::POLICY_BYTES {
        return Err(DocumentError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| DocumentError::NotText)?;
    let documents = yaml::documents(text)?;
    if documents.is_empty() {
        return Err(DocumentError::Nothing);
    }
    let policies = documents.iter().enumerate().map(|(number, document)| {
        let digest = Digest::of(Algorithm::Sha256, &bytes[document.text.clone()]);
        policy(&Field { path: String::new(), node: &document.root }, digest, || format!("{origin}#{}", number + 1))
    });
    policies.collect()
}

/// A value, and how one gets to it.
struct Field<'n> {
    path: String,
    node: &'n Node,
}

/// The members of a mapping.
struct Members<'n> {
    of: Field<'n>,
    entries: &'n [(String, Node)],
}

impl<'n> Field<'n> {
    fn error(&self, source: impl Into<FieldError>) -> DocumentError {
        let field = if self.path.is_empty() { "the document".to_owned() } else { self.path.clone() };
        DocumentError::Field { line: self.node.line, field, source: source.into() }
    }

    fn text(&self) -> Result<&'n str, DocumentError> {
        match &self.node.value {
            Value::Text(text) if !text.is_empty() => Ok(text),
            Value::Text(_) | Value::Null => Err(self.error(FieldError::Empty)),
            Value::List(_) | Value::Mapping(_) => Err(self.error(FieldError::Kind("a text"))),
        }
    }

    /// One of several words.
    fn word<T: Copy>(&self, known: &[(&str, T)]) -> Result<T, DocumentError> {
        let text = self.text()?;
        let found = known.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let known = known.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ");
            self.error(FieldError::Value { found: text.to_owned(), known })
        })
    }

    fn entries(&self) -> Result<Vec<Self>, DocumentError> {
        match &self.node.value {
            Value::List(items) if !items.is_empty() => {
                let entry = |(position, node)| Self { path: format!("{}[{position}]", self.path), node };
                Ok(items.iter().enumerate().map(entry).collect())
            }
            Value::List(_) | Value::Null => Err(self.error(FieldError::Empty)),
            Value::Text(_) | Value::Mapping(_) => Err(self.error(FieldError::Kind("a list"))),
        }
    }

    /// A mapping that has no other members than the known ones. Given and empty it is one without members.
    fn members(self, known: &[&str]) -> Result<Members<'n>, DocumentError> {
        let members = self.any_members()?;
        if let Some((name, node)) = members.entries.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(Self { path: members.path(name), node }.error(FieldError::Unknown(known)));
        }
        Ok(members)
    }

    fn any_members(self) -> Result<Members<'n>, DocumentError> {
        match &self.node.value {
            Value::Mapping(entries) => Ok(Members { entries, of: self }),
            Value::Null => Ok(Members { entries: &[], of: self }),
            Value::Text(_) | Value::List(_) => Err(self.error(FieldError::Kind("a mapping"))),
        }
    }
}

impl<'n> Members<'n> {
    fn path(&self, name: &str) -> String {
        if self.of.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.of.path) }
    }

    fn get(&self, name: &str) -> Option<Field<'n>> {
        let (_, node) = self.entries.iter().find(|(key, _)| key == name)?;
        Some(Field { path: self.path(name), node })
    }

    fn required(&self, name: &str) -> Result<Field<'n>, DocumentError> {
        self.get(name).ok_or_else(|| Field { path: self.path(name), node: self.of.node }.error(FieldError::Missing))
    }

    fn text(&self, name: &str) -> Result<Option<&'n str>, DocumentError> {
        self.get(name).map(|field| field.text()).transpose()
    }
}

fn policy(document: &Field<'_>, digest: Digest, origin: impl Fn() -> String) -> Result<Policy, DocumentError> {
    let document = Field { path: String::new(), node: document.node };
    let document = document.members(&["apiVersion", "kind", "metadata", "spec"])?;
    document.required("apiVersion")?.word(&[("policy.sigstore.dev/v1beta1", ()), ("policy.sigstore.dev/v1alpha1", ())])?;
    document.required("kind")?.word(&[("ClusterImagePolicy", ())])?;
    let metadata = document.get("metadata").map(Field::any_members).transpose()?;
    let name = metadata.map(|metadata| metadata.text("name").map(|name| name.map(str::to_owned))).transpose()?.flatten();
    let spec = document.required("spec")?.members(&["images", "mode", "authorities", "policy"])?;
    let images = spec.required("images")?.entries()?.into_iter().map(|image| {
        let glob = image.members(&["glob"])?.required("glob")?;
        Glob::new(glob.text()?).map_err(|error| glob.error(error))
    });
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let mode = spec.get("mode").map(|mode| mode.word(&[("enforce", Mode::Enforce), ("warn", Mode::Warn)])).transpose()?;
    let mut names = BTreeSet::new();
    let mut authorities = Vec::new();
    for (position, field) in spec.required("authorities")?.entries()?.into_iter().enumerate() {
        let (path, node) = (field.path.clone(), field.node);
        let authority = authority(field, position)?;
        let field = Field { path, node };
        if matches!(authority.signer, Signer::Static(Action::Pass)) && images.iter().any(Glob::is_everything) {
            return Err(field.error(FieldError::PassForAll));
        }
        if !names.insert(authority.name.clone()) {
            return Err(field.error(FieldError::SameName(authority.name)));
        }
        authorities.push(authority);
    }
    let rule = spec.get("policy").map(|field| rule(field, Place::Policy)).transpose()?;
    Ok(Policy { name: name.unwrap_or_else(origin), digest, mode: mode.unwrap_or(Mode::Enforce), images, authorities, rule })
}

/// What an authority may have beside its signer.
const BESIDE: [&str; 5] = ["ctlog", "rfc3161timestamp", "signatureFormat", "attestations", "source"];

fn authority(field: Field<'_>, position: usize) -> Result<Authority, DocumentError> {
    let known: Vec<&str> = ["name", "key", "keyless", "static"].into_iter().chain(BESIDE).collect();
    let authority = field.members(&known)?;
    let signer = match (authority.get("key"), authority.get("keyless"), authority.get("static")) {
        (Some(field), None, None) => Signer::Key(key(field)?),
        (None, Some(field), None) => Signer::Keyless(keyless(field)?),
        (None, None, Some(field)) => {
            let fields = field.members(&["action"])?;
            if let Some(other) = BESIDE.into_iter().find(|name| authority.get(name).is_some()) {
                return Err(authority.of.error(FieldError::BesideStatic(other)));
            }
            Signer::Static(fields.required("action")?.word(&Action::NAMES)?)
        }
        _ => return Err(authority.of.error(FieldError::OneOf("`key`, `keyless` and `static`"))),
    };
    let attestations = match authority.get("attestations") {
        Some(list) => {
            list.entries()?.into_iter().enumerate().map(|(position, field)| attestation(field, position)).collect::<Result<_, _>>()?
        }
        None => Vec::new(),
    };
    Ok(Authority {
        name: authority.text("name")?.map_or_else(|| format!("authority-{position}"), str::to_owned),
        signer,
        log: authority.get("ctlog").map(witness).transpose()?,
        timestamp: authority.get("rfc3161timestamp").map(witness).transpose()?,
        format: authority.get("signatureFormat").map(|format| format.word(&Format::NAMES)).transpose()?,
        attestations,
        source: authority.get("source").map(source).transpose()?,
        annotations: Default::default(),
    })
}

fn key(field: Field<'_>) -> Result<Key, DocumentError> {
    let members = field.members(&["data", "hashAlgorithm"])?;
    let data = members.required("data")?;
    let hash = members.get("hashAlgorithm").map(|hash| hash.word(&Hash::NAMES)).transpose()?;
    let pem = PemKey::read(data.text()?).map_err(|error| data.error(error))?;
    Ok(Key { pem, hash })
}

fn keyless(field: Field<'_>) -> Result<Keyless, DocumentError> {
    let members = field.members(&["identities", "trustRootRef", "url"])?;
    let identities = members.required("identities")?.entries()?.into_iter().map(|field| -> Result<_, DocumentError> {
        let identity = field.members(&["issuer", "issuerRegExp", "subject", "subjectRegExp"])?;
        let issuer = wanted(&identity, "issuer", "issuerRegExp", "`issuer` and `issuerRegExp`")?;
        Ok(Identity { issuer, subject: wanted(&identity, "subject", "subjectRegExp", "`subject` and `subjectRegExp`")? })
    });
    Ok(Keyless { identities: identities.collect::<Result<_, _>>()?, root: in_root(&members)? })
}

fn wanted(identity: &Members<'_>, exact: &str, expression: &str, both: &'static str) -> Result<Matcher, DocumentError> {
    match (identity.get(exact), identity.get(expression)) {
        (Some(field), None) => Ok(Matcher::Exact(field.text()?.to_owned())),
        (None, Some(field)) => Matcher::pattern(field.text()?).map_err(|error| field.error(error)),
        _ => Err(identity.of.error(FieldError::OneOf(both))),
    }
}

fn witness(field: Field<'_>) -> Result<Witness, DocumentError> {
    in_root(&field.members(&["url", "trustRootRef"])?)
}

fn in_root(members: &Members<'_>) -> Result<Witness, DocumentError> {
    let trust_root = members.get("trustRootRef").map(|field| {
        let name = field.text()?;
        let known = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if name.starts_with('.') || !name.chars().all(known) {
            return Err(field.error(FieldError::RootName(name.to_owned())));
        }
        Ok(name.to_owned())
    });
    let url = members.get("url").map(|field| {
        let text = field.text()?;
        let address: Option<http::Uri> = text.parse().ok();
        if !address.is_some_and(|address| matches!(address.scheme_str(), Some("https" | "http")) && address.host().is_some()) {
            return Err(field.error(FieldError::Address(text.to_owned())));
        }
        Ok(text.strip_suffix('/').unwrap_or(text).to_owned())
    });
    Ok(Witness { trust_root: trust_root.transpose()?, url: url.transpose()? })
}

fn attestation(field: Field<'_>, position: usize) -> Result<Attestation, DocumentError> {
    let members = field.members(&["name", "predicateType", "policy"])?;
    let wanted = members.required("predicateType")?;
    let text = wanted.text()?;
    Ok(Attestation {
        name: members.text("name")?.map_or_else(|| format!("attestation-{position}"), str::to_owned),
        predicate_type: predicate_type(text).ok_or_else(|| wanted.error(FieldError::PredicateType(text.to_owned())))?,
        rule: members.get("policy").map(|field| rule(field, Place::Attestation)).transpose()?,
    })
}

fn rule(field: Field<'_>, place: Place) -> Result<Rule, DocumentError> {
    let members = field.members(&["type", "data"])?;
    members.required("type")?.word(&[("rego", ())])?;
    let data = members.required("data")?;
    Rule::compile(place, data.text()?).map_err(|error| data.error(error))
}

fn source(field: Field<'_>) -> Result<Name, DocumentError> {
    let entries = field.entries()?;
    let mut entries = entries.into_iter();
    let (Some(entry), None) = (entries.next(), entries.next()) else { return Err(field.error(FieldError::OneEntry)) };
    let oci = entry.members(&["oci"])?.required("oci")?;
    Name::of_repository(oci.text()?).map_err(|error| oci.error(error))
}

#[cfg(test)]
mod tests;
