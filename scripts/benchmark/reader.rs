//! Reads a file in one way and prints how many nanoseconds that took. For scripts/bench; std only, so that `rustc` alone builds it.
//!
//! `bench-reader sequential FILE` reads it by `read` of 1 MiB; `bench-reader random FILE` maps it and sums 4 KiB at each of 200,000 random places;
//! `bench-reader first FILE` reads one byte.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Instant;

unsafe extern "C" {
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

const PROT_READ: i32 = 1;
const MAP_SHARED: i32 = 1;
const PLACES: usize = 200_000;
const SPAN: usize = 4096;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (how, path) = (arguments.next().expect("how"), arguments.next().expect("a file"));
    let mut checksum = 0_u64;
    let start = Instant::now();
    let mut file = File::open(&path).expect("a readable file");
    match how.as_str() {
        "first" => file.read_exact(&mut [0]).expect("a byte"),
        "sequential" => {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let length = file.read(&mut buffer).expect("readable");
                if length == 0 {
                    break;
                }
                checksum += length as u64;
            }
        }
        "random" => {
            let length = file.metadata().expect("a size").len() as usize;
            assert!(length > SPAN, "the file is too small");
            // SAFETY: a new mapping where the kernel likes; nothing else refers to it.
            let at = unsafe { mmap(std::ptr::null_mut(), length, PROT_READ, MAP_SHARED, file.as_raw_fd(), 0) };
            assert!(at as isize != -1, "mmap: {}", std::io::Error::last_os_error());
            // SAFETY: the mapping is `length` bytes long, readable, and stays until the process ends; nobody writes to the file.
            let bytes = unsafe { std::slice::from_raw_parts(at, length) };
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            for _ in 0..PLACES {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let place = state as usize % (length - SPAN);
                for word in bytes[place..place + SPAN].chunks_exact(8) {
                    checksum = checksum.wrapping_add(u64::from_ne_bytes(word.try_into().expect("eight bytes")));
                }
            }
        }
        _ => panic!("how is first, sequential or random"),
    }
    let elapsed = start.elapsed().as_nanos();
    std::hint::black_box(checksum);
    println!("{elapsed}");
}
