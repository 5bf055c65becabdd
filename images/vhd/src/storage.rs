//! What an image needs from the file it is stored in.
//!
//! Everything that a disk does to its file goes through [`Storage`], so that
//! a test can put a file there that records, fails or forgets what had not
//! been synced. The one implementation for use is [`std::fs::File`].

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

use crate::error::{Error, Result};

/// A file as a disk uses it: positioned reads and writes from several threads.
pub trait Storage: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from byte `offset` on; fails where the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` from byte `offset` on, extending the file if need
    /// be.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file off, or extends it with zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes data and length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Makes a range inside the file read as zeroes, by a hole if possible.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether there is data at `offset` rather than a hole, and the offset at
    /// which that ends. Where the file system cannot tell, all is data.
    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)>;
}

impl Storage for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(self, hole, start, count) {
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return write_zeroes(self, offset, len),
                done => return Ok(done?),
            }
        }
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        let len = Storage::len(self)?;
        let Ok(start) = i64::try_from(offset) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let seek = |whence| match lseek64(self, start, whence) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(len)),
            Err(Errno::ENXIO) => Ok(len),
            Err(errno) => Err(errno),
        };
        match seek(Whence::SeekData) {
            Ok(data) if data > offset => Ok((false, data)),
            Ok(_) => Ok((true, seek(Whence::SeekHole)?)),
            Err(_) => Ok((true, len)),
        }
    }
}

/// Writes zeroes the slow way.
fn write_zeroes(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let part = len.min(ZEROES.len() as u64);
        FileExt::write_all_at(file, &ZEROES[..part as usize], offset)?;
        offset += part;
        len -= part;
    }
    Ok(())
}

/// Opens a regular file without a lock.
pub(crate) fn open_file(path: &Path, read_only: bool) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(|source| Error::io(path, "open", source))?;
    let metadata = file
        .metadata()
        .map_err(|source| Error::io(path, "inspect", source))?;
    if !metadata.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(Error::io(path, "use as a disk image", source));
    }
    Ok(file)
}

/// A file under a lock (`flock`), which ends when this is dropped, and at the
/// latest with the process.
///
/// Closing the file would not do: the lock belongs to whatever has the file
/// open, and that includes, for a moment, each process that another thread
/// has forked and that has not yet become another program.
#[derive(Debug)]
pub(crate) struct LockedFile(File);

impl LockedFile {
    /// Opens a file and locks it: alone for writing, shared for reading.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|source| Error::io(path, "open", source))?;
        let metadata = file
            .metadata()
            .map_err(|source| Error::io(path, "inspect", source))?;
        if !metadata.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path, "use as a disk image", source));
        }
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match locked {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Locked {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(Error::io(path, "lock", source)),
        }
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Storage for LockedFile {
    fn len(&self) -> io::Result<u64> {
        Storage::len(&self.0)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        Storage::read_exact_at(&self.0, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        Storage::write_all_at(&self.0, buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Storage::set_len(&self.0, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Storage::sync_data(&self.0)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero_range(offset, len)
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        self.0.data_run(offset)
    }
}
