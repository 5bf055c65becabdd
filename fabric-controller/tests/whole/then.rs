//! The store as controllers of before made it.

use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

/// The tables of format 1.
const TABLES: &str = "
    CREATE TABLE old.entries (
        key      TEXT PRIMARY KEY,
        value    BLOB NOT NULL,
        modified INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE old.logs (
        log  TEXT PRIMARY KEY,
        last INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE old.store (
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO old.entries SELECT * FROM main.entries WHERE key NOT LIKE 'revisions/%';
    INSERT INTO old.logs SELECT * FROM main.logs;
    INSERT INTO old.store SELECT * FROM main.store;
    PRAGMA old.user_version = 1;
";

/// Makes a store one of format 1, with services from before there were slots, and nodes
/// from before there was more than one architecture.
pub fn make(store: &Path) {
    let new = store.with_extension("then");
    let now = Connection::open(store).unwrap();
    let attach = "ATTACH DATABASE ?1 AS old";
    now.execute(attach, [new.to_string_lossy()]).unwrap();
    now.execute_batch(TABLES).unwrap();
    drop(now);
    let then = Connection::open(&new).unwrap();
    let mut services = then
        .prepare("SELECT key, value FROM entries WHERE key LIKE 'services/%'")
        .unwrap();
    let rows = services.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(String, Vec<u8>)> = rows.unwrap().map(Result::unwrap).collect();
    for (key, value) in rows {
        let old = serde_json::to_vec(&service(&value)).unwrap();
        let change = "UPDATE entries SET value = ?2 WHERE key = ?1";
        then.execute(change, (key, old)).unwrap();
    }
    drop(services);
    let nodes = "UPDATE entries
         SET value = CAST(json_remove(CAST(value AS TEXT), '$.inventory.architecture') AS BLOB)
         WHERE key LIKE 'nodes/%'";
    then.execute(nodes, []).unwrap();
    drop(then);
    std::fs::rename(new, store).unwrap();
    for end in ["-wal", "-shm"] {
        let file = format!("{}{end}", store.display());
        assert!(!Path::new(&file).exists(), "{file} is left");
    }
}

/// What is in production, beside the rest.
fn service(value: &[u8]) -> Value {
    let mut record: Value = serde_json::from_slice(value).unwrap();
    let version = record["slots"]["production"]["version"].take();
    let mut roles = version["roles"].clone();
    for role in roles.as_array_mut().unwrap() {
        *role = json!({
            "instances": role["instances"], "spec": role["spec"], "endpoints": [],
        });
    }
    let fields = record.as_object_mut().unwrap();
    fields.remove("slots");
    fields.insert(
        "definition_toml".to_owned(),
        version["definition_toml"].clone(),
    );
    fields.insert("roles".to_owned(), roles);
    record
}

/// The format of a store.
pub fn format(store: &Path) -> u32 {
    let store = Connection::open(store).unwrap();
    let found = store.pragma_query_value(None, "user_version", |row| row.get(0));
    found.unwrap()
}
