//! Room for the windows of zstd frames: what they take together in this process is bounded.
//!
//! A frame says in its header how far back it refers, and the decoder keeps up to twice that much of its content in memory. One stream may want a lot; many at once
//! must not. So a large window waits until there is room for it, in the order in which they were asked for. Nobody waits while he has room himself: he
//! who has it can always go on, and who wants more than he has gives it back first.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::limits::{TICK_SECONDS, ZSTD_WINDOW_LOG, ZSTD_WINDOW_SMALL_LOG, ZSTD_WINDOWS_BYTES};

/// How large windows share what there is.
#[derive(Debug)]
pub(super) struct Windows {
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    taken: u64,
    /// Those who wait, the first one first.
    queue: VecDeque<u64>,
    next: u64,
}

/// Room for a window, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    windows: &'static Windows,
    bytes: u64,
}

/// What all streams of this process share.
pub(super) static PROCESS: Windows = Windows::new(ZSTD_WINDOWS_BYTES);

/// One who waits; gone from the queue when it is dropped.
struct Ticket(&'static Windows, u64);

impl Windows {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { bytes, state: Mutex::new(State { taken: 0, queue: VecDeque::new(), next: 0 }), changed: Condvar::new() }
    }

    /// Takes room for `bytes`, which is waited for; meanwhile `idle` is called once a second, and its error ends the wait.
    pub(super) fn take<E>(&'static self, bytes: u64, idle: &mut dyn FnMut() -> Result<(), E>) -> Result<Room, E> {
        // The largest that is decoded at all, alone.
        let bytes = bytes.min(self.bytes);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        state.queue.push_back(number);
        // Dropped after the guard of the state, which it needs.
        let ticket = Ticket(self, number);
        loop {
            if state.queue.front() == Some(&number) && self.bytes - state.taken >= bytes {
                state.taken += bytes;
                drop(state);
                drop(ticket);
                return Ok(Room { windows: self, bytes });
            }
            let (woken, waited) =
                self.changed.wait_timeout(state, Duration::from_secs(TICK_SECONDS)).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if waited.timed_out() {
                drop(state);
                idle()?;
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Room {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.windows.state.lock().unwrap_or_else(PoisonError::into_inner).taken -= self.bytes;
        self.windows.changed.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).queue.retain(|number| *number != self.1);
        self.0.changed.notify_all();
    }
}

/// What the beginning of a frame says of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The header is not whole yet.
    Unknown,
    /// Nothing that counts: the window is small, or too large to be decoded, or this is no frame.
    Nothing,
    /// So many bytes.
    Bytes(u64),
}

/// Reads the header of a frame (RFC 8878, 3.1.1.1) as far as it tells how much memory the frame takes.
pub(super) fn wanted(head: &[u8]) -> Wanted {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    if head.iter().zip(MAGIC).any(|(byte, expected)| *byte != expected) {
        return Wanted::Nothing;
    }
    let Some(descriptor) = head.get(4) else { return Wanted::Unknown };
    let single_segment = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match descriptor >> 6 {
        0 => usize::from(single_segment),
        exponent => 1 << exponent,
    };
    let mut rest = head.get(5..).unwrap_or_default();
    let mut window = u64::MAX;
    if !single_segment {
        let Some((byte, after)) = rest.split_first() else { return Wanted::Unknown };
        let base = 1_u64 << (10 + (byte >> 3));
        window = base + base / 8 * u64::from(byte & 7);
        rest = after;
    }
    let Some(size) = rest.get(dictionary..dictionary + content) else { return Wanted::Unknown };
    // A window is never larger than what is in the frame.
    if content > 0 {
        let number = size.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        window = window.min(if content == 2 { number + 256 } else { number });
    }
    if window <= 1 << ZSTD_WINDOW_SMALL_LOG || window > 1 << ZSTD_WINDOW_LOG { Wanted::Nothing } else { Wanted::Bytes(window) }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn waiting(windows: &'static Windows, many: usize) {
        while windows.state.lock().expect("no panic").queue.len() != many {
            thread::yield_now();
        }
    }

    #[test]
    fn windows_share_what_there_is_and_wait_their_turn() {
        static WINDOWS: Windows = Windows::new(10);
        let take = |bytes| WINDOWS.take::<Infallible>(bytes, &mut || Ok(())).expect("no error");
        let (six, four) = (take(6), take(4));
        let (told, came) = mpsc::channel();
        thread::scope(|scope| {
            let ask = |bytes| {
                let told = told.clone();
                scope.spawn(move || {
                    let room = take(bytes);
                    told.send(bytes).expect("heard");
                    drop(room);
                })
            };
            ask(8);
            waiting(&WINDOWS, 1);
            ask(1);
            waiting(&WINDOWS, 2);
            drop(four);
            // There is room for the one, but it is not his turn.
            assert_eq!(came.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(six);
            assert_eq!(came.iter().take(2).max(), Some(8));
        });
        // More than there is: it is the only one then.
        let all = take(11);
        assert_eq!(all.bytes(), 10);
        let gives_up = WINDOWS.take(1, &mut || Err("enough"));
        assert_eq!(gives_up.expect_err("no room"), "enough");
        drop(all);
        assert_eq!(take(10).bytes(), 10, "all of it is free again");
    }

    #[test]
    fn what_a_header_wants() {
        const MIB: u64 = 1 << 20;
        let head = |rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat();
        let cases: [(Vec<u8>, Wanted); 12] = [
            (vec![], Wanted::Unknown),
            (head(&[]), Wanted::Unknown),
            (head(&[0]), Wanted::Unknown),
            (head(&[0, 13 << 3]), Wanted::Nothing),
            (head(&[0, 13 << 3 | 1]), Wanted::Bytes(9 * MIB)),
            (head(&[0, 17 << 3]), Wanted::Bytes(128 * MIB)),
            (head(&[0, 17 << 3 | 1]), Wanted::Nothing),
            // With a content size of four bytes, behind a dictionary's number of one.
            (head(&[0x81, 17 << 3, 9, 0, 0, 0]), Wanted::Unknown),
            (head(&[0x81, 17 << 3, 9, 0, 0, 0, 1]), Wanted::Bytes(16 * MIB)),
            // Without a window: the content is it.
            (head(&[0xa0, 0, 0, 0, 2]), Wanted::Bytes(32 * MIB)),
            (head(&[0x60, 0xff, 0xff]), Wanted::Nothing),
            (vec![0x53, 0x2a, 0x4d, 0x18], Wanted::Nothing),
        ];
        for (head, expected) in cases {
            assert_eq!(wanted(&head), expected, "{head:x?}");
        }
    }
}
