//! General-purpose registers by the names that the decoder uses.

use iced_x86::Register;
use kvm_bindings::kvm_regs;

/// The register's value, zero-extended; `None` for what is no general-purpose
/// register.
pub fn read(regs: &kvm_regs, register: Register) -> Option<u64> {
    let full = match register.full_register() {
        Register::RIP => regs.rip,
        full => *slot(&mut regs.clone(), full)?,
    };
    let high_byte = matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    );
    Some(match register.size() {
        1 if high_byte => (full >> 8) & 0xff,
        size => full & mask(size),
    })
}

/// Writes the register as an instruction of its width does: 32 bits clear the
/// upper half, fewer leave it. False for what cannot be written.
pub fn write(regs: &mut kvm_regs, register: Register, value: u64) -> bool {
    let Some(full) = slot(regs, register.full_register()) else {
        return false;
    };
    let kept = match register.size() {
        4 | 8 => 0,
        size => *full & !mask(size),
    };
    *full = kept | (value & mask(register.size()));
    true
}

fn mask(size: usize) -> u64 {
    match size {
        8.. => u64::MAX,
        size => (1 << (size * 8)) - 1,
    }
}

fn slot(regs: &mut kvm_regs, full: Register) -> Option<&mut u64> {
    Some(match full {
        Register::RAX => &mut regs.rax,
        Register::RBX => &mut regs.rbx,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::RBP => &mut regs.rbp,
        Register::RSP => &mut regs.rsp,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_width_reads_and_writes_its_part() {
        let mut regs = kvm_regs {
            rax: 0x1122_3344_5566_7788,
            ..kvm_regs::default()
        };
        assert_eq!(read(&regs, Register::RAX), Some(0x1122_3344_5566_7788));
        assert_eq!(read(&regs, Register::EAX), Some(0x5566_7788));
        assert_eq!(read(&regs, Register::AX), Some(0x7788));
        assert_eq!(read(&regs, Register::AL), Some(0x88));
        assert_eq!(read(&regs, Register::AH), Some(0x77));
        assert_eq!(read(&regs, Register::XMM0), None);

        assert!(write(&mut regs, Register::AX, 0x1_0005));
        assert_eq!(regs.rax, 0x1122_3344_5566_0005);
        assert!(write(&mut regs, Register::EAX, 3));
        assert_eq!(regs.rax, 3);
        assert!(!write(&mut regs, Register::XMM0, 3));
    }
}
