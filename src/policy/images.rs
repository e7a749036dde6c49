//! Which kits a policy is about: globs over names, read as policy-controller reads them.
//!
//! `*` stands for anything within a component, tag and digest included, `**` for anything. A host and its slash stand before the first of
//! them, so that nobody else's registry is meant by accident; `**` alone is every kit, those without a name too.

use std::fmt;

use regex_automata::meta;
use regex_syntax::hir::{Hir, Repetition};

use super::name::{self, DOCKER_LIBRARY, Name};
use crate::limits;

/// One glob of a policy.
#[derive(Clone)]
pub struct Glob {
    text: String,
    /// As normalised; `None` is `**`. Two where Docker Hub's short names are meant, too.
    patterns: Option<Vec<(String, meta::Regex)>>,
}

/// Why a text is no glob that a policy may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It is empty.
    #[error("the glob is empty")]
    Empty,
    /// It has a character that no name has.
    #[error("`{0}`: `{1}` cannot stand in a glob (letters, digits, `-`, `_`, `:`, `/`, `*`, `.` and `@` can)")]
    Character(String, char),
    /// It is too long.
    #[error("a glob of {0} bytes, {limit} are allowed", limit = limits::POLICY_GLOB_BYTES)]
    TooLong(usize),
    /// It does not say which registry.
    #[error("`{0}` leaves open which registry is meant: a host and a `/` have to stand before the first `*` (`**` alone is every kit)")]
    NoHost(String),
    /// What stands before the first slash is no host.
    #[error("`{0}`: `{1}` is no host of a registry (it has a `.` or a port, or is `localhost`)")]
    Host(String, String),
    /// No name could match it.
    #[error("`{0}` matches no name: {1}")]
    Never(String, &'static str),
}

impl Glob {
    /// Compiles `text`.
    pub fn new(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        if text.len() > limits::POLICY_GLOB_BYTES {
            return Err(GlobError::TooLong(text.len()));
        }
        let known = |letter: &char| letter.is_ascii_alphanumeric() || "-_:/*.@".contains(*letter);
        if let Some(letter) = text.chars().find(|letter| !known(letter)) {
            return Err(GlobError::Character(text.to_owned(), letter));
        }
        if text == "**" {
            return Ok(Self { text: text.to_owned(), patterns: None });
        }
        let patterns = normalised(text)?.into_iter().map(|pattern| {
            let compiled = crate::signature::expression::whole(hir(&pattern)).ok_or(GlobError::TooLong(text.len()))?;
            Ok((pattern, compiled))
        });
        Ok(Self { text: text.to_owned(), patterns: Some(patterns.collect::<Result<_, _>>()?) })
    }

    /// Whether it is `**`, every kit.
    pub fn is_everything(&self) -> bool {
        self.patterns.is_none()
    }

