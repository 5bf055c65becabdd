//! Files that are copied, and are on the disk then.

use std::{
    fs::{self, File},
    io as std_io,
    path::Path,
};

use super::{Result, io};
use crate::fail_point::{self, Step};

/// Copies a file with its mode. Under its name there is all of it or nothing.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let part = to.with_added_extension("part");
    fs::copy(from, &part).map_err(io("copy", from))?;
    sync(&part)?;
    fail_point::reached(Step::FileCopied);
    fs::rename(&part, to).map_err(io("name", to))
}

/// Copies a directory of files, if it is there.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir(to).map_err(io("make", to))?;
    let mode = fs::metadata(from).map_err(io("look at", from))?;
    fs::set_permissions(to, mode.permissions()).map_err(io("set the mode of", to))?;
    for entry in fs::read_dir(from).map_err(io("read", from))? {
        let entry = entry.map_err(io("read", from))?;
        if entry.path().is_file() {
            copy_file(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    sync(to)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    absent(fs::remove_file(path)).map_err(io("remove", path))
}

/// Removes a directory and all that is in it, if it is there.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    absent(fs::remove_dir_all(path)).map_err(io("remove", path))
}

fn absent(removed: std_io::Result<()>) -> std_io::Result<()> {
    match removed {
        Err(error) if error.kind() == std_io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Has a file, or the names in a directory, on the disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(io("sync", path))
}
