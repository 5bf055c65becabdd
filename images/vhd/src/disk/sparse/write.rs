//! Writing, growing, zeroing and discarding.

use super::bitmap::BITS;
use super::layout;
use super::{Piece, Sparse, State};
use crate::device::{ExtentKind, SECTOR_SIZE};
use crate::error::{Error, Result};
use crate::format::bat;
use crate::format::footer::FOOTER_LEN;

impl Sparse {
    pub(in crate::disk) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_poison()?;
        let mut left = buf;
        for piece in self.pieces(offset, left.len() as u64) {
            let (part, rest) = left.split_at(piece.len as usize);
            self.store(piece, |at| self.storage.write_all_at(part, at))?;
            left = rest;
        }
        Ok(())
    }

    /// Puts new contents into the file by `put`, which gets their offset
    /// there, and says afterwards that they are there.
    fn store(&self, piece: Piece, put: impl FnOnce(u64) -> std::io::Result<()>) -> Result<()> {
        let (at, known) = {
            let mut state = self.lock();
            let block_at = match state.block_at(piece.block) {
                Some(block_at) => block_at,
                None => self.grow(&mut state, piece.block)?,
            };
            let run = self.run(&mut state, piece)?;
            let known = run.stored_at.is_some() && run.len == piece.len;
            (block_at + self.shape.bitmap_len + piece.within, known)
        };
        put(at).map_err(self.io("write a block"))?;
        if !known {
            self.mark(&mut self.lock(), piece)?;
        }
        self.commit_if_much()
    }

    /// Sets the bits of a piece of a block that is in the file.
    fn mark(&self, state: &mut State, piece: Piece) -> Result<()> {
        let Some(block_at) = state.block_at(piece.block) else {
            return Ok(());
        };
        let sectors = piece.sectors();
        let mut sector = sectors.start;
        while sector < sectors.end {
            let first = sector - sector % BITS;
            let until = sectors.end.min(first + BITS);
            state
                .bitmaps
                .set(
                    &*self.storage,
                    block_at + first / 8,
                    sector - first..until - first,
                )
                .map_err(self.io("read a sector bitmap"))?;
            sector = until;
        }
        Ok(())
    }

    /// Adds a block at the end of the file and returns where it begins.
    fn grow(&self, state: &mut State, block: u32) -> Result<u64> {
        let block_at = layout::next_block(state.end, self.shape);
        let entry = u32::try_from(block_at / SECTOR_SIZE).unwrap_or(bat::UNUSED);
        if entry == bat::UNUSED {
            return Err(Error::FileFull {
                path: self.path.clone(),
            });
        }
        let new_end = block_at + self.shape.stored_len();
        if new_end + FOOTER_LEN as u64 > self.quota {
            return Err(Error::Quota {
                path: self.path.clone(),
                quota: self.quota,
            });
        }
        if let Err(source) = self.extend(state.end, block_at, new_end) {
            self.retract(state.end);
            return Err(Error::io(&self.path, "add a block", source));
        }
        state.end = new_end;
        state.bat[block as usize] = entry;
        state.unpublished.insert(block);
        Ok(block_at)
    }

    /// Moves the footer from `end` to `new_end` and writes the bitmap of the
    /// new block at `block_at`, zeroes in front of it.
    ///
    /// Length before contents, so that the end of the file is never something
    /// that a guest wrote; new footer before the old one is overwritten.
    fn extend(&self, end: u64, block_at: u64, new_end: u64) -> std::io::Result<()> {
        self.storage.set_len(new_end + FOOTER_LEN as u64)?;
        self.storage.write_all_at(&self.footer, new_end)?;
        let mut lead = vec![0; (block_at - end + self.shape.bitmap_len) as usize];
        if self.parent.is_none() {
            lead[(block_at - end) as usize..].fill(0xff);
        }
        self.storage.write_all_at(&lead, end)
    }

    /// Takes back a failed extension as well as possible. Should this fail
    /// too, the copy of the footer is still there.
    fn retract(&self, end: u64) {
        let _ = self
            .storage
            .set_len(end + FOOTER_LEN as u64)
            .and_then(|()| self.storage.write_all_at(&self.footer, end));
    }

    /// Discarding makes holes of what is in this file. What is not is the
    /// parent's, or zeroes already, and stays.
    pub(in crate::disk) fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_poison()?;
        self.for_each_run(offset, len, |piece, stored_at| match stored_at {
            Some(at) => self.zero_stored(at, piece.len),
            None => Ok(()),
        })
    }

    pub(in crate::disk) fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_poison()?;
        self.for_each_run(offset, len, |piece, stored_at| match stored_at {
            Some(at) => self.zero_stored(at, piece.len),
            None => self.zero_parent(piece),
        })
    }

    fn zero_stored(&self, at: u64, len: u64) -> Result<()> {
        self.storage
            .zero_range(at, len)
            .map_err(self.io("make a hole"))
    }

    /// Covers what of the parent is not zeroes with zeroes in this file.
    fn zero_parent(&self, piece: Piece) -> Result<()> {
        let mut piece = piece;
        while piece.len > 0 {
            let extent = self.parent_extent(piece.offset, piece.len)?;
            if extent.kind != ExtentKind::Zero {
                self.store(piece.head(extent.len), |at| {
                    self.storage.zero_range(at, extent.len)
                })?;
            }
            piece = piece.tail(extent.len);
        }
        Ok(())
    }

    /// Calls `act` for each run of the range with its offset in the file.
    fn for_each_run(
        &self,
        offset: u64,
        len: u64,
        mut act: impl FnMut(Piece, Option<u64>) -> Result<()>,
    ) -> Result<()> {
        for mut piece in self.pieces(offset, len) {
            while piece.len > 0 {
                let run = self.run(&mut self.lock(), piece)?;
                act(piece.head(run.len), run.stored_at)?;
                piece = piece.tail(run.len);
            }
        }
        Ok(())
    }
}
