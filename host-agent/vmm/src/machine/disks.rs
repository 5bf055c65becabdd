//! The disk images of a machine: opened as whoever started it, checked in the jail.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vhd::{BlockDevice, OpenOptions, Raw};

use crate::config::{DiskConfig, DiskFormat};
use crate::devices::block::padded::Padded;

/// Why a disk image cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened, or is not right; the cause names the file.
    #[error("cannot use disk {index}{}", named(.serial))]
    Open {
        /// Which disk.
        index: usize,
        /// Its serial.
        serial: String,
        /// Why.
        #[source]
        source: vhd::Error,
    },
    /// It is larger than the guest is to see.
    #[error(
        "`disks[{index}].capacity_bytes` is {capacity}: the image {path} has {size} bytes, \
        which must not be more"
    )]
    Capacity {
        /// Which disk.
        index: usize,
        /// What the guest is to see.
        capacity: u64,
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

fn named(serial: &str) -> String {
    if serial.is_empty() {
        String::new()
    } else {
        format!(" (`{serial}`)")
    }
}

/// The image of a disk and those it stands on, open and locked.
pub enum Opened {
    /// Of which nothing is to be known.
    Raw(Raw),
    /// Of which nothing has been read yet.
    Vhd(vhd::Files),
}

/// Opens the image of disk `index`, and those it stands on, as the configuration
/// says.
///
/// # Errors
///
/// When one cannot be opened.
pub fn open(index: usize, disk: &DiskConfig) -> Result<Opened, DiskError> {
    match disk.format {
        DiskFormat::Raw => Raw::open(&disk.path, disk.readonly).map(Opened::Raw),
        DiskFormat::Vhd => {
            let options = if disk.readonly {
                OpenOptions::read_only()
            } else {
                OpenOptions::read_write().with_quota(disk.quota_bytes)
            };
            let options = options.with_parents(disk.parents.iter());
            vhd::Files::open(&disk.path, &options).map(Opened::Vhd)
        }
    }
    .map_err(failed(index, disk))
}

/// Checks an image, and has it as the guest is to see it.
///
/// # Errors
///
/// When it does not check.
pub fn check(
    index: usize,
    disk: &DiskConfig,
    opened: Opened,
) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let image: Arc<dyn BlockDevice> = match opened {
        Opened::Raw(raw) => Arc::new(raw),
        Opened::Vhd(files) => Arc::new(files.check().map_err(failed(index, disk))?),
    };
    let Some(capacity) = disk.capacity_bytes else {
        return Ok(image);
    };
    let size = image.size();
    match Padded::new(image, capacity) {
        Some(padded) => Ok(Arc::new(padded)),
        None => Err(DiskError::Capacity {
            index,
            capacity,
            path: disk.path.clone(),
            size,
        }),
    }
}

fn failed(index: usize, disk: &DiskConfig) -> impl FnOnce(vhd::Error) -> DiskError {
    move |source| DiskError::Open {
        index,
        serial: disk.serial.clone(),
        source,
    }
}
