//! What is kept in the store under which key, as JSON.
//!
//! | keys | value |
//! |---|---|
//! | `nodes/NODE` | [`NodeRecord`](crate::model::node::NodeRecord) |
//! | `failures/NODE` | [`Failures`](crate::model::blame::Failures) |
//! | `goals/NODE` | [`GoalRecord`](crate::model::node::GoalRecord) |
//! | `node-events/NODE` | highest event sequence stored, a number |
//! | `services/SERVICE` | [`ServiceRecord`](crate::model::service::ServiceRecord) |
//! | `revisions/SERVICE/NUMBER` | [`Revision`](crate::model::revision::Revision) |
//! | `instances/ID` | [`InstanceRecord`](crate::model::instance::InstanceRecord) |
//! | `blobs/KIND/NAME` | [`BlobRecord`](crate::model::blob::BlobRecord) |
//! | `uploads/HEX` | [`UploadRecord`](crate::model::blob::UploadRecord) |
//! | `requests/ID` | [`crate::idempotency`]'s |
//! | `events/CURSOR` | a log of [`EventRecord`] |
//! | `audit/CURSOR` | a log of [`AuditRecord`](crate::trust::audit::AuditRecord) |
//! | `tokens/HASH` | [`TokenRecord`](crate::trust::grant::TokenRecord) |
//! | `certificates/SERIAL` | [`CertificateRecord`](crate::trust::grant::CertificateRecord) |

use bytes::Bytes;
use fabric_proto::id::{BlobName, Digest, InstanceId, NodeId, ServiceName};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    fail_point::{self, Step},
    model::{blob::BlobKind, event::EventRecord},
    store::{Entry, Outcome, Range, Revision, Store, Txn},
    trust::audit,
};

/// Prefix of the nodes.
pub const NODES: &str = "nodes/";
/// Prefix of the nodes' goals.
pub const GOALS: &str = "goals/";
/// Prefix of what has failed on nodes.
pub const FAILURES: &str = "failures/";
/// Prefix of the services.
pub const SERVICES: &str = "services/";
/// Prefix of what services were to be.
pub const REVISIONS: &str = "revisions/";
/// Prefix of the instances.
pub const INSTANCES: &str = "instances/";
/// Prefix of images and packages.
pub const BLOBS: &str = "blobs/";
/// Prefix of uploads that have begun.
pub const UPLOADS: &str = "uploads/";
/// Prefix of the requests that were done.
pub const REQUESTS: &str = "requests/";
/// The log of events.
pub const EVENTS: &str = "events/";
/// The audit log.
pub const AUDIT: &str = "audit/";
/// Prefix of the join tokens.
pub const TOKENS: &str = "tokens/";
/// Prefix of what is known of certificates.
pub const CERTIFICATES: &str = "certificates/";

/// Key of a node.
#[must_use]
pub fn node(id: &NodeId) -> String {
    format!("{NODES}{id}")
}

/// Key of a node's goal.
#[must_use]
pub fn goal(id: &NodeId) -> String {
    format!("{GOALS}{id}")
}

/// Key of what has failed on a node.
#[must_use]
pub fn failures(id: &NodeId) -> String {
    format!("{FAILURES}{id}")
}

/// Key of the highest event sequence that was stored of a node.
#[must_use]
pub fn node_events(id: &NodeId) -> String {
    format!("node-events/{id}")
}

/// Key of a service.
#[must_use]
pub fn service(name: &ServiceName) -> String {
    format!("{SERVICES}{name}")
}

/// Prefix of what a service was to be.
#[must_use]
pub fn revisions(name: &ServiceName) -> String {
    format!("{REVISIONS}{name}/")
}

/// Key of what a service was to be at a generation.
#[must_use]
pub fn revision(name: &ServiceName, number: u64) -> String {
    format!("{REVISIONS}{name}/{number:020}")
}

/// Key of an instance.
#[must_use]
pub fn instance(id: &InstanceId) -> String {
    format!("{INSTANCES}{id}")
}

/// Key of an image or a package.
#[must_use]
pub fn blob(kind: BlobKind, name: &BlobName) -> String {
    format!("{BLOBS}{kind}/{name}")
}

