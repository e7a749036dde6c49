//! References: what a person writes to say which kit is meant.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::limits;

/// Where a kit is, and which one it is there.
///
/// `HOST/REPOSITORY[:TAG][@DIGEST]` for a registry, `oci:DIR[:NAME][@DIGEST]` and `oci-archive:FILE[:NAME][@DIGEST]` for an OCI layout,
/// `kitops:[HOST/]REPOSITORY[:TAG][@DIGEST]` for kit's own storage. It prints in one canonical spelling.
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
    /// A tar of such a folder.
    Archive(LayoutName),
    /// Kit's own storage on this host, which names its kits by the registry that they are of.
    Kitops(RegistryName),
}

/// The registry of kits in kit's storage that name none.
const KIT_LOCALHOST: &str = "localhost";

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
    path: PathBuf,
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
    #[error(
        "`{0}`: the transport `{1}:` is not known (a registry's `HOST/REPOSITORY`, `oci:DIR`, `oci-archive:FILE` and `kitops:REF` are)"
    )]
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
    #[error("`{0}` names no folder: expected oci:DIR[:NAME], where DIR has no colon")]
    NoFolder(String),
    /// There is no file after `oci-archive:`.
    #[error("`{0}` names no file: expected oci-archive:FILE[:NAME], where FILE has no colon")]
    NoFile(String),
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

    /// Another kit in the place where this one is, by the name that it would have there. `None` for a registry, where a name says by itself where it is.
    pub fn beside(&self, name: &str, digest: Option<Digest>) -> Option<Self> {
        let named = |LayoutName { path, .. }: &LayoutName| LayoutName { path: path.clone(), name: Some(name.to_owned()) };
        let transport = match &self.transport {
            Transport::Registry(_) => return None,
            Transport::Layout(layout) => Transport::Layout(named(layout)),
            Transport::Archive(layout) => Transport::Archive(named(layout)),
            Transport::Kitops(_) => return Self::in_kit_storage(name, digest),
        };
        Some(Self { transport, digest })
    }

    /// A kit of kit's own storage. `None` if it can have none of that name.
    pub fn in_kit_storage(name: &str, digest: Option<Digest>) -> Option<Self> {
        let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        format!("kitops:{name}{digest}").parse().ok()
    }

    /// The same reference as it is meant from anywhere: a path that is not absolute is taken to begin in `base`.
    pub fn absolute(&self, base: &Path) -> Self {
        let below = |LayoutName { path, name }: &LayoutName| LayoutName { path: base.join(path), name: name.clone() };
        let transport = match &self.transport {
            Transport::Layout(layout) => Transport::Layout(below(layout)),
            Transport::Archive(layout) => Transport::Archive(below(layout)),
            Transport::Registry(_) | Transport::Kitops(_) => self.transport.clone(),
        };
        Self { transport, digest: self.digest }
    }
}

