//! Nobody waits for what another one waits for, every wait has an end, and can be killed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::{Running, await_blocked, is_blocked, python, run, sh, within};
use crate::common::registry::{Fault, Gate, Registry, Target, Times};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{MIB, bytes};

crate::in_both_modes!(
    a_stalled_layer_delays_nobody_else,
    every_writing_call_is_refused_at_once,
    a_waiting_process_can_be_killed_and_the_fetch_goes_on,
    a_caught_sigint_ends_the_wait,
    other_signals_do_not_end_a_wait,
    what_arrives_slowly_is_answered_exactly,
    what_a_placeholder_cannot_hide,
    a_refused_layer_is_an_error_at_once,
    a_broken_registry_is_an_error_and_is_tried_again,
    a_stall_for_ever_is_a_timeout,
    a_full_disk_is_an_error_and_is_tried_again,
    umount_does_not_wait_for_a_stalled_layer,
);

/// More than anything here takes that has nothing to wait for, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// With arrival of bytes: for what waits and then goes on.
const LIMIT: Duration = Duration::from_secs(60);

/// `d/slow` is a folder whose layer is held at the gate, `d/file.bin` a file whose layer is too; `d/fast` is not.
struct Stage {
    mount: Mount,
    registry: Registry,
    kit: Kit,
    folder: Gate,
    file: Gate,
}

impl Stage {
    fn new(mode: Mode) -> Self {
        let tree = Tree::new()
            .file("d/slow/part.bin", bytes(1, 2 * MIB))
            .file("d/slow/sub/small.txt", "small")
            .file_with_mode("d/file.bin", 0o755, [b"#!/bin/sh\necho ran\nexit 0\n".as_slice(), &bytes(2, MIB)].concat())
            .file("d/fast/part.bin", bytes(3, 2 * MIB));
        let kit = Kitfile::new("slow").dataset("d/slow").dataset("d/file.bin").dataset("d/fast").pack(&tree);
        let host = Host::new(mode);
        let registry = Registry::start();
        let reference = kit.serve(&registry, "acme/slow", "v1");
        let folder = registry.hold(&kit.layer("d/slow").digest);
        let file = registry.hold(&kit.layer("d/file.bin").digest);
        Self { mount: host.mount(&reference), registry, kit, folder, file }
    }

    fn point(&self) -> &Path {
        self.mount.point()
    }

    fn right(&self, name: &str) -> Vec<u8> {
        self.kit.tree.content(name).to_vec()
    }

    /// A program with a path in the mount as its last argument.
    fn start(&self, program: &[&str], name: &str) -> Running {
        Running::start(Command::new(program[0]).args(&program[1..]).arg(self.mount.path(name)))
    }
}

fn a_stalled_layer_delays_nobody_else(mode: Mode) {
    let stage = Stage::new(mode);
    let mut waiting = [stage.start(&["cat"], "d/slow/part.bin"), stage.start(&["stat"], "d/slow"), stage.start(&["ls"], "d/slow")];
    waiting.iter_mut().for_each(await_blocked);
    stage.folder.await_held(1);

    let (point, right) = (stage.point().to_owned(), stage.right("d/fast/part.bin"));
    within(AT_ONCE, "what does not need the stalled layer", move || {
        let mut names: Vec<_> =
            fs::read_dir(point.join("d")).expect("its parent").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["fast", "file.bin", "slow"]);
        assert!(fs::metadata(point.join("d/fast")).expect("a neighbour").is_dir());
        assert!(fs::metadata(point.join("d/none")).is_err());
        assert!(fs::create_dir(point.join("d/new")).is_err_and(|error| error.raw_os_error() == Some(Errno::ROFS.raw_os_error())));
        assert!(fs::create_dir(point.join("new")).is_err_and(|error| error.raw_os_error() == Some(Errno::ROFS.raw_os_error())));
        assert!(fs::read(point.join("d/fast/part.bin")).expect("another layer") == right);
    });
    assert!(waiting.iter_mut().all(Running::is_running));
    stage.folder.open();
    for process in waiting {
        process.wait(LIMIT).ok();
    }
    assert_eq!(stage.registry.sent(&stage.kit.layer("d/slow").digest), stage.kit.layer("d/slow").blob.len() as u64);
}

