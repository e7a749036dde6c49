//! kitfs
pub mod archive;
pub mod control;
pub mod descriptor;
pub mod detach;
pub mod digest;
pub mod index;
pub mod layer;
pub mod limits;
pub mod path;
pub mod mountinfo;
pub mod node;
pub mod page;
pub mod plan;
pub mod run;
pub mod source;
pub mod verify;
