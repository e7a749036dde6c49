//! Trusted roots: whose certificates, log entries and timestamps are believed, and for which times.
//!
//! A root comes from a file of the host or the caller, or is one of the two that `sigstore-verify` brings along. Never from a kit, a
//! registry or the cache.

use jiff::Timestamp;
use sigstore_crypto::VerificationKey;
use sigstore_verify::Verifier;
use sigstore_verify::trust_root::{SigstoreInstance, TransparencyLog, TrustedRoot as Parsed};
use sigstore_verify::types::{TimeRange, TsaAuthority};

use super::log::moment;
use crate::digest::{Algorithm, Digest};
use crate::json::{Json, JsonError};
use crate::limits;

/// The names of the roots that are built in, and used only when they are named.
pub const BUILT_IN: [&str; 2] = ["sigstore-public-good", "github"];

const MEDIA_TYPES: [&str; 3] = [
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot+json;version=0.2",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];

/// A trusted root with nobody in it.
const EMPTY: &str = r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}"#;

/// A trusted root, ready to verify with.
pub struct TrustedRoot {
    digest: Digest,
    parsed: Parsed,
    /// Without the windows of logs, which [`super::judge`] applies to every time of a candidate.
    verifier: Verifier,
    timestamp_authorities: Vec<TsaAuthority>,
}

/// Why a file is no trusted root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is larger than any trusted root.
    #[error("a trusted root has at most {limit} bytes, this has {0}", limit = limits::TRUSTED_ROOT_BYTES)]
    Size(u64),
    /// It is no JSON, or has a member twice.
    #[error("not a trusted root")]
    Json(#[from] JsonError),
    /// It has a member that the format does not have.
    #[error("`{0}` is no member of a trusted root")]
    UnknownMember(String),
    /// It is JSON of another sort.
    #[error("not a trusted root")]
    Form(#[source] sigstore_verify::trust_root::Error),
    /// Another document, or a version that is not known.
    #[error("`mediaType` is `{0}`, which is no trusted root that is known")]
    MediaType(String),
    /// A key, a certificate or a window in it cannot be used.
    #[error("the trusted root cannot be used")]
    Unusable(#[source] Box<sigstore_verify::Error>),
    /// It was to be narrowed to an address that nobody in it has.
    #[error("it has no {} at {address}", role.name())]
    Address {
        /// Who was looked for.
        role: Role,
        /// Where.
        address: String,
    },
}

/// A trusted root, of which those of one sort are meant: all, or those with one address.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The root.
    pub root: &'a TrustedRoot,
    /// The address, if it matters. A slash at its end does not.
    pub address: Option<&'a str>,
}

/// What somebody in a trusted root is believed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Issues certificates to signers.
    CertificateAuthority,
    /// Promises to log those certificates.
    CertificateLog,
    /// Logs signatures.
    Log,
    /// Signs the time.
    TimestampAuthority,
}

/// Somebody in a trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// What it is believed for.
    pub role: Role,
    /// Its address, as the root has it.
    pub address: String,
    /// When what it says begins to count; `None`: it always did.
    pub start: Option<Timestamp>,
    /// When it ceases to; `None`: not yet.
    pub end: Option<Timestamp>,
}

impl Role {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::CertificateAuthority => "certificate authority",
            Self::CertificateLog => "certificate log",
            Self::Log => "transparency log",
            Self::TimestampAuthority => "timestamp authority",
        }
    }
}

impl Authority {
    /// Whether what it says at `now` counts.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.start.is_none_or(|start| start <= now) && self.end.is_none_or(|end| now <= end)
    }
}

