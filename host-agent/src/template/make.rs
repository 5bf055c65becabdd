//! Makes a template: starts a guest that nobody will use, in a directory of its own,
//! and keeps what it has become.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fabric_proto::vmbus::BOOTED_PORT;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    BOOTED, DISK, MAKING, Made, Template, TemplateError, Templates, Wanted, check, digest_of,
    key::{Inputs, Key},
    record::{Record, Verified},
    role::RoleHost,
};
use crate::{
    clock,
    fail_point::{self, Step},
    files::{self, FileError, blocking, bytes_on_disk},
    hypervisor::{Hypervisor, Origin, PackageDisk, USUAL_CPU_WEIGHT, Vm, VmSpec},
    instance::{
        directory::{InstanceDirectory, JAIL},
        snapshots::SNAPSHOT,
        state::{Exit, ExitKind},
    },
};

/// What stands where an instance has its package.
const PLACEHOLDER: &str = "package.raw";
/// It is of the smallest size that a disk can have.
const PLACEHOLDER_BYTES: usize = 512;
/// Context id of a template's guest; each instance has its own.
const CID: u32 = 3;

impl Templates {
    /// Makes a template. We have the lock.
    pub(super) async fn make(
        &self,
        key: &Key,
        inputs: Inputs,
        wanted: &Wanted,
        base: Option<Template>,
    ) -> Result<Made, TemplateError> {
        let start = Instant::now();
        let place = tempfile::Builder::new()
            .prefix(MAKING)
            .tempdir_in(&self.directory)
            .map_err(FileError::at("make a directory in", &self.directory))?;
        fail_point::reached(Step::TemplateBegun);
        let booted = base.as_ref().and_then(|base| base.booted.clone());
        self.start(key, place.path(), wanted, base).await?;
        fail_point::reached(Step::TemplateWritten);

        let work = Finish {
            place,
            target: self.path(key),
            key: key.clone(),
            inputs,
            booted,
            start,
            host_boot_id: self.host_boot_id.clone(),
            hypervisor: Arc::clone(&self.hypervisor),
        };
        blocking(move || Ok(work.finish()))
            .await
            .map_err(FileError::at("make a template in", &self.directory))?
    }

    /// Starts the guest of a template, which ends when it calls.
    async fn start(
        &self,
        key: &Key,
        place: &Path,
        wanted: &Wanted,
        base: Option<Template>,
    ) -> Result<(), TemplateError> {
        let directory =
            InstanceDirectory::open(place.to_owned()).map_err(FileError::at("open", place))?;
        make_disk(directory.file(DISK), &wanted.image, base.as_ref())?;
        fail_point::reached(Step::TemplateDiskMade);
        let package = directory.file(PLACEHOLDER);
        fs::write(&package, [0; PLACEHOLDER_BYTES]).map_err(FileError::at("write", &package))?;
        let (package, origin) = match &wanted.role {
            Some(role) => {
                let package = role.package.as_ref();
                let package = package.map(|(_, path)| PackageDisk::Image(path.clone()));
                let from = base.map(|base| base.snapshot);
                (package, Origin::BecomeRoleTemplate { from })
            }
            None => {
                let placeholder = || PackageDisk::Placeholder(PLACEHOLDER.into());
                let program = wanted.program.clone();
                let origin = Origin::BecomeTemplate { program };
                (wanted.package.then(placeholder), origin)
            }
        };
        let host = match &wanted.role {
            Some(role) => Some(RoleHost::listen(
                key,
                &directory,
                role,
                self.hypervisor.as_ref(),
            )?),
            None => None,
        };
        // It takes the guest's call when that has booted, by which the guest knows that it is to
        // become a template: who goes on from there otherwise finds nobody.
        let booted = match origin {
            Origin::BecomeTemplate { .. } => {
                Some(directory.listen(BOOTED_PORT).map_err(|source| {
                    let key = key.clone();
                    TemplateError::Listen { key, source }
                })?)
            }
            _ => None,
        };
        let spec = VmSpec {
            name: format!("template-{key}"),
            vcpus: wanted.vcpus,
            memory_mib: wanted.memory_mib,
            // Though nobody may wait for it: the lock is held meanwhile.
            cpu_weight: USUAL_CPU_WEIGHT,
            os_disk: DISK,
            os_parents: vec![wanted.image.clone()],
            package,
            cid: CID,
            origin,
            booted: None,
        };
        let vm = self.hypervisor.launch(&directory, &spec).await;
        let vm = ThrowAway(vm.map_err(|source| TemplateError::Launch {
            key: key.clone(),
            source,
        })?);
        fail_point::reached(Step::TemplateLaunched);
        let Some(mut host) = host else {
            let ended = ended(key, self.limits.boot, vm.0.exited()).await;
            drop(booted);
            return ended;
        };
        let patience = self.limits.boot.saturating_add(host.patience());
        tokio::select! {
            ended = ended(key, patience, vm.0.exited()) => ended,
            why = host.failure() => Err(TemplateError::Role { key: key.clone(), why }),
        }
    }
}

