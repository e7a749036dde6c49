//! References: what a person writes to say which kit is meant.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::limits;

/// Where a kit is, and which one it is there.
///
/// `HOST/REPOSITORY[:TAG][@DIGEST]` for a registry, `oci:DIR[:NAME][@DIGEST]` for an OCI layout. It prints in one canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    transport: Transport,
    digest: Option<Digest>,
}

/// The kinds of places, named as skopeo names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A registry of the distribution spec.
    Registry(RegistryName),
    /// A folder that is an OCI image layout.
    Layout(LayoutName),
}

/// A repository of a registry and a tag in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryName {
    host: String,
    repository: String,
    tag: Option<String>,
}

/// An OCI image layout and a name in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayoutName {
    dir: PathBuf,
    name: Option<String>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is nothing.
    #[error("the reference is empty")]
    Empty,
    /// It starts with a scheme.
    #[error("`{0}` is a URL: a reference has no `{1}` before the host")]
    Url(String, String),
    /// The transport is one that skopeo or kit knows and kitfs does not.
    #[error("`{0}`: the transport `{1}:` is not known (a registry's `HOST/REPOSITORY` and `oci:DIR` are)")]
    Transport(String, String),
    /// The first part is no host.
    #[error("`{0}` names no registry: expected HOST/REPOSITORY[:TAG][@DIGEST] with a `.` or `:` in HOST, or `localhost`")]
    NoRegistry(String),
    /// The host, or its port, is malformed.
    #[error("`{0}`: `{1}` is not a host name with an optional port")]
    Host(String, String),
    /// The repository is malformed.
    #[error("`{0}`: `{1}` cannot be part of a repository's name (lower-case letters and digits, joined by `.`, `_`, `__` or `-`)")]
    Repository(String, String),
    /// The tag is malformed.
    #[error("`{0}`: `{1}` is not a tag (letters, digits, `_`, `.` and `-`, at most 128, not starting with `.` or `-`)")]
    Tag(String, String),
    /// Host and repository together are too long.
    #[error("`{0}`: host and repository have {1} bytes, {limit} are allowed", limit = limits::REFERENCE_NAME_BYTES)]
    TooLong(String, usize),
    /// What follows the `@` is no digest.
    #[error("`{0}`")]
    Digest(String, #[source] DigestError),
    /// There is no folder after `oci:`.
    #[error("`{0}` names no folder: expected oci:DIR[:NAME]")]
    NoFolder(String),
    /// There is a control character in it.
    #[error("the reference `{}` has a control character in it", .0.escape_debug())]
    Control(String),
}

impl Reference {
    /// The kind of place, with what names the kit there.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The digest of the manifest, if the reference names one. It decides; a tag beside it is for people.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same reference, pinned to `digest`.
    pub fn at(&self, digest: Digest) -> Self {
        Self { transport: self.transport.clone(), digest: Some(digest) }
    }

    /// The reference pinned to `digest` as a text, which is what a mount shows as its source.
    pub fn with_digest(&self, digest: Digest) -> String {
        self.at(digest).to_string()
    }

    /// The same reference as it is meant from anywhere: a folder that is not absolute is taken to stand in `base`.
    pub fn absolute(&self, base: &Path) -> Self {
        let transport = match &self.transport {
            Transport::Layout(LayoutName { dir, name }) => Transport::Layout(LayoutName { dir: base.join(dir), name: name.clone() }),
            Transport::Registry(_) => self.transport.clone(),
        };
        Self { transport, digest: self.digest }
    }
}

