//! What follows when time has passed.

use std::time::Duration;

use super::{Actions, Limits, Machine, tell_anew};
use crate::{
    events::Reason,
    instance::state::{Action, Cause, Start, State, Stopping, Then},
};

impl Machine {
    pub(super) fn on_tick(
        &mut self,
        now: Duration,
        starved: Duration,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let Some(deadline) = self.deadline(limits).filter(|deadline| *deadline <= now) else {
            return;
        };
        if starved > limits.starved && self.is_owed(starved) {
            return;
        }
        match self.state.clone() {
            State::Booting { launched, .. } => {
                let why = format!(
                    "the guest agent did not say hello within {}",
                    humantime::format_duration(deadline.saturating_sub(launched))
                );
                tell_anew(actions, Reason::HeartbeatsMissed, &why, true);
                let then = if self.begun_with.is_from_template() {
                    Then::Start(self.blames_template(&why, actions))
                } else {
                    Then::Recover {
                        cause: Cause::NotUp,
                        why: why.clone(),
                    }
                };
                self.put_down(now, &why, then, limits, actions);
            }
            State::Running { .. } if now > deadline + limits.heartbeat => {
                // It was this process that did not run: what the guest said in the
                // meantime is still on its way.
                let heard = now.saturating_sub(limits.silence()) + limits.heartbeat;
                self.state = State::Running { heard };
            }
            State::Running { .. } => {
                let why = format!("{} heartbeats missed", limits.heartbeats_missed);
                tell_anew(actions, Reason::HeartbeatsMissed, &why, true);
                let then = Then::Recover {
                    cause: Cause::Hung,
                    why: why.clone(),
                };
                self.put_down(now, &why, then, limits, actions);
            }
            State::Leaving { reboot, .. } => {
                // It was on its way out; no blame that it needs help.
                actions.push(Action::Kill);
                self.state = State::Stopping {
                    how: Stopping::Killing,
                    deadline: now + limits.order,
                    overdue: true,
                    then: Then::Ended { reboot },
                };
            }
            State::Stopping { how, then, .. } => {
                let how = match how {
                    Stopping::Asking => Stopping::Ordering,
                    Stopping::Ordering | Stopping::Killing => Stopping::Killing,
                };
                actions.push(match how {
                    Stopping::Asking | Stopping::Ordering => Action::OrderStop,
                    Stopping::Killing => Action::Kill,
                });
                self.state = State::Stopping {
                    how,
                    then,
                    deadline: now + limits.order,
                    overdue: true,
                };
            }
            State::Backoff { start, .. } => self.begin(start, actions),
            State::Failed { .. } => {
                self.begin(
                    Start {
                        fresh: true,
                        recovery: true,
                        ..Start::default()
                    },
                    actions,
                );
            }
            _ => {}
        }
    }

    /// Nothing is expected of a guest that has no goal; when it has one, it settles.
    pub(super) fn on_resting(&mut self, now: Duration, limits: &Limits) {
        if let State::Running { heard } = &mut self.state {
            *heard = now + limits.settle;
        }
    }

    /// Time in which a guest had no processor is not held against it.
    fn is_owed(&mut self, starved: Duration) -> bool {
        match &mut self.state {
            State::Booting { deadline, .. } => *deadline += starved,
            State::Running { heard } => *heard += starved,
            _ => return false,
        }
        true
    }

    /// Ends a machine that does not answer.
    pub(super) fn put_down(
        &mut self,
        now: Duration,
        why: &str,
        then: Then,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        actions.push(Action::Kill);
        why.clone_into(&mut self.why);
        self.state = State::Stopping {
            how: Stopping::Killing,
            deadline: now + limits.order,
            overdue: false,
            then,
        };
    }
}
