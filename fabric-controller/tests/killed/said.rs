//! What a store says, to be compared: without times, without numbers that count
//! transactions, and without what is random.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use fabric_controller::{
    records,
    store::{Entry, sqlite::file},
    trust::audit::AuditRecord,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::sleep;

use crate::framework::SOON;

/// Fields that are another thing every time.
const FLEETING: [&str; 16] = [
    "at",
    "begun",
    "changed",
    "created",
    "ended",
    "epoch",
    "fingerprint",
    "held",
    "incarnation",
    "ready_since",
    "registered",
    "since_revision",
    "started",
    "time",
    "updated",
    "refused",
];
/// Events that come and go with a node's session: before its node is back, an instance has
/// no place.
const SESSIONS: [&str; 3] = ["NodeConnected", "NodeLost", "InstanceUnplaceable"];

/// All of a store, and its revision.
pub fn entries(dir: &Path) -> (Vec<Entry>, u64) {
    file::entries(&dir.join("d/store.db")).unwrap()
}

/// The records under a prefix, by key.
pub fn kept<T: DeserializeOwned>(dir: &Path, prefix: &str) -> Vec<T> {
    let (entries, _) = entries(dir);
    let entries = entries.iter().filter(|entry| entry.key.starts_with(prefix));
    let values = entries.map(|entry| serde_json::from_slice(&entry.value));
    values.map(Result::unwrap).collect()
}

/// What it says, a line for each thing, in order.
pub fn said(dir: &Path) -> Vec<String> {
    let (entries, _) = entries(dir);
    let mut lines: Vec<_> = entries.iter().filter_map(line).collect();
    lines.sort();
    lines
}

/// It comes to say what it should: what follows from a call is written after its answer.
pub async fn says(dir: &Path, should: &[String], what: &str) {
    let deadline = Instant::now() + SOON;
    let mut is = said(dir);
    while is != should && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
        is = said(dir);
    }
    let without = |all: &[String], others: &[String]| -> Vec<String> {
        let mut left = all.to_vec();
        for line in others {
            if let Some(at) = left.iter().position(|one| one == line) {
                left.remove(at);
            }
        }
        left
    };
    let (more, less) = (without(&is, should), without(should, &is));
    assert!(
        is == should,
        "{what}: there is {more:#?}, and there is no {less:#?}"
    );
}

/// How many entries of the audit log say that something was changed.
pub fn changes_audited(dir: &Path) -> usize {
    let (entries, _) = entries(dir);
    let audit = entries
        .iter()
        .filter(|entry| entry.key.starts_with(records::AUDIT));
    let records = audit.map(|entry| serde_json::from_slice::<AuditRecord>(&entry.value).unwrap());
    records.filter(|record| !record.changed.is_empty()).count()
}

fn line(entry: &Entry) -> Option<String> {
    let kind = entry.key.split_once('/').map(|(kind, _)| kind)?;
    let mut value: Value = serde_json::from_slice(&entry.value).unwrap();
    scrub(&mut value);
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    match kind {
        // The answer has times in it.
        "requests" => Some(entry.key.clone()),
        // The same call again is another entry, which changes nothing.
        "audit" => None,
        "events" if SESSIONS.contains(&text("reason").as_str()) => None,
        "events" => Some(format!("event {} {}", text("reason"), text("subject"))),
        "certificates" => {
            let revoked = !value["revoked"].is_null();
            Some(format!(
                "certificate {} {} revoked: {revoked}",
                text("role"),
                text("name")
            ))
        }
        "failures" => {
            count(&mut value);
            Some(format!("{} {value}", entry.key))
        }
        "tokens" => Some(format!("token {}", text("node"))),
        _ => Some(format!("{} {value}", entry.key)),
    }
}

/// How often something has failed: a failure is worth a hundred points, which become fewer
/// with time.
fn count(failures: &mut Value) {
    for failing in failures["of"].as_array_mut().unwrap() {
        let points = failing["points"]["points"].as_u64().unwrap();
        failing["points"] = points.next_multiple_of(100).into();
    }
}

fn scrub(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !FLEETING.contains(&name.as_str()));
            fields.values_mut().for_each(scrub);
        }
        Value::Array(values) => values.iter_mut().for_each(scrub),
        _ => {}
    }
}
