//! Flat storage: the disk's sectors in order from the beginning of the file.
//!
//! The body of fixed disks and of [`Raw`](super::Raw) files. Nothing here can
//! be torn by a crash: no structure changes after creation.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::{Extent, ExtentKind};
use crate::error::{Error, Result};
use crate::storage::Storage;

/// The first `size` bytes of a file.
pub(super) struct Fixed {
    path: PathBuf,
    storage: Box<dyn Storage>,
    size: u64,
    poisoned: AtomicBool,
}

impl Fixed {
    pub(super) fn new(path: PathBuf, storage: Box<dyn Storage>, size: u64) -> Self {
        Self {
            path,
            storage,
            size,
            poisoned: AtomicBool::new(false),
        }
    }

    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.storage
            .read_exact_at(buf, offset)
            .map_err(|source| Error::io(&self.path, "read data", source))
    }

    pub(super) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_poison()?;
        self.storage
            .write_all_at(buf, offset)
            .map_err(|source| Error::io(&self.path, "write data", source))
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.check_poison()?;
        self.storage.sync_data().map_err(|source| {
            self.poisoned.store(true, Ordering::Release);
            Error::io(&self.path, "flush", source)
        })
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_poison()?;
        if len == 0 {
            return Ok(());
        }
        self.storage
            .zero_range(offset, len)
            .map_err(|source| Error::io(&self.path, "write zeroes", source))
    }

    pub(super) fn extent_at(&self, offset: u64) -> Result<Extent> {
        let (data, end) = self
            .storage
            .data_run(offset)
            .map_err(|source| Error::io(&self.path, "look for holes", source))?;
        let len = end.min(self.size).max(offset + 1).next_multiple_of(512) - offset;
        let kind = if data {
            ExtentKind::Data {
                depth: 0,
                file_offset: offset,
            }
        } else {
            ExtentKind::Zero
        };
        Ok(Extent { offset, len, kind })
    }

    fn check_poison(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned {
                path: self.path.clone(),
            });
        }
        Ok(())
    }
}
