//! A cache whose filesystem is full, read-only, failing or out of descriptors: a reader hears what it is, nothing else is harmed, and when the cause is gone
//! the same mount goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::common::disk::Disk;
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kitfile, Tree};
use crate::common::process::{signal_process, within};
use crate::common::registry::Registry;
use crate::common::shown::read;
use crate::kits::{MIB, bytes, parts};

/// Longer than any error may take to come, and any wait after it.
const LIMIT: Duration = Duration::from_secs(60);

/// Reads a file of a mount, which must not take for ever.
pub fn try_read(mount: &Mount, name: &str) -> Result<Vec<u8>, i32> {
    let path = mount.path(name);
    within(LIMIT, "reading", move || read(&path))
}

/// Reads a file once it can be read, which must be soon; what it hears until then is the same errno.
fn read_at_last(mount: &Mount, name: &str, errno: i32) -> Vec<u8> {
    let until = Instant::now() + LIMIT;
    loop {
        match try_read(mount, name) {
            Ok(content) => return content,
            Err(error) => assert_eq!(error, errno, "{name}\n{}", mount.log()),
        }
        assert!(Instant::now() < until, "{name} does not come back\n{}", mount.log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub fn restarts(mount: &Mount) -> u64 {
    mount.status()["restarts"].as_u64().expect("a number")
}

/// Nothing that was begun is left, and the cache is whole.
pub fn assert_clean(host: &Host) {
    host.kitfs(&["cache", "prune"]).ok();
    for place in ["ingest", "trash"] {
        let left: Vec<_> =
            fs::read_dir(host.cache().join("v1").join(place)).expect("there").map(|entry| entry.expect("an entry").path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
    host.kitfs(&["verify", "--all"]).ok();
}

/// What befalls a disk, what a reader hears of a layer that would have to be stored there, and what `kitfs pull` says and hints at.
struct Trouble {
    begins: fn(&Disk),
    ends: fn(&Disk),
    errno: i32,
    said: &'static [&'static str],
    hint: &'static str,
}

fn outlives(mode: Mode, trouble: &Trouble) {
    let host = Host::new(mode);
    // Enough inodes for a cache, and not so many that taking all the rest takes long.
    let disk = Disk::ext4(host.cache(), 48 << 20, "512");
    let registry = Registry::start();
    let kit = parts(&["here", "there"], 6 * MIB);
    let reference = kit.serve(&registry, "acme/kit", "v1");
    // On disk for good before anything happens, and not to be evicted.
    let half = parts(&["here"], 6 * MIB).serve(&registry, "acme/half", "v1");
    host.kitfs(&["pull", "--plain-http", "--pin", &half]).ok();
    let mount = host.mount(&reference);
    let content = |name: &str| kit.tree.content(name).to_vec();
    let (here, there) = ("here/part.bin", "there/part.bin");
    assert!(try_read(&mount, here) == Ok(content(here)));
    let supervisor = mount.supervisor_pid();

    (trouble.begins)(&disk);
    assert_eq!(try_read(&mount, there).map(|_| "read"), Err(trouble.errno), "{}", mount.log());
    // Who looks for the reason finds it.
    let digest = &kit.layer("there").digest;
    let cause = std::io::Error::from_raw_os_error(trouble.errno).to_string();
    let layer = mount.layer(digest);
    let told = layer["error"].as_str().unwrap_or_default();
    for part in trouble.said {
        assert!(told.contains(part), "{told}: no {part} ({cause})");
    }
    assert!(mount.log().contains(told), "{told}\n{}", mount.log());
    let pull = host.kitfs(&["pull", "--plain-http", &reference]);
    assert!(pull.code() == 1 && pull.stderr.contains(trouble.hint), "{pull:#?}");
    // What is here is served, by the next worker as well.
    assert!(try_read(&mount, here) == Ok(content(here)));
    let killed = mount.kill_worker();
    mount.await_other_worker(killed);
    assert!(try_read(&mount, here) == Ok(content(here)), "{}", mount.log());
    assert!(try_read(&mount, there) == Err(trouble.errno), "{}", mount.log());

    (trouble.ends)(&disk);
    assert!(read_at_last(&mount, there, trouble.errno) == content(there));
    assert!(try_read(&mount, here) == Ok(content(here)));
    assert_eq!((mount.supervisor_pid(), restarts(&mount)), (supervisor, 1));
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    mount.umount().ok();
    assert_clean(&host);
}

#[test]
fn a_mount_outlives_a_full_disk() {
    let said = &["has room for", "No space left"];
    outlives(Mode::Passthrough, &Trouble { begins: Disk::fill, ends: Disk::free, errno: libc::ENOSPC, said, hint: "kitfs cache prune" });
}

#[test]
fn a_mount_outlives_a_disk_without_inodes() {
    let said = &["/cache/v1/", "No space left"];
    outlives(Mode::Cached, &Trouble { begins: Disk::take_inodes, ends: Disk::free, errno: libc::ENOSPC, said, hint: "df -i" });
}

#[test]
fn a_mount_outlives_a_read_only_disk() {
    let said = &["/cache/v1/", "Read-only file system"];
    let begins = |disk: &Disk| disk.remount(true);
    let ends = |disk: &Disk| disk.remount(false);
    outlives(Mode::Passthrough, &Trouble { begins, ends, errno: libc::EIO, said, hint: "mounted read-only" });
}

#[test]
fn a_mount_outlives_a_failing_disk() {
    let said = &["/cache/v1/"];
    outlives(Mode::Cached, &Trouble { begins: Disk::fail, ends: Disk::heal, errno: libc::EIO, said, hint: "because" });
}

#[test]
fn a_mount_outlives_a_worker_without_descriptors() {
    let host = Host::new(Mode::Passthrough);
    let registry = Registry::start();
    let names: Vec<String> = (0..24).map(|number| format!("part-{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let kit = parts(&names, 100_000);
    let mount = host.mount(&kit.serve(&registry, "acme/kit", "v1"));
    let worker = mount.worker_pid();
    let pid = Pid::from_raw(worker).expect("a pid");
    let maximum = getrlimit(Resource::Nofile).maximum;
    let mut errors = 0;
    // With none to spare, then with one, and so on: each step on the way to a file is the one that gets none.
    for (spare, name) in names.iter().enumerate() {
        let file = format!("{name}/part.bin");
        let highest =
            fs::read_dir(format!("/proc/{worker}/fd")).expect("root").filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok()).max();
        let limit: u64 = highest.unwrap_or(0) + 1 + spare as u64;
        let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum }).expect("root");
        match try_read(&mount, &file) {
            Ok(content) => assert!(content == kit.tree.content(&file)),
            Err(errno) => {
                assert_eq!(errno, libc::EMFILE, "{file}\n{}", mount.log());
                errors += 1;
            }
        }
        prlimit(Some(pid), Resource::Nofile, before).expect("root");
        assert!(read_at_last(&mount, &file, libc::EMFILE) == kit.tree.content(&file));
    }
    // How many there are depends on what else the worker has open at the moment.
    assert!(errors > 2, "{errors} steps needed a descriptor");
    assert_eq!((mount.worker_pid(), restarts(&mount)), (worker, 0));
    mount.umount().ok();
    assert_clean(&host);
}

/// The layers that somebody has open, by the names of their files in the cache.
fn in_use(host: &Host) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&host.kitfs(&["cache", "ls", "--json"]).ok().stdout).expect("JSON");
    let layers = listed["layers"].as_array().expect("layers").iter().filter(|layer| layer["in_use"] == true);
    layers.map(|layer| layer["layer"].as_str().expect("a name").to_owned()).collect()
}

/// A file of a mount that is open, and none of whose bytes the kernel has in memory.
fn held(mount: &Mount, name: &str) -> File {
    let file = File::open(mount.path(name)).expect("served");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("supported");
    file
}

/// Reads all of an open file.
fn read_held(file: &File) -> Result<Vec<u8>, i32> {
    use std::os::unix::fs::FileExt as _;
    let file = file.try_clone().expect("a descriptor");
    within(LIMIT, "reading what is open", move || {
        let mut content = vec![0xa5; file.metadata().expect("open").len() as usize];
        file.read_exact_at(&mut content, 0).map(|()| content).map_err(|error| error.raw_os_error().unwrap_or(0))
    })
}

/// A worker that had to start while the cache was not there failed, and so did each after it: readers waited until somebody put it back.
fn outlives_the_loss_of_its_cache(host: &Host, loses: impl FnOnce(), gains: impl FnOnce()) {
    let registry = Registry::start();
    let kit = parts(&["here", "held", "left", "there"], MIB + 1000);
    let mount = host.mount_with(&kit.serve(&registry, "acme/kit", "v1"), &["--prefetch", "none"]);
    let content = |name: &str| kit.tree.content(name).to_vec();
    let (here, there) = ("here/part.bin", "there/part.bin");
    assert!(try_read(&mount, here) == Ok(content(here)));
    let [kept, twice, left] = ["held/part.bin", "held/part.bin", "left/part.bin"].map(|name| held(&mount, name));
    let folder = File::open(mount.path("here")).expect("a folder");
    let supervisor = mount.supervisor_pid();

    loses();
    let killed = mount.kill_worker();
    // It is told, not waited for: of what is here, of what is not, and of names.
    assert_eq!(try_read(&mount, here), Err(libc::EIO), "{}", mount.log());
    assert_eq!(try_read(&mount, there), Err(libc::EIO), "{}", mount.log());
    let unasked = within(LIMIT, "a name", move || rustix::fs::statat(folder, "never asked for", rustix::fs::AtFlags::empty()));
    assert_eq!(unasked.map(|_| "there"), Err(rustix::io::Errno::IO));
    let folder = mount.path("there");
    let listed = within(LIMIT, "listing", move || fs::read_dir(folder).map(|names| names.count()));
    assert_eq!(listed.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)));
    assert!(try_read(&mount, "Kitfile").is_ok(), "what is no cache's affair is answered");
    // What the kernel reads by itself goes on, and nothing else looks like an end or like zeros.
    let expected = if host.mode() == Mode::Passthrough { Ok(content("held/part.bin")) } else { Err(libc::EIO) };
    assert!(read_held(&kept) == expected);
    // Closed while nobody has the cache: it counts all the same.
    drop((twice, left));
    // Whoever looks for the reason finds it.
    let worker = mount.await_other_worker(killed);
    let layer = mount.layer(&kit.layer("here").digest);
    let told = layer["error"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains("/cache") && told.contains("No such file"), "{layer:#}");
    assert_eq!((&layer["state"], &layer["class"]), (&"failed".into(), &"disk".into()), "{layer:#}");
    let status = host.kitfs(&["status"]).ok().stdout;
    assert!(status.contains("mount its filesystem or move it back"), "{status}");
    assert!(!host.cache().join("v1").exists(), "nothing is stored in its place");

    gains();
    assert!(read_at_last(&mount, here, libc::EIO) == content(here));
    assert!(mount.await_other_worker(worker) != killed);
    assert!(read_held(&kept) == Ok(content("held/part.bin")));
    assert!(try_read(&mount, there) == Ok(content(there)), "{}", mount.log());
    drop(kept);
    let until = Instant::now() + LIMIT;
    while !in_use(host).is_empty() {
        assert!(Instant::now() < until, "{:?} are held for nobody\n{}", in_use(host), mount.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!((mount.supervisor_pid(), restarts(&mount)), (supervisor, 2));
    let log = mount.log();
    for (line, times) in [(told.as_str(), 1), ("the cache can be opened again", 1), ("worker ended", 2), ("WARN", 2), ("cannot serve", 0)] {
        assert_eq!(log.matches(line).count(), times, "{line}\n{log}");
    }
    mount.umount().ok();
    assert_clean(host);
}

fn outlives_a_cache_that_is_moved_away(mode: Mode) {
    let host = Host::new(mode);
    let away = host.path("away");
    let (cache, back) = (host.cache(), away.clone());
    outlives_the_loss_of_its_cache(
        &host,
        || fs::rename(&cache, &away).expect("one disk"),
        || fs::rename(&back, &cache).expect("nothing is in its place"),
    );
}

#[test]
fn a_mount_outlives_a_cache_that_is_moved_away_passthrough() {
    outlives_a_cache_that_is_moved_away(Mode::Passthrough);
}

#[test]
fn a_mount_outlives_a_cache_that_is_moved_away_cached() {
    outlives_a_cache_that_is_moved_away(Mode::Cached);
}

#[test]
fn a_mount_outlives_a_cache_that_is_unmounted() {
    let host = Host::new(Mode::Cached);
    let folder = host.folder("disk");
    let disk = Disk::of_folder(host.cache(), &folder);
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("ours");
    outlives_the_loss_of_its_cache(&host, || disk.detach(), || disk.attach(&folder));
}

/// Processes that go on when this is dropped.
struct Stopped([i32; 2]);

impl Stopped {
    fn all(processes: [i32; 2]) -> Self {
        processes.iter().for_each(|&pid| signal_process(pid, Signal::STOP));
        Self(processes)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|&pid| signal_process(pid, Signal::CONT));
    }
}

