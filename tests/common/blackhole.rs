//! An address that takes what is sent to it and answers nothing, as a firewall does that drops: no refusal, no reset.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::process::within;

/// Linux drops the SYNs for a socket whose queue of connections is full, and this one's stays full until it is dropped.
pub struct Blackhole {
    listener: TcpListener,
    _queued: TcpStream,
}

impl Blackhole {
    /// At an address of this host that nobody listens at.
    pub fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a free address");
        // A second `listen` changes the length of the queue: with 0 it has room for one connection.
        rustix::net::listen(&listener, 0).expect("it listens");
        let address = listener.local_addr().expect("bound");
        let queued = TcpStream::connect(address).expect("room for one");
        let hole = Self { listener, _queued: queued };
        let second = within(Duration::from_secs(10), "a connection that nobody answers", move || {
            TcpStream::connect_timeout(&address, Duration::from_millis(300)).map(drop)
        });
        assert!(second.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut), "{address} answers");
        hole
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// Waits until as many connections to it as that have been asked for and not answered.
    pub fn await_asked(&self, number: usize) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.asked() < number {
            assert!(Instant::now() < until, "{} of {number} ask {}", self.asked(), self.address());
            // The table of connections gives no event to wait for.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Connections to it of which the kernel has sent a SYN and nothing came back.
    fn asked(&self) -> usize {
        const SYN_SENT: &str = "02";
        let SocketAddr::V4(address) = self.address() else { panic!("IPv4") };
        let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
        let table = fs::read_to_string("/proc/net/tcp").expect("/proc");
        let rows = table.lines().map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>());
        rows.filter(|row| *row == [remote.as_str(), SYN_SENT]).count()
    }
}
