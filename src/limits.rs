//! Every limit has its name, unit and reason here, and is enforced in one place.

use std::time::Duration;

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

/// Entries of a layer, folders that only follow from names included. A node id has 24 bits for them (16.7 million); ImageNet has 1.4 million.
pub const LAYER_ENTRIES: u32 = 10_000_000;

// ---- inflate

/// How many times larger than its blob a layer may become. Deflate itself ends at 1,032; sparse tables and JSON reach 100 to 300. What bounds the
/// disk is the quota of the cache; this stops what is nothing but a bomb.
pub const EXPANSION_RATIO: u64 = 500;
/// Bytes that a layer may have uncompressed, however small its blob is: zero-filled weights, which tests like to use, shrink a thousandfold.
pub const EXPANSION_FLOOR_BYTES: u64 = 256 << 20;

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
/// First wait after a failure of the content or the source; it doubles with each further one.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(30);
/// Longest wait after a failure.
pub const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Longest wait after a full disk and the like, which can be over at any moment.
pub const BACKOFF_DISK_MAX: Duration = Duration::from_secs(5);
/// A tar layer up to this size in bytes is fetched in the background by `--prefetch small`.
pub const PREFETCH_LAYER_BYTES: u64 = 16 << 20;
/// What `--prefetch small` fetches in all, in bytes.
pub const PREFETCH_TOTAL_BYTES: u64 = 256 << 20;

// ---- fs

/// How long a layer stays open after its last file was closed; a reader that opens file after file does not open the layer each time.
pub const HANDLE_GRACE: Duration = Duration::from_secs(10);

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

/// Bytes of a message between supervisor and worker; the longest is a tenth of it.
pub const CONTROL_MESSAGE_BYTES: usize = 1024;

// ---- plan

/// Bytes of a mount's plan: manifest and config at their limits, as base64, and room for the rest.
pub const PLAN_BYTES: u64 = 16 << 20;

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
/// How long a supervisor may take to take its mount down or to find it busy: a worker may have to be started first, to let waiting readers go.
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

// ---- preflight

/// How long a mount of kitfs at the wanted place may take to tell whether it lives; a dead one says so at once.
pub const DEAD_MOUNT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of `/etc/fuse.conf` that are read; it has a few lines.
pub const FUSE_CONF_BYTES: u64 = 64 << 10;

// ---- log

/// Bytes of a log before it turns over; two of them can exist. It lies in `/run`, which is memory.
pub const LOG_BYTES: u64 = 10 << 20;

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
