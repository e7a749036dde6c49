//! The allocator's memory, which a worker has for months: what fetches needed goes back to the system. Knows nothing of who allocates.
//!
//! glibc gives each thread an arena of its own, up to eight a core, and `malloc_trim` leaves the end of each but the first as it is. An arena that a fetch
//! had used kept 7 MiB so, and in time each of them sees a fetch. With one arena all of it goes back. Readers do not wait for its lock: 64 of them make the
//! worker call futex 0.02 times a read, as before.

/// Has all threads allocate from one arena. For the beginning of a process, before there are threads.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, and nobody else runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what nobody holds: the allocator would keep it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
