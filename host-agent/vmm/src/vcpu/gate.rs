//! Where virtual CPUs wait while the machine is paused.
//!
//! ```text
//!  open ── close ──▶ closing: each finishes its exit and parks, leaving its state
//!    ▲                   │ all parked
//!    └────── open ───── paused ◀─┐
//!                          │     │ all parked again
//!                          └─ restart: each begins anew and parks
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

/// Where a virtual CPU is, as far as the gate knows.
#[derive(Debug)]
enum Place {
    /// On its way: in the guest, or busy with what it was told.
    Away,
    /// Here.
    Parked(Parked),
    /// Here, and told to begin anew.
    Restarted(Beginning),
}

/// How a virtual CPU begins anew.
#[derive(Debug, Clone)]
pub enum Beginning {
    /// As it was when it was made, at a kernel's entry.
    Kernel {
        /// Where that is.
        entry: u64,
    },
    /// In the state of another.
    State(Arc<VcpuState>),
}

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    places: Mutex<Vec<Place>>,
    changed: Condvar,
}

impl Gate {
    /// An open gate for so many virtual CPUs.
    pub fn new(vcpus: u8) -> Gate {
        Gate {
            closed: AtomicBool::new(false),
            places: Mutex::new((0..vcpus).map(|_| Place::Away).collect()),
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
        let mut places = self.lock();
        places.fill_with(|| Place::Away);
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Parks virtual CPU `id` until the gate is open, or until it is to begin anew,
    /// and to park again. One that comes to an open gate goes on.
    pub fn park(&self, id: u8, left: Parked) -> Option<Beginning> {
        let id = usize::from(id);
        let mut places = self.lock();
        if !self.is_closed() {
            return None;
        }
        places[id] = Place::Parked(left);
        self.changed.notify_all();
        // What it was told counts, not whether the gate is closed: that can be so
        // again before this one has woken, and it has to leave and to park anew then.
        let mut places = self
            .changed
            .wait_while(places, |places| matches!(places[id], Place::Parked(_)))
            .unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut places[id], Place::Away) {
            Place::Restarted(beginning) => Some(beginning),
            Place::Away | Place::Parked(_) => None,
        }
    }

    /// Has all that are parked begin anew, each as it is said of it. They park again.
    pub fn restart(&self, beginnings: impl IntoIterator<Item = Beginning>) {
        for (place, beginning) in self.lock().iter_mut().zip(beginnings) {
            *place = Place::Restarted(beginning);
        }
        self.changed.notify_all();
    }

    /// Waits for a while; true once all are parked.
    pub fn wait_until_all_parked(&self, patience: Duration) -> bool {
        let places = self.lock();
        let (places, _) = self
            .changed
            .wait_timeout_while(places, patience, |places| one_is_missing(places))
            .unwrap_or_else(PoisonError::into_inner);
        !one_is_missing(&places)
    }

    /// The states of all that are parked, in order of their numbers.
    ///
    /// # Errors
    ///
    /// The first that has none.
    pub fn states(&self) -> Result<Vec<Arc<VcpuState>>, VcpuStateError> {
        self.lock()
            .iter_mut()
            .map(|place| match place {
                Place::Parked(Ok(state)) => Ok(Arc::clone(state)),
                Place::Parked(left) => std::mem::replace(left, Err(VcpuStateError::NotParked)),
                Place::Away | Place::Restarted(_) => Err(VcpuStateError::NotParked),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one has not parked yet.
fn one_is_missing(places: &[Place]) -> bool {
    !places.iter().all(|place| matches!(place, Place::Parked(_)))
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
    fn who_is_restarted_parks_again() {
        let gate = Gate::new(1);
        gate.close();
        let nothing = || Err(VcpuStateError::NotParked);
        thread::scope(|scope| {
            let parked = scope.spawn(|| [gate.park(0, nothing()), gate.park(0, nothing())]);
            assert!(gate.wait_until_all_parked(Duration::from_secs(60)));
            gate.restart([Beginning::Kernel { entry: 0x10 }]);
            assert!(gate.wait_until_all_parked(Duration::from_secs(60)));
            gate.open();
            let told = parked.join().unwrap();
            assert!(
                matches!(told, [Some(Beginning::Kernel { entry: 0x10 }), None]),
                "{told:?}"
            );
        });
    }

    #[test]
    fn a_gate_that_waits_in_vain_says_so() {
        let gate = Gate::new(1);
        gate.close();
        assert!(!gate.wait_until_all_parked(Duration::from_millis(1)));
        assert!(gate.states().is_err());
    }

    #[test]
    fn a_gate_that_closes_before_all_have_left_has_them_park_again() {
        let gate = Gate::new(1);
        let goes_on = AtomicBool::new(true);
        gate.close();
        thread::scope(|scope| {
            scope.spawn(|| {
                while goes_on.load(Ordering::Acquire) {
                    gate.park(0, Err(VcpuStateError::NotParked));
                }
            });
            let always = (0..100).all(|_| {
                let parked = gate.wait_until_all_parked(Duration::from_secs(10));
                gate.open();
                gate.close();
                parked
            });
            goes_on.store(false, Ordering::Release);
            gate.open();
            assert!(always);
        });
    }

    #[test]
    fn who_comes_to_an_open_gate_is_not_counted_when_it_closes() {
        let gate = Gate::new(1);
        assert!(gate.park(0, Err(VcpuStateError::NotParked)).is_none());
        gate.close();
        assert!(!gate.wait_until_all_parked(Duration::ZERO));
    }
}