fn every_writing_call_is_refused_at_once(mode: Mode) {
    let stage = Stage::new(mode);
    let point = stage.point().to_owned();
    stage.folder.open();
    stage.file.open();
    within(LIMIT, "reading everything", {
        let (point, wanted) = (point.clone(), of_tree(&stage.kit.tree));
        move || assert_shows(&point, &wanted)
    });
    let script = r#"
import errno, os, sys
root = sys.argv[1]
file, folder, new = root + '/d/file.bin', root + '/d/slow', root + '/d/new'
calls = {
    'open for writing': lambda: os.open(file, os.O_WRONLY), 'open for both': lambda: os.open(file, os.O_RDWR),
    'truncate': lambda: os.truncate(file, 0), 'create': lambda: os.open(new, os.O_CREAT | os.O_WRONLY),
    'mkdir': lambda: os.mkdir(new), 'mknod': lambda: os.mknod(new), 'symlink': lambda: os.symlink('x', new),
    'link': lambda: os.link(file, new), 'unlink': lambda: os.unlink(file), 'rmdir': lambda: os.rmdir(folder),
    'rename': lambda: os.rename(file, new), 'chmod': lambda: os.chmod(file, 0o600), 'chown': lambda: os.chown(file, 1, 1),
    'utime': lambda: os.utime(file), 'setxattr': lambda: os.setxattr(file, 'user.x', b'1'),
    'removexattr': lambda: os.removexattr(file, 'user.kitfs.digest'), 'O_TMPFILE': lambda: os.open(folder, os.O_TMPFILE | os.O_WRONLY),
}
for name, call in calls.items():
    try:
        call()
        print(name, 'succeeded')
    except OSError as error:
        if error.errno != errno.EROFS: print(name, errno.errorcode[error.errno])
"#;
    let output = run(&mut python(script, &[point.as_os_str()]), AT_ONCE).ok();
    assert_eq!(output.stdout, "");
}