/// Makes the disk of a template's guest: empty over its image, or what was written before it
/// is copied.
fn make_disk(disk: PathBuf, image: &Path, base: Option<&Template>) -> Result<(), TemplateError> {
    let Some(base) = base else {
        let options = vhd::DifferencingOptions::default();
        return vhd::create_differencing(&disk, image, &options).map_err(|source| {
            TemplateError::Disk {
                path: disk,
                source: Box::new(source),
            }
        });
    };
    let copy = || {
        fs::copy(&base.disk, &disk)?;
        fs::set_permissions(&disk, Permissions::from_mode(0o600))
    };
    Ok(copy().map_err(FileError::at("copy a disk to", &disk))?)
}

/// How the guest of a template has ended.
async fn ended(
    key: &Key,
    patience: Duration,
    exit: impl Future<Output = Exit>,
) -> Result<(), TemplateError> {
    match tokio::time::timeout(patience, exit).await {
        Ok(exit) if exit.kind == ExitKind::TemplateMade => Ok(()),
        Ok(exit) => Err(TemplateError::Ended {
            key: key.clone(),
            exit,
        }),
        Err(_) => Err(TemplateError::Silent {
            key: key.clone(),
            patience,
        }),
    }
}

/// A virtual machine that ends when it is dropped, whatever happens.
#[derive(Debug)]
struct ThrowAway(Arc<dyn Vm>);

impl Drop for ThrowAway {
    fn drop(&mut self) {
        self.0.kill();
        // Its status is collected, so that no zombie stays.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let vm = Arc::clone(&self.0);
            runtime.spawn(async move { vm.exited().await });
        }
    }
}

/// What is left to do when the guest has become a template.
struct Finish {
    place: TempDir,
    target: PathBuf,
    key: Key,
    inputs: Inputs,
    /// That of the template that this is made from.
    booted: Option<PathBuf>,
    start: Instant,
    host_boot_id: String,
    hypervisor: Arc<dyn Hypervisor>,
}

impl Finish {
    /// Keeps what is needed of it, verifies that, and gives it its name.
    fn finish(self) -> Result<Made, TemplateError> {
        let place = self.place.path();
        let failed = |error| FileError::at("keep the template in", place)(error);
        let unsound = |why| TemplateError::Unsound {
            key: self.key.clone(),
            why,
        };
        keep_only(place).map_err(failed)?;
        if let Some(booted) = &self.booted {
            link(booted, &place.join(BOOTED)).map_err(failed)?;
        }
        let disk = digest_of(&place.join(DISK)).map_err(unsound)?;
        let verified = Verified::now(place, &self.host_boot_id).map_err(failed)?;
        check(self.hypervisor.as_ref(), place, &disk).map_err(unsound)?;
        let bytes = bytes_on_disk(place).map_err(failed)?;
        let took = self.start.elapsed();
        let record = Record {
            inputs: self.inputs,
            made: clock::wall_time(),
            took_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
            bytes,
            disk,
            verified,
        };
        record.save(place).map_err(failed)?;
        fail_point::reached(Step::TemplateWhole);
        match fs::rename(place, &self.target) {
            // There is nothing left to remove under the old name.
            Ok(()) => _ = self.place.keep(),
            // Whoever had the lock after us was faster, with the same.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(FileError::at("name", &self.target)(error).into()),
        }
        if let Some(parent) = self.target.parent() {
            files::sync_directory(parent).map_err(FileError::at("keep", parent))?;
        }
        fail_point::reached(Step::TemplateNamed);
        Ok(Made { took, bytes })
    }
}

/// Removes what only its guest needed, and lets nothing be written any more.
fn keep_only(place: &Path) -> io::Result<()> {
    // Made by a VMM, where it may make something, and ours from now on.
    let jail = place.join(JAIL);
    files::take_over(&jail.join(SNAPSHOT), &place.join(SNAPSHOT))?;
    // An image whose guest agent knows nothing of it makes none.
    if jail.join(BOOTED).exists() {
        files::take_over(&jail.join(BOOTED), &place.join(BOOTED))?;
    }
    fs::remove_dir_all(jail)?;
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == SNAPSHOT || name == BOOTED {
            continue;
        }
        if name == DISK {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o444))?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives the files of a directory names in a new one, too.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
