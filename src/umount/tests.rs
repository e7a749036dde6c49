use super::*;
use crate::fixtures;
use crate::run::Alive;
use rustix::mount::UnmountFlags;
use std::fs::File;
use std::sync::mpsc;

fn run_dir() -> (tempfile::TempDir, RunDir) {
    let home = tempfile::tempdir().expect("folder");
    let run = RunDir::open(&home.path().join("kitfs")).expect("run directory");
    (home, run)
}

fn say(mount: &MountDir, line: &[u8]) -> io::Result<Response> {
    let stream = connect(&mount.socket_address())?;
    (&mut &stream).write_all(line)?;
    read_line(&stream, UMOUNT_ANSWER_LIMIT)
}

#[test]
fn a_process_goes_on_unless_it_is_stopped_or_gone() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
    let pid = rustix::process::Pid::from_child(&child);
    assert!(goes_on(child.id()) && goes_on(std::process::id()));
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("ours");
    while goes_on(child.id()) {
        thread::yield_now();
    }
    child.kill().expect("ours");
    let id = child.id();
    child.wait().expect("ours");
    assert!(!goes_on(id));
}

#[test]
fn a_request_is_answered_and_nonsense_is_not() {
    let (_home, run) = run_dir();
    let (mount, _alive) = run.create("1").expect("made");
    let (told, asked) = mpsc::channel();
    let handler = move |request| {
        told.send(request).expect("heard");
        Response::Failed { message: "no".to_owned() }
    };
    serve(listen(&mount).expect("socket"), handler).expect("thread");
    let answer = say(&mount, b"{\"request\":\"umount\",\"lazy\":true}\n").expect("answered");
    assert_eq!(answer, Response::Failed { message: "no".to_owned() });
    assert_eq!(asked.try_recv(), Ok(Request::Umount { lazy: true }));
    let long = [vec![b' '; CONTROL_LINE_BYTES as usize + 1], b"\n".to_vec()].concat();
    for nonsense in [b"{}\n".as_slice(), b"\n", b"\xff\n", &long] {
        assert!(say(&mount, nonsense).is_err());
    }
    assert!(say(&mount, b"{\"request\":\"umount\",\"lazy\":false}\n").is_ok(), "it goes on");
    assert_eq!(asked.try_iter().count(), 1);
    // One who says nothing does not keep others waiting for long.
    let _silent = connect(&mount.socket_address()).expect("connected");
    assert!(say(&mount, b"{\"request\":\"umount\",\"lazy\":false}\n").is_ok());
}

#[test]
fn a_request_that_was_not_heard_is_made_again() {
    let (_home, run) = run_dir();
    let (mount, _alive) = run.create("1").expect("made");
    let listener = listen(&mount).expect("socket");
    // Nobody waits for its end, so that it cannot hold up a test that fails.
    thread::spawn(move || {
        // As a supervisor does that waited for the line for too long.
        for _ in 1..UNHEARD_REQUESTS_MAX {
            drop(listener.accept().expect("a connection"));
        }
        let (stream, _) = listener.accept().expect("a connection");
        answer(stream, &|_| Response::Busy).expect("answered");
    });
    let answer = request(&mount.socket_address(), &Request::Umount { lazy: false }, std::process::id());
    assert_eq!(answer.expect("answered in the end"), Response::Busy);
}

#[test]
fn what_kitfs_did_not_mount_is_left_alone() {
    let (home, run) = run_dir();
    for path in [Path::new("/proc"), home.path(), Path::new("/nonexistent/kit"), Path::new("/proc/../proc/")] {
        let error = umount(path, true, &run).expect_err("none of ours");
        assert!(matches!(error, UmountError::NotMounted { .. }), "{error}");
        assert!(error.hint().is_some());
    }
}

fn record(mount: &MountDir, entry: &MountEntry) -> MountRecord {
    MountRecord {
        id: mount.id().to_owned(),
        mountpoint: entry.mountpoint.clone(),
        supervisor_pid: std::process::id(),
        device: entry.device,
        mount_id: entry.mount_id,
        log: mount.log_path(),
        ..crate::fixtures::mount_record()
    }
}

