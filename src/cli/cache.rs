//! `kitfs cache`: what is in the cache, and room in it.

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::BinaryBytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Cache, CacheCommand, CacheList, CachePath, CachePrune, CacheUnpin, Run};
use super::error::CliError;
use super::report::{self, Exit, escaped};
use super::{Session, cache_dir, print, umount};
use crate::holders::{Process, users_of};
use crate::layer::LayerKey;
use crate::store::{Resident, Store};

pub(super) fn run(arguments: &Cache) -> Result<Exit, CliError> {
    match &arguments.command {
        CacheCommand::Ls(arguments) => list(arguments),
        CacheCommand::Prune(arguments) => prune(arguments),
        CacheCommand::Unpin(arguments) => unpin(arguments),
        CacheCommand::Path(arguments) => path(arguments),
    }
}

fn list(arguments: &CacheList) -> Result<Exit, CliError> {
    let store = Store::open(&cache_dir(&arguments.cache)?)?;
    let (layers, limit) = (store.residents()?, store.limit()?);
    let used: u64 = layers.iter().map(|layer| layer.size).sum();
    let users = Users::find(&store, &layers, arguments);
    if arguments.json {
        let layers: Vec<Value> = layers.iter().map(|layer| as_json(layer, users.of(layer))).collect();
        return print(report::json(&json!({ "path": store.dir(), "bytes": used, "limit": limit, "layers": layers }))?.as_bytes());
    }
    let mut text = String::new();
    for layer in &layers {
        let use_ = if layer.in_use { in_use_by(users.of(layer)) } else { ago(layer.last_use) };
        text.push_str(&format!(
            "{}  {:>10}  {use_}{}\n",
            layer.layer,
            BinaryBytes(layer.size).to_string(),
            if layer.pinned { ", pinned" } else { "" }
        ));
    }
    text.push_str(&format!("{}, {} of {}\n", report::counted(layers.len() as u64), BinaryBytes(used), BinaryBytes(limit)));
    print(text.as_bytes())
}

fn prune(arguments: &CachePrune) -> Result<Exit, CliError> {
    let store = Store::open(&cache_dir(&arguments.cache)?)?;
    let evicted = store.prune(arguments.all)?;
    let (left, limit) = (store.residents()?, store.limit()?);
    let used: u64 = left.iter().map(|layer| layer.size).sum();
    if arguments.json {
        let counts =
            json!({ "layers": evicted.layers, "bytes": evicted.bytes, "left": { "layers": left.len(), "bytes": used, "limit": limit } });
        return print(report::json(&counts)?.as_bytes());
    }
    let mut text = format!("{} removed, {}\n", report::counted(evicted.layers), BinaryBytes(evicted.bytes));
    if arguments.all && !left.is_empty() || used > limit {
        text.push_str(&format!(
            "{}, {} of {}, stay: {}\n",
            report::counted(left.len() as u64),
            BinaryBytes(used),
            BinaryBytes(limit),
            why(&left)
        ));
    }
    print(text.as_bytes())
}

/// Why layers stay.
fn why(left: &[Resident]) -> String {
    let count = |reason: &dyn Fn(&Resident) -> bool| left.iter().filter(|layer| reason(layer)).count();
    let (pinned, in_use) = (count(&|layer| layer.pinned), count(&|layer| !layer.pinned && layer.in_use));
    let reasons = [(pinned, "pinned"), (in_use, "in use"), (left.len() - pinned - in_use, "used a moment ago")];
    reasons.iter().filter(|(number, _)| *number > 0).map(|(number, reason)| format!("{number} {reason}")).collect::<Vec<_>>().join(", ")
}

fn unpin(arguments: &CacheUnpin) -> Result<Exit, CliError> {
    let session = Session::open(&arguments.sources)?;
    let mut layers = if arguments.all { session.store.pinned()? } else { Vec::new() };
    for reference in &arguments.references {
        layers.extend(session.resolve(reference, &arguments.wanted)?.lineage.layers.iter().map(|layer| layer.spec.key()));
    }
    let mut unpinned = 0;
    for layer in layers {
        unpinned += u64::from(session.store.unpin(&layer)?);
    }
    let others = session.store.pinned()?.len() as u64;
    if unpinned == 0 && others > 0 {
        report::warning(&format!(
            "nothing of what was named is pinned, but {} of other kits: if a tag has moved since, name the kit by the digest that `kitfs pull` printed, or give `--all`",
            report::counted(others)
        ));
    }
    print(format!("{} unpinned\n", report::counted(unpinned)).as_bytes())
}

fn path(arguments: &CachePath) -> Result<Exit, CliError> {
    let dir = cache_dir(&arguments.cache)?;
    if arguments.json {
        return print(report::json(&json!({ "path": dir }))?.as_bytes());
    }
    print(format!("{}\n", dir.display()).as_bytes())
}

