//! The store through its public face, with a source that does what each test tells it to.
#![allow(missing_docs, unreachable_pub)]

mod bench;
mod damage;
mod documents;
mod durability;
mod eviction;
mod full_disk;
mod hostile_bytes;
mod layers;
mod processes;
mod resumption;
mod sample;
mod scripted;
mod single_flight;
