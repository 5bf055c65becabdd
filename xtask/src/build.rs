//! Building the project's own programs with cargo.

use std::{env, ffi::OsString, process::Command};

use anyhow::{Context, Result};

use crate::{
    process,
    project::{GUEST_TARGET, Project},
};

/// Flags of the guest agent: no dynamic linker, no relocation. Each costs the
/// guest page faults, which are dear where KVM interprets guest kernel code.
const GUEST_FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// A command of the cargo that runs this task, in the workspace.
pub fn cargo(project: &Project, args: &[&str]) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = process::command(cargo, args);
    command.current_dir(&project.root);
    command
}

/// Builds every program that runs on the host, in the release profile.
pub fn programs(project: &Project) -> Result<()> {
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
    process::run(&mut cargo(project, &args)).context("building the programs")
}

/// Builds one of them.
pub fn program(project: &Project, package: &str) -> Result<()> {
    process::run(&mut cargo(
        project,
        &["build", "--release", "--bins", "--package", package],
    ))
    .with_context(|| format!("building {package}"))
}

/// Builds the static guest agent.
pub fn guest_agent(project: &Project) -> Result<()> {
    let args = [
        "build",
        "--profile",
        "guest",
        "--target",
        GUEST_TARGET,
        "--package",
        "guest-agent",
    ];
    let mut command = cargo(project, &args);
    command
        .env("RUSTFLAGS", GUEST_FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run(&mut command).context("building the guest agent")
}
