//! What users see when something fails: what, on what, why, and what to do.

use std::{error::Error, io, path::PathBuf, process::ExitCode};

use fabric_trust::{
    address::{Address, InvalidAddress},
    context::FileError,
    dial::DialError,
    explain::Explained,
};
use tonic::{Code, Status};

/// See the [module](self).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server's address is none.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// The file of contexts cannot be used.
    #[error(transparent)]
    Contexts(#[from] FileError),
    /// The context cannot be used.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Nobody answers.
    #[error("cannot reach the controller at {server}")]
    Connect {
        /// Where.
        server: Address,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The controller says no.
    #[error("{}", .0.message())]
    Call(Status),
    /// A file cannot be read or written.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was done, such as "read".
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal cannot be used.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// A program that is needed is not there.
    #[error("cannot run {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program has failed; its own words.
    #[error("{program} failed: {said}")]
    ProgramFailed {
        /// Which.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// What was waited for did not come about.
    #[error("{0}")]
    TimedOut(String),
    /// The instance's node says no.
    #[error("{0}")]
    Node(String),
    /// Something that was given is wrong.
    #[error("{0}")]
    Input(String),
    /// A VHD cannot be made.
    #[error("cannot make the disk image")]
    Vhd(#[source] vhd::Error),
    /// `doctor` has found something.
    #[error("{0}")]
    Found(String),
    /// The controller's answer lacks something.
    #[error("the controller's answer has no {0}; is it of another version?")]
    Answer(&'static str),
}

impl From<Status> for Failure {
    /// A connection that broke off has many codes; whoever asks again looks for one.
    fn from(status: Status) -> Self {
        let codes = [Code::Unknown, Code::Internal, Code::Cancelled];
        // What the controller itself says has no source.
        let broken = status.source().is_some() && codes.contains(&status.code());
        Self::Call(if broken {
            Status::unavailable(status.message())
        } else {
            status
        })
    }
}

/// What tonic says before it says what happened.
const TRANSPORT: &str = "transport error";

/// What can fail with [`Failure`].
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A file operation failed.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// True if it is only that nobody reads the output any more.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { server, source } if !is_explained(source) => Some(format!(
                "is it running? `fabric-controller serve --data-dir DIR --listen {server}` \
                     starts one; --server or --context name another"
            )),
            Self::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("it is in Debian's package e2fsprogs: apt-get install e2fsprogs".to_owned())
            }
            Self::Call(status) if status.code() == Code::Unimplemented => {
                Some("is there another server at that address, or another version?".to_owned())
            }
            _ => None,
        }
    }

    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Call(status) => match status.code() {
                Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists => 3,
                _ => 1,
            },
            Self::Address(_) => 2,
            Self::TimedOut(_) => 4,
            Self::Found(_) => 5,
            _ => 1,
        })
    }

    /// What happened, and what led to it, each in a line.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        // A status carries its causes in its message.
        let mut cause = match self {
            Self::Call(_) => None,
            other => other.source(),
        };
        let mut last = self.to_string();
        let mut causes = vec![last.clone()];
        while let Some(error) = cause {
            let said = error.to_string();
            if said != TRANSPORT && !last.contains(&said) {
                causes.push(said.clone());
            }
            last = said;
            cause = error.source();
        }
        causes
    }

    /// The whole of it, for people.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = format!("error: {}", self.causes().join("\n  cause: "));
        if let Some(hint) = self.hint() {
            text.push_str(&format!("\n  hint: {hint}"));
        }
        text
    }
}

/// True if a cause says already what to do.
fn is_explained(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        let inner = io.and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<Explained>());
        if error.is::<Explained>() || inner.is_some() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let report = Failure::Program {
            program: "mke2fs",
            source,
        }
        .report();
        assert!(
            report.starts_with("error: cannot run mke2fs\n  cause: "),
            "{report}"
        );
        assert!(report.contains("apt-get install e2fsprogs"), "{report}");
    }

    #[test]
    fn what_is_not_there_has_an_exit_code_of_its_own() {
        let failure = Failure::from(Status::not_found("there is no service \"x\""));
        assert_eq!(
            format!("{:?}", failure.exit_code()),
            format!("{:?}", ExitCode::from(3))
        );
        assert_eq!(failure.report(), "error: there is no service \"x\"");
    }

    #[test]
    fn a_connection_that_breaks_off_is_told_from_what_the_controller_says() {
        let cut = Status::from_error(io::Error::other("error reading a body").into());
        let said = Status::internal("its disk is broken");
        for (status, code) in [(cut, Code::Unavailable), (said, Code::Internal)] {
            let failure = Failure::from(status);
            assert!(
                matches!(&failure, Failure::Call(status) if status.code() == code),
                "{failure:?}"
            );
        }
    }
}
