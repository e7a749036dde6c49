//! Who signed, as a certificate says it, and who was wanted.

use jiff::Timestamp;
use sigstore_crypto::{FulcioCiClaims, parse_certificate_info};
use sigstore_verify::types::DerCertificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, oid::AssociatedOid as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::expression::{Expression, ExpressionError};
use super::key::PublicKey;
use super::log::moment;
use super::reason::{Denial, Reason};

/// The extension with the promises of certificate logs (RFC 6962).
const SCT_LIST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2");

/// Who a certificate must have been issued to, and by whose word.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The subject: an e-mail address or a URI.
    pub subject: Matcher,
    /// The OIDC issuer.
    pub issuer: Matcher,
}

/// What a text must be. Nothing is nothing that could be wanted.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// Exactly this.
    Exact(String),
    /// Something that a regular expression matches as a whole.
    Pattern(Expression),
}

impl Matcher {
    /// A regular expression, which has to match the whole of a text.
    pub fn pattern(text: &str) -> Result<Self, ExpressionError> {
        Expression::new(text).map(Self::Pattern)
    }

    /// Whether `text` is what is wanted.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => !text.is_empty() && text == wanted,
            Self::Pattern(expression) => expression.matches(text),
        }
    }

    /// The text or the expression, as it was written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Exact(text) => text,
            Self::Pattern(expression) => expression.as_str(),
        }
    }
}

impl std::fmt::Display for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Pattern(expression) => write!(f, "what matches {}", expression.as_str()),
        }
    }
}

/// What a signing certificate claims. Nobody has verified it yet where it was only read.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The one e-mail address or URI that it was issued to.
    pub subject: String,
    /// The OIDC issuer; empty if it names none.
    pub issuer: String,
    /// When its life began.
    pub not_before: Timestamp,
    /// When it ended.
    pub not_after: Timestamp,
    /// What Fulcio says of the build that it was issued to.
    pub claims: FulcioCiClaims,
}

/// A certificate and what of it only verification needs.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) certificate: Certificate,
    pub(super) key: PublicKey,
    /// Why it has no subject that could be compared.
    pub(super) san: Result<(), Denial>,
    pub(super) has_sct: bool,
}

/// Reads a certificate.
pub(super) fn read(der: &DerCertificate) -> Result<Read, Denial> {
    let unreadable = |error: &dyn std::fmt::Display| Denial::new(Reason::UntrustedCa, format!("the certificate cannot be read: {error}"));
    let parsed = x509_cert::Certificate::from_der(der.as_bytes()).map_err(|error| unreadable(&error))?;
    let tbs = &parsed.tbs_certificate;
    let spki = x509_cert::der::Encode::to_der(&tbs.subject_public_key_info).map_err(|error| unreadable(&error))?;
    let key = PublicKey::from_spki(spki.into()).map_err(|error| unreadable(&error))?;
    if let Err(why) = key.kind() {
        return Denial::because(Reason::KeyType, format!("the certificate is for a key that is refused: {why}"));
    }
    let info = parse_certificate_info(der).map_err(|error| unreadable(&error))?;
    let extensions = tbs.extensions.as_deref().unwrap_or_default();
    let of = |oid| extensions.iter().filter(move |extension| extension.extn_id == oid);
    let (subject, san) = match of(SubjectAltName::OID).map(|found| SubjectAltName::from_der(found.extn_value.as_bytes())).collect() {
        Ok(names) => match subject(names) {
            Ok(subject) => (subject, Ok(())),
            Err(denial) => (String::new(), Err(denial)),
        },
        Err(error) => return Err(unreadable(&error)),
    };
    Ok(Read {
        certificate: Certificate {
            subject,
            issuer: info.issuer.unwrap_or_default(),
            not_before: moment(info.not_before),
            not_after: moment(info.not_after),
            claims: info.ci_claims,
        },
        key,
        san,
        has_sct: of(SCT_LIST).next().is_some(),
    })
}

/// The one name of a certificate. Fulcio gives it exactly one; of several each reader could take another.
fn subject(names: Vec<SubjectAltName>) -> Result<String, Denial> {
    let names: Vec<GeneralName> = names.into_iter().flat_map(|names| names.0).collect();
    match names.as_slice() {
        [GeneralName::Rfc822Name(name)] => Ok(name.to_string()),
        [GeneralName::UniformResourceIdentifier(name)] => Ok(name.to_string()),
        [_] => Denial::because(Reason::SanType, "the certificate's subject is neither an e-mail address nor a URI"),
        names => Denial::because(
            Reason::SanType,
            format!("a certificate must name one subject, an e-mail address or a URI; it names {}", names.len()),
        ),
    }
}

/// Whether a certificate was issued to one of the wanted ones. If not, it is said what is wrong with the one that comes closest.
pub(super) fn check_any(identities: &[Identity], read: &Read) -> Result<(), Denial> {
    let mut nearest: Option<Denial> = None;
    for identity in identities {
        let Err(denial) = identity.check(read) else { return Ok(()) };
        match &mut nearest {
            Some(nearest) if nearest.reason == Reason::WrongIdentity && denial.reason == Reason::WrongIssuer => *nearest = denial,
            Some(nearest) if nearest.reason == denial.reason && denial.reason == Reason::WrongIdentity => {
                nearest.message = format!("{}, or {}", nearest.message, identity.subject);
            }
            Some(_) => {}
            None => nearest = Some(denial),
        }
    }
    Err(nearest.unwrap_or_else(|| Denial::new(Reason::WrongIdentity, "nobody is wanted")))
}

impl Identity {
    /// Whether a certificate was issued to the wanted one.
    pub(super) fn check(&self, read: &Read) -> Result<(), Denial> {
        read.san.clone()?;
        let Certificate { subject, issuer, .. } = &read.certificate;
        if !self.subject.matches(subject) {
            return Denial::because(Reason::WrongIdentity, format!("signed by {subject}, wanted is {}", self.subject));
        }
        if !self.issuer.matches(issuer) {
            let message = format!("{subject} was vouched for by `{issuer}`, wanted is {}", self.issuer);
            return Denial::because(Reason::WrongIssuer, message);
        }
        Ok(())
    }
}
