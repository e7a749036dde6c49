//! Globs over paths in the mount, with the rules of `.gitignore`.
//!
//! A glob with a slash at its start or in its middle is held against whole paths, one without against names at any depth; a slash at its end
//! makes it one for folders only; `**` between slashes stands for any number of folders. What is in a folder that matches, matches. What one
//! name may be is `globset`'s affair; this module splits globs at their slashes and walks paths name by name, because that tells at each folder
//! not only whether it matches but also whether anything below it still can, which is what decides about a layer before it is fetched, and
//! because a folder of a million names is walked once and not with a million whole paths.
//!
//! There is no `!`: a path shows if an include matches it (or there is none) and no exclude does, in whatever order they are given.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::str::FromStr;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::path::RelPath;

/// Which paths show. Empty, it shows all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Globs {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
}

/// One glob.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    text: String,
    parts: Arc<[Part]>,
    folders_only: bool,
}

/// What stands between two slashes of a glob.
enum Part {
    /// `**`: any number of names.
    AnyDepth,
    /// `*`: any one name.
    Any,
    /// This name.
    Name(Vec<u8>),
    /// Any name that matches.
    Pattern(GlobMatcher),
}

/// Why a text is no glob that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It names nothing.
    #[error("it names nothing")]
    Empty,
    /// It starts with `!`.
    #[error(
        "it starts with `!`, which has no meaning here: give it to the other one of `--include` and `--exclude`, or write `\\!` for a name"
    )]
    Negated,
    /// It is a comment.
    #[error("it starts with `#`, as a comment does: write `\\#` for a name")]
    Comment,
    /// A component can be no name.
    #[error("it has a component `{0}`, which no path in a mount has: paths start at the root of the mount, as in `/model/*.bin`")]
    Component(String),
    /// A component is malformed.
    #[error("{0}")]
    Malformed(String),
}

/// How far the globs have come on the way down to a path.
#[derive(Debug, Clone)]
pub struct Reach {
    include: Side,
    exclude: Side,
}

#[derive(Debug, Clone, Default)]
struct Side {
    /// The path matches, and so does everything below it.
    matched: bool,
    /// The same, if the path is a folder.
    if_folder: bool,
    /// A glob names the path letter by letter and matches all that it has if it is a folder: `data/`, `data/*`, `data/**`.
    named: bool,
    /// Globs that may still match below, by their number, with the part that comes next.
    live: Arc<[(usize, usize)]>,
}

impl Globs {
    /// What these say.
    pub fn new(include: Vec<Glob>, exclude: Vec<Glob>) -> Self {
        Self { include, exclude }
    }

    /// What has to match.
    pub fn include(&self) -> &[Glob] {
        &self.include
    }

    /// What must not.
    pub fn exclude(&self) -> &[Glob] {
        &self.exclude
    }

    /// True if everything shows.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// At the root of the mount.
    pub fn root(&self) -> Reach {
        Reach { include: Side::root(&self.include), exclude: Side::root(&self.exclude) }
    }

    /// One name further down.
    pub fn step(&self, from: &Reach, name: &[u8]) -> Reach {
        Reach { include: from.include.step(&self.include, name), exclude: from.exclude.step(&self.exclude, name) }
    }

    /// At `path`.
    pub fn reach(&self, path: &RelPath) -> Reach {
        path.components().fold(self.root(), |reach, name| self.step(&reach, name))
    }

    /// True if a file that is here shows, or a folder that has nothing in it.
    pub fn shows(&self, at: &Reach, folder: bool) -> bool {
        let wanted = self.include.is_empty() || at.include.matches(folder);
        wanted && !at.exclude.matches(folder)
    }

    /// The same for what a layer is declared at. That a glob which names it letter by letter means a folder is no question then: nobody who
    /// excludes `data/` wants to wait for all of `data` to hear that it is one.
    pub fn shows_declared(&self, at: &Reach, folder: bool) -> bool {
        let wanted = self.include.is_empty() || at.include.named || at.include.matches(folder);
        wanted && !at.exclude.named && !at.exclude.matches(folder)
    }