fn a_waiting_process_can_be_killed_and_the_fetch_goes_on(mode: Mode) {
    let stage = Stage::new(mode);
    let mut reader = stage.start(&["cat"], "d/slow/part.bin");
    await_blocked(&mut reader);
    let kinds: [&[&str]; 5] =
        [&["cat"], &["stat"], &["ls", "-l"], &["find"], &["python3", "-c", "import os, sys; os.open(sys.argv[1], os.O_DIRECTORY)"]];
    for (kind, signal) in kinds.iter().flat_map(|kind| [Signal::KILL, Signal::INT, Signal::TERM].map(|signal| (kind, signal))) {
        if kind[0] == "python3" && signal == Signal::INT {
            continue; // It catches SIGINT; another test is about that.
        }
        let name = if kind[0] == "cat" { "d/slow/part.bin" } else { "d/slow" };
        let mut process = stage.start(kind, name);
        await_blocked(&mut process);
        let start = Instant::now();
        process.signal(signal);
        let output = process.wait(Duration::from_secs(3));
        assert_eq!(output.signal(), Some(signal.as_raw()), "{kind:?}: {output:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "{kind:?} died {:?} after {signal:?}", start.elapsed());
    }
    assert!(reader.is_running());
    stage.folder.open();
    reader.wait(LIMIT).ok();
    let digest = &stage.kit.layer("d/slow").digest;
    assert_eq!(stage.registry.sent(digest), stage.kit.layer("d/slow").blob.len() as u64, "one fetch for all of them");
}

fn a_caught_sigint_ends_the_wait(mode: Mode) {
    let stage = Stage::new(mode);
    for call in ["os.stat(p)", "os.listdir(p)", "open(p + '/part.bin')"] {
        let mut process =
            Running::start(&mut python(&format!("import os, sys; p = sys.argv[1]; {call}"), &[stage.mount.path("d/slow").as_os_str()]));
        await_blocked(&mut process);
        process.signal(Signal::INT);
        let output = process.wait(Duration::from_secs(3));
        assert!(output.stderr.contains("KeyboardInterrupt"), "{call}: {output:?}");
    }
}

fn other_signals_do_not_end_a_wait(mode: Mode) {
    let stage = Stage::new(mode);
    let script = r#"
import os, signal, sys
for name in ('SIGALRM', 'SIGCHLD', 'SIGUSR1', 'SIGWINCH', 'SIGTERM', 'SIGHUP'): signal.signal(getattr(signal, name), lambda *_: None)
print(os.path.exists(sys.argv[1]), os.path.isdir(sys.argv[1]))
"#;
    // The first one stays at its gate until the second opens it.
    let mut first = None;
    for name in ["d/slow", "d/slow/part.bin", "d/file.bin"] {
        let mut process = Running::start(&mut python(script, &[stage.mount.path(name).as_os_str()]));
        await_blocked(&mut process);
        for round in 0..200 {
            for signal in [Signal::ALARM, Signal::CHILD, Signal::USR1, Signal::WINCH, Signal::TERM, Signal::HUP] {
                process.signal(signal);
            }
            if round % 50 == 0 {
                process.signal(Signal::STOP);
                process.signal(Signal::CONT);
            }
            // Long enough for the process to take them, short enough to be a storm.
            thread::sleep(Duration::from_millis(5));
        }
        assert!(process.is_running() && is_blocked(process.pid()), "{name}: a signal ended the wait: {}", process.said());
        let gate = if name == "d/file.bin" { &stage.file } else { &stage.folder };
        if name != "d/slow" {
            gate.open();
            assert_eq!(process.wait(LIMIT).ok().stdout, "True False\n", "{name}");
        } else {
            first = Some(process);
        }
    }
    assert_eq!(first.expect("started").wait(LIMIT).ok().stdout, "True True\n");
}

/// Each question on a mount that knows nothing yet, about a folder and about a file, asked before the layer comes.
fn what_arrives_slowly_is_answered_exactly(mode: Mode) {
    let ask = |name: &str, question: &[&str], answer: &str| {
        let stage = Stage::new(mode);
        let mut process = stage.start(question, name);
        await_blocked(&mut process);
        stage.folder.open();
        stage.file.open();
        let output = process.wait(LIMIT);
        assert_eq!(output.stdout.replace(&*stage.point().to_string_lossy(), ""), answer, "{question:?} of {name}: {output:?}");
    };
    let py = |body: &str| {
        format!("import os, sys\np = sys.argv[1]\ndef e(f):\n    try: return f()\n    except OSError as x: return x.strerror\n{body}")
    };
    let opens = py("print(e(lambda: os.close(os.open(p, os.O_DIRECTORY))), e(lambda: os.close(os.open(p, os.O_NOFOLLOW))))");
    let open = py("print(e(lambda: len(open(p, 'rb').read())))");
    let access = py("print(os.access(p, os.R_OK), os.access(p, os.W_OK), os.path.isfile(p), os.path.isdir(p))");
    let scan = py(
        "print(sorted((i.name, i.is_dir(), i.is_file(), i.stat().st_size if i.is_file() else 0) for i in os.scandir(os.path.dirname(p)) if i.name != 'fast'))",
    );
    let size = MIB + 26;
    let scanned = format!("[('file.bin', False, True, {size}), ('slow', True, False, 0)]\n");

    ask("d/slow", &["stat", "-c", "%F %a"], "directory 755\n");
    ask("d/file.bin", &["stat", "-c", "%F %a %s"], &format!("regular file 755 {size}\n"));
    ask(
        "d/slow",
        &["bash", "-c", "find \"$0\" -printf '%y %P %s\\n' | grep -v '^d' | sort"],
        &format!("f part.bin {}\nf sub/small.txt 5\n", 2 * MIB),
    );
    ask("d/file.bin", &["find", "-H"], "/d/file.bin\n");
    ask("d/slow", &["python3", "-c", &opens], "None None\n");
    ask("d/file.bin", &["python3", "-c", &opens], "Not a directory None\n");
    ask("d/slow", &["python3", "-c", &open], "Is a directory\n");
    ask("d/file.bin", &["python3", "-c", &open], &format!("{size}\n"));
    ask("d/slow", &["python3", "-c", &access], "True False False True\n");
    ask("d/file.bin", &["python3", "-c", &access], "True False True False\n");
    ask("d/slow", &["python3", "-c", &scan], &scanned);
    ask("d/file.bin", &["python3", "-c", &scan], &scanned);
    let copy = "d=$(mktemp -d) && cp -r \"$0\" \"$d/copy\" && cd \"$d\" && find copy -type f | sort && rm -r \"$d\"";
    ask("d/slow", &["bash", "-c", copy], "copy/part.bin\ncopy/sub/small.txt\n");
    ask("d/file.bin", &["bash", "-c", copy], "copy\n");
    ask("d", &["bash", "-c", copy], "copy/fast/part.bin\ncopy/file.bin\ncopy/slow/part.bin\ncopy/slow/sub/small.txt\n");
}

/// Until the layer of a file has come once: what README says of cold names, no more and no less.
fn what_a_placeholder_cannot_hide(mode: Mode) {
    let cold = |question: &dyn Fn(&Stage, &Path)| {
        let stage = Stage::new(mode);
        let path = stage.mount.path("d/file.bin");
        question(&stage, &path);
        stage.file.open();
        let right = stage.right("d/file.bin");
        within(LIMIT, "a read", move || assert_eq!(read(&path), Ok(right)));
    };
    // execve does not ask again: the name is a folder as far as it knows.
    cold(&|_, path| {
        let (path, start) = (path.to_owned(), Instant::now());
        let error = within(LIMIT, "execve", move || Command::new(path).spawn().expect_err("a cold file"));
        assert_eq!(error.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
        assert!(start.elapsed() < AT_ONCE);
    });
    // Opening for writing says what it says of folders.
    cold(&|_, path| {
        let path = path.to_owned();
        let error = within(LIMIT, "open", move || fs::OpenOptions::new().write(true).open(path).expect_err("read-only"));
        assert!([Errno::ISDIR, Errno::ROFS].map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error()), "{error}");
    });
    // O_PATH holds the placeholder, which proves to be a file.
    cold(&|stage, path| {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).expect("a name");
        stage.file.open();
        let error = within(LIMIT, "fstat", move || file.metadata().map(|metadata| metadata.is_dir()));
        assert!(error.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::STALE.raw_os_error())), "{error:?}");
    });
    // AT_STATX_DONT_SYNC takes what the kernel has.
    cold(&|_, path| {
        let path = path.to_owned();
        let flags = rustix::fs::AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC as u32);
        let stat = within(LIMIT, "statx", move || {
            rustix::fs::statx(rustix::fs::CWD, &path, flags, rustix::fs::StatxFlags::TYPE).expect("known to the kernel")
        });
        assert_eq!(u32::from(stat.stx_mode) & libc::S_IFMT, libc::S_IFDIR);
    });
    // A bind mount of a cold name pins the placeholder: never wrong bytes, but an error until it is made again.
    cold(&|stage, path| {
        let target = stage.mount.host().folder("bind");
        sh(&format!("mount --bind {} {}", path.display(), target.display()), LIMIT).ok();
        stage.file.open();
        let bound = target.clone();
        let seen = within(LIMIT, "the bind mount", move || fs::read_dir(bound).map(|_| ()));
        sh(&format!("umount -l {}", target.display()), LIMIT).ok();
        assert!(seen.is_err(), "a file cannot be listed");
    });
    // What is mounted on top of a cold name goes when the name proves to be a file: the kernel drops the placeholder, and what stands on it.
    cold(&|stage, path| {
        let mut waiting = stage.start(&["stat", "-c", "%F"], "d/file.bin");
        await_blocked(&mut waiting);
        let top = path.to_owned();
        within(LIMIT, "a mount", move || {
            rustix::mount::mount("tmpfs", &top, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .expect("on a folder, as far as anybody knows");
        });
        let on_top = || fs::read_to_string("/proc/self/mountinfo").expect("mounts").contains(&format!(" {} ", path.display()));
        assert!(on_top());
        stage.file.open();
        assert_eq!(waiting.wait(LIMIT).stdout.trim(), "regular file");
        assert!(!on_top(), "it covers a file now");
    });
}

