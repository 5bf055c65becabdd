//! Makes ready what a virtual machine is started from: its image and package
//! from the cache, a template, its differencing disk, the description of the machine.
//!
//! ```text
//! a copy:  os.vhd ──▶ template.vhd, a link to the template's disk ──▶ image
//! a boot:  os.vhd ──────────────────────────────────────────────────▶ image
//! ```
//!
//! Memory and disk belong together: a guest goes on from a template only on a disk
//! that was made from that template just now. On a disk that is there it boots.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fabric_proto::{
    guest::v1::RoleKind,
    id::{InstanceId, SnapshotName},
    vmbus::ROLES,
};
use vhd::BlockDevice as _;

use super::{
    directory::{InstanceDirectory, OS_DISK, TEMPLATE_DISK},
    snapshots::{self, MadeOf, SnapshotError},
    state::Unprepared,
    turn::{Turn, Turns},
};
use crate::{
    blobs::{BlobCache, BlobError},
    events::{EventLog, Reason},
    fail_point::{self, Step},
    files,
    goal::{BlobRef, InstanceGoal},
    hypervisor::{Hypervisor, Origin, PackageDisk, Program, VmSpec},
    template::{Made, Template, TemplateError, TemplateRole, Templates, Wanted, key::Key},
};

/// Serial of the disk with the role's package, by which the guest finds it.
pub const PACKAGE_SERIAL: &str = "package";
/// What that disk has room for, as the guest sees it, whatever the package's size.
pub const PACKAGE_CAPACITY: u64 = 64 << 30;

/// Why an instance cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Its image is not to be had.
    #[error("its image cannot be used")]
    Image(#[source] BlobError),
    /// Its package is not to be had.
    #[error("its package cannot be used")]
    Package(#[source] BlobError),
    /// Its package is larger than the disk that a guest is shown.
    #[error(
        "its package {digest} is a disk of {bytes} bytes, must be {PACKAGE_CAPACITY} at most; \
         build a smaller one"
    )]
    PackageSize {
        /// Which package.
        digest: fabric_proto::id::Digest,
        /// Its size as a disk.
        bytes: u64,
    },
    /// Its disk cannot be made.
    #[error("cannot make its disk {path}")]
    Disk {
        /// Where it should be.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<vhd::Error>,
    },
    /// A disk that is in the way cannot be removed.
    #[error("cannot remove its old disk {path}")]
    OldDisk {
        /// Where it is.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The snapshot that it should go back to cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The work was cut off.
    #[error("it could not be made ready")]
    Task(#[source] io::Error),
}

impl PrepareError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Image(error) | Self::Package(error) => error.may_pass(),
            Self::PackageSize { .. } | Self::Snapshot(_) => false,
            Self::Disk { .. } | Self::OldDisk { .. } | Self::Task(_) => true,
        }
    }
}

impl From<PrepareError> for Unprepared {
    fn from(error: PrepareError) -> Self {
        Self {
            may_pass: error.may_pass(),
            reason: chain(&error),
        }
    }
}

/// An error and all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What the node lends to every instance for this.
#[derive(Debug)]
pub struct Workshop {
    /// Images and packages.
    pub blobs: BlobCache,
    /// What happens is told here.
    pub events: Arc<EventLog>,
    /// What instances are copied from, if they are.
    pub templates: Option<Arc<Templates>>,
    /// Where copies wait for their turn.
    pub turns: Turns,
}

/// An instance that is ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// What is to be run.
    pub spec: VmSpec,
    /// The template that it goes on from.
    pub template: Option<Key>,
    /// One that those after it would be ready sooner from.
    pub better: Option<Box<Wanted>>,
    /// Its turn among the copies that are started.
    pub turn: Turn,
}

/// How an instance is made ready.
#[derive(Debug, Clone)]
pub struct How {
    /// Context id on the VMBus.
    pub cid: u32,
    /// On a fresh disk, whatever is there.
    pub fresh: bool,
    /// Without a template, whatever there is.
    pub cold: bool,
    /// From this snapshot of itself.
    pub restore: Option<SnapshotName>,
}

