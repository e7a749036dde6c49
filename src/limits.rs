//! Every limit has its name, unit and reason here, and is enforced in one place.

use std::num::NonZeroUsize;
use std::time::Duration;

use jiff::Timestamp;

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
/// Times that a worker reads on in another index of a layer because the one before proved unreadable. Each stays mapped, 100 MB for a million entries, and its
/// file keeps its blocks; and a disk that spoils more of them than this is not to be relied on.
pub const INDEX_RENEWALS: usize = 8;

// ---- inflate

/// How many times larger than its blob a layer may become. Deflate itself ends at 1,032; sparse tables and JSON reach 100 to 300. What
/// bounds the disk is the quota of the cache; this stops what is nothing but a bomb.
pub const EXPANSION_RATIO: u64 = 500;
/// Bytes that a layer may have uncompressed, however small its blob is: zero-filled weights, which tests like to use, shrink a
/// thousandfold.
pub const EXPANSION_FLOOR_BYTES: u64 = 256 << 20;

/// Bytes of a zstd frame's window, as a power of two: 128 MiB, where `zstd -d` stops without being told otherwise. What kit packs needs
/// 8 MiB. Twice as much memory one layer may cost while it is uncompressed.
pub const ZSTD_WINDOW_LOG: u8 = 27;
/// Bytes of a window that no other one waits for, as a power of two: 8 MiB, what kit needs, so that what it packs is never delayed. For as many
/// layers as are fetched at once that is 288 MiB of memory.
pub const ZSTD_WINDOW_SMALL_LOG: u8 = 23;
/// Bytes that all larger windows of a process have together, each in twice as much memory: the largest one, so that it can be had. Without it 18 layers could take 4.5 GiB.
pub const ZSTD_WINDOWS_BYTES: u64 = 1 << ZSTD_WINDOW_LOG;

// ---- wait

/// Requests that wait at once. Each is a blocked thread of somebody else's; past this number new ones get EBUSY.
pub const PARKED_MAX: usize = 65_536;
/// How often callers are looked at: a tenth of the second within which a killed one must be gone.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How long a caller whose process cannot be seen (a PID namespace outside of ours) waits after the last byte came: nobody could end its wait.
pub const FOREIGN_CALLER_SILENCE: Duration = Duration::from_secs(60);
/// How long before the kernel's own limit on requests (`fs.fuse.*_request_timeout`) a wait ends, since that limit aborts the whole connection.
pub const KERNEL_TIMEOUT_MARGIN: Duration = Duration::from_secs(20);

// ---- fetch

/// Layers that readers wait for and that are fetched at once. Many, so that stalled ones do not stand before others.
pub const DEMANDED_FETCHES_MAX: usize = 16;
/// Layers that nobody waits for and that are fetched at once.
pub const BACKGROUND_FETCHES_MAX: usize = 2;
/// Layers that may be asked to be fetched at once (`--jobs`), of each of the two sorts above: each has up to 4 MiB in order, 16 MiB for a zstd window, and a thread.
pub const JOBS_MAX: u16 = 16;
/// First wait after a failure of the content or the source; it doubles with each further one.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(30);
/// Longest wait after a failure.
pub const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Longest wait after a full disk and the like, which can be over at any moment.
pub const BACKOFF_DISK_MAX: Duration = Duration::from_secs(5);
/// How far the time of day may be from where it should be before it counts as a clock that was set; what clocks are corrected by otherwise is less.
pub const CLOCK_STEP: Duration = Duration::from_secs(2);
/// A tar layer up to this size in bytes is fetched in the background by `--prefetch small`.
pub const PREFETCH_LAYER_BYTES: u64 = 16 << 20;
/// What `--prefetch small` fetches in all, in bytes.
pub const PREFETCH_TOTAL_BYTES: u64 = 256 << 20;

// ---- fs

