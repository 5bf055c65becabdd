//! Everything that is decided about one instance, and nothing that is done.
//!
//! ```text
//!            goal: run
//!  Pending ────────────► Preparing ───► Launching ───► Booting ───► Running
//!     ▲                    ▲   │ failed     │ failed      │ no hello   │ heartbeats
//!     │                    │   ▼            ▼             │ in time    │ missed, role
//!  Stopped ◄──┐            ├─ Backoff ◄─── ladder ◄───────┼── exit ────┤ keeps failing,
//!             │            │                │   ▲         ▼            ▼ asked, changed
//!             │            └─ Failed ◄──────┘   └────── Stopping ◄─────┘
//!             │               (gave up)                   │  Asking → Ordering → Killing
//!  Removed ◄──┴───────────────────────────────────────────┘
//! ```
//!
//! A pure function from what is and what happens to what is then and what to do:
//! no clock, no I/O. The [`supervisor`](super::supervisor) carries it out. What a
//! goal stops is never started by anything but a goal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    events::Reason,
    guest::report::{RoleCondition, RoleReport},
    instance::state::{
        Action, Exit, ExitKind, GuestSaid, Input, Note, Presence, Scope, Start, State, StoppedBy,
        Stopping, Then, Unprepared, Wanted,
    },
    policy::ladder::{Decision, Ladder, LadderLimits},
};

/// How long what may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the VMM's start to the guest agent's hello.
    pub boot: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// So many periods without one, and the guest is taken for hung.
    pub heartbeats_missed: u32,
    /// Until a guest agent is back after a restart of the host agent.
    pub reconnect: Duration,
    /// For a guest to power off, beyond the role's own grace.
    pub power_off: Duration,
    /// For a VMM to end when told.
    pub order: Duration,
    /// Failures of a role in a row at which its machine is restarted.
    pub role_failures: u32,
    /// What happens after a failure.
    pub ladder: LadderLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            heartbeat: Duration::from_secs(2),
            heartbeats_missed: 3,
            reconnect: Duration::from_secs(30),
            power_off: Duration::from_secs(5),
            order: Duration::from_secs(3),
            role_failures: 5,
            ladder: LadderLimits::default(),
        }
    }
}

impl Limits {
    fn silence(&self) -> Duration {
        self.heartbeat.saturating_mul(self.heartbeats_missed)
    }
}

/// One instance's state, and what is remembered of its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    state: State,
    /// Why it is in that state, for people.
    why: String,
    wanted: Option<Wanted>,
    /// Newest restart that has been carried out.
    restart_generation: u64,
    /// What the disk, and the machine started last, were made for.
    made_for: Option<MadeFor>,
    ladder: Ladder,
    boots: u32,
    vm_restarts: u32,
    reimages: u32,
    boot_id: String,
    boot_to_hello: Option<Duration>,
    role: Option<RoleReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeFor {
    disk: String,
    shape: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Pending,
            why: String::new(),
            wanted: None,
            restart_generation: 0,
            made_for: None,
            ladder: Ladder::default(),
            boots: 0,
            vm_restarts: 0,
            reimages: 0,
            boot_id: String::new(),
            boot_to_hello: None,
            role: None,
        }
    }
}

/// What is done about one input; collected, then carried out in this order.
type Actions = Vec<Action>;

impl Machine {
    /// Where it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Why it is there, for people; may be empty.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What the goal said last.
    #[must_use]
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// Starts of its virtual machine.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Starts that were to recover it.
    #[must_use]
    pub fn vm_restarts(&self) -> u32 {
        self.vm_restarts
    }

    /// Fresh disks that were to recover it.
    #[must_use]
    pub fn reimages(&self) -> u32 {
        self.reimages
    }

    /// Newest restart that has been carried out.
    #[must_use]
    pub fn restart_generation(&self) -> u64 {
        self.restart_generation
    }

    /// Boot id of the guest's kernel; empty until it has said hello.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// From the start of the VMM to the guest agent's hello.
    #[must_use]
    pub fn boot_to_hello(&self) -> Option<Duration> {
        self.boot_to_hello
    }

    /// Last report on its role since its last start.
    #[must_use]
    pub fn role(&self) -> Option<&RoleReport> {
        self.role.as_ref()
    }

    /// Whether there should be a VMM process in this state.
    #[must_use]
    pub fn has_vm(&self) -> bool {
        matches!(
            self.state,
            State::Booting { .. } | State::Running { .. } | State::Stopping { .. }
        )
    }

