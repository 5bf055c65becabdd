//! What the process is to the one that started it.

use std::fs;
use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Has the kernel end this process with its parent, which is `parent`.
///
/// # Errors
///
/// When that one has ended already.
pub fn end_with(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // One that has ended before sends no signal. By /proc, which shows the numbers of the host:
    // in a pid namespace there is no parent.
    let status = fs::read_to_string("/proc/self/status")?;
    let present = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    match present.and_then(|number| number.trim().parse::<u32>().ok()) {
        Some(present) if present == parent => Ok(()),
        _ => Err(io::Error::other("it has ended")),
    }
}
