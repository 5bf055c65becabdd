//! The embedded store: one SQLite file, in WAL mode, synchronous FULL.
//!
//! One thread writes ([`writer`]); what is asked of it while it commits goes into
//! the next commit together, so that many callers share one fsync. Reads have a
//! connection of their own and see what is committed. Watchers are served from
//! memory ([`history`](super::history)).

pub mod file;
mod schema;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::{
    Entry, Outcome, Range, Revision, Snapshot, Store, StoreError, Txn, Watch,
    history::{History, Watchable},
};

/// Transactions that may wait for the writer; callers beyond them wait.
const QUEUE: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// `None` only while it is dropped.
    queue: Option<mpsc::Sender<writer::Request>>,
    writer: Option<thread::JoinHandle<()>>,
    reader: Arc<Mutex<Connection>>,
    watchable: Watchable,
}

impl SqliteStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or another version has written it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::open(path)?;
        Self::with_writer(path, connection)
    }

    /// The same with room for so many pages of 4 KiB, as on a disk that is full.
    #[cfg(test)]
    pub fn open_small(path: &Path, pages: u32) -> Result<Self, StoreError> {
        let connection = schema::open(path)?;
        let set = connection.pragma_update(None, "max_page_count", pages);
        set.map_err(|source| failed(path, &Arc::new(source)))?;
        Self::with_writer(path, connection)
    }

    fn with_writer(path: &Path, connection: Connection) -> Result<Self, StoreError> {
        let reader = schema::open_reader(path)?;
        let revision =
            schema::revision(&reader).map_err(|source| failed(path, &Arc::new(source)))?;
        let history = History::new(revision);
        let watchable = history.watchable();
        let (queue, requests) = mpsc::channel(QUEUE);
        let owned = path.to_owned();
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer::run(connection, &owned, requests, &history))
            .map_err(StoreError::Thread)?;
        Ok(Self {
            path: path.to_owned(),
            queue: Some(queue),
            writer: Some(writer),
            reader: Arc::new(Mutex::new(reader)),
            watchable,
        })
    }

    /// Runs a read where it may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Arc::clone(&self.reader);
        let done = tokio::task::spawn_blocking(move || {
            read(&mut reader.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let result = done.await.map_err(|_| StoreError::Closed)?;
        result.map_err(|source| failed(&self.path, &Arc::new(source)))
    }
}

impl Drop for SqliteStore {
    /// Waits until everything that was asked is written and the file is closed.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's thread has panicked");
        }
    }
}

/// What the caller is told of an SQLite error.
fn failed(path: &Path, source: &Arc<rusqlite::Error>) -> StoreError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full {
            path: path.to_owned(),
        },
        Some(rusqlite::ErrorCode::ReadOnly) => StoreError::ReadOnly {
            path: path.to_owned(),
            source: source.clone(),
        },
        Some(rusqlite::ErrorCode::SystemIoFailure) => StoreError::Disk {
            path: path.to_owned(),
            source: source.clone(),
        },
        _ => StoreError::Backend(source.clone()),
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let value: Vec<u8> = row.get(1)?;
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(value),
        modified: row.get(2)?,
    })
}

/// The least key that is greater than all that begin with the prefix: keys are
/// UTF-8 and compared by byte, and no text goes on with this character.
fn end(prefix: &str) -> String {
    format!("{prefix}\u{10ffff}")
}

