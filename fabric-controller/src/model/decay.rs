//! Points that halve with time: what happened lately counts, what happened long ago
//! does not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::WallTime;

/// So many points at some time. They become fewer in a straight line within a
/// half-life, and are exactly halved at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Points {
    points: u32,
    at: WallTime,
}

impl Default for Points {
    fn default() -> Self {
        Self {
            points: 0,
            at: WallTime::EPOCH,
        }
    }
}

impl Points {
    /// How many are left. A clock that was set back finds what there was.
    #[must_use]
    pub fn left(self, half_life: Duration, now: WallTime) -> u32 {
        let half_life = micros(half_life).max(1);
        let age = now.as_micros().saturating_sub(self.at.as_micros());
        let halvings = u32::try_from(age / half_life).unwrap_or(u32::MAX);
        let rest = age % half_life;
        let within = u128::from(self.points) * u128::from(2 * half_life - rest);
        let within = u32::try_from(within / u128::from(2 * half_life)).unwrap_or(self.points);
        within.checked_shr(halvings).unwrap_or(0)
    }

    /// With so many more, and no more than `most` in all.
    #[must_use]
    pub fn plus(self, points: u32, most: u32, half_life: Duration, now: WallTime) -> Self {
        let points = self.left(half_life, now).saturating_add(points).min(most);
        Self { points, at: now }
    }

    /// The same, if they were noted by a clock that was ahead and has been set right
    /// since: nothing waits until that comes true.
    #[must_use]
    pub fn by(self, now: WallTime) -> Self {
        Self {
            at: self.at.min(now),
            ..self
        }
    }

    /// When fewer than `few` are left.
    #[must_use]
    pub fn below(self, few: u32, half_life: Duration) -> WallTime {
        if few == 0 {
            return WallTime::from_micros(u64::MAX);
        }
        // Halved so often they are fewer; the time before is looked through by halves.
        let halvings = u32::BITS - (self.points / few).leading_zeros();
        let (mut early, mut late) = (
            0,
            u64::from(halvings).saturating_mul(micros(half_life).max(1)),
        );
        while early < late {
            let middle = early.midpoint(late);
            let then = self.at.after(Duration::from_micros(middle));
            if self.left(half_life, then) < few {
                late = middle;
            } else {
                early = middle + 1;
            }
        }
        self.at.after(Duration::from_micros(early))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(900);

    fn points(points: u32) -> Points {
        Points::default().plus(points, u32::MAX, HALF_LIFE, WallTime::EPOCH)
    }

    fn at(seconds: u64) -> WallTime {
        WallTime::EPOCH.after(Duration::from_secs(seconds))
    }

    #[test]
    fn points_halve_and_are_gone_in_the_end() {
        let left = |seconds| points(1000).left(HALF_LIFE, at(seconds));
        assert_eq!(
            [0, 450, 900, 1800, 9000, 900 * 40].map(left),
            [1000, 750, 500, 250, 0, 0]
        );
        assert_eq!(points(1000).plus(9, 1005, HALF_LIFE, at(0)), points(1005));
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_what_there_was_and_no_longer() {
        let noted = Points::default().plus(1000, 1000, HALF_LIFE, at(90_000));
        assert_eq!(noted.left(HALF_LIFE, at(0)), 1000);
        assert_eq!(noted.by(at(0)).left(HALF_LIFE, at(900)), 500);
        assert_eq!(noted.by(at(100_000)), noted);
    }

    proptest! {
        #[test]
        fn points_only_become_fewer_and_below_says_when(
            start in 0_u32..1_000_000, few in 1_u32..10_000, seconds in 0_u64..100_000,
        ) {
            let all = points(start);
            prop_assert!(all.left(HALF_LIFE, at(seconds + 1)) <= all.left(HALF_LIFE, at(seconds)));
            let then = all.below(few, HALF_LIFE);
            prop_assert!(all.left(HALF_LIFE, then) < few);
            if then > WallTime::EPOCH {
                let just_before = WallTime::from_micros(then.as_micros() - 1);
                prop_assert!(all.left(HALF_LIFE, just_before) >= few);
            }
        }
    }
}