impl RegistryName {
    /// The host in lower case, with its port if one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository: `acme/minilm`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None` only if the reference has a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl LayoutName {
    /// The folder with `oci-layout` and `index.json`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name in it: an `org.opencontainers.image.ref.name`, or the tag of one. `None` means the only manifest that there is.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains(char::is_control) {
            return Err(ReferenceError::Control(text.to_owned()));
        }
        if let Some(end) = text.find("://") {
            return Err(ReferenceError::Url(text.to_owned(), text[..end + 3].to_owned()));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(text, rest);
        }
        if let Some((transport @ ("oci-archive" | "kitops" | "dir" | "docker-archive" | "containers-storage"), _)) = text.split_once(':') {
            return Err(ReferenceError::Transport(text.to_owned(), transport.to_owned()));
        }
        // A host is printed in lower case, so `oCi:5/x`, with a port, would be another place when it is read again.
        if let Some((host, _)) = text.split_once(':')
            && TRANSPORTS.iter().any(|transport| host.eq_ignore_ascii_case(transport))
        {
            return Err(ReferenceError::Transport(text.to_owned(), host.to_owned()));
        }
        registry(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Registry(RegistryName { host, repository, tag }) => {
                write!(f, "{host}/{repository}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
            }
            Transport::Layout(LayoutName { dir, name }) => {
                // A path that came from a text is one; `absolute` may have put a folder before it that is not.
                write!(f, "oci:{}", dir.display())?;
                if let Some(name) = name {
                    write!(f, ":{name}")?;
                }
            }
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// What stands before a `:` and is no host, however it is written.
const TRANSPORTS: [&str; 6] = ["oci", "oci-archive", "kitops", "dir", "docker-archive", "containers-storage"];

fn registry(text: &str) -> Result<Reference, ReferenceError> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|cause| ReferenceError::Digest(text.to_owned(), cause))?)),
        None => (text, None),
    };
    let (host, path) = name.split_once('/').ok_or_else(|| ReferenceError::NoRegistry(text.to_owned()))?;
    if !host.contains(['.', ':']) && host != "localhost" {
        return Err(ReferenceError::NoRegistry(text.to_owned()));
    }
    if !is_host(host) {
        return Err(ReferenceError::Host(text.to_owned(), host.to_owned()));
    }
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    if let Some(component) = repository.split('/').find(|component| !is_component(component)) {
        return Err(ReferenceError::Repository(text.to_owned(), component.to_owned()));
    }
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(ReferenceError::Tag(text.to_owned(), tag.to_owned()));
    }
    let length = host.len() + 1 + repository.len();
    if length > limits::REFERENCE_NAME_BYTES {
        return Err(ReferenceError::TooLong(text.to_owned(), length));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    let name = RegistryName { host: host.to_ascii_lowercase(), repository: repository.to_owned(), tag };
    Ok(Reference { transport: Transport::Registry(name), digest })
}

fn layout(text: &str, rest: &str) -> Result<Reference, ReferenceError> {
    let (place, digest) = match split_digest(rest) {
        Some((place, digest)) => (place, Some(digest.parse().map_err(|cause| ReferenceError::Digest(text.to_owned(), cause))?)),
        None => (rest, None),
    };
    let (dir, name) = match place.split_once(':') {
        Some((dir, name)) => (dir, Some(name)),
        None => (place, None),
    };
    // `oci:DIR:@sha256:…` has an empty name before its digest.
    if dir.is_empty() || (name == Some("") && digest.is_none()) {
        return Err(ReferenceError::NoFolder(text.to_owned()));
    }
    let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Reference { transport: Transport::Layout(LayoutName { dir: PathBuf::from(dir), name }), digest })
}

