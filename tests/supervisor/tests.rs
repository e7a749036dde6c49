//! The tests.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kitfs::mountinfo;
use kitfs::plan::Lacking;
use kitfs::run::Phase;
use kitfs::umount::{UmountError, Unmounted, umount};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

use crate::mount::{Mount, SOON, Setup, check, opening, read_through, signal_process, until, until_parked};
use crate::server::SLOT;

macro_rules! all {
    ($($name:ident),* $(,)?) => {
        /// Every test, the slow ones first.
        pub const ALL: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

/// Those that stop a worker, which no other test may meet.
pub const ALONE: [&str; 2] = ["a_stopped_worker_is_replaced", "a_worker_that_stops_with_waits_in_it_is_replaced"];

all![
    a_stopped_worker_is_replaced,
    workers_with_nothing_to_do_are_left_alone,
    a_worker_that_stops_with_waits_in_it_is_replaced,
    workers_that_end_themselves_are_slowed_down,
    readers_survive_fifty_kills,
    readers_survive_kills_without_passthrough,
    without_resend_mount_and_open_files_live_on,
    workers_that_never_serve_are_slowed_down_and_umount_does_not_wait_for_them,
    it_shows_what_it_is,
    a_request_that_ends_two_workers_is_answered_with_an_error,
    what_is_open_is_handed_to_the_next_worker,
    unmounting_names_who_uses_it_and_serves_on,
    waiting_opens_do_not_keep_it_mounted,
    lazily_detached_files_stay_open,
    asked_to_end_it_detaches_although_opens_wait,
    plain_umount_leaves_nothing_behind,
    fusermount_leaves_nothing_behind,
    a_copy_in_another_namespace_goes_on,
    another_mount_on_top_is_not_taken_down,
    a_worker_without_a_supervisor_detaches,
    what_a_dead_supervisor_and_worker_left_is_cleaned_up,
    a_mount_that_cannot_be_served_is_taken_down,
    a_mount_that_nobody_waits_for_is_taken_down,
    it_ends_if_asked_to_before_it_serves,
    an_ordinary_user_mounts_and_unmounts,
    a_mount_is_recorded_from_before_it_shows_until_it_is_gone,
    however_it_ends_that_is_recorded_once,
    a_mount_that_cannot_be_recorded_does_not_come_about,
    with_best_effort_it_does,
    an_end_that_cannot_be_recorded_is_told_and_nothing_waits_for_it,
    a_mount_that_never_served_is_recorded_as_such,
];

fn errno<T>(outcome: io::Result<T>) -> Option<i32> {
    outcome.err().and_then(|error| error.raw_os_error())
}

fn it_shows_what_it_is() {
    let mount = Mount::new();
    assert!(mount.said.contains("ok"), "{}", mount.said);
    let entry = mountinfo::at(&mount.plan.mounting.mountpoint).expect("readable").expect("mounted");
    assert_eq!(entry.fs_type, "fuse.kitfs");
    assert_eq!(entry.source, "oci:/kits%2Csuid@sha256:00");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let line = table.lines().find(|line| line.contains(&*mount.plan.mounting.mountpoint.to_string_lossy())).expect("mounted");
    let options = line.split(' ').nth(5).expect("options");
    assert!(["ro", "nosuid", "nodev"].iter().all(|option| options.split(',').any(|had| had == *option)), "{line}");
    assert!(line.contains("default_permissions") && !line.contains("allow_other"), "{line}");
    let (major, minor) = entry.device;
    assert_eq!(fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).expect("readable").trim(), "1024");
    read_through(&mount.path("data")).expect("served");
    let record = mount.dir().read_record().expect("readable").expect("written");
    assert_eq!((record.mount_id, record.device, record.supervisor_pid), (entry.mount_id, entry.device, mount.supervisor.id()));
    assert_eq!(record.passthrough, Some(true));
    let state = mount.state();
    assert_eq!((state.state, state.restarts), (Phase::Serving, 0));
    // Only what it needs, and nothing of ours.
    let descriptors =
        fs::read_dir(format!("/proc/{}/fd", mount.worker())).expect("a process").filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let foreign: Vec<_> = descriptors.filter(|target| target.to_string_lossy().contains("pipe:")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    mount.unmounted();
}

fn kill_under_readers(mount: &Mount, kills: usize, tolerated: &[i32]) {
    let over = AtomicBool::new(false);
    let (reads, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let held = [File::open(mount.path("data")).expect("opened"), File::open(mount.path("backed")).expect("opened")];
    thread::scope(|scope| {
        for name in ["data", "data", "backed", "backed"] {
            let (over, reads, broken) = (&over, &reads, &broken);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match read_through(&mount.path(name)) {
                        Ok(()) => reads.fetch_add(1, Ordering::Relaxed),
                        Err(error) if error.raw_os_error().is_some_and(|errno| tolerated.contains(&errno)) => {
                            broken.fetch_add(1, Ordering::Relaxed)
                        }
                        Err(error) => panic!("{name}: {error}"),
                    };
                }
            });
        }
        for _ in 0..kills {
            mount.replace_worker(Signal::KILL);
        }
        over.store(true, Ordering::Relaxed);
    });
    for file in &held {
        check(file).expect("an open file stays open");
    }
    println!("     {kills} kills, {} reads, {} broken off", reads.load(Ordering::Relaxed), broken.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > 0);
    assert_eq!(mount.state().restarts as usize, kills);
}

