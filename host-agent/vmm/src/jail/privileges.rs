//! Capabilities and resource limits.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::JailError;

/// What the process may have of the host's resources.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open descriptors.
    pub descriptors: u64,
    /// The size of a file that it writes, in bytes.
    pub file_bytes: u64,
    /// Threads.
    pub threads: u64,
}

/// Sets the limits.
///
/// # Errors
///
/// When one is higher than what the process may have.
pub fn limit(limits: &Limits) -> Result<(), JailError> {
    for (resource, most) in [
        (Resource::RLIMIT_NOFILE, limits.descriptors),
        (Resource::RLIMIT_FSIZE, limits.file_bytes),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        set_limit(resource, most)?;
    }
    Ok(())
}

/// Sets the limit of threads, which are counted with all others of the user.
///
/// # Errors
///
/// Those of [`limit`].
pub fn limit_threads(limits: &Limits) -> Result<(), JailError> {
    set_limit(Resource::RLIMIT_NPROC, limits.threads)
}

fn set_limit(resource: Resource, most: u64) -> Result<(), JailError> {
    let (_, hard) = getrlimit(resource).map_err(JailError::step("read resource limits"))?;
    let most = most.min(hard);
    setrlimit(resource, most, most).map_err(JailError::step("set resource limits"))
}

/// Gives up every capability, and the ways to get one.
///
/// # Errors
///
/// Never on a kernel that is known.
pub fn drop_all() -> Result<(), JailError> {
    prctl::set_no_new_privs().map_err(JailError::step("set no_new_privs"))?;
    for capability in 0.. {
        // SAFETY: the call takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            match nix::Error::last() {
                // There are no more.
                nix::Error::EINVAL if capability > 0 => break,
                // It has none to give up already.
                nix::Error::EPERM => break,
                error => return Err(JailError::step("drop capabilities")(error)),
            }
        }
    }
    let none = [CapabilitySet::default(); 2];
    set_capabilities(&none).map_err(JailError::step("drop capabilities"))?;
    prctl::set_dumpable(false).map_err(JailError::step("forbid dumps"))
}

/// Makes the capabilities that the process kept count again.
///
/// # Errors
///
/// Never on a kernel that is known.
pub(super) fn use_all() -> io::Result<()> {
    let mut sets = [CapabilitySet::default(); 2];
    // SAFETY: the header is of version 3, which fills two sets, and both outlive
    // the call.
    if unsafe { libc::syscall(libc::SYS_capget, &HEADER, sets.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for set in &mut sets {
        set.effective = set.permitted;
    }
    set_capabilities(&sets)
}

fn set_capabilities(sets: &[CapabilitySet; 2]) -> io::Result<()> {
    // SAFETY: the header is of version 3, which takes two sets, and both outlive
    // the call.
    if unsafe { libc::syscall(libc::SYS_capset, &HEADER, sets.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// This thread, `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
static HEADER: CapabilityHeader = CapabilityHeader {
    version: 0x2008_0522,
    pid: 0,
};

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
