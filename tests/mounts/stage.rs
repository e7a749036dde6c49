//! Where the store is killed, cut off from power or damaged: a host and a registry with kits that are each used once, and what has to hold on that host whatever
//! happened to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kit, Kitfile, MANIFEST, Packing, Tree};
use crate::common::process::{Output, run, within};
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree};
use crate::common::steps::Steps;
use crate::kits::{MIB, bytes};

const LIMIT: Duration = Duration::from_secs(90);

/// The kind of kit that has nothing but a plain archive.
pub const ARCHIVE: usize = 5;

/// A host, a registry, and kits that are each used once.
pub struct Stage {
    pub host: Host,
    pub registry: Registry,
    pub steps: Steps,
    served: Vec<Served>,
}

/// A kit in the registry.
#[derive(Clone)]
pub struct Served {
    pub kit: Kit,
    pub reference: String,
    attached: String,
}

impl Stage {
    pub fn new() -> Self {
        let host = Host::new(Mode::Cached);
        let registry = Registry::start();
        registry.list_referrers(10);
        let steps = Steps::new(host.folder("steps"));
        Self { host, registry, steps, served: Vec::new() }
    }

    /// Serves another kit than before: an archive of several files, and a layer of one of five other kinds, if it is not [`ARCHIVE`].
    pub fn serve(&mut self, kind: usize) -> Served {
        let number = self.served.len() as u64;
        let mut tree = Tree::new()
            .file("plain/big.bin", bytes(10 * number, MIB + 300_000))
            .file("plain/more/big.bin", bytes(10 * number + 1, MIB + 7))
            .file("plain/small.txt", format!("small {number}"));
        if kind != ARCHIVE {
            tree = tree
                .file("other", bytes(10 * number + 2, MIB + 4000))
                .file("files/note.txt", format!("note {number}"))
                .file("files/big.bin", bytes(10 * number + 3, MIB + 100));
        }
        let kitfile = Kitfile::new("kit").dataset("plain");
        let kitfile = match kind {
            0 => kitfile.gzip().dataset("files"),
            1 => kitfile.zstd().dataset("files"),
            2 => kitfile.raw().dataset("other"),
            3 => kitfile.packing(Packing::RawGzip).dataset("other"),
            ARCHIVE => kitfile,
            _ => kitfile.packing(Packing::RawZstd).dataset("other"),
        };
        self.serve_kit(kitfile.pack(&tree))
    }

