//! Copying a disk into a new image of another type.
//!
//! Only data is copied: extents that read as zeroes, and zeroes inside
//! extents, stay out of the new image. The new image appears when it is
//! complete and durable, and never replaces a file.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::create::{self, CreateOptions, Identity};
use crate::device::{BlockDevice, ExtentKind, extents};
use crate::disk::{Disk, OpenOptions};
use crate::error::Result;
use crate::format::header::DEFAULT_BLOCK_SIZE;
use crate::newfile::NewFile;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// Unit in which zeroes are looked for.
const GRAIN: usize = 4 << 10;

/// What a disk can be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The sectors and nothing else.
    Raw,
    /// A fixed VHD.
    Fixed,
    /// A dynamic VHD.
    Dynamic,
}

/// How a disk is converted.
#[derive(Debug, Clone, Copy)]
pub struct ConvertOptions {
    /// The type of the new image.
    pub target: Target,
    /// Bytes in a block of a dynamic disk.
    pub block_size: u32,
    /// Id and time stamp of a VHD.
    pub identity: Identity,
}

impl ConvertOptions {
    /// A conversion to `target` with everything else as is usual.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            block_size: DEFAULT_BLOCK_SIZE,
            identity: Identity::random(),
        }
    }
}

/// What a conversion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes that were not zeroes and have been written.
    pub written: u64,
}

/// Copies `source` into a new image at `path`.
///
/// `progress` is told now and then how many bytes of the disk are done.
pub fn convert(
    source: &dyn BlockDevice,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Converted> {
    let new = NewFile::create(path.as_ref())?;
    let size = source.size();
    let written = {
        let target = prepare(&new, size, options)?;
        let written = copy(source, &*target, progress)?;
        target.flush()?;
        written
    };
    new.publish()?;
    Ok(Converted { size, written })
}

/// Makes an empty image of the wanted type and opens it.
fn prepare(new: &NewFile, size: u64, options: &ConvertOptions) -> Result<Arc<dyn BlockDevice>> {
    let ConvertOptions {
        target,
        block_size,
        identity,
    } = *options;
    let create_options = CreateOptions {
        size,
        block_size,
        identity,
    };
    match target {
        Target::Raw => new.file().set_len(size).map_err(new.io("extend"))?,
        Target::Fixed => create::write_fixed(new, &create_options)?,
        Target::Dynamic => create::write_dynamic(new, &create_options)?,
    }
    let file = new.file().try_clone().map_err(new.io("reopen"))?;
    Ok(match target {
        Target::Raw => Arc::new(crate::Raw::from_storage(new.path(), Box::new(file), false)?),
        Target::Fixed | Target::Dynamic => {
            let options = OpenOptions::read_write();
            Arc::new(Disk::open_storage(
                new.path(),
                Box::new(file),
                &options,
                None,
            )?)
        }
    })
}

/// Copies what is not zeroes, and returns how much that was.
fn copy(
    source: &dyn BlockDevice,
    target: &dyn BlockDevice,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    for extent in extents(source) {
        let extent = extent?;
        if extent.kind == ExtentKind::Zero {
            progress(extent.end());
            continue;
        }
        let mut at = extent.offset;
        while at < extent.end() {
            // Chunks end on multiples of their size, so that what the grains
            // are does not depend on how the source is cut into extents.
            let until = (at + 1).next_multiple_of(CHUNK as u64).min(extent.end());
            let chunk = &mut buffer[..(until - at) as usize];
            source.read_at(chunk, at)?;
            written += write_data(target, chunk, at)?;
            at = until;
            progress(at);
        }
    }
    Ok(written)
}

/// Writes the parts of a chunk that are not zeroes.
fn write_data(target: &dyn BlockDevice, chunk: &[u8], offset: u64) -> Result<u64> {
    let mut written = 0;
    let mut at = 0;
    while at < chunk.len() {
        let zero = is_zero(grain(chunk, at));
        let mut end = at;
        while end < chunk.len() && is_zero(grain(chunk, end)) == zero {
            end += grain(chunk, end).len();
        }
        if !zero {
            target.write_at(&chunk[at..end], offset + at as u64)?;
            written += (end - at) as u64;
        }
        at = end;
    }
    Ok(written)
}

fn grain(chunk: &[u8], at: usize) -> &[u8] {
    &chunk[at..chunk.len().min(at + GRAIN)]
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}
