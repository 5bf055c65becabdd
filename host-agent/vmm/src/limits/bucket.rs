//! A token bucket, as arithmetic on times that are given to it.
//!
//! Instead of a level that has to be topped up it keeps the moment at which it will
//! be full again. What is taken moves that moment on; the bucket is empty while it
//! is further away than the bucket takes to fill.

use std::time::{Duration, Instant};

use super::Rate;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// No debt takes longer to pay: more than any rate's largest request, and far from
/// where times overflow.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What may be taken, on the average and at once.
///
/// Whoever finds anything in it may take as much as they need at one time, and owes
/// the rest: so nothing need be known of a request before it is carried out, and
/// none is too large. In any time `t` at most `burst + per_second * t` is taken,
/// and the last one's request beyond it.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: Rate,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> TokenBucket {
        TokenBucket { rate, full_at: now }
    }

    /// Whether there is anything in it.
    ///
    /// # Errors
    ///
    /// When there will be.
    pub fn ready(&self, now: Instant) -> Result<(), Instant> {
        let to_fill = time_for(self.rate.burst, self.rate.per_second);
        let missing = self.full_at.saturating_duration_since(now);
        match missing.checked_sub(to_fill) {
            None => Ok(()),
            Some(debt) => Err(now + debt + Duration::from_nanos(1)),
        }
    }

    /// Takes so much out of it.
    pub fn take(&mut self, amount: u64, now: Instant) {
        let missing = self.full_at.saturating_duration_since(now);
        let more = time_for(amount, self.rate.per_second);
        self.full_at = now + missing.saturating_add(more).min(FOREVER);
    }

    /// Makes it another bucket, in which as much is missing.
    pub fn change(&mut self, rate: Rate, now: Instant) {
        let missing = self.full_at.saturating_duration_since(now);
        let tokens = missing.as_nanos() * u128::from(self.rate.per_second) / NANOS_PER_SECOND;
        self.rate = rate;
        self.full_at = now;
        self.take(u64::try_from(tokens).unwrap_or(u64::MAX), now);
    }
}

/// How long so many come in, rounded up.
fn time_for(amount: u64, per_second: u64) -> Duration {
    let nanos = u128::from(amount) * NANOS_PER_SECOND;
    let nanos = nanos.div_ceil(u128::from(per_second.max(1)));
    u64::try_from(nanos).map_or(FOREVER, |nanos| Duration::from_nanos(nanos).min(FOREVER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_rate() -> impl Strategy<Value = Rate> {
        (1_u64..10_000_000, 1_u64..10_000_000)
            .prop_map(|(per_second, burst)| Rate { per_second, burst })
    }

    proptest! {
        /// Whoever takes whenever they may gets no more than was promised, in any
        /// stretch of time.
        #[test]
        fn no_time_gives_more_than_burst_and_rate(
            rate in any_rate(),
            steps in prop::collection::vec((0_u64..2_000_000, 0_u64..500_000_000), 1..100),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(rate, start);
            let mut now = start;
            let mut taken: Vec<(Instant, u64)> = Vec::new();
            for (amount, wait) in steps {
                if bucket.ready(now).is_ok() {
                    bucket.take(amount, now);
                    taken.push((now, amount));
                }
                now += Duration::from_nanos(wait);
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0_u128;
                for (at, amount) in &taken[first..] {
                    let nanos = (*at - *from).as_nanos();
                    let allowed = u128::from(rate.burst)
                        + nanos * u128::from(rate.per_second) / NANOS_PER_SECOND;
                    prop_assert!(sum <= allowed, "{sum} before {at:?}, {allowed} allowed");
                    sum += u128::from(*amount);
                }
            }
        }

        /// Whoever waits as long as told finds it ready, and a moment sooner not.
        #[test]
        fn the_time_it_names_is_right(
            rate in any_rate(), amounts in prop::collection::vec(0_u64..50_000_000, 1..20),
        ) {
            let mut now = Instant::now();
            let mut bucket = TokenBucket::new(rate, now);
            for amount in amounts {
                if let Err(until) = bucket.ready(now) {
                    prop_assert!(until > now);
                    prop_assert!(bucket.ready(until - Duration::from_nanos(1)).is_err());
                    prop_assert!(bucket.ready(until).is_ok());
                    now = until;
                }
                bucket.take(amount, now);
            }
        }

        /// Over a long time whoever takes whenever they may gets the whole rate.
        #[test]
        fn nothing_that_was_promised_is_withheld(
            rate in any_rate(), amount in 1_u64..100_000,
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(rate, now);
            let mut sum = 0_u128;
            for _ in 0..1000 {
                bucket.take(amount, now);
                sum += u128::from(amount);
                now = bucket.ready(now).err().unwrap_or(now);
            }
            let nanos = (now - start).as_nanos();
            let most = u128::from(rate.burst) + nanos * u128::from(rate.per_second) / NANOS_PER_SECOND;
            // A nanosecond a time is lost by rounding up.
            let lost = 1000 * (u128::from(rate.per_second) / NANOS_PER_SECOND + 1);
            prop_assert!(now == start || sum + lost + 1 >= most, "{sum} of {most}");
        }

        /// A change neither forgives nor charges anything, as far as the new bucket
        /// is deep enough to tell.
        #[test]
        fn a_change_keeps_what_is_missing(
            first in any_rate(), second in any_rate(), amount in 0_u64..50_000_000,
        ) {
            let now = Instant::now();
            let mut changed = TokenBucket::new(first, now);
            changed.take(amount, now);
            changed.change(second, now);
            let mut fresh = TokenBucket::new(second, now);
            fresh.take(amount, now);
            let tolerance = time_for(2, second.per_second) + time_for(1, first.per_second);
            let apart = changed.full_at.max(fresh.full_at) - changed.full_at.min(fresh.full_at);
            prop_assert!(apart <= tolerance, "{apart:?}");
        }

        /// No numbers overflow.
        #[test]
        fn any_numbers_will_do(
            per_second in 1_u64.., burst in 1_u64.., other in 1_u64.., amount: u64,
        ) {
            let now = Instant::now();
            let mut bucket = TokenBucket::new(Rate { per_second, burst }, now);
            bucket.take(amount, now);
            bucket.take(amount, now);
            let _ = bucket.ready(now);
            bucket.change(Rate { per_second: other, burst: per_second }, now);
            let _ = bucket.ready(now);
        }
    }
}
