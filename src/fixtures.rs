//! The fixtures, and mounts without anybody behind them, for tests beside the code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use bytes::Bytes;
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use crate::admission::{
    Admission, AuthorityReport, CandidateReport, Counted, DecidedPolicy, NamedRoot, PolicyReport, ReasonReport, Report, SetReport,
    TimeReport,
};
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::oci::IMAGE_MANIFEST;
use crate::run::MountRecord;
use crate::verify::{Unverified, Verified};

/// One folder of `tests/fixtures/kits` or `tests/fixtures/hostile`, with the blobs of its layout.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) case: Value,
    blobs: BTreeMap<String, Bytes>,
    index: Value,
}

pub(crate) fn cases(kind: &str) -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let folders = fs::read_dir(root).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let mut cases: Vec<Case> = folders.map(|folder| Case::read(&folder).expect("a case")).collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty());
    cases
}

pub(crate) fn case(kind: &str, name: &str) -> Case {
    cases(kind).into_iter().find(|case| case.name == name).expect(name)
}

/// An admission by the policy `signed` of the host, met by a bundle for each of `signers`.
pub(crate) fn admission(reference: &str, signers: &[&str]) -> Admission {
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    let counted = signers.iter().map(|signer| Counted {
        policy: "signed".into(),
        authority: "team".into(),
        digest: digest(signer),
        manifest: digest("manifest"),
        format: "bundle".into(),
        predicate_type: Some("https://sigstore.dev/cosign/sign/v1".into()),
        signer: (*signer).to_owned(),
        issuer: Some("https://issuer.example".into()),
        subject: Some((*signer).to_owned()),
        key: None,
        times: vec!["2026-11-20T10:00:00Z".parse().expect("a time")],
        log_index: Some(7),
    });
    Admission {
        reference: reference.to_owned(),
        claim: None,
        digest: digest(reference),
        at: "2026-11-24T10:00:00Z".parse().expect("a time"),
        policies: vec![DecidedPolicy {
            set: "host".into(),
            name: "signed".into(),
            digest: digest("policy"),
            mode: "enforce".into(),
            met: true,
        }],
        trust_roots: vec![NamedRoot { set: "host".into(), name: "trusted-root".into(), digest: digest("root") }],
        counted: counted.collect(),
        warnings: Vec::new(),
    }
}

/// The report of a decision that admitted so.
pub(crate) fn report_of(admission: Admission) -> Report {
    let candidates = admission.counted.iter().map(|counted| CandidateReport {
        digest: counted.digest.to_string(),
        manifest: counted.manifest.to_string(),
        found_at: "referrers of reg.example/acme/m".into(),
        format: "bundle",
        predicate_type: counted.predicate_type.clone(),
        signer: Some(counted.signer.clone()),
        issuer: counted.issuer.clone(),
        times: vec![TimeReport { source: "log", time: "2026-11-20T10:00:00Z".into() }],
        log_index: counted.log_index,
        counts: true,
        code: None,
        message: None,
    });
    let candidates: Vec<CandidateReport> = candidates.collect();
    let policies = admission.policies.iter().map(|policy| PolicyReport {
        name: policy.name.clone(),
        digest: policy.digest.to_string(),
        mode: if policy.mode == "warn" { "warn" } else { "enforce" },
        matched_by: vec!["** matches reg.example/acme/m".into()],
        met: policy.met,
        rule: None,
        authorities: vec![AuthorityReport {
            name: "team".into(),
            wants: "somebody of the team".into(),
            met: true,
            why: None,
            candidates: candidates.clone(),
        }],
    });
    Report {
        decision: "admit",
        reference: admission.reference.clone(),
        claim: admission.claim.clone(),
        digest: Some(admission.digest.to_string()),
        reasons: Vec::new(),
        sets: vec![SetReport { name: "host", enforces: true, met: true, policies: policies.collect() }],
        rego_input: None,
        evidence: Some(admission),
        searched: vec!["referrers of reg.example/acme/m".into()],
        unread: Vec::new(),
        warnings: Vec::new(),
    }
}