    /// True if neither what a layer is declared at here nor anything below it can show, whatever it is.
    pub fn rules_out(&self, at: &Reach) -> bool {
        at.exclude.matched || at.exclude.named || !self.may_want(at)
    }

    /// True if all that a layer is declared at here shows, whatever it is.
    pub fn takes_all(&self, at: &Reach) -> bool {
        let wanted = self.include.is_empty() || at.include.matched || at.include.named;
        wanted && !at.exclude.matches(true) && at.exclude.live.is_empty()
    }

    /// True if something below a folder that is here may show.
    pub fn may_show_below(&self, at: &Reach) -> bool {
        !at.exclude.matches(true) && self.may_want(at)
    }

    fn may_want(&self, at: &Reach) -> bool {
        self.include.is_empty() || at.include.matches(true) || !at.include.live.is_empty()
    }
}

impl Side {
    fn root(globs: &[Glob]) -> Self {
        let mut live = Vec::new();
        (0..globs.len()).for_each(|number| enter(globs, number, 0, &mut live));
        let named = globs.iter().any(|glob| glob.takes_all_from(0));
        Self { named, live: live.into(), ..Self::default() }
    }

    fn matches(&self, folder: bool) -> bool {
        self.matched || folder && self.if_folder
    }

    fn step(&self, globs: &[Glob], name: &[u8]) -> Self {
        if self.matches(true) {
            return Self { matched: true, ..Self::default() };
        }
        let mut next = Self::default();
        let mut live = Vec::new();
        for &(number, at) in self.live.iter() {
            let Some(glob) = globs.get(number) else { continue };
            let literal = match glob.parts.get(at) {
                Some(Part::AnyDepth) => {
                    enter(globs, number, at, &mut live);
                    continue;
                }
                Some(Part::Any) => false,
                Some(Part::Name(wanted)) if wanted == name => true,
                Some(Part::Pattern(pattern)) if pattern.is_match(OsStr::from_bytes(name)) => false,
                _ => continue,
            };
            if at + 1 < glob.parts.len() {
                next.named |= literal && glob.takes_all_from(at + 1);
                enter(globs, number, at + 1, &mut live);
            } else if glob.folders_only {
                next.if_folder = true;
                next.named |= literal;
            } else {
                next.matched = true;
            }
        }
        live.sort_unstable();
        live.dedup();
        next.live = if next.matched { Arc::default() } else { live.into() };
        next
    }
}

/// Puts a glob at its part `at`, and past it if that stands for no name at all.
fn enter(globs: &[Glob], number: usize, at: usize, live: &mut Vec<(usize, usize)>) {
    live.push((number, at));
    if globs.get(number).is_some_and(|glob| matches!(glob.parts.get(at), Some(Part::AnyDepth))) {
        live.push((number, at + 1));
    }
}

impl Glob {
    /// True if whatever stands below a folder is matched by the parts from `at` on.
    fn takes_all_from(&self, at: usize) -> bool {
        !self.folders_only && matches!(self.parts.get(at..), Some([Part::Any] | [Part::AnyDepth, Part::Any]))
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        match text.bytes().next() {
            Some(b'!') => return Err(GlobError::Negated),
            Some(b'#') => return Err(GlobError::Comment),
            _ => {}
        }
        let (body, folders_only) = text.strip_suffix('/').map_or((text, false), |body| (body, true));
        let anchored = body.contains('/');
        let body = body.strip_prefix('/').unwrap_or(body);
        if body.is_empty() {
            return Err(GlobError::Empty);
        }
        let mut parts = Vec::new();
        if !anchored {
            parts.push(Part::AnyDepth);
        }
        for component in body.split('/') {
            let part = Part::parse(component)?;
            // Two in a row say no more than one.
            if !matches!((&part, parts.last()), (Part::AnyDepth, Some(Part::AnyDepth))) {
                parts.push(part);
            }
        }
        // At the end it means all that is in the folder, and thereby what is in that.
        if let Some(last @ Part::AnyDepth) = parts.last_mut() {
            *last = Part::Any;
        }
        Ok(Self { text: text.to_owned(), parts: parts.into(), folders_only })
    }
}

