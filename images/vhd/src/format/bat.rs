//! "Block Allocation Table": for each block of the disk, the sector of the
//! file at which its sector bitmap begins, the data right behind it.

use crate::device::SECTOR_SIZE;

/// Entry of a block that is not in the file.
pub const UNUSED: u32 = 0xFFFF_FFFF;

/// Bytes of an entry.
pub const ENTRY_LEN: u64 = 4;

/// Most entries that are read: a disk of 2040 GiB in blocks of 512 KiB, the
/// smallest that known tools make. It bounds the memory that an image can
/// make its reader use to 16 MiB.
pub const MAX_ENTRIES: u32 = 4_177_920;

/// Sizes that follow from "Block Size".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// "Block Size": bytes of data in a block, bitmap not counted.
    pub block_size: u64,
    /// Bytes of the sector bitmap in front of the data, padded to a sector.
    pub bitmap_len: u64,
}

impl BlockShape {
    /// The shape of blocks with `block_size` bytes of data.
    #[must_use]
    pub fn new(block_size: u32) -> Self {
        let block_size = u64::from(block_size);
        let bitmap_len = (block_size / SECTOR_SIZE)
            .div_ceil(8)
            .next_multiple_of(SECTOR_SIZE);
        Self {
            block_size,
            bitmap_len,
        }
    }

    /// Bytes that a block takes in the file.
    #[must_use]
    pub fn stored_len(self) -> u64 {
        self.bitmap_len + self.block_size
    }
}

/// Bytes that a table of `entries` takes in the file, padded to a sector.
#[must_use]
pub fn table_len(entries: u32) -> u64 {
    (u64::from(entries) * ENTRY_LEN).next_multiple_of(SECTOR_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_has_a_bit_for_each_sector_and_whole_sectors() {
        assert_eq!(BlockShape::new(2 << 20).bitmap_len, 512);
        assert_eq!(BlockShape::new(4 << 20).bitmap_len, 1024);
        assert_eq!(BlockShape::new(512).bitmap_len, 512);
    }

    #[test]
    fn a_table_takes_whole_sectors() {
        assert_eq!(table_len(1), 512);
        assert_eq!(table_len(128), 512);
        assert_eq!(table_len(129), 1024);
    }
}
