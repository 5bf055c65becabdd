//! The command line: what can be said, and what it means.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

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

Where the controller is, and who you are to it, is a context: `fabric-controller init`
makes the first, an administrator makes others (`fabric-controller certificate create`).
They are kept in $FABCTL_CONFIG, or else ~/.config/fabctl/config.toml.

Exit codes:
  0  done
  1  failed
  2  wrong use of the command line
  3  there is no such thing, or the controller refuses it as things are
  4  what was waited for did not come about in time";

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
    Image(BlobCommand),
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
    /// What has happened.
    Events(Events),
    /// Who did what: the audit log. For administrators.
    Audit(Audit),
    /// The controllers that are known, and as whom each is talked to.
    #[command(subcommand)]
    Context(ContextCommand),
    /// A live view of instances and events.
    Watch(Watch),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the machines.
    List,
    /// Place nothing new on one; what it has stays.
    Cordon(OneNode),
    /// Let one have new instances again, and stop draining it.
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

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Upload a VHD under a name. An upload that was interrupted goes on where
    /// it was when the same command is given again.
    Upload(Upload),
    /// List what is there.
    List,
    /// Show one, by name or digest.
    Show(BlobName),
    /// Delete one. Refused while a service uses it.
    Delete(BlobName),
}

/// What can be done with packages.
#[derive(Debug, Subcommand)]
pub enum PackageCommand {
    /// Make a package from a directory: an ext4 file system in a dynamic VHD,
    /// byte for byte the same from the same files.
    Build(Build),
    #[command(flatten)]
    #[allow(missing_docs)]
    Blob(BlobCommand),
}

/// Which image or package.
#[derive(Debug, Args)]
pub struct BlobName {
    /// Its name; to show, the digest will do.
    pub name: String,
}

/// Settings of `upload`.
#[derive(Debug, Args)]
#[command(
    after_help = "The name can be left out: it is then the file's, without \".vhd\".\n\
Examples:\n  fabctl image upload guest-os guest-os.vhd\n  fabctl image upload guest-os.vhd"
)]
pub struct Upload {
    /// NAME FILE, or FILE alone.
    #[arg(value_name = "NAME] [FILE", num_args = 1..=2, required = true)]
    pub name_and_file: Vec<String>,
}

/// Settings of `package build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Needs mke2fs and debugfs (Debian package e2fsprogs); no root.\n\
Examples:\n  fabctl package build ./hello -o hello.vhd\n  fabctl package build ./data -o data.vhd --size 1GiB"
)]
pub struct Build {
    /// Directory whose files go into the package.
    pub directory: PathBuf,
    /// File to write.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    pub out: PathBuf,
    /// Size of the disk; by default what the files need.
    #[arg(long, value_name = "SIZE")]
    pub size: Option<bytesize::ByteSize>,
}

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
    /// Take a snapshot of one: its memory, devices and disk as they are now. It
    /// stands still for as long as that takes.
    Snapshot(OneSnapshot),
    /// List the snapshots of one.
    Snapshots {
        /// Its id, such as shop-web-0.
        id: String,
    },
    /// Take one back to a snapshot of itself. What it has done since is lost; one
    /// that is paused is resumed by it.
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
fabctl instance resume shop-web-0 --wait --timeout 30s"
)]
pub struct OneInstance {
    /// Its id, such as shop-web-0.
    pub id: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: Wait,
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

/// Settings of `explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "For each node it says why the instance is or is not there, and for an instance\n\
without a node what would make it fit. The nodes are asked as if it were placed now.\n\
Examples:\n  fabctl explain shop-web-0\n  fabctl explain shop-web-0 --output json"
)]
pub struct Explain {
    /// Its id, such as shop-web-0.
    pub id: String,
}

