//! `relay HOST:PORT` stands between a client and that address as a long way would, until its standard input ends; it prints where it listens.
//! For scripts/bench; std only, so that `rustc` alone builds it.
#![allow(dead_code, unreachable_pub)]

use std::io::Read as _;

#[path = "../../tests/common/relay.rs"]
mod relay;

fn main() {
    let target = std::env::args().nth(1).expect("HOST:PORT").parse().expect("an address with a port");
    let relay = relay::Relay::start(target).expect("a loopback port");
    println!("{}", relay.address());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
