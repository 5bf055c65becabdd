//! A descriptor chain, read once from guest memory and checked.
//!
//! The walk copies addresses and lengths out of the descriptor table; nothing
//! is looked up there again. Whether the buffers lie in guest memory shows when
//! they are copied: [`GuestBuffer::read_at`] and [`GuestBuffer::write_at`] fail
//! cleanly where they do not.

use std::ops::Deref;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::memory::GuestMemory;

/// A request of the driver: the buffers it gave to read from, then to write to.
#[derive(Debug)]
pub struct Chain {
    /// The chain's first descriptor, by which it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: GuestBuffer,
    /// What the device may write.
    pub writable: GuestBuffer,
}

/// A chain that breaks the rules; it can only be given back unused.
#[derive(Debug, Error)]
#[error("descriptor chain {head} is malformed")]
pub struct BadChain {
    /// The chain's first descriptor, by which it is given back.
    pub head: u16,
    /// The rule it breaks.
    #[source]
    pub error: ChainError,
}

/// The rule that a chain breaks (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// A descriptor could not be read, or names one outside the table; the chain
    /// loops; an indirect table is malformed or nested.
    #[error("it does not end: a loop, or a descriptor outside its table")]
    Unfinished,
    /// It has more descriptors than any queue.
    #[error("it has more descriptors than the queue")]
    TooLong,
    /// A buffer for reading follows one for writing (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    OutOfOrder,
}

impl Chain {
    /// Reads a chain of at most `limit` descriptors.
    ///
    /// # Errors
    ///
    /// [`BadChain`] with the rule that it breaks.
    pub(super) fn collect<M>(chain: DescriptorChain<M>, limit: u16) -> Result<Chain, BadChain>
    where
        M: Deref,
        M::Target: vm_memory::GuestMemory,
    {
        let head = chain.head_index();
        let mut collected = Chain {
            head,
            readable: GuestBuffer::default(),
            writable: GuestBuffer::default(),
        };
        collected
            .walk(chain, limit)
            .map_err(|error| BadChain { head, error })?;
        Ok(collected)
    }

    fn walk(
        &mut self,
        descriptors: impl Iterator<Item = Descriptor>,
        limit: u16,
    ) -> Result<(), ChainError> {
        let mut finished = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= usize::from(limit) {
                return Err(ChainError::TooLong);
            }
            if descriptor.is_write_only() {
                self.writable.push(descriptor.addr(), descriptor.len());
            } else if self.writable.is_empty() {
                self.readable.push(descriptor.addr(), descriptor.len());
            } else {
                return Err(ChainError::OutOfOrder);
            }
            finished = !descriptor.has_next();
        }
        // The iterator stops without a word at a descriptor that it cannot follow.
        if finished {
            Ok(())
        } else {
            Err(ChainError::Unfinished)
        }
    }
}

/// A buffer in guest memory, possibly in many pieces.
///
/// Its total length is below 4 GiB, which the walk of the chain ensures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestBuffer {
    pieces: Vec<Piece>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    address: GuestAddress,
    len: usize,
}

/// A buffer, or the part asked for, that does not lie in guest memory.
#[derive(Debug, Error)]
#[error("{len} bytes at offset {offset} of the buffer are not in guest memory")]
pub struct OutsideMemory {
    offset: usize,
    len: usize,
}

