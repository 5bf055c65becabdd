//! The state of a virtual CPU, taken when it is parked and given to a new one.
//!
//! It is what the guest believes: where SYSCALL is repaired, its own STAR, LSTAR
//! and FMASK, never what the hardware was given instead.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::{msr, repair::syscall::SyscallRegisters};

/// Not in KVM's list of what has to be saved, and set when a machine is made.
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// The most registers that a snapshot can name; KVM knows some 150.
const MSRS_MAX: usize = 1024;

/// A virtual CPU, as it was between two instructions.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    /// What the guest wrote to the registers of SYSCALL, where they are repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    syscall: Option<SyscallRegisters>,
}

/// Why a virtual CPU's state cannot be taken or given.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// It did not leave the guest in time.
    #[error("a virtual CPU did not stop in time")]
    NotParked,
    /// A call to KVM failed.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// A register does not take its value.
    #[error("KVM does not take {value:#x} for model-specific register {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// The value.
        value: u64,
    },
    /// The snapshot's lists are longer than any processor's.
    #[error("the snapshot has {count} {what}: at most {max} make sense")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there can be.
        max: usize,
    },
    /// The snapshot is of another processor.
    #[error("the snapshot was made on processor {theirs}: this is {ours}")]
    OtherProcessor {
        /// The snapshot's.
        theirs: String,
        /// This host's.
        ours: String,
    },
}

impl VcpuStateError {
    fn kvm(call: &'static str) -> impl Fn(errno::Error) -> VcpuStateError {
        move |source| VcpuStateError::Kvm { call, source }
    }
}

/// The registers whose values make up a virtual CPU, as this KVM lists them.
#[derive(Debug, Clone)]
pub struct MsrList(Vec<u32>);

impl MsrList {
    /// Asks KVM.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn of(kvm: &Kvm) -> Result<MsrList, VcpuStateError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(VcpuStateError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        let mut indices = list.as_slice().to_vec();
        indices.push(MSR_MTRR_DEFAULT);
        Ok(MsrList(indices))
    }
}

impl VcpuState {
    /// Takes the state of a virtual CPU that is outside the guest, with nothing
    /// left to finish.
    ///
    /// # Errors
    ///
    /// When KVM refuses to tell.
    pub fn take(
        fd: &VcpuFd,
        msrs: &MsrList,
        syscall: Option<SyscallRegisters>,
    ) -> Result<VcpuState, VcpuStateError> {
        let kvm = VcpuStateError::kvm;
        let hidden = |index: &u32| syscall.is_some() && SyscallRegisters::has(*index);
        let indices = msrs.0.iter().copied().filter(|index| !hidden(index));
        // First, for the timer's deadline can pass meanwhile, and is zero then.
        let msrs = read_msrs(fd, indices)?;
        Ok(VcpuState {
            cpuid: fd
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(kvm("KVM_GET_CPUID2"))?
                .as_slice()
                .to_vec(),
            // Before the others: it settles what a halted one is waiting for.
            mp_state: fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            debug_registers: fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            events: fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
            msrs,
            syscall,
        })
    }

