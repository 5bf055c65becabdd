//! What wakes the event loop, beside the devices and the control socket.

use std::io::{IsTerminal, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::console::EscapeFilter;
use crate::devices::serial::SerialPort;
use crate::vcpu::{Board, Outcome};

/// The signals that end a machine.
const SIGNALS: [(libc::c_int, &str); 2] = [
    (libc::SIGTERM, "signal SIGTERM"),
    (libc::SIGINT, "signal SIGINT"),
];

/// Ends the machine on SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    fd: std::fs::File,
    board: Arc<Board>,
}

impl Signals {
    /// Blocks the signals in this thread, and those it starts from now on, and
    /// takes them here instead.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn new(board: Arc<Board>) -> std::io::Result<Signals> {
        // SAFETY: `set` is filled by sigemptyset before it is used, and each call
        // takes it by a valid pointer.
        let fd = unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            for (signal, _) in SIGNALS {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if error != 0 {
                return Err(std::io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Signals {
            fd: fd.into(),
            board,
        })
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, Events::new(&self.fd, EventSet::IN), "signals");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        if self.fd.read(&mut info).unwrap_or(0) < 4 {
            return;
        }
        let number = libc::c_int::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        let name = SIGNALS
            .iter()
            .find(|(signal, _)| *signal == number)
            .map_or("a signal", |s| s.1);
        self.board.ending.end(Outcome::Stopped {
            by: name.to_owned(),
        });
    }
}

/// Is woken by the virtual CPUs; what for is for the loop to find out.
#[derive(Debug)]
pub struct Wake {
    board: Arc<Board>,
}

impl Wake {
    /// Listens to the board.
    pub fn new(board: Arc<Board>) -> Wake {
        Wake { board }
    }
}

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps) {
        listen(
            ops,
            Events::new(self.board.ending.wake_event(), EventSet::IN),
            "virtual CPUs",
        );
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // It is readable, and if not, nothing is lost.
        let _ = self.board.ending.wake_event().read();
    }
}

/// Gives what the user types to the guest's serial port.
#[derive(Debug)]
pub struct Input {
    serial: Arc<Mutex<SerialPort>>,
    board: Arc<Board>,
    escape: Option<EscapeFilter>,
}

impl Input {
    /// Reads standard input; on a terminal, with the escape keys.
    pub fn new(serial: Arc<Mutex<SerialPort>>, board: Arc<Board>) -> Input {
        let terminal = std::io::stdin().is_terminal();
        Input {
            serial,
            board,
            escape: terminal.then(EscapeFilter::default),
        }
    }
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps) {
        // Regular files and /dev/null cannot be waited for: then there is no input.
        let _ = ops.add(Events::new(&std::io::stdin(), EventSet::IN));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut typed = [0; 64];
        let room = serial.room().clamp(1, typed.len());
        let count = match std::io::stdin().lock().read(&mut typed[..room]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
            Ok(0) | Err(_) => {
                let _ = ops.remove(Events::empty_raw(events.fd()));
                return;
            }
            Ok(count) => count,
        };
        let typed = &typed[..count];
        match self
            .escape
            .as_mut()
            .map_or_else(|| Some(typed.to_vec()), |e| e.filter(typed))
        {
            Some(input) => serial.input(&input),
            None => self.board.ending.end(Outcome::Stopped {
                by: "the user".to_owned(),
            }),
        }
    }
}

fn listen(ops: &mut EventOps, events: Events, what: &str) {
    if let Err(error) = ops.add(events) {
        crate::say!("fabric-vmm: cannot listen to {what}: {error}");
    }
}
