//! The instructions that an interpreting KVM lacks, and what they do.
//!
//! Exactly these, which is all that kernels were seen to need: INT3, FWAIT,
//! POPCNT, CLAC, STAC, CMPXCHG16B, and the XSAVE family. Everything here is a
//! function of registers and memory; where the registers come from and go to is
//! in [`state`](super::state).

use iced_x86::{
    Code, Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic, OpKind, Register,
};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::counters::Repaired;
use super::paging::{Fault, LinearMemory};
use super::registers;
use super::xstate::{self, KvmXsave, Layout, SaveForm};

/// The longest instruction.
pub const LENGTH_MAX: usize = 15;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const AC: u64 = 1 << 18;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// How an instruction was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Go on with the next one.
    Next,
    /// Go on with the next one, but first raise this exception, without error
    /// code.
    Trap {
        /// The vector.
        vector: u8,
    },
}

/// Why an instruction was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// The guest gets this instead; the registers are as before.
    Fault(Fault),
    /// It is none of those that are carried out here.
    Unknown,
}

impl From<Fault> for Undone {
    fn from(fault: Fault) -> Undone {
        Undone::Fault(fault)
    }
}

/// The processor's extended state, wherever it is kept.
pub trait ExtendedState {
    /// The state, in KVM's form.
    fn load(&mut self) -> Option<KvmXsave>;
    /// Replaces the state; false when KVM refuses it.
    fn store(&mut self, state: &KvmXsave) -> bool;
    /// XCR0.
    fn enabled(&mut self) -> Option<u64>;
    /// Where components lie.
    fn layout(&self) -> &Layout;
}

/// Decodes one instruction at `rip` in the mode of `sregs`.
pub fn decode(bytes: &[u8], rip: u64, sregs: &kvm_sregs) -> Instruction {
    Decoder::with_ip(bitness(sregs), bytes, rip, DecoderOptions::NONE).decode()
}

/// The instruction as an assembler would write it; `None` for no instruction.
pub fn text(instruction: &Instruction) -> Option<String> {
    if instruction.code() == Code::INVALID {
        return None;
    }
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    Some(text)
}

/// What the instruction counts as, if it is one of those carried out here.
pub fn classify(instruction: &Instruction) -> Option<Repaired> {
    Some(match instruction.mnemonic() {
        Mnemonic::Int3 => Repaired::Int3,
        Mnemonic::Wait => Repaired::Fwait,
        Mnemonic::Popcnt => Repaired::Popcnt,
        Mnemonic::Clac => Repaired::Clac,
        Mnemonic::Stac => Repaired::Stac,
        Mnemonic::Cmpxchg16b => Repaired::Cmpxchg16b,
        Mnemonic::Xsave | Mnemonic::Xsave64 => Repaired::Xsave,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => Repaired::Xsaveopt,
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => Repaired::Xsavec,
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => Repaired::Xsaves,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => Repaired::Xrstor,
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => Repaired::Xrstors,
        _ => return None,
    })
}

/// Carries out `instruction`, leaving RIP alone.
///
/// # Errors
///
/// The fault that the guest gets, or that the instruction is none of these.
pub fn execute(
    instruction: &Instruction,
    regs: &mut kvm_regs,
    sregs: &kvm_sregs,
    memory: &impl LinearMemory,
    extended: &mut impl ExtendedState,
) -> Result<Done, Undone> {
    let kind = classify(instruction).ok_or(Undone::Unknown)?;
    match kind {
        Repaired::Int3 => return Ok(Done::Trap { vector: 3 }),
        Repaired::Fwait => {}
        Repaired::Clac => regs.rflags &= !AC,
        Repaired::Stac => regs.rflags |= AC,
        Repaired::Popcnt => popcnt(instruction, regs, sregs, memory)?,
        Repaired::Cmpxchg16b => {
            let address = linear_address(instruction, 0, regs, sregs)?;
            compare_exchange(regs, memory, address)?;
        }
        _ => {
            let address = linear_address(instruction, 0, regs, sregs)?;
            let mask = (regs.rax & 0xffff_ffff) | (regs.rdx << 32);
            extended_state(kind, address, mask, memory, extended)?;
        }
    }
    Ok(Done::Next)
}

/// How long a harmless first instruction of an exception handler is, with its
/// effect on the flags applied; `None` for one that is not harmless.
pub fn skip_harmless(bytes: &[u8], regs: &mut kvm_regs) -> Option<u64> {
    let instruction = Decoder::with_ip(64, bytes, regs.rip, DecoderOptions::NONE).decode();
    match instruction.mnemonic() {
        Mnemonic::Endbr64 | Mnemonic::Nop => {}
        Mnemonic::Clac => regs.rflags &= !AC,
        Mnemonic::Cld => regs.rflags &= !DF,
        _ => return None,
    }
    Some(instruction.len() as u64)
}

