//! The first steps of the escalation ladder: what to do about a virtual machine
//! that failed.
//!
//! ```text
//!  failure ──► restart ──► restart ──► fresh disk ──► restart ──► restart ──► give up
//!              at once     wait 1 s    wait 2 s       wait 4 s    …           try again after
//!                                                                             a long wait
//!     ▲            │           │            │             │
//!     └────────────┴─── the role becomes Ready: all is forgotten ◄──────────────┘
//! ```
//!
//! The step below, restarting the role, is the guest agent's; the step above,
//! another node, is the controller's. A guest that reboots or powers off by
//! itself is started again without blame: it does not climb the ladder, but one
//! that does so all the time is made to wait.
//!
//! Pure: times are distances from an origin of the caller's choosing, which never
//! go back.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// How far each step goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderLimits {
    /// Failures within `window`, without the role having been ready in between,
    /// at which a disk is not trusted any longer.
    pub failures_per_disk: u32,
    /// Failures older than this do not count.
    pub window: Duration,
    /// Fresh disks without the role having been ready in between.
    pub reimages: u32,
    /// The second wait in a row (the first is none at all); doubles from there.
    pub wait_initial: Duration,
    /// A wait grows no further.
    pub wait_max: Duration,
    /// What is tried because its cause may pass waits no longer than this.
    pub prepare_max: Duration,
    /// Endings within `window` that are free of waiting as long as the role
    /// became ready after each.
    pub endings_without_wait: u32,
    /// Wait before a machine that was given up is tried once more; doubles.
    pub retry_initial: Duration,
    /// That wait grows no further.
    pub retry_max: Duration,
}

impl Default for LadderLimits {
    fn default() -> Self {
        Self {
            failures_per_disk: 3,
            window: Duration::from_secs(600),
            reimages: 1,
            wait_initial: Duration::from_secs(1),
            wait_max: Duration::from_secs(60),
            prepare_max: Duration::from_secs(10),
            endings_without_wait: 6,
            retry_initial: Duration::from_secs(600),
            retry_max: Duration::from_secs(3600),
        }
    }
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again on its disk.
    Restart {
        /// After this long.
        wait: Duration,
    },
    /// Start it again on a fresh disk.
    Reimage {
        /// After this long.
        wait: Duration,
    },
    /// Leave it, and say so.
    GiveUp {
        /// Try once more after this long.
        retry: Duration,
    },
}

/// What the ladder remembers of one virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// Failures on this disk since the role was last ready.
    on_this_disk: VecDeque<Duration>,
    /// Endings of every kind.
    endings: VecDeque<Duration>,
    /// Failures since the role was last ready.
    in_a_row: u32,
    /// Fresh disks since the role was last ready.
    reimages: u32,
    /// Times given up since the role was last ready.
    given_up: u32,
}

impl Ladder {
    /// The virtual machine failed.
    pub fn failed(&mut self, now: Duration, limits: &LadderLimits) -> Decision {
        self.note_ending(now, limits);
        forget_before(&mut self.on_this_disk, now, limits.window);
        self.on_this_disk.push_back(now);
        let wait = self.wait(limits);
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.given_up > 0 {
            return self.give_up(limits);
        }
        if count(&self.on_this_disk) < limits.failures_per_disk.max(1) {
            return Decision::Restart { wait };
        }
        self.on_this_disk.clear();
        if self.reimages < limits.reimages {
            self.reimages += 1;
            return Decision::Reimage { wait };
        }
        self.give_up(limits)
    }

    /// It ended by its own will; returns the wait before it is started again.
    pub fn ended_without_blame(&mut self, now: Duration, limits: &LadderLimits) -> Duration {
        self.note_ending(now, limits);
        backoff(
            self.endings_over(limits),
            limits.wait_initial,
            limits.wait_max,
        )
    }