fn readers_survive_fifty_kills() {
    let mount = Mount::new();
    kill_under_readers(&mount, 50, &[]);
    mount.unmounted();
}

fn readers_survive_kills_without_passthrough() {
    let mount = Mount::with(Setup { no_passthrough: true, ..Setup::default() });
    assert_eq!(mount.dir().read_record().expect("readable").expect("written").passthrough, Some(false));
    kill_under_readers(&mount, 20, &[]);
    mount.unmounted();
}

fn without_resend_mount_and_open_files_live_on() {
    let mount = Mount::with(Setup { lacking: Lacking { resend: true, passthrough: true }, ..Setup::default() });
    kill_under_readers(&mount, 20, &[libc::ECONNABORTED]);
    mount.unmounted();
}

fn a_stopped_worker_is_replaced() {
    let mount = Mount::new();
    read_through(&mount.path("data")).expect("served");
    let stopped = mount.worker();
    signal_process(stopped, Signal::STOP);
    let begun = Instant::now();
    read_through(&mount.path("data")).expect("by the next worker");
    assert!((25..45).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_ne!(mount.worker(), stopped);
    mount.unmounted();
}

/// Nothing to do is not to be hung, and neither is a long wait.
fn workers_with_nothing_to_do_are_left_alone() {
    let idle = Mount::new();
    let waiting = Mount::new();
    let open = opening(waiting.path("wait"));
    until_parked(&waiting, 1);
    thread::sleep(Duration::from_secs(35));
    assert_eq!((idle.state().restarts, waiting.state().restarts), (0, 0));
    fs::write(waiting.stage().released(), "").expect("room");
    drop(open.join().expect("no panic").expect("opened"));
    idle.unmounted();
    waiting.unmounted();
}

fn a_worker_that_stops_with_waits_in_it_is_replaced() {
    let mount = Mount::new();
    let open = opening(mount.path("wait"));
    until_parked(&mount, 1);
    signal_process(mount.worker(), Signal::STOP);
    fs::write(mount.stage().released(), "").expect("room");
    let begun = Instant::now();
    check(&open.join().expect("no panic").expect("opened by the next worker")).expect("right");
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    mount.unmounted();
}

fn a_request_that_ends_two_workers_is_answered_with_an_error() {
    let mount = Mount::new();
    assert_eq!(errno(File::open(mount.path("abort"))), Some(libc::EIO));
    assert_eq!(mount.state().restarts, 2);
    read_through(&mount.path("data")).expect("served");
    assert_eq!(errno(File::open(mount.path("abort"))), Some(libc::EIO), "another request, the same end");
    assert_eq!(mount.state().restarts, 4);
    mount.unmounted();
}

fn workers_that_end_themselves_are_slowed_down() {
    let mut mount = Mount::new();
    // An exit is not held against the request, so it ends one worker after the other.
    let mut reader = Command::new("cat").arg(mount.path("exit")).spawn().expect("cat");
    let cautious =
        until("workers are told to be careful", Duration::from_secs(30), || mount.starts().into_iter().position(|start| start.cautious));
    assert_eq!(cautious, 20);
    let starts = until("some more starts", Duration::from_secs(30), || Some(mount.starts()).filter(|starts| starts.len() > 24));
    let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
    assert!(waits[..19].iter().all(|&wait| wait < 1000), "those that served are replaced at once: {waits:?}");
    assert!(waits[22] >= 400 && waits[22] > waits[20], "then they are not: {waits:?}");
    // Its caller can be killed while no worker has the request. "Restarting" alone could be what was written before the last start: then the next worker
    // has the request already, and the kernel lets nobody go whose request was taken.
    let deaths = mount.starts().len() as u32;
    until("the next start is waited for", SOON, || {
        let state = mount.state();
        (state.state == Phase::Restarting && state.restarts >= deaths).then_some(())
    });
    reader.kill().expect("our child");
    let killed = Instant::now();
    reader.wait().expect("our child");
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("nobody uses it");
    mount.ended();
}

fn workers_that_never_serve_are_slowed_down_and_umount_does_not_wait_for_them() {
    let mut mount = Mount::new();
    let open = opening(mount.path("wait"));
    until_parked(&mount, 1);
    fs::write(mount.stage().broken(), "").expect("room");
    signal_process(mount.worker(), Signal::KILL);
    let starts = until("six starts", SOON, || Some(mount.starts()).filter(|starts| starts.len() >= 6));
    let waits: Vec<u64> = starts[1..].windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
    assert!(waits.iter().zip([100, 200, 400, 800]).all(|(&wait, least)| (least..least + 700).contains(&wait)), "{waits:?}");
    assert_eq!(mount.state().state, Phase::Restarting);
    let begun = Instant::now();
    umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("nobody uses it");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(errno(open.join().expect("no panic")), Some(libc::ENODEV));
    assert!(mount.starts().last().expect("some").stopping);
    mount.ended();
}

fn what_is_open_is_handed_to_the_next_worker() {
    let mount = Mount::new();
    let backing = mount.stage().0.join("backing");
    let held = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.supervisor.id())).expect("a process");
        descriptors.filter(|entry| fs::read_link(entry.as_ref().expect("readable").path()).is_ok_and(|target| target == backing)).count()
    };
    let file = File::open(mount.path("held")).expect("opened");
    until("the supervisor holds it", SOON, || (held() == 4).then_some(()));
    mount.replace_worker(Signal::KILL);
    mount.replace_worker(Signal::KILL);
    assert_eq!(mount.starts().iter().map(|start| start.adopted.len()).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(mount.starts()[2].adopted, [SLOT]);
    check(&file).expect("right");
    drop(file);
    until("the supervisor lets go of it", SOON, || (held() == 0).then_some(()));
    mount.replace_worker(Signal::KILL);
    assert!(mount.starts()[3].adopted.is_empty());
    mount.unmounted();
}

