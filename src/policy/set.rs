//! Sets of policies: which there are, and which of them a kit has to meet.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::document::{self, DocumentError, Mode, Policy};
use super::host::{HostError, HostFiles};
use super::name::Name;
use crate::limits;

/// Policies that are decided together.
#[derive(Debug, Clone, Default)]
pub struct Set {
    policies: Vec<Policy>,
}

/// What a kit is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Where it really comes from. Layouts, archives and kit's storage have no such name.
    pub real: Option<Name>,
    /// What the caller says that it is.
    pub claim: Option<Name>,
}

/// A policy that a kit has to meet, and why.
#[derive(Debug, Clone)]
pub struct Match<'s> {
    /// The policy.
    pub policy: &'s Policy,
    /// The globs that match, each with the form of a name that it matches.
    pub by: Vec<MatchedBy>,
}

/// Why a policy applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedBy {
    /// The glob.
    pub glob: String,
    /// What it matches: `repo`, `repo:tag` or `repo@digest`; `None` for a kit without a name, which only `**` matches.
    pub form: Option<String>,
    /// Whether that is the caller's claim and not the real name.
    pub claimed: bool,
}

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// A file cannot be read.
    #[error("cannot read the policy `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A file is no file of policies.
    #[error("`{}` is no policy that kitfs can keep to", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DocumentError,
    },
    /// A file or folder of the host cannot be trusted or read.
    #[error("the policies of this host cannot be used")]
    Host(#[from] HostError),
}

/// The ending that files in a folder of policies have.
const ENDING: &str = ".yaml";

impl Set {
    /// A set of these policies.
    pub fn new(policies: Vec<Policy>) -> Self {
        Self { policies }
    }

    /// The policies in files that the caller names.
    pub fn of_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self, SetError> {
        let mut policies = Vec::new();
        for path in paths {
            policies.extend(of_file(path.as_ref())?);
        }
        Ok(Self { policies })
    }

    /// The policies in a folder of the host's. `None` if there is no such folder; an empty one is a set that covers nothing.
    pub fn of_host(files: &HostFiles, folder: &Path) -> Result<Option<Self>, SetError> {
        let Some(files) = files.folder(folder, ENDING, limits::POLICY_FILES, limits::POLICY_BYTES)? else { return Ok(None) };
        let mut policies = Vec::new();
        for (path, bytes) in files {
            policies.extend(of_bytes(&path, &bytes)?);
        }
        Ok(Some(Self { policies }))
    }

    /// Adds a policy.
    pub fn push(&mut self, policy: Policy) {
        self.policies.push(policy);
    }

    /// All of them.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Whether it refuses anything: a set of nothing but warnings is as good as none. An empty one covers nothing, so it refuses all.
    pub fn enforces(&self) -> bool {
        self.policies.is_empty() || self.policies.iter().any(|policy| policy.mode == Mode::Enforce)
    }

    /// The policies that a kit of these names has to meet: all that match any of them.
    pub fn matching(&self, names: &Names) -> Vec<Match<'_>> {
        let matches = self.policies.iter().map(|policy| Match { policy, by: matched_by(policy, names) });
        matches.filter(|matched| !matched.by.is_empty()).collect()
    }

    /// Whether any of `matches` covers what it matches. One that only warns does not, by itself.
    pub fn covers(matches: &[Match<'_>]) -> bool {
        matches.iter().any(|matched| matched.policy.mode == Mode::Enforce)
    }
}