fn a_refused_layer_is_an_error_at_once(mode: Mode) {
    for status in [404, 403, 401] {
        let stage = Stage::new(mode);
        let digest = stage.kit.layer("d/slow").digest.clone();
        stage.registry.mend();
        stage.registry.fault(Target::Ask(digest.clone()), Times::Always, Fault::status(status));
        let path = stage.mount.path("d/slow/part.bin");
        let errno = within(AT_ONCE, "a refused layer", move || read(&path));
        assert_eq!(errno, Err(Errno::IO.raw_os_error()), "{status}");
        let layer = stage.mount.layer(&digest);
        assert_eq!(layer["state"], "failed", "{layer:#}");
        let error = layer["error"].as_str().expect("a reason");
        assert!(!error.contains('\u{1b}') && error.contains("127.0.0.1"), "{error}");
        assert!(stage.registry.asked(&digest) <= 2, "{status} is not worth a retry: {}", stage.registry.asked(&digest));
    }
}

fn a_broken_registry_is_an_error_and_is_tried_again(mode: Mode) {
    let stage = Stage::new(mode);
    stage.registry.mend();
    let digest = stage.kit.layer("d/slow").digest.clone();
    stage.registry.fault(Target::Content(digest.clone()), Times::Always, Fault::status(503));
    let path = stage.mount.path("d/slow/part.bin");
    let errno = within(Duration::from_secs(80), "an open while the registry is down", {
        let path = path.clone();
        move || read(&path)
    });
    assert_eq!(errno, Err(Errno::IO.raw_os_error()));
    assert!(stage.registry.asked(&digest) >= 3, "5xx is worth a retry");
    let fast = stage.mount.path("d/fast/part.bin");
    let right = stage.right("d/fast/part.bin");
    within(LIMIT, "another layer", move || assert_eq!(read(&fast), Ok(right)));
    assert!(stage.mount.layer(&digest)["retry_at"].is_string());
    stage.registry.mend();
    // The back-off of 30 s is the wait that is tested here.
    let right = stage.right("d/slow/part.bin");
    within(Duration::from_secs(75), "the next try", move || {
        while read(&path) != Ok(right.clone()) {
            thread::sleep(Duration::from_millis(500));
        }
    });
}

