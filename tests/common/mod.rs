//! What the integration tests share. Each test crate uses a part of it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::print_stderr)]

pub mod blackhole;
pub mod disk;
pub mod docker_registry;
pub mod fixtures;
pub mod kitfs;
pub mod modelpack;
pub mod pack;
pub mod process;
pub mod registry;
pub mod relay;
pub mod shown;
pub mod signer;
pub mod steps;
pub mod tarball;
