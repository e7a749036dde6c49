//! Paths inside a kit: relative, clean, and never outside of it.
//!
//! A [`RelPath`] is made from bytes that an archive or a config names, and a value of it is safe to resolve below any folder. Names are
//! bytes, as on Linux; this module does not know which paths exist.

use std::cmp::Ordering;
use std::fmt;

use crate::limits::{NAME_BYTES, PATH_BYTES, PATH_DEPTH};

/// A clean relative path: components joined by single slashes, none of them empty, `.` or `..`, no NUL. Empty for the root.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Vec<u8>);

/// Why bytes are no path that may be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` {fault}")]
pub struct PathError {
    /// The name, escaped and shortened.
    pub name: String,
    /// What is wrong with it.
    pub fault: PathFault,
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It starts with a slash.
    #[error("is absolute")]
    Absolute,
    /// It has a component `..`.
    #[error("has a component `..`")]
    Climbs,
    /// It has a NUL byte.
    #[error("has a NUL byte in it")]
    Nul,
    /// It has a slash where one component is wanted, or is empty or `.`.
    #[error("is not the name of one file or folder")]
    Component,
    /// A component is too long.
    #[error("has a component of {0} bytes, at most {NAME_BYTES} are possible")]
    LongName(usize),
    /// The whole is too long.
    #[error("has {0} bytes, at most {PATH_BYTES} are possible")]
    LongPath(usize),
    /// There are too many components.
    #[error("is more than {PATH_DEPTH} levels deep")]
    Deep,
}

impl RelPath {
    /// The root: no component.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// The clean form of `bytes`: needless slashes and `.` components go (`./a//b/` is `a/b`); what would lead elsewhere is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let refuse = |fault| Err(PathError { name: Escaped(bytes).to_string(), fault });
        if bytes.first() == Some(&b'/') {
            return refuse(PathFault::Absolute);
        }
        if bytes.contains(&0) {
            return refuse(PathFault::Nul);
        }
        // The size of the clean path is checked before the path is made, so that a long name costs nothing.
        let components = || bytes.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let (mut length, mut depth) = (0, 0);
        for part in components() {
            if part == b".." {
                return refuse(PathFault::Climbs);
            }
            if part.len() > NAME_BYTES {
                return refuse(PathFault::LongName(part.len()));
            }
            length += part.len() + usize::from(depth > 0);
            depth += 1;
        }
        if length > PATH_BYTES {
            return refuse(PathFault::LongPath(length));
        }
        if depth > PATH_DEPTH {
            return refuse(PathFault::Deep);
        }
        let mut clean = Vec::with_capacity(length);
        for part in components() {
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        Ok(Self(clean))
    }

    /// As a text, `.` for the root. Escape it before it is shown.
    pub fn text(&self) -> String {
        if self.is_root() { ".".to_owned() } else { String::from_utf8_lossy(&self.0).into_owned() }
    }

    /// True for the path without components.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path as bytes, without a slash at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// How many components there are.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The folder that this path is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0.get(..end).unwrap_or_default().to_vec()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// This path with one more component.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        if !is_component(name) {
            return Err(PathError { name: Escaped(name).to_string(), fault: PathFault::Component });
        }
        let mut bytes = self.0.clone();
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::parse(&bytes)
    }

    /// True if this path is `other` or below it.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.rest(other).is_some()
    }

    /// What is left of this path below `other`; `None` if it is not below it.
    pub fn strip_prefix(&self, other: &Self) -> Option<Self> {
        self.rest(other).map(|rest| Self(rest.to_vec()))
    }

    fn rest(&self, other: &Self) -> Option<&[u8]> {
        if other.is_root() {
            return Some(&self.0);
        }
        match self.0.strip_prefix(other.as_bytes())? {
            [] => Some(&[]),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }
}

/// True if `name` can be the name of one file or folder.
pub fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

