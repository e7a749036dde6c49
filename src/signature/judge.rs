//! The judge: may this bundle be believed, and what does it say?

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sigstore_crypto::{sha384, sha512, verify_signature_prehashed};
use sigstore_verify::bundle::Error as BundleError;
use sigstore_verify::types::bundle::{MediaType, MessageSignature, TransparencyLogEntry, VerificationMaterialContent};
use sigstore_verify::types::{Artifact, Bundle, HashAlgorithm, Sha256Hash, SignatureBytes, SignatureContent};
use sigstore_verify::{CertificateError, Error, PublicKeyVerificationPolicy, TimestampError, TransparencyLogError, VerificationPolicy};

use super::bundle;
use super::identity::{self, Certificate, Identity, Read};
use super::key::{Kind, PublicKey, Scheme};
use super::legacy::{self, Layer, LayerKind, Payload};
use super::log::{self, Proof};
use super::reason::{Denial, Reason};
use super::statement::{self, Statement};
use super::trusted_root::TrustedRoot;
use crate::digest::{Algorithm, Digest};
use crate::limits;

/// What a bundle has to be about.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its bytes, which must have that digest. Only some signatures over bytes of their own need them.
    pub artifact: Option<&'a [u8]>,
}

/// What is wanted of a bundle.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// Who must have signed.
    pub signer: Signer<'a>,
    /// What it has to say.
    pub content: Content<'a>,
    /// Whether a log entry is wanted. For a certificate one is, unless the trusted root knows no logs and `timestamp` is wanted.
    pub log: bool,
    /// Whether a timestamp is wanted.
    pub timestamp: bool,
    /// Which bundles are taken.
    pub forms: Forms,
}

/// Who must have signed.
#[derive(Debug, Clone, Copy)]
pub enum Signer<'a> {
    /// The owner of this key.
    Key(&'a PublicKey),
    /// Somebody with a certificate for this identity.
    Identity(&'a Identity),
    /// Somebody with a certificate for one of these.
    AnyOf(&'a [Identity]),
}

/// What a bundle has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// That somebody signed, and nothing else: Cosign's signature.
    Signature,
    /// A statement with a predicate of this type.
    Attestation(&'a str),
    /// Whatever it says.
    Anything,
}

/// Which bundles are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forms {
    /// What is attached to a kit: v0.3 with a DSSE envelope.
    Attached,
    /// v0.1 and v0.2, and signatures over bytes, too.
    All,
}

/// What a bundle says that may be believed.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Who signed.
    pub signer: SignedBy,
    /// The authenticated times by which it was signed.
    pub times: Vec<Time>,
    /// Where the first log entry stands in its log, if log entries were verified.
    pub log_index: Option<u64>,
    /// What it states; `None` for a signature over bytes.
    pub statement: Option<Statement>,
    /// What is signed in Cosign's older format, if it is a signature in that.
    pub payload: Option<Payload>,
}

/// Who signed.
#[derive(Debug, Clone)]
pub enum SignedBy {
    /// The owner of the key with this fingerprint.
    Key(Digest),
    /// The one that this certificate names.
    Certificate(Box<Certificate>),
}

/// By when something was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Who says so.
    pub source: TimeSource,
    /// The time.
    pub time: Timestamp,
}

/// Who vouches for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeSource {
    /// A transparency log, in its signed promise.
    Log,
    /// A timestamp authority.
    TimestampAuthority,
}

/// Judges a bundle. `now` is the time of the decision, against which times in the future are found.
pub fn judge(bytes: &[u8], about: &About<'_>, expectation: &Expectation<'_>, root: &TrustedRoot, now: Timestamp) -> Result<Facts, Denial> {
    let Digest::Sha256(sha256) = about.digest else {
        return Denial::because(Reason::DigestAlgorithm, format!("signatures are about SHA-256, not about {}", about.digest));
    };
    let bundle = bundle::read(bytes)?;
    if expectation.forms == Forms::Attached {
        bundle::check_attached(&bundle)?;
    }
    let stamped = log::signature_of(&bundle)?.clone();
    Case { bundle: &bundle, about: *about, sha256: Sha256Hash::new(sha256), expectation, root, now, stamped, layer: None }.decide()
}

