//! Opening a disk and the files below it, and whether they belong together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Body, Disk, Fixed, OpenOptions, Sparse, locate};
use crate::error::{Error, Result, Defect, Structure};
use crate::format::{DiskType, TimeStamp};
use crate::storage::{self, Storage};

/// Most files in a chain, the child included.
pub const MAX_CHAIN: usize = 8;

pub(super) fn open(_path: &Path, _options: &OpenOptions) -> Result<Disk> {
    todo!()
}
pub(super) fn open_layer(_path: &Path, _storage: Box<dyn Storage>, _options: &OpenOptions, _parent: Option<Arc<Disk>>, _m: Option<TimeStamp>) -> Result<Disk> {
    todo!()
}
