//! What a processor needs in memory to start in 64-bit mode: segments, and page
//! tables that map the first 4 GiB to themselves.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{GDT, PAGE_TABLES};

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;
const GIGABYTES: u64 = 4;

/// The descriptors: null, null, 64-bit code (selector 0x10), data (0x18), as
/// the boot protocol's `__BOOT_CS` and `__BOOT_DS`.
pub const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes both.
///
/// # Errors
///
/// When the guest has less memory than that.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    write_words(memory, GDT, SEGMENTS)?;
    let directories_at = PAGE_TABLES + 0x2000;
    write_words(
        memory,
        PAGE_TABLES,
        [(PAGE_TABLES + 0x1000) | PRESENT_WRITABLE],
    )?;
    let directories = (0..GIGABYTES).map(|g| (directories_at + g * 0x1000) | PRESENT_WRITABLE);
    write_words(memory, PAGE_TABLES + 0x1000, directories)?;
    let pages = (0..GIGABYTES * 512).map(|page| (page << 21) | PRESENT_WRITABLE | LARGE_PAGE);
    write_words(memory, directories_at, pages)
}

fn write_words(
    memory: &GuestMemoryMmap,
    at: u64,
    words: impl IntoIterator<Item = u64>,
) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(at))
}
