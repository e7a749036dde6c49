//! The ways in which a training job reads.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::Kit;
use crate::common::process::{Running, python, run, sh, within};
use crate::common::registry::Registry;
use crate::kits::standard;

crate::in_both_modes!(
    plain_reads,
    direct_reads,
    maps,
    advice,
    copies_inside_the_kernel,
    an_io_uring,
    locks,
    a_script_is_executed,
    a_map_over_fork,
    an_overlay_with_the_mount_below,
    what_stat_and_statfs_say,
    the_owner_is_who_the_options_say,
);

const LIMIT: Duration = Duration::from_secs(60);

/// A file of its own in the store, and one that is packed with others.
const FILES: [&str; 3] = ["model/model.safetensors", "tokenizer/vocab.txt", "data/shard-2/059.txt"];

struct Stage {
    mount: Mount,
    kit: Arc<Kit>,
    _registry: Registry,
}

impl Stage {
    fn new(mode: Mode) -> Self {
        let host = Host::new(mode);
        let registry = Registry::start();
        let kit = Arc::new(standard());
        let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
        assert_eq!(mount.status()["passthrough"], mode == Mode::Passthrough, "the mode this test is about: {:#}", mount.status());
        Self { mount, kit, _registry: registry }
    }

    /// Does this for each kind of file, the first time cold, the second time warm.
    fn each(&self, work: impl Fn(&Path, &[u8]) + Send + Sync + Clone + 'static) {
        for name in FILES {
            for round in ["cold", "warm"] {
                let (path, kit, work) = (self.mount.path(name), Arc::clone(&self.kit), work.clone());
                within(LIMIT, &format!("{name}, {round}"), move || work(&path, kit.tree.content(name)));
            }
        }
    }
}

fn plain_reads(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = File::open(path).expect("open");
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let (at, length) = (random.usize(..=right.len()), random.usize(..10_000));
            let mut buffer = vec![0; length];
            let read = read_up_to(&file, &mut buffer, at as u64);
            assert!(buffer[..read] == right[at..(at + length).min(right.len())], "{length} bytes at {at}");
        }
        // At the end and beyond it there is nothing, and that is no error.
        for beyond in [right.len() as u64, right.len() as u64 + 1, 1 << 40] {
            assert_eq!(file.read_at(&mut [0; 16], beyond).expect("no error"), 0);
        }
        let mut whole = Vec::new();
        File::open(path).expect("open").read_to_end(&mut whole).expect("read");
        assert!(whole == right);
        let mut halves = [vec![0; right.len() / 2], vec![0; right.len() - right.len() / 2]];
        let [first, second] = &mut halves;
        let mut slices = [std::io::IoSliceMut::new(first), std::io::IoSliceMut::new(second)];
        let read = rustix::io::preadv(&file, &mut slices, 0).expect("preadv");
        assert!(halves.concat()[..read] == right[..read]);
    });
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64).expect("pread") {
            0 => break,
            read => done += read,
        }
    }
    done
}

fn direct_reads(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("O_DIRECT");
        // An alignment that any device takes.
        let mut buffer = memmap2::MmapMut::map_anon(64 * 1024).expect("memory");
        let mut at = 0;
        while at < right.len() {
            let read = file.read_at(&mut buffer, at as u64).expect("a direct read");
            assert!(read > 0 && buffer[..read] == right[at..at + read], "at {at}");
            at += read;
        }
        assert_eq!(at, right.len());
        // Mixed with reads through the page cache.
        assert!(fs::read(path).expect("read") == right);
    });
}

fn maps(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = File::open(path).expect("open");
        for flags in [MapFlags::PRIVATE, MapFlags::SHARED, MapFlags::PRIVATE | MapFlags::POPULATE, MapFlags::SHARED | MapFlags::POPULATE] {
            // SAFETY: a new mapping at a place of the kernel's choice, read while it exists; nothing changes the file.
            let seen = unsafe {
                let start = rustix::mm::mmap(std::ptr::null_mut(), right.len(), ProtFlags::READ, flags, file.as_fd(), 0).expect("mmap");
                let seen = std::slice::from_raw_parts(start.cast::<u8>(), right.len()).to_vec();
                rustix::mm::munmap(start, right.len()).expect("munmap");
                seen
            };
            assert!(seen == right, "{flags:?}");
        }
        // Writes to a private mapping stay there; a shared one for writing there is none.
        // SAFETY: as above.
        unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let start = rustix::mm::mmap(std::ptr::null_mut(), right.len(), protection, MapFlags::PRIVATE, file.as_fd(), 0).expect("mmap");
            start.cast::<u8>().write(!right[0]);
            rustix::mm::munmap(start, right.len()).expect("munmap");
            let shared = rustix::mm::mmap(std::ptr::null_mut(), right.len(), protection, MapFlags::SHARED, file.as_fd(), 0);
            assert_eq!(shared.err(), Some(Errno::ACCESS));
        }
        assert!(fs::read(path).expect("read") == right);
    });
}

