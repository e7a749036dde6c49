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