fn unmounting_names_who_uses_it_and_serves_on() {
    let mount = Mount::new();
    let file = File::open(mount.path("data")).expect("opened");
    let begun = Instant::now();
    match umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()) {
        Err(UmountError::Busy { holders, .. }) => assert!(holders.iter().any(|holder| holder.pid == std::process::id()), "{holders:?}"),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    check(&file).expect("right");
    assert_eq!(mount.state().state, Phase::Serving);
    // Whoever comes may wait again.
    let open = opening(mount.path("wait"));
    until_parked(&mount, 1);
    fs::write(mount.stage().released(), "").expect("room");
    drop(open.join().expect("no panic").expect("opened"));
    drop(file);
    mount.unmounted();
}

fn waiting_opens_do_not_keep_it_mounted() {
    let mut mount = Mount::new();
    let opens = [opening(mount.path("wait")), opening(mount.path("wait"))];
    until_parked(&mount, 2);
    let plain = unmount(&mount.plan.mounting.mountpoint, UnmountFlags::empty());
    assert_eq!(plain, Err(rustix::io::Errno::BUSY), "plain umount does not end them");
    let begun = Instant::now();
    umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("nobody uses it");
    for open in opens {
        assert_eq!(errno(open.join().expect("no panic")), Some(libc::ENODEV));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    mount.ended();
}

fn lazily_detached_files_stay_open() {
    let mut mount = Mount::new();
    let files = [File::open(mount.path("data")).expect("opened"), File::open(mount.path("backed")).expect("opened")];
    let open = opening(mount.path("wait"));
    until_parked(&mount, 1);
    umount(&mount.plan.mounting.mountpoint, true, &mount.run_dir()).expect("whoever uses it");
    assert!(!mount.is_mounted());
    assert_eq!(errno(open.join().expect("no panic")), Some(libc::ENODEV));
    assert_eq!(mount.state().state, Phase::Stopping);
    files.iter().for_each(|file| check(file).expect("right"));
    mount.replace_worker(Signal::KILL);
    files.iter().for_each(|file| check(file).expect("right, also by the next worker"));
    assert!(mount.supervisor.try_wait().expect("our child").is_none());
    drop(files);
    assert!(mount.ended().success());
}

fn asked_to_end_it_detaches_although_opens_wait() {
    let mut mount = Mount::new();
    let open = opening(mount.path("wait"));
    until_parked(&mount, 1);
    // A worker that does not listen does not stand in the way.
    let worker = mount.worker();
    signal_process(worker, Signal::STOP);
    let begun = Instant::now();
    signal_process(mount.supervisor.id(), Signal::TERM);
    until("it is detached", Duration::from_secs(5), || (!mount.is_mounted()).then_some(()));
    println!("     detached after {:?}", begun.elapsed());
    signal_process(worker, Signal::CONT);
    assert_eq!(errno(open.join().expect("no panic")), Some(libc::ENODEV));
    assert!(mount.ended().success());
}

fn plain_umount_leaves_nothing_behind() {
    let mut mount = Mount::new();
    read_through(&mount.path("backed")).expect("served");
    // Reading ends a moment after the last close.
    until("it is not busy", SOON, || unmount(&mount.plan.mounting.mountpoint, UnmountFlags::empty()).ok());
    assert!(mount.ended().success());
}

fn fusermount_leaves_nothing_behind() {
    let mut mount = Mount::new();
    let status = Command::new("fusermount3").arg("-u").arg(&mount.plan.mounting.mountpoint).status().expect("installed");
    assert!(status.success());
    assert!(mount.ended().success());
}

fn a_copy_in_another_namespace_goes_on() {
    let mut mount = Mount::new();
    let mut other = Command::new("unshare").args(["-m", "sleep", "1000"]).spawn().expect("unshare");
    let copy = Path::new("/proc").join(other.id().to_string()).join("root").join(mount.path("data").strip_prefix("/").expect("absolute"));
    until("the namespace is there", SOON, || {
        let own = fs::read_link("/proc/self/ns/mnt").expect("readable");
        fs::read_link(format!("/proc/{}/ns/mnt", other.id())).ok().filter(|namespace| *namespace != own)
    });
    umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("nobody uses it here");
    assert!(!mount.is_mounted());
    read_through(&copy).expect("served");
    mount.replace_worker(Signal::KILL);
    read_through(&copy).expect("served by the next worker");
    assert!(mount.supervisor.try_wait().expect("our child").is_none());
    other.kill().expect("our child");
    other.wait().expect("our child");
    assert!(mount.ended().success());
}

fn another_mount_on_top_is_not_taken_down() {
    let mut mounted = Mount::new();
    let place = mounted.plan.mounting.mountpoint.clone();
    mount("top", &place, "tmpfs", MountFlags::empty(), None).expect("we are root");
    let mut socket = UnixStream::connect(mounted.dir().socket_path()).expect("it listens");
    socket.write_all(b"{\"request\":\"umount\",\"lazy\":true}\n").expect("heard");
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).expect("answered");
    assert!(answer.contains("failed") && answer.contains("on top"), "{answer}");
    assert_eq!(mountinfo::at(&place).expect("readable").expect("mounted").fs_type, "tmpfs");
    unmount(&place, UnmountFlags::empty()).expect("ours");
    signal_process(mounted.supervisor.id(), Signal::TERM);
    assert!(mounted.ended().success());
}