/// What there is of others for an instance to begin with.
enum Base {
    /// A template, of which it has a copy of the disk.
    Template(Template),
    /// Where the kernel of a template had booted; its disk is its own.
    Booted(Key, PathBuf),
    Nothing,
}

/// Makes an instance ready. A disk that is there stays, unless a fresh one is
/// asked for.
///
/// # Errors
///
/// Says what is missing; everything that could be done stays done.
pub async fn prepare(
    workshop: &Workshop,
    hypervisor: &Arc<dyn Hypervisor>,
    directory: &Arc<InstanceDirectory>,
    goal: &InstanceGoal,
    how: How,
) -> Result<Prepared, PrepareError> {
    let image = workshop
        .have(goal, &goal.image, Reason::ImageFetched)
        .await
        .map_err(PrepareError::Image)?;
    let package = match &goal.package {
        Some(package) => Some(
            workshop
                .have(goal, package, Reason::PackageFetched)
                .await
                .map_err(PrepareError::Package)
                .and_then(|path| check_size(package, path))?,
        ),
        None => None,
    };
    fail_point::reached(Step::BlobsThere);
    let coming = workshop.turns.announce();
    let snapshot = match &how.restore {
        Some(name) => Some(back_to(hypervisor, directory, goal, name).await?),
        None => None,
    };
    let disk = directory.file(OS_DISK);
    if how.fresh {
        remove_old(&disk)?;
    }
    let mut better = None;
    let wanted = || template_for(goal, &image, package.as_deref());
    let templates = workshop.templates.as_ref();
    let templates = templates.filter(|_| !how.cold && can_be_copied(goal));
    let base = if disk.exists() {
        match templates {
            Some(templates) => workshop.booted(templates, &goal.id, &wanted()).await,
            None => Base::Nothing,
        }
    } else {
        let stand_on = directory.file(TEMPLATE_DISK);
        remove_old(&stand_on)?;
        let template = match templates {
            Some(templates) => {
                let mut wanted = wanted();
                if !wanted.is_waited_for() && !templates.has(&wanted).await {
                    let without = wanted.without_role();
                    better = Some(Box::new(std::mem::replace(&mut wanted, without)));
                }
                workshop
                    .template(templates, &goal.id, wanted, &stand_on)
                    .await
            }
            _ => None,
        };
        let parent = template.as_ref().map_or(&image, |_| &stand_on);
        fail_point::reached(Step::TemplateLinked);
        make_disk(&disk, parent)?;
        fail_point::reached(Step::DiskMade);
        let on = template.as_ref().map_or_else(String::new, |template| {
            format!(" and template {}", template.key)
        });
        let message = format!("a fresh disk on {}{on}", goal.image.digest);
        workshop
            .events
            .tell(goal.id.as_str(), Reason::DiskCreated, &message, false);
        template.map_or(Base::Nothing, Base::Template)
    };
    // The disk stands on a template's disk if there is one beside it.
    let stand_on = directory.file(TEMPLATE_DISK);
    let stand_on = stand_on.exists().then(|| PathBuf::from(TEMPLATE_DISK));
    let (origin, template, booted) = match (base, snapshot) {
        (Base::Booted(_, booted), Some(snapshot)) => {
            (Origin::Snapshot(snapshot), None, Some(booted))
        }
        (_, Some(snapshot)) => (Origin::Snapshot(snapshot), None, None),
        (Base::Template(template), None) => {
            let origin = Origin::Template(template.snapshot);
            (origin, Some(template.key), template.booted)
        }
        (Base::Booted(key, booted), None) => {
            (Origin::Booted(booted.clone()), Some(key), Some(booted))
        }
        (Base::Nothing, None) => (Origin::Boot, None, None),
    };
    let turn = match &origin {
        Origin::Template(_) => {
            let cold = goal.role.warm_start.is_none();
            coming.arrive(cold).await
        }
        Origin::Booted(_) => coming.arrive(true).await,
        _ => Turn::Free,
    };
    let spec = VmSpec {
        name: goal.id.to_string(),
        vcpus: goal.vcpus,
        memory_mib: goal.memory_mib,
        cpu_weight: goal.cpu_weight,
        os_disk: OS_DISK,
        os_parents: stand_on.into_iter().chain([image]).collect(),
        package: package.map(PackageDisk::Image),
        cid: how.cid,
        origin,
        booted,
    };
    Ok(Prepared {
        spec,
        template,
        better,
        turn,
    })
}

