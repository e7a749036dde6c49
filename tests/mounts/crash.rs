//! A crash is a pause: the worker may die at any time, and readers notice nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, Mount, mount_entry};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::{Running, await_blocked, await_end, require, run, sh, signal_process, within};
use crate::common::registry::{Fault, Registry, Target, Times};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{MIB, bytes, standard};

crate::in_both_modes!(
    readers_notice_nothing_of_twenty_seconds_of_kills,
    bind_mounts_overlays_and_reopened_files_outlive_a_worker,
    a_waiting_open_outlives_a_worker,
    a_stopped_worker_is_replaced,
    a_poison_request_ends_and_the_mount_lives,
    a_kernel_without_resend_keeps_the_mount,
    a_killed_supervisor_ends_the_mount_cleanly,
    a_killed_supervisor_and_worker_are_cleaned_up,
);

const LIMIT: Duration = Duration::from_secs(60);

fn readers_notice_nothing_of_twenty_seconds_of_kills(mode: Mode) {
    require("rsync", "apt-get install rsync");
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = Arc::new(storm_kit());
    let reference = kit.serve(&registry, "acme/storm", "v1");
    // Cold layers arrive over several lives of the worker.
    for layer in kit.layers.iter().filter(|layer| layer.path.starts_with("cold")) {
        registry.fault(Target::Content(layer.digest.clone()), Times::Always, Fault::Slow(2 * MIB as u64));
    }
    let mount = host.mount(&reference);
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    warm_up(&mount, &kit);
    let inodes = inodes(&mount.path("warm"));

    let mut readers: Vec<_> = (0..4)
        .map(|number| {
            let (point, kit, stop, reads) = (mount.point().to_owned(), Arc::clone(&kit), Arc::clone(&stop), Arc::clone(&reads));
            thread::spawn(move || read_warm(number, &point, &kit, &stop, &reads))
        })
        .collect();
    readers.extend((0..6).map(|number| {
        let (point, kit) = (mount.point().to_owned(), Arc::clone(&kit));
        thread::spawn(move || read_cold(number, &point, &kit))
    }));

    let until = Instant::now() + Duration::from_secs(20);
    let mut kills = 0;
    while Instant::now() < until {
        // The pace is part of the promise: two or three times a second, wherever the worker is then.
        thread::sleep(Duration::from_millis(350));
        mount.kill_worker();
        kills += 1;
    }
    assert!(kills >= 30, "only {kills} kills in 20 s");
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        within(Duration::from_secs(120), "a reader", move || reader.join()).expect("no error and no wrong byte");
    }
    assert!(reads.load(Ordering::Relaxed) > 1000, "{reads:?} reads are no load");
    let status = mount.status();
    assert!(status["restarts"].as_u64().is_some_and(|restarts| restarts >= 30), "{status:#}");

    // Files that were stat'ed before the last restart are the same files after it.
    assert_eq!(self::inodes(&mount.path("warm")), inodes);
    mount.await_other_worker(mount.kill_worker());
    let copy = host.folder("copy");
    let output = run(Command::new("cp").arg("-r").arg(mount.path(".")).arg(&copy), LIMIT).ok();
    assert_eq!(output.stderr, "");
    assert_shows(&copy, &of_tree(&kit.tree));
    let copy = host.folder("rsync");
    let output = run(Command::new("rsync").args(["-a", "--checksum"]).arg(mount.path(".")).arg(&copy), LIMIT).ok();
    assert_eq!(output.stderr, "");
    assert_shows(&copy, &of_tree(&kit.tree));
}

fn storm_kit() -> Kit {
    let mut tree = Tree::new().file("warm/big.bin", bytes(1, 8 * MIB));
    for number in 0..200_u64 {
        tree = tree.file(&format!("warm/small/{number:03}.txt"), bytes(10 + number, (number * 29 % 3000) as usize));
    }
    let mut kitfile = Kitfile::new("storm").dataset("warm");
    for number in 0..6_u64 {
        tree =
            tree.file(&format!("cold-{number}/part.bin"), bytes(1000 + number, 3 * MIB)).file(&format!("cold-{number}/note.txt"), "note");
        kitfile = kitfile.dataset(&format!("cold-{number}"));
    }
    kitfile.pack(&tree)
}

