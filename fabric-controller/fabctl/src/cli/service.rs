//! Services, and their updates.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Wait;

/// What can be done with services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Make a service as a file says: create, scale, change. Shows what changes.
    /// Instances that are there are changed one upgrade domain after another.
    Apply(Apply),
    /// Show what `apply` would change: to whom, in what order, and why.
    Plan(Plan),
    /// Show how a file differs from what the service is.
    Diff(Plan),
    /// List the services.
    List,
    /// Show one and its instances.
    Show {
        /// Its name.
        name: String,
    },
    /// Exchange what is in production and in staging. No instance is restarted or
    /// renamed, and the same again undoes it.
    Swap {
        /// Name of the service.
        name: String,
    },
    /// List what a service was to be, newest first.
    History {
        /// Name of the service.
        name: String,
    },
    /// Make a service what it was before, by the same walk as `apply`.
    Rollback(Rollback),
    /// Remove one and all of its instances, or what is in one of its slots.
    Delete(DeleteService),
}

/// Which of a service's two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Slot {
    /// Where its users are.
    Production,
    /// Where the next version is tried.
    Staging,
}

/// Settings of `service plan` and `service diff`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fabctl service plan -f service.toml\n  \
fabctl service diff -f service.toml --slot staging")]
pub struct Plan {
    /// The service file; - is standard input.
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,
    /// In which slot.
    #[arg(long, value_enum, default_value_t = Slot::Production)]
    pub slot: Slot,
}

/// Settings of `service rollback`.
#[derive(Debug, Args)]
#[command(
    after_help = "Images and packages of the revisions that are kept are kept with them.\n\
Examples:\n  fabctl service history shop\n  fabctl service rollback shop --to 3 --wait"
)]
pub struct Rollback {
    /// Name of the service.
    pub name: String,
    /// To which revision; by default the one before what it is to be now.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub to: u64,
    /// In which slot.
    #[arg(long, value_enum, default_value_t = Slot::Production)]
    pub slot: Slot,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}

/// What can be done with updates.
#[derive(Debug, Subcommand)]
pub enum UpdateCommand {
    /// Show how the update of a service stands, and what it waits for.
    Status(OneUpdate),
    /// Halt it: nothing more is changed until it is resumed.
    Pause(OneUpdate),
    /// Let it go on, also after it has stopped because something failed.
    Resume(OneUpdate),
    /// Give it up: what was changed is changed back, one upgrade domain after another.
    Abort(OneUpdate),
    /// Do not wait for the bake time of the upgrade domain that it is in. Instances
    /// that are not Ready are waited for all the same.
    Advance(OneUpdate),
}

/// Whose update.
#[derive(Debug, Args)]
pub struct OneUpdate {
    /// Name of the service.
    #[arg(value_name = "SERVICE")]
    pub name: String,
    /// In which slot.
    #[arg(long, value_enum, default_value_t = Slot::Production)]
    pub slot: Slot,
}

/// Settings of `service apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl service apply -f service.toml --dry-run\n  \
fabctl service apply -f service.toml --wait --timeout 5m"
)]
pub struct Apply {
    /// The service file; - is standard input.
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// In which slot.
    #[arg(long, value_enum, default_value_t = Slot::Production)]
    pub slot: Slot,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}

/// Settings of `service delete`.
#[derive(Debug, Args)]
pub struct DeleteService {
    /// Its name.
    pub name: String,
    /// Only what is in this slot.
    #[arg(long, value_enum)]
    pub slot: Option<Slot>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
}
