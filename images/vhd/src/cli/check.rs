//! `vhd check`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use vhd::Report;

use super::output::{self, Output};

/// The exit code that says that problems were found.
const PROBLEMS: u8 = 4;

/// Check that an image is in order
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Check that an image is in order, and list everything that is not.\n\n\
        Looks at both footers, the header, the geometry, the block allocation table (inside the \
        file, nothing overlapping), sector bitmaps, parent locators and, with --parent, whether \
        the parents are the right ones. Reads only. An error means that the disk does not open \
        or holds wrong data; a warning that something is to be mended (opening for writing \
        does) or that other tools may read the disk differently; a note is for information.",
    after_help = "Exit status: 0 in order (there may be notes), 1 could not be checked, \
        2 wrong usage, 4 problems found.\n\n\
        Examples:\n  vhd check base.vhd\n  vhd check scratch.vhd --parent base.vhd --output json"
)]
pub(super) struct Args {
    /// The image
    file: PathBuf,
    /// A file below a differencing disk; repeat it, nearest first, base last
    #[arg(long = "parent", value_name = "FILE")]
    parents: Vec<PathBuf>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode> {
        let report = vhd::check(&self.file, &self.parents)?;
        match self.output {
            Output::Json => output::json(&report)?,
            Output::Table => write_report(&report)?,
        }
        Ok(if report.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(PROBLEMS)
        })
    }
}

fn write_report(report: &Report) -> Result<()> {
    for problem in &report.problems {
        output::line(format_args!("{:7}  {}", problem.severity, problem.message))?;
    }
    if report.not_listed > 0 {
        output::line("         ... and more")?;
    }
    if let Some(blocks) = &report.blocks {
        output::line(format_args!(
            "{} of {} blocks and {} sectors are in the file",
            blocks.in_file, blocks.total, blocks.sectors_in_file
        ))?;
    }
    let verdict = if report.is_clean() {
        "in order"
    } else {
        "NOT in order"
    };
    output::line(format_args!("{}: {verdict}", report.path.display()))
}
