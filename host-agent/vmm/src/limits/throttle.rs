//! What holds one stream of operations to its limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bucket::TokenBucket;
use super::{Rate, RateLimit};

/// A throttle that one thread obeys and another changes and reads.
#[derive(Clone, Debug, Default)]
pub struct SharedThrottle(Arc<Mutex<Throttle>>);

impl SharedThrottle {
    /// Takes hold of it, for no longer than a look.
    pub fn lock(&self) -> MutexGuard<'_, Throttle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes and operations, each with a bucket of its own if it is limited. It outlives
/// resets of its device: they give a guest nothing.
#[derive(Debug, Default)]
pub struct Throttle {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    /// Since when somebody waits.
    waits_since: Option<Instant>,
    waits: u64,
    waited: Duration,
}

/// How often operations have waited for their limits, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled {
    /// How often.
    pub waits: u64,
    /// How long, in milliseconds, in all.
    pub waited_ms: u64,
}

impl Throttle {
    /// Sets other limits. What has been taken before counts.
    pub fn change(&mut self, limit: &RateLimit, now: Instant) {
        change(&mut self.bytes, limit.bytes, now);
        change(&mut self.operations, limit.operations, now);
    }

    /// Whether an operation, which is there, may be carried out.
    ///
    /// # Errors
    ///
    /// When it may.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        let buckets = self.bytes.iter().chain(&self.operations);
        match buckets.filter_map(|bucket| bucket.ready(now).err()).max() {
            None => {
                if let Some(since) = self.waits_since.take() {
                    self.waited += now.saturating_duration_since(since);
                }
                Ok(())
            }
            Some(until) => {
                if self.waits_since.is_none() {
                    self.waits_since = Some(now);
                    self.waits += 1;
                }
                Err(until)
            }
        }
    }

    /// Counts an operation of so many bytes that is carried out.
    pub fn charge(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1, now);
        }
    }

    /// What has been waited for.
    pub fn throttled(&self) -> Throttled {
        Throttled {
            waits: self.waits,
            waited_ms: u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn change(bucket: &mut Option<TokenBucket>, rate: Option<Rate>, now: Instant) {
    *bucket = match (bucket.take(), rate) {
        (_, None) => None,
        (None, Some(rate)) => Some(TokenBucket::new(rate, now)),
        (Some(mut bucket), Some(rate)) => {
            bucket.change(rate, now);
            Some(bucket)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    fn throttle(limit: &RateLimit, now: Instant) -> Throttle {
        let mut throttle = Throttle::default();
        throttle.change(limit, now);
        throttle
    }

    #[test]
    fn without_limits_nothing_waits() {
        let now = Instant::now();
        let mut throttle = throttle(&RateLimit::default(), now);
        for _ in 0..1000 {
            throttle.charge(u64::MAX, now);
            assert_eq!(throttle.ready(now), Ok(()));
        }
        assert_eq!(throttle.throttled(), Throttled::default());
    }

    #[test]
    fn the_scarcer_of_bytes_and_operations_decides() {
        let now = Instant::now();
        let limit = RateLimit {
            bytes: rate(1000, 1000),
            operations: rate(10, 2),
        };
        let mut few_large = throttle(&limit, now);
        few_large.charge(3000, now);
        let until = few_large.ready(now).unwrap_err();
        assert_eq!((until - now).as_millis(), 2000);
        let mut many_small = throttle(&limit, now);
        many_small.charge(1, now);
        assert_eq!(many_small.ready(now), Ok(()));
        many_small.charge(1, now);
        many_small.charge(1, now);
        let until = many_small.ready(now).unwrap_err();
        assert_eq!((until - now).as_millis(), 100);
    }

    #[test]
    fn a_wait_is_counted_once_however_often_is_asked() {
        let now = Instant::now();
        let limit = RateLimit {
            operations: rate(10, 1),
            bytes: None,
        };
        let mut throttle = throttle(&limit, now);
        throttle.charge(0, now);
        throttle.charge(0, now);
        let until = throttle.ready(now).unwrap_err();
        for _ in 0..5 {
            assert_eq!(throttle.ready(now), Err(until));
        }
        assert_eq!(throttle.ready(until), Ok(()));
        assert_eq!(
            throttle.throttled(),
            Throttled {
                waits: 1,
                waited_ms: 100
            }
        );
    }

    #[test]
    fn limits_that_are_lifted_let_everybody_go_on() {
        let now = Instant::now();
        let limit = RateLimit {
            bytes: rate(1, 1),
            operations: None,
        };
        let mut throttle = throttle(&limit, now);
        throttle.charge(1000, now);
        assert!(throttle.ready(now).is_err());
        throttle.change(&RateLimit::default(), now);
        assert_eq!(throttle.ready(now), Ok(()));
    }
}
