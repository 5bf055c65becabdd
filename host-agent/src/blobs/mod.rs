//! Images and packages on this node, by digest.
//!
//! ```text
//! blobs/<hex>.part   being fetched; resumed from where it stopped
//! blobs/<hex>        whole, of that digest, a VHD that checks; read-only (0444)
//! ```
//!
//! A file gets its final name only after its digest and its structure have been
//! checked. One fetch per blob at a time, whoever asks.

mod fetch;
pub mod source;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use fabric_proto::id::Digest;
use source::{BlobSource, SourceError};

use crate::{
    files::{self, FileError},
    goal::BlobRef,
};

/// Disk space that is left alone, so that manifests and logs can be written.
const RESERVE: u64 = 64 * 1024 * 1024;

/// Why a blob is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The controller did not send it.
    #[error("cannot fetch {digest} from the controller")]
    Fetch {
        /// Which blob.
        digest: Digest,
        /// What went wrong.
        #[source]
        source: SourceError,
    },
    /// What came is not what was asked for.
    #[error("the controller sent {got} for {digest}; what came was thrown away")]
    Corrupt {
        /// Which blob.
        digest: Digest,
        /// What it is instead.
        got: String,
    },
    /// It is what was asked for, and not a VHD.
    #[error("{digest} is not a VHD that can be used; upload a sound one")]
    NotADisk {
        /// Which blob.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<vhd::Error>,
    },
    /// There is no room for it.
    #[error(
        "no disk space for {digest}: {needed} bytes are needed in {directory}, {free} are free; \
         free some, or move the data directory to a larger disk"
    )]
    NoRoom {
        /// Which blob.
        digest: Digest,
        /// Bytes needed, with the reserve.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Where.
        directory: PathBuf,
    },
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BlobError {
    /// Whether it may be gone by itself the next time.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::NotADisk { .. })
    }
}

/// The node's blobs.
#[derive(Debug)]
pub struct BlobCache {
    directory: PathBuf,
    source: Arc<dyn BlobSource>,
    in_use: Mutex<BTreeSet<Digest>>,
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// A blob that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Where.
    pub path: PathBuf,
    /// Whether it had to be fetched just now.
    pub fetched: bool,
}

impl BlobCache {
    /// The cache in that directory, filled from `source`.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn open(directory: PathBuf, source: Arc<dyn BlobSource>) -> Result<Self, BlobError> {
        fs::create_dir_all(&directory).map_err(FileError::at("create", &directory))?;
        Ok(Self {
            directory,
            source,
            in_use: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// Where a blob is, or will be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Says which blobs some instance needs: they are not removed to make room.
    pub fn keep(&self, digests: BTreeSet<Digest>) {
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }

    /// Makes sure that a blob is there.
    ///
    /// # Errors
    ///
    /// Says why it is not to be had; a part that was fetched stays for the next try.
    pub async fn ensure(&self, blob: &BlobRef) -> Result<Blob, BlobError> {
        let turn = self.turn(&blob.digest);
        let _mine = turn.lock().await;
        let path = self.path(&blob.digest);
        if path.exists() {
            return Ok(Blob {
                path,
                fetched: false,
            });
        }
        self.make_room(blob)?;
        fetch::fetch(&self.directory, self.source.as_ref(), blob).await?;
        Ok(Blob {
            path,
            fetched: true,
        })
    }

    /// Digests of the blobs that are there.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut digests: Vec<Digest> = entries
            .flatten()
            .filter_map(|entry| {
                format!("sha256:{}", entry.file_name().to_str()?)
                    .parse()
                    .ok()
            })
            .collect();
        digests.sort();
        digests
    }

    /// Removes blobs that nothing uses, until there is room.
    fn make_room(&self, blob: &BlobRef) -> Result<(), BlobError> {
        let part = fetch::part_path(&self.directory, &blob.digest);
        let there = fs::metadata(&part).map_or(0, |facts| facts.len());
        let needed = blob.bytes.saturating_sub(there).saturating_add(RESERVE);
        let in_use = self
            .in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let free = || files::free_bytes(&self.directory).map_err(FileError::at("examine", &part));
        for digest in self.digests() {
            if free()? >= needed {
                return Ok(());
            }
            if !in_use.contains(&digest) && digest != blob.digest {
                let path = self.path(&digest);
                tracing::info!(%digest, "removing a blob that nothing uses, to make room");
                files::remove_if_there(&path).map_err(FileError::at("remove", &path))?;
            }
        }
        let free = free()?;
        if free >= needed {
            return Ok(());
        }
        let (digest, directory) = (blob.digest.clone(), self.directory.clone());
        Err(BlobError::NoRoom {
            digest,
            needed,
            free,
            directory,
        })
    }

    fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(digest.clone()).or_default())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
