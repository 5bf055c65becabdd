//! Where the controller keeps what it must not lose.
//!
//! [`Store`] is shaped like etcd: keys in order, a revision that counts up with
//! every transaction, transactions guarded by comparisons, and a watch from a
//! revision on. [`sqlite`] is the embedded implementation, [`memory`] one for
//! simulations; `conformance` are the tests that every implementation must pass, for other
//! crates with the feature of that name. What is kept under which key is
//! [`crate::records`]'s business.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod history;
pub mod memory;
pub mod sqlite;

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

/// Counts up with every transaction that changes something: by one, and from 0, where
/// nobody else uses the store.
pub type Revision = u64;

/// How much further up a restored store counts on: more transactions than there can have
/// been since its backup was made.
pub const LIFE: Revision = 1 << 32;

/// How often the store had been restored when it had that revision.
#[must_use]
pub const fn life(revision: Revision) -> u64 {
    revision / LIFE
}

/// A value and when it was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// Revision of the transaction that put it last.
    pub modified: Revision,
}

/// Entries, and the revision at which they were all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// By key.
    pub entries: Vec<Entry>,
    /// Revision of the store when they were read.
    pub revision: Revision,
}

/// Which keys: those that begin with a prefix and are greater than a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// They begin with this.
    pub prefix: String,
    /// They are greater than this; empty for all.
    pub after: String,
    /// At most so many, the first ones; `None` for all.
    pub limit: Option<usize>,
    /// Greatest first, and the limit counts from there.
    pub newest_first: bool,
}

impl Range {
    /// All keys that begin with this.
    #[must_use]
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            after: String::new(),
            limit: None,
            newest_first: false,
        }
    }

    /// Only those greater than this.
    #[must_use]
    pub fn after(self, key: impl Into<String>) -> Self {
        Self {
            after: key.into(),
            ..self
        }
    }

    /// Only so many.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Greatest first.
    #[must_use]
    pub fn newest_first(self) -> Self {
        Self {
            newest_first: true,
            ..self
        }
    }
}

/// A condition of a transaction: the key was modified at exactly this revision;
/// `None`: there is no such key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The revision.
    pub modified: Option<Revision>,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Puts a value under a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
    /// Deletes the keys that begin with a prefix and are not greater than a key.
    DeleteUpTo {
        /// They begin with this.
        prefix: String,
        /// They are not greater than this.
        last: String,
    },
    /// Puts a value at the end of a log: under its prefix and a number of 20
    /// digits, greater than any that was ever used there.
    Append {
        /// The prefix.
        log: String,
        /// The value.
        value: Bytes,
    },
}

/// Steps that are taken together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Taken in order.
    pub ops: Vec<Op>,
}

impl Txn {
    /// No condition, no step.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With the condition that the key was modified at this revision.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, modified: Option<Revision>) -> Self {
        self.compares.push(Compare {
            key: key.into(),
            modified,
        });
        self
    }

    /// With this step.
    #[must_use]
    pub fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// With this value put there.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.op(Op::Put {
            key: key.into(),
            value: value.into(),
        })
    }

    /// With this key deleted.
    #[must_use]
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.op(Op::Delete { key: key.into() })
    }

    /// With this value at the end of that log.
    #[must_use]
    pub fn append(self, log: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.op(Op::Append {
            log: log.into(),
            value: value.into(),
        })
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, at this revision.
    Committed(Revision),
    /// Nothing was done: this condition did not hold.
    Conflict {
        /// The key of the condition.
        key: String,
    },
}

/// One change that a watcher sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None` when it was deleted.
    pub value: Option<Bytes>,
    /// Revision of the transaction.
    pub revision: Revision,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room on the disk; nothing was changed, and it works again once there is.
    #[error("no disk space is left for the store {}; free some and try again", .path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// It may not be written; nothing was changed, and it works again once it may.
    #[error(
        "the store {} is read-only; have its file system mounted writable again (the kernel's log \
         says why it is not), and try again", .path.display()
    )]
    ReadOnly {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The disk does not do what is asked of it, as one that fails or has become read-only;
    /// nothing was changed, and it works again once the disk does.
    #[error(
        "the disk of the store {} fails, or may not be written; see the kernel's log, mend that, \
         and try again", .path.display()
    )]
    Disk {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says: which operation on the file.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The changes after that revision are not remembered; read everything again.
    #[error("the changes after revision {after} are no longer remembered")]
    Compacted {
        /// Where the watcher wanted to begin.
        after: Revision,
    },
    /// The file could not be opened.
    #[error("cannot open the store {}", .path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file was written by a version that this one does not know.
    #[error("the store {} has format {found}; this version knows {known}", .path.display())]
    Format {
        /// The store's file.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// The store failed.
    #[error("the store failed")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store's thread could not be started.
    #[error("cannot start the store's thread")]
    Thread(#[source] io::Error),
    /// The store is closed, or its thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// Sees every change under a prefix, in order.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next changes, all of one or more whole transactions.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] when the watcher was too slow, and
    /// [`StoreError::Closed`].
    async fn next(&mut self) -> Result<Vec<Change>, StoreError>;
}

/// See the [module](self).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry under a key.
    ///
    /// # Errors
    ///
    /// The store failed.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// The entries of a range, and the revision at which they were there.
    ///
    /// # Errors
    ///
    /// The store failed.
    async fn range(&self, range: Range) -> Result<Snapshot, StoreError>;

    /// The entries of several ranges at one revision.
    ///
    /// # Errors
    ///
    /// The store failed.
    async fn ranges(&self, ranges: Vec<Range>) -> Result<(Vec<Vec<Entry>>, Revision), StoreError>;

    /// Does all steps if all conditions hold. What it answers is durable.
    ///
    /// # Errors
    ///
    /// The store failed. Unless it is [`StoreError::Closed`], nothing was done.
    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Watches the keys that begin with a prefix, for changes after a revision.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] when those changes are no longer remembered.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError>;
}
