//! Why the controller could not do what it was asked to.
//!
//! One variant for each thing that a caller can act on; [`crate::api::status`]
//! turns them into gRPC statuses.

use std::{io, path::PathBuf};

use crate::{model::definition::DefinitionError, store::StoreError};

/// See the [module](self).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the request is wrong: field, value and rule.
    #[error("{0}")]
    Invalid(String),
    /// The service file is wrong.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// There is no such thing.
    #[error("there is no {kind} {name:?}; {hint}")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// What it was called.
        name: String,
        /// How to see what there is.
        hint: &'static str,
    },
    /// It cannot be done as things are: what is in the way, and what to do.
    #[error("{0}")]
    Precondition(String),
    /// The caller may not do it: who, what, and what to do.
    #[error("{0}")]
    Denied(String),
    /// Something else was done at the same time; the caller may try again.
    #[error("{0}")]
    Aborted(String),
    /// Something that is needed is not there now; the caller may try again later.
    #[error("{0}")]
    Unavailable(String),
    /// A bound is reached, of the disk or of something else.
    #[error("{0}")]
    Exhausted(String),
    /// The store said so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record in the store is not what it should be.
    #[error("the record {key:?} in the store cannot be read")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was done, such as "write".
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in here went wrong.
    #[error("{0}")]
    Internal(String),
}

/// What can fail with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// There is no such node.
    #[must_use]
    pub fn no_node(name: &str) -> Self {
        Self::NotFound {
            kind: "node",
            name: short(name),
            hint: "see `fabctl node list`",
        }
    }

    /// There is no such service.
    #[must_use]
    pub fn no_service(name: &str) -> Self {
        Self::NotFound {
            kind: "service",
            name: short(name),
            hint: "see `fabctl service list`",
        }
    }

    /// There is no such instance.
    #[must_use]
    pub fn no_instance(name: &str) -> Self {
        Self::NotFound {
            kind: "instance",
            name: short(name),
            hint: "see `fabctl instance list`",
        }
    }

    /// There is no such blob.
    #[must_use]
    pub fn no_blob(kind: crate::model::blob::BlobKind, name: &str) -> Self {
        let hint = match kind {
            crate::model::blob::BlobKind::Image => "see `fabctl image list`",
            crate::model::blob::BlobKind::Package => "see `fabctl package list`",
        };
        Self::NotFound {
            kind: kind.word(),
            name: short(name),
            hint,
        }
    }

    /// True if it would work with more room on the disk, or a disk that can be written.
    #[must_use]
    pub const fn is_of_the_disk(&self) -> bool {
        matches!(
            self,
            Self::Store(
                StoreError::Full { .. } | StoreError::ReadOnly { .. } | StoreError::Disk { .. }
            )
        )
    }

    /// A file operation failed; a full disk is told as such.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Exhausted(format!(
                "no disk space is left to {what} {}; free some and try again",
                path.display()
            )),
            _ => Self::Io { what, path, source },
        }
    }
}

/// Hostile input is not repeated at length.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
