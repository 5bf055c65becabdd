//! What is reported of an instance.

use std::collections::BTreeMap;

use fabric_proto::{id::InstanceId, node::v1 as wire};
use tokio::sync::watch;

use super::{
    machine::Machine,
    manifest::Manifest,
    state::{Cause, Handling, Snapshot, State},
};
use crate::{clock, goal::GoalError, guest::report::RoleReport};

/// The newest report on every instance of the node.
#[derive(Debug, Default)]
pub struct Board {
    reports: watch::Sender<BTreeMap<InstanceId, wire::InstanceStatus>>,
}

impl Board {
    /// Puts up a report, if it says something new.
    pub fn put(&self, id: &InstanceId, report: wire::InstanceStatus) {
        self.reports.send_if_modified(|reports| {
            if reports.get(id) == Some(&report) {
                return false;
            }
            reports.insert(id.clone(), report);
            true
        });
    }

    /// There is nothing to report on that one any longer.
    pub fn take_down(&self, id: &InstanceId) {
        self.reports
            .send_if_modified(|reports| reports.remove(id).is_some());
    }

    /// The reports, and word when they change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<InstanceId, wire::InstanceStatus>> {
        self.reports.subscribe()
    }
}

/// The word for a state that others see.
#[must_use]
pub fn vm_state(state: &State) -> wire::VmState {
    match state {
        State::Pending => wire::VmState::Pending,
        State::Preparing { .. } => wire::VmState::Preparing,
        State::Launching | State::Booting { .. } => wire::VmState::Booting,
        State::Running { .. }
        | State::Handling {
            what: Handling::Pausing | Handling::Checking { paused: false, .. },
        } => wire::VmState::Running,
        State::Paused | State::Handling { .. } => wire::VmState::Paused,
        State::Leaving { .. } | State::Stopping { .. } => wire::VmState::Stopping,
        State::Stopped { .. } | State::Removed => wire::VmState::Stopped,
        State::Backoff { .. } => wire::VmState::Backoff,
        State::Failed { .. } => wire::VmState::Failed,
    }
}

/// The report on an instance.
#[must_use]
pub fn report(id: &InstanceId, manifest: &Manifest) -> wire::InstanceStatus {
    let machine = &manifest.machine;
    wire::InstanceStatus {
        instance_id: id.to_string(),
        epoch: manifest.epoch,
        vm_state: vm_state(machine.state()).into(),
        vm_reason: machine.why().to_owned(),
        vm_since: Some(manifest.since.into()),
        role: machine.role().map(RoleReport::to_wire),
        vmm_pid: manifest.process.as_ref().map_or(0, |process| process.pid),
        boots: machine.boots(),
        vm_restarts: machine.vm_restarts(),
        reimages: machine.reimages(),
        boot_to_hello: machine
            .boot_to_hello()
            .and_then(|took| took.try_into().ok()),
        last_exit_json: manifest.last_exit.clone(),
        boot_id: machine.boot_id().to_owned(),
        restart_generation: machine.restart_generation(),
        snapshots: snapshots(machine),
        restored_generation: machine.restored().generation,
        restore_error: machine.restored().error.clone(),
        last_end: machine.end().map(|end| wire::VmEnd {
            cause: cause(end.cause).into(),
            detail: crate::guest::report::cut(&end.detail),
            time: manifest.ended.map(Into::into),
        }),
    }
}

/// The word for a cause that others see.
fn cause(cause: Cause) -> wire::VmEndCause {
    match cause {
        Cause::PoweredOff => wire::VmEndCause::PoweredOff,
        Cause::Rebooted => wire::VmEndCause::Rebooted,
        Cause::Panicked => wire::VmEndCause::Panicked,
        Cause::TripleFault => wire::VmEndCause::TripleFault,
        Cause::Hung => wire::VmEndCause::Hung,
        Cause::NotUp => wire::VmEndCause::NotUp,
        Cause::RoleFailed => wire::VmEndCause::RoleFailed,
        Cause::Stopped => wire::VmEndCause::Stopped,
        Cause::StoppedByForce => wire::VmEndCause::StoppedByForce,
        Cause::Reset => wire::VmEndCause::Reset,
        Cause::LeaseEnded => wire::VmEndCause::LeaseEnded,
        Cause::Killed => wire::VmEndCause::Killed,
        Cause::OutOfMemory => wire::VmEndCause::OutOfMemory,
        Cause::ForbiddenCall => wire::VmEndCause::ForbiddenCall,
        Cause::Refused => wire::VmEndCause::Refused,
        Cause::VmmFailed => wire::VmEndCause::VmmFailed,
    }
}

/// Those that were dealt with, and those that are still to be taken.
fn snapshots(machine: &Machine) -> Vec<wire::SnapshotStatus> {
    let known = machine.snapshots().iter().map(snapshot);
    let wanted = machine.wanted().map_or(&[][..], |it| &it.snapshots);
    let coming = wanted
        .iter()
        .filter(|one| machine.snapshots().iter().all(|it| it.wanted != **one))
        .map(|one| wire::SnapshotStatus {
            name: one.name.to_string(),
            generation: one.generation,
            state: wire::SnapshotState::Taking.into(),
            ..wire::SnapshotStatus::default()
        });
    known.chain(coming).collect()
}

fn snapshot(snapshot: &Snapshot) -> wire::SnapshotStatus {
    let told = wire::SnapshotStatus {
        name: snapshot.wanted.name.to_string(),
        generation: snapshot.wanted.generation,
        ..wire::SnapshotStatus::default()
    };
    match &snapshot.taken {
        Ok(taken) => wire::SnapshotStatus {
            state: wire::SnapshotState::Ready.into(),
            taken: Some(taken.at.into()),
            bytes: taken.bytes,
            ..told
        },
        Err(why) => wire::SnapshotStatus {
            state: wire::SnapshotState::Failed.into(),
            reason: why.clone(),
            ..told
        },
    }
}

/// The report on an instance that was refused and is not here.
#[must_use]
pub fn refusal(id: &InstanceId, error: &GoalError) -> wire::InstanceStatus {
    wire::InstanceStatus {
        instance_id: id.to_string(),
        vm_state: wire::VmState::Failed.into(),
        vm_reason: format!("its goal was refused: {error}"),
        vm_since: Some(clock::wall_time().into()),
        ..wire::InstanceStatus::default()
    }
}