fn a_worker_without_a_supervisor_detaches() {
    let mut mount = Mount::new();
    let file = File::open(mount.path("data")).expect("opened");
    let worker = mount.worker();
    mount.supervisor.kill().expect("our child");
    mount.supervisor.wait().expect("our child");
    until("it is detached", SOON, || (!mount.is_mounted()).then_some(()));
    check(&file).expect("served until the end");
    drop(file);
    until("the worker ends", SOON, || (!Path::new(&format!("/proc/{worker}")).exists()).then_some(()));
    let cleaned = mount.run_dir().clean_up_dead().expect("readable");
    assert_eq!(cleaned.len(), 1);
    mount.ended();
}

fn what_a_dead_supervisor_and_worker_left_is_cleaned_up() {
    let mut mount = Mount::new();
    let worker = mount.worker();
    // Stopped, so that it cannot detach.
    signal_process(worker, Signal::STOP);
    mount.supervisor.kill().expect("our child");
    mount.supervisor.wait().expect("our child");
    signal_process(worker, Signal::KILL);
    until("the worker ends", SOON, || (!Path::new(&format!("/proc/{worker}/exe")).exists()).then_some(()));
    assert!(mount.is_mounted());
    until("the connection ends", SOON, || {
        File::open(mount.path("data")).err().filter(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    assert_eq!(mount.run_dir().clean_up_dead().expect("readable").len(), 1);
    mount.ended();
}

fn a_mount_that_cannot_be_served_is_taken_down() {
    let mut mount = Mount::with(Setup { prepare: |stage| fs::write(stage.broken(), "").expect("room"), ..Setup::default() });
    assert!(mount.said.contains("broken on purpose") && mount.said.contains("\"exit_code\":1"), "{}", mount.said);
    assert!(!mount.ended().success());
}

fn a_mount_that_nobody_waits_for_is_taken_down() {
    let mut mount = Mount::with(Setup { awaited: false, prepare: |stage| fs::write(stage.slow(), "").expect("room"), ..Setup::default() });
    until("a worker starts", SOON, || mount.starts().pop());
    mount.ended();
}

fn it_ends_if_asked_to_before_it_serves() {
    let mut mount = Mount::with(Setup { awaited: false, prepare: |stage| fs::write(stage.slow(), "").expect("room"), ..Setup::default() });
    until("a worker starts", SOON, || mount.starts().pop());
    assert!(mount.is_mounted());
    signal_process(mount.supervisor.id(), Signal::TERM);
    until("it is detached", Duration::from_secs(1), || (!mount.is_mounted()).then_some(()));
    mount.ended();
}

fn an_ordinary_user_mounts_and_unmounts() {
    let mut mount = Mount::with(Setup { unprivileged: true, ..Setup::default() });
    assert!(mount.said.contains("ok"), "{}\n{}", mount.said, mount.log());
    let entry = mountinfo::at(&mount.plan.mounting.mountpoint).expect("readable").expect("mounted");
    assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), ("fuse.kitfs", "oci:/kits%2Csuid@sha256:00"));
    let reading = |number: &str| {
        let path = mount.path("data");
        let output =
            Command::new("setpriv").args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sha256sum"]).arg(path).output();
        let output = output.expect("installed");
        assert!(output.status.success(), "{number}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let before = reading("before");
    signal_process(mount.starts()[0].pid, Signal::KILL);
    assert_eq!(reading("after"), before);
    // Through fusermount3 again; only the supervisor may do it.
    let mut socket = UnixStream::connect(mount.plan.mounting.run_dir.join("test/control.sock")).expect("it listens");
    socket.write_all(b"{\"request\":\"umount\",\"lazy\":false}\n").expect("heard");
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).expect("answered");
    assert!(answer.contains("done"), "{answer}");
    assert!(mount.ended().success());
}

const AUDIT: &str = "audit.jsonl";

fn audited() -> Mount {
    Mount::with(Setup { audit: Some((AUDIT, false)), ..Setup::default() })
}

fn events(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(code, status)| ((*code).to_owned(), (*status).to_owned())).collect()
}

fn a_mount_is_recorded_from_before_it_shows_until_it_is_gone() {
    let mount = audited();
    assert_eq!(mount.recorded(AUDIT), events(&[("mount", "Success")]));
    let record = mount.dir().read_record().expect("readable").expect("written");
    assert_eq!((&record.admissions[..], &record.audit), (mount.plan.admissions(), &mount.plan.mounting.audit));
    // A worker that is replaced decides and records nothing.
    mount.replace_worker(Signal::KILL);
    assert_eq!(umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("nobody uses it"), Unmounted::default());
    assert_eq!(mount.recorded(AUDIT), events(&[("mount", "Success"), ("umount", "Success")]));
    // The same and the decision are in the log, each in one line.
    let log = mount.log();
    let logged: Vec<&str> = log.lines().filter_map(|line| line.split_once("kitfs::audit: ").map(|(_, event)| event)).collect();
    let logged: Vec<serde_json::Value> = logged.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    let codes: Vec<&str> = logged.iter().filter_map(|event| event["metadata"]["event_code"].as_str()).collect();
    assert_eq!(codes, ["decision", "mount", "umount"]);
    assert_eq!(logged[0]["unmapped"]["kitfs"]["claim"], "reg.example/acme/m:v1");
    assert!(logged.iter().all(|event| event["metadata"]["correlation_uid"] == "test"), "{log}");
}

fn however_it_ends_that_is_recorded_once() {
    let both = events(&[("mount", "Success"), ("umount", "Success")]);
    let mut mount = audited();
    unmount(&mount.plan.mounting.mountpoint, UnmountFlags::empty()).expect("nobody uses it");
    assert!(mount.ended().success());
    assert_eq!(mount.recorded(AUDIT), both, "by somebody else");

    let mut mount = audited();
    signal_process(mount.supervisor.id(), Signal::TERM);
    assert!(mount.ended().success());
    assert_eq!(mount.recorded(AUDIT), both, "by a signal");

    let mut mount = audited();
    let file = File::open(mount.path("data")).expect("opened");
    assert_eq!(umount(&mount.plan.mounting.mountpoint, true, &mount.run_dir()).expect("detached"), Unmounted::default());
    assert_eq!(mount.recorded(AUDIT), both, "it is gone from its place");
    drop(file);
    assert!(mount.ended().success());
    assert_eq!(mount.recorded(AUDIT), both, "lazily");
}

fn a_mount_that_cannot_be_recorded_does_not_come_about() {
    let mut mount = Mount::with(Setup { audit: Some(("missing/audit.jsonl", false)), ..Setup::default() });
    assert!(mount.said.contains("cannot be recorded") && mount.said.contains("missing/audit.jsonl"), "{}", mount.said);
    assert!(!mount.ended().success());
    assert!(mount.starts().is_empty(), "no worker was started for it");
}

fn with_best_effort_it_does() {
    let mount = Mount::with(Setup { audit: Some(("missing/audit.jsonl", true)), ..Setup::default() });
    read_through(&mount.path("data")).expect("served");
    assert!(mount.log().contains("an event was not recorded"), "{}", mount.log());
    mount.unmounted();
}

fn an_end_that_cannot_be_recorded_is_told_and_nothing_waits_for_it() {
    let mut mount = audited();
    fs::remove_file(mount.file(AUDIT)).and_then(|()| fs::create_dir(mount.file(AUDIT))).expect("in its place");
    let unmounted = umount(&mount.plan.mounting.mountpoint, false, &mount.run_dir()).expect("it is taken down all the same");
    assert!(unmounted.unrecorded.is_some_and(|message| message.contains("it is a folder")));
    assert!(mount.ended().success());
}

fn a_mount_that_never_served_is_recorded_as_such() {
    let prepare = |stage: &crate::server::Stage| drop(File::create(stage.broken()).expect("a file"));
    let mut mount = Mount::with(Setup { audit: Some((AUDIT, false)), prepare, ..Setup::default() });
    assert!(!mount.ended().success());
    assert_eq!(mount.recorded(AUDIT), events(&[("mount", "Success"), ("umount", "Failure")]));
}
