//! The page that outlives workers: a memfd that supervisor and worker map, so that a new worker goes on where a killed one stopped.
//!
//! It holds what cannot be derived from a node id: which backing files the connection has and how often each is open, how many handles each layer has,
//! which requests are being handled right now and which are never to be handled again, what was agreed on with the kernel. Everything is an atomic, and each
//! change is ordered so that a death in the middle of it leaves something pinned for too long, never something let go too early.
//!
//! Only one worker writes at a time; the supervisor reads, and writes the poison list. Neither trusts it with memory safety: an odd value is a wrong
//! number, no wrong pointer.

use std::collections::HashSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::limits::{BACKING_FILES_MAX, HANDLERS_MAX, POISONED_MAX, REPLACED_MAX};
use crate::node::{NodeId, SLOTS_MAX};

/// The page; cheap to clone.
#[derive(Debug, Clone)]
pub struct Page(Arc<Mapped>);

/// What supervisor and kernel agreed on when the mount was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Minor version of the kernel's FUSE ABI.
    pub minor: u32,
    /// The kernel's capabilities, as `FUSE_INIT` gave them.
    pub capabilities: u64,
    /// The kernel's read-ahead limit in bytes.
    pub max_readahead: u32,
}

/// How files with a data file of their own are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// By the kernel, from the backing file.
    Passthrough,
    /// Through us, into the page cache.
    Cached,
}

/// What a close meant for a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The file was not opened with one.
    NotBacked,
    /// Others have it open still.
    StillOpen,
    /// It was the last: this number is to be given back to the kernel.
    Last(u32),
}

/// Being in a handler; ends when it is dropped.
#[derive(Debug)]
pub struct InHandler<'a>(Option<&'a AtomicU64>, &'a AtomicU64);

#[derive(Debug)]
struct Mapped {
    memory: MmapRaw,
    fd: OwnedFd,
    /// Serialises changes of the tables within this process.
    changes: Mutex<()>,
}

/// The layout. Never reordered without a new [`VERSION`]: supervisor and worker may be of two builds.
#[repr(C)]
struct Layout {
    version: AtomicU64,
    /// Counts requests that were taken from the device or left a handler: what stands still while the kernel has requests is a hung worker.
    heartbeat: AtomicU64,
    /// Counts the rounds of whoever watches waiting requests: what stands still while requests wait is a hung worker, too.
    rounds: AtomicU64,
    minor: AtomicU32,
    max_readahead: AtomicU32,
    capabilities: AtomicU64,
    /// 0 not decided, 1 passthrough, 2 cached.
    io_mode: AtomicU32,
    restarts: AtomicU32,
    /// Requests that wait inside the worker.
    parked: AtomicU32,
    _reserved: AtomicU32,
    handlers: [AtomicU64; HANDLERS_MAX],
    poisoned: [AtomicU64; POISONED_MAX],
    handles: [AtomicU32; SLOTS_MAX + 1],
    checksums: [AtomicU64; SLOTS_MAX + 1],
    replaced: [Replaced; REPLACED_MAX],
    backing: [Backing; BACKING_FILES_MAX],
}

#[repr(C)]
struct Replaced {
    inode: AtomicU64,
    count: AtomicU64,
}

#[repr(C)]
struct Backing {
    /// 0 never used, [`FREED`] used before.
    node: AtomicU64,
    id: AtomicU32,
    count: AtomicU32,
    device: AtomicU64,
    inode: AtomicU64,
}

/// "kitfs" and the version of [`Layout`].
const VERSION: u64 = 0x6b69_7466_7300_0002;
/// A slot of the backing table that was used and is free again.
const FREED: u64 = u64::MAX;
/// Set by the kernel in the `unique` of a request that it sends again.
const RESENT: u64 = 1 << 63;

impl Page {
    /// A new page for a mount, all zero but for what was agreed on.
    pub fn create(agreed: Agreed) -> io::Result<Self> {
        let fd = memfd_create("kitfs-page", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size_of::<Layout>() as u64)?;
        // Nobody can cut it short under a mapping, which would be a SIGBUS.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let page = Self::map(fd)?;
        let layout = page.layout();
        layout.minor.store(agreed.minor, Ordering::Relaxed);
        layout.max_readahead.store(agreed.max_readahead, Ordering::Relaxed);
        layout.capabilities.store(agreed.capabilities, Ordering::Relaxed);
        layout.version.store(VERSION, Ordering::Release);
        Ok(page)
    }

