//! Pauses, resets, snapshots, and the way back to one.

use std::time::Duration;

use fabric_proto::id::SnapshotName;

use super::{Actions, Limits, Machine, Restored, tell, tell_asked};
use crate::{
    events::Reason,
    instance::state::{
        Action, Cause, End, Handled, Handling, Launch, Presence, Snapshot, SnapshotWanted, Start,
        State, StoppedBy, Taken, Then,
    },
};

impl Machine {
    /// What runs shall stand still; what does not shall not be started.
    pub(super) fn towards_pause(&mut self, actions: &mut Actions) {
        match self.state {
            State::Running { .. } | State::Paused => {
                self.keep(actions);
                if let State::Running { .. } = self.state {
                    self.handle(Handling::Pausing, Action::Pause, actions);
                }
            }
            // Decided when it runs, or has ended.
            State::Launching
            | State::Booting { .. }
            | State::Leaving { .. }
            | State::Handling { .. }
            | State::Stopping { .. }
            | State::Stopped {
                by: StoppedBy::Guest,
            }
            | State::Removed => {}
            State::Pending
            | State::Preparing { .. }
            | State::Stopped {
                by: StoppedBy::Goal,
            }
            | State::Backoff { .. }
            | State::Failed { .. } => self.rest(actions),
        }
    }

    /// Takes the next snapshot that is wanted; goes on from a pause that is over.
    pub(super) fn keep(&mut self, actions: &mut Actions) {
        if !matches!(self.state, State::Running { .. } | State::Paused) {
            return;
        }
        if let Some(next) = self.next_snapshot() {
            self.why = format!("snapshot {} is being taken", next.name);
            let order = Action::TakeSnapshot(next.clone());
            self.handle(Handling::Snapshot(next), order, actions);
        } else if self.state == State::Paused && self.wants() == Presence::Run {
            self.handle(Handling::Resuming { asked: true }, Action::Resume, actions);
        }
    }

    /// Has the guest begin anew where it is.
    pub(super) fn reset(&mut self, actions: &mut Actions) {
        "an operator asked for a reset".clone_into(&mut self.why);
        self.handle(Handling::Resetting, Action::Reset, actions);
    }

    /// The guest has begun anew: nothing that was known of the last one is true of it.
    fn was_reset(&mut self, now: Duration, limits: &Limits, actions: &mut Actions) {
        let end = End {
            cause: Cause::Reset,
            detail: "an operator asked for it; its process went on".to_owned(),
        };
        tell_asked(
            actions,
            Reason::VmReset,
            "RestartRequested",
            "reset in place, as an operator asked",
            false,
        );
        self.note(end);
        self.why.clear();
        self.boot_id.clear();
        self.role = None;
        self.begun_with = Launch::Boot;
        self.boots = self.boots.saturating_add(1);
        self.state = State::Booting {
            launched: now,
            deadline: now + limits.boot,
        };
    }

    fn handle(&mut self, what: Handling, order: Action, actions: &mut Actions) {
        self.state = State::Handling { what };
        actions.push(order);
    }

    fn next_snapshot(&self) -> Option<SnapshotWanted> {
        let wanted = &self.wanted.as_ref()?.snapshots;
        let new = wanted
            .iter()
            .filter(|one| one.generation > self.snapshot_generation);
        new.min_by_key(|one| one.generation).cloned()
    }

    /// Deletes what the goal does not name any more.
    pub(super) fn drop_snapshots(&mut self, actions: &mut Actions) {
        let wanted = self.wanted.as_ref().map_or(&[][..], |it| &it.snapshots);
        self.snapshots.retain(|one| {
            let stays = wanted.contains(&one.wanted);
            if !stays {
                actions.push(Action::DeleteSnapshot(one.wanted.name.clone()));
            }
            stays
        });
    }

    /// Back to a snapshot, from wherever it is.
    pub(super) fn towards_snapshot(
        &mut self,
        now: Duration,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let Some(name) = self.goes_back_to() else {
            return self.refuse_restore("no snapshot is named".to_owned(), actions);
        };
        let start = Start {
            restore: true,
            ..Start::default()
        };
        match &mut self.state {
            // It has done nothing yet that could be lost.
            State::Booting { .. } => self.go_back(now, &name, limits, actions),
            State::Running { .. } | State::Leaving { .. } | State::Paused => {
                let paused = self.state == State::Paused;
                let order = Action::CheckSnapshot(name.clone());
                self.handle(Handling::Checking { name, paused }, order, actions);
            }
            State::Preparing { start } if start.restore => {}
            State::Pending
            | State::Preparing { .. }
            | State::Stopped { .. }
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Removed => {
                self.why.clear();
                self.begin(start, actions);
            }
            State::Stopping { then, .. } => *then = Then::Start(start),
            // Decided when that is done.
            State::Launching | State::Handling { .. } => {}
        }
    }

    /// The snapshot that an operator wants it to go back to now.
    fn goes_back_to(&self) -> Option<SnapshotName> {
        let wanted = self.wanted.as_ref().filter(|_| self.restoring.is_some());
        wanted?.restore.clone()
    }

    /// Gives up what runs for a snapshot.
    fn go_back(
        &mut self,
        now: Duration,
        name: &SnapshotName,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let why = format!("it goes back to snapshot {name}, as an operator asked");
        tell_asked(
            actions,
            Reason::InstanceRestoring,
            "RestoreRequested",
            &why,
            false,
        );
        let start = Start {
            restore: true,
            ..Start::default()
        };
        self.put_down(now, &why, Then::Start(start), limits, actions);
    }

