//! Whether a node stays where it is: one that comes and goes is given nothing new.
//!
//! What routers do about routes that flap (RFC 2439), with the figures that are usual
//! there. Each time a node is lost, or comes anew though nothing was wrong with the
//! controller, it gets points, which halve with time. With many it is *held*; it is let
//! go when few are left, the later the more often it went, and within an hour at the most.
//!
//! ```text
//!  points   ╱│╲
//!  2000 ──╱│─────╲────────────── held from here
//!       ╱│          ╲
//!   750 ───────────────╲──────── until here
//!      lost × 3           ╲___
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{decay::Points, time::WallTime};

/// In which time points halve.
const HALF_LIFE: Duration = Duration::from_secs(15 * 60);
/// For being lost.
const LOST: u32 = 1000;
/// For a new session out of nothing, as when its host agent was started again.
const RECONNECTED: u32 = 200;
/// With so many it is held: at the third loss within half an hour or so.
const HOLD: u32 = 2000;
/// With fewer it is let go.
const RELEASE: u32 = 750;
/// No more than that, which is an hour from [`RELEASE`].
const MOST: u32 = RELEASE << 4;

/// See the [module](self).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steadiness {
    points: Points,
    /// Whether nothing new is placed on it.
    pub held: bool,
}

impl Steadiness {
    /// The node was lost.
    #[must_use]
    pub fn lost(self, now: WallTime) -> Self {
        self.plus(LOST, now)
    }

    /// The node has come anew without having been lost.
    #[must_use]
    pub fn reconnected(self, now: WallTime) -> Self {
        self.plus(RECONNECTED, now)
    }

    fn plus(self, points: u32, now: WallTime) -> Self {
        Self {
            points: self.points.plus(points, MOST, HALF_LIFE, now),
            ..self
        }
    }

    /// How unsteady it is now.
    #[must_use]
    pub fn points(&self, now: WallTime) -> u32 {
        self.points.left(HALF_LIFE, now)
    }

    /// Until when it is held, if nothing more happens.
    #[must_use]
    pub fn held_until(&self) -> Option<WallTime> {
        self.held.then(|| self.points.below(RELEASE, HALF_LIFE))
    }

    /// Whether it should be held, whatever becomes of others.
    #[must_use]
    pub fn is_due(&self, now: WallTime) -> bool {
        let enough = if self.held { RELEASE } else { HOLD };
        self.points(now) >= enough
    }

    /// The same, without what a clock that was ahead has noted of the future.
    #[must_use]
    pub fn by(self, now: WallTime) -> Self {
        Self {
            points: self.points.by(now),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> WallTime {
        WallTime::EPOCH.after(Duration::from_secs(seconds))
    }

    fn lost(times: &[u64]) -> Steadiness {
        let all = times.iter();
        all.fold(Steadiness::default(), |node, time| node.lost(at(*time)))
    }

    #[test]
    fn the_third_loss_in_a_while_is_one_too_many() {
        assert!(!lost(&[0, 60]).is_due(at(60)));
        assert!(lost(&[0, 60, 120]).is_due(at(120)));
        assert!(!lost(&[0, 3600, 7200]).is_due(at(7200)));
    }

    #[test]
    fn a_host_agent_may_be_started_again_now_and_then() {
        let again = |times: u64| {
            let all = 0..times;
            all.fold(Steadiness::default(), |node, time| {
                node.reconnected(at(time))
            })
        };
        assert!(!again(5).is_due(at(5)));
        assert!(again(12).is_due(at(12)));
    }

    #[test]
    fn the_more_often_it_went_the_longer_it_is_held_and_within_an_hour_it_is_let_go() {
        let held = |times: u64| {
            let times: Vec<_> = (0..times).collect();
            let last = times.len() as u64 - 1;
            let node = Steadiness {
                held: true,
                ..lost(&times)
            };
            let until = node.held_until().unwrap();
            assert!(node.is_due(WallTime::from_micros(until.as_micros() - 1)));
            assert!(!node.is_due(until));
            until.since(at(last)).as_secs() / 60
        };
        assert_eq!([3, 6, 12, 100].map(held), [29, 44, 59, 60]);
    }

    proptest! {
        #[test]
        fn whatever_happened_an_hour_later_it_is_let_go(
            times in proptest::collection::vec((0_u64..100_000, any::<bool>()), 1..50),
        ) {
            let mut times = times;
            times.sort_unstable();
            let node = times.iter().fold(Steadiness::default(), |node, (time, is_loss)| {
                if *is_loss { node.lost(at(*time)) } else { node.reconnected(at(*time)) }
            });
            let last = times.last().map_or(0, |(time, _)| *time);
            let held = Steadiness { held: true, ..node };
            prop_assert!(!held.is_due(at(last + 3601)));
        }
    }
}