impl Ord for RelPath {
    /// Component by component, bytes compared: a folder stands directly before what is in it.
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { Escaped(&self.0).fmt(f) }
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name from outside as a terminal or a log may see it: what cannot be printed is escaped, and it is cut after [`Escaped::BYTES`] bytes.
#[derive(Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl Escaped<'_> {
    /// How many bytes of a name are shown, so that a message stays a message.
    pub const BYTES: usize = 256;
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..Self::BYTES).unwrap_or(self.0);
        for chunk in shown.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\'' | '"' => write!(f, "{character}")?,
                    other => write!(f, "{}", other.escape_debug())?,
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        if shown.len() < self.0.len() { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).expect("a good path")
    }

    #[test]
    fn paths_are_cleaned() {
        for (given, clean) in [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("./a", "a"),
            ("a//b", "a/b"),
            ("a/", "a"),
            ("a/./b/.", "a/b"),
            ("...", "..."),
            ("a..b/..c", "a..b/..c"),
        ] {
            assert_eq!(path(given).as_bytes(), clean.as_bytes(), "{given}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for (given, fault) in [
            ("/a", PathFault::Absolute),
            ("//", PathFault::Absolute),
            ("..", PathFault::Climbs),
            ("a/../b", PathFault::Climbs),
            ("./..", PathFault::Climbs),
            ("a\0b", PathFault::Nul),
        ] {
            assert_eq!(RelPath::parse(given.as_bytes()).expect_err(given).fault, fault, "{given}");
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_over_it() {
        let name = "n".repeat(NAME_BYTES);
        assert!(RelPath::parse(name.as_bytes()).is_ok());
        assert_eq!(RelPath::parse(format!("{name}n").as_bytes()).expect_err("long").fault, PathFault::LongName(NAME_BYTES + 1));

        let deep = vec!["d"; PATH_DEPTH].join("/");
        assert!(RelPath::parse(deep.as_bytes()).is_ok());
        assert_eq!(RelPath::parse(format!("{deep}/d").as_bytes()).expect_err("deep").fault, PathFault::Deep);

        let long = [[b'n'; 127].as_slice(); 32].join(&b'/');
        assert_eq!(long.len(), PATH_BYTES - 1);
        let full = [long.as_slice(), b"n"].concat();
        assert!(RelPath::parse(&full).is_ok());
        assert_eq!(RelPath::parse(&[full.as_slice(), b"n"].concat()).expect_err("long").fault, PathFault::LongPath(PATH_BYTES + 1));
        assert!(RelPath::parse(&[b"./".repeat(PATH_BYTES).as_slice(), b"a"].concat()).is_ok(), "the clean path counts");
    }

    #[test]
    fn prefixes_are_whole_components() {
        for (whole, prefix, rest) in [
            ("a/b", "a", Some("b")),
            ("a/b", "a/b", Some("")),
            ("a/b", "", Some("a/b")),
            ("ab", "a", None),
            ("a", "a/b", None),
            ("", "", Some("")),
        ] {
            assert_eq!(path(whole).strip_prefix(&path(prefix)), rest.map(path), "{whole} below {prefix}");
            assert_eq!(path(whole).starts_with(&path(prefix)), rest.is_some(), "{whole} below {prefix}");
        }
    }

    #[test]
    fn joined_names_are_single_components() {
        for name in ["", ".", "..", "a/b", "/", "a\0"] {
            assert_eq!(path("x").join(name.as_bytes()).expect_err(name).fault, PathFault::Component, "{name}");
        }
        assert_eq!(path("x").join(b"y").expect("one name"), path("x/y"));
        assert_eq!(RelPath::root().join(b"y").expect("one name"), path("y"));
    }

    #[test]
    fn nothing_unprintable_reaches_a_message() {
        let name = b"a\x1b[31m\xff\xe2\x80\xae'";
        assert_eq!(RelPath::parse(name).expect("legal").to_string(), r"a\u{1b}[31m\xff\u{202e}'");
        assert_eq!(Escaped(&[b'x'; 600]).to_string(), format!("{}… (600 bytes)", "x".repeat(Escaped::BYTES)));
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_clean_and_stays_so(
            bytes in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40),
        ) {
            if let Ok(clean) = RelPath::parse(&bytes) {
                prop_assert_eq!(&RelPath::parse(clean.as_bytes()).expect("clean"), &clean);
                prop_assert!(clean.components().all(is_component));
                let again = clean.components().try_fold(RelPath::root(), |path, name| path.join(name)).expect("components join");
                prop_assert_eq!(&again, &clean);
                match clean.parent() {
                    None => prop_assert!(clean.is_root()),
                    Some(parent) => {
                        prop_assert_eq!(parent.join(clean.name()).expect("a name"), clean.clone());
                        prop_assert!(clean.starts_with(&parent) && parent < clean);
                    }
                }
            }
        }
    }
}
