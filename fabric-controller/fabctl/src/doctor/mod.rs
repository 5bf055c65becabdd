//! What is wrong, and what to do about it.
//!
//! [`facts`] is everything that is looked at, gathered over the network; [`checks`] is
//! what follows from it, and pure. What could not be looked at is a finding too.

pub mod checks;
pub mod facts;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something does not work, or soon will not.
    Problem,
    /// Nothing is broken, but somebody should know.
    Notice,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Notice => "notice",
        }
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// On what, such as "node n1".
    pub subject: String,
    /// What, in a line.
    pub what: String,
    /// What to do about it, in a line.
    pub remedy: String,
}

impl Finding {
    /// Something that does not work, or soon will not.
    pub fn problem(
        subject: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Problem,
            subject: subject.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// Something that somebody should know.
    pub fn notice(
        subject: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Notice,
            ..Self::problem(subject, what, remedy)
        }
    }
}