/// Settings of `simulate`.
#[derive(Debug, Args)]
#[command(
    after_help = "All that is given happens together, in thought, to the machines and instances that\n\
are there now.\n\
Examples:\n  fabctl simulate --kill-node n1\n  fabctl simulate --kill-domain rack-2\n  \
fabctl simulate --add-nodes 4 --shape 16x64GiB --apply service.toml",
    group(clap::ArgGroup::new("what").required(true).multiple(true)
        .args(["kill_node", "kill_domain", "add_nodes", "apply"]))
)]
pub struct Simulate {
    /// This node dies; can be given several times.
    #[arg(long, value_name = "NODE")]
    pub kill_node: Vec<String>,
    /// All nodes of this fault domain die; can be given several times.
    #[arg(long, value_name = "DOMAIN")]
    pub kill_domain: Vec<String>,
    /// So many nodes come.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "shape")]
    pub add_nodes: u32,
    /// What each of them has: processors and memory, such as 16x64GiB.
    #[arg(long, value_name = "CPUSxMEMORY", requires = "add_nodes")]
    pub shape: Option<Shape>,
    /// Their fault domain; without, each is one of its own.
    #[arg(long, value_name = "DOMAIN", requires = "add_nodes")]
    pub domain: Option<String>,
    /// This service file is applied; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub apply: Option<PathBuf>,
}

/// Processors and memory of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Logical processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not CPUSxMEMORY, such as 16x64GiB");
        let (cpus, memory) = text.split_once('x').ok_or_else(wrong)?;
        let memory: bytesize::ByteSize = memory.parse().map_err(|_| wrong())?;
        Ok(Self {
            cpus: cpus.parse().map_err(|_| wrong())?,
            memory_bytes: memory.as_u64(),
        })
    }
}

/// Settings of `events`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fabctl events\n  fabctl events --about shop-web-0\n  \
fabctl events --after 120 --follow --output json"
)]
pub struct Events {
    /// Only those after this cursor.
    #[arg(long, value_name = "CURSOR", default_value_t = 0)]
    pub after: u64,
    /// Go on with what happens, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
    /// Only those about this node, image, package, service or instance.
    #[arg(long, value_name = "NAME")]
    pub about: Option<String>,
}

/// Settings of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Every call that changes something is in it, and every denial.\n\
Examples:\n  fabctl audit\n  fabctl audit --after 120 --follow --output json"
)]
pub struct Audit {
    /// Only those after this cursor.
    #[arg(long, value_name = "CURSOR", default_value_t = 0)]
    pub after: u64,
    /// Go on with what is written, until Ctrl-C.
    #[arg(long, short)]
    pub follow: bool,
}

/// What can be done with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List them; * marks the current one.
    List,
    /// Show one, without its key.
    Show {
        /// Its name; by default the current one's.
        name: Option<String>,
    },
    /// Use one from now on.
    Use {
        /// Its name.
        name: String,
    },
    /// Take one from a file that an administrator made, and use it from now on.
    Import {
        /// The file.
        file: PathBuf,
        /// What to call it [default: as the file does].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
}

/// Settings of `watch`.
#[derive(Debug, Args)]
#[command(
    after_help = "In a terminal the view redraws itself until Ctrl-C. Elsewhere, and with\n\
--output json, every change is a line."
)]
pub struct Watch {
    /// Only instances of this service.
    #[arg(long)]
    pub service: Option<String>,
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
    fn a_shape_is_processors_and_memory() {
        let shape = Shape {
            cpus: 16,
            memory_bytes: 64 << 30,
        };
        assert_eq!("16x64GiB".parse(), Ok(shape));
        for wrong in ["", "16", "x", "16x", "x64GiB", "-1x1GiB"] {
            assert!(Shape::from_str(wrong).is_err(), "{wrong}");
        }
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
    fn output_is_the_format_and_o_of_build_its_file() {
        let cli = Cli::parse_from(["fabctl", "package", "build", "d", "-o", "f.vhd"]);
        assert_eq!(cli.output, Format::Table);
        let cli = Cli::parse_from(["fabctl", "instance", "list", "--output", "json"]);
        assert_eq!(cli.output, Format::Json);
    }
}
