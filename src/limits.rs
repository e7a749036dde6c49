//! Every limit has its name, unit and reason here, and is enforced in one place.

// ---- path

/// Bytes of one name. Linux allows no longer one (`NAME_MAX`), so a longer one could not be asked for.
pub const NAME_BYTES: usize = 255;
/// Bytes of a whole path. Linux takes no longer one in a system call (`PATH_MAX`).
pub const PATH_BYTES: usize = 4096;
/// Components of a path. Far beyond any honest tree, and small enough to keep one frame for each.
pub const PATH_DEPTH: usize = 256;

// ---- archive

/// Bytes of a tar extension (PAX records, GNU long name), and of all extensions of one entry together: where Go's reader stops, too.
pub const TAR_EXTENSION_BYTES: u64 = 1 << 20;

// ---- index

/// Entries of a layer, folders that only follow from names included. A node id has 24 bits for them (16.7 million); ImageNet has 1.4
/// million.
pub const LAYER_ENTRIES: u32 = 10_000_000;

// ---- inflate

/// How many times larger than its blob a layer may become. Deflate itself ends at 1,032; sparse tables and JSON reach 100 to 300. What
/// bounds the disk is the quota of the cache; this stops what is nothing but a bomb.
pub const EXPANSION_RATIO: u64 = 500;
/// Bytes that a layer may have uncompressed, however small its blob is: zero-filled weights, which tests like to use, shrink a
/// thousandfold.
pub const EXPANSION_FLOOR_BYTES: u64 = 256 << 20;

// ---- store

/// Bytes from which a file of a layer gets a file of its own in the cache, which the kernel then reads without us. Smaller ones stay in `pack`: one
/// request reads them whole, and a dataset of a million of them costs one inode. Only what writes a layer asks this; where a file is stands in its index.
pub const DATA_FILE_BYTES: u64 = 1 << 20;
/// Bytes of one piece of a blob on its way through the store: hashed, split and written as one. Large enough that writes of data files get large
/// folios in the page cache (a file written in small pieces is read 1.6 times slower), small enough to overlap hashing and writing.
pub const PIECE_BYTES: usize = 1 << 20;
/// Pieces that wait to be hashed. With [`PIECE_BYTES`] it bounds what hashing may lag behind writing to 8 MiB.
pub const HASH_QUEUE_PIECES: usize = 8;
/// Bytes by which the space for a file of a compressed layer is reserved ahead of its content. Its final size stands in a header that nobody
/// has verified, so it is not reserved as a whole.
pub const RESERVE_STEP_BYTES: u64 = 64 << 20;
/// Bytes after which the kernel is asked to start writing back, so that the sync at the end finds little left to do.
pub const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Seconds between two ticks of whoever works on a layer.
pub const TICK_SECONDS: u64 = 1;
/// Seconds without a tick after which the one who works on a layer counts as stopped and a waiter works beside it. Also the seconds without
/// a byte after which a waiter with another source may try beside it.
pub const SILENCE_SECONDS: u64 = 30;
/// Milliseconds between two looks at the lock of a layer that another process works on. A flock cannot be waited for with a time-out; a look costs
/// about 10 microseconds, and 50 ms are not felt after a fetch.
pub const LOCK_POLL_MILLIS: u64 = 50;
/// Processes that may work on one layer side by side: one, one beside it when it is silent, one more should that stop too.
pub const FETCHERS_PER_LAYER: usize = 3;
/// Seconds that the lock of the whole cache or the use lock of one layer is waited for. They are held for a rename, never for I/O, so whoever
/// holds one longer is stopped.
pub const DECISION_SECONDS: u64 = 10;
/// Descriptors kept from writing to syncing in one ingest, so that a write-back error cannot be missed. A layer with more data files
/// is read back and hashed instead.
pub const SYNC_DESCRIPTORS: usize = 256;
/// Seconds that [`crate::store::Store::sync`] waits for somebody else's sync before it does the same work itself.
pub const SYNC_WAIT_SECONDS: u64 = 30;
/// Bytes of a progress record. One page: it is written in place with one call, also when the disk is full.
pub const PROGRESS_BYTES: usize = 4096;
/// Bytes of an error's text in a progress record.
pub const PROGRESS_TEXT_BYTES: usize = 1024;
/// Bytes of a small record of the store (`visible`, a remembered reference). Nothing we write comes near.
pub const RECORD_BYTES: u64 = 16 << 10;
/// Fetches of a layer in one call of [`crate::store::Store::ensure`] that may end in a mismatch: the first, and one more from scratch. One that went on
/// from bytes on disk does not count.
pub const MISMATCHES: u32 = 2;
/// Rounds of looking, re-verifying and fetching in one call of [`crate::store::Store::ensure`]. Two are enough unless somebody keeps touching the files.
pub const ENSURE_ROUNDS: u32 = 5;
/// Attempts to make a directory for an ingest before somebody else takes it for one that was left behind.
pub const WORK_DIRECTORY_ATTEMPTS: u32 = 8;
/// Seconds after which a document that is still being written was left behind: it is written in one go, so anything above a moment would do.
pub const LEFTOVER_SECONDS: u64 = 3600;
/// Descriptors of documents that wait for somebody to ask for their sync. More than one kit has; the kernel writes the others back soon enough.
pub const UNSYNCED_DOCUMENTS: usize = 64;
