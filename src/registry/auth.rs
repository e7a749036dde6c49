//! How a registry is told who asks: nothing, a password, or a token that its token server gives for a password or an identity token.
//!
//! The flow is kitfs' own and not `oci_client::Client::auth`, for what that keeps to itself: it gives no status of the token server (so
//! a 503 could not be told from a refusal), reads its answer without a limit, knows no identity tokens, and follows a registry that is
//! reached by https to a token server that is not.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};
use http_auth::parser::ChallengeParser;
use oci_client::token_cache::RegistryToken;
use reqwest::Url;

use super::endpoint::{Body, Ending, Endpoint};
use super::retry::Failure;
use crate::credentials::{Found, Login};
use crate::limits;
use crate::source::SourceError;

/// What requests carry at the moment. The first one is empty: whether a registry wants anything shows in its first answer.
#[derive(Debug, Default)]
pub(super) struct Session {
    authorization: Option<HeaderValue>,
    challenge: Option<Challenge>,
    origin: String,
}

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Session {
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Where the login came from, or that there is none.
    pub(super) fn origin(&self) -> &str {
        if self.origin.is_empty() { "nothing was asked for" } else { &self.origin }
    }
}

/// The challenge of an answer; a token is preferred where both are offered.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        // What comes after a syntax error is not understood, what came before it is.
        for challenge in ChallengeParser::new(value.to_str().unwrap_or_default()).map_while(Result::ok) {
            let parameter =
                |name: &str| challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped());
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                return Some(Challenge::Bearer { realm, service: parameter("service") });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

impl Endpoint {
    /// Makes a new session after `used` was refused, with the logins as they are on disk now. False if there is nothing new to try.
    pub(super) async fn renew(&self, used: &Arc<Session>, offered: Option<Challenge>, what: &str) -> Result<bool, Failure> {
        let _one_at_a_time = self.renewing.lock().await;
        if !Arc::ptr_eq(used, &self.session()) {
            // Another request did it meanwhile.
            return Ok(true);
        }
        let challenge = match offered.or_else(|| used.challenge.clone()) {
            Some(challenge) => Some(challenge),
            None => {
                let response = self.send(self.client()?.get(self.api().clone()), what).await?;
                challenge(response.headers())
            }
        };
        let (credentials, host, repository) = (self.credentials.clone(), self.host.clone(), self.repository.clone());
        let found = tokio::task::spawn_blocking(move || credentials.find(&host, &repository)).await;
        let (login, origin) = match found {
            Ok(Found { login, origin, .. }) => (login, origin),
            Err(_) => (None, "the search for a login ended unexpectedly".to_owned()),
        };
        let authorization = match (&challenge, &login) {
            (Some(Challenge::Bearer { realm, service }), login) => {
                Some(self.token(realm, service.as_deref(), login.as_ref(), &origin, what).await?)
            }
            // A registry that says 403 without a challenge may still want the password that was given for it.
            (Some(Challenge::Basic) | None, Some(Login::Password { user, password })) => Some(basic(user, password.expose())),
            (Some(Challenge::Basic) | None, _) => None,
        };
        // A token that was just given is worth a try even if it is the old one; the same password is not.
        let given = matches!(challenge, Some(Challenge::Bearer { .. }));
        let is_new = authorization.is_some() && (given || authorization != used.authorization);
        self.set_session(Session { authorization, challenge, origin });
        Ok(is_new)
    }

    /// Asks the token server.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        login: Option<&Login>,
        origin: &str,
        what: &str,
    ) -> Result<HeaderValue, Failure> {
        let wrong = |reason: String| Failure::Final(self.protocol(what, reason));
        let mut url = Url::parse(realm).map_err(|error| wrong(format!("its token server `{realm}` is no URL: {error}")))?;
        if url.scheme() != "https" && self.is_https() {
            return Err(wrong(format!("it is reached by https, and its token server {realm} is not")));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let client = self.client()?;
        let request = if let Some(Login::Identity(token)) = login {
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("client_id", "kitfs")
                .append_pair("scope", &scope)
                .append_pair("refresh_token", token.expose());
            let form = form.query().unwrap_or_default().to_owned();
            client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        } else {
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            url.query_pairs_mut().append_pair("scope", &scope);
            match login {
                Some(Login::Password { user, password }) => client.get(url).header(AUTHORIZATION, basic(user, password.expose())),
                _ => client.get(url),
            }
        };
        let mut response = self.send(request, what).await?;
        match response.status().as_u16() {
            200 => {}
            // Token servers say 400 to an identity token that they do not know.
            code @ (400 | 401 | 403) => {
                let status = format!("{code} from its token server; {origin}");
                return Err(Failure::Final(SourceError::Denied { place: self.place.clone(), what: what.to_owned(), status }));
            }
            _ => return Err(self.refused(response, &format!("a token for {what}")).await),
        }
        let bytes = match self.body(&mut response, what, limits::TOKEN_BYTES + 1).await {
            Body { bytes, .. } if bytes.len() as u64 > limits::TOKEN_BYTES => {
                return Err(wrong(format!("its token server's answer has more than {} bytes", limits::TOKEN_BYTES)));
            }
            Body { ending: Ending::Broken(failure), .. } => return Err(failure),
            Body { bytes, .. } => bytes,
        };
        // The parser's error might repeat the token.
        let token: RegistryToken =
            serde_json::from_slice(&bytes).map_err(|_| wrong("its token server's answer holds no token".to_owned()))?;
        let mut header = HeaderValue::try_from(token.bearer_token())
            .map_err(|_| wrong("its token server's answer holds a token that cannot be sent".to_owned()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // Base64 is always a header's value; the empty one would only be refused.
    let mut header = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer =
            |realm: &str, service: Option<&str>| Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) });
        for (values, expected) in [
            (&[r#"Basic realm="x""#][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (&[r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull""#], bearer("https://a/token", Some("s"))),
            (&[r#"BEARER Realm="https://a""#], bearer("https://a", None)),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a""#], bearer("https://a", None)),
            (&[r#"Basic realm="x", Bearer realm="https://a""#], bearer("https://a", None)),
            (&["Bearer"], None),
            (&[r#"Bearer service="s""#], None),
            (&["Negotiate"], None),
            (&[""], None),
            (&["\"", ",,,=", "Bearer realm=\"", "\u{e4}"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
            }
            assert_eq!(challenge(&headers), expected, "{values:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_challenge_is_too_strange(value in "[ -~\\t]{0,80}", known in "(Bearer|Basic) [a-z]{1,3}=[\"a,= \\\\]{0,20}") {
            for value in [value, known] {
                let mut headers = HeaderMap::new();
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(&value).expect("printable"));
                challenge(&headers);
            }
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let session = Session { authorization: Some(basic("me", "s3cret")), challenge: None, origin: "a file".into() };
        let encoded = STANDARD.encode("me:s3cret");
        let shown = format!("{session:?}");
        assert!(!shown.contains("s3cret") && !shown.contains(&encoded), "{shown}");
    }
}