impl Part {
    fn parse(component: &str) -> Result<Self, GlobError> {
        match component {
            "" | "." | ".." => Err(GlobError::Component(component.to_owned())),
            "**" => Ok(Self::AnyDepth),
            "*" => Ok(Self::Any),
            name if !name.contains(['*', '?', '[', ']', '{', '}', '\\']) => Ok(Self::Name(name.as_bytes().to_vec())),
            pattern => {
                let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
                Ok(Self::Pattern(glob.map_err(|error| GlobError::Malformed(error.to_string()))?.compile_matcher()))
            }
        }
    }
}

impl TryFrom<String> for Glob {
    type Error = GlobError;

    fn try_from(text: String) -> Result<Self, GlobError> {
        text.parse()
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.text
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).expect(text)
    }

    fn globs(include: &[&str], exclude: &[&str]) -> Globs {
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect();
        Globs::new(parsed(include), parsed(exclude))
    }

    #[test]
    fn what_can_be_no_glob_is_refused() {
        for (text, error) in [
            ("", "names nothing"),
            ("/", "names nothing"),
            ("//", "names nothing"),
            ("//a", "component ``"),
            ("a//b", "component ``"),
            ("./a", "component `.`"),
            ("a/../b", "component `..`"),
            ("!a", "starts with `!`"),
            ("# a", "comment"),
            ("a[", "unclosed character class"),
            ("a\\", "dangling"),
            ("a\\/b", "dangling"),
            ("{a/b}", "alternate"),
        ] {
            let got = text.parse::<Glob>().expect_err(text).to_string();
            assert!(got.contains(error), "{text}: {got}");
        }
        assert!(globs(&["\\!a", "\\#a", "a b", "é*"], &[]).shows(&globs(&["\\!a"], &[]).reach(&path("!a")), false));
    }

    #[test]
    fn layers_are_ruled_out_by_their_path_alone() {
        for (include, exclude, declared, out) in [
            (&[][..], &["data"][..], "data", true),
            (&[], &["data"], "x/data/y", true),
            (&[], &["/data"], "x/data", false),
            (&[], &["data/"], "data", true),
            (&[], &["data/"], "x/data", true),
            (&[], &["data/*"], "data", true),
            (&[], &["data/**"], "data", true),
            (&[], &["data/**/*"], "data", true),
            (&[], &["data/*/"], "data", false),
            (&[], &["dat?/"], "data", false),
            (&[], &["*/"], "data", false),
            (&[], &["*/"], "data/x", true),
            (&[], &["d*"], "data", true),
            (&[], &["*.csv"], "data", false),
            (&[], &["*.csv"], "data/a.csv", true),
            (&[], &["**"], "data", true),
            (&[], &["**"], ".", true),
            (&[], &["*"], ".", true),
            (&[], &["*/"], ".", false),
            (&[], &["data"], "data-2", false),
            (&["model/**"], &[], "model", false),
            (&["model/**"], &[], "data", true),
            (&["model/**"], &[], ".", false),
            (&["/model/*.bin"], &[], "model/sub", true),
            (&["/model/*.bin"], &[], "model/x.bin/y", false),
            (&["/m*/x/"], &[], "model/x", false),
            (&["/m*/x/"], &[], "model/y", true),
            (&["a/**/b"], &[], "a/x/y", false),
            (&["a/**/b"], &[], "b", true),
            (&["*.bin"], &[], "data", false),
            (&["data/"], &[], "data", false),
            (&["data"], &["*.tmp"], "data", false),
        ] {
            let globs = globs(include, exclude);
            assert_eq!(globs.rules_out(&globs.reach(&path(declared))), out, "{include:?} {exclude:?} {declared}");
        }
    }

    #[test]
    fn what_is_taken_whole_is_known_from_the_plan() {
        for (include, exclude, declared, all) in [
            (&["model"][..], &[][..], "model", true),
            (&["model/"], &[], "model", true),
            (&["model/**"], &[], "model", true),
            (&["m*/"], &[], "model", false),
            (&["model/"], &[], "model/x", true),
            (&["model/**"], &[], "model/x", true),
            (&["model"], &["*.tmp"], "model", false),
            (&["model"], &["/data/x"], "model", true),
            (&[], &["/data/x"], "data", false),
            (&[], &["/data/x"], "data/y", true),
        ] {
            let globs = globs(include, exclude);
            assert_eq!(globs.takes_all(&globs.reach(&path(declared))), all, "{include:?} {exclude:?} {declared}");
        }
    }

    /// What a `.gitignore` of this one line says of a path.
    pub(crate) fn ignored(glob: &str, on: &str, folder: bool) -> bool {
        let mut line = ignore::gitignore::GitignoreBuilder::new("");
        line.add_line(None, glob).expect("a glob");
        let line = line.build().expect("a glob");
        let mut above = std::path::Path::new(on).ancestors().filter(|path| !path.as_os_str().is_empty());
        // Not by its own walk upwards, which takes the root for a folder that `*/` means.
        above.any(|path| line.matched(path, folder || path.as_os_str() != on).is_ignore())
    }

    fn names() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec!["a", "b", "ab", "a.b", ".a", "**", "*"]).prop_filter("a name", |name| !name.contains('*'));
        prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"))
    }

    fn glob() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec!["a", "b", "ab", "*", "**", "a*", "?", "*.b", "[ab]", "[!a]", "a.b", "{a,b}", ".*", "a**"]);
        let parts = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
        (any::<bool>(), parts, any::<bool>())
            .prop_map(|(start, parts, end)| format!("{}{parts}{}", if start { "/" } else { "" }, if end { "/" } else { "" }))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_glob_or_an_error_and_any_name_is_held_against_it(
            text in prop_oneof!["[ab*?/\\[\\]{}!,^\\\\-]{0,12}", any::<String>()],
            name in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            if let Ok(glob) = text.parse::<Glob>() {
                prop_assert_eq!(String::from(glob.clone()), text);
                let globs = Globs::new(vec![glob.clone()], vec![glob]);
                let reach = globs.step(&globs.step(&globs.root(), &name), b"a");
                // What is included and excluded is excluded.
                prop_assert!(!globs.shows(&reach, false) && !globs.shows(&reach, true));
            }
        }

        #[test]
        fn a_glob_means_what_it_means_in_a_gitignore(text in glob(), on in names(), folder in any::<bool>()) {
            let expected = ignored(&text, &on, folder);
            let ours = globs(&[], &[&text]);
            let reach = ours.reach(&path(&on));
            prop_assert_eq!(!ours.shows(&reach, folder), expected, "{} on {}", text, on);
            // What is said of all that is below holds there.
            let below = ours.step(&reach, b"z.b");
            if !ours.may_show_below(&reach) || (ours.rules_out(&reach) && folder) {
                prop_assert!(!ours.shows(&below, false) || !folder);
            }
            if ours.takes_all(&reach) {
                prop_assert!(ours.shows_declared(&reach, folder) && ours.shows(&below, true) && ours.shows(&below, false));
            }
            let wanted = globs(&[&text], &[]);
            let reach = wanted.reach(&path(&on));
            prop_assert_eq!(wanted.shows(&reach, folder), expected, "{} on {}", text, on);
            if wanted.rules_out(&reach) {
                prop_assert!(!expected && !wanted.shows(&wanted.step(&reach, b"a"), false));
            }
        }
    }
}