fn bitness(sregs: &kvm_sregs) -> u32 {
    match (sregs.cs.l, sregs.cs.db) {
        (1, _) => 64,
        (_, 1) => 32,
        _ => 16,
    }
}

fn linear_address(
    instruction: &Instruction,
    operand: u32,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
) -> Result<u64, Undone> {
    let flat = bitness(sregs) == 64;
    let base = |base: u64| Some(if flat { 0 } else { base });
    let value = |register, _, _| match register {
        Register::FS => Some(sregs.fs.base),
        Register::GS => Some(sregs.gs.base),
        Register::CS => base(sregs.cs.base),
        Register::DS => base(sregs.ds.base),
        Register::ES => base(sregs.es.base),
        Register::SS => base(sregs.ss.base),
        other => registers::read(regs, other),
    };
    instruction
        .virtual_address(operand, 0, value)
        .ok_or(Undone::Unknown)
}

fn popcnt(
    instruction: &Instruction,
    regs: &mut kvm_regs,
    sregs: &kvm_sregs,
    memory: &impl LinearMemory,
) -> Result<(), Undone> {
    let value = match instruction.op_kind(1) {
        OpKind::Register => {
            registers::read(regs, instruction.op_register(1)).ok_or(Undone::Unknown)?
        }
        OpKind::Memory => {
            let address = linear_address(instruction, 1, regs, sregs)?;
            let mut bytes = [0; 8];
            let size = instruction.memory_size().size().min(bytes.len());
            memory.read(address, &mut bytes[..size])?;
            u64::from_le_bytes(bytes)
        }
        _ => return Err(Undone::Unknown),
    };
    if !registers::write(
        regs,
        instruction.op_register(0),
        u64::from(value.count_ones()),
    ) {
        return Err(Undone::Unknown);
    }
    regs.rflags &= !ARITHMETIC;
    if value == 0 {
        regs.rflags |= ZF;
    }
    Ok(())
}

/// CMPXCHG16B, always with the effect of LOCK.
fn compare_exchange(
    regs: &mut kvm_regs,
    memory: &impl LinearMemory,
    address: u64,
) -> Result<(), Fault> {
    let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
    let expected = wide(regs.rdx, regs.rax);
    let found = memory.compare_exchange(address, expected, wide(regs.rcx, regs.rbx))?;
    if found == expected {
        regs.rflags |= ZF;
    } else {
        regs.rflags &= !ZF;
        regs.rax = found as u64;
        regs.rdx = (found >> 64) as u64;
    }
    Ok(())
}

