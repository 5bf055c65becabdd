//! The guest agent's own few lines on the serial console.
//!
//! Each byte there costs a guest several exits to its VMM, so: one line at the
//! start, one for each session, and problems. What concerns a role goes to the
//! role's log instead.

use std::{error::Error, fmt, io::Write as _};

/// Writes one line, in one piece.
pub fn say(line: fmt::Arguments<'_>) {
    let line = format!("guest-agent: {line}\n");
    // There is nobody to tell that the console is gone.
    _ = std::io::stderr().write_all(line.as_bytes());
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors repeat their cause.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}
