//! What may be mounted: policies, read and checked. (The decision itself comes later, and stands on this.)
//!
//! A policy is a [`document`]: a part of `ClusterImagePolicy`, of which every field is read or refused by name. It says which kits it is about
//! ([`images`], held against a [`name`]), who has to have signed ([`authority`]), and what has to hold beyond that ([`rego`]). The policies of
//! the host ([`host`] says which files are its own) and those of the caller, to which the [`shortcut`] of the command line adds one, are two
//! [`set`]s, which are decided separately.

pub mod authority;
pub mod document;
pub mod host;
pub mod images;
pub mod name;
pub mod rego;
pub mod set;
pub mod shortcut;
mod yaml;

pub use document::{Mode, Policy};
pub use name::Name;
pub use set::{Names, Set};
pub use yaml::YamlError;
