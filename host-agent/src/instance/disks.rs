//! Makes ready what a virtual machine is started from: its image and package
//! from the cache, its differencing disk, the description of the machine.

use std::{io, path::PathBuf, sync::Arc};

use super::{
    directory::{InstanceDirectory, OS_DISK},
    state::Unprepared,
};
use crate::{
    blobs::{BlobCache, BlobError},
    events::{EventLog, Reason},
    files,
    goal::{BlobRef, InstanceGoal},
    hypervisor::VmSpec,
};

/// Serial of the disk with the role's package, by which the guest finds it.
pub const PACKAGE_SERIAL: &str = "package";

/// Why an instance cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Its image is not to be had.
    #[error("its image cannot be used")]
    Image(#[source] BlobError),
    /// Its package is not to be had.
    #[error("its package cannot be used")]
    Package(#[source] BlobError),
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
    /// The work was cut off.
    #[error("it could not be made ready")]
    Task(#[source] io::Error),
}

impl PrepareError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Image(error) | Self::Package(error) => error.may_pass(),
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
}

/// Makes an instance ready. A disk that is there stays, unless a fresh one is
/// asked for.
///
/// # Errors
///
/// Says what is missing; everything that could be done stays done.
pub async fn prepare(
    workshop: &Workshop,
    directory: &InstanceDirectory,
    goal: &InstanceGoal,
    cid: u32,
    fresh: bool,
) -> Result<VmSpec, PrepareError> {
    let image = workshop
        .have(goal, &goal.image, Reason::ImageFetched)
        .await
        .map_err(PrepareError::Image)?;
    let package = match &goal.package {
        Some(package) => Some(
            workshop
                .have(goal, package, Reason::PackageFetched)
                .await
                .map_err(PrepareError::Package)?,
        ),
        None => None,
    };
    let disk = directory.file(OS_DISK);
    if fresh {
        files::remove_if_there(&disk).map_err(|source| PrepareError::OldDisk {
            path: disk.clone(),
            source,
        })?;
    }
    if !disk.exists() {
        vhd::create_differencing(&disk, &image, &vhd::DifferencingOptions::default()).map_err(
            |source| PrepareError::Disk {
                path: disk.clone(),
                source: Box::new(source),
            },
        )?;
        let message = format!("a fresh disk on {}", goal.image.digest);
        workshop
            .events
            .tell(goal.id.as_str(), Reason::DiskCreated, &message, false);
    }
    Ok(VmSpec {
        name: goal.id.to_string(),
        vcpus: goal.vcpus,
        memory_mib: goal.memory_mib,
        os_disk: OS_DISK,
        os_parents: vec![image],
        package,
        cid,
    })
}

impl Workshop {
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
