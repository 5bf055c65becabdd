//! Opening a disk and the files below it, and whether they belong together.

use std::fs::File;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fixed::Fixed;
use super::locate::{Located, locate};
use super::sparse::{Sparse, read_header};
use super::{Body, Disk, OpenOptions};
use crate::device::BlockDevice as _;
use crate::error::{Defect, Error, Result, Structure};
use crate::format::{DiskType, Header, TimeStamp};
use crate::storage::{LockedFile, Storage};

/// Most files in a chain, the child included.
pub const MAX_CHAIN: usize = 8;

/// The files of a disk, open and locked. Nothing of them has been read yet: who is to read
/// them need not be who may open them.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    file: LockedFile,
    /// The files below, the lowest first.
    parents: Vec<(PathBuf, LockedFile)>,
    options: OpenOptions,
}

impl Files {
    /// Opens a file and the files below it.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let count = options.parents.len() + 1;
        if count > MAX_CHAIN {
            return Err(Error::ChainTooLong {
                path: path.to_owned(),
                count,
            });
        }
        let parents = options.parents.iter().rev();
        Ok(Self {
            parents: parents
                .map(|path| Ok((path.clone(), LockedFile::open(path, true)?)))
                .collect::<Result<_>>()?,
            file: LockedFile::open(path, options.read_only)?,
            path: path.to_owned(),
            options: options.clone(),
        })
    }

    /// Checks them, and whether they belong together, and has the disk.
    pub fn check(self) -> Result<Disk> {
        let below = OpenOptions {
            read_only: true,
            ignore_parent_time_stamp: self.options.ignore_parent_time_stamp,
            ..OpenOptions::default()
        };
        let mut parent = None;
        let mut modified = None;
        for (path, file) in self.parents {
            let modified_below = mem::replace(&mut modified, modification_time(&file));
            let opened = open_layer(&path, Box::new(file), &below, parent, modified_below)?;
            parent = Some(Arc::new(opened));
        }
        let file = Box::new(self.file);
        open_layer(&self.path, file, &self.options, parent, modified)
    }
}

/// Opens one disk of a chain over the ones below it.
pub(super) fn open_layer(
    path: &Path,
    storage: Box<dyn Storage>,
    options: &OpenOptions,
    parent: Option<Arc<Disk>>,
    parent_modified: Option<TimeStamp>,
) -> Result<Disk> {
    let located = locate(path, &*storage, options.expect)?;
    let disk_type = located.footer.disk_type;
    check_presence(path, disk_type, options.expect, parent.as_deref())?;
    let body = if disk_type == DiskType::Fixed {
        check_fixed(path, &located)?;
        Body::Fixed(Fixed::new(
            path.to_owned(),
            storage,
            located.footer.current_size,
        ))
    } else {
        let header = read_header(path, &*storage, &located.footer, located.limit())?;
        match parent.as_deref() {
            Some(parent) => {
                let modified = if options.ignore_parent_time_stamp {
                    Some(header.parent_time_stamp)
                } else {
                    parent_modified
                };
                check_parent(path, &located, &header, parent, modified)?;
            }
            None if disk_type == DiskType::Differencing => {
                let parent_name = header.parent_unicode_name;
                return Err(Error::ParentMissing {
                    path: path.to_owned(),
                    parent_name,
                });
            }
            None => {}
        }
        let sparse = Sparse::open(path, storage, &located, header, parent, options)?;
        Body::Sparse(Box::new(sparse))
    };
    Ok(Disk {
        path: path.to_owned(),
        footer: located.footer,
        read_only: options.read_only,
        repaired: located.defect,
        body,
    })
}

/// Checks the type against the record, and whether a parent is in place.
fn check_presence(
    path: &Path,
    found: DiskType,
    expected: Option<DiskType>,
    parent: Option<&Disk>,
) -> Result<()> {
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(Error::UnexpectedType {
            path: path.to_owned(),
            expected,
            found,
        });
    }
    match parent {
        Some(parent) if found != DiskType::Differencing => Err(Error::ParentUnexpected {
            path: path.to_owned(),
            disk_type: found,
            parent: parent.path.clone(),
        }),
        _ => Ok(()),
    }
}

/// Checks that all sectors of a fixed disk are in front of its footer.
fn check_fixed(path: &Path, located: &Located) -> Result<()> {
    let (size, there) = (located.footer.current_size, located.limit());
    if there >= size {
        return Ok(());
    }
    let rule = format!("the file is truncated: it has {there} bytes in front of the footer");
    Err(Error::invalid(
        path,
        Defect::new(Structure::Footer, "Current Size", size, rule),
    ))
}

/// Checks that `parent` is the disk from which the child was made.
///
/// "Parent Time Stamp" may be the time stamp in the parent's footer, which is
/// what this crate writes, for a copy of the file keeps it; or the time when
/// the parent file was last modified, which is what other tools write.
fn check_parent(
    path: &Path,
    located: &Located,
    header: &Header,
    parent: &Disk,
    parent_modified: Option<TimeStamp>,
) -> Result<()> {
    let mismatch = |field, expected, found| {
        let (path, parent) = (path.to_owned(), parent.path.clone());
        Err(Error::ParentMismatch {
            path,
            parent,
            field,
            expected,
            found,
        })
    };
    let unique_id = parent.footer.unique_id;
    if header.parent_unique_id != unique_id {
        let expected = header.parent_unique_id.to_string();
        return mismatch("Parent Unique ID", expected, unique_id.to_string());
    }
    let stamp = header.parent_time_stamp;
    if stamp != parent.footer.time_stamp && Some(stamp) != parent_modified {
        let found = parent.footer.time_stamp.to_string();
        return mismatch("Parent Time Stamp", stamp.to_string(), found);
    }
    let size = located.footer.current_size;
    if size < parent.size() {
        let expected = format!("at most {size}");
        return mismatch("Current Size", expected, parent.size().to_string());
    }
    Ok(())
}

/// When a file was last modified, if that can be told.
fn modification_time(file: &File) -> Option<TimeStamp> {
    file.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
        .map(TimeStamp::from)
}