/// The same, refused: the bundles do not count.
pub(crate) fn refused(admission: Admission) -> Report {
    let mut report = report_of(admission);
    (report.decision, report.evidence) = ("deny", None);
    report.reasons = vec![ReasonReport { code: "wrong-key".into(), message: "signed by another key".into() }];
    for set in &mut report.sets {
        set.met = false;
        for policy in &mut set.policies {
            policy.met = false;
            for authority in &mut policy.authorities {
                authority.met = false;
                for candidate in &mut authority.candidates {
                    (candidate.counts, candidate.code) = (false, Some("wrong-key".into()));
                }
            }
        }
    }
    report
}

impl Case {
    fn read(folder: &Path) -> io::Result<Self> {
        let (mut blobs, mut index) = (BTreeMap::new(), Value::Null);
        for entry in tar::Archive::new(fs::File::open(folder.join("layout.tar"))?).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            if let Some(digest) = path.strip_prefix("blobs/").filter(|_| entry.header().entry_type().is_file()) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                blobs.insert(digest.replacen('/', ":", 1), Bytes::from(content));
            } else if path == "index.json" {
                index = serde_json::from_reader(entry)?;
            }
        }
        let case = serde_json::from_slice(&fs::read(folder.join("case.json"))?)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, folder: folder.to_owned(), case, blobs, index })
    }

    /// Makes the layout in `dir`, and says the reference of the kit in it.
    pub(crate) fn lay_out(&self, dir: &Path) -> String {
        let write = |name: &str, content: &[u8]| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            fs::write(path, content).expect("room");
        };
        for (digest, content) in &self.blobs {
            write(&format!("blobs/{}", digest.replacen(':', "/", 1)), content);
        }
        let manifest = self.manifest();
        let Descriptor { media_type, digest, size } = manifest.descriptor();
        let entry = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
        write("index.json", serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().as_bytes());
        write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        format!("oci:{}", dir.display())
    }

    /// The manifests of the layout by their names.
    pub(crate) fn kits(&self) -> BTreeMap<String, Bytes> {
        let entries = self.index["manifests"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let named = |entry: &Value| {
            let name = text(&entry["annotations"]["org.opencontainers.image.ref.name"]);
            (name, self.blobs[&text(&entry["digest"])].clone())
        };
        entries.map(named).collect()
    }

    pub(crate) fn manifest(&self) -> Verified<Bytes> {
        verified(IMAGE_MANIFEST, self.blobs[self.case["digest"].as_str().expect("a digest")].clone())
    }

    /// The blob with this digest, taken for what it is.
    pub(crate) fn blob(&self, descriptor: &Descriptor) -> Verified<Bytes> {
        verified(&descriptor.media_type, self.blobs[&descriptor.digest.to_string()].clone())
    }
}

/// A mount that looks like one of kitfs, on a device that nobody serves. The tests need to be allowed to mount.
pub(crate) fn pretended_mount(at: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("these tests need /dev/fuse");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).expect("no NUL");
    mount("reg.example/a:v1", at, "fuse.kitfs", MountFlags::RDONLY, Some(options.as_c_str()))
        .expect("these tests need to be root, or to have CAP_SYS_ADMIN, in order to mount");
    device
}

/// A tmpfs. The tests need to be allowed to mount.
pub(crate) fn tmpfs(at: &Path) {
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None)
        .expect("these tests need to be root, or to have CAP_SYS_ADMIN, in order to mount");
}

/// Bytes checked against the digest that they have.
pub(crate) fn verified(media_type: &str, bytes: Bytes) -> Verified<Bytes> {
    let descriptor = Descriptor { media_type: media_type.into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    Unverified::new(bytes).verify(&descriptor).expect("its own digest")
}

/// The record of a mount that there is not.
pub(crate) fn mount_record() -> MountRecord {
    MountRecord {
        id: "0".to_owned(),
        mountpoint: "/nonexistent/kit".into(),
        reference: "reg.example/acme/m:v1".to_owned(),
        digest: format!("sha256:{}", "0".repeat(64)).parse().expect("digest"),
        supervisor_pid: 10,
        supervisor_version: None,
        since: crate::run::now(),
        cache_dir: "/var/cache/kitfs".into(),
        device: (0, 52),
        mount_id: 36,
        log: "/run/kitfs/1/log".into(),
        passthrough: None,
        references: Vec::new(),
        remote: Vec::new(),
        access: crate::source::SourceOptions::default(),
        admissions: Vec::new(),
        audit: None,
        settings: Default::default(),
    }
}
