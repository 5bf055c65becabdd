//! Random bytes from the host, for the kernel's generator: credited, for they come
//! from the host's own, and put to use at once. Guests that were made from one
//! template have the generator's state in common until then, and a kernel that has
//! seeded it once does so again only after a second and more (random(4)).

use std::io;

use linux_crng_ioctl::ioctl::{add_randomness_to_kernel, force_kernel_crng_reseed};

/// Mixes in `bytes` and seeds the generator anew from them.
pub fn mix_in(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Err(io::Error::other("the goal has no random bytes"));
    }
    let bits = u32::try_from(bytes.len().saturating_mul(8)).unwrap_or(u32::MAX);
    add_randomness_to_kernel(bytes, bits)
        .and_then(|()| force_kernel_crng_reseed())
        .map_err(io::Error::other)
}
