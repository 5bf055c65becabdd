//! What can go wrong, one variant for each thing a caller can act on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::format::DiskType;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on an image failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused; the source says how.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as the end of "cannot ...".
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// The file is not a VHD, or a damaged one.
    #[error("{}: not a valid VHD: {defect}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field that breaks a rule, boxed to keep results small.
        defect: Box<Defect>,
    },

    /// Somebody else has the file open in a way that excludes this one.
    #[error(
        "{}: in use by another process; a writable disk is opened by one process alone, \
         and a disk that others read cannot be opened for writing",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },

    /// The file to be created is there already.
    #[error("{}: exists already; remove it first or choose another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },

    /// A write to a disk that was opened read-only.
    #[error("{}: opened read-only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },

    /// A request that reaches beyond the end of the disk.
    #[error("{len} bytes at offset {offset} reach beyond the end of the disk at {size}")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Bytes requested.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },

    /// A request that does not begin and end on a sector boundary.
    #[error("{len} bytes at offset {offset}: both must be multiples of 512")]
    Unaligned {
        /// First byte of the request.
        offset: u64,
        /// Bytes requested.
        len: u64,
    },

    /// The image is of another type than the caller's record says.
    #[error("{}: is a {found} disk, but a {expected} disk was expected", path.display())]
    UnexpectedType {
        /// The file.
        path: PathBuf,
        /// What the record says.
        expected: DiskType,
        /// What the file is.
        found: DiskType,
    },

    /// A differencing disk was opened without its parent.
    #[error(
        "{}: is a differencing disk and needs its parent, which it calls {parent_name:?}; \
         name the parent files, nearest first (names inside an image are never followed)",
        path.display()
    )]
    ParentMissing {
        /// The child.
        path: PathBuf,
        /// The "Parent Unicode Name" of its header.
        parent_name: String,
    },

    /// A parent was given for a disk that has none.
    #[error("{}: is a {disk_type} disk and has no parent, but {} was given", path.display(), parent.display())]
    ParentUnexpected {
        /// The disk without a parent.
        path: PathBuf,
        /// Its type.
        disk_type: DiskType,
        /// The parent that was given.
        parent: PathBuf,
    },

    /// The parent that was given is not the one the child was made from.
    #[error(
        "{}: is not the parent of {}: {field} is {found}, the child wants {expected}",
        parent.display(), path.display()
    )]
    ParentMismatch {
        /// The child.
        path: PathBuf,
        /// The parent that was given.
        parent: PathBuf,
        /// The child's field that does not match.
        field: &'static str,
        /// The child's value.
        expected: String,
        /// The parent's value.
        found: String,
    },

    /// The chain has too many files.
    #[error("{}: a chain of {count} files; at most {} are allowed", path.display(), crate::MAX_CHAIN)]
    ChainTooLong {
        /// The child at its end.
        path: PathBuf,
        /// Files in the chain, the child included.
        count: usize,
    },

    /// A size or option that a new image cannot have.
    #[error("{option} {value}: {rule}")]
    InvalidOption {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },

    /// The file has become as large as it may.
    #[error("{}: its quota of {quota} bytes is used up", path.display())]
    Quota {
        /// The file.
        path: PathBuf,
        /// How large it may become.
        quota: u64,
    },

    /// The block table cannot address any more of the file.
    #[error("{}: the file has grown to the format's limit of 2 TiB", path.display())]
    FileFull {
        /// The file.
        path: PathBuf,
    },

    /// An earlier flush failed, so what is on disk is unknown.
    #[error(
        "{}: an earlier flush failed; what reached the disk is unknown, so no further \
         writes are taken; close it, mend the storage underneath, and open it again",
        path.display()
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    /// An I/O error on `path` while trying to `operation`.
    pub(crate) fn io(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            operation,
            source,
        }
    }

    /// A defect of the image at `path`.
    pub(crate) fn invalid(path: &Path, defect: Defect) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            defect: Box::new(defect),
        }
    }

    /// The defect, when that is what this error is about.
    #[must_use]
    pub fn defect(&self) -> Option<&Defect> {
        match self {
            Self::Invalid { defect, .. } => Some(defect),
            _ => None,
        }
    }
}

/// A structure of the VHD format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// The hard disk footer at the end of the file.
    Footer,
    /// The copy of the footer at the beginning of a dynamic or differencing
    /// disk.
    FooterCopy,
    /// The dynamic disk header.
    Header,
    /// The block allocation table.
    BlockAllocationTable,
    /// A parent locator and the data it points to.
    ParentLocator,
    /// A block: sector bitmap and data.
    Block,
    /// The file as a whole.
    File,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Footer => "hard disk footer",
            Self::FooterCopy => "copy of the hard disk footer",
            Self::Header => "dynamic disk header",
            Self::BlockAllocationTable => "block allocation table",
            Self::ParentLocator => "parent locator",
            Self::Block => "block",
            Self::File => "file",
        })
    }
}

/// A field of an image that breaks a rule of the format: which field, what it
/// holds, and the rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Defect {
    /// The structure the field belongs to.
    pub structure: Structure,
    /// The field, by the name the specification gives it.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

impl Defect {
    /// A defect of `field` in `structure`.
    pub(crate) fn new(
        structure: Structure,
        field: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Self {
        Self {
            structure,
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            structure,
            field,
            value,
            rule,
        } = self;
        write!(f, "{structure}, {field} is {value}: {rule}")
    }
}
