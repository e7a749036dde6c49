//! kitfs shows a KitOps ModelKit, an OCI artifact that holds weights, datasets, code and docs, as a read-only filesystem.
//!
//! A mount is one [`supervisor`] and one [`worker`]. The supervisor keeps what must not die: the FUSE device, a shared [`page`], and the
//! descriptors of open layers. The worker serves, may die at any moment, and is replaced without a reader noticing. Mounts share the
//! [`store`], a directory that all processes of a host use with file locks; no daemon stands between them.
//!
//! Inside a worker, `fuse` takes requests apart, [`fs`] answers them from [`tree`] and store or says which one layer they wait for,
//! [`wait`] keeps their replies meanwhile, and [`fetch`] has the layer brought from a [`source`]: a [`registry`] or a [`layout`] on disk.
//!
//! What holds everywhere:
//!
//! * Bytes from outside are [`verify::Unverified`] and cannot be read. [`verify`] and the store alone make a witness that they were
//!   checked, and everything that is shown comes from one.
//! * A successful `open` means that all of the file is verified and on local disk.
//! * The tree is a function of manifest, config and layer bytes; the order in which layers come cannot be seen.
//! * Looking up a name does not wait. What waits holds nothing that others need, and has an end.
//! * A node id carries all its meaning, so that a new worker understands those of the last one.
//! * What stands in its place in the cache is never written again.
//!
//! `ARCHITECTURE.md` is the map: every module, how a read and a mount travel, the locks and their order. This library is there for the
//! `kitfs` program and its tests; its interface changes with them.

pub mod admission;
pub mod archive;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod control;
pub mod credentials;
pub mod daemon;
pub mod decided;
pub mod descriptor;
pub mod detach;
pub mod digest;
pub mod doctor;
pub mod failure;
pub mod fetch;
pub mod filter;
#[cfg(test)]
mod fixtures;
pub mod fs;
pub(crate) mod fuse;
pub mod gate;
pub mod heap;
pub mod holders;
pub mod index;
pub mod inflate;
pub mod interrupt;
mod json;
pub mod kit;
mod kitfile;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod mountinfo;
pub mod node;
pub mod oci;
pub mod page;
pub mod path;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod protocol;
pub mod referrers;
pub mod registry;
pub(crate) mod rehearsal;
pub mod resolve;
pub mod run;
pub mod signature;
pub mod source;
pub mod store;
pub mod supervisor;
pub mod tree;
pub mod tuf;
pub mod umount;
pub mod verify;
pub mod vsa;
pub mod wait;
pub(crate) mod wire;
pub mod worker;
