//! Making new images.
//!
//! A new image appears under its name complete or not at all: it is made in
//! an unnamed file, synced, and then linked. An existing file is never
//! replaced.

use std::path::Path;

use uuid::Uuid;

use crate::error::Result;
use crate::format::TimeStamp;
use crate::format::header::DEFAULT_BLOCK_SIZE;

/// What a new image says about itself. Two images made with the same identity
/// and contents are the same byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// "Unique Id".
    pub unique_id: Uuid,
    /// "Time Stamp".
    pub time_stamp: TimeStamp,
}

impl Identity {
    /// A random id, and the time now.
    #[must_use]
    pub fn random() -> Self {
        Self { unique_id: Uuid::new_v4(), time_stamp: TimeStamp::now() }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::random()
    }
}

/// How a fixed or dynamic disk is made.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// Size in bytes: a multiple of 512, at most 2040 GiB.
    pub size: u64,
    /// Bytes in a block of a dynamic disk: 512 times a power of two.
    pub block_size: u32,
    /// Id and time stamp.
    pub identity: Identity,
}

impl CreateOptions {
    /// A disk of `size` bytes with everything else as is usual.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, block_size: DEFAULT_BLOCK_SIZE, identity: Identity::random() }
    }
}

/// How a differencing disk is made.
#[derive(Debug, Clone, Copy)]
pub struct DifferencingOptions {
    /// Size in bytes; that of the parent if not given, never smaller. What
    /// lies beyond the parent reads as zeroes.
    pub size: Option<u64>,
    /// Bytes in a block: 512 times a power of two.
    pub block_size: u32,
    /// Id and time stamp.
    pub identity: Identity,
}

impl Default for DifferencingOptions {
    fn default() -> Self {
        Self { size: None, block_size: DEFAULT_BLOCK_SIZE, identity: Identity::random() }
    }
}

/// Makes a fixed disk full of zeroes, all of it a hole in the file.
pub fn create_fixed(_path: impl AsRef<Path>, _options: &CreateOptions) -> Result<()> {
    todo!()
}

/// Makes a dynamic disk without any block.
pub fn create_dynamic(_path: impl AsRef<Path>, _options: &CreateOptions) -> Result<()> {
    todo!()
}

/// Makes a differencing disk on top of `parent`.
///
/// Takes the same short time whatever the parent's size: of the parent, only
/// the footer is read. The files further down are not needed. The new disk
/// records the parent's id, its time stamp (that of its footer, which a copy
/// of the file keeps) and, for other tools, its name and the way to it.
pub fn create_differencing(
    _path: impl AsRef<Path>,
    _parent: impl AsRef<Path>,
    _options: &DifferencingOptions,
) -> Result<()> {
    todo!()
}
