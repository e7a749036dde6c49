//! kitfs
pub mod descriptor;
pub mod digest;
pub mod layer;
pub mod source;
pub mod verify;
