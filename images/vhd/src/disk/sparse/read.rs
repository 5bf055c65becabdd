//! Reading, and telling where sectors are.

use super::bitmap::{self, BITS};
use super::{Piece, Sparse, State};
use crate::device::{BlockDevice as _, Extent, ExtentKind, SECTOR_SIZE};
use crate::error::Result;
use crate::format::bat;

/// A run of sectors that are all in this file, or all not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) len: u64,
    /// Where in the file they are.
    pub(super) stored_at: Option<u64>,
}

impl Sparse {
    pub(in crate::disk) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut left = buf;
        for mut piece in self.pieces(offset, left.len() as u64) {
            while piece.len > 0 {
                let run = self.run(&mut self.lock(), piece)?;
                let (part, rest) = left.split_at_mut(run.len as usize);
                match run.stored_at {
                    Some(at) => {
                        self.storage
                            .read_exact_at(part, at)
                            .map_err(self.io("read a block"))?;
                    }
                    None => self.read_parent(part, piece.offset)?,
                }
                left = rest;
                piece = piece.tail(run.len);
            }
        }
        Ok(())
    }

    /// Reads what is not in this file: the parent's sectors as far as it goes,
    /// zeroes beyond.
    fn read_parent(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let parent = self.parent.as_deref();
        let there = parent.map_or(0, |parent| parent.size().saturating_sub(offset));
        let (from_parent, beyond) = buf.split_at_mut(there.min(buf.len() as u64) as usize);
        beyond.fill(0);
        match parent {
            Some(parent) if !from_parent.is_empty() => parent.read_at(from_parent, offset),
            _ => Ok(()),
        }
    }

    /// The longest run at the beginning of `piece`.
    pub(super) fn run(&self, state: &mut State, piece: Piece) -> Result<Run> {
        let Some(block_at) = state.block_at(piece.block) else {
            return Ok(Run {
                len: piece.len,
                stored_at: None,
            });
        };
        let wanted = piece.sectors();
        let mut sector = wanted.start;
        let mut stored = None;
        while sector < wanted.end {
            let first = sector - sector % BITS;
            let bits = state
                .bitmaps
                .get(&*self.storage, block_at + first / 8)
                .map_err(self.io("read a sector bitmap"))?;
            let until = wanted.end.min(first + BITS);
            let (value, end) = bitmap::run(bits, sector - first..until - first);
            if *stored.get_or_insert(value) != value {
                break;
            }
            sector = first + end;
            if sector < until {
                break;
            }
        }
        let data_at = block_at + self.shape.bitmap_len + piece.within;
        let stored_at = stored.unwrap_or(false).then_some(data_at);
        Ok(Run {
            len: (sector - wanted.start) * SECTOR_SIZE,
            stored_at,
        })
    }

    pub(in crate::disk) fn extent_at(&self, offset: u64) -> Result<Extent> {
        let Some(piece) = self.pieces(offset, self.size - offset).next() else {
            return Ok(Extent {
                offset,
                len: SECTOR_SIZE,
                kind: ExtentKind::Zero,
            });
        };
        let run = {
            let mut state = self.lock();
            match state.block_at(piece.block) {
                Some(_) => self.run(&mut state, piece)?,
                None => Run {
                    len: self.unused_len(&state, piece),
                    stored_at: None,
                },
            }
        };
        match run.stored_at {
            Some(at) => self.stored_extent(offset, run.len, at),
            None => self.parent_extent(offset, run.len),
        }
    }

    /// Bytes from the beginning of `piece` to the next block in the file.
    fn unused_len(&self, state: &State, piece: Piece) -> u64 {
        let blocks = state.bat.iter().skip(piece.block as usize);
        let unused = blocks.take_while(|entry| **entry == bat::UNUSED).count() as u64;
        (unused * self.shape.block_size - piece.within).min(self.size - piece.offset)
    }

    /// An extent in this file, a hole of the file being zeroes.
    fn stored_extent(&self, offset: u64, len: u64, at: u64) -> Result<Extent> {
        let (data, end) = self
            .storage
            .data_run(at)
            .map_err(self.io("look for holes"))?;
        let len = (end.max(at + 1) - at)
            .next_multiple_of(SECTOR_SIZE)
            .min(len);
        let kind = if data {
            ExtentKind::Data {
                depth: 0,
                file_offset: at,
            }
        } else {
            ExtentKind::Zero
        };
        Ok(Extent { offset, len, kind })
    }

    /// An extent that is not in this file, at most `len` long.
    pub(super) fn parent_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let below = match self.parent.as_deref() {
            Some(parent) if offset < parent.size() => parent.extent_at(offset)?,
            _ => Extent {
                offset,
                len,
                kind: ExtentKind::Zero,
            },
        };
        let kind = match below.kind {
            ExtentKind::Data { depth, file_offset } => ExtentKind::Data {
                depth: depth + 1,
                file_offset,
            },
            ExtentKind::Zero => ExtentKind::Zero,
        };
        Ok(Extent {
            offset,
            len: below.len.min(len),
            kind,
        })
    }
}
