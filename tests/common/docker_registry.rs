//! Debian's `docker-registry`: the registry that nobody has adapted to these tests.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::pack::{Kit, MANIFEST};
use super::process::{Running, require};

/// A running registry with storage of its own.
pub struct DockerRegistry {
    host: String,
    process: Running,
    _folder: tempfile::TempDir,
}

impl DockerRegistry {
    pub fn start() -> Self {
        require("docker-registry", "apt-get install docker-registry");
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        // Free a moment ago; the registry cannot choose one by itself and say which.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a loopback port").port();
        let host = format!("127.0.0.1:{port}");
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("room");
        let process = Running::start(Command::new("docker-registry").arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none"));
        let mut registry = Self { host, process, _folder: folder };
        registry.await_ready();
        registry
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// Uploads a kit and says its reference.
    pub fn push(&self, kit: &Kit, name: &str, tag: &str) -> String {
        for (digest, blob) in kit.blobs() {
            let (status, location, _) = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[]).expect("an answer");
            assert_eq!(status, 202, "the registry takes uploads");
            let location = location.expect("a place for the upload");
            let path = location.find("/v2/").map_or(location.as_str(), |start| &location[start..]);
            let separator = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{separator}digest={digest}");
            let (status, _, body) = self.send("PUT", &path, "application/octet-stream", blob).expect("an answer");
            assert_eq!(status, 201, "{body}");
        }
        let (status, _, body) = self.send("PUT", &format!("/v2/{name}/manifests/{tag}"), MANIFEST, &kit.manifest).expect("an answer");
        assert_eq!(status, 201, "{body}");
        format!("{}/{name}:{tag}", self.host)
    }

    fn await_ready(&mut self) {
        let until = Instant::now() + Duration::from_secs(30);
        while !matches!(self.send("GET", "/v2/", "", &[]), Ok((200, ..))) {
            assert!(self.process.is_running(), "docker-registry ended: {}", self.process.said());
            assert!(Instant::now() < until, "docker-registry does not answer at {}", self.host);
            // It tells nobody when it listens.
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> io::Result<(u16, Option<String>, String)> {
        let mut stream = TcpStream::connect(&self.host)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(&answer).map_err(io::Error::other)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let location = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("location"));
        let location = location.map(|header| String::from_utf8_lossy(header.value).into_owned());
        Ok((response.code.unwrap_or_default(), location, String::from_utf8_lossy(&answer[length..]).into_owned()))
    }
}
