//! The fuzz targets of `fuzz/`, run for a short while with a stable toolchain, so that they cannot rot.
//!
//! Each gets the fixtures as they are, and then a fixed number of changed ones: the same ones every time. `KITFS_FUZZ_SECONDS` makes each run
//! for so long instead, from a seed of the clock's, and `KITFS_FUZZ_SEEDS` names a folder that the seeds are written to, for `cargo fuzz`.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;

/// Changed inputs for each target where nobody says how long.
const INPUTS: u64 = 1500;
/// Bytes of an input; longer seeds are left out.
const INPUT_BYTES: usize = 64 << 10;
type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

#[test]
fn every_target_holds_for_the_fixtures_and_for_what_is_near_them() {
    let seeds = seeds();
    if let Some(folder) = std::env::var_os("KITFS_FUZZ_SEEDS") {
        for (target, seeds) in &seeds {
            let folder = Path::new(&folder).join(target);
            std::fs::create_dir_all(&folder).expect("a folder");
            for (number, seed) in seeds.iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number}")), seed).expect("room");
            }
        }
    }
    let seconds: Option<u64> = std::env::var("KITFS_FUZZ_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    for (name, target) in bodies::TARGETS {
        let seeds = &seeds[name];
        assert!(seeds.len() >= 10, "{name}: {} seeds", seeds.len());
        for seed in seeds {
            run(name, target, seed);
        }
        let first = seconds.map_or(0, |_| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later").as_nanos() as u64);
        let began = Instant::now();
        let goes_on = |done: u64| match seconds {
            Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
            None => done < INPUTS,
        };
        let mut done = 0;
        while goes_on(done) {
            let mut random = Rng::with_seed(first.wrapping_add(done));
            run(name, target, &changed(&mut random, seeds));
            done += 1;
        }
        println!("{name}: {} seeds, {done} changed inputs, {:.1} s", seeds.len(), began.elapsed().as_secs_f32());
    }
}

/// Runs a target, and leaves the input that it fails for where it can be looked at.
fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let (_, path) = tempfile::Builder::new().prefix(&format!("kitfs-fuzz-{name}-")).tempfile().expect("a file").keep().expect("a file");
        std::fs::write(&path, input).expect("room");
        println!("{name} fails for {}", path.display());
        std::panic::resume_unwind(panic);
    }
}

/// A seed with a few changes.
fn changed(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    const ODD: [&[u8]; 14] = [
        b"\0",
        b"\xff",
        b"..",
        b"/",
        b"-1",
        b"\"",
        b"{",
        b"[",
        b"null",
        b"\\u202e",
        b"9223372036854775807",
        b"\x80\0\0\0",
        b"1e999",
        b"\n",
    ];
    let mut input = random.choice(seeds).expect("seeds").clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(0..=input.len());
        let end = (at + random.usize(0..40)).min(input.len());
        match random.u8(0..9) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => _ = input.drain(at..end),
            3 => _ = input.splice(at..end, random.choice(ODD).expect("some").iter().copied()),
            4 => _ = input.splice(at..at, random.choice(ODD).expect("some").iter().copied()),
            5 => {
                let piece = input[at..end].to_vec();
                let to = random.usize(0..=input.len());
                input.splice(to..to, piece);
            }
            6 => {
                let other = random.choice(seeds).expect("seeds");
                let from = random.usize(0..=other.len());
                let to = (from + random.usize(0..600)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            7 if random.u8(0..4) == 0 => input.truncate(at),
            _ if end > at => input[at..end].fill(random.u8(..)),
            _ => {}
        }
    }
    input.truncate(INPUT_BYTES);
    input
}

