//! "Sector Bitmap": a bit for each sector of a block, most significant bit
//! first, kept in memory a sector (4096 bits) at a time.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::device::SECTOR_SIZE;
use crate::storage::Storage;

/// Bits in a sector of a bitmap: 2 MiB of data.
pub(super) const BITS: u64 = SECTOR_SIZE * 8;

/// Unchanged bitmap sectors kept in memory: enough for 128 MiB of data.
pub(super) const CLEAN_SECTORS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// One sector of a bitmap.
pub(super) type Bits = [u8; SECTOR_SIZE as usize];

/// The bitmap sectors of a file, by their offset in it.
pub(super) struct Bitmaps {
    clean: LruCache<u64, Box<Bits>>,
    /// Those with bits that are not in the file yet.
    changed: BTreeMap<u64, Box<Bits>>,
}

impl Bitmaps {
    pub(super) fn new() -> Self {
        Self {
            clean: LruCache::new(CLEAN_SECTORS),
            changed: BTreeMap::new(),
        }
    }

    /// The bitmap sector at `at` in the file, as it will be after a commit.
    pub(super) fn get(&mut self, storage: &dyn Storage, at: u64) -> io::Result<&Bits> {
        if let Some(changed) = self.changed.get(&at) {
            return Ok(changed);
        }
        self.clean
            .try_get_or_insert(at, || {
                let mut bits = Box::new([0; SECTOR_SIZE as usize]);
                storage.read_exact_at(&mut *bits, at)?;
                Ok(bits)
            })
            .map(|bits| &**bits)
    }

    /// Sets bits `from..to` of the bitmap sector at `at`.
    pub(super) fn set(
        &mut self,
        storage: &dyn Storage,
        at: u64,
        bits: std::ops::Range<u64>,
    ) -> io::Result<()> {
        let mut sector = *self.get(storage, at)?;
        if set_bits(&mut sector, bits) {
            self.clean.pop(&at);
            self.changed.insert(at, Box::new(sector));
        }
        Ok(())
    }

    /// How many sectors differ from the file.
    pub(super) fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// A copy of all sectors that differ from the file, in the file's order.
    pub(super) fn changed(&self) -> Vec<(u64, Box<Bits>)> {
        self.changed
            .iter()
            .map(|(at, changed)| (*at, changed.clone()))
            .collect()
    }

    /// Notes that these sectors are in the file now. Those that have changed
    /// again meanwhile stay.
    pub(super) fn published(&mut self, sectors: Vec<(u64, Box<Bits>)>) {
        for (at, written) in sectors {
            if self.changed.get(&at).is_some_and(|now| **now == *written) {
                self.changed.remove(&at);
                self.clean.put(at, written);
            }
        }
    }
}

/// The value of bit `range.start`, and the first bit in `range` that has the
/// other value, or its end.
pub(super) fn run(bits: &Bits, range: std::ops::Range<u64>) -> (bool, u64) {
    let value = bit(bits, range.start);
    let whole = if value { 0xff } else { 0x00 };
    let mut at = range.start;
    while at < range.end {
        if at.is_multiple_of(8) && bits[(at / 8) as usize] == whole {
            at += 8;
        } else if bit(bits, at) == value {
            at += 1;
        } else {
            return (value, at);
        }
    }
    (value, range.end)
}

fn bit(bits: &Bits, index: u64) -> bool {
    bits[(index / 8) as usize] & (0x80 >> (index % 8)) != 0
}

/// Sets all bits of `range` and tells whether any was clear.
fn set_bits(bits: &mut Bits, range: std::ops::Range<u64>) -> bool {
    let mut changed = false;
    for index in range {
        let byte = &mut bits[(index / 8) as usize];
        let mask = 0x80 >> (index % 8);
        changed |= *byte & mask == 0;
        *byte |= mask;
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_sector_is_the_most_significant_bit() {
        let mut bits = [0; 512];
        assert!(set_bits(&mut bits, 0..1));
        assert!(set_bits(&mut bits, 9..10));
        assert_eq!(bits[..2], [0x80, 0x40]);
        assert!(!set_bits(&mut bits, 0..1));
    }

    proptest! {
        #[test]
        fn a_run_ends_where_the_value_changes(
            sets in prop::collection::vec((0u64..4096, 1u64..600), 0..6),
            start in 0u64..4096,
        ) {
            let mut bits = [0; 512];
            for (from, len) in sets {
                set_bits(&mut bits, from..(from + len).min(BITS));
            }
            let (value, end) = run(&bits, start..BITS);
            prop_assert!(end > start);
            prop_assert!((start..end).all(|index| bit(&bits, index) == value));
            prop_assert!(end == BITS || bit(&bits, end) != value);
        }
    }
}
