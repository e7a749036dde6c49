//! Registries as they are: TLS, credentials from everywhere, tokens that expire, storage elsewhere, answers that break off.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use base64::Engine as _;

use crate::common::docker_registry::DockerRegistry;
use crate::common::kitfs::{Host, Mode, Mount};
use crate::common::pack::{Kit, Kitfile, Tree};
use crate::common::process::{make_program, within};
use crate::common::registry::{Auth, Fault, Host as Place, ONCE, Registry, Target, Times};
use crate::common::relay::{DELAY, HELD, Relay};
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::{MIB, bytes, standard};

const LIMIT: Duration = Duration::from_secs(90);

fn assert_whole(mount: &Mount, kit: &Kit) {
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
}

fn basic() -> (String, String) {
    ("user".into(), "pass:word".into())
}

fn secret() -> String {
    base64::engine::general_purpose::STANDARD.encode("user:pass:word")
}

#[test]
fn the_real_registry_serves_a_kit() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), DockerRegistry::start(), standard());
    assert_whole(&host.mount(&registry.push(&kit, "acme/standard", "v1")), &kit);
}

/// What `scripts/bench` measures with, too: so it has to be what it says.
#[test]
fn a_kit_comes_over_a_long_way() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let kit = Kitfile::new("far").model("model").pack(&Tree::new().file("model/weights.bin", bytes(6, 48 * MIB)));
    let reference = kit.serve(&registry, "acme/far", "v1");
    let relay = Relay::start(registry.host().parse().expect("an address")).expect("a loopback port");
    let begun = Instant::now();
    assert!(std::net::TcpStream::connect(relay.address()).is_ok_and(|mut stream| {
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: far\r\n\r\n").expect("taken");
        stream.read(&mut [0]).is_ok_and(|read| read == 1)
    }));
    assert!(begun.elapsed() >= 2 * DELAY, "there and back takes as long as it says, or longer");
    let mount = host.mount(&reference.replacen(&registry.host(), &relay.address().to_string(), 1));
    assert_whole(&mount, &kit);
    assert!(relay.passed() > 48 * MIB as u64, "the kit came through the relay: {} bytes", relay.passed());
    assert!(relay.connections() > 1, "{} connections", relay.connections());
    assert!(relay.most_held() > HELD / 2 && relay.most_held() <= HELD, "a connection held {} bytes", relay.most_held());
}

#[test]
fn tls_is_checked_against_the_ca_that_was_given() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start_tls(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let ca = registry.ca().to_str().expect("ours").to_owned();
    assert_whole(&host.mount_with(&reference, &["--ca-cert", &ca]), &kit);
    let point = host.folder("mnt");
    let output = host.kitfs(&[OsStr::new("mount"), OsStr::new(&reference), point.as_os_str()]);
    assert!(output.code() == 1 && output.stderr.contains("hint: "), "an unknown CA: {output:#?}");
    let stranger = Registry::start_tls();
    let output = host.try_mount(&reference, &["--ca-cert", stranger.ca().to_str().expect("ours")]).expect_err("another CA");
    assert_eq!(output.code(), 1, "{output:#?}");
}

