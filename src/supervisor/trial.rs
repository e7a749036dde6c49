//! A mount on trial, for `kitfs doctor`: whether this process may mount, and what this kernel can do with this cache.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::thread;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::session;
use crate::wire::Device;
use crate::worker::try_passthrough;

/// What came of it.
#[derive(Debug)]
pub struct Trial {
    /// The kernel sends again what a dead worker did not answer.
    pub resend: bool,
    /// It takes a file of the cache as a backing file, or says why not.
    pub passthrough: io::Result<()>,
}

/// Mounts and unmounts, in a mount namespace of its own: nobody else ever sees it, and it is gone with this process. Only for root, since nobody else may
/// have such a namespace.
///
/// # Errors
///
/// What keeps this process from mounting.
pub fn trial(cache: &Path) -> io::Result<Trial> {
    // A namespace belongs to a thread, and this one has no other use.
    let cache = cache.to_owned();
    let tried = thread::Builder::new().name("trial".into()).spawn(move || in_a_namespace(&cache))?.join();
    tried.unwrap_or_else(|_| Err(io::Error::other("the trial ended unexpectedly")))
}

fn in_a_namespace(cache: &Path) -> io::Result<Trial> {
    // SAFETY: of what is not shared any more, the table of descriptors is no part.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let dir = std::env::temp_dir().join(format!("kitfs-doctor-{:016x}", fastrand::u64(..)));
    DirBuilder::new().mode(0o700).create(&dir)?;
    let tried = mounted(&dir, cache);
    let removed = std::fs::remove_dir(&dir);
    tried.and_then(|trial| removed.map(|()| trial))
}

fn mounted(dir: &Path, cache: &Path) -> io::Result<Trial> {
    let (device, agreed) = session::connect(dir, "kitfs-doctor", false, true)?;
    let tried = device.and_then(|device| {
        let agreed = agreed?;
        let passthrough = if session::can_pass_through(&agreed) {
            try_passthrough(&Device::new(device), cache)
        } else {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel does not offer it"))
        };
        Ok(Trial { resend: session::can_resend(&agreed), passthrough })
    });
    unmount(dir, UnmountFlags::DETACH)?;
    tried
}