/// Gives an instance the disk of a snapshot that has been verified; says where the
/// rest of it is.
async fn back_to(
    hypervisor: &Arc<dyn Hypervisor>,
    directory: &Arc<InstanceDirectory>,
    goal: &InstanceGoal,
    name: &SnapshotName,
) -> Result<PathBuf, PrepareError> {
    let (directory, name) = (Arc::clone(directory), name.clone());
    let hypervisor = Arc::clone(hypervisor);
    let now = MadeOf::of(goal);
    let work = move || {
        let sound = snapshots::check(&directory, &name, &now, hypervisor.as_ref());
        Ok(sound.and_then(|()| snapshots::lay_out(&directory, &name)))
    };
    files::blocking(work)
        .await
        .map_err(PrepareError::Task)?
        .map_err(PrepareError::Snapshot)
}

/// The program that a role runs, unless it is in the role's package: that comes later, and
/// what has nothing else of its own is copied from the same template.
fn program_in_image(command: &[String]) -> Option<Program> {
    let path = command.first()?;
    let in_package = Path::new(path).starts_with(ROLES);
    (!in_package).then(|| Program::new(path))?
}

/// The template that is best for an instance.
fn template_for(goal: &InstanceGoal, image: &Path, package: Option<&Path>) -> Wanted {
    let digest = goal.package.as_ref().map(|package| package.digest.clone());
    let package = digest.zip(package.map(Path::to_owned));
    Wanted {
        image: image.to_owned(),
        digest: goal.image.digest.clone(),
        memory_mib: goal.memory_mib,
        vcpus: goal.vcpus,
        package: package.is_some(),
        program: program_in_image(&goal.role.command),
        role: match (&goal.role.warm_start, package) {
            (Some(_), package) => Some(TemplateRole::ready(&goal.role, package)),
            (None, Some(package)) => Some(TemplateRole::prepared(&goal.role, package)),
            (None, None) => None,
        },
    }
}

/// A role of kind vm is the machine itself: its boot is part of it.
fn can_be_copied(goal: &InstanceGoal) -> bool {
    matches!(goal.role.kind(), RoleKind::Web | RoleKind::Worker)
}

fn check_size(package: &BlobRef, path: PathBuf) -> Result<PathBuf, PrepareError> {
    let disk = vhd::open(&path, &vhd::OpenOptions::read_only()).map_err(|source| {
        PrepareError::Package(BlobError::NotADisk {
            digest: package.digest.clone(),
            source: Box::new(source),
        })
    })?;
    match disk.size() {
        bytes if bytes > PACKAGE_CAPACITY => Err(PrepareError::PackageSize {
            digest: package.digest.clone(),
            bytes,
        }),
        _ => Ok(path),
    }
}

fn remove_old(disk: &Path) -> Result<(), PrepareError> {
    files::remove_if_there(disk).map_err(|source| PrepareError::OldDisk {
        path: disk.to_owned(),
        source,
    })
}

fn make_disk(disk: &Path, parent: &Path) -> Result<(), PrepareError> {
    vhd::create_differencing(disk, parent, &vhd::DifferencingOptions::default()).map_err(|source| {
        PrepareError::Disk {
            path: disk.to_owned(),
            source: Box::new(source),
        }
    })
}

