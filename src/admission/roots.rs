//! Trust roots by the names that policies have for them: those of the host, those of the caller, and those that are built in.
//!
//! Where a root comes from is decided here and nowhere else: never from a kit, a registry or the cache.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits;
use crate::policy::host::{HostError, HostFiles};
use crate::signature::{RootError, TrustedRoot};

/// The name of the root that is meant where none is named.
pub const DEFAULT: &str = "trusted-root";
/// The ending that files in the folder of the host's roots have.
const ENDING: &str = ".json";

/// Trust roots by name. Beneath them are those that are built in.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    given: BTreeMap<String, Root>,
}

/// A trust root, and where it comes from.
#[derive(Debug, Clone)]
pub struct Root {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Whom it trusts.
    pub root: Arc<TrustedRoot>,
}

/// Where a trust root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is built in, under this name.
    BuiltIn(String),
    /// A file.
    File(PathBuf),
}

/// Why trust roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file cannot be read.
    #[error("cannot read the trusted root `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A file is no trusted root, or none that can be used.
    #[error("the trusted root `{}` cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RootError,
    },
    /// Two have the same name.
    #[error("there are two trusted roots `{0}`")]
    Twice(String),
    /// A file of the host has no name that a policy could say.
    #[error("`{}` gives its trusted root no name: letters, digits, `.`, `_` and `-` stand before `{ENDING}`, no `.` first", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// A file or folder of the host cannot be trusted or read.
    #[error("the trusted roots of this host cannot be used")]
    Host(#[from] HostError),
}

impl Roots {
    /// Those in a folder of the host's; none, if there is no such folder.
    pub fn of_host(files: &HostFiles, folder: &Path) -> Result<Self, RootsError> {
        let files = files.folder(folder, ENDING, limits::TRUSTED_ROOT_FILES, limits::TRUSTED_ROOT_BYTES)?;
        let mut roots = Self::default();
        for (path, bytes) in files.unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ENDING));
            let Some(name) = name.filter(|name| is_name(name)) else { return Err(RootsError::Name { path }) };
            roots.add(name.to_owned(), read(&bytes, path)?)?;
        }
        Ok(roots)
    }

    /// Those that the caller names, each as `[NAME=]FILE`, and nothing else.
    pub fn of_caller(texts: &[String]) -> Result<Self, RootsError> {
        let mut roots = Self::default();
        for text in texts {
            let (name, place) = named(text);
            roots.add(name.to_owned(), at(place)?)?;
        }
        Ok(roots)
    }

    /// These, and beneath them those of `host`.
    pub fn over(mut self, host: &Self) -> Self {
        for (name, root) in &host.given {
            self.given.entry(name.clone()).or_insert_with(|| root.clone());
        }
        self
    }

    /// The root of that name: one that was given, or else one that is built in.
    pub fn get(&self, name: &str) -> Option<Root> {
        let built_in = || Some(Root::new(name, Origin::BuiltIn(name.to_owned()), TrustedRoot::built_in(name)?));
        self.given.get(name).cloned().or_else(built_in)
    }

    /// All that were given, by name. Those that are built in are not among them.
    pub fn given(&self) -> impl Iterator<Item = &Root> {
        self.given.values()
    }

    fn add(&mut self, name: String, (origin, root): (Origin, TrustedRoot)) -> Result<(), RootsError> {
        let root = Root::new(&name, origin, root);
        if self.given.insert(name.clone(), root).is_some() { Err(RootsError::Twice(name)) } else { Ok(()) }
    }
}

impl Root {
    fn new(name: &str, origin: Origin, root: TrustedRoot) -> Self {
        Self { name: name.to_owned(), origin, root: Arc::new(root) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(name) => write!(f, "built in as {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The trusted root in a file, or the one that is built in under that name.
pub fn at(place: &str) -> Result<(Origin, TrustedRoot), RootsError> {
    if let Some(root) = TrustedRoot::built_in(place) {
        return Ok((Origin::BuiltIn(place.to_owned()), root));
    }
    let path = PathBuf::from(place);
    let bytes = || {
        let mut bytes = Vec::new();
        // One byte over the limit is enough to see that it is over.
        File::open(&path)?.take(limits::TRUSTED_ROOT_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = bytes().map_err(|source| RootsError::Read { path: path.clone(), source })?;
    read(&bytes, path)
}

fn read(bytes: &[u8], path: PathBuf) -> Result<(Origin, TrustedRoot), RootsError> {
    match TrustedRoot::read(bytes) {
        Ok(root) => Ok((Origin::File(path), root)),
        Err(source) => Err(RootsError::Unusable { path, source }),
    }
}

/// Whether a policy could name a root like this.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Name and place of `[NAME=]FILE`.
fn named(text: &str) -> (&str, &str) {
    match text.split_once('=') {
        Some((name, place)) if is_name(name) => (name, place),
        _ => (DEFAULT, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_before_the_first_equals_sign() {
        for (text, name, place) in [
            ("f.json", "trusted-root", "f.json"),
            ("ours=f.json", "ours", "f.json"),
            ("ours=a=b", "ours", "a=b"),
            ("./a=b", "trusted-root", "./a=b"),
            (".a=b", "trusted-root", ".a=b"),
            ("=b", "trusted-root", "=b"),
            ("github", "trusted-root", "github"),
            ("ours=github", "ours", "github"),
        ] {
            assert_eq!(named(text), (name, place), "{text}");
        }
    }

    #[test]
    fn what_is_built_in_is_there_by_its_name_and_by_that_which_it_is_given() {
        let roots = Roots::of_caller(&["github".to_owned()]).expect("built in");
        let given = roots.get(DEFAULT).expect("it was given");
        let built_in = roots.get("github").expect("built in");
        assert_eq!(given.root.digest(), built_in.root.digest());
        assert_eq!((given.origin, built_in.name.as_str()), (Origin::BuiltIn("github".into()), "github"));
        assert!(roots.get("other").is_none() && Roots::default().get(DEFAULT).is_none());
        assert_eq!(roots.given().count(), 1, "what is only built in is not among them");
    }
}
