//! What a line of the record says: an event of the class File System Activity of OCSF (schema 1.6.0), with its security control profile.
//!
//! | field | decision | mount | umount | mismatch |
//! |---|---|---|---|---|
//! | `metadata.event_code` | `decision` | `mount` | `umount` | `mismatch` |
//! | `activity_id` | 12 Mount; 99 for `pull` and `explain` | 12 Mount | 13 Unmount | 2 Read |
//! | `action_id` | 1 Allowed, 2 Denied, 0 could not be decided | 1 | 1 | 2 |
//! | `disposition_id` | 1 Allowed, 2 Blocked, 99 `Error` | 1 | 1 | 2 |
//! | `status_id` | 1 Success; 2 Failure if not admitted | 1 | 1; 2 if it never showed | 2 |
//! | `severity_id` | 1 Informational, 3 Medium (denied), 2 Low (error) | 1 | 1 | 4 High |
//! | `status_code` | code of the first reason | | | `digest-mismatch` |
//! | `component` | | | | the digest of the layer or document |
//!
//! In all of them: `class_uid` 1001, `category_uid` 1, `type_uid` 100100 + `activity_id`; `time` (milliseconds) and `time_dt` (RFC 3339, UTC) of the event;
//! `message` and `status_detail` for people; `actor` (this process and its real user), `device` (this host); `file` with the mount's folder as `path` (none where nothing is
//! mounted), its `name`, and the manifest's digest in `hashes`; `policy` with the names of the policies that matched, their common digest as `uid`
//! ([`digest_of_policies`]), and each of them, and each trust root, with its digest in `data`; `metadata.uid` of this line, `metadata.correlation_uid` of the mount
//! (the id of its folder in the run directory). What OCSF has no field for is in `unmapped.kitfs`: `reference`, `claim` (the caller's, nothing vouches for it),
//! `digest`, `decision` (`admit`, `deny`, `error`; of a mount `admitted` or `no-policy`), `reasons`, `signatures` (what counted), `kits` (of a mount: every kit
//! that it shows, with its digest and signers), `warnings`.
//!
//! Texts come from outside. What would end a line or act on a terminal is escaped, and what is too long for a line is cut: the text ends with `…`, the
//! list is shorter, and `unmapped.kitfs.shortened` is true.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::admission::{Admission, Report};
use crate::decided::{ENFORCE, decision, digest_of_policies};
use crate::digest::{Algorithm, Digest};
use crate::failure::{acts_on_a_terminal, inert_json};
use crate::limits::{AUDIT_LINE_BYTES, AUDIT_ROOM};
use crate::plan::MountPlan;
use crate::run::MountRecord;

/// An event, as it is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Event(Value);

/// What was asked for when something was decided.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What for.
    pub purpose: Purpose,
    /// Where it would be mounted.
    pub mountpoint: Option<PathBuf>,
    /// The id that the mount has or would have.
    pub mount_id: Option<String>,
}

/// What a decision is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To mount the kit.
    Mount,
    /// To have it in the cache.
    Pull,
    /// To know.
    Explain,
}

/// A decision and what it rests on.
#[derive(Debug, Clone)]
pub struct Ground {
    decision: &'static str,
    reference: String,
    claim: Option<String>,
    digest: Option<String>,
    reasons: Vec<(String, String)>,
    /// Whether any of the policies refuses.
    enforced: bool,
    policies: Vec<Value>,
    trust_roots: Value,
    signatures: Value,
    warnings: Vec<String>,
}

/// A mount, as its events name it.
#[derive(Debug, Clone)]
pub struct Subject {
    mountpoint: PathBuf,
    mount_id: String,
    reference: String,
    digest: Digest,
    admissions: Vec<Admission>,
}

impl Ground {
    /// That it was admitted.
    pub fn of(admission: &Admission) -> Self {
        Self {
            decision: "admit",
            reference: admission.reference.clone(),
            claim: admission.claim.clone(),
            digest: Some(admission.digest.to_string()),
            reasons: Vec::new(),
            enforced: admission.policies.iter().any(|policy| policy.mode == ENFORCE),
            policies: admission.policies.iter().map(|policy| json!(policy)).collect(),
            trust_roots: json!(admission.trust_roots),
            signatures: json!(admission.counted),
            warnings: admission.warnings.clone(),
        }
    }