/// How long a layer stays open after its last file was closed; a reader that opens file after file does not open the layer each time. Whoever is short of
/// room waits for it, and it counts towards [`USE_GRACE_SECONDS`].
pub const HANDLE_GRACE: Duration = Duration::from_secs(2);
/// Layers that stay open for that long though none of their files is; each has four descriptors here and four in the supervisor.
pub const RESTING_LAYERS_MAX: usize = 64;
/// Data files of one layer that stay open between two reads through us.
pub const OPEN_FILES_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");

// ---- fuse

/// Bytes of one listing, where the caller's buffer takes them: what `getdents` asks for in glibc.
pub const LISTING_BYTES: usize = 32 << 10;
/// Bytes of one listing that every caller's buffer takes: a page, which the kernel rounds up to.
pub const LISTING_BYTES_MIN: usize = 4096;
/// How often a request waits before it is answered with an error: what it waits for was gone again each time it came.
pub const REQUEST_ATTEMPTS_MAX: u32 = 8;

// ---- page

/// Requests that are recorded while a handler works on them: more than there are threads that handle requests.
pub const HANDLERS_MAX: usize = 256;
/// Requests that are never handled again. Each took two workers with it.
pub const POISONED_MAX: usize = 64;
/// Files that can be replaced while they are open, during one mount.
pub const REPLACED_MAX: usize = 4096;
/// Files with a backing file that can be open at once in one mount; each costs 32 bytes of memory once used.
pub const BACKING_FILES_MAX: usize = 65_536;

// ---- control

/// Bytes of a message between supervisor and worker: a failure's text, of which JSON can make six times as many bytes, and room for the rest.
pub const CONTROL_MESSAGE_BYTES: usize = 4096;
/// Bytes of the text in which a worker says why it cannot serve.
pub const FAILURE_BYTES: usize = 512;
/// How long a message waits for room in the socket of a side that does not listen; a supervisor must not hang on a worker that does.
pub const CONTROL_SEND_LIMIT: Duration = Duration::from_secs(2);

// ---- plan

/// Bytes of a mount's plan: all manifests and configs at their limit, as base64, once more the addresses in them, and room for the rest.
pub const PLAN_BYTES: u64 = 48 << 20;

// ---- supervisor

/// Wait before the next worker after one that died before it served; it doubles with each further one.
pub const RESTART_DELAY_FIRST: Duration = Duration::from_millis(100);
/// Longest wait before the next worker.
pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// Deaths that workers brought upon themselves, within [`OWN_DEATHS_WINDOW`], after which those that served are not replaced at once either.
pub const OWN_DEATHS_MAX: usize = 20;
/// The time within which [`OWN_DEATHS_MAX`] counts.
pub const OWN_DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// Workers of a new mount that may die before one serves; then the mount is given up.
pub const STARTS_BEFORE_READY_MAX: u32 = 3;
/// How long a new mount may take until a worker serves it. A worker reads its plan and the indexes that are there, nothing slow.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// Requests that are remembered because they were being handled when a worker died. Each death adds at most as many as there are handlers.
pub const SUSPECTS_MAX: usize = 4096;
/// How often unmounting is tried while callers that were let go are on their way out.
pub const UMOUNT_RETRY: Duration = Duration::from_millis(20);
/// Seconds (ticks of the supervisor) that a worker may take no request while some wait.
pub const HEARTBEAT_SILENCE_TICKS: u32 = 30;
/// How long a killed worker may take to end before the next one starts beside it.
pub const KILLED_PATIENCE: Duration = Duration::from_secs(5);
/// How long unmounting waits for a worker to end all waits, and then for their callers to leave.
pub const STOPPED_PATIENCE: Duration = Duration::from_millis(800);
/// How long a supervisor may take to unmount. The kernel lets go of each name that it knows of the mount, which are a million now and then.
pub const UMOUNT_PATIENCE: Duration = Duration::from_secs(60);
/// How long a program that took the place of a supervisor's own may take to say which protocol it speaks; readers wait for it, once for each such program. It
/// reads nothing for it and takes milliseconds.
pub const PROTOCOL_ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of such an answer: a short line.
pub const PROTOCOL_ANSWER_BYTES: usize = 128;
/// Requests that the kernel sends ahead of answers (read-ahead); its default of 12 to 16 makes parallel readers wait for each other.
pub const FUSE_BACKGROUND_MAX: u16 = 64;
/// Read-ahead in KiB where we may set it: the largest READ that the kernel sends by default.
pub const READ_AHEAD_KIB: u32 = 1024;

