//! A budget that fills up with time, for what a guest may cause on its host.

use std::time::Duration;

/// A token bucket: `burst` at once, one more every `every`.
#[derive(Debug, Clone)]
pub struct Rate {
    burst: u32,
    every: Duration,
    left: u32,
    counted_at: Duration,
}

impl Rate {
    /// A full bucket.
    #[must_use]
    pub fn new(burst: u32, every: Duration) -> Self {
        Self {
            burst,
            every,
            left: burst,
            counted_at: Duration::ZERO,
        }
    }

    /// Takes one if there is one.
    pub fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }

    /// How long until there is one; nothing if there is one now.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.fill(now);
        if self.left > 0 {
            return Duration::ZERO;
        }
        (self.counted_at + self.every).saturating_sub(now)
    }

    fn fill(&mut self, now: Duration) {
        let every = self.every.as_nanos().max(1);
        let earned = now.saturating_sub(self.counted_at).as_nanos() / every;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.burst);
            self.counted_at = if self.left == self.burst {
                now
            } else {
                self.counted_at + self.every.saturating_mul(earned)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut rate = Rate::new(3, Duration::from_secs(1));
        let at = |tenths| Duration::from_millis(100_000 + tenths * 100u64);
        assert_eq!((0..5).filter(|_| rate.take(at(0))).count(), 3);
        assert_eq!(rate.wait(at(0)), Duration::from_secs(1));
        assert!(!rate.take(at(9)));
        assert!(rate.take(at(10)));
        assert!(!rate.take(at(10)));
    }

    proptest! {
        #[test]
        fn no_more_than_burst_and_rate_ever_pass(
            gaps in prop::collection::vec(0u64..3000, 1..200),
            burst in 1u32..20,
        ) {
            let mut rate = Rate::new(burst, Duration::from_secs(1));
            let (mut now, mut passed) = (Duration::ZERO, 0u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                passed += u64::from(rate.take(now));
                prop_assert!(passed <= u64::from(burst) + now.as_secs());
            }
        }
    }
}
