//! The repair of SYSCALL.
//!
//! Executed natively in user mode, SYSCALL sets RIP, RCX and R11, but leaves the
//! processor at CPL 3. So the next instruction fetch has to trap, and the trap
//! has to be made into what SYSCALL should have done:
//!
//! ```text
//!   SYSCALL at CPL 3 ── RIP = hardware LSTAR ── fault ── handler's first instruction:
//!   hardware breakpoint ── KVM_EXIT_DEBUG ── is it ours? ── registers as after SYSCALL
//! ```
//!
//! The hardware's LSTAR is a non-canonical address, which makes the fault a
//! general protection fault: rare. Where KVM refuses that value, the guest's own
//! is left there and the fault is a page fault: frequent, but it works too.
//!
//! The guest never sees any of it: its reads and writes of STAR, LSTAR and FMASK
//! are filtered and answered from here.

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::counters::{RepairCounters, Repaired};
use super::instructions;
use super::paging::{AddressSpace, LinearMemory};
use super::state::{CpuState, code_segment, data_segment};
use super::{RepairError, set_msr};

/// Segment selectors for SYSCALL and SYSRET.
pub const MSR_STAR: u32 = 0xc000_0081;
/// Where SYSCALL goes in 64-bit mode.
pub const MSR_LSTAR: u32 = 0xc000_0082;
/// The flags that SYSCALL clears.
pub const MSR_FMASK: u32 = 0xc000_0084;

/// Not canonical with 4 levels of paging.
const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;
/// DR7: breakpoint 0 enabled globally, on execution; bit 10 reads as one.
const DR7_EXECUTE_0: u64 = 0x402;

const RESUME_FLAG: u64 = 1 << 16;
const INTERRUPT_FLAG: u64 = 1 << 9;
const ALWAYS_ONE: u64 = 1 << 1;
/// CF, PF, AF, ZF, SF, TF, IF, DF, OF, NT, RF, AC, ID: what R11 can hold after a
/// SYSCALL by a program without I/O privilege. R11 is forgeable here, by a jump
/// to the magic address, and SYSRET makes flags of it.
const USER_FLAGS: u64 = 0x0025_4fd7;

/// How a SYSCALL is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trap {
    /// By the protection fault of a non-canonical LSTAR.
    Protection,
    /// By the page fault of the guest's own.
    Page,
}

impl Trap {
    fn vector(self) -> u64 {
        match self {
            Trap::Protection => 13,
            Trap::Page => 14,
        }
    }
}

/// The repair, for one virtual CPU.
#[derive(Debug)]
pub struct SyscallRepair {
    star: u64,
    lstar: u64,
    fmask: u64,
    trap: Trap,
    /// Where the breakpoint is, if there is one.
    breakpoint: Option<u64>,
}

impl Default for SyscallRepair {
    /// Nothing is armed before the guest writes LSTAR.
    fn default() -> SyscallRepair {
        SyscallRepair {
            star: 0,
            lstar: 0,
            fmask: 0,
            trap: Trap::Protection,
            breakpoint: None,
        }
    }
}

/// The three registers of SYSCALL, as the guest wrote them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallRegisters {
    /// Segment selectors.
    pub star: u64,
    /// The kernel's entry.
    pub lstar: u64,
    /// The flags that are cleared.
    pub fmask: u64,
}

impl SyscallRegisters {
    /// Whether a register is one of the three.
    pub fn has(index: u32) -> bool {
        [MSR_STAR, MSR_LSTAR, MSR_FMASK].contains(&index)
    }
}

impl SyscallRepair {
    /// What the guest wrote.
    pub fn registers(&self) -> SyscallRegisters {
        SyscallRegisters {
            star: self.star,
            lstar: self.lstar,
            fmask: self.fmask,
        }
    }

    /// Goes on with what a guest wrote in another virtual CPU, whose system
    /// registers these are.
    ///
    /// # Errors
    ///
    /// When KVM refuses what it has to be given.
    pub fn restore(
        &mut self,
        fd: &VcpuFd,
        memory: &GuestMemoryMmap,
        registers: SyscallRegisters,
        sregs: &kvm_sregs,
    ) -> Result<(), RepairError> {
        SyscallRegisters {
            star: self.star,
            lstar: self.lstar,
            fmask: self.fmask,
        } = registers;
        for (index, value) in [(MSR_STAR, self.star), (MSR_FMASK, self.fmask)] {
            set_msr(fd, index, value)?;
        }
        if self.lstar == 0 {
            return Ok(());
        }
        self.set_hardware_lstar(fd)?;
        self.arm(fd, memory, sregs)
    }

