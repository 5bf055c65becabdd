//! Images and packages: files known by digest, each under one or more names.
//!
//! ```text
//! begin ──► uploads/HEX grows ──► digest right? VHD right? ──► blobs/HEX + record
//!              ▲      │                  │ no
//!              └──────┘ resumed          └──► thrown away, and told why
//! ```
//!
//! A file under `blobs/` is always whole and checked: it gets there by a rename
//! after both. Beginning an upload is a question as much as a change, so that it
//! needs no kept answer: asked again, it says where to go on *now*.
//!
//! For which processors an image is cannot be seen in its file, so that whoever brings it
//! says so, once: another name of the same file is for the same. Who says another for a
//! file that is known corrects it, under all names that it has. Services keep what was
//! said when their files were applied, as they keep the file that a name meant.

mod check;
mod partial;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fabric_proto::id::{BlobName, Digest};

use self::partial::Partial;
pub use self::partial::digest_of;
use crate::{
    aside, clock,
    error::{Error, Result},
    fail_point::{self, Step},
    model::{
        architecture::Architecture,
        blob::{BlobKind, BlobRecord, UploadRecord, UploadTarget, VhdFacts},
        event::{EventRecord, Reason, SubjectKind},
        instance::InstanceRecord,
        revision::Revision,
        service::ServiceRecord,
        time::WallTime,
    },
    records::{self, Kept},
    store::{Store, Txn},
};

/// Most bytes in one piece of an upload.
pub const PIECE: usize = 1 << 20;
/// Biggest file: the biggest VHD there is (2040 GiB) and its tables.
const BIGGEST: u64 = 2048 << 30;
/// Smallest file: a VHD's footer and one sector.
const SMALLEST: u64 = 1024;
/// How long an upload that nobody goes on with is kept.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// See the [module](self).
pub struct Blobs {
    store: Arc<dyn Store>,
    /// Whole files.
    files: PathBuf,
    /// Files that are being uploaded.
    uploads: PathBuf,
    /// Digests that someone is uploading now.
    active: Arc<Mutex<BTreeSet<Digest>>>,
    /// Held while files get under `blobs/` or are removed from there.
    moving: tokio::sync::Mutex<()>,
}

/// Where an upload is to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// From there.
    At(u64),
    /// It is complete.
    Complete(BlobRecord),
}

/// An upload that someone is at; ends when it is dropped.
#[derive(Debug)]
struct Active {
    digest: Digest,
    all: Arc<Mutex<BTreeSet<Digest>>>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.digest);
    }
}

/// An upload under way: takes the pieces in order.
#[derive(Debug)]
pub struct Upload {
    partial: Partial,
    size: u64,
    active: Active,
}

impl Upload {
    /// True once the whole file has arrived.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.partial.length() == self.size
    }

    /// How much has arrived, and of how much.
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        (self.partial.length(), self.size)
    }

    /// Adds a piece.
    ///
    /// # Errors
    ///
    /// It is not the next one, it is too big, or it cannot be written.
    pub async fn append(mut self, offset: u64, data: Bytes) -> Result<Self> {
        let at = self.partial.length();
        if offset != at {
            return Err(Error::Invalid(format!(
                "offset {offset}: the next piece begins at {at}"
            )));
        }
        if data.len() > PIECE {
            return Err(Error::Invalid(format!(
                "data: a piece has {} bytes; the most is {PIECE}",
                data.len()
            )));
        }
        if data.len() as u64 > self.size - at {
            return Err(Error::Invalid(format!(
                "data: there are more bytes than the {} that were announced",
                self.size
            )));
        }
        blocking(move || {
            self.partial.append(&data)?;
            fail_point::reached(Step::PieceWritten);
            Ok(self)
        })
        .await
    }
}

/// Runs what may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    aside::aside(work)
        .await
        .map_err(|_| Error::Internal("a file operation has panicked".to_owned()))?
}

