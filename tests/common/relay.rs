//! A relay that stands for a long way: each byte that passes, in either direction, comes out 20 ms after it went in, and a connection holds at most 4 MiB
//! each way, so that one connection gets at most 4 MiB in 20 ms.
//!
//! It knows nothing of what it carries, and stands on `std` alone: `scripts/bench` builds a program of it with `rustc`.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a byte takes.
pub const DELAY: Duration = Duration::from_millis(20);

/// How many bytes a connection holds each way.
pub const HELD: usize = 4 << 20;

/// How many bytes are read at once. Large enough to wake up seldom; a way that has less room than this left takes nothing.
const PIECE: usize = 128 << 10;

/// A relay on a loopback port of its own; it ends when it is dropped, and cuts its connections.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    passed: AtomicU64,
    most_held: AtomicUsize,
}

impl Relay {
    /// Relays to `target`.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let relay = Self { address: listener.local_addr()?, shared: Arc::default() };
        let shared = Arc::clone(&relay.shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stopping.load(Ordering::Acquire) {
                    break;
                }
                // Whatever goes wrong with a connection is the affair of its ends.
                drop(client.and_then(|client| connect(&shared, client, target)));
            }
        });
        Ok(relay)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes came out of it, both ways.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// The most bytes that one connection held one way.
    pub fn most_held(&self) -> usize {
        self.shared.most_held.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // It waits for connections: here is one, which tells it to end.
        drop(TcpStream::connect(self.address));
        for stream in lock(&self.shared.streams).drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        lock(&shared.streams).push(stream.try_clone()?);
    }
    shared.connections.fetch_add(1, Ordering::Relaxed);
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let way = Arc::new(Way { shared: Arc::clone(shared), from: from.try_clone()?, state: Mutex::default(), changed: Condvar::new() });
        let into = Arc::clone(&way);
        thread::spawn(move || into.take(from));
        thread::spawn(move || way.give(to));
    }
    Ok(())
}

/// One direction of a connection.
struct Way {
    shared: Arc<Shared>,
    from: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: usize,
    pieces: VecDeque<(Instant, Vec<u8>)>,
    /// Pieces to be used again.
    spare: Vec<Vec<u8>>,
    /// Nothing more comes, or nobody takes it.
    ended: bool,
}

impl Way {
    /// Takes in what comes, as long as there is room.
    fn take(&self, mut from: TcpStream) {
        loop {
            let room = self.changed.wait_while(lock(&self.state), |state| state.held + PIECE > HELD && !state.ended);
            let mut state = room.unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            let mut piece = state.spare.pop().unwrap_or_default();
            drop(state);
            piece.resize(PIECE, 0);
            let length = from.read(&mut piece).unwrap_or(0);
            piece.truncate(length);
            let mut state = lock(&self.state);
            if length == 0 {
                state.ended = true;
            } else {
                state.held += length;
                self.shared.most_held.fetch_max(state.held, Ordering::Relaxed);
                state.pieces.push_back((Instant::now() + DELAY, piece));
            }
            drop(state);
            self.changed.notify_all();
            if length == 0 {
                return;
            }
        }
    }

    /// Gives out what is due.
    fn give(&self, mut to: TcpStream) {
        loop {
            let next = self.changed.wait_while(lock(&self.state), |state| state.pieces.is_empty() && !state.ended);
            let Some((due, piece)) = next.unwrap_or_else(PoisonError::into_inner).pieces.pop_front() else {
                break;
            };
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                // Or the other end would wait for somebody to take what it sends.
                drop(self.from.shutdown(Shutdown::Both));
                break;
            }
            self.shared.passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            let mut state = lock(&self.state);
            state.held -= piece.len();
            state.spare.push(piece);
            drop(state);
            self.changed.notify_all();
        }
        lock(&self.state).ended = true;
        self.changed.notify_all();
        drop(to.shutdown(Shutdown::Write));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
