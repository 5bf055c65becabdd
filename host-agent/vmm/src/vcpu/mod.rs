//! Virtual CPUs: one thread each, and what their exits mean.
//!
//! | file | what it is |
//! |---|---|
//! | [`setup`] | the state in which a kernel expects them |
//! | [`cpuid`] | what CPUID tells the guest |
//! | [`state`] | all of its registers, for snapshots |
//! | [`gate`] | where they wait while the machine is paused |
//! | [`board`] | what all of them share: devices, counters, the machine's end |
//! | [`fault`] | the registers of one that cannot go on, for the report |
//! | [`counters`] | exits by kind |
//!
//! A virtual CPU runs until somebody ends the machine: itself, by what an exit
//! means, or anybody else through the [`Board`]. It never waits for anything but
//! KVM and the devices' locks.

pub mod board;
pub mod counters;
pub mod cpuid;
pub mod fault;
pub mod gate;
pub mod setup;
pub mod state;

use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;

pub use board::{Board, Outcome};
use counters::ExitKind;
use gate::Beginning;

use setup::SetupError;
use state::{MsrList, VcpuState, VcpuStateError};

use crate::devices::ports::PortEffect;
use crate::fail_point::{self, Step};
use crate::repair::{Repair, RepairError};

const INTERRUPT_FLAG: u64 = 1 << 9;

/// One virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    board: Arc<Board>,
    repair: Option<Repair>,
    msrs: Arc<MsrList>,
    /// As it was when it was made, for when it begins anew.
    made: VcpuState,
}

