//! The listener: one path, small requests, little time, and then the connection ends.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use crate::clock::timespec;
use crate::limits::{METRICS_HEADERS, METRICS_PATIENCE, METRICS_PAUSE, METRICS_REQUEST_BYTES, METRICS_THREADS, METRICS_TIME};

/// Answers at `listener` for as long as this process lives.
pub fn serve(listener: OwnedFd, registry: Registry) -> io::Result<()> {
    let (listener, registry) = (Arc::new(listener), Arc::new(registry));
    for number in 0..METRICS_THREADS {
        let (listener, registry) = (Arc::clone(&listener), Arc::clone(&registry));
        thread::Builder::new().name(format!("metrics-{number}")).spawn(move || {
            loop {
                match accept_with(&*listener, SocketFlags::CLOEXEC) {
                    Ok(connection) => {
                        if let Err(error) = answer(connection, &listener, &registry) {
                            tracing::debug!(%error, "somebody who asked for metrics is gone");
                        }
                    }
                    Err(Errno::INTR | Errno::CONNABORTED) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a request for metrics");
                        // No descriptor to be had, most likely: it must not become a loop.
                        thread::sleep(METRICS_PAUSE);
                    }
                }
            }
        })?;
    }
    Ok(())
}

fn answer(connection: OwnedFd, listener: &OwnedFd, registry: &Registry) -> io::Result<()> {
    let until = Instant::now() + METRICS_TIME;
    set_socket_timeout(&connection, Timeout::Send, Some(METRICS_TIME))?;
    let mut request = Vec::new();
    let mut stream = File::from(connection);
    let (status, kind, body) = loop {
        await_bytes(&stream, listener, until)?;
        let mut part = [0; 1024];
        let length = stream.read(&mut part)?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(part.get(..length).unwrap_or_default());
        match judge(&request) {
            Judged::Incomplete => {}
            Judged::Refused(status) => break (status, "text/plain", String::new()),
            Judged::Metrics => {
                let mut text = String::new();
                encode(&mut text, registry).map_err(io::Error::other)?;
                break ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text);
            }
        }
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    hear_out(&mut stream, listener, until)
}

/// Reads what still comes: a connection that is closed before would be reset, and the answer lost with it.
fn hear_out(stream: &mut File, listener: &OwnedFd, until: Instant) -> io::Result<()> {
    shutdown(&*stream, Shutdown::Write)?;
    loop {
        await_bytes(stream, listener, until)?;
        if stream.read(&mut [0; 1024])? == 0 {
            return Ok(());
        }
    }
}

/// Waits until something comes, but not for longer than `until`, and not for one who says nothing while somebody else waits for his turn: connections that
/// are opened and left alone would keep a scraper waiting.
fn await_bytes(stream: &File, listener: &OwnedFd, until: Instant) -> io::Result<()> {
    let is_readable = |descriptor: BorrowedFd<'_>, wait| {
        rustix::event::poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&timespec(wait))).map(|ready| ready > 0)
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match is_readable(stream.as_fd(), left.min(METRICS_PATIENCE)) {
            Ok(true) => return Ok(()),
            Ok(false) if left.is_zero() || is_readable(listener.as_fd(), Duration::ZERO)? => return Err(io::ErrorKind::TimedOut.into()),
            Ok(false) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a request comes to, as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    Incomplete,
    Metrics,
    Refused(&'static str),
}

fn judge(request: &[u8]) -> Judged {
    let mut headers = [httparse::EMPTY_HEADER; METRICS_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() >= METRICS_REQUEST_BYTES => Judged::Refused("431 Request Header Fields Too Large"),
        Ok(httparse::Status::Partial) => Judged::Incomplete,
        Err(httparse::Error::TooManyHeaders) => Judged::Refused("431 Request Header Fields Too Large"),
        Err(_) => Judged::Refused("400 Bad Request"),
        Ok(httparse::Status::Complete(_)) => match (parsed.method, parsed.path.and_then(|path| path.split('?').next())) {
            (Some("GET"), Some("/metrics")) => Judged::Metrics,
            (_, Some("/metrics")) => Judged::Refused("405 Method Not Allowed"),
            _ => Judged::Refused("404 Not Found"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_say_nothing_keep_no_scraper_waiting() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("m.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let connect = || std::os::unix::net::UnixStream::connect(&path).expect("connected");
        let _idle: Vec<_> = (0..100).map(|_| connect()).collect();
        let mut scraper = connect();
        serve(listener.into(), Registry::default()).expect("threads");
        scraper.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("said");
        // Each of the others is given up for its silence: with their whole time it would be 100 s.
        scraper.set_read_timeout(Some(METRICS_TIME * 10)).expect("a time");
        let mut answer = String::new();
        scraper.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }

    #[test]
    fn one_request_is_answered_and_all_others_refused() {
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(METRICS_REQUEST_BYTES));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(METRICS_HEADERS + 1));
        let most = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(METRICS_HEADERS));
        let just = &long[..METRICS_REQUEST_BYTES - 1];
        for (request, judged) in [
            ("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", Judged::Metrics),
            ("GET /metrics?name[]=a HTTP/1.0\r\n\r\n", Judged::Metrics),
            (&most, Judged::Metrics),
            ("", Judged::Incomplete),
            ("GET /metrics HTTP/1.1\r\nhost: x\r\n", Judged::Incomplete),
            (just, Judged::Incomplete),
            (&long, Judged::Refused("431 Request Header Fields Too Large")),
            (&many, Judged::Refused("431 Request Header Fields Too Large")),
            ("GET / HTTP/1.1\r\n\r\n", Judged::Refused("404 Not Found")),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Judged::Refused("404 Not Found")),
            ("POST /metrics HTTP/1.1\r\n\r\n", Judged::Refused("405 Method Not Allowed")),
            ("\u{1}\u{2}\r\n\r\n", Judged::Refused("400 Bad Request")),
            ("PRI * HTTP/2.0\r\n\r\n", Judged::Refused("400 Bad Request")),
        ] {
            assert_eq!(judge(request.as_bytes()), judged, "{request}");
        }
    }
}
