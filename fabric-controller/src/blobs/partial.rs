//! A file that is being uploaded: what has arrived of it, and its running digest.
//!
//! Blocking; run where that is allowed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use fabric_proto::id::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Disk space that uploads leave free, in bytes: the store needs some to go on.
pub const RESERVE: u64 = 16 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
}

/// How much of the file has arrived; 0 if nothing has.
///
/// # Errors
///
/// It cannot be looked at.
pub fn length(path: &Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

/// Disk space that uploads may still use there, in bytes.
///
/// # Errors
///
/// The file system cannot be asked.
pub fn space(path: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)
        .map_err(|errno| Error::io("ask for the free space of", path)(errno.into()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    Ok(free.saturating_sub(RESERVE))
}

/// Reads what is left to read of a file.
fn hash(file: &mut File) -> io::Result<Sha256> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn digest(hasher: Sha256) -> Digest {
    Digest::of_sha256(&hasher.finalize().into())
}

/// Digest of a whole file.
///
/// # Errors
///
/// It cannot be read.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    Ok(digest(hash(&mut File::open(path)?)?))
}

impl Partial {
    /// Opens the file to go on at an offset; what was after it is dropped.
    ///
    /// # Errors
    ///
    /// Less than that has arrived, or the file cannot be read.
    pub fn resume(path: &Path, offset: u64) -> Result<Self> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut file = open.map_err(Error::io("open", path))?;
        let there = file.metadata().map_err(Error::io("look at", path))?.len();
        if offset > there {
            return Err(Error::Precondition(format!(
                "offset {offset}: only {there} bytes have arrived; BeginUpload says where to go on"
            )));
        }
        file.set_len(offset).map_err(Error::io("truncate", path))?;
        let hashed = file.seek(SeekFrom::Start(0)).and_then(|_| hash(&mut file));
        let hasher = hashed.map_err(Error::io("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            hasher,
            length: offset,
        })
    }

    /// How much has arrived.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Adds what has arrived next. When the disk is full, everything that has
    /// arrived is given up, so that the rest of the system can go on.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file cannot be written.
    pub fn append(&mut self, data: &[u8]) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let written = if space(directory)? < data.len() as u64 {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        } else {
            self.file.write_all(data)
        };
        if let Err(error) = written {
            let error = Error::io("write", &self.path)(error);
            if matches!(error, Error::Exhausted(_)) {
                // Removing may fail too; the first error is the one to tell.
                let _ = self.file.set_len(0);
                let _ = fs::remove_file(&self.path);
            }
            return Err(error);
        }
        self.hasher.update(data);
        self.length += data.len() as u64;
        Ok(())
    }

    /// Digest of what has arrived, once that is durable.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn finish(self) -> Result<Digest> {
        self.file
            .sync_all()
            .map_err(Error::io("write", &self.path))?;
        Ok(digest(self.hasher))
    }
}
