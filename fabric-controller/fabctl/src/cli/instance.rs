//! Instances.

use clap::{Args, Subcommand, ValueEnum};

use super::Wait;

/// What can be done with instances.
#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// List the instances.
    List {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
    },
    /// Show one, with everything that is known of it.
    Show {
        /// Its id, such as shop-web-0.
        id: String,
    },
    /// Restart one: its role, its virtual machine, or that on a fresh disk.
    Restart {
        /// Its id, such as shop-web-0.
        id: String,
        /// What to restart.
        #[arg(long, value_enum, default_value_t = Scope::Role)]
        scope: Scope,
    },
    /// Pause one: it keeps its memory and does nothing, until it is resumed. No sign
    /// of life is expected of it meanwhile, and nothing brings it back but `resume`,
    /// `restore` and the removal of its service.
    Pause(OneInstance),
    /// Let one that is paused go on, with its clock set anew.
    Resume(OneInstance),
    /// Stop one: its guest powers off, and is ended when it does not in time. It keeps
    /// its disk and its node, and nothing starts it again but `start` and `restore`.
    Stop(Stop),
    /// Start one that was stopped, on its disk.
    Start(OneInstance),
    /// Take a snapshot of one: its memory, devices and disk as they are now. It
    /// stands still for as long as that takes.
    Snapshot(OneSnapshot),
    /// List the snapshots of one.
    Snapshots {
        /// Its id, such as shop-web-0.
        id: String,
    },
    /// Take one back to a snapshot of itself. What it has done since is lost; one
    /// that is paused is resumed by it, one that is stopped is started.
    Restore(OneSnapshot),
    /// Delete a snapshot.
    DeleteSnapshot {
        /// Id of its instance, such as shop-web-0.
        id: String,
        /// Its name.
        name: String,
    },
    /// Show what a role has written to its standard output and error.
    Logs(Output),
    /// Show a guest's serial console.
    Console(Output),
}

/// Which instance, and whether to wait.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl instance pause shop-web-0 --wait\n  \
fabctl instance resume shop-web-0 --wait --timeout 30s\n  \
fabctl instance stop shop-web-0 --wait\n  fabctl instance start shop-web-0 --wait"
)]
pub struct OneInstance {
    /// Its id, such as shop-web-0.
    pub id: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}

/// Which instance, and how long it has.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fabctl instance stop shop-web-0 --wait\n  \
fabctl instance stop shop-web-0 --grace 10m --wait --timeout 11m\n  \
fabctl instance stop shop-web-0 --grace 0s")]
pub struct Stop {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub one: OneInstance,
    /// How long its role has to end before it is killed, 0s to 1h; by default what its
    /// service's file says as stop_grace. Said of one that is being stopped, it is the
    /// time from now.
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<humantime::Duration>,
}

/// Which snapshot of which instance, and whether to wait.
#[derive(Debug, Args)]
#[command(
    after_help = "A snapshot stays on its instance's node and goes with the instance. It can be\n\
restored while the instance has the image, package and size that it had then.\n\
Examples:\n  fabctl instance snapshot shop-web-0 before-update --wait\n  \
fabctl instance snapshots shop-web-0\n  fabctl instance restore shop-web-0 before-update --wait"
)]
pub struct OneSnapshot {
    /// Id of the instance, such as shop-web-0.
    pub id: String,
    /// Name of the snapshot: 1 to 63 of a-z, 0-9, '-', '.' and '_'.
    pub name: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}

/// What to restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// The role's process, by the guest agent.
    Role,
    /// The guest, at once, as its reset button would: its virtual machine stays.
    Reset,
    /// The virtual machine, gracefully, on its disk.
    Vm,
    /// The virtual machine, on a fresh disk.
    Reimage,
}

/// Settings of `logs` and `console`.
#[derive(Debug, Args)]
pub struct Output {
    /// Id of the instance, such as shop-web-0.
    pub id: String,
    /// Go on with what comes, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with at most so many of the newest bytes; by default all.
    #[arg(long, value_name = "SIZE")]
    pub tail: Option<bytesize::ByteSize>,
}
