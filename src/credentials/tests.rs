use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn password(user: &str, password: &str) -> Login {
    Login::Password { user: user.into(), password: Secret::new(password) }
}

fn auth(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

/// What a single file with this text has for `acme/minilm` (or another repository) at a host.
fn found(text: &str, host: &str, repository: &str) -> Found {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.json");
    fs::write(&file, text).expect("written");
    Credentials::from_files([file]).find(host, repository)
}

#[test]
fn keys_cover_hosts_and_namespaces() {
    let (host, namespace, exact, hub) = (auth("host", "1"), auth("namespace", "2"), auth("exact", "3"), auth("hub", "4"));
    let text = format!(
        r#"{{"auths":{{"reg.example":{{"auth":"{host}"}},"reg.example/acme":{{"auth":"{namespace}"}},"reg.example/acme/minilm":{{"auth":"{exact}"}},
           "https://index.docker.io/v1/":{{"auth":"{hub}"}},"https://v2.example/v2/":{{"auth":"{host}"}},"127.0.0.1:5000":{{"auth":"{host}"}}}}}}"#
    );
    for (registry, repository, expected) in [
        ("reg.example", "other/kit", Some("host")),
        ("reg.example", "acme/big", Some("namespace")),
        ("reg.example", "acmes/big", Some("host")),
        ("reg.example", "acme/minilm", Some("exact")),
        ("reg.example", "acme/minilm/sub", Some("exact")),
        ("Reg.Example", "other", Some("host")),
        ("reg.example:443", "other", None),
        ("docker.io", "library/x", Some("hub")),
        ("registry-1.docker.io", "library/x", Some("hub")),
        ("v2.example", "x", Some("host")),
        ("127.0.0.1:5000", "x", Some("host")),
        ("127.0.0.1", "x", None),
        ("example", "x", None),
    ] {
        let user = match found(&text, registry, repository).login {
            Some(Login::Password { user, .. }) => Some(user),
            other => {
                assert!(other.is_none());
                None
            }
        };
        assert_eq!(user.as_deref(), expected, "{registry}/{repository}");
    }
}

#[test]
fn forms_of_an_entry() {
    let both = auth("me", "a:b");
    for (entry, expected) in [
        (format!(r#"{{"auth":"{both}"}}"#), Some(password("me", "a:b"))),
        (format!(r#"{{"auth":"{}"}}"#, both.trim_end_matches('=')), Some(password("me", "a:b"))),
        (r#"{"username":"me","password":"p"}"#.into(), Some(password("me", "p"))),
        (format!(r#"{{"auth":"{both}","identitytoken":"t"}}"#), Some(Login::Identity(Secret::new("t")))),
        (format!(r#"{{"auth":"{both}","identitytoken":""}}"#), Some(password("me", "a:b"))),
        (format!(r#"{{"auth":"{}"}}"#, auth("me", "p\0\0")), Some(password("me", "p"))),
        ("{}".into(), None),
        (r#"{"auth":""}"#.into(), None),
        (r#"{"auth":"!!!s3cret"}"#.into(), None),
        (r#"{"auth":"bm9jb2xvbg=="}"#.into(), None),
    ] {
        let found = found(&format!(r#"{{"auths":{{"reg.example":{entry}}}}}"#), "reg.example", "a");
        assert_eq!(found.login, expected, "{entry}");
        assert!(!format!("{found:?}").contains("s3cret"));
    }
}

#[test]
fn what_cannot_be_read_is_named_and_skipped() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("broken"), r#"{"auths":{"reg.example":{"auth":"s3cret"#).expect("written");
    fs::write(path("huge"), vec![b' '; limits::CREDENTIAL_FILE_BYTES as usize + 1]).expect("written");
    fs::write(path("largest"), vec![b' '; limits::CREDENTIAL_FILE_BYTES as usize]).expect("written");
    fs::write(path("empty"), "").expect("written");
    fs::write(path("good"), format!(r#"{{"auths":{{"reg.example":{{"auth":"{}"}}}}}}"#, auth("me", "p"))).expect("written");
    let files = |names: &[&str]| Credentials::from_files(names.iter().map(|name| path(name)));
    let all = files(&["missing", "empty", "largest", "broken", "huge", "good"]).find("reg.example", "a");
    assert_eq!(all.login, Some(password("me", "p")));
    assert!(all.origin.contains("good"), "{}", all.origin);
    let bad = files(&["missing", "empty", "largest", "broken", "huge"]).find("reg.example", "a");
    assert!(
        bad.login.is_none() && bad.origin.contains("broken: it is not the JSON") && bad.origin.contains("huge: it has more"),
        "{bad:?}"
    );
    assert!(!bad.origin.contains("s3cret") && !bad.origin.contains("missing") && !bad.origin.contains("largest"));
}

#[test]
fn the_files_in_their_order() {
    let files = |set: &[(&str, &str)]| {
        Credentials::from_variables(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
            .files
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        files(&[("HOME", "/h")]),
        ["/h/.local/share/kitops/credentials.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
    );
    let set = [
        ("HOME", "/h"),
        ("REGISTRY_AUTH_FILE", "/a.json"),
        ("DOCKER_CONFIG", "/d"),
        ("KITOPS_HOME", "/k"),
        ("XDG_RUNTIME_DIR", "/r"),
        ("XDG_CONFIG_HOME", "/c"),
        ("XDG_DATA_HOME", "/x"),
    ];
    assert_eq!(
        files(&set),
        [
            "/a.json",
            "/d/config.json",
            "/k/credentials.json",
            "/r/containers/auth.json",
            "/c/containers/auth.json",
            "/h/.docker/config.json"
        ]
    );
    assert_eq!(files(&set[6..]), ["/x/kitops/credentials.json"]);
}

#[test]
fn secrets_do_not_show() {
    let shown = format!("{:?} {:?}", password("me", "s3cret"), Login::Identity(Secret::new("s3cret")));
    assert!(shown.contains("me") && !shown.contains("s3cret"), "{shown}");
}
