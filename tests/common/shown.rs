//! What a folder shows, and whether that is what it should.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::fixtures::Line;
use super::pack::{Node, Tree};
use super::registry::sha256;

/// One name as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Folder { mode: u32 },
    File { mode: u32, size: u64, sha256: String },
    Other,
}

/// Everything by path.
pub type All = BTreeMap<Vec<u8>, Shown>;

/// Walks a folder and reads every file in it.
pub fn walk(folder: &Path) -> std::io::Result<All> {
    let mut all = All::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let mode = metadata.mode() & 0o7777;
            let shown = if metadata.is_dir() {
                open.push(path.clone());
                Shown::Folder { mode }
            } else if metadata.is_file() {
                let content = fs::read(&path)?;
                assert_eq!(content.len() as u64, metadata.len(), "{}: stat and read disagree on the size", path.display());
                Shown::File { mode, size: metadata.len(), sha256: sha256(&content) }
            } else {
                Shown::Other
            };
            let name = path.strip_prefix(folder).expect("below").as_os_str().as_bytes().to_vec();
            assert!(all.insert(name, shown).is_none(), "{} is listed twice", path.display());
        }
    }
    Ok(all)
}

/// What a mount must show of a fixture; the text of the generated Kitfile is not compared here.
pub fn of_lines(lines: &[Line]) -> All {
    lines
        .iter()
        .map(|line| {
            let shown = match line {
                _ if line.generated => Shown::File { mode: 0o644, size: 0, sha256: GENERATED.into() },
                _ if line.folder => Shown::Folder { mode: folder_mode(line.mode) },
                _ => Shown::File { mode: file_mode(line.mode), size: line.size, sha256: format!("sha256:{}", line.sha256) },
            };
            (line.path.clone(), shown)
        })
        .collect()
}

/// What a mount must show of a packed tree.
pub fn of_tree(tree: &Tree) -> All {
    let mut all: All = tree
        .0
        .iter()
        .map(|(path, node)| {
            let shown = match node {
                Node::Folder { mode } => Shown::Folder { mode: folder_mode(*mode) },
                Node::File { mode, content } => Shown::File { mode: file_mode(*mode), size: content.len() as u64, sha256: sha256(content) },
            };
            (path.clone(), shown)
        })
        .collect();
    all.insert(b"Kitfile".to_vec(), Shown::File { mode: 0o644, size: 0, sha256: GENERATED.into() });
    all
}

/// Panics with the differences unless the folder shows exactly what it should.
pub fn assert_shows(folder: &Path, wanted: &All) {
    let seen = walk(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    assert_same(&seen, wanted);
}

pub fn assert_same(seen: &All, wanted: &All) {
    let mut differences = Vec::new();
    for (path, shown) in wanted {
        let name = String::from_utf8_lossy(path);
        match seen.get(path) {
            None => differences.push(format!("{name}: missing")),
            Some(Shown::File { mode, size, .. }) if is_generated(shown) => {
                if *mode != 0o644 || *size == 0 {
                    differences.push(format!("{name}: mode {mode:o}, {size} bytes"));
                }
            }
            Some(found) if found != shown => differences.push(format!("{name}: {found:?} instead of {shown:?}")),
            Some(_) => {}
        }
    }
    let extra = seen.keys().filter(|path| !wanted.contains_key(*path));
    differences.extend(extra.map(|path| format!("{}: should not be there", String::from_utf8_lossy(path))));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Reads one file; the errno if it cannot be.
pub fn read(path: &Path) -> Result<Vec<u8>, i32> {
    fs::read(path).map_err(|error| error.raw_os_error().unwrap_or_default())
}

/// A path from bytes.
pub fn path(folder: &Path, name: &[u8]) -> std::path::PathBuf {
    folder.join(OsStr::from_bytes(name))
}

/// Stands for a digest that is not compared.
const GENERATED: &str = "generated";

fn is_generated(shown: &Shown) -> bool {
    matches!(shown, Shown::File { sha256, .. } if sha256 == GENERATED)
}

fn file_mode(mode: u32) -> u32 {
    (mode & 0o777) | 0o444
}

fn folder_mode(mode: u32) -> u32 {
    (mode & 0o777) | 0o555
}