/// Each place that credentials may stand in.
#[test]
fn credentials_come_from_where_docker_podman_and_kit_keep_them() {
    let registry = Registry::start();
    let kit = standard();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let name = registry.host();
    let auths = format!(r#"{{"auths":{{"{name}":{{"auth":"{}"}}}}}}"#, secret());
    let helper = "#!/bin/sh\n[ \"$1\" = get ] && echo '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"pass:word\"}'\n";
    type Place<'a> = (&'a str, &'a dyn Fn(&Host) -> Vec<(&'static str, std::ffi::OsString)>);
    let write = |path: std::path::PathBuf, text: &str| {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("room");
    };
    let with_helper = |host: &Host, config: &str| {
        let line = "mkdir -p \"${1%/*}\" && printf '%s' \"$2\" > \"$1\" && chmod 755 \"$1\"";
        make_program(line, &host.path("bin/docker-credential-test"), OsStr::new(helper));
        write(host.path("docker/config.json"), config);
        let path =
            std::env::join_paths([host.path("bin")].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").expect("PATH"))));
        vec![("DOCKER_CONFIG", host.path("docker").into()), ("PATH", path.expect("a path"))]
    };
    let places: [Place<'_>; 7] = [
        ("DOCKER_CONFIG", &|host| {
            write(host.path("docker/config.json"), &auths);
            vec![("DOCKER_CONFIG", host.path("docker").into())]
        }),
        ("~/.docker", &|host| {
            write(host.home().join(".docker/config.json"), &auths);
            Vec::new()
        }),
        ("REGISTRY_AUTH_FILE", &|host| {
            write(host.path("auth.json"), &auths);
            vec![("REGISTRY_AUTH_FILE", host.path("auth.json").into())]
        }),
        ("podman's auth.json", &|host| {
            write(host.run_dir().join("containers/auth.json"), &auths);
            Vec::new()
        }),
        ("KITOPS_HOME", &|host| {
            write(host.path("kitops/credentials.json"), &auths);
            vec![("KITOPS_HOME", host.path("kitops").into())]
        }),
        ("credsStore", &|host| with_helper(host, r#"{"auths":{},"credsStore":"test"}"#)),
        ("credHelpers", &|host| with_helper(host, &format!(r#"{{"credHelpers":{{"{name}":"test"}}}}"#))),
    ];
    for auth in [Auth::Basic(basic().0, basic().1), Auth::Bearer { credentials: Some(basic()), seconds: 300 }] {
        registry.require(auth.clone());
        for (place, prepare) in places {
            let host = Host::new(Mode::Passthrough);
            let environment = prepare(&host);
            let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
            let mount = host.try_mount_in(&reference, &["--prefetch", "none"], &environment);
            let mount = mount.unwrap_or_else(|output| panic!("{place}, {auth:?}: {output:#?}"));
            let path = mount.path("model/config.json");
            let read = within(LIMIT, "a read", move || read(&path));
            assert!(read.is_ok(), "{place}, {auth:?}: {read:?} {}", mount.log());
            assert!(!mount.log().contains("pass:word") && !mount.log().contains(&secret()), "no secret in a log");
        }
    }
}

#[test]
fn tokens_may_expire_while_it_is_mounted() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
    // For everybody, as public registries do it, and good for a second.
    registry.require(Auth::Bearer { credentials: None, seconds: 1 });
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    for layer in &kit.layers {
        registry.revoke_tokens();
        let path = mount.point().join(std::str::from_utf8(&layer.files[0]).expect("a name"));
        assert!(within(LIMIT, "a read", move || read(&path)).is_ok(), "{}: {}", layer.path, mount.log());
    }
    assert_whole(&mount, &kit);
}

#[test]
fn blobs_may_be_elsewhere_and_their_addresses_expire() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    registry.require(Auth::Bearer { credentials: None, seconds: 300 });
    let tree = Tree::new().file("large/part.bin", bytes(1, 40 * MIB)).file("small/part.bin", bytes(2, 1000));
    let kit = Kitfile::new("elsewhere").dataset("large").dataset("small").pack(&tree);
    // Every address is good for one request: each range has to ask the registry anew.
    registry.redirect(1);
    let mount = host.mount(&kit.serve(&registry, "acme/elsewhere", "v1"));
    registry.fault(Target::Content(kit.layer("large").digest.clone()), ONCE, Fault::ResetAt(3 * MIB as u64));
    assert_whole(&mount, &kit);
    let storage: Vec<_> = registry.log().into_iter().filter(|request| request.host == Place::Storage).collect();
    assert!(storage.len() >= 2 && storage.iter().all(|request| request.authorization.is_none()), "no credentials for another host");
    assert!(registry.log().iter().any(|request| request.host == Place::Registry && request.authorization.is_some()));
}

#[test]
fn an_address_that_has_just_expired_is_asked_for_once_more() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
    registry.redirect(100);
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let digest = kit.layer("model").digest.clone();
    registry.fault(Target::Content(digest), ONCE, Fault::status(403));
    let path = mount.path("model/config.json");
    assert!(within(LIMIT, "a read", move || read(&path)).is_ok(), "{}", mount.log());
}

#[test]
fn a_redirect_must_not_leave_tls() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start_tls(), standard());
    registry.redirect(100);
    registry.redirect_to_other_scheme();
    let ca = registry.ca().to_str().expect("ours").to_owned();
    let reference = kit.serve(&registry, "acme/standard", "v1");
    // The config is a blob too, so already the mount must fail.
    let output = host.try_mount(&reference, &["--ca-cert", &ca]).expect_err("plain HTTP behind TLS");
    assert!([1, 4].contains(&output.code()), "{output:#?}");
    assert!(registry.log().iter().all(|request| request.host == Place::Registry), "nothing was asked for in the clear");
}

#[test]
fn what_breaks_off_is_asked_for_again_from_there() {
    let (host, registry) = (Host::new(Mode::Passthrough), Registry::start());
    let tree = Tree::new().file("large/part.bin", bytes(1, 24 * MIB));
    let kit = Kitfile::new("breaks").dataset("large").pack(&tree);
    let layer = &kit.layers[0];
    for offset in [MIB, 5 * MIB, 9 * MIB, 13 * MIB, 23 * MIB] {
        registry.fault(Target::Content(layer.digest.clone()), ONCE, Fault::ResetAt(offset as u64));
    }
    registry.fault(Target::Content(layer.digest.clone()), Times::Nth(7), Fault::retry_after(429, 1));
    let mount = host.mount(&kit.serve(&registry, "acme/breaks", "v1"));
    assert_whole(&mount, &kit);
    let sent = registry.sent(&layer.digest);
    assert!(sent < 2 * layer.blob.len() as u64, "{sent} bytes for {}", layer.blob.len());
}

#[test]
fn a_long_retry_after_fails_now_and_says_when() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
    let mount = host.mount(&kit.serve(&registry, "acme/standard", "v1"));
    let digest = kit.layer("model").digest.clone();
    registry.fault(Target::Content(digest.clone()), Times::Always, Fault::retry_after(429, 3600));
    let path = mount.path("model/config.json");
    assert_eq!(within(Duration::from_secs(10), "a read", move || read(&path)), Err(rustix::io::Errno::IO.raw_os_error()));
    assert!(mount.layer(&digest)["retry_at"].is_string(), "{:#}", mount.layer(&digest));
    assert_eq!(registry.asked(&digest), 1);
}
