//! Containers that share one mount: by bind, under another uid, over the death of a worker.

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::kitfs::{Host, Mode};
use crate::common::process::{Running, require};
use crate::common::registry::{Registry, sha256};
use crate::kits::standard;

crate::in_both_modes!(two_containers_share_one_mount);

const LIMIT: Duration = Duration::from_secs(90);

/// Reads files again and again until it is told to stop, and says each round.
const READER: &str = r#"
import hashlib, mmap, os, sys
names, stop = sys.argv[1:-1], sys.argv[-1]
held = open(names[0], 'rb')
view = mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ)
print('uid', os.getuid(), 'pid', os.getpid(), flush=True)
first = None
while True:
    sums = [hashlib.sha256(open(name, 'rb').read()).hexdigest() for name in names] + [hashlib.sha256(view).hexdigest()]
    sums.append(str(sorted(os.listdir(os.path.dirname(names[0])))))
    if first is None: first = sums
    assert sums == first, (sums, first)
    os.write(1, f'round {sums[0]}\n'.encode())  # one write, or lines mix
    if os.path.exists(stop): break
"#;

fn two_containers_share_one_mount(mode: Mode) {
    require("bwrap", "apt-get install bubblewrap");
    require("setpriv", "apt-get install util-linux");
    let host = Host::new(mode);
    // Only here another user has to get through the folders above the mount.
    fs::set_permissions(host.path(""), Permissions::from_mode(0o755)).expect("ours");
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.mount_with(&reference, &["--prefetch", "none", "--allow-other"]);
    let flags = host.folder("flags");
    let start = |uid: u32| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]);
        command.args([
            "bwrap",
            "--unshare-user",
            "--unshare-pid",
            "--die-with-parent",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
        ]);
        command
            .arg("--tmpfs")
            .arg("/mnt")
            .arg("--ro-bind")
            .arg(mount.point())
            .arg("/mnt/kit")
            .arg("--ro-bind")
            .arg(&flags)
            .arg("/mnt/flags");
        command.args(["/usr/bin/env", "python3", "-c", READER]);
        command.args([
            "/mnt/kit/model/model.safetensors",
            "/mnt/kit/model/config.json",
            "/mnt/kit/data/shard-2/059.txt",
            "/mnt/flags/stop",
        ]);
        command.env("HOME", "/tmp");
        Running::start(&mut command)
    };
    let rounds = |process: &mut Running| process.said().lines().filter(|line| line.starts_with("round")).count();
    let await_rounds = |process: &mut Running, wanted: usize| {
        let until = Instant::now() + LIMIT;
        while rounds(process) < wanted {
            assert!(process.is_running() && Instant::now() < until, "{wanted} rounds do not come: {}", process.said());
            // Another process's output gives no event to wait for.
            thread::sleep(Duration::from_millis(50));
        }
    };

    let mut first = start(23_456);
    await_rounds(&mut first, 1);
    // The second one has read nothing yet, and finds the data in the page cache.
    let file = File::open(mount.path("model/model.safetensors")).expect("open");
    let resident = resident_pages(&file);
    assert!(resident.iter().all(|page| *page), "{} of {} pages are there", resident.iter().filter(|page| **page).count(), resident.len());
    if mode == Mode::Passthrough {
        // And it stands there once: the pages are those of the cache's own file.
        let own = host.cache().join("v1/layers").join(kit.layer("model").stored_name());
        let data = fs::read_dir(own).expect("the layer").map(|entry| entry.expect("an entry").path());
        let data = data.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "data")).expect("the big member");
        let own = File::open(data).expect("open");
        assert_eq!(resident_pages(&own), resident);
    }

    let mut second = start(34_567);
    await_rounds(&mut second, 1);
    for _ in 0..4 {
        mount.await_other_worker(mount.kill_worker());
        let (one, other) = (rounds(&mut first), rounds(&mut second));
        await_rounds(&mut first, one + 2);
        await_rounds(&mut second, other + 2);
    }
    fs::write(flags.join("stop"), "").expect("room");
    let right = sha256(kit.tree.content("model/model.safetensors")).replace("sha256:", "");
    for (process, uid) in [(first, 23_456), (second, 34_567)] {
        let output = process.wait(LIMIT).ok();
        assert!(output.stdout.contains(&format!("uid {uid} ")) && output.stdout.contains(&format!("round {right}")), "{output:?}");
    }
    for layer in &kit.layers {
        assert!(registry.sent(&layer.digest) <= layer.blob.len() as u64, "one fetch for both");
    }
}

/// Which pages of a file are in the page cache, without touching them.
fn resident_pages(file: &File) -> Vec<bool> {
    let length = usize::try_from(file.metadata().expect("stat").len()).expect("small");
    let mut pages = vec![0_u8; length.div_ceil(4096)];
    // SAFETY: a new mapping of that length that nobody reads; mincore writes a byte per page.
    unsafe {
        let flags = rustix::mm::MapFlags::SHARED;
        let start = rustix::mm::mmap(std::ptr::null_mut(), length, rustix::mm::ProtFlags::READ, flags, file.as_fd(), 0).expect("mmap");
        assert_eq!(libc::mincore(start, length, pages.as_mut_ptr()), 0);
        rustix::mm::munmap(start, length).expect("munmap");
    }
    pages.into_iter().map(|page| page & 1 == 1).collect()
}