impl std::fmt::Debug for TrustedRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustedRoot").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl TrustedRoot {
    /// Reads a `trusted_root.json`.
    pub fn read(bytes: &[u8]) -> Result<Self, RootError> {
        if bytes.len() as u64 > limits::TRUSTED_ROOT_BYTES {
            return Err(RootError::Size(bytes.len() as u64));
        }
        // For what the typed reader lets pass: members that stand there twice, and those that it does not know.
        check_members(&Json::parse(bytes)?)?;
        let parsed = Parsed::from_json(&String::from_utf8_lossy(bytes)).map_err(RootError::Form)?;
        if !MEDIA_TYPES.contains(&parsed.media_type.as_str()) {
            return Err(RootError::MediaType(parsed.media_type));
        }
        Self::of(Digest::of(Algorithm::Sha256, bytes), parsed)
    }

    fn of(digest: Digest, parsed: Parsed) -> Result<Self, RootError> {
        // With all windows first, so that one that ends before it begins is found.
        verifier(&parsed)?;
        let mut unbounded = parsed.clone();
        unbounded.tlogs.iter_mut().for_each(|log| log.public_key.valid_for = None);
        let timestamp_authorities = timestamp_authorities(&parsed);
        Ok(Self { digest, verifier: verifier(&unbounded)?, timestamp_authorities, parsed })
    }

    /// A root with the certificate authorities and certificate logs of one, the logs of another and the timestamp authorities of a third. An
    /// address narrows the certificate authorities, the logs and the timestamp authorities; certificate logs are elsewhere than the authority
    /// whose certificates they log.
    pub fn composed(certificates: Option<Part<'_>>, logs: Option<Part<'_>>, timestamps: Option<Part<'_>>) -> Result<Self, RootError> {
        let mut parsed = Parsed::from_json(EMPTY).map_err(RootError::Form)?;
        if let Some(part) = certificates {
            let all = &part.root.parsed.certificate_authorities;
            parsed.certificate_authorities = part.narrowed(Role::CertificateAuthority, all, |authority| Some(&authority.uri))?;
            parsed.ctlogs.clone_from(&part.root.parsed.ctlogs);
        }
        if let Some(part) = logs {
            parsed.tlogs = part.narrowed(Role::Log, &part.root.parsed.tlogs, |log| Some(&log.base_url))?;
        }
        if let Some(part) = timestamps {
            let all = &part.root.parsed.timestamp_authorities;
            parsed.timestamp_authorities = part.narrowed(Role::TimestampAuthority, all, |authority| authority.uri.as_ref())?;
        }
        let bytes = serde_json::to_vec(&parsed).unwrap_or_default();
        Self::of(Digest::of(Algorithm::Sha256, &bytes), parsed)
    }

    /// The root that is built in under `name`, if there is one.
    pub fn built_in(name: &str) -> Option<Self> {
        let instance = match name {
            "sigstore-public-good" => SigstoreInstance::PublicGood,
            "github" => SigstoreInstance::GitHub,
            _ => return None,
        };
        let root = Self::read(instance.embedded_trusted_root_json().as_bytes());
        Some(root.expect("the crate's own data, which a test reads"))
    }

    /// The SHA-256 of the file; of a composed one, which has none, that of what is in it.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Everybody in it.
    pub fn authorities(&self) -> Vec<Authority> {
        let authority = |role, address: &str, window: Option<TimeRange>| Authority {
            role,
            address: address.to_owned(),
            start: window.map(|window| moment(window.start)),
            end: window.and_then(|window| window.end).map(moment),
        };
        let Parsed { certificate_authorities, ctlogs, tlogs, timestamp_authorities, .. } = &self.parsed;
        let mut all = Vec::new();
        all.extend(certificate_authorities.iter().map(|it| authority(Role::CertificateAuthority, &it.uri, it.valid_for)));
        all.extend(ctlogs.iter().map(|it| authority(Role::CertificateLog, &it.base_url, it.public_key.valid_for)));
        all.extend(tlogs.iter().map(|it| authority(Role::Log, &it.base_url, it.public_key.valid_for)));
        let address = |uri: &Option<String>| uri.clone().unwrap_or_default();
        all.extend(timestamp_authorities.iter().map(|it| authority(Role::TimestampAuthority, &address(&it.uri), it.valid_for)));
        all
    }

    /// True for a root of an instance that logs nothing, such as GitHub's own: neither signatures nor certificates.
    pub fn logs_nothing(&self) -> bool {
        self.parsed.tlogs.is_empty() && self.parsed.ctlogs.is_empty()
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    pub(super) fn timestamp_authorities(&self) -> &[TsaAuthority] {
        &self.timestamp_authorities
    }

    /// The log with that key id.
    pub(super) fn log(&self, id: &[u8]) -> Option<&TransparencyLog> {
        self.parsed.tlogs.iter().find(|log| log.log_id.key_id.as_bytes() == id)
    }

    /// The same without any window, to tell somebody unknown from somebody at the wrong time. It decides nothing.
    pub(super) fn without_windows(&self) -> Result<Verifier, RootError> {
        let mut parsed = self.parsed.clone();
        parsed.certificate_authorities.iter_mut().for_each(|authority| authority.valid_for = None);
        parsed.ctlogs.iter_mut().for_each(|log| log.public_key.valid_for = None);
        parsed.tlogs.iter_mut().for_each(|log| log.public_key.valid_for = None);
        verifier(&parsed)
    }
}