fn warm_up(mount: &Mount, kit: &Arc<Kit>) {
    let path = mount.path("warm/big.bin");
    let kit = Arc::clone(kit);
    within(LIMIT, "the warm layer", move || assert!(read(&path).as_deref() == Ok(kit.tree.content("warm/big.bin"))));
}

fn inodes(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("known").map(|entry| entry.expect("an entry")) {
        let metadata = entry.metadata().expect("known");
        assert_eq!(rustix_ino(&entry), metadata.ino(), "d_ino and st_ino of {:?}", entry.path());
        all.insert(entry.path(), metadata.ino());
        if metadata.is_dir() {
            all.extend(inodes(&entry.path()));
        }
    }
    all
}

fn rustix_ino(entry: &fs::DirEntry) -> u64 {
    std::os::unix::fs::DirEntryExt::ino(entry)
}

/// Opens, reads, maps and lists what is in the cache, and keeps one file open all the time.
fn read_warm(seed: u64, point: &Path, kit: &Kit, stop: &AtomicBool, reads: &AtomicU64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let big = kit.tree.content("warm/big.bin");
    let held = File::open(point.join("warm/big.bin")).expect("open");
    // SAFETY: nothing writes to the file of a read-only mount.
    let map = unsafe { memmap2::Mmap::map(&held) }.expect("mmap");
    while !stop.load(Ordering::Relaxed) {
        let at = random.usize(..big.len() - 5000);
        let length = random.usize(1..5000);
        let right = &big[at..at + length];
        let mut buffer = vec![0; length];
        match random.u8(..6) {
            0 => held.read_exact_at(&mut buffer, at as u64).expect("pread"),
            1 => buffer.copy_from_slice(&map[at..at + length]),
            2 => {
                let mut file = File::open(point.join("warm/big.bin")).expect("open");
                file.seek(SeekFrom::Start(at as u64)).expect("seek");
                file.read_exact(&mut buffer).expect("read");
            }
            3 => {
                let name = format!("warm/small/{:03}.txt", random.u8(..200));
                assert!(fs::read(point.join(&name)).expect("open") == kit.tree.content(&name), "{name}");
                buffer.copy_from_slice(right);
            }
            4 => {
                let name = format!("warm/small/{:03}.txt", random.u8(..200));
                assert_eq!(fs::metadata(point.join(&name)).expect("stat").len(), kit.tree.content(&name).len() as u64);
                assert!(fs::metadata(point.join("warm/none")).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
                buffer.copy_from_slice(right);
            }
            _ => {
                let names: Result<Vec<_>, _> = fs::read_dir(point.join("warm/small")).expect("opendir").collect();
                assert_eq!(names.expect("readdir").len(), 200);
                buffer.copy_from_slice(right);
            }
        }
        assert!(buffer == right, "wrong bytes at {at}");
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

fn read_cold(number: usize, point: &Path, kit: &Kit) {
    let name = format!("cold-{number}/part.bin");
    assert!(fs::read(point.join(&name)).expect("open of a cold file") == kit.tree.content(&name), "{name}");
}

/// Three ways to a file that never look its name up again.
fn bind_mounts_overlays_and_reopened_files_outlive_a_worker(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    for name in ["model/model.safetensors", "model/config.json"] {
        let (target, overlay) = (host.path(&format!("bind-{}", name.len())), host.folder("overlay"));
        File::create(&target).expect("a file to mount on");
        let (upper, work) = (host.folder("upper"), host.folder("work"));
        let script = format!(
            "mount --bind {} {} && mount -t overlay overlay -o lowerdir={},upperdir={},workdir={} {}",
            mount.path(name).display(),
            target.display(),
            mount.point().display(),
            upper.display(),
            work.display(),
            overlay.display()
        );
        sh(&script, LIMIT).ok();
        let right = kit.tree.content(name).to_vec();
        let held = File::open(mount.path(name)).expect("open");
        let through_overlay = File::open(overlay.join(name)).expect("open");
        for round in 0..4 {
            let (target, overlay, right) = (target.clone(), overlay.clone(), right.clone());
            let (held, through) = (held.try_clone().expect("dup"), through_overlay.try_clone().expect("dup"));
            within(LIMIT, "reading around a kill", move || {
                assert!(read(&target).as_ref() == Ok(&right), "{name} by bind mount, round {round}");
                assert!(read(&overlay.join(name)).as_ref() == Ok(&right), "{name} through an overlay, round {round}");
                let again = format!("/proc/self/fd/{}", held.as_raw_fd());
                assert!(read(Path::new(&again)).as_ref() == Ok(&right), "{name} reopened, round {round}");
                let mut buffer = vec![0; right.len()];
                through.read_exact_at(&mut buffer, 0).expect("pread");
                assert!(buffer == right, "{name} held through an overlay, round {round}");
            });
            mount.await_other_worker(mount.kill_worker());
        }
        // Copy-up reads all of it through the new worker.
        if name.ends_with(".json") {
            let changed = overlay.join(name);
            fs::OpenOptions::new()
                .append(true)
                .open(&changed)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"!"))
                .expect("copy-up");
            assert_eq!(fs::read(&changed).expect("readable").len(), right.len() + 1);
            assert_eq!(read(&mount.path(name)), Ok(right));
        }
        sh(&format!("umount -l {} {}", overlay.display(), target.display()), LIMIT).ok();
    }
}

fn a_waiting_open_outlives_a_worker(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let gates = ["model", "data"].map(|path| registry.hold(&kit.layer(path).digest));
    let commands: [&[&str]; 4] =
        [&["cat", "model/model.safetensors"], &["stat", "model"], &["ls", "data"], &["cat", "data/shard-0/003.txt"]];
    let mut waiting: Vec<_> = commands.iter().map(|command| Running::start(Command::new(command[0]).arg(mount.path(command[1])))).collect();
    waiting.iter_mut().for_each(await_blocked);
    for _ in 0..5 {
        mount.await_other_worker(mount.kill_worker());
        assert!(waiting.iter_mut().all(Running::is_running), "{:?}", waiting.iter_mut().map(Running::said).collect::<Vec<_>>());
    }
    gates.iter().for_each(crate::common::registry::Gate::open);
    for process in waiting {
        process.wait(LIMIT).ok();
    }
}

fn a_stopped_worker_is_replaced(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let worker = mount.worker_pid();
    signal_process(worker, Signal::STOP);
    let (path, right) = (mount.path("model/model.safetensors"), kit.tree.content("model/model.safetensors").to_vec());
    let start = Instant::now();
    let waiting =
        thread::spawn(move || within(Duration::from_secs(75), "an open while the worker hangs", move || assert!(read(&path) == Ok(right))));
    assert!(await_end(worker, Duration::from_secs(45)), "the stopped worker is not replaced after {:?}", start.elapsed());
    waiting.join().expect("the waiter gets its bytes");
    assert_ne!(mount.worker_pid(), worker);
}

/// A request that kills each worker that handles it: here a switch makes the handler of one name panic.
fn a_poison_request_ends_and_the_mount_lives(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount =
        host.try_mount_in(&reference, &["--prefetch", "none"], &[("KITFS_TEST_PANIC", OsStr::new("config.json"))]).expect("a mount");
    let (path, right) = (mount.path("model/model.safetensors"), kit.tree.content("model/model.safetensors").to_vec());
    within(LIMIT, "another file", {
        let (path, right) = (path.clone(), right.clone());
        move || assert!(read(&path) == Ok(right))
    });
    let poison = mount.path("model/config.json");
    let errno = within(LIMIT, "the poison", move || read(&poison));
    assert_eq!(errno, Err(rustix::io::Errno::IO.raw_os_error()));
    within(LIMIT, "another file", move || assert!(read(&path) == Ok(right)));
    let status = mount.status();
    assert!(status["restarts"].as_u64().is_some_and(|restarts| (1..=5).contains(&restarts)), "{status:#}");
    assert!(mount.log().contains("panic"), "{}", mount.log());
}

/// Before Linux 6.9: what is in flight may be an error, the mount and its open files live.
fn a_kernel_without_resend_keeps_the_mount(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &[("KITFS_TEST_NO_RESEND", OsStr::new("1"))]).expect("a mount");
    let gate = registry.hold(&kit.layer("data").digest);
    let path = mount.path("model/model.safetensors");
    let held = within(LIMIT, "an open", move || File::open(path).expect("open"));
    let mut waiting = Running::start(Command::new("cat").arg(mount.path("data/shard-0/003.txt")));
    await_blocked(&mut waiting);
    mount.await_other_worker(mount.kill_worker());
    let right = kit.tree.content("model/model.safetensors").to_vec();
    within(LIMIT, "a held file", move || {
        let mut buffer = vec![0; right.len()];
        held.read_exact_at(&mut buffer, 0).expect("pread");
        assert!(buffer == right);
    });
    gate.open();
    let output = waiting.wait(LIMIT);
    assert!(output.status.success() || output.stderr.contains("abort"), "{output:?}");
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn a_killed_supervisor_ends_the_mount_cleanly(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    let path = mount.path("model/model.safetensors");
    let held = within(LIMIT, "an open", move || File::open(path).expect("open"));
    let supervisor = mount.supervisor_pid();
    signal_process(supervisor, Signal::KILL);
    assert!(await_end(supervisor, LIMIT));
    let right = kit.tree.content("model/model.safetensors").to_vec();
    within(LIMIT, "a file that was open", move || {
        let mut buffer = vec![0; right.len()];
        match held.read_exact_at(&mut buffer, 0) {
            Ok(()) => assert!(buffer == right),
            Err(error) => assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error())),
        }
    });
    after_the_death_of_a_supervisor(&host, &mount, &reference, &kit);
}

