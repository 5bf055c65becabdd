//! What is done about a data directory as a whole: backups, checks, restores.
//!
//! A backup is a directory like a data directory: the store at one revision, the
//! images and packages that it names, and the CA. It is made while the controller
//! runs. What is restored counts on from far beyond what the backup had counted to:
//! nodes may have seen more since, and refuse what is older than that.
//!
//! Any of it may be cut off at any moment: of a backup there is nothing until all of it is
//! there, and of a restore all is as before until it is [decided](restore()), and from then on
//! as after it.

mod backup;
mod check;
mod files;
mod restore;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

pub use self::{
    backup::backup,
    check::check,
    restore::{finish_restore, restore},
};
use crate::{data_dir::DataDirError, store::StoreError};

/// The store in a data directory.
const STORE: &str = "store.db";
/// Images and packages.
const BLOBS: &str = "blobs";
/// The CA.
const TRUST: &str = "trust";
/// A store that was restored and is to take the store's place.
const RESTORED: &str = "store.db.restored";

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no store.
    #[error("there is no store in {}; is it a controller's data directory, or a backup of one?", .0.display())]
    NoStore(PathBuf),
    /// Somebody is at it already.
    #[error("another backup to {} is being made; wait for it, or take another place", .0.display())]
    BeingMade(PathBuf),
    /// Something is there already.
    #[error("{} is there already; take another place, or remove it", .0.display())]
    Exists(PathBuf),
    /// There is something that would be replaced.
    #[error(
        "{} has a store already; with --force it is kept as {STORE}.replaced, and the \
         backup's takes its place", .0.display()
    )]
    Replaces(PathBuf),
    /// What is to be restored is not sound.
    #[error("{} is not sound, and is not restored: {}", .path.display(), .problems.join("; "))]
    Unsound {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        problems: Vec<String>,
    },
}

type Result<T> = std::result::Result<T, MaintenanceError>;

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> MaintenanceError + 'a {
    move |source| MaintenanceError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its revision.
    pub revision: u64,
    /// How many records of each kind.
    pub records: BTreeMap<String, usize>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// The store in a data directory or a backup: the restored one, if the restore was cut
/// off after that was decided.
fn store_in(dir: &Path) -> Result<PathBuf> {
    let all = [RESTORED, STORE].map(|name| dir.join(name));
    let found = all.into_iter().find(|store| store.exists());
    found.ok_or_else(|| MaintenanceError::NoStore(dir.to_owned()))
}
