//! What the integration tests share. Each test crate uses a part of it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::print_stderr)]

pub mod fixtures;
pub mod pack;
pub mod registry;
