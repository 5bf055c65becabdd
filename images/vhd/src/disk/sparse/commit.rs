//! Flushing: making data durable, then what refers to it. The argument is in
//! the [module above](super).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Sparse;
use super::bitmap::Bits;
use crate::error::Result;
use crate::format::bat;

/// Changed bitmap sectors and new blocks that may wait in memory for a flush;
/// with more of them a write commits on its own.
pub(super) const MAX_PENDING: usize = 256;

/// What a commit publishes: the state at its beginning.
struct Snapshot {
    /// New blocks, ascending, with their entries.
    blocks: Vec<(u32, u32)>,
    bitmaps: Vec<(u64, Box<Bits>)>,
}

impl Sparse {
    pub(in crate::disk) fn flush(&self) -> Result<()> {
        let _alone = self
            .committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let snapshot = self.snapshot();
        if snapshot.blocks.is_empty() && snapshot.bitmaps.is_empty() {
            return self.sync();
        }
        self.sync()?;
        self.write_bitmaps(&snapshot)?;
        self.write_entries(&snapshot)?;
        self.sync()?;
        let mut state = self.lock();
        for (block, _) in &snapshot.blocks {
            state.unpublished.remove(block);
        }
        state.bitmaps.published(snapshot.bitmaps);
        Ok(())
    }

    /// Flushes when much is waiting, so that memory stays bounded.
    pub(super) fn commit_if_much(&self) -> Result<()> {
        if self.waiting() < MAX_PENDING {
            Ok(())
        } else {
            self.flush()
        }
    }

    /// How many changes of structures wait for a flush.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.unpublished.len().max(state.bitmaps.changed_len())
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let entry = |block: &u32| (*block, state.bat[*block as usize]);
        Snapshot {
            blocks: state.unpublished.iter().map(entry).collect(),
            bitmaps: state.bitmaps.changed(),
        }
    }

    fn write_bitmaps(&self, snapshot: &Snapshot) -> Result<()> {
        for (at, bits) in &snapshot.bitmaps {
            self.storage
                .write_all_at(&**bits, *at)
                .map_err(self.io("write a sector bitmap"))?;
        }
        Ok(())
    }

    /// Writes the entries of new blocks, neighbours together.
    fn write_entries(&self, snapshot: &Snapshot) -> Result<()> {
        for run in snapshot.blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let bytes: Vec<u8> = run
                .iter()
                .flat_map(|(_, entry)| entry.to_be_bytes())
                .collect();
            let at = self.header.table_offset + u64::from(run[0].0) * bat::ENTRY_LEN;
            self.storage
                .write_all_at(&bytes, at)
                .map_err(self.io("write the block allocation table"))?;
        }
        Ok(())
    }

    /// `fdatasync`. After a failure the kernel has forgotten what it could not
    /// write, and a second attempt would succeed without having written it.
    fn sync(&self) -> Result<()> {
        self.storage.sync_data().map_err(|source| {
            self.poisoned.store(true, Ordering::Release);
            self.io("flush")(source)
        })
    }
}