/// Why a virtual CPU cannot begin anew.
#[derive(Debug, Error)]
#[error("the virtual CPU cannot be reset")]
enum ResetError {
    State(#[from] VcpuStateError),
    Setup(#[from] SetupError),
    Repair(#[from] RepairError),
}

/// What an exit asks for once its borrow of the virtual CPU has ended.
enum Next {
    /// Run on.
    Run,
    /// The guest wrote a filtered register.
    WriteMsr { index: u32, value: u64 },
    /// A breakpoint was met.
    Debug,
    /// KVM gave up on an instruction, or on something else.
    InternalError,
    /// A signal came.
    Interrupted,
    /// The machine ends.
    End(Outcome),
    /// The machine ends, for a triple fault; the registers tell where.
    TripleFault,
    /// The machine ends, for nobody knows what this exit means.
    GiveUp(String),
}

impl Vcpu {
    /// Virtual CPU `id`, set up, which was `made` so; with its repairs where KVM needs
    /// them.
    pub fn new(
        id: u8,
        fd: VcpuFd,
        board: Arc<Board>,
        repair: Option<Repair>,
        msrs: Arc<MsrList>,
        made: VcpuState,
    ) -> Vcpu {
        Vcpu {
            id,
            fd,
            board,
            repair,
            msrs,
            made,
        }
    }

    /// Runs until the machine ends. Ends it if this virtual CPU cannot go on.
    pub fn run(mut self) {
        fail_point::reached(Step::Entering);
        if self.id == 0 {
            self.board.first_run.get_or_init(Instant::now);
        }
        while !self.board.ending.has_ended() {
            let outcome = if self.board.gate.is_closed() {
                self.park()
            } else {
                let next = self.enter();
                self.follow(next)
            };
            if let Some(outcome) = outcome {
                self.board.ending.end(outcome);
            }
        }
    }

    /// Finishes what the last exit has left to do, and waits at the gate.
    fn park(&mut self) -> Option<Outcome> {
        self.fd.set_kvm_immediate_exit(1);
        let settled = loop {
            match self.enter() {
                Next::Interrupted => break None,
                next => {
                    if let Some(outcome) = self.follow(next) {
                        break Some(outcome);
                    }
                }
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        if settled.is_some() {
            return settled;
        }
        while let Some(beginning) = self.board.gate.park(self.id, self.state().map(Arc::new)) {
            if let Err(error) = self.begin_anew(&beginning) {
                return Some(self.give_up(fault::chain(&error)));
            }
        }
        None
    }

    fn state(&self) -> Result<VcpuState, VcpuStateError> {
        let syscall = self.repair.as_ref().map(Repair::syscall_registers);
        VcpuState::take(&self.fd, &self.msrs, syscall)
    }

    /// Becomes what it was when it was made, and starts at a kernel's entry; or becomes what
    /// another was.
    fn begin_anew(&mut self, beginning: &Beginning) -> Result<(), ResetError> {
        if let Some(repair) = &mut self.repair {
            repair.reset(&self.fd)?;
        }
        self.made.give(&self.fd)?;
        match beginning {
            Beginning::Kernel { entry } => setup::set_up(&self.fd, self.id, *entry)?,
            Beginning::State(state) => {
                state.give(&self.fd)?;
                go_on(&self.fd, state, self.repair.as_mut())?;
            }
        }
        Ok(())
    }

    /// Does what an exit asks for.
    fn follow(&mut self, next: Next) -> Option<Outcome> {
        match next {
            Next::Run => None,
            Next::WriteMsr { index, value } => self.write_msr(index, value),
            Next::Debug => self.repair("debug exit", Repair::debug_exit),
            Next::InternalError => self.repair("internal error", Repair::internal_error),
            Next::Interrupted => {
                self.observe_halt();
                None
            }
            Next::End(outcome) => Some(outcome),
            Next::TripleFault => Some(Outcome::TripleFault(Box::new(self.fault()))),
            Next::GiveUp(message) => Some(self.give_up(message)),
        }
    }

    fn enter(&mut self) -> Next {
        let Vcpu {
            fd, board, repair, ..
        } = self;
        let count = |kind| board.exits.count(kind);
        match fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(ExitKind::PortOut);
                match board.ports.write(port, data) {
                    PortEffect::None => Next::Run,
                    PortEffect::Reset => Next::End(Outcome::Reset),
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(ExitKind::PortIn);
                board.ports.read(port, data);
                Next::Run
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(ExitKind::MmioRead);
                board.bus.read(address, data);
                Next::Run
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(ExitKind::MmioWrite);
                board.bus.write(address, data);
                Next::Run
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                count(ExitKind::Msr);
                *exit.error = 0;
                Next::WriteMsr {
                    index: exit.index,
                    value: exit.data,
                }
            }
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                count(ExitKind::Msr);
                let value = repair
                    .as_ref()
                    .and_then(|repair| repair.read_msr(exit.index));
                *exit.error = u8::from(value.is_none());
                *exit.data = value.unwrap_or(0);
                Next::Run
            }
            Ok(VcpuExit::Debug(_)) => {
                count(ExitKind::Debug);
                Next::Debug
            }
            Ok(VcpuExit::InternalError) => {
                count(ExitKind::Emulation);
                Next::InternalError
            }
            Ok(VcpuExit::Intr) => {
                count(ExitKind::Interrupted);
                Next::Interrupted
            }
            Ok(VcpuExit::Shutdown) => {
                count(ExitKind::Other);
                Next::TripleFault
            }
            Ok(exit) => {
                count(ExitKind::Other);
                other_exit(&exit)
            }
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                count(ExitKind::Interrupted);
                Next::Interrupted
            }
            Err(error) => Next::GiveUp(format!("KVM_RUN failed: {error}")),
        }
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<Outcome> {
        self.repair("register write", |repair, fd| {
            repair.write_msr(fd, index, value)
        })
    }

    fn repair(
        &mut self,
        what: &str,
        action: impl FnOnce(&mut Repair, &mut VcpuFd) -> Result<(), RepairError>,
    ) -> Option<Outcome> {
        let result = match &mut self.repair {
            Some(repair) => action(repair, &mut self.fd),
            None => return Some(self.give_up(format!("unexpected {what} from KVM"))),
        };
        result.err().map(|error| self.give_up(fault::chain(&error)))
    }

    /// Tells whoever asked that this virtual CPU can never run again by itself:
    /// it is halted with interrupts off, or was never started.
    fn observe_halt(&mut self) {
        let round = self.board.halts.round();
        let Ok(state) = self.fd.get_mp_state() else {
            return;
        };
        let dead = match state.mp_state {
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => true,
            KVM_MP_STATE_HALTED => self
                .fd
                .get_regs()
                .is_ok_and(|regs| regs.rflags & INTERRUPT_FLAG == 0),
            _ => false,
        };
        if dead {
            self.board.halts.report(self.id, round);
            self.board.ending.wake();
        }
    }

    fn give_up(&mut self, message: String) -> Outcome {
        let message = format!("vCPU {}: {message}", self.id);
        Outcome::Failed {
            message,
            fault: Some(Box::new(self.fault())),
        }
    }

    fn fault(&mut self) -> crate::exit::CpuFault {
        fault::capture(self.id, &self.fd, &self.board.memory)
    }
}

/// Has the repair of a virtual CPU, which has this state now, go on from it.
///
/// # Errors
///
/// When KVM refuses what follows from it.
pub fn go_on(
    fd: &VcpuFd,
    state: &VcpuState,
    repair: Option<&mut Repair>,
) -> Result<(), RepairError> {
    match (repair, state.syscall()) {
        (Some(repair), Some(syscall)) => repair.restore(fd, syscall, &state.system_registers()),
        _ => Ok(()),
    }
}

/// What the exits mean that hardly ever happen.
fn other_exit(exit: &VcpuExit<'_>) -> Next {
    match exit {
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Next::End(Outcome::PowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH, _) => {
            Next::End(Outcome::Reset)
        }
        VcpuExit::FailEntry(reason, cpu) => Next::GiveUp(format!(
            "the processor refused to enter the guest: {reason:#x} on {cpu}"
        )),
        VcpuExit::MemoryFault { gpa, size, .. } => {
            Next::GiveUp(format!("guest memory at {gpa:#x}, {size} bytes, is gone"))
        }
        VcpuExit::Unsupported(reason) => Next::GiveUp(format!("unknown exit {reason} from KVM")),
        exit => Next::GiveUp(format!("unexpected exit {exit:?} from KVM")),
    }
}
