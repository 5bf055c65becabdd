//! What must happen until when: a sorted set with one timer.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Deadlines of things named by `Id`, and the timer that wakes at the earliest.
pub struct Deadlines<Id> {
    set: BTreeSet<(Instant, Id)>,
    timer: TimerFd,
    armed: Option<Instant>,
}

impl<Id: Ord + Copy> Deadlines<Id> {
    /// No deadlines.
    ///
    /// # Errors
    ///
    /// If the host gives no timer.
    pub fn new() -> io::Result<Deadlines<Id>> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Deadlines {
            set: BTreeSet::new(),
            timer,
            armed: None,
        })
    }

    /// The timer, readable when a deadline has passed.
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Changes a deadline of `id` from `old` to `new`.
    pub fn change(&mut self, id: Id, old: Option<Instant>, new: Option<Instant>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.set.remove(&(old, id));
        }
        if let Some(new) = new {
            self.set.insert((new, id));
        }
    }

    /// Takes out the next one that has passed.
    pub fn pop_passed(&mut self, now: Instant) -> Option<Id> {
        let (until, id) = *self.set.first()?;
        if until > now {
            return None;
        }
        self.set.pop_first();
        Some(id)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.set.clear();
    }

    /// Sets the timer to the earliest deadline, if it is not already.
    pub fn arm(&mut self, now: Instant) {
        let earliest = self.set.first().map(|(until, _)| *until);
        if earliest == self.armed {
            return;
        }
        // A timer of zero would be no timer.
        let result = match earliest {
            Some(until) => {
                let wait = until
                    .saturating_duration_since(now)
                    .max(Duration::from_millis(1));
                self.timer.reset(wait, None)
            }
            None => self.timer.clear(),
        };
        // Setting a timer that exists fails for no value given here; if it did,
        // the next change would try again.
        self.armed = if result.is_ok() { earliest } else { None };
    }

    /// Makes the timer unreadable after it woke.
    pub fn acknowledge(&mut self) {
        self.armed = None;
        let _ = self.timer.clear();
    }
}