// ---- worker

/// Threads that take requests from the kernel, at least: one that reads from a slow disk must not stand before a `stat`.
pub const LOOP_THREADS_MIN: usize = 4;
/// How often a worker looks for layers that nobody uses, and for progress to write down.
pub const HOUSE_INTERVAL: Duration = Duration::from_secs(1);
/// How long `kitfs mount` shows bars while its worker neither fetches a layer nor has one in line: it writes down once in [`HOUSE_INTERVAL`] how they stand,
/// and a worker that died has another one after it by then.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(10);
/// How long it shows them while not a byte comes and no layer stands otherwise than before, as with a worker that is stopped: longer than all attempts of a
/// fetch are silent.
pub const WATCH_SILENCE: Duration = Duration::from_secs(120);
/// Bytes of a line of a mount's log that are shown above bars as one: the longest that it has, a record of an audit, has a few thousand.
pub const LINE_BYTES: u64 = 64 << 10;
/// Threads that take requests from the kernel, at most: beyond it they only contend for the device.
pub const LOOP_THREADS_MAX: usize = 8;

/// How often a worker without a cache looks whether there is one again: a reader should not wait long for it, and a disk that fails is not asked in a loop.
pub const CACHE_LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a worker waits for its cache to be opened before it begins without. It is some thirty calls; a disk that spins up first takes seconds, and the
/// supervisor would lose patience after [`HEARTBEAT_SILENCE_TICKS`].
pub const CACHE_OPEN_LIMIT: Duration = Duration::from_secs(10);

// ---- oci

/// Bytes of a manifest, 4 MiB: what registries take at most, and what every client of the field reads at most.
pub const MANIFEST_BYTES: u64 = 4 << 20;

/// Layers of one manifest. A kit has one per entry of its Kitfile; the node numbers of a mount have room for twice as many.
pub const LAYERS: usize = 4096;

/// Bytes of all layers of a kit together, as the manifest gives them, 1 PiB: fifty times the largest dataset that is heard of, and so far from
/// what 64 bits hold that no sum over a mount overflows, [`EXPANSION_RATIO`] included.
pub const KIT_BYTES: u64 = 1 << 50;

/// Levels of arrays and objects in a JSON document. The deepest that is read has five; what a Kitfile's parameters hold is free. It
/// stays below the level at which the parser stops by itself (128), so that the limit that speaks is this one.
pub const JSON_DEPTH: usize = 100;

// ---- signature

/// Bytes of a bundle. An attestation of an SBOM has a few megabytes.
pub const BUNDLE_BYTES: u64 = 16 << 20;
/// Log entries of a bundle. Honest ones have one; each costs a few signatures to verify.
pub const BUNDLE_LOG_ENTRIES: usize = 8;
/// Timestamps of a bundle. Honest ones have one; each is tried with every authority of the trusted root.
pub const BUNDLE_TIMESTAMPS: usize = 8;
/// Certificates of a bundle of an older version: a chain of Fulcio's has three.
pub const BUNDLE_CERTIFICATES: usize = 10;
/// Bytes of a public key in PEM. The longest that is taken (RSA with 8192 bits) has less than two kilobytes.
pub const KEY_BYTES: usize = 16 << 10;
/// Bytes of a trusted root. That of the public good instance has 7 KiB.
pub const TRUSTED_ROOT_BYTES: u64 = 4 << 20;
/// How far a signed time may lie ahead of the host's clock.
pub const CLOCK_AHEAD: Duration = Duration::from_secs(300);
/// Bytes of an artifact that `verify-bundle` keeps for signatures that are over bytes and not over their SHA-256. Larger ones are judged
/// by their digest alone.
pub const ARTIFACT_BYTES: u64 = 256 << 20;

