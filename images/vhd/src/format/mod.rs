//! The structures of the Virtual Hard Disk Image Format Specification,
//! version 1.0 (Microsoft, October 2006), under the names it gives them.
//!
//! Reading and writing of bytes and the rules that one structure must keep by
//! itself live here. Rules that need the file (does the table fit?) are with
//! the disks, and nothing here does I/O. All numbers are big-endian.

pub mod bat;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod locator;
pub mod timestamp;

pub use footer::{DiskType, Footer};
pub use geometry::Geometry;
pub use header::Header;
pub use locator::{ParentLocator, PlatformCode};
pub use timestamp::TimeStamp;

use uuid::Uuid;

/// Largest disk the format can describe and that Microsoft's tools accept:
/// 2040 GiB.
pub const MAX_DISK_SIZE: u64 = 2040 << 30;

/// One's complement of the sum of all bytes, those of the checksum field left
/// out ("Checksum" of footer and header).
pub(crate) fn checksum(bytes: &[u8], field: std::ops::Range<usize>) -> u32 {
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
    };
    !sum(bytes).wrapping_sub(sum(&bytes[field]))
}

/// Reads fields one after another from a structure of `N` bytes.
pub(crate) struct FieldReader<'a, const N: usize> {
    bytes: &'a [u8; N],
    at: usize,
}

impl<'a, const N: usize> FieldReader<'a, N> {
    pub(crate) fn new(bytes: &'a [u8; N]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn take<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut field = [0; LEN];
        field.copy_from_slice(&self.bytes[self.at..self.at + LEN]);
        self.at += LEN;
        field
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_bytes(self.take())
    }
}

/// Writes fields one after another into a structure of `N` bytes.
pub(crate) struct FieldWriter<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> FieldWriter<N> {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; N],
            at: 0,
        }
    }

    pub(crate) fn put(&mut self, field: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }

    /// The structure, its checksum filled in at `field`.
    pub(crate) fn finish(mut self, field: std::ops::Range<usize>) -> [u8; N] {
        let sum = checksum(&self.bytes, field.clone());
        self.bytes[field].copy_from_slice(&sum.to_be_bytes());
        self.bytes
    }
}
