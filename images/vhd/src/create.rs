//! Making new images.
//!
//! A new image appears under its name complete or not at all: it is made in
//! an unnamed file, synced, and then linked. An existing file is never
//! replaced.

use std::path::Path;

use uuid::Uuid;

use crate::device::SECTOR_SIZE;
use crate::disk::locate;
use crate::error::{Error, Result};
use crate::format::footer::FOOTER_LEN;
use crate::format::header::{DEFAULT_BLOCK_SIZE, HEADER_LEN};
use crate::format::{
    DiskType, Footer, Header, MAX_DISK_SIZE, ParentLocator, PlatformCode, TimeStamp, bat, locator,
};
use crate::newfile::NewFile;
use crate::storage::{LockedFile, Storage as _};

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
        Self {
            unique_id: Uuid::new_v4(),
            time_stamp: TimeStamp::now(),
        }
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
        Self {
            size,
            block_size: DEFAULT_BLOCK_SIZE,
            identity: Identity::random(),
        }
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
        Self {
            size: None,
            block_size: DEFAULT_BLOCK_SIZE,
            identity: Identity::random(),
        }
    }
}

/// Makes a fixed disk full of zeroes, all of it a hole in the file.
pub fn create_fixed(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let new = NewFile::create(path.as_ref())?;
    write_fixed(&new, options)?;
    new.publish()
}

/// Makes a dynamic disk without any block.
pub fn create_dynamic(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let new = NewFile::create(path.as_ref())?;
    write_dynamic(&new, options)?;
    new.publish()
}

/// Makes a differencing disk on top of `parent`.
///
/// Takes the same short time whatever the parent's size: of the parent, only
/// the footer is read. The files further down are not needed. The new disk
/// records the parent's id, its time stamp (that of its footer, which a copy
/// of the file keeps) and, for other tools, its name and the way to it.
pub fn create_differencing(
    path: impl AsRef<Path>,
    parent: impl AsRef<Path>,
    options: &DifferencingOptions,
) -> Result<()> {
    let (path, parent) = (path.as_ref(), parent.as_ref());
    let file = LockedFile::open(parent, true)?;
    let base = locate(parent, &file, None)?.footer;
    let size = options.size.unwrap_or(base.current_size);
    if size < base.current_size {
        let rule = "a differencing disk is at least as large as its parent";
        return Err(invalid_option("size", size, rule));
    }
    check_size(size)?;
    check_block_size(size, options.block_size)?;
    let new = NewFile::create(path)?;
    let Identity {
        unique_id,
        time_stamp,
    } = options.identity;
    let footer = Footer::new(DiskType::Differencing, size, unique_id, time_stamp);
    let mut header = Header {
        parent_unique_id: base.unique_id,
        parent_time_stamp: base.time_stamp,
        parent_unicode_name: file_name(parent),
        ..Header::new(size, options.block_size, HEADER_AT + HEADER_LEN as u64)
    };
    let locators = place_locators(&mut header, &new, parent)?;
    write_structures(&new, &footer, &header, &locators)?;
    new.publish()
}

const HEADER_AT: u64 = FOOTER_LEN as u64;

/// Writes an empty fixed disk.
pub(crate) fn write_fixed(new: &NewFile, options: &CreateOptions) -> Result<()> {
    let CreateOptions { size, identity, .. } = *options;
    check_size(size)?;
    let footer = Footer::new(
        DiskType::Fixed,
        size,
        identity.unique_id,
        identity.time_stamp,
    );
    new.file()
        .write_all_at(&footer.to_bytes(), size)
        .map_err(new.io("write the footer"))
}

/// Writes an empty dynamic disk.
pub(crate) fn write_dynamic(new: &NewFile, options: &CreateOptions) -> Result<()> {
    let CreateOptions {
        size,
        block_size,
        identity,
    } = *options;
    check_size(size)?;
    check_block_size(size, block_size)?;
    let footer = Footer::new(
        DiskType::Dynamic,
        size,
        identity.unique_id,
        identity.time_stamp,
    );
    let header = Header::new(size, block_size, HEADER_AT + HEADER_LEN as u64);
    write_structures(new, &footer, &header, &[])
}

fn check_size(size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
        return Err(invalid_option(
            "size",
            size,
            "must be a multiple of 512 and not 0",
        ));
    }
    if size > MAX_DISK_SIZE {
        return Err(invalid_option(
            "size",
            size,
            "must be at most 2040 GiB (2190433320960)",
        ));
    }
    Ok(())
}

fn check_block_size(size: u64, block_size: u32) -> Result<()> {
    let wrong = |rule| Err(invalid_option("block size", u64::from(block_size), rule));
    if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR_SIZE {
        return wrong("must be 512 times a power of two");
    }
    if size.div_ceil(u64::from(block_size)) > u64::from(bat::MAX_ENTRIES) {
        return wrong("too small for a disk of this size: at most 4177920 blocks are allowed");
    }
    Ok(())
}

fn invalid_option(option: &'static str, value: u64, rule: &'static str) -> Error {
    Error::InvalidOption {
        option,
        value: value.to_string(),
        rule,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Data of a locator and its offset.
type LocatorData = (u64, Vec<u8>);

/// Gives the header its locators: the way from the child to the parent, and
/// the parent's absolute path. They are between header and table.
fn place_locators(header: &mut Header, new: &NewFile, parent: &Path) -> Result<Vec<LocatorData>> {
    let absolute = |path: &Path| {
        path.canonicalize()
            .map_err(|source| Error::io(path, "find the full path", source))
    };
    let parent = absolute(parent)?;
    let folder = absolute(new.folder())?;
    let texts = [
        (
            PlatformCode::W2RU,
            locator::relative_windows_path(&folder, &parent),
        ),
        (PlatformCode::W2KU, locator::absolute_windows_path(&parent)),
    ];
    let mut at = HEADER_AT + HEADER_LEN as u64;
    let mut placed = Vec::new();
    for (index, (code, text)) in texts.into_iter().enumerate() {
        let data = locator::encode_windows(&text);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let entry = ParentLocator::new(code, length, at);
        header.parent_locators[index] = entry;
        placed.push((at, data));
        at += entry.space();
    }
    header.table_offset = at;
    Ok(placed)
}

/// Writes everything that a disk without blocks has.
fn write_structures(
    new: &NewFile,
    footer: &Footer,
    header: &Header,
    locators: &[LocatorData],
) -> Result<()> {
    let write = |bytes: &[u8], at| {
        new.file()
            .write_all_at(bytes, at)
            .map_err(new.io("write the new image"))
    };
    write(&footer.to_bytes(), 0)?;
    write(&header.to_bytes(), footer.data_offset)?;
    for (at, data) in locators {
        write(data, *at)?;
    }
    let unused = [0xff; 16 << 10];
    let end = header.table_offset + header.table_len();
    let mut at = header.table_offset;
    while at < end {
        let part = (end - at).min(unused.len() as u64);
        write(&unused[..part as usize], at)?;
        at += part;
    }
    write(&footer.to_bytes(), end)
}