/// Bytes of `HOST/REPOSITORY` in a reference: the length that the distribution spec asks clients to expect.
pub const REFERENCE_NAME_BYTES: usize = 255;

/// Bytes of a tag, from the distribution spec's grammar.
pub const TAG_BYTES: usize = 128;

// ---- kit

/// References that may follow one another, from a kit to its model's kit and so on: as many as kit follows.
pub const REFERENCES_IN_A_ROW: usize = 10;
/// Kits that one kit may refer to in all, directly or not. More than ten only come about where datasets are kits; each is asked for before the
/// mount shows, within [`BEFORE_MOUNT_S`].
pub const REFERENCED_KITS: usize = 100;
/// Datasets of a mount that live elsewhere, each of which is warned of: as many as there may be layers.
pub const REMOTE_DATASETS: usize = LAYERS;
/// Bytes of all manifests and configs of a mount: twice what one kit at its limits has. They stay in memory as long as it does.
pub const REFERRING_DOCUMENT_BYTES: u64 = 16 << 20;

// ---- referrers

/// Referrers of a manifest that are looked at. A kit that is signed at each step of its way has a dozen.
pub const REFERRERS: usize = 1_000;
/// Candidates that are fetched for one decision, each of which is judged for every authority.
pub const CANDIDATES: usize = 256;
/// Bytes of all manifests, bundles and layers that are fetched for one decision.
pub const EVIDENCE_BYTES: u64 = 64 << 20;
/// Seconds that the search for a decision may take, apart from [`BEFORE_MOUNT_S`].
pub const EVIDENCE_S: u64 = 60;
/// Things that are asked for at once: their round trips are what a decision takes.
pub const EVIDENCE_REQUESTS: usize = 8;
/// Fetches of a candidate that may end in a mismatch: the first, and one more.
pub const EVIDENCE_ATTEMPTS: usize = 2;
/// Pages of a list of referrers: as many as there may be referrers, since a page has one at least.
pub const REFERRER_PAGES: usize = REFERRERS;
/// Bytes of all pages of a list of referrers: 16 KiB for each that may be.
pub const REFERRER_LIST_BYTES: u64 = 16 << 20;
/// Bytes of all manifests of a layout that are read to learn what they refer to. Kit's storage has a few kilobytes for each kit.
pub const LAYOUT_REFERRER_BYTES: u64 = 64 << 20;
/// Entries of a layout that may be unreadable before the rest is left alone: in a compressed archive each can cost a pass over it.
pub const LAYOUT_UNREADABLE: usize = 16;
/// Hexadecimal digits of a digest that a tag for what is attached to it has: where the distribution spec cuts, so that a tag has room for it.
pub const TAG_DIGEST_HEX: usize = 64;

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
/// Connections that fetch one blob where one alone is waited for. Near a registry four saturate what hashing can take; 20 ms away six took 2.8 s for what
/// four took 3.5 s for. Eight took 2.2 s, but sixteen layers may be fetched at once.
pub const CONNECTIONS: usize = 6;
/// Connections that may be asked to fetch one blob (`--connections`): what one host should take of a registry. What they bring out of order has one budget,
/// [`REORDER_BYTES`], however many they are.
pub const CONNECTIONS_MAX: u16 = 16;
/// How much of its time a blob's first range has to be waited for, in percent, before there are further connections.
pub const STARVED_PERCENT: u32 = 50;
/// Bytes that came out of order and wait for their turn, in the whole process. Four layers at once, two of them in zstd with windows as kit's packer makes
/// them, leave a worker below 150 MiB with it, and more made nothing faster.
pub const REORDER_BYTES: u64 = 24 << 20;
/// Bytes that a connection hands over at once. A thread is woken each time, for which a machine with two cores can spare 2,000 times in 2 GiB, not 20,000.
pub const BATCH_BYTES: usize = 1 << 20;
/// Pieces that are handed over at once: a server may send them a byte each, and every one costs 32 bytes.
pub const BATCH_PIECES: usize = 1024;
/// Milliseconds after which less is handed over too: what came slowly must not look as if it stood still.
pub const BATCH_MS: u64 = 50;
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
/// Headers of a layout that is an archive, extended ones included. It has a few members for each kit; even the largest manifest lists
/// 4,096 layers. What is kept of each is some 200 bytes.
pub const ARCHIVE_HEADERS: u32 = 65_536;
/// Bytes of all extended headers of an archive, which have to be read to know what they override: a kilobyte for each header.
pub const ARCHIVE_EXTENSION_BYTES: u64 = 64 << 20;
/// Bytes of a compressed archive that are inflated at once: they become a thousand times as many at most, which wait in memory.
pub const ARCHIVE_INPUT_BYTES: usize = 8 << 10;
/// Bytes up to which a member of a compressed archive is kept when the archive is read first: manifests and configs, which would
/// otherwise cost another pass each.
pub const ARCHIVE_KEPT_MEMBER_BYTES: u64 = 256 << 10;
/// Bytes of all members that are kept.
pub const ARCHIVE_KEPT_BYTES: u64 = 4 << 20;
/// Places in a compressed archive up to which it is inflated, ready to go on from there: as many as layers are fetched at once by a command.
/// Each has a window of 32 KiB and what the last input became.
pub const ARCHIVE_UNPACKERS: usize = 4;
/// Times that a file of kit's storage is read which is no JSON: kit writes it in place, so that half of it may be there for a moment.
pub const KIT_STORAGE_READS: u32 = 3;
/// How long kit is given to finish such a file.
pub const KIT_STORAGE_PAUSE: Duration = Duration::from_millis(100);
/// Manifests that an OCI index may lead to, those of an index in it included. Each has to be looked at to know which are kits.
pub const INDEX_MANIFESTS: usize = 64;
/// Bytes of all manifests that an OCI index leads to. Honest ones have a few kilobytes each.
pub const INDEX_DOCUMENTS_BYTES: u64 = 16 << 20;
/// Names, platforms and annotations of a kit in an index that an error shows.
pub const INDEX_FACTS_SHOWN: usize = 6;

