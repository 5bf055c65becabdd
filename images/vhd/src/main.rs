//! `vhd`: looks at, checks, makes, converts and maps Virtual Hard Disk images.
//!
//! Only reads arguments and turns the outcome into an exit code; the commands
//! are in [`cli`], the work in the library.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether whoever read our output has seen enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
