//! kitfs
pub mod archive;
pub mod control;
pub mod credentials;
pub mod descriptor;
pub mod digest;
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
pub mod source;
pub mod verify;
