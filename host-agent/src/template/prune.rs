//! Which templates are to go. Pure.

use std::time::{Duration, SystemTime};

use super::key::Key;

/// A template that was used so short a time ago is spared: whoever asked for it may
/// be about to start from it.
const SPARED: Duration = Duration::from_secs(60);

/// How many templates are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// One that has not been used for so long goes.
    pub longest: Duration,
    /// Together they have at most so many bytes.
    pub most_bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            longest: Duration::from_secs(7 * 24 * 3600),
            most_bytes: 4 << 30,
        }
    }
}

/// A template that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Which.
    pub key: Key,
    /// When it was used last.
    pub used: SystemTime,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
}

/// Those that are to go: what has not been used for long, and then what was used
/// longest ago, until the rest is within its bounds.
#[must_use]
pub fn condemned(mut there: Vec<There>, now: SystemTime, keep: &Keep) -> Vec<Key> {
    // Of a time in the future it is not known how long it is ago: just now.
    let idle = |one: &There| now.duration_since(one.used).unwrap_or_default();
    there.sort_by_key(|one| one.used);
    let mut bytes: u64 = there.iter().map(|one| one.bytes).sum();
    let mut gone = Vec::new();
    for one in there {
        if idle(&one) > keep.longest || (bytes > keep.most_bytes && idle(&one) > SPARED) {
            bytes = bytes.saturating_sub(one.bytes);
            gone.push(one.key);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::key::Inputs;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn template(number: u8, idle: Duration, bytes: u64) -> There {
        There {
            key: key(number),
            used: now() - idle,
            bytes,
        }
    }

    fn key(number: u8) -> Key {
        let vcpus = number;
        Inputs {
            vcpus,
            ..Inputs::default()
        }
        .key()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 365 * DAY
    }

    fn gone(there: &[There]) -> Vec<Key> {
        let keep = Keep {
            longest: 7 * DAY,
            most_bytes: 100,
        };
        condemned(there.to_vec(), now(), &keep)
    }

    #[test]
    fn what_nobody_has_used_for_long_goes_however_small_it_is() {
        let there = [template(1, 8 * DAY, 1), template(2, 6 * DAY, 1)];
        assert_eq!(gone(&there), [key(1)]);
    }

    #[test]
    fn what_was_used_longest_ago_makes_room_and_no_more_than_is_needed() {
        let there = [
            template(1, DAY, 50),
            template(2, 3 * DAY, 40),
            template(3, 2 * DAY, 50),
        ];
        assert_eq!(gone(&there), [key(2)]);
    }

    #[test]
    fn what_is_being_used_stays_though_it_is_too_large() {
        let there = [template(1, Duration::ZERO, 500), template(2, DAY, 50)];
        assert_eq!(gone(&there), [key(2)]);
        let mut tomorrow = template(1, Duration::ZERO, 500);
        tomorrow.used = now() + DAY;
        assert_eq!(gone(&[tomorrow]), []);
    }
}