/// Judges a layer of Cosign's older format, which must be about `digest`. [`Expectation::forms`] says nothing about it.
///
/// Whether [`Payload::docker_reference`] is the right one is for the caller to say, who knows what was asked for.
pub fn judge_layer(
    layer: &Layer<'_>,
    digest: &Digest,
    expectation: &Expectation<'_>,
    root: &TrustedRoot,
    now: Timestamp,
) -> Result<Facts, Denial> {
    let bundle = legacy::bundle(layer)?;
    // A signature is over the payload; what that is about stands in it.
    let about = match layer.kind {
        LayerKind::Signature => About { digest: Digest::of(Algorithm::Sha256, layer.blob), artifact: Some(layer.blob) },
        LayerKind::Attestation => About { digest: *digest, artifact: None },
    };
    let Digest::Sha256(sha256) = about.digest else {
        return Denial::because(Reason::DigestAlgorithm, format!("signatures are about SHA-256, not about {digest}"));
    };
    let stamped = legacy::stamped(layer).map_or_else(|| log::signature_of(&bundle).cloned(), Ok)?;
    Case { bundle: &bundle, about, sha256: Sha256Hash::new(sha256), expectation, root, now, stamped, layer: Some((layer, *digest)) }
        .decide()
}

/// One bundle before the judge.
struct Case<'a> {
    bundle: &'a Bundle,
    about: About<'a>,
    sha256: Sha256Hash,
    expectation: &'a Expectation<'a>,
    root: &'a TrustedRoot,
    now: Timestamp,
    /// What timestamps are about.
    stamped: SignatureBytes,
    /// What the bundle was made of, and what that must be about.
    layer: Option<(&'a Layer<'a>, Digest)>,
}

/// What is said, in either format.
type Said = (Option<Statement>, Option<Payload>);

