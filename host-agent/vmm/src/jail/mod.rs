//! What the process gives up before its guest runs.
//!
//! ```text
//!  host agent ── launch ──▶ fabric-vmm: opens everything it is configured with, reads nothing
//!    (own pid namespace)         │
//!                              enter: uid and gid ▸ namespaces ▸ root ▸ capabilities ▸
//!                                     no_new_privs ▸ Landlock
//!                                │
//!                              reads disks, kernel and snapshot, puts the machine together
//!                                │
//!                              limits of resources; each thread: its list of system calls
//!                                │
//!                              the guest's first instruction
//! ```
//!
//! The process jails itself, because only it can open what it is to hold: KVM,
//! disks with their parents, a kernel or a snapshot, sockets. Of what is in these files,
//! which a guest or another process may have written, it reads nothing before it is in
//! here. It holds the descriptors and sees one directory, under the path that it always
//! had; all else is gone. A pid namespace is the one thing that a process cannot give
//! itself and stay what it is (KVM ties a machine to the process that made it), so
//! [`launch`] starts it in one, as its first process. No keeper stands between: what the host agent
//! starts, watches and kills is the VMM, and with it ends all that is in there.
//!
//! | file | what it is |
//! |---|---|
//! | [`isolation`] | the parts of the jail by name, and what to do where one is missing |
//! | [`launch`] | starts a process in a pid namespace of its own |
//! | [`identity`] | uid, gid and user namespace |
//! | [`parent`] | ends with the process that started it, where that is wanted |
//! | [`root`] | the root directory with nothing in it but one directory |
//! | [`privileges`] | capabilities, resource limits |
//! | [`access`] | Landlock |
//! | [`runtime`] | the calls that the allocator and the runtime would make of themselves |
//! | [`calls`] | the system calls of each kind of thread |
//!
//! The working directory stays what it was by name, in a root that has only it:
//! paths mean the same before and after, and from outside `/proc/PID/cwd` still
//! says whose the process is.

pub mod access;
pub mod calls;
pub mod identity;
pub mod isolation;
pub mod launch;
pub mod parent;
pub mod privileges;
pub mod root;
pub mod runtime;

use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

pub use calls::{CallLists, ThreadKind};
pub use isolation::{Isolation, Missing, Trial};
pub use privileges::Limits;

use crate::config::JailConfig;

/// Why a process cannot be jailed. It runs no guest then.
#[derive(Debug, Error)]
pub enum JailError {
    /// The host does not give something.
    #[error(
        "this host gives no isolation by `{name}`: {remedy}; or allow that with \
         --allow-missing-isolation {name}", remedy = .name.remedy()
    )]
    Missing {
        /// What.
        name: Isolation,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
    /// The directory cannot be used.
    #[error("cannot {action} {path} for the jail")]
    Directory {
        /// What was tried.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Something that every host has failed.
    #[error("cannot {action} in the jail")]
    Step {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl JailError {
    fn step<E: Into<std::io::Error>>(action: &'static str) -> impl Fn(E) -> JailError {
        move |source| JailError::Step {
            action,
            source: source.into(),
        }
    }
}

/// What a jailed process is jailed by, and what is left to do by its threads.
#[derive(Debug, Clone)]
pub struct Jail {
    /// What is in force.
    pub isolation: Vec<Isolation>,
    /// What is not, as that is allowed, and why not.
    pub missing: Vec<(Isolation, String)>,
    /// What each thread calls on its first line.
    pub calls: CallLists,
    /// Whether its threads are counted for themselves.
    counted: bool,
}

impl Jail {
    /// Has the process have no more than that, now that it is known what its machine needs.
    ///
    /// # Errors
    ///
    /// Never on a kernel that is known.
    pub fn limit(&self, limits: &Limits) -> Result<(), JailError> {
        privileges::limit(limits)?;
        if self.counted {
            privileges::limit_threads(limits)?;
        }
        Ok(())
    }
}

/// Collects what is in force, and refuses what is missing unless that is allowed.
struct Progress<'a> {
    config: &'a JailConfig,
    in_force: Vec<Isolation>,
    missing: Vec<(Isolation, String)>,
}

impl Progress<'_> {
    fn note<E: Into<std::io::Error>>(
        &mut self,
        name: Isolation,
        result: Result<(), E>,
    ) -> Result<bool, JailError> {
        match result {
            Ok(()) => {
                self.in_force.push(name);
                Ok(true)
            }
            Err(error) => {
                let source = error.into();
                if !self.config.allow_missing.contains(&name) {
                    return Err(JailError::Missing { name, source });
                }
                self.missing.push((name, source.to_string()));
                Ok(false)
            }
        }
    }
}

/// Gives up everything, for good. The process must have one thread, and is to be held to
/// limits later ([`Jail::limit`]).
///
/// # Errors
///
/// When the host does not give something that may not be missing. The process is
/// in no state to go on then.
pub fn enter(config: &JailConfig) -> Result<Jail, JailError> {
    let mut done = Progress {
        config,
        in_force: Vec::new(),
        missing: Vec::new(),
    };
    let started_in_one = |is: bool| {
        is.then_some(())
            .ok_or_else(|| std::io::Error::other("the process was not started in one"))
    };
    done.note(Isolation::Pid, started_in_one(std::process::id() == 1))?;
    let given = config.given.contains(&Isolation::Cgroup);
    done.note(Isolation::Cgroup, started_in_one(given))?;
    runtime::settle()?;
    let inside = root::Inside::enter(config.directory.as_deref())?;
    let alone = done.note(
        Isolation::Uid,
        identity::become_user(config.uid, config.gid),
    )?;
    // Threads are counted by user and user namespace.
    let user_namespace = done.note(Isolation::User, identity::enter_user_namespace())?;
    for (name, flag) in [
        (Isolation::Ipc, CloneFlags::CLONE_NEWIPC),
        (Isolation::Uts, CloneFlags::CLONE_NEWUTS),
        (Isolation::Network, CloneFlags::CLONE_NEWNET),
    ] {
        done.note(name, unshare(flag))?;
    }
    let mounts = done.note(Isolation::Mount, unshare(CloneFlags::CLONE_NEWNS))?;
    if user_namespace {
        identity::close_user_namespace().map_err(JailError::step("close the namespace"))?;
    }
    if let Some(parent) = config.ends_with {
        // Here, for a change of user undoes it.
        parent::end_with(parent).map_err(JailError::step("end with its parent"))?;
    }
    if mounts {
        inside.replace_root()?;
    } else {
        inside.leave()?;
    }
    privileges::drop_all()?;
    done.note(
        Isolation::Landlock,
        access::restrict(config.directory.as_deref()),
    )?;
    let calls = CallLists::compile().map_err(JailError::step("make the lists of system calls"))?;
    done.note(Isolation::Seccomp, calls::is_supported())?;
    let seccomp = done.in_force.contains(&Isolation::Seccomp);
    Ok(Jail {
        isolation: done.in_force,
        missing: done.missing,
        calls: if seccomp { calls } else { CallLists::default() },
        counted: user_namespace || alone,
    })
}