/// The policies in a file that the caller names.
pub fn of_file(path: &Path) -> Result<Vec<Policy>, SetError> {
    let read = || {
        let mut bytes = Vec::new();
        // One byte over the limit is enough to see that it is over.
        File::open(path)?.take(limits::POLICY_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| SetError::Read { path: path.to_owned(), source })?;
    of_bytes(path, &bytes)
}

fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<Policy>, SetError> {
    let origin = path.file_name().unwrap_or_default().to_string_lossy();
    document::policies(bytes, &origin).map_err(|source| SetError::Document { path: path.to_owned(), source })
}

fn matched_by(policy: &Policy, names: &Names) -> Vec<MatchedBy> {
    let named = [(names.real.as_ref(), false), (names.claim.as_ref(), true)];
    let mut by = Vec::new();
    for glob in &policy.images {
        for (name, claimed) in named {
            if let Some(form) = name.and_then(|name| glob.matching(name)) {
                by.push(MatchedBy { glob: glob.as_str().to_owned(), form: Some(form), claimed });
            }
        }
        if glob.is_everything() && names.real.is_none() {
            by.push(MatchedBy { glob: glob.as_str().to_owned(), form: None, claimed: false });
        }
    }
    by
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(policies: &[(&str, &[&str], &str)]) -> Set {
        let documents = policies.iter().map(|(name, globs, mode)| {
            let globs: String = globs.iter().map(|glob| format!("    - glob: '{glob}'\n")).collect();
            format!(
                "---\napiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: {mode}\n  images:\n{globs}  authorities:\n    - static: {{action: fail}}\n"
            )
        });
        Set::new(document::policies(documents.collect::<String>().as_bytes(), "test").expect("policies"))
    }

    fn names(real: Option<&str>, claim: Option<&str>) -> Names {
        let name = |text: &str| Name::of_kit(text).expect("a reference");
        Names { real: real.map(name), claim: claim.map(name) }
    }

    #[test]
    fn all_policies_that_match_name_or_claim_have_to_be_met() {
        let set = set(&[
            ("acme", &["h.test/acme/**"], "enforce"),
            ("tag", &["h.test/acme/a:v1", "h.test/none"], "enforce"),
            ("other", &["other.test/**"], "enforce"),
            ("all", &["**"], "warn"),
        ]);
        for (real, claim, expected) in [
            (Some("h.test/acme/a:v1"), None, &["acme", "tag", "all"][..]),
            (Some("h.test/acme/a:v2"), None, &["acme", "all"]),
            (Some("h.test/acme/a:v2"), Some("other.test/x:1"), &["acme", "other", "all"]),
            (Some("else.test/x:1"), Some("h.test/acme/a:v1"), &["acme", "tag", "all"]),
            (Some("else.test/x:1"), None, &["all"]),
            (None, None, &["all"]),
            (None, Some("other.test/x:1"), &["other", "all"]),
        ] {
            let matches = set.matching(&names(real, claim));
            assert_eq!(matches.iter().map(|matched| matched.policy.name.as_str()).collect::<Vec<_>>(), expected, "{real:?} {claim:?}");
            assert_eq!(Set::covers(&matches), expected != ["all"], "a warning covers nothing by itself");
        }
    }

    #[test]
    fn it_is_said_what_a_policy_matches() {
        let set = set(&[("a", &["h.test/**", "h.test/a:v1", "**"], "enforce")]);
        let by = |glob: &str, form: Option<&str>, claimed| MatchedBy { glob: glob.into(), form: form.map(str::to_owned), claimed };
        assert_eq!(
            set.matching(&names(Some("h.test/a:v1"), Some("h.test/b:v2")))[0].by,
            [
                by("h.test/**", Some("h.test/a"), false),
                by("h.test/**", Some("h.test/b"), true),
                by("h.test/a:v1", Some("h.test/a:v1"), false),
                by("**", Some("h.test/a"), false),
                by("**", Some("h.test/b"), true),
            ]
        );
        assert_eq!(set.matching(&names(None, None))[0].by, [by("**", None, false)]);
    }

    #[test]
    fn a_set_of_warnings_refuses_nothing_and_an_empty_one_everything() {
        assert!(set(&[("a", &["**"], "warn"), ("b", &["**"], "enforce")]).enforces());
        assert!(!set(&[("a", &["**"], "warn")]).enforces());
        let empty = Set::default();
        assert!(empty.enforces() && empty.matching(&names(Some("h.test/a:1"), None)).is_empty());
    }

    #[test]
    fn the_digest_is_that_of_the_bytes() {
        use crate::digest::{Algorithm, Digest};
        let text = "# first\napiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nspec: {images: [{glob: '**'}], authorities: [{static: {action: fail}}]}\n";
        let policies = document::policies(text.as_bytes(), "p.yaml").expect("a policy");
        assert_eq!(policies[0].digest, Digest::of(Algorithm::Sha256, text.as_bytes()), "what sha256sum says of the file");
        assert_eq!(policies[0].name, "p.yaml#1");
        let two = format!("{text}---\n{}", text.replace("fail", "'fail'"));
        let policies = document::policies(two.as_bytes(), "p.yaml").expect("policies");
        assert_eq!(policies[0].digest, Digest::of(Algorithm::Sha256, text.as_bytes()));
        assert_ne!(policies[0].digest, policies[1].digest);
    }

    #[test]
    fn files_are_read_and_named_in_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let bad = folder.path().join("bad.yaml");
        std::fs::write(&bad, "a: b").expect("room");
        assert!(matches!(Set::of_files(&[&bad]), Err(SetError::Document { path, .. }) if path == bad));
        let none = folder.path().join("none.yaml");
        assert!(matches!(Set::of_files(&[&none]), Err(SetError::Read { path, .. }) if path == none));
        std::fs::write(&bad, vec![b'#'; limits::POLICY_BYTES as usize + 1]).expect("room");
        assert!(matches!(Set::of_files(&[&bad]), Err(SetError::Document { source: DocumentError::TooLarge, .. })));
    }
}
