//! How things are shown: tables for people ([`table`]), JSON for programs
//! ([`json`]), and both of [`placement`] and of a [`story`]. [`words`] are what both have in common.

pub mod doctor;
pub mod json;
pub mod placement;
pub mod story;
pub mod table;
pub mod words;

use std::io::{self, Write as _};

use serde_json::Value;

use crate::error::{Failure, Result};

/// Writes to standard output.
///
/// # Errors
///
/// It is gone.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Failure::Stdout)
}

/// Writes a line to standard output.
///
/// # Errors
///
/// It is gone.
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes bytes to standard output as they are.
///
/// # Errors
///
/// It is gone.
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(Failure::Stdout)
}

/// Writes JSON in one line.
///
/// # Errors
///
/// Standard output is gone.
pub fn print_json(value: &Value) -> Result<()> {
    print_line(&value.to_string())
}

/// What came from a guest, made safe for a terminal: no control characters.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}
