//! What is wrong with a service file, and where.

use std::{fmt, ops::Range};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// What: the value and the rule.
    pub message: String,
}

/// Everything that is wrong with a service file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionError {
    /// What the file is called.
    pub file_name: String,
    /// What is wrong, by line; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(
                f,
                "{end}{}:{}: {}",
                self.file_name, problem.line, problem.message
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for DefinitionError {}

/// Most problems that are listed: beyond that the file is something else.
const MOST: usize = 20;

/// Longest message; a hostile file is not repeated at length.
const LONGEST: usize = 600;

/// Collects what is wrong.
pub(super) struct Problems<'a> {
    text: &'a str,
    file_name: &'a str,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    /// None so far in this text.
    pub(super) fn new(text: &'a str, file_name: &'a str) -> Self {
        let file_name = if file_name.is_empty() {
            "service file"
        } else {
            file_name
        };
        Self {
            text,
            file_name,
            found: Vec::new(),
        }
    }

    /// One more, at these bytes of the text.
    pub(super) fn add(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let message: String = message.into();
        // The parser's messages can have several lines; ours never have.
        let message = message.lines().collect::<Vec<_>>().join("; ");
        self.found.push(Problem {
            line,
            message: message.chars().take(LONGEST).collect(),
        });
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them, by line.
    pub(super) fn into_error(mut self) -> DefinitionError {
        self.found.sort_by_key(|problem| problem.line);
        self.found.truncate(MOST);
        DefinitionError {
            file_name: self.file_name.to_owned(),
            problems: self.found,
        }
    }
}
