//! The store's file as a file: copied while it is written, looked through, and made
//! to count on from further up.

use std::{path::Path, sync::Arc};

use rusqlite::Connection;

use super::{entry, failed, schema};
use crate::store::{Entry, Revision, StoreError};

/// Copies the store to a new file, as it is at one revision, whoever writes it
/// meanwhile. Answers the revision.
///
/// # Errors
///
/// It cannot be read, or the new file cannot be written.
pub fn copy(from: &Path, to: &Path) -> Result<Revision, StoreError> {
    let reader = open(from)?;
    let target = to.to_string_lossy();
    let done = reader.execute("VACUUM INTO ?1", [&*target]);
    done.map_err(|source| failed(to, &Arc::new(source)))?;
    let copy = open(to)?;
    schema::revision(&copy).map_err(|source| failed(to, &Arc::new(source)))
}

/// What SQLite finds wrong with the file.
///
/// # Errors
///
/// It is none of ours, or cannot be read.
pub fn damage(path: &Path) -> Result<Vec<String>, StoreError> {
    let reader = open(path)?;
    let found = || -> rusqlite::Result<Vec<String>> {
        let mut statement = reader.prepare("PRAGMA integrity_check(100)")?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        lines.collect()
    };
    let lines = found().map_err(|source| failed(path, &Arc::new(source)))?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// All entries, by key, and the revision.
///
/// # Errors
///
/// It cannot be read.
pub fn entries(path: &Path) -> Result<(Vec<Entry>, Revision), StoreError> {
    let reader = open(path)?;
    let read = || -> rusqlite::Result<(Vec<Entry>, Revision)> {
        let mut statement =
            reader.prepare("SELECT key, value, modified FROM entries ORDER BY key")?;
        let rows = statement.query_map([], entry)?;
        Ok((rows.collect::<Result<_, _>>()?, schema::revision(&reader)?))
    };
    read().map_err(|source| failed(path, &Arc::new(source)))
}

/// Has the store count on from so much further up. Nobody else may have it open.
///
/// # Errors
///
/// It cannot be written.
pub fn raise(path: &Path, by: Revision) -> Result<Revision, StoreError> {
    let connection = schema::open(path)?;
    let raise = || -> rusqlite::Result<Revision> {
        connection.execute("UPDATE store SET revision = revision + ?1", [by])?;
        schema::revision(&connection)
    };
    raise().map_err(|source| failed(path, &Arc::new(source)))
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let reader = schema::open_reader(path)?;
    schema::check_format(path, &reader)?;
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store as _, Txn, sqlite::SqliteStore};

    #[tokio::test]
    async fn a_copy_is_what_was_there_and_the_store_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("store.db"), dir.path().join("copy.db"));
        let store = SqliteStore::open(&from).unwrap();
        store.txn(Txn::new().put("a", "1")).await.unwrap();
        assert_eq!(copy(&from, &to).unwrap(), 1);
        store.txn(Txn::new().put("b", "2")).await.unwrap();
        let (found, revision) = entries(&to).unwrap();
        assert_eq!((found.len(), revision), (1, 1));
        assert_eq!(found[0].value, "1");
        assert_eq!(damage(&to).unwrap(), Vec::<String>::new());
        assert_eq!(raise(&to, 1_000).unwrap(), 1_001);
        assert!(copy(&from, &to).is_err(), "nothing is written over");
    }
}
