//! Replies that fuser cannot give, written to the device by hand.
//!
//! Three things need it: an entry whose node id is not its inode number (ids carry an incarnation, `st_ino` must not), a directory entry of
//! unknown type, and the number of a backing file that an earlier worker registered. The layouts are those of the kernel's
//! `include/uapi/linux/fuse.h`, ABI 7.31 and later. This module knows no tree and no store.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Size of `struct fuse_out_header`.
const HEADER_SIZE: usize = 16;
/// Size of `struct fuse_dirent` without the name.
pub(crate) const DIRENT_SIZE: usize = 24;
/// Size of `struct fuse_entry_out`.
pub(crate) const ENTRY_SIZE: usize = 128;
/// How long the kernel may keep what never changes, in seconds: a year, since no mount outlives its kernel for long.
pub(crate) const FOREVER: u64 = 365 * 24 * 3600;

/// `FOPEN_KEEP_CACHE`: what the page cache holds of this file stays right.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `FOPEN_CACHE_DIR`: the kernel may keep this folder's listing.
pub(crate) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `FOPEN_NOFLUSH`: no FLUSH at close, so that `close` never waits for a worker.
pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
/// `FOPEN_PASSTHROUGH`: reads go to the backing file.
pub(crate) const FOPEN_PASSTHROUGH: u32 = 1 << 7;

/// `struct fuse_attr` as it is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attr {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    /// With the file type bits.
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The FUSE device, for replies of our own and for backing files.
#[derive(Debug)]
pub(crate) struct Device(OwnedFd);

impl Device {
    /// Writes through `fd`, which is the mount's FUSE device.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Answers LOOKUP: the node is there. `seconds` is how long the kernel may believe it without asking again.
    pub(crate) fn entry(&self, unique: u64, node: u64, attr: &Attr, seconds: u64) {
        self.send(unique, &entry_out(node, Some(attr), seconds));
    }

    /// Answers LOOKUP: there is nothing of this name, and that is final.
    pub(crate) fn no_entry(&self, unique: u64) {
        self.send(unique, &entry_out(0, None, FOREVER));
    }

    /// Answers GETATTR.
    pub(crate) fn attr(&self, unique: u64, attr: &Attr) {
        let mut out = Vec::with_capacity(104);
        out.extend(FOREVER.to_ne_bytes());
        out.extend([0; 8]);
        put_attr(&mut out, attr);
        self.send(unique, &out);
    }

    /// Answers OPEN and OPENDIR; the handle is 0, since handles carry no state.
    pub(crate) fn opened(&self, unique: u64, flags: u32, backing: u32) {
        let mut out = [0; 16];
        out[8..12].copy_from_slice(&flags.to_ne_bytes());
        out[12..16].copy_from_slice(&backing.to_ne_bytes());
        self.send(unique, &out);
    }

    /// Answers READDIR and READDIRPLUS.
    pub(crate) fn listing(&self, unique: u64, listing: &Listing) {
        self.send(unique, &listing.bytes);
    }

    /// Answers READ.
    pub(crate) fn data(&self, unique: u64, bytes: &[u8]) {
        self.send(unique, bytes);
    }

    /// Answers any request with an error.
    pub(crate) fn error(&self, unique: u64, errno: Errno) {
        self.write(unique, -errno.raw_os_error(), &[]);
    }

