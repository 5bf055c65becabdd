//! Gives the host back what only the start needed: code and constants that were used to read
//! the configuration, build the machine and jail the process, some 0.4 MiB. What is needed
//! again comes back from the program's file by itself.

/// Assumed to be no smaller than what the linker aligns code to.
const PAGE: usize = 4096;

// Where the program begins and where its code ends, for the linker says so (ld(1), "Symbols";
// end(3)).
unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// Lets go of it. A host that refuses has that much less memory, and nothing else is lost.
pub fn trim() {
    let start = &raw const __executable_start;
    let end = (&raw const etext).addr() & !(PAGE - 1);
    let length = end.saturating_sub(start.addr());
    if start.addr().is_multiple_of(PAGE) {
        // SAFETY: from the first page to the last whole one before the end of the code there
        // are headers, constants and code, mapped from the program's file and never written:
        // a page that is used again is read from there, as it was.
        unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
    }
}
