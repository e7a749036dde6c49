//! Questions to the program, and its answers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::Output;
use crate::common::registry::Registry;
use crate::common::signer::{Attached, Signer};

/// What is asked about: a reference, and the options that every command about it gets.
#[derive(Debug, Clone)]
pub struct Asked {
    pub reference: String,
    pub options: Vec<String>,
}

/// What `explain --json` answered.
#[derive(Debug)]
pub struct Answer {
    /// Null if nothing was decided.
    pub report: Value,
    pub output: Output,
}

impl Asked {
    pub fn new(reference: &str) -> Self {
        Self { reference: reference.to_owned(), options: Vec::new() }
    }

    pub fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// With a policy, which is written into the host's folder.
    pub fn policy(self, host: &Host, text: &str) -> Self {
        let file = host.folder("policy").join("policy.yaml");
        fs::write(&file, text).expect("room");
        self.with(&["--policy", file.to_str().expect("ours")])
    }

    /// The arguments of a command that has no mountpoint.
    pub fn arguments<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let mut all = command.to_vec();
        if !["oci:", "oci-archive:", "kitops:"].iter().any(|transport| self.reference.starts_with(transport))
            && !self.options.iter().any(|option| option == "--ca-cert")
        {
            all.push("--plain-http");
        }
        all.extend(self.options.iter().map(String::as_str));
        all.push(&self.reference);
        all
    }

    pub fn explain(&self, host: &Host) -> Answer {
        let output = host.kitfs(&self.arguments(&["explain", "--json"]));
        Answer::read(output)
    }

    pub fn pull(&self, host: &Host) -> Output {
        host.kitfs(&self.arguments(&["pull"]))
    }

    /// Mounts without fetching anything before it is asked for.
    pub fn mount(&self, host: &Host) -> Result<Mount, Output> {
        let mut options: Vec<_> = self.options.iter().map(String::as_str).collect();
        options.extend(["--prefetch", "none"]);
        host.try_mount(&self.reference, &options)
    }
}

impl Answer {
    pub fn read(output: Output) -> Self {
        let report = serde_json::from_str(&output.stdout).unwrap_or_default();
        Self { report, output }
    }

    /// The decision; the exit code says the same.
    pub fn decision(&self) -> &str {
        let decision = self.report["decision"].as_str().unwrap_or("error");
        let codes: &[i32] = match decision {
            "admit" => &[0],
            "deny" => &[3],
            _ => &[1, 4],
        };
        assert!(codes.contains(&self.output.code()), "{decision}, but: {self:#?}");
        decision
    }

    /// The code of the nearest miss.
    pub fn code(&self) -> &str {
        self.report["reasons"][0]["code"].as_str().unwrap_or_default()
    }

    pub fn assert_admitted(&self) {
        assert_eq!(self.decision(), "admit", "{self:#?}");
    }

    pub fn assert_denied(&self, code: &str) {
        assert_eq!((self.decision(), self.code()), ("deny", code), "{self:#?}");
    }

    pub fn assert_undecided(&self) {
        assert_eq!((self.decision(), self.output.code()), ("error", 1), "{self:#?}");
    }
}

/// What a refused mount says: one sentence with the nearest miss, and how to learn more.
pub fn assert_refused(output: &Output, code: Option<&str>) {
    assert_eq!(output.code(), 3, "{output:#?}");
    let (first, hint) = output.stderr.split_once("hint: ").unwrap_or_else(|| panic!("no hint: {output:#?}"));
    assert!(hint.contains("kitfs explain"), "{output:#?}");
    let errors: Vec<_> = first.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1, "one sentence: {output:#?}");
    assert!(!output.stderr.contains('\u{1b}'), "{output:#?}");
    if let Some(code) = code {
        assert!(first.contains(code), "{code} is not in {output:#?}");
    }
}

/// Nothing that a layer is made of is in the cache.
pub fn assert_no_layers(cache: &Path) {
    let found: Vec<PathBuf> =
        fs::read_dir(cache.join("v1/layers")).into_iter().flatten().map(|entry| entry.expect("an entry").path()).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// A kit with a layer to read, signed by nobody.
pub fn kit() -> Kit {
    kit_of("Read me.")
}

pub fn kit_of(text: &str) -> Kit {
    Kitfile::new("demo").docs("README.md").model("model").pack(&Tree::new().file("README.md", text).file("model/w.bin", vec![7; 10_000]))
}

/// What a host asks a registry, a kit in it, and who may sign it.
pub struct Scene {
    pub host: Host,
    pub registry: Registry,
    pub signer: Signer,
    pub kit: Kit,
    pub asked: Asked,
}

/// Where kits of these tests live.
pub const REPOSITORY: &str = "acme/demo";

impl Scene {
    /// A kit that nobody has signed yet, and a policy that wants the signer's key. The registry lists referrers.
    pub fn new() -> Self {
        let scene = Self::without_api();
        scene.registry.list_referrers(50);
        scene
    }

    /// The same, but the registry lists nothing.
    pub fn without_api() -> Self {
        let (host, registry, signer, kit) = (Host::new(Mode::Cached), Registry::start(), Signer::new(), kit());
        let reference = kit.serve(&registry, REPOSITORY, "v1");
        let policy = signer.policy("signed", "**", "");
        let asked = Asked::new(&reference).policy(&host, &policy);
        Self { host, registry, signer, kit, asked }
    }

    pub fn sign(&self) -> Attached {
        self.signer.attach(&self.registry, REPOSITORY, &self.kit.digest())
    }

    pub fn explain(&self) -> Answer {
        self.asked.explain(&self.host)
    }

    /// How often any layer was asked for.
    pub fn layers_asked(&self) -> usize {
        self.kit.layers.iter().map(|layer| self.registry.asked(&layer.digest)).sum()
    }
}