// ---- store

/// Bytes from which a file of a layer gets a file of its own in the cache, which the kernel then reads without us. Smaller ones stay in `pack`: one
/// request reads them whole, and a dataset of a million of them costs one inode. Only what writes a layer asks this; where a file is stands in its index.
pub const DATA_FILE_BYTES: u64 = 1 << 20;
/// Bytes of one piece of a blob on its way through the store: hashed and split as one. Small enough to overlap hashing and writing.
pub const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a layer's file that are written at once, at multiples of it. By it the kernel chooses the size of the folios that take them. Large ones come
/// from memory that was free as a whole, which a virtual machine may have given back to its host: then each page of it costs a fault there, and a
/// cold fetch took 3.1 s instead of 2.0 with 1 MiB. Files that were written by 64 KiB to 4 MiB are read equally fast.
pub const WRITE_BYTES: usize = 256 << 10;
/// Pieces that wait to be hashed. With [`PIECE_BYTES`] it bounds what hashing may lag behind writing to 2 MiB. Twice as many made nothing faster.
pub const HASH_QUEUE_PIECES: usize = 2;
/// Bytes by which the space for a file of a compressed layer is reserved ahead of its content. Its final size stands in a header that nobody
/// has verified, so it is not reserved as a whole.
pub const RESERVE_STEP_BYTES: u64 = 64 << 20;
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
/// Seconds that whoever makes room is waited for. He unlinks while others wait, because there is no room before that: a file of 100 GB takes seconds.
pub const EVICT_SECONDS: u64 = 60;
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
/// Bytes of all documents that are kept: of some 10,000 kits, or of a few whose attestations have megabytes. See `store/stale.rs` for what goes.
pub const DOCUMENTS_BYTES: u64 = 512 << 20;
/// Documents that are kept, records of them included: looking at them takes tenths of a second.
pub const DOCUMENTS: usize = 50_000;
/// Candidates that are kept for a manifest: as many as one decision fetches. What once met an authority is the last to go.
pub const KEPT_CANDIDATES: usize = CANDIDATES;
/// Bytes of the record of what is attached to a manifest: at most [`KEPT_CANDIDATES`] entries of half a kilobyte, repository included.
pub const ATTACHED_RECORD_BYTES: u64 = 256 << 10;
/// Fetches of a layer in one call of [`crate::store::Store::ensure`] that may end in a mismatch: the first, and one more from scratch. One that went on
/// from bytes on disk does not count.
pub const MISMATCHES: u32 = 2;
/// Rounds of looking, re-verifying and fetching in one call of [`crate::store::Store::ensure`]. Two are enough unless somebody keeps touching the files.
pub const ENSURE_ROUNDS: u32 = 5;

