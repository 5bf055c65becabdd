//! Backups.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    BLOBS, Found, MaintenanceError, Result, STORE, TRUST,
    check::{blobs, check},
    files::{copy_file, copy_tree, remove_tree, sync},
    io, store_in,
};
use crate::{
    fail_point::{self, Step},
    store::sqlite::file,
};

/// Makes a backup of a data directory, whether a controller runs on it or not.
///
/// # Errors
///
/// It cannot be read, or the backup cannot be written; nothing is left of that. What one
/// leaves that is killed goes with the next one to the same place.
pub fn backup(data_dir: &Path, to: &Path) -> Result<Found> {
    if to.exists() {
        return Err(MaintenanceError::Exists(to.to_owned()));
    }
    let store = store_in(data_dir)?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let part = parent.join(format!(".{name}.part"));
    let _ours = claim(&part, to)?;
    let made = fill(&part, &store, data_dir);
    let named = made.and_then(|found| {
        fail_point::reached(Step::BackedUp);
        fs::rename(&part, to).map_err(io("name", to))?;
        sync(parent)?;
        Ok(found)
    });
    if named.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&part);
    }
    named
}

/// An empty directory that nobody else makes a backup in until the lock is dropped.
fn claim(part: &Path, to: &Path) -> Result<Flock<File>> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(part).map_err(io("make", part))?;
    let lock = File::open(part).map_err(io("open", part))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
    let lock = lock.map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => MaintenanceError::BeingMade(to.to_owned()),
        _ => io("lock", part)(errno.into()),
    })?;
    for stale in fs::read_dir(part).map_err(io("read", part))? {
        let stale = stale.map_err(io("read", part))?.path();
        if stale.is_dir() {
            remove_tree(&stale)?;
        } else {
            fs::remove_file(&stale).map_err(io("remove", &stale))?;
        }
    }
    Ok(lock)
}

fn fill(part: &Path, store: &Path, data_dir: &Path) -> Result<Found> {
    let at = |name: &str| part.join(name);
    file::copy(store, &at(STORE))?;
    sync(&at(STORE))?;
    fail_point::reached(Step::StoreBackedUp);
    let (entries, _) = file::entries(&at(STORE))?;
    fs::create_dir(at(BLOBS)).map_err(io("make", &at(BLOBS)))?;
    for blob in blobs(&entries) {
        let hex = blob.digest.hex();
        copy_file(&data_dir.join(BLOBS).join(hex), &at(BLOBS).join(hex))?;
    }
    sync(&at(BLOBS))?;
    copy_tree(&data_dir.join(TRUST), &at(TRUST))?;
    sync(part)?;
    check(part, false)
}
