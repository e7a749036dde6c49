//! `kitfs doctor`: whether kits can be mounted here and fetched from there, and what to do if not.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use jiff::Timestamp;
use rustix::process::geteuid;
use serde::Serialize;

use super::args::Doctor;
use super::error::{CliError, hints_of_source};
use super::report::{self, Exit, escaped};
use super::{options, print, reference, runtime, store, umount};
use crate::credentials::Credentials;
use crate::detach::fusermount;
use crate::doctor::{self, Finding, Host, Room, Verdict};
use crate::failure::chain;
use crate::oci::{Reference, RegistryName, Transport};
use crate::source::{self, Reached, SourceError, SourceOptions};
use crate::store::Store;
use crate::supervisor;

pub(super) fn run(arguments: &Doctor) -> Result<Exit, CliError> {
    let target = arguments.target.as_deref().map(Target::read).transpose()?;
    let is_root = geteuid().is_root();
    let host = Host { root: "/".into(), is_root, fusermount: fusermount() };
    let mut findings = host.findings();
    match store(&arguments.sources) {
        Ok(store) => findings.extend(of_cache(&store, is_root)),
        Err(error) => findings.push(failed("cache", &error, "name another folder with `--cache-dir`")),
    }
    findings.push(match umount::open(&arguments.run) {
        Ok(run) => Finding::ok("run-directory", run.path().display().to_string()),
        Err(error) => failed("run-directory", &error, "name another folder with `--run-dir`"),
    });
    findings.push(doctor::proxies(|name| std::env::var(name).ok()));
    let mut other = None;
    if let Some(target) = &target {
        match options(&arguments.sources) {
            Ok(options) => other = target.look(&options, &mut findings)?,
            Err(error) => findings.push(failed("registry", &error, "see that `--ca-cert` and KITOPS_HOME name what is there")),
        }
    }
    findings.push(doctor::clock(Timestamp::now(), other.as_ref().map(|(host, time)| (host.as_str(), *time))));
    let exit = if findings.iter().any(|finding| finding.verdict == Verdict::Fail) { Exit::Failed } else { Exit::Done };
    let shown = if arguments.json { report::json(&Shown::new(&findings))? } else { text(&findings) };
    print(shown.as_bytes())?;
    Ok(exit)
}

/// What is looked at beside this host.
enum Target {
    /// A registry.
    Registry(RegistryName),
    /// A kit, wherever it is.
    Kit(Reference),
}

impl Target {
    fn read(text: &str) -> Result<Self, CliError> {
        // A host is what a reference begins with; which repository it would be does not matter.
        let host = format!("{text}/kitfs").parse::<Reference>();
        if !text.contains('/')
            && let Ok(parsed) = host
            && let Transport::Registry(name) = parsed.transport()
        {
            return Ok(Self::Registry(name.clone()));
        }
        reference(text).map(Self::Kit)
    }

    /// Looks at registry and kit; tells the registry's clock.
    fn look(&self, options: &SourceOptions, findings: &mut Vec<Finding>) -> Result<Option<(String, Timestamp)>, CliError> {
        let registry = match self {
            Self::Registry(name) => Some((name, "")),
            Self::Kit(reference) => match reference.transport() {
                Transport::Registry(name) => Some((name, name.repository())),
                Transport::Layout(_) | Transport::Archive(_) | Transport::Kitops(_) => None,
            },
        };
        let runtime = runtime()?;
        let mut date = None;
        if let Some((name, repository)) = registry {
            findings.push(login(name.host(), repository));
            if options.offline {
                findings.push(Finding::ok("registry", format!("{} is not asked, since --offline was given", name.host())));
                return Ok(None);
            }
            match runtime.block_on(source::reach(name, options)) {
                Ok(Reached { url, wants, date: said }) => {
                    findings.push(Finding::ok("registry", format!("{url} answers, and {wants}")));
                    date = said.map(|date| (name.host().to_owned(), date));
                }
                Err(source) => {
                    findings.push(failed_source("registry", &source));
                    // What cannot be reached has nothing to say of the kit.
                    return Ok(None);
                }
            }
        }
        if let Self::Kit(reference) = self {
            let _inside = runtime.enter();
            let resolved = source::open(reference, options).and_then(|source| runtime.block_on(async { source.resolve().await }));
            findings.push(match resolved {
                Ok(resolved) => Finding::ok("reference", format!("{reference} is {}", resolved.descriptor.digest)),
                Err(source) => failed_source("reference", &source),
            });
        }
        Ok(date)
    }
}

