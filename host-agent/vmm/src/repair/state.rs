//! A virtual CPU's registers at an exit, by way of the memory that KVM shares
//! (KVM_CAP_SYNC_REGS): no system call to read them, none to write them.
//!
//! What is marked as changed is taken in at the next KVM_RUN in the order
//! registers, system registers, events. That order matters: taking registers
//! drops a pending exception, so events come last.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::{SyncReg, VcpuFd};

const PAGE_FAULT: u8 = 14;
const PROTECTION_FAULT: u8 = 13;
const INVALID_OPCODE: u8 = 6;

/// The registers at an exit, and which of them changed since.
pub struct CpuState<'a> {
    fd: &'a mut VcpuFd,
}

impl std::fmt::Debug for CpuState<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuState")
            .field("rip", &self.regs().rip)
            .finish_non_exhaustive()
    }
}

/// Asks KVM to share the registers at every exit of this virtual CPU.
pub fn share(fd: &mut VcpuFd) {
    for kind in [
        SyncReg::Register,
        SyncReg::SystemRegister,
        SyncReg::VcpuEvents,
    ] {
        fd.set_sync_valid_reg(kind);
    }
}

impl<'a> CpuState<'a> {
    /// The state of a virtual CPU that has just left KVM_RUN.
    pub fn new(fd: &'a mut VcpuFd) -> CpuState<'a> {
        CpuState { fd }
    }

    /// The virtual CPU itself, for what is not shared.
    pub fn fd(&self) -> &VcpuFd {
        self.fd
    }

    /// The general-purpose registers.
    pub fn regs(&self) -> kvm_regs {
        self.fd.sync_regs().regs
    }

    /// The system registers.
    pub fn sregs(&self) -> kvm_sregs {
        self.fd.sync_regs().sregs
    }

    /// What is pending or being delivered.
    pub fn events(&self) -> kvm_vcpu_events {
        self.fd.sync_regs().events
    }

    /// The privilege level.
    pub fn cpl(&self) -> u8 {
        self.sregs().ss.dpl
    }

    /// Replaces the general-purpose registers.
    pub fn set_regs(&mut self, regs: &kvm_regs) {
        self.fd.sync_regs_mut().regs = *regs;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    /// Replaces the system registers.
    pub fn set_sregs(&mut self, sregs: &kvm_sregs) {
        let injected = self.events().interrupt.injected != 0;
        let shared = self.fd.sync_regs_mut();
        shared.sregs = *sregs;
        if !injected {
            // What is shared here may be stale, and would be taken for an
            // interrupt to deliver at once, whatever the guest's interrupt flag.
            shared.sregs.interrupt_bitmap = [0; 4];
        }
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
    }

    /// Raises an exception without error code at the current RIP.
    pub fn raise(&mut self, vector: u8) {
        self.deliver(vector, None);
    }

    /// Raises an invalid opcode exception.
    pub fn raise_invalid_opcode(&mut self) {
        self.deliver(INVALID_OPCODE, None);
    }

    /// Raises a general protection fault with error code 0.
    pub fn raise_protection_fault(&mut self) {
        self.deliver(PROTECTION_FAULT, Some(0));
    }

    /// Raises a page fault.
    pub fn raise_page_fault(&mut self, address: u64, code: u32) {
        let mut sregs = self.sregs();
        sregs.cr2 = address;
        self.set_sregs(&sregs);
        self.deliver(PAGE_FAULT, Some(code));
    }

    fn deliver(&mut self, vector: u8, error_code: Option<u32>) {
        let events = &mut self.fd.sync_regs_mut().events;
        // Nothing but exceptions changes.
        events.flags = 0;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(error_code.is_some());
        events.exception.error_code = error_code.unwrap_or(0);
        self.fd.set_sync_dirty_reg(SyncReg::VcpuEvents);
    }
}

/// A flat 64-bit code segment.
pub fn code_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        type_: 11,
        l: 1,
        db: 0,
        ..flat_segment(selector, dpl)
    }
}

/// A flat data segment.
pub fn data_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        type_: 3,
        l: 0,
        db: 1,
        ..flat_segment(selector, dpl)
    }
}

fn flat_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        present: 1,
        dpl,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
