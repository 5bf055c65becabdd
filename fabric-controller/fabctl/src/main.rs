//! `fabctl`: the operator's command line. Only wires; [`commands`] do.
#![forbid(unsafe_code)]

mod bundle;
mod cli;
mod client;
mod commands;
mod context;
mod doctor;
mod error;
mod package;
mod show;
mod story;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime\n  cause: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(commands::run(cli));
    // A read of standard input may still be blocked; it is not waited for.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `fabctl events | head` is no failure.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.report());
            failure.exit_code()
        }
    }
}
