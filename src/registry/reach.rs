//! Whether a registry answers at all, and what it says of itself.

use std::fmt;

use http::header::DATE;
use jiff::Timestamp;

use super::Registry;
use super::auth::{Challenge, challenge};
use super::retry::Failure;
use crate::source::SourceError;

/// What a registry answered at `/v2/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Where it was asked.
    pub url: String,
    /// What it wants of whoever comes.
    pub wants: Wants,
    /// Its clock, as far as it says.
    pub date: Option<Timestamp>,
}

/// What a registry wants of whoever comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wants {
    /// Nothing, for a start.
    Nothing,
    /// A password.
    Password,
    /// A token of this server.
    Token(String),
    /// Something, but it does not say what.
    Unsaid,
}

impl Registry {
    /// Asks once, as nobody in particular.
    pub async fn reach(&self) -> Result<Reached, SourceError> {
        let endpoint = &self.endpoint;
        let what = "its API at /v2/";
        let ask = async {
            let response = endpoint.send(endpoint.client()?.get(endpoint.api().clone()), what).await?;
            let wants = match (response.status().as_u16(), challenge(response.headers())) {
                (200, _) => Wants::Nothing,
                (401 | 403, Some(Challenge::Bearer { realm, .. })) => Wants::Token(realm),
                (401 | 403, Some(Challenge::Basic)) => Wants::Password,
                (401 | 403, None) => Wants::Unsaid,
                _ => return Err(endpoint.refused(response, what).await),
            };
            let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
            let date = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()).map(|date| date.timestamp());
            Ok(Reached { url: endpoint.api().to_string(), wants, date })
        };
        ask.await.map_err(|(Failure::Final(error) | Failure::Again { error, .. })| error)
    }
}

impl fmt::Display for Wants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("wants no login to be talked to"),
            Self::Password => f.write_str("wants a password"),
            Self::Token(realm) => write!(f, "wants a token from {realm}"),
            Self::Unsaid => f.write_str("wants a login, but does not say which kind"),
        }
    }
}
