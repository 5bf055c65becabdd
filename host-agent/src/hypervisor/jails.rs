//! Whose the virtual machines of this node are, and what may be missing of their
//! jails.

use std::{
    fmt, io,
    ops::RangeInclusive,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
    str::FromStr,
};

use fabric_vmm::{config::JailConfig, jail::Isolation};
use rustix::process::{getegid, geteuid};

use super::cgroups::{CgroupError, Cgroups};
use crate::instance::directory::JAIL;

/// How the virtual machines of this node are jailed.
#[derive(Debug, Clone, Default)]
pub struct Jails {
    /// Their users and groups.
    pub users: UserRange,
    /// What may be missing where the host does not give it.
    pub allow_missing: Vec<Isolation>,
    /// The control group in which theirs are made; ours without it.
    pub cgroup: Option<PathBuf>,
}

/// Users that nobody else is: a virtual machine is one of them, and its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRange(RangeInclusive<u32>);

/// What is left for machines to be: fewer are too few.
const LEAST: u32 = 256;

impl Default for UserRange {
    fn default() -> Self {
        Self(600_000..=665_535)
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

impl FromStr for UserRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
        match range {
            Some(range)
                if *range.start() > 0 && range.clone().nth(LEAST as usize - 1).is_some() =>
            {
                Ok(Self(range))
            }
            _ => Err(format!(
                "must be FIRST-LAST, of {LEAST} user ids or more, without 0"
            )),
        }
    }
}

impl Jails {
    /// The jail of the machine of this number, which no other of this node has at the
    /// same time. Its group is somebody else's to make.
    #[must_use]
    pub fn jail(&self, number: u32, in_group: bool) -> JailConfig {
        let (uid, gid) = self.user(number);
        JailConfig {
            uid,
            gid,
            directory: Some(JAIL.into()),
            given: in_group.then_some(Isolation::Cgroup).into_iter().collect(),
            allow_missing: self.allow_missing.clone(),
            ends_with: None,
        }
    }

    /// Makes a directory that machine's own.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn give(&self, directory: &Path, number: u32) -> io::Result<()> {
        let (uid, gid) = self.user(number);
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
    pub(super) fn user(&self, number: u32) -> (u32, u32) {
        if !geteuid().is_root() {
            return (geteuid().as_raw(), getegid().as_raw());
        }
        let range = &self.users.0;
        let many = range.end() - range.start() + 1;
        let user = range.start() + number % many;
        (user, user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_users_is_two_numbers_and_never_holds_root() {
        let range = UserRange::default();
        assert_eq!(range.to_string().parse(), Ok(range));
        for wrong in ["", "1000", "0-65535", "7-1", "5-9", "a-b"] {
            assert!(wrong.parse::<UserRange>().is_err(), "{wrong} was taken");
        }
    }
}
