//! Room for a layer: which layers go, and that none goes that somebody has open.
//!
//! Layers go in the order in which they were used last, which is the time of their `.use` lock file. One is evicted by taking that lock exclusively without
//! waiting, renaming its directory away and unlinking what was in it: whoever has a file of it open keeps that file. Its index stays, so that the names of
//! the layer, and with them its node ids, are known when it comes back.
//!
//! First it is found out whether there will be enough room; if not, nothing is evicted. Those who make room at the same time wait for each other, and each counts
//! what the others have yet to write, which stands in their progress records.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, StatVfs};
use rustix::io::Errno;

use super::Inner;
use super::dir::Dir;
use super::error::{StoreError, disk};
use super::locks::{DecisionLock, EvictLock, IngestLock, UseLock, try_lock, unlock};
use super::progress::{Activity, Record};
use super::quota::{self, CacheSize};
use super::recall::{DURABLE, VISIBLE};
use crate::failure::chain;
use crate::layer::LayerKey;
use crate::limits;
use crate::rehearsal::{point, step};

/// A layer of the cache, for whoever looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Which one.
    pub layer: LayerKey,
    /// Bytes that it has on disk.
    pub size: u64,
    /// When it was last opened or closed.
    pub last_use: SystemTime,
    /// Somebody has it open, or it is not safely on disk yet.
    pub in_use: bool,
    /// It was said that it stays.
    pub pinned: bool,
}

/// What was evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Layers.
    pub layers: u64,
    /// Bytes that they had on disk.
    pub bytes: u64,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk of its layers.
    pub bytes: u64,
    /// Bytes of them that are pinned.
    pub pinned: u64,
    /// Bytes that it may hold.
    pub limit: u64,
}

/// A layer that comes, and what it may do to others.
pub(super) struct Claim {
    pub(super) layer: LayerKey,
    /// Bytes that it will have, as far as is known.
    pub(super) size: u64,
    /// Bytes of them that are yet to be written.
    pub(super) missing: u64,
}

/// What became of a claim.
pub(super) enum Room {
    /// There is room now.
    Made(Evicted),
    /// There is not, and nothing was evicted. `held` if there would be without those that somebody uses, who may let go of them.
    Full { error: StoreError, held: bool },
}

/// A layer that can go: nobody but us has its lock.
struct Victim {
    layer: LayerKey,
    size: u64,
    dir: Dir,
    lock: UseLock,
}

/// The cache at one moment.
struct Survey {
    residents: Vec<Resident>,
    /// Bytes that layers have, and that those under way will have.
    used: u64,
    /// Bytes that those under way have yet to write.
    coming: u64,
    free: u64,
    limit: u64,
}

/// Makes room for a layer; with `evict` false, without evicting anything.
pub(super) fn make_room(store: &Inner, claim: &Claim, evict: bool) -> Result<Room, StoreError> {
    let _one_at_a_time = EvictLock::take(&store.locks)?;
    let survey = survey(store, claim)?;
    let over = survey.used.saturating_sub(survey.limit);
    let short = survey.coming.saturating_sub(survey.free);
    store.over_limit.store(0, Ordering::Relaxed);
    if over == 0 && short == 0 {
        return Ok(Room::Made(Evicted::default()));
    }
    let others = survey.coming.saturating_sub(claim.missing);
    let full = |free| no_room(claim, &store.top.path().display(), free, others);
    if !evict {
        let below = survey.limit.saturating_sub(survey.used.saturating_sub(claim.size));
        return Ok(Room::Full { error: full(survey.free.min(below.saturating_add(others))), held: false });
    }
    let victims = victims(store, &survey, over, short)?;
    let found: u64 = victims.iter().map(|victim| victim.size).sum();
    if found < short {
        let held =
            survey.residents.iter().filter(|resident| resident.in_use && !resident.pinned).map(|resident| resident.size).sum::<u64>();
        return Ok(Room::Full { error: full(survey.free.saturating_add(found)), held: found.saturating_add(held) >= short });
    }
    if found < over {
        let (size, limit) = (claim.size, survey.limit);
        store.over_limit.store(over - found, Ordering::Relaxed);
        tracing::warn!(layer = %claim.layer, size, limit, over = over - found, "the cache becomes larger than its limit: what could go is not enough");
    }
    remove(store, victims).map(Room::Made)
}

/// That a claim comes to nothing. Of what is free, what others have yet to write is theirs; what this one has written already needs no room.
fn no_room(claim: &Claim, top: &dyn std::fmt::Display, free: u64, others: u64) -> StoreError {
    let Claim { layer, size, missing } = claim;
    let room = free.saturating_sub(others).saturating_add(size.saturating_sub(*missing));
    let beside = if others > 0 { format!(" beside {others} that are coming already") } else { String::new() };
    disk(format!("layer {} has {size} bytes, and {top} has room for {room}{beside}", layer.digest))(Errno::NOSPC)
}

/// Evicts so many bytes, or what there is: for a layer that proved to be larger than there was room for.
pub(super) fn make_more_room(store: &Inner, bytes: u64) -> Result<Evicted, StoreError> {
    let _one_at_a_time = EvictLock::take(&store.locks)?;
    let victims = victims(store, &survey_of(store)?, 0, bytes)?;
    remove(store, victims)
}

