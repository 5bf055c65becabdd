//! A role's life: from what happens and what time it is to what to do. Pure: no
//! clock, no process, no I/O; `role` carries out what this decides.
//!
//! ```text
//!            the goal wants it            started
//!  Resting ───────────────────▶ Launching ───────▶ Running ──────┐
//!    ▲  ▲                        ▲    │ could not    │  │         │ stop, change,
//!    │  │            wait is over│    ▼ be started   │  │ it ended│ not live
//!    │  │                       Waiting ◀────────────┼──┘         ▼
//!    │  └── policy: not again ──┴──┼─────────────────┘         Stopping
//!    │                             ▲   not live: it ended         │
//!    │                             └──────────────────────────────┤
//!    └──────────── stop: it ended ────────────────────────────────┘
//! ```
//!
//! | phase | state that is reported |
//! |---|---|
//! | `Resting` | `Stopped`; `Unhealthy` when it failed for good or was refused |
//! | `Launching` | `Starting` |
//! | `Running` | `Starting` until its readiness probe succeeds, or its liveness probe where it has no other; then `Ready` or `Busy` |
//! | `Stopping` | `Busy` when asked for, `Unhealthy` when not live |
//! | `Waiting` | `Unhealthy` |
//! | `Freezing` | `Ready`, as it was |
//! | `Prepared`, `Frozen`, `Thawing` | `Starting` |
//!
//! In a guest that becomes a template a role is only prepared, so that each copy need not
//! fetch what all of them need; there it is launched:
//!
//! ```text
//!  Launching ── what it needs is in place ──▶ Prepared ── wanted by a copy's goal ──▶ Resting
//! ```
//!
//! A role with a warm start is made ready in a guest that becomes a template, frozen
//! there, and thawed in each copy:
//!
//! ```text
//!  Running, ready and live ──▶ Freezing ── hook is done, and a rest ──▶ Frozen
//!                              (before_snapshot)                          │ wanted by a
//!  Running ◀── hook is done ── Thawing ◀──────────────────────────────────┘ copy's goal
//!                              (settings, goes on, after_start)
//! ```
//!
//! Everything is level-triggered: an event changes what is known, and then
//! [`Role::settle`] compares what is with what is wanted.

use std::{mem, time::Duration};

use super::running::Running;
use crate::model::{
    Halt, Hook, InvalidRole, LaunchSpec, ProbeKind, ProbeSpec, RestartMode, RoleSpec,
};

/// How long a role that is to be frozen goes on, so that what it was doing is over: a copy
/// would finish it before anything else.
const REST: Duration = Duration::from_secs(1);

/// Time since the guest agent started.
pub type Moment = Duration;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The goal has this role, so.
    Want(Box<RoleSpec>),
    /// It has so much time to stop, when it is to.
    Grace(Duration),
    /// The goal has this role, but it cannot be run as written.
    Refuse(InvalidRole),
    /// It should not run any more.
    Stop(StopCause),
    /// The launch succeeded; 0 where there is no process to run.
    Launched(u32),
    /// What the launch will need is in place.
    Prepared,
    /// The launch failed, or what it needs is not there; why.
    LaunchFailed(String),
    /// Its process has ended.
    Ended(Ending),
    /// A check that was asked for is done.
    Probed {
        /// Of which run.
        run: u32,
        /// Which probe.
        kind: ProbeKind,
        /// Its result; why it failed.
        outcome: Result<(), String>,
    },
    /// The hook that was to be run is done; why it failed.
    Hooked(Result<(), String>),
    /// Its process has written something.
    Spoke,
    /// Time has passed.
    Tick,
}

/// Why a role should not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The goal does not have it.
    NotWanted,
    /// The guest is going down.
    GoingDown,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start the role as [`Role::launch_spec`] says; answered by `Launched` or
    /// `LaunchFailed`.
    Launch,
    /// Have in place what that would need; answered by `Prepared` or `LaunchFailed`.
    Prepare,
    /// Ask the process to end.
    Terminate,
    /// End the process and all that belongs to it.
    Kill,
    /// Make this check; answered by `Probed`.
    Check {
        /// For which run.
        run: u32,
        /// Which probe.
        kind: ProbeKind,
        /// What to check, and how long at the most.
        spec: ProbeSpec,
    },
    /// Run one of its hooks; answered by `Hooked`.
    Hook(Hook),
    /// Stop its processes where they are.
    Freeze,
    /// Give it the files of [`Role::launch_spec`] anew, and let its processes go on.
    Thaw,
    /// Give its process the settings of [`Role::launch_spec`], and tell it so.
    Deliver,
    /// [`Role::status`] has changed.
    Report,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
        }
    }
}

