//! Interrupts from the terminal, turned into something that can be waited for together with other things.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// Catches SIGINT, SIGTERM and SIGHUP as long as it exists; readable once one has come. One at a time in a process.
#[derive(Debug)]
pub struct Interrupts {
    come: OwnedFd,
    /// Kept for the handler.
    _comes: OwnedFd,
    before: Vec<(libc::c_int, Action)>,
}

const CAUGHT: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The end of the pipe that the handler writes to.
static PIPE: AtomicI32 = AtomicI32::new(NONE);
const NONE: i32 = -1;

impl Interrupts {
    /// From now on.
    pub fn catch() -> io::Result<Self> {
        let (come, comes) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if PIPE.compare_exchange(NONE, comes.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "interrupts are caught already"));
        }
        let mut interrupts = Self { come, _comes: comes, before: Vec::new() };
        for number in CAUGHT {
            let before = Action::set(number, &Action::handler(told as extern "C" fn(libc::c_int)))?;
            if before.is_ignored() {
                // Whoever started us does not want us to be interrupted.
                Action::set(number, &before)?;
            } else {
                interrupts.before.push((number, before));
            }
        }
        Ok(interrupts)
    }

    /// Forgets those that have come, so that the next one can be waited for.
    pub fn take(&self) {
        let mut bytes = [0; 64];
        while rustix::io::read(&self.come, &mut bytes).is_ok_and(|length| length == bytes.len()) {}
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.come.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        for (number, before) in &self.before {
            let _was_valid_before = Action::set(*number, before);
        }
        PIPE.store(NONE, Ordering::Release);
    }
}

/// The handler: a byte for whoever waits.
extern "C" fn told(_number: libc::c_int) {
    let pipe = PIPE.load(Ordering::Acquire);
    if pipe != NONE {
        // SAFETY: `write` may be called in a handler, and the byte lives throughout. `errno` is put back, since the handler can come between a system
        // call and the look at its error.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            libc::write(pipe, [1_u8].as_ptr().cast(), 1);
            *errno = before;
        }
    }
}

struct Action(libc::sigaction);

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Action({:#x})", self.0.sa_sigaction)
    }
}

impl Action {
    fn handler(handler: extern "C" fn(libc::c_int)) -> Self {
        // SAFETY: all zero is a valid one: the default action, an empty mask, no flags.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        Self(action)
    }

    fn is_ignored(&self) -> bool {
        self.0.sa_sigaction == libc::SIG_IGN
    }

    /// Sets the action for a signal and gives back what it was.
    fn set(number: libc::c_int, action: &Self) -> io::Result<Self> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: both are valid for the call.
        if unsafe { libc::sigaction(number, ptr::from_ref(&action.0), before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has filled it.
        Ok(Self(unsafe { before.assume_init() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn an_interrupt_can_be_waited_for() {
        let interrupts = Interrupts::catch().expect("caught");
        assert!(Interrupts::catch().is_err(), "one at a time");
        let come =
            |seconds| poll(&mut [PollFd::new(&interrupts, PollFlags::IN)], Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).expect("poll");
        assert_eq!(come(0), 0);
        // SAFETY: the signal is caught.
        unsafe { libc::raise(libc::SIGHUP) };
        assert_eq!(come(10), 1);
        interrupts.take();
        assert_eq!(come(0), 0, "it was taken");
        drop(interrupts);
        drop(Interrupts::catch().expect("caught again"));
    }
}