/// Hundredths of the filesystem that a cache may fill where nobody says anything. A full disk harms more than the cache.
pub const CACHE_DEFAULT_PERCENT: u8 = 90;
/// Characters of a wrong `--cache-size` that its error shows.
pub const CACHE_SIZE_SHOWN: usize = 40;
/// How long what a cache holds is taken for what it held: a scraper asks every few seconds, and a cache can have a hundred thousand files.
pub const USAGE_AGE: Duration = Duration::from_secs(10);
/// Seconds after its last use in which a layer is not evicted, unless the disk is short of room: a reader that opens file after file would fetch it anew each
/// time.
pub const USE_GRACE_SECONDS: u64 = 10;
/// How often room is made for a layer that proves larger than was thought, as compressed ones do: 64 MiB at first, and
/// each time twice as much.
pub const ROOM_ATTEMPTS: u32 = 8;

/// Seconds that a layer waits for others to be let go when the disk is short of room: a worker holds a layer for [`HANDLE_GRACE`] after its last file was
/// closed, and its supervisor up to [`HOUSE_INTERVAL`] longer; a busy host may be late with either.
pub const ROOM_WAIT_SECONDS: u64 = 15;

// ---- cli

/// Layers that a command fetches at once: each has several connections already, and more of them only share the same line.
pub const PULLS_MAX: usize = 4;

// ---- detach

/// How long `fusermount3` may take. It asks nobody but the kernel.
pub const FUSERMOUNT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of what `fusermount3` complains that are read; it says one line.
pub const FUSERMOUNT_MESSAGE_BYTES: u64 = 4096;

// ---- run

/// Bytes of a document in the run directory. The longest lists the layers, which a manifest at its own limit has by the ten thousand.
pub const RUN_DOCUMENT_BYTES: u64 = 32 << 20;
/// How old a folder is that was never finished, or never wholly removed; both take milliseconds.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(60);

// ---- umount

/// Bytes of a request to a supervisor, and of its answer: a sentence.
pub const CONTROL_LINE_BYTES: u64 = 4096;
/// How long one side gives the other to say a line that it has at hand.
pub const CONTROL_LINE_LIMIT: Duration = Duration::from_secs(1);
/// Times that a request is made which the supervisor hangs up on unheard, because its line did not come in [`CONTROL_LINE_LIMIT`].
pub const UNHEARD_REQUESTS_MAX: u32 = 3;
/// How long a supervisor that is stopped may owe an answer; one that is not has [`UMOUNT_PATIENCE`]. A worker may have to be started first, to let waiting readers go.
pub const UMOUNT_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a mount that was taken down may stand in the kernel's table.
pub const UMOUNT_GONE_LIMIT: Duration = Duration::from_secs(2);
/// How long `umount` waits for the supervisor to end after its mount is gone; a copy of the mount elsewhere keeps it alive.
pub const SUPERVISOR_END_LIMIT: Duration = Duration::from_secs(1);

// ---- holders

