use super::*;
use crate::fixtures;
use std::os::unix::fs::PermissionsExt;

fn run_dir() -> (tempfile::TempDir, RunDir) {
    let home = tempfile::tempdir().expect("folder");
    let run = RunDir::open(&home.path().join("run/kitfs")).expect("run directory");
    (home, run)
}

/// A process that another test is just starting may have the lock until it is what it is to become.
fn let_go(mount: &MountDir) {
    while mount.is_alive().expect("known") {
        std::thread::yield_now();
    }
}

fn record(id: &str) -> MountRecord {
    MountRecord { id: id.to_owned(), ..fixtures::mount_record() }
}

#[test]
fn documents_come_back_as_they_were_written() {
    let (_home, run) = run_dir();
    let (mount, _alive) = run.create("1").expect("made");
    assert_eq!(
        (mount.read_record().expect("none"), mount.read_state().expect("none"), mount.read_layers().expect("none")),
        (None, None, None)
    );
    let state = MountState { state: Phase::Restarting, worker_pid: None, worker_version: None, restarts: 3 };
    let layer = LayerReport {
        digest: record("1").digest,
        media_type: "application/vnd.kitops.modelkit.model.v1.tar".to_owned(),
        path: "model".to_owned(),
        size: 123,
        state: LayerStatus::Failed,
        fetched: 7,
        error: Some("stalled".to_owned()),
        class: None,
        retry_at: Some(now()),
    };
    for _ in 0..2 {
        mount.write_record(&record("1")).expect("written");
        mount.write_state(&state).expect("written");
        mount.write_layers(std::slice::from_ref(&layer)).expect("written");
    }
    let again = run.mount("1").expect("there");
    assert_eq!(again.read_record().expect("read"), Some(record("1")));
    assert_eq!(again.read_state().expect("read"), Some(state));
    assert_eq!(again.read_layers().expect("read"), Some(vec![layer]));
    let text = std::fs::read_to_string(mount.path().join("state.json")).expect("read");
    assert_eq!(text, r#"{"state":"restarting","worker_pid":null,"worker_version":null,"restarts":3}"#);
}

#[test]
fn a_mount_lives_as_long_as_its_lock() {
    let (_home, run) = run_dir();
    let (mount, alive) = run.create("1").expect("made");
    mount.write_record(&record("1")).expect("written");
    let inherited = alive.try_clone().expect("duplicate");
    drop(alive);
    assert!(mount.is_alive().expect("known"));
    assert!(mount.hold_alive().is_err());
    assert_eq!(run.clean_up_dead().expect("nothing to do"), vec![]);
    drop(inherited);
    let_go(&mount);
    assert_eq!(run.clean_up_dead().expect("cleaned up"), vec![record("1")]);
    assert!(!mount.path().exists() && run.mounts().expect("list").is_empty());
    assert!(!mount.is_alive().expect("known"));
    mount.remove().expect("nothing left to remove");
}

#[test]
fn the_end_of_a_dead_mount_is_recorded_by_who_finds_it() {
    let (home, run) = run_dir();
    let path = home.path().join("audit.jsonl");
    let audit = |path| Some(AuditPlan { path, best_effort: false });
    for (id, audit) in [("1", audit(path.clone())), ("2", audit(home.path().join("missing/audit.jsonl")))] {
        let (mount, alive) = run.create(id).expect("made");
        mount.write_record(&MountRecord { audit, ..record(id) }).expect("written");
        drop(alive);
        let_go(&mount);
    }
    assert_eq!(run.clean_up_dead().expect("cleaned up").len(), 2, "what is not recorded is cleaned up, too");
    assert_eq!(run.clean_up_dead().expect("nothing is left").len(), 0);
    let text = std::fs::read_to_string(path).expect("recorded");
    let event: serde_json::Value = serde_json::from_str(&text).expect("one line");
    assert_eq!((&event["metadata"]["event_code"], &event["metadata"]["correlation_uid"]), (&"umount".into(), &"1".into()));
    assert_eq!((&event["status"], &event["status_detail"]), (&"Failure".into(), &"its supervisor died".into()));
}

#[test]
fn foreign_and_broken_things_are_tolerated() {
    let (_home, run) = run_dir();
    let (mount, alive) = run.create("1").expect("made");
    std::fs::write(run.path().join("file"), "").expect("file");
    std::fs::create_dir(run.path().join("foreign")).expect("folder");
    std::fs::create_dir(run.path().join(".new-2")).expect("folder");
    std::os::unix::fs::symlink(mount.path(), run.path().join("link")).expect("link");
    std::fs::write(mount.path().join("mount.json"), "{\"id\":").expect("file");
    std::fs::write(mount.path().join("state.json"), "[]").expect("file");
    std::os::unix::fs::symlink("/etc/passwd", mount.path().join("layers.json")).expect("link");
    assert_eq!(run.mounts().expect("list").iter().map(MountDir::id).collect::<Vec<_>>(), ["1"]);
    assert!(matches!(mount.read_record(), Err(RunError::Malformed { .. })));
    assert!(matches!(mount.read_state(), Err(RunError::Malformed { .. })));
    assert!(matches!(mount.read_layers(), Err(RunError::Io { .. })));
    drop(alive);
    let_go(&mount);
    assert_eq!(run.clean_up_dead().expect("cleaned up"), vec![]);
    assert!(!mount.path().exists() && run.path().join("foreign").exists() && run.path().join(".new-2").exists());
    for id in ["", "..", "a/b", ".new-1", &"a".repeat(65)] {
        assert!(matches!(run.create(id), Err(RunError::BadId { .. })), "{id}");
    }
    assert!(run.create("3").is_ok() && run.create("3").is_err());
}

#[test]
fn a_run_directory_that_others_can_write_to_is_refused() {
    let home = tempfile::tempdir().expect("folder");
    let path = home.path().join("kitfs");
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    RunDir::open(&path).expect("made");
    mode(0o755);
    RunDir::open(&path).expect("ours");
    assert_eq!(path.metadata().expect("stat").permissions().mode() & 0o777, 0o700);
    mode(0o770);
    assert!(matches!(RunDir::open(&path), Err(RunError::Writable { mode: 0o770, .. })));
    let link = home.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("link");
    assert!(matches!(RunDir::open(&link), Err(RunError::Io { .. })));
    if geteuid().is_root() {
        mode(0o700);
        std::os::unix::fs::chown(&path, Some(1000), None).expect("chown");
        assert!(matches!(RunDir::open(&path), Err(RunError::ForeignOwner { owner: 1000, expected: 0, .. })));
    }
}
