//! The words of an instance's life: its states, what happens to it, and what is
//! to be done about it. See [`machine`](super::machine) for the picture.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use fabric_proto::id::SnapshotName;
use serde::{Deserialize, Serialize};

use crate::{events::Reason, guest::report::RoleReport};

/// Whether and how the goal wants the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whether it should be there and run.
    pub presence: Presence,
    /// Names what its disk is made from; a change needs a fresh disk.
    pub disk: String,
    /// Tells it from others of its name: each has a disk of its own.
    #[serde(default)]
    pub epoch: u64,
    /// Names what else a running machine cannot change; a change needs a restart.
    pub shape: String,
    /// Counts operators' restarts.
    pub restart_generation: u64,
    /// What the last of them restarts.
    pub restart_scope: Scope,
    /// Whether a guest that powers off by itself is started again.
    pub always_on: bool,
    /// How long the role may take to stop.
    pub stop_grace: Duration,
    /// Snapshots to have, in the order in which they were asked for.
    #[serde(default)]
    pub snapshots: Vec<SnapshotWanted>,
    /// The snapshot that [`Scope::Restore`] goes back to.
    #[serde(default)]
    pub restore: Option<SnapshotName>,
}

/// A snapshot to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotWanted {
    /// Its name.
    pub name: SnapshotName,
    /// Counts up with every snapshot of the instance.
    pub generation: u64,
}

/// A snapshot that was taken, or could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which.
    pub wanted: SnapshotWanted,
    /// What has become of it; why not.
    pub taken: Result<Taken, String>,
}

/// A snapshot that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// When it was taken.
    pub at: SystemTime,
    /// What it takes on the disk.
    pub bytes: u64,
}

/// Whether the goal wants the instance there and running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It should run.
    Run,
    /// What runs should stand still; what does not should not be started.
    Pause,
    /// An operator wants it stopped; its disk stays.
    Stop,
    /// It should be down for as long as its node rests; its disk stays.
    Rest,
    /// It should be down at once, for the node has no lease; its disk stays.
    Fence,
    /// It should not be here.
    Remove,
}

/// What an operator's restart restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The role, by the guest agent.
    Role,
    /// The virtual machine, on its disk.
    Vm,
    /// The virtual machine, on a fresh disk.
    Reimage,
    /// The virtual machine, from a snapshot.
    Restore,
    /// The guest, as its reset button would: the virtual machine's process stays.
    Reset,
}

/// How the next start is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// On a fresh disk, whatever is there.
    pub fresh: bool,
    /// To recover it, rather than because someone wants it.
    pub recovery: bool,
    /// Without a template, whatever there is.
    #[serde(default)]
    pub cold: bool,
    /// From the snapshot that an operator wants it to go back to.
    #[serde(default)]
    pub restore: bool,
}

/// Where an instance is. Times are those of the node's boot-time clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Known; nothing done yet.
    Pending,
    /// Image and package are fetched, disks are made.
    Preparing {
        /// How it will be started.
        start: Start,
    },
    /// A VMM is about to be spawned, or has been and is not in the manifest yet.
    Launching,
    /// The VMM runs; the guest agent has not said hello.
    Booting {
        /// When it was spawned.
        launched: Duration,
        /// When patience ends.
        deadline: Duration,
    },
    /// The guest agent is there.
    Running {
        /// Last sign of life.
        heard: Duration,
    },
    /// Its VMM has been given an order, or its files are looked at, and there is no
    /// answer yet. No sign of life is expected.
    Handling {
        /// What is done.
        what: Handling,
    },
    /// Its virtual processors stand still, because an operator wants it so.
    Paused,
    /// The guest said goodbye: it goes down on its own.
    Leaving {
        /// To come back up.
        reboot: bool,
        /// When it should be down.
        deadline: Duration,
    },
    /// On its way down.
    Stopping {
        /// How it is being stopped now.
        how: Stopping,
        /// When the next, harder way is taken.
        deadline: Duration,
        /// Whether that has been before: it did not go in time.
        #[serde(default)]
        overdue: bool,
        /// What comes after.
        then: Then,
    },
    /// Down, and meant to be.
    Stopped {
        /// Who wanted it.
        by: StoppedBy,
    },
    /// Failed; started again at a time.
    Backoff {
        /// When.
        until: Duration,
        /// How.
        start: Start,
    },
    /// Given up.
    Failed {
        /// When it is tried once more.
        retry_at: Duration,
    },
    /// Gone, and its directory with it.
    Removed,
}

/// What is done to a machine that runs or is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handling {
    /// It is being paused.
    Pausing,
    /// It is about to go on.
    Resuming {
        /// Because an operator wants it so; otherwise after a snapshot.
        asked: bool,
    },
    /// It is about to begin anew.
    Resetting,
    /// A snapshot is taken; it stands still meanwhile, and then until told otherwise.
    Snapshot(SnapshotWanted),
    /// The snapshot that it is to go back to is verified, before what it is now is
    /// given up.
    Checking {
        /// Which.
        name: SnapshotName,
        /// Whether it is paused.
        paused: bool,
    },
}

