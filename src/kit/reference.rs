//! What a Kitfile calls another kit by: a reference of kit's own grammar.
//!
//! It is not what a user may type for kitfs. A Kitfile comes from outside, so it can name a kit in a registry or in kit's storage, and no folder or
//! file of this host.

use std::fmt;

use crate::oci::{Reference, RegistryName, Transport};

/// Another kit, as a Kitfile names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KitReference {
    written: String,
    meant: Reference,
}

impl KitReference {
    /// Kit's rule: a text with a `:` or `@` that parses as a reference is one, with or without a registry. `None` if it is something else: a path.
    pub fn parse(text: &str) -> Option<Self> {
        if !text.contains([':', '@']) {
            return None;
        }
        // Kit takes further tags, behind commas, and does not use them here.
        let first = text.split(',').next().unwrap_or_default();
        let names_registry = first.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']));
        let meant = if names_registry {
            first.parse().ok().filter(|meant: &Reference| matches!(meant.transport(), Transport::Registry(_)))
        } else {
            Reference::in_kit_storage(first.strip_prefix(LOCAL).unwrap_or(first), None)
        };
        meant.map(|meant| Self { written: text.to_owned(), meant })
    }

    /// The text in the Kitfile.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// What it means: a kit in a registry, or one of kit's own storage on this host, which is what kit takes a name without a registry for.
    pub fn meant(&self) -> &Reference {
        &self.meant
    }

    /// The names that the kit can have where kits have their full names, the likeliest first.
    pub fn names(&self) -> Vec<String> {
        let name = |meant: &RegistryName| {
            let tag = meant.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
            format!("{}{tag}", meant.repository())
        };
        match self.meant.transport() {
            Transport::Registry(meant) => vec![format!("{}/{}", meant.host(), name(meant))],
            // Kit leaves `localhost/` out wherever it shows a name.
            Transport::Kitops(meant) => vec![name(meant), format!("{LOCAL}{}", name(meant))],
            Transport::Layout(_) | Transport::Archive(_) => Vec::new(),
        }
    }
}

impl fmt::Display for KitReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Stands before what is in kit's own storage.
const LOCAL: &str = "localhost/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_paths_as_kit_does() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, meant, names) in [
            ("reg.example/a/b:v1", "reg.example/a/b:v1", &["reg.example/a/b:v1"][..]),
            ("reg.example/a/b:v1,v2", "reg.example/a/b:v1", &["reg.example/a/b:v1"]),
            ("reg.example:5000/b", "reg.example:5000/b:latest", &["reg.example:5000/b:latest"]),
            ("localhost:5000/b:v1", "localhost:5000/b:v1", &["localhost:5000/b:v1"]),
            ("localhost/b:v1", "kitops:b:v1", &["b:v1", "localhost/b:v1"]),
            ("a/b:v1", "kitops:a/b:v1", &["a/b:v1", "localhost/a/b:v1"]),
            ("weights:v2", "kitops:weights:v2", &["weights:v2", "localhost/weights:v2"]),
            // No transports here: a Kitfile names no folder of this host.
            ("oci:kits", "kitops:oci:kits", &["oci:kits", "localhost/oci:kits"]),
            ("kitops:kits", "kitops:kitops:kits", &["kitops:kits", "localhost/kitops:kits"]),
        ] {
            let reference = KitReference::parse(text).expect(text);
            assert_eq!((reference.meant().to_string().as_str(), reference.written()), (meant, text));
            assert_eq!(reference.names(), names, "{text}");
        }
        let pinned = KitReference::parse(&format!("reg.example/a@{digest}")).expect("well-formed");
        assert_eq!(
            (pinned.meant().digest().map(|digest| digest.to_string()).as_deref(), pinned.names()),
            (Some(digest), vec!["reg.example/a".into()])
        );
        for path in [
            "",
            "weights",
            "a/b.bin",
            "reg.example/a",
            "s3://bucket/key",
            "https://reg.example/a:v1",
            "A:v1",
            "a b:v1",
            "a:",
            "oci:/etc/kits",
            "oci:../kits:v1",
            "oci:kits/a:v1",
            "reg.example/a@sha256:00",
            "/a:v1",
            "../a:v1",
            "a:v1/b",
        ] {
            assert!(KitReference::parse(path).is_none(), "{path}");
        }
    }
}
