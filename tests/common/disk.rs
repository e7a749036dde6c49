//! Filesystems of a test's own, which can be filled, made read-only, or fail.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};

use super::kitfs::SOON;
use super::process::{require, run};

/// A filesystem that is mounted at a path, and taken away with this.
#[derive(Debug)]
pub struct Disk {
    point: PathBuf,
    /// The loop device; a tmpfs has none.
    device: Option<PathBuf>,
}

impl Disk {
    /// A tmpfs of so many bytes.
    pub fn tmpfs(point: PathBuf, bytes: usize) -> Self {
        fs::create_dir(&point).expect("a folder");
        let size = std::ffi::CString::new(format!("size={bytes},mode=0700")).expect("no NUL");
        rustix::mount::mount("tmpfs", &point, "tmpfs", MountFlags::empty(), &*size).expect("these tests mount: run them as root");
        Self { point, device: None }
    }

    /// An ext4 with so many bytes and inodes, in a file beside it. It has no journal: a journal that fails is never well again.
    pub fn ext4(point: PathBuf, bytes: u64, inodes: &str) -> Self {
        require("mkfs.ext4", "apt-get install e2fsprogs");
        fs::create_dir(&point).expect("a folder");
        let image = point.with_extension("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("room");
        let features = ["-q", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "nodiscard"];
        run(Command::new("mkfs.ext4").args(features).args(["-N", inodes]).arg(&image), SOON).ok();
        // The kernel lets go of such a device when its mount is gone.
        run(Command::new("mount").args(["-o", "loop,noatime,errors=continue"]).args([&image, &point]), SOON).ok();
        let mut disk = Self { point, device: None };
        let (_, source, _) = super::kitfs::mount_entry(&disk.point).expect("mounted");
        disk.device = Some(source.into());
        disk
    }

    /// A folder, shown in another place as if it were a filesystem of its own.
    pub fn of_folder(point: PathBuf, folder: &Path) -> Self {
        fs::create_dir(&point).expect("a folder");
        let disk = Self { point, device: None };
        disk.attach(folder);
        disk
    }

    /// Mounts such a folder, again.
    pub fn attach(&self, folder: &Path) {
        rustix::mount::mount_bind(folder, &self.point).expect("these tests mount: run them as root");
    }

    /// Nobody finds it any more; whoever has something of it open has it still.
    pub fn detach(&self) {
        rustix::mount::unmount(&self.point, UnmountFlags::DETACH).expect("mounted");
    }

    fn device(&self) -> &Path {
        self.device.as_deref().expect("a disk of its own")
    }

    /// Mounts it again, for reading only or not.
    pub fn remount(&self, read_only: bool) {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", mode]).arg(&self.point), SOON).ok();
    }

    /// Nothing of the disk can be read or written any more, but what the kernel has of it in memory, and the beginning, where the tables of inodes are, and
    /// the folders that were made first.
    pub fn fail(&self) {
        rustix::fs::syncfs(File::open(&self.point).expect("there")).expect("whole still");
        self.limit(512 << 10);
    }

    /// It can be read and written again.
    pub fn heal(&self) {
        self.limit(0);
    }

    /// What is beyond so many bytes of the device is an I/O error; 0 for nothing.
    fn limit(&self, bytes: u64) {
        const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
        const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
        const SIZE_LIMIT: std::ops::Range<usize> = 32..40;
        let device = File::options().read(true).write(true).open(self.device()).expect("root");
        let mut info = [0u8; 232]; // struct loop_info64
        // SAFETY: the calls read and write as many bytes as the structure has.
        unsafe {
            assert_eq!(libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()), 0, "{}", std::io::Error::last_os_error());
            info[SIZE_LIMIT].copy_from_slice(&bytes.to_ne_bytes());
            assert_eq!(libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, info.as_ptr()), 0, "{}", std::io::Error::last_os_error());
        }
    }

    /// Fills it to its last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("room for a name");
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Takes all the inodes that there are.
    pub fn take_inodes(&self) {
        fs::create_dir(self.filler()).expect("room");
        let mut names = (0..).map(|number: u32| self.filler().join(number.to_string()));
        while names.next().is_some_and(|name| File::create(name).is_ok()) {}
    }

    /// What was filled is free again.
    pub fn free(&self) {
        let filler = self.filler();
        if filler.is_dir() { fs::remove_dir_all(filler) } else { fs::remove_file(filler) }.expect("there");
    }

    fn filler(&self) -> PathBuf {
        self.point.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.is_some() {
            self.heal();
        }
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}
