//! Steps at which the host agent can be made to end, as by `kill -9`, to see the next
//! one go on; see [`fabric_fail_points`]. Only with the feature `fail-points`.

use crate::{
    guest::report::{RoleCondition, RoleReport},
    instance::{
        machine::Machine,
        state::{Handled, Handling, State, Then},
    },
};

fabric_fail_points::fail_points! {
    "The steps of an instance's life, in their order, and of what is done in it."
    life {
        /// A goal has come, and is not kept yet.
        GoalTaken,
        /// A file has been written, and does not have its name yet.
        FileWritten,
        /// The goal is kept, and nothing has been done about it.
        GoalKept,
        /// The instance's directory is there, with nothing in it.
        DirectoryMade,
        /// The instance is on record, as one that is being made ready.
        Recorded,
        /// Image and package are there.
        BlobsThere,
        /// The template's disk is linked, and nothing stands on it.
        TemplateLinked,
        /// The disk is there.
        DiskMade,
        /// It is on record that a VMM is about to be started.
        Launching,
        /// The VMM's configuration is there.
        Configured,
        /// The control group is there, with nobody in it.
        GroupMade,
        /// The VMM runs, and nobody knows which process it is.
        Spawned,
        /// The VMM is on record.
        LaunchRecorded,
        /// The guest agent's hello is on record.
        HelloRecorded,
        /// The role is ready, which is on record.
        ReadyRecorded,
        /// The instance is to go, and its epoch is kept.
        EpochKept,
        /// It is on record that the instance is to stop, and the guest has not been told.
        StopRecorded,
        /// The VMM has ended, which is not on record; its group is there.
        VmmEnded,
        /// The group is gone.
        GroupRemoved,
        /// The VMM has ended, and the directory is to go.
        Removing,
        /// The record is gone, and all other files are there.
        RecordGone,
        /// All files are gone, which has not been told.
        FilesGone,
        /// It has been told, and the directory is there.
        RemovalTold,
        /// The directory is gone.
        DirectoryGone,
    }
    pause {
        /// It is on record that the virtual machine is to stand still, and it has not
        /// been told.
        PauseRecorded,
        /// It stands still, which is not on record.
        VmmPaused,
        /// That it stands still is on record.
        PausedRecorded,
        /// It is on record that it is to go on, and it has not been told.
        ResumeRecorded,
        /// It goes on, which is not on record.
        VmmResumed,
    }
    snapshot {
        /// It is on record that a snapshot is to be taken.
        SnapshotRecorded,
        /// The virtual machine stands still for it.
        SnapshotStill,
        /// The VMM has written its part, where it may write.
        SnapshotWritten,
        /// That is ours.
        SnapshotTakenOver,
        /// The snapshot is whole, and does not have its name yet.
        SnapshotWhole,
        /// It has its name, and is not on record.
        SnapshotNamed,
        /// It is on record, and the virtual machine stands still.
        SnapshotKept,
        /// It is on no record any more, and its files are there.
        SnapshotDropped,
    }
    restore {
        /// It is on record that the snapshot to go back to is verified.
        CheckRecorded,
        /// It is sound, which is not on record.
        SnapshotSound,
        /// It is on record that the virtual machine goes for it.
        GoingBackRecorded,
        /// It is gone, and the instance is on record as one that goes back.
        RestoreRecorded,
        /// The snapshot's disk is copied, and the instance has the one of before.
        DiskCopied,
        /// The instance has the snapshot's disk.
        DiskBack,
    }
    template {
        /// There is a directory to make a template in.
        TemplateBegun,
        /// There is a disk in it.
        TemplateDiskMade,
        /// Its guest runs.
        TemplateLaunched,
        /// Its guest has ended as a template.
        TemplateWritten,
        /// The template is whole, and does not have its name yet.
        TemplateWhole,
        /// It has its name, and nobody has it.
        TemplateNamed,
    }
}

impl Step {
    /// The step that has been taken when this is on record.
    #[must_use]
    pub fn on_record(machine: &Machine) -> Option<Self> {
        let ready = |role: &RoleReport| role.condition == RoleCondition::Ready;
        match machine.state() {
            State::Preparing { start } if start.restore => Some(Self::RestoreRecorded),
            State::Preparing { .. } => Some(Self::Recorded),
            State::Launching => Some(Self::Launching),
            State::Booting { .. } => Some(Self::LaunchRecorded),
            State::Running { .. } if machine.role().is_some_and(ready) => Some(Self::ReadyRecorded),
            State::Running { .. } => Some(Self::HelloRecorded),
            State::Handling { what } => match what {
                Handling::Pausing => Some(Self::PauseRecorded),
                Handling::Resuming { asked: true } => Some(Self::ResumeRecorded),
                Handling::Resuming { asked: false } => Some(Self::SnapshotKept),
                Handling::Snapshot(_) => Some(Self::SnapshotRecorded),
                Handling::Checking { .. } => Some(Self::CheckRecorded),
                Handling::Resetting => None,
            },
            State::Paused => Some(Self::PausedRecorded),
            State::Stopping {
                then: Then::Start(start),
                ..
            } if start.restore => Some(Self::GoingBackRecorded),
            State::Stopping { .. } => Some(Self::StopRecorded),
            _ => None,
        }
    }

    /// The step that has been taken when this has been done.
    #[must_use]
    pub fn when(handled: &Handled) -> Option<Self> {
        match handled {
            Handled::Paused(Ok(())) => Some(Self::VmmPaused),
            Handled::Resumed(Ok(())) => Some(Self::VmmResumed),
            Handled::Snapshot(Ok(_)) => Some(Self::SnapshotNamed),
            Handled::Checked(Ok(())) => Some(Self::SnapshotSound),
            _ => None,
        }
    }
}

/// Comes to a step: the last one, if it is armed.
#[cfg(feature = "fail-points")]
pub fn reached(step: Step) {
    fabric_fail_points::end_at(step);
}

/// Comes to a step, and passes.
#[cfg(not(feature = "fail-points"))]
pub fn reached(_: Step) {}
