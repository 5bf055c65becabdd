//! Machines.

use clap::{Args, Subcommand};

use super::Wait;

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the machines.
    List,
    /// Show one, with everything that is known of it.
    Show(OneNode),
    /// Place nothing new on one; what it has stays.
    Cordon(OneNode),
    /// Let one have new instances again, whatever speaks against it, and stop draining it.
    Uncordon(OneNode),
    /// Cordon one and start what it has on others: of each role one upgrade domain at a
    /// time, and only while all others are well.
    Drain(DrainNode),
    /// Forget one that is not there any more. Refused while it may still run anything.
    Remove(OneNode),
}

/// Which machine.
#[derive(Debug, Args)]
pub struct OneNode {
    /// Its name.
    pub name: String,
}

/// Settings of `node drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl node drain node-1 --wait --timeout 10m\n  \
fabctl node uncordon node-1"
)]
pub struct DrainNode {
    /// Its name.
    pub name: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}
