//! One blob on its way from the controller into the cache.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fabric_proto::id::Digest;
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

use super::{
    BlobError,
    source::{BlobSource, SourceError},
};
use crate::{
    files::{self, FileError},
    goal::BlobRef,
};

/// A source that is silent for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a blob is while it is not whole.
pub(super) fn part_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join(format!("{}.part", digest.hex()))
}

/// Fetches a blob, from where an earlier fetch stopped.
pub(super) async fn fetch(
    directory: &Path,
    source: &dyn BlobSource,
    blob: &BlobRef,
) -> Result<(), BlobError> {
    let mut part = Part::open(directory, blob)?;
    part.fill(source).await?;
    // Reading tables and syncing a large file takes its time.
    files::blocking(move || Ok(part.finish()))
        .await
        .unwrap_or_else(|error| Err(FileError::at("check", directory)(error).into()))
}

/// A blob that is not whole.
struct Part {
    path: PathBuf,
    target: PathBuf,
    file: File,
    sum: Sha256,
    at: u64,
    blob: BlobRef,
}

impl Part {
    /// Opens what is there, and takes its digest as far as it goes.
    fn open(directory: &Path, blob: &BlobRef) -> Result<Self, BlobError> {
        let path = part_path(directory, &blob.digest);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(FileError::at("open", &path))?;
        let mut sum = Sha256::new();
        let at = take_in(&mut file, &mut sum).map_err(FileError::at("read", &path))?;
        let target = directory.join(blob.digest.hex());
        Ok(Self {
            path,
            target,
            file,
            sum,
            at,
            blob: blob.clone(),
        })
    }

    async fn fill(&mut self, source: &dyn BlobSource) -> Result<(), BlobError> {
        let total = self.blob.bytes;
        if self.at >= total {
            return Ok(());
        }
        let digest = self.blob.digest.clone();
        let failed = |source| BlobError::Fetch {
            digest: digest.clone(),
            source,
        };
        let mut pieces = tokio::time::timeout(PATIENCE, source.fetch(&digest, self.at))
            .await
            .unwrap_or(Err(SourceError::Stalled(PATIENCE)))
            .map_err(failed)?;
        loop {
            let piece = tokio::time::timeout(PATIENCE, pieces.next())
                .await
                .unwrap_or(Some(Err(SourceError::Stalled(PATIENCE))));
            let Some(piece) = piece else { break };
            let piece = piece.map_err(failed)?;
            self.at = self.at.saturating_add(piece.len() as u64);
            if self.at > total {
                return Err(self.throw_away(format!("more than {total} bytes")));
            }
            self.sum.update(&piece);
            self.file
                .write_all(&piece)
                .map_err(|error| self.write_failed(error))?;
        }
        if self.at < total {
            return Err(failed(SourceError::Short {
                at: self.at,
                of: total,
            }));
        }
        Ok(())
    }

    /// Checks what is there now and gives it its name.
    fn finish(self) -> Result<(), BlobError> {
        let got = Digest::of_sha256(&self.sum.clone().finalize().into());
        if self.at != self.blob.bytes || got != self.blob.digest {
            return Err(self.throw_away(format!("{} bytes of {got}", self.at)));
        }
        if let Err(error) = vhd::open(&self.path, &vhd::OpenOptions::read_only()) {
            self.throw_away(String::new());
            let source = Box::new(error);
            return Err(BlobError::NotADisk {
                digest: self.blob.digest,
                source,
            });
        }
        let publish = || {
            self.file.set_permissions(Permissions::from_mode(0o444))?;
            self.file.sync_all()?;
            fs::rename(&self.path, &self.target)?;
            files::sync_directory(self.target.parent().unwrap_or(Path::new(".")))
        };
        Ok(publish().map_err(FileError::at("keep", &self.target))?)
    }

    fn throw_away(&self, got: String) -> BlobError {
        if let Err(error) = files::remove_if_there(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a corrupt blob");
        }
        BlobError::Corrupt {
            digest: self.blob.digest.clone(),
            got,
        }
    }

    fn write_failed(&self, error: io::Error) -> BlobError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::NoRoom {
                digest: self.blob.digest.clone(),
                needed: self.blob.bytes.saturating_sub(self.at),
                free: files::free_bytes(&self.path).unwrap_or(0),
                directory: self.path.parent().unwrap_or(Path::new(".")).to_owned(),
            },
            _ => FileError::at("write", &self.path)(error).into(),
        }
    }
}

fn take_in(file: &mut File, sum: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                sum.update(&buffer[..count]);
                total += count as u64;
            }
        }
    }
}
