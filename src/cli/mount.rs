//! `kitfs mount`: everything that is decided before a mount shows, and the hand-over to its supervisor.
//!
//! What can be wrong is found out in the order in which the user would like to hear of it: the command line, the folder, the reference,
//! the kit, its content. Nothing is mounted before all of that is settled, so an interruption leaves nothing behind.

use std::collections::HashMap;

use super::args::Mount;
use super::error::CliError;
use super::fetch::{self, Until};
use super::report::{self, Exit};
use super::trusting::{Records, Trust};
use super::{Session, attend, reference, umount};
use crate::audit::{Attempt, Purpose};
use crate::daemon::{self, Progress, Ready};
use crate::digest::Digest;
use crate::fs;
use crate::gate::{Gate, Search};
use crate::index::Index;
use crate::kit::Lineage;
use crate::metrics::Address;
use crate::plan::{MountPlan, Mounting, Prefetch};
use crate::preflight::Preflight;
use crate::store::VerifiedLayer;
use crate::tree::TreeError;
use crate::{rehearsal, run};

pub(super) fn run(arguments: &Mount) -> Result<Exit, CliError> {
    let reference = reference(&arguments.reference)?;
    let trust = Trust::load(&arguments.trusting)?;
    let metrics = arguments.metrics.clone().map(Address::absolute).transpose();
    let metrics = metrics.map_err(|source| CliError::Folder { path: ".".into(), source })?;
    let run_dir = umount::open(&arguments.run)?;
    let session = Session::open(&arguments.sources)?.fetching(&arguments.fetching);
    let preflight = Preflight {
        dir: &arguments.mountpoint,
        allow_other: arguments.allow_other,
        cache_owner: session.store.owner_uid(),
        trust_user_cache: arguments.trust_user_cache,
    };
    let mountpoint = preflight.check(&run_dir)?;
    session.keep_to(&arguments.cache)?;
    let gate = Gate { mountpoint: Some(mountpoint.clone()), ..session.gate(&trust, Search::UntilSettled) };
    let id = run::new_id();
    let attempt = Attempt { purpose: Purpose::Mount, mountpoint: Some(mountpoint.clone()), mount_id: Some(id.clone()) };
    let records = Records::open(&arguments.audit, Some(&arguments.summary), attempt)?;
    let kits = session.admitted(&gate, &reference, &arguments.wanted, &records)?;
    let pinned = kits.pinned();

    let systemd = arguments.foreground.then(Ready::foreground);
    let alive = |fetched, total| {
        if let Some(systemd) = &systemd {
            // Only a pipe can have nobody at its other end.
            _ = systemd.progress(Progress { fetched, total });
        }
    };
    // Held until the mount serves, or they could be evicted before it has them open.
    let shared = fetch::layers(&session, pinned, &pinned.lineage.shared(), Until::Usable, &alive)
        .map_err(|error| records.failed(&reference, Some(&pinned.kit().manifest.digest), error))?;
    session.warn_if_over_limit();

    check_shared(&pinned.lineage, &shared)?;

    let mounting = Mounting {
        id,
        mountpoint,
        run_dir: run_dir.path().to_owned(),
        cache_dir: session.store.dir().to_owned(),
        uid: arguments.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: arguments.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
        allow_other: arguments.allow_other,
        no_passthrough: arguments.no_passthrough,
        prefetch: arguments.prefetch,
        jobs: arguments.fetching.jobs,
        selection: arguments.wanted.selection(),
        access: session.options.clone(),
        include_remote: arguments.wanted.include_remote,
        audit: records.plan(),
        log_format: arguments.log_format,
        metrics,
        lacking: rehearsal::lacking(),
    };
    let plan = MountPlan::new(&kits, mounting);
    // Whoever started a service wants its main process to be the mount's.
    if arguments.foreground && report::is_screen() && !daemon::is_service() {
        return attend::run(&plan, &pinned.lineage, &session.store, || drop(shared));
    }
    // What the supervisor still waits for is here already, so there is no more to show.
    let started = daemon::start(&plan, arguments.foreground, &mut |_| {})?;
    drop(shared);
    if !arguments.wait && arguments.prefetch == Prefetch::All && report::is_screen() {
        attend::watch(&plan, &started.mount, &pinned.lineage, &session.store);
    }
    if arguments.wait {
        // The worker fetches the same, and each layer is fetched by one of the two, so that the other only looks on.
        let waited_for = arguments.prefetch.of(&pinned.lineage.layers);
        fetch::layers(&session, pinned, &waited_for, Until::Usable, &|_, _| {}).inspect_err(|_| {
            report::warning(&format!(
                "{} is mounted all the same; what did not come is tried again when it is opened",
                plan.mounting.mountpoint.display()
            ));
        })?;
        session.warn_if_over_limit();
    }
    Ok(Exit::Done)
}

/// Refuses a kit whose shared folders have what they must not have: that it is told now, and not by errors inside of the mount.
fn check_shared(lineage: &Lineage, layers: &[VerifiedLayer]) -> Result<(), TreeError> {
    let indexes: HashMap<Digest, &Index> = layers.iter().map(|layer| (layer.index().layer(), layer.index())).collect();
    let tree = fs::tree(lineage)?;
    for group in tree.groups().filter(|&group| tree.is_shared_directory(group)) {
        let members = tree.slots(group).iter().map(|&slot| lineage.layers[usize::from(slot) - 1].spec.descriptor.digest);
        if let Some(indexes) = members.map(|digest| indexes.get(&digest).copied().cloned()).collect() {
            tree.learn(group, indexes)?;
        }
    }
    Ok(())
}
