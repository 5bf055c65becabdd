//! The tables, and how the file is opened.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::{
    fail_point::{self, Step},
    store::{Revision, StoreError},
};

/// Format of the file, in `user_version`; 0 is an empty file. It is raised with every
/// change that a controller from before would not understand, be it of the tables or of
/// the records in them, which it would write back without what it does not know.
const FORMAT: u32 = 3;

/// What makes a file of each format, from 1 on, one of the next.
///
/// - 2: services have slots and updates, instances colours and epochs. They are read as they
///   were written, so there is nothing to do but to keep controllers of then away.
/// - 3: images and nodes have an architecture. Those of before are read as of x86-64.
const MIGRATIONS: [&str; FORMAT as usize - 1] = ["", ""];

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

/// Opens the file for the writer; makes the tables in a new one, and brings one of an older
/// format to this one.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source: rusqlite::Error| StoreError::Open {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let mut connection = Connection::open(path).map_err(failed)?;
    // Before anything is changed.
    if format(&connection).map_err(failed)? != 0 {
        check_format(path, &connection)?;
    }
    prepare(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// Whether the file is of a format that can be read: this one, or one of before.
pub(super) fn check_format(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let found = format(connection).map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    if (1..=FORMAT).contains(&found) {
        return Ok(());
    }
    Err(StoreError::Format {
        path: path.to_owned(),
        found,
        known: FORMAT,
    })
}

fn format(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Sets up the connection, and a file that is new or from before: whole, or not at all.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Every commit is on the disk before it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction()?;
    let step = match format(&transaction)? {
        FORMAT => return Ok(()),
        0 => {
            transaction.execute_batch(TABLES)?;
            Step::TablesMade
        }
        found => {
            for (migration, from) in MIGRATIONS.iter().zip(1..).filter(|(_, at)| *at >= found) {
                tracing::info!(from, to = from + 1, "bringing the store to another format");
                transaction.execute_batch(migration)?;
            }
            Step::Migrated
        }
    };
    transaction.pragma_update(None, "user_version", FORMAT)?;
    fail_point::reached(step);
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
