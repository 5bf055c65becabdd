//! Repairs a KVM that interprets guest kernels.
//!
//! Some KVMs, in nested virtualization, run guest user mode natively and guest
//! kernel mode in KVM's own instruction emulator. That emulator lacks a few
//! instructions, and is slow; SYSCALL, executed natively, does not arrive in the kernel.
//! All of that can be mended from user space, at exits that KVM makes for it.
//!
//! | file | what it is |
//! |---|---|
//! | [`detect`] | finds out, by trying, whether this KVM needs it |
//! | [`syscall`] | brings SYSCALL to the kernel's entry |
//! | [`instructions`] | carries out what the emulator lacks |
//! | [`timer`] | keeps timer interrupts apart, which cost too much |
//! | [`xstate`] | the XSAVE areas |
//! | [`paging`] | the page walk and memory by linear address |
//! | [`registers`], [`state`] | registers by name, registers at an exit |
//! | [`counters`] | what was repaired, for reports |
//!
//! There is one [`Repair`] for each virtual CPU, and none at all where KVM runs
//! kernels on the processor.

pub mod counters;
pub mod detect;
pub mod instructions;
pub mod paging;
pub mod registers;
pub mod state;
pub mod syscall;
pub mod timer;
pub mod xstate;

use std::sync::Arc;

use iced_x86::Instruction;
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_X86_USER_SPACE_MSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_MSR_EXIT_REASON_FILTER,
    kvm_enable_cap, kvm_sregs, kvm_xsave,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::errno;

use counters::{RepairCounters, Repaired};
use instructions::{Done, ExtendedState, LENGTH_MAX, Undone};
use paging::{AddressSpace, Fault};
use state::CpuState;
use syscall::{SyscallRegisters, SyscallRepair};
use timer::TimerRepair;
use xstate::{KVM_XSAVE_SIZE, KvmXsave, Layout};

use crate::memory::GuestMemory;
use crate::msr;

/// How often in a row the same instruction may be found changed, before it is
/// taken for something else.
const TEXT_CHANGES_MAX: u32 = 1000;

/// What could not be repaired.
#[derive(Debug, Error)]
pub enum RepairError {
    /// KVM's internal error is not a failed emulation.
    #[error("KVM reports internal error {suberror}, data {data:x?}")]
    InternalError {
        /// KVM's code for it.
        suberror: u32,
        /// What KVM tells with it.
        data: Vec<u64>,
    },
    /// An instruction that neither KVM nor this module carries out.
    #[error(
        "KVM cannot emulate the guest kernel's instruction, and it is not among those \
        that are repaired"
    )]
    Instruction,
    /// The instruction could not be read from guest memory.
    #[error("KVM cannot emulate the guest kernel's instruction, which cannot be read")]
    Unreadable,
    /// The guest's code changes faster than it can be executed.
    #[error("the guest kernel's instruction is different each time it is looked at")]
    Unstable,
    /// A repaired instruction accesses what is no RAM, or in a mode without
    /// 64-bit paging.
    #[error("the guest kernel's instruction accesses memory that cannot be repaired: {fault:?}")]
    Access {
        /// What is wrong with the access.
        fault: Fault,
    },
    /// The guest set LSTAR before it had a handler for the fault.
    #[error("the guest's interrupt table has no handler for vector {vector}")]
    NoHandler {
        /// The vector.
        vector: u64,
    },
    /// KVM refuses the value of a register.
    #[error("KVM refuses {value:#x} for model-specific register {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// The value.
        value: u64,
        /// Why, if KVM said.
        #[source]
        source: Option<errno::Error>,
    },
    /// KVM does not tell the value of a register.
    #[error("KVM does not tell model-specific register {index:#x}")]
    Unknown {
        /// The register.
        index: u32,
    },
    /// A call to KVM failed.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
}

impl RepairError {
    fn kvm(call: &'static str) -> impl Fn(errno::Error) -> RepairError {
        move |source| RepairError::Kvm { call, source }
    }
}

/// Prepares a virtual machine: KVM hands over what it cannot emulate, and the
/// guest's accesses to the SYSCALL registers, and its timer's deadlines. Before the first
/// virtual CPU.
///
/// # Errors
///
/// When KVM lacks one of these.
pub fn prepare(vm: &VmFd) -> Result<(), RepairError> {
    enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1).map_err(RepairError::kvm(
        "KVM_ENABLE_CAP(EXIT_ON_EMULATION_FAILURE)",
    ))?;
    enable(
        vm,
        KVM_CAP_X86_USER_SPACE_MSR,
        u64::from(KVM_MSR_EXIT_REASON_FILTER),
    )
    .map_err(RepairError::kvm("KVM_ENABLE_CAP(X86_USER_SPACE_MSR)"))?;
    // A bit set allows: the third of the four, CSTAR, is the guest's own.
    let syscall = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: syscall::MSR_STAR,
        msr_count: 4,
        bitmap: &[0b0100],
    };
    let timer = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: msr::TSC_DEADLINE,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[syscall, timer])
        .map_err(RepairError::kvm("KVM_X86_SET_MSR_FILTER"))
}

