//! A worker without a filesystem worth the name: it speaks FUSE by hand and misbehaves where a file's name says so.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kitfs::control::{Control, FromSupervisor, FromWorker, Received};
use kitfs::node::NodeId;
use kitfs::page::{IoMode, Page, Release};
use kitfs::plan::MountPlan;
use kitfs::store::Held;
use kitfs::umount;

/// Bytes of each file.
pub const SIZE: u64 = 1 << 20;
/// The slot that the file `held` belongs to.
pub const SLOT: u16 = 5;

/// What every file holds at `offset`.
pub fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 24) as u8
}

/// Files in the folder that the plan calls its cache. They tell workers how to behave, and us how they did.
#[derive(Clone)]
pub struct Stage(pub PathBuf);

impl Stage {
    /// Workers die before they serve, those that only end waits excepted.
    pub fn broken(&self) -> PathBuf {
        self.0.join("broken")
    }

    /// Workers take two seconds to come to serve.
    pub fn slow(&self) -> PathBuf {
        self.0.join("slow")
    }

    /// Whoever opens `wait` need not wait any more.
    pub fn released(&self) -> PathBuf {
        self.0.join("released")
    }

    /// A line for each start.
    pub fn starts(&self) -> Vec<Start> {
        let text = fs::read_to_string(self.0.join("starts")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
    }
}

/// What a worker began with.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Start {
    pub at_ms: u64,
    pub pid: u32,
    pub cautious: bool,
    pub stopping: bool,
    pub adopted: Vec<u16>,
}

struct Server {
    device: OwnedFd,
    page: Page,
    control: Control,
    stage: Stage,
    plan: MountPlan,
    waits: Mutex<Waits>,
}

#[derive(Default)]
struct Waits {
    stopping: bool,
    parked: Vec<u64>,
}

/// What a worker of the real program does at its start, with the arguments that it gets.
pub fn run(arguments: &[String]) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("worker: {panic}");
        std::process::abort();
    }));
    let values: HashMap<&str, &str> = arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let fd = |option: &str| {
        let number: i32 = values[option].parse().expect("a descriptor");
        // SAFETY: the supervisor left it open for us, and we take each once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).expect("an open descriptor");
        fd
    };
    let mount_id: u64 = values["--mount-id"].parse().expect("an id");
    let mountpoint = PathBuf::from(arguments.last().expect("the mount point"));
    let plan = MountPlan::read(fd("--plan-fd")).expect("the plan");
    let stage = Stage(plan.mounting.cache_dir.clone());
    let control = Control::from_fd(fd("--control-fd"));
    let mut adopted = Vec::new();
    let (cautious, stopping) = loop {
        match control.receive::<FromSupervisor>().expect("a supervisor").expect("a living one") {
            Received { message: FromSupervisor::Adopt { slot }, held: Some(_) } => adopted.push(slot),
            Received { message: FromSupervisor::Begin { cautious, stopping }, .. } => break (cautious, stopping),
            other => panic!("{other:?}"),
        }
    };
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let start = Start { at_ms, pid: std::process::id(), cautious, stopping, adopted };
    let mut starts = File::options().append(true).create(true).open(stage.0.join("starts")).expect("a file");
    starts.write_all(format!("{}\n", serde_json::to_string(&start).expect("plain data")).as_bytes()).expect("room");
    if stage.broken().exists() && !stopping {
        control.send(&FromWorker::failed(&std::io::Error::other("broken on purpose")), None).expect("sent");
        std::process::exit(3);
    }
    if stage.slow().exists() {
        thread::sleep(Duration::from_secs(2));
    }
    let page = Page::open(fd("--page-fd")).expect("the page");
    let device = fd("--device-fd");
    let passthrough = page.agreed().capabilities & (1 << 37) != 0 && !plan.mounting.no_passthrough;
    page.decide_io_mode(if passthrough { IoMode::Passthrough } else { IoMode::Cached });
    let waits = Mutex::new(Waits { stopping, parked: Vec::new() });
    let server = Arc::new(Server { device, page, control, stage, plan, waits });
    server.control.send(&FromWorker::Ready, None).expect("sent");
    for _ in 0..2 {
        let server = Arc::clone(&server);
        thread::spawn(move || server.serve());
    }
    {
        let server = Arc::clone(&server);
        thread::spawn(move || server.watch());
    }
    server.obey(&mountpoint, mount_id);
    loop {
        thread::park();
    }
}