    /// Gives a new virtual CPU what the state's says of its processor.
    ///
    /// # Errors
    ///
    /// When the state is of another kind of processor, or KVM refuses it.
    pub fn give_cpuid(&self, fd: &VcpuFd, supported: &CpuId) -> Result<(), VcpuStateError> {
        self.check(supported)?;
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| VcpuStateError::TooMany {
            what: "CPUID entries",
            count: self.cpuid.len(),
            max: KVM_MAX_CPUID_ENTRIES,
        })?;
        fd.set_cpuid2(&cpuid)
            .map_err(VcpuStateError::kvm("KVM_SET_CPUID2"))
    }

    /// Gives the state to a virtual CPU that is of the same processor, all but what a
    /// repair has to do.
    ///
    /// # Errors
    ///
    /// When KVM refuses it.
    pub fn give(&self, fd: &VcpuFd) -> Result<(), VcpuStateError> {
        let kvm = VcpuStateError::kvm;
        fd.set_mp_state(self.mp_state)
            .map_err(kvm("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        fd.set_sregs(&self.system_registers())
            .map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        // SAFETY: KVM reads 4096 bytes, the size of the structure: no guest
        // permission for larger states was ever asked for.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        fd.set_debug_regs(&self.debug_registers)
            .map_err(kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        self.give_msrs(fd)?;
        fd.set_vcpu_events(&self.events)
            .map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// The state without the time stamp counter, which runs on in a processor that is
    /// reset, and is the same in all of them only if nobody sets it.
    #[must_use]
    pub fn without_time(mut self) -> VcpuState {
        self.msrs.retain(|entry| entry.index != msr::TSC);
        self
    }

    /// The guest's registers of SYSCALL, where they are repaired.
    pub fn syscall(&self) -> Option<SyscallRegisters> {
        self.syscall
    }

    /// The system registers. An interrupt that is being delivered is told by the
    /// events alone.
    pub fn system_registers(&self) -> kvm_sregs {
        kvm_sregs {
            interrupt_bitmap: [0; 4],
            ..self.sregs
        }
    }

    fn check(&self, supported: &CpuId) -> Result<(), VcpuStateError> {
        if self.msrs.len() > MSRS_MAX {
            return Err(VcpuStateError::TooMany {
                what: "registers",
                count: self.msrs.len(),
                max: MSRS_MAX,
            });
        }
        let (theirs, ours) = (signature(&self.cpuid), signature(supported.as_slice()));
        if theirs == ours {
            Ok(())
        } else {
            Err(VcpuStateError::OtherProcessor { theirs, ours })
        }
    }

    fn give_msrs(&self, fd: &VcpuFd) -> Result<(), VcpuStateError> {
        let last = |entry: &&kvm_msr_entry| entry.index == msr::TSC_DEADLINE;
        let all_but_last = self.msrs.iter().filter(|entry| !last(entry)).copied();
        for entry in set_msrs(fd, all_but_last.collect())? {
            // Some cannot be written, and have the value they always have.
            if entry.index != msr::TSC && msr::read(fd, entry.index) != Some(entry.data) {
                return Err(VcpuStateError::Msr {
                    index: entry.index,
                    value: entry.data,
                });
            }
        }
        self.set_timer(fd)
    }

    /// The timer's deadline is a value of the time stamp counter, which goes on
    /// from where it was only where KVM can shift it.
    fn set_timer(&self, fd: &VcpuFd) -> Result<(), VcpuStateError> {
        let saved = |index| self.msrs.iter().find(|e| e.index == index).map(|e| e.data);
        let Some(deadline) = saved(msr::TSC_DEADLINE).filter(|deadline| *deadline != 0) else {
            return Ok(());
        };
        let then = saved(msr::TSC).unwrap_or(deadline);
        let now = msr::read(fd, msr::TSC).unwrap_or(then);
        let entry = kvm_msr_entry {
            index: msr::TSC_DEADLINE,
            data: now.wrapping_add(deadline.saturating_sub(then)).max(1),
            ..kvm_msr_entry::default()
        };
        match set_msrs(fd, vec![entry])?.first() {
            None => Ok(()),
            Some(refused) => Err(VcpuStateError::Msr {
                index: refused.index,
                value: refused.data,
            }),
        }
    }
}

fn read_msrs(
    fd: &VcpuFd,
    indices: impl Iterator<Item = u32>,
) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut wanted: Vec<kvm_msr_entry> = indices
        .map(|index| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        })
        .collect();
    let mut found = Vec::with_capacity(wanted.len());
    while !wanted.is_empty() {
        let mut list = Msrs::from_entries(&wanted).map_err(|_| VcpuStateError::TooMany {
            what: "registers",
            count: wanted.len(),
            max: MSRS_MAX,
        })?;
        let count = fd
            .get_msrs(&mut list)
            .map_err(VcpuStateError::kvm("KVM_GET_MSRS"))?;
        found.extend_from_slice(&list.as_slice()[..count]);
        // KVM stops at one that this virtual CPU does not have.
        wanted.drain(..(count + 1).min(wanted.len()));
    }
    Ok(found)
}

/// Sets registers in their order, and returns those that KVM does not take.
fn set_msrs(
    fd: &VcpuFd,
    mut entries: Vec<kvm_msr_entry>,
) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut refused = Vec::new();
    while !entries.is_empty() {
        let list = Msrs::from_entries(&entries).map_err(|_| VcpuStateError::TooMany {
            what: "registers",
            count: entries.len(),
            max: MSRS_MAX,
        })?;
        let count = fd
            .set_msrs(&list)
            .map_err(VcpuStateError::kvm("KVM_SET_MSRS"))?;
        // KVM stops at one that it does not take.
        refused.extend(entries.get(count));
        entries.drain(..(count + 1).min(entries.len()));
    }
    Ok(refused)
}

/// Vendor, family, model and stepping (CPUID leaves 0 and 1).
fn signature(cpuid: &[kvm_cpuid_entry2]) -> String {
    let leaf = |function| cpuid.iter().find(|entry| entry.function == function);
    let vendor: Vec<u8> = leaf(0)
        .map(|leaf| {
            [leaf.ebx, leaf.edx, leaf.ecx]
                .map(u32::to_le_bytes)
                .concat()
        })
        .unwrap_or_default();
    let version = leaf(1).map_or(0, |leaf| leaf.eax);
    format!("{} {version:#x}", String::from_utf8_lossy(&vendor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_known_by_vendor_and_version() {
        let text = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let entries = [
            kvm_cpuid_entry2 {
                ebx: text(b"Auth"),
                edx: text(b"enti"),
                ecx: text(b"cAMD"),
                ..kvm_cpuid_entry2::default()
            },
            kvm_cpuid_entry2 {
                function: 1,
                eax: 0xa10f11,
                ..kvm_cpuid_entry2::default()
            },
        ];
        assert_eq!(signature(&entries), "AuthenticAMD 0xa10f11");
        assert_eq!(signature(&[]), " 0x0");
    }
}
