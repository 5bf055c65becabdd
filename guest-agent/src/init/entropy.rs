//! Random bytes from the host, for the kernel's pool. They are mixed in, not
//! credited: the kernel's own sources make it ready, the host's bytes make
//! guests differ that were started from one template.

use std::{fs::OpenOptions, io, io::Write as _};

/// Mixes in `bytes`.
pub fn mix_in(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .open("/dev/urandom")?
        .write_all(bytes)
}
