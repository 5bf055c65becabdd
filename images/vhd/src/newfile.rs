//! A file that appears under its name complete or not at all.
//!
//! It has no name until it is published: whatever ends the process before
//! that leaves nothing behind. On file systems that know no unnamed files it
//! has a temporary name beside its place.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file on its way to `path`.
pub(crate) struct NewFile {
    path: PathBuf,
    folder: PathBuf,
    place: Place,
}

enum Place {
    Unnamed(File),
    Named(NamedTempFile),
}

impl NewFile {
    /// Begins a file that is to become `path`, which must not exist.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists {
                path: path.to_owned(),
            });
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let unnamed = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(&folder);
        let place = match unnamed {
            Ok(file) => Place::Unnamed(file),
            Err(_) => NamedTempFile::new_in(&folder)
                .map(Place::Named)
                .map_err(|source| Error::io(path, "create", source))?,
        };
        Ok(Self {
            path: path.to_owned(),
            folder,
            place,
        })
    }

    /// The path it is to have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder it is to be in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        match &self.place {
            Place::Unnamed(file) => file,
            Place::Named(file) => file.as_file(),
        }
    }

    /// Turns an I/O error of this file into one of the crate.
    pub(crate) fn io(&self, operation: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::io(&self.path, operation, source)
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn publish(self) -> Result<()> {
        self.file().sync_all().map_err(self.io("flush"))?;
        let Self {
            path,
            folder,
            place,
        } = self;
        let named = match place {
            Place::Unnamed(file) => link(&file, &path),
            Place::Named(file) => file.persist_noclobber(&path).map(drop).map_err(|e| e.error),
        };
        named.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: path.clone() },
            _ => Error::io(&path, "give the new file its name", source),
        })?;
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| Error::io(&folder, "flush the folder", source))
    }
}

/// Gives an unnamed file a name.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let unnamed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(linkat(
        AT_FDCWD,
        &unnamed,
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn appears_when_published_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"whole").unwrap();
        assert!(!path.exists());
        new.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn leaves_nothing_behind_when_given_up() {
        let folder = tempfile::tempdir().unwrap();
        drop(NewFile::create(&folder.path().join("disk")).unwrap());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn never_replaces_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let new = NewFile::create(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(new.publish(), Err(Error::Exists { .. })));
        assert!(matches!(NewFile::create(&path), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
