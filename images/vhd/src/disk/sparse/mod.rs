//! Dynamic and differencing disks: blocks that are added to the file when they
//! are first written, over a parent or over nothing.
//!
//! ```text
//! 0      512      1536    (Table Offset)                          end of file
//! ├──────┼────────┼───────┼─────┬───────────────┬────────────┬────┼──────┤
//! │ copy │ header │ par.  │ BAT │ bitmap │ data │ bitmap│data│ …  │footer│
//! │footer│        │ loc.  │     │    block      │   block    │    │      │
//! └──────┴────────┴───────┴─────┴───────────────┴────────────┴────┴──────┘
//! ```
//!
//! A block's bit in its sector bitmap says where a sector is: set, in this
//! file; clear, in the parent, or nowhere (zeroes) if there is none. New
//! blocks of a dynamic disk get a bitmap of ones over data that is a hole:
//! nothing to keep track of afterwards, and readers that ignore the bitmap of
//! dynamic disks, as QEMU does, read the same. Data begins on a 4 KiB boundary
//! of the file, so that a guest's pages are the host's pages.
//!
//! # Why a crash loses nothing that was flushed
//!
//! *The promise:* after a crash, each sector holds the value of its last flush
//! or one written later. *The crash:* the process dies between any two calls,
//! or the machine does, and of everything written since the last completed
//! `fdatasync` any part may be on disk, sectors being whole. Structures change
//! in four ways only:
//!
//! 1. *The copy of the footer, header and locators* never change after
//!    creation. So the disk can always be opened by the copy, whatever has
//!    become of the footer at the end.
//! 2. *A new block* is taken from beyond the footer: the file is extended, the
//!    footer written at its new end, and only then the old footer overwritten
//!    by the block. The table entry stays in memory. Until it is in the file,
//!    nothing refers to the block; if the machine dies, it is as if it had
//!    never been, and opening the disk for writing cuts it off (a torn end
//!    never becomes part of a later block).
//! 3. *A bit of a bitmap* goes from 0 to 1, in memory, after the sector's data
//!    has been written; it never goes back.
//! 4. *Flush* ([`commit`]) first does `fdatasync`: all data whose bits are set
//!    in memory, and the bitmaps that new blocks were made with, are durable
//!    now. Then it writes the changed bitmaps and the table entries, and
//!    `fdatasync` again. So a bit or an entry on disk always refers to what was
//!    durable before it. A sector whose bit made it to disk before the crash
//!    reads as written, one whose bit did not reads as before: both are
//!    allowed.
//!
//! Sectors whose bits are on disk already are overwritten in place, which
//! needs no order, and when no structure has changed a flush is a single
//! `fdatasync`. A discard makes holes in place and changes no structure.
//!
//! Not promised: the order of unflushed writes among each other.
//!
//! # Bounds
//!
//! Memory: four bytes for each block, [`bitmap::CLEAN_SECTORS`] bitmap sectors
//! as a cache, and at most about [`commit::MAX_PENDING`] changed ones, above
//! which a write commits on its own.

mod bitmap;
mod commit;
pub(crate) mod layout;
mod open;
mod read;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Disk;
use crate::device::SECTOR_SIZE;
use crate::error::{Error, Result};
use crate::format::Header;
use crate::format::bat::{self, BlockShape};
use crate::format::footer::FOOTER_LEN;
use crate::storage::Storage;

use bitmap::Bitmaps;

pub(crate) use open::read_header;

/// The body of a dynamic or differencing disk.
pub(super) struct Sparse {
    path: PathBuf,
    storage: Box<dyn Storage>,
    header: Header,
    /// The footer as it stands in the file, unknown fields included.
    footer: [u8; FOOTER_LEN],
    size: u64,
    shape: BlockShape,
    parent: Option<Arc<Disk>>,
    read_only: bool,
    /// The length that the file may have.
    quota: u64,
    state: Mutex<State>,
    /// Held by the one thread that flushes; taken before `state`.
    committing: Mutex<()>,
    poisoned: AtomicBool,
}

/// What changes as the disk is used.
struct State {
    /// The table, with entries that are not in the file yet.
    bat: Vec<u32>,
    /// The blocks of those entries.
    unpublished: BTreeSet<u32>,
    bitmaps: Bitmaps,
    /// Where the footer is: the end of all blocks.
    end: u64,
}

impl State {
    /// Where in the file the block begins, bitmap first.
    fn block_at(&self, block: u32) -> Option<u64> {
        let entry = self.bat.get(block as usize).copied().unwrap_or(bat::UNUSED);
        (entry != bat::UNUSED).then(|| u64::from(entry) * SECTOR_SIZE)
    }
}

/// The part of a request that falls into one block.
#[derive(Debug, Clone, Copy)]
struct Piece {
    block: u32,
    /// Byte of the block's data at which it begins.
    within: u64,
    /// Byte of the disk at which it begins.
    offset: u64,
    len: u64,
}

impl Piece {
    /// The first `len` bytes of it.
    fn head(self, len: u64) -> Self {
        Self { len, ..self }
    }

    /// All but the first `len` bytes of it.
    fn tail(self, len: u64) -> Self {
        let Self {
            block,
            within,
            offset,
            ..
        } = self;
        Self {
            block,
            within: within + len,
            offset: offset + len,
            len: self.len - len,
        }
    }

    /// The sectors of the block's data that it covers.
    fn sectors(self) -> std::ops::Range<u64> {
        self.within / SECTOR_SIZE..(self.within + self.len) / SECTOR_SIZE
    }
}

impl Sparse {
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn parent(&self) -> Option<&Disk> {
        self.parent.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts a request at the borders of blocks.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let (size, end) = (self.shape.block_size, offset + len);
        let mut at = offset;
        std::iter::from_fn(move || {
            let within = at % size;
            let len = (size - within).min(end - at);
            let block = u32::try_from(at / size).ok()?;
            let piece = Piece {
                block,
                within,
                offset: at,
                len,
            };
            at += len;
            (len > 0).then_some(piece)
        })
    }

    fn check_poison(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Turns an I/O error of this file into one of the crate.
    fn io(&self, operation: &'static str) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::io(&self.path, operation, source)
    }
}

impl Drop for Sparse {
    /// Publishes what was written, so that a disk that is closed in order is
    /// complete even without a last flush. Errors have nowhere to go; whoever
    /// needs to know calls `flush` first.
    fn drop(&mut self) {
        if !self.read_only && self.waiting() > 0 {
            let _ = self.flush();
        }
    }
}
