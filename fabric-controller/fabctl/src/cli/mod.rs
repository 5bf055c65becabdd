//! The command line: what can be said, and what it means.

mod blob;
mod context;
mod health;
mod instance;
mod node;
mod placement;
mod service;
mod story;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::{
    blob::{Architecture, BlobCommand, Build, ImageCommand, ImageUpload, PackageCommand, Upload},
    context::ContextCommand,
    health::{Doctor, SupportBundle},
    instance::{InstanceCommand, OneInstance, OneSnapshot, Output, Scope, Stop},
    node::{DrainNode, LabelChange, LabelNode, NodeCommand},
    placement::{Explain, Simulate},
    service::{
        Apply, DeleteService, OneUpdate, Plan, Rollback, ServiceCommand, Slot, UpdateCommand,
    },
    story::{Audit, Events, Watch, Why},
};

/// Talks to a fabric controller: machines, images, packages, services,
/// instances, events.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = AFTER)]
pub struct Cli {
    /// The controller: HOST:PORT, or unix:PATH, which needs no certificate
    /// [default: the context's].
    #[arg(long, global = true, value_name = "ADDRESS", env = "FABRIC_SERVER")]
    pub server: Option<String>,

    /// Which context to use [default: the current one].
    #[arg(long, global = true, value_name = "NAME", env = "FABCTL_CONTEXT")]
    pub context: Option<String>,

    /// How to show things: a table for people, or JSON for programs (lists as
    /// one array; what follows as one object a line).
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Examples:
  fabctl image upload guest-os guest-os.vhd
  fabctl package build ./hello -o hello.vhd && fabctl package upload hello-web hello.vhd
  fabctl service apply -f service.toml --wait
  fabctl instance list
  fabctl watch
  fabctl why shop-web-0
  fabctl doctor

Where the controller is, and who you are to it, is a context: `fabric-controller init`
makes the first, an administrator makes others (`fabric-controller certificate create`).
They are kept in $FABCTL_CONFIG, or else ~/.config/fabctl/config.toml.

Exit codes:
  0  done
  1  failed
  2  wrong use of the command line
  3  there is no such thing, or the controller refuses it as things are
  4  what was waited for did not come about in time
  5  `fabctl doctor` has found something";

/// How to show things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The machines.
    #[command(subcommand)]
    Node(NodeCommand),
    /// OS images: VHDs that guests boot from.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Packages: VHDs with a role's files.
    #[command(subcommand)]
    Package(PackageCommand),
    /// Hosted services.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Rolling updates of the services.
    #[command(subcommand)]
    Update(UpdateCommand),
    /// Instances of the services' roles.
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// Say why an instance is where it is, or nowhere, and why not elsewhere.
    Explain(Explain),
    /// Say which instances would go where if something happened; nothing is done.
    Simulate(Simulate),
    /// Tell how an instance failed and came back, in order: what led to what.
    Why(Why),
    /// Look for what is wrong, and say what to do about each thing.
    Doctor(Doctor),
    /// Gather what an engineer would ask for into one file, without secrets.
    SupportBundle(SupportBundle),
    /// What has happened.
    Events(Events),
    /// Who did what: the audit log. For administrators.
    Audit(Audit),
    /// The controllers that are known, and as whom each is talked to.
    #[command(subcommand)]
    Context(ContextCommand),
    /// A live view of nodes, services, instances and events.
    Watch(Watch),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Whether to wait, and how long.
#[derive(Debug, Args)]
pub struct Wait {
    /// Wait until it has come about.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait at most.
    #[arg(long, value_name = "TIME", default_value = "120s")]
    pub timeout: humantime::Duration,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_simulation_is_of_something() {
        let parse = |rest: &[&str]| Cli::try_parse_from([&["fabctl", "simulate"], rest].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--add-nodes", "2"]).is_err());
        assert!(parse(&["--add-nodes", "2", "--shape", "4x8GiB"]).is_ok());
        assert!(parse(&["--kill-node", "n1", "--kill-node", "n2"]).is_ok());
    }

    #[test]
    fn labels_are_set_and_taken_back_in_one_line() {
        let parse =
            |rest: &[&str]| Cli::try_parse_from([&["fabctl", "node", "label"], rest].concat());
        let cli = parse(&["n1", "disk=nvme", "of=a=b", "gpu-", "--fault-domain", "r1"]).unwrap();
        let Command::Node(NodeCommand::Label(label)) = cli.command else {
            panic!("it is something else");
        };
        let set = |key: &str, value: &str| LabelChange::Set(key.to_owned(), value.to_owned());
        let changes = [
            set("disk", "nvme"),
            set("of", "a=b"),
            LabelChange::Remove("gpu".to_owned()),
        ];
        assert_eq!(label.changes, changes);
        assert!(parse(&["n1", "--no-fault-domain"]).is_ok());
        for wrong in [
            &["n1"][..],
            &["n1", "disk"],
            &["n1", "=nvme"],
            &["n1", "disk="],
            &["n1", "-"],
            &["n1", "--fault-domain", ""],
            &["n1", "--fault-domain", "r1", "--no-fault-domain"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn output_is_the_format_and_o_of_build_its_file() {
        let cli = Cli::parse_from(["fabctl", "package", "build", "d", "-o", "f.vhd"]);
        assert_eq!(cli.output, Format::Table);
        let cli = Cli::parse_from(["fabctl", "instance", "list", "--output", "json"]);
        assert_eq!(cli.output, Format::Json);
    }
}