/// What is on record of a mount that looks like one of kitfs, and that nobody serves.
struct Pretended {
    // Before the folder: without its device the mount answers, and can be passed over, when a test fails.
    device: Option<File>,
    home: tempfile::TempDir,
    run: RunDir,
    place: PathBuf,
    entry: MountEntry,
    mount: MountDir,
    alive: Option<Alive>,
}

impl Pretended {
    fn new(name: &str) -> Self {
        let (home, run) = run_dir();
        let place = home.path().canonicalize().expect("path").join(name);
        std::fs::create_dir(&place).expect("folder");
        let device = Some(fixtures::pretended_mount(&place));
        let entry = mountinfo::at(&place).expect("readable").expect("mounted");
        let (mount, alive) = run.create("1").expect("made");
        mount.write_record(&record(&mount, &entry)).expect("written");
        Self { device, home, run, place, entry, mount, alive: Some(alive) }
    }

    /// Does what a supervisor would when it is asked to unmount.
    fn detach(&self) -> impl Fn(bool) -> Response + Send + 'static {
        let (at, id) = (self.place.clone(), self.entry.mount_id);
        move |lazy| match detach(&at, id, lazy).expect("no error") {
            Detached::Done => Response::Done,
            Detached::Busy => Response::Busy,
            Detached::NotOurs => Response::Failed { message: "not ours".to_owned() },
        }
    }

    fn is_gone(&self) -> bool {
        mountinfo::at(&self.place).expect("readable").is_none()
    }
}

#[test]
fn the_mount_of_a_dead_supervisor_is_cleaned_up_even_if_its_device_is_dead() {
    let mut dead = Pretended::new("a kit");
    drop((dead.device.take(), dead.alive.take()));
    while dead.mount.is_alive().expect("known") {
        thread::yield_now();
    }
    umount(&dead.place, false, &dead.run).expect("cleaned up");
    assert!(dead.is_gone());
    assert!(!dead.mount.path().exists());
    // Once more, without any record.
    drop(fixtures::pretended_mount(&dead.place));
    umount(&dead.home.path().join("./a kit/"), false, &dead.run).expect("taken down");
    assert!(dead.is_gone());
}

#[test]
fn a_supervisor_is_asked_and_a_busy_mount_names_its_holders() {
    let pretended = Pretended::new("kit");
    let detach = pretended.detach();
    serve(listen(&pretended.mount).expect("socket"), move |Request::Umount { lazy }| detach(lazy)).expect("thread");
    // Holds the mount without a request to its device.
    let held = rustix::fs::open(&pretended.place, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("held");
    match umount(&pretended.place, false, &pretended.run) {
        Err(UmountError::Busy { holders, mounts, .. }) => {
            assert!(
                holders.iter().any(|holder| holder.pid == std::process::id() && matches!(holder.holding, Holding::Descriptor(_))),
                "{holders:?}"
            );
            assert_eq!(mounts, Vec::<PathBuf>::new());
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    let remaining = umount_all(true, &pretended.run).expect("listed");
    assert!(matches!(remaining.as_slice(), [(path, Ok(_))] if *path == pretended.place), "{remaining:?}");
    assert!(pretended.is_gone());
    assert!(umount_all(false, &pretended.run).expect("listed").is_empty());
}

#[test]
fn a_mount_that_nobody_holds_any_more_is_asked_for_again() {
    let pretended = Pretended::new("kit");
    let (detach, asked) = (pretended.detach(), std::sync::atomic::AtomicU32::new(0));
    serve(listen(&pretended.mount).expect("socket"), move |Request::Umount { lazy }| {
        match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Response::Busy,
            _ => detach(lazy),
        }
    })
    .expect("thread");
    umount(&pretended.place, false, &pretended.run).expect("taken down");
    assert!(pretended.is_gone());
}

#[test]
fn a_supervisor_that_does_not_answer_is_named_and_passed_by_with_lazy() {
    let pretended = Pretended::new("kit");
    let error = umount(&pretended.place, false, &pretended.run).expect_err("nobody listens");
    assert!(matches!(error, UmountError::Unanswered { pid, .. } if pid == std::process::id()), "{error:?}");
    umount(&pretended.place, true, &pretended.run).expect("detached");
    assert!(pretended.is_gone());
    assert!(rustix::mount::unmount(&pretended.place, UnmountFlags::DETACH).is_err());
}
