//! What each reader sees in an archive, as far as it matters for a mount.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::archive::{Kind, NewEntry};
use kitfs::digest::{Algorithm, Digest};
use kitfs::path::RelPath;
use serde_json::Value;

use crate::generate::BLOCK;
use crate::sink::Sink;

/// An entry of an archive.
#[derive(Clone, PartialEq)]
pub struct Seen {
    /// Cleaned, if it can be.
    pub name: Vec<u8>,
    pub kind: String,
    pub mode: u32,
    pub size: u64,
    pub content: Digest,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content = self.content.to_string();
        write!(f, "{} `{}` {:o} {} bytes {}", self.kind, self.name.escape_ascii(), self.mode, self.size, &content[7..13])
    }
}

/// What another reader says.
#[derive(Debug, Default)]
pub struct Answer {
    pub entries: Vec<Seen>,
    /// Why it does not take the archive, or not all of it.
    pub complaint: Option<String>,
}

/// What stands before and in the header of an entry that we see.
#[derive(Default)]
pub struct Written {
    pub header: Vec<u8>,
    /// Headers and contents.
    pub extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Seen {
    pub fn nothing() -> Digest {
        Digest::of(Algorithm::Sha256, b"")
    }

    pub fn cleaned(name: &[u8]) -> Vec<u8> {
        let unslashed = || name.iter().rposition(|byte| *byte != b'/').map_or(&[][..], |last| &name[..=last]);
        RelPath::parse(name).map_or_else(|_| unslashed().to_vec(), |path| path.as_bytes().to_vec())
    }
}

impl Written {
    /// A field up to its first NUL.
    pub fn field(&self, at: usize, size: usize) -> &[u8] {
        self.header[at..at + size].split(|byte| *byte == 0).next().unwrap_or_default()
    }

    pub fn magic(&self) -> &[u8] {
        &self.header[257..265]
    }

    /// The name that an extension gives.
    pub fn path(&self) -> Option<Vec<u8>> {
        self.extensions.iter().find_map(|(header, content)| match header[156] {
            b'L' => Some(content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
            b'x' => last_path(content),
            _ => None,
        })
    }

    /// The name with which the slash at its end counts.
    pub fn name(&self) -> Vec<u8> {
        self.path().unwrap_or_else(|| self.field(0, 100).to_vec())
    }
}

/// The value of the last record `path` among PAX records that are known to be good.
fn last_path(mut records: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        path = records[space + 1..length - 1].strip_prefix(b"path=").map(<[u8]>::to_vec).or(path);
        records = &records[length..];
    }
    path
}

/// An archive that we read.
pub struct Subject {
    pub seed: u64,
    pub bytes: Vec<u8>,
    pub ours: Vec<Seen>,
    pub written: Vec<Written>,
    /// Where the entries end, and the end of the archive should begin.
    pub end: usize,
}

/// What a mount would show: the archive is cut and its index built, as when a layer is stored.
pub fn ours(bytes: &[u8]) -> Result<Vec<(Seen, u64)>, String> {
    // So that some files are cut out and others stay.
    let sink = Sink::cut(bytes, 512, bytes.len().max(1)).map_err(|error| error.to_string())?;
    sink.index(bytes).map_err(|error| error.to_string())?;
    Ok(sink.entries.iter().map(|entry| (seen(entry, &sink), entry.stream_offset)).collect())
}

fn seen(entry: &NewEntry, sink: &Sink) -> Seen {
    Seen {
        name: entry.path.as_bytes().to_vec(),
        kind: if entry.kind == Kind::File { "file" } else { "folder" }.into(),
        mode: entry.mode & 0o777,
        size: entry.size,
        content: Digest::of(Algorithm::Sha256, sink.content(entry)),
    }
}

impl Subject {
    pub fn new(seed: u64, bytes: Vec<u8>, entries: Vec<(Seen, u64)>) -> Self {
        let mut written = Vec::new();
        let mut at = 0;
        for (entry, content) in &entries {
            let content = *content as usize;
            let mut one = Written { header: bytes[content - BLOCK..content].to_vec(), extensions: Vec::new() };
            while at < content - BLOCK {
                let digits = bytes[at + 124..at + 136].split(|byte| *byte == 0).find(|digits| !digits.is_empty()).unwrap_or_default();
                let digits = String::from_utf8_lossy(digits).trim().to_owned();
                let binary = bytes[at + 124] & 0x80 != 0;
                let low = u64::from_be_bytes(*bytes[at + 128..].first_chunk().expect("a header"));
                let size = if binary { low as usize } else { usize::from_str_radix(&digits, 8).unwrap_or(0) };
                one.extensions.push((bytes[at..at + BLOCK].to_vec(), bytes[at + BLOCK..at + BLOCK + size].to_vec()));
                at += BLOCK + size.next_multiple_of(BLOCK);
            }
            at = content + (entry.size as usize).next_multiple_of(BLOCK);
            written.push(one);
        }
        Self { seed, bytes, ours: entries.into_iter().map(|(entry, _)| entry).collect(), written, end: at }
    }
}

/// The answers of a program that is handed a directory of archives and their number, and says a line of JSON for each.
pub fn script(program: &str, arguments: &[&str], dir: &Path, count: usize) -> Vec<Answer> {
    let output = Command::new(program)
        .args(arguments)
        .arg(dir)
        .arg(count.to_string())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program}: {}", output.status);
    let answers: Vec<Answer> = String::from_utf8(output.stdout).expect("JSON").lines().map(answer).collect();
    assert_eq!(answers.len(), count);
    answers
}