    /// The form of `name` that it matches.
    pub fn matching(&self, name: &Name) -> Option<String> {
        let forms = name.forms();
        let Some(patterns) = &self.patterns else { return forms.into_iter().next() };
        forms.into_iter().find(|form| patterns.iter().any(|(_, pattern)| pattern.is_match(form.as_str())))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What names are held against.
    pub fn patterns(&self) -> Vec<&str> {
        match &self.patterns {
            None => vec!["**"],
            Some(patterns) => patterns.iter().map(|(pattern, _)| pattern.as_str()).collect(),
        }
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({})", self.text)
    }
}

fn normalised(text: &str) -> Result<Vec<String>, GlobError> {
    let (host, rest) = text.split_once('/').ok_or_else(|| GlobError::NoHost(text.to_owned()))?;
    if host.contains('*') {
        return Err(GlobError::NoHost(text.to_owned()));
    }
    // The grammar of hosts stands in one place, and that is where references are read.
    let host = Name::of_repository(&format!("{host}/x")).ok().map(|_| name::host(host));
    let host = host.ok_or_else(|| GlobError::Host(text.to_owned(), text.split('/').next().unwrap_or_default().to_owned()))?;
    let never = |why| Err(GlobError::Never(text.to_owned(), why));
    if rest.is_empty() {
        return never("it ends with the host");
    }
    if rest.contains("//") || rest.starts_with('/') || rest.ends_with('/') || rest.split('/').any(|part| part == "." || part == "..") {
        return never("no repository has an empty part, `.` or `..`");
    }
    if !rest.contains('*') {
        if Name::of_kit(&format!("{host}/{rest}")).is_err() {
            return never("a repository in lower case was expected, with a tag or a digest at most");
        }
        if rest.split_once('@').is_some_and(|(name, _)| name.contains(':')) {
            return never("names are matched with a tag or with a digest, never with both");
        }
    }
    let long = format!("{host}/{rest}");
    if !name::is_docker(&host) || rest.contains('/') {
        return Ok(vec![long]);
    }
    let short = format!("{host}/{DOCKER_LIBRARY}{rest}");
    Ok(if rest.contains("**") { vec![long, short] } else { vec![short] })
}

/// What a normalised glob matches.
fn hir(pattern: &str) -> Hir {
    let any =
        |class: regex_syntax::hir::Class| Hir::repetition(Repetition { min: 0, max: None, greedy: true, sub: Box::new(Hir::class(class)) });
    // Names have no line feeds, so anything but a slash and anything at all are all characters with and without the slash.
    let range = |start, end| regex_syntax::hir::ClassUnicodeRange::new(start, end);
    let class = |ranges: &[_]| regex_syntax::hir::Class::Unicode(regex_syntax::hir::ClassUnicode::new(ranges.iter().copied()));
    let across = || any(class(&[range('\0', char::MAX)]));
    let within = || any(class(&[range('\0', '.'), range('0', char::MAX)]));
    let mut parts = Vec::new();
    let mut rest = pattern;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("**") {
            parts.push(across());
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            parts.push(within());
            rest = after;
        } else {
            let end = rest.find('*').unwrap_or(rest.len());
            parts.push(Hir::literal(rest.as_bytes()[..end].to_vec()));
            rest = &rest[end..];
        }
    }
    Hir::concat(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn matches(glob: &str, name: &str) -> bool {
        let glob = Glob::new(glob).unwrap_or_else(|error| panic!("{error}"));
        glob.matching(&Name::of_kit(name).unwrap_or_else(|error| panic!("{error}"))).is_some()
    }

    #[test]
    fn a_star_stays_in_its_component_and_two_do_not() {
        let pinned = format!("h.test/acme/a@{DIGEST}");
        for (glob, name, expected) in [
            ("h.test/acme/**", "h.test/acme/a:v1", true),
            ("h.test/acme/**", "h.test/acme/a/b:v1", true),
            ("h.test/acme/**", "h.test/acmeother/a:v1", false),
            ("h.test/acme/**", "h.test.evil.test/acme/a:v1", false),
            ("h.test/acme/*", "h.test/acme/a:v1", true),
            ("h.test/acme/*", &pinned, true),
            ("h.test/acme/*", "h.test/acme/a/b:v1", false),
            ("h.test/*/a", "h.test/acme/a:v1", true),
            ("h.test/*/a", "h.test/acme/x/a:v1", false),
            ("h.test/acme/a", "h.test/acme/a:v1", true),
            ("h.test/acme/a", &pinned, true),
            ("h.test/acme/a", "h.test/acme/ab:v1", false),
            ("h.test/acme/a:v*", "h.test/acme/a:v1", true),
            ("h.test/acme/a:v*", "h.test/acme/a:w1", false),
            // A policy on tags binds only who asks by tag.
            ("h.test/acme/a:v1", &pinned, false),
            ("h.test/acme/a@sha256:*", &pinned, true),
            (&pinned, &pinned, true),
            ("h.test/acme/a@**", "h.test/acme/a:v1", false),
            // A dot is a dot.
            ("h.test/a.b/**", "h.test/axb/c:1", false),
            ("h.test/***", "h.test/a/b:1", true),
            ("H.TEST:443/acme/**", "h.test/acme/a:v1", true),
            ("h.test:05000/**", "h.test:5000/a:1", true),
            ("h.test/**", "h.test:5000/a:1", false),
            ("index.docker.io/busybox", "docker.io/busybox:1", true),
            ("docker.io/library/*", "registry-1.docker.io/busybox:1", true),
            ("docker.io/*", "docker.io/busybox:1", true),
            ("docker.io/*", "docker.io/acme/a:1", false),
            ("docker.io/busy**", "docker.io/busybox:1", true),
            ("docker.io/ac**", "docker.io/acme/a:1", true),
            ("**", "h.test/a:1", true),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }

    #[test]
    fn a_glob_says_which_registry() {
        let character = |text: &str, letter| GlobError::Character(text.to_owned(), letter);
        let host = |text: &str, host: &str| GlobError::Host(text.to_owned(), host.to_owned());
        for (text, expected) in [
            ("", GlobError::Empty),
            ("*", GlobError::NoHost("*".into())),
            ("***", GlobError::NoHost("***".into())),
            ("h.test", GlobError::NoHost("h.test".into())),
            ("h.test**", GlobError::NoHost("h.test**".into())),
            ("*.test/a", GlobError::NoHost("*.test/a".into())),
            ("h.test*/a", GlobError::NoHost("h.test*/a".into())),
            ("**/a", GlobError::NoHost("**/a".into())),
            ("busybox/*", host("busybox/*", "busybox")),
            ("-h.test/*", host("-h.test/*", "-h.test")),
            ("h.test:0/*", host("h.test:0/*", "h.test:0")),
            ("/a", host("/a", "")),
            ("h.test/a?", character("h.test/a?", '?')),
            ("h.test/a%2f", character("h.test/a%2f", '%')),
            ("h.test/{a,b}", character("h.test/{a,b}", '{')),
            ("h.test/é", character("h.test/é", 'é')),
        ] {
            assert_eq!(Glob::new(text).expect_err(text), expected);
        }
        let both = format!("h.test/a:v1@{DIGEST}");
        for text in
            ["h.test/", "h.test/a/", "h.test//a", "h.test/../a*", "h.test/./a*", "h.test/A", "h.test/a:", "h.test/a@sha256:00", &both]
        {
            assert!(matches!(Glob::new(text), Err(GlobError::Never(..))), "{text}: {:?}", Glob::new(text));
        }
        assert_eq!(Glob::new(&format!("h.test/{}", "a".repeat(5000))).expect_err("too long"), GlobError::TooLong(5007));
    }

    /// The rule again, letter by letter.
    fn model(glob: &[u8], text: &[u8]) -> bool {
        match glob {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|at| model(rest, &text[at..])),
            [b'*', rest @ ..] => (0..=text.len()).take_while(|&at| !text[..at].contains(&b'/')).any(|at| model(rest, &text[at..])),
            [letter, rest @ ..] => text.first() == Some(letter) && model(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_the_model_does(tail in "[a-b*/.:]{1,7}", path in "[ab]{1,2}(/[ab]{1,2}){0,2}", tag in "[ab]{1,2}") {
            let text = format!("h.test/{tail}");
            let Ok(glob) = Glob::new(&text) else { return Ok(()) };
            let name = Name::of_kit(&format!("h.test/{path}:{tag}")).expect("a reference");
            let expected = name.forms().into_iter().find(|form| model(text.as_bytes(), form.as_bytes()));
            prop_assert_eq!(glob.matching(&name), expected);
        }
    }
}
