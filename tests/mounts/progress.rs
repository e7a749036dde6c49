//! What commands that take long show on a terminal, and elsewhere.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::within;
use crate::common::registry::{Fault, Gate, ONCE, Registry, Target};
use crate::kits::{MIB, bytes};

/// A process whose standard error is a terminal of 120 columns, and what it shows there.
struct OnTerminal {
    child: Child,
    screen: File,
    shown: Vec<u8>,
}

impl OnTerminal {
    fn start(command: &mut Command) -> Self {
        let size = libc::winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave) = (0, 0);
        // SAFETY: the two numbers are written to, the size is read, and nothing else is asked for.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, std::ptr::null_mut(), std::ptr::null(), &raw const size) };
        assert_eq!(opened, 0, "a terminal: {}", std::io::Error::last_os_error());
        // SAFETY: both were just opened, and nobody else knows of them.
        let (screen, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        rustix::io::fcntl_setfd(&screen, rustix::io::FdFlags::CLOEXEC).expect("a flag");
        assert!(slave.as_raw_fd() > 2);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(slave).spawn().expect("started");
        // The command keeps what it gives to its child, and with that the terminal.
        command.stderr(Stdio::null());
        Self { child, screen, shown: Vec::new() }
    }

    /// Reads on until `wanted` is shown, or to the end.
    fn until(self, wanted: &'static str) -> Self {
        within(crate::common::kitfs::SOON, wanted, move || self.read_until(Some(wanted)))
    }

    fn until_the_end(self) -> String {
        let mut ended = within(crate::common::kitfs::SOON, "the end", move || self.read_until(None));
        let status = ended.child.wait().expect("it ended");
        let shown = String::from_utf8_lossy(&ended.shown).into_owned();
        assert!(status.success(), "{status}: {shown}");
        shown
    }

    fn read_until(mut self, wanted: Option<&str>) -> Self {
        let mut part = [0; 4096];
        while !wanted.is_some_and(|wanted| String::from_utf8_lossy(&self.shown).contains(wanted)) {
            // A terminal that nobody has open any more is an error to read from.
            match self.screen.read(&mut part) {
                Ok(0) | Err(_) => {
                    assert!(wanted.is_none(), "{wanted:?} is not in {}", String::from_utf8_lossy(&self.shown));
                    break;
                }
                Ok(length) => self.shown.extend(&part[..length]),
            }
        }
        self
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
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
