//! The audit log: who made which call that changed something, or was to.
//!
//! What a call changes and its entry are one transaction: while a call that the table
//! says changes something is carried out, its [`Call`] goes with its task, and
//! [`records::commit`] puts the entry into what it commits. A call
//! that fails, is denied or changes nothing gets its entry afterwards.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::caller::Caller;
use crate::{
    clock,
    error::Result,
    model::time::WallTime,
    records,
    store::{Op, Range, Store, StoreError, Txn, Watch},
};

/// Most entries in one answer.
pub const PAGE: usize = 1000;
/// Most keys that an entry names.
const KEYS: usize = 16;
/// Longest line for people, in characters.
const LINE: usize = 500;
/// Denials that are written at once, after a quiet time.
const BURST: f64 = 100.0;
/// And how many a second from then on.
const A_SECOND: f64 = 10.0;
/// Keys that are there for the controller's own bookkeeping.
const OWN: [&str; 3] = [records::REQUESTS, records::EVENTS, records::AUDIT];

/// An entry as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub time: WallTime,
    /// Who.
    pub who: String,
    /// Serial of the certificate; empty without one.
    pub serial: String,
    /// From where.
    pub from: String,
    /// Which call.
    pub call: String,
    /// What it changed, by key.
    pub changed: Vec<String>,
    /// The call's request id.
    pub request_id: String,
    /// "OK" or a gRPC code.
    pub result: String,
    /// Why it failed.
    pub detail: String,
}

tokio::task_local! {
    /// The call that this task carries out, if it changes something.
    static CALL: Arc<Call>;
}

/// A call that changes something.
#[derive(Debug)]
pub struct Call {
    caller: Caller,
    name: &'static str,
    request_id: Mutex<String>,
    committed: AtomicBool,
}

impl Call {
    /// By someone.
    #[must_use]
    pub fn new(caller: Caller, name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            caller,
            name,
            request_id: Mutex::default(),
            committed: AtomicBool::new(false),
        })
    }

    /// Carries it out.
    pub async fn scope<F: Future>(self: &Arc<Self>, carry_out: F) -> F::Output {
        CALL.scope(Arc::clone(self), carry_out).await
    }

    /// Writes how it ended, unless that is in the log already.
    pub async fn ended(&self, store: &dyn Store, status: &Status) {
        if status.code() == Code::Ok && self.committed.load(Ordering::Relaxed) {
            return;
        }
        write(store, &self.entry(Vec::new(), status)).await;
    }

    fn entry(&self, changed: Vec<String>, status: &Status) -> AuditRecord {
        let request_id = self
            .request_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        AuditRecord {
            request_id: request_id.clone(),
            changed,
            ..entry(&self.caller, self.name, status)
        }
    }
}

/// An entry about a call that ended so.
#[must_use]
pub fn entry(caller: &Caller, call: &str, status: &Status) -> AuditRecord {
    let clean = |char: char| if char.is_control() { ' ' } else { char };
    AuditRecord {
        time: clock::now(),
        who: caller.to_string(),
        serial: caller.serial.clone(),
        from: caller.from.clone(),
        call: call.chars().take(LINE).collect(),
        changed: Vec::new(),
        request_id: String::new(),
        result: word(status.code()).to_owned(),
        detail: status.message().chars().take(LINE).map(clean).collect(),
    }
}

/// Writes an entry by itself. What it tells of has happened: that it cannot be written
/// is told, and no more.
pub async fn write(store: &dyn Store, entry: &AuditRecord) {
    let written = async {
        let txn = Txn::new().append(records::AUDIT, records::encode(entry)?);
        store.txn(txn).await.map_err(crate::error::Error::from)
    };
    if let Err(error) = written.await {
        tracing::error!(%error, ?entry, "cannot write to the audit log");
    }
}

/// Writes denials, but not too many: nobody fills the log, or the disk, by being denied.
#[derive(Debug)]
pub struct Denials(Mutex<Allowance>);

/// How many denials may still be written.
#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
    left_out: u64,
}

impl Default for Denials {
    fn default() -> Self {
        Self(Mutex::new(Allowance {
            left: BURST,
            since: Instant::now(),
            left_out: 0,
        }))
    }
}

impl Denials {
    /// Writes one, unless there have been too many.
    pub async fn write(&self, store: &dyn Store, caller: &Caller, call: &str, status: &Status) {
        let Some(left_out) = self.may_write() else {
            return;
        };
        let mut entry = entry(caller, call, status);
        if left_out > 0 {
            let note = format!(" ({left_out} denials before this one are left out)");
            entry.detail.push_str(&note);
        }
        write(store, &entry).await;
    }