/// Splits a digest from the end. A folder's name may hold an `@` too, so only what looks like a digest is taken for one.
fn split_digest(place: &str) -> Option<(&str, &str)> {
    let (before, after) = place.rsplit_once('@')?;
    let (algorithm, hex) = after.split_once(':')?;
    let meant = matches!(algorithm, "sha256" | "sha512") || (hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    meant.then_some((before, after))
}

/// `host`, `host:port`, `[ipv6]`, `[ipv6]:port`.
fn is_host(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let is_label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(is_label) && port.is_none_or(is_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !(bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word)) {
        return false;
    }
    component
        .split(|letter: char| u8::try_from(letter).is_ok_and(is_word))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.bytes().next().is_some_and(is_word)
        && tag.len() <= limits::TAG_BYTES
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        text.parse()
    }

    #[test]
    fn registry_references() {
        let digest = format!("@sha256:{HEX}");
        let with_digest = format!("ghcr.io/a/b{digest}");
        let with_both = format!("ghcr.io/a/b:v1{digest}");
        for (text, canonical, host, repository, tag) in [
            ("reg.example/acme/m:v1", "reg.example/acme/m:v1", "reg.example", "acme/m", Some("v1")),
            ("127.0.0.1:5000/m", "127.0.0.1:5000/m:latest", "127.0.0.1:5000", "m", Some("latest")),
            ("localhost/m:V_1.2-x", "localhost/m:V_1.2-x", "localhost", "m", Some("V_1.2-x")),
            ("localhost:5000/a/b/c__d/e-f.g", "localhost:5000/a/b/c__d/e-f.g:latest", "localhost:5000", "a/b/c__d/e-f.g", Some("latest")),
            ("Reg.Example/a---b", "reg.example/a---b:latest", "reg.example", "a---b", Some("latest")),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000", "a", Some("latest")),
            (&with_digest, &with_digest, "ghcr.io", "a/b", None),
            (&with_both, &with_both, "ghcr.io", "a/b", Some("v1")),
        ] {
            let reference = parse(text).expect(text);
            let Transport::Registry(name) = reference.transport() else { panic!("{text}") };
            assert_eq!((name.host(), name.repository(), name.tag()), (host, repository, tag), "{text}");
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(reference.digest().is_some(), text.contains('@'));
        }
    }

    #[test]
    fn layout_references() {
        let digest = format!("sha256:{HEX}");
        for (text, canonical, dir, name, pinned) in [
            ("oci:/srv/kits".to_owned(), None, "/srv/kits", None, false),
            ("oci:kits:v1".to_owned(), None, "kits", Some("v1"), false),
            ("oci:../kits:reg.example/a/b:v1".to_owned(), None, "../kits", Some("reg.example/a/b:v1"), false),
            (format!("oci:kits@{digest}"), None, "kits", None, true),
            (format!("oci:kits:@{digest}"), Some(format!("oci:kits@{digest}")), "kits", None, true),
            (format!("oci:kits:v1@{digest}"), None, "kits", Some("v1"), true),
            ("oci:/home/me@here:v1".to_owned(), None, "/home/me@here", Some("v1"), false),
            ("oci:/mnt/50%/a b".to_owned(), None, "/mnt/50%/a b", None, false),
        ] {
            let reference = parse(&text).expect(&text);
            let Transport::Layout(layout) = reference.transport() else { panic!("{text}") };
            assert_eq!((layout.dir(), layout.name(), reference.digest().is_some()), (Path::new(dir), name, pinned), "{text}");
            assert_eq!(reference.to_string(), canonical.unwrap_or(text));
        }
    }

    #[test]
    fn malformed_references() {
        let long = format!("reg.example/{}", "a".repeat(244));
        let upper = format!("reg.example/a@sha256:{}", HEX.to_uppercase());
        let tag = format!("reg.example/a:{}", "t".repeat(129));
        for (text, part) in [
            ("", "empty"),
            ("minilm", "names no registry"),
            ("minilm:v1", "names no registry"),
            ("acme/minilm:v1", "names no registry"),
            ("https://reg.example/a", "is a URL: a reference has no `https://`"),
            ("oci://reg.example/a", "is a URL"),
            ("docker://reg.example/a:v1", "is a URL"),
            ("oci-archive:x.tar", "the transport `oci-archive:` is not known"),
            ("kitops:reg.example/a", "the transport `kitops:` is not known"),
            ("reg.example/", "cannot be part of a repository"),
            ("reg.example/A", "`A` cannot be part of a repository"),
            ("reg.example/a/../b", "`..` cannot be part of a repository"),
            ("reg.example/a//b", "`` cannot be part of a repository"),
            ("reg.example/a%2fb", "`a%2fb` cannot be part of a repository"),
            ("reg.example/a___b", "`a___b` cannot be"),
            ("reg.example/a..b", "`a..b` cannot be"),
            ("reg.example/a-_b", "`a-_b` cannot be"),
            ("reg.example/-a", "`-a` cannot be"),
            ("reg.example/a.", "`a.` cannot be"),
            ("reg.example/é", "`é` cannot be"),
            ("reg.example/a?x=1", "cannot be part"),
            ("reg.example/a b", "cannot be part"),
            ("reg.example/a:", "`` is not a tag"),
            ("reg.example/a:-v", "`-v` is not a tag"),
            ("reg.example/a:v:w", "`v:w` is not a tag"),
            ("reg.example/a:v/b", "`v/b` is not a tag"),
            (&tag, "is not a tag"),
            (&long, "host and repository have 256 bytes, 255 are allowed"),
            ("-reg.example/a", "is not a host"),
            ("reg..example/a", "is not a host"),
            ("reg.example:/a", "is not a host"),
            ("reg.example:70000/a", "is not a host"),
            ("reg.example:0/a", "is not a host"),
            ("reg.example:+80/a", "is not a host"),
            ("user@reg.example/a", "reg.example/a"),
            ("reg_x.example/a", "is not a host"),
            ("[::1/a.b", "is not a host"),
            ("[fe80::1%eth0]/a", "is not a host"),
            ("reg.example/a@sha256:00", "reg.example/a@sha256:00"),
            (&upper, "reg.example"),
            ("reg.example/a@md5:d41d8cd98f00b204e9800998ecf8427e", "md5"),
            ("oci:", "names no folder"),
            ("oci::v1", "names no folder"),
            ("oci:kits:", "names no folder"),
            ("oci:kits@sha256:00", "oci:kits@sha256:00"),
            ("oci:kits@md5:d41d8cd98f00b204e9800998ecf8427e", "md5"),
            ("reg.example/a\n", "control character"),
            ("oci:a\0b", "control character"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_that_is_a_transport_in_other_letters_was_read_back_as_a_folder() {
        for text in ["oCi:5/ci", "OCI:5000/a/b:v1", "KitOps:80/a", "Oci-Archive:1/x"] {
            assert!(matches!(parse(text), Err(ReferenceError::Transport(..))), "{text}");
        }
        assert!(parse("oci.example:5000/a").is_ok());
    }

    #[test]
    fn a_pinned_reference_is_the_source_of_a_mount() {
        let digest: Digest = format!("sha256:{HEX}").parse().expect("well-formed");
        let reference = parse("reg.example/acme/m:v1").expect("well-formed");
        assert_eq!(reference.with_digest(digest), format!("reg.example/acme/m:v1@sha256:{HEX}"));
        assert_eq!(parse(&reference.with_digest(digest)), Ok(reference.at(digest)));
        assert_eq!(parse("oci:kits:v1").expect("well-formed").absolute(Path::new("/srv")).to_string(), "oci:/srv/kits:v1");
    }

    proptest! {
        #[test]
        fn what_the_grammar_makes_is_read_back(
            host in r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?(\.[a-z0-9]{1,5}){1,3}(:[1-9][0-9]{0,3})?",
            repository in r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,3}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"),
            digest in proptest::option::of("[0-9a-f]{64}"),
        ) {
            let mut text = format!("{host}/{repository}");
            if let Some(tag) = &tag {
                text = format!("{text}:{tag}");
            }
            if let Some(digest) = &digest {
                text = format!("{text}@sha256:{digest}");
            }
            let reference = parse(&text).expect("made by the grammar");
            if tag.is_none() && digest.is_none() {
                text += ":latest";
            }
            prop_assert_eq!(reference.to_string(), text);
        }

        #[test]
        fn whatever_is_accepted_prints_as_itself(text in r"(oci:)?[a-zA-Z0-9./:@_%\[\]-]{0,40}(@sha256:[0-9a-f]{64})?") {
            if let Ok(reference) = parse(&text) {
                let canonical = reference.to_string();
                prop_assert_eq!(parse(&canonical), Ok(reference.clone()));
                if let Transport::Registry(name) = reference.transport() {
                    let part = format!("{}/{}", name.repository(), name.tag().unwrap_or_default());
                    prop_assert!(!part.contains("..") || name.tag().is_some_and(|tag| tag.contains("..")));
                    prop_assert!(!part.contains(['%', '@', '\\', '?', '#']));
                    let lower = name.repository().to_ascii_lowercase();
                    prop_assert_eq!(&lower, name.repository());
                }
            }
        }
    }
}
