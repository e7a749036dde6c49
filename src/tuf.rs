//! Trusted roots by TUF: fetched from the repository of an instance of Sigstore, and put where they are read.
//!
//! Only ever because somebody asked for it, and never while it is decided about a kit. What TUF says about a root (signatures, versions,
//! expiry) is the work of `sigstore-tuf`, which begins with the root of the repository that it is given and keeps nothing: there is no cache.

use std::error::Error;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sigstore_tuf::{HttpRepository, Updater, UpdaterConfig};
use sigstore_verify::trust_root::SigstoreInstance;

use crate::limits;
use crate::signature::{RootError, TrustedRoot};

/// What trusted roots are called in the repositories of Sigstore.
const TARGET: &str = "trusted_root.json";
/// The permissions of the file: anybody may read whom the host trusts, and only its owner decides it.
const MODE: u32 = 0o644;

/// A TUF repository, and where trust in it begins.
#[derive(Debug, Clone)]
pub struct Repository {
    address: String,
    root: Vec<u8>,
}

/// A trusted root as it was fetched, which was read and can be used.
#[derive(Debug)]
pub struct Fetched {
    bytes: Vec<u8>,
    root: TrustedRoot,
}

/// Why there is no new trusted root.
#[derive(Debug, thiserror::Error)]
pub enum TufError {
    /// The repository cannot be read, or what it says cannot be believed.
    #[error("the TUF repository {address} gives no trusted root")]
    Fetch {
        /// The repository.
        address: String,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the TUF repository {address} took longer than {limit:?}", limit = limits::TUF_TIME)]
    Time {
        /// The repository.
        address: String,
    },
    /// What came is none that can be used.
    #[error("what the TUF repository {address} calls {TARGET} is none")]
    Root {
        /// The repository.
        address: String,
        /// What is wrong with it.
        #[source]
        source: RootError,
    },
    /// It cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl Repository {
    /// The repository of an instance that is built in.
    pub fn built_in(name: &str) -> Option<Self> {
        let instance = match name {
            "sigstore-public-good" => SigstoreInstance::PublicGood,
            "github" => SigstoreInstance::GitHub,
            _ => return None,
        };
        Some(Self::new(instance.tuf_url(), instance.tuf_root().to_vec()))
    }

    /// Another. `root` is its root.json, which somebody trusts.
    pub fn new(address: &str, root: Vec<u8>) -> Self {
        Self { address: address.to_owned(), root }
    }

    /// Fetches the trusted root that it has at `now`.
    pub async fn fetch(&self, now: Timestamp) -> Result<Fetched, TufError> {
        let address = || self.address.clone();
        let fetched = tokio::time::timeout(limits::TUF_TIME, self.target(now)).await;
        let bytes = fetched.map_err(|_| TufError::Time { address: address() })?;
        let bytes = bytes.map_err(|source| TufError::Fetch { address: address(), source })?;
        let root = TrustedRoot::read(&bytes).map_err(|source| TufError::Root { address: address(), source })?;
        Ok(Fetched { bytes, root })
    }

    async fn target(&self, now: Timestamp) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        // The crate has another version of the same type.
        let now = now.to_string();
        let mut config = UpdaterConfig::default();
        config.target_max_length = limits::TRUSTED_ROOT_BYTES;
        let mut updater = Updater::new(HttpRepository::new(&self.address)?, &self.root)?.with_config(config);
        updater.refresh(now.parse()?).await?;
        Ok(updater.get_target(TARGET, now.parse()?).await?)
    }
}

impl Fetched {
    /// What was fetched.
    pub fn root(&self) -> &TrustedRoot {
        &self.root
    }

    /// Writes it to `path`: all of it or nothing, so that whoever reads it meanwhile finds the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<(), TufError> {
        replace(path, &self.bytes).map_err(|source| TufError::Write { path: path.to_owned(), source })
    }
}

/// Makes a folder of the host's and those above it, as far as they are not there.
pub fn make_folder(path: &Path) -> Result<(), TufError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| TufError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // With a dot before it: who reads the folder's files passes over it.
    let new = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    let mut written = || {
        // Whatever the mask says: the file is for everybody to read.
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    let outcome = written();
    if outcome.is_err() {
        // It is not there any more if it got its name.
        _ = std::fs::remove_file(&new);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::BUILT_IN;

    fn fetched(bytes: &[u8]) -> Fetched {
        Fetched { bytes: bytes.to_vec(), root: TrustedRoot::built_in("github").expect("built in") }
    }

    #[test]
    fn every_root_that_is_built_in_has_its_repository() {
        for name in BUILT_IN {
            let repository = Repository::built_in(name).expect(name);
            let address = HttpRepository::new(&repository.address).expect("an address");
            Updater::new(address, &repository.root).expect("a root that is signed by itself");
        }
        assert!(Repository::built_in("staging").is_none());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        for content in [b"one".as_slice(), b"two"] {
            fetched(content).write(&path).expect("room");
            assert_eq!(std::fs::read(&path).expect("the file"), content);
        }
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
        let taken = folder.path().join("folder");
        std::fs::create_dir(&taken).expect("room");
        assert!(matches!(fetched(b"x").write(&taken), Err(TufError::Write { path, .. }) if path == taken));
        assert!(matches!(fetched(b"x").write(&folder.path().join("none/x.json")), Err(TufError::Write { .. })));
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).expect("ours").map(|entry| entry.expect("an entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["folder", "x.json"]);
    }
}
