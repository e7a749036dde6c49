//! Every named limit: its unit, and the reason for it.

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
