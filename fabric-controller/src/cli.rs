//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use fabric_controller::{listen::Address, model::lease::SILENT_PERCENT, trust::setup::check_name};
use fabric_metrics::serve::Address as Metrics;
use fabric_proto::id::NodeId;
use fabric_trust::address::Address as Server;

/// The fabric controller: holds desired state, places instances, drives every
/// node to its goal state.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = AFTER)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Exit codes: 0 ended as asked, 1 failed, 2 wrong use.
Operators talk to it with fabctl, machines join it with `host-agent join`.";

const INIT: &str = "\
Examples:
  fabric-controller init --data-dir /var/lib/fabric-controller
  fabric-controller init --data-dir ./data --server fabric.lab:7070 --name fabric.lab --name 10.0.0.1

Makes a CA and an administrator's certificate. The certificate goes into DIR/admin.toml
and, unless there is another one by that name, into the file that fabctl reads:
$FABCTL_CONFIG or ~/.config/fabctl/config.toml. All keys have mode 0600. `serve` makes
the same in a new data directory, but leaves fabctl's file alone.";

const TOKEN: &str = "\
Examples:
  fabric-controller token create --data-dir ./data --node node-1 --ttl 1h
  fabric-controller token create --data-dir ./data --node

Prints a token with which one machine can join, once:
  host-agent join CONTROLLER:7070 --token TOKEN --data-dir DIR
It has the fingerprint of the CA in it, by which the machine knows the controller, and a
secret of which the controller keeps the hash. Without a name it is good for any name
that no node has.";

const CREATE: &str = "\
Examples:
  fabric-controller certificate create --data-dir ./data --name bob --role operator --ttl 90d
  fabric-controller certificate create --context lab --name ci --role reader --out ci.toml

Writes a file, mode 0600, that its holder adds with `fabctl context import FILE`. The
private key is made here and goes nowhere else.";

const SERVE: &str = "\
Examples:
  fabric-controller serve --data-dir /var/lib/fabric-controller
  fabric-controller serve --data-dir ./data --listen unix:./controller.sock
  fabric-controller serve --data-dir ./data --listen 127.0.0.1:7070 --listen '[::1]:7070'

TCP ports speak TLS 1.3 with certificates of the controller's own CA, for both sides;
whoever can open a unix socket is an administrator. One more is always there:
DIR/controller.sock.

Everything is kept in the data directory: store.db (SQLite), blobs/ (images and
packages by digest), uploads/ (what has arrived of them) and trust/ (the CA). One
controller at a time uses it. It may be killed at any moment: what it has acknowledged is there
when it is started again.

SIGTERM and SIGINT end it within 5 s. The log goes to standard error; RUST_LOG
sets how much, such as RUST_LOG=debug.";

const BACKUP: &str = "\
Examples:
  fabric-controller backup --data-dir /var/lib/fabric-controller /backups/monday
  fabric-controller check /backups/monday --digests

The backup has the store at one moment, the images and packages that it names, and the
CA with its private key: keep it where nobody else reads it.";

const RESTORE: &str = "\
Examples:
  fabric-controller restore /backups/monday --data-dir /var/lib/fabric-controller

The backup is checked whole before anything is touched. Nodes that have seen more since
then follow what is restored: its numbers go on far beyond those of the backup.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve operators and host agents until SIGTERM.
    #[command(after_help = SERVE)]
    Serve(Serve),
    /// Make a CA and an administrator's certificate in a new data directory.
    #[command(after_help = INIT)]
    Init(Init),
    /// Tokens with which machines join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificates: of operators, and of nodes that have joined.
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Copy everything that is kept to a new directory, while the controller runs or not.
    #[command(after_help = BACKUP)]
    Backup(Backup),
    /// Look through a data directory or a backup for what is wrong.
    Check(Check),
    /// Put a backup into a data directory that no controller uses.
    #[command(after_help = RESTORE)]
    Restore(Restore),
    /// Print which call is for whom, and which ones are in the audit log, as Markdown.
    Permissions,
    /// Print what `serve --metrics-listen` counts and measures, as Markdown.
    Metrics,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Settings of `backup`.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// What is copied.
    #[arg(long, value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub data_dir: PathBuf,

    /// The new directory.
    #[arg(value_name = "BACKUP")]
    pub to: PathBuf,
}

/// Settings of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// A data directory or a backup.
    #[arg(value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub directory: PathBuf,

    /// Read every image and package, too.
    #[arg(long)]
    pub digests: bool,
}

/// Settings of `restore`.
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The backup.
    #[arg(value_name = "BACKUP")]
    pub from: PathBuf,

    /// Where it goes.
    #[arg(long, value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub data_dir: PathBuf,

    /// Keep a store that is there as store.db.replaced, and take its place.
    #[arg(long)]
    pub force: bool,
}

/// Settings of `init`.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// Where to keep everything; made if it is not there.
    #[arg(long, value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub data_dir: PathBuf,

    /// Where fabctl will reach the controller.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub server: Server,

    /// A DNS name or IP address by which others will reach it, beside those of loopback
    /// and this machine's host name. Can be given several times.
    #[arg(long, value_name = "NAME", value_parser = check_name)]
    pub name: Vec<String>,

    /// Leave fabctl's own file alone.
    #[arg(long)]
    pub no_context: bool,
}

