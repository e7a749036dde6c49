//! What changes around a mount that lives for months: the registry's address, the login for it, what its tags mean, and what it still has.

use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use kitfs::limits;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::common::blackhole::Blackhole;
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::Kit;
use crate::common::process::{Running, within};
use crate::common::registry::{Auth, Registry};
use crate::common::shown::read;
use crate::kits::{MIB, parts};

const LIMIT: Duration = Duration::from_secs(60);

/// What a busy machine may add to a limit.
const SLACK: Duration = Duration::from_secs(25);

fn read_part(mount: &Mount, name: &str) -> Result<Vec<u8>, i32> {
    let path = mount.path(&format!("{name}/part.bin"));
    within(LIMIT, "a read", move || read(&path))
}

fn assert_right(mount: &Mount, kit: &Kit, name: &str) {
    let read = read_part(mount, name);
    assert!(
        read.as_deref() == Ok(kit.tree.content(&format!("{name}/part.bin"))),
        "{name}: {:?} {}",
        read.map(|bytes| bytes.len()),
        mount.log()
    );
}

/// An address at which a registry answers, until it is dropped.
struct Relay {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(address: &str, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a free address");
        let address = listener.local_addr().expect("bound");
        let (ended, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let accepting = thread::spawn({
            let (ended, streams) = (Arc::clone(&ended), Arc::clone(&streams));
            move || {
                for near in listener.incoming() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let (near, far) = (near.expect("a connection"), TcpStream::connect(to).expect("the registry"));
                    for (from, into) in [(&near, &far), (&far, &near)] {
                        let (mut from, mut into) = (from.try_clone().expect("a socket"), into.try_clone().expect("a socket"));
                        thread::spawn(move || {
                            let _either_end = io::copy(&mut from, &mut into);
                            let _gone = into.shutdown(Shutdown::Both);
                        });
                    }
                    streams.lock().expect("no panic").extend([near, far]);
                }
            }
        });
        Self { address, ended, streams, accepting: Some(accepting) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // So that it looks.
        let _woken = TcpStream::connect(self.address);
        self.accepting.take().map(JoinHandle::join);
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The name of a registry means another address later, in a mount namespace with a list of hosts of its own.
#[test]
fn an_open_mount_follows_its_registry_to_another_address() {
    let moved = thread::spawn(|| {
        let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
        // SAFETY: of what is not shared any more, the table of descriptors is no part.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("root");
        let hosts = host.path("hosts");
        let point = |address: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{address} registry.test\n")).expect("room");
        point("127.0.0.1");
        mount_bind(&hosts, "/etc/hosts").expect("root");
        let real: SocketAddr = registry.host().parse().expect("an address");
        let first = Relay::start("127.0.0.1:0", real);
        let port = first.address.port();
        let kit = parts(&["one", "two", "three"], 2 * MIB);
        kit.serve(&registry, "acme/parts", "v1");
        let mount = host.mount(&format!("registry.test:{port}/acme/parts:v1"));
        assert_right(&mount, &kit, "one");
        // It moves. Connections that were kept for the next request are dead, and nobody listens there any more.
        drop(first);
        let second = Relay::start(&format!("127.0.0.2:{port}"), real);
        point("127.0.0.2");
        assert_right(&mount, &kit, "two");
        // And back, with the worker still the same.
        drop(second);
        let _third = Relay::start(&format!("127.0.0.1:{port}"), real);
        point("127.0.0.1");
        assert_right(&mount, &kit, "three");
        assert_eq!(mount.status()["restarts"], 0);
    });
    moved.join().expect("it follows");
}

/// Packets to it are dropped, as by a firewall or a host that is off: no refusal, no reset. It takes 70 s, since nothing less is longer than three attempts to
/// connect and the back-off after them.
#[test]
fn an_address_that_swallows_packets_is_an_error_in_time_and_the_mount_goes_on_when_it_answers_again() {
    let (host, other, registry) = (Host::new(Mode::Passthrough), Host::new(Mode::Passthrough), Registry::start());
    let real: SocketAddr = registry.host().parse().expect("an address");
    let kit = parts(&["one", "two", "three"], 2 * MIB);
    // An address of its own, where no other test gets the port meanwhile.
    let relay = Relay::start("127.0.0.7:0", real);
    let address = relay.address.to_string();
    let reference = kit.serve(&registry, "acme/parts", "v1").replace(&registry.host(), &address);
    let mount = host.mount(&reference);
    assert_right(&mount, &kit, "one");
    let worker = mount.worker_pid();
    drop(relay);
    let hole = Blackhole::start(&address);
    // All at once: somebody who reads, and commands of a host that has nothing.
    let point = other.folder("mnt");
    let guard = other.guard(&point);
    let commands = [
        other.mount_command(&reference, &point, &[]),
        other.command(&["pull", "--plain-http", &reference]),
        other.command(&["explain", "--allow-no-policy", "--plain-http", &reference]),
    ];
    let commands = commands.map(|mut command| Running::start(&mut command));
    let two = mount.path("two/part.bin");
    let reader = thread::spawn(move || within(Duration::from_secs(limits::SILENCE_S) + SLACK, "a read", move || read(&two)));
    hole.await_asked(4);
    assert_right(&mount, &kit, "one");
    for command in commands {
        let output = command.wait(Duration::from_secs(limits::BEFORE_MOUNT_S) + SLACK);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code(), 1, "{output:#?}");
        for part in [&address, "tag v1", "it did not come within 30 s", "no connection within 10 s"] {
            assert!(said.contains(part), "{part}: {output:#?}");
        }
    }
    assert!(!guard.is_mounted());
    assert_eq!(reader.join().expect("a bounded wait"), Err(rustix::io::Errno::TIMEDOUT.raw_os_error()));
    let lost = &kit.layer("two").digest;
    let failed = mount.layer(lost);
    let told = failed["error"].as_str().unwrap_or_default();
    assert_eq!((&failed["state"], &failed["class"]), (&"failed".into(), &"stalled".into()), "{failed:#}");
    assert!([address.as_str(), lost, "no connection within 10 s"].iter().all(|part| told.contains(part)), "{failed:#}");
    assert_right(&mount, &kit, "one");
    // Somebody who asks while nobody answers gets it when somebody does.
    let three = mount.path("three/part.bin");
    let reader = thread::spawn(move || within(LIMIT, "a read", move || read(&three)));
    hole.await_asked(1);
    drop(hole);
    let _relay = Relay::start(&address, real);
    assert!(reader.join().expect("a bounded wait").as_deref() == Ok(kit.tree.content("three/part.bin")), "{}", mount.log());
    // And what had failed, after the back-off, during which it is the same error at once.
    let until = Instant::now() + limits::BACKOFF_FIRST + SLACK;
    while let Err(errno) = read_part(&mount, "two") {
        assert_eq!(errno, rustix::io::Errno::TIMEDOUT.raw_os_error());
        assert!(Instant::now() < until, "{}", mount.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert_right(&mount, &kit, "two");
    assert_eq!((mount.worker_pid(), mount.status()["restarts"].as_u64()), (worker, Some(0)));
}

#[test]
fn a_login_that_is_renewed_while_it_is_mounted_is_used_for_the_next_layer() {
    let auths: [fn(&str) -> Auth; 2] = [
        |password| Auth::Basic("user".into(), password.into()),
        |password| Auth::Bearer { credentials: Some(("user".into(), password.into())), seconds: 300 },
    ];
    for auth in auths {
        let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
        let kit = parts(&["one", "two", "three"], 2 * MIB);
        let reference = kit.serve(&registry, "acme/parts", "v1");
        // As `docker login` does it: another file in its place.
        let log_in = |password: &str| {
            let folder = host.home().join(".docker");
            fs::create_dir_all(&folder).expect("a folder");
            let secret = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
            fs::write(folder.join("new"), format!(r#"{{"auths":{{"{}":{{"auth":"{secret}"}}}}}}"#, registry.host())).expect("room");
            fs::rename(folder.join("new"), folder.join("config.json")).expect("ours");
        };
        registry.require(auth("of today"));
        log_in("of today");
        let mount = host.mount(&reference);
        assert_right(&mount, &kit, "one");
        registry.require(auth("of tomorrow"));
        registry.revoke_tokens();
        log_in("of tomorrow");
        assert_right(&mount, &kit, "two");
        // Nobody renewed it in time: an error that says so, and what is here stays readable.
        registry.require(auth("of next week"));
        registry.revoke_tokens();
        assert_eq!(read_part(&mount, "three"), Err(rustix::io::Errno::IO.raw_os_error()));
        let failed = mount.layer(&kit.layer("three").digest);
        assert!(failed["state"] == "failed" && failed["error"].as_str().is_some_and(|error| error.contains("401")), "{failed:#}");
        assert_right(&mount, &kit, "one");
        log_in("of next week");
        // The next mount does not wait for the back-off of this one.
        assert_right(&host.mount(&reference), &kit, "three");
    }
}

#[test]
fn a_registry_that_forgot_a_kit_is_an_error_that_names_the_digest_and_what_is_here_stays() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let kit = parts(&["one", "two"], 2 * MIB);
    let next = parts(&["one"], 1000);
    let reference = kit.serve(&registry, "acme/parts", "v1");
    let mount = host.mount(&reference);
    assert_right(&mount, &kit, "one");
    let held = File::open(mount.path("one/part.bin")).expect("it is here");
    // The tag moves, and what nothing refers to any more is collected.
    next.serve(&registry, "acme/parts", "v1");
    registry.forget_manifest("acme/parts", &kit.digest());
    for layer in &kit.layers {
        registry.forget(&layer.digest);
    }
    registry.forget(&kit.config_digest());
    assert_eq!(read_part(&mount, "two"), Err(rustix::io::Errno::IO.raw_os_error()));
    let lost = &kit.layer("two").digest;
    let failed = mount.layer(lost);
    assert!(failed["error"].as_str().is_some_and(|error| error.contains(lost.as_str()) && error.contains("was not found")), "{failed:#}");
    // A worker that starts anew needs the registry for nothing that is here.
    mount.await_other_worker(mount.kill_worker());
    assert_right(&mount, &kit, "one");
    assert_eq!(mount.status()["digest"], kit.digest());
    drop(held);
    let fresh = host.mount(&reference);
    assert_eq!(fresh.status()["digest"], next.digest());
    assert_right(&fresh, &next, "one");
    // By its digest it is mounted from the cache as far as it is here; on another host it is not to be had.
    let by_digest = format!("{}@{}", reference.trim_end_matches(":v1"), kit.digest());
    assert_right(&host.mount(&by_digest), &kit, "one");
    let output = Host::new(Mode::Passthrough).try_mount(&by_digest, &[]).expect_err("gone");
    assert!(output.code() == 5 && output.stderr.contains(&kit.digest()), "{output:#?}");
}
