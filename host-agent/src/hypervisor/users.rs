//! Users that nobody else is: a virtual machine is one of them, and its group.
//!
//! Host agents of one machine each have a range. A range is taken by locking, in a file
//! that all of them open, the bytes of these numbers (fcntl_locking(2), "Open file
//! description locks"); the kernel lets go of them when the host agent ends.

use std::{
    fmt,
    fs::File,
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::process::geteuid;

use crate::files;

/// The file in which ranges are taken.
const FILE: &str = "/run/fabric-users.lock";
/// What is left for machines to be: fewer are too few.
const LEAST: u32 = 256;
/// The first of all ranges that are ours to choose, and how many users each has.
const FIRST: u32 = 600_000;
const USERS: u32 = 1 << 16;
/// Ranges to choose from.
const RANGES: u32 = 256;

/// Numbers of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRange(RangeInclusive<u32>);

impl UserRange {
    /// The range of that number, of those to choose from.
    fn choice(number: u32) -> Self {
        let first = FIRST + number * USERS;
        Self(first..=first + (USERS - 1))
    }

    /// The user of the machine of this number.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn user(&self, number: u32) -> Result<u32, NoUser> {
        let user = self.0.start().checked_add(number);
        user.filter(|user| self.0.contains(user))
            .ok_or_else(|| NoUser(self.clone()))
    }

    /// Locks these users in a file, for as long as that is open; whether no other has some of
    /// them.
    fn lock(&self, file: &File) -> io::Result<bool> {
        let (first, last) = (i64::from(*self.0.start()), i64::from(*self.0.end()));
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: first,
            l_len: last - first + 1,
            l_pid: 0,
        };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Default for UserRange {
    fn default() -> Self {
        Self::choice(0)
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

/// A machine for which there is no user left.
#[derive(Debug, thiserror::Error)]
#[error("there are more virtual machines than users {0}: --uid-range has to be longer")]
pub struct NoUser(UserRange);

impl From<NoUser> for io::Error {
    fn from(error: NoUser) -> Self {
        Self::other(error)
    }
}

/// Why a host agent can have no users.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// Another has some of those that were asked for.
    #[error(
        "some of the users {0} are another host agent's of this machine: give it others by \
         --uid-range, or none, and it takes some that are free"
    )]
    Taken(UserRange),
    /// Others have all that there are to choose from.
    #[error("other host agents of this machine have all users up to {0}: name some by --uid-range")]
    NoneFree(u32),
    /// They cannot be taken.
    #[error("cannot lock users in {path}, by which host agents of one machine have different ones")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Users that are this process's to give, until this is dropped.
#[derive(Debug)]
pub struct Users {
    /// Which.
    pub range: UserRange,
    _lock: Option<File>,
}

impl Users {
    /// Takes those that are asked for, or else the first range that is free. Whoever is not
    /// root has no users to give, and takes none.
    ///
    /// # Errors
    ///
    /// When they are another's.
    pub fn take(asked: Option<&UserRange>) -> Result<Self, UsersError> {
        if geteuid().is_root() {
            return Self::take_in(Path::new(FILE), asked);
        }
        Ok(Self {
            range: asked.cloned().unwrap_or_default(),
            _lock: None,
        })
    }

    fn take_in(path: &Path, asked: Option<&UserRange>) -> Result<Self, UsersError> {
        let failed = |source| UsersError::Lock {
            path: path.to_owned(),
            source,
        };
        let file = files::open_or_make(path).map_err(failed)?;
        let free = |range: &UserRange| range.lock(&file).map_err(failed);
        let range = match asked {
            Some(range) if free(range)? => range.clone(),
            Some(range) => return Err(UsersError::Taken(range.clone())),
            None => first(free)?,
        };
        Ok(Self {
            range,
            _lock: Some(file),
        })
    }
}

/// The first range that is free, of those to choose from.
fn first(free: impl Fn(&UserRange) -> Result<bool, UsersError>) -> Result<UserRange, UsersError> {
    for range in (0..RANGES).map(UserRange::choice) {
        if free(&range)? {
            return Ok(range);
        }
    }
    Err(UsersError::NoneFree(FIRST + RANGES * USERS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> UserRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_of_users_is_two_numbers_and_never_holds_root() {
        let range = UserRange::default();
        assert_eq!(range.to_string().parse(), Ok(range));
        for wrong in ["", "1000", "0-65535", "7-1", "5-9", "a-b"] {
            assert!(wrong.parse::<UserRange>().is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn each_machine_is_another_user_and_there_are_no_more_than_the_range_has() {
        let range = range("1000-1255");
        assert_eq!(range.user(0).unwrap(), 1000);
        assert_eq!(range.user(255).unwrap(), 1255);
        for number in [256, u32::MAX] {
            let error = range.user(number).unwrap_err().to_string();
            assert!(error.contains("users 1000-1255"), "{error}");
        }
    }

    #[test]
    fn host_agents_of_one_machine_have_different_users() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let first = Users::take_in(&path, None).unwrap();
        let second = Users::take_in(&path, None).unwrap();
        assert_eq!(first.range, UserRange::choice(0));
        assert_eq!(second.range, UserRange::choice(1));

        let across = range("600100-700000");
        let error = Users::take_in(&path, Some(&across)).unwrap_err();
        assert!(error.to_string().contains("600100-700000"), "{error}");
        let beside = Users::take_in(&path, Some(&range("2000-599999"))).unwrap();
        Users::take_in(&path, Some(&range("599999-600255"))).unwrap_err();

        drop((first, second));
        Users::take_in(&path, Some(&across)).unwrap();
        drop(beside);
    }

    #[test]
    fn users_that_cannot_be_locked_are_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let error = Users::take_in(&folder.path().join("no/users"), None).unwrap_err();
        assert!(matches!(error, UsersError::Lock { .. }), "{error}");
    }
}
