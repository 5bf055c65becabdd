//! Opens the host's KVM and checks that it can do what machines need.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;
use vmm_sys_util::errno;

/// The environment variable that names another device than [`DEVICE`].
pub const DEVICE_VARIABLE: &str = "FABRIC_KVM";
/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";
/// The only version there ever was.
const API_VERSION: i32 = 12;

/// What every machine needs, and what for.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "guest memory"),
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Irqfd, "interrupts from devices"),
    (Cap::Ioeventfd, "notifications to devices"),
    (Cap::ExtCpuid, "processor identification"),
    (Cap::MpState, "starting and halting virtual CPUs"),
];

/// Why KVM cannot be used. Each says what to do.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device does not exist.
    #[error(
        "{} does not exist: load the kvm_intel or kvm_amd module, enable virtualization (VT-x, \
        SVM) in the firmware, or, in a virtual machine, nested virtualization on its host; in a \
        container, pass the device in",
        .path.display()
    )]
    Missing {
        /// The device.
        path: PathBuf,
    },
    /// The user may not use it.
    #[error(
        "no permission for {}: add the user to the group that owns it (often kvm), or run as root",
        .path.display()
    )]
    Denied {
        /// The device.
        path: PathBuf,
    },
    /// It could not be opened.
    #[error("cannot open {}: see the kernel's log (dmesg) for what KVM says", .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// It is not KVM.
    #[error(
        "{} is not KVM: it answers API version {version}, expected {API_VERSION}",
        .path.display()
    )]
    NotKvm {
        /// The device.
        path: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// A capability is missing.
    #[error("this KVM has no {purpose} ({capability}): use a newer kernel on the host")]
    Capability {
        /// The capability.
        capability: String,
        /// What it is for.
        purpose: &'static str,
    },
}

/// Opens the host's KVM.
///
/// # Errors
///
/// When it is missing, cannot be opened or lacks something, with what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let path = device();
    let fail = |source: errno::Error| match source.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing { path: device() },
        libc::EACCES | libc::EPERM => KvmError::Denied { path: device() },
        _ => KvmError::Open {
            path: device(),
            source,
        },
    };
    let c_path = CString::new(path.clone().into_os_string().into_vec())
        .map_err(|_| fail(errno::Error::new(libc::EINVAL)))?;
    let kvm = Kvm::new_with_path(&c_path).map_err(fail)?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::NotKvm { path, version });
    }
    check(&kvm, &REQUIRED)?;
    Ok(kvm)
}

/// The device that is used.
pub fn device() -> PathBuf {
    std::env::var_os(DEVICE_VARIABLE).map_or_else(|| PathBuf::from(DEVICE), PathBuf::from)
}

/// What a KVM that interprets guest kernels needs, to be repaired.
const REPAIRABLE: [(Cap, &str); 4] = [
    (Cap::SyncRegs, "registers shared at exits"),
    (Cap::SetGuestDebug, "breakpoints in guests"),
    (
        Cap::X86UserSpaceMsr,
        "register accesses handed to user space",
    ),
    (Cap::X86MsrFilter, "filters for register accesses"),
];

/// Checks that this KVM has what repairs need.
///
/// # Errors
///
/// Names the first capability that is missing.
pub fn check_repairable(kvm: &Kvm) -> Result<(), KvmError> {
    check(kvm, &REPAIRABLE)
}

fn check(kvm: &Kvm, capabilities: &[(Cap, &'static str)]) -> Result<(), KvmError> {
    match capabilities
        .iter()
        .find(|(cap, _)| !kvm.check_extension(*cap))
    {
        Some((cap, purpose)) => Err(KvmError::Capability {
            capability: format!("{cap:?}"),
            purpose,
        }),
        None => Ok(()),
    }
}
