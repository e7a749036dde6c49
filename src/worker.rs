//! The process that serves: put together anew at each start from the plan, the shared page and the cache, and free to die at any moment.
//!
//! It gets a session without a mount in it: fuser reads a pretended INIT from a socket pair, then the real device takes the place of the pair's end. So
//! no return, panic or drop of the session can unmount anything.

mod cache;
mod house;
mod kits;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock, mpsc};
use std::thread;

use fuser::{Config, InitFlags, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use self::house::{House, Ledger};
use crate::audit::Trail;
use crate::control::{Control, FromSupervisor, FromWorker, Received};
use crate::decided::attributes;
use crate::detach::detach;
use crate::failure::chain;
use crate::fetch::Fetcher;
use crate::fs::{Fs, LayerStanding};
use crate::fuse::{Adapter, Shared};
use crate::heap;
use crate::kit::KitLayer;
use crate::limits::{LOOP_THREADS_MAX, LOOP_THREADS_MIN};
use crate::log::{Destination, Format};
use crate::metrics::{self, Look, Meter, Named, Snapshot};
use crate::oci::Reference;
use crate::page::{Agreed, IoMode, Page};
use crate::plan::{MountPlan, Prefetch};
use crate::run::RunDir;
use crate::store::Store;
use crate::wait::{Need, Waiters};
use crate::wire::Device;

/// The exit code of a worker without a cache that saw that there is one again. It did nothing wrong, and the next one starts at once.
pub(crate) const GAVE_WAY: i32 = 75; // EX_TEMPFAIL of sysexits.h: try again

/// How a worker that did nothing wrong ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The kernel has forgotten the mount.
    ToTheEnd,
    /// It had no cache, and there is one now.
    UntilThereWasACache,
}

/// What a worker inherits, by descriptor number.
#[derive(Debug, clap::Args)]
pub struct Inherited {
    /// The FUSE device.
    #[arg(long)]
    device_fd: RawFd,
    /// The shared page.
    #[arg(long)]
    page_fd: RawFd,
    /// The conversation with the supervisor.
    #[arg(long)]
    control_fd: RawFd,
    /// The sealed plan.
    #[arg(long)]
    plan_fd: RawFd,
    /// Where it tells metrics.
    #[arg(long)]
    metrics_fd: Option<RawFd>,
    /// Where it logs to; without it, to stderr.
    #[arg(long)]
    log: Option<PathBuf>,
    /// How it logs, if that was said.
    #[arg(long, value_enum)]
    log_format: Option<Format>,
    /// The mount's id, for detaching it if the supervisor is lost.
    #[arg(long)]
    mount_id: u64,
    /// Where it is mounted.
    mountpoint: PathBuf,
}

impl Inherited {
    /// Where the worker logs to.
    pub fn log(&self) -> Destination {
        self.log.clone().map_or(Destination::Stderr, Destination::File)
    }

    /// How it logs.
    pub fn log_format(&self) -> Option<Format> {
        self.log_format
    }
}

/// Serves until the kernel has forgotten the mount.
///
/// # Errors
///
/// Whatever keeps it from serving; the supervisor was told.
pub fn run(inherited: &Inherited) -> Result<Served, Box<dyn std::error::Error>> {
    // A panic in a handler would end fuser's loop and leave its request unanswered. Dead is better: the next worker gets the request again.
    std::panic::set_hook(Box::new(|info| {
        tracing::error!(%info, "panic");
        std::process::abort();
    }));
    heap::use_one_arena();
    drop_capabilities();
    // It was started by way of /proc/self/exe, and what the kernel says of it (a kill for want of memory) should have its name.
    let _only_a_name = rustix::thread::set_name(c"kitfs-worker");
    // SAFETY: the supervisor left exactly these four open for us, nobody else uses them.
    let [device, page, control, plan] =
        [inherited.device_fd, inherited.page_fd, inherited.control_fd, inherited.plan_fd].map(|fd| unsafe { own(fd) });
    // SAFETY: likewise.
    let metrics = inherited.metrics_fd.map(|fd| unsafe { own(fd) });
    let control = Arc::new(Control::from_fd(control));
    let served = serve(inherited, device, page, &control, &plan, metrics);
    if let Err(error) = &served {
        let _supervisor_is_gone = control.send(&FromWorker::failed(&**error), None);
    }
    served
}

