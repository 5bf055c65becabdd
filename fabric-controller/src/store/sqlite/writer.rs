//! The thread that writes: transactions, many to a commit.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::{end, failed, schema};
use crate::{
    fail_point::{self, Step},
    store::{Change, Compare, Op, Outcome, Revision, StoreError, Txn, history::History},
};

/// Most transactions in one commit.
const BATCH: usize = 256;

/// A transaction, and who waits for it.
pub(super) struct Request {
    pub(super) txn: Txn,
    pub(super) answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// What a commit will have done.
struct Batch {
    outcomes: Vec<Outcome>,
    changes: Vec<Change>,
    revision: Revision,
}

/// Writes until nobody can ask any more.
pub(super) fn run(
    mut connection: Connection,
    path: &Path,
    mut requests: mpsc::Receiver<Request>,
    history: &History,
) {
    while let Some(first) = requests.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = requests.try_recv()
        {
            batch.push(next);
        }
        commit(&mut connection, path, batch, history);
    }
}

fn commit(connection: &mut Connection, path: &Path, requests: Vec<Request>, history: &History) {
    let txns: Vec<_> = requests.iter().map(|request| &request.txn).collect();
    // An answer that nobody waits for any more is as good as given.
    match apply_all(connection, &txns) {
        Ok(done) => {
            if !done.changes.is_empty() {
                history.push(done.changes, done.revision);
            }
            for (request, outcome) in requests.into_iter().zip(done.outcomes) {
                let _ = request.answer.send(Ok(outcome));
            }
        }
        // Rolled back whole: SQLite does not say which of them it was.
        Err(source) => {
            let source = Arc::new(source);
            tracing::error!(error = %source, "the store could not commit");
            for request in requests {
                let _ = request.answer.send(Err(failed(path, &source)));
            }
        }
    }
}

fn apply_all(connection: &mut Connection, txns: &[&Txn]) -> rusqlite::Result<Batch> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let before = schema::revision(&transaction)?;
    let mut batch = Batch {
        outcomes: Vec::new(),
        changes: Vec::new(),
        revision: before,
    };
    fail_point::reached(Step::TransactionTaken);
    for txn in txns {
        let outcome = apply(&transaction, txn, &mut batch)?;
        batch.outcomes.push(outcome);
    }
    if batch.revision != before {
        transaction
            .prepare_cached("UPDATE store SET revision = ?1")?
            .execute([batch.revision])?;
    }
    fail_point::reached(Step::TransactionWritten);
    transaction.commit()?;
    fail_point::reached(Step::Committed);
    Ok(batch)
}

/// Conditions are checked before the first step, so that nothing needs undoing.
fn apply(connection: &Connection, txn: &Txn, batch: &mut Batch) -> rusqlite::Result<Outcome> {
    for compare in &txn.compares {
        if !holds(connection, compare)? {
            return Ok(Outcome::Conflict {
                key: compare.key.clone(),
            });
        }
    }
    let revision = batch.revision + 1;
    let before = batch.changes.len();
    for op in &txn.ops {
        step(connection, op, revision, &mut batch.changes)?;
    }
    // A transaction without effect leaves the revision as it is.
    if batch.changes.len() > before {
        batch.revision = revision;
    }
    Ok(Outcome::Committed(batch.revision))
}

fn holds(connection: &Connection, compare: &Compare) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("SELECT modified FROM entries WHERE key = ?1")?;
    let found: Option<Revision> = statement
        .query_row([&compare.key], |row| row.get(0))
        .optional()?;
    Ok(found == compare.modified)
}

fn step(
    connection: &Connection,
    op: &Op,
    revision: Revision,
    changes: &mut Vec<Change>,
) -> rusqlite::Result<()> {
    let mut changed = |key: String, value| {
        changes.push(Change {
            key,
            value,
            revision,
        });
    };
    match op {
        Op::Put { key, value } => {
            put(connection, key, value, revision)?;
            changed(key.clone(), Some(value.clone()));
        }
        Op::Delete { key } => {
            let mut statement = connection.prepare_cached("DELETE FROM entries WHERE key = ?1")?;
            if statement.execute([key])? > 0 {
                changed(key.clone(), None);
            }
        }
        Op::DeleteUpTo { prefix, last } => {
            let mut statement = connection.prepare_cached(
                "DELETE FROM entries WHERE key >= ?1 AND key < ?2 AND key <= ?3 RETURNING key",
            )?;
            let rows = statement.query_map(params![prefix, end(prefix), last], |row| row.get(0))?;
            for key in rows {
                changed(key?, None);
            }
        }
        Op::Append { log, value } => {
            let number = next_number(connection, log)?;
            let key = format!("{log}{number:020}");
            put(connection, &key, value, revision)?;
            changed(key, Some(value.clone()));
        }
    }
    Ok(())
}

fn put(
    connection: &Connection,
    key: &str,
    value: &Bytes,
    revision: Revision,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO entries (key, value, modified) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, modified = excluded.modified",
        )?
        .execute(params![key, value.as_ref(), revision])?;
    Ok(())
}

fn next_number(connection: &Connection, log: &str) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "INSERT INTO logs (log, last) VALUES (?1, 1)
             ON CONFLICT (log) DO UPDATE SET last = last + 1 RETURNING last",
        )?
        .query_row([log], |row| row.get(0))
}
