//! kitfs
pub mod descriptor;
pub mod digest;
mod json;
pub mod layer;
pub mod limits;
pub mod oci;
pub mod source;
pub mod verify;
