//! `kitfs status`: the mounts of a run directory, as their supervisors and workers tell of them.
//!
//! No mount is touched for it, so that one that hangs cannot make it hang.

use std::fmt::Write as _;
use std::path::Path;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::args::Status;
use super::error::{CliError, hint_of_class};
use super::report::{self, Exit, escaped};
use super::{print, umount};
use crate::admission::{Admission, DecidedPolicy, NamedRoot};
use crate::decided;
use crate::failure::ErrorClass;
use crate::filter::{Glob, Selection};
use crate::metrics::Totals;
use crate::mountinfo;
use crate::plan::{Prefetch, ReferenceRecord, RemoteRecord, Settings};
use crate::run::{LayerReport, LayerStatus, MountCounts, MountDir, MountRecord, MountState, Phase, RunError};

pub(super) fn run(arguments: &Status) -> Result<Exit, CliError> {
    let run_dir = umount::open(&arguments.run)?;
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in run_dir.mounts()? {
        match Mount::read(&mount) {
            Ok(shown) => mounts.extend(shown),
            // It went while it was looked at, or is damaged: the others are there all the same.
            Err(error) => report::warning(&format!("{}: {error}", mount.path().display())),
        }
    }
    // Those that died were told of once; their folders have no other use.
    run_dir.clean_up_dead()?;
    if let Some(dir) = &arguments.mountpoint {
        let path = mountinfo::find(dir).map_err(|source| CliError::Folder { path: dir.clone(), source })?.0;
        mounts.retain(|mount| Path::new(&mount.mountpoint) == path);
        if mounts.is_empty() {
            return Err(CliError::NoSuchMount { path });
        }
    }
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    let text = match (arguments.json, mounts.is_empty()) {
        (true, _) => report::json(&Mounts { mounts })?,
        (false, true) => "no mounts\n".to_owned(),
        (false, false) => mounts.iter().map(Mount::text).collect::<Vec<_>>().join("\n"),
    };
    print(text.as_bytes())
}

/// What other programs rely on: keys are added, not changed.
#[derive(Debug, Serialize)]
struct Mounts {
    mounts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
struct Mount {
    mountpoint: String,
    reference: String,
    digest: String,
    state: &'static str,
    supervisor_pid: u32,
    supervisor_version: Option<String>,
    worker_pid: Option<u32>,
    worker_version: Option<String>,
    restarts: u32,
    since: String,
    cache_dir: String,
    passthrough: bool,
    log: String,
    references: Vec<ReferenceRecord>,
    remote: Vec<RemoteRecord>,
    /// `admitted`, or `no-policy` if there was none for at least one of the kits; null if nothing was decided.
    decision: Option<&'static str>,
    /// What the caller claimed that the kit is.
    claim: Option<String>,
    /// The decisions: the kit's own, then those about kits that it refers to.
    admissions: Vec<Admitted>,
    audit_log: Option<String>,
    settings: Shown,
    counts: Counts,
    layers: Vec<Layer>,
}

/// What was said of how it works; null where nothing was.
#[derive(Debug, Serialize)]
struct Shown {
    filter: Vec<String>,
    include: Vec<String>,
    exclude: Vec<String>,
    include_remote: bool,
    prefetch: Prefetch,
    jobs: Option<u16>,
    connections: Option<u16>,
    allow_other: bool,
    metrics: Option<String>,
}

/// What it has done so far.
#[derive(Debug, Serialize)]
struct Counts {
    #[serde(flatten)]
    totals: Totals,
    waiting: u64,
    cache_over_limit_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Admitted {
    /// `admitted` or `no-policy`.
    decision: &'static str,
    signers: Vec<String>,
    #[serde(flatten)]
    admission: Admission,
}

#[derive(Debug, Serialize)]
struct Layer {
    digest: String,
    media_type: String,
    path: String,
    size: u64,
    state: &'static str,
    fetched: u64,
    error: Option<String>,
    class: Option<&'static str>,
    retry_at: Option<String>,
    /// What to do about it, for people.
    #[serde(skip)]
    hint: Option<&'static str>,
}

impl Mount {
    /// `None` for a mount that does not serve yet.
    fn read(mount: &MountDir) -> Result<Option<Self>, RunError> {
        let Some(record) = mount.read_record()? else { return Ok(None) };
        let state = mount.read_state()?;
        let layers = mount.read_layers()?.unwrap_or_default();
        let counts = mount.read_counts()?.unwrap_or_default();
        Ok(Some(Self::new(record, state, layers, counts, mount.is_alive()?)))
    }

