//! Why something does not count: codes for programs, sentences for people.

use std::fmt;

/// Declares the codes once, with what each of them means.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+) => {
        /// Why something does not count or is not admitted. The names are stable: policies, logs and programs rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that does not change.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                }
            }
        }
    };
}

reasons! {
    /// Nothing was found that could count.
    Unsigned = "unsigned",
    /// There is none in the format that the policy names.
    Format = "format",
    /// No policy covers the reference.
    NoPolicy = "no-policy",
    /// Signed by a key that is not the wanted one.
    WrongKey = "wrong-key",
    /// A key where an identity is wanted, or the reverse.
    KeyKind = "key-kind",
    /// A key of a type or size that is refused.
    KeyType = "key-type",
    /// The certificate's subject is not the wanted one.
    WrongIdentity = "wrong-identity",
    /// The certificate's issuer is not the wanted one.
    WrongIssuer = "wrong-issuer",
    /// The subject stands in a name that is neither an e-mail address nor a URI, or there are several.
    SanType = "san-type",
    /// It is about something else.
    WrongDigest = "wrong-digest",
    /// The subject has no SHA-256, or its own digest cannot be compared.
    DigestAlgorithm = "digest-algorithm",
    /// No subject, or several in a signature.
    SubjectCount = "subject-count",
    /// It is no signature of Cosign's but something else that is signed.
    NotASignature = "not-a-signature",
    /// The statement's type is not the wanted one.
    PredicateType = "predicate-type",
    /// `_type` is no in-toto statement that is known.
    StatementType = "statement-type",
    /// `payloadType` is not `application/vnd.in-toto+json`.
    PayloadType = "payload-type",
    /// `critical.type` is not Cosign's.
    PayloadKind = "payload-kind",
    /// The signature does not fit the bytes.
    BadSignature = "bad-signature",
    /// There must be exactly one DSSE signature.
    DsseSignatures = "dsse-signatures",
    /// Both a `dsseEnvelope` and a `messageSignature`.
    TwoContents = "two-contents",
    /// The bundle has a version that is not taken here.
    BundleVersion = "bundle-version",
    /// Not the JSON that it should be: a member twice, too deep, or of another type.
    BadJson = "bad-json",
    /// A member that the format does not have.
    UnknownMember = "unknown-member",
    /// Nothing trustworthy says when it was signed.
    NoTime = "no-time",
    /// A signing time outside of the certificate's life.
    CertTime = "cert-time",
    /// A signing time in the future.
    Future = "future",
    /// The certificate is by no authority of the trusted root.
    UntrustedCa = "untrusted-ca",
    /// The authority's window does not cover the signing time.
    CaWindow = "ca-window",
    /// The log's window does not cover the signing time.
    LogWindow = "log-window",
    /// The certificate log's window does not cover the promise in the certificate.
    CtLogWindow = "ctlog-window",
    /// The timestamp authority's window does not cover the timestamp.
    TsaWindow = "tsa-window",
    /// The certificate has no promise of a certificate log (SCT).
    NoSct = "no-sct",
    /// That promise is by no certificate log of the trusted root.
    BadSct = "bad-sct",
    /// The log is not in the trusted root.
    UntrustedLog = "untrusted-log",
    /// The log entry is about another signature.
    LogBinding = "log-binding",
    /// The log's signed promise (SET) does not fit the entry.
    Set = "set",
    /// There is no inclusion proof.
    NoInclusionProof = "no-inclusion-proof",
    /// The inclusion proof does not fit.
    Inclusion = "inclusion",
    /// The checkpoint is not signed by the log.
    Checkpoint = "checkpoint",
    /// The timestamp does not verify.
    Timestamp = "timestamp",
    /// Larger than the limit.
    TooBig = "too-big",
    /// More log entries or timestamps than the limit.
    TooMany = "too-many",
    /// A log entry is wanted and there is none.
    NoLog = "no-log",
    /// The referrer names another manifest as its subject.
    ReferrerSubject = "referrer-subject",
    /// The payload names another repository.
    DockerReference = "docker-reference",
    /// A blob is not what its descriptor says, or is not there although it is listed.
    BlobDigest = "blob-digest",
    /// A required annotation is missing or another.
    Annotations = "annotations",
    /// The Rego policy does not allow it.
    Rego = "rego",
    /// The manifest is no ModelKit.
    NotAKit = "not-a-kit",
    /// The policy refuses whatever it matches.
    Static = "static",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Why one candidate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// The code.
    pub reason: Reason,
    /// The sentence, which may hold text of the candidate: escape it before it is shown.
    pub message: String,
}

impl Denial {
    /// A denial.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The result of whoever denies.
    pub(super) fn because<T>(reason: Reason, message: impl Into<String>) -> Result<T, Self> {
        Err(Self::new(reason, message))
    }
}
