//! Templates: guests that have been booted once, up to the moment at which their
//! agent first calls its host, and that instances are copied from.
//!
//! ```text
//! templates/lock                 held by whoever makes or removes one
//! templates/making-XXXXXX/       being made, or being removed; its VMM runs there
//! templates/<key>/template.json  what it was made of and when, and what was verified
//! templates/<key>/snapshot/      memory and state, as the VMM wrote them
//! templates/<key>/booted/        the same, of before, when nothing of its disk was mounted
//! templates/<key>/disk.vhd       what its guest wrote while it booted, over the image
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`key`] | what a template is made of, and the name that follows from it |
//! | [`host`] | the part of that which is the same for all of this node |
//! | [`record`] | what is on record of one, and whether its files are still those |
//! | [`prune`] | which are to go |
//! | `make` | boots a throw-away guest, or copies one, and keeps what it has become |
//! | `role` | has a role come as far in such a guest as is wanted |
//!
//! There are templates of three kinds: of an image, whose guest has booted; of a package,
//! that is copied from that, mounts the package and has its program in memory; and of a role
//! with a warm start, where that runs and is ready. An instance waits for the first and the
//! last; that of its package is made when it is ready, for those that come after it.
//!
//! Several host agents can share a directory. One template is made at a time; all
//! who want it wait for it, not without end. A template has its name only when it
//! is whole, and an instance links its disk into its own directory: removing a
//! template breaks nobody. What was verified is not read again while its files are
//! the same by inode, size and times; otherwise it is, as a whole, and refused if it
//! is not what was made.
//!
//! Whatever goes wrong here costs an instance a boot, never its start.

pub mod host;
pub mod key;
mod make;
pub mod prune;
pub mod record;
mod role;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Display},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fabric_proto::{guest::v1::RoleSpec, id::Digest};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use self::{
    host::Host,
    key::{Inputs, Key},
    prune::{Keep, There},
    record::{Record, Verified},
};
use crate::{
    events::Reason,
    files::{self, FileError, blocking},
    hypervisor::{Hypervisor, LaunchError, Program},
    instance::{snapshots::SNAPSHOT, state::Exit},
};

/// The snapshot of a guest that has booted and holds nothing of its disk, in the directory of
/// its template, and where its VMM makes it.
pub const BOOTED: &str = "booted";
/// The disk in a template's directory.
const DISK: &str = "disk.vhd";
/// How the directories of templates that are no templates yet, or not any longer,
/// are named.
const MAKING: &str = "making-";
/// The lock.
const LOCK: &str = "lock";
/// How often a lock that another process holds is tried.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long no template is made after making it, or starting from it, has failed.
const REST: Duration = Duration::from_secs(60);

/// Why there is no template to start from.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// There was one, and it is not what was made.
    #[error("template {key} was refused and removed: {why}")]
    Refused {
        /// Which.
        key: Key,
        /// What is wrong with it.
        why: String,
    },
    /// It has failed a short time ago.
    #[error("template {key} is not made again so soon: {why}")]
    Resting {
        /// Which.
        key: Key,
        /// What went wrong then.
        why: String,
    },
    /// Somebody else is making one, and takes long.
    #[error("waited {} for others who make templates in {directory}",
        humantime::format_duration(*.patience))]
    Busy {
        /// Where.
        directory: PathBuf,
        /// How long.
        patience: Duration,
    },
    /// Its guest cannot be started.
    #[error("cannot start the guest of template {key}")]
    Launch {
        /// Which.
        key: Key,
        /// Why not.
        #[source]
        source: LaunchError,
    },
    /// Its guest came to another end.
    #[error("the guest of template {key} did not become one: {}: {}", .exit.kind, .exit.detail)]
    Ended {
        /// Which.
        key: Key,
        /// Which end.
        exit: Exit,
    },
    /// Its guest did not call.
    #[error("the guest of template {key} did not call its host within {}",
        humantime::format_duration(*.patience))]
    Silent {
        /// Which.
        key: Key,
        /// How long was waited.
        patience: Duration,
    },
    /// Its guest cannot be listened to.
    #[error("cannot listen to the guest of template {key}")]
    Listen {
        /// Which.
        key: Key,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The role does not become ready in it.
    #[error("the role failed in the guest of template {key}: {why}")]
    Role {
        /// Which.
        key: Key,
        /// How.
        why: String,
    },
    /// What has been made does not check.
    #[error("template {key} was made and is not sound: {why}")]
    Unsound {
        /// Which.
        key: Key,
        /// What is wrong with it.
        why: String,
    },
    /// Its disk cannot be made.
    #[error("cannot make the disk {path} of a template")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<vhd::Error>,
    },
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TemplateError {
    /// The word for it in an event.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::TemplateRefused,
            _ => Reason::TemplateFailed,
        }
    }
}

