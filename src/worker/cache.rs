//! The cache of a mount whose worker was replaced: it may be gone by then, for a while. A worker without a cache serves all the same, for an error is better than a
//! wait without end, and gives way to another one as soon as the cache can be opened.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use crate::limits::{CACHE_LOOK_INTERVAL, CACHE_OPEN_LIMIT};
use crate::store::{Store, StoreError};

/// Opens the cache. One whose disk does not answer for [`CACHE_OPEN_LIMIT`] cannot be opened: who asks such a disk waits in the kernel, and cannot be woken.
pub(super) fn open(dir: &Path) -> Result<Store, StoreError> {
    let failed = |error: io::Error| StoreError::Disk { what: format!("opening {}", dir.display()), source: Arc::new(error) };
    let (sender, opened) = mpsc::sync_channel(1);
    let path = dir.to_owned();
    let opening = thread::Builder::new().name("open".into()).spawn(move || {
        let _too_late = sender.send(Store::reopen(&path));
    });
    opening.map_err(failed)?;
    opened.recv_timeout(CACHE_OPEN_LIMIT).unwrap_or_else(|_| Err(failed(io::Error::from_raw_os_error(libc::ETIMEDOUT))))
}

/// Looks until the cache can be opened.
pub(super) fn await_return(dir: &Path) {
    while let Err(error) = Store::reopen(dir) {
        tracing::debug!(%error, "the cache cannot be opened yet");
        thread::sleep(CACHE_LOOK_INTERVAL);
    }
    tracing::info!("the cache can be opened again: a worker that has it takes over");
}
