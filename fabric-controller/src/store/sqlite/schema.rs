//! The tables, and how the file is opened.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::{
    fail_point::{self, Step},
    store::{Revision, StoreError},
};

/// Format of the file, in `user_version`; 0 is an empty file.
const FORMAT: u32 = 1;

const TABLES: &str = "
    CREATE TABLE entries (
        key      TEXT PRIMARY KEY,
        value    BLOB NOT NULL,
        modified INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE logs (
        log  TEXT PRIMARY KEY,
        last INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE store (
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO store (revision) VALUES (0);
";

/// Opens the file for the writer; makes the tables in a new one.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source: rusqlite::Error| StoreError::Open {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let mut connection = Connection::open(path).map_err(failed)?;
    prepare(&mut connection).map_err(failed)?;
    check_format(path, &connection)?;
    Ok(connection)
}

/// Whether the file is of the one format that is known.
pub(super) fn check_format(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let found = found.map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    if found == FORMAT {
        return Ok(());
    }
    Err(StoreError::Format {
        path: path.to_owned(),
        found,
        known: FORMAT,
    })
}

/// Sets up the connection, and a new file.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Every commit is on the disk before it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction()?;
    let found: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found != 0 {
        return Ok(());
    }
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    fail_point::reached(Step::TablesMade);
    transaction.commit()
}

/// Opens the file for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Revision of the store.
pub(super) fn revision(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT revision FROM store")?
        .query_row([], |row| row.get(0))
}