fn serve(
    inherited: &Inherited,
    device: OwnedFd,
    page: OwnedFd,
    control: &Arc<Control>,
    plan: &OwnedFd,
    metrics: Option<OwnedFd>,
) -> Result<Served, Box<dyn std::error::Error>> {
    let plan = Arc::new(MountPlan::read(plan)?);
    let page = Page::open(page)?;
    let lineage = kits::lineage(&plan)?;
    let store = match cache::open(&plan.mounting.cache_dir) {
        // Nobody has served this mount yet: it does not come about.
        Err(error) if page.io_mode().is_none() => return Err(error.into()),
        store => store,
    };
    let has_store = store.is_ok();

    let places = std::iter::once(&plan.reference).chain(plan.references.iter().map(|kit| &kit.found.source));
    let places = places.map(|place| place.parse()).collect::<Result<Vec<Reference>, _>>()?;
    let meter = Meter::default();
    let connect = {
        let (plan, meter) = (Arc::clone(&plan), meter.clone());
        Box::new(move |kit: usize| {
            let source = crate::source::open(&places[kit], &plan.mounting.access)?;
            let meter = meter.clone();
            Ok(crate::source::metered(source, Arc::new(move |bytes| meter.fetched(bytes))))
        })
    };
    let layers = lineage.layers.iter().enumerate().map(|(position, layer)| (layer.spec.clone(), lineage.owner(position)));
    let fetcher = Fetcher::new(store.clone(), layers.collect(), connect, meter.clone());
    if let Some(jobs) = plan.mounting.jobs {
        fetcher.fetch_at_once(jobs);
    }
    let trail = Trail::new(&plan);
    fetcher.report_mismatches(Box::new(move |layer, message| trail.mismatch(&layer.to_string(), message)));
    // The filesystem tells the waiters what came, and the waiters ask the filesystem how much of it did.
    let filesystem: Arc<OnceLock<Arc<Fs>>> = Arc::default();
    let waiters = {
        let filesystem = Arc::clone(&filesystem);
        let page = page.clone();
        let fetched = Box::new(move |need| filesystem.get().map_or(0, |fs: &Arc<Fs>| fs.fetched_bytes(need)));
        Waiters::new(fetched, Box::new(move |parked| page.watched(parked)), meter.clone())
    };
    let house: Arc<OnceLock<House>> = Arc::default();
    let ended = {
        let (waiters, house) = (Arc::clone(&waiters), Arc::clone(&house));
        Box::new(move |need: Need, outcome: Result<(), _>| {
            // Whoever is told of a failure can find its reason in `kitfs status`.
            if let (Err(_), Some(house)) = (outcome, house.get()) {
                house.report();
            }
            waiters.release(need, outcome);
        })
    };
    let agree = {
        let page = page.clone();
        Box::new(move |slot, checksum| page.agree_on_table(slot, checksum))
    };
    let prefetch_model = plan.mounting.prefetch != Prefetch::None;
    let fs = Fs::new(&lineage, plan.reference.clone(), store.clone(), Arc::clone(&fetcher), prefetch_model, ended, agree)?;
    filesystem.set(Arc::clone(&fs)).map_err(|_| "the filesystem is made once")?;

    let begin = adopt(control, &fs, &page)?;
    let FromSupervisor::Begin { cautious, stopping } = begin else { return Err("the supervisor said no beginning".into()) };
    fetcher.be_cautious(cautious);
    waiters.stop(stopping);

    let device_for_replies = Device::new(device.try_clone()?);
    let passthrough = decide_io_mode(&plan, &page, &device_for_replies, &plan.mounting.cache_dir) == IoMode::Passthrough;
    if has_store {
        close_forgotten(&page, &device_for_replies, &plan.mounting.cache_dir);
    }
    let shared = Arc::new(Shared {
        fs: Arc::clone(&fs),
        waiters: Arc::clone(&waiters),
        device: device_for_replies,
        page: page.clone(),
        control: Arc::clone(control),
        uid: plan.mounting.uid,
        gid: plan.mounting.gid,
        passthrough,
        opens_folders_itself: page.agreed().capabilities & InitFlags::FUSE_NO_OPENDIR_SUPPORT.bits() != 0,
        attributes: attributes(plan.admissions()),
        meter: meter.clone(),
        size: lineage.layers.iter().map(|layer| layer.spec.descriptor.size).sum(),
        closing: RwLock::default(),
    });

    let session = session(Adapter::new(Arc::clone(&shared)), &page.agreed(), device)?;
    match RunDir::open(&plan.mounting.run_dir).and_then(|run| run.mount(&plan.mounting.id)) {
        Ok(dir) => {
            let ledger = Ledger { meter: meter.clone(), store: store.as_ref().ok().cloned(), page: page.clone() };
            let made = House::new(&fs, Arc::clone(&fetcher), lineage.layers.clone(), dir, ledger);
            house.set(made).map_err(|_| "the house is made once")?;
            spawn("house", {
                let (house, control) = (Arc::clone(&house), Arc::clone(control));
                move || house.get().map_or((), |house| house.keep(&control))
            })?;
        }
        Err(error) => tracing::warn!(%error, "no run directory: `kitfs status` will not see layers"),
    }
    spawn("control", {
        let (control, waiters) = (Arc::clone(control), Arc::clone(&waiters));
        let (mountpoint, mount_id) = (inherited.mountpoint.clone(), inherited.mount_id);
        move || obey(&control, &waiters, &mountpoint, mount_id)
    })?;
    if let Some(listener) = metrics {
        metrics::serve(listener, meter.registry(named(&plan), look(&fs, store.as_ref().ok().cloned(), &page)))?;
    }
    control.send(&FromWorker::Ready, None)?;
    if let Err(error) = store {
        tracing::error!(error = chain(&error), "the cache cannot be opened: whatever needs it is an error until it can be");
        return serve_without(session, &plan, &shared);
    }
    if !stopping {
        fetcher.prefetch(prefetched(&plan, &lineage.layers, &fs));
    }
    session.run()?;
    Ok(Served::ToTheEnd)
}