impl Blobs {
    /// The files are in `blobs` and `uploads` of the data directory.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, data_dir: &Path) -> Self {
        Self {
            store,
            files: data_dir.join("blobs"),
            uploads: data_dir.join("uploads"),
            active: Arc::default(),
            moving: tokio::sync::Mutex::new(()),
        }
    }

    /// The whole file of that digest, if there is one.
    #[must_use]
    pub fn file(&self, digest: &Digest) -> PathBuf {
        self.files.join(digest.hex())
    }

    fn upload_file(&self, digest: &Digest) -> PathBuf {
        self.uploads.join(digest.hex())
    }

    /// Begins an upload, or finds where to go on with one.
    ///
    /// # Errors
    ///
    /// The size is impossible, the disk has no room, or the store failed.
    pub async fn begin(&self, target: UploadTarget, digest: Digest, size: u64) -> Result<Begun> {
        if !(SMALLEST..=BIGGEST).contains(&size) {
            return Err(Error::Invalid(format!(
                "size_bytes {size}: a VHD has {SMALLEST} to {BIGGEST} bytes"
            )));
        }
        let _moving = self.moving.lock().await;
        let file = self.file(&digest);
        let there = partial::length(&file)?;
        if there > 0 {
            if there != size {
                return Err(Error::Invalid(format!(
                    "size_bytes {size}: the file of that digest has {there} bytes"
                )));
            }
            let record = self
                .record(&[target], &digest, size, check(&file).await?)
                .await?;
            return Ok(Begun::Complete(record));
        }
        let arrived = partial::length(&self.upload_file(&digest))?.min(size);
        let space = partial::space(&self.uploads)?;
        if size - arrived > space {
            return Err(Error::Exhausted(format!(
                "no disk space for the {} bytes that are to come: {} has {space} to give; \
                 free some or delete images that nobody uses",
                size - arrived,
                self.uploads.display()
            )));
        }
        self.remember(&target, &digest, size).await?;
        Ok(Begun::At(arrived))
    }

    async fn remember(&self, target: &UploadTarget, digest: &Digest, size: u64) -> Result<()> {
        let key = records::upload(digest);
        let store = &*self.store;
        records::commit(store, || async {
            let kept = records::get::<UploadRecord>(store, &key).await?;
            let old = kept.as_ref().map(|kept| kept.modified);
            let mut targets = kept.map(|kept| kept.value.targets).unwrap_or_default();
            let same =
                |known: &UploadTarget| (known.kind, &known.name) == (target.kind, &target.name);
            let said = targets.iter().find(|known| same(known));
            let said = said.and_then(|known| known.architecture);
            let target = UploadTarget {
                architecture: target.architecture.or(said),
                ..target.clone()
            };
            // The newest is the last: it is the one that is answered.
            targets.retain(|known| !same(known));
            targets.push(target);
            let record = UploadRecord {
                size_bytes: size,
                targets,
                begun: clock::now(),
            };
            Ok((records::replace(Txn::new(), &key, old, &record)?, ()))
        })
        .await
    }

    /// Goes on with an upload at an offset.
    ///
    /// # Errors
    ///
    /// None has begun, someone else is at it, or less than that has arrived.
    pub async fn resume(&self, digest: &Digest, offset: u64) -> Result<Upload> {
        let key = records::upload(digest);
        let Some(record) = records::get::<UploadRecord>(&*self.store, &key).await? else {
            return Err(Error::Precondition(format!(
                "no upload of {digest} has begun; call BeginUpload first"
            )));
        };
        let active = self.claim(digest)?;
        let path = self.upload_file(digest);
        let size = record.value.size_bytes;
        blocking(move || {
            Ok(Upload {
                partial: Partial::resume(&path, offset)?,
                size,
                active,
            })
        })
        .await
    }

    /// One at a time goes on with an upload.
    fn claim(&self, digest: &Digest) -> Result<Active> {
        let mut all = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(digest.clone()) {
            return Ok(Active {
                digest: digest.clone(),
                all: Arc::clone(&self.active),
            });
        }
        Err(Error::Aborted(format!(
            "someone else is uploading {digest} at the moment; try again when that has ended"
        )))
    }

    /// Checks a file that has arrived and takes it in.
    ///
    /// # Errors
    ///
    /// The digest is another, or it is no VHD that a guest can be given: what
    /// has arrived is thrown away. Or a file or the store failed.
    pub async fn finish(&self, upload: Upload) -> Result<BlobRecord> {
        let Upload {
            partial,
            size,
            active,
        } = upload;
        let digest = &active.digest;
        let path = self.upload_file(digest);
        let found = blocking(move || partial.finish()).await?;
        fail_point::reached(Step::FileArrived);
        if found != *digest {
            self.discard(digest).await?;
            return Err(Error::Invalid(format!(
                "digest {digest}: the bytes that arrived are {found}; \
                 they were thrown away, upload the file again"
            )));
        }
        let facts = match check(&path).await {
            Ok(facts) => facts,
            Err(error) => {
                self.discard(digest).await?;
                return Err(error);
            }
        };
        let _moving = self.moving.lock().await;
        let key = records::upload(digest);
        let Some(record) = records::get::<UploadRecord>(&*self.store, &key).await? else {
            return Err(Error::Aborted(format!(
                "the upload of {digest} was given up; begin again"
            )));
        };
        fail_point::reached(Step::FileChecked);
        move_in(path, self.file(digest)).await?;
        fail_point::reached(Step::FileMoved);
        self.record(&record.value.targets, digest, size, facts)
            .await
    }

    /// Throws away what has arrived.
    async fn discard(&self, digest: &Digest) -> Result<()> {
        let path = self.upload_file(digest);
        blocking(move || remove(&path)).await?;
        fail_point::reached(Step::FileDiscarded);
        self.store
            .txn(Txn::new().delete(records::upload(digest)))
            .await?;
        Ok(())
    }

    /// Puts names on a file that is there, and what is said of it on all that it has;
    /// answers the last of them.
    async fn record(
        &self,
        targets: &[UploadTarget],
        digest: &Digest,
        size_bytes: u64,
        vhd: VhdFacts,
    ) -> Result<BlobRecord> {
        let store = &*self.store;
        let now = clock::now();
        let vhd = &vhd;
        records::commit(store, || async move {
            let mut txn = Txn::new();
            let mut last = None;
            let mut named = self.list(Some(BlobKind::Image)).await?;
            named.retain(|kept| kept.value.digest == *digest);
            let architecture = architecture(targets, &named);
            for UploadTarget { kind, name, .. } in targets {
                let key = records::blob(*kind, name);
                let old = records::get::<BlobRecord>(store, &key).await?;
                let same = old.as_ref().filter(|old| old.value.digest == *digest);
                let record = BlobRecord {
                    name: name.clone(),
                    kind: *kind,
                    digest: digest.clone(),
                    size_bytes,
                    vhd: vhd.clone(),
                    architecture: match kind {
                        BlobKind::Image => architecture,
                        BlobKind::Package => Architecture::default(),
                    },
                    created: same.map_or(now, |same| same.value.created),
                };
                if same.is_none_or(|same| same.value != record) {
                    txn = records::replace(txn, &key, old.map(|old| old.modified), &record)?;
                    txn = records::add_event(txn, &uploaded(&record, now))?;
                }
                named.retain(|kept| kept.value.name != record.name || *kind != BlobKind::Image);
                last = Some(record);
            }
            named.retain(|kept| kept.value.architecture != architecture);
            for Kept { value, modified } in named {
                let record = BlobRecord {
                    architecture,
                    ..value
                };
                let key = records::blob(record.kind, &record.name);
                txn = records::replace(txn, &key, Some(modified), &record)?;
                txn = records::add_event(txn, &uploaded(&record, now))?;
            }
            let key = records::upload(digest);
            if store.get(&key).await?.is_some() {
                txn = txn.delete(key);
            }
            let last =
                last.ok_or_else(|| Error::Internal("an upload without a name".to_owned()))?;
            Ok((txn, last))
        })
        .await
    }

    /// The blob of that kind and name or digest, with when it was put.
    ///
    /// # Errors
    ///
    /// There is none, or the store failed.
    pub async fn find(&self, kind: BlobKind, name: &str) -> Result<Kept<BlobRecord>> {
        if let Ok(name) = name.parse::<BlobName>() {
            let found = records::get(&*self.store, &records::blob(kind, &name)).await?;
            return found.ok_or_else(|| Error::no_blob(kind, name.as_str()));
        }
        if let Ok(digest) = name.parse::<Digest>() {
            let all: Vec<Kept<BlobRecord>> = self.list(Some(kind)).await?;
            let found = all.into_iter().find(|kept| kept.value.digest == digest);
            return found.ok_or_else(|| Error::no_blob(kind, name));
        }
        Err(Error::no_blob(kind, name))
    }

    /// All blobs, or those of one kind, by kind and name.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn list(&self, kind: Option<BlobKind>) -> Result<Vec<Kept<BlobRecord>>> {
        let prefix = kind.map_or_else(
            || records::BLOBS.to_owned(),
            |kind| format!("{}{kind}/", records::BLOBS),
        );
        records::list(&*self.store, &prefix).await
    }

    /// Removes files that nothing refers to, and uploads that were given up.
    ///
    /// # Errors
    ///
    /// The store or a file failed.
    pub async fn sweep(&self) -> Result<()> {
        let _moving = self.moving.lock().await;
        let uploads = self.current_uploads().await?;
        let mut referred = self.referred().await?;
        // One that had just arrived when the controller was killed has no name
        // yet; its upload, begun again, finds it.
        referred.extend(uploads.iter().cloned());
        let (files, partials) = (self.files.clone(), self.uploads.clone());
        blocking(move || {
            remove_others(&files, &referred)?;
            remove_others(&partials, &uploads)
        })
        .await
    }

    /// Names of the files that a name, a service or an instance refers to.
    async fn referred(&self) -> Result<BTreeSet<String>> {
        let store = &*self.store;
        let mut referred = BTreeSet::new();
        let mut refer = |digest: &Digest| referred.insert(digest.hex().to_owned());
        for kept in self.list(None).await? {
            refer(&kept.value.digest);
        }
        let services: Vec<Kept<ServiceRecord>> = records::list(store, records::SERVICES).await?;
        let instances: Vec<Kept<InstanceRecord>> = records::list(store, records::INSTANCES).await?;
        services
            .iter()
            .flat_map(|kept| kept.value.digests())
            .for_each(|one| {
                refer(one);
            });
        // What a service can be taken back to, it can be taken back to whole.
        let revisions: Vec<Kept<Revision>> = records::list(store, records::REVISIONS).await?;
        for version in revisions
            .iter()
            .filter_map(|kept| kept.value.version.as_ref())
        {
            version.digests().for_each(|one| {
                refer(one);
            });
        }
        for spec in instances.iter().map(|kept| &kept.value.spec) {
            refer(&spec.image.digest);
            if let Some(package) = &spec.package {
                refer(&package.digest);
            }
        }
        Ok(referred)
    }

    /// Names of the files of uploads that someone may go on with.
    async fn current_uploads(&self) -> Result<BTreeSet<String>> {
        let snapshot = self
            .store
            .range(crate::store::Range::prefix(records::UPLOADS))
            .await?;
        let mut current = BTreeSet::new();
        for entry in &snapshot.entries {
            let record: Kept<UploadRecord> = records::decode(entry)?;
            if clock::now().since(record.value.begun) > ABANDONED {
                let txn = Txn::new()
                    .when(&entry.key, Some(entry.modified))
                    .delete(&entry.key);
                self.store.txn(txn).await?;
            } else if let Some(hex) = entry.key.strip_prefix(records::UPLOADS) {
                current.insert(hex.to_owned());
            }
        }
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        current.extend(active.iter().map(|digest| digest.hex().to_owned()));
        Ok(current)
    }
}