fn read_range(connection: &Connection, range: &Range) -> rusqlite::Result<Vec<Entry>> {
    let text = if range.newest_first {
        "SELECT key, value, modified FROM entries
         WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key DESC LIMIT ?4"
    } else {
        "SELECT key, value, modified FROM entries
         WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key LIMIT ?4"
    };
    let limit = range
        .limit
        .map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    let mut statement = connection.prepare_cached(text)?;
    let rows = statement.query_map(
        params![range.prefix, end(&range.prefix), range.after, limit],
        entry,
    )?;
    rows.collect()
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT key, value, modified FROM entries WHERE key = ?1")?;
            statement.query_row([key], entry).optional()
        })
        .await
    }

    async fn range(&self, range: Range) -> Result<Snapshot, StoreError> {
        let (mut all, revision) = self.ranges(vec![range]).await?;
        Ok(Snapshot {
            entries: all.pop().unwrap_or_default(),
            revision,
        })
    }

    async fn ranges(&self, ranges: Vec<Range>) -> Result<(Vec<Vec<Entry>>, Revision), StoreError> {
        self.read(move |connection| {
            let snapshot = connection.transaction()?;
            let revision = schema::revision(&snapshot)?;
            let all: rusqlite::Result<_> = ranges
                .iter()
                .map(|range| read_range(&snapshot, range))
                .collect();
            Ok((all?, revision))
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        let request = writer::Request { txn, answer };
        queue.send(request).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.watchable.watch(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_a_store() {
        let dir = tempfile::tempdir().unwrap();
        conformance::run(async |name: &str| {
            let file = dir.path().join(format!("{name}.db"));
            Arc::new(SqliteStore::open(&file).unwrap()) as Arc<dyn Store>
        })
        .await;
    }

    #[tokio::test]
    async fn it_counts_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("store.db")).unwrap();
        conformance::it_counts_by_one(&store).await;
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_it_was_closed_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let store = SqliteStore::open(&path).unwrap();
        for _ in 0..3 {
            store.txn(Txn::new().append("log/", "x")).await.unwrap();
        }
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        let snapshot = store.range(Range::prefix("log/")).await.unwrap();
        assert_eq!((snapshot.entries.len(), snapshot.revision), (3, 3));
        assert!(matches!(
            store.watch("", 1),
            Err(StoreError::Compacted { after: 1 })
        ));
        assert!(store.watch("", 3).is_ok());
    }

    #[tokio::test]
    async fn a_full_disk_is_told_as_such_and_the_store_works_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open_small(&dir.path().join("store.db"), 64).unwrap();
        store.txn(Txn::new().put("small", "before")).await.unwrap();
        let big = vec![0_u8; 1 << 20];
        let error = store
            .txn(Txn::new().put("big", big).delete("small"))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert_eq!(store.get("small").await.unwrap().unwrap().value, "before");
        store.txn(Txn::new().put("small", "after")).await.unwrap();
        assert_eq!(store.get("small").await.unwrap().unwrap().value, "after");
    }

    #[test]
    fn a_file_that_may_not_be_written_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let connection = schema::open(&path).unwrap();
        connection.pragma_update(None, "query_only", true).unwrap();
        let error = connection.execute("UPDATE store SET revision = 1", []);
        let error = failed(&path, &Arc::new(error.unwrap_err()));
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
        assert!(error.to_string().contains(&*path.to_string_lossy()));
    }

    fn format(path: &Path) -> u32 {
        let connection = Connection::open(path).unwrap();
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0));
        found.unwrap()
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        drop(SqliteStore::open(&path).unwrap());
        assert_eq!(format(&path), 3);
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 4).unwrap();
        drop(connection);
        let error = SqliteStore::open(&path).unwrap_err();
        let told = error.to_string();
        assert!(
            told.ends_with("has format 4; this version knows 3"),
            "{told}"
        );
        assert!(matches!(error, StoreError::Format { found: 4, .. }));
        assert_eq!(format(&path), 4);
    }

    #[tokio::test]
    async fn a_file_of_format_1_becomes_one_of_this_version_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        // As it was made then.
        let then = Connection::open(&path).unwrap();
        then.execute_batch(
            "CREATE TABLE entries (
                 key TEXT PRIMARY KEY, value BLOB NOT NULL, modified INTEGER NOT NULL
             ) STRICT;
             CREATE TABLE logs (log TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
             CREATE TABLE store (revision INTEGER NOT NULL) STRICT;
             INSERT INTO store (revision) VALUES (7);
             INSERT INTO logs (log, last) VALUES ('events/', 3);
             INSERT INTO entries (key, value, modified) VALUES ('services/shop', x'7b7d', 6);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        drop(then);
        // Who only looks changes nothing.
        assert_eq!(file::entries(&path).unwrap().1, 7);
        assert_eq!(format(&path), 1);

        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(format(&path), 3);
        let shop = store.get("services/shop").await.unwrap().unwrap();
        assert_eq!((shop.value.as_ref(), shop.modified), (&b"{}"[..], 6));
        let added = store.txn(Txn::new().append("events/", "x")).await.unwrap();
        assert_eq!(added, Outcome::Committed(8));
        let events = store.range(Range::prefix("events/")).await.unwrap();
        assert!(events.entries[0].key.ends_with("04"), "{events:?}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        std::fs::write(
            &path,
            "not a database, but long enough to look at".repeat(100),
        )
        .unwrap();
        assert!(matches!(
            SqliteStore::open(&path),
            Err(StoreError::Open { .. })
        ));
    }
}
