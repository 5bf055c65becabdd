//! The wall clock, read in one place.

use std::{sync::OnceLock, time::SystemTime};

use crate::model::time::WallTime;

/// Now.
#[must_use]
pub fn now() -> WallTime {
    system().into()
}

/// Now, as the system says it.
#[must_use]
pub fn system() -> SystemTime {
    SIMULATED
        .get()
        .map_or_else(SystemTime::now, |clock| clock())
}

static SIMULATED: OnceLock<fn() -> SystemTime> = OnceLock::new();

/// From here on this process lives by another clock: that of a simulation. The first one
/// that is given stays.
pub fn simulate(clock: fn() -> SystemTime) {
    let _ = SIMULATED.set(clock);
}
