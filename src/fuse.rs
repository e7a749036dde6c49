//! The adapter between fuser and [`crate::fs`]: it takes requests apart, parks those that wait, and puts replies together.
//!
//! It decides nothing but FUSE's own affairs: time-outs of entries, flags of open files, backing files and their numbers. Only this module, its
//! wire format ([`crate::wire`]) and the supervisor's mount call name `fuser`.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use rustix::io::Errno;

use crate::control::{Control, FromWorker};
use crate::fs::{Answer, Fs, Opened};
use crate::index::Kind;
use crate::limits::{LISTING_BYTES, LISTING_BYTES_MIN, REQUEST_ATTEMPTS_MAX};
use crate::metrics::Meter;
use crate::node::NodeId;
use crate::page::{Page, Release};
use crate::rehearsal;
use crate::store::Held;
use crate::tree::{Attributes, Child, Lookup, Node};
use crate::wait::{Call, Caller, Need, Waiters};
use crate::wire::{
    Attr, DIRENT_SIZE, Device, ENTRY_SIZE, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH, FOREVER, Listing,
};

/// What answers a mount's requests.
#[derive(Debug, Clone)]
pub(crate) struct Adapter(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) fs: Arc<Fs>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) device: Device,
    pub(crate) page: Page,
    pub(crate) control: Arc<Control>,
    /// Owner of everything that is shown.
    pub(crate) uid: u32,
    /// Group of everything that is shown.
    pub(crate) gid: u32,
    /// Files with a data file of their own are read by the kernel itself. One mode for the whole mount: an inode cannot have two.
    pub(crate) passthrough: bool,
    /// The kernel does without OPENDIR and RELEASEDIR where it is told so once.
    pub(crate) opens_folders_itself: bool,
    /// What the root's attributes say of the decisions that the mount rests on.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// Counts for whoever watches over the mount.
    pub(crate) meter: Meter,
    /// What `statfs` shows: the sum of the layers' sizes in bytes.
    pub(crate) size: u64,
    /// Held while a file is closed: a worker that ends of its own will must not end between the reply and the count.
    pub(crate) closing: RwLock<()>,
}

/// What of a request is needed to park it.
#[derive(Debug, Clone, Copy)]
struct Asker {
    unique: u64,
    pid: u32,
    attempt: u32,
}

/// How a request went: answered, or it waits.
enum Outcome {
    Answered,
    Waits(Need),
}

impl Adapter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Shared {
    /// Waits until no file is half closed, and lets none be closed for as long as the guard lives.
    pub(crate) fn quiesce(&self) -> impl Drop + '_ {
        self.closing.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `attempt` until it answers. `attempt` has to answer by itself unless it waits; if the wait fails, the error is the answer.
    fn serve(self: &Arc<Self>, asker: Asker, call: Call, attempt: impl Fn(&Arc<Self>) -> Result<Outcome, Errno> + Send + 'static) -> bool {
        let Some(_in_handler) = self.page.enter(asker.unique) else {
            // This request was being handled at two deaths of a worker. It does not get a third.
            tracing::error!(unique = asker.unique, "request ended two workers, it is answered with an error");
            self.device.error(asker.unique, Errno::IO);
            return true;
        };
        match attempt(self) {
            Ok(Outcome::Answered) => true,
            Err(errno) => {
                self.device.error(asker.unique, errno);
                true
            }
            Ok(Outcome::Waits(_)) if asker.attempt >= REQUEST_ATTEMPTS_MAX => {
                tracing::error!(
                    unique = asker.unique,
                    attempts = asker.attempt,
                    "what a request waited for was gone again each time it came"
                );
                self.device.error(asker.unique, Errno::IO);
                true
            }
            Ok(Outcome::Waits(need)) => {
                let shared = Arc::clone(self);
                let again = Asker { attempt: asker.attempt + 1, ..asker };
                let resume = Box::new(move |outcome| match outcome {
                    Ok(()) => {
                        shared.serve(again, call, attempt);
                    }
                    Err(errno) => shared.device.error(again.unique, errno),
                });
                self.waiters.park(need, Caller { pid: asker.pid, call }, resume);
                self.fs.demand(need);
                false
            }
        }
    }

