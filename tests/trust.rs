//! Trusted roots as users have them: shown, and fetched from a TUF repository that is made here and served on this host.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use ed25519_dalek::{Signer as _, SigningKey};
use kitfs::digest::{Algorithm, Digest};
use serde_json::{Value, json};

const ROOT: &str = "tests/fixtures/signed/keyless-rekor1/trusted_root.json";

fn root() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(ROOT)).expect("the fixture")
}

/// The program, on a host whose `/` is a folder.
fn kitfs(host: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kitfs"));
    command.env_clear().env("NO_COLOR", "1").env("KITFS_TEST_HOST", host).args(arguments);
    command.output().expect("the program")
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A TUF repository with one key for everything.
struct Repository {
    key: SigningKey,
    files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    fn new(target: &[u8], expires: &str) -> Self {
        let mut repository = Self { key: SigningKey::from_bytes(&[7; 32]), files: BTreeMap::new() };
        let role = json!({"keyids": ["k"], "threshold": 1});
        let public = hex(repository.key.verifying_key().as_bytes());
        let file =
            |bytes: &[u8]| json!({"version": 1, "length": bytes.len(), "hashes": {"sha256": Digest::of(Algorithm::Sha256, bytes).hex()}});
        let later = "2126-01-01T00:00:00Z";
        let keys = json!({"k": {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}}});
        let roles = json!({"root": role, "timestamp": role, "snapshot": role, "targets": role});
        repository.sign("root", later, &json!({"consistent_snapshot": false, "keys": keys, "roles": roles}));
        repository.files.insert("targets/trusted_root.json".into(), target.to_vec());
        let mut of_target = file(target);
        of_target.as_object_mut().expect("an object").remove("version");
        repository.sign("targets", later, &json!({"targets": {"trusted_root.json": of_target}}));
        repository.sign("snapshot", later, &json!({"meta": {"targets.json": file(&repository.files["targets.json"])}}));
        repository.sign("timestamp", expires, &json!({"meta": {"snapshot.json": file(&repository.files["snapshot.json"])}}));
        repository
    }

    fn sign(&mut self, kind: &str, expires: &str, more: &Value) {
        let mut signed = json!({"_type": kind, "spec_version": "1.0.31", "version": 1, "expires": expires});
        signed.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        // With its members in order and nothing between them: that is its canonical form.
        let signature = self.key.sign(signed.to_string().as_bytes());
        let file = json!({"signatures": [{"keyid": "k", "sig": hex(&signature.to_bytes())}], "signed": signed});
        self.files.insert(format!("{kind}.json"), file.to_string().into_bytes());
    }

    /// Serves it until the test ends, and says where.
    fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
                let asked = lines.next().and_then(Result::ok).unwrap_or_default();
                for line in lines.by_ref() {
                    if line.unwrap_or_default().is_empty() {
                        break;
                    }
                }
                let path = asked.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                let (status, body) = self.files.get(path).map_or(("404 Not Found", &[][..]), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        address
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An empty host, and root.json of a repository in it.
fn host(repository: &Repository) -> (tempfile::TempDir, PathBuf) {
    let host = tempfile::tempdir().expect("a folder");
    let root = host.path().join("root.json");
    fs::write(&root, &repository.files["root.json"]).expect("room");
    (host, root)
}

#[test]
fn a_root_is_fetched_and_written_where_policies_find_it() {
    let repository = Repository::new(&root(), "2126-01-01T00:00:00Z");
    let (host, tuf_root) = host(&repository);
    let address = repository.serve();
    let tuf_root = tuf_root.to_str().expect("UTF-8");
    let update = ["trust", "update", "ours", "--tuf-url", &address, "--tuf-root", tuf_root];
    let digest = Digest::of(Algorithm::Sha256, &root()).to_string();
    let path = host.path().join("etc/kitfs/trusted-roots.d/ours.json");
    for _ in 0..2 {
        let (exit, stdout, stderr) = said(&kitfs(host.path(), &update));
        assert_eq!(exit, Some(0), "{stderr}");
        assert!(stdout.starts_with(&format!("ours {digest}")) && stdout.contains(path.to_str().expect("UTF-8")), "{stdout}");
        assert_eq!(fs::read(&path).expect("the file"), root());
        assert_eq!(fs::metadata(&path).expect("the file").permissions().mode() & 0o7777, 0o644);
    }
    assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("a folder").count(), 1, "nothing is left beside it");
    let (exit, stdout, stderr) = said(&kitfs(host.path(), &["trust", "show"]));
    assert_eq!(exit, Some(0), "{stderr}");
    assert!(stdout.contains(&format!("ours {digest}\n  /etc/kitfs/trusted-roots.d/ours.json\n")), "{stdout}");
    assert!(stdout.contains("built in as sigstore-public-good") && stdout.contains("built in as github"), "{stdout}");

    let elsewhere = host.path().join("elsewhere.json");
    let (exit, _, stderr) = said(&kitfs(host.path(), &[&update[..], &["-o", elsewhere.to_str().expect("UTF-8")]].concat()));
    assert!(exit == Some(0) && fs::read(&elsewhere).is_ok_and(|bytes| bytes == root()), "{stderr}");
}

#[test]
fn what_cannot_be_believed_replaces_nothing() {
    let good = Repository::new(&root(), "2126-01-01T00:00:00Z");
    let (host, tuf_root) = host(&good);
    let mut changed = Repository::new(&root(), "2126-01-01T00:00:00Z");
    changed.files.insert("targets/trusted_root.json".into(), [&root()[..], b" "].concat());
    let mut stranger = Repository::new(&root(), "2126-01-01T00:00:00Z");
    stranger.key = SigningKey::from_bytes(&[8; 32]);
    stranger.sign("timestamp", "2126-01-01T00:00:00Z", &json!({"meta": {"snapshot.json": {"version": 1}}}));
    let strange_member = String::from_utf8(root()).expect("text").replacen('{', r#"{"extra":1,"#, 1);
    let kept = host.path().join("kept.json");
    fs::write(&kept, "as it was").expect("room");
    for (repository, expected) in [
        (Repository::new(&root(), "2020-01-01T00:00:00Z"), "expired"),
        (changed, "trusted_root.json"),
        (stranger, "timestamp"),
        (Repository::new(b"{}", "2126-01-01T00:00:00Z"), "is none"),
        (Repository::new(strange_member.as_bytes(), "2126-01-01T00:00:00Z"), "`extra` is no member of a trusted root"),
    ] {
        let address = repository.serve();
        let arguments = ["trust", "update", "ours", "--tuf-url", &address, "--tuf-root", tuf_root.to_str().expect("UTF-8"), "-o"];
        let (exit, _, stderr) = said(&kitfs(host.path(), &[&arguments[..], &[kept.to_str().expect("UTF-8")]].concat()));
        assert!(exit == Some(1) && stderr.contains(expected), "{expected}: {exit:?} {stderr}");
        assert_eq!(fs::read(&kept).expect("the file"), b"as it was");
    }
    for (arguments, expected) in [
        (&["trust", "update", "theirs"][..], "no TUF repository is known for `theirs`"),
        (&["trust", "update", "../x"], "`../x` is no name of a trusted root"),
    ] {
        let (exit, _, stderr) = said(&kitfs(host.path(), arguments));
        assert!(exit == Some(2) && stderr.contains(expected) && stderr.contains("hint: "), "{stderr}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let nobody = format!("http://{closed}");
    let arguments = ["trust", "update", "ours", "--tuf-url", &nobody, "--tuf-root", tuf_root.to_str().expect("UTF-8")];
    let (exit, _, stderr) = said(&kitfs(host.path(), &arguments));
    assert!(exit == Some(1) && stderr.contains(&nobody), "{stderr}");
}

#[test]
fn roots_are_shown_by_the_names_that_policies_have_for_them() {
    let host = tempfile::tempdir().expect("a folder");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(ROOT);
    let file = file.to_str().expect("UTF-8");
    let ours = format!("ours={file}");
    let show = |arguments: &[&str]| said(&kitfs(host.path(), &[&["trust", "show"], arguments].concat()));
    let (exit, stdout, _) = show(&["--trusted-root", &ours, "--trusted-root", "github"]);
    assert_eq!(exit, Some(0));
    assert!(stdout.contains(&format!("ours sha256:{}", Digest::of(Algorithm::Sha256, &root()).hex())), "{stdout}");
    assert!(stdout.contains("trusted-root sha256:") && stdout.contains("built in as github"), "{stdout}");
    let (exit, _, stderr) = show(&["--trusted-root", "github", "--trusted-root", "sigstore-public-good"]);
    assert!(exit == Some(2) && stderr.contains("two trusted roots `trusted-root`") && stderr.contains("NAME=FILE"), "{stderr}");
    let closed: Value = serde_json::from_slice(&root()).expect("JSON");
    let closed = {
        let mut closed = closed;
        for log in closed["tlogs"].as_array_mut().expect("logs") {
            log["publicKey"]["validFor"] = json!({"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"});
        }
        closed
    };
    let path = host.path().join("closed.json");
    fs::write(&path, closed.to_string()).expect("room");
    let (exit, stdout, stderr) = show(&["--trusted-root", path.to_str().expect("UTF-8")]);
    assert!(exit == Some(0) && stdout.contains("transparency log      closed"), "{stdout}");
    assert!(stderr.contains("warning: trusted-root: no transparency log is open"), "{stderr}");
    assert!(!stderr.contains("no timestamp authority"), "{stderr}");
    // What others could have written is no root of the host's.
    let folder = host.path().join("etc/kitfs/trusted-roots.d");
    fs::create_dir_all(&folder).expect("room");
    for part in ["etc", "etc/kitfs"] {
        fs::set_permissions(host.path().join(part), fs::Permissions::from_mode(0o755)).expect("ours");
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("ours");
    let (exit, _, stderr) = show(&[]);
    assert!(exit == Some(2) && stderr.contains("can be written by others"), "{stderr}");
}
