//! The nearest miss: of all that does not count, what came closest to it.
//!
//! The order says how far a candidate got on the way that it is judged on, and stands here alone. What nothing that was found could mend (a policy
//! that refuses, none that covers) is nearer than all of it, since whoever mends the rest is still refused.

use crate::signature::{Denial, Reason};

/// From the farthest miss to the nearest.
const ORDER: [Reason; 49] = [
    // Nothing is there, or nothing of the wanted format.
    Reason::Unsigned,
    Reason::Format,
    // It cannot be read.
    Reason::BlobDigest,
    Reason::BadJson,
    Reason::UnknownMember,
    Reason::TooBig,
    Reason::TooMany,
    Reason::TwoContents,
    Reason::DsseSignatures,
    Reason::BundleVersion,
    // It is not about this kit.
    Reason::ReferrerSubject,
    Reason::DigestAlgorithm,
    Reason::WrongDigest,
    // It is of the wrong sort.
    Reason::PayloadType,
    Reason::PayloadKind,
    Reason::StatementType,
    Reason::SubjectCount,
    Reason::NotASignature,
    Reason::PredicateType,
    // It is not by the wanted signer, or nothing shows that it is.
    Reason::KeyKind,
    Reason::WrongKey,
    Reason::BadSignature,
    Reason::KeyType,
    Reason::UntrustedCa,
    // Something beside the signature is missing, or does not fit.
    Reason::NoSct,
    Reason::BadSct,
    Reason::NoLog,
    Reason::UntrustedLog,
    Reason::NoInclusionProof,
    Reason::Set,
    Reason::Inclusion,
    Reason::Checkpoint,
    Reason::LogBinding,
    Reason::Timestamp,
    Reason::NoTime,
    // It was signed at the wrong time.
    Reason::Future,
    Reason::CtLogWindow,
    Reason::CaWindow,
    Reason::LogWindow,
    Reason::TsaWindow,
    Reason::CertTime,
    // All is well but for who a certificate names.
    Reason::SanType,
    Reason::WrongIdentity,
    Reason::WrongIssuer,
    // All is well but for what the signer added, or what a rule says of it.
    Reason::DockerReference,
    Reason::Annotations,
    Reason::Rego,
    // Whatever was found, it is refused.
    Reason::NoPolicy,
    Reason::Static,
];

/// How near a miss is.
pub(super) fn rank(reason: Reason) -> usize {
    // What is not a kit is never asked about here; of anything that is not in the list nothing is known.
    ORDER.iter().position(|other| *other == reason).unwrap_or(0)
}

/// The nearest of several; of equally near ones the first.
pub(super) fn nearest<'d>(denials: impl IntoIterator<Item = &'d Denial>) -> Option<&'d Denial> {
    denials.into_iter().reduce(|best, denial| if rank(denial.reason) > rank(best.reason) { denial } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NotAKit) {
            assert_eq!(ORDER.iter().filter(|other| *other == reason).count(), 1, "{reason}");
        }
        assert_eq!(ORDER.len() + 1, Reason::ALL.len());
    }

    #[test]
    fn the_nearest_is_the_one_that_got_farthest() {
        let denials = [Reason::BadJson, Reason::WrongKey, Reason::Rego, Reason::WrongKey].map(|reason| Denial::new(reason, "x"));
        for (few, expected) in [(&denials[..], Reason::Rego), (&denials[..2], Reason::WrongKey), (&denials[..1], Reason::BadJson)] {
            assert_eq!(nearest(few).map(|denial| denial.reason), Some(expected));
        }
        assert_eq!(nearest(&[]), None);
        let twins = [Denial::new(Reason::WrongKey, "a"), Denial::new(Reason::WrongKey, "b")];
        assert_eq!(nearest(&twins).map(|denial| denial.message.as_str()), Some("a"));
    }
}
