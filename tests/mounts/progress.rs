//! What commands that take long show on a terminal, and elsewhere.

use std::fs::File;
use std::io::Read as _;
use std::num::NonZero;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;

use rustix::process::Signal;

use crate::common::kitfs::{Host, Mode, SOON};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::signal_process;
use crate::common::registry::{Fault, Gate, ONCE, Registry, Target, Times};
use crate::kits::{MIB, bytes};

const ROWS: NonZero<u16> = NonZero::new(40).unwrap();
/// So many that no line of a log is longer.
const COLUMNS: NonZero<u16> = NonZero::new(4000).unwrap();

/// A process whose standard error is a terminal, and what it shows there.
struct OnTerminal {
    child: Child,
    /// What comes, piece by piece, until nobody has the terminal open any more.
    pieces: Receiver<Vec<u8>>,
    shown: Vec<u8>,
}

impl OnTerminal {
    fn start(command: &mut Command) -> Self {
        Self::start_in(COLUMNS, command)
    }

    fn start_in(columns: NonZero<u16>, command: &mut Command) -> Self {
        let size = libc::winsize { ws_row: ROWS.get(), ws_col: columns.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave) = (0, 0);
        // SAFETY: the two numbers are written to, the size is read, and nothing else is asked for.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, std::ptr::null_mut(), std::ptr::null(), &raw const size) };
        assert_eq!(opened, 0, "a terminal: {}", std::io::Error::last_os_error());
        // SAFETY: both were just opened, and nobody else knows of them.
        let (mut screen, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        rustix::io::fcntl_setfd(&screen, rustix::io::FdFlags::CLOEXEC).expect("a flag");
        assert!(slave.as_raw_fd() > 2);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(slave).spawn().expect("started");
        // The command keeps what it gives to its child, and with that the terminal.
        command.stderr(Stdio::null());
        let (sender, pieces) = mpsc::channel();
        // Always, since whoever draws waits for a terminal that nobody reads from.
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // A terminal that nobody has open any more is an error to read from.
            while let Ok(length @ 1..) = screen.read(&mut piece) {
                let _nobody_wants_to_know = sender.send(piece[..length].to_vec());
            }
        });
        Self { child, pieces, shown: Vec::new() }
    }

    /// Reads on until `wanted` is shown.
    fn until(mut self, wanted: &str) -> Self {
        while !self.text().contains(wanted) {
            let piece = self.pieces.recv_timeout(SOON);
            self.shown.extend(piece.unwrap_or_else(|error| panic!("{wanted:?} is not in {}: {error}", self.text())));
        }
        self
    }

    /// All that was shown.
    fn until_the_end(self) -> String {
        let (shown, status) = self.until_it_ends();
        assert!(status.success(), "{status}: {shown}");
        shown
    }

    fn until_it_ends(mut self) -> (String, ExitStatus) {
        loop {
            match self.pieces.recv_timeout(SOON) {
                Ok(piece) => self.shown.extend(piece),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {}", self.text()),
            }
        }
        let status = self.child.wait().expect("it ended");
        (self.text(), status)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    fn signal(&self, signal: Signal) {
        signal_process(self.child.id() as i32, signal);
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The lines that are on a screen after all of `shown` was written to it.
fn screen(shown: &str) -> Vec<String> {
    let mut screen = vt100::Parser::new(ROWS, COLUMNS, 0);
    screen.process(shown.as_bytes());
    screen.screen().rows(0, COLUMNS.get()).map(|line| line.trim_end().to_owned()).collect()
}

/// Two layers, the larger of which stops in its middle until the gate opens.
fn half(registry: &Registry) -> (Kit, String, Gate) {
    let tree = Tree::new().file("model/w.bin", bytes(1, 4 * MIB)).file("data/d.bin", bytes(2, MIB));
    let kit = Kitfile::new("two").model("model").dataset("data").pack(&tree);
    let reference = kit.serve(registry, "acme/two", "v1");
    let gate = Gate::new();
    registry.fault(Target::Content(kit.layer("model").digest.clone()), ONCE, Fault::HoldAt(2 * MIB as u64, gate.clone()));
    (kit, reference, gate)
}

fn mount_on_terminal(host: &Host, reference: &str, point: &Path, options: &[&str]) -> OnTerminal {
    OnTerminal::start(host.mount_command(reference, point, options).env("NO_COLOR", "1").env("TERM", "xterm"))
}

#[test]
fn pull_and_a_mount_that_waits_show_bars_on_a_terminal() {
    for wait in [false, true] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let (_kit, reference, gate) = half(&registry);
        let point = host.folder("mnt");
        let _guard = host.guard(&point);
        let mut command = match wait {
            true => host.mount_command(&reference, &point, &["--prefetch", "all", "--wait"]),
            false => host.command(&["pull", "--plain-http", &reference]),
        };
        let shown = OnTerminal::start(command.env("NO_COLOR", "1").env("TERM", "xterm")).until(" left");
        gate.open();
        let shown = shown.until_the_end();
        for wanted in ["model at model", "all 2 layers", "MiB of", "/s", " left"] {
            assert!(shown.contains(wanted), "{wanted} is not in {shown:?}");
        }
        // Lines are written over, but nothing has a colour.
        assert!(shown.contains("\u{1b}[") && !shown.contains("\u{1b}[3") && !shown.contains("\u{1b}[1;"), "{shown:?}");
    }
}

#[test]
fn bars_fit_into_a_narrow_terminal() {
    for (columns, wanted) in [(79, "%"), (80, "MiB of")] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let (_kit, reference, gate) = half(&registry);
        let columns = NonZero::new(columns).expect("some");
        let mut command = host.command(&["pull", "--plain-http", &reference]);
        let shown = OnTerminal::start_in(columns, command.env("NO_COLOR", "1").env("TERM", "xterm")).until(" left");
        let mut screen = vt100::Parser::new(ROWS, columns, 0);
        screen.process(&shown.shown);
        let lines: Vec<_> = screen.screen().rows(0, columns.get()).collect();
        // A bar that is wider goes on in the next line, and that is what ends with the time left.
        let bar = lines.iter().find(|line| line.trim_end().ends_with(" left")).unwrap_or_else(|| panic!("no bar in {lines:#?}"));
        assert!(bar.contains(wanted) && (bar.contains("model at model") || bar.contains("all 2 layers")), "{lines:#?}");
        gate.open();
        shown.until_the_end();
    }
}

