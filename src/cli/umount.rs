//! `kitfs umount`: takes mounts down, and says who holds those that stay.

use super::args::{Run, Umount};
use super::error::CliError;
use super::report::{self, Exit};
use crate::run::{self, RunDir};
use crate::umount::{self, UmountError, Unmounted};

pub(super) fn run(arguments: &Umount) -> Result<Exit, CliError> {
    let run_dir = open(&arguments.run)?;
    let outcomes: Vec<Result<Unmounted, UmountError>> = if arguments.all {
        umount::umount_all(arguments.lazy, &run_dir)?.into_iter().map(|(_, outcome)| outcome).collect()
    } else {
        arguments.mountpoints.iter().map(|dir| umount::umount(dir, arguments.lazy, &run_dir)).collect()
    };
    for message in outcomes.iter().flatten().filter_map(|unmounted| unmounted.unrecorded.as_ref()) {
        report::warning(&format!("it is taken down, but that is not in the audit file: {message}"));
    }
    // One that stays does not keep the others from going.
    let failed = outcomes.into_iter().filter_map(Result::err).map(|error| report::error(&error.into()));
    Ok(failed.max().unwrap_or(Exit::Done))
}

/// The run directory: the one that was given, or this user's.
pub(super) fn open(arguments: &Run) -> Result<RunDir, CliError> {
    Ok(RunDir::open(&arguments.run_dir.clone().unwrap_or_else(run::default_dir))?)
}
