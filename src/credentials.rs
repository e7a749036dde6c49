//! Who to be at a registry: what `docker login`, `podman login`, `kit login` and credential helpers left on this host.
//!
//! The files are read each time a credential is wanted, because logins are renewed on disk while a mount lives. The first file that has
//! something for the registry wins, in this order:
//!
//! 1. `$REGISTRY_AUTH_FILE`
//! 2. `$DOCKER_CONFIG/config.json`
//! 3. `$KITOPS_HOME/credentials.json` (`$XDG_DATA_HOME/kitops` or `~/.local/share/kitops` if it is not set)
//! 4. `$XDG_RUNTIME_DIR/containers/auth.json`
//! 5. `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config` if it is not set)
//! 6. `~/.docker/config.json`
//!
//! so what was named for this run comes before what lies about, and kit's own before that of others. Within a file: the registry's
//! entry in `credHelpers`, then the longest key of `auths` that is the registry's host or a path below it which holds the repository,
//! then `credsStore`. This module knows nothing of HTTP, and a secret in it shows in no `Debug` and no error.

mod helper;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::{Deserialize, Serialize};

use crate::limits;

/// The key under which every tool keeps the login of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The files to look into, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    files: Vec<PathBuf>,
    helper_timeout: Duration,
}

/// What was found for a registry, and where.
#[derive(Debug, Clone)]
pub struct Found {
    /// The login, if there is one.
    pub login: Option<Login>,
    /// For people: which file or helper it came from, or why there is none. Never a secret.
    pub origin: String,
    /// A file could not be used before one was found or the last was looked at.
    pub trouble: bool,
}

/// A login at a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A user's name and password (or personal token).
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token that the registry's token server exchanges for an access token: OAuth 2's refresh token.
    Identity(Secret),
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a credential file or helper gave nothing, though there is something.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file is there and cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] std::io::Error),
    /// The file is larger than any credential file.
    #[error("it has more than {limit} bytes", limit = limits::CREDENTIAL_FILE_BYTES)]
    TooLarge,
    /// The file is not the JSON that it should be. (The parser's words might repeat a secret, so they are not kept.)
    #[error("it is not the JSON of a credential file")]
    Malformed,
    /// The entry for the registry cannot be read.
    #[error("the entry `{0}` is malformed")]
    Entry(String),
    /// The helper's name is not one.
    #[error("`{0}` is not the name of a credential helper")]
    HelperName(String),
    /// The helper could not be run.
    #[error("cannot run docker-credential-{0}: {1}")]
    HelperStart(String, #[source] std::io::Error),
    /// The helper did not answer in time.
    #[error("docker-credential-{0} gave no answer within {1} s")]
    HelperTimeout(String, u64),
    /// The helper failed, for another reason than having nothing.
    #[error("docker-credential-{0} failed")]
    HelperFailed(String),
    /// The helper's answer is not what helpers answer.
    #[error("docker-credential-{0} gave an answer that is not understood")]
    HelperAnswer(String),
}

