//! Towards the goal, from wherever the machine is.

use std::time::Duration;

use super::{Actions, Limits, Machine, tell_anew, tell_asked};
use crate::{
    events::Reason,
    instance::state::{
        Action, Cause, Launch, Presence, Scope, Start, State, StoppedBy, Stopping, Then, Wanted,
    },
};

/// Why nothing runs on a node without a lease.
const NO_LEASE: &str = "this node's lease has ended: the controller is not heard";
/// Why nothing runs that an operator has stopped.
pub(super) const STOPPED: &str = "an operator stopped it";

impl Machine {
    pub(super) fn on_goal(
        &mut self,
        now: Duration,
        wanted: Wanted,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let first = self.wanted.is_none();
        let presence = self.wants();
        let mut asked = None;
        // A restart of what is paused or stopped waits until it is to run.
        if first || !matches!(wanted.presence, Presence::Pause | Presence::Stop) {
            asked = (!first && wanted.restart_generation > self.restart_generation)
                .then_some(wanted.restart_scope);
            self.restart_generation = self.restart_generation.max(wanted.restart_generation);
        }
        let grace = wanted.stop_grace;
        let other_grace = (self.wanted.as_ref()).is_some_and(|before| before.stop_grace != grace);
        self.wanted = Some(wanted);
        if let State::Stopping {
            how: Stopping::Asking,
            deadline,
            ..
        } = &mut self.state
            && other_grace
        {
            *deadline = now + grace.saturating_add(limits.power_off);
        }
        if let Some(scope) = asked {
            self.ladder.reset();
            if scope != Scope::Role {
                self.end_restore("an operator asked for another restart".to_owned());
            }
            if scope == Scope::Restore {
                self.restoring = Some(self.restart_generation);
                self.begun_with = Launch::Boot;
            }
        }
        if presence != self.wants() {
            self.why.clear();
            if (presence, self.wants()) == (Presence::Stop, Presence::Run) {
                self.starts(actions);
            }
        }
        self.drop_snapshots(actions);
        self.converge(now, asked, limits, actions);
    }

    /// Moves towards the goal from wherever it is.
    pub(super) fn converge(
        &mut self,
        now: Duration,
        asked: Option<Scope>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        match self.wants() {
            Presence::Run => self.towards_running(now, asked, limits, actions),
            Presence::Pause => self.towards_pause(actions),
            Presence::Fence => self.towards_fence(now, limits, actions),
            Presence::Stop | Presence::Rest | Presence::Remove => {
                self.towards_rest(now, limits, actions);
            }
        }
    }

    fn towards_running(
        &mut self,
        now: Duration,
        asked: Option<Scope>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let stale = self.stale();
        if self.restoring.is_some() && self.begun_with != Launch::Snapshot {
            return self.towards_snapshot(now, limits, actions);
        }
        let fresh = asked == Some(Scope::Reimage) || stale == Some(Scope::Reimage);
        let start = Start {
            fresh,
            ..Start::default()
        };
        match &mut self.state {
            State::Pending
            | State::Stopped {
                by: StoppedBy::Goal,
            }
            | State::Removed => {
                self.why.clear();
                self.begin(start, actions);
            }
            State::Stopped {
                by: StoppedBy::Guest,
            }
            | State::Failed { .. }
                if asked.is_some() || stale.is_some() =>
            {
                self.why.clear();
                self.begin(start, actions);
            }
            State::Backoff { start: next, .. } if asked.is_some() || stale.is_some() => {
                let start = Start {
                    fresh: fresh || next.fresh,
                    ..Start::default()
                };
                self.why.clear();
                self.begin(start, actions);
            }
            State::Preparing { start: next } if asked.is_some() || stale.is_some() => {
                let start = Start {
                    fresh: fresh || next.fresh,
                    ..*next
                };
                self.begin(start, actions);
            }
            // Decided when that is done.
            State::Handling { .. } if asked.is_none() => {}
            State::Booting { .. }
            | State::Running { .. }
            | State::Leaving { .. }
            | State::Paused
                if asked == Some(Scope::Reset) && stale.is_none() =>
            {
                self.reset(actions);
            }
            State::Booting { .. }
            | State::Running { .. }
            | State::Leaving { .. }
            | State::Handling { .. }
            | State::Paused => {
                let why = match (asked, stale) {
                    // An update asks for a restart as well: what it changes is why.
                    (_, Some(_)) => {
                        let why = "its goal has changed, as by an update";
                        tell_anew(actions, Reason::VmRestarting, why, false);
                        why
                    }
                    (Some(Scope::Vm | Scope::Reimage | Scope::Reset), None) => {
                        let (why, by) = ("an operator asked for a restart", "RestartRequested");
                        tell_asked(actions, Reason::VmRestarting, by, why, false);
                        why
                    }
                    _ => return self.keep(actions),
                };
                self.bring_down(now, Then::Start(start), why, limits, actions);
            }
            State::Stopping { then, .. } if asked.is_some() || fresh => {
                *then = Then::Start(start);
            }
            _ => {}
        }
    }

