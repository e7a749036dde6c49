use super::args::Mount;
use super::error::CliError;
use super::fetch::{self, Until};
use super::report::Exit;
use super::Session;
use crate::plan::*;
pub(super) fn run(a: &Mount) -> Result<Exit, CliError> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(tracing_subscriber::EnvFilter::new("info,fuser=off")).init();
    let session = Session::open(&a.sources)?;
    let pinned = session.resolve(&a.reference)?;
    let shared = pinned.kit.shared();
    fetch::layers(&session, &pinned.kit, &shared, &pinned.source, Until::Usable, &|| {})?;
    let digest = pinned.kit.manifest.digest;
    let plan = MountPlan {
        id: crate::run::new_id(), mountpoint: a.mountpoint.canonicalize().unwrap(), reference: pinned.reference.to_string(),
        shown_source: pinned.reference.with_digest(digest), digest,
        run_dir: a.run.run_dir.clone().unwrap_or_else(crate::run::default_dir), cache_dir: session.store.dir().to_owned(),
        uid: a.uid.unwrap_or(0), gid: a.gid.unwrap_or(0), allow_other: a.allow_other, no_passthrough: a.no_passthrough, prefetch: a.prefetch,
        access: session.options.clone(), manifest: pinned.manifest.to_vec(), config: pinned.config.to_vec(), lacking: Lacking::default() };
    let fd = plan.seal().unwrap();
    drop(session);
    let r = crate::supervisor::run(&plan, fd, crate::daemon::Ready);
    if let Err(e) = r { eprintln!("{e} {:?}", e); }
    Ok(Exit::Done)
}
