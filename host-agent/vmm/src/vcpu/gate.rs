//! Where virtual CPUs wait while the machine is paused.
//!
//! ```text
//!  open ── close ──▶ closing: each finishes its exit and parks, leaving its state
//!    ▲                   │ all parked
//!    └────── open ───── paused
//! ```
//!
//! A virtual CPU that is in the guest does not see the gate: whoever closes it
//! has to interrupt them until all are there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::state::{VcpuState, VcpuStateError};

/// What a parked virtual CPU leaves: its state, or why there is none.
type Parked = Result<Arc<VcpuState>, VcpuStateError>;

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    parked: Mutex<Vec<Option<Parked>>>,
    changed: Condvar,
}

impl Gate {
    /// An open gate for so many virtual CPUs.
    pub fn new(vcpus: u8) -> Gate {
        Gate {
            closed: AtomicBool::new(false),
            parked: Mutex::new((0..vcpus).map(|_| None).collect()),
            changed: Condvar::new(),
        }
    }

    /// Whether virtual CPUs have to park.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes it.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Opens it; whoever is parked goes on.
    pub fn open(&self) {
        let mut parked = self.lock();
        parked.fill_with(|| None);
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Parks virtual CPU `id` until the gate is open.
    pub fn park(&self, id: u8, left: Parked) {
        let mut parked = self.lock();
        if let Some(place) = parked.get_mut(usize::from(id)) {
            *place = Some(left);
        }
        self.changed.notify_all();
        while self.is_closed() {
            parked = self
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a while; true once all are parked.
    pub fn wait_until_all_parked(&self, patience: Duration) -> bool {
        let parked = self.lock();
        let (parked, _) = self
            .changed
            .wait_timeout_while(parked, patience, |parked| one_is_missing(parked))
            .unwrap_or_else(PoisonError::into_inner);
        !one_is_missing(&parked)
    }

    /// The states of all that are parked, in order of their numbers.
    ///
    /// # Errors
    ///
    /// The first that has none.
    pub fn states(&self) -> Result<Vec<Arc<VcpuState>>, VcpuStateError> {
        let mut parked = self.lock();
        parked
            .iter_mut()
            .map(|left| match left {
                Some(Ok(state)) => Ok(Arc::clone(state)),
                left => Err(match left.take() {
                    Some(Err(error)) => error,
                    _ => VcpuStateError::NotParked,
                }),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Parked>>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one has not parked yet.
fn one_is_missing(parked: &[Option<Parked>]) -> bool {
    parked.iter().any(Option::is_none)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_parks_waits_until_the_gate_is_open() {
        let gate = Gate::new(2);
        gate.close();
        thread::scope(|scope| {
            let both = [0, 1].map(|id| {
                let gate = &gate;
                scope.spawn(move || gate.park(id, Err(VcpuStateError::NotParked)))
            });
            assert!(gate.wait_until_all_parked(Duration::from_secs(60)));
            assert!(both.iter().all(|thread| !thread.is_finished()));
            gate.open();
        });
        assert!(!gate.wait_until_all_parked(Duration::ZERO));
    }

    #[test]
    fn a_gate_that_waits_in_vain_says_so() {
        let gate = Gate::new(1);
        gate.close();
        assert!(!gate.wait_until_all_parked(Duration::from_millis(1)));
        assert!(gate.states().is_err());
    }
}