    fn attr(&self, node: Node, attributes: &Attributes) -> Attr {
        let id = self.fs.tree().id(node, attributes.kind, 0);
        let (kind, nlink) = match attributes.kind {
            Kind::Folder => (libc::S_IFDIR, 2),
            Kind::File => (libc::S_IFREG, 1),
        };
        Attr {
            inode: id.inode(),
            size: attributes.size,
            mtime: self.fs.shown_time(attributes.mtime) as u64,
            mode: kind | attributes.mode,
            nlink,
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// The id that the kernel gets for a node now; a file that was replaced while it was open has a new one.
    fn id(&self, node: Node, kind: Kind) -> NodeId {
        let tree = self.fs.tree();
        let id = tree.id(node, kind, 0);
        if kind == Kind::Folder { id } else { tree.id(node, kind, self.page.replaced(id.inode())) }
    }

    fn lookup(&self, unique: u64, parent: u64, name: &[u8]) -> Result<Outcome, Errno> {
        let folder = self.fs.node(NodeId::from_wire(parent))?;
        match self.fs.lookup(folder, name)? {
            Answer::Wait(need) => return Ok(Outcome::Waits(need)),
            Answer::Now(Lookup::Found(node, attributes)) => {
                let attr = self.attr(node, &attributes);
                self.device.entry(unique, self.id(node, attributes.kind).to_wire(), &attr, FOREVER);
            }
            Answer::Now(Lookup::Unsized(node, attributes)) => {
                // Asked for again before it is opened or stat'ed, and waited for there.
                let attr = self.attr(node, &attributes);
                self.device.entry(unique, self.id(node, attributes.kind).to_wire(), &attr, 0);
            }
            Answer::Now(Lookup::Absent) => self.device.no_entry(unique),
            Answer::Now(Lookup::Unknown(node, _)) => {
                // What it is nobody knows yet. As a folder that is asked about each time, it makes `stat`, `open` and `opendir` wait where
                // waiting harms nobody else; if it proves a file they are told ESTALE and come back.
                let guess = Attributes { kind: Kind::Folder, mode: 0o755, size: 0, mtime: 0 };
                let attr = self.attr(node, &guess);
                self.device.entry(unique, self.fs.tree().id(node, Kind::Folder, 0).to_wire(), &attr, 0);
            }
            Answer::Now(Lookup::Cold(_)) => return Err(Errno::STALE),
        }
        Ok(Outcome::Answered)
    }

    fn getattr(&self, unique: u64, id: u64) -> Result<Outcome, Errno> {
        let id = NodeId::from_wire(id);
        match self.fs.attributes(id)? {
            Answer::Wait(need) => Ok(Outcome::Waits(need)),
            Answer::Now(attributes) => {
                let node = self.fs.node(id)?;
                self.device.attr(unique, &self.attr(node, &attributes));
                Ok(Outcome::Answered)
            }
        }
    }

    /// The node of a folder. That it is one may have to be waited for.
    fn folder(&self, id: u64) -> Result<Answer<Node>, Errno> {
        let id = NodeId::from_wire(id);
        match self.fs.attributes(id)? {
            Answer::Wait(need) => Ok(Answer::Wait(need)),
            Answer::Now(attributes) if attributes.kind == Kind::File => Err(Errno::NOTDIR),
            Answer::Now(_) => self.fs.node(id).map(Answer::Now),
        }
    }

    fn opendir(&self, unique: u64, id: u64) -> Result<Outcome, Errno> {
        let node = match self.folder(id)? {
            Answer::Wait(need) => return Ok(Outcome::Waits(need)),
            Answer::Now(node) => node,
        };
        if self.opens_folders_itself && self.fs.tree().is_complete() {
            // Nothing is left to wait for, and no listing will ever change: the kernel need not ask again, for no folder.
            return Err(Errno::NOSYS);
        }
        // A listing with names of unknown kind is asked for again, so that `find` and `ls -F` learn better.
        let mut certain = true;
        let answer = match node {
            Node::Anchor(_) => self.fs.list(node, 0, &mut |_, child| {
                certain &= child.attributes.is_some();
                // Names of unknown kind are declared ones, and those are few; entries of an index are always known.
                if matches!(child.node, Node::Entry { .. }) && !certain { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?,
            _ => Answer::Now(()),
        };
        if let Answer::Wait(need) = answer {
            return Ok(Outcome::Waits(need));
        }
        let flags = if certain { FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR } else { 0 };
        self.device.opened(unique, flags, 0);
        Ok(Outcome::Answered)
    }

    fn open(&self, unique: u64, wire: u64) -> Result<Outcome, Errno> {
        let id = NodeId::from_wire(wire);
        if id.incarnation() == 0 {
            // A placeholder that was opened as a folder's file, or a folder: the kernel opens folders by OPENDIR.
            return match self.fs.attributes(id)? {
                Answer::Wait(need) => Ok(Outcome::Waits(need)),
                Answer::Now(_) => Err(Errno::ISDIR),
            };
        }
        rehearsal::opening(|| {
            let path = self.fs.node(id).ok().and_then(|node| self.fs.tree().path(node).ok());
            path.map(|path| path.name().to_vec()).unwrap_or_default()
        });
        let opened = match self.fs.open(id, &mut |slot, held| self.hand_up(slot, &held))? {
            Answer::Wait(need) => return Ok(Outcome::Waits(need)),
            Answer::Now(opened) => opened,
        };
        if id.slot() > 0 {
            self.page.handle_opened(id.slot());
        }
        match opened {
            Opened::Data(file) if self.passthrough => {
                let acquired = rustix::fs::fstat(&*file).map_err(io::Error::from).and_then(|stat| {
                    let identity = (stat.st_dev, stat.st_ino);
                    let backing = self.page.acquire_backing(id.to_wire(), identity, || self.device.backing_open(file.as_fd()))?;
                    Ok(backing.map(|backing| (backing, stat.st_size)))
                });
                match acquired {
                    Ok(Some((backing, size))) => {
                        self.meter.passed_through(u64::try_from(size).unwrap_or_default());
                        self.device.opened(unique, FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, backing);
                    }
                    // Another file than the one that is open under this id: the kernel looks up again and gets the new id.
                    Ok(None) => {
                        self.undo_open(id);
                        return Err(Errno::STALE);
                    }
                    Err(error) => {
                        self.undo_open(id);
                        tracing::warn!(%error, "cannot register a backing file");
                        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
                    }
                }
            }
            _ => {
                self.meter.opened();
                self.device.opened(unique, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH, 0);
            }
        }
        Ok(Outcome::Answered)
    }

    /// Gives the supervisor what the next worker must inherit. If it is gone there is no next worker.
    fn hand_up(&self, slot: u16, held: &Held) {
        if let Err(error) = self.control.send(&FromWorker::Hold { slot }, Some(held)) {
            tracing::warn!(slot, %error, "layer cannot be handed to the supervisor");
        }
    }

    fn undo_open(&self, id: NodeId) {
        self.page.handle_closed(id.slot());
        self.fs.released(id);
    }

    fn release(&self, id: u64) {
        let id = NodeId::from_wire(id);
        if self.passthrough
            && let Release::Last(backing) = self.page.release_backing(id.to_wire())
            && let Err(error) = self.device.backing_close(backing)
        {
            tracing::warn!(%error, backing, "cannot give a backing file back");
        }
        if id.slot() > 0 {
            self.page.handle_closed(id.slot());
            self.fs.released(id);
        }
    }

    fn readdir(&self, unique: u64, id: u64, offset: u64, capacity: usize, plus: bool) -> Result<Outcome, Errno> {
        // OPENDIR has waited and found a folder, if it was sent at all.
        let folder = match self.folder(id)? {
            Answer::Wait(need) => return Ok(Outcome::Waits(need)),
            Answer::Now(node) => node,
        };
        let mut listing = Listing::new(capacity, plus);
        let tree = self.fs.tree();
        let own = tree.id(folder, Kind::Folder, 0).inode();
        let mut full = false;
        if offset < 1 {
            full |= !listing.add(b".", own, u32::from(libc::DT_DIR), 1, None);
        }
        if offset < 2 && !full {
            let parent = tree.parent(folder).map_err(|_| Errno::IO)?;
            full |= !listing.add(b"..", tree.id(parent, Kind::Folder, 0).inode(), u32::from(libc::DT_DIR), 2, None);
        }
        if !full {
            let answer = self.fs.list(folder, offset.saturating_sub(2), &mut |position, child| {
                if self.add(&mut listing, position + 2, &child) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if let Answer::Wait(need) = answer {
                return Ok(Outcome::Waits(need));
            }
        }
        self.device.listing(unique, &listing);
        Ok(Outcome::Answered)
    }

    fn add(&self, listing: &mut Listing, position: u64, child: &Child<'_>) -> bool {
        match child.attributes {
            None => {
                let inode = self.fs.tree().id(child.node, Kind::Folder, 0).inode();
                let kind = if self.fs.tree().is_declared_file(child.node) { libc::DT_REG } else { libc::DT_UNKNOWN };
                listing.add(child.name, inode, u32::from(kind), position, None)
            }
            Some(attributes) => {
                let attr = self.attr(child.node, &attributes);
                let id = self.id(child.node, attributes.kind).to_wire();
                let kind = if attributes.kind == Kind::Folder { libc::DT_DIR } else { libc::DT_REG };
                listing.add(child.name, attr.inode, u32::from(kind), position, Some((id, &attr)))
            }
        }
    }

    fn xattrs(&self, id: u64) -> Result<Vec<(&'static str, String)>, Errno> {
        let id = NodeId::from_wire(id);
        let node = self.fs.node(id)?;
        let mut xattrs =
            vec![("user.kitfs.reference", self.fs.reference().to_owned()), ("user.kitfs.digest", self.fs.digest().to_string())];
        if id == NodeId::ROOT {
            xattrs.extend(self.attributes.iter().cloned());
        }
        let layer = self.fs.tree().layer_of(node).and_then(|slot| self.fs.specs().nth(usize::from(slot) - 1));
        if let Some(spec) = layer {
            xattrs.push(("user.kitfs.layer", spec.descriptor.digest.to_string()));
            xattrs.push(("user.kitfs.media-type", spec.descriptor.media_type.clone()));
        }
        Ok(xattrs)
    }
}

impl Adapter {
    /// Serves a request through the device; true if it was answered, false if it waits.
    fn serve(&self, request: &Request, call: Call, attempt: impl Fn(&Arc<Shared>, u64) -> Result<Outcome, Errno> + Send + 'static) -> bool {
        let unique = request.unique().0;
        let asker = Asker { unique, pid: request.pid(), attempt: 0 };
        self.0.serve(asker, call, move |shared| attempt(shared, unique))
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, _: &mut KernelConfig) -> io::Result<()> {
        Ok(()) // a pretended one: what counts was agreed on by the supervisor
    }

    // What enters no handler shows by a beat that the worker takes requests.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.0.page.beat();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        std::mem::forget(reply); // answered through the device
        let name = name.as_bytes().to_owned();
        self.serve(request, Call::Other, move |shared, unique| shared.lookup(unique, parent.0, &name));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        std::mem::forget(reply); // answered through the device
        self.serve(request, Call::Other, move |shared, unique| shared.getattr(unique, ino.0));
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        std::mem::forget(reply); // answered through the device
        self.serve(request, Call::Open, move |shared, unique| shared.open(unique, ino.0));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        std::mem::forget(reply); // answered through the device
        self.serve(request, Call::Open, move |shared, unique| shared.opendir(unique, ino.0));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        std::mem::forget(reply); // answered through the device
        let size = size as usize;
        self.serve(request, Call::Other, move |shared, unique| {
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                match shared.fs.read(NodeId::from_wire(ino.0), offset, &mut buffer[..size])? {
                    Answer::Wait(need) => Ok(Outcome::Waits(need)),
                    Answer::Now(length) => {
                        shared.meter.served(length);
                        shared.device.data(unique, &buffer[..length]);
                        Ok(Outcome::Answered)
                    }
                }
            })
        });
    }

    fn release(&self, _: &Request, ino: INodeNo, _: FileHandle, _: OpenFlags, _: Option<LockOwner>, _: bool, reply: ReplyEmpty) {
        self.0.page.beat();
        let _counted = self.0.closing.read().unwrap_or_else(PoisonError::into_inner);
        // First the reply, then the count: a worker that dies in between leaves a file pinned, never one unpinned too early.
        reply.ok();
        self.0.release(ino.0);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let filler = OsStr::from_bytes(&FILLER[..LISTING_BYTES - DIRENT_SIZE]);
        let full = reply.add(INodeNo::ROOT, 1, FileType::Directory, filler);
        let capacity = if full { LISTING_BYTES_MIN } else { LISTING_BYTES };
        if self.serve(request, Call::Other, move |shared, unique| shared.readdir(unique, ino.0, offset, capacity, false)) {
            reply.error(Errno::IO.into_fuser()); // see FILLER
        } else {
            std::mem::forget(reply);
        }
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let filler = OsStr::from_bytes(&FILLER[..LISTING_BYTES - ENTRY_SIZE - DIRENT_SIZE]);
        let full = reply.add(INodeNo::ROOT, 1, filler, &Duration::ZERO, &NO_ATTR, Generation(0));
        let capacity = if full { LISTING_BYTES_MIN } else { LISTING_BYTES };
        if self.serve(request, Call::Other, move |shared, unique| shared.readdir(unique, ino.0, offset, capacity, true)) {
            reply.error(Errno::IO.into_fuser()); // see FILLER
        } else {
            std::mem::forget(reply);
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.page.beat();
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.0.page.beat();
        let block = 4096;
        let blocks = self.0.size.div_ceil(block);
        reply.statfs(blocks, 0, 0, self.0.fs.tree().known_entries(), 0, block as u32, 255, block as u32);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.0.page.beat();
        match self.0.xattrs(ino.0) {
            Err(errno) => reply.error(errno.into_fuser()),
            Ok(xattrs) => match xattrs.iter().find(|(known, _)| name == *known) {
                None => reply.error(Errno::NODATA.into_fuser()),
                Some((_, value)) => sized(reply, size, value.as_bytes()),
            },
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.0.page.beat();
        match self.0.xattrs(ino.0) {
            Err(errno) => reply.error(errno.into_fuser()),
            Ok(xattrs) => {
                let names: Vec<u8> = xattrs.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect();
                sized(reply, size, &names);
            }
        }
    }
}

/// What tells how large a caller's buffer is: fuser knows, but says only whether a name fits. If this one does, so does [`LISTING_BYTES`]. fuser's
/// reply is then used up by an answer of its own, which the kernel does not take (the request is answered already), but which frees what the name took.
static FILLER: [u8; LISTING_BYTES] = [b'.'; LISTING_BYTES];

/// Attributes of nothing, for the same purpose.
const NO_ATTR: FileAttr = FileAttr {
    ino: INodeNo::ROOT,
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::Directory,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

thread_local! {
    /// One buffer a thread for READ, grown to the largest request that came.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::RANGE.into_fuser()),
        _ => reply.data(value),
    }
}

trait IntoFuser {
    fn into_fuser(self) -> fuser::Errno;
}

impl IntoFuser for Errno {
    fn into_fuser(self) -> fuser::Errno {
        fuser::Errno::from_i32(self.raw_os_error())
    }
}