#[test]
fn a_mount_that_prefetches_all_shows_bars_until_all_is_here() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (kit, reference, gate) = half(&registry);
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let shown = mount_on_terminal(&host, &reference, &point, &["--prefetch", "all"]).until(" left");
    assert!(mount.is_mounted(), "{}", shown.text());
    gate.open();
    let shown = shown.until_the_end();
    for wanted in ["is mounted", "model at model", "all 2 layers", "MiB of", "/s", " left"] {
        assert!(shown.contains(wanted), "{wanted} is not in {shown:?}");
    }
    assert_eq!(shown.matches(": in the cache\r\n").count(), 2, "{shown:?}");
    for layer in ["model", "data"] {
        mount.await_layer(&kit.layer(layer).digest, "cached");
    }
}

#[test]
fn an_interrupt_ends_the_bars_of_a_mount_and_nothing_else() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (kit, reference, gate) = half(&registry);
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let shown = mount_on_terminal(&host, &reference, &point, &["--prefetch", "all"]).until(" left");
    shown.signal(Signal::INT);
    let _ended = shown.until_it_ends();
    gate.open();
    mount.await_layer(&kit.layer("model").digest, "cached");
    assert!(mount.is_mounted());
}

#[test]
fn the_bars_of_a_mount_end_with_it_and_with_what_cannot_come() {
    for taken_down in [true, false] {
        let (host, registry) = (Host::new(Mode::Cached), Registry::start());
        let (kit, reference, gate) = half(&registry);
        registry.fault(Target::Content(kit.layer("data").digest.clone()), Times::Always, Fault::Flip(7));
        let point = host.folder("mnt");
        let _mount = host.guard(&point);
        let shown = mount_on_terminal(&host, &reference, &point, &["--prefetch", "all"]).until(" left");
        if taken_down {
            host.kitfs(&["umount".as_ref(), point.as_os_str()]).ok();
        }
        gate.open();
        let shown = shown.until_the_end();
        assert!(taken_down || shown.contains("expected digest"), "{shown:?}");
    }
}

#[test]
fn elsewhere_a_layer_is_a_line() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (_kit, reference, gate) = half(&registry);
    gate.open();
    let dumb = OnTerminal::start(host.command(&["pull", "--plain-http", &reference]).env("TERM", "dumb")).until_the_end();
    assert!(dumb.matches("in the cache\r\n").count() == 2 && !dumb.contains('\u{1b}'), "{dumb:?}");
    let piped = host.kitfs(&["pull", "--plain-http", &reference]).ok().stderr;
    assert!(piped.matches("in the cache\n").count() == 2 && !piped.contains('\u{1b}'), "{piped:?}");
}

