//! One probe's schedule and verdict: when to check next, and what the results
//! so far amount to. Pure: it is told the time and makes no check itself.
//!
//! ```text
//!            success_threshold in a row
//!  Unknown ─────────────────────────────▶ Passing
//!     │                                    │  ▲
//!     │ failure_threshold                  ▼  │ success_threshold
//!     └───────────────────────────────▶ Failing
//! ```

use std::time::Duration;

use super::policy::Moment;
use crate::model::{Check, ProbeSpec};

/// Interval after which a role that has just started is checked. It should not wait a whole
/// period for being found ready.
const FIRST: Duration = Duration::from_millis(100);
/// The same where a check starts a process, which is dear.
const FIRST_EXEC: Duration = Duration::from_millis(500);
/// Longest interval between checks while the role starts.
const EAGER: Duration = Duration::from_millis(500);
/// Shortest interval after which a role that has said something while it starts is checked
/// again. The longest is that after which one is that has just started.
const SOON: Duration = Duration::from_millis(20);

/// So many times as long as a check took is the next one put off while the role starts, up to
/// [`EAGER`]: where checks are slow, they take their time from the role.
const APART: u32 = 5;
/// The same where the role has said something.
const SOON_APART: u32 = 2;

/// What a probe's results amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Neither threshold has been reached yet.
    Unknown,
    /// It succeeds.
    Passing,
    /// It fails.
    Failing,
}

/// One probe of one process.
#[derive(Debug, Clone)]
pub struct Gauge {
    spec: ProbeSpec,
    verdict: Verdict,
    /// Results in a row that are alike: successes or failures.
    streak: (bool, u32),
    /// Interval to the next check while the role starts.
    eager: Duration,
    /// Start of the last check.
    last: Moment,
    /// How long the last check took.
    took: Duration,
    /// Start of the next check; `None` while one is under way.
    next: Option<Moment>,
    /// Whether the role has shown a sign of life since the last check began.
    hurried: bool,
    /// Why the last check failed.
    error: String,
}

impl Gauge {
    /// A probe of a process that started at `started`.
    pub fn new(spec: ProbeSpec, started: Moment) -> Self {
        let first = shortest(&spec);
        Self {
            spec,
            verdict: Verdict::Unknown,
            streak: (true, 0),
            eager: first.saturating_mul(2),
            last: started,
            took: Duration::ZERO,
            next: Some(started.saturating_add(first)),
            hurried: false,
            error: String::new(),
        }
    }

    /// A probe of a process that is first checked now.
    pub fn at_once(spec: ProbeSpec, now: Moment) -> Self {
        Self {
            next: Some(now),
            ..Self::new(spec, now)
        }
    }

    /// A probe of a process that runs already, of which this much is known.
    pub fn resume(spec: ProbeSpec, now: Moment, verdict: Verdict) -> Self {
        Self {
            verdict,
            ..Self::new(spec, now)
        }
    }

    /// What it was made from.
    pub fn spec(&self) -> &ProbeSpec {
        &self.spec
    }

    /// What the results amount to.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// How it fails, in one line.
    pub fn failure(&self) -> String {
        let times = self.streak.1;
        format!(
            "failed {times} time{} in a row: {}",
            if times == 1 { "" } else { "s" },
            self.error
        )
    }

    /// The role has shown a sign of life: while it starts, it is checked at once, unless that
    /// was done a moment ago; and then as if it had started just now.
    pub fn hurry(&mut self, now: Moment) {
        if self.verdict != Verdict::Unknown {
            return;
        }
        self.eager = shortest(&self.spec);
        self.hurried = true;
        let soon = self.last.saturating_add(self.soon()).max(now);
        self.next = self.next.map(|next| next.min(soon));
    }

    /// The interval between two checks when the role has shown a sign of life.
    fn soon(&self) -> Duration {
        let apart = self.took.saturating_mul(SOON_APART).max(SOON);
        apart.min(shortest(&self.spec))
    }

    /// Something else is more urgent just now.
    pub fn put_off(&mut self, now: Moment) {
        let later = now.saturating_add(shortest(&self.spec));
        self.next = self.next.map(|next| next.max(later));
    }

    /// When the next check is due; `None` while one is under way.
    pub fn deadline(&self) -> Option<Moment> {
        self.next
    }

    /// Whether to start a check now; if so, it is taken to have started.
    pub fn begin(&mut self, now: Moment) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.last = now;
            self.next = None;
            self.hurried = false;
        }
        due
    }

    /// Takes the result of the check that is under way. `starting` is true within
    /// the role's start-up grace, where failures do not count.
    pub fn record(&mut self, outcome: Result<(), String>, now: Moment, starting: bool) {
        if self.next.is_some() {
            return;
        }
        let success = outcome.is_ok();
        if let Err(error) = outcome {
            self.error = error;
        }
        if success || !starting {
            self.streak = match self.streak {
                (alike, count) if alike == success => (alike, count.saturating_add(1)),
                _ => (success, 1),
            };
        } else {
            self.streak = (false, 0);
        }
        match self.streak {
            (true, count) if count >= self.spec.success_threshold => {
                self.verdict = Verdict::Passing;
            }
            (false, count) if count >= self.spec.failure_threshold => {
                self.verdict = Verdict::Failing;
            }
            _ => {}
        }
        self.took = now.saturating_sub(self.last);
        let interval = self.interval(starting);
        self.next = Some(self.last.saturating_add(interval).max(now));
    }

    fn interval(&mut self, starting: bool) -> Duration {
        if !starting || self.verdict != Verdict::Unknown {
            return self.spec.period;
        }
        if self.hurried {
            // What was checked may have been what it was before.
            return self.soon();
        }
        let interval = self.eager.max(self.took.saturating_mul(APART));
        let interval = interval.min(EAGER).min(self.spec.period);
        self.eager = interval.saturating_mul(2);
        interval
    }
}

