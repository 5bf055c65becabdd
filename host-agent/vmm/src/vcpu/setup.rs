//! Puts a new virtual CPU into the state in which a kernel expects it.

use kvm_bindings::{CpuId, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::errno;

use super::cpuid;
use crate::boot::layout::{BOOT_PARAMS, BOOT_STACK, GDT, PAGE_TABLES};
use crate::boot::tables::SEGMENTS;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_MODE: u32 = 0x700;
const LVT_MASKED: u32 = 1 << 16;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXT_INT: u32 = 7 << 8;

const BOOT_CODE: u16 = 0x10;
const BOOT_DATA: u16 = 0x18;

/// Why a virtual CPU cannot be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    /// A call to KVM failed.
    #[error("{call} failed for vCPU {vcpu}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Which virtual CPU.
        vcpu: u8,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// The list of registers could not be made.
    #[error("too many registers to set for vCPU {vcpu}")]
    List {
        /// Which virtual CPU.
        vcpu: u8,
    },
}

/// Tells virtual CPU `id` of `vcpus` what its processor is.
///
/// # Errors
///
/// When KVM refuses.
pub fn describe(fd: &VcpuFd, id: u8, supported: &CpuId, vcpus: u8) -> Result<(), SetupError> {
    let mut entries = supported.clone();
    cpuid::describe(&mut entries, id, vcpus);
    fd.set_cpuid2(&entries).map_err(|source| SetupError::Kvm {
        call: "KVM_SET_CPUID2",
        vcpu: id,
        source,
    })
}

/// Sets up virtual CPU `id`. The first starts at `entry`, the kernel's in 64-bit mode;
/// the others wait for it to start them.
///
/// # Errors
///
/// When KVM refuses.
pub fn set_up(fd: &VcpuFd, id: u8, entry: u64) -> Result<(), SetupError> {
    let kvm = |call| {
        move |source| SetupError::Kvm {
            call,
            vcpu: id,
            source,
        }
    };
    let msrs = [
        (MSR_MISC_ENABLE, FAST_STRINGS),
        (MSR_MTRR_DEFAULT, MTRR_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let msrs = Msrs::from_entries(&msrs).map_err(|_| SetupError::List { vcpu: id })?;
    fd.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;

    let mut lapic = fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
    set_interrupt_pin(&mut lapic, LVT_LINT0, MODE_EXT_INT);
    set_interrupt_pin(&mut lapic, LVT_LINT1, MODE_NMI);
    fd.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC"))?;
    if id != 0 {
        return Ok(());
    }

    let mut sregs = fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    enter_long_mode(&mut sregs);
    fd.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
}

/// The state that the 64-bit boot protocol asks for.
fn enter_long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: BOOT_CODE,
        type_: 11,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: BOOT_DATA,
        type_: 3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (size_of_val(&SEGMENTS) - 1) as u16;
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8000_0031; // PG, NE, ET, PE
    sregs.efer = 0x500; // LMA, LME
}

fn set_interrupt_pin(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let cells = &mut lapic.regs[register..register + 4];
    let before = cells
        .iter()
        .rev()
        .fold(0u32, |value, byte| (value << 8) | u32::from(*byte as u8));
    let after = (before & !LVT_MODE & !LVT_MASKED) | mode;
    for (cell, byte) in cells.iter_mut().zip(after.to_le_bytes()) {
        *cell = byte as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_pin_keeps_its_other_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT0 + 2] = 1;
        lapic.regs[LVT_LINT0] = 0x20;
        set_interrupt_pin(&mut lapic, LVT_LINT0, MODE_EXT_INT);
        let bytes: Vec<u8> = lapic.regs[LVT_LINT0..][..4]
            .iter()
            .map(|b| *b as u8)
            .collect();
        assert_eq!(bytes, [0x20, 0x07, 0, 0]);
    }
}