/// Asking a dead disk can be a wait that nothing ends. Here what does not answer is another mount, whose processes are stopped.
#[test]
fn a_cache_that_does_not_answer_is_an_error() {
    let host = Host::new(Mode::Cached);
    let registry = Registry::start();
    let kit = parts(&["here"], MIB);
    let reference = kit.serve(&registry, "acme/kit", "v1");
    let (mount, dead) = (host.mount(&reference), host.mount(&reference));
    assert!(try_read(&mount, "here/part.bin") == Ok(kit.tree.content("here/part.bin").to_vec()));
    let away = host.path("away");
    fs::rename(host.cache(), &away).expect("one disk");
    std::os::unix::fs::symlink(dead.path("nobody/asked/before"), host.cache()).expect("room");
    let stopped = Stopped::all([dead.supervisor_pid(), dead.worker_pid()]);
    let killed = mount.kill_worker();
    let heard = try_read(&mount, "here/part.bin");
    drop(stopped);
    assert_eq!(heard, Err(libc::EIO), "{}", mount.log());
    mount.await_other_worker(killed);
    assert!(mount.log().contains("timed out"), "{}", mount.log());
    mount.umount().ok();
}

/// Has the kernel drop what it has in memory of the index that a worker has mapped, from `from` bytes on.
fn drop_mapped_index(worker: i32, layer: &str, from: usize) {
    let maps = fs::read_to_string(format!("/proc/{worker}/maps")).expect("root");
    let of_index = maps.lines().filter(|line| line.contains("/v1/index/") && line.contains(layer));
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(worker).expect("a pid"), rustix::process::PidfdFlags::empty()).expect("it runs");
    let mut found = 0;
    for line in of_index {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).expect("hex"));
        let part = libc::iovec { iov_base: (start + from) as *mut libc::c_void, iov_len: end - start - from };
        use std::os::fd::AsRawFd as _;
        // SAFETY: the range is the other process's, and what is dropped comes back from the file.
        let advised = unsafe { libc::syscall(libc::SYS_process_madvise, pidfd.as_raw_fd(), &raw const part, 1, libc::MADV_PAGEOUT, 0) };
        assert!(advised > 0, "{}", std::io::Error::last_os_error());
        found += 1;
    }
    assert!(found > 0, "{layer} is not mapped: {maps}");
}