impl RegistryName {
    /// The host with its port if one was given; of a registry that is asked in lower case, in kit's storage as it was written.
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
    /// The folder with `oci-layout` and `index.json`, or the archive of it.
    pub fn path(&self) -> &Path {
        &self.path
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
        match text.split_once(':') {
            Some(("oci", rest)) => layout(text, rest, Transport::Layout, ReferenceError::NoFolder),
            Some(("oci-archive", rest)) => layout(text, rest, Transport::Archive, ReferenceError::NoFile),
            Some(("kitops", rest)) => kitops(text, rest),
            // A host is printed in lower case, so `oCi:5/x`, with a port, would be another place when it is read again.
            Some((other, _)) if TRANSPORTS.iter().any(|transport| other.eq_ignore_ascii_case(transport)) => {
                Err(ReferenceError::Transport(text.to_owned(), other.to_owned()))
            }
            _ => registry(text),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, place, name) = match &self.transport {
            Transport::Registry(RegistryName { host, repository, tag }) => ("", format!("{host}/{repository}"), tag),
            // A registry without a dot or a colon is none to kit, so what has none must not be given one.
            Transport::Kitops(RegistryName { host, repository, tag }) if host == KIT_LOCALHOST => ("kitops:", repository.clone(), tag),
            Transport::Kitops(RegistryName { host, repository, tag }) => ("kitops:", format!("{host}/{repository}"), tag),
            // A path that came from a text is one; `absolute` may have put a folder before it that is not.
            Transport::Layout(LayoutName { path, name }) => ("oci:", path.display().to_string(), name),
            Transport::Archive(LayoutName { path, name }) => ("oci-archive:", path.display().to_string(), name),
        };
        write!(f, "{scheme}{place}")?;
        if let Some(name) = name {
            write!(f, ":{name}")?;
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
    let (host, _) = text.split_once('/').ok_or_else(|| ReferenceError::NoRegistry(text.to_owned()))?;
    if !host.contains(['.', ':']) && host != "localhost" {
        return Err(ReferenceError::NoRegistry(text.to_owned()));
    }
    let (name, digest) = named(text, text)?;
    let name = RegistryName { host: name.host.to_ascii_lowercase(), ..name };
    Ok(Reference { transport: Transport::Registry(name), digest })
}

/// Kit's own rule: what has no dot or colon in its first part (or no slash at all) names no registry, also if that part is `localhost`.
fn kitops(text: &str, rest: &str) -> Result<Reference, ReferenceError> {
    let has_registry = rest.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']));
    let (name, digest) = if has_registry { named(text, rest)? } else { named(text, &format!("{KIT_LOCALHOST}/{rest}"))? };
    Ok(Reference { transport: Transport::Kitops(name), digest })
}

/// `HOST/REPOSITORY[:TAG][@DIGEST]`, which is all of the reference `text` or what follows its transport.
fn named(text: &str, rest: &str) -> Result<(RegistryName, Option<Digest>), ReferenceError> {
    let (name, digest) = match rest.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|cause| ReferenceError::Digest(text.to_owned(), cause))?)),
        None => (rest, None),
    };
    let (host, path) = name.split_once('/').ok_or_else(|| ReferenceError::NoRegistry(text.to_owned()))?;
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
    Ok((RegistryName { host: host.to_owned(), repository: repository.to_owned(), tag }, digest))
}

