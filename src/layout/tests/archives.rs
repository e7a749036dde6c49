//! Layouts that are archives.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::fixtures::{self, Case};
use crate::verify::Mismatch;

/// A tar of everything in a folder, but for archives that lie in it.
pub(super) fn tar_of(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in fs::read_dir(folder).expect("a folder") {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("an entry");
        match name.to_str() {
            Some("archive") => {}
            Some("blobs") => tar.append_dir_all("./blobs", path).expect("memory"),
            _ => tar.append_path_with_name(path, name).expect("memory"),
        }
    }
    tar.into_inner().expect("memory")
}

pub(super) fn packed(form: Form, tar: &[u8]) -> Vec<u8> {
    if form != Form::Gzip {
        return tar.to_vec();
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(tar).expect("memory");
    gzip.finish().expect("memory")
}

/// A tar of these members: type, name, content.
fn tar(members: &[(u8, &str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().linkflag = [*kind];
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // As it stands there: `set_path` is too careful.
        header.as_gnu_mut().expect("its format").name[..name.len()].copy_from_slice(name.as_bytes());
        if matches!(kind, b'1' | b'2') {
            header.set_link_name("/etc/passwd").expect("a name");
        }
        header.set_cksum();
        tar.append(&header, *content).expect("memory");
    }
    tar.into_inner().expect("memory")
}

const VERSION: (u8, &str, &[u8]) = (b'0', "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

struct Written {
    folder: tempfile::TempDir,
}

impl Written {
    fn new(bytes: &[u8]) -> Self {
        let written = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::write(written.path(), bytes).expect("written");
        written
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    fn open(&self) -> Layout {
        open(&format!("oci-archive:{}", self.path().display())).expect("nothing was looked at")
    }
}

fn blob(size: usize, seed: usize) -> (Digest, Vec<u8>) {
    let content: Vec<u8> = (0..size).map(|n| ((n * seed) >> 3) as u8).collect();
    (Digest::of(Algorithm::Sha256, &content), content)
}

fn described(digest: Digest, size: usize) -> Descriptor {
    Descriptor { media_type: "x/y".into(), digest, size: size as u64 }
}

#[tokio::test]
async fn what_stands_in_an_archive_beside_a_layout() {
    let (digest, content) = blob(100, 3);
    let name = format!("blobs/sha256/{}", digest.hex());
    let dotted = format!("./blobs//sha256/./{}", digest.hex());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{IMAGE_MANIFEST}","digest":"{digest}","size":100}}]}}"#);
    let index = (b'0', "index.json", index.as_bytes());
    let good: (u8, &str, &[u8]) = (b'0', &name, &content);
    for (form, members, expected) in [
        (vec![VERSION, index, good], Ok(())),
        // In any order, and with what tools add.
        (vec![good, (b'5', "blobs/", b""), index, VERSION, (b'0', "README", b"hello")], Ok(())),
        (vec![VERSION, index, (0, &dotted, &content)], Ok(())),
        (vec![(b'g', "pax_global_header", b"16 comment=none\n"), VERSION, index, good], Ok(())),
        (vec![VERSION, index, good, (b'2', "link", b""), (b'3', "dev/null", b""), (b'2', "../oci-layout", b"")], Ok(())),
        (vec![VERSION, index, good, (b'0', "blobs/md5/d41d8cd98f00b204e9800998ecf8427e", b"")], Ok(())),
        (vec![VERSION, index, good, (b'0', "manifest.json", b"[]")], Ok(())),
        (vec![VERSION, index, (b'2', &name, b"")], Err("is a symbolic link, and no regular file")),
        (vec![VERSION, index, (b'1', &name, b"")], Err("is a hard link, and no regular file")),
        (vec![VERSION, (b'2', "index.json", b""), good], Err("`index.json` is a symbolic link")),
        (vec![(b'5', "oci-layout", b""), index, good], Err("`oci-layout` is a folder")),
        (vec![VERSION, index, good, (b'0', "./index.json", b"{}")], Err("`index.json` twice")),
        (vec![VERSION, index, good, (b'0', &dotted, &content)], Err("twice")),
        (vec![VERSION, index, good, (b'S', "sparse", b"")], Err("sparse")),
        (vec![index, good], Err("oci-layout was not found")),
        (vec![VERSION, good], Err("index.json was not found")),
        (vec![VERSION, index], Err("was not found")),
        (vec![], Err("oci-layout was not found")),
        (vec![(b'0', "manifest.json", b"[]"), (b'0', "repositories", b"{}")], Err("`docker save`")),
    ]
    .into_iter()
    .flat_map(|(members, expected)| [Form::Tar, Form::Gzip].map(|form| (form, members.clone(), expected)))
    {
        let archive = Written::new(&packed(form, &tar(&members)));
        let names: Vec<_> = members.iter().map(|(kind, name, _)| format!("{} {name}", kind.escape_ascii())).collect();
        match (archive.open().resolve().await, expected) {
            (Ok(resolved), Ok(())) => assert!(resolved.manifest.verify(&resolved.descriptor).is_ok(), "{form:?} {names:?}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{form:?} {names:?}: {error}"),
            (got, _) => panic!("{form:?} {names:?}: {got:?}, expected {expected:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_no_such_archive_is_refused() {
    for (bytes, part) in [
        (b"\x28\xb5\x2f\xfd rest".as_slice(), "compressed with zstd"),
        (b"\xfd7zXZ\0 rest", "compressed with xz"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"not a tar", "inside a header"),
        (&[b'x'; 1024], "checksum"),
        (b"\x1f\x8b\x08 no gzip", "uncompress"),
        (b"\x1f\x8b", "uncompress"),
        (&packed(Form::Gzip, b"no tar"), "inside a header"),
        (&[packed(Form::Gzip, &tar(&[VERSION])), b"garbage".to_vec()].concat(), "does not begin another one, nor is it padding"),
    ] {
        let error = Written::new(bytes).open().resolve().await.expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let error = open(&format!("oci-archive:{}", folder.path().display())).expect("unseen").resolve().await.expect_err("a folder");
    assert!(error.to_string().contains("no regular file"), "{error}");
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("made");
    let error = open(&format!("oci-archive:{}", fifo.display())).expect("unseen").resolve().await.expect_err("a FIFO");
    assert!(error.to_string().contains("no regular file"), "{error}");
}

#[tokio::test]
async fn an_archive_that_ends_anywhere_is_noticed_or_whole() {
    let mut layout = Fixture::new(Form::Tar);
    let manifest = layout.list(b"the manifest", None);
    let (digest, content) = blob(3000, 7);
    layout.blob(&content);
    let tar = tar_of(layout.dir.path());
    for form in [Form::Tar, Form::Gzip] {
        let whole = packed(form, &tar);
        // Every byte where little stands, and some in between.
        for length in (0..whole.len()).step_by(if form == Form::Tar { 101 } else { 7 }) {
            let archive = Written::new(&whole[..length]);
            let source = archive.open();
            if let Ok(resolved) = source.resolve().await {
                assert_eq!(resolved.descriptor.digest, manifest);
                assert!(resolved.manifest.verify(&resolved.descriptor).is_ok(), "{form:?} {length}");
            }
            let wanted = described(digest, content.len());
            if let Ok(document) = source.document(&wanted).await {
                assert!(document.verify(&wanted).is_ok(), "{form:?} {length}");
                assert!(form == Form::Tar, "a gzip stream without its end was taken at {length}");
            }
        }
    }
}

#[tokio::test]
async fn blobs_of_a_compressed_archive_come_in_any_order() {
    let blobs: Vec<_> = (1..=5).map(|seed| blob(limits::LAYOUT_CHUNK_BYTES + 300 * seed, seed)).collect();
    let names: Vec<_> = blobs.iter().map(|(digest, _)| format!("blobs/sha256/{}", digest.hex())).collect();
    let members: Vec<(u8, &str, &[u8])> =
        names.iter().zip(&blobs).map(|(name, (_, content))| (b'0', name.as_str(), content.as_slice())).collect();
    let archive = Written::new(&packed(Form::Gzip, &tar(&members)));
    let source = archive.open();
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        // All at once, in turns, so that no two are at the same place.
        let mut streams: Vec<_> = order.iter().map(|at| (at, source.blob(&described(blobs[*at].0, blobs[*at].1.len()), 0), 0)).collect();
        while let Some((at, mut stream, mut got)) = streams.pop() {
            match stream.next().await {
                Some(chunk) => {
                    let chunk = chunk.expect("there");
                    let expected = Digest::of(Algorithm::Sha256, &blobs[*at].1[got..got + chunk.len()]);
                    assert_eq!(chunk.describe(Algorithm::Sha256, "").digest, expected, "{at} from {got}");
                    got += chunk.len();
                    streams.insert(0, (at, stream, got));
                }
                None => assert_eq!(got, blobs[*at].1.len(), "{at}"),
            }
        }
    }
    // Going on where a transfer ended.
    let (digest, content) = &blobs[3];
    let (count, _) = bytes_of(source.blob(&described(*digest, content.len()), 1000)).await.expect("read");
    assert_eq!(count, content.len() - 1000);
}

#[tokio::test]
async fn reading_on_in_a_compressed_archive_does_not_begin_again() {
    let blobs: Vec<_> = (1..=3).map(|seed| blob(2 * limits::LAYOUT_CHUNK_BYTES, seed)).collect();
    let names: Vec<_> = blobs.iter().map(|(digest, _)| format!("blobs/sha256/{}", digest.hex())).collect();
    let members: Vec<(u8, &str, &[u8])> =
        names.iter().zip(&blobs).map(|(name, (_, content))| (b'0', name.as_str(), content.as_slice())).collect();
    let source = Written::new(&packed(Form::Gzip, &tar(&members)));
    let archive = Archive::new(&source.path(), "archive");
    let stop = Stop::default();
    let mut ends = Vec::new();
    for name in &names {
        let mut content = archive.open_member(&[name], "a blob", &stop).expect("there");
        content.read_most(u64::MAX, "archive", &stop).expect("whole");
        drop(content);
        let table = archive.table(&stop).expect("known");
        let parked: Vec<u64> = table.parked.lock().expect("ours").iter().map(unpack::Unpacker::position).collect();
        assert_eq!(parked.len(), 1, "one unpacker serves them all in their order");
        ends.extend(parked);
    }
    assert!(ends.is_sorted() && ends[2] > 6 * limits::LAYOUT_CHUNK_BYTES as u64, "{ends:?}");
    // What lies before it begins anew, and no more of them are kept than a few.
    for _ in 0..2 * limits::ARCHIVE_UNPACKERS {
        let mut content = archive.open_member(&[&names[0]], "a blob", &stop).expect("there");
        content.read(0, 10, "archive", &stop).expect("some");
        let mut other = archive.open_member(&[&names[0]], "a blob", &stop).expect("there");
        other.read(0, 10, "archive", &stop).expect("some");
    }
    assert!(archive.table(&stop).expect("known").parked.lock().expect("ours").len() <= limits::ARCHIVE_UNPACKERS);
    // Nobody waits: nothing is done.
    let nobody = Stop::default();
    drop(Waiting(nobody.clone()));
    let mut content = archive.open_member(&[&names[2]], "a blob", &nobody).expect("known");
    assert!(matches!(content.read(5, 10, "archive", &nobody), Err(SourceError::Unavailable { .. })));
    assert!(matches!(Archive::new(&source.path(), "archive").table(&nobody), Err(SourceError::Unavailable { .. })));
}

#[tokio::test]
async fn an_archive_that_is_replaced_is_looked_at_anew() {
    for form in [Form::Tar, Form::Gzip] {
        let [(first, one), (second, two)] = [blob(3 * limits::LAYOUT_CHUNK_BYTES, 3), blob(700_000, 5)];
        let archive_of =
            |digest: &Digest, content: &[u8]| packed(form, &tar(&[VERSION, (b'0', &format!("blobs/sha256/{}", digest.hex()), content)]));
        let archive = Written::new(&archive_of(&first, &one));
        let source = archive.open();
        assert_eq!(bytes_of(source.blob(&described(first, one.len()), 0)).await.expect("read").0, one.len());
        // It changes while it is read.
        let mut stream = source.blob(&described(first, one.len()), 0);
        assert!(stream.next().await.expect("a chunk").is_ok());
        fs::write(archive.path(), archive_of(&second, &two)).expect("written");
        let error = stream.next().await.expect("an end").expect_err("another file");
        assert!(matches!(&error, SourceError::Unavailable { reason, .. } if reason.contains("changed while it was read")), "{error}");
        // What is there now is found, and what is not is said to have been replaced.
        assert_eq!(bytes_of(source.blob(&described(second, two.len()), 0)).await.expect("read").0, two.len());
        let error = bytes_of(source.blob(&described(first, one.len()), 0)).await.expect_err("gone");
        assert!(error.to_string().contains("was replaced after it was first read"), "{error}");
        // One that is put in its place leaves the old one to who reads it.
        let mut stream = source.blob(&described(second, two.len()), 100_000);
        let other = archive.folder.path().join("other");
        fs::write(&other, archive_of(&first, &one)).expect("written");
        fs::rename(&other, archive.path()).expect("renamed");
        assert_eq!(bytes_of(source.blob(&described(first, one.len()), 0)).await.expect("read").0, one.len());
        assert!(stream.next().await.expect("an end").is_err(), "it was not open yet");
        // And one that is removed can still be read.
        fs::remove_file(archive.path()).expect("removed");
        assert_eq!(bytes_of(source.blob(&described(first, one.len()), 0)).await.expect("read").0, one.len());
    }
}

#[tokio::test]
async fn every_fixture_is_an_archive() {
    let cases: Vec<Case> = fixtures::cases("kits").into_iter().chain(fixtures::cases("hostile")).collect();
    for case in cases {
        let tar = fs::read(case.folder.join("layout.tar")).expect("a fixture");
        for form in [Form::Tar, Form::Gzip] {
            let archive = Written::new(&packed(form, &tar));
            let reference = case.case["reference"].as_str().expect("a reference");
            let source = open(&format!("oci-archive:{}:{reference}", archive.path().display())).expect("unseen");
            let (Ok(resolved), Some(digest)) = (source.resolve().await, case.case["digest"].as_str()) else {
                assert_eq!(case.name, "manifest-5mib");
                continue;
            };
            assert_eq!(resolved.descriptor.digest.to_string(), digest, "{}", case.name);
            match resolved.manifest.verify(&resolved.descriptor) {
                Ok(_) => {}
                Err(Mismatch::TooLong { .. } | Mismatch::TooShort { .. } | Mismatch::Digest { .. }) => {
                    assert!(case.case["anomaly"].as_str().is_some_and(|what| what.starts_with("manifest")), "{}", case.name);
                }
            }
        }
    }
}
