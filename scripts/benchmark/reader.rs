//! Reads files in one way and prints how many nanoseconds that took. For scripts/bench; std only, so that `rustc` alone builds it.
//!
//! `reader sequential FILE` reads it by `read` of 1 MiB; `reader random FILE` maps it and sums 4 KiB at each of 200,000 random places;
//! `reader first FILE` reads one byte. `reader scatter FOLDER FILES THREADS MILLISECONDS` opens, reads and closes files of `FOLDER/001/000123.txt` and so on, at
//! random for so long (or each once, if that is 0), and prints how many it read, too.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

const PROT_READ: i32 = 1;
const MAP_SHARED: i32 = 1;
const PLACES: usize = 200_000;
const SPAN: usize = 4096;
/// How many files a folder has.
const A_FOLDER: u64 = 100;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (how, path) = (arguments.next().expect("how"), arguments.next().expect("a file"));
    if how == "scatter" {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number");
        return scatter(Path::new(&path), number(), number(), Duration::from_millis(number()));
    }
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
            let mut chance = Chance(SEED);
            for _ in 0..PLACES {
                let place = chance.next() as usize % (length - SPAN);
                for word in bytes[place..place + SPAN].chunks_exact(8) {
                    checksum = checksum.wrapping_add(u64::from_ne_bytes(word.try_into().expect("eight bytes")));
                }
            }
        }
        _ => panic!("how is first, sequential, random or scatter"),
    }
    let elapsed = start.elapsed().as_nanos();
    std::hint::black_box(checksum);
    println!("{elapsed}");
}

fn scatter(folder: &Path, files: u64, threads: u64, time: Duration) {
    let path = |file: u64| -> PathBuf { folder.join(format!("{:03}/{file:06}.txt", file / A_FOLDER)) };
    let start = Instant::now();
    let read: u64 = thread::scope(|scope| {
        let one = |thread: u64| {
            move || {
                let mut buffer = vec![0; 16 << 10];
                if time.is_zero() {
                    return (thread..files).step_by(threads as usize).map(|file| whole(&path(file), &mut buffer)).count() as u64;
                }
                let mut chance = Chance(SEED ^ (thread << 32));
                let mut read = 0;
                while start.elapsed() < time {
                    whole(&path(chance.next() % files), &mut buffer);
                    read += 1;
                }
                read
            }
        };
        let readers: Vec<_> = (0..threads).map(|thread| scope.spawn(one(thread))).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).sum()
    });
    println!("{} {read}", start.elapsed().as_nanos());
}

fn whole(path: &Path, buffer: &mut [u8]) {
    let mut file = File::open(path).expect("a readable file");
    while file.read(buffer).expect("readable") > 0 {}
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Numbers by chance, the same in each run (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
