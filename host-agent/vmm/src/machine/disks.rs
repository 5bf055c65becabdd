//! Opens the disk images of a machine.

use std::sync::Arc;

use thiserror::Error;
use vhd::{BlockDevice, OpenOptions, Raw};

use crate::config::{DiskConfig, DiskFormat};

/// A disk image cannot be used; the cause names the file.
#[derive(Debug, Error)]
#[error("cannot use disk {index}{}", named(.serial))]
pub struct DiskError {
    index: usize,
    serial: String,
    #[source]
    source: vhd::Error,
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
    let fail = |source| DiskError {
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
                OpenOptions::read_write()
            };
            let options = options.with_parents(disk.parents.iter());
            let image = vhd::open(&disk.path, &options).map_err(fail)?;
            Ok(Arc::new(image))
        }
    }
}