impl Workshop {
    /// The template that an instance can be copied from, its disk linked to
    /// `stand_on`; none if there is none to be had, which is told.
    async fn template(
        &self,
        templates: &Templates,
        instance: &InstanceId,
        mut wanted: Wanted,
        stand_on: &Path,
    ) -> Option<Template> {
        let tell = |reason, message: &str, warning| {
            self.events
                .tell(instance.as_str(), reason, message, warning);
        };
        let template = loop {
            match templates.ensure(&wanted).await {
                Ok(template) => break template,
                Err(error) => {
                    // What cannot be copied with its role may be without.
                    let role = wanted.role.take().is_some();
                    let instead = if role { "starts cold" } else { "boots" };
                    let message = format!("{}; it {instead} instead", chain(&error));
                    tell(error.reason(), &message, true);
                    if !role {
                        return None;
                    }
                }
            }
        };
        if let Some(made) = template.made {
            self.tell_made(instance, &wanted, &template.key, made);
        }
        match files::link_or_copy(&template.disk, stand_on) {
            Ok(()) => Some(template),
            Err(error) => {
                let (key, disk) = (&template.key, template.disk.display());
                let message =
                    format!("cannot link {disk} of template {key}: {error}; it boots instead");
                tell(Reason::TemplateFailed, &message, true);
                None
            }
        }
    }

    /// Where the kernel of an instance's template had booted, if there is one.
    async fn booted(&self, templates: &Templates, instance: &InstanceId, wanted: &Wanted) -> Base {
        match templates.booted(wanted).await {
            Ok(Some((key, booted))) => Base::Booted(key, booted),
            Ok(None) => Base::Nothing,
            Err(error) => {
                let message = format!("{}; it boots instead", chain(&error));
                self.events
                    .tell(instance.as_str(), error.reason(), &message, true);
                Base::Nothing
            }
        }
    }

    /// Makes a template for those that are started after this instance; what comes of it is
    /// told as of that.
    pub async fn make_template(&self, instance: &InstanceId, wanted: &Wanted) {
        let Some(templates) = &self.templates else {
            return;
        };
        match templates.ensure(wanted).await {
            Ok(Template { key, made, .. }) => {
                if let Some(made) = made {
                    self.tell_made(instance, wanted, &key, made);
                }
            }
            // It has been told when it failed, or is being made by others.
            Err(error @ (TemplateError::Resting { .. } | TemplateError::Busy { .. })) => {
                tracing::debug!(%instance, %error, "makes no template");
            }
            Err(error) => {
                let message = format!(
                    "{}; others of it are copied from its image's template",
                    chain(&error)
                );
                self.events
                    .tell(instance.as_str(), error.reason(), &message, true);
            }
        }
    }

    fn tell_made(&self, instance: &InstanceId, wanted: &Wanted, key: &Key, made: Made) {
        let message = format!(
            "template {key} of {wanted} was made in {} ms, {} on disk",
            made.took.as_millis(),
            bytesize::ByteSize::b(made.bytes),
        );
        self.events
            .tell(instance.as_str(), Reason::TemplateMade, &message, false);
    }

    async fn have(
        &self,
        goal: &InstanceGoal,
        blob: &BlobRef,
        reason: Reason,
    ) -> Result<PathBuf, BlobError> {
        let found = self.blobs.ensure(blob).await?;
        if found.fetched {
            let message = format!("fetched {} ({} bytes)", blob.digest, blob.bytes);
            self.events.tell(goal.id.as_str(), reason, &message, false);
        }
        Ok(found.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_a_package_is_not_looked_for_in_the_image() {
        let of = |path: &str| program_in_image(&[path.to_owned(), "-f".to_owned()]);
        assert_eq!(of("/bin/busybox"), Program::new("/bin/busybox"));
        assert_eq!(of("/role/web/hello-web"), None);
        assert_eq!(program_in_image(&[]), None);
    }
}
