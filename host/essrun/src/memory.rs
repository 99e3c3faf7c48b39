//! How much of what was freed the C library keeps.
//!
//! glibc gives threads arenas of their own, and each keeps what was freed in it. Frames of rows pass from thread to
//! thread, so that a backup came to hold twice the memory it used. Two arenas serve as fast (docs/BENCHMARKS.md).
//! Who sets `MALLOC_ARENA_MAX` knows better and is left alone.

/// To be called before the first thread is made.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn few_arenas() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: it takes two numbers and no pointer, and there is no other thread yet. Where it is refused, memory is as
        // it would have been.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    }
}

/// Other C libraries have no arenas.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn few_arenas() {}