fn set_msr(fd: &VcpuFd, index: u32, value: u64) -> Result<(), RepairError> {
    msr::write(fd, index, value).map_err(|source| RepairError::Msr {
        index,
        value,
        source,
    })
}

fn enable(vm: &VmFd, cap: u32, argument: u64) -> Result<(), errno::Error> {
    let args = [argument, 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap {
        cap,
        args,
        ..kvm_enable_cap::default()
    })
}

/// The repairs of one virtual CPU.
#[derive(Debug)]
pub struct Repair {
    memory: GuestMemory,
    counters: Arc<RepairCounters>,
    layout: Arc<Layout>,
    syscall: SyscallRepair,
    timer: TimerRepair,
    /// How often in a row code was found changed.
    text_changes: u32,
}

impl Repair {
    /// Begins to repair a virtual CPU of a [prepared](prepare) machine.
    ///
    /// # Errors
    ///
    /// When KVM does not tell how fast its time stamp counter is.
    pub fn new(
        fd: &mut VcpuFd,
        memory: GuestMemory,
        counters: Arc<RepairCounters>,
        layout: Arc<Layout>,
    ) -> Result<Repair, RepairError> {
        state::share(fd);
        Ok(Repair {
            memory,
            counters,
            layout,
            syscall: SyscallRepair::default(),
            timer: TimerRepair::new(fd)?,
            text_changes: 0,
        })
    }

    /// What the guest wrote to the registers of SYSCALL.
    pub fn syscall_registers(&self) -> SyscallRegisters {
        self.syscall.registers()
    }

    /// Goes on with what a guest wrote to the registers of SYSCALL, whose system
    /// registers are those, and with its timer.
    ///
    /// # Errors
    ///
    /// When KVM refuses what it has to be given.
    pub fn restore(
        &mut self,
        fd: &VcpuFd,
        registers: SyscallRegisters,
        sregs: &kvm_sregs,
    ) -> Result<(), RepairError> {
        self.timer.restore(fd)?;
        self.syscall.restore(fd, &self.memory, registers, sregs)
    }

    /// Forgets all of a guest that is started anew.
    ///
    /// # Errors
    ///
    /// When KVM refuses what follows from it.
    pub fn reset(&mut self, fd: &VcpuFd) -> Result<(), RepairError> {
        self.text_changes = 0;
        self.timer.reset();
        self.syscall.reset(fd)
    }

