//! The mount itself: made through fuser, which also agrees with the kernel on what both can do; after that only the device is kept.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use fuser::{Config, Filesystem, InitFlags, KernelConfig, MountOption, Request, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::limits::{FUSE_BACKGROUND_MAX, READ_AHEAD_KIB};
use crate::mountinfo;
use crate::page::{Agreed, IoMode};
use crate::plan::MountPlan;
use crate::run::{self, MountDir, MountRecord};

/// A mount that nobody serves yet.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) agreed: Agreed,
    /// The mount's id in `/proc/self/mountinfo`, to tell it from a later one at the same place.
    pub(super) mount_id: u64,
    /// Major and minor number of the mounted filesystem.
    number: (u32, u32),
    /// The kernel sends again what a dead worker did not answer.
    resend: bool,
    since: String,
}

/// Mounts `plan.mountpoint` and agrees with the kernel.
pub(super) fn mount(plan: &MountPlan) -> io::Result<Mounted> {
    let acl = if plan.allow_other { SessionACL::All } else { SessionACL::Owner };
    let (sender, receiver) = std::sync::mpsc::channel();
    let agreement = Agreement { plan_wants_passthrough: !plan.no_passthrough && !plan.lacking.passthrough, sender };
    let session = match mount_by_system_call(plan)? {
        Some(device) => Session::from_fd(agreement, device, acl, Config::default()),
        None => mount_by_fusermount(plan, agreement, acl),
    };
    // A kernel that does not agree leaves a mount behind that nobody serves.
    let session = session.inspect_err(|_| {
        let _not_mounted = rustix::mount::unmount(&plan.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    })?;
    let device = session.as_fd().try_clone_to_owned()?;
    // Dropping it would unmount. It holds a descriptor and a few bytes, for as long as this process lives.
    std::mem::forget(session);
    let agreed = receiver.try_recv().map_err(|_| io::Error::other("the kernel's INIT was not seen"))?;
    let entry = mountinfo::at(&plan.mountpoint)?.ok_or_else(|| io::Error::other("the mount does not show in /proc/self/mountinfo"))?;
    let resend = agreed.capabilities & InitFlags::FUSE_HAS_RESEND.bits() != 0 && !plan.lacking.resend;
    let mounted = Mounted { device, agreed, mount_id: entry.mount_id, number: entry.device, resend, since: run::now() };
    mounted.raise_read_ahead();
    Ok(mounted)
}

/// The mount call itself, for whoever may make it; fuser's own would show the type as `fuse` and not as `fuse.kitfs`.
fn mount_by_system_call(plan: &MountPlan) -> io::Result<Option<OwnedFd>> {
    let device: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/fuse")?.into();
    let mode = std::fs::metadata(&plan.mountpoint)?.mode();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let allow_other = if plan.allow_other { ",allow_other" } else { "" };
    let options = format!("fd={},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions{allow_other}", device.as_raw_fd());
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    match rustix::mount::mount(plan.shown_source.as_str(), &plan.mountpoint, "fuse.kitfs", flags, &*options) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn mount_by_fusermount(plan: &MountPlan, agreement: Agreement, acl: SessionACL) -> io::Result<Session<Agreement>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::DefaultPermissions,
        // A comma would begin another option.
        MountOption::FSName(plan.shown_source.replace('\\', "\\\\").replace(',', "\\,")),
        MountOption::Subtype("kitfs".into()),
    ];
    config.acl = acl;
    Session::new(agreement, &plan.mountpoint, &config)
}

struct Agreement {
    plan_wants_passthrough: bool,
    sender: std::sync::mpsc::Sender<Agreed>,
}

impl Filesystem for Agreement {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_PARALLEL_DIROPS;
        if self.plan_wants_passthrough && offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            // One level: more would forbid an overlay on top of the mount.
            config.set_max_stack_depth(1).map_err(|most| io::Error::other(format!("the kernel allows a stack depth of {most} only")))?;
        }
        // Those that the kernel does not have are done without.
        let _missing = config.add_capabilities(wanted & offered);
        // Fewer at once would make parallel readers wait for each other.
        let _nearest = config.set_max_background(FUSE_BACKGROUND_MAX);
        let mut capabilities = offered.bits();
        if !self.plan_wants_passthrough {
            capabilities &= !InitFlags::FUSE_PASSTHROUGH.bits();
        }
        let agreed = Agreed { minor: config.kernel_abi().1, capabilities, max_readahead: READ_AHEAD_OFFERED };
        self.sender.send(agreed).map_err(|_| io::Error::other("nobody waits for the kernel's INIT"))
    }
}

/// What a worker's pretended INIT offers as read-ahead. fuser wants a number; the kernel's own was agreed on before.
const READ_AHEAD_OFFERED: u32 = 128 << 10;

impl Mounted {
    /// Makes the kernel send again what was read from the device and not answered. Callers can be killed again from here on.
    pub(super) fn resend(&self) {
        if !self.resend {
            return;
        }
        const FUSE_NOTIFY_RESEND: i32 = 7;
        let mut message = [0; 16];
        message[0..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
        match rustix::io::write(&self.device, &message) {
            Ok(_) | Err(rustix::io::Errno::NODEV) => {}
            Err(error) => tracing::error!(%error, "cannot ask the kernel to send requests again"),
        }
    }

    /// The device for a worker: the mount's own where requests can be sent again; else a clone, whose end aborts what its worker had not answered
    /// (with ECONNABORTED) instead of leaving it without an answer for ever.
    pub(super) fn device_for_worker(&self) -> io::Result<OwnedFd> {
        if self.resend {
            return self.device.try_clone();
        }
        const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500; // _IOR(229, 0, u32)
        let clone: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/fuse")?.into();
        let original = self.device.as_raw_fd() as u32;
        // SAFETY: both descriptors are open, and the request reads four bytes at the pointer, which is valid for them.
        let result = unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE as _, &raw const original) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(clone) }
    }

    /// What `kitfs status` reads.
    pub(super) fn record(&self, plan: &MountPlan, dir: &MountDir, mode: Option<IoMode>) -> MountRecord {
        MountRecord {
            id: plan.id.clone(),
            mountpoint: plan.mountpoint.clone(),
            reference: plan.reference.clone(),
            digest: plan.digest,
            supervisor_pid: std::process::id(),
            since: self.since.clone(),
            cache_dir: plan.cache_dir.clone(),
            device: self.number,
            mount_id: self.mount_id,
            log: dir.log_path(),
            passthrough: mode.map(|mode| mode == IoMode::Passthrough),
        }
    }

    /// Without this the kernel asks for 128 KiB at a time. Only root may, and it is a matter of speed alone.
    fn raise_read_ahead(&self) {
        let (major, minor) = self.number;
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(%error, path, "read-ahead stays as it is");
        }
    }
}