/// The folder in which kit keeps what is its own, as this process's environment says. `None` if nothing says where.
pub fn kit_home() -> Option<PathBuf> {
    kit_home_of(&|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn kit_home_of(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    let data = || path("XDG_DATA_HOME").or_else(|| path("HOME").map(|home| home.join(".local/share")));
    path("KITOPS_HOME").or_else(|| data().map(|data| data.join("kitops")))
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for a header.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Credentials {
    /// The files that this process's environment names.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// No files: everywhere anonymous.
    pub fn none() -> Self {
        Self::from_files([])
    }

    /// Exactly these files.
    pub fn from_files(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().collect(), helper_timeout: Duration::from_secs(limits::HELPER_S) }
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = |below: &str| path("HOME").map(|home| home.join(below));
        let kit = kit_home_of(&variable);
        Self::from_files(
            [
                path("REGISTRY_AUTH_FILE"),
                path("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
                kit.map(|dir| dir.join("credentials.json")),
                path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
                path("XDG_CONFIG_HOME").or_else(|| home(".config")).map(|dir| dir.join("containers/auth.json")),
                home(".docker/config.json"),
            ]
            .into_iter()
            .flatten(),
        )
    }

    /// Looks for a login for `repository` at `host` (with its port). Blocks: it reads files and may run a helper.
    pub fn find(&self, host: &str, repository: &str) -> Found {
        let mut trouble = Vec::new();
        for file in &self.files {
            match self.look_into(file, host, repository) {
                Ok(Some((login, origin))) => {
                    return Found { login: Some(login), origin: format!("the login in {origin}"), trouble: !trouble.is_empty() };
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "skipping a credential file");
                    trouble.push(format!("{}: {error}", file.display()));
                }
            }
        }
        let origin =
            if trouble.is_empty() { format!("no login for {host}") } else { format!("no login for {host} ({})", trouble.join("; ")) };
        Found { login: None, origin, trouble: !trouble.is_empty() }
    }

    fn look_into(&self, path: &Path, host: &str, repository: &str) -> Result<Option<(Login, String)>, CredentialError> {
        let Some(config) = read(path)? else { return Ok(None) };
        let hub = is_docker_hub(host);
        let asked = if hub { DOCKER_HUB_KEY } else { host };
        // A helper that has nothing is no reason not to look further in the same file.
        let ask = |name: &str| -> Result<Option<(Login, String)>, CredentialError> {
            let login = helper::ask(name, asked, self.helper_timeout)?;
            Ok(login.map(|login| (login, format!("docker-credential-{name} ({})", path.display()))))
        };
        if let Some(name) = best(&config.cred_helpers, host, repository).map(|(_, name)| name).filter(|name| !name.is_empty())
            && let Some(found) = ask(name)?
        {
            return Ok(Some(found));
        }
        let entries: BTreeMap<_, _> = config.auths.into_iter().filter(|(_, entry)| !entry.is_empty()).collect();
        if let Some((key, entry)) = best(&entries, host, repository) {
            return Ok(Some((entry.login(key)?, path.display().to_string())));
        }
        match &config.creds_store {
            Some(name) if !name.is_empty() => ask(name),
            _ => Ok(None),
        }
    }
}

/// The parts of a credential file that say how to log in.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

/// One login of a credential file. What is empty is not there: with a helper the tools leave empty entries behind.
#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<String>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.password, &self.identitytoken].into_iter().all(|field| field.as_deref().unwrap_or_default().is_empty())
    }

    /// What the entry means; `docker_credential` knows the forms.
    fn login(&self, key: &str) -> Result<Login, CredentialError> {
        let full = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let entry = Self {
            auth: full(&self.auth),
            username: full(&self.username),
            password: full(&self.password),
            identitytoken: full(&self.identitytoken),
        };
        let malformed = || CredentialError::Entry(key.to_owned());
        let alone = serde_json::to_vec(&serde_json::json!({ "auths": { "it": entry } })).map_err(|_| malformed())?;
        match docker_credential::get_credential_from_reader(alone.as_slice(), "it") {
            Ok(DockerCredential::IdentityToken(token)) => Ok(Login::Identity(Secret(token))),
            // Some tools pad the decoded text with zeroes.
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Login::Password { user, password: Secret(password.trim_end_matches('\0').to_owned()) })
            }
            // Each of its errors may hold what it could not decode.
            Err::<_, CredentialRetrievalError>(_) => Err(malformed()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Config>, CredentialError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(CredentialError::Read(error)),
    };
    let mut text = Vec::new();
    file.take(limits::CREDENTIAL_FILE_BYTES + 1).read_to_end(&mut text).map_err(CredentialError::Read)?;
    if text.len() as u64 > limits::CREDENTIAL_FILE_BYTES {
        return Err(CredentialError::TooLarge);
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&text).map(Some).map_err(|_| CredentialError::Malformed)
}

/// The entry with the longest key that covers `repository` at `host`.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, host: &str, repository: &str) -> Option<(&'a str, &'a T)> {
    let host = plain_host(host);
    entries
        .iter()
        .filter_map(|(key, entry)| {
            let (key_host, path) = split_key(key);
            let covers = path.is_empty() || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            (key_host == host && covers).then_some((path.len(), key.as_str(), entry))
        })
        .max_by_key(|(length, ..)| *length)
        .map(|(_, key, entry)| (key, entry))
}

/// A key as host and path: `https://index.docker.io/v1/`, `ghcr.io`, `quay.io/acme`.
fn split_key(key: &str) -> (String, &str) {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_end_matches('/');
    // The version of the API that some tools append is no part of a repository.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (plain_host(host), path)
}

fn plain_host(host: &str) -> String {
    if is_docker_hub(host) { "docker.io".to_owned() } else { host.to_ascii_lowercase() }
}

fn is_docker_hub(host: &str) -> bool {
    matches!(host.to_ascii_lowercase().as_str(), "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

#[cfg(test)]
mod tests;
