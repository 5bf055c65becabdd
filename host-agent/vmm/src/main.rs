//! The program `fabric-vmm`: see `fabric-vmm --help`.

#![warn(clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Instant;

mod cli;

fn main() -> ExitCode {
    cli::main(Instant::now())
}