    fn new(record: MountRecord, state: Option<MountState>, layers: Vec<LayerReport>, counts: MountCounts, alive: bool) -> Self {
        // Before the first word of its supervisor no worker answers yet.
        let MountState { state, worker_pid, worker_version, restarts } =
            state.unwrap_or(MountState { state: Phase::Restarting, worker_pid: None, worker_version: None, restarts: 0 });
        let state = match state {
            _ if !alive => "dead",
            Phase::Serving => "serving",
            Phase::Restarting => "restarting",
            Phase::Stopping => "stopping",
        };
        Self {
            mountpoint: record.mountpoint.to_string_lossy().into_owned(),
            reference: record.reference,
            digest: record.digest.to_string(),
            state,
            supervisor_pid: record.supervisor_pid,
            supervisor_version: record.supervisor_version,
            worker_pid: worker_pid.filter(|_| alive),
            worker_version: worker_version.filter(|_| alive),
            restarts,
            since: record.since,
            cache_dir: record.cache_dir.to_string_lossy().into_owned(),
            passthrough: record.passthrough.unwrap_or_default(),
            log: record.log.to_string_lossy().into_owned(),
            references: record.references,
            remote: record.remote,
            decision: decided::decision(&record.admissions),
            claim: record.admissions.first().and_then(|kit| kit.claim.clone()),
            admissions: record.admissions.into_iter().map(Admitted::new).collect(),
            audit_log: record.audit.map(|audit| audit.path.to_string_lossy().into_owned()),
            settings: Shown::new(record.settings),
            counts: Counts { totals: counts.totals, waiting: counts.waiting, cache_over_limit_bytes: counts.cache_over_limit_bytes },
            layers: layers.into_iter().map(Layer::new).collect(),
        }
    }

    fn text(&self) -> String {
        let Self { state, since, supervisor_pid, restarts, .. } = self;
        // Versions are worth a word where there are two.
        let of = |version: &Option<String>| match version {
            Some(version) if self.supervisor_version != self.worker_version => format!(" (kitfs {version})"),
            _ => String::new(),
        };
        let (supervisor_of, worker_of) =
            (of(&self.supervisor_version.clone().filter(|_| self.worker_pid.is_some())), of(&self.worker_version));
        let worker = self.worker_pid.map_or_else(|| "no worker".to_owned(), |pid| format!("worker {pid}{worker_of}"));
        let passthrough = if self.passthrough { "passthrough" } else { "no passthrough" };
        let cached = self.layers.iter().filter(|layer| layer.state == "cached").count();
        let here: u64 = self.layers.iter().map(|layer| layer.fetched.min(layer.size)).fold(0, u64::saturating_add);
        let all: u64 = self.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        let mut text = escaped(&self.mountpoint) + "\n";
        for (key, value) in [
            ("reference", &self.reference),
            ("digest", &self.digest),
            ("state", &format!("{state} since {since}; supervisor {supervisor_pid}{supervisor_of}, {worker}, {restarts} restarts")),
            ("cache", &format!("{} ({passthrough})", self.cache_dir)),
            ("log", &self.log),
            ("layers", &format!("{cached} of {} cached, {} of {}", self.layers.len(), BinaryBytes(here), BinaryBytes(all))),
        ] {
            // Writing into a String cannot fail.
            _ = writeln!(text, "  {key:<10} {}", escaped(value));
        }
        let settings = self.settings.text();
        if !settings.is_empty() {
            _ = writeln!(text, "  {:<10} {}", "options", escaped(&settings));
        }
        self.counts.tell(&mut text);
        for (position, admitted) in self.admissions.iter().enumerate() {
            admitted.tell(position > 0, &mut text);
        }
        if let Some(path) = &self.audit_log {
            _ = writeln!(text, "  {:<10} {}", "audit", escaped(path));
        }
        for ReferenceRecord { reference, digest, part, path, .. } in &self.references {
            _ = writeln!(text, "    refers to {} for {} at {}", escaped(&format!("{reference}@{digest}")), escaped(part), escaped(path));
        }
        for RemoteRecord { path, address } in &self.remote {
            _ = writeln!(text, "    not here: the dataset at {}, which lives at {}", escaped(path), escaped(address));
        }
        for layer in &self.layers {
            let Layer { digest, path, size, state, fetched, error, retry_at, hint, .. } = layer;
            let amount = match *state {
                "fetching" => format!("{} of {}", BinaryBytes(*fetched), BinaryBytes(*size)),
                _ => BinaryBytes(*size).to_string(),
            };
            _ = writeln!(text, "    {state:<9} {}  {}, {amount}", escaped(digest), escaped(path));
            if let Some(error) = error {
                let retry = retry_at.as_ref().map(|time| format!(" (again at {time})")).unwrap_or_default();
                _ = writeln!(text, "              {}", escaped(&format!("{error}{retry}")));
            }
            if let Some(hint) = hint {
                _ = writeln!(text, "              hint: {hint}");
            }
        }
        text
    }
}

impl Shown {
    fn new(settings: Settings) -> Self {
        let Settings { selection, include_remote, prefetch, jobs, connections, allow_other, metrics } = settings;
        let Selection { filters, globs } = selection;
        let globs_of = |globs: &[Glob]| globs.iter().cloned().map(String::from).collect();
        Self {
            filter: filters.into_iter().map(String::from).collect(),
            include: globs_of(globs.include()),
            exclude: globs_of(globs.exclude()),
            include_remote,
            prefetch,
            jobs,
            connections,
            allow_other,
            metrics,
        }
    }

