//! `cargo xtask image`: the guest kernel and the guest OS image, built once and
//! kept in the cache by the digest of what they are made from.

mod bus_peer;
mod cache;
mod ext4;
mod guest_os;
mod kernel;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::{build::Images, project::Project};

/// Build the guest kernel and the guest OS image, or list and remove them.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the guest kernel from Debian's source (about 4 minutes on two cores)
    Kernel,
    /// Build the guest OS image: a VHD with the guest agent and busybox
    GuestOs {
        /// Put it there instead of into the cache, whether or not it is there
        /// already
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List what is in the cache
    List {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Remove from the cache what is not current
    Clean {
        /// Remove what is current and the downloads as well
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    match &options.action {
        Action::Kernel => println!("{}", kernel(project)?.display()),
        Action::GuestOs { output: None } => println!("{}", guest_os(project)?.display()),
        Action::GuestOs { output: Some(file) } => {
            guest_os::build_to(project, file)?;
            println!("{}", file.display());
        }
        Action::List { output } => cache::list(project, matches!(output, Format::Json))?,
        Action::Clean { all } => cache::clean(project, *all)?,
    }
    Ok(())
}

/// The guest kernel, built if it is not in the cache yet.
pub fn kernel(project: &Project) -> Result<PathBuf> {
    kernel::ensure(project)
}

/// The images used last, built or not built again.
pub fn current(project: &Project) -> Result<Images> {
    let find = |kind: &str, file: &str| {
        let path = project.cache.join(kind).join("current").join(file);
        ensure!(
            path.is_file(),
            "there is no {kind} yet: run `cargo xtask image {kind}`"
        );
        Ok(path)
    };
    let [(kernel, vmlinux), (guest_os, vhd)] = cache::KINDS;
    Ok(Images {
        kernel: find(kernel, vmlinux)?,
        guest_os: find(guest_os, vhd)?,
        bus_peer: bus_peer::path(project),
    })
}

/// Whether a kernel is in the cache, whichever.
pub fn has_kernel(project: &Project) -> bool {
    project.cache.join("kernel/current/vmlinux").is_file()
}

/// The guest OS image, built if it is not in the cache yet.
pub fn guest_os(project: &Project) -> Result<PathBuf> {
    guest_os::ensure(project)
}

/// The initial RAM disk of a guest that is the other end of the VMBus.
pub fn bus_peer(project: &Project) -> Result<PathBuf> {
    bus_peer::ensure(project)
}