/// What the fixtures have for each target.
fn seeds() -> Seeds {
    let mut seeds: Seeds = bodies::TARGETS.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let mut add = |target, seed: Vec<u8>| {
        let seeds = seeds.get_mut(target).expect("a target");
        if seed.len() <= INPUT_BYTES && !seeds.contains(&seed) {
            seeds.push(seed);
        }
    };
    for kind in ["kits", "hostile"] {
        for case in folders(kind) {
            let text = std::fs::read_to_string(case.join("case.json")).expect("case.json");
            let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            for filters in text["filters"].as_array().into_iter().flatten() {
                for filter in filters["filter"].as_array().into_iter().flatten() {
                    add("filter", filter.as_str().expect("a filter").as_bytes().to_vec());
                }
            }
            add("reference", text["reference"].as_str().expect("a reference").as_bytes().to_vec());
            let blobs = blobs(&case);
            for blob in blobs.values() {
                match blob.as_slice() {
                    [0x1f, 0x8b, ..] => add("gzip", blob.clone()),
                    [0x28, 0xb5, 0x2f, 0xfd, ..] => add("zstd", blob.clone()),
                    tar if tar.get(257..262) == Some(b"ustar") => {
                        add("tar", tar.to_vec());
                        bodies::index_of(tar).into_iter().for_each(|index| add("index", index));
                    }
                    document => {
                        let Ok(json) = serde_json::from_slice::<serde_json::Value>(document) else { continue };
                        add("kitfile", document.to_vec());
                        add("predicate", document.to_vec());
                        let Some(config) = json["config"]["digest"].as_str() else { continue };
                        let Some(content) = blobs.get(config) else { continue };
                        let manifest = String::from_utf8_lossy(document).replace(config, bodies::CONFIG_DIGEST);
                        add("plan", [manifest.as_bytes(), b"\0", content].concat());
                    }
                }
            }
        }
    }
    for case in folders("signed").into_iter().filter(|case| case.join("layout.tar").exists()) {
        for blob in blobs(&case).into_values().filter(|blob| {
            String::from_utf8_lossy(blob).contains("verificationMaterial") || String::from_utf8_lossy(blob).contains("payloadType")
        }) {
            add("decision", blob.clone());
            add("bundle", blob);
        }
    }
    for case in folders("signed").into_iter().filter(|case| case.join("layout.tar").exists()) {
        for blob in blobs(&case).into_values() {
            let text = String::from_utf8_lossy(&blob);
            if ["bundle.v0.3+json", "simplesigning.v1+json", "dsse.envelope.v1+json"].iter().any(|kind| text.contains(kind))
                && text.contains("schemaVersion")
            {
                add("attached", blob);
            }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [folder.join("tests/fixtures/signed"), folder.join("examples/policies")] {
        let mut paths: Vec<_> = std::fs::read_dir(folder).expect("policies").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths.iter().flat_map(|path| [path.clone(), path.join("policy.yaml"), path.join("policy-v1.yaml")]) {
            if path.is_file() && path.extension().is_some_and(|ending| ending == "yaml") {
                add("policy", std::fs::read(path).expect("a policy"));
            }
        }
    }
    for glob in ["*.bin", "/model/**", "a/b/", "**/x", "[a-c]?.[!t]xt", "{a,b}", "data/*"] {
        add("filter", glob.as_bytes().to_vec());
    }
    // Both fixtures together have fewer than ten.
    for level in [1, 3, 9] {
        for content in [&b"x"[..], &[7; 5000], include_bytes!("fuzz_targets.rs")] {
            add("zstd", zstd(content, level));
        }
    }
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    for reference in
        ["localhost/a", "h.example:5000/a/b:t", "oci:dir", "oci:/a/b:name", "[::1]:5000/a:b", "oci:a:b/c:d", "weights:v2", "oCi:5/ci"]
    {
        add("reference", reference.as_bytes().to_vec());
        add("reference", format!("{reference}@{digest}").into_bytes());
    }
    seeds
}

/// The folders and files of the fixtures of one kind.
fn folders(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut cases: Vec<_> = std::fs::read_dir(folder).expect("the fixtures").map(|entry| entry.expect("an entry").path()).collect();
    cases.sort();
    cases
}

fn zstd(content: &[u8], level: i32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    zstd_safe::compress(&mut frame, content, level).expect("room");
    frame
}

/// The blobs of a case's layout, by digest.
fn blobs(case: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut blobs = BTreeMap::new();
    let layout = std::fs::File::open(case.join("layout.tar")).expect("a layout");
    for entry in tar::Archive::new(layout).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        if let Some((algorithm, hex)) = name.strip_prefix("blobs/").and_then(|name| name.split_once('/'))
            && entry.size() <= INPUT_BYTES as u64
        {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("a whole entry");
            blobs.insert(format!("{algorithm}:{hex}"), content);
        }
    }
    blobs
}