/// How the last attempt to run the role ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its process ended; and whether the guest agent ended it.
    Process(Ending, bool),
    /// It could not be started; why.
    NotStarted(String),
}

/// State of a role as it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being started, or not yet ready for the first time.
    Starting,
    /// Running and ready.
    Ready,
    /// Running, but out of rotation.
    Busy,
    /// Failed.
    Unhealthy,
    /// Not running, as it should be.
    Stopped,
}

/// What is reported of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Why, in one line.
    pub reason: String,
    /// Since when.
    pub since: Moment,
    /// Its process; 0 for none.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last run ended.
    pub last_exit: Option<Exit>,
    /// Restart generation that it was started under.
    pub generation: u64,
    /// Failures in a row without having stayed ready in between.
    pub failures: u32,
}

/// One role.
#[derive(Debug)]
pub struct Role {
    wanted: Wanted,
    phase: Phase,
    /// What it was last launched as, while that still counts.
    launched: Option<Launched>,
    /// Launches so far; the number of the run that is on.
    runs: u32,
    /// What the last goal that wanted it gave it.
    stop_grace: Duration,
    status: Status,
    reported: Option<Status>,
}

#[derive(Debug)]
enum Wanted {
    Stopped(StopCause),
    Refused(InvalidRole),
    Run(Box<RoleSpec>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Launched {
    spec: LaunchSpec,
    generation: u64,
}

#[derive(Debug)]
enum Phase {
    Resting,
    Launching,
    Prepared,
    Running(Box<Running>),
    Freezing {
        /// `None` until the hook is done.
        at: Option<Moment>,
    },
    Frozen,
    Thawing,
    Stopping {
        why: Stopping,
        kill_at: Option<Moment>,
    },
    Waiting {
        until: Moment,
    },
}

/// Why a process is being stopped.
#[derive(Debug)]
enum Stopping {
    /// Because of the goal: no failure.
    Asked,
    /// Because of its liveness probe: a failure, and this is how it failed.
    NotLive(String),
}

impl Role {
    /// A role that nothing is known of yet.
    pub fn new() -> Self {
        Self {
            wanted: Wanted::Stopped(StopCause::NotWanted),
            phase: Phase::Resting,
            launched: None,
            runs: 0,
            stop_grace: Duration::ZERO,
            status: Status {
                state: State::Stopped,
                reason: String::new(),
                since: Moment::ZERO,
                pid: 0,
                restarts: 0,
                last_exit: None,
                generation: 0,
                failures: 0,
            },
            reported: None,
        }
    }

    /// What is reported of it now.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// True when it has stopped because it was told to.
    pub fn is_stopped(&self) -> bool {
        matches!(
            (&self.wanted, &self.phase),
            (Wanted::Stopped(_), Phase::Resting)
        )
    }

    /// True when it stands as it is to be copied.
    pub fn is_halted(&self) -> bool {
        matches!(self.phase, Phase::Prepared | Phase::Frozen)
    }

    /// How to start it, when [`Action::Launch`] says so.
    pub fn launch_spec(&self) -> Option<&LaunchSpec> {
        self.launched.as_ref().map(|launched| &launched.spec)
    }

    /// Takes an event; says what to do now.
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(event, now, &mut actions);
        self.settle(now, &mut actions);
        if self.reported.as_ref() != Some(&self.status) {
            self.reported = Some(self.status.clone());
            actions.push(Action::Report);
        }
        actions
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        match (&self.phase, &self.wanted) {
            (Phase::Running(running), Wanted::Run(spec)) => {
                running.deadline(spec, self.status.failures)
            }
            (Phase::Freezing { at }, _) => *at,
            (Phase::Stopping { kill_at, .. }, _) => *kill_at,
            (Phase::Waiting { until }, _) => Some(*until),
            _ => None,
        }
    }

    /// Takes what has become known.
    fn take(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        match event {
            Event::Want(spec) => {
                self.stop_grace = spec.stop_grace;
                self.wanted = Wanted::Run(spec);
            }
            Event::Refuse(why) => self.wanted = Wanted::Refused(why),
            Event::Grace(grace) => self.stop_grace = grace,
            Event::Stop(cause) => self.wanted = Wanted::Stopped(cause),
            Event::Launched(pid) => self.launched(pid, now),
            Event::Prepared => {
                if matches!(self.phase, Phase::Launching) {
                    self.phase = Phase::Prepared;
                    let reason = "is about to be started, in a template".to_owned();
                    self.set(State::Starting, reason, now);
                }
            }
            Event::LaunchFailed(why) => {
                if matches!(self.phase, Phase::Launching) {
                    self.status.last_exit = Some(Exit::NotStarted(why.clone()));
                    self.failed(format!("cannot be started: {why}"), now);
                }
            }
            Event::Ended(ending) => self.ended(ending, now),
            Event::Probed { run, kind, outcome } => self.probed(run, kind, outcome, now),
            Event::Hooked(outcome) => self.hooked(outcome, now, actions),
            Event::Spoke => {
                if let Phase::Running(running) = &mut self.phase {
                    running.hurry(now);
                }
            }
            Event::Tick => self.ticked(now, actions),
        }
    }

    fn launched(&mut self, pid: u32, now: Moment) {
        if matches!(self.phase, Phase::Launching) {
            self.status.pid = pid;
            let (liveness, readiness) = match &self.wanted {
                Wanted::Run(spec) => (spec.liveness.clone(), spec.readiness.clone()),
                Wanted::Stopped(_) | Wanted::Refused(_) => (None, None),
            };
            self.phase = Phase::Running(Box::new(Running::new(now, liveness, readiness)));
        }
    }

    fn ended(&mut self, ending: Ending, now: Moment) {
        if !self.has_process() {
            return;
        }
        let phase = mem::replace(&mut self.phase, Phase::Resting);
        if let (Phase::Running(running), Wanted::Run(spec)) = (&phase, &self.wanted) {
            running.forgive(spec, &mut self.status.failures, now);
        }
        self.status.pid = 0;
        let by_agent = matches!(phase, Phase::Stopping { .. });
        self.status.last_exit = Some(Exit::Process(ending, by_agent));
        match phase {
            Phase::Stopping {
                why: Stopping::Asked,
                ..
            } => self.launched = None,
            Phase::Stopping {
                why: Stopping::NotLive(why),
                ..
            } => self.failed(why, now),
            _ => self.ended_by_itself(ending, now),
        }
    }

    fn has_process(&self) -> bool {
        let may = !matches!(
            self.phase,
            Phase::Resting | Phase::Launching | Phase::Prepared | Phase::Waiting { .. }
        );
        may && self.status.pid != 0
    }

    fn hooked(&mut self, outcome: Result<(), String>, now: Moment, actions: &mut Vec<Action>) {
        let (liveness, readiness) = match &self.wanted {
            Wanted::Run(spec) => (spec.liveness.clone(), spec.readiness.clone()),
            Wanted::Stopped(_) | Wanted::Refused(_) => (None, None),
        };
        match (&self.phase, outcome) {
            (Phase::Freezing { at: None }, Ok(())) => {
                let at = Some(now.saturating_add(REST));
                self.phase = Phase::Freezing { at };
            }
            (Phase::Thawing, Ok(())) => {
                let running = Running::warm(now, liveness, readiness);
                self.phase = Phase::Running(Box::new(running));
            }
            (Phase::Freezing { at: None } | Phase::Thawing, Err(why)) => {
                self.set(State::Unhealthy, why.clone(), now);
                self.stop(Stopping::NotLive(why), now, actions);
            }
            _ => {}
        }
    }

    /// In a copy: what is wanted is what was frozen, but for what came later.
    fn settle_frozen(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match (&self.wanted, &mut self.launched) {
            (Wanted::Run(spec), _) if spec.halt.is_some() => {}
            (Wanted::Run(spec), Some(launched)) if launched.spec.is_process_of(&spec.launch) => {
                launched.spec = spec.launch.clone();
                launched.generation = spec.generation;
                self.status.generation = spec.generation;
                let hook = !spec.launch.hooks.after_start.is_empty();
                self.phase = Phase::Thawing;
                self.status.since = now;
                self.set(State::Starting, "going on from a template".to_owned(), now);
                actions.push(Action::Thaw);
                if hook {
                    actions.push(Action::Hook(Hook::AfterStart));
                } else {
                    self.hooked(Ok(()), now, actions);
                    self.settle_running(now, actions);
                }
            }
            _ => self.stop(Stopping::Asked, now, actions),
        }
    }

    fn ended_by_itself(&mut self, ending: Ending, now: Moment) {
        let mode = match &self.wanted {
            Wanted::Run(spec) => spec.restart.mode,
            // What follows is not this process's matter any more.
            Wanted::Stopped(_) | Wanted::Refused(_) => RestartMode::Never,
        };
        if mode != RestartMode::Always && ending == Ending::Code(0) {
            self.status.failures = 0;
            self.set(State::Stopped, ending.to_string(), now);
        } else {
            self.failed(ending.to_string(), now);
        }
    }

    /// The role has failed: it waits for its next attempt, or rests for good.
    fn failed(&mut self, reason: String, now: Moment) {
        self.status.failures = self.status.failures.saturating_add(1);
        let restart = match &self.wanted {
            Wanted::Run(spec) => Some(spec.restart),
            Wanted::Stopped(_) | Wanted::Refused(_) => None,
        };
        match restart {
            Some(restart) if restart.mode != RestartMode::Never => {
                let wait = backoff(
                    restart.backoff_initial,
                    restart.backoff_max,
                    self.status.failures,
                );
                let reason = format!("{reason}; starts again in {} ms", wait.as_millis());
                self.set(State::Unhealthy, reason, now);
                self.phase = Phase::Waiting {
                    until: now.saturating_add(wait),
                };
            }
            _ => {
                self.set(State::Unhealthy, reason, now);
                self.phase = Phase::Resting;
            }
        }
    }

    fn probed(&mut self, run: u32, kind: ProbeKind, outcome: Result<(), String>, now: Moment) {
        let (Phase::Running(running), Wanted::Run(spec)) = (&mut self.phase, &self.wanted) else {
            return;
        };
        if run != self.runs {
            return;
        }
        running.record(spec, kind, outcome, now);
    }

    fn ticked(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Stopping { kill_at, .. } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                actions.push(Action::Kill);
            }
            Phase::Freezing { at: Some(at) } if *at <= now => {
                actions.push(Action::Freeze);
                self.phase = Phase::Frozen;
                // In a copy it is not ready yet.
                let reason = "stands still, in a template".to_owned();
                self.set(State::Starting, reason, now);
            }
            _ => {}
        }
    }

    /// Compares what is with what is wanted and takes the next step.
    fn settle(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Resting => self.settle_resting(now, actions),
            Phase::Launching => {}
            Phase::Prepared => self.settle_prepared(now, actions),
            Phase::Running(_) => self.settle_running(now, actions),
            Phase::Freezing { .. } if self.differs() => self.stop(Stopping::Asked, now, actions),
            Phase::Freezing { .. } => {}
            Phase::Frozen => self.settle_frozen(now, actions),
            Phase::Thawing if self.differs() => self.stop(Stopping::Asked, now, actions),
            Phase::Thawing => {}
            Phase::Stopping { .. } => {}
            Phase::Waiting { until } => {
                if self.differs() {
                    // The goal has changed: what failed before says nothing.
                    self.status.failures = 0;
                    self.phase = Phase::Resting;
                    self.settle_resting(now, actions);
                } else if until <= now {
                    self.launch(now, actions);
                }
            }
        }
    }

    fn settle_resting(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match &self.wanted {
            Wanted::Run(_) if self.differs() => self.launch(now, actions),
            // It has ended for good under its own policy: nothing more to do.
            Wanted::Run(_) => {}
            Wanted::Refused(why) => {
                let why = why.to_string();
                self.launched = None;
                self.set(State::Unhealthy, why, now);
            }
            Wanted::Stopped(cause) => {
                let reason = cause.to_string();
                self.launched = None;
                self.status.failures = 0;
                self.set(State::Stopped, reason, now);
            }
        }
    }

    /// In a copy: what is in place was not launched yet.
    fn settle_prepared(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let stays = match &self.wanted {
            Wanted::Run(spec) => spec.halt == Some(Halt::Prepared) && !self.differs(),
            Wanted::Refused(_) | Wanted::Stopped(_) => false,
        };
        if !stays {
            self.launched = None;
            self.phase = Phase::Resting;
            self.status.since = now;
            self.settle_resting(now, actions);
        }
    }

    /// Gives a process that asks for it the settings that are new, if nothing else is.
    fn deliver(&mut self, actions: &mut Vec<Action>) {
        if let (Wanted::Run(spec), Some(launched)) = (&self.wanted, &mut self.launched)
            && spec.deliver_settings
            && launched.generation == spec.generation
            && launched.spec != spec.launch
            && launched.spec.is_process_of(&spec.launch)
        {
            launched.spec = spec.launch.clone();
            actions.push(Action::Deliver);
        }
    }

    fn settle_running(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.deliver(actions);
        if self.differs() {
            let reason = match &self.wanted {
                Wanted::Run(_) => "stopping, to be started anew as the goal says".to_owned(),
                Wanted::Refused(why) => format!("stopping: {why}"),
                Wanted::Stopped(cause) => format!("stopping: {cause}"),
            };
            self.set(State::Busy, reason, now);
            self.stop(Stopping::Asked, now, actions);
            return;
        }
        let (Phase::Running(running), Wanted::Run(spec)) = (&mut self.phase, &self.wanted) else {
            return;
        };
        running.adopt(spec, now);
        if let Some(why) = running.not_live() {
            running.forgive(spec, &mut self.status.failures, now);
            self.set(State::Unhealthy, why.clone(), now);
            self.stop(Stopping::NotLive(why), now, actions);
            return;
        }
        let (state, reason) = running.health(now);
        let run = self.runs;
        let due = running.due(spec, now);
        actions.extend(due.map(|(kind, spec)| Action::Check { run, kind, spec }));
        running.forgive(spec, &mut self.status.failures, now);
        let halts = spec.halt == Some(Halt::Ready);
        let freeze = halts && state == State::Ready && running.is_through_liveness();
        let hook = !spec.launch.hooks.before_snapshot.is_empty();
        self.set(state, reason, now);
        if freeze {
            self.phase = Phase::Freezing { at: None };
            if hook {
                actions.push(Action::Hook(Hook::BeforeSnapshot));
            } else {
                self.hooked(Ok(()), now, actions);
            }
        }
    }

    /// Whether what runs, or last ran, is not what is wanted.
    fn differs(&self) -> bool {
        match (&self.wanted, &self.launched) {
            (Wanted::Run(spec), Some(launched)) => {
                launched.generation != spec.generation || launched.spec != spec.launch
            }
            _ => true,
        }
    }

    fn launch(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let Wanted::Run(spec) = &self.wanted else {
            return;
        };
        self.launched = Some(Launched {
            spec: spec.launch.clone(),
            generation: spec.generation,
        });
        self.phase = Phase::Launching;
        if spec.halt == Some(Halt::Prepared) {
            actions.push(Action::Prepare);
        } else {
            self.status.generation = spec.generation;
            self.status.restarts = self.runs;
            self.runs = self.runs.saturating_add(1);
            actions.push(Action::Launch);
        }
        self.set(State::Starting, String::new(), now);
    }

    fn stop(&mut self, why: Stopping, now: Moment, actions: &mut Vec<Action>) {
        if self.status.pid == 0 {
            // No process to wait for.
            match why {
                Stopping::Asked => {
                    self.launched = None;
                    self.phase = Phase::Resting;
                    self.settle_resting(now, actions);
                }
                Stopping::NotLive(why) => self.failed(why, now),
            }
            return;
        }
        if self.stop_grace.is_zero() {
            actions.push(Action::Kill);
            self.phase = Phase::Stopping { why, kill_at: None };
        } else {
            actions.push(Action::Terminate);
            self.phase = Phase::Stopping {
                why,
                kill_at: Some(now.saturating_add(self.stop_grace)),
            };
        }
    }

    fn set(&mut self, state: State, reason: String, now: Moment) {
        if self.status.state != state {
            self.status.since = now;
            self.status.state = state;
        }
        self.status.reason = reason;
    }
}

impl std::fmt::Display for StopCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotWanted => "the goal does not have it",
            Self::GoingDown => "the guest is going down",
        })
    }
}

/// How long to wait after the `failures`th failure in a row, which is at least 1.
fn backoff(initial: Duration, most: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    initial.saturating_mul(1 << doublings).min(most)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
