//! The command line: one module for each command.

mod check;
mod convert;
mod create;
mod info;
mod map;
mod output;
mod source;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

/// Look at, check, make, convert and map Virtual Hard Disk images (VHD)
#[derive(Debug, Parser)]
#[command(
    name = "vhd",
    version,
    long_about = "Look at, check, make, convert and map Virtual Hard Disk images (VHD), after \
        Microsoft's Virtual Hard Disk Image Format Specification 1.0.\n\n\
        There are three types: a fixed disk holds all its sectors, a dynamic disk grows as it is \
        written, and a differencing disk holds what differs from its parent. The files below a \
        differencing disk are named with --parent, nearest first; the paths that an image \
        contains are shown, but never opened.",
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 4 `check` found problems.\n\n\
        Examples:\n  \
        vhd create data.vhd --size 10GiB           an empty dynamic disk\n  \
        vhd create scratch.vhd --parent base.vhd   a writable layer over base.vhd\n  \
        vhd info scratch.vhd                       what it says about itself\n  \
        vhd check scratch.vhd --parent base.vhd    whether it is in order\n  \
        vhd convert root.ext4 root.vhd --from raw --to dynamic"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::Args),
    Check(check::Args),
    Create(create::Args),
    Convert(convert::Args),
    Map(map::Args),
    /// Write a completion script for a shell to standard output
    #[command(after_help = "Example:\n  vhd completions bash > /etc/bash_completion.d/vhd")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl Cli {
    /// Runs the command and says how the program ends.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Info(args) => args.run()?,
            Command::Check(args) => return args.run(),
            Command::Create(args) => args.run()?,
            Command::Convert(args) => args.run()?,
            Command::Map(args) => args.run()?,
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "vhd", &mut std::io::stdout());
            }
        }
        Ok(ExitCode::SUCCESS)
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
