//! Holds each direction of the device to its limits.
//!
//! A packet that may not pass yet stays where it is, in the guest's queue or in a
//! socket of the host, and a timer says when it may.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::limits::{RateLimit, Throttle, Throttled};

/// A direction of the device.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    /// To the guest, by its receive queue.
    ToGuest,
    /// To the host, by its transmit queue.
    ToHost,
}

/// Both directions' limits, and the timer for what waits.
pub struct VsockLimiter {
    throttles: [Throttle; 2],
    /// Until when each direction waits, if it does.
    waits: [Option<Instant>; 2],
    timer: TimerFd,
    armed: Option<Instant>,
}

impl VsockLimiter {
    /// Without limits.
    ///
    /// # Errors
    ///
    /// If the host gives no timer.
    pub fn new() -> io::Result<VsockLimiter> {
        Ok(VsockLimiter {
            throttles: Default::default(),
            waits: [None; 2],
            timer: TimerFd::new().map_err(io::Error::from)?,
            armed: None,
        })
    }

    /// The timer, readable when something may pass that has waited.
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Sets other limits.
    pub fn change(&mut self, to_guest: &RateLimit, to_host: &RateLimit, now: Instant) {
        let [guest, host] = &mut self.throttles;
        guest.change(to_guest, now);
        host.change(to_host, now);
    }

    /// Looks at a direction anew: nothing waits there that is known of.
    pub fn look(&mut self, direction: Direction) {
        self.waits[direction as usize] = None;
    }

    /// Whether a packet that is there may pass; if not, the timer is to say when.
    pub fn allows(&mut self, direction: Direction, now: Instant) -> bool {
        let until = self.throttles[direction as usize].ready(now).err();
        self.waits[direction as usize] = until;
        until.is_none()
    }

    /// Counts a packet that passes.
    pub fn charge(&mut self, direction: Direction, bytes: usize, now: Instant) {
        self.throttles[direction as usize].charge(bytes as u64, now);
    }

    /// Sets the timer for the direction that may go on first.
    pub fn arm(&mut self, now: Instant) {
        let until = self.waits.iter().flatten().min().copied();
        if until == self.armed {
            return;
        }
        // Setting a timer that exists fails for no value given here. A timer of
        // zero would be no timer.
        let set = match until {
            Some(until) => {
                let wait = until.saturating_duration_since(now);
                self.timer.reset(wait.max(Duration::from_nanos(1)), None)
            }
            None => self.timer.clear(),
        };
        self.armed = if set.is_ok() { until } else { None };
    }

    /// Makes the timer unreadable after it woke.
    pub fn acknowledge(&mut self) {
        self.armed = None;
        let _ = self.timer.clear();
    }

    /// Nothing waits any more: there is no driver.
    pub fn forget_waits(&mut self) {
        self.waits = [None; 2];
        self.acknowledge();
    }

    /// What has waited.
    pub fn throttled(&self, direction: Direction) -> Throttled {
        self.throttles[direction as usize].throttled()
    }
}
