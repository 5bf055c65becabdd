//! What is wrong with a data directory or a backup.

use std::{collections::BTreeMap, fs, path::Path};

use serde::de::DeserializeOwned;

use super::{BLOBS, Found, Result, store_in};
use crate::{
    blobs::digest_of,
    model::{
        blame::Failures,
        blob::{BlobRecord, UploadRecord},
        event::EventRecord,
        instance::{InstanceRecord, Phase},
        node::{GoalRecord, NodeRecord},
        revision::Revision,
        service::ServiceRecord,
    },
    records,
    store::{Entry, sqlite::file},
    trust::{
        audit::AuditRecord,
        grant::{CertificateRecord, TokenRecord},
    },
};

/// Looks through a data directory or a backup: the file, every record, what records say
/// of each other and of files. With `digests`, every image and package is read.
///
/// # Errors
///
/// There is no store, or it cannot be read at all.
pub fn check(dir: &Path, digests: bool) -> Result<Found> {
    let store = store_in(dir)?;
    let mut problems: Vec<_> = file::damage(&store)?;
    let (entries, revision) = file::entries(&store)?;
    let mut kinds = BTreeMap::new();
    for entry in &entries {
        let kind = entry.key.split('/').next().unwrap_or_default();
        *kinds.entry(kind.to_owned()).or_default() += 1;
        problems.extend(wrong(entry));
        if entry.modified > revision {
            problems.push(format!(
                "{} was modified at revision {}, and the store is at {revision}",
                entry.key, entry.modified
            ));
        }
    }
    problems.extend(disagreements(&entries));
    for blob in blobs(&entries) {
        let path = dir.join(BLOBS).join(blob.digest.hex());
        problems.extend(wrong_file(&blob, &path, digests));
    }
    Ok(Found {
        revision,
        records: kinds,
        problems,
    })
}

pub(super) fn blobs(entries: &[Entry]) -> Vec<BlobRecord> {
    let blobs = entries
        .iter()
        .filter(|entry| entry.key.starts_with(records::BLOBS));
    let read = blobs.filter_map(|entry| serde_json::from_slice::<BlobRecord>(&entry.value).ok());
    let by_digest: BTreeMap<_, _> = read.map(|blob| (blob.digest.clone(), blob)).collect();
    by_digest.into_values().collect()
}

/// Why a value is not of its kind, if it is not.
type Unread = fn(&[u8]) -> Option<String>;

/// What is wrong with a record by itself.
fn wrong(entry: &Entry) -> Option<String> {
    let kinds: [(&str, Unread); 14] = [
        (records::NODES, unread::<NodeRecord>),
        (records::GOALS, unread::<GoalRecord>),
        (records::FAILURES, unread::<Failures>),
        ("node-events/", unread::<u64>),
        (records::SERVICES, unread::<ServiceRecord>),
        (records::REVISIONS, unread::<Revision>),
        (records::INSTANCES, unread::<InstanceRecord>),
        (records::BLOBS, unread::<BlobRecord>),
        (records::UPLOADS, unread::<UploadRecord>),
        (records::REQUESTS, unread::<serde_json::Value>),
        (records::EVENTS, unread::<EventRecord>),
        (records::AUDIT, unread::<AuditRecord>),
        (records::TOKENS, unread::<TokenRecord>),
        (records::CERTIFICATES, unread::<CertificateRecord>),
    ];
    match kinds.iter().find(|(kind, _)| entry.key.starts_with(kind)) {
        Some((_, unread)) => unread(&entry.value).map(|why| format!("{}: {why}", entry.key)),
        None => Some(format!("{}: no record is kept under such a key", entry.key)),
    }
}

fn unread<T: DeserializeOwned>(value: &[u8]) -> Option<String> {
    serde_json::from_slice::<T>(value)
        .err()
        .map(|error| error.to_string())
}

/// Where records say things of each other that cannot be.
fn disagreements(entries: &[Entry]) -> Vec<String> {
    fn all<T: DeserializeOwned>(entries: &[Entry], kind: &str) -> Vec<T> {
        let of = entries.iter().filter(|entry| entry.key.starts_with(kind));
        of.filter_map(|entry| serde_json::from_slice(&entry.value).ok())
            .collect()
    }
    let services: Vec<ServiceRecord> = all(entries, records::SERVICES);
    let instances: Vec<InstanceRecord> = all(entries, records::INSTANCES);
    let mut wrong = Vec::new();
    for one in &instances {
        let service = services.iter().find(|service| service.name == one.service);
        if service.is_none() && one.phase == Phase::Wanted {
            wrong.push(format!(
                "instance {} is of service {}, which is not there; it is removed once a \
                 controller runs",
                one.id, one.service
            ));
        }
    }
    wrong
}

pub(super) fn wrong_file(blob: &BlobRecord, path: &Path, digests: bool) -> Option<String> {
    let facts = match fs::metadata(path) {
        Ok(facts) => facts,
        Err(error) => return Some(format!("{} {}: {error}", blob.kind, blob.name)),
    };
    if facts.len() != blob.size_bytes {
        return Some(format!(
            "{} {}: its file has {} bytes, and should have {}",
            blob.kind,
            blob.name,
            facts.len(),
            blob.size_bytes
        ));
    }
    if !digests {
        return None;
    }
    match digest_of(path) {
        Ok(found) if found == blob.digest => None,
        Ok(found) => Some(format!(
            "{} {}: its file is {found}, and should be {}",
            blob.kind, blob.name, blob.digest
        )),
        Err(error) => Some(format!("{} {}: {error}", blob.kind, blob.name)),
    }
}
