//! Open disks: the types of the format behind one [`Disk`], and [`Raw`] files.

mod chain;
mod fixed;
mod locate;
mod raw;
mod sparse;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use chain::{Files, MAX_CHAIN};
pub use raw::Raw;

pub(crate) use locate::{Located, locate};
pub(crate) use sparse::layout::{self, Layout};
pub(crate) use sparse::read_header;

use crate::device::{BlockDevice, Extent, SECTOR_SIZE};
use crate::error::{Defect, Error, Result};
use crate::format::{DiskType, Footer, Header};
use crate::storage::Storage;

use fixed::Fixed;
use sparse::Sparse;

/// How an image is to be opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Refuse writes. The file is then opened for reading, under a shared
    /// lock; otherwise under an exclusive one. Parents are always read-only.
    pub read_only: bool,
    /// The files below a differencing disk, nearest first, base last; empty
    /// for every other disk.
    pub parents: Vec<PathBuf>,
    /// The type that the caller's record says, where there is one.
    ///
    /// Set it when a guest has written to the disk: the type is otherwise
    /// taken from the file, and after a crash at an unlucky moment that can
    /// be from bytes that the guest wrote.
    pub expect: Option<DiskType>,
    /// Accept a parent whose time stamp is not the one the child recorded.
    ///
    /// For chains of other tools, which record when the parent file was last
    /// modified: a copy of the file has lost that.
    pub ignore_parent_time_stamp: bool,
    /// How large the file of a dynamic or differencing disk may become, its
    /// structures among it; no limit if absent. What is in the file already can
    /// be written again when that is reached, and nothing can be added to it.
    pub quota: Option<u64>,
}

impl OpenOptions {
    /// Options for reading only.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            ..Self::default()
        }
    }

    /// Options for reading and writing.
    #[must_use]
    pub fn read_write() -> Self {
        Self::default()
    }

    /// The same with parent files, nearest first.
    #[must_use]
    pub fn with_parents(mut self, parents: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        self.parents = parents.into_iter().map(Into::into).collect();
        self
    }

    /// The same with a limit to how large the file may become.
    #[must_use]
    pub fn with_quota(mut self, quota: Option<u64>) -> Self {
        self.quota = quota;
        self
    }

    /// The same with the type that the image must have.
    #[must_use]
    pub fn expecting(mut self, disk_type: DiskType) -> Self {
        self.expect = Some(disk_type);
        self
    }
}

/// Opens a VHD of any type. Same as [`Disk::open`].
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Disk> {
    Disk::open(path, options)
}

/// An open VHD.
pub struct Disk {
    path: PathBuf,
    footer: Footer,
    read_only: bool,
    repaired: Option<Defect>,
    body: Body,
}

enum Body {
    Fixed(Fixed),
    Sparse(Box<Sparse>),
}

impl Disk {
    /// Opens a VHD of any type, and the files below it.
    ///
    /// A dynamic or differencing disk whose footer at the end of the file was
    /// lost in a crash is opened by its copy; see [`Disk::repaired`].
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        Files::open(path, options)?.check()
    }

    /// Opens a VHD in any storage. `path` is for messages, `parent` an open
    /// disk below it; `options.parents` is not used.
    ///
    /// Checks that the parent is the right one, but not its time stamp against
    /// that of a file, for there may be none.
    pub fn open_storage(
        path: &Path,
        storage: Box<dyn Storage>,
        options: &OpenOptions,
        parent: Option<Arc<Self>>,
    ) -> Result<Self> {
        chain::open_layer(path, storage, options, parent, None)
    }

    /// The image's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The type of the disk.
    #[must_use]
    pub fn disk_type(&self) -> DiskType {
        self.footer.disk_type
    }

    /// The hard disk footer.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The dynamic disk header, of a disk that is not fixed.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        match &self.body {
            Body::Fixed(_) => None,
            Body::Sparse(sparse) => Some(sparse.header()),
        }
    }

    /// The disk below this one.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        match &self.body {
            Body::Fixed(_) => None,
            Body::Sparse(sparse) => sparse.parent(),
        }
    }

    /// What was wrong with one of the two footers, when the disk had to be
    /// opened by the other. A disk opened for writing has been mended.
    #[must_use]
    pub fn repaired(&self) -> Option<&Defect> {
        self.repaired.as_ref()
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly {
                path: self.path.clone(),
            });
        }
        check_request(offset, len, self.size())
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        self.footer.current_size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_request(offset, buf.len() as u64, self.size())?;
        match &self.body {
            Body::Fixed(fixed) => fixed.read_at(buf, offset),
            Body::Sparse(sparse) => sparse.read_at(buf, offset),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        match &self.body {
            Body::Fixed(fixed) => fixed.write_at(buf, offset),
            Body::Sparse(sparse) => sparse.write_at(buf, offset),
        }
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        match &self.body {
            Body::Fixed(fixed) => fixed.flush(),
            Body::Sparse(sparse) => sparse.flush(),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        match &self.body {
            Body::Fixed(fixed) => fixed.write_zeroes(offset, len),
            Body::Sparse(sparse) => sparse.discard(offset, len),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        match &self.body {
            Body::Fixed(fixed) => fixed.write_zeroes(offset, len),
            Body::Sparse(sparse) => sparse.write_zeroes(offset, len),
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_request(offset, SECTOR_SIZE, self.size())?;
        match &self.body {
            Body::Fixed(fixed) => fixed.extent_at(offset),
            Body::Sparse(sparse) => sparse.extent_at(offset),
        }
    }
}

/// Refuses requests that are not whole sectors inside the disk.
fn check_request(offset: u64, len: u64, size: u64) -> Result<()> {
    if !offset.is_multiple_of(SECTOR_SIZE) || !len.is_multiple_of(SECTOR_SIZE) {
        return Err(Error::Unaligned { offset, len });
    }
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::OutOfRange { offset, len, size }),
    }
}