impl Server {
    fn serve(&self) {
        // The kernel wants room for the largest WRITE that was agreed on, although none comes; what is not used is no memory.
        let mut buffer = vec![0; (16 << 20) + 4096];
        loop {
            match rustix::io::read(&self.device, &mut buffer) {
                Ok(length) => self.handle(&buffer[..length]),
                Err(rustix::io::Errno::NODEV) => std::process::exit(0),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn watch(&self) {
        let mut last = None;
        loop {
            let released = self.stage.released().exists();
            let (parked, over) = {
                let mut waits = self.waits.lock().expect("no panic");
                let over = if released { std::mem::take(&mut waits.parked) } else { Vec::new() };
                (waits.parked.len(), over)
            };
            for unique in over {
                self.opened(unique, 1, 0);
            }
            self.page.watched(parked);
            if last != Some(parked) {
                last = Some(parked);
                fs::write(self.stage.0.join("parked.new"), parked.to_string()).expect("room");
                fs::rename(self.stage.0.join("parked.new"), self.stage.0.join("parked")).expect("the same folder");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn obey(&self, mountpoint: &Path, mount_id: u64) {
        loop {
            match self.control.receive::<FromSupervisor>().expect("no error") {
                Some(Received { message: FromSupervisor::Stop, .. }) => {
                    let parked = {
                        let mut waits = self.waits.lock().expect("no panic");
                        waits.stopping = true;
                        std::mem::take(&mut waits.parked)
                    };
                    for unique in parked {
                        self.reply(unique, -libc::ENODEV, &[]);
                    }
                    self.control.send(&FromWorker::Stopped, None).expect("sent");
                }
                Some(Received { message: FromSupervisor::Resume, .. }) => self.waits.lock().expect("no panic").stopping = false,
                Some(other) => panic!("{other:?}"),
                None => {
                    umount::detach(mountpoint, mount_id, true).expect("detached");
                    return;
                }
            }
        }
    }

    fn handle(&self, request: &[u8]) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        let (opcode, unique, node) = (word(4), long(8), NodeId::from_wire(long(16)));
        if matches!(opcode, 2 | 42) {
            return; // FORGET, BATCH_FORGET
        }
        let Some(_in_handler) = self.page.enter(unique) else { return self.reply(unique, -libc::EIO, &[]) };
        match opcode {
            1 => {
                match std::str::from_utf8(&request[40..request.len() - 1]).ok().and_then(|name| FILES.iter().position(|file| *file == name))
                {
                    None => self.reply(unique, -libc::ENOENT, &[]),
                    Some(entry) => {
                        let id = NodeId::new(1, entry as u32, 1).to_wire();
                        let mut out = Vec::new();
                        [id, 0, 1000, 1000, 0].iter().for_each(|word| out.extend(word.to_ne_bytes()));
                        out.extend(attributes(id));
                        self.reply(unique, 0, &out);
                    }
                }
            }
            3 => {
                let mut out = Vec::new();
                [1000u64, 0].iter().for_each(|word| out.extend(word.to_ne_bytes()));
                out.extend(attributes(node.to_wire()));
                self.reply(unique, 0, &out);
            }
            14 => self.open(unique, node),
            15 => {
                let (offset, size) = (long(48), u64::from(word(56)));
                let data: Vec<u8> = (offset..(offset + size).min(SIZE)).map(byte_at).collect();
                self.reply(unique, 0, &data);
            }
            17 => self.reply(unique, 0, &[0; 80]),
            18 => {
                self.reply(unique, 0, &[]);
                self.release(node);
            }
            27 => self.opened(unique, 0, 0),
            25 | 28 | 29 | 44 => self.reply(unique, 0, &[]),
            22 | 23 => self.reply(unique, -libc::ENODATA, &[]),
            _ => self.reply(unique, -libc::ENOSYS, &[]),
        }
    }

    fn open(&self, unique: u64, node: NodeId) {
        const DIRECT_IO: u32 = 1;
        const PASSTHROUGH: u32 = 1 << 7;
        match FILES[node.entry() as usize] {
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "wait" => {
                let mut waits = self.waits.lock().expect("no panic");
                if waits.stopping {
                    drop(waits);
                    self.reply(unique, -libc::ENODEV, &[]);
                } else {
                    waits.parked.push(unique);
                }
            }
            "held" => {
                let file = || OwnedFd::from(File::open(self.stage.0.join("backing")).expect("a file"));
                let held = Held { lock: file(), dir: file(), pack: file(), index: file() };
                self.control.send(&FromWorker::Hold { slot: SLOT }, Some(&held)).expect("sent");
                self.page.handle_opened(SLOT);
                self.opened(unique, DIRECT_IO, 0);
            }
            "backed" if self.page.io_mode() == Some(IoMode::Passthrough) => {
                let file = File::open(self.stage.0.join("backing")).expect("a file");
                let id = self.page.acquire_backing(node.to_wire(), (0, 0), || backing_open(&self.device, &file));
                match id {
                    Ok(id) => self.opened(unique, PASSTHROUGH, id.expect("the same file")),
                    Err(error) => self.reply(unique, -error.raw_os_error().unwrap_or(libc::EIO), &[]),
                }
            }
            _ => self.opened(unique, DIRECT_IO, 0),
        }
    }

    fn release(&self, node: NodeId) {
        match FILES[node.entry() as usize] {
            "held" => {
                self.page.handle_closed(SLOT);
                if self.page.handles(SLOT) == 0 {
                    self.control.send(&FromWorker::LetGo { slot: SLOT }, None).expect("sent");
                }
            }
            "backed" => {
                if let Release::Last(id) = self.page.release_backing(node.to_wire()) {
                    // SAFETY: the request reads four bytes at the pointer, which is valid for them.
                    assert_eq!(unsafe { libc::ioctl(self.device.as_raw_fd(), 0x4004_e502, &raw const id) }, 0);
                }
            }
            _ => {}
        }
    }

    fn opened(&self, unique: u64, flags: u32, backing: u32) {
        let mut out = [0; 16];
        out[8..12].copy_from_slice(&flags.to_ne_bytes());
        out[12..16].copy_from_slice(&backing.to_ne_bytes());
        self.reply(unique, 0, &out);
    }

    fn reply(&self, unique: u64, error: i32, payload: &[u8]) {
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&((16 + payload.len()) as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..16].copy_from_slice(&unique.to_ne_bytes());
        // Nobody may be waiting any more.
        let _gone = rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(payload)]);
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Names of the files, by entry.
const FILES: [&str; 6] = ["data", "abort", "exit", "wait", "held", "backed"];

fn attributes(id: u64) -> Vec<u8> {
    let folder = id == 1;
    let mode = if folder { libc::S_IFDIR | 0o555 } else { libc::S_IFREG | 0o444 };
    let size = if folder { 0 } else { SIZE };
    let mut out = Vec::with_capacity(88);
    [id, size, size / 512, 0, 0, 0].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].iter().for_each(|word: &u32| out.extend(word.to_ne_bytes()));
    out
}

fn backing_open(device: &OwnedFd, file: &File) -> std::io::Result<u32> {
    let map = [file.as_raw_fd() as u32, 0, 0, 0];
    // SAFETY: the request reads sixteen bytes at the pointer, which is valid for them.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), 0x4010_e501, map.as_ptr()) };
    if id < 0 { Err(std::io::Error::last_os_error()) } else { Ok(id as u32) }
}