/// How long the processes that hold a mount are looked for; the caller waits to read their names.
pub const HOLDERS_LIMIT: Duration = Duration::from_millis(700);
/// How many of them are listed: more than anybody reads.
pub const HOLDERS_MAX: usize = 20;
/// Attempts to make a directory for an ingest, or a file that is renamed later, before somebody else takes it for one that was left behind.
pub const WORK_DIRECTORY_ATTEMPTS: u32 = 8;
/// Seconds for which a manifest or config that nothing names stays: what names it may be about to be written.
pub const UNNAMED_DOCUMENT_SECONDS: u64 = 3_600;
/// Descriptors of documents that wait for somebody to ask for their sync. More than one kit has; the kernel writes the others back soon enough.
pub const UNSYNCED_DOCUMENTS: usize = 64;

// ---- preflight

/// How long a mount of kitfs at the wanted place may take to tell whether it lives; a dead one says so at once.
pub const DEAD_MOUNT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of `/etc/fuse.conf` that are read; it has a few lines.
pub const FUSE_CONF_BYTES: u64 = 64 << 10;

// ---- doctor

/// Bytes of a small file of the host's that are read: settings and configurations have a few lines.
pub const HOST_FILE_BYTES: u64 = 64 << 10;
/// Bytes below which a cache is called short of room: a model of the smaller sort.
pub const ROOM_WANTED_BYTES: u64 = 1 << 30;
/// Descriptors below which a limit of them is called low: a layer in use has four at the supervisor and four at its worker, and kits have hundreds of layers.
pub const DESCRIPTORS_WANTED: u64 = 4096;
/// How far a clock may be from a registry's: what tokens and certificates forgive.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// No clock that is right shows an earlier time: kitfs was written after it (2026-01-01).
pub const NOT_BEFORE: Timestamp = Timestamp::constant(1_767_225_600, 0);

// ---- log

/// Bytes of a log before it turns over; two of them can exist. It lies in `/run`, which is memory.
pub const LOG_BYTES: u64 = 10 << 20;

/// Bytes of an entry in the journal: less than what a datagram takes by default (208 KiB), and more than any line has.
pub const JOURNAL_ENTRY_BYTES: usize = 128 << 10;

/// How long lines are counted that say the same.
pub const LOG_WINDOW: Duration = Duration::from_secs(60);
/// Lines that say the same in that time: enough to see that it goes on.
pub const LOG_SAME_MAX: u64 = 10;
/// Lines that come from the same place in the code in that time, whatever they say: more layers than a kit fetches in a minute, fewer than reads.
pub const LOG_SIMILAR_MAX: u64 = 600;
/// Different lines that are counted at once; each takes some 100 bytes.
pub const LOG_KNOWN_MAX: usize = 256;

// ---- metrics

/// Bytes of a request for metrics; a scraper sends some 300.
pub const METRICS_REQUEST_BYTES: usize = 8 << 10;
/// Headers of such a request.
pub const METRICS_HEADERS: usize = 64;
/// How long a request may take to come, and how long nobody may take what is answered: on the same host it is milliseconds, and a scraper waits 10 s.
pub const METRICS_TIME: Duration = Duration::from_secs(2);
/// How long a connection may say nothing while others wait: on the same host a request is there at once, and from afar within a few of these.
pub const METRICS_PATIENCE: Duration = Duration::from_millis(50);
/// Requests that are answered at once; the others wait for each before them, [`METRICS_PATIENCE`] if it says nothing and [`METRICS_TIME`] at most.
pub const METRICS_THREADS: usize = 2;
/// Requests that wait to be answered.
pub const METRICS_BACKLOG: i32 = 16;
/// How long it is waited after a request that could not be taken.
pub const METRICS_PAUSE: Duration = Duration::from_millis(100);

// ---- daemon

