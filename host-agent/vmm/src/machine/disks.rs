//! Opens the disk images of a machine.

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

/// Opens the image of disk `index`, and those it stands on, as the configuration
/// says.
///
/// # Errors
///
/// When it cannot be opened or does not check.
pub fn open(index: usize, disk: &DiskConfig) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let image = open_image(index, disk)?;
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

fn open_image(index: usize, disk: &DiskConfig) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let fail = |source| DiskError::Open {
        index,
        serial: disk.serial.clone(),
        source,
    };
    match disk.format {
        DiskFormat::Raw => {
            let raw = Raw::open(&disk.path, disk.readonly).map_err(fail)?;
            Ok(Arc::new(raw))
        }
        DiskFormat::Vhd => {
            let options = if disk.readonly {
                OpenOptions::read_only()
            } else {
                OpenOptions::read_write().with_quota(disk.quota_bytes)
            };
            let options = options.with_parents(disk.parents.iter());
            let image = vhd::open(&disk.path, &options).map_err(fail)?;
            Ok(Arc::new(image))
        }
    }
}