    /// Forgets what the guest wrote: nothing is armed.
    ///
    /// # Errors
    ///
    /// When KVM does not take the breakpoint back.
    pub fn reset(&mut self, fd: &VcpuFd) -> Result<(), RepairError> {
        *self = SyscallRepair::default();
        self.set_breakpoint(fd)
    }

    /// What the guest reads from one of the three registers.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            MSR_STAR => Some(self.star),
            MSR_LSTAR => Some(self.lstar),
            MSR_FMASK => Some(self.fmask),
            _ => None,
        }
    }

    /// Takes the guest's write to one of the three registers.
    ///
    /// # Errors
    ///
    /// When KVM refuses what it has to be given.
    pub fn write_msr(
        &mut self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        index: u32,
        value: u64,
    ) -> Result<(), RepairError> {
        match index {
            MSR_STAR => {
                self.star = value;
                set_msr(fd, index, value)?;
            }
            MSR_FMASK => {
                self.fmask = value;
                set_msr(fd, index, value)?;
            }
            MSR_LSTAR => {
                self.lstar = value;
                self.set_hardware_lstar(fd)?;
            }
            index => {
                return Err(RepairError::Msr {
                    index,
                    value,
                    source: None,
                });
            }
        }
        if self.lstar == 0 {
            return Ok(());
        }
        let sregs = CpuState::new(fd).sregs();
        self.arm(fd, memory, &sregs)
    }

    /// The value that SYSCALL finds in LSTAR.
    fn hardware_lstar(&self) -> u64 {
        match self.trap {
            Trap::Protection => NON_CANONICAL,
            Trap::Page => self.lstar,
        }
    }

    fn set_hardware_lstar(&mut self, fd: &VcpuFd) -> Result<(), RepairError> {
        if self.trap == Trap::Protection && set_msr(fd, MSR_LSTAR, NON_CANONICAL).is_ok() {
            return Ok(());
        }
        self.trap = Trap::Page;
        set_msr(fd, MSR_LSTAR, self.lstar)
    }

    /// Puts the breakpoint on the first instruction of the fault's handler.
    fn arm(
        &mut self,
        fd: &VcpuFd,
        memory: &GuestMemoryMmap,
        sregs: &kvm_sregs,
    ) -> Result<(), RepairError> {
        let handler = gate_target(&AddressSpace::new(memory, sregs), sregs, self.trap.vector())
            .ok_or(RepairError::NoHandler {
                vector: self.trap.vector(),
            })?;
        if self.breakpoint == Some(handler) {
            return Ok(());
        }
        self.breakpoint = Some(handler);
        self.set_breakpoint(fd)
    }

    fn set_breakpoint(&self, fd: &VcpuFd) -> Result<(), RepairError> {
        let mut debug = kvm_guest_debug::default();
        if let Some(address) = self.breakpoint {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = address;
            debug.arch.debugreg[7] = DR7_EXECUTE_0;
        }
        fd.set_guest_debug(&debug)
            .map_err(RepairError::kvm("KVM_SET_GUEST_DEBUG"))
    }

    /// Takes a debug exit: the breakpoint, or the end of a single step.
    ///
    /// # Errors
    ///
    /// When KVM refuses to step or to set the breakpoint again.
    pub fn debug_exit(
        &mut self,
        fd: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        counters: &RepairCounters,
    ) -> Result<(), RepairError> {
        let mut state = CpuState::new(fd);
        let (regs, sregs) = (state.regs(), state.sregs());
        if Some(regs.rip) != self.breakpoint {
            return self.set_breakpoint(fd);
        }
        let space = AddressSpace::new(memory, &sregs);
        match Frame::read(&space, regs.rsp).filter(|frame| self.is_ours(frame, &sregs)) {
            None => {
                counters.count(Repaired::OtherFault);
                step_over(&mut state, &space, regs, counters)
            }
            Some(frame) if delivering_interrupt(&state) => {
                counters.count(Repaired::SyscallRewound);
                let (regs, sregs) = rewound(&frame, regs, sregs);
                state.set_regs(&regs);
                state.set_sregs(&sregs);
                Ok(())
            }
            Some(frame) => {
                counters.count(Repaired::Syscall);
                let (regs, sregs) = self.completed(&frame, regs, sregs);
                state.set_regs(&regs);
                state.set_sregs(&sregs);
                Ok(())
            }
        }
    }

    /// Whether the fault was raised by SYSCALL in user mode.
    fn is_ours(&self, frame: &Frame, sregs: &kvm_sregs) -> bool {
        let address = self.hardware_lstar();
        let by_fetch = self.trap == Trap::Protection || sregs.cr2 == address;
        frame.rip == address && frame.cs & 3 == 3 && by_fetch
    }

    /// The registers as SYSCALL should have left them (Intel SDM volume 2B).
    fn completed(
        &self,
        frame: &Frame,
        mut regs: kvm_regs,
        mut sregs: kvm_sregs,
    ) -> (kvm_regs, kvm_sregs) {
        let selector = ((self.star >> 32) & 0xfffc) as u16;
        sregs.cs = code_segment(selector, 0);
        sregs.ss = data_segment(selector.wrapping_add(8), 0);
        regs.r11 &= USER_FLAGS;
        regs.rip = self.lstar;
        regs.rsp = frame.rsp;
        regs.rflags = (regs.r11 & !self.fmask & !RESUME_FLAG) | ALWAYS_ONE;
        (regs, sregs)
    }
}