    /// What was decided, and why.
    pub fn of_report(report: &Report) -> Self {
        if let ("admit", Some(evidence)) = (report.decision, &report.evidence) {
            let reasons = reasons(&report.reasons);
            let mut ground = Self { reasons, ..Self::of(evidence) };
            ground.warnings.extend(report.warnings.iter().filter(|warning| !evidence.warnings.contains(warning)).cloned());
            return ground;
        }
        let policies = report.sets.iter().flat_map(|set| set.policies.iter().map(|policy| (set.name, policy)));
        let described = policies.clone().map(
            |(set, policy)| json!({ "set": set, "name": policy.name, "digest": policy.digest, "mode": policy.mode, "met": policy.met }),
        );
        Self {
            decision: report.decision,
            reference: report.reference.clone(),
            claim: report.claim.clone(),
            digest: report.digest.clone(),
            reasons: reasons(&report.reasons).into_iter().chain(reasons(&report.unread)).collect(),
            enforced: policies.clone().any(|(_, policy)| policy.mode == ENFORCE),
            policies: described.collect(),
            trust_roots: json!([]),
            signatures: json!([]),
            warnings: report.warnings.clone(),
        }
    }
}

fn reasons(reasons: &[crate::admission::ReasonReport]) -> Vec<(String, String)> {
    reasons.iter().map(|reason| (reason.code.clone(), reason.message.clone())).collect()
}

impl Subject {
    /// The mount of this plan.
    pub fn of(plan: &MountPlan) -> Self {
        Self {
            mountpoint: plan.mounting.mountpoint.clone(),
            mount_id: plan.mounting.id.clone(),
            reference: plan.reference.clone(),
            digest: plan.digest,
            admissions: plan.admissions().to_vec(),
        }
    }

    /// The mount that left this behind.
    pub fn of_record(record: &MountRecord) -> Self {
        Self {
            mountpoint: record.mountpoint.clone(),
            mount_id: record.id.clone(),
            reference: record.reference.clone(),
            digest: record.digest,
            admissions: record.admissions.clone(),
        }
    }

    /// Why its kits were admitted.
    pub fn admissions(&self) -> &[Admission] {
        &self.admissions
    }

    /// The attempt that it came of.
    pub fn attempt(&self) -> Attempt {
        Attempt { purpose: Purpose::Mount, mountpoint: Some(self.mountpoint.clone()), mount_id: Some(self.mount_id.clone()) }
    }
}

