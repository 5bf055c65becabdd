//! Waits for every child, as PID 1 must: the roles and probes that were started
//! here, whose ends are told, and the orphans of others, which are only buried.
//! Signals arrive in the same place, through a file descriptor.

use std::{collections::BTreeMap, io};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, sync::oneshot};

use crate::{
    model::Down,
    role::{policy::Ending, process},
};
use fabric_proto::id::RoleName;

/// Whose process it is.
#[derive(Debug)]
pub enum Child {
    /// The role's own.
    Role(RoleName),
    /// One that a check of a role waits for.
    Probe(oneshot::Sender<Ending>),
}

/// The processes that were started here and have not ended.
#[derive(Debug, Default)]
pub struct Children(BTreeMap<i32, Child>);

impl Children {
    /// Remembers whose process `pid` is. Nothing may be awaited between starting it
    /// and this.
    pub fn add(&mut self, pid: Pid, child: Child) {
        self.0.insert(pid.as_raw_nonzero().get(), child);
    }

    /// Buries all that have ended; returns the roles among them. What is left of
    /// their process groups is ended too.
    pub fn reap(&mut self) -> Vec<(RoleName, Ending)> {
        let mut roles = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(child) = self.0.remove(&pid.as_raw_nonzero().get()) else {
                continue;
            };
            process::kill(pid);
            let ending = ending(status);
            match child {
                Child::Role(role) => roles.push((role, ending)),
                // The check may have given up waiting.
                Child::Probe(waiting) => _ = waiting.send(ending),
            }
        }
        roles
    }
}

fn ending(status: WaitStatus) -> Ending {
    match status.terminating_signal() {
        Some(signal) => Ending::Signal(signal),
        None => Ending::Code(status.exit_status().unwrap_or(-1)),
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To look after children.
    Reap,
    /// To go down.
    Down(Down),
}

/// Length of `struct signalfd_siginfo`, whose first field is the signal's number
/// (signalfd(2)).
const RECORD: usize = 128;

/// The signals of the guest agent, as a file descriptor.
#[derive(Debug)]
pub struct Signals(Receiver);

/// What each signal asks for; those of init are as busybox's `poweroff`, `halt` and
/// `reboot` send them, and SIGINT is the kernel's Ctrl-Alt-Del.
const SIGNALS: [(Signal, Asked); 6] = [
    (Signal::SIGCHLD, Asked::Reap),
    (Signal::SIGTERM, Asked::Down(Down::Reboot)),
    (Signal::SIGINT, Asked::Down(Down::Reboot)),
    (Signal::SIGPWR, Asked::Down(Down::PowerOff)),
    (Signal::SIGUSR1, Asked::Down(Down::PowerOff)),
    (Signal::SIGUSR2, Asked::Down(Down::PowerOff)),
];

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    ///
    /// When the system has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for (signal, _) in SIGNALS {
            set.add(signal);
        }
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // Not a pipe, but read like one.
        Ok(Self(Receiver::from_owned_fd_unchecked(fd.into())?))
    }

    /// Waits for a signal.
    ///
    /// # Errors
    ///
    /// When the file descriptor cannot be read, which the kernel does not do.
    pub async fn next(&mut self) -> io::Result<Asked> {
        loop {
            let mut record = [0; RECORD];
            // The kernel gives whole records.
            if self.0.read(&mut record).await? < RECORD {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let [a, b, c, d, ..] = record;
            let number = u32::from_ne_bytes([a, b, c, d]);
            if let Some((_, asked)) = SIGNALS.iter().find(|(signal, _)| *signal as u32 == number) {
                return Ok(*asked);
            }
        }
    }
}