    /// Registers `file` as a backing file; the number lives in the connection, not in this process.
    pub(crate) fn backing_open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        fuser::BackingId::create_raw(&self.0, file)
    }

    /// Gives a backing file back. An unknown number is an error that changes nothing.
    pub(crate) fn backing_close(&self, id: u32) -> io::Result<()> {
        const FUSE_DEV_IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502; // _IOW(229, 2, u32)
        // SAFETY: the descriptor is open, and the request reads four bytes at the pointer, which is valid for them.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE as _, &raw const id) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn send(&self, unique: u64, payload: &[u8]) {
        self.write(unique, 0, payload);
    }

    fn write(&self, unique: u64, error: i32, payload: &[u8]) {
        let mut header = [0; HEADER_SIZE];
        header[0..4].copy_from_slice(&((HEADER_SIZE + payload.len()) as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..16].copy_from_slice(&unique.to_ne_bytes());
        match rustix::io::writev(&self.0, &[IoSlice::new(&header), IoSlice::new(payload)]) {
            // ENOENT: nobody waits for this request any more. ENODEV: nor for any other.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::error!(unique, %error, "reply to the kernel failed"),
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The payload of a READDIR or READDIRPLUS reply, up to a capacity.
#[derive(Debug)]
pub(crate) struct Listing {
    bytes: Vec<u8>,
    capacity: usize,
    plus: bool,
}

impl Listing {
    /// An empty listing of at most `capacity` bytes; `plus` for READDIRPLUS.
    pub(crate) fn new(capacity: usize, plus: bool) -> Self {
        Self { bytes: Vec::with_capacity(capacity), capacity, plus }
    }

    /// Adds a name; false if there is no room for it. `entry` is the node and what `stat` shows of it; without it, or for `.` and
    /// `..`, the kernel asks by LOOKUP when it wants to know. `kind` is a `DT_…` value, 0 for unknown.
    pub(crate) fn add(&mut self, name: &[u8], inode: u64, kind: u32, position: u64, entry: Option<(u64, &Attr)>) -> bool {
        let head = if self.plus { ENTRY_SIZE } else { 0 } + DIRENT_SIZE;
        let padded = (head + name.len()).next_multiple_of(8);
        if self.bytes.len() + padded > self.capacity {
            return false;
        }
        if self.plus {
            let (node, attr) = entry.map_or((0, None), |(node, attr)| (node, Some(attr)));
            self.bytes.extend(entry_out(node, attr, FOREVER));
        }
        self.bytes.extend(inode.to_ne_bytes());
        self.bytes.extend(position.to_ne_bytes());
        self.bytes.extend((name.len() as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }
}

fn entry_out(node: u64, attr: Option<&Attr>, seconds: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY_SIZE);
    out.extend(node.to_ne_bytes());
    out.extend([0; 8]); // generation: ids are never reused
    out.extend(seconds.to_ne_bytes());
    out.extend(seconds.to_ne_bytes());
    out.extend([0; 8]);
    match attr {
        Some(attr) => put_attr(&mut out, attr),
        None => out.resize(ENTRY_SIZE, 0),
    }
    out
}

fn put_attr(out: &mut Vec<u8>, attr: &Attr) {
    let blocks = attr.size.div_ceil(512);
    for long in [attr.inode, attr.size, blocks, attr.mtime, attr.mtime, attr.mtime] {
        out.extend(long.to_ne_bytes());
    }
    for word in [0, 0, 0, attr.mode, attr.nlink, attr.uid, attr.gid, 0, BLOCK_SIZE, 0] {
        out.extend(word.to_ne_bytes());
    }
}

/// What `stat` shows as the preferred block size; a page, since the page cache does the reading.
const BLOCK_SIZE: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const ATTR: Attr = Attr { inode: 5, size: 513, mtime: 7, mode: 0o100_644, nlink: 1, uid: 1, gid: 2 };

    #[test]
    fn replies_have_the_sizes_that_the_kernel_checks() {
        assert_eq!(entry_out(1, Some(&ATTR), 1).len(), ENTRY_SIZE);
        assert_eq!(entry_out(0, None, 1).len(), ENTRY_SIZE);
        let mut attr = Vec::new();
        put_attr(&mut attr, &ATTR);
        assert_eq!(attr.len(), 88);
    }

    #[test]
    fn a_listing_never_outgrows_its_capacity() {
        for plus in [false, true] {
            let mut listing = Listing::new(4096, plus);
            let mut added = 0;
            while listing.add(b"name", 1, 0, added, Some((1, &ATTR))) {
                added += 1;
            }
            assert!(added > 10 && listing.bytes.len() <= 4096 && listing.bytes.len().is_multiple_of(8));
        }
    }
}