    /// Whether the guest should be told to power off.
    #[must_use]
    pub fn guest_should_be_off(&self) -> bool {
        matches!(self.state, State::Stopping { .. })
    }

    /// When a [`Input::Tick`] is due, whatever else happens.
    #[must_use]
    pub fn deadline(&self, limits: &Limits) -> Option<Duration> {
        match &self.state {
            State::Booting { deadline, .. } | State::Stopping { deadline, .. } => Some(*deadline),
            State::Running { heard, .. } => Some(*heard + limits.silence()),
            State::Backoff { until, .. } => Some(*until),
            State::Failed { retry_at } => Some(*retry_at),
            State::Pending
            | State::Preparing { .. }
            | State::Launching
            | State::Stopped { .. }
            | State::Removed => None,
        }
    }

    /// Takes in what happened and says what to do.
    #[must_use]
    pub fn step(&mut self, now: Duration, input: Input, limits: &Limits) -> Actions {
        let mut actions = Actions::new();
        match input {
            Input::Goal(wanted) => self.on_goal(now, wanted, limits, &mut actions),
            Input::Prepared(result) => self.on_prepared(now, result, limits, &mut actions),
            Input::Launched(result) => self.on_launched(now, result, limits, &mut actions),
            Input::Exited(exit) => self.on_exit(now, &exit, limits, &mut actions),
            Input::Guest(said) => self.on_guest(now, said, limits, &mut actions),
            Input::Tick => self.on_tick(now, limits, &mut actions),
        }
        actions
    }

    /// Takes up a life that an earlier process of the host agent led: `vm` says
    /// whether the virtual machine was found running, `same_boot` whether the
    /// times of then still mean something.
    #[must_use]
    pub fn resume(&mut self, now: Duration, vm: bool, same_boot: bool, limits: &Limits) -> Actions {
        let mut actions = Actions::new();
        if !same_boot {
            self.ladder.reset();
        }
        match (self.state.clone(), vm) {
            (State::Launching, true) => {
                self.state = State::Booting {
                    launched: now,
                    deadline: now + limits.boot,
                };
            }
            (State::Booting { launched, deadline }, true) => {
                let deadline = deadline.max(now + limits.reconnect);
                self.state = State::Booting { launched, deadline };
            }
            (State::Running { launched, .. }, true) => {
                let grace = limits.reconnect.saturating_sub(limits.silence());
                self.state = State::Running {
                    launched,
                    heard: now + grace,
                };
            }
            (State::Stopping { how, then, .. }, true) => {
                self.state = State::Stopping {
                    how,
                    then,
                    deadline: now + limits.order,
                };
            }
            (State::Launching, false) => {
                self.begin(
                    Start {
                        fresh: false,
                        recovery: false,
                    },
                    &mut actions,
                );
            }
            (State::Booting { .. } | State::Running { .. }, false) if !same_boot => {
                self.why = "the node was restarted".to_owned();
                self.begin(
                    Start {
                        fresh: false,
                        recovery: true,
                    },
                    &mut actions,
                );
            }
            (State::Preparing { start }, _) => self.begin(start, &mut actions),
            (State::Backoff { start, .. }, _) if !same_boot => {
                self.state = State::Backoff { until: now, start };
            }
            (State::Failed { .. }, _) if !same_boot => {
                self.state = State::Failed { retry_at: now };
            }
            // What ended while nobody watched is told as an exit; the rest stays.
            _ => {}
        }
        if vm && self.has_vm() {
            tell(
                &mut actions,
                Reason::InstanceAdopted,
                "found running and taken over",
                false,
            );
        }
        actions
    }

    fn wants(&self) -> Presence {
        self.wanted
            .as_ref()
            .map_or(Presence::Run, |wanted| wanted.presence)
    }

    fn on_goal(&mut self, now: Duration, wanted: Wanted, limits: &Limits, actions: &mut Actions) {
        let first = self.wanted.is_none();
        let asked = (!first && wanted.restart_generation > self.restart_generation)
            .then_some(wanted.restart_scope);
        self.restart_generation = self.restart_generation.max(wanted.restart_generation);
        self.wanted = Some(wanted);
        if asked.is_some() {
            self.ladder.reset();
        }
        self.converge(now, asked, limits, actions);
    }

