//! `kitfs verify-bundle`: one Sigstore bundle, judged. Its options are those of the Sigstore conformance protocol.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use jiff::Timestamp;

use super::args::VerifyBundle;
use super::error::CliError;
use super::report::{Exit, escaped};
use super::{document, print};
use crate::admission::roots;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::limits;
use crate::signature::{About, Content, Expectation, Facts, Forms, Identity, Matcher, PublicKey, SignedBy, Signer, judge};

pub(super) fn run(arguments: &VerifyBundle) -> Result<Exit, CliError> {
    let key = arguments.key.as_deref().map(key).transpose()?;
    let identity = Identity {
        subject: Matcher::Exact(arguments.certificate_identity.clone().unwrap_or_default()),
        issuer: Matcher::Exact(arguments.certificate_oidc_issuer.clone().unwrap_or_default()),
    };
    let expectation = Expectation {
        signer: key.as_ref().map_or(Signer::Identity(&identity), Signer::Key),
        content: Content::Anything,
        log: !arguments.insecure_ignore_tlog,
        timestamp: false,
        forms: Forms::All,
    };
    let (digest, artifact) = artifact(&arguments.artifact)?;
    let root = roots::at(&arguments.trusted_root).map_err(CliError::TrustedRoot)?.1;
    let bundle = document(&arguments.bundle, limits::BUNDLE_BYTES)?;
    let about = About { digest, artifact: artifact.as_deref() };
    let facts = judge(&bundle, &about, &expectation, &root, Timestamp::now()).map_err(CliError::NotVerified)?;
    print(shown(&digest, &facts).as_bytes())
}

fn key(path: &Path) -> Result<PublicKey, CliError> {
    let text = document(path, limits::KEY_BYTES as u64)?;
    PublicKey::from_pem(&text).map_err(|source| CliError::Key { path: path.to_owned(), source })
}

/// The digest of what was signed, and its bytes if they are at hand and few enough to be kept.
fn artifact(text: &str) -> Result<(Digest, Option<Vec<u8>>), CliError> {
    if text.starts_with("sha256:") {
        return Ok((text.parse().map_err(CliError::Digest)?, None));
    }
    hashed(Path::new(text)).map_err(|source| CliError::File { path: text.into(), source })
}

fn hashed(path: &Path) -> io::Result<(Digest, Option<Vec<u8>>)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut kept = Some(Vec::new());
    let mut piece = vec![0; limits::PIECE_BYTES];
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => return Ok((hasher.finish(), kept)),
            Ok(read) => &piece[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(read);
        if let Some(bytes) = &mut kept {
            bytes.extend_from_slice(read);
        }
        kept = kept.filter(|bytes| bytes.len() as u64 <= limits::ARTIFACT_BYTES);
    }
}

fn shown(digest: &Digest, facts: &Facts) -> String {
    let signer = match &facts.signer {
        SignedBy::Key(fingerprint) => format!("the key {fingerprint}"),
        SignedBy::Certificate(certificate) => format!("{}, vouched for by {}", certificate.subject, certificate.issuer),
    };
    let time = facts.times.iter().map(|time| time.time).min().map(|time| format!(", not later than {time}"));
    let said = facts.statement.as_ref().map(|statement| format!(": {}", statement.predicate_type));
    escaped(&format!("{digest}: signed by {signer}{}{}", time.unwrap_or_default(), said.unwrap_or_default())) + "\n"
}
