//! What follows when a step succeeds or fails, or the machine ends.

use std::time::Duration;

use super::{Actions, Limits, Machine, tell, tell_anew, tell_because};
use crate::{
    events::Reason,
    guest::report::{RoleCondition, RoleEndHow, RoleReport},
    instance::state::{
        Action, Because, Cause, End, Exit, ExitKind, Handling, Launch, Presence, Start, State,
        StoppedBy, Stopping, Then, Unprepared,
    },
    policy::ladder::Decision,
};

/// Its number on every machine that Linux guests run on here, signal(7).
const SIGKILL: u32 = 9;

impl Machine {
    pub(super) fn on_prepared(
        &mut self,
        now: Duration,
        result: Result<(), Unprepared>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let State::Preparing { start } = self.state else {
            return;
        };
        match result {
            Ok(()) => {
                self.state = State::Launching;
                self.boots = self.boots.saturating_add(1);
                self.vm_restarts = self.vm_restarts.saturating_add(u32::from(start.recovery));
                self.role = None;
                self.in_session = false;
                self.boot_id.clear();
                self.boot_to_hello = None;
                actions.push(Action::Launch);
            }
            Err(Unprepared { reason, .. }) if start.restore => {
                self.refuse_restore(reason, actions);
                self.begin(start, actions);
            }
            Err(Unprepared { reason, may_pass }) => {
                let decision = self.ladder.cannot_prepare(may_pass, &limits.ladder);
                self.carry_out(now, decision, reason, start.fresh, actions);
            }
        }
    }

    pub(super) fn on_launched(
        &mut self,
        now: Duration,
        result: Result<Launch, String>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        if self.state != State::Launching {
            return;
        }
        match result {
            Ok(launch) => {
                self.why.clear();
                self.begun_with = launch;
                let patience = match launch {
                    Launch::Boot => limits.boot,
                    Launch::Template | Launch::Booted | Launch::Snapshot => {
                        limits.boot.min(limits.from_template)
                    }
                };
                self.state = State::Booting {
                    launched: now,
                    deadline: now + patience,
                };
                let message = match launch {
                    Launch::Boot => "the virtual machine was started",
                    Launch::Template => "the virtual machine was started from a template",
                    Launch::Booted => "the virtual machine was started from a booted kernel",
                    Launch::Snapshot => "the virtual machine goes on from a snapshot",
                };
                tell(actions, Reason::VmmStarted, message, false);
                self.converge(now, None, limits, actions);
            }
            Err(why) if self.wants() == Presence::Run => {
                self.recover(now, why, limits, actions);
            }
            Err(_) => self.rest(actions),
        }
    }

    pub(super) fn on_exit(
        &mut self,
        now: Duration,
        exit: &Exit,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        if let State::Handling {
            what: Handling::Snapshot(wanted),
        } = self.state.clone()
        {
            // Not tried again: it may be what ended it.
            self.took(wanted, Err("the virtual machine ended".to_owned()), actions);
        }
        match self.state.clone() {
            State::Stopping {
                how, overdue, then, ..
            } => {
                let end = self.end_of_stopped(how, overdue, &then, exit);
                let because = match then {
                    Then::Goal if self.wants() == Presence::Stop => {
                        Because::Event("StopRequested".to_owned())
                    }
                    Then::Goal | Then::Ended { .. } => Because::Nothing,
                    Then::Start(_) | Then::Recover { .. } => Because::Before,
                };
                tell_because(actions, Reason::VmmExited, because, &told(&end), false);
                self.ended(end, actions);
                match then {
                    _ if self.wants() != Presence::Run => self.rest(actions),
                    Then::Goal => self.begin(Start::default(), actions),
                    Then::Start(start) => self.begin(start, actions),
                    Then::Ended { reboot } => {
                        self.after_own_end(now, &own_end(reboot), limits, actions);
                    }
                    Then::Recover { why, .. } => self.recover(now, why, limits, actions),
                }
            }
            State::Booting { .. }
            | State::Running { .. }
            | State::Handling { .. }
            | State::Paused
            | State::Leaving { .. } => {
                let expected = exit.kind == ExitKind::GuestPowerOff;
                let end = End {
                    cause: exit.kind.into(),
                    detail: describe(exit),
                };
                tell_anew(actions, Reason::VmmExited, &told(&end), !expected);
                self.ended(end, actions);
                if self.begun_with.is_from_template() && !exit.kind.is_a_kill() {
                    let start = self.blames_template(&describe(exit), actions);
                    self.begin_or_rest(start, actions);
                } else if self.wants() == Presence::Run {
                    self.after_own_end(now, exit, limits, actions);
                } else {
                    self.rest(actions);
                }
            }
            _ => {}
        }
    }

