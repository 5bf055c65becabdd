//! Ctrl-C: the task ends in order, and everything it started with it.
//!
//! The signal arrives in a thread of its own, which ends the programs that the
//! task waits for just then. Their wait returns [`Interrupted`], the task unwinds,
//! and what it holds (servers, temporary folders) is ended by being dropped.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// The user has asked the task to end.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Process groups that the task waits for just now.
static AWAITED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Starts to listen for SIGINT, SIGTERM and SIGHUP.
pub fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listening for signals")?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                if INTERRUPTED.swap(true, Ordering::SeqCst) {
                    eprintln!("still ending what was started ...");
                }
                for group in AWAITED
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .iter()
                {
                    signal_group(*group, Signal::TERM);
                }
            }
        })
        .context("starting the thread that listens for signals")?;
    Ok(())
}

/// Fails once the user has asked the task to end.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        Err(Interrupted.into())
    } else {
        Ok(())
    }
}

/// Sends a signal to a process group; one that is gone needs none.
pub fn signal_group(group: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(group) {
        // ESRCH: it has ended meanwhile, which is what was wanted.
        let _ = kill_process_group(pid, signal);
    }
}

/// While it lives, Ctrl-C ends this process group.
pub struct Awaited(i32);

impl Awaited {
    /// Enters a process group.
    pub fn new(group: i32) -> Self {
        AWAITED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group);
        // The signal may have come just before.
        if INTERRUPTED.load(Ordering::SeqCst) {
            signal_group(group, Signal::TERM);
        }
        Self(group)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        AWAITED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0);
    }
}
