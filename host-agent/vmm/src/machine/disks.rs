//! Opens the disk images of a machine.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vhd::{BlockDevice, OpenOptions, Raw};

use crate::config::{DiskConfig, DiskFormat};

/// A disk image cannot be used.
#[derive(Debug, Error)]
#[error("cannot use disk {}", .path.display())]
pub struct DiskError {
    /// The image.
    path: PathBuf,
    /// Why.
    #[source]
    source: vhd::Error,
}

/// Opens the image, and those it stands on, as the configuration says.
///
/// # Errors
///
/// When it cannot be opened or does not check.
pub fn open(disk: &DiskConfig) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let fail = |source| DiskError {
        path: disk.path.clone(),
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
