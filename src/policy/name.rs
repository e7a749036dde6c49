//! Names of kits, in one spelling, as policies and signatures speak of them.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::digest::Digest;
use crate::oci::{Reference, ReferenceError, RegistryName, Transport};

/// Docker Hub, under whichever of its names.
const DOCKER: &str = "docker.io";
/// Its other names.
const DOCKER_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Where its repositories of one part are.
pub(super) const DOCKER_LIBRARY: &str = "library/";

/// A repository, and what of it is meant: a tag, a digest, both or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It names a place on this host.
    #[error("`{0}` names no repository of a registry")]
    NoRegistry(String),
    /// It says more than a repository.
    #[error("`{0}` has a tag or a digest: only a repository was expected")]
    NotARepository(String),
}

impl Name {
    /// A kit of a registry: `latest` is meant if `text` has neither tag nor digest.
    pub fn of_kit(text: &str) -> Result<Self, NameError> {
        let reference: Reference = text.parse()?;
        match reference.transport() {
            Transport::Registry(name) => Ok(Self::new(name, name.tag(), reference.digest())),
            _ => Err(NameError::NoRegistry(text.to_owned())),
        }
    }

    /// A repository without tag and digest.
    pub fn of_repository(text: &str) -> Result<Self, NameError> {
        let name = Self::of_kit(text)?;
        // Parsing adds `latest`, and a tag that was written is still there in the text.
        let written = text.rsplit('/').next().unwrap_or_default();
        if written.contains([':', '@']) {
            return Err(NameError::NotARepository(text.to_owned()));
        }
        Ok(Self { tag: None, ..name })
    }

    /// What a signature says in `docker-reference`: `latest` is not meant where no tag stands.
    pub fn of_docker_reference(text: &str) -> Result<Self, NameError> {
        Self::of_repository(text).or_else(|_| Self::of_kit(text))
    }

    /// A repository of a registry with what is known of it.
    pub fn new(name: &RegistryName, tag: Option<&str>, digest: Option<Digest>) -> Self {
        let host = host(name.host());
        let library = if host == DOCKER && !name.repository().contains('/') { DOCKER_LIBRARY } else { "" };
        Self {
            repository: format!("{host}/{library}{}", name.repository()),
            tag: tag.map(str::to_owned),
            digest: digest.map(|digest| digest.to_string()),
        }
    }

    /// Host and repository.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The same name with the digest that it was resolved to.
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest.to_string()), ..self.clone() }
    }

    /// The same name as whoever said it without knowing the digest.
    pub fn without_digest(&self) -> Self {
        Self { digest: None, ..self.clone() }
    }

    /// What globs are held against: `repo`, `repo:tag` and `repo@digest`, as far as they are known.
    pub fn forms(&self) -> Vec<String> {
        let tagged = self.tag.iter().map(|tag| format!("{}:{tag}", self.repository));
        let pinned = self.digest.iter().map(|digest| format!("{}@{digest}", self.repository));
        [self.repository.clone()].into_iter().chain(tagged).chain(pinned).collect()
    }

    /// Whether a `docker-reference` that says `self` fits `asked`: the same repository, and the same tag if both have one.
    pub fn fits(&self, asked: &Self) -> bool {
        let tags_differ = self.tag.is_some() && asked.tag.is_some() && self.tag != asked.tag;
        self.repository == asked.repository && !tags_differ
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::of_kit(text)
    }
}

/// A host as names have it: in lower case, a port as a plain number and none that is https's own, Docker Hub under one name.
pub(super) fn host(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty() => (name, Some(port)),
        _ => (text.as_str(), None),
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).and_then(|name| name.parse::<Ipv6Addr>().ok());
    let name = match address {
        Some(address) => format!("[{address}]"),
        None if DOCKER_ALIASES.contains(&name) => DOCKER.to_owned(),
        None => name.to_owned(),
    };
    match port.map(|port| port.trim_start_matches('0')) {
        None | Some("443") => name,
        // A port of Docker Hub's that is not its own is somebody else's.
        Some(port) => format!("{name}:{port}"),
    }
}