/// Serves until there is a cache again, if the mount is not gone before.
fn serve_without(session: Session<Adapter>, plan: &MountPlan, shared: &Shared) -> Result<Served, Box<dyn std::error::Error>> {
    let (ended, first) = mpsc::sync_channel(2);
    spawn("session", {
        let ended = ended.clone();
        move || drop(ended.send(session.run().map(|()| Served::ToTheEnd)))
    })?;
    let dir = plan.mounting.cache_dir.clone();
    spawn("cache", move || {
        cache::await_return(&dir);
        drop(ended.send(Ok(Served::UntilThereWasACache)));
    })?;
    let served = first.recv()??;
    // Nothing may be half done when this process ends, which it does with all its threads when this returns.
    std::mem::forget(shared.quiesce());
    Ok(served)
}

fn named(plan: &MountPlan) -> Named {
    let (reference, digest) = (plan.reference.clone(), plan.digest.to_string());
    Named { reference, digest, mountpoint: plan.mounting.mountpoint.display().to_string() }
}

/// What somebody who asks for metrics is told beside the counters.
fn look(fs: &Arc<Fs>, store: Option<Store>, page: &Page) -> Look {
    let (fs, page) = (Arc::downgrade(fs), page.clone());
    Box::new(move || {
        let mut layers = ["absent", "waiting", "fetching", "cached", "failed"].map(|state| (state, 0));
        if let Some(fs) = fs.upgrade() {
            for (slot, _) in (1..).zip(fs.specs()) {
                let state = match fs.standing(slot) {
                    LayerStanding::Absent => 0,
                    LayerStanding::Waiting => 1,
                    LayerStanding::Fetching => 2,
                    LayerStanding::Cached => 3,
                    LayerStanding::Failed(_) => 4,
                };
                layers[state].1 += 1;
            }
        }
        Snapshot {
            layers: layers.into(),
            waiting: page.parked().into(),
            restarts: page.restarts().into(),
            mismatches: store.as_ref().map_or(0, Store::mismatches),
            evicted: store.as_ref().map(Store::evicted).unwrap_or_default(),
            // What cannot be known now may be the next time.
            cache: store.as_ref().and_then(|store| store.usage().ok()),
        }
    })
}

/// Takes over the layers that were open when the last worker died, until the supervisor says that these were all.
fn adopt(control: &Control, fs: &Fs, page: &Page) -> io::Result<FromSupervisor> {
    loop {
        match control.receive::<FromSupervisor>()? {
            None => return Err(io::Error::other("the supervisor is gone")),
            Some(Received { message: FromSupervisor::Adopt { slot }, held: Some(held) }) => {
                fs.adopt(slot, held, u64::from(page.handles(slot)))
            }
            Some(Received { message: FromSupervisor::Adopt { slot }, held: None }) => {
                tracing::error!(slot, "an open layer came without its descriptors")
            }
            Some(Received { message, .. }) => return Ok(message),
        }
    }
}

/// Passthrough if the kernel takes a file of this cache as a backing file. Decided once for the mount: an inode cannot be read in two ways at once.
fn decide_io_mode(plan: &MountPlan, page: &Page, device: &Device, cache: &std::path::Path) -> IoMode {
    if let Some(mode) = page.io_mode() {
        return mode;
    }
    let offered = page.agreed().capabilities & InitFlags::FUSE_PASSTHROUGH.bits() != 0;
    if plan.mounting.no_passthrough || !offered {
        return page.decide_io_mode(IoMode::Cached);
    }
    match try_passthrough(device, cache) {
        Ok(()) => page.decide_io_mode(IoMode::Passthrough),
        Err(error) => {
            // EPERM without CAP_SYS_ADMIN, ELOOP on overlayfs: the cached mode is as right, and only slower when cold.
            tracing::info!(%error, "no passthrough here, files are read through the page cache");
            page.decide_io_mode(IoMode::Cached)
        }
    }
}

/// Whether the kernel takes a file of the cache as a backing file.
pub(crate) fn try_passthrough(device: &Device, cache: &std::path::Path) -> io::Result<()> {
    trial_file(cache).and_then(|file| device.backing_open(file.as_fd())).and_then(|id| device.backing_close(id))
}

