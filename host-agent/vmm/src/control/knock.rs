//! A knock at the guest's power button.
//!
//! A lean guest kernel has neither ACPI nor input drivers, so the button is a port of
//! the guest's vsock, [`PORT`]: whoever listens there says `ok`, hangs up, and powers
//! the guest off in order. The machine only knocks; what becomes of that is up to the
//! guest, and its end is told as any other ([`crate::exit`]).
//!
//! ```text
//!  VMM                                guest
//!   ├── connects to port 1027 ────────▶ │  nobody listens: refused
//!   │ ◀──────────── accepts, says `ok` ─┤
//!   │                                   └── ends what it runs, powers off
//! ```

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use thiserror::Error;

/// Port of the guest at which its power button is. The guest agent's
/// `fabric_proto::vmbus::POWER_BUTTON_PORT` is the same.
pub const PORT: u32 = 1027;
/// How long the guest may take to answer. Shorter than what a connection has to come
/// about ([`crate::devices::vsock::connection::REQUEST_TIMEOUT`]), so that silence is
/// told from refusal.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// What the guest says.
const ANSWER: &[u8] = b"ok";
/// What is read of it at most, with the `OK PORT` before it.
const HEARD_MAX: usize = 32;

/// Why nobody was at the door.
#[derive(Debug, Error)]
pub enum KnockError {
    /// There is no door.
    #[error("the machine has no vsock device, and so no power button")]
    NoVsock,
    /// Nobody moves.
    #[error("the machine is paused: resume it first")]
    Paused,
    /// The guest's kernel is not there yet, or has given the device up.
    #[error("the guest's vsock driver is not up: it has not booted so far, or does not boot")]
    NotUp,
    /// Nobody is at home.
    #[error("the guest does not listen at vsock port {PORT}: no guest agent of its runs")]
    NotListening,
    /// Somebody may be, and does not come.
    #[error("the guest has not answered at vsock port {PORT} within {} s", PATIENCE.as_secs())]
    Silent,
    /// Somebody else is.
    #[error("what listens at the guest's vsock port {PORT} is no power button")]
    Strange,
    /// The host gives no socket.
    #[error("cannot call the guest")]
    Host(#[from] io::Error),
}

/// A knock that has not been answered.
#[derive(Debug)]
pub struct Knock {
    stream: UnixStream,
    heard: Vec<u8>,
    /// When nobody is waited for any longer.
    pub until: Instant,
}

impl Knock {
    /// A knock over a connection that the guest was asked for; it never blocks.
    pub fn new(stream: UnixStream, now: Instant) -> Knock {
        Knock {
            stream,
            heard: Vec::new(),
            until: now + PATIENCE,
        }
    }

    /// Hears on; says what has become of it when that is known.
    pub fn advance(&mut self) -> Option<Result<(), KnockError>> {
        let mut bytes = [0; HEARD_MAX];
        loop {
            let room = HEARD_MAX - self.heard.len();
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => return Some(Err(self.nothing_more())),
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Some(Err(self.nothing_more())),
            }
            let mut lines = self.heard.split(|byte| *byte == b'\n');
            // The first says that there is a connection; the last has no end yet.
            if let (Some(_), Some(answer), Some(_)) = (lines.next(), lines.next(), lines.next()) {
                let understood = answer == ANSWER;
                return Some(understood.then_some(()).ok_or(KnockError::Strange));
            }
        }
    }

    fn nothing_more(&self) -> KnockError {
        if self.heard.contains(&b'\n') || self.heard.len() == HEARD_MAX {
            KnockError::Strange
        } else {
            KnockError::NotListening
        }
    }
}

impl AsRawFd for Knock {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What becomes of a knock to which this is said, before the guest hangs up or not.
    fn answered(said: &str, hangs_up: bool) -> Option<Result<(), KnockError>> {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut knock = Knock::new(ours, Instant::now());
        assert!(knock.advance().is_none(), "nothing is known yet");
        guest.write_all(said.as_bytes()).unwrap();
        let open = (!hangs_up).then_some(guest);
        let answer = knock.advance();
        drop(open);
        answer
    }

    #[test]
    fn a_guest_that_says_ok_has_heard() {
        for hangs_up in [true, false] {
            let answer = answered("OK 1073741824\nok\n", hangs_up);
            assert!(matches!(answer, Some(Ok(()))), "{answer:?}");
        }
        assert!(answered("OK 1073741824\no", false).is_none());
    }

    #[test]
    fn who_hangs_up_at_once_does_not_listen_and_who_says_anything_else_is_no_button() {
        let answer = answered("", true);
        assert!(
            matches!(answer, Some(Err(KnockError::NotListening))),
            "{answer:?}"
        );
        let endless = format!("OK 1\n{}", "x".repeat(100));
        for said in ["OK 1\n", "OK 1\nno\n", "OK 1\nok", &endless] {
            let answer = answered(said, true);
            assert!(
                matches!(answer, Some(Err(KnockError::Strange))),
                "{said:?}: {answer:?}"
            );
        }
    }

    #[test]
    fn silence_is_told_from_refusal() {
        assert!(PATIENCE < crate::devices::vsock::connection::REQUEST_TIMEOUT);
    }
}