fn answer(line: &str) -> Answer {
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let entries = line["entries"].as_array().into_iter().flatten().map(|entry| Seen {
        name: Seen::cleaned(&STANDARD.decode(text(&entry["name"])).expect("base64")),
        kind: text(&entry["kind"]),
        mode: entry["mode"].as_u64().expect("a mode") as u32,
        size: entry["size"].as_u64().expect("a size"),
        content: format!("sha256:{}", text(&entry["sha256"])).parse().expect("a digest"),
    });
    Answer { entries: entries.collect(), complaint: line["error"].as_str().map(str::to_owned) }
}

/// The answers of GNU tar, of which one process reads one archive: it lists to stderr what it extracts to stdout.
pub fn gnu_tar(dir: &Path, count: usize) -> Vec<Answer> {
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let mut answers: Vec<(usize, Answer)> = thread::scope(|scope| {
        let work: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || (first..count).step_by(threads).map(|number| (number, gnu_tar_on(dir, number))).collect::<Vec<_>>())
            })
            .collect();
        work.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn gnu_tar_on(dir: &Path, number: usize) -> Answer {
    let output = Command::new("tar")
        .args(["-xvvOP", "--numeric-owner", "--quoting-style=c", "--warning=no-unknown-keyword", "-f"])
        .arg(dir.join(format!("{number}.tar")))
        .env_clear()
        .envs([("LC_ALL", "C"), ("TZ", "UTC"), ("PATH", "/usr/bin:/bin")])
        .output()
        .unwrap_or_else(|error| panic!("GNU tar is needed: {error}"));
    let (mut entries, mut complaints) = (Vec::new(), Vec::new());
    let mut content = output.stdout.as_slice();
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        if line.starts_with("tar: ") {
            complaints.push(line.to_owned());
            continue;
        }
        let Some(mut entry) = listed(line) else {
            complaints.push(format!("listed: {line}"));
            continue;
        };
        if entry.kind == "file" {
            match content.split_at_checked(entry.size as usize) {
                Some((own, rest)) => {
                    entry.content = Digest::of(Algorithm::Sha256, own);
                    content = rest;
                }
                None => complaints.push(format!("only {} bytes are left for {entry:?}", content.len())),
            }
        } else {
            entry.size = 0;
        }
        entries.push(entry);
    }
    if !content.is_empty() {
        complaints.push(format!("{} bytes too many", content.len()));
    }
    // It says by its exit whether what it has to say is more than a warning.
    let complains = !output.status.success() || complaints.iter().any(|line| !line.starts_with("tar: "));
    Answer { entries, complaint: complains.then(|| complaints.join("; ")) }
}

/// `-rw-r--r-- 1000/0  5 1970-01-01 00:00 "name"`
fn listed(line: &str) -> Option<Seen> {
    let (facts, name) = line.split_once('"')?;
    let facts: Vec<&str> = facts.split_whitespace().collect();
    let letters = facts.first()?.as_bytes();
    let kind = match letters.first()? {
        b'-' => "file".to_owned(),
        b'd' => "folder".to_owned(),
        other => format!("other ({})", *other as char),
    };
    let mode = letters.get(1..10)?.iter().fold(0, |mode, letter| mode << 1 | u32::from(!matches!(letter, b'-' | b'S' | b'T')));
    let size = facts.get(2)?.parse().ok()?;
    let name = Seen::cleaned(&unquoted(name)?);
    Some(Seen { name, kind, mode, size, content: Seen::nothing() })
}

/// A name as C writes it, up to its closing quote.
fn unquoted(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut bytes = text.bytes();
    loop {
        match bytes.next()? {
            b'"' => return Some(name),
            b'\\' => match bytes.next()? {
                b'n' => name.push(b'\n'),
                b't' => name.push(b'\t'),
                b'r' => name.push(b'\r'),
                b'a' => name.push(7),
                b'b' => name.push(8),
                b'v' => name.push(11),
                b'f' => name.push(12),
                digit @ b'0'..=b'7' => {
                    let digits = [digit, bytes.next()?, bytes.next()?];
                    name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?);
                }
                other => name.push(other),
            },
            other => name.push(other),
        }
    }
}
