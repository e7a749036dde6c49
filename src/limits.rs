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

// ---- source (registry, credentials, layout)

/// Seconds that a TCP connection and its TLS handshake may take; three round trips to the other side of the world take one.
pub const CONNECT_S: u64 = 10;
/// Seconds without any byte from the other side, whether it was asked for a head or for more of a body, before an attempt is given up.
pub const STALL_S: u64 = 20;
/// Attempts that may fail in a row without a new byte between them.
pub const ATTEMPTS: usize = 3;
/// Milliseconds before the second attempt; doubled for each further one, and up to as much again is added at random.
pub const RETRY_DELAY_MS: u64 = 1_000;
/// Seconds after the last byte at which a waiter hears of the failure at the latest: three stalls, the delays, and some room.
pub const SILENCE_S: u64 = 75;
/// Seconds of `Retry-After` that are waited for; beyond it the failure is reported now, with the time in it.
pub const RETRY_AFTER_S: u64 = 30;
/// Seconds of `Retry-After` that are believed at all (a day): beyond it the number is noise and would only overflow.
pub const RETRY_AFTER_BELIEVED_S: u64 = 86_400;
/// Seconds for a whole small document, all attempts included.
pub const DOCUMENT_S: u64 = 30;
/// Seconds for all documents that a mount needs before it shows.
pub const BEFORE_MOUNT_S: u64 = 45;
/// Redirects in a row; storage hosts need one, and ten is what browsers allow.
pub const REDIRECTS: usize = 10;
/// Bytes of a config document. Kit's is the Kitfile as JSON, a few kilobytes.
pub const CONFIG_BYTES: u64 = 4 << 20;
/// Bytes of a token server's answer; tokens must fit into a header, for which servers allow 8 to 64 KiB.
pub const TOKEN_BYTES: u64 = 256 << 10;
/// Bytes of an error's body that are read to say what the registry said.
pub const ERROR_BODY_BYTES: u64 = 16 << 10;
/// Characters of a registry's own words that are repeated in an error.
pub const ERROR_WORDS: usize = 200;
/// Milliseconds that an error's body is waited for; the status is known already.
pub const ERROR_BODY_MS: u64 = 1_000;
/// Bytes of a range. Below 8 MiB the requests show in the time, above 16 MiB the reorder budget holds too few of them.
pub const RANGE_BYTES: u64 = 16 << 20;
/// Connections that fetch one blob: one does about 0.8 GB/s of TLS, four saturate what hashing can take.
pub const CONNECTIONS: usize = 4;
/// Bytes that came out of order and wait for their turn, in the whole process.
pub const REORDER_BYTES: u64 = 64 << 20;
/// Bytes that came in order and wait for their reader, per blob. Apart from the budget above, so that whoever is next never waits for it.
pub const IN_ORDER_BYTES: u64 = 4 << 20;
/// Bytes that are read and thrown away to get to an offset where a registry ignores ranges: 4 GiB is half a minute at 1 Gbit/s.
pub const SKIP_BYTES: u64 = 4 << 30;
/// Bytes of a credential file.
pub const CREDENTIAL_FILE_BYTES: u64 = 1 << 20;
/// Seconds for a credential helper to answer; helpers of clouds ask a server for it.
pub const HELPER_S: u64 = 15;
/// Bytes of a credential helper's answer.
pub const HELPER_BYTES: usize = 256 << 10;
/// Bytes of a layout's `index.json`.
pub const LAYOUT_INDEX_BYTES: u64 = 4 << 20;
/// Manifests in a layout's `index.json`.
pub const LAYOUT_MANIFESTS: usize = 10_000;
/// Names of a layout that an error lists.
pub const LAYOUT_NAMES_SHOWN: usize = 20;
/// Bytes of a blob in a layout that are read at once.
pub const LAYOUT_CHUNK_BYTES: usize = 1 << 20;