/// The file or helper that a login would come from, never the login.
fn login(host: &str, repository: &str) -> Finding {
    let found = Credentials::from_environment().find(host, repository);
    match (found.login, found.trouble) {
        (None, true) => Finding::warn(
            "credentials",
            found.origin,
            "repair the file, or log in again with `docker login`, `podman login` or `kit login`",
        ),
        (None, false) | (Some(_), _) => Finding::ok("credentials", found.origin),
    }
}

fn of_cache(store: &Store, is_root: bool) -> Vec<Finding> {
    let dir = store.dir().display();
    let mut findings = vec![match fs::metadata(store.dir()) {
        Ok(metadata) => {
            let filesystem = store.filesystem().unwrap_or_else(|| "an unknown filesystem".to_owned());
            let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
            Finding::ok(
                "cache",
                format!("{dir} is on {filesystem}, owned by user {owner} with mode {mode:04o}; its locks and renames hold"),
            )
        }
        Err(error) => Finding::error("cache", &error, Some("name another folder with `--cache-dir`".into())),
    }];
    if let Some(error) = store.trouble() {
        findings[0] = failed("cache", &error.clone().into(), "name another folder with `--cache-dir`");
    }
    findings.push(match store.room() {
        Ok(free) => doctor::room(Room { free, can_reserve: store.can_reserve() }),
        Err(error) => failed("room", &error.into(), "name another folder with `--cache-dir`"),
    });
    let tried = is_root.then(|| supervisor::trial(store.dir()));
    findings.extend(doctor::trial(tried.as_ref()));
    findings
}

/// What failed, and the hint that goes with it; `otherwise` where there is none.
fn failed(check: &'static str, error: &CliError, otherwise: &str) -> Finding {
    let cure = error.hints().into_iter().next().unwrap_or(otherwise.to_owned().into());
    Finding::fail(check, chain(error), Some(cure.into()))
}

fn failed_source(check: &'static str, error: &SourceError) -> Finding {
    let cure = hints_of_source(error).into_iter().next();
    let cure =
        cure.unwrap_or("see that its name is right, that it runs, and that it can be reached from here, past firewalls and proxies".into());
    Finding::fail(check, chain(error), Some(cure.into()))
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, verdict, detail, cure } in findings {
        let cure = cure.as_ref().map(|cure| format!("; to do: {}", escaped(cure))).unwrap_or_default();
        // Writing into a String cannot fail.
        _ = writeln!(text, "{:<4}  {check:<width$}  {}{cure}", verdict.name(), escaped(detail));
    }
    text
}

/// What other programs rely on: keys and names of checks are added, not changed.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    status: &'static str,
    checks: Vec<Check<'a>>,
}

#[derive(Debug, Serialize)]
struct Check<'a> {
    check: &'static str,
    status: &'static str,
    detail: &'a str,
    cure: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn new(findings: &'a [Finding]) -> Self {
        let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        let check = |finding: &'a Finding| Check {
            check: finding.check,
            status: finding.verdict.name(),
            detail: &finding.detail,
            cure: finding.cure.as_deref(),
        };
        Self { status: worst.name(), checks: findings.iter().map(check).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_or_a_kit() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "ghcr.io"] {
            assert!(matches!(Target::read(host), Ok(Target::Registry(name)) if name.host() == host), "{host}");
        }
        for kit in ["ghcr.io/acme/m:v1", "localhost:5000/acme/m", "oci:/srv/kits:v1", "kitops:acme/m:v1"] {
            assert!(matches!(Target::read(kit), Ok(Target::Kit(_))), "{kit}");
        }
        for neither in ["", "UPPER/case", "a b", "https://ghcr.io", "oci:"] {
            assert!(Target::read(neither).is_err(), "{neither}");
        }
    }

    #[test]
    fn the_shape_of_json_is_fixed() {
        let findings = [Finding::ok("kernel", "Linux 6.18"), Finding::warn("updatedb", "it\u{1b} walks", "stop it")];
        let shown = report::json(&Shown::new(&findings)).expect("plain data");
        assert!(!shown.contains('\u{1b}'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"),
            serde_json::json!({"status": "warn", "checks": [
                { "check": "kernel", "status": "ok", "detail": "Linux 6.18", "cure": null },
                { "check": "updatedb", "status": "warn", "detail": "it\u{1b} walks", "cure": "stop it" },
            ]})
        );
        let text = text(&findings);
        assert_eq!(text, "ok    kernel    Linux 6.18\nwarn  updatedb  it\\u{1b} walks; to do: stop it\n");
    }
}
