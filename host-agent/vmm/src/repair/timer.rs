//! Keeps the interrupts of a virtual CPU's timer apart.
//!
//! Where kernels are interpreted, a timer interrupt is some 3,000 instructions, 2 ms. A
//! busy kernel wants at least 100 of them a second: a fifth of a processor. A guest that
//! has a fifth of one, for others run too, then does nothing else, and as none of the
//! others ever gets done either, it stays so.
//!
//! ```text
//!   what the guest writes to its deadline ── now, or APART after it last dealt with an
//!   interrupt, whichever is later ── the deadline that KVM is given
//! ```
//!
//! To a kernel these are late interrupts: it counts time by its clock, and the ticks that
//! it missed. A timer of a program is late by [`APART`] at the most, and only if another
//! interrupt was just before; once, after a restore, by [`AT_FIRST`] times that.

use std::time::Duration;

use kvm_ioctls::VcpuFd;

use super::counters::{RepairCounters, Repaired};
use super::{RepairError, set_msr};
use crate::msr;

/// From when one interrupt was dealt with to the next.
const APART: Duration = Duration::from_millis(80);
/// So many times [`APART`] a restored guest has to itself. Where many are restored at once,
/// each has a part of a processor, and would spend a third of it on interrupts.
const AT_FIRST: u64 = 3;

/// The timer of one virtual CPU.
#[derive(Debug)]
pub struct TimerRepair {
    /// [`APART`], as the time stamp counter counts.
    apart: u64,
    /// The deadline that KVM was given.
    armed: Option<u64>,
    /// None is given that is before this.
    earliest: u64,
}

impl TimerRepair {
    /// The timer of this virtual CPU.
    ///
    /// # Errors
    ///
    /// When KVM does not tell how fast its time stamp counter is.
    pub fn new(fd: &VcpuFd) -> Result<TimerRepair, RepairError> {
        let khz = fd
            .get_tsc_khz()
            .map_err(RepairError::kvm("KVM_GET_TSC_KHZ"))?;
        let apart = u64::from(khz).saturating_mul(APART.as_millis() as u64);
        Ok(TimerRepair::apart(apart))
    }

    fn apart(apart: u64) -> TimerRepair {
        TimerRepair {
            apart,
            armed: None,
            earliest: 0,
        }
    }

    /// Forgets the guest, which is started anew.
    pub fn reset(&mut self) {
        *self = TimerRepair::apart(self.apart);
    }

    /// Goes on with the deadline that a restored virtual CPU has: what has become due while it
    /// did not run can wait until it has done something of its own.
    ///
    /// # Errors
    ///
    /// When KVM refuses the deadline, or does not tell the time.
    pub fn restore(&mut self, fd: &VcpuFd) -> Result<(), RepairError> {
        let now = read(fd, msr::TSC)?;
        match self.go_on(now, read(fd, msr::TSC_DEADLINE)?) {
            0 => Ok(()),
            due => set_msr(fd, msr::TSC_DEADLINE, due),
        }
    }

    fn go_on(&mut self, now: u64, deadline: u64) -> u64 {
        self.earliest = now.saturating_add(self.apart.saturating_mul(AT_FIRST));
        self.put_off(now, deadline)
    }

    /// Takes the guest's write of its deadline.
    ///
    /// # Errors
    ///
    /// When KVM refuses the deadline, or does not tell the time.
    pub fn write(
        &mut self,
        fd: &VcpuFd,
        deadline: u64,
        counters: &RepairCounters,
    ) -> Result<(), RepairError> {
        let now = read(fd, msr::TSC)?;
        let due = self.put_off(now, deadline);
        if due != deadline {
            counters.count(Repaired::TimerPutOff);
        }
        set_msr(fd, msr::TSC_DEADLINE, due)
    }

    /// When the interrupt is to be for which the guest asks now.
    fn put_off(&mut self, now: u64, deadline: u64) -> u64 {
        if self.armed.is_some_and(|armed| armed <= now) {
            // It came; a kernel asks for the next when it has dealt with it.
            self.earliest = now.saturating_add(self.apart);
        }
        if deadline == 0 {
            self.armed = None;
            return 0;
        }
        let due = deadline.max(self.earliest);
        self.armed = Some(due);
        due
    }
}

fn read(fd: &VcpuFd, index: u32) -> Result<u64, RepairError> {
    msr::read(fd, index).ok_or(RepairError::Unknown { index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_rests_has_its_interrupts_when_it_wants_them() {
        let mut timer = TimerRepair::apart(40);
        assert_eq!(timer.put_off(1000, 1010), 1010);
        assert_eq!(timer.put_off(1020, 1100), 1100);
        assert_eq!(timer.put_off(1110, 0), 0);
        assert_eq!(timer.put_off(1500, 1501), 1501);
    }

    #[test]
    fn a_busy_kernels_ticks_come_apart() {
        let mut timer = TimerRepair::apart(40);
        assert_eq!(timer.put_off(1000, 1010), 1010);
        let mut interrupts = 0;
        let mut now = 1010;
        while now < 2010 {
            interrupts += 1;
            // The next tick would be on the grid of 10.
            now = timer.put_off(now + 2, (now + 12) / 10 * 10);
        }
        assert!((22..=25).contains(&interrupts), "{interrupts}");
    }

    #[test]
    fn what_is_asked_for_anew_before_it_came_is_not_put_off_again() {
        let mut timer = TimerRepair::apart(40);
        timer.put_off(1000, 1010);
        assert_eq!(timer.put_off(1010, 1020), 1050);
        // A program's timer, set while it runs.
        assert_eq!(timer.put_off(1030, 1045), 1050);
        assert_eq!(timer.put_off(1035, 1055), 1055);
        assert_eq!(timer.put_off(1040, 1200), 1200);
    }

    #[test]
    fn a_stopped_timer_is_no_way_around_it() {
        let mut timer = TimerRepair::apart(40);
        timer.put_off(1000, 1010);
        assert_eq!(timer.put_off(1011, 0), 0);
        assert_eq!(timer.put_off(1012, 1013), 1051);
    }

    #[test]
    fn a_restored_kernel_does_something_of_its_own_first() {
        let mut timer = TimerRepair::apart(40);
        assert_eq!(timer.go_on(1000, 1003), 1120);
        assert_eq!(timer.put_off(1121, 1122), 1161);
        let mut timer = TimerRepair::apart(40);
        assert_eq!(timer.go_on(1000, 1200), 1200);
        let mut resting = TimerRepair::apart(40);
        assert_eq!(resting.go_on(1000, 0), 0);
        assert_eq!(resting.put_off(1001, 1002), 1120);
    }

    #[test]
    fn any_value_of_a_guest_is_taken() {
        let mut timer = TimerRepair::apart(u64::MAX);
        assert_eq!(timer.put_off(u64::MAX, 1), 1);
        assert_eq!(timer.put_off(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(timer.put_off(0, 5), u64::MAX);
        timer.reset();
        assert_eq!(timer.put_off(0, 5), 5);
    }
}
