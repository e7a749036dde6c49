//! Whether this host can carry mounts: what `kitfs doctor` looks at that belongs to no other module.
//!
//! Each check gives one finding, with what to do about it. What the cache, the run directory or a registry have to say comes from their own modules, in their
//! own words; here it only gets a name and a verdict. Nothing is changed, but for a mount on trial that nobody sees.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};

use crate::failure::chain;
use crate::limits::{CLOCK_SKEW_MAX, DESCRIPTORS_WANTED, HOST_FILE_BYTES, NOT_BEFORE, ROOM_WANTED_BYTES};
use crate::mountinfo::FS_TYPE;
use crate::preflight::{self, PreflightError};
use crate::supervisor::Trial;
use crate::wait;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is to be done.
    Ok,
    /// Mounts work, but not as well as they could, or not for everybody.
    Warn,
    /// Mounts do not work like this.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, which other programs rely on.
    pub check: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub cure: Option<String>,
}

/// The host that is looked at. Tests have one of their own.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where its files begin: `/`.
    pub root: PathBuf,
    /// Whether the one who asks is root.
    pub is_root: bool,
    /// The program that mounts for ordinary users.
    pub fusermount: Option<PathBuf>,
}

/// A filesystem that holds the cache.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The bytes that are free; `None` if it knows no size.
    pub free: Option<u64>,
    /// Whether space can be reserved.
    pub can_reserve: bool,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), cure: None }
    }

    /// It could be better.
    pub fn warn(check: &'static str, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, detail: detail.into(), cure: Some(cure.into()) }
    }

    /// It will not do.
    pub fn fail(check: &'static str, detail: impl Into<String>, cure: Option<String>) -> Self {
        Self { check, verdict: Verdict::Fail, detail: detail.into(), cure }
    }

    /// It will not do, for this reason.
    pub fn error(check: &'static str, error: &dyn Error, cure: Option<String>) -> Self {
        Self::fail(check, chain(error), cure)
    }
}

