//! A store whose transactions are counted, and the events in them.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::Metrics;
use crate::{
    model::event::EventRecord,
    records,
    store::{Entry, Op, Outcome, Range, Revision, Snapshot, Store, StoreError, Txn, Watch},
};

/// See the [module](self).
pub struct Counted {
    /// What does the work.
    pub store: Arc<dyn Store>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

#[async_trait]
impl Store for Counted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Snapshot, StoreError> {
        self.store.range(range).await
    }

    async fn ranges(&self, ranges: Vec<Range>) -> Result<(Vec<Vec<Entry>>, Revision), StoreError> {
        self.store.ranges(ranges).await
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let events = events(&txn);
        let begun = Instant::now();
        let outcome = self.store.txn(txn).await;
        let word = match &outcome {
            Ok(Outcome::Committed(_)) => "committed",
            Ok(Outcome::Conflict { .. }) => "conflict",
            Err(_) => "failed",
        };
        self.metrics
            .transaction(word, begun.elapsed().as_secs_f64());
        if let Ok(Outcome::Committed(_)) = outcome {
            for event in &events {
                self.metrics.event(event);
            }
        }
        outcome
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(prefix, after)
    }
}

/// The events that a transaction stores.
fn events(txn: &Txn) -> Vec<EventRecord> {
    let appended = txn.ops.iter().filter_map(|op| match op {
        Op::Append { log, value } if log == records::EVENTS => Some(value),
        _ => None,
    });
    appended
        .filter_map(|value| serde_json::from_slice(value).ok())
        .collect()
}
