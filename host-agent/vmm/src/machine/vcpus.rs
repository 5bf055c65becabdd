//! The threads of the virtual CPUs: starting, interrupting, pausing and leaving
//! them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::assemble::AssembleError;
use super::report::panic_text;
use crate::jail::{CallLists, ThreadKind};
use crate::vcpu::gate::Beginning;
use crate::vcpu::{Board, Outcome, Vcpu};

/// How long virtual CPUs may take to leave the guest when the machine has ended.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long when it is paused: on a node where many want the processors, each gets there
/// when it is given one.
const PARK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often they are interrupted meanwhile.
const LEAVE_INTERVAL: Duration = Duration::from_millis(2);
/// What a virtual CPU's thread may use as its stack.
const VCPU_STACK: usize = 256 * 1024;

/// The virtual CPUs of a machine that has been started.
#[derive(Debug)]
pub struct Threads {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts the virtual CPUs.
    ///
    /// # Errors
    ///
    /// When the host gives no thread; none is left running then.
    pub fn start(
        vcpus: Vec<Vcpu>,
        board: &Arc<Board>,
        calls: &CallLists,
    ) -> Result<Threads, AssembleError> {
        extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), interrupted)
            .map_err(|error| AssembleError::host("signal handler")(error.into()))?;
        let mut started = Threads {
            board: Arc::clone(board),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let board_of_thread = Arc::clone(board);
            let calls = calls.clone();
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(VCPU_STACK)
                .spawn(move || run_guarded(vcpu, &board_of_thread, &calls));
            match thread {
                Ok(thread) => started.threads.push(thread),
                Err(error) => {
                    board.ending.end(Outcome::Failed {
                        message: error.to_string(),
                        fault: None,
                    });
                    started.leave();
                    return Err(AssembleError::host("thread")(error));
                }
            }
        }
        Ok(started)
    }

    /// Interrupts KVM_RUN in every virtual CPU.
    pub fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            // Fails only for a thread that has just ended.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// Gets every virtual CPU to the gate; false if one does not come, or the
    /// machine has ended. The gate stays closed only if all are there.
    pub fn park(&self) -> bool {
        let gate = &self.board.gate;
        gate.close();
        let until = Instant::now() + PARK_TIMEOUT;
        while !self.board.ending.has_ended() && Instant::now() < until {
            self.kick();
            if gate.wait_until_all_parked(LEAVE_INTERVAL) {
                return true;
            }
        }
        gate.open();
        false
    }

    /// Has every virtual CPU, parked, begin anew and park again; false if one does not come
    /// back, or the machine has ended.
    pub fn restart(&self, beginnings: impl IntoIterator<Item = Beginning>) -> bool {
        let gate = &self.board.gate;
        gate.restart(beginnings);
        let until = Instant::now() + PARK_TIMEOUT;
        while !self.board.ending.has_ended() && Instant::now() < until {
            if gate.wait_until_all_parked(LEAVE_INTERVAL) {
                return true;
            }
        }
        false
    }

    /// Gets every virtual CPU out of the guest. One that does not come, stuck in
    /// the host's kernel, is left to the end of the process.
    pub fn leave(&self) {
        self.board.gate.open();
        let until = Instant::now() + LEAVE_TIMEOUT;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            self.kick();
            thread::sleep(LEAVE_INTERVAL);
        }
    }
}

/// A panic in a virtual CPU or in a device it calls ends the machine, in order.
fn run_guarded(vcpu: Vcpu, board: &Board, calls: &CallLists) {
    if let Err(error) = calls.confine(ThreadKind::Vcpu) {
        let message = format!("a virtual CPU's thread cannot be confined: {error}");
        board.ending.end(Outcome::Failed {
            message,
            fault: None,
        });
        return;
    }
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| vcpu.run())) {
        let message = format!("internal panic: {}", panic_text(&*payload));
        board.ending.end(Outcome::Failed {
            message,
            fault: None,
        });
    }
}
