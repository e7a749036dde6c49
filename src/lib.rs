//! kitfs
pub mod archive;
pub mod descriptor;
pub mod digest;
pub mod failure;
pub mod index;
pub mod inflate;
pub mod layer;
pub mod limits;
pub mod path;
pub mod source;
pub mod store;
pub mod verify;
