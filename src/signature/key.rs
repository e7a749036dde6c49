//! Public keys: which are taken, and how each of them signs.
//!
//! Hash and scheme follow from the key alone. What a bundle says about them is never asked.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::Digest as _;
use sigstore_crypto::{KeyAlgorithm, SigningScheme, validate_raw_public_key, verify_signature};
use sigstore_verify::types::{DerPublicKey, SignatureBytes};
use x509_cert::der::asn1::{BitString, Null, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};

use super::pem_key::{PemError, PemKey, PemKind};
use crate::digest::{Algorithm, Digest};
use crate::limits;

/// rsaEncryption.
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A public key, well-formed but not necessarily of a kind that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: DerPublicKey,
    kind: Result<Kind, String>,
    /// The only hash that signatures with it may have.
    hash: Option<Hash>,
}

/// The hash of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-224, which no signature that is taken has.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// The kinds of keys that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    P256,
    P384,
    /// With a modulus of 2048 to 8192 bits.
    Rsa,
    Ed25519,
}

/// Why a file is no public key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is larger than any key.
    #[error("a public key has at most {limit} bytes, this has {0}", limit = limits::KEY_BYTES)]
    Size(usize),
    /// It is not one PEM block `PUBLIC KEY` and nothing else.
    #[error("not one PEM block `PUBLIC KEY` (as in `cosign.pub`) and nothing else")]
    Pem(#[source] Option<PemError>),
    /// What is in the PEM block is no public key.
    #[error("the PEM block holds no public key")]
    Der(#[source] x509_cert::spki::Error),
}

impl PublicKey {
    /// Reads a key as `cosign.pub` holds it.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        if text.len() > limits::KEY_BYTES {
            return Err(KeyError::Size(text.len()));
        }
        match PemKey::read(str::from_utf8(text).map_err(|_| KeyError::Pem(None))?) {
            Ok(key) if key.kind == PemKind::PublicKey => Self::of(&key),
            Ok(_) => Err(KeyError::Pem(Some(PemError::Kind("RSA PUBLIC KEY".to_owned())))),
            Err(error) => Err(KeyError::Pem(Some(error))),
        }
    }

    /// Takes a key that was read.
    pub fn of(key: &PemKey) -> Result<Self, KeyError> {
        match key.kind {
            PemKind::PublicKey => Self::from_der(&key.der),
            PemKind::RsaPublicKey => Self::from_pkcs1_der(&key.der),
        }
    }

    /// Takes a key as a certificate holds it.
    pub(super) fn from_spki(spki: DerPublicKey) -> Result<Self, x509_cert::spki::Error> {
        let info = SubjectPublicKeyInfoRef::try_from(spki.as_bytes())?;
        let kind = kind(&spki, &info);
        Ok(Self { spki, kind, hash: None })
    }

    /// Takes a key in DER: a SubjectPublicKeyInfo, as in a PEM block `PUBLIC KEY`.
    pub(super) fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_spki(der.to_vec().into()).map_err(KeyError::Der)
    }

    /// Takes an RSA key in DER: an RSAPublicKey of PKCS#1, as in a PEM block `RSA PUBLIC KEY`.
    pub(super) fn from_pkcs1_der(der: &[u8]) -> Result<Self, KeyError> {
        let spki = || {
            // Modulus and exponent, and nothing else.
            let mut reader = SliceReader::new(der)?;
            reader.sequence(|reader| UintRef::decode(reader).and_then(|_| UintRef::decode(reader)).map(drop))?;
            reader.finish(())?;
            let algorithm = AlgorithmIdentifierOwned { oid: RSA_ENCRYPTION, parameters: Some(Null.into()) };
            SubjectPublicKeyInfoOwned { algorithm, subject_public_key: BitString::from_bytes(der)? }.to_der()
        };
        Self::from_der(&spki().map_err(|error| KeyError::Der(error.into()))?)
    }

    /// The same key, of whose signatures only those with this hash count.
    pub fn only(self, hash: Option<Hash>) -> Self {
        Self { hash, ..self }
    }

    /// The only hash that signatures with it may have.
    pub fn hash(&self) -> Option<Hash> {
        self.hash
    }

    /// Why keys like this one are refused, if they are.
    pub fn refused(&self) -> Option<&str> {
        self.kind.as_ref().err().map(String::as_str)
    }

    /// The SHA-256 of the key in DER, as `openssl pkey -pubin -outform DER | sha256sum` has it.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(Algorithm::Sha256, self.spki.as_bytes())
    }

    pub(super) fn kind(&self) -> Result<Kind, &str> {
        self.kind.as_ref().copied().map_err(String::as_str)
    }

    pub(super) fn spki(&self) -> &DerPublicKey {
        &self.spki
    }

    /// Whether Cosign's older format signs `message` with this key: always with SHA-256, where the key does not bring its own hash.
    pub(super) fn signs_legacy(&self, kind: Kind, message: &[u8], signature: &SignatureBytes) -> bool {
        let scheme = if kind == Kind::P384 { SigningScheme::EcdsaP384Sha256 } else { kind.scheme() };
        verify_signature(&self.spki, message, signature, scheme).is_ok()
    }

    /// Whether a bundle signs `message` with this key: `None` if not.
    pub(super) fn signs(&self, kind: Kind, message: &[u8], signature: &SignatureBytes) -> Option<Scheme> {
        if verify_signature(&self.spki, message, signature, kind.scheme()).is_ok() {
            return Some(Scheme::OfTheKey);
        }
        (kind == Kind::Ed25519 && self.signs_prehashed(message, signature)).then_some(Scheme::Prehashed)
    }

    /// Whether it is an Ed25519ph signature, which Cosign 3 makes with Ed25519 keys.
    fn signs_prehashed(&self, message: &[u8], signature: &SignatureBytes) -> bool {
        let Ok(info) = SubjectPublicKeyInfoRef::try_from(self.spki.as_bytes()) else { return false };
        let Ok(key) = <&[u8; 32]>::try_from(info.subject_public_key.raw_bytes()) else { return false };
        let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(key), Signature::from_slice(signature.as_bytes())) else { return false };
        let mut hasher = sha2::Sha512::new();
        hasher.update(message);
        !key.is_weak() && key.verify_prehashed_strict(hasher, None, &signature).is_ok()
    }
}

