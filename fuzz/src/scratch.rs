//! Files for what takes a path: in memory where the system has `/dev/shm`.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that goes with the process.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// A new one.
    ///
    /// # Panics
    ///
    /// When the system gives none.
    pub fn new() -> Self {
        let made = tempfile::Builder::new()
            .prefix("fabric-fuzz-")
            .tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir());
        Self(made.expect("a temporary folder"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file in it with these contents.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file in the temporary folder");
        path
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}
