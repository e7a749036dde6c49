//! Everything that can end a command, with the exit code and the hints that belong to it.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::report::Exit;
use crate::admission::roots::{DEFAULT, RootsError};
use crate::admission::{HOST_ROOTS, NotAdmitted, RuleError};
use crate::audit::AuditError;
use crate::daemon::StartError;
use crate::digest::{Digest, DigestError};
use crate::failure::ErrorClass;
use crate::kit::KitError;
use crate::oci::ReferenceError;
use crate::policy::document::{DocumentError, FieldError};
use crate::policy::name::NameError;
use crate::policy::set::SetError;
use crate::preflight::PreflightError;
use crate::resolve::{ChoiceError, ResolveError};
use crate::run::RunError;
use crate::signature::{Denial, KeyError, Reason};
use crate::source::SourceError;
use crate::store::StoreError;
use crate::tree::TreeError;
use crate::tuf::TufError;
use crate::umount::UmountError;
use crate::verify::Mismatch;
use crate::vsa::VsaError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The reference is malformed.
    #[error("not a reference")]
    Reference(#[source] ReferenceError),
    /// The reference came to no kit.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Layers did not come.
    #[error("{failed} of {all} layers failed; the first is {name}")]
    Layers {
        /// How many failed.
        failed: usize,
        /// How many there are.
        all: usize,
        /// The first that failed.
        name: String,
        /// Why it did.
        #[source]
        source: StoreError,
    },
    /// Layers do not fit together.
    #[error("the layers of this kit cannot be shown together")]
    Tree(#[from] TreeError),
    /// Neither an option nor the environment says where the cache is.
    #[error("there is no cache directory: neither `--cache-dir` nor XDG_CACHE_HOME nor HOME says where")]
    NoCacheDir,
    /// A folder that was named cannot be used.
    #[error("cannot use `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A file that was named cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A digest was to be given, and is none that signatures are about.
    #[error("not the digest of something that was signed")]
    Digest(#[source] DigestError),
    /// The key cannot be used.
    #[error("`{}` holds no public key", path.display())]
    Key {
        /// Where it was read.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The trusted root of a bundle cannot be used.
    #[error(transparent)]
    TrustedRoot(RootsError),
    /// The bundle does not count.
    #[error("not verified ({})", .0.reason)]
    NotVerified(#[source] Denial),
    /// There is no mount where one was asked for.
    #[error("{} is no mount of kitfs", path.display())]
    NoSuchMount {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It cannot be mounted there, or not by this user.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The mount does not serve.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A mount was not taken down.
    #[error(transparent)]
    Umount(#[from] UmountError),
    /// Policies or what they refer to cannot be loaded.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// A file that says what is trusted cannot be used.
    #[error("cannot use `{}`", path.display())]
    TrustFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the caller claims is no name of a kit.
    #[error("`--as {text}`")]
    Claim {
        /// The claim.
        text: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// The caller claims a digest.
    #[error("`--as {0}` names a digest: it says what the kit is called, and its digest is its own")]
    ClaimedDigest(String),
    /// There is nothing that could be explained.
    #[error("there is no policy, neither of this host nor in an option: nothing is decided on")]
    NoPolicy,
    /// A trusted root was not fetched or not written.
    #[error(transparent)]
    Tuf(#[from] TufError),
    /// No policy could name a trusted root like this.
    #[error("`{0}` is no name of a trusted root")]
    RootName(String),
    /// It is not known where a trusted root is to be fetched.
    #[error("no TUF repository is known for `{0}`")]
    NoRepository(String),
    /// What happens cannot be recorded, so it does not happen.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What was decided cannot be written down.
    #[error(transparent)]
    Vsa(#[from] VsaError),
    /// The threads for the network cannot be started.
    #[error("cannot start the threads for the network")]
    Runtime(#[source] io::Error),
    /// An internal command was not started by kitfs itself.
    #[error("this command is only for kitfs itself")]
    Inherit(#[source] io::Error),
    /// What belongs to staying with a mount failed.
    #[error("cannot stay with the mount")]
    Attend(#[source] io::Error),
    /// What was to be printed could not be.
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    /// What was to be printed as JSON could not be.
    #[error("cannot print this as JSON")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    /// How the command ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Reference(_)
            | Self::Digest(_)
            | Self::Rules(_)
            | Self::TrustFile { .. }
            | Self::Claim { .. }
            | Self::ClaimedDigest(_)
            | Self::RootName(_)
            | Self::NoRepository(_)
            | Self::NoPolicy => Exit::Usage,
            Self::Resolve(error) => match error.innermost() {
                ResolveError::NotAdmitted(error) => match **error {
                    NotAdmitted::Refused { .. } => Exit::Refused,
                    NotAdmitted::Undecided { class: ErrorClass::Content | ErrorClass::Refused, .. } => Exit::Content,
                    // The kit is there, and it was not said that it may not be read: what is missing is what others say of it.
                    NotAdmitted::Undecided { .. } => Exit::Failed,
                },
                _ => exit_of(error.class()),
            },
            Self::Store(error) | Self::Layers { source: error, .. } => exit_of(error.class()),
            Self::Tree(_) => Exit::Content,
            Self::Start(error) => exit_of_code(error.exit_code),
            Self::NoCacheDir
            | Self::Preflight(_)
            | Self::Folder { .. }
            | Self::File { .. }
            | Self::Key { .. }
            | Self::TrustedRoot(_)
            | Self::Tuf(_)
            | Self::NotVerified(_)
            | Self::NoSuchMount { .. }
            | Self::Run(_)
            | Self::Umount(_)
            | Self::Audit(_)
            | Self::Vsa(_)
            | Self::Runtime(_)
            | Self::Inherit(_)
            | Self::Attend(_)
            | Self::Output(_)
            | Self::Json(_) => Exit::Failed,
        }
    }

    /// The blob that is not what its digest says, if that is what is wrong.
    pub(crate) fn mismatched(&self) -> Option<Digest> {
        match self {
            Self::Layers { source: StoreError::Content { layer, .. } | StoreError::Uncompressed { layer, .. }, .. } => Some(*layer),
            Self::Resolve(error) => match error.innermost() {
                ResolveError::Content { source, .. } => Some(match **source {
                    Mismatch::TooLong { digest, .. } | Mismatch::TooShort { digest, .. } => digest,
                    Mismatch::Digest { expected, .. } => expected,
                }),
                _ => None,
            },
            _ => None,
        }
    }

    /// What to do next, as far as the error says.
    pub(crate) fn hints(&self) -> Vec<Cow<'static, str>> {
        match self {
            Self::Reference(ReferenceError::NoRegistry(text)) => {
                vec![format!("name the registry too, as in `registry.example.com/{text}`").into()]
            }
            Self::Reference(_) => vec![
                "a reference is `HOST/REPOSITORY[:TAG][@DIGEST]` with a repository in lower case, `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]` for an OCI layout, or `kitops:REF` for kit's storage"
                    .into(),
            ],
            Self::Resolve(error) => hints_of_resolve(error),
            Self::Store(error) | Self::Layers { source: error, .. } => hints_of_store(error),
            Self::Rules(error) => hints_of_rules(error),
            Self::NoCacheDir => vec!["name a folder on a local disk with `--cache-dir`".into()],
            Self::NoSuchMount { .. } => vec!["`kitfs status` lists the mounts".into()],
            Self::Preflight(error) => error.hint().into_iter().map(Cow::from).collect(),
            Self::Start(error) => error.hint.clone().into_iter().map(Cow::from).collect(),
            Self::Umount(error) => error.hint().into_iter().map(Cow::from).collect(),
            Self::Run(RunError::ForeignOwner { .. } | RunError::Writable { .. } | RunError::Io { .. }) => {
                vec!["name a folder of your own with `--run-dir`".into()]
            }
            Self::NotVerified(denial) => hints_of_denial(denial.reason),
            Self::Digest(_) => vec!["it is `sha256:` and 64 lower-case hex characters; a file of such a name is `./sha256:…`".into()],
            Self::Key { .. } => vec!["`cosign public-key --key …` prints the public key of a key".into()],
            Self::ClaimedDigest(_) => vec!["leave the `@` and what follows it out".into()],
            Self::NoPolicy => {
                vec!["name a policy with `--policy FILE`, or a signer; `--allow-no-policy` tells what is attached to the kit all the same".into()]
            }
            Self::RootName(_) => vec!["letters, digits, `.`, `_` and `-`, not beginning with `.`".into()],
            Self::NoRepository(_) => {
                vec!["`sigstore-public-good` and `github` are built in; for another, `--tuf-url` and `--tuf-root` say where it is and whom to believe there".into()]
            }
            Self::Tuf(TufError::Write { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                vec!["run it as root, or name another file with `--output`".into()]
            }
            Self::Audit(_) => vec!["`--audit-best-effort` mounts all the same".into()],
            Self::Vsa(_)
            | Self::TrustFile { .. }
            | Self::Claim { .. }
            | Self::TrustedRoot(_)
            | Self::Tuf(_)
            | Self::File { .. }
            | Self::Tree(_)
            | Self::Folder { .. }
            | Self::Run(_)
            | Self::Runtime(_)
            | Self::Inherit(_)
            | Self::Attend(_)
            | Self::Output(_)
            | Self::Json(_) => Vec::new(),
        }
    }

    /// What belongs to the error and is no cause of it.
    pub(crate) fn details(&self) -> Vec<String> {
        match self {
            Self::Umount(UmountError::Busy { holders, mounts, .. }) => {
                let holders = holders.iter().map(ToString::to_string);
                let mounts = mounts.iter().map(|mount| format!("{} is mounted in it", mount.display()));
                holders.chain(mounts).collect()
            }
            Self::Resolve(error) => match error.innermost() {
                ResolveError::Choice { source, .. } => match &**source {
                    ChoiceError::Several { kits, .. } => kits.iter().map(ToString::to_string).collect(),
                    _ => Vec::new(),
                },
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

fn exit_of(class: ErrorClass) -> Exit {
    match class {
        ErrorClass::Content | ErrorClass::Refused => Exit::Content,
        ErrorClass::Missing | ErrorClass::Denied => Exit::Missing,
        ErrorClass::Stalled | ErrorClass::Network | ErrorClass::Disk(_) => Exit::Failed,
    }
}

/// What a supervisor says that the command is to end with.
fn exit_of_code(code: u8) -> Exit {
    [Exit::Usage, Exit::Content, Exit::Missing].into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Failed)
}

fn hints_of_rules(error: &RuleError) -> Vec<Cow<'static, str>> {
    match error {
        RuleError::Host(error) | RuleError::Caller(error) | RuleError::File { source: error, .. } => hints_of_rules(error),
        RuleError::Set(error) => hints_of_policy(error),
        RuleError::Roots(RootsError::Twice(_)) => vec!["give each a name of its own: `--trusted-root NAME=FILE`".into()],
        RuleError::NoRoot { root, .. } if root == DEFAULT => vec![
            format!("the policies of a command see what `--trusted-root FILE` names (`--trusted-root sigstore-public-good` for Sigstore's public instance), those of the host `{HOST_ROOTS}/{root}.json`").into(),
        ],
        RuleError::NoRoot { root, .. } => {
            vec![
                format!(
                    "the policies of a command see what `--trusted-root {root}=FILE` names, those of the host `{HOST_ROOTS}/{root}.json`"
                )
                .into(),
            ]
        }
        RuleError::Root { .. } | RuleError::NoTime { .. } => vec!["`kitfs trust show` says whom trusted roots trust, and where".into()],
        RuleError::Shortcut(_) | RuleError::Roots(_) | RuleError::Key { .. } => Vec::new(),
    }
}

fn hints_of_policy(error: &SetError) -> Vec<Cow<'static, str>> {
    match error {
        SetError::Document { source: DocumentError::Field { source: FieldError::Unknown(_), .. }, .. } => {
            vec!["the README says which part of ClusterImagePolicy kitfs reads; `examples/policies` has policies to begin with".into()]
        }
        SetError::Document { source: DocumentError::Nothing, .. } => {
            vec!["a policy begins with `apiVersion: policy.sigstore.dev/v1beta1` and `kind: ClusterImagePolicy`".into()]
        }
        SetError::Document { .. } | SetError::Read { .. } | SetError::Host(_) => Vec::new(),
    }
}

fn hints_of_resolve(error: &ResolveError) -> Vec<Cow<'static, str>> {
    match error.innermost() {
        ResolveError::Source { remembered, source, .. } => {
            let mut hints = hints_of_source(source);
            if *remembered && exit_of(error.class()) == Exit::Failed {
                hints.push("`--offline` takes what the tag meant when it was last resolved".into());
            }
            hints
        }
        ResolveError::Content { .. } => vec![CHANGED.into()],
        ResolveError::Kit { source, .. } => match **source {
            KitError::NotAKit { .. } => vec!["kitfs mounts ModelKits, ModelPack artifacts, and models of Docker Model Runner".into()],
            _ => Vec::new(),
        },
        ResolveError::NotAdmitted(error) => match &**error {
            NotAdmitted::Refused { reference, code, .. } => {
                let of_code = Reason::ALL.iter().find(|reason| reason.code() == code).map(|reason| hints_of_denial(*reason));
                let explain = format!("`kitfs explain {reference}` with the same options tells of every policy and signature");
                of_code.into_iter().flatten().chain([explain.into()]).collect()
            }
            NotAdmitted::Undecided { reference, .. } => {
                vec![format!("try again; `kitfs explain {reference}` with the same options tells what could not be read").into()]
            }
        },
        // Those of their innermost error.
        ResolveError::Reference { .. } | ResolveError::Nowhere { .. } | ResolveError::Lineage(_) => Vec::new(),
        ResolveError::Choice { source, .. } => match &**source {
            ChoiceError::Several { kits, .. } => {
                let first = kits.first().map(|kit| kit.digest.to_string()).unwrap_or_default();
                vec![format!("name one of them by its digest: the same reference with `@{first}` in place of tag or name").into()]
            }
            ChoiceError::None { .. } => vec!["kitfs mounts what `kit pack` packs".into()],
            _ => Vec::new(),
        },
        ResolveError::Store(error) => hints_of_store(error),
        ResolveError::NeverResolved { .. } => vec!["run it once without `--offline`, or name the kit by its digest".into()],
        ResolveError::NotCached { .. } => vec!["fetch the kit once with `kitfs pull`".into()],
    }
}

fn hints_of_denial(reason: Reason) -> Vec<Cow<'static, str>> {
    match reason {
        Reason::UntrustedCa
        | Reason::CaWindow
        | Reason::BadSct
        | Reason::CtLogWindow
        | Reason::UntrustedLog
        | Reason::LogWindow
        | Reason::Timestamp
        | Reason::TsaWindow => {
            vec!["`kitfs trust show` says whom the trusted root trusts; it may be that of another instance, or an old one, for which there is `kitfs trust update`".into()]
        }
        Reason::NoLog => vec!["for a key, `--insecure-ignore-tlog` does without a log".into()],
        _ => Vec::new(),
    }
}

pub(super) fn hints_of_source(error: &SourceError) -> Vec<Cow<'static, str>> {
    match error {
        error if error.is_not_tls() => vec!["if the registry speaks HTTP without TLS, give `--plain-http`".into()],
        error if mentions(error, "certificate") => {
            vec!["if its certificate is signed by an authority of your own, name that with `--ca-cert FILE`".into()]
        }
        error if mentions(error, "400 Bad Request") => vec!["if the registry speaks TLS, leave `--plain-http` out".into()],
        SourceError::Unavailable { source: Some(_), .. } => {
            vec!["see that its name is right, that it runs, and that it can be reached from here, past firewalls and proxies".into()]
        }
        SourceError::Late { place, .. } if place.starts_with("oci-archive:") => {
            vec!["a compressed archive is uncompressed as a whole before it can be used: `gunzip` it if it is large".into()]
        }
        SourceError::Denied { .. } => {
            vec!["log in with `docker login`, `podman login` or `kit login`, or ask for the right to read it".into()]
        }
        SourceError::NotFound { .. } => vec!["look whether all parts of the reference are spelled right".into()],
        SourceError::Local { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            vec!["ask for the right to read it, or run kitfs as somebody who has it".into()]
        }
        _ => Vec::new(),
    }
}

/// What to think of content that is not what its digest says.
const CHANGED: &str = "somebody or something between here and the registry changes what is sent; nothing of it was used";

fn hints_of_store(error: &StoreError) -> Vec<Cow<'static, str>> {
    match error {
        StoreError::Unsuitable { .. } => vec!["name a folder on a local disk with `--cache-dir`".into()],
        StoreError::Owner { .. } | StoreError::Writable { .. } => vec!["name a folder of your own with `--cache-dir`".into()],
        StoreError::Source { source, .. } => hints_of_source(source),
        StoreError::Content { .. } => vec![CHANGED.into()],
        error => hint_of_class(error.class()).into_iter().map(Cow::from).collect(),
    }
}

/// What to do about trouble that is this host's own.
pub(super) fn hint_of_class(class: ErrorClass) -> Option<&'static str> {
    let ErrorClass::Disk(errno) = class else { return None };
    Some(match errno {
        libc::ENOSPC => {
            "make room: `kitfs cache prune --all` removes what nobody uses, `df -h` and `df -i` tell whether it is space or inodes; or name a folder on another disk with `--cache-dir`"
        }
        libc::EDQUOT => {
            "the user's quota there is used up: `kitfs cache prune --all` removes what nobody uses; or ask for a larger one, or name a folder on another disk with `--cache-dir`"
        }
        libc::EROFS => {
            "the filesystem of the cache is mounted read-only: `dmesg` tells whether that was for an error, `mount -o remount,rw` ends it; or name a folder on another disk with `--cache-dir`"
        }
        libc::ENOENT | libc::ENOTDIR => {
            "the folder of the cache is gone: mount its filesystem or move it back, and its mounts go on; if it was deleted, `kitfs cache ls` makes an empty one"
        }
        libc::EIO | libc::EBADMSG | libc::EUCLEAN | libc::ENXIO | libc::ENODEV | libc::ETIMEDOUT => {
            "the disk of the cache or its filesystem fails: `dmesg` tells of it; name a folder on another disk with `--cache-dir`"
        }
        libc::EMFILE => "raise the limit of open files: `ulimit -Hn`, or `LimitNOFILE=` of a systemd unit",
        libc::ENFILE => "this system has no more open files to give: raise `fs.file-max` with sysctl, or end what has them open",
        libc::EACCES | libc::EPERM => "name a folder that you may write to with `--cache-dir`",
        _ => return None,
    })
}

/// Whether the error or one of its causes speaks of `word`. Only ever for a hint: what TLS libraries say has no type here.
fn mentions(error: &dyn Error, word: &str) -> bool {
    std::iter::successors(Some(error), |&cause| cause.source()).any(|cause| cause.to_string().contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(source: SourceError) -> CliError {
        ResolveError::Source { reference: "reg.example/a:v1".into(), remembered: true, source: Box::new(source) }.into()
    }

    fn disk(errno: i32) -> CliError {
        StoreError::Disk { what: "writing x".into(), source: std::sync::Arc::new(io::Error::from_raw_os_error(errno)) }.into()
    }

    fn unavailable(cause: &str) -> SourceError {
        let (place, what) = ("reg.example/a".to_owned(), "tag v1".to_owned());
        SourceError::Unavailable { place, what, reason: "no answer".into(), retry_at: None, source: Some(cause.into()) }
    }

    #[test]
    fn each_error_has_its_exit_code_and_hint() {
        let (place, what) = ("reg.example/a".to_owned(), "tag v1".to_owned());
        for (error, exit, hint) in [
            (CliError::Reference("a/b".parse::<crate::oci::Reference>().expect_err("no host")), Exit::Usage, "registry.example.com/a/b"),
            (CliError::Reference("reg.example/A".parse::<crate::oci::Reference>().expect_err("upper case")), Exit::Usage, "lower case"),
            (resolve(SourceError::NotFound { place: place.clone(), what: what.clone() }), Exit::Missing, "spelled"),
            (
                resolve(SourceError::Denied { place: place.clone(), what: what.clone(), status: "401".into() }),
                Exit::Missing,
                "docker login",
            ),
            (resolve(SourceError::Stalled { place, what: what.clone(), seconds: 20 }), Exit::Failed, "--offline"),
            (resolve(SourceError::Late { place: "oci-archive:x".into(), what, seconds: 45, source: None }), Exit::Failed, "gunzip"),
            (
                resolve(SourceError::Local { path: "x".into(), source: io::ErrorKind::PermissionDenied.into() }),
                Exit::Missing,
                "the right to read it",
            ),
            (resolve(unavailable("connection refused")), Exit::Failed, "--offline"),
            (resolve(unavailable("connection refused")), Exit::Failed, "that it runs"),
            (resolve(unavailable("400 Bad Request")), Exit::Failed, "leave `--plain-http` out"),
            (resolve(unavailable("invalid peer certificate: UnknownIssuer")), Exit::Failed, "--ca-cert"),
            (ResolveError::NeverResolved { reference: "reg.example/a:v1".into() }.into(), Exit::Failed, "without `--offline`"),
            (CliError::NoCacheDir, Exit::Failed, "--cache-dir"),
            (disk(libc::ENOSPC), Exit::Failed, "kitfs cache prune"),
            (disk(libc::EDQUOT), Exit::Failed, "quota"),
            (disk(libc::EROFS), Exit::Failed, "read-only"),
            (disk(libc::EIO), Exit::Failed, "dmesg"),
            (disk(libc::ENOENT), Exit::Failed, "move it back"),
            (disk(libc::EMFILE), Exit::Failed, "ulimit"),
            (disk(libc::ENFILE), Exit::Failed, "fs.file-max"),
            (disk(libc::EACCES), Exit::Failed, "may write to"),
        ] {
            assert_eq!(error.exit(), exit, "{error}");
            assert!(error.hints().iter().any(|found| found.contains(hint)), "{error}: {:?}", error.hints());
        }
    }
}
