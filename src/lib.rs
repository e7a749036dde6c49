//! kitfs
pub mod archive;
pub mod control;
pub mod descriptor;
pub mod digest;
pub mod index;
pub mod inflate;
pub mod layer;
pub mod limits;
pub mod path;
pub mod node;
pub mod page;
pub mod plan;
pub mod source;
pub mod verify;
