//! What supervisor and worker say to each other, over a socket pair that keeps message boundaries and carries descriptors.
//!
//! The worker hands up what must outlive it (the descriptors of layers with open files), the supervisor hands it to the next worker and tells it when the
//! mount is to be taken down. A message that cannot be sent means that the other side is gone or does not listen, and there is nobody left to tell.
//! Nobody waits for an answer: what was sent is in the socket, and outlives a worker that dies right after.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::failure::chain;
use crate::limits::{CONTROL_MESSAGE_BYTES, CONTROL_SEND_LIMIT, FAILURE_BYTES};
use crate::store::Held;

/// One end of the conversation.
#[derive(Debug)]
pub struct Control(OwnedFd);

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub enum FromWorker {
    /// It takes requests from now on.
    Ready,
    /// It cannot serve this mount, and ends; see [`FromWorker::failed`].
    Failed {
        /// Why, for a person.
        message: String,
    },
    /// A file of this layer is about to be opened: the descriptors that come along are to be held for the next worker.
    Hold {
        /// The layer's slot.
        slot: u16,
    },
    /// No file of this layer is open any more.
    LetGo {
        /// The layer's slot.
        slot: u16,
    },
    /// Every request that waited was answered, and none will wait.
    Stopped,
}

/// What a supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub enum FromSupervisor {
    /// A layer that was open when the last worker died; its descriptors come along.
    Adopt {
        /// The layer's slot.
        slot: u16,
    },
    /// That was all: begin. With `cautious`, fetch less at once, since workers before this one died of something they did themselves. With
    /// `stopping`, let nothing wait: the mount is being taken down.
    Begin {
        /// Half the fetches at once.
        cautious: bool,
        /// Nothing waits.
        stopping: bool,
    },
    /// The mount is being taken down: whoever waits gets ENODEV, whoever comes too.
    Stop,
    /// It stays after all.
    Resume,
}

/// A message with the descriptors that came along.
#[derive(Debug)]
pub struct Received<T> {
    /// What was said.
    pub message: T,
    /// The descriptors of a layer, in [`FromWorker::Hold`] and [`FromSupervisor::Adopt`].
    pub held: Option<Held>,
}

impl FromWorker {
    /// Says why a worker cannot serve, cut to what a message holds.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        let mut message = chain(error);
        message.truncate(message.floor_char_boundary(FAILURE_BYTES));
        Self::Failed { message }
    }
}

/// How many descriptors a [`Held`] has.
const DESCRIPTORS: usize = 4;

impl Control {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for end in [&one, &other] {
            set_socket_timeout(end, Timeout::Send, Some(CONTROL_SEND_LIMIT))?;
        }
        Ok((Self(one), Self(other)))
    }

    /// The end that was inherited as `fd`.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Says `message`, with the descriptors of a layer where it is about one. If the other side does not listen and the socket is full, it is an error
    /// after [`CONTROL_SEND_LIMIT`].
    pub fn send<T: Serialize>(&self, message: &T, held: Option<&Held>) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let descriptors: Vec<BorrowedFd<'_>> =
            held.map(|held| [held.lock.as_fd(), held.dir.as_fd(), held.pack.as_fd(), held.index.as_fd()].to_vec()).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for the descriptors of a layer"));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the next message; `None` when the other side is gone.
    pub fn receive<T: for<'de> Deserialize<'de>>(&self) -> io::Result<Option<Received<T>>> {
        self.next(RecvFlags::empty())
    }

    /// The next message if there is one now; `Ok(Some(None))` when the other side is gone.
    pub fn try_receive<T: for<'de> Deserialize<'de>>(&self) -> io::Result<Option<Option<Received<T>>>> {
        match self.next(RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    fn next<T: for<'de> Deserialize<'de>>(&self, flags: RecvFlags) -> io::Result<Option<Received<T>>> {
        let mut text = [0; CONTROL_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC | flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other(format!("a message of more than {CONTROL_MESSAGE_BYTES} bytes or {DESCRIPTORS} descriptors")));
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let held = match <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) {
            Ok([lock, dir, pack, index]) => Some(Held { lock, dir, pack, index }),
            Err(_) => None,
        };
        Ok(Some(Received { message: serde_json::from_slice(&text[..received.bytes])?, held }))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (worker, supervisor) = Control::pair().expect("socket pair");
        let file = || OwnedFd::from(tempfile::tempfile().expect("file"));
        let held = Held { lock: file(), dir: file(), pack: file(), index: file() };
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("fstat").st_ino;
        worker.send(&FromWorker::Ready, None).expect("sent");
        worker.send(&FromWorker::Hold { slot: 7 }, Some(&held)).expect("sent");
        let first: Received<FromWorker> = supervisor.receive().expect("received").expect("a message");
        assert_eq!((first.message, first.held.is_none()), (FromWorker::Ready, true));
        let second: Received<FromWorker> = supervisor.receive().expect("received").expect("a message");
        assert_eq!(second.message, FromWorker::Hold { slot: 7 });
        let arrived = second.held.expect("descriptors");
        assert_eq!(
            [&arrived.lock, &arrived.dir, &arrived.pack, &arrived.index].map(inode),
            [&held.lock, &held.dir, &held.pack, &held.index].map(inode)
        );
        assert!(supervisor.try_receive::<FromWorker>().expect("no error").is_none(), "nothing now");
        worker.send(&FromWorker::Stopped, None).expect("sent");
        drop(worker);
        let last = supervisor.try_receive::<FromWorker>().expect("received").expect("something").expect("a message");
        assert_eq!(last.message, FromWorker::Stopped, "what the dead said is heard");
        assert!(supervisor.try_receive::<FromWorker>().expect("no error").expect("something").is_none(), "gone");
        assert!(supervisor.receive::<FromWorker>().expect("no error").is_none());
    }

    #[test]
    fn the_longest_failure_travels() {
        let (worker, supervisor) = Control::pair().expect("socket pair");
        let text = "\u{1}\u{e9}".repeat(999);
        worker.send(&FromWorker::failed(&io::Error::other(text.clone())), None).expect("sent");
        let received: Received<FromWorker> = supervisor.receive().expect("received").expect("a message");
        let FromWorker::Failed { message } = received.message else { panic!("{received:?}") };
        assert!(text.starts_with(&message) && message.len() >= FAILURE_BYTES - 1);
    }

    #[test]
    fn a_side_that_does_not_listen_holds_nobody_up() {
        let (worker, _supervisor) = Control::pair().expect("socket pair");
        set_socket_timeout(&worker, Timeout::Send, Some(std::time::Duration::from_millis(1))).expect("shorter");
        let error = std::iter::repeat_with(|| worker.send(&FromWorker::Ready, None)).find_map(Result::err).expect("full some time");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