/// Closes the backing files that dead workers registered and that no open file uses. Their numbers are given out in order, so one new number tells
/// how many there can be.
fn close_forgotten(page: &Page, device: &Device, cache: &std::path::Path) {
    if page.io_mode() != Some(IoMode::Passthrough) || page.restarts() == 0 {
        return;
    }
    let cursor = match trial_file(cache).and_then(|file| device.backing_open(file.as_fd())) {
        Ok(cursor) => cursor,
        Err(error) => return tracing::warn!(%error, "backing files of the last worker stay registered"),
    };
    let used: HashSet<u32> = page.backing_ids();
    for id in (1..=cursor).filter(|id| !used.contains(id)) {
        // Most of these numbers are free already.
        let _free_already = device.backing_close(id);
    }
}

/// A file of the cache's own filesystem, which is what decides whether it can back others.
fn trial_file(cache: &std::path::Path) -> io::Result<std::fs::File> {
    let lock = cache.join("lock");
    // Opened for reading where it is there: a filesystem that was made read-only can back files as before.
    std::fs::File::open(&lock).or_else(|_| std::fs::File::options().read(true).append(true).create(true).mode(0o600).open(&lock))
}

/// A session on the mount's device that believes to have made it.
fn session(adapter: Adapter, agreed: &Agreed, device: OwnedFd) -> io::Result<Session<Adapter>> {
    const FUSE_INIT: u32 = 26;
    const LENGTH: u32 = 104; // struct fuse_in_header and struct fuse_init_in
    let (kernels_end, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut init = [0; LENGTH as usize];
    let all = u32::MAX; // what the kernel has was asked before; fuser only notes which of it is used
    for (offset, word) in
        [(0, LENGTH), (4, FUSE_INIT), (8, 2), (40, 7), (44, agreed.minor), (48, agreed.max_readahead), (52, all), (56, all)]
    {
        init[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
    }
    rustix::io::write(&kernels_end, &init)?;
    let mut config = Config::default();
    let cores = thread::available_parallelism().map_or(LOOP_THREADS_MIN, |cores| 2 * cores.get());
    config.n_threads = Some(cores.clamp(LOOP_THREADS_MIN, LOOP_THREADS_MAX));
    // The kernel itself checks who may enter (`allow_other`) and what (`default_permissions`).
    let session = Session::from_fd(adapter, ours, SessionACL::All, config)?;
    // SAFETY: both are open descriptors of this process; the session's own now means the device.
    if unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(session)
}

/// Layers that are fetched before anybody asks, in manifest order. Also those that another process is at: it may be gone before it has them.
fn prefetched(plan: &MountPlan, layers: &[KitLayer], fs: &Fs) -> Vec<u16> {
    let slots = plan.mounting.prefetch.of(layers).into_iter().filter_map(|position| u16::try_from(position + 1).ok());
    slots.filter(|&slot| !matches!(fs.standing(slot), LayerStanding::Cached | LayerStanding::Failed(_))).collect()
}

/// Does what the supervisor says. If it is gone, the mount is detached: nobody else would, and whoever has files open can go on with them.
fn obey(control: &Control, waiters: &Waiters, mountpoint: &std::path::Path, mount_id: u64) {
    loop {
        match control.receive::<FromSupervisor>() {
            Ok(Some(Received { message: FromSupervisor::Stop, .. })) => {
                waiters.stop(true);
                let _supervisor_is_gone = control.send(&FromWorker::Stopped, None);
            }
            Ok(Some(Received { message: FromSupervisor::Resume, .. })) => waiters.stop(false),
            Ok(Some(Received { message: said, .. })) => tracing::error!(?said, "the supervisor said something out of turn"),
            Ok(None) | Err(_) => {
                tracing::error!("the supervisor is gone: detaching");
                waiters.stop(true);
                if let Err(error) = detach(mountpoint, mount_id, true) {
                    tracing::error!(%error, "cannot detach");
                }
                return;
            }
        }
    }
}

/// Keeps of root's powers what a worker needs: to register backing files and to detach (SYS_ADMIN), to read certificates and logins of whoever mounted
/// (DAC_READ_SEARCH), and to see whether callers were signalled where `/proc` hides them (SYS_PTRACE). Before there is a second thread, since each has its own.
fn drop_capabilities() {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_PTRACE;
    let kept = capabilities(None).and_then(|sets| {
        let kept = sets.permitted & needed;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "capabilities stay as they are");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// # Safety
///
/// `fd` is open and nobody else owns it.
unsafe fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: as the caller says.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // It was inherited without close-on-exec; credential helpers must not get it.
    if let Err(error) = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
        tracing::warn!(%error, "descriptor stays open over exec");
    }
    fd
}
