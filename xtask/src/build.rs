//! Building the project's own programs with cargo.

use std::{env, ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    image, process,
    project::{Project, guest_target},
    setup,
};

/// Flags of the programs for guests: no dynamic linker, no relocation. Each costs the
/// guest page faults, which are dear where KVM interprets guest kernel code.
const GUEST_FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// A command of the cargo that runs this task, in the workspace.
pub fn cargo(project: &Project, args: &[&str]) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = process::command(cargo, args);
    command.current_dir(&project.root);
    command
}

/// What a task that runs guests needs, and whether to build it first.
#[derive(Debug, Clone, clap::Args)]
pub struct Prepare {
    /// Build nothing: take the programs of FABRIC_BIN_DIR or the target folder and
    /// the current images as they are
    #[arg(long)]
    no_build: bool,
}

/// The images that guests run from.
#[derive(Debug)]
pub struct Images {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest OS image.
    pub guest_os: PathBuf,
    /// The initial RAM disk of a guest that is the other end of the VMBus.
    pub bus_peer: PathBuf,
}

impl Prepare {
    /// Installs and builds everything that running guests needs.
    pub fn run(&self, project: &Project) -> Result<Images> {
        if self.no_build {
            return image::current(project);
        }
        setup::ensure()?;
        programs(project)?;
        Ok(Images {
            kernel: image::kernel(project)?,
            guest_os: image::guest_os(project)?,
            bus_peer: image::bus_peer(project)?,
        })
    }
}

/// Programs that tests have end at certain steps.
const WITH_FAIL_POINTS: [&str; 2] = ["host-agent", "fabric-vmm"];

/// Builds every program that runs on the host, in the release profile.
pub fn programs(project: &Project) -> Result<()> {
    process::run(&mut build_programs(project)).context("building the programs")
}

/// The same, and before that the host agent and the VMM with fail points, into a folder
/// beside them. The same packages, so that nothing of others' is built twice.
pub fn programs_for_tests(project: &Project) -> Result<()> {
    let mut command = build_programs(project);
    command.args(["--features", "host-agent/fail-points"]);
    process::run(&mut command).context("building the programs with fail points")?;
    let programs = project.target.join("release");
    let folder = project.bin_dir().join("fail-points");
    fs::create_dir_all(&folder)?;
    for name in WITH_FAIL_POINTS {
        fs::copy(programs.join(name), folder.join(name))
            .with_context(|| format!("copying {name} into {}", folder.display()))?;
    }
    self::programs(project)
}

fn build_programs(project: &Project) -> Command {
    let args = [
        "build",
        "--release",
        "--bins",
        "--package",
        "fabric-controller",
        "--package",
        "fabctl",
        "--package",
        "host-agent",
        "--package",
        "fabric-vmm",
        "--package",
        "vhd",
    ];
    cargo(project, &args)
}

/// Builds one of them.
pub fn program(project: &Project, package: &str) -> Result<()> {
    process::run(&mut cargo(
        project,
        &["build", "--release", "--bins", "--package", package],
    ))
    .with_context(|| format!("building {package}"))
}

/// Builds the simulation with what its tests have been built with, as nothing is compiled
/// anew then.
pub fn simulation(project: &Project) -> Result<()> {
    let mut command = cargo(project, &["test", "--release", "--no-run", "--workspace"]);
    command.args(["--test", "simulation"]);
    process::run(&mut command).context("building the simulation")
}

/// Builds the static programs that run in guests: the guest agent, the demo's role,
/// and what tests and measurements talk with.
pub fn guest_programs(project: &Project) -> Result<()> {
    setup::ensure_target();
    let mut command = cargo(
        project,
        &["build", "--profile", "guest", "--target", guest_target()],
    );
    for package in ["guest-agent", "hello-web", "bus-peer"] {
        command.args(["--package", package]);
    }
    command
        .env("RUSTFLAGS", GUEST_FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run(&mut command).context("building the programs for guests")
}
