//! The project's tasks, one module each: `cargo xtask TASK`.
//!
//! A task prepares, runs and checks the project's programs as a user would: by
//! their command lines. It knows nothing of their insides, the `vhd` crate apart.
//! Everything it starts is ended with it, on success, error and Ctrl-C.

#![forbid(unsafe_code)]

mod apt;
mod bench;
mod build;
mod check;
mod demo;
mod digest;
mod fabric;
mod fuzz;
mod image;
mod interrupt;
mod leftovers;
mod machine;
mod preflight;
mod process;
mod progress;
mod project;
mod setup;
mod sim;
mod table;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::{interrupt::Interrupted, project::Project};

/// The project's tasks.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    after_help = "On a fresh machine, `cargo xtask demo` is all that is needed: it does the rest \
                  itself.\nWhat is built once is kept in $FABRIC_CACHE (default ~/.cache/fabric)."
)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Options),
    Preflight(preflight::Options),
    Image(image::Options),
    Demo(demo::Options),
    Test(test::Options),
    Bench(bench::Options),
    Sim(sim::Options),
    Fuzz(fuzz::Options),
    Check(check::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(task) = cli.task else {
        // Failing to print help leaves nothing to do about it.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    };
    match run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; everything that was started has been ended");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    interrupt::listen()?;
    let project = Project::find()?;
    match task {
        Task::Setup(options) => setup::run(&options),
        Task::Preflight(options) => preflight::run(&project, &options),
        Task::Image(options) => image::run(&project, &options),
        Task::Demo(options) => demo::run(&project, &options),
        Task::Test(options) => test::run(&project, &options),
        Task::Bench(options) => bench::run(&project, &options),
        Task::Sim(options) => sim::run(&project, &options),
        Task::Fuzz(options) => fuzz::run(&project, &options),
        Task::Check(options) => check::run(&project, &options),
    }
}
