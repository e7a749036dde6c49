//! How kits come over the network, against a registry that misbehaves: no mount, no FUSE.
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod blobs;
mod client;
mod documents;
mod hostile;
mod referrers;
