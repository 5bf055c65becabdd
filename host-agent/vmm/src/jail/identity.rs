//! Who the process is: uid, gid, user namespace.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use super::privileges;

/// Becomes another user, in no group but its own.
///
/// # Errors
///
/// When that is not allowed to the present one.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if geteuid() == uid && getegid() == gid {
        return Err(io::Error::other("its user is the host agent's own"));
    }
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // Capabilities go last, with everything that needs them.
    prctl::set_keepcaps(true)?;
    setresuid(uid, uid, uid)?;
    privileges::use_all()?;
    Ok(())
}

/// Enters a user namespace in which there is nobody but the present user.
///
/// # Errors
///
/// When the host gives none.
pub fn enter_user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    // Who has changed its user owns the files of its /proc directory only like this.
    prctl::set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Lets no namespace be made in the user namespace that the process has entered.
///
/// # Errors
///
/// When the kernel's limits cannot be written.
pub fn close_user_namespace() -> io::Result<()> {
    // Each user namespace has limits of its own (namespaces(7), "/proc/sys/user").
    for limit in fs::read_dir("/proc/sys/user")? {
        let path = limit?.path();
        if path.to_string_lossy().ends_with("_namespaces") {
            fs::write(path, "0")?;
        }
    }
    Ok(())
}