fn extended_state(
    kind: Repaired,
    address: u64,
    mask: u64,
    memory: &impl LinearMemory,
    extended: &mut impl ExtendedState,
) -> Result<(), Undone> {
    let enabled = extended.enabled().ok_or(Undone::Unknown)?;
    let state = extended.load().ok_or(Undone::Unknown)?;
    let layout = extended.layout();
    if enabled & !xstate::known_components(layout) != 0 {
        return Err(Undone::Unknown);
    }
    let form = match kind {
        Repaired::Xsave => SaveForm::Standard,
        Repaired::Xsaveopt => SaveForm::Optimised,
        Repaired::Xsavec | Repaired::Xsaves => SaveForm::Compacted,
        _ => {
            let after = xstate::restore(layout, memory, address, &state, mask, enabled)?;
            return if extended.store(&after) {
                Ok(())
            } else {
                Err(Fault::Protection.into())
            };
        }
    };
    Ok(xstate::save(
        layout, memory, address, &state, form, mask, enabled,
    )?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::paging::AddressSpace;
    use super::super::paging::tests::small_guest;
    use super::*;

    struct NoState(Layout);

    impl ExtendedState for NoState {
        fn load(&mut self) -> Option<KvmXsave> {
            None
        }
        fn store(&mut self, _state: &KvmXsave) -> bool {
            false
        }
        fn enabled(&mut self) -> Option<u64> {
            None
        }
        fn layout(&self) -> &Layout {
            &self.0
        }
    }

    fn long_mode(sregs: kvm_sregs) -> kvm_sregs {
        let mut sregs = sregs;
        sregs.cs.l = 1;
        sregs
    }

    fn run(bytes: &[u8], regs: &mut kvm_regs) -> Result<Done, Undone> {
        let (memory, sregs) = small_guest();
        let sregs = long_mode(sregs);
        let space = AddressSpace::new(&memory, &sregs);
        let instruction = decode(bytes, regs.rip, &sregs);
        execute(
            &instruction,
            regs,
            &sregs,
            &space,
            &mut NoState(Layout::of_host()),
        )
    }

    #[test]
    fn popcnt_counts_and_sets_the_flags() {
        let mut regs = kvm_regs {
            rbx: 0xff00_00ff,
            rflags: 0x8d7,
            ..kvm_regs::default()
        };
        run(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3], &mut regs).unwrap(); // popcnt rax, rbx
        assert_eq!((regs.rax, regs.rflags), (16, 0x2));

        regs.rax = u64::MAX;
        regs.rbx = 0xffff_0000_0000;
        run(&[0xf3, 0x0f, 0xb8, 0xc3], &mut regs).unwrap(); // popcnt eax, ebx
        assert_eq!((regs.rax, regs.rflags), (0, 0x2 | ZF));
    }

    #[test]
    fn a_memory_operand_is_read_through_the_page_tables() {
        let mut regs = kvm_regs {
            rbx: 0xf000,
            ..kvm_regs::default()
        };
        let fault = Fault::Page {
            address: 0xf000,
            code: 0,
        };
        let popcnt = [0xf3, 0x48, 0x0f, 0xb8, 0x03]; // popcnt rax, [rbx]
        assert_eq!(run(&popcnt, &mut regs), Err(Undone::Fault(fault)));
        regs.rbx = 0x1_0000 - 0x6000;
        run(&popcnt, &mut regs).unwrap();
        assert_eq!(regs.rax, 0);
    }

    #[test]
    fn cmpxchg16b_with_and_without_lock() {
        for bytes in [
            &[0x48, 0x0f, 0xc7, 0x0f][..],
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],
        ] {
            let mut regs = kvm_regs {
                rdi: 0x4000,
                rbx: 5,
                rcx: 6,
                ..kvm_regs::default()
            };
            run(bytes, &mut regs).unwrap();
            assert_eq!(regs.rflags & ZF, ZF, "memory is zero, as expected");
            regs.rax = 9;
            run(bytes, &mut regs).unwrap();
            assert_eq!((regs.rflags & ZF, regs.rax, regs.rdx), (0, 0, 0));
        }
    }

    #[test]
    fn the_small_ones() {
        let mut regs = kvm_regs::default();
        assert_eq!(run(&[0xcc], &mut regs), Ok(Done::Trap { vector: 3 }));
        assert_eq!(run(&[0x9b], &mut regs), Ok(Done::Next));
        run(&[0x0f, 0x01, 0xcb], &mut regs).unwrap();
        assert_eq!(regs.rflags, AC);
        run(&[0x0f, 0x01, 0xca], &mut regs).unwrap();
        assert_eq!(regs.rflags, 0);
    }

    #[test]
    fn anything_else_is_unknown() {
        for bytes in [
            &[0x0f, 0x0b][..],
            &[0x90],
            &[0x0f, 0xae, 0x10],
            &[0x06],
            &[],
        ] {
            assert_eq!(
                run(bytes, &mut kvm_regs::default()),
                Err(Undone::Unknown),
                "{bytes:x?}"
            );
        }
    }

    #[test]
    fn only_harmless_instructions_are_skipped() {
        let mut regs = kvm_regs {
            rflags: AC | DF,
            ..kvm_regs::default()
        };
        assert_eq!(skip_harmless(&[0xf3, 0x0f, 0x1e, 0xfa], &mut regs), Some(4));
        assert_eq!(skip_harmless(&[0x0f, 0x01, 0xca], &mut regs), Some(3));
        assert_eq!(skip_harmless(&[0xfc], &mut regs), Some(1));
        assert_eq!(regs.rflags, 0);
        assert_eq!(skip_harmless(&[0x50], &mut regs), None);
    }

    #[test]
    fn an_instruction_has_a_text() {
        let sregs = long_mode(kvm_sregs::default());
        assert_eq!(
            text(&decode(&[0x0f, 0x01, 0xca], 0, &sregs)).as_deref(),
            Some("clac")
        );
        assert_eq!(text(&decode(&[0x06], 0, &sregs)), None);
    }

    proptest! {
        /// Whatever bytes a guest's kernel has there: an answer, and no panic.
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..15), rax: u64,
                                  rbx: u64, rip: u64) {
            let mut regs = kvm_regs { rax, rbx, rip, ..kvm_regs::default() };
            let _ = run(&bytes, &mut regs);
            prop_assert_eq!(regs.rip, rip);
        }
    }
}