/// How to reach the running controller.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// Its data directory: by the socket in it. Without, fabctl's file says where it is.
    #[arg(long, value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub data_dir: Option<PathBuf>,

    /// Which context of fabctl's file to use [default: the current one].
    #[arg(long, value_name = "NAME", conflicts_with = "data_dir")]
    pub context: Option<String>,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make one, for one machine, once.
    #[command(after_help = TOKEN)]
    Create(CreateToken),
}

/// Settings of `token create`.
#[derive(Debug, clap::Args)]
pub struct CreateToken {
    /// For a node, of this name if one is given.
    #[arg(long, value_name = "NAME", num_args = 0..=1, required = true)]
    pub node: Option<Option<NodeId>>,

    /// How long it can be used.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub ttl: humantime::Duration,

    /// How to reach the controller.
    #[command(flatten)]
    pub place: Where,
}

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Make one for an operator, in a file for fabctl.
    #[command(after_help = CREATE)]
    Create(Create),
    /// List those that have not expired.
    List {
        /// How to reach the controller.
        #[command(flatten)]
        place: Where,
    },
    /// Revoke all of a name, or one by its serial number. Open connections end at once.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Revoke {
        /// All of this name.
        #[arg(long, value_name = "NAME", group = "which")]
        name: Option<String>,
        /// The one with this serial number.
        #[arg(long, value_name = "SERIAL", group = "which")]
        serial: Option<String>,
        /// How to reach the controller.
        #[command(flatten)]
        place: Where,
    },
}

/// Settings of `certificate create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Who it is for: 1 to 63 of a-z, 0-9, '-' and '.'.
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// What its holder may do.
    #[arg(long, value_enum)]
    pub role: OperatorRole,

    /// How long it is valid.
    #[arg(long, value_name = "TIME", default_value = "90d")]
    pub ttl: humantime::Duration,

    /// The file to write [default: NAME.toml].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Where its holder reaches the controller [default: where we do].
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<Server>,

    /// How to reach the controller.
    #[command(flatten)]
    pub place: Where,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OperatorRole {
    /// Everything.
    Admin,
    /// See and change what runs.
    Operator,
    /// See.
    Reader,
}

/// Settings of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Where to listen: IP:PORT, [IPV6]:PORT or unix:PATH. Can be given several times.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: Vec<Address>,

    /// Where to keep everything; made if it is not there.
    #[arg(long, value_name = "DIR", env = "FABRIC_CONTROLLER_DATA")]
    pub data_dir: PathBuf,

    /// How many virtual processors to place per processor of a node. Memory is
    /// never promised twice.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus_per_cpu: u32,

    /// Which nodes are filled first.
    #[arg(long, value_enum, default_value_t = Fill::Spread)]
    pub fill: Fill,

    /// How often nodes report at least.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub heartbeat: humantime::Duration,

    /// How long a silent node is waited for before its instances are Unknown.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub lost_after: humantime::Duration,

    /// How long a node may run its instances after it was last heard; then it kills
    /// them, and they are started elsewhere half as long again after it. `off` has them
    /// run on whatever happens, and nothing is ever started elsewhere.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = lease)]
    pub lease: Lease,

    /// How many of the nodes may be silent at once, in percent, one at least and never all:
    /// where more are, that is taken for trouble of the controller's own network, and
    /// nothing is started elsewhere until some are heard again.
    #[arg(long, value_name = "PERCENT", default_value_t = SILENT_PERCENT, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub silent_percent: u32,

    /// How many of the nodes the controller cordons by itself at once, in percent, because
    /// unrelated services keep failing there; at least one where there are three. 0: none.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=50))]
    pub condemn_percent: u32,

    /// A DNS name or IP address by which others reach the controller, beside those of
    /// loopback, this machine's host name, those of `init` and of --listen. Can be given
    /// several times.
    #[arg(long, value_name = "NAME", value_parser = check_name)]
    pub name: Vec<String>,

    /// How long the certificates of nodes last; they renew them by themselves.
    #[arg(long, value_name = "TIME", default_value = "30d")]
    pub node_certificates: humantime::Duration,

    /// How many of the newest events to keep, and of the audit log's entries.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub events_kept: u64,

    /// Where to serve metrics for Prometheus, by HTTP at /metrics: a port of loopback,
    /// such as 127.0.0.1:9470, or unix:PATH. Whoever can reach it can read them, without
    /// being asked who they are; nothing can be changed there [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<Metrics>,
}

/// How long leases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(pub Option<Duration>);

fn lease(text: &str) -> Result<Lease, String> {
    if text == "off" {
        return Ok(Lease(None));
    }
    let length = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&length) {
        Ok(Lease(Some(length)))
    } else {
        Err("must be 1s to 1day, or off".to_owned())
    }
}

/// Which nodes are filled first.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Fill {
    /// All alike: what fails takes the fewest with it.
    Spread,
    /// One after another: room stays for big instances.
    Pack,
}

impl From<Fill> for fabric_controller::placement::Fill {
    fn from(fill: Fill) -> Self {
        match fill {
            Fill::Spread => Self::Spread,
            Fill::Pack => Self::Pack,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
