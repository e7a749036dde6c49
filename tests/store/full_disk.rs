//! Caches without room.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::thread;

use kitfs::failure::ErrorClass;
use kitfs::layer::Compression;
use kitfs::store::Store;
use tokio::sync::Semaphore;

use crate::bench::{Bench, ensure, listing, ready};
use crate::sample::{read_all, sample};
use crate::scripted::{Scripted, Step};

/// A tmpfs of its own. The tests need to be allowed to mount.
pub struct SmallDisk(pub tempfile::TempDir);

impl SmallDisk {
    pub fn mount(bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let size = std::ffi::CString::new(format!("size={bytes},mode=0700")).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, &*size)
            .expect("these tests need to be root, or to have CAP_SYS_ADMIN, in order to mount");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_else() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let sample = sample(21, compression, true);
        let disk = SmallDisk::mount(6 << 20);
        let filler = disk.0.path().join("filler");
        let store = Store::open(disk.0.path()).expect("a cache");
        let bench = Bench::new();
        // There is room when the fetch begins, and none any more when the bytes come.
        let (reached, on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let source = Scripted::new(&sample, [Step::Gate(0, Arc::clone(&reached), Arc::clone(&on))]);
        let outcome = thread::scope(|scope| {
            let fetch = scope.spawn(|| ensure(&store, &bench.runtime, &sample, &source));
            bench.runtime.block_on(reached.acquire()).expect("open").forget();
            fs::write(&filler, vec![1; 2 << 20]).expect("room");
            on.add_permits(1);
            fetch.join().expect("no panic")
        });
        let error = outcome.expect_err("no room");
        assert_eq!(error.class(), ErrorClass::Disk(libc::ENOSPC), "{}", error);
        for place in ["layers", "ingest", "trash", "index"] {
            assert_eq!(listing(&disk.0.path().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
        assert_eq!(store.progress(&sample.spec.key()).expect("a record").class, Some(ErrorClass::Disk(libc::ENOSPC)));
        // It works as soon as there is room.
        fs::remove_file(&filler).expect("there");
        let layer = ensure(&store, &bench.runtime, &sample, &source).expect("room");
        assert_eq!(read_all(&layer).expect("there"), sample.files);
        // And what is here can be opened when it is full again.
        store.sync(&layer).expect("durable");
        while File::options().append(true).create(true).open(&filler).and_then(|mut file| file.write_all(&[1; 4096])).is_ok() {}
        let full = Store::open(disk.0.path()).expect("a full cache");
        assert_eq!(read_all(&ready(full.recall(&sample.spec))).expect("there"), sample.files);
    }
}

#[test]
fn a_layer_larger_than_the_disk_is_refused_before_it_is_fetched() {
    for compression in [Compression::None, Compression::Gzip] {
        let sample = sample(23, compression, true);
        let disk = SmallDisk::mount(3 << 20);
        let (store, bench) = (Store::open(disk.0.path()).expect("a cache"), Bench::new());
        let source = Scripted::new(&sample, []);
        let error = ensure(&store, &bench.runtime, &sample, &source).expect_err("no room");
        assert_eq!(error.class(), ErrorClass::Disk(libc::ENOSPC), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("has {} bytes", sample.blob.len())) && text.contains("has room for"), "{text}");
        assert_eq!(source.asked(), [0_u64; 0], "nothing was asked for");
        for place in ["layers", "ingest", "trash", "index"] {
            assert_eq!(listing(&disk.0.path().join("v1").join(place)), Vec::<String>::new(), "{place}");
        }
    }
}