/// The shortest interval between two checks of a role that starts.
fn shortest(spec: &ProbeSpec) -> Duration {
    let first = match spec.check {
        Check::Exec(_) => FIRST_EXEC,
        Check::Tcp(_) | Check::Http { .. } => FIRST,
    };
    first.min(spec.period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn gauge(failure_threshold: u32, success_threshold: u32) -> Gauge {
        let spec = ProbeSpec {
            check: Check::Tcp(80),
            period: 2 * SECOND,
            timeout: SECOND,
            failure_threshold,
            success_threshold,
        };
        Gauge::new(spec, Moment::ZERO)
    }

    fn check(gauge: &mut Gauge, success: bool, starting: bool) -> Verdict {
        let now = gauge.deadline().unwrap();
        assert!(gauge.begin(now));
        let outcome = if success {
            Ok(())
        } else {
            Err("refused".to_owned())
        };
        gauge.record(outcome, now, starting);
        gauge.verdict()
    }

    #[test]
    fn thresholds_are_counted_in_a_row() {
        let mut gauge = gauge(3, 2);
        assert_eq!(check(&mut gauge, true, false), Verdict::Unknown);
        assert_eq!(check(&mut gauge, true, false), Verdict::Passing);
        for success in [false, false, true, false, false] {
            assert_eq!(check(&mut gauge, success, false), Verdict::Passing);
        }
        assert_eq!(check(&mut gauge, false, false), Verdict::Failing);
        assert_eq!(gauge.failure(), "failed 3 times in a row: refused");
        assert_eq!(check(&mut gauge, true, false), Verdict::Failing);
        assert_eq!(check(&mut gauge, true, false), Verdict::Passing);
    }

    #[test]
    fn a_sign_of_life_during_a_slow_check_is_not_lost() {
        let mut gauge = gauge(3, 1);
        let begun = gauge.deadline().unwrap();
        assert!(gauge.begin(begun));
        gauge.hurry(begun + SECOND / 10);
        let failed = begun + SECOND / 4;
        gauge.record(Err("refused".to_owned()), failed, true);
        assert_eq!(gauge.deadline(), Some(failed), "at once");
    }

    #[test]
    fn failures_within_the_grace_do_not_count() {
        let mut gauge = gauge(1, 1);
        for _ in 0..10 {
            assert_eq!(check(&mut gauge, false, true), Verdict::Unknown);
        }
        assert_eq!(check(&mut gauge, false, false), Verdict::Failing);
    }

    #[test]
    fn a_starting_role_is_checked_eagerly_and_a_started_one_once_a_period() {
        let mut gauge = gauge(1, 1);
        let mut intervals = vec![];
        for _ in 0..5 {
            let before = gauge.deadline().unwrap();
            check(&mut gauge, false, true);
            intervals.push((gauge.deadline().unwrap() - before).as_millis());
        }
        assert_eq!(intervals, [200, 400, 500, 500, 500]);
        let before = gauge.deadline().unwrap();
        check(&mut gauge, true, true);
        assert_eq!(gauge.deadline().unwrap() - before, 2 * SECOND);
    }

    #[test]
    fn checks_that_are_slow_come_apart_while_the_role_starts() {
        let ms = Duration::from_millis;
        let mut gauge = gauge(1, 1);
        let mut fail = |begun, took| {
            assert!(gauge.begin(begun));
            gauge.record(Err("refused".into()), begun + took, true);
            gauge.deadline()
        };
        assert_eq!(fail(ms(100), ms(60)), Some(ms(400)));
        assert_eq!(fail(ms(400), ms(200)), Some(ms(900)));
        assert_eq!(fail(ms(900), ms(800)), Some(ms(1_700)));
    }

    #[test]
    fn a_role_that_shows_a_sign_of_life_is_checked_at_once_but_not_all_the_time() {
        let ms = Duration::from_millis;
        let mut gauge = gauge(1, 1);
        for _ in 0..3 {
            check(&mut gauge, false, true);
        }
        assert_eq!(gauge.deadline(), Some(ms(1_200)));
        gauge.hurry(ms(705));
        assert_eq!(gauge.deadline(), Some(ms(720)));
        gauge.hurry(ms(750));
        assert_eq!(gauge.deadline(), Some(ms(720)), "it is due already");
        assert!(gauge.begin(ms(750)));
        gauge.hurry(ms(760));
        assert_eq!(gauge.deadline(), None, "one is under way");
        gauge.record(Err("refused".into()), ms(780), true);
        assert_eq!(gauge.deadline(), Some(ms(810)), "as slow as it is");
        check(&mut gauge, true, true);
        gauge.hurry(ms(1_000));
        assert_eq!(gauge.deadline(), Some(ms(2_810)), "it has started");
    }

    #[test]
    fn a_check_that_outlasts_its_period_is_followed_at_once_and_never_doubled() {
        let mut gauge = gauge(1, 1);
        assert!(gauge.begin(SECOND));
        assert!(!gauge.begin(9 * SECOND), "one is under way");
        gauge.record(Ok(()), 9 * SECOND, false);
        assert_eq!(gauge.deadline(), Some(9 * SECOND));
        gauge.record(Err("late".into()), 9 * SECOND, false);
        assert_eq!(
            gauge.verdict(),
            Verdict::Passing,
            "a result without a check is ignored"
        );
    }
}