/// An interrupt is on its way already and would be delivered at the kernel's
/// entry, with interrupts off: back to the SYSCALL with it. RCX and R11 are
/// overwritten by SYSCALL anyway.
fn rewound(frame: &Frame, mut regs: kvm_regs, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    const SYSCALL_LENGTH: u64 = 2;
    sregs.cs = code_segment(frame.cs as u16, 3);
    sregs.ss = data_segment(frame.ss as u16, 3);
    regs.rip = regs.rcx.wrapping_sub(SYSCALL_LENGTH);
    regs.rsp = frame.rsp;
    regs.rflags = (frame.rflags & !RESUME_FLAG) | INTERRUPT_FLAG | ALWAYS_ONE;
    (regs, sregs)
}

fn delivering_interrupt(state: &CpuState<'_>) -> bool {
    let events = state.events();
    events.interrupt.injected != 0 || events.nmi.injected != 0
}

/// Gets past the handler's first instruction without meeting the breakpoint
/// again, which ignores the resume flag here.
fn step_over(
    state: &mut CpuState<'_>,
    space: &AddressSpace<'_>,
    mut regs: kvm_regs,
    counters: &RepairCounters,
) -> Result<(), RepairError> {
    let mut bytes = [0; instructions::LENGTH_MAX];
    let readable = space.read_some(regs.rip, &mut bytes);
    if let Some(length) = instructions::skip_harmless(&bytes[..readable], &mut regs) {
        regs.rip = regs.rip.wrapping_add(length);
        state.set_regs(&regs);
        return Ok(());
    }
    counters.count(Repaired::SingleStep);
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ,
        ..kvm_guest_debug::default()
    };
    state
        .fd()
        .set_guest_debug(&debug)
        .map_err(RepairError::kvm("KVM_SET_GUEST_DEBUG"))
}

/// What a fault with error code pushes in 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Frame {
    fn read(space: &impl LinearMemory, rsp: u64) -> Option<Frame> {
        let mut bytes = [0; 48];
        space.read(rsp, &mut bytes).ok()?;
        let mut words = bytes.chunks_exact(8).map(little_endian);
        let _error_code = words.next()?;
        Some(Frame {
            rip: words.next()?,
            cs: words.next()?,
            rflags: words.next()?,
            rsp: words.next()?,
            ss: words.next()?,
        })
    }
}

