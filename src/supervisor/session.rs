//! The mount itself: made through fuser, which also agrees with the kernel on what both can do; after that only the device is kept.
//!
//! Besides the adapter ([`crate::fuse`]) and the start of a worker, this is the only place that names fuser.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, Sender};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, MountOption, Request, Session, SessionACL};

use crate::limits::{FUSE_BACKGROUND_MAX, READ_AHEAD_KIB};
use crate::mountinfo::{self, MountEntry};
use crate::page::Agreed;
use crate::plan::MountPlan;
use crate::umount;

/// A mount that nobody serves yet.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) agreed: Agreed,
    /// The mount's id in `/proc/self/mountinfo`, to tell it from a later one at the same place.
    pub(super) mount_id: u64,
    /// Major and minor number of the mounted filesystem.
    pub(super) number: (u32, u32),
    /// The kernel sends again what a dead worker did not answer.
    resend: bool,
}

/// Mounts `plan.mounting.mountpoint` and agrees with the kernel.
pub(super) fn mount(plan: &MountPlan) -> io::Result<Mounted> {
    let (device, agreed) = connect(
        &plan.mounting.mountpoint,
        &plan.shown_source,
        plan.mounting.allow_other,
        !plan.mounting.no_passthrough && !plan.mounting.lacking.passthrough,
    )?;
    let described = describe(plan, device, agreed);
    if described.is_err()
        && let Ok(id) = mountinfo::mount_id_at(&plan.mounting.mountpoint)
        && let Err(error) = umount::detach(&plan.mounting.mountpoint, id, true)
    {
        tracing::error!(%error, mountpoint = %plan.mounting.mountpoint.display(), "cannot detach");
    }
    let mounted = described?;
    mounted.raise_read_ahead();
    Ok(mounted)
}

/// Makes a mount that nobody serves, and the agreement with the kernel. The two results are apart, because a failure behind the mount call leaves a mount.
pub(super) fn connect(
    mountpoint: &Path,
    source: &str,
    allow_other: bool,
    wants_passthrough: bool,
) -> io::Result<(io::Result<OwnedFd>, io::Result<Agreed>)> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::DefaultPermissions,
        MountOption::FSName(escaped(source)),
        // Not `Subtype`: fuser passes that to fusermount3 only, and for root the type would be plain `fuse`.
        MountOption::CUSTOM("subtype=kitfs".into()),
    ];
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    let (sender, receiver) = mpsc::channel();
    let session = Session::new(Agreement { wants_passthrough, sender }, mountpoint, &config)?;
    let device = session.as_fd().try_clone_to_owned();
    // Dropping it would unmount. It holds a descriptor and a few bytes, for as long as this process lives.
    std::mem::forget(session);
    Ok((device, receiver.try_recv().map_err(|_| io::Error::other("the kernel's INIT was not seen"))))
}

/// What there is to know of the mount that was just made.
fn describe(plan: &MountPlan, device: io::Result<OwnedFd>, agreed: io::Result<Agreed>) -> io::Result<Mounted> {
    let (device, agreed) = (device?, agreed?);
    let entry = mountinfo::at(&plan.mounting.mountpoint)?.filter(MountEntry::is_kitfs);
    let entry = entry.ok_or_else(|| io::Error::other("the mount does not show in /proc/self/mountinfo"))?;
    let resend = can_resend(&agreed) && !plan.mounting.lacking.resend;
    Ok(Mounted { device, agreed, mount_id: entry.mount_id, number: entry.device, resend })
}

/// Whether the kernel sends again what a dead worker did not answer.
pub(super) fn can_resend(agreed: &Agreed) -> bool {
    agreed.capabilities & InitFlags::FUSE_HAS_RESEND.bits() != 0
}

/// Whether the kernel can read files past us, if it may.
pub(super) fn can_pass_through(agreed: &Agreed) -> bool {
    agreed.capabilities & InitFlags::FUSE_PASSTHROUGH.bits() != 0
}

/// A source that is the same whichever way it goes to the kernel: fusermount3 takes a comma for the end of the option and a backslash for an escape,
/// the system call takes both as they are.
fn escaped(source: &str) -> String {
    source.chars().fold(String::with_capacity(source.len()), |mut text, c| {
        match c {
            ',' | '\\' | '%' => text.push_str(&format!("%{:02X}", u32::from(c))),
            c if c.is_control() => text.push('?'),
            c => text.push(c),
        }
        text
    })
}

struct Agreement {
    wants_passthrough: bool,
    sender: Sender<Agreed>,
}

impl Filesystem for Agreement {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        // Not FUSE_READDIRPLUS_AUTO: of a folder that does not fit into one listing the kernel would then ask for each name by itself.
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_PARALLEL_DIROPS;
        if self.wants_passthrough && offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            // One level: more would forbid an overlay on top of the mount.
            config.set_max_stack_depth(1).map_err(|most| io::Error::other(format!("the kernel allows a stack depth of {most} only")))?;
        }
        // Those that the kernel does not have are done without.
        let _missing = config.add_capabilities(wanted & offered);
        // Fewer at once would make parallel readers wait for each other.
        let _nearest = config.set_max_background(FUSE_BACKGROUND_MAX);
        let mut capabilities = offered.bits();
        if !self.wants_passthrough {
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

    /// Without this the kernel asks for 128 KiB at a time. Only root may, and it is a matter of speed alone.
    fn raise_read_ahead(&self) {
        let (major, minor) = self.number;
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(%error, path, "read-ahead stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_never_becomes_an_option() {
        assert_eq!(escaped("oci:/a,suid\\,b:v1@sha256:00"), "oci:/a%2Csuid%5C%2Cb:v1@sha256:00");
        assert_eq!(escaped("a%2Cb\n"), "a%252Cb?");
    }
}
