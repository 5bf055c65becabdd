//! The command line, which only exists for trying the guest agent outside a
//! guest: as process 1 it takes none, for the kernel passes on there what it did
//! not understand itself.

use std::path::{self, PathBuf};

use fabric_proto::vmbus::ROLES;
use lexopt::{Arg, ValueExt as _};

use crate::{role::files::Layout, session::Address};

/// What `--help` prints.
pub const HELP: &str = "\
The guest agent: runs the roles of a guest, probes them, and reports their health
to the host agent.

In a guest it is process 1 and takes no arguments: it mounts the kernel's file
systems, connects to vsock port 1024 of the host and does what it is told there.

Outside a guest, for trying it, it connects to a unix socket instead, does nothing
that concerns the machine, mounts nothing, and runs roles as the user who started it.

Usage: guest-agent --connect unix:PATH --state-dir DIR

Options:
      --connect unix:PATH  Where fabric.guest.v1.GuestService is served
      --state-dir DIR      Where roles' directories (DIR/role/NAME) and settings
                           (DIR/run/NAME/settings.json) go
  -h, --help               Print this help
  -V, --version            Print the version

Signals: SIGTERM and SIGINT ask for a reboot; SIGPWR, SIGUSR1 and SIGUSR2 for a
power-off, as busybox's reboot, halt and poweroff send them. Outside a guest, each
ends the guest agent in the same order: roles, goodbye, exit.

Exit codes: 0 ended in order, 1 failed, 2 wrong usage.

Example:
  guest-agent --connect unix:/tmp/host.sock --state-dir /tmp/guest
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Run.
    Run(Address, Layout),
}

/// Why the command line cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// It is not well formed.
    #[error(transparent)]
    Arguments(#[from] lexopt::Error),
    /// The address is of no kind that is served.
    #[error("--connect {0:?}: expected unix:PATH")]
    Address(String),
    /// A path cannot be made absolute.
    #[error("{0}")]
    Path(#[from] std::io::Error),
    /// Something is missing.
    #[error(
        "not process 1 of a guest: say --connect unix:PATH and --state-dir DIR to try the guest \
         agent outside of one"
    )]
    NotInit,
}

/// What process 1 does, whatever its arguments.
pub fn init() -> (Address, Layout) {
    let layout = Layout {
        roles: ROLES.into(),
        run: "/run/fabric".into(),
        guest: true,
        disks: Vec::new(),
    };
    (Address::Vmbus, layout)
}

/// Reads the command line.
///
/// # Errors
///
/// When it cannot be followed; says what was expected.
pub fn parse(mut arguments: lexopt::Parser) -> Result<Command, UsageError> {
    let (mut socket, mut state) = (None, None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Long("connect") => {
                let address = arguments.value()?.string()?;
                let path = address
                    .strip_prefix("unix:")
                    .filter(|path| !path.is_empty());
                let path = path.ok_or_else(|| UsageError::Address(address.clone()))?;
                socket = Some(path::absolute(path)?);
            }
            Arg::Long("state-dir") => {
                state = Some(path::absolute(PathBuf::from(arguments.value()?))?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    match (socket, state) {
        (Some(socket), Some(state)) => {
            let (roles, run) = (state.join("role"), state.join("run"));
            Ok(Command::Run(
                Address::Unix(socket),
                Layout {
                    roles,
                    run,
                    guest: false,
                    disks: Vec::new(),
                },
            ))
        }
        _ => Err(UsageError::NotInit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, UsageError> {
        parse(lexopt::Parser::from_args(arguments))
    }

    #[test]
    fn outside_a_guest_it_must_be_told_where_to_connect() {
        for arguments in [&[][..], &["--connect", "unix:/s"], &["--state-dir", "/d"]] {
            let error = parsed(arguments).unwrap_err();
            assert!(
                matches!(error, UsageError::NotInit),
                "{arguments:?}: {error}"
            );
        }
        let error = parsed(&["--connect", "tcp:1", "--state-dir", "/d"]).unwrap_err();
        assert_eq!(error.to_string(), "--connect \"tcp:1\": expected unix:PATH");
    }

    #[test]
    fn roles_files_go_into_the_state_directory() {
        let run = parsed(&["--connect=unix:s", "--state-dir", "/d"]).unwrap();
        let Command::Run(Address::Unix(socket), layout) = run else {
            panic!()
        };
        assert!(socket.is_absolute());
        assert_eq!(layout.roles, PathBuf::from("/d/role"));
        assert!(!layout.guest);
    }
}