/// Bytes of a line that a supervisor says before it serves: its texts at their limit, with every character escaped.
pub const READY_MESSAGE_BYTES: usize = 64 << 10;
/// Characters of an error or a hint in such a line.
pub const READY_TEXT_CHARS: usize = 4000;
/// How long a supervisor may say nothing: longer than the transport takes to give up a source that has stopped to send (75 s).
pub const READY_SILENCE: Duration = Duration::from_secs(120);
/// How often progress is told, at most.
pub const READY_PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes in the ready pipe from which on no progress is told: half of what fits, so that there is room for how it ends.
pub const READY_PIPE_BYTES: u64 = 32 << 10;
/// How long a supervisor that does not serve yet may take to end; it detaches within 5 s.
pub const STOP_LIMIT: Duration = Duration::from_secs(6);
/// How much longer systemd is asked to wait each time that bytes came: as long as they may stay away.
pub const SYSTEMD_EXTENSION: Duration = Duration::from_secs(120);
/// Bytes at the end of a log in which its last line is looked for.
pub const LOG_TAIL_BYTES: u64 = 2048;

// ---- policy

/// Bytes of a file with policies. Kubernetes stores nothing larger than 1.5 MB.
pub const POLICY_BYTES: u64 = 1 << 20;
/// Policies in one file.
pub const POLICY_DOCUMENTS: usize = 256;
/// Values in one file, aliases counted as what they stand for: a policy has tens.
pub const POLICY_NODES: usize = 50_000;
/// How deep lists and mappings stand in each other; the deepest field of a policy is at 8.
pub const POLICY_DEPTH: usize = 24;
/// Files in a folder of policies.
pub const POLICY_FILES: usize = 1024;
/// How long it may take to fetch a trusted root by TUF: about six small files.
pub const TUF_TIME: Duration = Duration::from_secs(120);
/// Bytes of the root of a TUF repository. That of the public good instance has 6 KiB.
pub const TUF_ROOT_BYTES: u64 = 512 << 10;
/// Trusted roots in a folder of the host's: one for each instance of Sigstore that it trusts.
pub const TRUSTED_ROOT_FILES: usize = 64;
/// Bytes of a glob: no name is as long.
pub const POLICY_GLOB_BYTES: usize = 1024;
/// Bytes of a regular expression when it is compiled.
pub const POLICY_EXPRESSION_BYTES: usize = 1 << 20;
/// How deep groups of a regular expression stand in each other.
pub const POLICY_EXPRESSION_DEPTH: u32 = 64;
/// Symbolic links on the way to a file of the host's: where Linux stops, too.
pub const HOST_SYMLINKS: usize = 40;
/// How long a rule may take. Rules over hundreds of findings take a few milliseconds.
pub const REGO_TIME: Duration = Duration::from_millis(200);
/// How long a rule may take beyond that until it notices, before it is left behind.
pub const REGO_GRACE: Duration = Duration::from_millis(100);
/// Steps of a rule between two looks at the clock.
pub const REGO_CHECK_STEPS: u32 = 64;
/// Bytes by which a rule may make the process grow: a bundle of 16 MiB takes a fraction of it as values.
pub const REGO_MEMORY_BYTES: u64 = 512 << 20;
/// How often the memory of a rule is looked at: what is allocated meanwhile fits beside the limit.
pub const REGO_WATCH_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of a rule's stack, which is used only as far as a rule needs it.
pub const REGO_STACK_BYTES: usize = 16 << 20;
/// Messages of a rule that are told: more than anybody reads.
pub const REGO_MESSAGES: usize = 20;

// ---- records

/// Bytes of a line of the audit file, its end included. A line has a few kilobytes; what reads such files takes 64 KiB at once.
pub const AUDIT_LINE_BYTES: usize = 64 << 10;
/// How much of each text and of each list a line of the audit file has, as bytes in JSON and as items: the first that fits into
/// [`AUDIT_LINE_BYTES`]. Even the first is a limit, since texts come from outside; the last always fits.
pub const AUDIT_ROOM: [(usize, usize); 3] = [(8 << 10, 256), (1 << 10, 64), (160, 8)];
/// Bytes of an attribute of a mount's root. The kernel takes 64 KiB; whoever reads one seldom has room for more than a page.
pub const ATTRIBUTE_BYTES: usize = 4096;