/// Evicts until the cache keeps to its limit, or everything that nobody uses.
pub(super) fn prune(store: &Inner, all: bool) -> Result<Evicted, StoreError> {
    let _one_at_a_time = EvictLock::take(&store.locks)?;
    let mut survey = survey_of(store)?;
    if all {
        survey.limit = 0;
    }
    let over = survey.used.saturating_sub(survey.limit);
    let victims = victims(store, &survey, over, if all { over } else { 0 })?;
    remove(store, victims)
}

/// The layers that are here, the one that was not used for longest first.
pub(super) fn residents(store: &Inner) -> Result<Vec<Resident>, StoreError> {
    let mut residents = Vec::new();
    for name in store.layers.list()? {
        let Some(layer) = LayerKey::from_file_name(&name) else { continue };
        let Some(dir) = store.layers.open_dir(&name)? else { continue };
        let in_use = UseLock::is_held(&store.locks, &layer)? || is_unsettled(&dir)?;
        let (size, mut last_use) = (allocated(&dir)?, UseLock::last_use(&store.locks, &layer)?);
        let now = SystemTime::now();
        if last_use > now {
            UseLock::redate(&store.locks, &layer);
            last_use = now;
        }
        residents.push(Resident { layer, size, last_use, in_use, pinned: store.pinned.stat(&name)?.is_some() });
    }
    residents.sort_by_key(|resident| (resident.last_use, resident.layer));
    Ok(residents)
}

/// What the layers that are here have on disk. Takes no lock, so that it disturbs nobody.
pub(super) fn usage(store: &Inner) -> Result<Usage, StoreError> {
    let mut usage = Usage { limit: limit(store)?, ..Usage::default() };
    for name in store.layers.list()? {
        let Some(dir) = store.layers.open_dir(&name)? else { continue };
        let bytes = allocated(&dir)?;
        usage.bytes = usage.bytes.saturating_add(bytes);
        if store.pinned.stat(&name)?.is_some() {
            usage.pinned = usage.pinned.saturating_add(bytes);
        }
    }
    Ok(usage)
}

/// How much the cache may hold.
pub(super) fn limit(store: &Inner) -> Result<u64, StoreError> {
    Ok(limit_of(quota::given(&store.top)?, &filesystem(&store.top)?))
}

fn limit_of(given: Option<CacheSize>, filesystem: &StatVfs) -> u64 {
    // Some filesystems know no size.
    match (given, filesystem.f_blocks) {
        (None | Some(CacheSize::Percent(_)), 0) => u64::MAX,
        (given, blocks) => given.unwrap_or(CacheSize::DEFAULT).bytes(blocks.saturating_mul(filesystem.f_frsize)),
    }
}

/// The bytes that are free for us on the filesystem of the cache; `None` if it knows no size.
pub(super) fn room(top: &Dir) -> Result<Option<u64>, StoreError> {
    Ok(free(&filesystem(top)?))
}

fn free(filesystem: &StatVfs) -> Option<u64> {
    // What is kept for root is free for root.
    let blocks = if rustix::process::geteuid().is_root() { filesystem.f_bfree } else { filesystem.f_bavail };
    (filesystem.f_blocks > 0).then(|| blocks.saturating_mul(filesystem.f_frsize))
}

fn filesystem(top: &Dir) -> Result<StatVfs, StoreError> {
    let what = || format!("looking at the filesystem of {}", top.path().display());
    step("statfs:cache").map_err(disk(what()))?;
    rustix::fs::fstatvfs(top).map_err(disk(what()))
}

fn survey(store: &Inner, claim: &Claim) -> Result<Survey, StoreError> {
    let mut survey = survey_of(store)?;
    // What it has written stands among the layers under way already, with what its own record says; here it is known better.
    let (size, missing) = under_way(store, &claim.layer)?.unwrap_or_default();
    survey.used = survey.used.saturating_sub(size).saturating_add(claim.size);
    survey.coming = survey.coming.saturating_sub(missing).saturating_add(claim.missing);
    Ok(survey)
}

fn survey_of(store: &Inner) -> Result<Survey, StoreError> {
    let residents = residents(store)?;
    let filesystem = filesystem(&store.top)?;
    let free = free(&filesystem).unwrap_or(u64::MAX);
    let mut used = residents.iter().map(|resident| resident.size).fold(0, u64::saturating_add);
    let mut coming: u64 = 0;
    for name in store.locks.list()? {
        let Some(layer) = name.strip_suffix(".ingest").and_then(LayerKey::from_file_name) else { continue };
        if let Some((size, missing)) = under_way(store, &layer)? {
            used = used.saturating_add(size);
            coming = coming.saturating_add(missing);
        }
    }
    Ok(Survey { residents, used, coming, free, limit: limit_of(quota::given(&store.top)?, &filesystem) })
}