fn advice(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = File::open(path).expect("open");
        for advice in [Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::NoReuse, Advice::DontNeed, Advice::Normal] {
            rustix::fs::fadvise(&file, 0, None, advice).unwrap_or_else(|error| panic!("{advice:?}: {error}"));
            assert!(fs::read(path).expect("read") == right, "{advice:?}");
        }
        // SAFETY: nothing writes to the file of a read-only mount.
        let map = unsafe { memmap2::Mmap::map(&file) }.expect("mmap");
        for advice in [memmap2::Advice::WillNeed, memmap2::Advice::Sequential, memmap2::Advice::Random, memmap2::Advice::PopulateRead] {
            map.advise(advice).unwrap_or_else(|error| panic!("{advice:?}: {error}"));
            assert!(*map == *right, "{advice:?}");
        }
        // SAFETY: a private file mapping that is read again from the file.
        unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.expect("MADV_DONTNEED");
        assert!(*map == *right);
        // SAFETY: readahead(2) takes a descriptor and two numbers.
        assert_eq!(unsafe { libc::readahead(std::os::fd::AsRawFd::as_raw_fd(&file), 0, right.len()) }, 0);
    });
}

fn copies_inside_the_kernel(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = File::open(path).expect("open");
        let target = || tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
        let content = |file: &File| {
            let mut content = vec![0; right.len() + 1];
            let read = read_up_to(file, &mut content, 0);
            content.truncate(read);
            content
        };

        let sent = target();
        let mut offset = 0;
        while offset < right.len() as u64 {
            assert!(rustix::fs::sendfile(&sent, &file, Some(&mut offset), right.len()).expect("sendfile") > 0);
        }
        assert!(content(&sent) == right, "sendfile");

        let copied = target();
        let (mut from, mut to) = (0, 0);
        while from < right.len() as u64 {
            match rustix::fs::copy_file_range(&file, Some(&mut from), &copied, Some(&mut to), right.len()) {
                Ok(count) => assert!(count > 0, "copy_file_range stops at {from}"),
                // Between two kinds of filesystem the kernel leaves it to the program.
                Err(Errno::XDEV) => break,
                Err(error) => panic!("copy_file_range: {error}"),
            }
        }
        assert!(content(&copied) == right[..usize::try_from(from).expect("small")], "copy_file_range");

        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let spliced = target();
        let (mut done, mut out) = (0_u64, 0);
        while done < right.len() as u64 {
            let count =
                rustix::pipe::splice(&file, Some(&mut done), &writer, None, 64 * 1024, rustix::pipe::SpliceFlags::empty()).expect("splice");
            assert!(count > 0, "splice stops at {done}");
            let mut left = count;
            while left > 0 {
                left -= rustix::pipe::splice(&reader, None, &spliced, Some(&mut out), left, rustix::pipe::SpliceFlags::empty())
                    .expect("splice");
            }
        }
        assert!(content(&spliced) == right, "splice");

        let copy = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
        fs::copy(path, copy.path()).expect("a copy");
        assert!(fs::read(copy.path()).expect("read") == right, "std::fs::copy");
    });
}

fn an_io_uring(mode: Mode) {
    Stage::new(mode).each(|path, right| {
        let file = File::open(path).expect("open");
        let fd = io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd(&file));
        let mut ring = io_uring::IoUring::new(32).expect("io_uring: a kernel and a sandbox that permit it");
        let mut buffers: Vec<_> = right.chunks(right.len().div_ceil(16).max(1)).map(|chunk| vec![0; chunk.len()]).collect();
        let mut at = 0;
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let length = u32::try_from(buffer.len()).expect("small");
            let entry = io_uring::opcode::Read::new(fd, buffer.as_mut_ptr(), length).offset(at).build().user_data(index as u64);
            // SAFETY: buffer and file live until the completions below were seen.
            unsafe { ring.submission().push(&entry) }.expect("room");
            at += u64::from(length);
        }
        ring.submit_and_wait(buffers.len()).expect("io_uring_enter");
        let mut seen = 0;
        for completion in ring.completion() {
            let length = buffers[usize::try_from(completion.user_data()).expect("ours")].len();
            assert_eq!(completion.result(), i32::try_from(length).expect("small"));
            seen += 1;
        }
        assert_eq!(seen, buffers.len());
        assert!(buffers.concat() == right);
    });
}

fn locks(mode: Mode) {
    Stage::new(mode).each(|path, _| {
        let (one, other) = (File::open(path).expect("open"), File::open(path).expect("open"));
        rustix::fs::flock(&one, FlockOperation::NonBlockingLockShared).expect("LOCK_SH");
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared).expect("a second LOCK_SH");
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        run(Command::new("flock").args(["--shared", "--nonblock"]).arg(path).arg("true"), LIMIT).ok();
        rustix::fs::flock(&one, FlockOperation::Unlock).expect("unlock");
    });
}

