//! Who is admitted: the real program, with policies, on real mounts.
//!
//! One crate for all of it, as `tests/mounts`, and it needs the same: Linux with `/dev/fuse`, root, and what `scripts/test` installs.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod asked;
mod cases;
mod faults;
mod host;
mod hostile;
mod names;
mod records;
mod signer;
mod trouble;
