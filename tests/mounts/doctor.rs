//! `kitfs doctor` on this host: what it finds well, what not, and that it leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use base64::Engine as _;
use serde_json::Value;

use crate::common::kitfs::{Host, Mode, binary};
use crate::common::process::{Output, make_program, run};
use crate::common::registry::{Auth, Fault, Registry, Target, Times};
use crate::kits::standard;

/// Runs it with `--json`: exit code, and the checks by name.
fn checks(output: &Output) -> impl Fn(&str) -> (String, String, Option<String>) + use<> {
    let shown: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:#?}"));
    let any_fails = shown["checks"].as_array().expect("checks").iter().any(|check| check["status"] == "fail");
    assert_eq!(output.code(), i32::from(any_fails), "{output:#?}");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    move |name| {
        let check = shown["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["check"] == name));
        let check = check.unwrap_or_else(|| panic!("no check `{name}` in {shown:#}"));
        let cure = text(&check["cure"]);
        assert_eq!(cure.is_none(), check["status"] == "ok", "{check}");
        (text(&check["status"]).expect("a status"), text(&check["detail"]).expect("a detail"), cure)
    }
}

#[test]
fn a_host_that_mounts_is_well() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let table = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").matches("kitfs-doctor").count();
    let output = host.kitfs(&["doctor", "--json", "--plain-http", &reference]).ok();
    let check = checks(&output);
    for name in [
        "kernel",
        "device",
        "fusermount3",
        "mount",
        "passthrough",
        "cache",
        "run-directory",
        "proxy",
        "credentials",
        "registry",
        "reference",
        "clock",
    ] {
        let (status, detail, _) = check(name);
        assert_eq!(status, "ok", "{name}: {detail}");
    }
    assert!(check("registry").1.contains(&registry.host()) && check("reference").1.contains("sha256:"), "{output:#?}");
    assert_eq!((table(), fs::read_dir(host.path("tmp")).expect("folder").count()), (0, 0), "the mount on trial left something");
    // What it says of passthrough is what a mount does.
    assert_eq!(host.mount(&reference).status()["passthrough"], true);
    // For people: the same, a line each.
    let text = host.kitfs(&["doctor", "--plain-http", &reference]).ok().stdout;
    assert!(text.lines().all(|line| ["ok  ", "warn"].iter().any(|word| line.starts_with(word))), "{text}");
    assert_eq!(registry.log().iter().filter(|request| request.path == "/v2/").count(), 2, "{text}");
}

#[test]
fn what_is_wrong_with_a_registry_is_said_with_a_cure() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let reference = standard().serve(&registry, "acme/standard", "v1");
    let doctor = |arguments: &[&str]| host.kitfs(&[&["doctor", "--json"], arguments].concat());

    let output = doctor(&[&registry.host()]);
    let (status, detail, cure) = checks(&output)("registry");
    assert!(status == "fail" && cure.is_some_and(|cure| cure.contains("--plain-http")), "{detail}");

    registry.require(Auth::Basic("me".into(), "s3cret".into()));
    let output = doctor(&["--plain-http", &reference]);
    let check = checks(&output);
    assert!(check("registry").0 == "ok" && check("registry").1.contains("wants a password"), "{output:#?}");
    let (status, detail, cure) = check("reference");
    assert!(status == "fail" && cure.is_some_and(|cure| cure.contains("docker login")), "{detail}");
    assert!(check("credentials").1.contains("no login"), "{output:#?}");

    let docker = host.home().join(".docker");
    fs::create_dir(&docker).expect("folder");
    let auth = base64::engine::general_purpose::STANDARD.encode("me:s3cret");
    fs::write(docker.join("config.json"), serde_json::json!({ "auths": { registry.host(): { "auth": auth } } }).to_string()).expect("file");
    let output = doctor(&["--plain-http", &reference]);
    let check = checks(&output);
    assert_eq!((check("reference").0, check("credentials").0), ("ok".into(), "ok".into()), "{output:#?}");
    assert!(check("credentials").1.contains(".docker/config.json"), "{output:#?}");
    assert!(!output.stdout.contains("s3cret") && !output.stdout.contains(&auth), "{output:#?}");

    fs::write(docker.join("config.json"), "no JSON").expect("file");
    assert_eq!(checks(&doctor(&["--plain-http", &registry.host()]))("credentials").0, "warn");
    assert_eq!(checks(&doctor(&["--plain-http", "--offline", &registry.host()]))("registry").0, "ok");

    registry.require(Auth::None);
    registry.fault(Target::Any, Times::Always, Fault::status(404));
    assert_eq!(checks(&doctor(&["--plain-http", &registry.host()]))("registry").0, "fail");
    registry.stop();
    assert_eq!(checks(&doctor(&["--plain-http", &registry.host()]))("registry").0, "fail");
    assert_eq!(doctor(&["UPPER/case"]).code(), 2);
}

#[test]
fn a_cache_and_a_run_directory_that_cannot_be_used_fail() {
    let host = Host::new(Mode::Passthrough);
    let open = host.folder("open");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    for (option, check) in [("--cache-dir", "cache"), ("--run-dir", "run-directory")] {
        let output = host.kitfs(&[OsStr::new("doctor"), OsStr::new("--json"), OsStr::new(option), open.as_os_str()]);
        let (status, detail, cure) = checks(&output)(check);
        assert!(status == "fail" && cure.is_some_and(|cure| cure.contains(option)), "{detail}");
    }
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    let host = Host::new(Mode::Passthrough);
    // Nothing of the host's own may be in the way of another user.
    let place = tempfile::tempdir_in("/tmp").expect("folder");
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    let program = place.path().join("kitfs");
    make_program("cp -- \"$2\" \"$1\"", &program, binary().as_os_str());
    let mut command = Command::new("setpriv");
    host.environment(&mut command).args(["--reuid", "4711", "--regid", "4711", "--clear-groups"]).arg(&program).args(["doctor", "--json"]);
    for (name, folder) in [("HOME", "home"), ("KITFS_CACHE_DIR", "cache"), ("KITFS_RUN_DIR", "run"), ("XDG_RUNTIME_DIR", "xdg")] {
        command.env(name, place.path().join(folder));
    }
    let output = run(command.env("TMPDIR", place.path()), std::time::Duration::from_secs(60));
    let check = checks(&output);
    assert!(check("mount").1.contains("root") && check("cache").1.contains("user 4711"), "{output:#?}");
    assert_eq!((check("mount").0, check("cache").0, check("run-directory").0), ("ok".into(), "ok".into(), "ok".into()));
    // Without the right to mount, root is told which right that is.
    let mut command = Command::new("setpriv");
    host.environment(&mut command)
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(binary())
        .args(["doctor", "--json"]);
    let output = run(&mut command, std::time::Duration::from_secs(60));
    let (status, detail, cure) = checks(&output)("mount");
    assert!(status == "fail" && cure.is_some_and(|cure| cure.contains("SYS_ADMIN")), "{detail}");
}
