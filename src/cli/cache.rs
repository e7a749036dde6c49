//! `kitfs cache`: what is in the cache, and room in it.

use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{Cache, CacheCommand, CacheList, CachePath, CachePrune, CacheUnpin};
use super::error::CliError;
use super::report::{self, Exit};
use super::{Session, cache_dir, print};
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
    if arguments.json {
        let layers: Vec<Value> = layers.iter().map(as_json).collect();
        return print(report::json(&json!({ "path": store.dir(), "bytes": used, "limit": limit, "layers": layers }))?.as_bytes());
    }
    let mut text = String::new();
    for layer in &layers {
        let use_ = if layer.in_use { "in use" } else { &ago(layer.last_use) };
        text.push_str(&format!(
            "{}  {:>10}  {use_}{}\n",
            layer.layer,
            BinaryBytes(layer.size).to_string(),
            if layer.pinned { ", pinned" } else { "" }
        ));
    }
    text.push_str(&format!("{} layers, {} of {}\n", layers.len(), BinaryBytes(used), BinaryBytes(limit)));
    print(text.as_bytes())
}

fn prune(arguments: &CachePrune) -> Result<Exit, CliError> {
    let evicted = Store::open(&cache_dir(&arguments.cache)?)?.prune(arguments.all)?;
    if arguments.json {
        return print(report::json(&json!({ "layers": evicted.layers, "bytes": evicted.bytes }))?.as_bytes());
    }
    print(format!("{} layers removed, {}\n", evicted.layers, BinaryBytes(evicted.bytes)).as_bytes())
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
    print(format!("{unpinned} layers unpinned\n").as_bytes())
}

fn path(arguments: &CachePath) -> Result<Exit, CliError> {
    let dir = cache_dir(&arguments.cache)?;
    if arguments.json {
        return print(report::json(&json!({ "path": dir }))?.as_bytes());
    }
    print(format!("{}\n", dir.display()).as_bytes())
}

fn as_json(layer: &Resident) -> Value {
    let last_use = layer.last_use.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({ "layer": layer.layer.file_name(), "bytes": layer.size, "last_use": last_use, "in_use": layer.in_use, "pinned": layer.pinned })
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
    fn how_long_ago_it_was() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 d")] {
            assert_eq!(ago(SystemTime::now() - Duration::from_secs(seconds)), format!("used {text} ago"));
        }
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(60)), "used 0 s ago", "a clock that went back");
    }
}