/// Where a 64-bit interrupt gate leads (Intel SDM volume 3, 6.14.1).
fn gate_target(space: &impl LinearMemory, sregs: &kvm_sregs, vector: u64) -> Option<u64> {
    let mut gate = [0; 16];
    space
        .read(sregs.idt.base.wrapping_add(vector * 16), &mut gate)
        .ok()?;
    let (low, high) = (little_endian(&gate[..8]), little_endian(&gate[8..]));
    let target = (low & 0xffff) | ((low >> 32) & 0xffff_0000) | (high << 32);
    (target != 0).then_some(target)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::paging::tests::small_guest;
    use super::*;

    fn repair() -> SyscallRepair {
        SyscallRepair {
            star: 0x0023_0010_0000_0000,
            lstar: 0xffff_ffff_8180_0000,
            fmask: 0x4_7700,
            ..SyscallRepair::default()
        }
    }

    fn frame() -> Frame {
        Frame {
            rip: NON_CANONICAL,
            cs: 0x33,
            rflags: 0x1_0202,
            rsp: 0x7fff_0000,
            ss: 0x2b,
        }
    }

    #[test]
    fn a_completed_syscall_is_what_the_processor_would_have_done() {
        let regs = kvm_regs {
            rcx: 0x40_1002,
            r11: 0x1_0346,
            rax: 39,
            ..kvm_regs::default()
        };
        let (regs, sregs) = repair().completed(&frame(), regs, kvm_sregs::default());
        assert_eq!((regs.rip, regs.rsp), (0xffff_ffff_8180_0000, 0x7fff_0000));
        assert_eq!((regs.rcx, regs.rax), (0x40_1002, 39));
        assert_eq!(regs.rflags, 0x46, "masked, without the resume flag");
        assert_eq!((sregs.cs.selector, sregs.cs.dpl, sregs.cs.l), (0x10, 0, 1));
        assert_eq!((sregs.ss.selector, sregs.ss.dpl), (0x18, 0));
    }

    #[test]
    fn a_forged_r11_gains_no_privilege() {
        let regs = kvm_regs {
            r11: u64::MAX,
            ..kvm_regs::default()
        };
        let (regs, _) = repair().completed(&frame(), regs, kvm_sregs::default());
        const IOPL: u64 = 3 << 12;
        assert_eq!((regs.r11 | regs.rflags) & IOPL, 0);
    }

    #[test]
    fn a_rewound_syscall_runs_again_in_user_mode() {
        let regs = kvm_regs {
            rcx: 0x40_1002,
            ..kvm_regs::default()
        };
        let (regs, sregs) = rewound(&frame(), regs, kvm_sregs::default());
        assert_eq!(
            (regs.rip, regs.rsp, regs.rflags),
            (0x40_1000, 0x7fff_0000, 0x202)
        );
        assert_eq!((sregs.cs.selector, sregs.cs.dpl), (0x33, 3));
        assert_eq!((sregs.ss.selector, sregs.ss.dpl), (0x2b, 3));
    }

    #[test]
    fn other_faults_are_told_apart() {
        let sregs = kvm_sregs::default();
        assert!(repair().is_ours(&frame(), &sregs));
        assert!(!repair().is_ours(
            &Frame {
                rip: 0x40_1000,
                ..frame()
            },
            &sregs
        ));
        assert!(!repair().is_ours(
            &Frame {
                cs: 0x10,
                ..frame()
            },
            &sregs
        ));

        let page = SyscallRepair {
            trap: Trap::Page,
            ..repair()
        };
        let frame = Frame {
            rip: page.lstar,
            ..frame()
        };
        assert!(!page.is_ours(&frame, &sregs));
        assert!(page.is_ours(
            &frame,
            &kvm_sregs {
                cr2: page.lstar,
                ..sregs
            }
        ));
    }

    #[test]
    fn gates_and_frames_are_read_from_the_guest() {
        let (memory, mut sregs) = small_guest();
        sregs.idt.base = 0x5000;
        let gate = [
            0x5678u64 | (0x10 << 16) | (0x8e00 << 32) | (0x1234 << 48),
            0xffff_8000,
        ];
        memory
            .write_obj(gate, GuestAddress(0x5000 + 13 * 16))
            .unwrap();
        let space = AddressSpace::new(&memory, &sregs);
        assert_eq!(gate_target(&space, &sregs, 13), Some(0xffff_8000_1234_5678));
        assert_eq!(gate_target(&space, &sregs, 14), None);

        let words = [0, NON_CANONICAL, 0x33, 0x1_0202, 0x7fff_0000, 0x2b];
        memory.write_obj(words, GuestAddress(0x6000)).unwrap();
        assert_eq!(Frame::read(&space, 0x6000), Some(frame()));
        assert_eq!(Frame::read(&space, 0xeff0), None);
    }

    #[test]
    fn the_guest_reads_its_own_values() {
        let repair = repair();
        assert_eq!(repair.read_msr(MSR_LSTAR), Some(0xffff_ffff_8180_0000));
        assert_eq!(repair.read_msr(0xc000_0083), None);
        assert_eq!(repair.hardware_lstar(), NON_CANONICAL);
    }
}
