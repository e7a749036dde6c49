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

// ---- oci

/// Bytes of a manifest, 4 MiB: what registries take at most, and what every client of the field reads at most.
pub const MANIFEST_BYTES: u64 = 4 << 20;

/// Layers of one manifest. A kit has one per entry of its Kitfile; the node numbers of a mount have room for twice as many.
pub const LAYERS: usize = 4096;

/// Levels of arrays and objects in a JSON document. The deepest that is read has five; what a Kitfile's parameters hold is free. It
/// stays below the level at which the parser stops by itself (128), so that the limit that speaks is this one.
pub const JSON_DEPTH: usize = 100;

/// Bytes of `HOST/REPOSITORY` in a reference: the length that the distribution spec asks clients to expect.
pub const REFERENCE_NAME_BYTES: usize = 255;

/// Bytes of a tag, from the distribution spec's grammar.
pub const TAG_BYTES: usize = 128;

// ---- kit

/// Bytes of a config, 4 MiB as for a manifest: kit writes a few kilobytes, and free-form parameters have no need for more.
pub const CONFIG_BYTES: u64 = 4 << 20;