/// Prefix of the images.
#[must_use]
pub fn images() -> String {
    format!("{BLOBS}{}/", BlobKind::Image)
}

/// Key of an upload.
#[must_use]
pub fn upload(digest: &Digest) -> String {
    format!("{UPLOADS}{}", digest.hex())
}

/// Key of an event.
#[must_use]
pub fn event(cursor: u64) -> String {
    format!("{EVENTS}{cursor:020}")
}

/// Cursor of an event, from its key.
#[must_use]
pub fn cursor(key: &str) -> Option<u64> {
    log_cursor(EVENTS, key)
}

/// Key of an entry of the audit log.
#[must_use]
pub fn audit_entry(cursor: u64) -> String {
    format!("{AUDIT}{cursor:020}")
}

/// Where something stands in a log, from its key.
#[must_use]
pub fn log_cursor(log: &str, key: &str) -> Option<u64> {
    key.strip_prefix(log)?.parse().ok()
}

/// Key of a join token, by the hash of its secret.
#[must_use]
pub fn token(hash: &str) -> String {
    format!("{TOKENS}{hash}")
}

/// Key of what is known of a certificate.
#[must_use]
pub fn certificate(serial: &str) -> String {
    format!("{CERTIFICATES}{serial}")
}

/// A record, and when it was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<T> {
    /// The record.
    pub value: T,
    /// Revision that put it.
    pub modified: Revision,
}

/// The record of an entry.
///
/// # Errors
///
/// It is not one.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<Kept<T>> {
    let value = decode_value(&entry.key, &entry.value)?;
    Ok(Kept {
        value,
        modified: entry.modified,
    })
}

/// The record in a value.
///
/// # Errors
///
/// It is not one.
pub fn decode_value<T: DeserializeOwned>(key: &str, value: &Bytes) -> Result<T> {
    serde_json::from_slice(value).map_err(|source| Error::Record {
        key: key.to_owned(),
        source,
    })
}

/// The value of a record.
///
/// # Errors
///
/// It has none, which none of ours does.
pub fn encode(record: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(record)
        .map(Bytes::from)
        .map_err(|source| Error::Internal(format!("a record cannot be written: {source}")))
}

/// The record under a key.
///
/// # Errors
///
/// The store failed, or it is not such a record.
pub async fn get<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Kept<T>>> {
    store.get(key).await?.as_ref().map(decode).transpose()
}

/// The records under a prefix, by key.
///
/// # Errors
///
/// The store failed, or they are not such records.
pub async fn list<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Kept<T>>> {
    store
        .range(Range::prefix(prefix))
        .await?
        .entries
        .iter()
        .map(decode)
        .collect()
}

/// Puts a record only if what it replaces is unchanged since it was read.
///
/// # Errors
///
/// The record has no value, which none of ours does.
pub fn replace<T: Serialize>(
    txn: Txn,
    key: &str,
    old: Option<Revision>,
    record: &T,
) -> Result<Txn> {
    Ok(txn.when(key, old).put(key, encode(record)?))
}

/// Adds an event to a transaction.
///
/// # Errors
///
/// The event has no value, which none has.
pub fn add_event(txn: Txn, event: &EventRecord) -> Result<Txn> {
    Ok(txn.append(EVENTS, encode(event)?))
}

/// How often a transaction is planned anew because something else was faster.
const ATTEMPTS: usize = 32;

/// Plans and commits until nothing else was faster. What an audited call changes has its
/// entry in the audit log with it.
///
/// # Errors
///
/// Planning failed, the store failed, or something else was faster every time.
pub async fn commit<T, F>(store: &dyn Store, plan: impl Fn() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<(Txn, T)>> + Send,
{
    for _ in 0..ATTEMPTS {
        let (txn, answer) = plan().await?;
        if txn.ops.is_empty() {
            return Ok(answer);
        }
        match store.txn(audit::with_entry(txn)?).await? {
            Outcome::Committed(_) => {
                fail_point::reached(Step::Answering);
                audit::note_committed();
                return Ok(answer);
            }
            Outcome::Conflict { key } => tracing::debug!(key, "something else was faster"),
        }
    }
    Err(Error::Aborted(
        "too much else changed at the same time; try again".to_owned(),
    ))
}