async fn check(path: &Path) -> Result<VhdFacts> {
    let path = path.to_owned();
    blocking(move || {
        check::vhd_facts(&path).map_err(|why| {
            Error::Invalid(format!(
                "the file is not a VHD that a guest can be given: {why}"
            ))
        })
    })
    .await
}

/// For which processors a file is: what was said last, by whoever brings it now or
/// before.
fn architecture(targets: &[UploadTarget], images: &[Kept<BlobRecord>]) -> Architecture {
    let said = targets.iter().rev().find_map(|target| target.architecture);
    let known = images.first().map(|kept| kept.value.architecture);
    said.or(known).unwrap_or_default()
}

fn uploaded(record: &BlobRecord, now: WallTime) -> EventRecord {
    let (reason, processors) = match record.kind {
        BlobKind::Image => (
            Reason::ImageUploaded,
            format!(", for {}", record.architecture),
        ),
        BlobKind::Package => (Reason::PackageUploaded, String::new()),
    };
    let message = format!(
        "{}, {} bytes, a {} disk of {} bytes{processors}",
        record.digest, record.size_bytes, record.vhd.vhd_type, record.vhd.virtual_bytes
    );
    EventRecord::new(
        now,
        reason,
        SubjectKind::from(record.kind),
        &record.name,
        message,
    )
}

/// Moves a file to where whole files are, durably.
async fn move_in(from: PathBuf, to: PathBuf) -> Result<()> {
    blocking(move || {
        fs::rename(&from, &to).map_err(Error::io("move to", &to))?;
        let directory = to.parent().unwrap_or(Path::new("."));
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(Error::io("write", directory))
    })
    .await
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_others(directory: &Path, keep: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        if entry
            .file_name()
            .to_str()
            .is_none_or(|name| !keep.contains(name))
        {
            tracing::info!(path = %entry.path().display(), "removing a file that nothing refers to");
            remove(&entry.path())?;
            fail_point::reached(Step::FileSwept);
        }
    }
    Ok(())
}
