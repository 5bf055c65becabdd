//! A file that a machine boots from.

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};

/// A kernel or an initial RAM disk, kept open: a machine that is reset reads it
/// again, by then in a jail that has no such name.
#[derive(Debug)]
pub struct BootFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl BootFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> io::Result<BootFile> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(BootFile {
            path: path.to_owned(),
            file,
            length: metadata.len(),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read at places.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How long it was when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file from its beginning.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn reader(&self) -> io::Result<File> {
        let mut reader = self.file.try_clone()?;
        reader.rewind()?;
        Ok(reader)
    }
}