fn a_killed_supervisor_and_worker_are_cleaned_up(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let mount = host.mount(&reference);
    let (supervisor, worker) = (mount.supervisor_pid(), mount.worker_pid());
    for pid in [supervisor, worker] {
        signal_process(pid, Signal::KILL);
    }
    assert!(await_end(supervisor, LIMIT) && await_end(worker, LIMIT));
    let path = mount.path("model/config.json");
    let errno = within(LIMIT, "a read of a dead mount", move || read(&path)).expect_err("nobody serves");
    // Not connected any more, or cleaned up already.
    assert!([rustix::io::Errno::NOTCONN, rustix::io::Errno::NOENT].map(rustix::io::Errno::raw_os_error).contains(&errno), "{errno}");
    after_the_death_of_a_supervisor(&host, &mount, &reference, &kit);
}

/// `status` tells no tales, and the next mount at the same place works.
fn after_the_death_of_a_supervisor(host: &Host, mount: &Mount, reference: &str, kit: &Kit) {
    let status = mount.find_status();
    assert!(status.as_ref().is_none_or(|status| status["state"] != "serving"), "{status:#?}");
    run(&mut host.mount_command(reference, mount.point(), &["--prefetch", "none"]), LIMIT).ok();
    let (kind, _, _) = mount_entry(mount.point()).expect("a mount");
    assert_eq!(kind, "fuse.kitfs");
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    assert_eq!(mount.status()["state"], "serving");
    mount.umount().ok();
    assert!(!mount.is_mounted(), "one umount takes all of it down");
}
