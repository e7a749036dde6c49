//! kitfs
pub mod credentials;
pub mod descriptor;
pub mod digest;
mod json;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod oci;
pub mod registry;
pub mod source;
pub mod verify;
