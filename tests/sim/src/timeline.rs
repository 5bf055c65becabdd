//! What happened, in order, a line each.

use std::{fmt, time::Duration};

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    at: Duration,
    who: String,
    what: String,
}

impl Timeline {
    /// Something happened.
    pub fn tell(&mut self, at: Duration, who: impl Into<String>, what: impl Into<String>) {
        self.lines.push(Line {
            at,
            who: who.into(),
            what: what.into(),
        });
    }

    /// The last so many lines.
    #[must_use]
    pub fn tail(&self, lines: usize) -> Self {
        let from = self.lines.len().saturating_sub(lines);
        Self {
            lines: self.lines[from..].to_vec(),
        }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { at, who, what } in &self.lines {
            writeln!(f, "{:>9.3} s  {who:<16} {what}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
