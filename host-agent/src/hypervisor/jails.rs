//! Whose the virtual machines of this node are, and what may be missing of their
//! jails.

use std::{
    io,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
};

use fabric_vmm::{config::JailConfig, jail::Isolation};
use rustix::process::{getegid, geteuid};

use super::{
    cgroups::{CgroupError, Cgroups},
    users::{NoUser, UserRange},
};
use crate::instance::directory::JAIL;

/// How the virtual machines of this node are jailed.
#[derive(Debug, Clone, Default)]
pub struct Jails {
    /// Their users and groups; the first that there are to choose from, unless named.
    pub users: Option<UserRange>,
    /// What may be missing where the host does not give it.
    pub allow_missing: Vec<Isolation>,
    /// The control group in which theirs are made; ours without it.
    pub cgroup: Option<PathBuf>,
}

impl Jails {
    /// The jail of the machine of this number, which no other of this node has at the
    /// same time. Its group is somebody else's to make.
    ///
    /// # Errors
    ///
    /// When there are more machines than users.
    pub fn jail(&self, number: u32, in_group: bool) -> Result<JailConfig, NoUser> {
        let (uid, gid) = self.user(number)?;
        Ok(JailConfig {
            uid,
            gid,
            directory: Some(JAIL.into()),
            given: in_group.then_some(Isolation::Cgroup).into_iter().collect(),
            allow_missing: self.allow_missing.clone(),
            ends_with: None,
        })
    }

    /// Makes a directory that machine's own.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn give(&self, directory: &Path, number: u32) -> io::Result<()> {
        let (uid, gid) = self.user(number)?;
        lchown(directory, Some(uid), Some(gid))
    }

    /// The groups of this node's machines; none where that is allowed.
    ///
    /// # Errors
    ///
    /// When there can be none, and that is not allowed.
    pub fn cgroups(&self, data: &Path) -> Result<Option<Cgroups>, CgroupError> {
        match Cgroups::open(data, self.cgroup.as_deref()) {
            Ok(cgroups) => Ok(Some(cgroups)),
            Err(error) if self.allow_missing.contains(&Isolation::Cgroup) => {
                tracing::warn!(%error, "virtual machines run without control groups");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Its user and group; ours where we cannot give another.
    pub(super) fn user(&self, number: u32) -> Result<(u32, u32), NoUser> {
        if !geteuid().is_root() {
            return Ok((geteuid().as_raw(), getegid().as_raw()));
        }
        let user = self.users.clone().unwrap_or_default().user(number)?;
        Ok((user, user))
    }
}
