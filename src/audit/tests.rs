use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::thread;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::admission::Report;
use crate::fixtures::{admission, refused, report_of};
use crate::limits::AUDIT_LINE_BYTES;
use crate::plan::MountPlan;

const REFERENCE: &str = "reg.example/acme/m:v1";

fn at() -> Timestamp {
    "2026-11-24T10:00:00Z".parse().expect("a time")
}

fn attempt() -> Attempt {
    Attempt { purpose: Purpose::Mount, mountpoint: Some("/mnt/kit".into()), mount_id: Some("0123".into()) }
}

fn decision(report: &Report, attempt: &Attempt) -> Event {
    Event::decision(&Ground::of_report(report), attempt, at())
}

fn parsed(event: &Event) -> Value {
    let line = event.line();
    assert!(line.len() <= AUDIT_LINE_BYTES && line.ends_with('\n') && line.matches('\n').count() == 1, "{line}");
    serde_json::from_str(&line).expect("JSON")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the file");
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn plan(audit: Option<AuditPlan>) -> MountPlan {
    let mut plan = MountPlan::of_nothing();
    (plan.reference, plan.mounting.mountpoint, plan.mounting.id) = (REFERENCE.into(), "/mnt/kit".into(), "0123".into());
    plan = plan.admitted_by(vec![admission(REFERENCE, &["alice"]), admission("reg.example/acme/base:v1", &["bob"])]);
    plan.mounting.audit = audit;
    plan
}

fn all_events() -> Vec<(&'static str, Event)> {
    let subject = Subject::of(&plan(None));
    let mut error = refused(admission(REFERENCE, &["alice"]));
    error.decision = "error";
    vec![
        ("admit", decision(&report_of(admission(REFERENCE, &["alice"])), &attempt())),
        ("deny", decision(&refused(admission(REFERENCE, &["alice"])), &attempt())),
        ("error", decision(&error, &attempt())),
        ("mount", Event::mount(&subject)),
        ("umount", Event::umount(&subject, None)),
        ("failed", Event::umount(&subject, Some("no worker"))),
        ("before", Event::mismatch_before(REFERENCE, None, &attempt(), &admission(REFERENCE, &[]).digest, "expected this, got that")),
        ("mismatch", Event::mismatch(&subject, "sha256:00", "expected this, got that")),
    ]
}

/// What the schema says of an attribute: where it is, whether it must be there, and what may stand there.
type Field = (&'static str, bool, fn(&Value) -> bool);

fn one_of(value: &Value, numbers: &[u64]) -> bool {
    value.as_u64().is_some_and(|number| numbers.contains(&number))
}

/// File System Activity with the profiles security control, date and host, attribute for attribute.
const FIELDS: &[Field] = &[
    ("/activity_id", true, |value| one_of(value, &[2, 12, 13, 99])),
    ("/activity_name", false, Value::is_string),
    ("/category_uid", true, |value| value == 1),
    ("/category_name", false, |value| value == "System Activity"),
    ("/class_uid", true, |value| value == 1001),
    ("/class_name", false, |value| value == "File System Activity"),
    ("/type_uid", true, |value| one_of(value, &[100_102, 100_112, 100_113, 100_199])),
    ("/type_name", false, |value| value.as_str().is_some_and(|name| name.starts_with("File System Activity: "))),
    ("/time", true, Value::is_u64),
    ("/time_dt", false, |value| value.as_str().is_some_and(|time| time.ends_with('Z') && time.parse::<Timestamp>().is_ok())),
    ("/timezone_offset", false, |value| value == 0),
    ("/severity_id", true, |value| one_of(value, &[1, 2, 3, 4])),
    ("/severity", false, Value::is_string),
    ("/status_id", false, |value| one_of(value, &[1, 2])),
    ("/status", false, Value::is_string),
    ("/status_code", false, Value::is_string),
    ("/status_detail", false, Value::is_string),
    ("/action_id", false, |value| one_of(value, &[0, 1, 2])),
    ("/action", false, Value::is_string),
    ("/disposition_id", true, |value| one_of(value, &[1, 2, 99])),
    ("/disposition", false, Value::is_string),
    ("/is_alert", false, Value::is_boolean),
    ("/message", false, Value::is_string),
    ("/component", false, Value::is_string),
    ("/actor", true, Value::is_object),
    ("/actor/process/pid", false, Value::is_u64),
    ("/actor/user/uid", false, Value::is_string),
    ("/device", true, Value::is_object),
    ("/device/type_id", true, Value::is_u64),
    ("/file", true, Value::is_object),
    ("/file/name", true, Value::is_string),
    ("/file/type_id", true, Value::is_u64),
    ("/file/path", false, Value::is_string),
    ("/file/hashes/0/algorithm_id", false, |value| one_of(value, &[3, 4])),
    ("/policy", false, |policy| policy["name"].is_string() && policy["uid"].is_string() && policy["is_applied"].is_boolean()),
    ("/metadata", true, Value::is_object),
    ("/metadata/version", true, |value| value == "1.6.0"),
    ("/metadata/product", true, |product| product["name"] == "kitfs"),
    ("/unmapped", false, Value::is_object),
];

#[test]
fn each_attribute_is_what_the_schema_says() {
    for (name, event) in all_events() {
        let value = parsed(&event);
        for (pointer, required, fits) in FIELDS {
            match value.pointer(pointer) {
                Some(value) => assert!(fits(value), "{name}: {pointer}: {value}"),
                None => assert!(!required, "{name}: {pointer} is missing"),
            }
        }
        for field in value.as_object().expect("an object").keys() {
            assert!(FIELDS.iter().any(|(pointer, ..)| *pointer == format!("/{field}")), "{name}: {field}");
        }
        let activity = value["activity_id"].as_u64().expect("a number");
        assert_eq!(value["type_uid"], 100_100 + activity, "{name}");
    }
}

#[test]
fn each_event_says_what_happened() {
    // code, activity, action, disposition, status, severity
    let expected = [
        ("admit", "decision", 12, 1, 1, 1, 1),
        ("deny", "decision", 12, 2, 2, 2, 3),
        ("error", "decision", 12, 0, 99, 2, 2),
        ("mount", "mount", 12, 1, 1, 1, 1),
        ("umount", "umount", 13, 1, 1, 1, 1),
        ("failed", "umount", 13, 1, 1, 2, 1),
        ("before", "mismatch", 2, 2, 2, 2, 4),
        ("mismatch", "mismatch", 2, 2, 2, 2, 4),
    ];
    for ((name, event), (expected_name, code, activity, action, disposition, status, severity)) in all_events().into_iter().zip(expected) {
        let value = parsed(&event);
        assert_eq!(name, expected_name);
        assert_eq!(value["metadata"]["event_code"], code, "{name}");
        let numbers = ["activity_id", "action_id", "disposition_id", "status_id", "severity_id"].map(|field| value[field].as_u64());
        assert_eq!(numbers, [activity, action, disposition, status, severity].map(Some), "{name}");
        assert_eq!(value["file"]["path"], "/mnt/kit", "{name}");
        assert_eq!(value["metadata"]["correlation_uid"], "0123", "{name}");
        assert_eq!(value["unmapped"]["kitfs"]["reference"], REFERENCE, "{name}");
        if code == "mismatch" {
            assert!(value["component"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{name}");
            assert_eq!((&value["status_code"], &value["status_detail"]), (&json!("digest-mismatch"), &json!("expected this, got that")));
        }
        if name == "before" {
            // Nothing was decided yet.
            assert_eq!((value.get("policy"), value["file"].get("hashes")), (None, None));
            continue;
        }
        assert_eq!(value["policy"]["name"], "signed", "{name}");
        assert!(value["policy"]["data"]["policies"][0]["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{name}");
    }
}

#[test]
fn a_decision_tells_its_evidence_or_its_reasons() {
    let mut claimed = admission(REFERENCE, &["alice"]);
    claimed.claim = Some("reg.example/acme/other:v1".into());
    let admitted = parsed(&decision(&report_of(claimed), &attempt()));
    let own = &admitted["unmapped"]["kitfs"];
    assert_eq!((&own["decision"], &own["claim"]), (&json!("admit"), &json!("reg.example/acme/other:v1")));
    assert_eq!((&own["signatures"][0]["signer"], &own["signatures"][0]["log_index"]), (&json!("alice"), &json!(7)));
    assert_eq!(admitted["policy"]["data"]["trust_roots"][0]["name"], "trusted-root");
    assert_eq!(admitted["time_dt"], "2026-11-24T10:00:00Z");

    let denied = parsed(&decision(&refused(admission(REFERENCE, &["alice"])), &attempt()));
    assert_eq!((&denied["status_code"], &denied["status_detail"]), (&json!("wrong-key"), &json!("signed by another key")));
    assert_eq!(denied["unmapped"]["kitfs"]["reasons"], json!([{ "code": "wrong-key", "message": "signed by another key" }]));
    assert_eq!(denied["unmapped"]["kitfs"]["signatures"], json!([]));

    let mut undecided = refused(admission(REFERENCE, &["alice"]));
    (undecided.decision, undecided.digest) = ("error", None);
    let pull = Attempt { purpose: Purpose::Pull, mountpoint: None, mount_id: None };
    let value = parsed(&decision(&undecided, &pull));
    assert_eq!((&value["activity_id"], &value["activity_name"]), (&json!(99), &json!("Pull")));
    assert_eq!((value["file"].get("hashes"), value["file"].get("path"), &value["file"]["name"]), (None, None, &json!(REFERENCE)));
}

#[test]
fn a_mount_names_every_kit_that_it_shows() {
    let value = parsed(&Event::mount(&Subject::of(&plan(None))));
    let kits = value["unmapped"]["kitfs"]["kits"].as_array().expect("a list");
    assert_eq!(
        kits.iter().map(|kit| (&kit["reference"], &kit["signers"])).collect::<Vec<_>>(),
        [(&json!(REFERENCE), &json!(["alice"])), (&json!("reg.example/acme/base:v1"), &json!(["bob"])),]
    );
    assert_eq!(value["unmapped"]["kitfs"]["decision"], "admitted");
    let without = plan(None).admitted_by(Vec::new());
    let value = parsed(&Event::mount(&Subject::of(&without)));
    assert_eq!((value.get("policy"), value["unmapped"]["kitfs"].get("decision")), (None, None));
}

#[test]
fn nothing_in_a_line_can_end_it_or_speak_to_a_terminal() {
    let mut report = refused(admission("reg.example/acme/m:v1\n{\"class_uid\":1}\r\u{1b}[2J", &["a\u{202e}b\0\u{e0041}"]));
    report.reasons[0].message = "x\n\u{9b}31m\u{2028}".into();
    let line = decision(&report, &attempt()).line();
    assert!(!line.trim_end().contains(|letter: char| letter.is_control() || "\u{202e}\u{2028}\u{e0041}".contains(letter)), "{line}");
    assert_eq!(parsed(&decision(&report, &attempt()))["status_detail"], "x\n\u{9b}31m\u{2028}");
}

#[test]
fn a_long_line_is_shortened_and_says_so_and_stays_json() {
    // Each letter takes twelve bytes of JSON.
    let hostile = "\u{e0041}".repeat(1 << 10);
    let mut report = refused(admission(&hostile, &[]));
    report.claim = Some(hostile.clone());
    report.reasons = vec![crate::admission::ReasonReport { code: hostile.clone(), message: hostile.clone() }; 300];
    report.warnings = vec![hostile.clone(); 300];
    report.sets[0].policies = vec![report.sets[0].policies[0].clone(); 300];
    report.sets[0].policies.iter_mut().for_each(|policy| policy.name.clone_from(&hostile));
    let value = parsed(&decision(&report, &attempt()));
    assert_eq!(value["unmapped"]["kitfs"]["shortened"], true);
    assert!(value["unmapped"]["kitfs"]["reference"].as_str().is_some_and(|text| text.ends_with('…')));

    let mut admitted = admission(REFERENCE, &["alice"; 300]);
    for counted in &mut admitted.counted {
        (counted.signer, counted.subject) = (hostile.clone(), Some(hostile.clone()));
        counted.times = vec![at(); 300];
    }
    admitted.trust_roots = vec![admitted.trust_roots[0].clone(); 300];
    let value = parsed(&decision(&report_of(admitted.clone()), &attempt()));
    assert_eq!(value["unmapped"]["kitfs"]["shortened"], true);
    // Digests are not cut, whatever else is.
    assert_eq!(value["unmapped"]["kitfs"]["digest"], admitted.digest.to_string());

    assert_eq!(parsed(&decision(&report_of(admission(REFERENCE, &["alice"])), &attempt()))["unmapped"]["kitfs"].get("shortened"), None);
}

#[test]
fn a_line_is_shortened_only_over_the_limit() {
    let with_warnings = |bytes: usize| {
        let mut admitted = admission(REFERENCE, &["alice"]);
        admitted.warnings = vec!["x".repeat(4 << 10); bytes / (4 << 10)];
        admitted.warnings.push("x".repeat(bytes % (4 << 10)));
        decision(&report_of(admitted), &attempt())
    };
    let empty = with_warnings(0).line().len();
    // Beside its letters a whole warning has two quotes and a comma.
    let room = AUDIT_LINE_BYTES - empty;
    let fitting = room - 3 * (room / (4 << 10));
    assert!(parsed(&with_warnings(fitting))["unmapped"]["kitfs"].get("shortened").is_none());
    assert_eq!(with_warnings(fitting).line().len(), AUDIT_LINE_BYTES);
    assert_eq!(parsed(&with_warnings(fitting + 1))["unmapped"]["kitfs"]["shortened"], true);
}

#[test]
fn lines_are_appended_to_a_private_file() {
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path().join("audit.jsonl");
    let audit = Audit::open(&path, false).expect("a file");
    assert_eq!(std::fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
    let events = all_events();
    for (_, event) in &events {
        assert!(audit.record(event).expect("recorded").is_none());
    }
    assert_eq!(lines(&path).len(), events.len());
    // It can be moved away at any time.
    std::fs::rename(&path, home.path().join("old")).expect("moved");
    audit.record(&events[0].1).expect("recorded");
    assert_eq!((lines(&path).len(), lines(&home.path().join("old")).len()), (1, events.len()));
}

#[test]
fn many_writers_do_not_tear_each_others_lines() {
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path().join("audit.jsonl");
    let mut long = admission(REFERENCE, &["alice"]);
    long.warnings = vec!["x".repeat(6 << 10); 8];
    let event = decision(&report_of(long), &attempt());
    assert!(event.line().len() > 48 << 10);
    thread::scope(|scope| {
        for writer in 0..8 {
            let (path, event) = (&path, &event);
            scope.spawn(move || {
                let audit = Audit::open(path, writer % 2 == 0).expect("a file");
                for _ in 0..20 {
                    assert!(audit.record(event).expect("recorded").is_none());
                }
            });
        }
    });
    let lines = lines(&path);
    assert_eq!(lines.len(), 160);
    assert!(lines.iter().all(|line| line["unmapped"]["kitfs"]["warnings"].as_array().is_some_and(|warnings| warnings.len() == 8)));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let home = tempfile::tempdir().expect("a folder");
    let path = |name: &str| home.path().join(name);
    rustix::fs::mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    assert!(std::fs::symlink_metadata(path("pipe")).expect("there").file_type().is_fifo());
    let _socket = UnixListener::bind(path("socket")).expect("a socket");
    std::fs::write(path("target"), "").expect("room");
    symlink(path("target"), path("link")).expect("a link");
    symlink(path("nothing"), path("dangling")).expect("a link");
    for (name, what) in [
        ("pipe", "a named pipe"),
        ("socket", "a socket"),
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("", "a folder"),
        ("/dev/null", "a device"),
    ] {
        match Audit::open(&path(name), false) {
            Err(AuditError::NotAFile { found, .. }) => assert_eq!(found, what, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        let best_effort = Audit::open(&path(name), true).expect("it is tried later");
        let error = best_effort.record(&all_events()[0].1).expect("no failure").expect("but told of");
        assert!(error.to_string().contains(what), "{error}");
    }
    assert!(!path("nothing").exists());
    assert_eq!(std::fs::read(path("target")).expect("there"), b"");
    let error = Audit::open(&path("missing/audit.jsonl"), false).expect_err("no folder");
    assert!(
        matches!(&error, AuditError::Io { path, source } if path.ends_with("missing/audit.jsonl") && source.kind() == io::ErrorKind::NotFound)
    );
}

#[test]
fn a_line_that_does_not_fit_is_an_error_and_the_next_one_begins_anew() {
    // A file size limit cuts a write as a full disk does. It is one of the whole process, so another one has it.
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path().join("audit.jsonl");
    if std::env::var_os(CUT).is_some() {
        return cut_short(Path::new(&std::env::var_os(CUT).expect("a path")));
    }
    let test = "audit::tests::a_line_that_does_not_fit_is_an_error_and_the_next_one_begins_anew";
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    let output = command.args([test, "--exact", "--nocapture"]).env(CUT, &path).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&path).expect("the file");
    let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert_eq!((text.lines().count(), whole), (2, 1), "the torn line, and a whole one");
}

const CUT: &str = "KITFS_TEST_CUT_SHORT";

fn cut_short(path: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let event = &all_events()[0].1;
    // SAFETY: SIGXFSZ would end the process; ignored, it becomes an error of the write.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(100), maximum: before.maximum }).expect("a lower limit");
    let error = append(path, &event.line()).expect_err("no room");
    assert!(matches!(error, AuditError::CutShort { written: 100, .. }), "{error}");
    // Where there is no room for the end of the line either, whoever makes room ends it.
    setrlimit(Resource::Fsize, before).expect("as it was");
    std::fs::OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(b"\n")).expect("room");
    append(path, &event.line()).expect("room");
}

#[test]
fn a_mount_that_cannot_be_recorded_does_not_come_about_unless_best_effort_will_do() {
    let home = tempfile::tempdir().expect("a folder");
    let nowhere = |best_effort| plan(Some(AuditPlan { path: home.path().join("missing/audit.jsonl"), best_effort }));
    let required = nowhere(false);
    let trail = Trail::new(&required);
    let error = trail.begin().expect_err("it cannot be recorded");
    assert!(error.to_string().contains("missing/audit.jsonl"), "{error}");
    assert!(trail.end(None).is_none(), "what never began has no end");

    let best_effort = nowhere(true);
    let trail = Trail::new(&best_effort);
    trail.begin().expect("it comes about");
    trail.mismatch("sha256:00", "expected this, got that");
    assert!(trail.end(None).is_some(), "that the end is not recorded is told");

    // Required or not, nothing waits for the record of an end.
    let path = home.path().join("audit.jsonl");
    let recorded = plan(Some(AuditPlan { path: path.clone(), best_effort: false }));
    let trail = Trail::new(&recorded);
    trail.begin().expect("recorded");
    trail.mismatch("sha256:00", "expected this, got that");
    assert!(trail.end(Some("it broke")).is_none());
    assert!(trail.end(None).is_none());
    let codes: Vec<Value> = lines(&path).iter().map(|line| line["metadata"]["event_code"].clone()).collect();
    assert_eq!(codes, ["mount", "mismatch", "umount"], "each once");

    let trail = Trail::new(&recorded);
    trail.begin().expect("recorded");
    std::fs::remove_file(&path).and_then(|()| std::fs::create_dir(&path)).expect("in its place");
    assert!(matches!(trail.end(None), Some(AuditError::NotAFile { .. })));
}