    /// As they would be given; those that are as if nothing was said are left out.
    fn text(&self) -> String {
        let Self { filter, include, exclude, include_remote, prefetch, jobs, connections, allow_other, metrics } = self;
        let mut given = Vec::new();
        for (option, values) in [("filter", filter), ("include", include), ("exclude", exclude)] {
            given.extend(values.iter().map(|value| format!("--{option} {value}")));
        }
        match prefetch {
            Prefetch::None => given.push("--prefetch none".into()),
            Prefetch::Small => {}
            Prefetch::All => given.push("--prefetch all".into()),
        }
        for (option, number) in [("jobs", jobs), ("connections", connections)] {
            given.extend(number.iter().map(|number| format!("--{option} {number}")));
        }
        for (option, on) in [("include-remote", include_remote), ("allow-other", allow_other)] {
            given.extend(on.then(|| format!("--{option}")));
        }
        given.extend(metrics.iter().map(|address| format!("--metrics {address}")));
        given.join(" ")
    }
}

impl Counts {
    fn tell(&self, text: &mut String) {
        let Totals { fetched_bytes, served_bytes, passthrough_opens, passthrough_opened_bytes, served_opens, .. } = self.totals;
        let Totals { waits, wait_seconds, verification_failures, evictions, evicted_bytes, ref errors, .. } = self.totals;
        let failed: Vec<String> =
            errors.iter().filter(|(_, count)| **count > 0).map(|(class, count)| format!("{count} {}", escaped(class))).collect();
        let errors = if failed.is_empty() { "0 errors".to_owned() } else { format!("errors: {}", failed.join(", ")) };
        let [fetched, served, passed, evicted] = [fetched_bytes, served_bytes, passthrough_opened_bytes, evicted_bytes].map(BinaryBytes);
        for (key, value) in [
            ("fetched", format!("{fetched}, {verification_failures} mismatches, {errors}")),
            ("served", format!("{served} in {served_opens} opens; {passthrough_opens} opens of {passed} by the kernel itself")),
            ("waits", format!("{waits}, {wait_seconds:.1} s together; {} now", self.waiting)),
            ("evicted", format!("{evictions} layers, {evicted}")),
        ] {
            _ = writeln!(text, "  {key:<10} {value}");
        }
        if self.cache_over_limit_bytes > 0 {
            _ = writeln!(text, "  {:<10} the cache is {} over its limit", "", BinaryBytes(self.cache_over_limit_bytes));
        }
    }
}

impl Admitted {
    fn new(admission: Admission) -> Self {
        let decision = if decided::is_by_policy(&admission) { "admitted" } else { "no-policy" };
        Self { decision, signers: admission.signers().into_iter().map(str::to_owned).collect(), admission }
    }

