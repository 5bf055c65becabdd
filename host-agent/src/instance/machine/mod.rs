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
//! A guest is asked by its goal, over its guest agent's session. Where there is none, the
//! VMM presses its power button instead, and it has the same time.
//!
//! A guest that says goodbye while Running is Leaving until it has ended; it is
//! helped when that takes too long.
//!
//! ```text
//!  Running ──► Handling: pausing ──► Paused ──► Handling: resuming ──► Running
//!     │                                │            ▲
//!     ├──────► Handling: snapshot ◄────┤────────────┘ (or Paused again)
//!     ├──────► Handling: checking ◄────┘ ──► Stopping ──► Preparing, from a snapshot
//!     └──────► Handling: resetting ──► Booting, in the same VMM
//! ```
//!
//! Nothing is started while the goal says paused or stopped: a machine that ends then
//! stays down until it is resumed or started.
//!
//! A pure function from what is and what happens to what is then and what to do:
//! no clock, no I/O. The [`supervisor`](super::supervisor) carries it out. What a
//! goal stops is never started by anything but a goal.
//!
//! | file | what it decides |
//! |---|---|
//! | `towards` | what a goal means from here |
//! | `ends` | what follows a step's success, its failure, or the machine's end |
//! | `keeps` | pauses, resets, snapshots, and the way back to one |
//! | `hears` | what follows from what the guest agent says |
//! | `waits` | what follows when time has passed |
//!
//! A guest that goes on from a template has nothing of its role's in it before it
//! says hello: what goes wrong until then is the template's fault. The instance gets
//! a fresh disk and boots on that, and no blame ([`Machine::blames_template`]). One that
//! goes back to a snapshot and ends before it says hello was not restored, which is told;
//! what follows then is a start on the snapshot's disk.

mod ends;
mod hears;
mod keeps;
mod limits;
mod towards;
mod waits;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    events::Reason,
    guest::report::{RoleCondition, RoleReport},
    instance::{
        state::{
            Action, Because, End, Handling, Input, Launch, Note, Presence, Scope, Snapshot, Start,
            State, Stopping, Wanted,
        },
        turn::Progress,
    },
    policy::ladder::Ladder,
};
pub use limits::Limits;

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
    /// What it began with, until its hello proves that it can go on from that.
    #[serde(default)]
    begun_with: Launch,
    role: Option<RoleReport>,
    /// Whether its guest agent can be told things. Not on record: a session ends with
    /// the host agent that has it.
    #[serde(skip)]
    in_session: bool,
    /// How its last virtual machine ended.
    #[serde(default)]
    end: Option<End>,
    /// How many have.
    #[serde(default)]
    ends: u64,
    /// What has become of the snapshots that the goal names, and the newest of them.
    #[serde(default)]
    snapshots: Vec<Snapshot>,
    #[serde(default)]
    snapshot_generation: u64,
    /// The operator's restore, by its number, that is neither carried out nor refused.
    #[serde(default)]
    restoring: Option<u64>,
    #[serde(default)]
    restored: Restored,
    /// How often it went on after it had stood still.
    #[serde(default)]
    resumes: u32,
    /// What was told last; nothing since it was placed here.
    #[serde(default)]
    told: Option<Reason>,
}

/// The last restore that was carried out or refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Its [`Wanted::restart_generation`].
    pub generation: u64,
    /// Why it was refused; empty if it was not.
    pub error: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeFor {
    disk: String,
    /// Host agents of before did not take it down.
    #[serde(default)]
    epoch: Option<u64>,
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
            begun_with: Launch::Boot,
            role: None,
            in_session: false,
            end: None,
            ends: 0,
            snapshots: Vec::new(),
            snapshot_generation: 0,
            restoring: None,
            restored: Restored::default(),
            resumes: 0,
            told: None,
        }
    }
}

/// What the controller tells when it has given an instance a node.
const PLACED: &str = "InstancePlaced";

