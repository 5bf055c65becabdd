//! What is on record of a template, and whether its files are still those that
//! were verified.

use std::{
    collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path, time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::key::Inputs;
use crate::files;

/// Name of the record in a template's directory.
pub const RECORD: &str = "template.json";

/// Which file a file is, and in which state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Nothing for a file that gets and loses names, each of which changes this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed: Option<(i64, i64)>,
}

impl FileId {
    /// That of the file at `path`.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let facts = fs::metadata(path)?;
        Ok(Self {
            device: facts.dev(),
            inode: facts.ino(),
            bytes: facts.len(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: Some((facts.ctime(), facts.ctime_nsec())),
        })
    }

    /// That of a file to which instances have links.
    fn of_linked(path: &Path) -> io::Result<Self> {
        Ok(Self {
            changed: None,
            ..Self::of(path)?
        })
    }
}

/// What was verified, and when that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Start of the machine in which it was: after another, files can be of the
    /// same size and time without what was not written to the disk in time.
    host_boot_id: String,
    files: BTreeMap<String, FileId>,
}

impl Verified {
    /// The files of the template in `directory`, as they are now.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn now(directory: &Path, host_boot_id: &str) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for name in ["snapshot/state.json", "snapshot/memory"] {
            files.insert(name.to_owned(), FileId::of(&directory.join(name))?);
        }
        // The snapshot of before may be another template's, too.
        let linked: &[&str] = match super::booted_in(directory) {
            Some(_) => &[super::DISK, "booted/state.json", "booted/memory"],
            None => &[super::DISK],
        };
        for &name in linked {
            files.insert(name.to_owned(), FileId::of_linked(&directory.join(name))?);
        }
        Ok(Self {
            host_boot_id: host_boot_id.to_owned(),
            files,
        })
    }
}

/// A template's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it was made of.
    pub inputs: Inputs,
    /// When.
    pub made: SystemTime,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// Digest of its disk; its snapshot has those of its own.
    pub disk: String,
    /// What was verified.
    pub verified: Verified,
}

impl Record {
    /// Reads the record in a template's directory.
    ///
    /// # Errors
    ///
    /// When there is none that can be read.
    pub fn load(directory: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(directory.join(RECORD))?)?)
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        files::write_atomically(&directory.join(RECORD), &serde_json::to_vec_pretty(self)?)
    }
}

/// When a template was used last, which is when its record was touched last.
///
/// # Errors
///
/// What the file system says.
pub fn used(directory: &Path) -> io::Result<SystemTime> {
    fs::metadata(directory.join(RECORD))?.modified()
}

/// Takes down that a template is used now.
///
/// # Errors
///
/// What the file system says.
pub fn touch(directory: &Path) -> io::Result<()> {
    let file = fs::File::options()
        .append(true)
        .open(directory.join(RECORD))?;
    file.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leaves_a_disk_what_it_was_and_a_write_does_not() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir(path("snapshot")).unwrap();
        for name in ["snapshot/state.json", "snapshot/memory", "disk.vhd"] {
            fs::write(path(name), name).unwrap();
        }
        let look = || Verified::now(place.path(), "boot").unwrap();
        let before = look();
        fs::hard_link(path("disk.vhd"), path("link")).unwrap();
        assert_eq!(look(), before);
        assert_ne!(Verified::now(place.path(), "another").unwrap(), before);
        for name in ["snapshot/state.json", "snapshot/memory", "disk.vhd"] {
            let before = look();
            fs::write(path(name), name.to_uppercase()).unwrap();
            let file = fs::File::options().append(true).open(path(name)).unwrap();
            file.set_modified(SystemTime::now() + std::time::Duration::from_secs(1))
                .unwrap();
            assert_ne!(look(), before, "{name}");
        }
        fs::remove_file(path("snapshot/memory")).unwrap();
        assert!(Verified::now(place.path(), "boot").is_err());
    }
}
