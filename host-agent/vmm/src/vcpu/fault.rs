//! The state of a virtual CPU that cannot go on, for the report.

use std::collections::BTreeMap;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::exit::CpuFault;
use crate::repair::instructions::{self, LENGTH_MAX};
use crate::repair::paging::AddressSpace;

/// Reads the state; what cannot be read is left out.
pub fn capture(vcpu: u8, fd: &VcpuFd, memory: &GuestMemoryMmap) -> CpuFault {
    let regs = fd.get_regs().unwrap_or_default();
    let sregs = fd.get_sregs().unwrap_or_default();
    let mut bytes = [0; LENGTH_MAX];
    let code = if sregs.cs.l == 1 {
        regs.rip
    } else {
        sregs.cs.base.wrapping_add(regs.rip)
    };
    let readable = AddressSpace::new(memory, &sregs).read_some(code, &mut bytes);
    let bytes = &bytes[..readable];
    let mut registers = general(&regs);
    registers.extend(system(&sregs));
    if let Ok(events) = fd.get_vcpu_events() {
        let exception = events.exception;
        if exception.injected != 0 || exception.pending != 0 {
            registers.insert("exception".to_owned(), hex(u64::from(exception.nr)));
        }
    }
    CpuFault {
        vcpu,
        rip: hex(regs.rip),
        bytes: bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" "),
        instruction: instructions::text(&instructions::decode(bytes, regs.rip, &sregs)),
        registers,
    }
}

/// An error with all its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn general(regs: &kvm_regs) -> BTreeMap<String, String> {
    [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rflags", regs.rflags),
    ]
    .map(named)
    .into()
}

fn system(sregs: &kvm_sregs) -> BTreeMap<String, String> {
    [
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efer", sregs.efer),
        ("cs", u64::from(sregs.cs.selector)),
        ("ss", u64::from(sregs.ss.selector)),
        ("cpl", u64::from(sregs.ss.dpl)),
        ("fs_base", sregs.fs.base),
        ("gs_base", sregs.gs.base),
        ("gdt_base", sregs.gdt.base),
        ("idt_base", sregs.idt.base),
        ("idt_limit", u64::from(sregs.idt.limit)),
        ("tr_base", sregs.tr.base),
    ]
    .map(named)
    .into()
}

fn named((name, value): (&str, u64)) -> (String, String) {
    (name.to_owned(), hex(value))
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}
