//! The command line.

mod disk;
mod jail;
mod place;
mod probe;
mod run;
mod terminal;

use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};

/// Runs one virtual machine on KVM.
///
/// A machine is a kernel, memory, virtual CPUs, disks, and a vsock channel to
/// its host. It ends with the process that was started; the last line on standard
/// output says why, as one JSON object.
#[derive(Debug, Parser)]
#[command(name = "fabric-vmm", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Probe(probe::ProbeArgs),
    Jail(jail::JailArgs),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the program; `started` is when it began.
pub fn main(started: Instant) -> ExitCode {
    fabric_vmm::exit::keep_panics_short();
    match Cli::parse().command {
        Command::Run(args) => run::run(*args, started),
        Command::Probe(args) => probe::run(&args),
        Command::Jail(args) => jail::run(args),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "fabric-vmm", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