    /// What the guest reads from a filtered register.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        self.syscall.read_msr(index)
    }

    /// Takes the guest's write to a filtered register.
    ///
    /// # Errors
    ///
    /// When KVM refuses what follows from it.
    pub fn write_msr(
        &mut self,
        fd: &mut VcpuFd,
        index: u32,
        value: u64,
    ) -> Result<(), RepairError> {
        if index == msr::TSC_DEADLINE {
            return self.timer.write(fd, value, &self.counters);
        }
        self.syscall.write_msr(fd, &self.memory, index, value)
    }

    /// Takes a debug exit.
    ///
    /// # Errors
    ///
    /// When KVM refuses what follows from it.
    pub fn debug_exit(&mut self, fd: &mut VcpuFd) -> Result<(), RepairError> {
        self.syscall.debug_exit(fd, &self.memory, &self.counters)
    }

    /// Takes an internal error exit: carries out the instruction that KVM could
    /// not emulate.
    ///
    /// # Errors
    ///
    /// When it is something else, or an instruction that is not known here.
    pub fn internal_error(&mut self, fd: &mut VcpuFd) -> Result<(), RepairError> {
        let failed_bytes = emulation_failure(fd)?;
        let mut state = CpuState::new(fd);
        if state.cpl() != 0 {
            // What KVM itself does for user mode.
            self.counters.count(Repaired::InvalidOpcode);
            state.raise_invalid_opcode();
            return Ok(());
        }
        let (regs, sregs) = (state.regs(), state.sregs());
        let memory = Arc::clone(&self.memory);
        let space = AddressSpace::new(&memory, &sregs);
        let mut bytes = [0; LENGTH_MAX];
        let readable = space.read_some(code_address(&state), &mut bytes);
        if readable == 0 {
            return Err(RepairError::Unreadable);
        }
        let instruction = instructions::decode(&bytes[..readable], regs.rip, &sregs);
        if self.changed_meanwhile(&failed_bytes, &bytes[..readable], &instruction)? {
            return Ok(());
        }
        self.execute(&mut state, &instruction, &space)
    }

    fn execute(
        &self,
        state: &mut CpuState<'_>,
        instruction: &Instruction,
        space: &AddressSpace<'_>,
    ) -> Result<(), RepairError> {
        let (mut regs, sregs) = (state.regs(), state.sregs());
        let mut extended = KvmExtendedState {
            fd: state.fd(),
            layout: &self.layout,
        };
        let done = instructions::execute(instruction, &mut regs, &sregs, space, &mut extended);
        if let Some(kind) = instructions::classify(instruction) {
            self.counters.count(kind);
        }
        match done {
            Ok(done) => {
                regs.rip = instruction.next_ip();
                state.set_regs(&regs);
                if let Done::Trap { vector } = done {
                    state.raise(vector);
                }
                Ok(())
            }
            Err(Undone::Unknown) => Err(RepairError::Instruction),
            Err(Undone::Fault(Fault::Page { address, code })) => {
                self.counters.count(Repaired::PageFault);
                state.raise_page_fault(address, code);
                Ok(())
            }
            Err(Undone::Fault(Fault::Protection)) => {
                self.counters.count(Repaired::ProtectionFault);
                state.raise_protection_fault();
                Ok(())
            }
            Err(Undone::Fault(fault)) => Err(RepairError::Access { fault }),
        }
    }

    /// Whether another virtual CPU has patched the code since KVM failed on it:
    /// then it is simply tried again.
    fn changed_meanwhile(
        &mut self,
        failed: &[u8],
        now: &[u8],
        instruction: &Instruction,
    ) -> Result<bool, RepairError> {
        let compared = failed.len().min(now.len()).min(instruction.len());
        if failed[..compared] == now[..compared] {
            self.text_changes = 0;
            return Ok(false);
        }
        self.counters.count(Repaired::TextChanged);
        self.text_changes += 1;
        if self.text_changes > TEXT_CHANGES_MAX {
            return Err(RepairError::Unstable);
        }
        Ok(true)
    }
}

/// Where the next instruction is, as a linear address.
fn code_address(state: &CpuState<'_>) -> u64 {
    let (rip, cs) = (state.regs().rip, state.sregs().cs);
    if cs.l == 1 {
        rip
    } else {
        cs.base.wrapping_add(rip)
    }
}

/// The bytes that KVM failed to emulate, as far as it tells.
fn emulation_failure(fd: &mut VcpuFd) -> Result<Vec<u8>, RepairError> {
    let run = fd.get_kvm_run();
    // SAFETY: the exit reason says that this is the union's valid field, and all
    // of its fields are integers, valid whatever their bits.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let count = (internal.ndata as usize).min(internal.data.len());
        let data = internal.data[..count].to_vec();
        return Err(RepairError::InternalError {
            suberror: internal.suberror,
            data,
        });
    }
    // SAFETY: as above; for this suberror it is this view of the same bytes.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the flag says that the bytes are there.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let count = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
    Ok(bytes.insn_bytes[..count].to_vec())
}

/// The extended state of a virtual CPU, in KVM.
struct KvmExtendedState<'a> {
    fd: &'a VcpuFd,
    layout: &'a Layout,
}

impl ExtendedState for KvmExtendedState<'_> {
    fn load(&mut self) -> Option<KvmXsave> {
        let xsave = self.fd.get_xsave().ok()?;
        let mut state = [0; KVM_XSAVE_SIZE];
        for (bytes, word) in state.chunks_exact_mut(4).zip(xsave.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Some(state)
    }

    fn store(&mut self, state: &KvmXsave) -> bool {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(state.chunks_exact(4)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u32::from(*byte));
        }
        // SAFETY: KVM reads 4096 bytes, the size of the structure: no guest
        // permission for larger states was ever asked for.
        unsafe { self.fd.set_xsave(&xsave) }.is_ok()
    }

    fn enabled(&mut self) -> Option<u64> {
        let xcrs = self.fd.get_xcrs().ok()?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        xcrs.xcrs[..count]
            .iter()
            .find(|xcr| xcr.xcr == 0)
            .map(|xcr| xcr.value)
    }

    fn layout(&self) -> &Layout {
        self.layout
    }
}