impl Handling {
    /// That this could not be done.
    #[must_use]
    pub fn failed(&self, why: String) -> Handled {
        match self {
            Self::Pausing => Handled::Paused(Err(why)),
            Self::Resuming { .. } => Handled::Resumed(Err(why)),
            Self::Resetting => Handled::Reset(Err(why)),
            Self::Snapshot(_) => Handled::Snapshot(Err(why)),
            Self::Checking { .. } => Handled::Checked(Err(why)),
        }
    }
}

/// The ways to stop a machine, each harder than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopping {
    /// The guest agent has been asked to power off, or the guest's power button was
    /// pressed where the guest agent is not there to be asked.
    Asking,
    /// The VMM has been told to end.
    Ordering,
    /// The VMM has been killed.
    Killing,
}

/// What comes after a machine has been stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// What the goal says then.
    Goal,
    /// A start, if the goal still wants it to run.
    Start(Start),
    /// What follows a guest's own end, though it had to be helped.
    Ended {
        /// It wanted to come back up.
        reboot: bool,
    },
    /// The ladder decides, if the goal still wants it to run.
    Recover {
        /// What was wrong, in a word.
        #[serde(default)]
        cause: Cause,
        /// In a line.
        why: String,
    },
}

/// Who wanted a machine to be down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoppedBy {
    /// The goal.
    Goal,
    /// The guest itself, by powering off.
    Guest,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// There is a goal for it.
    Goal(Wanted),
    /// Disks are there, or cannot be made.
    Prepared(Result<(), Unprepared>),
    /// The VMM has been spawned, or could not be.
    Launched(Result<Launch, String>),
    /// The VMM has ended.
    Exited(Exit),
    /// What was to be done in [`State::Handling`] has been done, or not; why not.
    Handled(Handled),
    /// The guest agent said something.
    Guest(GuestSaid),
    /// The guest has no goal yet, or is being told it only now: until it has one, it has
    /// nothing to say.
    Resting,
    /// A deadline has passed.
    Tick {
        /// How long the machine could have run and had no processor, since it was last
        /// heard or this was said last.
        starved: Duration,
    },
}

/// What a VMM that was spawned begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Launch {
    /// The guest's kernel boots.
    #[default]
    Boot,
    /// The guest goes on from a template, in which its agent is about to say hello.
    Template,
    /// The guest goes on from where a template's kernel had booted, on its own disk.
    Booted,
    /// The guest goes on from a snapshot of itself.
    Snapshot,
}

impl Launch {
    /// Whether a template can be what is wrong with it.
    #[must_use]
    pub fn is_from_template(self) -> bool {
        matches!(self, Self::Template | Self::Booted)
    }
}

/// What has become of a [`Handling`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// It stands still, or does not.
    Paused(Result<(), String>),
    /// It goes on, or does not.
    Resumed(Result<(), String>),
    /// It has begun anew, or has not.
    Reset(Result<(), String>),
    /// The snapshot is there, or is not. It stands still.
    Snapshot(Result<Taken, String>),
    /// The snapshot can be gone back to, or cannot.
    Checked(Result<(), String>),
}

impl Handled {
    /// Whether it has been done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Paused(done) | Self::Resumed(done) | Self::Reset(done) | Self::Checked(done) => {
                done.is_ok()
            }
            Self::Snapshot(taken) => taken.is_ok(),
        }
    }
}

/// Why disks could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprepared {
    /// The reason, for people.
    pub reason: String,
    /// Whether it may be gone by itself the next time.
    pub may_pass: bool,
}

/// What a guest agent said.
#[derive(Debug, Clone)]
pub enum GuestSaid {
    /// It is there.
    Hello {
        /// Which boot of its kernel this is.
        boot_id: String,
    },
    /// It is still there.
    Heartbeat,
    /// How its role is.
    Role(RoleReport),
    /// Nothing any more: its session has ended, and there is no other.
    Gone,
    /// It goes down on purpose.
    Goodbye {
        /// To come back up.
        reboot: bool,
    },
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// In a word.
    pub kind: ExitKind,
    /// In a line.
    pub detail: String,
    /// Its last words as it wrote them; empty if it had none.
    pub json: String,
}

/// How a VMM ended, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// The guest powered off.
    GuestPowerOff,
    /// The guest reset itself.
    GuestReset,
    /// The guest's kernel panicked.
    KernelPanic,
    /// It was told to stop.
    Stopped,
    /// The guest has become a template.
    TemplateMade,
    /// A virtual processor met a fault that it could not even handle by a fault.
    TripleFault,
    /// Its process was killed, by whoever may do that.
    Killed,
    /// The kernel killed it, for it went beyond its memory.
    OutOfMemory,
    /// The kernel killed it, for it made a system call that it may not make.
    ForbiddenCall,
    /// The VMM would not run it: its configuration, kernel or a disk cannot be used.
    Refused,
    /// The VMM failed.
    Failed,
}