/// `PATH[:NAME][@DIGEST]`. The path ends at the first colon, as for skopeo, so it can have none.
fn layout(
    text: &str,
    rest: &str,
    transport: fn(LayoutName) -> Transport,
    missing: fn(String) -> ReferenceError,
) -> Result<Reference, ReferenceError> {
    let (place, digest) = match split_digest(rest) {
        Some((place, digest)) => (place, Some(digest.parse().map_err(|cause| ReferenceError::Digest(text.to_owned(), cause))?)),
        None => (rest, None),
    };
    let (path, name) = match place.split_once(':') {
        Some((path, name)) => (path, Some(name)),
        None => (place, None),
    };
    // `oci:DIR:@sha256:…` has an empty name before its digest.
    if path.is_empty() || (name == Some("") && digest.is_none()) {
        return Err(missing(text.to_owned()));
    }
    let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Reference { transport: transport(LayoutName { path: PathBuf::from(path), name }), digest })
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
            assert_eq!((layout.path(), layout.name(), reference.digest().is_some()), (Path::new(dir), name, pinned), "{text}");
            let canonical = canonical.unwrap_or(text.clone());
            assert_eq!(reference.to_string(), canonical);
            // An archive is named alike, by the rule of skopeo: what follows the first colon is a name.
            let archive = |text: &str| text.replacen("oci:", "oci-archive:", 1);
            let reference = parse(&archive(&text)).expect(&text);
            let Transport::Archive(layout) = reference.transport() else { panic!("{text}") };
            assert_eq!((layout.path(), layout.name(), reference.digest().is_some()), (Path::new(dir), name, pinned), "{text}");
            assert_eq!(reference.to_string(), archive(&canonical));
        }
    }

    #[test]
    fn references_into_the_storage_of_kit() {
        let digest = format!("@sha256:{HEX}");
        for (text, canonical, host, repository, tag) in [
            ("reg.example/acme/m:v1", "reg.example/acme/m:v1", "reg.example", "acme/m", Some("v1")),
            ("reg.example:5000/m", "reg.example:5000/m:latest", "reg.example:5000", "m", Some("latest")),
            ("localhost:5000/m", "localhost:5000/m:latest", "localhost:5000", "m", Some("latest")),
            // Kit names its files by what was written.
            ("Reg.Example/m", "Reg.Example/m:latest", "Reg.Example", "m", Some("latest")),
            ("notes", "notes:latest", "localhost", "notes", Some("latest")),
            ("notes:v1", "notes:v1", "localhost", "notes", Some("v1")),
            ("my.notes:v1", "my.notes:v1", "localhost", "my.notes", Some("v1")),
            ("acme/notes:v1", "acme/notes:v1", "localhost", "acme/notes", Some("v1")),
            ("localhost/notes:v1", "localhost/notes:v1", "localhost", "localhost/notes", Some("v1")),
            (&format!("notes{digest}"), &format!("notes{digest}"), "localhost", "notes", None),
            (&format!("notes:v1{digest}"), &format!("notes:v1{digest}"), "localhost", "notes", Some("v1")),
        ] {
            let reference = parse(&format!("kitops:{text}")).expect(text);
            let Transport::Kitops(name) = reference.transport() else { panic!("{text}") };
            assert_eq!((name.host(), name.repository(), name.tag()), (host, repository, tag), "{text}");
            assert_eq!(reference.to_string(), format!("kitops:{canonical}"));
            assert_eq!(parse(&reference.to_string()), Ok(reference));
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
            ("docker-archive:x.tar", "the transport `docker-archive:` is not known"),
            ("containers-storage:a", "the transport `containers-storage:` is not known"),
            ("kitops:", "`` cannot be part of a repository"),
            ("kitops:A", "`A` cannot be part of a repository"),
            ("kitops:../a", "`..` is not a host"),
            ("kitops:../../etc", "`..` is not a host"),
            ("kitops:/etc/passwd", "`` cannot be part of a repository"),
            ("kitops:..", "`..` cannot be part of a repository"),
            ("kitops:a:v1,v2", "`v1,v2` is not a tag"),
            ("kitops:a:", "`` is not a tag"),
            ("kitops:reg.example/../a", "`..` cannot be part of a repository"),
            ("kitops:a@sha256:00", "kitops:a@sha256:00"),
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
            ("oci-archive:", "names no file"),
            ("oci-archive::v1", "names no file"),
            ("oci-archive:kits.tar:", "names no file"),
            ("oci-archive:kits.tar@sha256:00", "oci-archive:kits.tar@sha256:00"),
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
        assert_eq!(reference.beside("other:v1", None), None);
        let beside = parse("oci:kits:v1").expect("well-formed").beside("reg.example/other:v1", Some(digest)).expect("a layout");
        assert_eq!(parse(&format!("oci:kits:reg.example/other:v1@sha256:{HEX}")), Ok(beside));
        let beside = parse("oci-archive:kits.tar").expect("well-formed").beside("reg.example/other:v1", None);
        assert_eq!(beside.map(|beside| beside.to_string()).as_deref(), Some("oci-archive:kits.tar:reg.example/other:v1"));
        let beside = |name, digest| parse("kitops:a:v1").expect("well-formed").beside(name, digest).map(|beside| beside.to_string());
        assert_eq!(beside("reg.example/other:v1", None).as_deref(), Some("kitops:reg.example/other:v1"));
        assert_eq!(beside("other", Some(digest)), Some(format!("kitops:other@sha256:{HEX}")));
        assert_eq!(beside("../other:v1", None), None);
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
        fn whatever_is_accepted_prints_as_itself(text in r"(oci:|oci-archive:|kitops:)?[a-zA-Z0-9./:@_%\[\]-]{0,40}(@sha256:[0-9a-f]{64})?") {
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