fn a_script_is_executed(mode: Mode) {
    let stage = Stage::new(mode);
    // A folder's files are warm once one of them was seen; execve of a cold *name* is another test.
    let script = stage.mount.path("src/train.sh");
    within(LIMIT, "a listing", {
        let folder = stage.mount.path("src");
        move || fs::read_dir(folder).expect("listed").count()
    });
    let output = run(&mut Command::new(&script), LIMIT).ok();
    assert_eq!(output.stdout, "trained\n");
    let module = format!(
        "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {:?}); import util; print(util.f())",
        stage.mount.path("src/lib")
    );
    assert_eq!(run(&mut python(&module, &[]), LIMIT).ok().stdout, "1\n");
    // What is not executable is not executed, for root either.
    let plain = stage.mount.path("src/lib/util.py");
    assert!(Command::new(plain).spawn().is_err_and(|error| error.raw_os_error() == Some(Errno::ACCESS.raw_os_error())));
}

fn a_map_over_fork(mode: Mode) {
    let stage = Stage::new(mode);
    let script = r#"
import hashlib, mmap, os, sys
file = open(sys.argv[1], 'rb')
view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
file.close()
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        os.write(1, (hashlib.sha256(view).hexdigest() + '\n').encode())  # one write, or lines mix
        os._exit(0)
    children.append(pid)
for pid in children: assert os.waitpid(pid, 0)[1] == 0
print(hashlib.sha256(view).hexdigest())
"#;
    for name in FILES {
        let right = crate::common::registry::sha256(stage.kit.tree.content(name)).replace("sha256:", "");
        let process = Running::start(&mut python(script, &[stage.mount.path(name).as_os_str()]));
        assert_eq!(process.wait(LIMIT).ok().stdout, format!("{right}\n").repeat(5), "{name}");
    }
}

fn an_overlay_with_the_mount_below(mode: Mode) {
    let stage = Stage::new(mode);
    let host = stage.mount.host();
    let (upper, work, merged) = (host.folder("upper"), host.folder("work"), host.folder("merged"));
    let script = format!(
        "mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {}",
        stage.mount.point().display(),
        upper.display(),
        work.display(),
        merged.display()
    );
    sh(&script, LIMIT).ok();
    let kit = Arc::clone(&stage.kit);
    let folder: PathBuf = merged.clone();
    within(LIMIT, "reading through an overlay", move || {
        // The model's names are asked for the first time through the overlay: it must cope with cold names.
        for name in FILES {
            assert!(fs::read(folder.join(name)).expect("open") == kit.tree.content(name), "{name}");
            // SAFETY: nothing writes to it yet.
            let map = unsafe { memmap2::Mmap::map(&File::open(folder.join(name)).expect("open")) }.expect("mmap");
            assert!(*map == *kit.tree.content(name), "{name}");
        }
        let mut file = fs::OpenOptions::new().append(true).open(folder.join(FILES[1])).expect("copy-up");
        file.write_all(b"more").expect("room");
        fs::remove_file(folder.join(FILES[2])).expect("a whiteout");
        fs::write(folder.join("model/new.txt"), "new").expect("a new file");
        assert_eq!(fs::read(folder.join(FILES[1])).expect("open").len(), kit.tree.content(FILES[1]).len() + 4);
    });
    sh(&format!("umount {}", merged.display()), LIMIT).ok();
    for name in FILES {
        assert!(fs::read(stage.mount.path(name)).expect("open") == stage.kit.tree.content(name), "{name} is what it was");
    }
}

fn what_stat_and_statfs_say(mode: Mode) {
    let stage = Stage::new(mode);
    let path = stage.mount.path(FILES[0]);
    let metadata = within(LIMIT, "stat", move || fs::metadata(path).expect("stat"));
    assert_eq!((metadata.uid(), metadata.gid(), metadata.nlink()), (0, 0, 1));
    // A kit of that age has no time of its own: 1980-01-01.
    assert_eq!(metadata.mtime(), 315_532_800);
    assert!(metadata.blocks() >= metadata.size().div_ceil(512) && metadata.blksize() >= 4096, "{metadata:?}");
    for _ in 0..2 {
        let size: u64 = stage.kit.layers.iter().map(|layer| layer.blob.len() as u64).sum();
        let stat = rustix::fs::statvfs(stage.mount.point()).expect("statvfs");
        assert_eq!((stat.f_bavail, stat.f_bfree, stat.f_namemax), (0, 0, 255));
        let total = stat.f_blocks * stat.f_frsize;
        assert!(total >= size / 2 && total <= size * 2 + (1 << 20), "{total} for a kit of {size}");
        // Once more when everything is known.
        sh(&format!("ls -lR {} > /dev/null", stage.mount.point().display()), LIMIT).ok();
    }
}

fn the_owner_is_who_the_options_say(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.mount_with(&reference, &["--uid", "1234", "--gid", "4321", "--allow-other"]);
    for name in ["", "Kitfile", "model", FILES[0]] {
        let path = mount.path(name);
        let metadata = within(LIMIT, "stat", move || fs::metadata(path).expect("stat"));
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{name}");
    }
}