impl ExitKind {
    /// Whether the process was ended from outside, without a word of its own.
    #[must_use]
    pub fn is_a_kill(self) -> bool {
        matches!(self, Self::Killed | Self::OutOfMemory | Self::ForbiddenCall)
    }
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestPowerOff => "the guest powered off",
            Self::GuestReset => "the guest rebooted",
            Self::KernelPanic => "the guest's kernel panicked",
            Self::Stopped => "the virtual machine was stopped",
            Self::TemplateMade => "the virtual machine became a template",
            Self::TripleFault => "the guest met a triple fault",
            Self::Killed => "the virtual machine's process was killed",
            Self::OutOfMemory => "the virtual machine's process went beyond its memory",
            Self::ForbiddenCall => "the virtual machine's process made a forbidden system call",
            Self::Refused => "the virtual machine cannot be run",
            Self::Failed => "the virtual machine failed",
        })
    }
}

/// Why a virtual machine is not there any longer: what it did, or what was done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// In a word.
    pub cause: Cause,
    /// In a line.
    pub detail: String,
}

/// Why a virtual machine ended, in a word. Each is told apart from the others
/// wherever ends are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its guest powered off.
    PoweredOff,
    /// Its guest rebooted.
    Rebooted,
    /// Its guest's kernel panicked.
    Panicked,
    /// Its guest met a triple fault.
    TripleFault,
    /// Its guest was silent for too long: the watchdog bit.
    Hung,
    /// Its guest did not come up in time.
    NotUp,
    /// Its role kept failing.
    RoleFailed,
    /// It was stopped, as the goal or an operator said.
    Stopped,
    /// The same, but it did not go in time: its role or all of it was killed.
    StoppedByForce,
    /// It was reset, as an operator said; its process went on.
    Reset,
    /// Its node's lease ended.
    LeaseEnded,
    /// Its process was killed.
    Killed,
    /// It went beyond its memory.
    OutOfMemory,
    /// It made a system call that it may not make.
    ForbiddenCall,
    /// It cannot be run.
    Refused,
    /// The VMM failed.
    #[default]
    VmmFailed,
}

impl Cause {
    /// The word, as it is told, kept and shown.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered_off",
            Self::Rebooted => "rebooted",
            Self::Panicked => "panicked",
            Self::TripleFault => "triple_fault",
            Self::Hung => "hung",
            Self::NotUp => "not_up",
            Self::RoleFailed => "role_failed",
            Self::Stopped => "stopped",
            Self::StoppedByForce => "stopped_by_force",
            Self::Reset => "reset",
            Self::LeaseEnded => "lease_ended",
            Self::Killed => "killed",
            Self::OutOfMemory => "out_of_memory",
            Self::ForbiddenCall => "forbidden_call",
            Self::Refused => "refused",
            Self::VmmFailed => "vmm_failed",
        }
    }
}

impl From<ExitKind> for Cause {
    fn from(kind: ExitKind) -> Self {
        match kind {
            ExitKind::GuestPowerOff => Self::PoweredOff,
            ExitKind::GuestReset => Self::Rebooted,
            ExitKind::KernelPanic => Self::Panicked,
            ExitKind::Stopped | ExitKind::TemplateMade => Self::Stopped,
            ExitKind::TripleFault => Self::TripleFault,
            ExitKind::Killed => Self::Killed,
            ExitKind::OutOfMemory => Self::OutOfMemory,
            ExitKind::ForbiddenCall => Self::ForbiddenCall,
            ExitKind::Refused => Self::Refused,
            ExitKind::Failed => Self::VmmFailed,
        }
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch what is missing and make the disks.
    Prepare {
        /// Throw away a disk that is there.
        fresh: bool,
        /// Use no template.
        cold: bool,
        /// Take disk and memory from this snapshot.
        restore: Option<SnapshotName>,
    },
    /// Spawn the VMM.
    Launch,
    /// Tell the VMM to stand still.
    Pause,
    /// Tell the VMM to go on.
    Resume,
    /// Tell the VMM to begin anew.
    Reset,
    /// Take a snapshot; the VMM stands still then.
    TakeSnapshot(SnapshotWanted),
    /// Verify a snapshot.
    CheckSnapshot(SnapshotName),
    /// Delete a snapshot, if it is there.
    DeleteSnapshot(SnapshotName),
    /// Have the VMM press the guest's power button.
    PressPowerButton,
    /// Tell the VMM to end.
    OrderStop,
    /// Kill the VMM.
    Kill,
    /// Have the template thrown away that it was started from.
    RefuseTemplate {
        /// What went wrong with it.
        why: String,
    },
    /// Remove the directory and everything in it.
    Remove,
    /// Tell operators.
    Tell(Note),
}

/// Something to tell operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What, as a stable word.
    pub reason: Reason,
    /// What led to it.
    pub because: Because,
    /// One line for people.
    pub message: String,
    /// Whether something failed.
    pub warning: bool,
}

/// What led to something that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// Nothing that is known: it happened by itself.
    Nothing,
    /// What was told last of the same instance.
    Before,
    /// What has this reason, of the same instance: the controller may have told it.
    Event(String),
}
