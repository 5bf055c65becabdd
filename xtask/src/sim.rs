//! `cargo xtask sim`: builds the simulation in `tests/sim` and runs it.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, process, project::Project};

/// The program.
const PROGRAM: &str = "fabric-sim";

/// Simulate whole clusters in one process, with faults from a seed.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// What the simulation is told
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the task.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    build::simulation(project)?;
    let program = project.target.join("release").join(PROGRAM);
    process::run(&mut process::command(program, &options.arguments))
}
