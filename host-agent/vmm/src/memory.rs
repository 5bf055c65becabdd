//! The guest's memory: where it lies, and the memfd behind it.
//!
//! ```text
//!  0 ........ low RAM ........ 3 GiB .. gap: devices, IOAPIC, APIC .. 4 GiB .. high RAM ..
//! ```
//!
//! The memory is one memfd, mapped shared, so that it can be handed to another
//! process or kept as a file. Nothing of it is touched here: a guest costs the
//! host the pages it uses.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// The guest's memory, shared between vCPUs, devices and their threads.
pub type GuestMemory = Arc<GuestMemoryMmap>;

/// Where low RAM ends at the latest and the gap for devices begins.
pub const GAP_START: u64 = 3 << 30;
/// Where the gap ends and RAM goes on.
pub const GAP_END: u64 = 4 << 30;

/// Why there is no memory for the guest.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host gave no memfd of this size.
    #[error("the host has no memory file of {mib} MiB for the guest")]
    Memfd {
        /// The size asked for.
        mib: u64,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The memfd could not be mapped.
    #[error("cannot map the guest's {mib} MiB of memory")]
    Map {
        /// The size asked for.
        mib: u64,
        /// Why not.
        #[source]
        source: FromRangesError,
    },
}

/// The runs of RAM for `size` bytes of memory: start and length, in order.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    match size.checked_sub(GAP_START) {
        None | Some(0) => vec![(0, size)],
        Some(high) => vec![(0, GAP_START), (GAP_END, high)],
    }
}

/// Makes memory of `mib` MiB, all zero.
///
/// # Errors
///
/// When the host has no room, in address space or under its limits.
pub fn create(mib: u64) -> Result<GuestMemory, MemoryError> {
    let size = mib << 20;
    let file = memfd(size).map_err(|source| MemoryError::Memfd { mib, source })?;
    map(&Arc::new(file), mib, libc::MAP_SHARED)
}

/// Maps a file of `mib` MiB as memory, copy-on-write: the file is only read.
///
/// # Errors
///
/// When the host has no room.
pub fn map_private(file: &Arc<File>, mib: u64) -> Result<GuestMemory, MemoryError> {
    map(file, mib, libc::MAP_PRIVATE)
}

/// Maps a file of `mib` MiB as memory, shared or private.
fn map(file: &Arc<File>, mib: u64, flags: libc::c_int) -> Result<GuestMemory, MemoryError> {
    let map = |start, length: u64, in_file| {
        let region = MmapRegionBuilder::new(length as usize)
            .with_file_offset(FileOffset::from_arc(Arc::clone(file), in_file))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags | libc::MAP_NORESERVE)
            .build()
            .map_err(FromRangesError::MmapRegion)?;
        GuestRegionMmap::new(region, GuestAddress(start)).ok_or(FromRangesError::InvalidGuestRegion)
    };
    let mut in_file = 0;
    let mut regions = Vec::new();
    for (start, length) in ranges(mib << 20) {
        let region = map(start, length, in_file);
        regions.push(region.map_err(|source| MemoryError::Map { mib, source })?);
        in_file += length;
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::Map {
        mib,
        source: error.into(),
    })?;
    Ok(Arc::new(memory))
}

/// Makes all of the memory zero, as it was when it was created, and gives the
/// host its pages back. Nobody may use it meanwhile.
///
/// # Errors
///
/// When the host refuses; what is in the memory is not known then.
pub fn clear(memory: &GuestMemory) -> io::Result<()> {
    let nothing = (libc::MAP_ANONYMOUS, -1);
    memory
        .iter()
        .try_for_each(|region| match give_back(region) {
            true => Ok(()),
            false => replace(region, nothing, 0),
        })
}

/// Makes the memory what this file has, copy-on-write, as [`map_private`] does for a new one.
/// The file must be as long as the memory, and nobody may use that meanwhile.
///
/// # Errors
///
/// When the host refuses; what is in the memory is not known then.
pub fn map_again(memory: &GuestMemory, file: &File) -> io::Result<()> {
    let mut in_file = 0;
    for region in memory.iter() {
        give_back(region);
        replace(region, (0, file.as_raw_fd()), in_file)?;
        in_file += region.len();
    }
    Ok(())
}

/// Gives the pages of the memory's own file back, if that is mapped: it reads as zeroes then.
fn give_back(region: &GuestRegionMmap) -> bool {
    let shared = region.flags() & libc::MAP_SHARED != 0;
    // SAFETY: these are the addresses of the region, and whoever looks sees other bytes, as
    // with all of a guest's memory. A file that is mapped privately there is not changed.
    shared
        && unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_REMOVE) == 0 }
}

/// Maps something else, copy-on-write, in the place of a region.
fn replace(
    region: &GuestRegionMmap,
    (flags, file): (libc::c_int, RawFd),
    in_file: u64,
) -> io::Result<()> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let in_file = libc::off_t::try_from(in_file).map_err(io::Error::other)?;
    let (start, length) = (region.as_ptr().cast(), region.size());
    // SAFETY: these are the addresses of the region, which stays mapped, readable and
    // writable; whoever looks sees other bytes, as with all of a guest's memory.
    let mapped = unsafe { libc::mmap(start, length, region.prot(), flags, file, in_file) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn memfd(size: u64) -> std::io::Result<File> {
    // SAFETY: the name is a string with its NUL; the call takes nothing else.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_leaves_the_gap_for_devices_free() {
        assert_eq!(ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn memory_that_was_cleared_is_as_if_it_were_new() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"left", 0).unwrap();
        let file = Arc::new(file);
        for memory in [create(1).unwrap(), map_private(&file, 1).unwrap()] {
            memory.write_obj(7u64, GuestAddress(0x3008)).unwrap();
            clear(&memory).unwrap();
            for address in [0, 0x3008] {
                assert_eq!(memory.read_obj::<u64>(GuestAddress(address)).unwrap(), 0);
            }
            memory.write_obj(7u64, GuestAddress(0x3008)).unwrap();
        }
        let mut kept = [0; 4];
        file.read_exact_at(&mut kept, 0).unwrap();
        assert_eq!(&kept, b"left", "what it was mapped from is as it was");
    }

    #[test]
    fn memory_that_is_mapped_again_has_what_the_file_has_and_leaves_it_so() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&9u64.to_le_bytes(), 0x3008).unwrap();
        let file = Arc::new(file);
        let at = GuestAddress(0x3008);
        for memory in [create(1).unwrap(), map_private(&file, 1).unwrap()] {
            for _ in 0..2 {
                memory.write_obj(7u64, at).unwrap();
                map_again(&memory, &file).unwrap();
                assert_eq!(memory.read_obj::<u64>(at).unwrap(), 9);
            }
            memory.write_obj(7u64, at).unwrap();
            clear(&memory).unwrap();
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0);
        }
        let mut kept = [0; 8];
        file.read_exact_at(&mut kept, 0x3008).unwrap();
        assert_eq!(u64::from_le_bytes(kept), 9);
    }

    #[test]
    fn memory_beyond_the_gap_is_there_and_the_gap_is_not() {
        let memory = create(3 * 1024 + 32).unwrap();
        memory.write_obj(7u64, GuestAddress(4 * GIB + 8)).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(4 * GIB + 8)).unwrap(),
            7
        );
        assert_eq!(memory.read_obj::<u64>(GuestAddress(8)).unwrap(), 0);
        assert!(memory.read_obj::<u64>(GuestAddress(3 * GIB)).is_err());
        assert_eq!(memory.last_addr(), GuestAddress(4 * GIB + (32 << 20) - 1));
    }
}
