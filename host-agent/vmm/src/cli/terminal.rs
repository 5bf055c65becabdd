//! The user's terminal in raw mode while a guest has it, and as it was after: key presses
//! go to the guest unread, Ctrl-C too.

use std::io::IsTerminal;
use std::os::fd::AsRawFd;

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
        // What others say on it in the meantime stays readable.
        raw.c_oflag = before.c_oflag;
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
