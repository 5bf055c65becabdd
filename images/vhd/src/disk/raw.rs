//! A raw image: a file that holds the sectors of a disk and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::check_request;
use super::fixed::Fixed;
use crate::device::{BlockDevice, Extent, SECTOR_SIZE};
use crate::error::{Error, Result};
use crate::storage::{LockedFile, Storage};

/// A raw disk image behind the same trait as a VHD.
///
/// A file whose length is not a multiple of a sector has a last sector that
/// is filled up with zeroes: at once if it is opened for writing, in what is
/// read otherwise.
pub struct Raw {
    path: PathBuf,
    flat: Fixed,
    size: u64,
    file_len: u64,
    read_only: bool,
}

impl Raw {
    /// Opens a raw image under the same locks as a VHD.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self> {
        let path = path.as_ref();
        Self::from_storage(
            path,
            Box::new(LockedFile::open(path, read_only)?),
            read_only,
        )
    }

    /// A raw image in any storage; `path` is for messages.
    pub(crate) fn from_storage(
        path: &Path,
        storage: Box<dyn Storage>,
        read_only: bool,
    ) -> Result<Self> {
        let mut file_len = storage
            .len()
            .map_err(|source| Error::io(path, "inspect", source))?;
        let size = file_len.next_multiple_of(SECTOR_SIZE);
        if !read_only && size != file_len {
            storage
                .set_len(size)
                .map_err(|source| Error::io(path, "extend", source))?;
            file_len = size;
        }
        let flat = Fixed::new(path.to_owned(), storage, size);
        Ok(Self {
            path: path.to_owned(),
            flat,
            size,
            file_len,
            read_only,
        })
    }

    /// Creates a raw image of `size` bytes, all of it a hole, and opens it for
    /// writing.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Self> {
        let path = path.as_ref();
        let made = File::create_new(path).and_then(|file| file.set_len(size));
        made.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists {
                path: path.to_owned(),
            },
            _ => Error::io(path, "create", source),
        })?;
        Self::open(path, false)
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly {
                path: self.path.clone(),
            });
        }
        check_request(offset, len, self.size)
    }
}

impl BlockDevice for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_request(offset, buf.len() as u64, self.size)?;
        let there = self.file_len.saturating_sub(offset).min(buf.len() as u64);
        let (data, padding) = buf.split_at_mut(there as usize);
        padding.fill(0);
        self.flat.read_at(data, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        self.flat.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            Ok(())
        } else {
            self.flat.flush()
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        self.flat.write_zeroes(offset, len)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_request(offset, SECTOR_SIZE, self.size)?;
        self.flat.extent_at(offset)
    }
}
