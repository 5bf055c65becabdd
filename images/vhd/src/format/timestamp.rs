//! Time as the format counts it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// Unix time of the format's epoch, 1 January 2000, 00:00 UTC.
const EPOCH: u64 = 946_684_800;

/// "Time Stamp": seconds since 1 January 2000, 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeStamp(pub u32);

impl TimeStamp {
    /// The time now.
    #[must_use]
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Seconds since 1 January 1970, 00:00 UTC.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        EPOCH + u64::from(self.0)
    }
}

impl From<SystemTime> for TimeStamp {
    /// Times that the format cannot tell become the nearest one it can.
    fn from(time: SystemTime) -> Self {
        let unix = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self(u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(u32::MAX))
    }
}

impl From<TimeStamp> for SystemTime {
    fn from(stamp: TimeStamp) -> Self {
        UNIX_EPOCH + Duration::from_secs(stamp.unix_seconds())
    }
}

impl fmt::Display for TimeStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds((*self).into()).fmt(f)
    }
}

impl Serialize for TimeStamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_the_year_2000() {
        assert_eq!(TimeStamp(0).to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(
            TimeStamp::from(SystemTime::from(TimeStamp(86_400))),
            TimeStamp(86_400)
        );
    }

    #[test]
    fn clamps_what_it_cannot_tell() {
        assert_eq!(TimeStamp::from(UNIX_EPOCH), TimeStamp(0));
        assert_eq!(
            TimeStamp::from(UNIX_EPOCH + Duration::from_secs(u64::MAX / 4)),
            TimeStamp(u32::MAX)
        );
    }
}
