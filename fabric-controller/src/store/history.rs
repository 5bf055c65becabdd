//! The newest changes, in memory, for watchers.
//!
//! Bounded in changes and in bytes. A watcher that falls behind, or comes with a
//! revision from before the last start, is told that and reads everything again,
//! as with etcd after a compaction.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::store::{Change, Revision, StoreError, Watch};

/// Most changes remembered.
const CHANGES: usize = 8192;
/// Most bytes of values remembered.
const BYTES: usize = 16 << 20;

/// What is remembered.
#[derive(Debug)]
struct Memory {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Every change after this revision is in `changes`.
    complete_after: Revision,
}

impl Memory {
    fn push(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.bytes += size(&change);
            self.changes.push_back(change);
        }
        while self.changes.len() > CHANGES || self.bytes > BYTES {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
            self.complete_after = self.complete_after.max(oldest.revision);
        }
    }

    /// The changes in (`after`, `upto`] under a prefix.
    fn between(
        &self,
        after: Revision,
        upto: Revision,
        prefix: &str,
    ) -> Result<Vec<Change>, StoreError> {
        if after < self.complete_after {
            return Err(StoreError::Compacted { after });
        }
        let index = |revision| {
            self.changes
                .partition_point(|change| change.revision <= revision)
        };
        let newer = self.changes.range(index(after)..index(upto));
        Ok(newer
            .filter(|change| change.key.starts_with(prefix))
            .cloned()
            .collect())
    }
}

fn size(change: &Change) -> usize {
    change.key.len() + change.value.as_ref().map_or(0, bytes::Bytes::len)
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct History {
    memory: Arc<Mutex<Memory>>,
    newest: watch::Sender<Revision>,
}

impl History {
    /// Nothing is remembered of what was before this revision.
    pub(super) fn new(revision: Revision) -> Self {
        let memory = Memory {
            changes: VecDeque::new(),
            bytes: 0,
            complete_after: revision,
        };
        Self {
            memory: Arc::new(Mutex::new(memory)),
            newest: watch::Sender::new(revision),
        }
    }

    /// Remembers the changes of committed transactions and wakes the watchers.
    pub(super) fn push(&self, changes: Vec<Change>, revision: Revision) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(changes);
        self.newest.send_replace(revision);
    }

    /// The watchers' end.
    pub(super) fn watchable(&self) -> Watchable {
        Watchable {
            memory: Arc::clone(&self.memory),
            newest: self.newest.subscribe(),
        }
    }
}

/// The watchers' end. It learns from the end of [`History`] that the store is
/// closed.
#[derive(Debug, Clone)]
pub(super) struct Watchable {
    memory: Arc<Mutex<Memory>>,
    newest: watch::Receiver<Revision>,
}

impl Watchable {
    /// A watcher from that revision on.
    pub(super) fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<Box<dyn Watch>, StoreError> {
        self.between(after, after, prefix)?;
        Ok(Box::new(Watcher {
            from: self.clone(),
            prefix: prefix.to_owned(),
            after,
        }))
    }

    fn between(
        &self,
        after: Revision,
        upto: Revision,
        prefix: &str,
    ) -> Result<Vec<Change>, StoreError> {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .between(after, upto, prefix)
    }
}

#[derive(Debug)]
struct Watcher {
    from: Watchable,
    prefix: String,
    after: Revision,
}

#[async_trait]
impl Watch for Watcher {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let newest = *self.from.newest.borrow_and_update();
            if newest > self.after {
                let changes = self.from.between(self.after, newest, &self.prefix)?;
                self.after = newest;
                if !changes.is_empty() {
                    return Ok(changes);
                }
            }
            self.from
                .newest
                .changed()
                .await
                .map_err(|_| StoreError::Closed)?;
        }
    }
}