/// What the fields of the classification and of the security control profile say.
struct Class {
    code: &'static str,
    activity: (u8, &'static str),
    action: (u8, &'static str),
    disposition: (u8, &'static str),
    success: bool,
    severity: (u8, &'static str),
}

const MOUNT: (u8, &str) = (12, "Mount");
const ALLOWED: (u8, &str) = (1, "Allowed");
const DENIED: (u8, &str) = (2, "Denied");
const BLOCKED: (u8, &str) = (2, "Blocked");
const INFORMATIONAL: (u8, &str) = (1, "Informational");
const MISMATCH: Class =
    Class { code: "mismatch", activity: (2, "Read"), action: DENIED, disposition: BLOCKED, success: false, severity: (4, "High") };

impl Event {
    /// Something was decided at `at`.
    pub fn decision(ground: &Ground, attempt: &Attempt, at: Timestamp) -> Self {
        let (action, disposition, severity) = match ground.decision {
            "admit" => (ALLOWED, ALLOWED, INFORMATIONAL),
            "deny" => (DENIED, BLOCKED, (3, "Medium")),
            // Neither allowed nor denied: an outage must not look like a refusal.
            _ => ((0, "Unknown"), (99, "Error"), (2, "Low")),
        };
        let (activity, what) = match attempt.purpose {
            Purpose::Mount => (MOUNT, "mounted"),
            Purpose::Pull => ((99, "Pull"), "pulled"),
            Purpose::Explain => ((99, "Explain"), "mounted (only asked)"),
        };
        let success = ground.decision == "admit";
        let class = Class { code: "decision", activity, action, disposition, success, severity };
        let may = match ground.decision {
            "admit" => "may be",
            "deny" => "may not be",
            _ => "could not be decided whether it may be",
        };
        let message = format!("{} {may} {what}", ground.reference);
        let mut event = Self::new(&class, &message, at, attempt, &ground.reference, ground.digest.as_deref());
        event.policy(&ground.policies, &ground.trust_roots, ground.enforced);
        if let Some((code, detail)) = ground.reasons.first() {
            event.set("status_code", json!(code));
            event.set("status_detail", json!(detail));
        }
        event.own("decision", json!(ground.decision));
        event.own_if("claim", json!(ground.claim));
        event.own("reasons", ground.reasons.iter().map(|(code, message)| json!({ "code": code, "message": message })).collect());
        event.own("signatures", ground.signatures.clone());
        event.own("warnings", json!(ground.warnings));
        event
    }

    /// A mount is about to show.
    pub(super) fn mount(subject: &Subject) -> Self {
        let class = Class { code: "mount", activity: MOUNT, action: ALLOWED, disposition: ALLOWED, success: true, severity: INFORMATIONAL };
        Self::of_mount(&class, subject, &format!("{} is mounted at {}", subject.reference, subject.mountpoint.display()))
    }

    /// It is gone from its place; with `failure` it never showed, or was never served.
    pub(super) fn umount(subject: &Subject, failure: Option<&str>) -> Self {
        let activity = (13, "Unmount");
        let success = failure.is_none();
        let class = Class { code: "umount", activity, action: ALLOWED, disposition: ALLOWED, success, severity: INFORMATIONAL };
        let message = format!("{} is no longer mounted at {}", subject.reference, subject.mountpoint.display());
        let mut event = Self::of_mount(&class, subject, &message);
        if let Some(failure) = failure {
            event.set("status_detail", json!(failure));
        }
        event
    }

    /// What came for a layer, or lay in the cache, is not it; nothing of it is shown.
    pub(super) fn mismatch(subject: &Subject, layer: &str, detail: &str) -> Self {
        let message = format!("content of {} at {} is not what its digest says", subject.reference, subject.mountpoint.display());
        Self::of_mount(&MISMATCH, subject, &message).because(layer, detail)
    }

    /// The same before there is a mount: of a document or layer of a kit that was to be mounted or pulled. `kit` is its digest, if that is known.
    pub fn mismatch_before(reference: &str, kit: Option<&Digest>, attempt: &Attempt, blob: &Digest, detail: &str) -> Self {
        let message = format!("content of {reference} is not what its digest says");
        let kit = kit.map(Digest::to_string);
        Self::new(&MISMATCH, &message, Timestamp::now(), attempt, reference, kit.as_deref()).because(&blob.to_string(), detail)
    }

    /// The event as it is recorded: one line, not longer than [`AUDIT_LINE_BYTES`].
    pub fn line(&self) -> String {
        let mut line = String::new();
        for (text, items) in AUDIT_ROOM {
            let mut value = self.0.clone();
            if shorten(&mut value, text, items) {
                value["unmapped"]["kitfs"]["shortened"] = json!(true);
            }
            line = inert_json(&value.to_string()) + "\n";
            if line.len() <= AUDIT_LINE_BYTES {
                break;
            }
        }
        line
    }

    fn of_mount(class: &Class, subject: &Subject, message: &str) -> Self {
        let digest = subject.digest.to_string();
        let mut event = Self::new(class, message, Timestamp::now(), &subject.attempt(), &subject.reference, Some(&digest));
        if let Some(kit) = subject.admissions.first() {
            let ground = Ground::of(kit);
            event.policy(&ground.policies, &ground.trust_roots, ground.enforced);
            event.own_if("claim", json!(kit.claim));
        }
        event.own_if("decision", json!(decision(&subject.admissions)));
        let kits = subject.admissions.iter();
        let kits = kits.map(|kit| json!({ "reference": kit.reference, "digest": kit.digest, "signers": kit.signers() }));
        event.own("kits", kits.collect());
        event
    }

    fn new(class: &Class, message: &str, at: Timestamp, attempt: &Attempt, reference: &str, digest: Option<&str>) -> Self {
        let (activity, activity_name) = class.activity;
        let mut event = Self(json!({
            "activity_id": activity,
            "activity_name": activity_name,
            "category_uid": 1,
            "category_name": "System Activity",
            "class_uid": 1001,
            "class_name": "File System Activity",
            "type_uid": 100_100 + u32::from(activity),
            "type_name": format!("File System Activity: {}", if activity == 99 { "Other" } else { activity_name }),
            "time": at.as_millisecond(),
            "time_dt": at.to_string(),
            "timezone_offset": 0,
            "severity_id": class.severity.0,
            "severity": class.severity.1,
            "status_id": if class.success { 1 } else { 2 },
            "status": if class.success { "Success" } else { "Failure" },
            "action_id": class.action.0,
            "action": class.action.1,
            "disposition_id": class.disposition.0,
            "disposition": class.disposition.1,
            "is_alert": class.severity.0 >= 3,
            "message": message,
            "actor": actor(),
            "device": device(),
            "file": file(attempt, reference, digest),
            "metadata": {
                "version": "1.6.0",
                "product": { "name": "kitfs", "vendor_name": "kitfs", "version": env!("CARGO_PKG_VERSION") },
                "profiles": ["security_control", "datetime", "host"],
                "event_code": class.code,
                "log_name": "kitfs::audit",
                "uid": format!("{:032x}", fastrand::u128(..)),
            },
            "unmapped": { "kitfs": { "reference": reference } },
        }));
        if let Some(id) = &attempt.mount_id {
            event.0["metadata"]["correlation_uid"] = json!(id);
        }
        event.own_if("digest", json!(digest));
        event
    }

    /// It is a mismatch of this blob.
    fn because(mut self, blob: &str, detail: &str) -> Self {
        self.set("component", json!(blob));
        self.set("status_code", json!("digest-mismatch"));
        self.set("status_detail", json!(detail));
        self
    }

    /// The policies that matched; nothing if there is none.
    fn policy(&mut self, policies: &[Value], trust_roots: &Value, enforced: bool) {
        if policies.is_empty() {
            return;
        }
        let texts = |field: &str| policies.iter().filter_map(|policy| policy[field].as_str()).map(str::to_owned).collect::<Vec<_>>();
        let digest = digest_of_policies(texts("digest").iter().map(String::as_str));
        let data = json!({ "policies": policies, "trust_roots": trust_roots });
        let policy = json!({ "name": texts("name").join(", "), "uid": digest, "is_applied": enforced, "data": data });
        self.set("policy", policy);
    }

    fn set(&mut self, field: &str, value: Value) {
        self.0[field] = value;
    }

    fn own(&mut self, field: &str, value: Value) {
        self.0["unmapped"]["kitfs"][field] = value;
    }

    fn own_if(&mut self, field: &str, value: Value) {
        if !value.is_null() {
            self.own(field, value);
        }
    }
}

fn actor() -> Value {
    let uid = rustix::process::getuid().as_raw();
    json!({ "app_name": "kitfs", "process": { "name": "kitfs", "pid": std::process::id() }, "user": { "uid": uid.to_string() } })
}

fn device() -> Value {
    let host = rustix::system::uname();
    json!({ "hostname": host.nodename().to_string_lossy(), "type_id": 0, "type": "Unknown" })
}

fn file(attempt: &Attempt, reference: &str, digest: Option<&str>) -> Value {
    let mut file = Map::new();
    match &attempt.mountpoint {
        Some(path) => {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            file.extend([("name".into(), json!(name)), ("path".into(), json!(path.to_string_lossy()))]);
            file.extend([("type_id".into(), json!(2)), ("type".into(), json!("Folder"))]);
        }
        None => file.extend([("name".into(), json!(reference)), ("type_id".into(), json!(0)), ("type".into(), json!("Unknown"))]),
    }
    if let Some(digest) = digest.and_then(|digest| digest.parse::<Digest>().ok()) {
        let (id, name) = match digest.algorithm() {
            Algorithm::Sha256 => (3, "SHA-256"),
            Algorithm::Sha512 => (4, "SHA-512"),
        };
        file.insert("hashes".into(), json!([{ "algorithm_id": id, "algorithm": name, "value": digest.hex() }]));
    }
    Value::Object(file)
}

/// Cuts texts to `text` bytes of JSON and lists to `items`; true if something was cut.
fn shorten(value: &mut Value, text: usize, items: usize) -> bool {
    match value {
        Value::String(long) => match cut(long, text) {
            Some(short) => {
                *long = short;
                true
            }
            None => false,
        },
        Value::Array(list) => {
            let cut = list.len() > items;
            list.truncate(items);
            list.iter_mut().fold(cut, |cut, item| shorten(item, text, items) | cut)
        }
        // Their names are ours.
        Value::Object(fields) => fields.values_mut().fold(false, |cut, field| shorten(field, text, items) | cut),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// `text` shortened to what takes at most `room` bytes in JSON, the mark at its end included; none if it fits.
fn cut(text: &str, room: usize) -> Option<String> {
    const MARK: char = '…';
    let (mut used, mut fits) = (0, 0);
    for (at, letter) in text.char_indices() {
        used += in_json(letter);
        if used > room {
            return Some(format!("{}{MARK}", &text[..fits]));
        }
        if used + MARK.len_utf8() <= room {
            fits = at + letter.len_utf8();
        }
    }
    None
}

/// How many bytes `letter` takes in JSON that has nothing active.
fn in_json(letter: char) -> usize {
    match letter {
        '"' | '\\' => 2,
        letter if acts_on_a_terminal(letter) => 6 * letter.len_utf16(),
        letter => letter.len_utf8(),
    }
}