#[test]
fn a_kit_of_more_layers_than_lines_shows_bars_of_what_comes_and_of_all() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let names: Vec<String> = (0..50).map(|number| format!("data/{number:02}")).collect();
    let tree = names.iter().fold(Tree::new(), |tree, name| tree.file(&format!("{name}/d.bin"), bytes(1, MIB / 16)));
    let tree = tree.file("model/w.bin", bytes(2, 4 * MIB));
    let kit = names.iter().fold(Kitfile::new("many").model("model"), |kitfile, name| kitfile.dataset(name)).pack(&tree);
    let reference = kit.serve(&registry, "acme/many", "v1");
    let gate = Gate::new();
    registry.fault(Target::Content(kit.layer("model").digest.clone()), ONCE, Fault::HoldAt(2 * MIB as u64, gate.clone()));
    let mut command = host.command(&["pull", "--plain-http", &reference]);
    // A line for each dataset that is here, and below them the bars of the model and of all, also while one dataset after the other comes.
    let shown = OnTerminal::start(command.env("NO_COLOR", "1").env("TERM", "xterm")).until("model at model   ");
    gate.open();
    let shown = shown.until_the_end();
    assert_eq!(shown.matches(": in the cache\r\n").count(), 51, "{shown:?}");
    assert!(shown.contains("all 51 layers"), "{shown:?}");
}

#[test]
fn a_mount_in_the_foreground_shows_bars_below_whole_lines() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (kit, reference, gate) = half(&registry);
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let shown = mount_on_terminal(&host, &reference, &point, &["--foreground", "--prefetch", "all"]).until(" left");
    // What two processes have to say while bars are drawn.
    let worker = mount.kill_worker();
    let shown = shown.until("worker ended");
    mount.await_other_worker(worker);
    gate.open();
    let shown = shown.until("layer fetched");
    for layer in ["model", "data"] {
        mount.await_layer(&kit.layer(layer).digest, "cached");
    }
    shown.signal(Signal::INT);
    let shown = shown.until_the_end();
    assert!(!mount.is_mounted() && host.await_quiet(SOON).is_ok());
    for wanted in ["model at model", "all 2 layers", "MiB of", "/s", " left"] {
        assert!(shown.contains(wanted), "{wanted} is not in {shown:?}");
    }
    let lines = screen(&shown);
    let is_log = |line: &str| line.get(..2) == Some("20") && (line.contains(" INFO ") || line.contains(" WARN "));
    let is_note = |line: &str| line.starts_with("sha256:") && line.ends_with(": in the cache");
    // The long ones go on in the next line.
    let is_rest = |line: &str| line.ends_with("in the cache") && !line.starts_with("sha256:");
    let strange: Vec<&String> = lines.iter().filter(|line| !is_log(line) && !is_note(line) && !is_rest(line) && !line.is_empty()).collect();
    assert!(strange.is_empty(), "{strange:#?} in {lines:#?}");
    for (wanted, times) in
        [(" mounted mountpoint=", 1), ("worker ended", 1), ("layer fetched", 2), ("asked to end", 1), (" unmounted mountpoint=", 1)]
    {
        let found = lines.iter().filter(|line| is_log(line) && line.contains(wanted)).count();
        assert!(found == times, "{found} times {wanted}: {lines:#?}");
    }
}

#[test]
fn a_mount_in_the_foreground_says_that_a_layer_failed_and_stays() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (kit, reference, gate) = half(&registry);
    gate.open();
    registry.fault(Target::Content(kit.layer("data").digest.clone()), Times::Always, Fault::Flip(7));
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let shown = mount_on_terminal(&host, &reference, &point, &["--foreground", "--prefetch", "all"])
        .until(&format!("{} dataset at data", kit.layer("data").digest));
    mount.await_layer(&kit.layer("model").digest, "cached");
    assert!(mount.is_mounted(), "{}", shown.text());
    host.kitfs(&["umount".as_ref(), point.as_os_str()]).ok();
    let shown = shown.until_the_end();
    assert!(shown.contains("dataset at data (") && shown.contains("): layer sha256:"), "{shown:?}");
}

#[test]
fn a_mount_in_the_foreground_ends_with_the_process_that_draws() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (_kit, reference, gate) = half(&registry);
    let point = host.folder("mnt");
    let mount = host.guard(&point);
    let shown = mount_on_terminal(&host, &reference, &point, &["--foreground", "--prefetch", "all"]).until(" left");
    shown.signal(Signal::KILL);
    let (_, status) = shown.until_it_ends();
    assert!(!status.success());
    gate.open();
    assert!(host.await_quiet(SOON).is_ok() && !mount.is_mounted());
}

#[test]
fn a_mount_in_the_foreground_that_does_not_come_about_says_why() {
    let (host, registry) = (Host::new(Mode::Cached), Registry::start());
    let (_kit, reference, gate) = half(&registry);
    gate.open();
    let point = host.folder("mnt");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = taken.local_addr().expect("an address").to_string();
    let (shown, status) = mount_on_terminal(&host, &reference, &point, &["--foreground", "--metrics", &address]).until_it_ends();
    assert!(status.code() == Some(1) && shown.contains("error: ") && shown.contains("cannot tell metrics at"), "{status}: {shown}");
    assert!(host.await_quiet(SOON).is_ok() && !host.guard(&point).is_mounted());
}
