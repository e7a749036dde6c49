//! Failures on demand, for the tests of what only happens when something goes badly wrong. Debug builds only: a release build has none of it, and no
//! option or plan can ask for it.

mod steps;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::plan::Lacking;

pub(crate) use steps::{boot, is_timeless, point, step, step_on, synced};

/// Abilities of the kernel that `KITFS_TEST_NO_RESEND` and `KITFS_TEST_NO_PASSTHROUGH` want treated as missing.
pub(crate) fn lacking() -> Lacking {
    Lacking { resend: asked("KITFS_TEST_NO_RESEND").is_some(), passthrough: asked("KITFS_TEST_NO_PASSTHROUGH").is_some() }
}

/// Panics if `KITFS_TEST_PANIC` names the file that is being opened.
pub(crate) fn opening(name: impl FnOnce() -> Vec<u8>) {
    static PANIC: OnceLock<Option<OsString>> = OnceLock::new();
    if let Some(wanted) = PANIC.get_or_init(|| asked("KITFS_TEST_PANIC"))
        && name() == wanted.as_encoded_bytes()
    {
        panic!("a test wants a panic at the open of {wanted:?}");
    }
}

/// The folder that `KITFS_TEST_HOST` wants taken for `/` where the host's policies and trust roots are looked for. Whose they are matters all the same.
pub(crate) fn host() -> Option<PathBuf> {
    asked("KITFS_TEST_HOST").map(PathBuf::from)
}

fn asked(variable: &str) -> Option<OsString> {
    if cfg!(debug_assertions) { std::env::var_os(variable) } else { None }
}
