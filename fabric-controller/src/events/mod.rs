//! Reading the log of events, and keeping it bounded.
//!
//! Events are written in the transactions of what they tell about
//! ([`records::add_event`]); a cursor is an event's number in the log.

use std::sync::Arc;

use crate::{
    error::Result,
    model::event::EventRecord,
    records,
    store::{Op, Range, Store, StoreError, Txn},
};

/// Most events in one answer.
pub const PAGE: usize = 1000;

/// An event and its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Where it stands in the log.
    pub cursor: u64,
    /// The event.
    pub event: EventRecord,
}

/// Some of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Oldest first; only those that were asked for.
    pub events: Vec<Numbered>,
    /// Cursor up to which the log was read.
    pub read_to: u64,
    /// True if there was nothing after that.
    pub complete: bool,
    /// Revision of the store at which it was read.
    pub revision: u64,
}

/// Reads the events after a cursor, those about one subject unless it is empty.
///
/// # Errors
///
/// The store failed.
pub async fn read(store: &dyn Store, after: u64, limit: usize, subject: &str) -> Result<Page> {
    let mut read_to = after;
    let mut events = Vec::new();
    loop {
        let range = Range::prefix(records::EVENTS)
            .after(records::event(read_to))
            .limit(PAGE);
        let snapshot = store.range(range).await?;
        let complete = snapshot.entries.len() < PAGE;
        for entry in &snapshot.entries {
            let Some(cursor) = records::cursor(&entry.key) else {
                continue;
            };
            let event: EventRecord = records::decode(entry)?.value;
            read_to = cursor;
            if subject.is_empty() || event.subject == subject {
                events.push(Numbered { cursor, event });
                if events.len() == limit {
                    return Ok(Page {
                        events,
                        read_to,
                        complete: false,
                        revision: snapshot.revision,
                    });
                }
            }
        }
        if complete {
            return Ok(Page {
                events,
                read_to,
                complete,
                revision: snapshot.revision,
            });
        }
    }
}

/// Cursor of the newest event; 0 if there is none.
///
/// # Errors
///
/// The store failed.
pub async fn newest(store: &dyn Store) -> Result<u64> {
    let range = Range::prefix(records::EVENTS).newest_first().limit(1);
    let snapshot = store.range(range).await?;
    Ok(snapshot
        .entries
        .first()
        .and_then(|entry| records::cursor(&entry.key))
        .unwrap_or(0))
}

/// Forgets all but so many of the newest events.
///
/// # Errors
///
/// The store failed.
pub async fn trim(store: &dyn Store, keep: u64) -> Result<()> {
    let last = newest(store).await?.saturating_sub(keep);
    if last > 0 {
        let prefix = records::EVENTS.to_owned();
        let op = Op::DeleteUpTo {
            prefix,
            last: records::event(last),
        };
        store.txn(Txn::new().op(op)).await?;
    }
    Ok(())
}

/// Reads the log from a cursor on, and then what comes.
pub struct Follower {
    store: Arc<dyn Store>,
    subject: String,
    after: u64,
    watch: Option<Box<dyn crate::store::Watch>>,
}

impl Follower {
    /// From after that cursor, those about one subject unless it is empty.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, after: u64, subject: String) -> Self {
        Self {
            store,
            subject,
            after,
            watch: None,
        }
    }

    /// The next events; waits if there are none.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn next(&mut self) -> Result<Vec<Numbered>> {
        loop {
            let events = match self.watch.take() {
                None => self.read_log().await?,
                Some(watch) => self.read_watch(watch).await?,
            };
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    async fn read_log(&mut self) -> Result<Vec<Numbered>> {
        let page = read(&*self.store, self.after, PAGE, &self.subject).await?;
        self.after = self.after.max(page.read_to);
        if page.complete {
            self.watch = match self.store.watch(records::EVENTS, page.revision) {
                Ok(watch) => Some(watch),
                Err(StoreError::Compacted { .. }) => None,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(page.events)
    }

    /// One that was too slow reads the log again from where it was.
    async fn read_watch(
        &mut self,
        mut watch: Box<dyn crate::store::Watch>,
    ) -> Result<Vec<Numbered>> {
        let changes = match watch.next().await {
            Ok(changes) => changes,
            Err(StoreError::Compacted { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        self.watch = Some(watch);
        let mut events = Vec::new();
        for change in changes {
            let (Some(cursor), Some(value)) = (records::cursor(&change.key), change.value) else {
                continue;
            };
            let event: EventRecord = records::decode_value(&change.key, &value)?;
            if cursor > self.after {
                self.after = cursor;
                if self.subject.is_empty() || event.subject == self.subject {
                    events.push(Numbered { cursor, event });
                }
            }
        }
        Ok(events)
    }
}
