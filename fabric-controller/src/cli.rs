//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use fabric_controller::listen::Address;

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
Operators talk to it with fabctl, machines join it with `host-agent serve`.";

const SERVE: &str = "\
Examples:
  fabric-controller serve --data-dir /var/lib/fabric-controller
  fabric-controller serve --data-dir ./data --listen unix:./controller.sock
  fabric-controller serve --data-dir ./data --listen 127.0.0.1:7070 --listen '[::1]:7070'

Everything is kept in the data directory: store.db (SQLite), blobs/ (images and
packages by digest) and uploads/ (what has arrived of them). One controller at a
time uses it. It may be killed at any moment: what it has acknowledged is there
when it is started again.

SIGTERM and SIGINT end it within 5 s. The log goes to standard error; RUST_LOG
sets how much, such as RUST_LOG=debug.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve operators and host agents until SIGTERM.
    #[command(after_help = SERVE)]
    Serve(Serve),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Settings of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Where to listen: 127.0.0.1:PORT, [::1]:PORT or unix:PATH. Can be given
    /// several times. Until there are certificates, nothing else is served.
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

    /// How many of the newest events to keep.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub events_kept: u64,
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
