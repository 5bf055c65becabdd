//! The block trait: what a disk is to whoever reads and writes it.
//!
//! A virtual machine's block device, the image converter and the tests all
//! speak this trait; [`Disk`](crate::Disk) and [`Raw`](crate::Raw) implement
//! it. It says nothing about files or formats.

use serde::Serialize;

use crate::error::Result;

/// Bytes in a sector: the unit in which a VHD, and virtio-blk, count.
pub const SECTOR_SIZE: u64 = 512;

/// A disk: `size()` bytes that can be read and, unless it is read-only,
/// written at any sector.
///
/// **Units.** Offsets and lengths are bytes and must be multiples of
/// [`SECTOR_SIZE`]; anything else is [`Error::Unaligned`](crate::Error), and
/// a request beyond `size()` is [`Error::OutOfRange`](crate::Error). Both are
/// checked before anything is touched.
///
/// **Threads.** Every method takes `&self` and may be called from several
/// threads at once. Concurrent requests to *different* sectors do not disturb
/// each other. Concurrent requests to the same sector leave one of the values
/// written.
///
/// **Durability.** A write is volatile, like one in a drive's write cache,
/// until a [`flush`](Self::flush) that began after the write had returned
/// itself returns `Ok`. After a crash each sector holds the last flushed
/// value or a value written later, never anything else. A device whose guest
/// did not negotiate a flush command has to call `flush` after every write.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes; a multiple of [`SECTOR_SIZE`]. Never changes.
    fn size(&self) -> u64;

    /// Whether writes are refused with [`Error::ReadOnly`](crate::Error).
    fn is_read_only(&self) -> bool;

    /// Fills `buf` from byte `offset` on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` from byte `offset` on.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes every write that has returned durable (`fdatasync`).
    ///
    /// After a failed flush nobody can know what reached the disk: the device
    /// refuses all further writes and flushes with
    /// [`Error::Poisoned`](crate::Error).
    fn flush(&self) -> Result<()>;

    /// Tells that the contents of a range are no longer needed.
    ///
    /// Afterwards each sector of the range reads either as before or as
    /// zeroes; which of the two is the device's choice, sector by sector. In
    /// a differencing disk a sector that was written in the child never turns
    /// back into its parent's.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes a range read as zeroes, giving space back to the host where it
    /// can.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// The run of sectors at `offset` that share one [`ExtentKind`].
    ///
    /// The run is at least one sector and may be shorter than it could be.
    /// `offset` must lie inside the disk.
    fn extent_at(&self, offset: u64) -> Result<Extent>;
}

/// A run of sectors of one kind. All fields in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Where the run begins on the disk.
    pub offset: u64,
    /// Its length, at least one sector.
    pub len: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte after the run.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Where a run of sectors gets its contents from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExtentKind {
    /// Stored in a file of the chain.
    Data {
        /// Which file: 0 is the disk itself, 1 its parent, and so on.
        depth: usize,
        /// Where in that file, in bytes.
        file_offset: u64,
    },
    /// Reads as zeroes and takes no space: never written, or a hole in the
    /// file.
    Zero,
}

/// The extents of a whole device in order, neighbours of one kind merged.
///
/// The iterator ends after the first error.
pub fn extents(device: &dyn BlockDevice) -> impl Iterator<Item = Result<Extent>> + '_ {
    Extents {
        device,
        next: 0,
        held: None,
    }
}

struct Extents<'a> {
    device: &'a dyn BlockDevice,
    next: u64,
    held: Option<Extent>,
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.device.size() {
            let extent = match self.device.extent_at(self.next) {
                Ok(extent) => extent,
                Err(error) => {
                    self.next = self.device.size();
                    self.held = None;
                    return Some(Err(error));
                }
            };
            self.next = extent.end();
            match &mut self.held {
                Some(held) if continues(held, &extent) => held.len += extent.len,
                held => {
                    if let Some(done) = held.replace(extent) {
                        return Some(Ok(done));
                    }
                }
            }
        }
        self.held.take().map(Ok)
    }
}

/// Whether `next` is the seamless continuation of `extent`.
fn continues(extent: &Extent, next: &Extent) -> bool {
    match (extent.kind, next.kind) {
        (ExtentKind::Zero, ExtentKind::Zero) => true,
        (
            ExtentKind::Data { depth, file_offset },
            ExtentKind::Data {
                depth: next_depth,
                file_offset: next_offset,
            },
        ) => depth == next_depth && file_offset + extent.len == next_offset,
        _ => false,
    }
}
