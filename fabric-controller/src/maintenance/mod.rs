//! What is done about a data directory as a whole: backups, checks, restores.
//!
//! A backup is a directory like a data directory: the store at one revision, the
//! images and packages that it names, and the CA. It is made while the controller
//! runs. What is restored counts on from far beyond what the backup had counted to:
//! nodes may have seen more since, and refuse what is older than that.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use fabric_proto::id::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::{
    data_dir::{DataDir, DataDirError},
    model::{
        blob::{BlobRecord, UploadRecord},
        event::EventRecord,
        instance::{InstanceRecord, Phase},
        node::{GoalRecord, NodeRecord},
        revision::Revision,
        service::ServiceRecord,
    },
    records,
    store::{Entry, StoreError, sqlite::file},
    trust::{
        audit::AuditRecord,
        grant::{CertificateRecord, TokenRecord},
    },
};

/// The store in a data directory.
const STORE: &str = "store.db";
/// Images and packages.
const BLOBS: &str = "blobs";
/// The CA.
const TRUST: &str = "trust";
/// How far beyond the backup a restored store counts on: more transactions than there
/// can have been since.
const BEYOND: u64 = 1 << 32;

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no store.
    #[error("there is no store in {}; is it a controller's data directory, or a backup of one?", .0.display())]
    NoStore(PathBuf),
    /// Something is there already.
    #[error("{} is there already; take another place, or remove it", .0.display())]
    Exists(PathBuf),
    /// There is something that would be replaced.
    #[error(
        "{} has a store already; with --force it is kept as {STORE}.replaced, and the \
         backup's takes its place", .0.display()
    )]
    Replaces(PathBuf),
    /// What is to be restored is not sound.
    #[error("{} is not sound, and is not restored: {}", .path.display(), .problems.join("; "))]
    Unsound {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        problems: Vec<String>,
    },
}

type Result<T> = std::result::Result<T, MaintenanceError>;

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> MaintenanceError + 'a {
    move |source| MaintenanceError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its revision.
    pub revision: u64,
    /// How many records of each kind.
    pub records: BTreeMap<String, usize>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Makes a backup of a data directory, whether a controller runs on it or not.
///
/// # Errors
///
/// It cannot be read, or the backup cannot be written; nothing is left of that.
pub fn backup(data_dir: &Path, to: &Path) -> Result<Found> {
    if to.exists() {
        return Err(MaintenanceError::Exists(to.to_owned()));
    }
    let store = data_dir.join(STORE);
    if !store.exists() {
        return Err(MaintenanceError::NoStore(data_dir.to_owned()));
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let part = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempdir_in(parent)
        .map_err(io("make a directory in", parent))?;
    let at = |name: &str| part.path().join(name);
    file::copy(&store, &at(STORE))?;
    let (entries, _) = file::entries(&at(STORE))?;
    fs::create_dir(at(BLOBS)).map_err(io("make", &at(BLOBS)))?;
    for blob in blobs(&entries) {
        let hex = blob.digest.hex();
        copy_file(&data_dir.join(BLOBS).join(hex), &at(BLOBS).join(hex))?;
    }
    copy_tree(&data_dir.join(TRUST), &at(TRUST))?;
    let found = check(part.path(), false)?;
    let made = part.keep();
    fs::rename(&made, to).map_err(io("name", to))?;
    sync(parent)?;
    Ok(found)
}

/// Looks through a data directory or a backup: the file, every record, what records say
/// of each other and of files. With `digests`, every image and package is read.
///
/// # Errors
///
/// There is no store, or it cannot be read at all.
pub fn check(dir: &Path, digests: bool) -> Result<Found> {
    let store = dir.join(STORE);
    if !store.exists() {
        return Err(MaintenanceError::NoStore(dir.to_owned()));
    }
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

/// Restores a backup into a data directory that no controller uses.
///
/// # Errors
///
/// The backup is not sound, there is a store that may not be replaced, or something
/// cannot be written. What was there is there then.
pub fn restore(from: &Path, data_dir: &Path, force: bool) -> Result<Found> {
    let mut found = check(from, true)?;
    if !found.problems.is_empty() {
        return Err(MaintenanceError::Unsound {
            path: from.to_owned(),
            problems: found.problems,
        });
    }
    let _ours = DataDir::open(data_dir)?;
    let at = |name: &str| data_dir.join(name);
    if at(STORE).exists() && !force {
        return Err(MaintenanceError::Replaces(data_dir.to_owned()));
    }
    let (entries, _) = file::entries(&from.join(STORE))?;
    for blob in blobs(&entries) {
        let path = at(BLOBS).join(blob.digest.hex());
        if !path.exists() {
            copy_file(&from.join(BLOBS).join(blob.digest.hex()), &path)?;
        }
    }
    let new = at("store.db.restoring");
    for stale in [
        new.clone(),
        at("store.db.restoring-wal"),
        at("store.db.restoring-shm"),
    ] {
        remove(&stale)?;
    }
    copy_file(&from.join(STORE), &new)?;
    found.revision = file::raise(&new, BEYOND)?;
    // Its log is in it once it is closed; the old one's belongs to the old one.
    for (old, kept) in [
        ("store.db-wal", "store.db.replaced-wal"),
        (STORE, "store.db.replaced"),
    ] {
        if at(old).exists() {
            fs::rename(at(old), at(kept)).map_err(io("move aside", &at(old)))?;
        }
    }
    remove(&at("store.db-shm"))?;
    if from.join(TRUST).exists() && !at(TRUST).exists() {
        copy_tree(&from.join(TRUST), &at(TRUST))?;
    }
    fs::rename(&new, at(STORE)).map_err(io("name", &at(STORE)))?;
    sync(data_dir)?;
    Ok(found)
}

fn blobs(entries: &[Entry]) -> Vec<BlobRecord> {
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
    let kinds: [(&str, Unread); 13] = [
        (records::NODES, unread::<NodeRecord>),
        (records::GOALS, unread::<GoalRecord>),
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

fn wrong_file(blob: &BlobRecord, path: &Path, digests: bool) -> Option<String> {
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
    match digest(path) {
        Ok(found) if found == blob.digest => None,
        Ok(found) => Some(format!(
            "{} {}: its file is {found}, and should be {}",
            blob.kind, blob.name, blob.digest
        )),
        Err(error) => Some(format!("{} {}: {error}", blob.kind, blob.name)),
    }
}

fn digest(path: &Path) -> io::Result<Digest> {
    let (mut hasher, mut file) = (Sha256::new(), File::open(path)?);
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => hasher.update(&piece[..count]),
        }
    }
    Ok(Digest::of_sha256(&hasher.finalize().into()))
}

/// Copies a file with its mode, and has it on the disk.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map_err(io("copy", from))?;
    sync(to)
}

/// Copies a directory of files, if it is there.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir(to).map_err(io("make", to))?;
    let mode = fs::metadata(from).map_err(io("look at", from))?;
    fs::set_permissions(to, mode.permissions()).map_err(io("set the mode of", to))?;
    for entry in fs::read_dir(from).map_err(io("read", from))? {
        let entry = entry.map_err(io("read", from))?;
        if entry.path().is_file() {
            copy_file(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(io("sync", path))
}