    fn towards_rest(&mut self, now: Duration, limits: &Limits, actions: &mut Actions) {
        match &mut self.state {
            State::Booting { .. }
            | State::Running { .. }
            | State::Leaving { .. }
            | State::Handling { .. }
            | State::Paused => {
                self.bring_down(now, Then::Goal, self.why_down(), limits, actions);
            }
            State::Stopping { then, .. } => {
                // What was wrong with it stays so.
                if let Then::Start(_) = then {
                    *then = Then::Goal;
                }
            }
            // Decided when the VMM is there, or is not.
            State::Launching => {}
            State::Pending
            | State::Preparing { .. }
            | State::Stopped { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Removed => self.rest(actions),
        }
    }

    /// At once: what runs here may be started elsewhere.
    fn towards_fence(&mut self, now: Duration, limits: &Limits, actions: &mut Actions) {
        match &self.state {
            State::Booting { .. }
            | State::Running { .. }
            | State::Leaving { .. }
            | State::Handling { .. }
            | State::Paused
            | State::Stopping { .. } => {
                NO_LEASE.clone_into(&mut self.why);
                tell_anew(actions, Reason::LeaseEnded, NO_LEASE, true);
                actions.push(Action::Kill);
                self.state = State::Stopping {
                    how: Stopping::Killing,
                    then: Then::Recover {
                        cause: Cause::LeaseEnded,
                        why: NO_LEASE.to_owned(),
                    },
                    deadline: now + limits.order,
                    overdue: false,
                };
            }
            State::Launching => {}
            State::Pending
            | State::Preparing { .. }
            | State::Stopped { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Removed => self.rest(actions),
        }
    }

    /// There is no VM and there shall be none.
    pub(super) fn rest(&mut self, actions: &mut Actions) {
        if self.wants() == Presence::Stop {
            return self.rest_stopped(actions);
        }
        self.why_down().clone_into(&mut self.why);
        if self.wants() == Presence::Remove {
            if self.state != State::Removed {
                actions.push(Action::Remove);
                self.state = State::Removed;
            }
        } else {
            self.state = State::Stopped {
                by: StoppedBy::Goal,
            };
        }
    }

    /// An operator's stop is over: what it has failed at before does not count any more.
    fn starts(&mut self, actions: &mut Actions) {
        self.ladder.reset();
        // A way back to a snapshot tells so itself.
        if self.restoring.is_none() {
            let message = "it is started, as an operator asked";
            let by = "StartRequested";
            tell_asked(actions, Reason::InstanceStarted, by, message, false);
        }
    }

    /// An operator's stop has come to its end; how is said once, and shown for as long as
    /// it lasts.
    fn rest_stopped(&mut self, actions: &mut Actions) {
        let by = StoppedBy::Goal;
        if self.state == (State::Stopped { by }) && !self.why.is_empty() {
            return;
        }
        let ended = self.end.as_ref().filter(|_| self.has_vm());
        self.why = match ended.map(|end| end.detail.as_str()) {
            None => format!("{STOPPED}; no virtual machine ran"),
            Some(how) if how.starts_with(STOPPED) => how.to_owned(),
            Some(how) => format!("{STOPPED}; {how}"),
        };
        let (reason, asked) = (Reason::InstanceStopped, "StopRequested");
        tell_asked(actions, reason, asked, &self.why, false);
        self.state = State::Stopped { by };
    }

    /// Why it is not to run, for people.
    pub(super) fn why_down(&self) -> &'static str {
        match self.wants() {
            Presence::Pause => {
                "paused while no virtual machine runs; one is started when it is resumed"
            }
            Presence::Fence => NO_LEASE,
            Presence::Stop => STOPPED,
            Presence::Rest => "its node's host agent stops",
            Presence::Run | Presence::Remove => "the goal says so",
        }
    }

    /// What the goal has changed that the machine cannot follow while it runs.
    pub(super) fn stale(&self) -> Option<Scope> {
        let (wanted, made) = (self.wanted.as_ref()?, self.made_for.as_ref()?);
        let other = made.epoch.is_some_and(|epoch| epoch != wanted.epoch);
        if wanted.disk != made.disk || other {
            Some(Scope::Reimage)
        } else if wanted.shape != made.shape {
            Some(Scope::Vm)
        } else {
            None
        }
    }

    /// Stops a machine that runs, as gently as it can be.
    pub(super) fn bring_down(
        &mut self,
        now: Duration,
        then: Then,
        why: &str,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        why.clone_into(&mut self.why);
        let grace = self
            .wanted
            .as_ref()
            .map_or(Duration::ZERO, |wanted| wanted.stop_grace);
        let (how, patience) = match self.state {
            State::Running { .. } => (Stopping::Asking, grace.saturating_add(limits.power_off)),
            _ => (Stopping::Ordering, limits.order),
        };
        match how {
            Stopping::Asking if !self.in_session => actions.push(Action::PressPowerButton),
            // Its goal says so.
            Stopping::Asking => {}
            Stopping::Ordering | Stopping::Killing => actions.push(Action::OrderStop),
        }
        self.state = State::Stopping {
            how,
            then,
            deadline: now + patience,
            overdue: false,
        };
    }
}