    /// The page that an earlier process made.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let size = rustix::fs::fstat(&fd)?.st_size as u64;
        if size != size_of::<Layout>() as u64 {
            return Err(io::Error::other(format!(
                "the shared page has {size} bytes, expected {}: is it of another version?",
                size_of::<Layout>()
            )));
        }
        let page = Self::map(fd)?;
        match page.layout().version.load(Ordering::Acquire) {
            VERSION => Ok(page),
            other => Err(io::Error::other(format!("the shared page has version {other:#x}, expected {VERSION:#x}"))),
        }
    }

    /// What was agreed on with the kernel.
    pub fn agreed(&self) -> Agreed {
        let layout = self.layout();
        Agreed {
            minor: layout.minor.load(Ordering::Relaxed),
            capabilities: layout.capabilities.load(Ordering::Relaxed),
            max_readahead: layout.max_readahead.load(Ordering::Relaxed),
        }
    }

    /// The I/O mode of the mount, once it is decided.
    pub fn io_mode(&self) -> Option<IoMode> {
        match self.layout().io_mode.load(Ordering::Acquire) {
            1 => Some(IoMode::Passthrough),
            2 => Some(IoMode::Cached),
            _ => None,
        }
    }

    /// Decides the I/O mode; whoever comes first decides for the mount's whole life.
    pub fn decide_io_mode(&self, mode: IoMode) -> IoMode {
        let number = match mode {
            IoMode::Passthrough => 1,
            IoMode::Cached => 2,
        };
        let _first = self.layout().io_mode.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
        self.io_mode().unwrap_or(IoMode::Cached)
    }

    /// How often a worker was replaced.
    pub fn restarts(&self) -> u32 {
        self.layout().restarts.load(Ordering::Relaxed)
    }

    /// Counts a worker that was replaced.
    pub fn count_restart(&self) {
        self.layout().restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows while requests are taken and handled.
    pub fn heartbeat(&self) -> u64 {
        self.layout().heartbeat.load(Ordering::Relaxed)
    }

    /// Shows that the worker takes requests, for those that enter no handler.
    pub fn beat(&self) {
        self.layout().heartbeat.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows while waiting requests are watched.
    pub fn rounds(&self) -> u64 {
        self.layout().rounds.load(Ordering::Relaxed)
    }

    /// How many requests wait inside the worker.
    pub fn parked(&self) -> u32 {
        self.layout().parked.load(Ordering::Relaxed)
    }

    /// One more round of the watcher, which found `parked` requests waiting. Has to come at least every few seconds while that is not 0, and once when it
    /// becomes 0: a worker that stands still with requests in it is replaced.
    pub fn watched(&self, parked: usize) {
        self.layout().parked.store(u32::try_from(parked).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.layout().rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// Enters a handler with a request; `None` if the request is never to be handled again.
    pub fn enter(&self, unique: u64) -> Option<InHandler<'_>> {
        let layout = self.layout();
        let unique = unique & !RESENT;
        layout.heartbeat.fetch_add(1, Ordering::Relaxed);
        if layout.poisoned.iter().any(|poisoned| poisoned.load(Ordering::Relaxed) == unique) {
            return None;
        }
        thread_local!(static HINT: usize = {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            NEXT.fetch_add(1, Ordering::Relaxed) as usize % HANDLERS_MAX
        });
        let hint = HINT.with(|hint| *hint);
        let free = (0..HANDLERS_MAX).map(|offset| &layout.handlers[(hint + offset) % HANDLERS_MAX]);
        let taken = free.into_iter().find(|slot| slot.compare_exchange(0, unique, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        // With every slot taken the request goes unrecorded: it could poison a worker twice more before it is found out.
        Some(InHandler(taken, &layout.heartbeat))
    }

    /// True while a request is in a handler.
    pub fn is_handling(&self) -> bool {
        self.layout().handlers.iter().any(|slot| slot.load(Ordering::Relaxed) != 0)
    }

    /// Takes the requests that were in a handler when their worker died; whatever waited in it waits no more.
    pub fn take_handled(&self) -> HashSet<u64> {
        self.layout().parked.store(0, Ordering::Relaxed);
        let handlers = self.layout().handlers.iter();
        handlers.map(|slot| slot.swap(0, Ordering::AcqRel)).filter(|&unique| unique != 0).collect()
    }

    /// Puts a request on the list of those that are never handled again. A full list forgets its oldest.
    pub fn poison(&self, unique: u64) {
        let list = &self.layout().poisoned;
        match list.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) {
            Some(free) => free.store(unique, Ordering::Release),
            None => {
                for (slot, next) in list.iter().zip(&list[1..]) {
                    slot.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                list[POISONED_MAX - 1].store(unique, Ordering::Release);
            }
        }
    }

    /// Counts a handle of a layer; before the reply that gives it out.
    pub fn handle_opened(&self, slot: u16) {
        self.layout().handles[usize::from(slot) % (SLOTS_MAX + 1)].fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a handle of a layer that was closed; after the reply.
    pub fn handle_closed(&self, slot: u16) {
        let handles = &self.layout().handles[usize::from(slot) % (SLOTS_MAX + 1)];
        let _never_below_zero = handles.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1));
    }

    /// How many handles a layer has.
    pub fn handles(&self, slot: u16) -> u32 {
        self.layout().handles[usize::from(slot) % (SLOTS_MAX + 1)].load(Ordering::Acquire)
    }

    /// Records the checksum of a layer's entry table at first use; false if an earlier worker used another one, so that its ranks, and with them node
    /// ids, may mean other files.
    pub fn agree_on_table(&self, slot: u16, checksum: u64) -> bool {
        let wanted = checksum.max(1);
        let recorded = &self.layout().checksums[usize::from(slot) % (SLOTS_MAX + 1)];
        match recorded.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(earlier) => earlier == wanted,
        }
    }

    /// How often a file was replaced while it was open.
    pub fn replaced(&self, inode: u64) -> u32 {
        let table = &self.layout().replaced;
        let slot = table
            .iter()
            .take_while(|slot| slot.inode.load(Ordering::Acquire) != 0)
            .find(|slot| slot.inode.load(Ordering::Relaxed) == inode);
        slot.map_or(0, |slot| slot.count.load(Ordering::Acquire) as u32)
    }

    /// One more open of a node with a backing file: its number, made by `make` if the node has none. `None` if the node is open with another
    /// file, in which case it got a new incarnation.
    ///
    /// # Errors
    ///
    /// What `make` says; `ENFILE` if more files are open than the table holds.
    pub fn acquire_backing(&self, node: u64, file: (u64, u64), make: impl FnOnce() -> io::Result<u32>) -> io::Result<Option<u32>> {
        let _changing = self.changing();
        if let Some(slot) = self.find_backing(node) {
            if (slot.device.load(Ordering::Relaxed), slot.inode.load(Ordering::Relaxed)) != file {
                self.count_replaced(node);
                return Ok(None);
            }
            slot.count.fetch_add(1, Ordering::AcqRel);
            return Ok(Some(slot.id.load(Ordering::Acquire)));
        }
        let slot = self.free_backing(node).ok_or(rustix::io::Errno::NFILE)?;
        let id = make()?;
        slot.device.store(file.0, Ordering::Relaxed);
        slot.inode.store(file.1, Ordering::Relaxed);
        slot.id.store(id, Ordering::Relaxed);
        slot.count.store(1, Ordering::Release);
        // Only now is it there for a next worker; until then the number is one that he closes.
        slot.node.store(node, Ordering::Release);
        Ok(Some(id))
    }

    /// One open less of a node.
    pub fn release_backing(&self, node: u64) -> Release {
        let _changing = self.changing();
        let Some(slot) = self.find_backing(node) else { return Release::NotBacked };
        if slot.count.load(Ordering::Acquire) > 1 {
            slot.count.fetch_sub(1, Ordering::AcqRel);
            return Release::StillOpen;
        }
        let id = slot.id.load(Ordering::Acquire);
        self.free(slot);
        Release::Last(id)
    }

    /// The numbers of all backing files that somebody has open; a new worker closes all others.
    pub fn backing_ids(&self) -> HashSet<u32> {
        let used = self.layout().backing.iter().filter(|slot| !matches!(slot.node.load(Ordering::Acquire), 0 | FREED));
        used.map(|slot| slot.id.load(Ordering::Acquire)).collect()
    }

    fn count_replaced(&self, node: u64) {
        let id = NodeId::from_wire(node);
        let inode = id.inode();
        if id.incarnation() <= self.replaced(inode) {
            return; // an id from before the last time: whoever looks up gets a newer one already
        }
        let free = |slot: &&Replaced| matches!(slot.inode.load(Ordering::Relaxed), 0) || slot.inode.load(Ordering::Relaxed) == inode;
        match self.layout().replaced.iter().find(free) {
            Some(slot) => {
                slot.count.fetch_add(1, Ordering::AcqRel);
                slot.inode.store(inode, Ordering::Release);
            }
            None => tracing::error!(limit = REPLACED_MAX, "more files were replaced while open than can be told apart"),
        }
    }

    /// Frees a slot of the backing table. Chains that end behind it are cut short, or a mount of many files would search longer and longer.
    fn free(&self, slot: &Backing) {
        let table = &self.layout().backing;
        slot.node.store(FREED, Ordering::Release);
        let Some(position) = table.element_offset(slot) else { return };
        let at = |offset: usize| &table[(position + BACKING_FILES_MAX - offset) % BACKING_FILES_MAX].node;
        if table[(position + 1) % BACKING_FILES_MAX].node.load(Ordering::Acquire) != 0 {
            return;
        }
        for node in (0..BACKING_FILES_MAX).map(at).take_while(|node| node.load(Ordering::Acquire) == FREED) {
            node.store(0, Ordering::Release);
        }
    }

    fn find_backing(&self, node: u64) -> Option<&Backing> {
        let slots = self.probe(node).take_while(|slot| slot.node.load(Ordering::Acquire) != 0);
        slots.into_iter().find(|slot| slot.node.load(Ordering::Relaxed) == node)
    }

    fn free_backing(&self, node: u64) -> Option<&Backing> {
        self.probe(node).find(|slot| matches!(slot.node.load(Ordering::Acquire), 0 | FREED))
    }

    fn probe(&self, node: u64) -> impl Iterator<Item = &Backing> {
        // Ranks of one layer are neighbours: multiply to spread them.
        let start = (node.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        let table = &self.layout().backing;
        (0..BACKING_FILES_MAX).map(move |offset| &table[(start + offset) % BACKING_FILES_MAX])
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        let memory = MmapOptions::new().len(size_of::<Layout>()).map_raw(&fd)?;
        Ok(Self(Arc::new(Mapped { memory, fd, changes: Mutex::new(()) })))
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is as long as `Layout`, page-aligned, lives as long as `self`, and `Layout` consists of atomics only, for which every
        // bit pattern is valid and which other processes may change at any time.
        unsafe { &*self.0.memory.as_ptr().cast::<Layout>() }
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Drop for InHandler<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Ordering::Release);
        }
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// The layout in words, to notice that it changed: where each field begins, and how long the whole is.
#[cfg(test)]
pub(crate) fn layout() -> String {
    use std::mem::offset_of;
    let fields = [
        offset_of!(Layout, version),
        offset_of!(Layout, heartbeat),
        offset_of!(Layout, rounds),
        offset_of!(Layout, minor),
        offset_of!(Layout, max_readahead),
        offset_of!(Layout, capabilities),
        offset_of!(Layout, io_mode),
        offset_of!(Layout, restarts),
        offset_of!(Layout, parked),
        offset_of!(Layout, handlers),
        offset_of!(Layout, poisoned),
        offset_of!(Layout, handles),
        offset_of!(Layout, checksums),
        offset_of!(Layout, replaced),
        offset_of!(Layout, backing),
    ];
    let backing = [
        offset_of!(Backing, node),
        offset_of!(Backing, id),
        offset_of!(Backing, count),
        offset_of!(Backing, device),
        offset_of!(Backing, inode),
        size_of::<Backing>(),
    ];
    let replaced = [offset_of!(Replaced, inode), offset_of!(Replaced, count), size_of::<Replaced>()];
    format!("{VERSION:x} {fields:?} {backing:?} {replaced:?} {}", size_of::<Layout>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGREED: Agreed = Agreed { minor: 45, capabilities: 7, max_readahead: 1 << 17 };

    fn again(page: &Page) -> Page {
        Page::open(page.as_fd().try_clone_to_owned().expect("dup")).expect("the same page")
    }

    #[test]
    fn a_next_worker_finds_what_the_last_one_left() {
        let page = Page::create(AGREED).expect("memfd");
        assert_eq!(page.acquire_backing(77, (1, 2), || Ok(5)).expect("made"), Some(5));
        page.handle_opened(3);
        assert_eq!(page.decide_io_mode(IoMode::Passthrough), IoMode::Passthrough);
        let next = again(&page);
        assert_eq!(next.agreed(), AGREED);
        assert_eq!(next.io_mode(), Some(IoMode::Passthrough));
        assert_eq!(next.decide_io_mode(IoMode::Cached), IoMode::Passthrough);
        assert_eq!(next.handles(3), 1);
        assert_eq!(next.acquire_backing(77, (1, 2), || unreachable!("it has one")).expect("found"), Some(5));
        assert_eq!(next.release_backing(77), Release::StillOpen);
        assert_eq!(next.release_backing(77), Release::Last(5));
        assert_eq!(next.release_backing(77), Release::NotBacked);
        assert!(next.backing_ids().is_empty());
    }

    #[test]
    fn a_replaced_file_gets_a_new_incarnation_while_the_old_one_is_open() {
        let page = Page::create(AGREED).expect("memfd");
        let node = crate::node::NodeId::new(2, 9, 1);
        assert_eq!(page.replaced(node.inode()), 0);
        page.acquire_backing(node.to_wire(), (1, 2), || Ok(1)).expect("made");
        assert_eq!(page.acquire_backing(node.to_wire(), (1, 3), || unreachable!("another file")).expect("no error"), None);
        assert_eq!(page.replaced(node.inode()), 1);
        assert_eq!(page.acquire_backing(node.to_wire(), (1, 3), || unreachable!("another file")).expect("no error"), None);
        assert_eq!(page.replaced(node.inode()), 1, "an old id does not make another new one");
        assert_eq!(page.release_backing(node.to_wire()), Release::Last(1));
    }

    #[test]
    fn the_backing_table_works_at_its_limit_and_refuses_beyond_it() {
        let page = Page::create(AGREED).expect("memfd");
        for node in 1..=BACKING_FILES_MAX as u64 {
            assert_eq!(page.acquire_backing(node, (0, node), || Ok(node as u32)).expect("room"), Some(node as u32));
        }
        let error = page.acquire_backing(u64::MAX / 2, (0, 0), || unreachable!("no room")).expect_err("full");
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
        assert_eq!(page.backing_ids().len(), BACKING_FILES_MAX);
        for node in 1..=BACKING_FILES_MAX as u64 {
            assert_eq!(page.release_backing(node), Release::Last(node as u32));
        }
        let used = |page: &Page| page.layout().backing.iter().filter(|slot| slot.node.load(Ordering::Relaxed) != 0).count();
        assert_eq!(page.acquire_backing(5, (0, 5), || Ok(9)).expect("room again"), Some(9));
        page.release_backing(5);
        // Where no chain goes on, nothing is left of what was freed.
        let page = Page::create(AGREED).expect("memfd");
        for node in 1..=1000 {
            page.acquire_backing(node, (0, node), || Ok(node as u32)).expect("room");
        }
        for node in 1..=1000 {
            assert_eq!(page.release_backing(node), Release::Last(node as u32));
        }
        assert_eq!(used(&page), 0);
    }

    #[test]
    fn a_poisoned_request_is_not_handled_again_even_if_it_is_sent_again() {
        let page = Page::create(AGREED).expect("memfd");
        assert!(!page.is_handling());
        let handling = page.enter(10).expect("nothing is poisoned");
        assert!(page.is_handling());
        assert_eq!(again(&page).take_handled(), HashSet::from([10]));
        drop(handling);
        assert!(page.take_handled().is_empty());
        page.poison(10);
        assert!(page.enter(10).is_none() && page.enter(10 | RESENT).is_none() && page.enter(12).is_some());
        for unique in 100..100 + POISONED_MAX as u64 {
            page.poison(unique);
        }
        assert!(page.enter(100).is_none() && page.enter(10).is_some(), "the oldest is forgotten");
    }

    #[test]
    fn what_waited_in_a_dead_worker_waits_no_more() {
        let page = Page::create(AGREED).expect("memfd");
        page.watched(3);
        assert_eq!((page.parked(), page.rounds()), (3, 1));
        page.take_handled();
        assert_eq!(page.parked(), 0);
    }

    #[test]
    fn a_table_that_changed_is_noticed() {
        let page = Page::create(AGREED).expect("memfd");
        assert!(page.agree_on_table(1, 99) && page.agree_on_table(1, 99) && !page.agree_on_table(1, 98) && page.agree_on_table(2, 98));
    }
}