/// Bytes that a layer under way will have, and that are yet to be written; `None` if nobody works on it.
fn under_way(store: &Inner, layer: &LayerKey) -> Result<Option<(u64, u64)>, StoreError> {
    let Some(file) = IngestLock::look(&store.locks, layer, 0)? else { return Ok(None) };
    let Some(record) = Record::read(&file).filter(|record| record.state == Activity::Fetching) else { return Ok(None) };
    if !IngestLock::held(&file) || store.layers.stat(&layer.file_name())?.is_some() {
        return Ok(None);
    }
    let mut written: u64 = 0;
    let prefix = format!("{}.", layer.file_name());
    for name in store.ingest.list()?.into_iter().filter(|name| name.starts_with(&prefix)) {
        if let Some(dir) = store.ingest.open_dir(&name)? {
            written = written.saturating_add(allocated(&dir)?);
        }
    }
    Ok(Some((record.size.max(written), record.size.saturating_sub(written))))
}

/// Bytes that the files of a directory take on disk.
fn allocated(dir: &Dir) -> Result<u64, StoreError> {
    let mut bytes: u64 = 0;
    for name in dir.list()? {
        if let Some(stat) = dir.stat(&name)? {
            bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        }
    }
    Ok(bytes)
}

/// Somebody syncs the layer.
fn is_unsettled(dir: &Dir) -> Result<bool, StoreError> {
    let Some(visible) = dir.open(VISIBLE)? else { return Ok(false) };
    // Shared and for a moment: whoever wants to sync it tries again later.
    let free = try_lock(&visible, "visible", FlockOperation::NonBlockingLockShared)
        .map_err(disk(format!("locking {}", dir.path_of(VISIBLE).display())))?;
    unlock(&visible);
    Ok(!free)
}

/// Layers that can go, until they have as many bytes as the cache is over its limit and the disk is short of room. Those that were used a moment ago only go
/// if the disk is short.
fn victims(store: &Inner, survey: &Survey, over: u64, short: u64) -> Result<Vec<Victim>, StoreError> {
    let mut victims = Vec::new();
    let mut found: u64 = 0;
    let grace = Duration::from_secs(limits::USE_GRACE_SECONDS);
    let is_warm = |resident: &Resident| resident.last_use.elapsed().is_ok_and(|since| since < grace);
    for resident in &survey.residents {
        let wanted = if is_warm(resident) { short } else { over.max(short) };
        if found >= wanted || resident.in_use || resident.pinned {
            continue;
        }
        let name = resident.layer.file_name();
        let Some(lock) = UseLock::exclusive(&store.locks, &resident.layer)? else { continue };
        let Some(dir) = store.layers.open_dir(&name)? else { continue };
        found = found.saturating_add(resident.size);
        victims.push(Victim { layer: resident.layer, size: resident.size, dir, lock });
    }
    Ok(victims)
}

/// Takes the victims out of their places, and then removes them.
fn remove(store: &Inner, victims: Vec<Victim>) -> Result<Evicted, StoreError> {
    point("evict:chosen");
    let mut evicted = Evicted::default();
    let mut trash = Vec::new();
    {
        let _decision = DecisionLock::take(&store.top)?;
        for Victim { layer, size, dir, lock } in victims {
            let name = layer.file_name();
            // Somebody may have withdrawn it in the meantime.
            if store.layers.names(&name, &dir)? {
                let away = format!("{name}.{:016x}", fastrand::u64(..));
                match store.layers.rename_over(&name, &store.trash, &away) {
                    Ok(()) => trash.push(Ok(away)),
                    // On overlayfs a directory of a lower layer cannot be renamed. What makes it usable goes first, and its lock is held until all of it is gone.
                    Err(error) => {
                        tracing::debug!(%layer, error = chain(&error), "a layer is removed in its place");
                        trash.push(Err((name, dir, lock)));
                    }
                }
                tracing::info!(%layer, bytes = size, "layer is evicted");
                evicted.layers += 1;
            }
            evicted.bytes = evicted.bytes.saturating_add(size);
        }
    }
    store.evicted_layers.fetch_add(evicted.layers, Ordering::Relaxed);
    store.evicted_bytes.fetch_add(evicted.bytes, Ordering::Relaxed);
    point("evict:away");
    for one in trash {
        match one {
            Ok(away) => store.trash.remove_tree(&away)?,
            Err((name, dir, _lock)) => {
                dir.unlink(DURABLE)?;
                dir.unlink(VISIBLE)?;
                store.layers.remove_tree(&name)?;
            }
        }
    }
    Ok(evicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_not_told_of_room_that_others_have_taken() {
        let layer = LayerKey::from_file_name(&format!("sha256-{}", "0".repeat(64))).expect("a name");
        let said = |size, missing, free, others| no_room(&Claim { layer, size, missing }, &"/c", free, others).to_string();
        assert!(said(64, 64, 150, 128).ends_with("has 64 bytes, and /c has room for 22 beside 128 that are coming already"));
        assert!(said(64, 64, 10, 0).ends_with("has 64 bytes, and /c has room for 10"));
        assert!(said(64, 24, 10, 0).ends_with("has 64 bytes, and /c has room for 50"), "40 are written");
    }
}
