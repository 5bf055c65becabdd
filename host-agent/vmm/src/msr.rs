//! Model-specific registers of a virtual CPU, one at a time
//! (Intel SDM volume 4, chapter 2).

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

/// The time stamp counter.
pub const TSC: u32 = 0x10;
/// The timer's deadline, a value of the time stamp counter, or 0 for none
/// (Intel SDM volume 3, 11.5.4.1).
pub const TSC_DEADLINE: u32 = 0x6e0;

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}

/// Reads one; `None` if this virtual CPU does not have it.
#[must_use]
pub fn read(fd: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[entry(index, 0)]).ok()?;
    (fd.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
}

/// Writes one.
///
/// # Errors
///
/// KVM does not take it; why, if it said.
pub fn write(fd: &VcpuFd, index: u32, value: u64) -> Result<(), Option<errno::Error>> {
    let msrs = Msrs::from_entries(&[entry(index, value)]).map_err(|_| None)?;
    match fd.set_msrs(&msrs) {
        Ok(1) => Ok(()),
        Ok(_) => Err(None),
        Err(source) => Err(Some(source)),
    }
}