    /// It cannot even be made ready to start. What may pass is tried again with
    /// growing waits and for ever; what cannot is given up.
    pub fn cannot_prepare(&mut self, may_pass: bool, limits: &LadderLimits) -> Decision {
        if !may_pass {
            return self.give_up(limits);
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        Decision::Restart {
            wait: backoff(
                self.in_a_row,
                limits.wait_initial,
                limits.prepare_max.min(limits.wait_max),
            ),
        }
    }

    /// The role has become ready: the machine is well, and what was is forgiven.
    pub fn ready(&mut self) {
        self.on_this_disk.clear();
        self.in_a_row = 0;
        self.reimages = 0;
        self.given_up = 0;
    }

    /// An operator asked for a restart, or the times of before mean nothing any
    /// longer: everything is forgotten.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn give_up(&mut self, limits: &LadderLimits) -> Decision {
        self.given_up = self.given_up.saturating_add(1);
        Decision::GiveUp {
            retry: backoff(self.given_up, limits.retry_initial, limits.retry_max),
        }
    }

    fn note_ending(&mut self, now: Duration, limits: &LadderLimits) {
        forget_before(&mut self.endings, now, limits.window);
        self.endings.push_back(now);
        // What is kept is bounded; far beyond it the wait is at its maximum.
        if self.endings.len() > 64 {
            self.endings.pop_front();
        }
    }

    /// The first of a row is free; one that is ready each time and yet ends
    /// again and again is not.
    fn wait(&self, limits: &LadderLimits) -> Duration {
        let steps = self.in_a_row.max(self.endings_over(limits));
        backoff(steps, limits.wait_initial, limits.wait_max)
    }

    fn endings_over(&self, limits: &LadderLimits) -> u32 {
        count(&self.endings).saturating_sub(limits.endings_without_wait)
    }
}

/// No wait for none, then `initial`, doubled with every step up to `max`.
#[must_use]
pub fn backoff(steps: u32, initial: Duration, max: Duration) -> Duration {
    let Some(doublings) = steps.checked_sub(1) else {
        return Duration::ZERO;
    };
    2u32.checked_pow(doublings)
        .map_or(max, |factor| initial.saturating_mul(factor).min(max))
}

fn forget_before(times: &mut VecDeque<Duration>, now: Duration, window: Duration) {
    while times.front().is_some_and(|time| *time + window < now) {
        times.pop_front();
    }
}

