//! The border between an instance's supervisor and what runs its virtual machine.
//!
//! [`process`] is the real one: one `fabric-vmm` process per instance.
//! [`simulated`] has guests that live by a simulation's clock, and fail as it draws it;
//! `fake` runs nothing, for tests of everything above the border.

pub mod cgroups;
#[cfg(test)]
pub mod fake;
pub mod jails;
pub mod proc;
pub mod process;
pub mod simulated;
pub mod trial;
pub mod users;

use std::{fmt, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use fabric_vmm::control::Request;
use serde::{Deserialize, Serialize};

use crate::{
    guest::server::{GuestLink, GuestServer},
    instance::{directory::InstanceDirectory, state::Exit},
};

/// The part of the processors of a machine with one of them to itself.
pub const USUAL_CPU_WEIGHT: u32 = 100;
/// Longest path of a program that a template has in memory.
const LONGEST_PROGRAM: usize = 256;

/// Why a virtual machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its configuration cannot be written.
    #[error("cannot write {path}")]
    Configuration {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It cannot have a user of its own.
    #[error(transparent)]
    User(#[from] users::NoUser),
    /// It cannot have a control group.
    #[error("cannot make its control group")]
    Cgroup(#[from] cgroups::CgroupError),
    /// The VMM cannot be spawned.
    #[error("cannot start {program}")]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Name, for people.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Its part of the processors where others want them too, against
    /// theirs ([`USUAL_CPU_WEIGHT`]).
    pub cpu_weight: u32,
    /// The differencing disk's file name within the instance's directory.
    pub os_disk: &'static str,
    /// Its parents, nearest first.
    pub os_parents: Vec<PathBuf>,
    /// The role's package.
    pub package: Option<PackageDisk>,
    /// Context id on the VMBus.
    pub cid: u32,
    /// What it starts from.
    pub origin: Origin,
    /// The snapshot of a guest of the same kind that has booted and holds nothing of its
    /// disks: what it goes back to when it is reset. It boots its kernel without one.
    pub booted: Option<PathBuf>,
}

/// The disk with a role's package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageDisk {
    /// A package.
    Image(PathBuf),
    /// Zeroes, where instances that are copied from this one have a package.
    Placeholder(PathBuf),
}

/// An absolute path in the guest that can stand on a kernel command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(String);

impl Program {
    /// Takes a path, if it is one.
    #[must_use]
    pub fn new(path: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
        let fits = path.starts_with('/') && path.len() <= LONGEST_PROGRAM;
        (fits && path.bytes().all(plain)).then(|| Self(path.to_owned()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a virtual machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From nothing: its kernel boots.
    Boot,
    /// The same; when its guest agent first calls, it becomes a template and ends.
    BecomeTemplate {
        /// The program that its copies will run, to be in memory then.
        program: Option<Program>,
    },
    /// When its guest's role is as far as it goes there, it becomes a template and ends.
    BecomeRoleTemplate {
        /// The snapshot of the template that it is copied from itself; its kernel boots
        /// where there is none.
        from: Option<PathBuf>,
    },
    /// From what another one was: the directory of its snapshot.
    Template(PathBuf),
    /// From what another one was when its kernel had booted and it held nothing of its disk:
    /// the directory of that snapshot.
    Booted(PathBuf),
    /// From what it was itself once: the directory of its snapshot.
    Snapshot(PathBuf),
}

/// Why a virtual machine has not carried out an order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It does not answer.
    #[error("no answer")]
    Silent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It says why.
    #[error("{0}")]
    Refused(String),
}

/// Which process a virtual machine is. Two processes never have the same record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Process id.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine's start
    /// (proc_pid_stat(5), field 22).
    pub started: u64,
    /// Which start of the machine.
    pub host_boot_id: String,
}

/// Runs virtual machines.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Starts one in an instance's directory.
    async fn launch(
        &self,
        directory: &InstanceDirectory,
        spec: &VmSpec,
    ) -> Result<Arc<dyn Vm>, LaunchError>;

    /// Finds the one that runs in an instance's directory: the recorded one, or
    /// one that was started and never recorded.
    async fn find(
        &self,
        directory: &InstanceDirectory,
        record: Option<&VmRecord>,
    ) -> io::Result<Option<Arc<dyn Vm>>>;

    /// Takes calls from the guest that runs, or will run, in an instance's directory.
    ///
    /// # Errors
    ///
    /// When its socket cannot be made.
    fn listen(&self, directory: &InstanceDirectory, link: GuestLink) -> io::Result<GuestServer> {
        GuestServer::listen(directory, link)
    }

    /// How the last one in that directory ended, if that is on record.
    fn last_exit(&self, directory: &InstanceDirectory) -> Exit;

    /// Ends all that run in directories below `instances` that are not there any
    /// longer; returns how many.
    async fn end_strays(&self, instances: &Path) -> usize;

    /// Ends all that run in `directory` or below; returns how many.
    async fn end_all_in(&self, directory: &Path) -> usize;

    /// Whether a snapshot is what was written; reads all of it, and blocks.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    fn verify_snapshot(&self, snapshot: &Path) -> Result<(), String>;
}

/// A virtual machine that was started.
#[async_trait]
pub trait Vm: fmt::Debug + Send + Sync {
    /// Which process it is.
    fn record(&self) -> &VmRecord;

    /// How long it could have run and had no processor, since it was started.
    fn waited(&self) -> Duration;

    /// Waits for its end. May be dropped and called again.
    async fn exited(&self) -> Exit;

    /// Tells it something, and waits until it is done.
    ///
    /// # Errors
    ///
    /// Says why it is not, or may not be.
    async fn order(&self, order: Request) -> Result<(), OrderError>;

    /// Tells it to end by itself.
    async fn order_stop(&self);

    /// Ends it.
    fn kill(&self);
}
