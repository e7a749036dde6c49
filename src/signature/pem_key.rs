//! The one reader of public keys in PEM: a block and nothing beside it. What is in the block is looked at by [`super::PublicKey`].

/// A public key in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemKey {
    /// What its first line says that it is.
    pub kind: PemKind,
    /// What stands between the lines, decoded.
    pub der: Vec<u8>,
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
pub enum PemError {
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

impl PemKey {
    /// Takes a public key in PEM, and nothing beside it.
    pub fn read(text: &str) -> Result<Self, PemError> {
        let blocks = pem::parse_many(text).map_err(|error| PemError::Pem(error.to_string()))?;
        let [block] = &blocks[..] else { return Err(PemError::Blocks(blocks.len())) };
        let bare = text.trim();
        if !bare.starts_with("-----BEGIN ") || !bare.ends_with("-----") || bare.matches("-----BEGIN ").count() != 1 {
            return Err(PemError::Beside);
        }
        let kind = match block.tag() {
            "PUBLIC KEY" => PemKind::PublicKey,
            "RSA PUBLIC KEY" => PemKind::RsaPublicKey,
            other => return Err(PemError::Kind(other.to_owned())),
        };
        if block.contents().is_empty() {
            return Err(PemError::Empty);
        }
        Ok(Self { kind, der: block.contents().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAMd30l3LdAhWd9PDHnMpwJcaMJpD\nqwZzM97kqlTjvQOxJN9hmO3ERrnJs5HmPzLFRqB44XsHPMhi3sCOxS3n9w==\n-----END PUBLIC KEY-----\n";

    #[test]
    fn a_key_is_one_pem_block_and_nothing_beside() {
        let key = PemKey::read(KEY).expect("a key");
        assert_eq!((key.kind, key.der.len()), (PemKind::PublicKey, 91));
        assert_eq!(PemKey::read(&format!("\n  {KEY}\n\n")).expect("a key").der, key.der);
        let relabelled = |label: &str| KEY.replace("PUBLIC KEY", label);
        assert_eq!(PemKey::read(&relabelled("RSA PUBLIC KEY")).expect("a label").kind, PemKind::RsaPublicKey);
        for (text, expected) in [
            (String::new(), PemError::Blocks(0)),
            ("awskms:///alias/x".to_owned(), PemError::Blocks(0)),
            (format!("{KEY}{KEY}"), PemError::Blocks(2)),
            (format!("{KEY}x"), PemError::Beside),
            (format!("x\n{KEY}"), PemError::Beside),
            (relabelled("EC PRIVATE KEY"), PemError::Kind("EC PRIVATE KEY".into())),
            (relabelled("CERTIFICATE"), PemError::Kind("CERTIFICATE".into())),
            ("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n".to_owned(), PemError::Empty),
        ] {
            assert_eq!(PemKey::read(&text).expect_err(&text), expected);
        }
        assert!(matches!(PemKey::read(&KEY.replace("MFkw", "MF!w")), Err(PemError::Pem(_))));
        assert!(matches!(PemKey::read(&KEY.replace("END PUBLIC", "END PRIVATE")), Err(PemError::Pem(_))));
    }
}
