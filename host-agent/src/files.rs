//! Files that are either there as a whole or not at all.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown,
    },
    path::{Path, PathBuf},
};

use fabric_proto::id::Digest;
use rustix::process::{getegid, geteuid};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::fail_point::{self, Step};

/// How the name of a file begins that is not written to its end.
const UNFINISHED: &str = ".new-";

/// The file system failed.
#[derive(Debug, Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    /// What was being done.
    action: &'static str,
    /// To what.
    path: PathBuf,
    /// What went wrong.
    source: io::Error,
}

impl FileError {
    /// What becomes of an error while this is done to `path`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

/// Writes a file so that after a crash at any moment either its old or its new
/// content is there.
///
/// # Errors
///
/// What the file system says; the old content is still there then.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_data()?;
    fail_point::reached(Step::FileWritten);
    file.persist(path)?;
    sync_directory(directory)
}

/// Opens a file for writing, as it is; one that is not there is made, for us alone.
///
/// # Errors
///
/// What the file system says.
pub fn open_or_make(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Removes files that an earlier process did not come to write to their ends. Nobody
/// may be writing any.
///
/// # Errors
///
/// What the file system says.
pub fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(UNFINISHED.as_bytes())
        {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes what was created, renamed or removed in a directory last.
///
/// # Errors
///
/// What the file system says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file; that it is not there is as good.
///
/// # Errors
///
/// What the file system says.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory and everything in it; that it is not there is as good.
///
/// # Errors
///
/// What the file system says.
pub fn remove_directory_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves a directory of files that another user made to where nobody else can change
/// its names, and makes it and them ours, for reading.
///
/// # Errors
///
/// When it holds anything else, or the file system fails.
pub fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    let strange = |path: &Path| io::Error::other(format!("{} is no file", path.display()));
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    fs::rename(from, to)?;
    if !fs::symlink_metadata(to)?.is_dir() {
        return Err(strange(to));
    }
    lchown(to, Some(uid), Some(gid))?;
    fs::set_permissions(to, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(to)? {
        let file = entry?.path();
        if !fs::symlink_metadata(&file)?.is_file() {
            return Err(strange(&file));
        }
        lchown(&file, Some(uid), Some(gid))?;
        fs::set_permissions(file, Permissions::from_mode(0o444))?;
    }
    Ok(())
}

/// A directory for us alone, made if it is not there; its full path.
///
/// # Errors
///
/// What the file system says.
pub fn private_directory(path: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    fs::canonicalize(path)
}

/// Digest of a file.
///
/// # Errors
///
/// What the file system says.
pub fn sha256(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::of_sha256(&sum.finalize().into())),
            count => sum.update(&buffer[..count]),
        }
    }
}

/// Bytes that the files in a directory take on the disk: memory is full of holes.
///
/// # Errors
///
/// What the file system says.
pub fn bytes_on_disk(directory: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        bytes = bytes.saturating_add(if facts.is_dir() {
            bytes_on_disk(&entry.path())?
        } else {
            // st_blocks counts in 512 bytes, whatever the file system's own are.
            facts.blocks().saturating_mul(512)
        });
    }
    Ok(bytes)
}

/// Does work that waits for the file system, where it holds up nothing else. On a runtime
/// of one thread it is done at once: whatever happens there happens in one order, as a
/// simulation needs it.
///
/// # Errors
///
/// Those of the work, and that it was cut off.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Gives a file a second name, or where that cannot be, makes a copy.
///
/// # Errors
///
/// What the file system says.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => fs::copy(from, to).map(drop),
        Ok(()) => Ok(()),
    }
}

/// Bytes of the file system of a path.
///
/// # Errors
///
/// What the file system says.
pub fn total_bytes(path: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(facts.f_blocks.saturating_mul(facts.f_frsize))
}

/// Bytes that are free for us on the file system of a path.
///
/// # Errors
///
/// What the file system says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // As it is where a process was killed meanwhile.
        fs::write(directory.path().join(".new-AbCdEf"), "n").unwrap();
        remove_unfinished(directory.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        remove_if_there(&path).unwrap();
        remove_if_there(&path).unwrap();
    }
}
