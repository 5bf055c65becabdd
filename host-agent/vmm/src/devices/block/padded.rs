//! A read-only disk that looks larger than its image.
//!
//! Guests made from one snapshot know a disk's size and nothing else of it, so
//! that each can have its own image there, if all look equally large.

use std::sync::Arc;

use vhd::{BlockDevice, Extent, ExtentKind, Result};

/// A disk of a size of its own: beyond the image it reads as zeroes.
pub struct Padded {
    image: Arc<dyn BlockDevice>,
    size: u64,
}

impl Padded {
    /// Pads a read-only image to `size` bytes, which must not be less than its
    /// own; nothing if it is, or if the image can be written.
    pub fn new(image: Arc<dyn BlockDevice>, size: u64) -> Option<Padded> {
        (size >= image.size() && image.is_read_only()).then_some(Padded { image, size })
    }
}

impl BlockDevice for Padded {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.image.size().saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (image, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        if image.is_empty() {
            return Ok(());
        }
        self.image.read_at(image, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.image.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.image.write_zeroes(offset, len)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        if offset < self.image.size() {
            return self.image.extent_at(offset);
        }
        Ok(Extent {
            offset,
            len: self.size.saturating_sub(offset),
            kind: ExtentKind::Zero,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_image_there_are_zeroes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.raw");
        std::fs::write(&path, [7; 1024]).unwrap();
        let image = |readonly| Arc::new(vhd::Raw::open(&path, readonly).unwrap());
        let disk = Padded::new(image(true), 1 << 20).unwrap();
        assert_eq!(disk.size(), 1 << 20);
        let mut across = [1; 1024];
        disk.read_at(&mut across, 512).unwrap();
        assert_eq!((across[511], across[512]), (7, 0));
        disk.read_at(&mut across, 4096).unwrap();
        assert_eq!(across, [0; 1024]);
        assert!(Padded::new(image(true), 512).is_none());
        drop(disk);
        assert!(Padded::new(image(false), 1 << 20).is_none());
    }
}