fn count(times: &VecDeque<Duration>) -> u32 {
    u32::try_from(times.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_recovery_is_immediate_and_the_next_ones_wait() {
        let limits = LadderLimits::default();
        let mut ladder = Ladder::default();
        assert_eq!(
            ladder.failed(seconds(10), &limits),
            Decision::Restart { wait: seconds(0) }
        );
        assert_eq!(
            ladder.failed(seconds(20), &limits),
            Decision::Restart { wait: seconds(1) }
        );
        assert_eq!(
            ladder.failed(seconds(30), &limits),
            Decision::Reimage { wait: seconds(2) }
        );
        assert_eq!(
            ladder.failed(seconds(40), &limits),
            Decision::Restart { wait: seconds(4) }
        );
        assert_eq!(
            ladder.failed(seconds(50), &limits),
            Decision::Restart { wait: seconds(8) }
        );
        assert_eq!(
            ladder.failed(seconds(60), &limits),
            Decision::GiveUp {
                retry: seconds(600)
            }
        );
        assert_eq!(
            ladder.failed(seconds(700), &limits),
            Decision::GiveUp {
                retry: seconds(1200)
            }
        );
    }

    #[test]
    fn once_ready_the_next_recovery_is_immediate_again() {
        let limits = LadderLimits::default();
        let mut ladder = Ladder::default();
        for failure in 0..6 {
            let decision = ladder.failed(seconds(failure * 20), &limits);
            assert_eq!(
                decision,
                Decision::Restart {
                    wait: Duration::ZERO
                },
                "failure {failure}"
            );
            ladder.ready();
        }
    }

    #[test]
    fn one_that_is_ready_each_time_and_ends_all_the_time_waits_longer_and_longer() {
        let limits = LadderLimits::default();
        let mut ladder = Ladder::default();
        let waits: Vec<_> = (0..9)
            .map(|ending| {
                ladder.ready();
                ladder
                    .ended_without_blame(seconds(ending), &limits)
                    .as_secs()
            })
            .collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 1, 2, 4]);
    }

    #[test]
    fn failures_far_apart_never_cost_the_disk() {
        let limits = LadderLimits::default();
        let mut ladder = Ladder::default();
        for failure in 0..20 {
            let decision = ladder.failed(seconds(failure * 601), &limits);
            assert!(
                matches!(decision, Decision::Restart { .. }),
                "{failure}: {decision:?}"
            );
        }
    }

    #[test]
    fn a_cause_that_may_pass_is_never_given_up() {
        let limits = LadderLimits::default();
        let mut ladder = Ladder::default();
        for _ in 0..100 {
            let Decision::Restart { wait } = ladder.cannot_prepare(true, &limits) else {
                panic!("given up");
            };
            assert!(wait >= limits.wait_initial && wait <= limits.wait_max);
        }
        assert!(matches!(
            ladder.cannot_prepare(false, &limits),
            Decision::GiveUp { .. }
        ));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Failed(u64),
        Ended(u64),
        CannotPrepare(bool),
        Ready,
        Reset,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                4 => (0u64..900).prop_map(Step::Failed),
                2 => (0u64..900).prop_map(Step::Ended),
                1 => any::<bool>().prop_map(Step::CannotPrepare),
                2 => Just(Step::Ready),
                1 => Just(Step::Reset),
            ],
            0..200,
        )
    }

    fn any_limits() -> impl Strategy<Value = LadderLimits> {
        (0u32..5, 0u64..900, 0u32..4, 0u64..5, 0u64..120, 0u32..10).prop_map(
            |(failures_per_disk, window, reimages, initial, max, free)| LadderLimits {
                failures_per_disk,
                window: seconds(window),
                reimages,
                wait_initial: seconds(initial),
                wait_max: seconds(max),
                endings_without_wait: free,
                ..LadderLimits::default()
            },
        )
    }

    proptest! {
        /// No more fresh disks than the budget without the role being ready in
        /// between, no wait beyond the maximum, and memory stays bounded.
        #[test]
        fn budgets_hold_whatever_happens(steps in steps(), limits in any_limits()) {
            let mut ladder = Ladder::default();
            let (mut now, mut reimages) = (Duration::ZERO, 0);
            for step in steps {
                let decision = match step {
                    Step::Failed(later) => {
                        now += seconds(later);
                        Some(ladder.failed(now, &limits))
                    }
                    Step::Ended(later) => {
                        now += seconds(later);
                        prop_assert!(ladder.ended_without_blame(now, &limits) <= limits.wait_max);
                        None
                    }
                    Step::CannotPrepare(may_pass) => Some(ladder.cannot_prepare(may_pass, &limits)),
                    Step::Ready => {
                        ladder.ready();
                        reimages = 0;
                        None
                    }
                    Step::Reset => {
                        ladder.reset();
                        reimages = 0;
                        None
                    }
                };
                match decision {
                    Some(Decision::Restart { wait }) => prop_assert!(wait <= limits.wait_max),
                    Some(Decision::Reimage { wait }) => {
                        prop_assert!(wait <= limits.wait_max);
                        reimages += 1;
                        prop_assert!(reimages <= limits.reimages);
                    }
                    Some(Decision::GiveUp { retry }) => {
                        prop_assert!(retry >= limits.retry_initial && retry <= limits.retry_max);
                    }
                    None => {}
                }
                prop_assert!(ladder.endings.len() <= 64);
            }
        }

        /// A machine that never becomes ready is given up after a known number of tries.
        #[test]
        fn a_crash_loop_ends(limits in any_limits()) {
            let mut ladder = Ladder::default();
            let tries = limits.failures_per_disk.max(1) * (limits.reimages + 1);
            for attempt in 1..=tries {
                let decision = ladder.failed(Duration::ZERO, &limits);
                prop_assert_eq!(matches!(decision, Decision::GiveUp { .. }), attempt == tries);
            }
        }

        /// The wait never shrinks while nothing gets better.
        #[test]
        fn waits_only_grow(limits in any_limits()) {
            let mut ladder = Ladder::default();
            let mut last = Duration::ZERO;
            for _ in 0..50 {
                match ladder.failed(Duration::ZERO, &limits) {
                    Decision::Restart { wait } | Decision::Reimage { wait } => {
                        prop_assert!(wait >= last.min(limits.wait_max));
                        last = wait;
                    }
                    Decision::GiveUp { .. } => break,
                }
            }
        }
    }
}
