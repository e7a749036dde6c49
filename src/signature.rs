//! Sigstore signatures: what one says about a digest, and whether it may be believed.
//!
//! [`judge`] for bundles, [`judge_layer`] for Cosign's older format: each is a pure function of bytes, an expectation, a trusted root and a clock: it reads nothing and asks nobody, so what it said
//! can be said again. Cryptography, log proofs, timestamps and certificate chains are the work of `sigstore-verify`; what that crate
//! leaves to its caller is done here. This module does not know where a bundle was found, or which policy asks.
//!
//! The crate asks the host's clock for one thing: a log's signed time that lies ahead of it is refused, also within
//! [`crate::limits::CLOCK_AHEAD`].

mod bundle;
pub(crate) mod expression;
mod identity;
mod judge;
mod key;
mod legacy;
mod log;
mod pem_key;
mod reason;
mod statement;
mod trusted_root;

#[cfg(test)]
mod tests;

pub use expression::{Expression, ExpressionError};
pub use identity::{Certificate, Identity, Matcher};
pub use judge::{About, Content, Expectation, Facts, Forms, SignedBy, Signer, Time, TimeSource, judge, judge_layer};
pub use key::{Hash, KeyError, PublicKey};
pub use legacy::{Layer, LayerKind, Payload};
pub use pem_key::{PemError, PemKey, PemKind};
pub use reason::{Denial, Reason};
pub use statement::Statement;
pub use trusted_root::{Authority, BUILT_IN, Part, Role, RootError, TrustedRoot};