/// What is done about one input: collected, then carried out in this order.
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

    /// How its last virtual machine ended, if one has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// How many of its virtual machines have ended, or were reset.
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.ends
    }

    /// Last report on its role since its last start.
    #[must_use]
    pub fn role(&self) -> Option<&RoleReport> {
        self.role.as_ref()
    }

    /// What has become of the snapshots that the goal names.
    #[must_use]
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The last restore that was carried out or refused.
    #[must_use]
    pub fn restored(&self) -> &Restored {
        &self.restored
    }

    /// How often it went on after it had stood still: its guest has not noticed, and
    /// must be told the time.
    #[must_use]
    pub fn resumes(&self) -> u32 {
        self.resumes
    }

    /// Whether there should be a VMM process in this state.
    #[must_use]
    pub fn has_vm(&self) -> bool {
        matches!(
            self.state,
            State::Booting { .. }
                | State::Running { .. }
                | State::Handling { .. }
                | State::Paused
                | State::Leaving { .. }
                | State::Stopping { .. }
        )
    }

    /// How far it has come, if it is being started.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let starting = |role: &RoleReport| role.condition == RoleCondition::Starting;
        match self.state {
            State::Preparing { .. } | State::Launching | State::Booting { .. } => {
                Progress::Arriving
            }
            State::Running { .. } if self.role.as_ref().is_none_or(starting) => Progress::Arrived,
            _ => Progress::Settled,
        }
    }

    /// Whether its role is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let ready = |role: &RoleReport| role.condition == RoleCondition::Ready;
        matches!(self.state, State::Running { .. }) && self.role.as_ref().is_some_and(ready)
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
            State::Booting { deadline, .. }
            | State::Leaving { deadline, .. }
            | State::Stopping { deadline, .. } => Some(*deadline),
            State::Running { heard, .. } => Some(*heard + limits.silence()),
            State::Backoff { until, .. } => Some(*until),
            State::Failed { retry_at } => Some(*retry_at),
            State::Pending
            | State::Preparing { .. }
            | State::Launching
            | State::Handling { .. }
            | State::Paused
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
            Input::Handled(handled) => self.on_handled(now, handled, limits, &mut actions),
            Input::Guest(said) => self.on_guest(now, said, limits, &mut actions),
            Input::Resting => self.on_resting(now, limits),
            Input::Tick { starved } => self.on_tick(now, starved, limits, &mut actions),
        }
        self.link(&mut actions);
        actions
    }

    /// Takes up a life that an earlier process of the host agent led: `vm` says
    /// whether the virtual machine was found running, `same_boot` whether the
    /// times of then still mean something.
    #[must_use]
    pub fn resume(&mut self, now: Duration, vm: bool, same_boot: bool, limits: &Limits) -> Actions {
        let mut actions = Actions::new();
        if self.begun_with.is_from_template() {
            // Whatever it does from here on may have other causes.
            self.begun_with = Launch::Boot;
        }
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
            (State::Running { .. }, true) => {
                let grace = limits.reconnect.saturating_sub(limits.silence());
                self.state = State::Running { heard: now + grace };
            }
            (State::Leaving { reboot, .. }, true) => {
                self.state = State::Leaving {
                    reboot,
                    deadline: now + limits.leave,
                };
            }
            (
                State::Stopping {
                    how,
                    then,
                    deadline,
                    overdue,
                },
                true,
            ) => {
                // A guest that was asked has the time that it was given.
                let order = now + limits.order;
                let deadline = match how {
                    Stopping::Asking if same_boot => deadline.max(order),
                    _ => order,
                };
                self.state = State::Stopping {
                    how,
                    then,
                    deadline,
                    overdue,
                };
            }
            (
                State::Handling {
                    what: Handling::Resetting,
                },
                true,
            ) => actions.push(Action::Reset),
            (State::Handling { .. }, true) => {
                // Whatever it was, it is begun again from what the goal says.
                let (what, order) = if self.wants() == Presence::Pause {
                    (Handling::Pausing, Action::Pause)
                } else {
                    (Handling::Resuming { asked: false }, Action::Resume)
                };
                self.state = State::Handling { what };
                actions.push(order);
            }
            (State::Launching, false) => {
                // That start has not been one.
                self.boots = self.boots.saturating_sub(1);
                self.begin_or_rest(Start::default(), &mut actions);
            }
            (
                State::Booting { .. }
                | State::Running { .. }
                | State::Handling { .. }
                | State::Paused
                | State::Leaving { .. },
                false,
            ) if !same_boot => {
                let start = Start {
                    recovery: true,
                    ..Start::default()
                };
                "the node was restarted".clone_into(&mut self.why);
                self.begin_or_rest(start, &mut actions);
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
            tell_anew(
                &mut actions,
                Reason::InstanceAdopted,
                "found running and taken over",
                false,
            );
        }
        self.link(&mut actions);
        actions
    }

    /// Says of each thing to tell what was told before it.
    fn link(&mut self, actions: &mut Actions) {
        for action in actions {
            let Action::Tell(note) = action else { continue };
            if note.because == Because::Before {
                let before = self.told.map(|reason| format!("{reason:?}"));
                note.because = Because::Event(before.unwrap_or_else(|| PLACED.to_owned()));
            }
            self.told = Some(note.reason);
        }
    }

    /// Takes a template for the cause of what went wrong, and says how to start
    /// without it.
    fn blames_template(&mut self, why: &str, actions: &mut Actions) -> Start {
        // A disk that was made for it goes with it; its own it had before.
        let fresh = std::mem::take(&mut self.begun_with) == Launch::Template;
        actions.push(Action::RefuseTemplate {
            why: why.to_owned(),
        });
        Start {
            fresh,
            cold: true,
            ..Start::default()
        }
    }

    fn wants(&self) -> Presence {
        self.wanted
            .as_ref()
            .map_or(Presence::Run, |wanted| wanted.presence)
    }

    /// Starts it, if the goal wants it to run.
    fn begin_or_rest(&mut self, start: Start, actions: &mut Actions) {
        if self.wants() == Presence::Run {
            self.begin(start, actions);
        } else {
            self.rest(actions);
        }
    }

    fn begin(&mut self, mut start: Start, actions: &mut Actions) {
        let wanted = self.wanted.as_ref();
        let restore = wanted.and_then(|wanted| wanted.restore.clone());
        let restore = restore.filter(|_| self.restoring.is_some());
        start.restore = restore.is_some();
        self.begun_with = Launch::Boot;
        // On a disk that is there though no machine was started yet, nothing is to be
        // kept: it was left half-way, or is of another instance of this name.
        start.fresh |= self.boots == 0 || self.stale() == Some(Scope::Reimage);
        start.fresh &= !start.restore;
        self.made_for = self.wanted.as_ref().map(|wanted| MadeFor {
            disk: wanted.disk.clone(),
            epoch: Some(wanted.epoch),
            shape: wanted.shape.clone(),
        });
        self.state = State::Preparing { start };
        actions.push(Action::Prepare {
            fresh: start.fresh,
            cold: start.cold,
            restore,
        });
    }
}

/// Something to tell that what was told before has led to.
fn tell(actions: &mut Actions, reason: Reason, message: &str, warning: bool) {
    tell_because(actions, reason, Because::Before, message, warning);
}

/// Something to tell that has happened by itself.
fn tell_anew(actions: &mut Actions, reason: Reason, message: &str, warning: bool) {
    tell_because(actions, reason, Because::Nothing, message, warning);
}

/// Something to tell that the controller has asked for, as it has told by that reason.
fn tell_asked(actions: &mut Actions, reason: Reason, by: &str, message: &str, warning: bool) {
    let because = Because::Event(by.to_owned());
    tell_because(actions, reason, because, message, warning);
}

fn tell_because(
    actions: &mut Actions,
    reason: Reason,
    because: Because,
    message: &str,
    warning: bool,
) {
    actions.push(Action::Tell(Note {
        reason,
        because,
        message: message.to_owned(),
        warning,
    }));
}

#[cfg(test)]
mod tests;