impl Case<'_> {
    fn decide(&self) -> Result<Facts, Denial> {
        match self.expectation.signer {
            Signer::Key(key) => self.by_key(key),
            Signer::Identity(identity) => self.by_certificate(std::slice::from_ref(identity)),
            Signer::AnyOf(identities) => self.by_certificate(identities),
        }
    }

    fn proof(&self) -> Proof {
        if self.layer.is_some() { Proof::Promise } else { Proof::Inclusion }
    }

    /// The bundle as far as the crate can verify it: in the older format the timestamp of an attestation is over all of its envelope,
    /// which only [`log::timestamps`] knows.
    fn verifiable(&self) -> Bundle {
        let mut bundle = self.bundle.clone();
        if self.layer.is_some_and(|(layer, _)| layer.kind == LayerKind::Attestation) {
            bundle.verification_material.timestamp_verification_data.rfc3161_timestamps.clear();
        }
        bundle
    }

    fn by_key(&self, key: &PublicKey) -> Result<Facts, Denial> {
        let kind = key.kind().map_err(|why| Denial::new(Reason::KeyType, format!("the wanted key is of a kind that is refused: {why}")))?;
        let VerificationMaterialContent::PublicKey(named) = &self.bundle.verification_material.content else {
            return Denial::because(Reason::KeyKind, "it is signed with a certificate, wanted is a key");
        };
        let Some(scheme) = self.scheme(key, kind)? else {
            // The hint decides nothing but the words.
            return if named.hint == STANDARD.encode(key.fingerprint().as_bytes()) {
                Denial::because(Reason::BadSignature, "the signature does not fit what was signed")
            } else {
                Denial::because(Reason::WrongKey, format!("it is not signed by the wanted key, {}", key.fingerprint()))
            };
        };
        let hash = kind.hash(self.layer.is_some());
        if let Some(only) = key.hash().filter(|only| *only != hash) {
            let message = format!("it is signed with {}, and of this key only signatures with {} count", hash.name(), only.name());
            return Denial::because(Reason::DigestAlgorithm, message);
        }
        let (statement, payload) = self.said()?;
        let mut times = Vec::new();
        if self.expectation.timestamp {
            times.extend(self.timestamps()?);
        }
        let entries = &self.bundle.verification_material.tlog_entries;
        if self.expectation.log {
            self.check_logged()?;
            let promised = log::promised_times(self.bundle).into_iter().map(|time| Time { source: TimeSource::Log, time });
            times.extend(promised);
        }
        self.check_not_ahead(&times)?;
        if !entries.is_empty() {
            self.check_entries(key, scheme, &times)?;
        }
        let log_index = entries.first().filter(|_| self.expectation.log).map(|entry| entry.log_index.get());
        Ok(Facts { signer: SignedBy::Key(key.fingerprint()), times, log_index, statement, payload })
    }

    /// Whether log entries are what they should be: all of it if one is wanted, else only that they are about this signature.
    fn check_entries(&self, key: &PublicKey, scheme: Scheme, times: &[Time]) -> Result<(), Denial> {
        if scheme == Scheme::Prehashed {
            return self.check_prehashed(key);
        }
        let mut looked_at = self.verifiable();
        let material = &mut looked_at.verification_material;
        if !self.expectation.timestamp {
            material.timestamp_verification_data.rfc3161_timestamps.clear();
        }
        let mut policy = PublicKeyVerificationPolicy::new(key.spki().clone());
        if !self.expectation.log {
            let ignored = |entry: &mut TransparencyLogEntry| (entry.inclusion_proof, entry.inclusion_promise) = (None, None);
            material.tlog_entries.iter_mut().for_each(ignored);
            // The older versions want proofs or promises.
            looked_at.media_type = MediaType::Bundle0_3;
            policy = policy.skip_tlog_unsafe();
        }
        self.root.verifier().verify(self.artifact(), &looked_at, &policy).map_err(|error| self.denial(&error, times, None))?;
        if self.expectation.log {
            let times: Vec<Timestamp> = times.iter().map(|time| time.time).collect();
            log::check_logs(self.bundle, self.root, &times, self.now, self.proof())?;
        }
        Ok(())
    }

    /// The same for Ed25519ph, which the crate does not know: its entries can be compared, but no proof of them verified.
    fn check_prehashed(&self, key: &PublicKey) -> Result<(), Denial> {
        if self.expectation.log {
            return Denial::because(Reason::NoLog, "a log entry is wanted, and that of an Ed25519ph signature cannot be verified");
        }
        let SignatureContent::DsseEnvelope(envelope) = &self.bundle.content else {
            return Denial::because(Reason::LogBinding, "the log entry of an Ed25519ph signature over bytes cannot be compared with it");
        };
        if self.bundle.verification_material.tlog_entries.iter().all(|entry| log::is_about(entry, envelope, key)) {
            Ok(())
        } else {
            Denial::because(Reason::LogBinding, "the log entry is about another signature")
        }
    }

    fn by_certificate(&self, identities: &[Identity]) -> Result<Facts, Denial> {
        let Some(der) = self.bundle.signing_certificate() else {
            return match &self.bundle.verification_material.content {
                VerificationMaterialContent::PublicKey(_) => {
                    Denial::because(Reason::KeyKind, "it is signed with a key, wanted is an identity")
                }
                _ => Denial::because(Reason::UntrustedCa, "the bundle has no certificate"),
            };
        };
        let read = identity::read(der)?;
        // A certificate is only read if its key is of a kind that is taken.
        let kind = read.key.kind().map_err(|why| Denial::new(Reason::KeyType, why))?;
        match self.scheme(&read.key, kind)? {
            Some(Scheme::OfTheKey) => {}
            Some(Scheme::Prehashed) => {
                return Denial::because(Reason::KeyType, "Ed25519ph is only taken of a key, not of a certificate");
            }
            None => return Denial::because(Reason::BadSignature, "the signature does not fit what was signed"),
        }
        let (statement, payload) = self.said()?;

        let waived = self.root.logs_nothing() && self.expectation.timestamp && !self.expectation.log;
        log::check_listed(self.bundle, self.root, self.proof())?;
        let mut times = self.timestamps()?;
        times.extend(log::promised_times(self.bundle).into_iter().map(|time| Time { source: TimeSource::Log, time }));
        if times.is_empty() {
            return Denial::because(Reason::NoTime, "nothing trustworthy says when it was signed: neither a log's promise nor a timestamp");
        }
        if !waived {
            self.check_logged()?;
        }
        self.check_not_ahead(&times)?;
        let mut policy = VerificationPolicy::any_identity();
        if waived {
            policy = policy.skip_sct().skip_tlog_unsafe();
        }
        let verifiable = self.verifiable();
        let verified = self.root.verifier().verify(self.artifact(), &verifiable, &policy);
        let verified = verified.map_err(|error| self.denial(&error, &times, Some((&read, &policy))))?;
        let mut agreed: Vec<Timestamp> = verified.verified_timestamps().iter().copied().map(log::moment).collect();
        let all: Vec<Timestamp> = times.iter().map(|time| time.time).collect();
        let crates = |time: &&Time| time.source == TimeSource::Log || verifiable == *self.bundle;
        let mut ours: Vec<Timestamp> = times.iter().filter(crates).map(|time| time.time).collect();
        agreed.sort_unstable();
        ours.sort_unstable();
        if !verified.certificate_verified() || !(waived || verified.sct_verified() && verified.tlog_verified()) || agreed != ours {
            return Denial::because(Reason::UntrustedCa, "the certificate was not verified as a whole");
        }
        log::check_logs(self.bundle, self.root, &all, self.now, self.proof())?;
        // The crate did this for the times that it saw.
        if let Some(outside) = outside_of_life(&read, &times) {
            return Denial::because(Reason::CertTime, format!("it was signed at {}, outside of the certificate's life", outside.time));
        }
        identity::check_any(identities, &read)?;
        let log_index = self.bundle.verification_material.tlog_entries.first().map(|entry| entry.log_index.get());
        Ok(Facts { signer: SignedBy::Certificate(Box::new(read.certificate)), times, log_index, statement, payload })
    }

    /// How the key signed, `None` if it did not.
    fn scheme(&self, key: &PublicKey, kind: Kind) -> Result<Option<Scheme>, Denial> {
        if let Some((layer, _)) = self.layer {
            let (message, signature) = match &self.bundle.content {
                SignatureContent::DsseEnvelope(envelope) => (envelope.pae(), &envelope.signature.sig),
                _ => (layer.blob.to_vec(), log::signature_of(self.bundle)?),
            };
            return Ok(key.signs_legacy(kind, &message, signature).then_some(Scheme::OfTheKey));
        }
        match &self.bundle.content {
            SignatureContent::DsseEnvelope(envelope) => Ok(key.signs(kind, &envelope.pae(), &envelope.signature.sig)),
            SignatureContent::MessageSignature(message) => self.scheme_of_message(key, kind, message),
            _ => Denial::because(Reason::BundleVersion, "the bundle has a content that is not known"),
        }
    }

    fn scheme_of_message(&self, key: &PublicKey, kind: Kind, message: &MessageSignature) -> Result<Option<Scheme>, Denial> {
        let algorithm = kind.scheme().hash_algorithm();
        if let Some(said) = &message.message_digest {
            // The crate would let the bundle choose the hash.
            if algorithm.is_some_and(|algorithm| algorithm != said.algorithm) {
                return Denial::because(Reason::DigestAlgorithm, format!("keys like this one sign another hash than {}", said.algorithm));
            }
            let ours = match (said.algorithm, self.about.artifact) {
                (HashAlgorithm::Sha2256, _) => self.sha256.as_bytes().to_vec(),
                (HashAlgorithm::Sha2384, Some(artifact)) => sha384(artifact).as_bytes().to_vec(),
                (HashAlgorithm::Sha2512, Some(artifact)) => sha512(artifact).as_bytes().to_vec(),
                (other, _) => return Denial::because(Reason::DigestAlgorithm, format!("{other} cannot be compared by a SHA-256 alone")),
            };
            if said.digest.as_bytes() != ours {
                return Denial::because(Reason::WrongDigest, format!("it is about another digest than {}", self.about.digest));
            }
        }
        match (kind, self.about.artifact) {
            (Kind::P256 | Kind::Rsa, _) => {
                let fits = verify_signature_prehashed(key.spki(), self.sha256.as_bytes(), &message.signature, kind.scheme()).is_ok();
                Ok(fits.then_some(Scheme::OfTheKey))
            }
            (Kind::P384 | Kind::Ed25519, Some(artifact)) => Ok(key.signs(kind, artifact, &message.signature)),
            (Kind::P384 | Kind::Ed25519, None) => Denial::because(
                Reason::DigestAlgorithm,
                "a key of this kind signs bytes or another hash: by a SHA-256 alone it cannot be verified",
            ),
        }
    }

    /// What is said, if it is about the right thing and of the wanted sort.
    fn said(&self) -> Result<Said, Denial> {
        match self.layer {
            Some((layer, digest)) if layer.kind == LayerKind::Signature => {
                let payload = legacy::payload(layer.blob, &digest)?;
                match self.expectation.content {
                    Content::Attestation(wanted) => {
                        Denial::because(Reason::PredicateType, format!("it is a signature, wanted is {wanted}"))
                    }
                    _ => Ok((None, Some(payload))),
                }
            }
            _ => Ok((self.statement()?, None)),
        }
    }

    /// What an envelope states.
    fn statement(&self) -> Result<Option<Statement>, Denial> {
        let SignatureContent::DsseEnvelope(envelope) = &self.bundle.content else {
            return match self.expectation.content {
                Content::Anything => Ok(None),
                _ => Denial::because(Reason::NotASignature, "it signs bytes of its own, and states nothing"),
            };
        };
        if envelope.payload_type != statement::PAYLOAD_TYPE {
            let message = format!("the payload is `{}`, wanted is {}", envelope.payload_type, statement::PAYLOAD_TYPE);
            return Denial::because(Reason::PayloadType, message);
        }
        let statement = statement::read(envelope.payload.as_bytes(), &self.about.digest)?;
        let stated = &statement.predicate_type;
        match self.expectation.content {
            Content::Signature if stated != statement::SIGNATURE => {
                Denial::because(Reason::NotASignature, format!("it is an attestation of type {stated}, wanted is a signature"))
            }
            Content::Attestation(wanted) if stated != wanted => {
                Denial::because(Reason::PredicateType, format!("it is an attestation of type {stated}, wanted is {wanted}"))
            }
            _ => Ok(Some(statement)),
        }
    }

    /// Whether there is a log entry, and each has a proof by a log of the root.
    fn check_logged(&self) -> Result<(), Denial> {
        if self.bundle.verification_material.tlog_entries.is_empty() {
            return Denial::because(Reason::NoLog, "a log entry is wanted and there is none");
        }
        log::check_listed(self.bundle, self.root, self.proof())
    }

    fn timestamps(&self) -> Result<Vec<Time>, Denial> {
        let times = log::timestamps(self.bundle, &self.stamped, self.root)?;
        if self.expectation.timestamp && times.is_empty() {
            return Denial::because(Reason::NoTime, "a timestamp is wanted and there is none");
        }
        Ok(times.into_iter().map(|time| Time { source: TimeSource::TimestampAuthority, time }).collect())
    }

    fn check_not_ahead(&self, times: &[Time]) -> Result<(), Denial> {
        let latest = self.now.checked_add(limits::CLOCK_AHEAD).unwrap_or(Timestamp::MAX);
        match times.iter().find(|time| time.time > latest) {
            Some(ahead) => Denial::because(Reason::Future, format!("it claims to be signed at {}, which is in the future", ahead.time)),
            None => Ok(()),
        }
    }

    /// What the crate is given to compare with.
    fn artifact(&self) -> Artifact<'_> {
        match (&self.bundle.content, self.about.artifact) {
            (SignatureContent::MessageSignature(_), Some(artifact)) => Artifact::from_blob(artifact),
            _ => Artifact::from_digest(self.sha256),
        }
    }

    /// What the crate says, in our words. `by` is given for a certificate.
    fn denial(&self, error: &Error, times: &[Time], by: Option<(&Read, &VerificationPolicy)>) -> Denial {
        let outside = by.and_then(|(read, _)| outside_of_life(read, times));
        let without_windows = || {
            let (_, policy) = by?;
            self.root.without_windows().ok()?.verify(self.artifact(), &self.verifiable(), policy).err()
        };
        let reason = match error {
            Error::Certificate(CertificateError::NotYetValid { .. } | CertificateError::Expired { .. }) => Reason::CertTime,
            Error::Certificate(CertificateError::ChainInvalid(_) | CertificateError::NoValidAuthority { .. }) => {
                match (outside, without_windows()) {
                    (Some(_), _) => Reason::CertTime,
                    (None, Some(Error::Certificate(CertificateError::ChainInvalid(_)))) => Reason::UntrustedCa,
                    (None, Some(Error::Certificate(CertificateError::NoValidAuthority { .. }))) => Reason::UntrustedCa,
                    (None, _) => Reason::CaWindow,
                }
            }
            Error::Certificate(CertificateError::Sct(_)) => match without_windows() {
                _ if by.is_some_and(|(read, _)| !read.has_sct) => Reason::NoSct,
                Some(Error::Certificate(CertificateError::Sct(_)) | Error::InvalidTrustRoot(_)) => Reason::BadSct,
                _ => Reason::CtLogWindow,
            },
            Error::InvalidTrustRoot(_) => Reason::BadSct,
            Error::TransparencyLog(TransparencyLogError::UnknownLog { .. }) => Reason::UntrustedLog,
            Error::TransparencyLog(TransparencyLogError::InclusionProof(_)) => Reason::Inclusion,
            Error::TransparencyLog(TransparencyLogError::Checkpoint(_)) => Reason::Checkpoint,
            Error::TransparencyLog(TransparencyLogError::InclusionPromise(_)) => Reason::Set,
            Error::TransparencyLog(TransparencyLogError::IntegratedTime(_)) if outside.is_some() => Reason::CertTime,
            Error::TransparencyLog(TransparencyLogError::IntegratedTime(_)) => Reason::Future,
            // That the bundle itself is about the right digest was seen before: it is the log entry that is not.
            Error::TransparencyLog(_) | Error::UnsupportedBundle(_) | Error::ArtifactMismatch(_) => Reason::LogBinding,
            Error::Timestamp(TimestampError::OutsideAuthorityValidity { .. }) => Reason::TsaWindow,
            Error::Timestamp(TimestampError::NoVerifiedTimestamp(_)) => Reason::NoTime,
            Error::Timestamp(_) => Reason::Timestamp,
            Error::SignatureInvalid(_) => Reason::BadSignature,
            Error::UnsupportedArtifact(_) => Reason::DigestAlgorithm,
            Error::Certificate(_) => Reason::UntrustedCa,
            Error::Crypto(_) => Reason::KeyType,
            Error::Bundle(BundleError::MissingInclusionProof(_)) => Reason::NoInclusionProof,
            Error::Bundle(BundleError::MissingInclusionPromise(_)) => Reason::Set,
            Error::Bundle(BundleError::MissingCheckpoint | BundleError::CheckpointRootMismatch) => Reason::Checkpoint,
            Error::Bundle(BundleError::LogIndexOutOfRange { .. }) => Reason::Inclusion,
            Error::Bundle(BundleError::MissingSigningTimeEvidence | BundleError::MissingTimestamp) => Reason::NoTime,
            Error::Bundle(BundleError::CertificateChainNotAllowed(_)) => Reason::BundleVersion,
            _ => Reason::BadJson,
        };
        let message = match (reason, outside) {
            (Reason::CertTime, Some(time)) => format!("it was signed at {}, outside of the certificate's life", time.time),
            (Reason::UntrustedCa, _) => format!("the certificate is by no authority of the trusted root: {error}"),
            (Reason::CaWindow, _) => format!("the authority's window in the trusted root does not cover the signing time: {error}"),
            (Reason::CtLogWindow, _) => format!("the certificate log's window in the trusted root does not cover its promise: {error}"),
            (Reason::LogBinding, _) => format!("the log entry is about another signature: {error}"),
            _ => error.to_string(),
        };
        Denial::new(reason, message)
    }
}

/// A time at which the certificate did not live, if there is one.
fn outside_of_life<'t>(read: &Read, times: &'t [Time]) -> Option<&'t Time> {
    let Certificate { not_before, not_after, .. } = read.certificate;
    times.iter().find(|time| time.time < not_before || time.time > not_after)
}
