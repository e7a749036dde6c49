//! The whole path through real mounts of the real binary, and the tools for that.
//!
//! One crate for all of it, one module per theme: linking is what costs time here. A test needs Linux with `/dev/fuse`, root, and what
//! `scripts/test` installs; without them it fails and says what is missing.
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod fault_registry;
mod packer;