    /// Moves towards the goal from wherever it is.
    fn converge(
        &mut self,
        now: Duration,
        asked: Option<Scope>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        match self.wants() {
            Presence::Run => self.towards_running(now, asked, limits, actions),
            Presence::Stop | Presence::Remove => self.towards_rest(now, limits, actions),
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
        let fresh = asked == Some(Scope::Reimage) || stale == Some(Scope::Reimage);
        let start = Start {
            fresh,
            recovery: false,
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
                    recovery: false,
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
            State::Booting { .. } | State::Running { .. } => {
                let why = match (asked, stale) {
                    (Some(Scope::Vm | Scope::Reimage), _) => "an operator asked for a restart",
                    (_, Some(_)) => "its goal has changed",
                    _ => return,
                };
                tell(actions, Reason::VmRestarting, why, false);
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
            State::Booting { .. } | State::Running { .. } => {
                self.bring_down(now, Then::Goal, "the goal says so", limits, actions);
            }
            State::Stopping { then, .. } => *then = Then::Goal,
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

    /// There is no VM and there shall be none.
    fn rest(&mut self, actions: &mut Actions) {
        "the goal says so".clone_into(&mut self.why);
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

    /// What the goal has changed that the machine cannot follow while it runs.
    fn stale(&self) -> Option<Scope> {
        let (wanted, made) = (self.wanted.as_ref()?, self.made_for.as_ref()?);
        if wanted.disk != made.disk {
            Some(Scope::Reimage)
        } else if wanted.shape != made.shape {
            Some(Scope::Vm)
        } else {
            None
        }
    }

    fn begin(&mut self, mut start: Start, actions: &mut Actions) {
        start.fresh |= self.stale() == Some(Scope::Reimage);
        self.made_for = self.wanted.as_ref().map(|wanted| MadeFor {
            disk: wanted.disk.clone(),
            shape: wanted.shape.clone(),
        });
        self.state = State::Preparing { start };
        actions.push(Action::Prepare { fresh: start.fresh });
    }

    fn on_prepared(
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
                self.boot_id.clear();
                self.boot_to_hello = None;
                actions.push(Action::Launch);
            }
            Err(Unprepared { reason, may_pass }) => {
                let decision = self.ladder.cannot_prepare(may_pass, &limits.ladder);
                self.carry_out(now, decision, reason, start.fresh, actions);
            }
        }
    }

    fn on_launched(
        &mut self,
        now: Duration,
        result: Result<(), String>,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        if self.state != State::Launching {
            return;
        }
        match result {
            Ok(()) => {
                self.why.clear();
                self.state = State::Booting {
                    launched: now,
                    deadline: now + limits.boot,
                };
                tell(
                    actions,
                    Reason::VmmStarted,
                    "the virtual machine was started",
                    false,
                );
                self.converge(now, None, limits, actions);
            }
            Err(why) if self.wants() == Presence::Run => {
                self.recover(now, why, limits, actions);
            }
            Err(_) => self.rest(actions),
        }
    }

    fn on_exit(&mut self, now: Duration, exit: &Exit, limits: &Limits, actions: &mut Actions) {
        match self.state.clone() {
            State::Stopping { then, .. } => {
                tell(actions, Reason::VmmExited, &describe(exit), false);
                match then {
                    _ if self.wants() != Presence::Run => self.rest(actions),
                    Then::Goal => self.begin(Start::default(), actions),
                    Then::Start(start) => self.begin(start, actions),
                    Then::Recover { why } => self.recover(now, why, limits, actions),
                }
            }
            State::Booting { .. } | State::Running { .. } => {
                let expected = exit.kind == ExitKind::GuestPowerOff;
                tell(actions, Reason::VmmExited, &describe(exit), !expected);
                if self.wants() == Presence::Run {
                    self.after_own_end(now, exit, limits, actions);
                } else {
                    self.rest(actions);
                }
            }
            _ => {}
        }
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
            ExitKind::KernelPanic | ExitKind::Stopped | ExitKind::Failed => {
                self.recover(now, describe(exit), limits, actions);
            }
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
                fresh: false,
                recovery: true,
            },
            actions,
        );
    }

    /// Something failed: the ladder decides.
    fn recover(&mut self, now: Duration, why: String, limits: &Limits, actions: &mut Actions) {
        let decision = self.ladder.failed(now, &limits.ladder);
        self.carry_out(now, decision, why, false, actions);
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

    /// Stops a machine that runs, as gently as it can be.
    fn bring_down(
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
        if how == Stopping::Ordering {
            actions.push(Action::OrderStop);
        }
        self.state = State::Stopping {
            how,
            then,
            deadline: now + patience,
        };
    }

    /// Ends a machine that does not answer.
    fn put_down(&mut self, now: Duration, why: String, limits: &Limits, actions: &mut Actions) {
        actions.push(Action::Kill);
        self.why.clone_from(&why);
        self.state = State::Stopping {
            how: Stopping::Killing,
            deadline: now + limits.order,
            then: Then::Recover { why },
        };
    }

    fn on_guest(&mut self, now: Duration, said: GuestSaid, limits: &Limits, actions: &mut Actions) {
        if let State::Running { heard, .. } = &mut self.state {
            *heard = now.max(*heard);
        }
        match said {
            GuestSaid::Hello { boot_id } => self.on_hello(now, boot_id, actions),
            GuestSaid::Heartbeat => {}
            GuestSaid::Goodbye { reboot } => {
                let verb = if reboot { "reboot" } else { "power off" };
                self.why = format!("the guest is about to {verb}");
            }
            GuestSaid::Role(report) => self.on_role(now, report, limits, actions),
        }
    }

    fn on_hello(&mut self, now: Duration, boot_id: String, actions: &mut Actions) {
        if let State::Booting { launched, .. } = self.state {
            let took = now.saturating_sub(launched);
            self.boot_to_hello = Some(took);
            self.why.clear();
            self.state = State::Running {
                launched,
                heard: now,
            };
        }
        if self.boot_id != boot_id {
            let message = match self.boot_to_hello {
                Some(took) => format!(
                    "the guest agent is there, {} ms after start",
                    took.as_millis()
                ),
                None => "the guest agent is there".to_owned(),
            };
            tell(actions, Reason::GuestHello, &message, false);
            self.boot_id = boot_id;
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
        }
        self.role = Some(report);
        if failing && matches!(self.state, State::Running { .. }) && self.wants() == Presence::Run {
            let then = Then::Recover { why: why.clone() };
            self.bring_down(now, then, &why, limits, actions);
        }
    }

    fn on_tick(&mut self, now: Duration, limits: &Limits, actions: &mut Actions) {
        let Some(deadline) = self.deadline(limits).filter(|deadline| *deadline <= now) else {
            return;
        };
        match self.state.clone() {
            State::Booting { .. } => {
                let why = format!(
                    "the guest agent did not say hello within {}",
                    humantime::format_duration(limits.boot)
                );
                tell(actions, Reason::HeartbeatsMissed, &why, true);
                self.put_down(now, why, limits, actions);
            }
            State::Running { launched, .. } if now > deadline + limits.heartbeat => {
                // It was this process that did not run: what the guest said in the
                // meantime is still on its way.
                let heard = now.saturating_sub(limits.silence()) + limits.heartbeat;
                self.state = State::Running { launched, heard };
            }
            State::Running { .. } => {
                let why = format!("{} heartbeats missed", limits.heartbeats_missed);
                tell(actions, Reason::HeartbeatsMissed, &why, true);
                self.put_down(now, why, limits, actions);
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
                };
            }
            State::Backoff { start, .. } => self.begin(start, actions),
            State::Failed { .. } => {
                self.begin(
                    Start {
                        fresh: true,
                        recovery: true,
                    },
                    actions,
                );
            }
            _ => {}
        }
    }
}

fn tell(actions: &mut Actions, reason: Reason, message: &str, warning: bool) {
    actions.push(Action::Tell(Note {
        reason,
        message: message.to_owned(),
        warning,
    }));
}

/// What changed about a role, for operators.
fn tell_of_role(before: Option<&RoleReport>, report: &RoleReport, actions: &mut Actions) {
    if before.is_some_and(|before| report.restarts > before.restarts) {
        let message = match &report.last_exit {
            Some(exit) => format!("the role was restarted: {exit}"),
            None => "the role was restarted".to_owned(),
        };
        tell(actions, Reason::RoleRestarted, &message, true);
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
    if report.reason.is_empty() {
        tell(actions, reason, text, warning);
    } else {
        tell(
            actions,
            reason,
            &format!("{text}: {}", report.reason),
            warning,
        );
    }
}

fn describe(exit: &Exit) -> String {
    if exit.detail.is_empty() {
        exit.kind.to_string()
    } else {
        format!("{}: {}", exit.kind, exit.detail)
    }
}

fn in_time(wait: Duration) -> String {
    if wait.is_zero() {
        "; started again at once".to_owned()
    } else {
        format!("; started again in {}", humantime::format_duration(wait))
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
