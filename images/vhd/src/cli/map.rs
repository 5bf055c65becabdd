//! `vhd map`.

use std::path::PathBuf;

use anyhow::Result;
use vhd::{Extent, ExtentKind, extents};

use super::output::{self, Output};
use super::source::Source;

/// List which parts of a disk are stored where
#[derive(Debug, clap::Args)]
#[command(
    long_about = "List which parts of a disk are stored, in which file of the chain, and where.\n\n\
        Parts that read as zeroes without being stored are left out of the table; the JSON has \
        them too, as \"kind\":\"zero\". All numbers are bytes; depth 0 is the image itself, 1 its \
        parent, and so on.",
    after_help = "Examples:\n  vhd map data.vhd\n  vhd map scratch.vhd --parent base.vhd --output json"
)]
pub(super) struct Args {
    /// The image
    file: PathBuf,
    #[command(flatten)]
    reading: Source,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let device = self.reading.open(&self.file)?;
        let extents = extents(&*device).collect::<vhd::Result<Vec<Extent>>>()?;
        if self.output == Output::Json {
            return output::json(&extents);
        }
        let files = self.reading.files(&self.file);
        let mut table = output::table(&["OFFSET", "LENGTH", "DEPTH", "FILE OFFSET", "FILE"]);
        for extent in extents {
            if let ExtentKind::Data { depth, file_offset } = extent.kind {
                let file = files.get(depth).map(|path| path.display().to_string());
                table.add_row([
                    extent.offset.to_string(),
                    extent.len.to_string(),
                    depth.to_string(),
                    file_offset.to_string(),
                    file.unwrap_or_default(),
                ]);
            }
        }
        output::line(table.trim_fmt())
    }
}