/// Whether a host is Docker Hub.
pub(super) fn is_docker(host: &str) -> bool {
    host == DOCKER
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_have_one_spelling() {
        for (text, expected) in [
            ("Kits.Example.TEST/acme/a:v1", "kits.example.test/acme/a:v1"),
            ("kits.example.test:443/a", "kits.example.test/a:latest"),
            ("kits.example.test:0443/a", "kits.example.test/a:latest"),
            ("kits.example.test:05000/a", "kits.example.test:5000/a:latest"),
            ("kits.example.test:4430/a:x", "kits.example.test:4430/a:x"),
            ("[0:0::1]:443/a:x", "[::1]/a:x"),
            ("localhost/a:x", "localhost/a:x"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("registry-1.docker.io:443/library/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/acme/a:1", "docker.io/acme/a:1"),
            ("evil.docker.io/a:1", "evil.docker.io/a:1"),
        ] {
            assert_eq!(Name::of_kit(text).unwrap_or_else(|error| panic!("{error}")).to_string(), expected, "{text}");
        }
        let pinned = format!("h.test/a@{DIGEST}");
        assert_eq!(Name::of_kit(&pinned).expect("a reference").to_string(), pinned, "no `latest` beside a digest");
        let both = Name::of_kit(&format!("h.test/a:v1@{DIGEST}")).expect("a reference");
        assert_eq!(both.forms(), ["h.test/a".to_owned(), "h.test/a:v1".to_owned(), pinned.clone()]);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "h.test",
            "h.test/",
            "h.test/../b",
            "h.test/a%2fb",
            "h.test/A",
            "nohost/a",
            "h.test/a:",
            "oci:dir:x",
            "kitops:a/b:c",
            "https://h.test/a",
        ] {
            assert!(Name::of_kit(text).is_err(), "{text}");
        }
        for text in ["h.test/a:v1", "h.test:5000/a:latest", &format!("h.test/a@{DIGEST}")] {
            assert_eq!(Name::of_repository(text), Err(NameError::NotARepository(text.to_owned())));
        }
        assert_eq!(Name::of_repository("H.test:5000/a").expect("a repository").to_string(), "h.test:5000/a");
    }

    #[test]
    fn a_docker_reference_fits_by_repository_and_by_tag_if_both_have_one() {
        for (said, asked, fits) in [
            ("h.test/a", "h.test/a:v1", true),
            ("H.test:443/a:v1", "h.test/a:v1", true),
            ("h.test/a:v2", "h.test/a:v1", false),
            ("h.test/a:latest", "h.test/a:v1", false),
            ("h.test/b", "h.test/a:v1", false),
            ("index.docker.io/library/busybox", "docker.io/busybox:1", true),
        ] {
            let said = Name::of_docker_reference(said).expect("a reference");
            assert_eq!(said.fits(&Name::of_kit(asked).expect("a reference")), fits, "{said} {asked}");
        }
        let pinned = Name::of_kit(&format!("h.test/a@{DIGEST}")).expect("a reference");
        assert!(Name::of_docker_reference("h.test/a:v1").expect("a reference").fits(&pinned));
        assert!(Name::of_docker_reference("acme/a").is_err());
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(
            host in "([a-zA-Z0-9]{1,4}\\.[a-zA-Z]{2,3}|localhost|docker\\.io|Index\\.docker\\.io|registry-1\\.docker\\.io|\\[::1\\])(:0{0,2}(443|5000|1))?",
            path in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,2}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-z.-]{0,5}"),
            pinned in any::<bool>(),
        ) {
            let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = if pinned { format!("@{DIGEST}") } else { String::new() };
            let text = format!("{host}/{path}{tag}{digest}");
            let name = Name::of_kit(&text).expect("a reference");
            prop_assert_eq!(&Name::of_kit(&name.to_string()).expect("a reference"), &name);
            // `LOCALHOST` is no registry to whoever reads references.
            if !host.starts_with("localhost") {
                prop_assert_eq!(&Name::of_kit(&text.replacen(&host, &host.to_ascii_uppercase(), 1)).expect("a reference"), &name);
            }
            for form in name.forms() {
                let said = Name::of_docker_reference(&form).expect("a reference");
                prop_assert_eq!(said.repository(), name.repository());
            }
        }
    }
}
