//! The guest's clock follows the host's, by steps: a guest that was paused, or
//! whose kernel has no clock of the host's, is far off at once or not at all.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

/// Difference from which on the clock is set.
const TOO_FAR: Duration = Duration::from_secs(1);

/// Sets the clock to `host` when the two are too far apart.
pub fn follow(host: SystemTime) -> io::Result<()> {
    match step(SystemTime::now(), host) {
        None => Ok(()),
        Some(since_epoch) => Ok(clock_settime(
            ClockId::CLOCK_REALTIME,
            TimeSpec::from_duration(since_epoch),
        )?),
    }
}

fn step(guest: SystemTime, host: SystemTime) -> Option<Duration> {
    let apart = guest
        .duration_since(host)
        .unwrap_or_else(|error| error.duration());
    // A host that does not know its own time is not followed.
    let since_epoch = host.duration_since(UNIX_EPOCH).ok()?;
    (apart > TOO_FAR).then_some(since_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_set_when_it_is_more_than_a_second_off_either_way() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(step(at(5_000), at(6_000)), None);
        assert_eq!(step(at(5_000), at(4_000)), None);
        assert_eq!(step(at(5_000), at(6_001)).unwrap().as_secs(), 6);
        assert_eq!(step(at(5_000), at(3_500)).unwrap().subsec_millis(), 500);
        assert_eq!(step(at(5_000), UNIX_EPOCH - Duration::from_secs(9)), None);
    }
}
