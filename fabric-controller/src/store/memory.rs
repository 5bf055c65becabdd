//! A store in memory, for simulations: it outlives the controllers that are opened on
//! it, and nothing else. It never waits, so that what happens is in one order.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Change, Compare, Entry, Op, Outcome, Range, Revision, Snapshot, Store, StoreError, Txn, Watch,
    history::{History, Watchable},
};

/// See the [module](self).
#[derive(Debug)]
pub struct MemoryStore {
    kept: Mutex<Kept>,
    watchable: Watchable,
}

#[derive(Debug)]
struct Kept {
    entries: BTreeMap<String, (Bytes, Revision)>,
    /// The highest number in each log.
    logs: BTreeMap<String, u64>,
    revision: Revision,
    history: History,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let history = History::new(0);
        Self {
            watchable: history.watchable(),
            kept: Mutex::new(Kept {
                entries: BTreeMap::new(),
                logs: BTreeMap::new(),
                revision: 0,
                history,
            }),
        }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A transaction cannot panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn holds(&self, compare: &Compare) -> bool {
        let found = self.entries.get(&compare.key);
        found.map(|(_, modified)| *modified) == compare.modified
    }

    fn step(&mut self, op: &Op, changes: &mut Vec<Change>) {
        let revision = self.revision + 1;
        let mut changed = |key: &str, value| {
            changes.push(Change {
                key: key.to_owned(),
                value,
                revision,
            });
        };
        match op {
            Op::Put { key, value } => {
                self.entries.insert(key.clone(), (value.clone(), revision));
                changed(key, Some(value.clone()));
            }
            Op::Delete { key } => {
                if self.entries.remove(key).is_some() {
                    changed(key, None);
                }
            }
            Op::DeleteUpTo { prefix, last } => {
                let there = self.entries.range(prefix.clone()..).map(|(key, _)| key);
                let those = |key: &&String| key.starts_with(prefix.as_str()) && *key <= last;
                let keys: Vec<_> = there.take_while(those).cloned().collect();
                for key in keys {
                    self.entries.remove(&key);
                    changed(&key, None);
                }
            }
            Op::Append { log, value } => {
                let number = self.logs.entry(log.clone()).or_default();
                *number += 1;
                let key = format!("{log}{number:020}");
                self.entries.insert(key.clone(), (value.clone(), revision));
                changed(&key, Some(value.clone()));
            }
        }
    }

    fn range(&self, range: &Range) -> Vec<Entry> {
        let from = match range.after.as_str() > range.prefix.as_str() {
            true => Bound::Excluded(range.after.as_str()),
            false => Bound::Included(range.prefix.as_str()),
        };
        let there = self.entries.range::<str, _>((from, Bound::Unbounded));
        let there = there.take_while(|(key, _)| key.starts_with(&range.prefix));
        let entry = |(key, (value, modified)): (&String, &(Bytes, Revision))| Entry {
            key: key.clone(),
            value: value.clone(),
            modified: *modified,
        };
        let limit = range.limit.unwrap_or(usize::MAX);
        if range.newest_first {
            let mut all: Vec<_> = there
                .map(entry)
                .filter(|one| one.key > range.after)
                .collect();
            all.reverse();
            all.truncate(limit);
            return all;
        }
        let there = there.filter(|(key, _)| **key > range.after);
        there.take(limit).map(entry).collect()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let kept = self.lock();
        Ok(kept.entries.get(key).map(|(value, modified)| Entry {
            key: key.to_owned(),
            value: value.clone(),
            modified: *modified,
        }))
    }

    async fn range(&self, range: Range) -> Result<Snapshot, StoreError> {
        let kept = self.lock();
        Ok(Snapshot {
            entries: kept.range(&range),
            revision: kept.revision,
        })
    }

    async fn ranges(&self, ranges: Vec<Range>) -> Result<(Vec<Vec<Entry>>, Revision), StoreError> {
        let kept = self.lock();
        let all = ranges.iter().map(|range| kept.range(range)).collect();
        Ok((all, kept.revision))
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let mut kept = self.lock();
        if let Some(broken) = txn.compares.iter().find(|one| !kept.holds(one)) {
            return Ok(Outcome::Conflict {
                key: broken.key.clone(),
            });
        }
        let mut changes = Vec::new();
        for op in &txn.ops {
            kept.step(op, &mut changes);
        }
        // A transaction without effect leaves the revision as it is.
        if !changes.is_empty() {
            kept.revision += 1;
            kept.history.push(changes, kept.revision);
        }
        Ok(Outcome::Committed(kept.revision))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.watchable.watch(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_a_store() {
        // It outlives whoever has opened it.
        let stores = Mutex::new(BTreeMap::<String, Arc<MemoryStore>>::new());
        conformance::run(async |name: &str| {
            let mut stores = stores.lock().unwrap();
            Arc::clone(stores.entry(name.to_owned()).or_default()) as Arc<dyn Store>
        })
        .await;
        // One that is used for many things at once is one, too.
        let shared = Arc::new(MemoryStore::default());
        conformance::run(async |_: &str| Arc::clone(&shared) as Arc<dyn Store>).await;
    }

    #[tokio::test]
    async fn it_counts_by_one() {
        conformance::it_counts_by_one(&MemoryStore::default()).await;
    }
}
