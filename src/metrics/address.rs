//! Where metrics are told: an address of this host, or a socket in the filesystem.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, chmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use serde::{Deserialize, Serialize};

use crate::limits::METRICS_BACKLOG;

/// Where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// A port of this host.
    Tcp(SocketAddr),
    /// A socket that only its owner may use.
    Unix(PathBuf),
}

/// An address that is ours. The socket in the filesystem goes when it is dropped.
#[derive(Debug)]
pub struct Bound {
    listener: OwnedFd,
    /// What it came to, with the port that the kernel chose if it was to.
    pub address: Address,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err("there is no path after `unix:`".into()) } else { Ok(Self::Unix(path.into())) };
        }
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        if let Ok(port) = text.strip_prefix("localhost:").unwrap_or(text).parse() {
            return Ok(Self::Tcp(SocketAddr::new(loopback, port)));
        }
        text.parse().map(Self::Tcp).map_err(|_| "expected PORT (of 127.0.0.1), ADDRESS:PORT or unix:PATH".into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// The same as it is meant from anywhere.
    pub fn absolute(self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(path) => Self::Unix(std::path::absolute(path)?),
            tcp @ Self::Tcp(_) => tcp,
        })
    }

    /// Takes the address. A socket that nobody listens at any more is replaced.
    pub fn bind(&self) -> io::Result<Bound> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                Ok(Bound { address: Self::Tcp(listener.local_addr()?), listener: listener.into() })
            }
            Self::Unix(path) => match bind_path(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                    std::fs::remove_file(path)?;
                    bind_path(path)
                }
                bound => bound,
            },
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, path = %path.display(), "the socket for metrics stays");
        }
    }
}

fn bind_path(path: &Path) -> io::Result<Bound> {
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    let bound = Bound { listener, address: Address::Unix(path.to_owned()) };
    // Nobody can connect before it listens.
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    listen(&bound.listener, METRICS_BACKLOG)?;
    Ok(bound)
}

fn is_dead(path: &Path) -> bool {
    // A file that is no socket refuses connections, too.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("9464", "http://127.0.0.1:9464/metrics"),
            ("localhost:9464", "http://127.0.0.1:9464/metrics"),
            ("0.0.0.0:1", "http://0.0.0.0:1/metrics"),
            ("[::1]:2", "http://[::1]:2/metrics"),
            ("unix:/run/m", "unix:/run/m"),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), shown);
        }
        for bad in ["", "unix:", "host:1", "1.2.3.4", "99999", ":1", "http://127.0.0.1:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_is_its_owners_and_replaces_a_dead_one_only() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("m.sock");
        let address = Address::Unix(path.clone());
        let bound = address.bind().expect("a socket");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(address.bind().expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("one that dies"));
        drop(address.bind().expect("in its place"));
        std::fs::write(&path, "no socket").expect("file");
        assert!(address.bind().is_err() && path.exists(), "a file is not replaced");
    }
}