/// The members of a trusted root. Its media types say which version it is, so that there are no others: one that is passed over could be a limit.
const MEMBERS: [&str; 5] = ["mediaType", "tlogs", "certificateAuthorities", "ctlogs", "timestampAuthorities"];
const LOG_MEMBERS: [&str; 6] = ["baseUrl", "hashAlgorithm", "publicKey", "logId", "checkpointKeyId", "operator"];
const AUTHORITY_MEMBERS: [&str; 5] = ["subject", "uri", "certChain", "validFor", "operator"];

/// The members that may stand below a member.
fn members_below(member: &str) -> &'static [&'static str] {
    match member {
        "" => &MEMBERS,
        "tlogs" | "ctlogs" => &LOG_MEMBERS,
        "certificateAuthorities" | "timestampAuthorities" => &AUTHORITY_MEMBERS,
        "publicKey" => &["rawBytes", "keyDetails", "validFor"],
        "logId" | "checkpointKeyId" => &["keyId"],
        "subject" => &["organization", "commonName"],
        "certChain" => &["certificates"],
        "certificates" => &["rawBytes"],
        "validFor" => &["start", "end"],
        _ => &[],
    }
}

/// Refuses members that the format does not have.
fn check_members(document: &Json) -> Result<(), RootError> {
    let mut ahead = vec![(String::new(), "", document)];
    while let Some((path, member, value)) = ahead.pop() {
        match value {
            Json::Object(entries) => {
                for (name, value) in entries {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    let Some(known) = members_below(member).iter().find(|known| *known == name) else {
                        return Err(RootError::UnknownMember(path));
                    };
                    ahead.push((path, known, value));
                }
            }
            Json::Array(items) => {
                ahead.extend(items.iter().enumerate().map(|(position, item)| (format!("{path}[{position}]"), member, item)));
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
    Ok(())
}

impl Part<'_> {
    fn narrowed<T: Clone>(&self, role: Role, all: &[T], address_of: impl Fn(&T) -> Option<&String>) -> Result<Vec<T>, RootError> {
        let Some(wanted) = self.address else { return Ok(all.to_vec()) };
        let bare = |address: &str| address.strip_suffix('/').unwrap_or(address).to_owned();
        let meant = |entry: &&T| address_of(entry).is_some_and(|address| bare(address) == bare(wanted));
        let narrowed: Vec<T> = all.iter().filter(meant).cloned().collect();
        if narrowed.is_empty() { Err(RootError::Address { role, address: wanted.to_owned() }) } else { Ok(narrowed) }
    }
}

fn verifier(parsed: &Parsed) -> Result<Verifier, RootError> {
    Verifier::new(parsed).map_err(|error| RootError::Unusable(Box::new(error)))
}

/// All of them with their windows: also those that have not begun, since what they sign has a time.
fn timestamp_authorities(parsed: &Parsed) -> Vec<TsaAuthority> {
    let chains = parsed.timestamp_authorities.iter().map(|authority| (&authority.cert_chain.certificates, authority.valid_for));
    let authority = |(chain, window): (&Vec<sigstore_verify::trust_root::trusted_root::CertificateEntry>, Option<TimeRange>)| {
        let leaf = chain.first()?.raw_bytes.clone();
        let root = chain.last()?.raw_bytes.clone();
        let between = chain.get(1..chain.len().saturating_sub(1)).unwrap_or_default();
        Some(TsaAuthority::new(leaf, between.iter().map(|entry| entry.raw_bytes.clone()).collect(), root, window))
    };
    chains.filter_map(authority).collect()
}

/// The key of a log.
pub(super) fn key_of(log: &TransparencyLog) -> Option<VerificationKey> {
    VerificationKey::from_spki(&log.public_key.raw_bytes).ok()
}
