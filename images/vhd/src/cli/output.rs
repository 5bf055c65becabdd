//! Tables for people, JSON for programs.

use std::io::{Write as _, stdout};

use anyhow::Result;
use bytesize::ByteSize;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns for people
    Table,
    /// One JSON document on one line
    Json,
}

/// Writes one JSON document on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    Ok(stdout().write_all(text.as_bytes())?)
}

/// Writes text and ends the line.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    Ok(writeln!(stdout(), "{text}")?)
}

/// Writes names and values in two columns.
pub(crate) fn fields(fields: &[(&str, String)]) -> Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        line(format_args!("{name:width$}  {value}"))?;
    }
    Ok(())
}

/// A table without lines, to be filled and written.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// A size as people say it, with all its bytes.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    format!("{} ({bytes} bytes)", ByteSize(bytes).display().iec())
}