/// Who has a layer in use: a process of a mount, or another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct User {
    mountpoint: Option<String>,
    pid: u32,
    name: String,
}

/// Users by layer.
#[derive(Debug, Default)]
struct Users(HashMap<LayerKey, Vec<User>>);

impl Users {
    /// Looks for them, if there are any. What cannot be seen is not listed.
    fn find(store: &Store, layers: &[Resident], arguments: &CacheList) -> Self {
        let used: Vec<LayerKey> = layers.iter().filter(|layer| layer.in_use).map(|layer| layer.layer).collect();
        let Some(locks) = used.first().and_then(|layer| store.use_lock(layer).parent().map(Path::to_owned)) else { return Self::default() };
        let mounts = mounts(&arguments.run);
        let open = users_of(&locks);
        let users_of = |layer: &LayerKey| {
            let processes = open.get(store.use_lock(layer).file_name()?)?;
            let user =
                |process: &Process| User { mountpoint: mounts.get(&process.pid).cloned(), pid: process.pid, name: process.name.clone() };
            let mut users: Vec<User> = processes.iter().filter(|process| process.pid != std::process::id()).map(user).collect();
            users.sort();
            Some((*layer, users))
        };
        Self(used.iter().filter_map(users_of).collect())
    }

    fn of(&self, layer: &Resident) -> &[User] {
        self.0.get(&layer.layer).map_or(&[], Vec::as_slice)
    }
}

/// Where the processes of mounts have them.
fn mounts(run: &Run) -> HashMap<u32, String> {
    let mut mounts = HashMap::new();
    // Without a run directory there are no mounts to be named, only processes.
    let all = umount::open(run).ok().and_then(|run| run.mounts().ok());
    for mount in all.into_iter().flatten() {
        let Ok(Some(record)) = mount.read_record() else { continue };
        let worker = mount.read_state().ok().flatten().and_then(|state| state.worker_pid);
        let mountpoint = record.mountpoint.to_string_lossy().into_owned();
        mounts.extend(worker.into_iter().chain([record.supervisor_pid]).map(|pid| (pid, mountpoint.clone())));
    }
    mounts
}

/// Each mount once, and processes that are of none.
fn in_use_by(users: &[User]) -> String {
    let mut names: Vec<String> = users
        .iter()
        .map(|user| user.mountpoint.as_deref().map_or_else(|| format!("{} (pid {})", escaped(&user.name), user.pid), escaped))
        .collect();
    names.dedup();
    // What is being written to disk is in use, too, and has no user.
    if names.is_empty() { "in use".to_owned() } else { format!("in use by {}", names.join(", ")) }
}

fn as_json(layer: &Resident, users: &[User]) -> Value {
    let last_use = layer.last_use.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "layer": layer.layer.file_name(), "bytes": layer.size, "last_use": last_use, "in_use": layer.in_use, "in_use_by": users,
        "pinned": layer.pinned,
    })
}

/// How long ago something was, in the largest unit that says something.
fn ago(then: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(then).map_or(0, |since| since.as_secs());
    let (number, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7_200 => (seconds / 60, "min"),
        7_200..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("used {number} {unit} ago")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_mount_is_named_once_and_other_processes_by_themselves() {
        let user = |mountpoint: Option<&str>, pid, name: &str| User { mountpoint: mountpoint.map(str::to_owned), pid, name: name.into() };
        let users =
            [user(None, 7, "kitfs\u{1b}"), user(Some("/a"), 1, "kitfs"), user(Some("/a"), 2, "kitfs-worker"), user(Some("/b"), 3, "kitfs")];
        assert_eq!(in_use_by(&users), "in use by kitfs\\u{1b} (pid 7), /a, /b");
        assert_eq!(in_use_by(&[]), "in use");
    }

    #[test]
    fn prune_says_why_layers_stay() {
        let layer: LayerKey = LayerKey::from_file_name(&format!("sha256-{}", "0".repeat(64))).expect("a name");
        let resident = |in_use, pinned| Resident { layer, size: 1, last_use: UNIX_EPOCH, in_use, pinned };
        assert_eq!(why(&[resident(true, true), resident(true, false), resident(false, true)]), "2 pinned, 1 in use");
        assert_eq!(why(&[resident(false, false)]), "1 used a moment ago");
        assert_eq!((report::counted(0), report::counted(1)), ("0 layers".to_owned(), "1 layer".to_owned()));
    }

    #[test]
    fn how_long_ago_it_was() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")] {
            assert_eq!(ago(SystemTime::now() - Duration::from_secs(seconds)), format!("used {text} ago"));
        }
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(60)), "used 0 s ago", "a clock that went back");
    }
}
