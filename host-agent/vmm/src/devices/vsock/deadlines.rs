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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::wait_readable;

    fn deadlines(now: Instant, of: &[(u32, u64)]) -> Deadlines<u32> {
        let mut deadlines = Deadlines::new().unwrap();
        for (id, milliseconds) in of {
            deadlines.change(*id, None, Some(now + Duration::from_millis(*milliseconds)));
        }
        deadlines
    }

    #[test]
    fn they_pass_in_order_and_only_when_it_is_time() {
        let now = Instant::now();
        let mut deadlines = deadlines(now, &[(1, 30), (2, 10), (3, 20)]);
        assert_eq!(deadlines.pop_passed(now), None);
        let later = now + Duration::from_millis(25);
        assert_eq!(deadlines.pop_passed(later), Some(2));
        assert_eq!(deadlines.pop_passed(later), Some(3));
        assert_eq!(deadlines.pop_passed(later), None);
    }

    #[test]
    fn one_that_is_changed_passes_at_its_new_time() {
        let now = Instant::now();
        let mut deadlines = deadlines(now, &[(1, 10)]);
        let (old, new) = (
            now + Duration::from_millis(10),
            now + Duration::from_millis(50),
        );
        deadlines.change(1, Some(old), Some(new));
        assert_eq!(deadlines.pop_passed(old), None);
        assert_eq!(deadlines.pop_passed(new), Some(1));
        deadlines.change(1, None, None);
        assert_eq!(deadlines.pop_passed(new), None);
    }

    #[test]
    fn the_timer_wakes_at_the_earliest_even_if_that_has_passed() {
        let now = Instant::now();
        let mut deadlines = deadlines(now, &[(1, 60_000), (2, 0)]);
        deadlines.arm(now + Duration::from_secs(1));
        assert!(wait_readable(deadlines.timer_fd(), 10_000));
        deadlines.acknowledge();
        assert!(!wait_readable(deadlines.timer_fd(), 0));
        assert_eq!(deadlines.pop_passed(now), Some(2));
        deadlines.arm(now);
        assert!(
            !wait_readable(deadlines.timer_fd(), 0),
            "the next is a minute away"
        );
    }
}