/// What the kernel has in memory of a file that nobody has mapped is dropped.
fn drop_cached(path: &Path) {
    let file = File::open(path).expect("there");
    rustix::fs::fsync(&file).expect("whole");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("supported");
}

#[test]
fn an_index_on_a_failing_disk_is_an_error_and_kills_no_worker_twice() {
    let host = Host::new(Mode::Passthrough);
    let disk = Disk::ext4(host.cache(), 64 << 20, "1024");
    let registry = Registry::start();
    let mut tree = Tree::new().file("other/part.bin", bytes(1, MIB));
    let name = |folder: usize, file: usize| format!("many/folder-{folder:03}/file-with-a-longer-name-{file:03}.txt");
    for (folder, file) in (0..150).flat_map(|folder| (0..100).map(move |file| (folder, file))) {
        tree = tree.file(&name(folder, file), format!("{folder}/{file}"));
    }
    let kit = Kitfile::new("many").dataset("many").dataset("other").pack(&tree);
    let reference = kit.serve(&registry, "acme/kit", "v1");
    host.kitfs(&["pull", "--plain-http", &reference]).ok();
    let layer = kit.layer("many").digest.trim_start_matches("sha256:").to_owned();
    let files = fs::read_dir(host.cache().join("v1/index")).expect("there").map(|entry| entry.expect("an entry").path());
    let index = files.into_iter().find(|path| path.to_string_lossy().contains(&layer)).expect("an index");
    assert!(fs::metadata(&index).expect("there").len() > 1 << 20, "it has many blocks");
    drop_cached(&index);
    let mount = host.mount(&reference);
    let worker = mount.worker_pid();
    assert!(try_read(&mount, "other/part.bin") == Ok(bytes(1, MIB)));
    assert!(try_read(&mount, &name(0, 0)) == Ok(b"0/0".to_vec()));

    // Names that were read when it was mounted are far behind its header. Whoever touches them again kills a worker, but not the next one.
    drop_mapped_index(worker, &layer, 256 << 10);
    disk.fail();
    for folder in (1..150).rev().step_by(4) {
        let errno = try_read(&mount, &name(folder, 99)).expect_err("the disk fails");
        assert_eq!(errno, libc::EIO, "{}", mount.log());
    }
    assert_eq!(restarts(&mount), 1, "{}", mount.log());
    let log = mount.log();
    assert!(log.contains("signal 7") && log.contains("cannot read the index"), "{log}");
    assert!(try_read(&mount, "other/part.bin") == Ok(bytes(1, MIB)), "others are served");

    disk.heal();
    for (folder, file) in [(0, 0), (1, 5), (77, 50), (149, 99)] {
        assert!(read_at_last(&mount, &name(folder, file), libc::EIO) == format!("{folder}/{file}").into_bytes());
    }
    assert_eq!(restarts(&mount), 1);
    mount.umount().ok();
    assert_clean(&host);
}