/// What an instance wants to be copied from.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its image.
    pub image: PathBuf,
    /// Digest of that.
    pub digest: Digest,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its virtual processors.
    pub vcpus: u8,
    /// Whether it has a package.
    pub package: bool,
    /// The program that it runs, if that is in the image.
    pub program: Option<Program>,
    /// The role that is in it.
    pub role: Option<TemplateRole>,
}

impl Wanted {
    /// Whether an instance is not started before it is there.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.role.as_ref().is_none_or(TemplateRole::runs)
    }

    /// The same with no role in it: what it is copied from.
    #[must_use]
    pub fn without_role(&self) -> Self {
        Self {
            role: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, role, .. } = self;
        write!(f, "{digest}")?;
        match role {
            None => Ok(()),
            Some(role) if role.runs() => write!(f, " with role {} ready", role.spec.name),
            Some(role) => write!(f, " with the package of role {}", role.spec.name),
        }
    }
}

/// A role in a template, without anything that is an instance's own.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateRole {
    /// The role; without settings, which come after the start.
    spec: Arc<RoleSpec>,
    /// Its package: digest and file.
    package: Option<(Digest, PathBuf)>,
}

impl TemplateRole {
    /// A role that only has its package mounted and its program in memory; whatever else is
    /// said of it makes no other template.
    #[must_use]
    pub fn prepared(spec: &RoleSpec, package: (Digest, PathBuf)) -> Self {
        let spec = RoleSpec {
            name: spec.name.clone(),
            kind: spec.kind,
            command: spec.command.first().cloned().into_iter().collect(),
            uid: spec.uid,
            package_disk_serial: spec.package_disk_serial.clone(),
            ..RoleSpec::default()
        };
        Self {
            spec: Arc::new(spec),
            package: Some(package),
        }
    }

    /// A role with a warm start, that runs and is ready.
    #[must_use]
    pub fn ready(spec: &RoleSpec, package: Option<(Digest, PathBuf)>) -> Self {
        let spec = RoleSpec {
            settings: BTreeMap::default(),
            restart_generation: 0,
            ..spec.clone()
        };
        let spec = Arc::new(spec);
        Self { spec, package }
    }

    fn runs(&self) -> bool {
        self.spec.warm_start.is_some()
    }

    /// What tells it from others.
    fn digest(&self) -> String {
        let mut sum = Sha256::new();
        sum.update(self.spec.encode_to_vec());
        let package = self.package.as_ref().map(|(digest, _)| digest.as_str());
        sum.update(package.unwrap_or_default());
        Digest::of_sha256(&sum.finalize().into()).to_string()
    }
}

/// A template that can be started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Which.
    pub key: Key,
    /// Its snapshot.
    pub snapshot: PathBuf,
    /// Its disk.
    pub disk: PathBuf,
    /// The snapshot of it when its kernel had booted and nothing of its disk was mounted, if
    /// it has one: what machines go back to that are reset.
    pub booted: Option<PathBuf>,
    /// How it was made, if that was just now.
    pub made: Option<Made>,
}

/// What tells a template from others to who does not know what else it is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Digest of its image.
    pub image: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
}

/// How a template was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// In which time.
    pub took: Duration,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
}

/// How long what may take, and how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start of a template's guest to its call.
    pub boot: Duration,
    /// How long others who make templates are waited for.
    pub wait: Duration,
    /// How many are kept.
    pub keep: Keep,
}

/// The templates in a directory.
#[derive(Debug)]
pub struct Templates {
    directory: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    host: Arc<Host>,
    host_boot_id: String,
    limits: Limits,
    turn: tokio::sync::Mutex<()>,
    /// What was there when it was looked at last.
    there: Mutex<BTreeSet<Kind>>,
    failures: Mutex<HashMap<Key, (Instant, String)>>,
}

/// What is found where a template should be.
enum Found {
    /// As it was verified.
    Good,
    /// There, but not as it was verified.
    Doubtful(Box<Record>),
    /// There, and not to be used.
    Bad(String),
    Nothing,
}

