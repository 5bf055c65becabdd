//! Machines.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};

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
    /// Give one labels and a fault domain, beside what its host agent says, or take them
    /// back. Instances that are on it stay.
    Label(LabelNode),
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

/// Settings of `node label`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl node label node-1 disk=nvme rack-row=4\n  \
fabctl node label node-1 disk-\n  fabctl node label node-1 --fault-domain rack-7"
)]
pub struct LabelNode {
    /// Its name.
    pub name: String,
    /// KEY=VALUE gives it a label, over one that it says itself; KEY- takes it back.
    #[arg(
        value_name = "KEY=VALUE|KEY-",
        value_parser = change,
        required_unless_present_any = ["fault_domain", "no_fault_domain"]
    )]
    pub changes: Vec<LabelChange>,
    /// What it fails together with, such as its rack, whatever its labels say.
    #[arg(
        long,
        value_name = "RACK",
        conflicts_with = "no_fault_domain",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub fault_domain: Option<String>,
    /// Take back what was said with --fault-domain: its label `fault-domain` counts
    /// again, or it is a domain of its own.
    #[arg(long)]
    pub no_fault_domain: bool,
}

/// A change of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// It is given, with this value.
    Set(String, String),
    /// It is taken back.
    Remove(String),
}

fn change(text: &str) -> Result<LabelChange, String> {
    let change = match text.split_once('=') {
        Some((key, value)) if !value.is_empty() => LabelChange::Set(key.into(), value.into()),
        Some(_) => return Err("the value is empty; KEY- takes a label back".to_owned()),
        None => match text.strip_suffix('-') {
            Some(key) => LabelChange::Remove(key.to_owned()),
            None => return Err("must be KEY=VALUE or KEY-".to_owned()),
        },
    };
    match &change {
        LabelChange::Set(key, _) | LabelChange::Remove(key) if key.is_empty() => {
            Err("the key is empty".to_owned())
        }
        _ => Ok(change),
    }
}