    fn ended(&mut self, end: End, actions: &mut Actions) {
        if self.begun_with == Launch::Snapshot {
            // Not tried again: what follows is a start on the snapshot's disk.
            self.begun_with = Launch::Boot;
            self.refuse_restore(end.detail.clone(), actions);
        }
        self.note(end);
    }

    pub(super) fn note(&mut self, end: End) {
        self.end = Some(end);
        self.ends = self.ends.saturating_add(1);
    }

    /// How it ended while it was being stopped: by why it was, and how that went.
    fn end_of_stopped(&self, how: Stopping, overdue: bool, then: &Then, exit: &Exit) -> End {
        let by = match (how, exit.kind) {
            (Stopping::Killing, ExitKind::Killed) => "killed".to_owned(),
            _ => describe(exit),
        };
        let (cause, why) = match then {
            Then::Recover { cause, why } => (*cause, why.as_str()),
            Then::Ended { reboot: true } => (Cause::Rebooted, "the guest said that it reboots"),
            Then::Ended { reboot: false } => {
                (Cause::PoweredOff, "the guest said that it powers off")
            }
            Then::Goal => (self.how_stopped(how, overdue, exit.kind), self.why_down()),
            Then::Start(start) => {
                let why = match start.restore {
                    true => "it goes back to a snapshot",
                    false => "it is to be started anew",
                };
                (self.how_stopped(how, overdue, exit.kind), why)
            }
        };
        let detail = match cause {
            Cause::StoppedByForce if overdue => {
                format!("{why}; the guest did not power off in time; {by}")
            }
            Cause::StoppedByForce => {
                let grace = self.wanted.as_ref().map(|wanted| wanted.stop_grace);
                let grace = humantime::format_duration(grace.unwrap_or_default());
                format!("{why}; its role did not end within {grace} and was killed; {by}")
            }
            _ => format!("{why}; {by}"),
        };
        End { cause, detail }
    }

    /// Whether a machine that was to be stopped was, and gently; or what came before that.
    fn how_stopped(&self, how: Stopping, overdue: bool, kind: ExitKind) -> Cause {
        let by_force = match kind {
            ExitKind::GuestPowerOff | ExitKind::GuestReset => self.role_was_killed(),
            ExitKind::Stopped => overdue,
            ExitKind::Killed if how == Stopping::Killing => overdue,
            other => return other.into(),
        };
        if by_force {
            Cause::StoppedByForce
        } else {
            Cause::Stopped
        }
    }

    /// Whether its guest agent has killed its role because that did not end in time.
    fn role_was_killed(&self) -> bool {
        let stopped = |role: &&RoleReport| role.condition == RoleCondition::Stopped;
        let end = self.role.as_ref().filter(stopped);
        let end = end.and_then(|role| role.last_exit.as_ref());
        end.is_some_and(|end| end.by_agent && end.how == RoleEndHow::Signal(SIGKILL))
    }