    /// Says why the kit, or one that it refers to, is shown.
    fn tell(&self, of_another: bool, text: &mut String) {
        let Self { decision, signers, admission } = self;
        let which = if of_another { format!(" for {}@{}", admission.reference, admission.digest) } else { String::new() };
        let what = match *decision {
            "no-policy" => "no policy, so nobody vouches for it",
            admitted => admitted,
        };
        let mut line = |key: &str, value: &str| _ = writeln!(text, "  {key:<10} {}", escaped(value));
        line("decision", &format!("{what}{which}, decided {}", admission.at));
        if let Some(claim) = &admission.claim {
            line("", &format!("claimed by the caller to be {claim}"));
        }
        for signer in signers {
            line("", &format!("signed by {signer}"));
        }
        for DecidedPolicy { set, name, digest, mode, met } in &admission.policies {
            let outcome = match (*met, mode.as_str()) {
                (true, _) => "met",
                (false, "warn") => "not met, only warns",
                (false, _) => "not met",
            };
            line("", &format!("policy {name}@{digest} of the {set}: {outcome}"));
        }
        for NamedRoot { set, name, digest } in &admission.trust_roots {
            line("", &format!("trust root {name}@{digest} of the {set}"));
        }
        for warning in &admission.warnings {
            line("", &format!("warning: {warning}"));
        }
    }
}

impl Layer {
    fn new(report: LayerReport) -> Self {
        let LayerReport { digest, media_type, path, size, state, fetched, error, class, retry_at } = report;
        let state = match state {
            LayerStatus::Absent => "absent",
            LayerStatus::Waiting => "waiting",
            LayerStatus::Fetching => "fetching",
            LayerStatus::Cached => "cached",
            LayerStatus::Failed => "failed",
        };
        let (hint, class) = (class.and_then(hint_of_class), class.map(ErrorClass::code));
        Self { digest: digest.to_string(), media_type, path, size, state, fetched, error, class, retry_at, hint }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::filter::Globs;
    use crate::fixtures::admission;
    use crate::plan::AuditPlan;

    fn mount(alive: bool, state: Option<MountState>) -> Mount {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let mut kit = admission("reg.example/acme/m:v1", &["alice@example.com\u{1b}"]);
        kit.claim = Some("reg.example/acme/other:v1".into());
        kit.warnings = vec!["a policy only warns\u{202e}".into()];
        let record = MountRecord {
            id: "0".into(),
            mountpoint: "/mnt/kit".into(),
            reference: "reg.example/acme/m:v1".into(),
            digest,
            supervisor_pid: 10,
            supervisor_version: Some("0.1.0".into()),
            since: "2026-11-24T10:00:00Z".into(),
            cache_dir: "/var/cache/kitfs".into(),
            device: (0, 50),
            mount_id: 7,
            log: "/run/kitfs/0/log".into(),
            passthrough: Some(true),
            references: vec![ReferenceRecord {
                reference: "reg.example/acme/base:v1".into(),
                digest,
                pinned_by: "source".into(),
                source: "reg.example/acme/base:v1".into(),
                part: "model".into(),
                path: ".".into(),
            }],
            remote: vec![RemoteRecord { path: "far".into(), address: "s3://bucket/\u{1b}key".into() }],
            access: crate::source::SourceOptions::default(),
            admissions: vec![kit, admission("reg.example/acme/base:v1", &["bob"])],
            audit: Some(AuditPlan { path: "/var/log/kitfs.jsonl".into(), best_effort: true }),
            settings: Settings {
                selection: Selection {
                    filters: vec!["model:\u{1b}a".parse().expect("a filter")],
                    globs: Globs::new(vec!["*.bin".parse().expect("a glob")], Vec::new()),
                },
                prefetch: Prefetch::All,
                jobs: Some(3),
                connections: Some(2),
                metrics: Some("http://127.0.0.1:9464/metrics".into()),
                ..Settings::default()
            },
        };
        let layer = LayerReport {
            digest,
            media_type: "x/\u{1b}[31my".into(),
            path: "model\u{202e}".into(),
            size: 123,
            state: LayerStatus::Failed,
            fetched: 23,
            error: Some("it\nbroke".into()),
            class: Some(ErrorClass::Disk(libc::ENOSPC)),
            retry_at: Some("2026-11-24T10:01:00Z".into()),
        };
        let totals = Totals {
            fetched_bytes: 2048,
            served_bytes: 1024,
            passthrough_opens: 3,
            passthrough_opened_bytes: 4096,
            served_opens: 5,
            waits: 2,
            wait_seconds: 1.25,
            verification_failures: 1,
            evictions: 4,
            evicted_bytes: 512,
            errors: [("disk".to_owned(), 2), ("network".to_owned(), 0)].into(),
        };
        Mount::new(record, state, vec![layer], MountCounts { totals, waiting: 6, cache_over_limit_bytes: 7 }, alive)
    }

    fn sha256(text: &str) -> String {
        Digest::of(Algorithm::Sha256, text.as_bytes()).to_string()
    }

    fn counted(signer: &str) -> serde_json::Value {
        json!({
            "policy": "signed", "authority": "team", "digest": sha256(signer), "manifest": sha256("manifest"), "format": "bundle",
            "predicate_type": "https://sigstore.dev/cosign/sign/v1", "signer": signer, "issuer": "https://issuer.example",
            "subject": signer, "key": null, "times": ["2026-11-20T10:00:00Z"], "log_index": 7,
        })
    }

    #[test]
    fn the_shape_of_json_is_fixed() {
        let serving = MountState { state: Phase::Serving, worker_pid: Some(11), worker_version: Some("0.2.0".into()), restarts: 2 };
        let digest = Digest::of(Algorithm::Sha256, b"").to_string();
        let shown = report::json(&Mounts { mounts: vec![mount(true, Some(serving))] }).expect("plain data");
        assert!(!shown.contains(['\u{1b}', '\u{202e}']));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"),
            json!({"mounts": [{
                "mountpoint": "/mnt/kit", "reference": "reg.example/acme/m:v1", "digest": digest, "state": "serving",
                "supervisor_pid": 10, "supervisor_version": "0.1.0", "worker_pid": 11, "worker_version": "0.2.0", "restarts": 2, "since": "2026-11-24T10:00:00Z",
                "cache_dir": "/var/cache/kitfs", "passthrough": true, "log": "/run/kitfs/0/log",
                "references": [{
                    "reference": "reg.example/acme/base:v1", "digest": digest, "pinned_by": "source",
                    "source": "reg.example/acme/base:v1", "part": "model", "path": ".",
                }],
                "remote": [{ "path": "far", "address": "s3://bucket/\u{1b}key" }],
                "decision": "admitted", "claim": "reg.example/acme/other:v1", "audit_log": "/var/log/kitfs.jsonl",
                "admissions": [
                    {
                        "decision": "admitted", "signers": ["alice@example.com\u{1b}"], "reference": "reg.example/acme/m:v1",
                        "claim": "reg.example/acme/other:v1", "digest": sha256("reg.example/acme/m:v1"), "at": "2026-11-24T10:00:00Z",
                        "policies": [{ "set": "host", "name": "signed", "digest": sha256("policy"), "mode": "enforce", "met": true }],
                        "trust_roots": [{ "set": "host", "name": "trusted-root", "digest": sha256("root") }],
                        "counted": [counted("alice@example.com\u{1b}")], "warnings": ["a policy only warns\u{202e}"],
                    },
                    {
                        "decision": "admitted", "signers": ["bob"], "reference": "reg.example/acme/base:v1",
                        "claim": null, "digest": sha256("reg.example/acme/base:v1"), "at": "2026-11-24T10:00:00Z",
                        "policies": [{ "set": "host", "name": "signed", "digest": sha256("policy"), "mode": "enforce", "met": true }],
                        "trust_roots": [{ "set": "host", "name": "trusted-root", "digest": sha256("root") }],
                        "counted": [counted("bob")], "warnings": [],
                    },
                ],
                "settings": {
                    "filter": ["model:\u{1b}a"], "include": ["*.bin"], "exclude": [], "include_remote": false, "prefetch": "all", "jobs": 3,
                    "connections": 2, "allow_other": false, "metrics": "http://127.0.0.1:9464/metrics",
                },
                "counts": {
                    "fetched_bytes": 2048, "served_bytes": 1024, "passthrough_opens": 3, "passthrough_opened_bytes": 4096, "served_opens": 5,
                    "waits": 2, "wait_seconds": 1.25, "verification_failures": 1, "evictions": 4, "evicted_bytes": 512,
                    "errors": { "disk": 2, "network": 0 }, "waiting": 6, "cache_over_limit_bytes": 7,
                },
                "layers": [{
                    "digest": digest, "media_type": "x/\u{1b}[31my", "path": "model\u{202e}", "size": 123, "state": "failed",
                    "fetched": 23, "error": "it\nbroke", "class": "disk", "retry_at": "2026-11-24T10:01:00Z",
                }],
            }]})
        );
    }

