//! What follows from what the guest agent says.

use std::time::Duration;

use super::{Actions, Limits, Machine, tell, tell_because};
use crate::{
    events::Reason,
    guest::report::{RoleCondition, RoleReport},
    instance::state::{Because, Cause, GuestSaid, Launch, Presence, State, Then},
};

impl Machine {
    pub(super) fn on_guest(
        &mut self,
        now: Duration,
        said: GuestSaid,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        self.in_session = !matches!(said, GuestSaid::Gone);
        if let State::Running { heard, .. } = &mut self.state
            && self.in_session
        {
            *heard = now.max(*heard);
        }
        match said {
            GuestSaid::Hello { boot_id } => {
                self.on_hello(now, boot_id, limits, actions);
                self.go_further(now, limits, actions);
            }
            GuestSaid::Heartbeat => self.go_further(now, limits, actions),
            GuestSaid::Gone => {}
            GuestSaid::Goodbye { reboot } => self.on_goodbye(now, reboot, limits),
            GuestSaid::Role(report) => self.on_role(now, report, limits, actions),
        }
    }

    fn on_hello(&mut self, now: Duration, boot_id: String, limits: &Limits, actions: &mut Actions) {
        let begun_with = std::mem::take(&mut self.begun_with);
        if begun_with == Launch::Snapshot {
            self.end_restore(String::new());
        }
        if begun_with.is_from_template() && !boot_id.is_empty() {
            // Every guest of that template would have this boot id.
            let why = "its guest agent had an identity before it was given one";
            self.begun_with = begun_with;
            let then = Then::Start(self.blames_template(why, actions));
            self.put_down(now, why, then, limits, actions);
            return;
        }
        if let State::Leaving { .. } = self.state {
            // It has changed its mind.
            self.why.clear();
            self.state = State::Running { heard: now };
        }
        if let State::Booting { launched, .. } = self.state {
            let took = now.saturating_sub(launched);
            self.boot_to_hello = Some(took);
            self.why.clear();
            self.state = State::Running {
                heard: now + limits.settle,
            };
            let message = format!(
                "the guest agent is there, {} ms after start",
                took.as_millis()
            );
            tell(actions, Reason::GuestHello, &message, false);
        } else if !self.boot_id.is_empty() && !boot_id.is_empty() && self.boot_id != boot_id {
            tell(
                actions,
                Reason::GuestHello,
                "the guest agent is there, after another boot",
                false,
            );
        }
        // A guest without an identity has not read its boot id yet.
        if !boot_id.is_empty() {
            self.boot_id = boot_id;
        }
    }

    /// What had to wait until it runs, or could not be done before, is done now.
    fn go_further(&mut self, now: Duration, limits: &Limits, actions: &mut Actions) {
        if let State::Running { .. } = self.state {
            self.converge(now, None, limits, actions);
        }
    }

    fn on_goodbye(&mut self, now: Duration, reboot: bool, limits: &Limits) {
        if let State::Running { .. } = self.state {
            let verb = if reboot { "reboot" } else { "power off" };
            self.why = format!("the guest is about to {verb}");
            self.state = State::Leaving {
                reboot,
                deadline: now + limits.leave,
            };
        }
    }

    fn on_role(
        &mut self,
        now: Duration,
        report: RoleReport,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        tell_of_role(self.role.as_ref(), &report, actions);
        let failing = report.condition == RoleCondition::Unhealthy
            && report.consecutive_failures >= limits.role_failures;
        let why = format!(
            "the role failed {} times in a row: {}",
            report.consecutive_failures, report.reason
        );
        if report.condition == RoleCondition::Ready {
            self.ladder.ready();
            if let State::Running { heard } = &mut self.state {
                *heard = now;
            }
        }
        self.role = Some(report);
        if failing && matches!(self.state, State::Running { .. }) && self.wants() == Presence::Run {
            let then = Then::Recover {
                cause: Cause::RoleFailed,
                why: why.clone(),
            };
            self.bring_down(now, then, &why, limits, actions);
        }
    }
}

/// What changed about a role, for operators.
fn tell_of_role(before: Option<&RoleReport>, report: &RoleReport, actions: &mut Actions) {
    if before.is_some_and(|before| report.restarts > before.restarts) {
        let message = match &report.last_exit {
            Some(exit) => format!("the role was restarted: {exit}"),
            None => "the role was restarted".to_owned(),
        };
        let was_unwell = before.is_some_and(|one| one.condition == RoleCondition::Unhealthy);
        let because = if was_unwell {
            Because::Before
        } else {
            Because::Nothing
        };
        tell_because(actions, Reason::RoleRestarted, because, &message, true);
    }
    if before.is_some_and(|before| before.condition == report.condition) {
        return;
    }
    let (reason, text, warning) = match report.condition {
        RoleCondition::Starting => (Reason::RoleStarting, "the role is starting", false),
        RoleCondition::Ready => (Reason::RoleReady, "the role is ready", false),
        RoleCondition::Busy => (Reason::RoleBusy, "the role is out of rotation", true),
        RoleCondition::Unhealthy => (Reason::RoleUnhealthy, "the role is unhealthy", true),
        RoleCondition::Stopped => (Reason::RoleStopped, "the role is stopped", false),
    };
    let message = match report.reason.as_str() {
        "" => text.to_owned(),
        why => format!("{text}: {why}"),
    };
    let because = match report.condition {
        RoleCondition::Starting | RoleCondition::Ready => Because::Before,
        RoleCondition::Busy | RoleCondition::Unhealthy | RoleCondition::Stopped => Because::Nothing,
    };
    tell_because(actions, reason, because, &message, warning);
}