fn a_stall_for_ever_is_a_timeout(mode: Mode) {
    let stage = Stage::new(mode);
    let slow = stage.mount.path("d/slow/part.bin");
    let file = stage.mount.path("d/file.bin");
    // 75 s after the last byte, and what a busy machine adds.
    let waiting = [slow, file].map(|path| thread::spawn(move || within(Duration::from_secs(100), "a stalled open", move || read(&path))));
    for waiting in waiting {
        assert_eq!(waiting.join().expect("a bounded wait"), Err(Errno::TIMEDOUT.raw_os_error()));
    }
}

fn a_full_disk_is_an_error_and_is_tried_again(mode: Mode) {
    let host = Host::new(mode);
    let registry = Registry::start();
    let tree = Tree::new().file("big/part.bin", bytes(1, 24 * MIB)).file("small/part.bin", bytes(2, 10_000));
    let kit = Kitfile::new("full").dataset("big").dataset("small").pack(&tree);
    let reference = kit.serve(&registry, "acme/full", "v1");
    fs::create_dir(host.cache()).expect("a folder");
    let cache = host.cache();
    sh(&format!("mount -t tmpfs -o size=16m,mode=700 kitfs-test {}", cache.display()), LIMIT).ok();
    let _guard = Unmount(&cache);
    let mount = host.mount(&reference);
    let path = mount.path("big/part.bin");
    let full = within(LIMIT, "an open on a full disk", {
        let path = path.clone();
        move || read(&path)
    });
    assert_eq!(full, Err(Errno::NOSPC.raw_os_error()));
    let layer = kit.layer("big").stored_name();
    assert!(!cache.join("v1/layers").join(layer).exists(), "nothing half-made is visible");
    assert_eq!(read(&mount.path("small/part.bin")).as_deref(), Ok(kit.tree.content("small/part.bin")));
    sh(&format!("mount -o remount,size=256m {}", cache.display()), LIMIT).ok();
    let right = kit.tree.content("big/part.bin").to_vec();
    within(Duration::from_secs(20), "the next try", move || {
        while read(&path) != Ok(right.clone()) {
            thread::sleep(Duration::from_millis(200));
        }
    });
    mount.umount().ok();
    host.await_quiet(LIMIT).expect("an unmounted host is quiet");
}

