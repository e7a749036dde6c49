//! Credential helpers: programs that know a login, asked by Docker's protocol.
//!
//! Own code where `docker_credential` has some, because a helper may hang (a key ring that waits for its user, a cloud that does not
//! answer) and has to be ended then, and because that crate's error repeats what the helper printed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::{CredentialError, Login, Secret};
use crate::limits;

/// What a helper that has no login prints, with exit code 1: a part of Docker's protocol.
const NOTHING: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks `docker-credential-NAME` for the login at `server`. `None` if it has none.
pub(super) fn ask(name: &str, server: &str, timeout: Duration) -> Result<Option<Login>, CredentialError> {
    // It becomes a part of a program's name, which must not lead out of the search path.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(CredentialError::HelperName(name.to_owned()));
    }
    run(Command::new(format!("docker-credential-{name}")).arg("get"), name, server, timeout)
}

fn run(command: &mut Command, name: &str, server: &str, timeout: Duration) -> Result<Option<Login>, CredentialError> {
    let start = |error| CredentialError::HelperStart(name.to_owned(), error);
    let late = || CredentialError::HelperTimeout(name.to_owned(), timeout.as_secs());
    let deadline = Instant::now() + timeout;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(start)?;
    let mut child = Ended(child);
    let (Some(mut stdin), Some(mut stdout)) = (child.0.stdin.take(), child.0.stdout.take()) else {
        return Err(CredentialError::HelperAnswer(name.to_owned()));
    };
    match stdin.write_all(server.as_bytes()) {
        Ok(()) => {}
        // It may answer without having read.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => return Err(start(error)),
    }
    drop(stdin);

    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if !readable(&stdout, deadline).map_err(start)? {
            return Err(late());
        }
        match stdout.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => text.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(start(error)),
        }
        if text.len() > limits::HELPER_BYTES {
            return Err(CredentialError::HelperAnswer(name.to_owned()));
        }
    }
    let pid = Pid::from_child(&child.0);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| start(error.into()))?;
    if !readable(&pidfd, deadline).map_err(start)? {
        return Err(late());
    }
    let status = child.0.wait().map_err(start)?;
    if !status.success() {
        let nothing = String::from_utf8_lossy(&text).contains(NOTHING);
        return if nothing { Ok(None) } else { Err(CredentialError::HelperFailed(name.to_owned())) };
    }
    let answer: Answer = serde_json::from_slice(&text).map_err(|_| CredentialError::HelperAnswer(name.to_owned()))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let secret = Secret::new(answer.secret);
    Ok(Some(if answer.username == "<token>" {
        Login::Identity(secret)
    } else {
        Login::Password { user: answer.username, password: secret }
    }))
}

/// Waits until there is something to read (or the end), at most until `deadline`.
fn readable(file: &impl AsFd, deadline: Instant) -> std::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A child that does not outlive its question.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(script: &str, timeout: Duration) -> Result<Option<Login>, CredentialError> {
        run(Command::new("sh").args(["-c", script]), "test", "reg.example", timeout)
    }

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn what_helpers_answer() {
        let login = helper(r#"read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"me\",\"Secret\":\"of $server\"}""#, SOON);
        let Ok(Some(Login::Password { user, password })) = login else { panic!("{login:?}") };
        assert_eq!((user.as_str(), password.expose()), ("me", "of reg.example"));
        let login = helper(r#"echo '{"Username":"<token>","Secret":"t"}'"#, SOON);
        assert!(matches!(&login, Ok(Some(Login::Identity(token))) if token.expose() == "t"), "{login:?}");
        assert!(matches!(helper("echo credentials not found in native keychain; exit 1", SOON), Ok(None)));
        assert!(matches!(helper(r#"echo '{"Username":"","Secret":""}'"#, SOON), Ok(None)));
        assert!(matches!(helper("echo s3cret; exit 2", SOON), Err(CredentialError::HelperFailed(_))));
        assert!(matches!(helper("echo s3cret", SOON), Err(CredentialError::HelperAnswer(_))));
        assert!(matches!(helper("yes", SOON), Err(CredentialError::HelperAnswer(_))));
    }

    #[test]
    fn a_helper_that_hangs_is_ended() {
        let short = Duration::from_millis(50);
        assert!(matches!(helper("exec sleep 1000", short), Err(CredentialError::HelperTimeout(..))));
        assert!(matches!(helper("echo '{}'; exec >&-; exec sleep 1000", short), Err(CredentialError::HelperTimeout(..))));
    }

    #[test]
    fn a_helpers_name_stays_in_the_search_path() {
        for name in ["../../tmp/x", "a/b", "a b", "x\0"] {
            assert!(matches!(ask(name, "reg.example", SOON), Err(CredentialError::HelperName(_))), "{name}");
        }
        assert!(matches!(ask("kitfs-has-no-such", "reg.example", SOON), Err(CredentialError::HelperStart(..))));
    }
}