impl Host {
    /// Everything that has to do with this host alone.
    pub fn findings(&self) -> Vec<Finding> {
        vec![
            self.kernel(),
            self.device(),
            self.fusermount(),
            self.allow_other(),
            self.timeouts(),
            self.updatedb(),
            descriptors(hard_limit()),
        ]
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The text of a small file; `None` if there is none.
    fn text(&self, absolute: &str) -> io::Result<Option<String>> {
        match fs::File::open(self.path(absolute)) {
            Ok(file) => io::read_to_string(io::Read::take(file, HOST_FILE_BYTES)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn kernel(&self) -> Finding {
        const CHECK: &str = "kernel";
        let release = self.text("/proc/sys/kernel/osrelease").ok().flatten().unwrap_or_default();
        let release = release.trim();
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 9) => Finding::ok(CHECK, format!("Linux {release}")),
            (Some(Ok(_)), Some(Ok(_))) => Finding::warn(
                CHECK,
                format!(
                    "Linux {release} neither reads files past kitfs nor sends requests again: when a worker dies, those that it had not answered fail"
                ),
                "use Linux 6.9 or later",
            ),
            _ => Finding::warn(CHECK, format!("the kernel's release `{release}` is not understood"), "see that it is Linux 6.9 or later"),
        }
    }

    fn device(&self) -> Finding {
        match preflight::device(&self.path(preflight::DEVICE)) {
            Ok(()) => Finding::ok("device", format!("{} can be opened", preflight::DEVICE)),
            Err(error) => of_preflight("device", &error),
        }
    }

    fn fusermount(&self) -> Finding {
        const CHECK: &str = "fusermount3";
        match preflight::mounter(self.is_root, self.fusermount.clone()) {
            Ok(None) => Finding::ok(CHECK, "root mounts without it"),
            Ok(Some(program)) => match fs::metadata(&program) {
                Ok(metadata) if metadata.permissions().mode() & 0o4000 != 0 => Finding::ok(CHECK, program.display().to_string()),
                Ok(_) => Finding::warn(
                    CHECK,
                    format!("{} is not setuid root, so that it may not be able to mount for others", program.display()),
                    format!("install the package fuse3 anew, or as root: chmod u+s {}", program.display()),
                ),
                Err(error) => Finding::error(CHECK, &error, Some("install the package fuse3".into())),
            },
            Err(error) => of_preflight(CHECK, &error),
        }
    }

    fn allow_other(&self) -> Finding {
        const CHECK: &str = "user_allow_other";
        match preflight::other_users(self.is_root, &self.path(preflight::FUSE_CONF)) {
            Ok(()) if self.is_root => Finding::ok(CHECK, "root may mount for other users without it"),
            Ok(()) => Finding::ok(CHECK, format!("{} allows --allow-other", preflight::FUSE_CONF)),
            // Who does not want to share a mount misses nothing.
            Err(error) => Finding { verdict: Verdict::Warn, ..of_preflight(CHECK, &error) },
        }
    }

    fn timeouts(&self) -> Finding {
        const CHECK: &str = "request-timeout";
        match wait::kernel_limit(&self.path(wait::SETTINGS)) {
            None => Finding::ok(CHECK, "the kernel sets no limit to requests"),
            Some(limit) => Finding::warn(
                CHECK,
                format!(
                    "the kernel gives a request {} s: who waits longer for a layer gets ETIMEDOUT before that, while the fetch goes on",
                    limit.as_secs()
                ),
                "set fs.fuse.default_request_timeout and fs.fuse.max_request_timeout to 0, or fetch with `kitfs pull` before",
            ),
        }
    }

    fn updatedb(&self) -> Finding {
        const CHECK: &str = "updatedb";
        const FILE: &str = "/etc/updatedb.conf";
        match self.text(FILE) {
            Ok(None) => Finding::ok(CHECK, format!("there is no {FILE}")),
            Ok(Some(text)) if prunes(&text, FS_TYPE) => Finding::ok(CHECK, format!("{FILE} leaves {FS_TYPE} out")),
            Ok(Some(_)) => Finding::warn(
                CHECK,
                format!("updatedb goes through mounts of kitfs, which fetches layers for it: {FILE} does not leave {FS_TYPE} out"),
                format!("add {FS_TYPE} to PRUNEFS in {FILE}"),
            ),
            Err(error) => Finding::warn(CHECK, format!("cannot read {FILE}: {error}"), format!("see that PRUNEFS in it has {FS_TYPE}")),
        }
    }
}

/// What came of a mount on trial; `None` if nobody but root can try.
pub fn trial(tried: Option<&io::Result<Trial>>) -> Vec<Finding> {
    const MOUNT: &str = "mount";
    const PASSTHROUGH: &str = "passthrough";
    match tried {
        None => {
            let slower = "files are read through kitfs and the page cache: the same bytes, slower when cold. Only root can have more";
            vec![Finding::ok(MOUNT, "not tried: that takes root"), Finding::ok(PASSTHROUGH, slower)]
        }
        Some(Err(error)) => {
            let right = "run as root, or in a container with --device /dev/fuse --cap-add SYS_ADMIN";
            vec![Finding::error(MOUNT, error, Some(right.into()))]
        }
        Some(Ok(Trial { resend, passthrough })) => {
            let mount = match resend {
                true => Finding::ok(MOUNT, "a mount on trial came and went; requests are sent again when a worker dies"),
                false => Finding::warn(
                    MOUNT,
                    "a mount on trial came and went, but requests are not sent again when a worker dies: those that it had not answered fail",
                    "use Linux 6.9 or later",
                ),
            };
            let passthrough = match passthrough {
                Ok(()) => Finding::ok(PASSTHROUGH, "the kernel reads large files of this cache by itself"),
                Err(error) => Finding::warn(
                    PASSTHROUGH,
                    format!("the kernel does not read files of this cache by itself ({error}): kitfs does, which is slower when cold"),
                    "use Linux 6.9 or later, and a cache on ext4, xfs, btrfs or tmpfs and not on an overlay",
                ),
            };
            vec![mount, passthrough]
        }
    }
}

/// What is free for layers.
pub fn room(room: Room) -> Finding {
    const CHECK: &str = "room";
    match room {
        Room { free: Some(0), .. } => {
            Finding::fail(CHECK, "the cache's filesystem is full", Some("make room, or name another folder with --cache-dir".into()))
        }
        Room { free: Some(free), .. } if free < ROOM_WANTED_BYTES => Finding::warn(
            CHECK,
            format!("{} are free for layers, which is less than most models have", BinaryBytes(free)),
            "make room, or name a folder on a larger disk with --cache-dir",
        ),
        Room { can_reserve: false, .. } => Finding::warn(
            CHECK,
            "the cache's filesystem cannot reserve space, so that it is found out late when it is full",
            "use a cache on ext4, xfs, btrfs or tmpfs",
        ),
        Room { free: Some(free), .. } => Finding::ok(CHECK, format!("{} are free for layers", BinaryBytes(free))),
        Room { free: None, .. } => Finding::ok(CHECK, "the cache's filesystem knows no size"),
    }
}

/// Whether the clock can be right: signatures, certificates and tokens are judged by it. `other` is another one's, seen just now.
pub fn clock(now: Timestamp, other: Option<(&str, Timestamp)>) -> Finding {
    const CHECK: &str = "clock";
    let shown = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or_default();
    let cure = || "set the clock, and keep it right with NTP".to_owned();
    if now < NOT_BEFORE {
        return Finding::fail(CHECK, format!("it is {} here, and kitfs is younger than that", shown(now)), Some(cure()));
    }
    match other {
        Some((who, other)) if now.duration_since(other).unsigned_abs() > CLOCK_SKEW_MAX => {
            Finding::warn(CHECK, format!("it is {} here, and {} at {who}", shown(now), shown(other)), cure())
        }
        Some((who, _)) => Finding::ok(CHECK, format!("it agrees with that of {who}")),
        None => Finding::ok(CHECK, format!("it is {}", shown(now))),
    }
}

/// The proxies that `variables` name. Logins in them are not shown.
pub fn proxies(variable: impl Fn(&str) -> Option<String>) -> Finding {
    const CHECK: &str = "proxy";
    let mut shown = Vec::new();
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
        let with_scheme = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        let Ok(uri) = with_scheme.parse::<http::Uri>() else {
            return Finding::fail(CHECK, format!("{name} is not a URL"), Some(format!("set {name} to http://HOST:PORT, or to nothing")));
        };
        let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
            return Finding::fail(CHECK, format!("{name} names no host"), Some(format!("set {name} to http://HOST:PORT, or to nothing")));
        };
        let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        shown.push(format!("{name} is {}://{host}{port}", uri.scheme_str().unwrap_or("http")));
    }
    if shown.is_empty() {
        return Finding::ok(CHECK, "no proxy is set");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        shown.extend(variable(name).filter(|value| !value.is_empty()).map(|value| format!("{name} is {value}")));
    }
    Finding::ok(CHECK, shown.join(", "))
}