/// Takes a filesystem down that the test has put somewhere.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn umount_does_not_wait_for_a_stalled_layer(mode: Mode) {
    type End = fn(&Stage);
    let ends: [(&str, End); 3] = [
        ("kitfs umount", |stage| drop(stage.mount.umount().ok())),
        ("kitfs umount --lazy", |stage| {
            let arguments = [OsStr::new("umount"), OsStr::new("--lazy"), stage.point().as_os_str()];
            drop(stage.mount.host().kitfs(&arguments).ok());
        }),
        ("SIGTERM", |stage| {
            let supervisor = stage.mount.supervisor_pid();
            crate::common::process::signal_process(supervisor, Signal::TERM);
            assert!(crate::common::process::await_end(supervisor, AT_ONCE), "SIGTERM detaches within 5 s");
        }),
    ];
    for (name, end) in ends {
        let stage = Stage::new(mode);
        let mut waiting = [stage.start(&["cat"], "d/slow/part.bin"), stage.start(&["cat"], "d/file.bin")];
        waiting.iter_mut().for_each(await_blocked);
        let start = Instant::now();
        end(&stage);
        assert!(start.elapsed() < AT_ONCE, "{name} took {:?}", start.elapsed());
        assert!(!stage.mount.is_mounted(), "{name}");
        for process in waiting {
            let output = process.wait(AT_ONCE);
            assert!(output.code() == 1 && output.stderr.contains("No such device"), "{name}: {output:?}");
        }
        stage.mount.host().await_quiet(AT_ONCE).unwrap_or_else(|left| panic!("{name} left {left:?} behind"));
    }
}

#[test]
fn the_fetch_of_a_killed_reader_is_not_thrown_away() {
    let stage = Stage::new(Mode::Passthrough);
    let mut only = stage.start(&["cat"], "d/slow/part.bin");
    await_blocked(&mut only);
    // Killed any earlier, it would take its request back before a worker has seen it.
    stage.folder.await_held(1);
    only.signal(Signal::KILL);
    only.wait(Duration::from_secs(3));
    stage.folder.open();
    stage.mount.await_layer(&stage.kit.layer("d/slow").digest, "cached");
    let ino = fs::metadata(stage.mount.path("d/slow/part.bin")).expect("known").ino();
    assert_ne!(ino, 0);
}