    pub fn serve_kit(&mut self, kit: Kit) -> Served {
        let name = format!("acme/kit-{}", self.served.len());
        let reference = kit.serve(&self.registry, &name, "v1");
        // Not a signature, but it could be one: it is fetched and kept.
        let config = self.registry.blob("{}");
        let blob = self.registry.blob(format!("no bundle of {name}"));
        let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": bundle,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2 },
            "layers": [{ "mediaType": bundle, "digest": blob, "size": format!("no bundle of {name}").len() }],
            "subject": { "mediaType": MANIFEST, "digest": kit.digest(), "size": kit.manifest.len() },
        });
        let attached = self.registry.attach(&name, &kit.digest(), MANIFEST, manifest.to_string());
        let served = Served { kit, reference, attached };
        self.served.push(served.clone());
        served
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(arguments);
        let (name, value) = self.steps.variable();
        command.env(name, value);
        command
    }

    pub fn kitfs(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments), LIMIT)
    }

    pub fn pull(&self, served: &Served) -> Output {
        self.kitfs(&pull(served))
    }

    /// Runs `kitfs` and has it killed at the step, which it must come by.
    pub fn killed_at(&self, step: &str, arguments: &[&str]) {
        assert!(self.try_killed_at(step, arguments), "{step}: {arguments:?} did not come by it");
    }

    /// Runs `kitfs` and has it killed at the step; false if it did not come by it, and ended well.
    pub fn try_killed_at(&self, step: &str, arguments: &[&str]) -> bool {
        self.steps.plan(&format!("{step} kill"));
        let output = self.kitfs(arguments);
        let fired = self.steps.fired();
        self.steps.clear();
        if fired {
            assert_eq!(output.signal(), Some(9), "{step}: {output:#?}");
        } else {
            output.ok();
        }
        fired
    }

    pub fn cache(&self, name: &str) -> PathBuf {
        self.host.cache().join("v1").join(name)
    }

    /// Layers of a kit that are in their place, with the bytes of each that were sent.
    pub fn complete(&self, kit: &Kit) -> BTreeMap<String, u64> {
        let here = kit.layers.iter().filter(|layer| self.cache("layers").join(layer.stored_name()).exists());
        here.map(|layer| (layer.digest.clone(), self.registry.sent(&layer.digest))).collect()
    }

    /// The next one finds all of the kit, or gets it, and nothing that is complete is fetched.
    pub fn assert_whole(&self, step: &str, served: &Served, complete: &BTreeMap<String, u64>, shown: bool) {
        let kit = &served.kit;
        let config = self.cache("blobs").join(kit.config_digest().replace(':', "-")).exists();
        let asked = self.registry.asked(&kit.config_digest());
        self.pull(served).ok();
        for (layer, sent) in complete {
            assert_eq!(self.registry.sent(layer), *sent, "{step}: {layer} was here");
        }
        assert!(!config || self.registry.asked(&kit.config_digest()) == asked, "{step}: the config was here");
        self.kitfs(&["verify", "--plain-http", &served.reference]).ok();
        if shown {
            let mount = self.mount(served);
            let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
            within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
            mount.umount().ok();
        }
        self.assert_clean(step);
    }

    pub fn mount(&self, served: &Served) -> crate::common::kitfs::Mount {
        let mount = self.host.try_mount_in(&served.reference, &["--prefetch", "none"], &[self.steps.variable()]);
        mount.unwrap_or_else(|output| panic!("{output:#?}"))
    }

    /// Nothing is left behind after `prune`, no lock is held, and every file has the size that it should.
    pub fn assert_clean(&self, step: &str) {
        self.kitfs(&["cache", "prune"]).ok();
        let known = |names: &mut dyn Iterator<Item = String>| names.collect::<BTreeSet<String>>();
        let layers = || self.served.iter().flat_map(|served| &served.kit.layers);
        let stored = known(&mut layers().map(|layer| layer.stored_name()));
        let expect = |folder: &Path, allowed: &dyn Fn(&str) -> bool| {
            let names = names(folder);
            let strange: Vec<_> = names.iter().filter(|name| !allowed(name)).collect();
            assert!(strange.is_empty(), "{step}: {strange:?} in {}", folder.display());
            names
        };
        expect(&self.host.cache(), &|name| ["lock", "limit", "v1"].contains(&name));
        expect(&self.cache("ingest"), &|_| false);
        expect(&self.cache("trash"), &|_| false);
        expect(&self.cache("index"), &|name| stored.contains(name));
        expect(&self.cache("pinned"), &|name| stored.contains(name));
        let documents = known(&mut self.served.iter().flat_map(|served| {
            let blob = crate::common::registry::sha256(format!("no bundle of {}", name_of(served)).as_bytes());
            [served.kit.digest(), served.kit.config_digest(), served.attached.clone(), blob].map(|digest| digest.replace(':', "-"))
        }));
        expect(&self.cache("blobs"), &|name| documents.contains(name));
        expect(&self.cache("attached"), &|name| documents.contains(name));
        assert!(names(&self.cache("references")).len() <= 2 * self.served.len(), "{step}");
        let locks = expect(&self.cache("locks"), &|name| {
            let layer = name.split_once('.').map_or(name, |(layer, _)| layer);
            ["evict", "attached"].contains(&name) || stored.contains(layer)
        });
        for lock in locks.iter().map(|name| self.cache("locks").join(name)).chain([self.host.cache().join("lock")]) {
            await_free(&lock, step);
        }
        for layer in layers() {
            let folder = self.cache("layers").join(layer.stored_name());
            if !folder.exists() {
                continue;
            }
            let names = expect(&folder, &|name| ["pack", "visible", "durable"].contains(&name) || name.ends_with(".data"));
            assert!(["pack", "visible", "durable"].iter().all(|name| names.contains(*name)), "{step}: {names:?}");
            let size = |name: &String| fs::metadata(folder.join(name)).expect("there").len();
            let content: u64 = names.iter().filter(|name| *name == "pack" || name.ends_with(".data")).map(size).sum();
            if layer.media_type.ends_with("tar") || layer.media_type.ends_with("raw") {
                assert_eq!(content, layer.blob.len() as u64, "{step}: {names:?}");
            }
        }
        expect(&self.cache("layers"), &|name| stored.contains(name));
    }
}

pub fn name_of(served: &Served) -> &str {
    let (_, name) = served.reference.split_once('/').expect("a registry");
    name.split_once(':').expect("a tag").0
}

pub fn pull(served: &Served) -> [&str; 3] {
    ["pull", "--plain-http", &served.reference]
}

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

/// Waits until nobody holds the lock: who was killed is gone, and a supervisor lets go a moment after its mount.
fn await_free(path: &Path, step: &str) {
    let Ok(file) = File::open(path) else { return };
    let until = Instant::now() + Duration::from_secs(20);
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(Instant::now() < until, "{step}: {} is held", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Of the first layer the index is lost, of the others it is damaged.
pub fn damage_indexes(stage: &Stage, served: &Served) {
    for (number, layer) in served.kit.layers.iter().enumerate() {
        let path = stage.cache("index").join(layer.stored_name());
        if number == 0 { fs::remove_file(path).expect("an index") } else { flip(&path, 100) }
    }
}

/// Every layer has a byte that is another one.
pub fn damage_layers(stage: &Stage, served: &Served) {
    for layer in &served.kit.layers {
        let folder = stage.cache("layers").join(layer.stored_name());
        let data = names(&folder).into_iter().find(|name| name.ends_with(".data")).expect("a file of its own");
        flip(&folder.join(data), 4711);
    }
}

/// Changes a byte in place, as a failing disk would.
fn flip(path: &Path, at: u64) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
    let file = File::options().read(true).write(true).open(path).expect("writable");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("long enough");
    file.write_all_at(&[byte[0] ^ 1], at).expect("room");
}
