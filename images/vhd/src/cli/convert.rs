//! `vhd convert`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vhd::{ConvertOptions, Target};

use super::create::Common;
use super::output::{self, Output};
use super::source::Source;

/// Copy a disk into a new image of another type
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Copy a disk into a new image of another type.\n\n\
        Zeroes and holes are left out, so the new file takes no more space than the data. A \
        chain of differencing disks becomes one image without parents. The new file appears \
        when it is complete; ended before that, by Ctrl-C for instance, nothing is left behind. \
        An existing file is never replaced.",
    after_help = "Examples:\n  \
        vhd convert root.ext4 root.vhd --from raw --to dynamic\n  \
        vhd convert disk.vhd disk.img --to raw\n  \
        vhd convert scratch.vhd whole.vhd --parent base.vhd --to fixed"
)]
pub(super) struct Args {
    /// The image to read
    source: PathBuf,
    /// The new file
    target: PathBuf,
    /// Type of the new image
    #[arg(long, value_enum, value_name = "TYPE")]
    to: To,
    #[command(flatten)]
    reading: Source,
    #[command(flatten)]
    common: Common,
    /// Show no progress; it is only shown on a terminal anyway
    #[arg(short, long)]
    quiet: bool,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// What a disk can be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// Sectors and nothing else
    Raw,
    /// A VHD with all its sectors
    Fixed,
    /// A VHD that grows as it is written
    Dynamic,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let source = self.reading.open(&self.source)?;
        let options = ConvertOptions {
            target: match self.to {
                To::Raw => Target::Raw,
                To::Fixed => Target::Fixed,
                To::Dynamic => Target::Dynamic,
            },
            block_size: self.common.block_size(),
            identity: self.common.identity(),
        };
        let bar = progress(source.size(), self.quiet);
        let mut advance = |done| bar.set_position(done);
        let converted = vhd::convert(&*source, &self.target, &options, &mut advance)?;
        bar.finish_and_clear();
        match self.output {
            Output::Json => output::json(&converted),
            Output::Table => output::line(format_args!(
                "{}: {}, of which {} are not zeroes",
                self.target.display(),
                output::size(converted.size),
                output::size(converted.written),
            )),
        }
    }
}

fn progress(size: u64, quiet: bool) -> ProgressBar {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(size), target);
    match ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
