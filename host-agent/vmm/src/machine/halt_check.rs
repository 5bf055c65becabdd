//! When to ask the virtual CPUs whether they are halted for good, and when to
//! believe it. No clock and no threads: the event loop brings the time.
//!
//! ```text
//!   Watching ── all dead ──▶ Suspecting ── a moment later ──▶ Confirming ── all dead ──▶ off
//!       ▲                                                          │
//!       └───────────────────── the next round is due ──────────────┘
//! ```

use std::time::{Duration, Instant};

/// How often virtual CPUs are asked.
const INTERVAL: Duration = Duration::from_millis(500);
/// How soon they are asked again when all were dead. Not at once: an interrupt
/// that meets a virtual CPU on its way back into the guest is lost.
const CONFIRM_AFTER: Duration = Duration::from_millis(10);

/// See the [module](self).
#[derive(Debug)]
pub struct HaltCheck {
    state: State,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Watching,
    Suspecting,
    Confirming,
}

impl HaltCheck {
    /// Begins at `now`.
    pub fn new(now: Instant) -> HaltCheck {
        HaltCheck {
            state: State::Watching,
            next: now + INTERVAL,
        }
    }

    /// When the next round is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Takes the state of the round that is going on; true when the machine is
    /// off.
    pub fn observe(&mut self, all_dead: bool, now: Instant) -> bool {
        match self.state {
            State::Confirming => all_dead,
            State::Watching if all_dead => {
                self.state = State::Suspecting;
                self.next = now + CONFIRM_AFTER;
                false
            }
            State::Watching | State::Suspecting => false,
        }
    }

    /// Whether a new round is to begin at `now`.
    pub fn begins_round(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.state = match self.state {
            State::Suspecting => State::Confirming,
            State::Watching | State::Confirming => State::Watching,
        };
        self.next = now + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rounds_in_a_row_are_believed() {
        let start = Instant::now();
        let mut check = HaltCheck::new(start);
        assert!(!check.begins_round(start));
        let now = start + INTERVAL;
        assert!(check.begins_round(now));
        assert!(!check.observe(true, now), "one round proves nothing");
        assert!(!check.observe(true, now), "however often it is looked at");
        let now = now + CONFIRM_AFTER;
        assert!(check.begins_round(now));
        assert!(!check.observe(false, now));
        assert!(check.observe(true, now));
    }

    #[test]
    fn a_guest_that_woke_up_is_watched_anew() {
        let start = Instant::now();
        let mut check = HaltCheck::new(start);
        let mut now = start + INTERVAL;
        assert!(check.begins_round(now));
        assert!(!check.observe(true, now));
        now += CONFIRM_AFTER;
        assert!(check.begins_round(now));
        assert!(!check.observe(false, now));
        now += INTERVAL;
        assert!(check.begins_round(now));
        assert!(!check.observe(true, now), "the confirmation failed");
    }
}
