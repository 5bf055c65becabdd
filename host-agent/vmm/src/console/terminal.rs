//! The user's terminal in raw mode while a guest has it, and as it was after.
//!
//! Key presses go to the guest unread, Ctrl-C too. `Ctrl-A x` ends the machine,
//! `Ctrl-A Ctrl-A` is a Ctrl-A for the guest.

use std::io::IsTerminal;
use std::os::fd::AsRawFd;

const CTRL_A: u8 = 1;

/// Standard input in raw mode until this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: libc::termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    ///
    /// # Errors
    ///
    /// When the terminal refuses.
    pub fn enter() -> std::io::Result<Option<RawTerminal>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut before = std::mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the descriptor is open and `before` is a termios to be filled.
        let result = unsafe { libc::tcgetattr(stdin_fd(), before.as_mut_ptr()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded, so it is filled.
        let before = unsafe { before.assume_init() };
        let mut raw = before;
        // SAFETY: `raw` is a valid termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        set(&raw)?;
        Ok(Some(RawTerminal { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = set(&self.before);
    }
}

fn set(attributes: &libc::termios) -> std::io::Result<()> {
    // SAFETY: the descriptor is open and `attributes` is a valid termios.
    match unsafe { libc::tcsetattr(stdin_fd(), libc::TCSANOW, attributes) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn stdin_fd() -> libc::c_int {
    std::io::stdin().as_raw_fd()
}

/// Takes the escape sequences out of what the user types.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// What of `typed` is for the guest, or `None` where the user ends the
    /// machine.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut input = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (true, b'x') => return None,
                (true, CTRL_A) => input.push(CTRL_A),
                (true, other) => input.extend([CTRL_A, other]),
                (false, CTRL_A) => self.escaped = true,
                (false, other) => input.push(other),
            }
        }
        Some(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends_and_all_else_reaches_the_guest() {
        let mut filter = EscapeFilter::default();
        assert_eq!(
            filter.filter(b"ls\x03x").as_deref(),
            Some(b"ls\x03x".as_slice())
        );
        assert_eq!(
            filter.filter(b"\x01\x01\x01").as_deref(),
            Some(b"\x01".as_slice())
        );
        assert_eq!(filter.filter(b"b").as_deref(), Some(b"\x01b".as_slice()));
        assert_eq!(filter.filter(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(filter.filter(b"x"), None);
    }
}
