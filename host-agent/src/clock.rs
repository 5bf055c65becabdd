//! The node's clocks, read in one place.
//!
//! [`Clock`] is the boot-time clock: the one by which everything here is timed.
//!
//! Its readings mean the same to the next process of the host agent, as long as
//! the machine has not been restarted; [`host_boot_id`] tells whether it has.
//! It advances with tokio's clock, so that tests can pause it.

use std::{
    fs, io,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// A clock whose readings are distances from the machine's start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    at: Duration,
    then: Instant,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::at(boot_time())
    }

    /// A clock that says `time` now.
    #[must_use]
    pub fn at(time: Duration) -> Self {
        Self {
            at: time,
            then: Instant::now(),
        }
    }

    /// Time since the machine's start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.at + self.then.elapsed()
    }

    /// The instant at which [`now`](Self::now) will say `time`.
    #[must_use]
    pub fn instant(&self, time: Duration) -> Instant {
        self.then + time.saturating_sub(self.at)
    }
}

/// Time since the machine's start by the clock of the system, its sleep counted.
#[must_use]
pub fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// The wall clock, for what people and other machines are told.
#[must_use]
pub fn wall_time() -> SystemTime {
    SIMULATED
        .get()
        .map_or_else(SystemTime::now, |clock| clock())
}

static SIMULATED: OnceLock<fn() -> SystemTime> = OnceLock::new();

/// From here on this process lives by another wall clock: that of a simulation. The first
/// one that is given stays.
pub fn simulate(clock: fn() -> SystemTime) {
    let _ = SIMULATED.set(clock);
}

/// Names this run of the machine's kernel.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn host_boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim_end()
        .to_owned())
}