impl Hash {
    /// All, by the names that policies have for them.
    pub(crate) const NAMES: [(&str, Self); 4] =
        [("sha224", Self::Sha224), ("sha256", Self::Sha256), ("sha384", Self::Sha384), ("sha512", Self::Sha512)];

    /// As policies name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

/// How a signature was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    OfTheKey,
    /// Ed25519ph.
    Prehashed,
}

impl Kind {
    /// The hash that signatures with keys of this kind have. Ed25519 has its own in it, prehashed or not.
    pub(super) fn hash(self, legacy: bool) -> Hash {
        match self {
            Self::P384 if !legacy => Hash::Sha384,
            Self::P256 | Self::P384 | Self::Rsa => Hash::Sha256,
            Self::Ed25519 => Hash::Sha512,
        }
    }

    /// How keys of this kind sign in a bundle.
    pub(super) fn scheme(self) -> SigningScheme {
        match self {
            Self::P256 => SigningScheme::EcdsaP256Sha256,
            Self::P384 => SigningScheme::EcdsaP384Sha384,
            Self::Rsa => SigningScheme::RsaPkcs1Sha256,
            Self::Ed25519 => SigningScheme::Ed25519,
        }
    }
}

fn kind(spki: &DerPublicKey, info: &SubjectPublicKeyInfoRef<'_>) -> Result<Kind, String> {
    let kind = match KeyAlgorithm::from_spki(spki) {
        Ok(KeyAlgorithm::EcdsaP256) => Kind::P256,
        Ok(KeyAlgorithm::EcdsaP384) => Kind::P384,
        Ok(KeyAlgorithm::Rsa) => Kind::Rsa,
        Ok(KeyAlgorithm::Ed25519) => Kind::Ed25519,
        Ok(other) => return Err(format!("{other:?} keys are not taken (P-256, P-384, RSA from 2048 bits on and Ed25519 are)")),
        Err(error) => return Err(format!("{error} (P-256, P-384, RSA from 2048 bits on and Ed25519 are taken)")),
    };
    validate_raw_public_key(kind.scheme(), info.subject_public_key.raw_bytes()).map_err(|error| error.to_string())?;
    Ok(kind)
}
