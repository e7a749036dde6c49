//! A server that answers whatever it likes.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt as _;
use kitfs::credentials::Credentials;
use kitfs::limits;
use kitfs::registry::{RegistryOptions, Timing};
use kitfs::source::Source as _;

use super::client::{MANY, ONE, descriptor, kind, open, options, read, timing};

/// Serves each request by `answer`: request (head and as much of the body as came with it) → the bytes to send, then the end.
pub fn serve(answer: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    let (answer, own) = (Arc::new(answer), host.clone());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (answer, own) = (Arc::clone(&answer), own.clone());
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                let complete = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request);
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let head = head.to_ascii_lowercase();
                    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                    (body.len() >= length.unwrap_or(0)).then_some(())
                };
                while complete(&request).is_none() {
                    match stream.read(&mut chunk) {
                        Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
                        _ => return,
                    }
                }
                let mut bytes = answer(&String::from_utf8_lossy(&request), &own);
                // Else a client may send its next request where nobody reads it, and has to try again: a request more than a test counts.
                if let Some(head) = bytes.windows(2).position(|pair| pair == b"\r\n") {
                    bytes.splice(head..head, *b"\r\nConnection: close");
                }
                // The client may have gone; that is its right.
                let _ = stream.write_all(&bytes);
            });
        }
    });
    host
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_is_too_strange() {
    let headers = [
        "Content-Range",
        "Content-Length",
        "Retry-After",
        "Docker-Content-Digest",
        "WWW-Authenticate",
        "Location",
        "Content-Type",
        "Transfer-Encoding",
        "Content-Encoding",
        "Date",
    ];
    let values = [
        "",
        " ",
        "0",
        "-1",
        "99999999999999999999999",
        "18446744073709551615",
        "bytes 0-4/18446744073709551615",
        "bytes 18446744073709551615-18446744073709551615/*",
        "bytes 5-4/3",
        "bytes */0",
        "bytes */*",
        "sha256:",
        "sha256:zz",
        ":",
        "Bearer realm=\"",
        "Bearer realm=\"\u{1}\"",
        "Bearer realm=\"mailto:x\"",
        "Bearer realm=\"http://[::1\"",
        "Basic",
        ",,,",
        "http://",
        "//",
        "http://user:pass@[",
        "\u{e4}\u{f6}\u{fc}",
        "\t",
        "chunked",
        "gzip",
        "a/b;;;",
        "Thu, 99 Foo 99999",
    ];
    let now = Arc::new(Mutex::new((200, String::new())));
    let shared = Arc::clone(&now);
    let host = serve(move |_, _| {
        let (status, header) = shared.lock().expect("unpoisoned").clone();
        format!("HTTP/1.1 {status} X\r\n{header}\r\n\r\n12345").into_bytes()
    });
    let mut hasty = options(MANY);
    let wait = Duration::from_millis(40);
    hasty.timing = Timing { stall: wait, silence: wait * 2, document: wait * 2, retry_after: wait, ..timing() };
    let wanted = descriptor(b"12345");
    for status in [200, 206, 307, 401, 416, 503] {
        let source = open(&host, ":v1", &hasty);
        for header in headers {
            for value in values {
                *now.lock().expect("unpoisoned") = (status, format!("{header}: {value}"));
                // Whatever it is, it ends, and without a panic.
                let came = read(&source, &wanted, b"12345", 1).await;
                assert!(came.bytes <= 5, "{status} {header}: {value}: {came:?}");
                // Tags take the other way through the same headers; the waits of all combinations would add up.
                if status == 200 || status == 401 {
                    let _ = source.resolve().await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_end_is_cut() {
    let endless = |head: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("bound").to_string();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(head.as_bytes());
                    while stream.write_all(&[b' '; 65536]).is_ok() {}
                });
            }
        });
        host
    };
    let host = endless("HTTP/1.1 200 OK\r\n\r\n");
    let source = open(&host, ":v1", &options(ONE));
    assert_eq!(source.resolve().await.as_ref().err().map(kind), Some("protocol"));
    let wanted = descriptor(b"12345");
    assert_eq!(source.document(&wanted).await.expect("one byte too many").len(), 6);
    assert_eq!(read(&source, &wanted, b"12345", 0).await.bytes, 6);
    for (head, expected) in [("HTTP/1.1 503 X\r\n\r\n", "unavailable"), ("HTTP/1.1 404 X\r\n\r\n", "not found")] {
        let source = open(&endless(head), ":v1", &options(ONE));
        assert_eq!(source.resolve().await.as_ref().err().map(kind), Some(expected));
    }
    // A head without end.
    let source = open(&endless("HTTP/1.1 200 OK\r\nX: "), ":v1", &options(ONE));
    assert_eq!(source.resolve().await.as_ref().err().map(kind), Some("unavailable"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_all_kinds() {
    for (answer, expected) in [
        (r#"{"token":"good"}"#.to_owned(), None),
        (r#"{"access_token":"good"}"#.to_owned(), None),
        (r#"{"token":"good","access_token":"good","expires_in":-5,"issued_at":7}"#.to_owned(), None),
        (r#"{"token":"bad"}"#.to_owned(), Some("denied")),
        (r#"{"token":"a\nb"}"#.to_owned(), Some("protocol")),
        (r#"{"token":"a\u0000b"}"#.to_owned(), Some("protocol")),
        (r#"{"token":5}"#.to_owned(), Some("protocol")),
        ("{}".to_owned(), Some("protocol")),
        ("s3cret".to_owned(), Some("protocol")),
        ("[".repeat(100_000), Some("protocol")),
        (format!(r#"{{"token":"good"}}{}"#, " ".repeat(limits::TOKEN_BYTES as usize - 16)), None),
        (format!(r#"{{"token":"good"}}{}"#, " ".repeat(limits::TOKEN_BYTES as usize - 15)), Some("protocol")),
    ] {
        let shown: String = answer.chars().take(60).collect();
        let host = serve(move |request, own| {
            if request.starts_with("GET /token?") {
                return ok(&answer);
            }
            if request.to_ascii_lowercase().contains("authorization: bearer good") {
                return ok("{}");
            }
            format!("HTTP/1.1 401 X\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\"\r\n\r\n").into_bytes()
        });
        let outcome = open(&host, ":v1", &options(ONE)).resolve().await;
        assert_eq!(outcome.as_ref().err().map(kind), expected, "{shown}: {outcome:?}");
        assert!(!format!("{outcome:?}").contains("s3cret"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_token_is_exchanged() {
    let (seen, requests) = mpsc::channel();
    let host = serve(move |request, own| {
        if request.starts_with("POST /token") {
            seen.send(request.to_owned()).expect("the test waits");
            return ok(r#"{"access_token":"good"}"#);
        }
        if request.to_ascii_lowercase().contains("authorization: bearer good") {
            return ok("{}");
        }
        format!("HTTP/1.1 401 X\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"a b\"\r\n\r\n")
            .into_bytes()
    });
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.json");
    let text = serde_json::json!({ "auths": { &host: { "auth": "bWU6", "identitytoken": "refresh&me" } } }).to_string();
    std::fs::write(&file, text).expect("written");
    let options = RegistryOptions { credentials: Credentials::from_files([file]), ..options(ONE) };
    open(&host, ":v1", &options).resolve().await.expect("resolved");
    let request = requests.recv_timeout(Duration::from_secs(10)).expect("a request");
    let body = request.split("\r\n\r\n").nth(1).expect("a body");
    assert_eq!(
        body,
        "grant_type=refresh_token&service=a+b&client_id=kitfs&scope=repository%3Aacme%2Fminilm%3Apull&refresh_token=refresh%26me"
    );
    assert!(!request.to_ascii_lowercase().contains("\r\nauthorization:"), "{request}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    let (hung_up, ends) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let hung_up = hung_up.clone();
            thread::spawn(move || {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).expect("a request");
                let text = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
                let head = match text.split("range: bytes=").nth(1).and_then(|rest| rest.lines().next()?.split_once('-')) {
                    Some((first, last)) => {
                        let last = if last.is_empty() { "99999" } else { last };
                        format!("HTTP/1.1 206 X\r\nContent-Range: bytes {first}-{last}/100000\r\n\r\n12345")
                    }
                    None => "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n12345".to_owned(),
                };
                stream.write_all(head.as_bytes()).expect("the client is there");
                // The client has nothing more to say, so what ends this is its end.
                let _ = stream.read(&mut request);
                let _ = hung_up.send(());
            });
        }
    });
    let wanted = kitfs::descriptor::Descriptor { size: 100_000, ..descriptor(b"") };
    for (cut, connections) in [(ONE, 1), (MANY, 3)] {
        let mut stream = open(&host, ":v1", &options(cut)).blob(&wanted, 0);
        assert!(matches!(stream.next().await, Some(Ok(_))));
        // Nothing more comes; polling is what begins the other ranges.
        assert!(tokio::time::timeout(Duration::from_millis(300), stream.next()).await.is_err());
        assert!(ends.try_recv().is_err());
        drop(stream);
        for _ in 0..connections {
            ends.recv_timeout(Duration::from_secs(10)).expect("every connection ends");
        }
    }
}