impl Templates {
    /// The templates in `directory`, made with `hypervisor`.
    ///
    /// # Errors
    ///
    /// When there can be no such directory.
    pub fn open(
        directory: &Path,
        hypervisor: Arc<dyn Hypervisor>,
        host: Host,
        host_boot_id: String,
        limits: Limits,
    ) -> Result<Self, TemplateError> {
        let directory =
            files::private_directory(directory).map_err(FileError::at("use", directory))?;
        Ok(Self {
            directory,
            hypervisor,
            host: Arc::new(host),
            host_boot_id,
            limits,
            turn: tokio::sync::Mutex::default(),
            there: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    /// The template that is wanted, made now if there is none.
    ///
    /// # Errors
    ///
    /// Says why there is none to start from. One that was refused is made again the
    /// next time.
    pub async fn ensure(&self, wanted: &Wanted) -> Result<Template, TemplateError> {
        let inputs = self.inputs(wanted).await?;
        let kind = inputs.kind();
        let base = match &wanted.role {
            Some(_) if !self.path(&inputs.key()).exists() => self.base(wanted).await,
            _ => None,
        };
        let template = self.find_or_make(inputs, wanted, base).await;
        match &template {
            // Others may have made it.
            Ok(Template { made: None, .. }) => _ = self.known().insert(kind),
            // Something else may have gone for it; or what was there is not.
            _ => self.take_stock().await,
        }
        template
    }

    /// Whether a template is there, as it was made.
    pub async fn has(&self, wanted: &Wanted) -> bool {
        match self.inputs(wanted).await {
            Ok(inputs) => matches!(self.look(&inputs.key(), &inputs), Found::Good),
            Err(_) => false,
        }
    }

    /// Where the kernel of a template that is there had booted: what is wanted can start from
    /// that on a disk of its own.
    ///
    /// # Errors
    ///
    /// When there is one that is not what was made.
    pub async fn booted(&self, wanted: &Wanted) -> Result<Option<(Key, PathBuf)>, TemplateError> {
        let inputs = self.inputs(&wanted.without_role()).await?;
        let key = inputs.key();
        let template = match self.look(&key, &inputs) {
            Found::Nothing => return Ok(None),
            Found::Good => Some(self.template(key, None)),
            Found::Doubtful(_) | Found::Bad(_) => {
                let (_turn, _lock) = self.lock().await?;
                self.find(&key, &inputs).await?
            }
        };
        Ok(template.and_then(|template| Some((template.key, template.booted?))))
    }

    async fn find_or_make(
        &self,
        inputs: Inputs,
        wanted: &Wanted,
        base: Option<Template>,
    ) -> Result<Template, TemplateError> {
        let key = inputs.key();
        if let Found::Good = self.look(&key, &inputs) {
            return Ok(self.template(key, None));
        }
        self.check_rested(&key)?;
        let (_turn, _lock) = self.lock().await?;
        if let Some(template) = self.find(&key, &inputs).await? {
            return Ok(template);
        }
        // Whoever had the turn before may have tried the same.
        self.check_rested(&key)?;
        self.sweep().await;
        match self.make(&key, inputs, wanted, base).await {
            Ok(made) => {
                self.prune();
                Ok(self.template(key, Some(made)))
            }
            Err(error) => {
                self.rest(key, &crate::instance::disks::chain(&error));
                Err(error)
            }
        }
    }

    /// The template of this name, read as a whole where its files may be others than those
    /// that were verified. We have the lock.
    async fn find(&self, key: &Key, inputs: &Inputs) -> Result<Option<Template>, TemplateError> {
        let refuse = |why| Err(self.remove(key.clone(), why));
        match self.look(key, inputs) {
            Found::Nothing => Ok(None),
            Found::Good => Ok(Some(self.template(key.clone(), None))),
            Found::Bad(why) => refuse(why),
            Found::Doubtful(record) => match self.verify(key, *record).await {
                Ok(()) => Ok(Some(self.template(key.clone(), None))),
                Err(why) => refuse(why),
            },
        }
    }

    /// What a template with a role in it is copied from, before the role is started: a boot
    /// is most of the time that it takes to make.
    async fn base(&self, wanted: &Wanted) -> Option<Template> {
        let wanted = wanted.without_role();
        let base = match self.inputs(&wanted).await {
            Ok(inputs) => self.find_or_make(inputs, &wanted, None).await,
            Err(error) => Err(error),
        };
        base.inspect_err(|error| tracing::warn!(%error, "a template's guest has to boot"))
            .ok()
    }

    /// Removes a template from which an instance could not be started.
    pub async fn refuse(&self, key: Key, why: &str) {
        match self.lock().await {
            Ok((_turn, _lock)) => {
                self.rest(key.clone(), why);
                let refusal = self.remove(key, why.to_owned());
                tracing::warn!(%refusal, "an instance could not be started from it");
            }
            Err(error) => tracing::warn!(%key, %error, "cannot remove a template"),
        }
        self.take_stock().await;
    }

    /// What can be copied here, as far as is known.
    #[must_use]
    pub fn there(&self) -> BTreeSet<Kind> {
        self.known().clone()
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Kind>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what is there that was made of what this node has now.
    async fn take_stock(&self) {
        let (host, entries) = (Arc::clone(&self.host), self.entries());
        let look = move || {
            let Ok(now) = host.inputs() else {
                return Ok(BTreeSet::new());
            };
            let named = |place: &PathBuf| Key::from_name(name_of(place)).is_some();
            let records = entries.iter().filter(|place| named(place));
            let records = records.filter_map(|place| Record::load(place).ok());
            let ours = records.filter(|record| record.inputs.is_of_host(&now));
            Ok(ours.map(|record| record.inputs.kind()).collect())
        };
        match blocking(look).await {
            Ok(there) => *self.known() = there,
            Err(error) => tracing::warn!(%error, "cannot look at the templates"),
        }
    }

    /// Ends what an earlier process was making, and removes what is not to be kept;
    /// not while somebody else is making one.
    pub async fn tidy(&self) {
        let host = Arc::clone(&self.host);
        // Read now, the programs need not be read when the first instance waits.
        let read = blocking(move || Ok(host.inputs().map(drop))).await;
        if let Err((path, error)) =
            read.unwrap_or_else(|error| Err((self.directory.clone(), error)))
        {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot read what templates are made with");
        }
        if let Ok(_turn) = self.turn.try_lock() {
            match self.try_lock() {
                Ok(Some(_lock)) => {
                    self.sweep().await;
                    self.prune();
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot tidy the templates"),
            }
        }
        self.take_stock().await;
    }

    async fn inputs(&self, wanted: &Wanted) -> Result<Inputs, TemplateError> {
        let host = Arc::clone(&self.host);
        let inputs = blocking(move || Ok(host.inputs()))
            .await
            .map_err(FileError::at("read the programs in", &self.directory))?
            .map_err(|(path, error)| FileError::at("read", &path)(error))?;
        Ok(Inputs {
            image: wanted.digest.to_string(),
            memory_mib: wanted.memory_mib,
            vcpus: wanted.vcpus,
            package: wanted.package,
            program: wanted
                .program
                .as_ref()
                .map_or_else(String::new, |program| program.as_str().to_owned()),
            role: wanted
                .role
                .as_ref()
                .map_or_else(String::new, TemplateRole::digest),
            ..inputs
        })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(key.as_str())
    }

    fn template(&self, key: Key, made: Option<Made>) -> Template {
        let directory = self.path(&key);
        if let Err(error) = record::touch(&directory) {
            tracing::warn!(%key, %error, "cannot take down that a template is used");
        }
        Template {
            key,
            snapshot: directory.join(SNAPSHOT),
            disk: directory.join(DISK),
            booted: booted_in(&directory),
            made,
        }
    }

    fn look(&self, key: &Key, inputs: &Inputs) -> Found {
        let directory = self.path(key);
        if !directory.exists() {
            return Found::Nothing;
        }
        match Record::load(&directory) {
            Err(error) => Found::Bad(format!("its record cannot be read: {error}")),
            Ok(record) if record.inputs != *inputs => {
                Found::Bad("its record is another template's".to_owned())
            }
            Ok(record) => match Verified::now(&directory, &self.host_boot_id) {
                Err(error) => Found::Bad(format!("a file of it cannot be read: {error}")),
                Ok(now) if now == record.verified => Found::Good,
                Ok(_) => Found::Doubtful(Box::new(record)),
            },
        }
    }

    /// Reads a template as a whole, and takes down that it is what was made.
    async fn verify(&self, key: &Key, record: Record) -> Result<(), String> {
        let (directory, host_boot_id) = (self.path(key), self.host_boot_id.clone());
        let hypervisor = Arc::clone(&self.hypervisor);
        let verify = move || {
            // As they were before they are read: what changes meanwhile is read again.
            let verified = Verified::now(&directory, &host_boot_id)?;
            if let Err(why) = check(hypervisor.as_ref(), &directory, &record.disk) {
                return Ok(Err(why));
            }
            Record { verified, ..record }.save(&directory).map(Ok)
        };
        blocking(verify)
            .await
            .map_err(|error| format!("it cannot be verified: {error}"))?
    }

    /// Removes a template; says so in words.
    fn remove(&self, key: Key, why: String) -> TemplateError {
        if let Err(error) = self.discard(&self.path(&key)) {
            tracing::warn!(%key, %error, "cannot remove a template");
        }
        TemplateError::Refused { key, why }
    }

    /// Takes a directory's name away at once, and then the directory.
    fn discard(&self, directory: &Path) -> io::Result<()> {
        let grave = tempfile::Builder::new()
            .prefix(MAKING)
            .tempdir_in(&self.directory)?;
        match fs::rename(directory, grave.path().join("old")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        grave.close()
    }

    /// Our turn among the tasks of this process, and among processes.
    async fn lock(&self) -> Result<(tokio::sync::MutexGuard<'_, ()>, File), TemplateError> {
        let busy = || TemplateError::Busy {
            directory: self.directory.clone(),
            patience: self.limits.wait,
        };
        let deadline = Instant::now() + self.limits.wait;
        let turn = tokio::time::timeout_at(deadline, self.turn.lock())
            .await
            .map_err(|_| busy())?;
        loop {
            if let Some(lock) = self.try_lock()? {
                return Ok((turn, lock));
            }
            if Instant::now() >= deadline {
                return Err(busy());
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// The lock, unless another process holds it. One that dies holds it no longer.
    fn try_lock(&self) -> Result<Option<File>, TemplateError> {
        let path = self.directory.join(LOCK);
        let take = || {
            let file = files::open_or_make(&path)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        Ok(take().map_err(FileError::at("lock", &path))?)
    }

    fn rest(&self, key: Key, why: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (since, _)| since.elapsed() < REST);
        failures.insert(key, (Instant::now(), why.to_owned()));
    }

    fn check_rested(&self, key: &Key) -> Result<(), TemplateError> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.get(key) {
            Some((since, why)) if since.elapsed() < REST => Err(TemplateError::Resting {
                key: key.clone(),
                why: why.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Ends and removes what others began and cannot go on with, for we have the lock.
    async fn sweep(&self) {
        for place in self.entries() {
            if !name_of(&place).starts_with(MAKING) {
                continue;
            }
            let ended = self.hypervisor.end_all_in(&place).await;
            tracing::warn!(place = %place.display(), ended, "removing a template left half made");
            if let Err(error) = fs::remove_dir_all(&place) {
                tracing::warn!(place = %place.display(), %error, "cannot remove it");
            }
        }
    }

    fn prune(&self) {
        let there = self.entries().into_iter().filter_map(|place| {
            let key = Key::from_name(name_of(&place))?;
            // Without a record it is no template: its time is up.
            let used = record::used(&place).unwrap_or(SystemTime::UNIX_EPOCH);
            let bytes = files::bytes_on_disk(&place).unwrap_or_default();
            Some(There { key, used, bytes })
        });
        let keep = &self.limits.keep;
        for key in prune::condemned(there.collect(), SystemTime::now(), keep) {
            tracing::info!(%key, "removing a template that is not used");
            if let Err(error) = self.discard(&self.path(&key)) {
                tracing::warn!(%key, %error, "cannot remove a template");
            }
        }
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// The snapshot of before, if a template has one.
fn booted_in(directory: &Path) -> Option<PathBuf> {
    Some(directory.join(BOOTED)).filter(|booted| booted.is_dir())
}

/// Whether the files of a template are those that were made.
fn check(hypervisor: &dyn Hypervisor, directory: &Path, disk: &str) -> Result<(), String> {
    hypervisor.verify_snapshot(&directory.join(SNAPSHOT))?;
    if let Some(booted) = booted_in(directory) {
        hypervisor.verify_snapshot(&booted)?;
    }
    let now = digest_of(&directory.join(DISK))?;
    if now == disk {
        Ok(())
    } else {
        Err(format!("its disk is {now}, {disk} was made"))
    }
}

fn digest_of(disk: &Path) -> Result<String, String> {
    let says = |error: &dyn Display| format!("its disk cannot be read: {error}");
    files::sha256(disk)
        .map(|digest| digest.to_string())
        .map_err(|error| says(&error))
}

#[cfg(test)]
mod tests;