    /// The machine ended though nobody had asked it to.
    fn after_own_end(
        &mut self,
        now: Duration,
        exit: &Exit,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        match exit.kind {
            ExitKind::GuestPowerOff => {
                let again = self.wanted.as_ref().is_none_or(|wanted| wanted.always_on);
                let message = if again {
                    "the guest powered off by itself; it is started again"
                } else {
                    "the guest powered off by itself; its restart policy leaves it off"
                };
                tell(actions, Reason::GuestPoweredOff, message, false);
                if again {
                    self.start_without_blame(now, exit.kind, limits, actions);
                } else {
                    "the guest powered off".clone_into(&mut self.why);
                    self.state = State::Stopped {
                        by: StoppedBy::Guest,
                    };
                }
            }
            ExitKind::GuestReset => self.start_without_blame(now, exit.kind, limits, actions),
            _ => self.recover(now, describe(exit), limits, actions),
        }
    }

    fn start_without_blame(
        &mut self,
        now: Duration,
        kind: ExitKind,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let wait = self.ladder.ended_without_blame(now, &limits.ladder);
        tell(
            actions,
            Reason::VmRestarting,
            &format!("{kind}{}", in_time(wait)),
            false,
        );
        self.why = kind.to_string();
        self.start_after(
            now,
            wait,
            Start {
                recovery: true,
                ..Start::default()
            },
            actions,
        );
    }

    /// Something failed: the ladder decides.
    pub(super) fn recover(
        &mut self,
        now: Duration,
        why: String,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let decision = self.ladder.failed(now, &limits.ladder);
        // Its disk goes with the memory that is lost: it is copied once more.
        let fresh = std::mem::take(&mut self.begun_with) == Launch::Template;
        self.carry_out(now, decision, why, fresh, actions);
    }

    fn carry_out(
        &mut self,
        now: Duration,
        decision: Decision,
        why: String,
        fresh: bool,
        actions: &mut Actions,
    ) {
        match decision {
            Decision::Restart { wait } => {
                tell(
                    actions,
                    Reason::VmRestarting,
                    &format!("{why}{}", in_time(wait)),
                    true,
                );
                self.why = why;
                self.start_after(
                    now,
                    wait,
                    Start {
                        fresh,
                        recovery: true,
                        ..Start::default()
                    },
                    actions,
                );
            }
            Decision::Reimage { wait } => {
                self.reimages = self.reimages.saturating_add(1);
                let message = format!("it keeps failing: {why}; it gets a fresh disk");
                tell(actions, Reason::Reimaged, &(message + &in_time(wait)), true);
                self.why = why;
                self.start_after(
                    now,
                    wait,
                    Start {
                        fresh: true,
                        recovery: true,
                        ..Start::default()
                    },
                    actions,
                );
            }
            Decision::GiveUp { retry } => {
                let message = format!(
                    "{why}; given up: tried once more in {}, or when asked",
                    humantime::format_duration(retry)
                );
                tell(actions, Reason::GaveUp, &message, true);
                self.why = format!("gave up: {why}");
                self.state = State::Failed {
                    retry_at: now + retry,
                };
            }
        }
    }

    fn start_after(&mut self, now: Duration, wait: Duration, start: Start, actions: &mut Actions) {
        if wait.is_zero() {
            self.begin(start, actions);
        } else {
            self.state = State::Backoff {
                until: now + wait,
                start,
            };
        }
    }
}

/// An end, as it is told.
fn told(end: &End) -> String {
    format!("{}: {}", end.cause.word(), end.detail)
}

fn describe(exit: &Exit) -> String {
    if exit.detail.is_empty() {
        exit.kind.to_string()
    } else {
        format!("{}: {}", exit.kind, exit.detail)
    }
}

fn own_end(reboot: bool) -> Exit {
    let kind = if reboot {
        ExitKind::GuestReset
    } else {
        ExitKind::GuestPowerOff
    };
    Exit {
        kind,
        detail: String::new(),
        json: String::new(),
    }
}

fn in_time(wait: Duration) -> String {
    if wait.is_zero() {
        "; started again at once".to_owned()
    } else {
        format!("; started again in {}", humantime::format_duration(wait))
    }
}
