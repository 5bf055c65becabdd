//! What an image says about itself, without the files below it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{layout, locate, read_header};
use crate::error::{Defect, Error, Result};
use crate::format::{DiskType, Footer, Header, PlatformCode};
use crate::storage;

/// Everything that footer, header and table of an image say.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The image's file.
    pub path: PathBuf,
    /// Type of the disk.
    pub disk_type: DiskType,
    /// Size in bytes that a guest sees: "Current Size".
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes on its file system.
    pub file_allocated: u64,
    /// The hard disk footer.
    pub footer: Footer,
    /// What is wrong with the footer that was not used, of the two that a
    /// dynamic disk has.
    pub footer_defect: Option<Defect>,
    /// Size in bytes by "Disk Geometry", which Virtual PC uses, and QEMU for
    /// creators it does not know.
    pub geometry_size: u64,
    /// Header and blocks, of a disk that is not fixed.
    pub dynamic: Option<DynamicInfo>,
}

/// What the header and the table of a dynamic or differencing disk say.
#[derive(Debug, Clone, Serialize)]
pub struct DynamicInfo {
    /// The dynamic disk header.
    pub header: Header,
    /// Blocks that the disk has.
    pub blocks: u64,
    /// Blocks that are in the file.
    pub blocks_in_file: u64,
    /// What each parent locator says. For reading only: no tool should open
    /// what an image names.
    pub locators: Vec<LocatorInfo>,
}

/// A parent locator.
#[derive(Debug, Clone, Serialize)]
pub struct LocatorInfo {
    /// "Platform Code".
    pub platform_code: PlatformCode,
    /// What it names, if the code is known and the data is in the file.
    pub name: Option<String>,
}

/// Reads what an image says about itself.
///
/// Takes no lock, so that it works on a disk that is in use; what it says of
/// blocks is then what has been flushed.
///
/// Fails where footer or header do not check; [`check`](crate::check()) says
/// all that is wrong.
pub fn info(path: impl AsRef<Path>) -> Result<Info> {
    let path = path.as_ref();
    let file = storage::open_file(path, true)?;
    let metadata = file
        .metadata()
        .map_err(|source| Error::io(path, "inspect", source))?;
    let located = locate(path, &file, None)?;
    let footer = located.footer.clone();
    let dynamic = match footer.disk_type {
        DiskType::Fixed => None,
        DiskType::Dynamic | DiskType::Differencing => {
            let header = read_header(path, &file, &footer, located.limit())?;
            Some(dynamic_info(path, &file, &footer, header, located.limit())?)
        }
    };
    Ok(Info {
        path: path.to_owned(),
        disk_type: footer.disk_type,
        virtual_size: footer.current_size,
        file_len: metadata.len(),
        file_allocated: metadata.blocks() * 512,
        geometry_size: footer.disk_geometry.bytes(),
        footer,
        footer_defect: located.defect,
        dynamic,
    })
}

fn dynamic_info(
    path: &Path,
    file: &std::fs::File,
    footer: &Footer,
    header: Header,
    limit: u64,
) -> Result<DynamicInfo> {
    layout::check_table(&header, limit).map_err(|defect| Error::invalid(path, defect))?;
    let bat = layout::read_table(file, &header)
        .map_err(|source| Error::io(path, "read the block allocation table", source))?;
    let used = layout::used_entries(&bat).count() as u64;
    let locators = header
        .parent_locators
        .iter()
        .filter(|locator| locator.is_used());
    let locators = locators
        .map(|locator| LocatorInfo {
            platform_code: locator.platform_code,
            name: layout::read_locator(file, locator).ok().flatten(),
        })
        .collect();
    Ok(DynamicInfo {
        blocks: footer.current_size.div_ceil(u64::from(header.block_size)),
        blocks_in_file: used,
        locators,
        header,
    })
}