    #[test]
    fn a_mount_without_its_supervisor_is_dead() {
        let serving = MountState { state: Phase::Serving, worker_pid: Some(11), worker_version: Some("0.1.0".into()), restarts: 0 };
        let dead = mount(false, Some(serving));
        assert_eq!((dead.state, dead.worker_pid), ("dead", None));
        assert_eq!(mount(true, None).state, "restarting");
    }

    #[test]
    fn a_worker_of_another_version_than_its_supervisor_is_told_of() {
        let state =
            |version: &str| MountState { state: Phase::Serving, worker_pid: Some(11), worker_version: Some(version.into()), restarts: 1 };
        let text = mount(true, Some(state("0.2.0"))).text();
        assert!(text.contains("supervisor 10 (kitfs 0.1.0), worker 11 (kitfs 0.2.0), 1 restarts"), "{text}");
        let text = mount(true, Some(state("0.1.0"))).text();
        assert!(text.contains("supervisor 10, worker 11, 1 restarts"), "{text}");
    }

    #[test]
    fn text_is_escaped_and_says_what_failed() {
        let text = mount(true, None).text();
        assert!(!text.contains(['\u{1b}', '\u{202e}']));
        let options = "options    --filter model:\\u{1b}a --include *.bin --prefetch all --jobs 3 --connections 2 --metrics http://127.0.0.1:9464/metrics\n";
        assert!(text.contains(options), "{text}");
        for line in [
            "fetched    2.00 KiB, 1 mismatches, errors: 2 disk\n",
            "served     1.00 KiB in 5 opens; 3 opens of 4.00 KiB by the kernel itself\n",
            "waits      2, 1.2 s together; 6 now\n",
            "evicted    4 layers, 512 B\n",
            "the cache is 7 B over its limit\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("refers to reg.example/acme/base:v1@sha256:") && text.contains("s3://bucket/\\u{1b}key"), "{text}");
        assert!(text.contains("claimed by the caller to be reg.example/acme/other:v1") && text.contains("signed by bob"), "{text}");
        let base = format!(
            "decision   admitted for reg.example/acme/base:v1@{}, decided 2026-11-24T10:00:00Z",
            sha256("reg.example/acme/base:v1")
        );
        assert!(text.contains(&base) && text.contains(&format!("policy signed@{} of the host: met", sha256("policy"))), "{text}");
        assert!(text.contains(&format!("trust root trusted-root@{} of the host", sha256("root"))), "{text}");
        assert!(text.contains("warning: a policy only warns\\u{202e}") && text.contains("audit      /var/log/kitfs.jsonl"), "{text}");
        assert!(text.contains("model\\u{202e}") && text.contains("it\\nbroke (again at 2026-11-24T10:01:00Z)"), "{text}");
        assert!(text.contains("hint: make room: `kitfs cache prune"), "{text}");
    }
}
