//! Has what the program stands on make no calls that are not on the lists.
//!
//! glibc's allocator looks into files of the host at moments of its own: how many
//! processors there are when it wants a ninth arena, and whether memory is
//! overcommitted when it first gives some of a thread's back (glibc 2.36:
//! `arena_get2` in malloc/arena.c, `check_may_shrink_heap` in malloc-sysdep.h). A
//! thread that may open nothing is killed for it, and a guest that resets its disk
//! is enough. Told before what it would look for, the allocator does not look.
//!
//! Rust's runtime takes SIGSEGV and SIGBUS, to name a stack that is too small, and makes a
//! call to pass any other on. Left to the kernel, a fault ends the process as what it is.

use std::io;

use nix::sys::signal::{SigHandler, Signal, signal};

use super::JailError;

/// More arenas than there are threads: none has to share the first one.
const ARENAS: libc::c_int = 64;
/// What a thread has freed stays its own up to this; a thread holds less, and
/// larger pieces are mappings of their own.
const TRIM_THRESHOLD: libc::c_int = 64 << 20;

/// Tells the allocator of the process, and leaves faults to the kernel.
///
/// # Errors
///
/// When one does not take it.
pub fn settle() -> Result<(), JailError> {
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: no handler is installed.
        unsafe { signal(fault, SigHandler::SigDfl) }
            .map_err(JailError::step("leave faults to the kernel"))?;
    }
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
    ] {
        // SAFETY: the process has one thread, as the jail demands; the call changes
        // a number of the allocator's.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            let refused = io::Error::other("the allocator refuses");
            return Err(JailError::step("settle the allocator")(refused));
        }
    }
    Ok(())
}
