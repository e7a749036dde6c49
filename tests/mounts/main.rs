//! The whole path through real mounts of the real binary, and the tools for that.
//!
//! One crate for all of it, one module per theme: linking is what costs time here. A test needs Linux with `/dev/fuse`, root, and what
//! `scripts/test` installs; without them it fails and says what is missing.
//!
//! Most tests exist twice, in `passthrough` and in `cached`, for the two ways in which a mount serves file contents.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod cache_damage;
mod cli;
mod containers;
mod crash;
mod disk;
mod doctor;
mod eviction;
mod failed_at;
mod fault_registry;
mod filters;
mod fixtures_mount;
mod inspect;
mod killed_at;
mod kits;
mod knobs;
mod laziness;
mod log;
mod many;
mod meanings;
mod metrics;
mod modelpack;
mod moving;
mod offline;
mod packer;
mod power_cut;
mod progress;
mod proxy;
mod reading;
mod real_model;
mod records;
mod references;
mod single_flight;
mod sources;
mod stage;
mod stops;
mod tamper;
mod transport;
mod tree_model;
mod upgrade;
mod versions;
mod waits;
