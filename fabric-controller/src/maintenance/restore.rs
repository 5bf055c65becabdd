//! Restores.
//!
//! ```text
//! images, CA ──► store.db.restoring ──► store.db.restored ──► store.db
//!                  copied, raised         decided               the old one aside
//! ```

use std::{fs, path::Path};

use super::{
    BLOBS, Found, MaintenanceError, RESTORED, Result, STORE, TRUST,
    check::{blobs, check, wrong_file},
    files::{copy_file, copy_tree, remove, remove_tree, sync},
    io,
};
use crate::{
    data_dir::DataDir,
    fail_point::{self, Step},
    store::{LIFE, sqlite::file},
};

/// A store that is about to be restored.
const RESTORING: &str = "store.db.restoring";
/// A CA that is about to be restored.
const TRUST_RESTORING: &str = "trust.restoring";

/// Restores a backup into a data directory that no controller uses.
///
/// It is decided when the backup's store is whole beside the one that it is to replace.
/// What is cut off before that has changed nothing, and what is cut off after it is carried
/// on by whoever opens the directory next ([`finish_restore`]).
///
/// # Errors
///
/// The backup is not sound, there is a store that may not be replaced, or something
/// cannot be written. What was there is there then.
pub fn restore(from: &Path, data_dir: &Path, force: bool) -> Result<Found> {
    let mut found = check(from, true)?;
    if !found.problems.is_empty() {
        return Err(MaintenanceError::Unsound {
            path: from.to_owned(),
            problems: found.problems,
        });
    }
    let ours = DataDir::open(data_dir)?;
    let at = |name: &str| data_dir.join(name);
    let raised = found.revision + LIFE;
    if finish_restore(&ours)? && file::entries(&at(STORE))?.1 == raised {
        // It was this one that was cut off.
        found.revision = raised;
        return Ok(found);
    }
    if at(STORE).exists() && !force {
        return Err(MaintenanceError::Replaces(data_dir.to_owned()));
    }
    let (entries, _) = file::entries(&from.join(STORE))?;
    for blob in blobs(&entries) {
        let path = at(BLOBS).join(blob.digest.hex());
        if wrong_file(&blob, &path, true).is_some() {
            copy_file(&from.join(BLOBS).join(blob.digest.hex()), &path)?;
        }
    }
    sync(&at(BLOBS))?;
    fail_point::reached(Step::BlobsRestored);
    if from.join(TRUST).exists() && !at(TRUST).exists() {
        copy_tree(&from.join(TRUST), &at(TRUST_RESTORING))?;
        fail_point::reached(Step::TrustCopied);
        fs::rename(at(TRUST_RESTORING), at(TRUST)).map_err(io("name", &at(TRUST)))?;
    }
    let new = at(RESTORING);
    file::copy(&from.join(STORE), &new)?;
    sync(&new)?;
    fail_point::reached(Step::StoreCopied);
    found.revision = file::raise(&new, LIFE)?;
    fail_point::reached(Step::StoreRaised);
    fs::rename(&new, at(RESTORED)).map_err(io("name", &at(RESTORED)))?;
    sync(data_dir)?;
    fail_point::reached(Step::RestoreDecided);
    finish_restore(&ours)?;
    Ok(found)
}

/// Carries on a restore that was decided and cut off, and removes what is left of one that
/// was not decided. True if there was one to carry on.
///
/// # Errors
///
/// A file cannot be moved or removed.
pub fn finish_restore(data_dir: &DataDir) -> Result<bool> {
    let at = |name: &str| data_dir.path().join(name);
    for end in ["", "-wal", "-shm", "-journal"] {
        remove(&at(&format!("{RESTORING}{end}")))?;
    }
    remove_tree(&at(TRUST_RESTORING))?;
    if !at(RESTORED).exists() {
        return Ok(false);
    }
    let aside =
        |old: &str, kept: &str| fs::rename(at(old), at(kept)).map_err(io("move aside", &at(old)));
    if at(STORE).exists() {
        // Of a store that was replaced before.
        remove(&at("store.db.replaced-wal"))?;
        aside(STORE, "store.db.replaced")?;
    }
    fail_point::reached(Step::StoreAside);
    // The log belongs to the store of before, never to the new one.
    if at("store.db-wal").exists() {
        aside("store.db-wal", "store.db.replaced-wal")?;
    }
    remove(&at("store.db-shm"))?;
    fail_point::reached(Step::LogAside);
    fs::rename(at(RESTORED), at(STORE)).map_err(io("name", &at(STORE)))?;
    sync(data_dir.path())?;
    Ok(true)
}
