//! What the virtual CPUs share with each other and with the event loop.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::ExitCounters;
use super::gate::Gate;
use crate::devices::bus::Bus;
use crate::devices::ports::Ports;
use crate::exit::CpuFault;
use crate::memory::GuestMemory;

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest halted for good.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A virtual CPU shut down on a triple fault.
    TripleFault(Box<CpuFault>),
    /// The machine has become a template.
    TemplateMade {
        /// The snapshot's directory.
        path: PathBuf,
    },
    /// The host asked for it.
    Stopped {
        /// By what.
        by: String,
    },
    /// The machine cannot go on.
    Failed {
        /// What happened, for people.
        message: String,
        /// The virtual CPU's state, where it is one's.
        fault: Option<Box<CpuFault>>,
    },
}

/// What all virtual CPUs share.
#[derive(Debug)]
pub struct Board {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Devices at I/O ports.
    pub ports: Ports,
    /// Devices at memory addresses.
    pub bus: Bus,
    /// Exits by kind.
    pub exits: ExitCounters,
    /// Whether and how the machine has ended.
    pub ending: Ending,
    /// Which virtual CPUs are halted for good.
    pub halts: Halts,
    /// Where virtual CPUs wait while the machine is paused.
    pub gate: Gate,
    /// When the guest was first entered.
    pub first_run: OnceLock<Instant>,
}

/// The machine's end: the first who declares it is believed.
#[derive(Debug)]
pub struct Ending {
    ended: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    wake: EventFd,
}

impl Ending {
    /// A machine that goes on.
    ///
    /// # Errors
    ///
    /// When the host gives no event descriptor.
    pub fn new() -> std::io::Result<Ending> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Ending {
            ended: AtomicBool::new(false),
            outcome: Mutex::new(None),
            wake,
        })
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, outcome: Outcome) {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(outcome);
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Wakes the event loop.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is awake already.
        let _ = self.wake.write(1);
    }

    /// What the event loop listens to, to be woken.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }
}

/// Which virtual CPUs were found halted for good, in rounds: the event loop
/// begins one and interrupts all of them, and each that is dead says so.
///
/// A virtual CPU that is dead can still be started by another, so that one round
/// proves nothing about those which answered early; two in a row do, for the
/// last to answer in the first round was dead with all others.
#[derive(Debug)]
pub struct Halts {
    round: AtomicU64,
    dead_in: Vec<AtomicU64>,
}

impl Halts {
    /// Nobody has answered yet.
    pub fn new(vcpus: u8) -> Halts {
        let dead_in = (0..vcpus).map(|_| AtomicU64::new(0)).collect();
        Halts {
            round: AtomicU64::new(0),
            dead_in,
        }
    }

    /// Begins a round.
    pub fn begin_round(&self) {
        self.round.fetch_add(1, Ordering::SeqCst);
    }

    /// The round that is going on.
    pub fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// Virtual CPU `id` was dead in `round`.
    pub fn report(&self, id: u8, round: u64) {
        if let Some(dead_in) = self.dead_in.get(usize::from(id)) {
            dead_in.store(round, Ordering::SeqCst);
        }
    }

    /// Whether all were dead in the round that is going on.
    pub fn all_dead(&self) -> bool {
        let round = self.round();
        round != 0
            && self
                .dead_in
                .iter()
                .all(|dead| dead.load(Ordering::SeqCst) == round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_end_the_machine_is_believed() {
        let ending = Ending::new().unwrap();
        assert!(!ending.has_ended());
        ending.end(Outcome::Reset);
        ending.end(Outcome::PowerOff);
        assert!(ending.has_ended());
        assert_eq!(ending.outcome(), Some(Outcome::Reset));
        assert_eq!(ending.wake_event().read().unwrap(), 2);
    }

    #[test]
    fn a_machine_is_dead_when_all_were_in_one_round() {
        let halts = Halts::new(2);
        assert!(!halts.all_dead());
        halts.begin_round();
        halts.report(0, halts.round());
        assert!(!halts.all_dead());
        halts.begin_round();
        halts.report(1, halts.round());
        assert!(!halts.all_dead(), "the first answered an earlier round");
        halts.report(0, halts.round());
        assert!(halts.all_dead());
    }
}
