//! The hidden commands: the supervisor that `kitfs mount` starts, and the workers that it starts.

use super::error::CliError;
use super::report::Exit;
use crate::daemon::{self, SupervisorArgs};
use crate::worker::Served;
use crate::{log, supervisor, worker};

/// Is the supervisor until its mount is gone.
pub(super) fn supervisor(arguments: &SupervisorArgs) -> Result<Exit, CliError> {
    let inherited = daemon::inherit(arguments).map_err(CliError::Inherit)?;
    log::init(&inherited.log, inherited.plan.mounting.log_format).map_err(CliError::Inherit)?;
    let served = supervisor::run(&inherited.plan, &inherited.mount, &inherited.log, inherited.alive, inherited.ready);
    log::finish();
    match served {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            // Whoever waited for the mount was told, and says it to the user.
            tracing::error!(error = &error as &dyn std::error::Error, "the mount is over");
            Ok(Exit::Failed)
        }
    }
}

/// Is a worker until it dies or its mount is gone.
pub(super) fn worker(arguments: &worker::Inherited) -> Result<Exit, CliError> {
    log::init(&arguments.log(), arguments.log_format()).map_err(CliError::Inherit)?;
    let served = worker::run(arguments);
    log::finish();
    match served {
        Ok(Served::ToTheEnd) => Ok(Exit::Done),
        Ok(Served::UntilThereWasACache) => Ok(Exit::GaveWay),
        Err(error) => {
            tracing::error!(%error, "the worker cannot serve");
            Ok(Exit::Failed)
        }
    }
}