    /// How many were left out before, if one more may be written.
    fn may_write(&self) -> Option<u64> {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.duration_since(allowance.since).as_secs_f64();
        allowance.since = now;
        allowance.left = (allowance.left + since * A_SECOND).min(BURST);
        if allowance.left < 1.0 {
            allowance.left_out += 1;
            return None;
        }
        allowance.left -= 1.0;
        Some(std::mem::take(&mut allowance.left_out))
    }
}

/// The call that is carried out has this request id.
pub fn note_request_id(id: &str) {
    let _ = CALL.try_with(|call| {
        let mut noted = call
            .request_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *noted = id.to_owned();
    });
}

/// With the entry of the call that is carried out, if it is one that changes something.
///
/// # Errors
///
/// The entry has no value, which none has.
pub fn with_entry(txn: Txn) -> Result<Txn> {
    let Ok(call) = CALL.try_with(Arc::clone) else {
        return Ok(txn);
    };
    let entry = call.entry(changed(&txn), &Status::ok(""));
    Ok(txn.append(records::AUDIT, records::encode(&entry)?))
}

/// What the call did is committed.
pub fn note_committed() {
    let _ = CALL.try_with(|call| call.committed.store(true, Ordering::Relaxed));
}

/// What a transaction changes. Keys that come from a secret show no more than its hash.
fn changed(txn: &Txn) -> Vec<String> {
    let keys = txn.ops.iter().filter_map(|op| match op {
        Op::Put { key, .. } | Op::Delete { key } => Some(key),
        Op::DeleteUpTo { .. } | Op::Append { .. } => None,
    });
    let keys: Vec<_> = keys
        .filter(|key| !OWN.iter().any(|own| key.starts_with(own)))
        .collect();
    let mut named: Vec<String> = keys.iter().take(KEYS).map(|key| (*key).clone()).collect();
    if keys.len() > KEYS {
        named.push(format!("and {} more", keys.len() - KEYS));
    }
    named
}

/// A gRPC code as the specification spells it.
const fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Some of the log.
pub struct Page {
    /// Oldest first, each with its cursor.
    pub entries: Vec<(u64, AuditRecord)>,
    /// Revision of the store at which it was read.
    pub revision: u64,
}

/// Reads the entries after a cursor.
///
/// # Errors
///
/// The store failed.
pub async fn read(store: &dyn Store, after: u64, limit: usize) -> Result<Page> {
    let range = Range::prefix(records::AUDIT)
        .after(records::audit_entry(after))
        .limit(limit.clamp(1, PAGE));
    let snapshot = store.range(range).await?;
    let mut entries = Vec::new();
    for entry in &snapshot.entries {
        if let Some(cursor) = records::log_cursor(records::AUDIT, &entry.key) {
            entries.push((cursor, records::decode(entry)?.value));
        }
    }
    Ok(Page {
        entries,
        revision: snapshot.revision,
    })
}

/// Cursor of the newest entry; 0 if there is none.
///
/// # Errors
///
/// The store failed.
pub async fn newest(store: &dyn Store) -> Result<u64> {
    let range = Range::prefix(records::AUDIT).newest_first().limit(1);
    let snapshot = store.range(range).await?;
    let first = snapshot.entries.first();
    Ok(first
        .and_then(|entry| records::log_cursor(records::AUDIT, &entry.key))
        .unwrap_or(0))
}

/// Forgets all but so many of the newest entries.
///
/// # Errors
///
/// The store failed.
pub async fn trim(store: &dyn Store, keep: u64) -> Result<()> {
    let last = newest(store).await?.saturating_sub(keep);
    if last > 0 {
        let op = Op::DeleteUpTo {
            prefix: records::AUDIT.to_owned(),
            last: records::audit_entry(last),
        };
        store.txn(Txn::new().op(op)).await?;
    }
    Ok(())
}

/// Reads the log from a cursor on, and then what comes.
pub struct Follower {
    store: Arc<dyn Store>,
    after: u64,
    watch: Option<Box<dyn Watch>>,
}

impl Follower {
    /// From after that cursor.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, after: u64) -> Self {
        Self {
            store,
            after,
            watch: None,
        }
    }

    /// The next entries; waits if there are none. Changes only say when to read on.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn next(&mut self) -> Result<Vec<(u64, AuditRecord)>> {
        loop {
            if let Some(watch) = &mut self.watch {
                match watch.next().await {
                    Ok(_) => {}
                    Err(StoreError::Compacted { .. }) => self.watch = None,
                    Err(error) => return Err(error.into()),
                }
            }
            let page = read(&*self.store, self.after, PAGE).await?;
            if let Some((cursor, _)) = page.entries.last() {
                self.after = *cursor;
                return Ok(page.entries);
            }
            if self.watch.is_none() {
                self.watch = match self.store.watch(records::AUDIT, page.revision) {
                    Ok(watch) => Some(watch),
                    Err(StoreError::Compacted { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
            }
        }
    }
}
