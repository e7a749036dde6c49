//! The tamper matrix: right bytes or an error within the limit, never anything else.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Packing, Tree};
use crate::common::process::within;
use crate::common::registry::{Fault, ONCE, Registry, Target, Times};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{MIB, bytes, standard};

/// 75 s after the last byte a waiter hears of an error, and each of the two fetches may end like that.
const LIMIT: Duration = Duration::from_secs(160);

/// What is damaged, as the fault for a content of this size.
type Damage = fn(u64) -> Fault;

/// How a reader meets the layer.
#[derive(Debug, Clone, Copy)]
enum Opened {
    Read,
    Mmap,
    Ls,
}

/// Two tests, one for each mode, per kind of damage.
macro_rules! matrix {
    ($($name:ident: $damage:expr;)*) => {
        mod passthrough {
            use super::*;
            $(#[test] fn $name() { layers($crate::common::kitfs::Mode::Passthrough, $damage); documents($damage); })*
        }
        mod cached {
            use super::*;
            $(#[test] fn $name() { layers($crate::common::kitfs::Mode::Cached, $damage); })*
        }
    };
}

matrix! {
    flipped_at_the_start: |_| Fault::Flip(0);
    flipped_in_the_middle: |size| Fault::Flip(size / 2);
    flipped_at_the_end: |size| Fault::Flip(size - 1);
    truncated: |size| Fault::Truncate(size / 2);
    emptied: |_| Fault::Truncate(0);
    appended: |_| Fault::Append(vec![0; 512]);
    swapped_for_the_same_size: |size| Fault::Swap(bytes(7, usize::try_from(size).expect("small")));
    swapped_for_another_size: |_| Fault::Swap(bytes(8, 1000));
    cut_off: |size| Fault::Cut(size / 3);
    reset: |size| Fault::ResetAt(size / 3);
    too_short_a_length: |_| Fault::WrongLength(-100);
    too_long_a_length: |_| Fault::WrongLength(100);
    ranges_ignored: |_| Fault::IgnoreRange;
    wrong_range: |_| Fault::WrongRange;
    lied_about_the_range: |_| Fault::LyingRange;
    no_content_range: |_| Fault::NoContentRange;
    server_error: |_| Fault::status(500);
    redirected_in_a_circle: |_| Fault::RedirectLoop;
}

fn kit() -> Kit {
    let mut tree = Tree::new().file("sound/part.bin", bytes(3, 100_000));
    let mut kitfile = Kitfile::new("matrix").dataset("sound");
    for (index, (layer, packing, _)) in damaged().into_iter().enumerate() {
        tree = tree.file(&format!("{layer}/big.bin"), bytes(10 + index as u64, 2 * MIB));
        kitfile = kitfile.packing(packing);
        kitfile = if is_raw(&layer) {
            kitfile.dataset(&format!("{layer}/big.bin"))
        } else {
            tree = tree.file(&format!("{layer}/small.txt"), format!("small {index}"));
            kitfile.dataset(&layer)
        };
    }
    kitfile.pack(&tree)
}

/// The layers that are damaged, by their folders, how they are packed and how they are met. The names of raw files are no layer's to tell, so nobody lists those.
fn damaged() -> Vec<(String, Packing, Opened)> {
    let tars = [("plain", Packing::Plain), ("gzip", Packing::Gzip), ("zstd", Packing::Zstd)];
    let opened = [("read", Opened::Read), ("mmap", Opened::Mmap), ("ls", Opened::Ls)];
    let tars = tars.iter().flat_map(|(zip, packing)| opened.map(|(name, opened)| (format!("{zip}-{name}"), *packing, opened)));
    let raws = [
        ("raw-plain-read", Packing::Raw, Opened::Read),
        ("raw-plain-mmap", Packing::Raw, Opened::Mmap),
        ("raw-gzip", Packing::RawGzip, Opened::Read),
        ("raw-gzip-unsized", Packing::RawGzipUnsized, Opened::Read),
        ("raw-zstd", Packing::RawZstd, Opened::Mmap),
    ];
    tars.chain(raws.map(|(name, packing, opened)| (name.to_owned(), packing, opened))).collect()
}

fn is_raw(layer: &str) -> bool {
    layer.starts_with("raw-")
}

fn layers(mode: Mode, damage: Damage) {
    let kit = Arc::new(kit());
    for times in [ONCE, Times::Always] {
        let host = Host::new(mode);
        let registry = Registry::start();
        let reference = kit.serve(&registry, "acme/matrix", "v1");
        for layer in kit.layers.iter().filter(|layer| layer.path != "sound") {
            registry.fault(Target::Content(layer.digest.clone()), times, damage(layer.blob.len() as u64));
        }
        let mount = host.mount(&reference);
        let readers: Vec<_> = damaged()
            .into_iter()
            .map(|(layer, _, opened)| {
                let (kit, point) = (Arc::clone(&kit), mount.point().to_owned());
                let what = format!("{opened:?} of {layer}");
                thread::spawn(move || within(LIMIT, &what, move || access(&kit, &point, &layer, opened)))
            })
            .collect();
        let outcomes: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("right bytes or an error")).collect();
        // Whatever befell them, the neighbour is well, and what became known of the others is true.
        let point = mount.point().to_owned();
        let right = kit.tree.content("sound/part.bin").to_vec();
        within(LIMIT, "the sound layer", move || assert_eq!(read(&point.join("sound/part.bin")), Ok(right)));
        if matches!(times, Times::First(_)) {
            let fault = damage(4096);
            assert!(
                outcomes.iter().all(Result::is_ok),
                "{fault:?} once is mended by fetching again: {outcomes:?}\n{:#}\n{}",
                mount.status(),
                mount.log()
            );
        }
        if matches!(damage(4096), Fault::IgnoreRange) {
            assert!(outcomes.iter().all(Result::is_ok), "a registry without ranges is a registry: {outcomes:?}\n{:#}", mount.status());
        }
        explain(&mount, &kit, &outcomes);
    }
}

/// The whole layer is right, or the errno of the first thing that failed.
fn access(kit: &Kit, point: &Path, layer: &str, opened: Opened) -> Result<(), i32> {
    let path = point.join(layer);
    let right = kit.tree.content(&format!("{layer}/big.bin"));
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or_default();
    match opened {
        Opened::Read => assert!(fs::read(path.join("big.bin")).map_err(errno)? == right, "wrong bytes in {layer}"),
        Opened::Mmap => {
            let file = File::open(path.join("big.bin")).map_err(errno)?;
            // SAFETY: nothing writes to the file of a read-only mount.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(errno)?;
            assert!(*map == *right, "wrong bytes in {layer}");
        }
        Opened::Ls => {
            let mut names: Vec<_> = fs::read_dir(&path)
                .map_err(errno)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()
                .map_err(errno)?;
            names.sort();
            assert_eq!(names, ["big.bin", "small.txt"].map(OsStr::new), "names in {layer}");
        }
    }
    // Once one of its answers was given, all of the layer is verified.
    assert_eq!(fs::metadata(path.join("big.bin")).expect("known").len(), right.len() as u64);
    assert!(fs::read(path.join("big.bin")).expect("verified") == right, "wrong bytes in {layer}");
    assert!(
        is_raw(layer) || fs::read(path.join("small.txt")).expect("verified") == kit.tree.content(&format!("{layer}/small.txt")),
        "wrong bytes in {layer}"
    );
    Ok(())
}

/// Every error is EIO, and the status has its reason.
fn explain(mount: &Mount, kit: &Kit, outcomes: &[Result<(), i32>]) {
    for errno in outcomes.iter().filter_map(|outcome| outcome.err()) {
        assert_eq!(errno, rustix::io::Errno::IO.raw_os_error());
    }
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let status = mount.status();
    let layers = status["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), kit.layers.len());
    let explained = layers.iter().filter(|layer| layer["error"].as_str().is_some_and(|error| !error.is_empty())).count();
    assert!(explained >= failed, "{failed} layers failed: {status:#}");
}

/// Damage to manifest and config: the mount fails in time and leaves nothing, or is right.
fn documents(damage: Damage) {
    let kit = standard();
    for (digest, content) in [(kit.digest(), &kit.manifest), (kit.config_digest(), &kit.config)] {
        for times in [ONCE, Times::Always] {
            let host = Host::new(Mode::Cached);
            let registry = Registry::start();
            kit.serve(&registry, "acme/documents", "v1");
            let fault = damage(content.len() as u64);
            registry.fault(Target::Content(digest.clone()), times, fault.clone());
            let reference = format!("{}/acme/documents@{}", registry.host(), kit.digest());
            match host.try_mount(&reference, &["--prefetch", "none"]) {
                Ok(mount) => {
                    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
                    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
                }
                Err(output) => {
                    assert!(output.took < Duration::from_secs(60), "{fault:?}: {output:#?}");
                    assert!(output.stderr.starts_with("error: "), "{fault:?}: {output:#?}");
                    let damaged = matches!(fault, Fault::Flip(_) | Fault::Swap(_));
                    let codes: &[i32] = if damaged { &[4] } else { &[1, 4] };
                    assert!(codes.contains(&output.code()), "{fault:?}: {output:#?}");
                    host.await_quiet(Duration::from_secs(10)).expect("nothing is left behind");
                }
            }
        }
    }
}

#[test]
fn status_and_log_name_the_digest_expected_and_got() {
    let host = Host::new(Mode::Passthrough);
    let registry = Registry::start();
    let kit = standard();
    let layer = kit.layer("model");
    let mut other = layer.blob.to_vec();
    other[1234] ^= 1;
    let got = crate::common::registry::sha256(&other);
    registry.fault(Target::Content(layer.digest.clone()), Times::Always, Fault::Flip(1234));
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let path = mount.path("model/model.safetensors");
    assert_eq!(within(LIMIT, "a read", move || read(&path)), Err(5));
    let status = mount.layer(&layer.digest);
    let error = status["error"].as_str().expect("an error").to_owned();
    assert_eq!(status["state"], "failed");
    assert!(status["retry_at"].is_string(), "{status:#}");
    for text in [&error, &mount.log()] {
        assert!(text.contains(&layer.digest) && text.contains(&got), "{text}");
    }
    // Exactly one full re-fetch: twice the layer, give or take nothing.
    assert_eq!(registry.sent(&layer.digest), 2 * layer.blob.len() as u64);
    // Before the back-off is over nobody asks again.
    let path = mount.path("model/config.json");
    assert_eq!(within(LIMIT, "a read", move || read(&path)), Err(5));
    assert_eq!(registry.sent(&layer.digest), 2 * layer.blob.len() as u64);
    assert_eq!(read(&mount.path("README.md")).as_deref(), Ok(&b"# hello\n"[..]));
}