    pub(super) fn on_handled(
        &mut self,
        now: Duration,
        handled: Handled,
        limits: &Limits,
        actions: &mut Actions,
    ) {
        let State::Handling { what } = &self.state else {
            return;
        };
        match (what.clone(), handled) {
            (Handling::Pausing, Handled::Paused(Ok(()))) => {
                "an operator asked for it".clone_into(&mut self.why);
                self.state = State::Paused;
                let message = "paused, as an operator asked; no sign of life is expected";
                tell_asked(
                    actions,
                    Reason::InstancePaused,
                    "PauseRequested",
                    message,
                    false,
                );
            }
            (Handling::Pausing, Handled::Paused(Err(why))) => {
                let why = format!("it cannot be paused: {why}");
                if self.why != why {
                    tell_asked(actions, Reason::PauseFailed, "PauseRequested", &why, true);
                }
                self.why = why;
                // Tried again with its next sign of life.
                return self.go_on(now, limits);
            }
            (Handling::Resuming { asked }, Handled::Resumed(Ok(()))) => {
                self.why.clear();
                self.go_on(now, limits);
                self.resumes = self.resumes.wrapping_add(1);
                if asked {
                    tell_asked(
                        actions,
                        Reason::InstanceResumed,
                        "ResumeRequested",
                        "it goes on",
                        false,
                    );
                }
            }
            (Handling::Resuming { .. }, Handled::Resumed(Err(why))) => {
                let why = format!("it does not go on: {why}");
                let then = Then::Recover {
                    cause: Cause::VmmFailed,
                    why: why.clone(),
                };
                return self.put_down(now, &why, then, limits, actions);
            }
            (Handling::Resetting, Handled::Reset(Ok(()))) => {
                self.was_reset(now, limits, actions);
            }
            (Handling::Resetting, Handled::Reset(Err(why))) => {
                let why = format!("it cannot be reset in place: {why}");
                tell_asked(
                    actions,
                    Reason::VmRestarting,
                    "RestartRequested",
                    &why,
                    false,
                );
                let then = Then::Start(Start::default());
                return self.put_down(now, &why, then, limits, actions);
            }
            (Handling::Snapshot(wanted), Handled::Snapshot(taken)) => {
                self.took(wanted, taken, actions);
                self.after_snapshot(actions);
            }
            (Handling::Checking { name, paused }, Handled::Checked(result)) => {
                // Another one may be wanted by now, or a pause.
                let is_it = self.goes_back_to().as_ref() == Some(&name);
                match result {
                    Ok(()) if is_it && self.wants() == Presence::Run => {
                        return self.go_back(now, &name, limits, actions);
                    }
                    Err(why) if is_it => self.refuse_restore(why, actions),
                    Ok(()) | Err(_) => {}
                }
                if paused {
                    self.state = State::Paused;
                } else {
                    self.go_on(now, limits);
                }
            }
            // An answer to what was asked before; this one's is to come.
            _ => return,
        }
        self.converge(now, None, limits, actions);
    }

    /// A snapshot has been taken or not; it stands still, if it is still there.
    pub(super) fn took(
        &mut self,
        wanted: SnapshotWanted,
        taken: Result<Taken, String>,
        actions: &mut Actions,
    ) {
        let name = &wanted.name;
        match &taken {
            Ok(facts) => {
                let size = bytesize::ByteSize::b(facts.bytes);
                let message = format!("snapshot {name} was taken, {size} on disk");
                tell_asked(
                    actions,
                    Reason::SnapshotTaken,
                    "SnapshotRequested",
                    &message,
                    false,
                );
            }
            Err(why) => {
                let message = format!("snapshot {name} was not taken: {why}");
                tell_asked(
                    actions,
                    Reason::SnapshotFailed,
                    "SnapshotRequested",
                    &message,
                    true,
                );
            }
        }
        self.snapshot_generation = self.snapshot_generation.max(wanted.generation);
        self.snapshots.push(Snapshot { wanted, taken });
        // It may have been deleted meanwhile.
        self.drop_snapshots(actions);
        self.state = State::Paused;
    }

    /// After a snapshot it is as it was before, unless another one is wanted.
    fn after_snapshot(&mut self, actions: &mut Actions) {
        if self.wants() == Presence::Pause {
            "an operator asked for it".clone_into(&mut self.why);
        } else if self.wants() == Presence::Run && self.next_snapshot().is_none() {
            let resuming = Handling::Resuming { asked: false };
            self.handle(resuming, Action::Resume, actions);
        }
    }

    fn go_on(&mut self, now: Duration, limits: &Limits) {
        self.state = State::Running {
            heard: now + limits.settle,
        };
    }

    /// The way back to a snapshot is not taken.
    pub(super) fn refuse_restore(&mut self, why: String, actions: &mut Actions) {
        if self.restoring.is_some() {
            let message = format!("not restored: {why}");
            tell(actions, Reason::RestoreFailed, &message, true);
        }
        self.end_restore(why);
    }

    /// A restore that is under way has been carried out, or not: why.
    pub(super) fn end_restore(&mut self, error: String) {
        if let Some(generation) = self.restoring.take() {
            self.restored = Restored { generation, error };
        }
    }
}
