//! kitfs
pub mod archive;
pub mod cli;
pub mod control;
pub mod credentials;
pub mod descriptor;
pub mod digest;
pub mod failure;
#[cfg(test)]
mod fixtures;
pub mod index;
pub mod inflate;
mod json;
pub mod kit;
mod kitfile;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod node;
pub mod oci;
pub mod page;
pub mod path;
pub mod plan;
pub mod registry;
pub mod resolve;
pub mod source;
pub mod store;
pub mod verify;