impl GuestBuffer {
    fn push(&mut self, address: GuestAddress, len: u32) {
        let len = len as usize;
        if len > 0 {
            self.pieces.push(Piece { address, len });
            self.len = self.len.saturating_add(len);
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts off and returns the first `count` bytes, or `None` if it is shorter.
    pub fn take_front(&mut self, count: usize) -> Option<GuestBuffer> {
        let rest = self.split_off(count)?;
        Some(std::mem::replace(self, rest))
    }

    /// Cuts off and returns the last `count` bytes, or `None` if it is shorter.
    pub fn take_back(&mut self, count: usize) -> Option<GuestBuffer> {
        self.split_off(self.len.checked_sub(count)?)
    }

    fn split_off(&mut self, at: usize) -> Option<GuestBuffer> {
        let rest_len = self.len.checked_sub(at)?;
        let mut before = at;
        let mut rest = Vec::new();
        for (index, piece) in self.pieces.iter_mut().enumerate() {
            if before >= piece.len {
                before -= piece.len;
                continue;
            }
            let tail = Piece {
                // An address that wraps is outside memory in any case; the copy
                // will say so.
                address: GuestAddress(piece.address.raw_value().wrapping_add(before as u64)),
                len: piece.len - before,
            };
            rest.push(tail);
            piece.len = before;
            let kept = if before == 0 { index } else { index + 1 };
            rest.extend(self.pieces.drain(index + 1..));
            self.pieces.truncate(kept);
            break;
        }
        self.len = at;
        Some(GuestBuffer {
            pieces: rest,
            len: rest_len,
        })
    }

    /// Copies `data.len()` bytes from `offset` out of guest memory.
    ///
    /// # Errors
    ///
    /// [`OutsideMemory`] if the buffer is shorter or not all in guest memory;
    /// `data` is then partly written.
    pub fn read_at(
        &self,
        memory: &GuestMemory,
        offset: usize,
        data: &mut [u8],
    ) -> Result<(), OutsideMemory> {
        let len = data.len();
        self.for_each_piece(offset, len, |address, range| {
            memory.read_slice(&mut data[range], address).is_ok()
        })
    }

    /// Copies `data` into guest memory at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutsideMemory`] if the buffer is shorter or not all in guest memory; a
    /// part may have been written.
    pub fn write_at(
        &self,
        memory: &GuestMemory,
        offset: usize,
        data: &[u8],
    ) -> Result<(), OutsideMemory> {
        self.for_each_piece(offset, data.len(), |address, range| {
            memory.write_slice(&data[range], address).is_ok()
        })
    }

    /// Whether all of the buffer lies in guest memory.
    pub fn is_in(&self, memory: &GuestMemory) -> bool {
        self.pieces
            .iter()
            .all(|piece| memory.check_range(piece.address, piece.len, Permissions::ReadWrite))
    }

    fn for_each_piece(
        &self,
        offset: usize,
        len: usize,
        mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<(), OutsideMemory> {
        let outside = || OutsideMemory { offset, len };
        let end = offset.checked_add(len).ok_or_else(outside)?;
        if end > self.len {
            return Err(outside());
        }
        let mut skip = offset;
        let mut done = 0;
        for piece in &self.pieces {
            if done == len {
                break;
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let count = (piece.len - skip).min(len - done);
            let address = piece.address.checked_add(skip as u64).ok_or_else(outside)?;
            if !copy(address, done..done + count) {
                return Err(outside());
            }
            done += count;
            skip = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::guest_memory;
    use super::*;
    use proptest::prelude::*;

    fn buffer(pieces: &[(u64, u32)]) -> GuestBuffer {
        let mut buffer = GuestBuffer::default();
        for (address, len) in pieces {
            buffer.push(GuestAddress(*address), *len);
        }
        buffer
    }

    #[test]
    fn a_buffer_in_pieces_copies_like_one() {
        let memory = guest_memory();
        let buffer = buffer(&[(0x1000, 3), (0x2000, 0), (0x3000, 5)]);
        buffer.write_at(&memory, 0, b"abcdefgh").unwrap();

        let mut middle = [0; 4];
        buffer.read_at(&memory, 2, &mut middle).unwrap();
        assert_eq!(&middle, b"cdef");
        let mut second = [0; 5];
        memory
            .read_slice(&mut second, GuestAddress(0x3000))
            .unwrap();
        assert_eq!(&second, b"defgh");
    }

    #[test]
    fn what_is_outside_memory_or_beyond_the_end_is_refused() {
        let memory = guest_memory();
        let mut data = [0; 8];
        assert!(
            buffer(&[(0x1000, 4)])
                .read_at(&memory, 0, &mut data)
                .is_err()
        );
        assert!(
            buffer(&[(u64::MAX - 3, 8)])
                .read_at(&memory, 0, &mut data)
                .is_err()
        );
        assert!(
            buffer(&[(u64::MAX - 3, 16)])
                .write_at(&memory, 6, &data)
                .is_err()
        );
        assert!(
            buffer(&[(0xffff_0000_0000, 8)])
                .write_at(&memory, 0, &data)
                .is_err()
        );
        assert!(
            buffer(&[(0x1000, 8)])
                .read_at(&memory, usize::MAX, &mut data)
                .is_err()
        );
    }

    proptest! {
        /// Cutting a buffer anywhere loses and invents nothing.
        #[test]
        fn cutting_is_like_cutting_a_vector(
            lengths in prop::collection::vec(0_u32..40, 0..8),
            cut in 0_usize..320,
            from_back: bool,
        ) {
            let memory = guest_memory();
            let pieces: Vec<_> =
                lengths.iter().enumerate().map(|(i, len)| (0x1000 * (i as u64 + 1), *len)).collect();
            let whole = buffer(&pieces);
            let data: Vec<u8> = (0..whole.len()).map(|i| i as u8).collect();
            whole.write_at(&memory, 0, &data).unwrap();

            let mut rest = whole.clone();
            let taken = if from_back { rest.take_back(cut) } else { rest.take_front(cut) };
            let Some(taken) = taken else {
                prop_assert!(cut > whole.len());
                prop_assert_eq!(rest, whole);
                return Ok(());
            };
            let (front, back) = if from_back { (rest, taken) } else { (taken, rest) };
            let mut read = vec![0; front.len() + back.len()];
            front.read_at(&memory, 0, &mut read[..front.len()]).unwrap();
            back.read_at(&memory, 0, &mut read[front.len()..]).unwrap();
            prop_assert_eq!(read, data);
        }
    }
}