fn descriptors(hard: Option<u64>) -> Finding {
    const CHECK: &str = "descriptors";
    match hard {
        Some(hard) if hard < DESCRIPTORS_WANTED => Finding::warn(
            CHECK,
            format!("a process may have {hard} files open: kits of many layers, read by many, may end with EMFILE"),
            format!("raise the hard limit to {DESCRIPTORS_WANTED} or more (LimitNOFILE= of a unit, `ulimit -Hn`)"),
        ),
        Some(hard) => Finding::ok(CHECK, format!("a mount may have {hard} files open")),
        None => Finding::ok(CHECK, "a mount may have any number of files open"),
    }
}

fn hard_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

fn of_preflight(check: &'static str, error: &PreflightError) -> Finding {
    Finding::error(check, error, error.hint())
}

/// Whether PRUNEFS in an `updatedb.conf` has the type, which is compared without regard to case. The last assignment counts, `+=` adds.
fn prunes(text: &str, fs_type: &str) -> bool {
    let mut pruned = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some(rest) = line.strip_prefix("PRUNEFS").map(str::trim_start) else { continue };
        let (adds, value) = match (rest.strip_prefix("+="), rest.strip_prefix('=')) {
            (Some(value), _) => (true, value),
            (None, Some(value)) => (false, value),
            (None, None) => continue,
        };
        let value = value.trim().trim_start_matches('"').split('"').next().unwrap_or_default();
        let has = value.split_whitespace().any(|word| word.eq_ignore_ascii_case(fs_type));
        pruned = has || (adds && pruned);
    }
    pruned
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    /// A host in a folder: files with their texts.
    fn host(folder: &Path, is_root: bool, files: &[(&str, &str)]) -> Host {
        for (path, text) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("folder");
            fs::write(path, text).expect("file");
        }
        Host { root: folder.to_owned(), is_root, fusermount: None }
    }

    fn verdicts(findings: &[Finding]) -> Vec<(&str, Verdict)> {
        findings.iter().map(|finding| (finding.check, finding.verdict)).collect()
    }

    /// Whatever is not well says what to do.
    fn cured(finding: Finding) -> Finding {
        assert_eq!(finding.cure.is_some(), finding.verdict != Verdict::Ok, "{finding:?}");
        finding
    }

    #[test]
    fn a_host_that_has_everything_and_one_that_has_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let good = [
            ("proc/sys/kernel/osrelease", "6.18.44-fc\n"),
            ("dev/fuse", ""),
            ("etc/fuse.conf", "user_allow_other\n"),
            ("etc/updatedb.conf", "PRUNEFS=\"NFS fuse.kitfs\"\n"),
            ("proc/sys/fs/fuse/default_request_timeout", "0\n"),
        ];
        let mut well = host(folder.path(), false, &good);
        let program = folder.path().join("fusermount3");
        fs::write(&program, "").expect("file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("mode");
        well.fusermount = Some(program.clone());
        let findings: Vec<Finding> = well.findings().into_iter().map(cured).collect();
        let names = ["kernel", "device", "fusermount3", "user_allow_other", "request-timeout", "updatedb"];
        assert_eq!(verdicts(&findings)[..6], names.map(|name| (name, Verdict::Ok)), "{findings:#?}");

        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        assert_eq!(cured(well.fusermount()).verdict, Verdict::Warn);

        let folder = tempfile::tempdir().expect("folder");
        let poor = [
            ("proc/sys/kernel/osrelease", "6.8.0\n"),
            ("etc/updatedb.conf", "PRUNEFS=\"NFS fuse.sshfs\"\n"),
            ("proc/sys/fs/fuse/max_request_timeout", "600\n"),
        ];
        let findings: Vec<Finding> = host(folder.path(), false, &poor).findings().into_iter().map(cured).collect();
        let wanted = [Verdict::Warn, Verdict::Fail, Verdict::Fail, Verdict::Warn, Verdict::Warn, Verdict::Warn];
        assert_eq!(verdicts(&findings)[..6], [0, 1, 2, 3, 4, 5].map(|at| (names[at], wanted[at])), "{findings:#?}");
        // Root needs neither program nor permission.
        let of_root = host(folder.path(), true, &[]);
        assert_eq!((of_root.fusermount().verdict, of_root.allow_other().verdict), (Verdict::Ok, Verdict::Ok));
    }

    #[test]
    fn kernels() {
        for (release, verdict) in [
            ("6.9.0", Verdict::Ok),
            ("6.9", Verdict::Ok),
            ("6.18.44-fc-v657", Verdict::Ok),
            ("7.0.0-rc1", Verdict::Ok),
            ("6.8.12", Verdict::Warn),
            ("5.15.0-91-generic", Verdict::Warn),
            ("", Verdict::Warn),
            ("six", Verdict::Warn),
            ("99999999999.1", Verdict::Warn),
        ] {
            let folder = tempfile::tempdir().expect("folder");
            let host = host(folder.path(), true, &[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(cured(host.kernel()).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn what_updatedb_leaves_out() {
        for (text, pruned) in [
            ("", false),
            ("PRUNEFS=\"NFS fuse.kitfs\"", true),
            (" PRUNEFS = \"FUSE.KITFS\" # all", true),
            ("PRUNEFS=\"NFS\" # fuse.kitfs", false),
            ("# PRUNEFS=\"fuse.kitfs\"", false),
            ("PRUNEPATHS=\"fuse.kitfs\"", false),
            ("PRUNEFS=\"fuse\"", false),
            ("PRUNEFS=\"fuse.kitfs\"\nPRUNEFS=\"NFS\"", false),
            ("PRUNEFS=\"fuse.kitfs\"\nPRUNEFS+=\"NFS\"", true),
        ] {
            assert_eq!(prunes(text, FS_TYPE), pruned, "{text}");
        }
    }

    #[test]
    fn a_trial_says_what_the_kernel_can_do() {
        let passthrough = |passthrough| Some(Ok(Trial { resend: true, passthrough }));
        let overlay = || io::Error::from_raw_os_error(libc::ELOOP);
        for (tried, wanted) in [
            (None, &[("mount", Verdict::Ok), ("passthrough", Verdict::Ok)][..]),
            (passthrough(Ok(())), &[("mount", Verdict::Ok), ("passthrough", Verdict::Ok)]),
            (passthrough(Err(overlay())), &[("mount", Verdict::Ok), ("passthrough", Verdict::Warn)]),
            (Some(Ok(Trial { resend: false, passthrough: Ok(()) })), &[("mount", Verdict::Warn), ("passthrough", Verdict::Ok)]),
            (Some(Err(io::Error::from_raw_os_error(libc::EPERM))), &[("mount", Verdict::Fail)]),
        ] {
            let findings: Vec<Finding> = trial(tried.as_ref()).into_iter().map(cured).collect();
            assert_eq!(verdicts(&findings), wanted, "{tried:?}");
        }
    }

    #[test]
    fn limits_of_room_descriptors_and_time() {
        for (free, can_reserve, verdict) in [
            (Some(0), true, Verdict::Fail),
            (Some(ROOM_WANTED_BYTES - 1), true, Verdict::Warn),
            (Some(ROOM_WANTED_BYTES), true, Verdict::Ok),
            (Some(ROOM_WANTED_BYTES), false, Verdict::Warn),
            (None, true, Verdict::Ok),
        ] {
            assert_eq!(cured(room(Room { free, can_reserve })).verdict, verdict, "{free:?} {can_reserve}");
        }
        for (hard, verdict) in [(Some(DESCRIPTORS_WANTED - 1), Verdict::Warn), (Some(DESCRIPTORS_WANTED), Verdict::Ok), (None, Verdict::Ok)]
        {
            assert_eq!(cured(descriptors(hard)).verdict, verdict, "{hard:?}");
        }
        let before = NOT_BEFORE - Duration::from_secs(1);
        assert_eq!(cured(clock(before, None)).verdict, Verdict::Fail);
        assert_eq!(cured(clock(NOT_BEFORE, None)).verdict, Verdict::Ok);
        for (skew, verdict) in [(CLOCK_SKEW_MAX, Verdict::Ok), (CLOCK_SKEW_MAX + Duration::from_secs(1), Verdict::Warn)] {
            assert_eq!(cured(clock(NOT_BEFORE + skew, Some(("reg.example", NOT_BEFORE)))).verdict, verdict, "{skew:?}");
            assert_eq!(cured(clock(NOT_BEFORE, Some(("reg.example", NOT_BEFORE + skew)))).verdict, verdict, "{skew:?}");
        }
    }

    #[test]
    fn a_proxy_is_shown_without_its_login() {
        let set = |pairs: &'static [(&'static str, &'static str)]| {
            cured(proxies(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())))
        };
        assert_eq!(set(&[]).verdict, Verdict::Ok);
        let shown = set(&[("HTTPS_PROXY", "http://me:s3cret@proxy.example:3128"), ("NO_PROXY", "localhost")]);
        assert_eq!(shown.detail, "HTTPS_PROXY is http://proxy.example:3128, NO_PROXY is localhost");
        assert_eq!(set(&[("https_proxy", "me:s3cret@proxy.example:3128")]).detail, "https_proxy is http://proxy.example:3128");
        for bad in [&[("HTTPS_PROXY", "http://")][..], &[("HTTPS_PROXY", "http://me:s3cret@")], &[("HTTPS_PROXY", "a b s3cret")]] {
            let finding = proxies(|name| bad.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()));
            assert_eq!(finding.verdict, Verdict::Fail, "{bad:?}");
            assert!(!finding.detail.contains("s3cret"), "{finding:?}");
        }
    }
}
