//! Registries behind a proxy that tunnels TLS (`CONNECT`), as `HTTPS_PROXY` names it.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;

use crate::common::kitfs::{Host, Mode};
use crate::common::process::within;
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree};
use crate::kits::standard;

const LIMIT: Duration = Duration::from_secs(90);

/// A port that nobody may listen on (tcpmux): what is asked of it comes from nowhere but the proxy.
const NOBODYS: &str = "127.0.0.1:1";

/// A proxy that leads every tunnel to one place, whatever was asked for. Ends with the test process.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What a client said when it asked for a tunnel.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    line: String,
    authorization: Option<String>,
}

impl Proxy {
    /// `answer` is the status line of every answer; only with 200 there is a tunnel.
    fn start(target: String, answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let (address, asked) = (listener.local_addr().expect("bound"), Arc::default());
        let list = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, asked) = (target.clone(), Arc::clone(&list));
                // Whatever ends a tunnel is the client's affair.
                thread::spawn(move || tunnel(client, &target, answer, &asked));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn tunnel(client: TcpStream, target: &str, answer: &str, asked: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let authorization = head.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
    });
    asked.lock().expect("no panic").push(Asked { line: head.swap_remove(0), authorization });
    let mut to_client = client;
    write!(to_client, "HTTP/1.1 {answer}\r\n\r\n")?;
    if !answer.starts_with("200") {
        return to_client.shutdown(Shutdown::Both);
    }
    let server = TcpStream::connect(target)?;
    let (mut from_server, mut to_server) = (server.try_clone()?, server);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut reader, &mut to_server);
    let _ = to_server.shutdown(Shutdown::Both);
    let _ = back.join();
    Ok(())
}

#[test]
fn a_registry_behind_a_proxy_is_reached_through_it_alone() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start_tls(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1").replace(&registry.host(), NOBODYS);
    let ca = registry.ca().to_str().expect("ours").to_owned();
    let proxy = Proxy::start(registry.host(), "200 Connection established");
    let address = format!("http://user:s3cret@{}", proxy.address);
    let mount = host
        .try_mount_in(&reference, &["--ca-cert", &ca], &[("HTTPS_PROXY", OsStr::new(&address))])
        .unwrap_or_else(|output| panic!("{output:#?}"));
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    let login = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:s3cret"));
    let wanted = Asked { line: format!("CONNECT {NOBODYS} HTTP/1.1"), authorization: Some(login.clone()) };
    let asked = proxy.asked();
    // `kitfs mount` and the worker, each at least once.
    assert!(asked.len() >= 2 && asked.iter().all(|each| *each == wanted), "{asked:#?}");
    assert!(!mount.log().contains("s3cret") && !mount.log().contains(&login), "no secret in a log");
    assert!(!mount.status().to_string().contains("s3cret"), "nor in status");
}

#[test]
fn no_proxy_is_asked_for_what_it_is_not_for() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start_tls(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let ca = registry.ca().to_str().expect("ours").to_owned();
    let proxy = Proxy::start(registry.host(), "200 Connection established");
    let address = format!("http://{}", proxy.address);
    let environment = [("HTTPS_PROXY", OsStr::new(&address)), ("NO_PROXY", OsStr::new("127.0.0.1"))];
    let mount = host.try_mount_in(&reference, &["--ca-cert", &ca], &environment).unwrap_or_else(|output| panic!("{output:#?}"));
    let (point, wanted) = (mount.point().to_owned(), of_tree(&kit.tree));
    within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
    assert_eq!(proxy.asked(), []);
}

#[test]
fn a_proxy_that_refuses_is_an_error_that_says_so() {
    for (answer, login) in [("407 Proxy Authentication Required", "user:s3cret@"), ("403 Forbidden", "")] {
        let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start_tls(), standard());
        let reference = kit.serve(&registry, "acme/standard", "v1");
        let ca = registry.ca().to_str().expect("ours").to_owned();
        let proxy = Proxy::start(registry.host(), answer);
        let address = format!("http://{login}{}", proxy.address);
        let output = host
            .try_mount_in(&reference, &["--ca-cert", &ca], &[("HTTPS_PROXY", OsStr::new(&address))])
            .expect_err("nothing passes the proxy");
        assert_eq!(output.code(), 1, "{output:#?}");
        let text = output.stderr.to_lowercase();
        assert!(text.contains("proxy") || text.contains("tunnel"), "{output:#?}");
        assert!(!text.contains("s3cret"), "{output:#?}");
    }
}
