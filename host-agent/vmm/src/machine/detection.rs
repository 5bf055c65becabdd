//! Finds out what kind of KVM this is while the machine is put together.
//!
//! In a process of its own, which takes the time to clean up after it: a machine
//! that has run once leaves the process that made it with a thread of the
//! kernel's, and a process with threads cannot enter a user namespace.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, pipe2};

use super::assemble::AssembleError;
use crate::config::RepairMode;
use crate::exit::KvmKind;
use crate::kvm;
use crate::repair::detect::detect;
use crate::vcpu::fault::chain;

/// What is being found out, or known.
#[derive(Debug)]
pub enum Detection {
    /// It was said.
    Known(KvmKind),
    /// A process says it here.
    Tried(File),
}

impl Detection {
    /// Begins to find it out. No other thread may have been made yet.
    ///
    /// # Errors
    ///
    /// When the host gives no process.
    pub fn begin(mode: RepairMode) -> Result<Detection, AssembleError> {
        match mode {
            RepairMode::On => Ok(Detection::Known(KvmKind::Interpreted)),
            RepairMode::Off => Ok(Detection::Known(KvmKind::Hardware)),
            RepairMode::Auto => try_out().map_err(AssembleError::host("process to try KVM out")),
        }
    }

    /// Waits for the verdict.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn verdict(self) -> Result<KvmKind, AssembleError> {
        let mut said = String::new();
        match self {
            Detection::Known(kind) => return Ok(kind),
            Detection::Tried(mut says) => says
                .read_to_string(&mut said)
                .map_err(AssembleError::host("verdict on KVM"))?,
        };
        if said.is_empty() {
            return Err(AssembleError::Detect("its process died".to_owned()));
        }
        said.parse().map_err(|_| AssembleError::Detect(said))
    }
}

fn try_out() -> io::Result<Detection> {
    let (says, said) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    // SAFETY: this is the only thread, so the child finds no lock held by another.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        return Ok(Detection::Tried(says.into()));
    }
    let tried = kvm::open()
        .map_err(|error| chain(&error))
        .and_then(|kvm| detect(&kvm).map_err(|error| chain(&error)));
    let verdict = tried.map_or_else(|error| error, |kind| kind.to_string());
    // Nobody listens any longer if the machine has failed.
    let _ = File::from(said).write_all(verdict.as_bytes());
    // SAFETY: ends the child, without what only its parent is to do at its end.
    unsafe { libc::_exit(0) }
}
