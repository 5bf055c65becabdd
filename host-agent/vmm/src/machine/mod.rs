//! A machine from its configuration to its exit report.
//!
//! ```text
//!   VmConfig ── open ──▶ Opened ── the jail ── assemble ──▶ Assembled ── start ──▶ event loop
//!               (errors: nothing has run yet)                     (one thread per vCPU)
//!                                                                  Outcome ──▶ ExitReport
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | [`open`] | opens everything, and reads nothing of it |
//! | [`assemble`] | puts the machine together of that |
//! | [`detection`] | finds out meanwhile how this KVM runs guests |
//! | [`disks`] | opens disk images, and checks them |
//! | [`event_loop`] | runs it: signals, console input, control socket, vsock, halts |
//! | [`events`] | what wakes the event loop |
//! | [`halt_check`] | decides when a guest has halted for good |
//! | [`vcpus`] | the virtual CPUs' threads |
//! | [`governor`] | holds its devices to their limits |
//! | [`keeper`] | pauses it, lets it go on, takes snapshots, resets it |
//! | [`template`] | makes a template of it when its guest calls |
//! | [`restore`] | gives a new machine a snapshot's state |
//! | [`reset`] | starts a machine anew in place |
//! | [`trim`] | gives back what only the start needed |
//! | [`report`] | what is told during the run and at its end |

pub mod assemble;
pub mod detection;
pub mod disks;
pub mod event_loop;
pub mod events;
pub mod governor;
pub mod halt_check;
pub mod keeper;
pub mod open;
pub mod report;
pub mod reset;
pub mod restore;
pub mod template;
pub mod trim;
pub mod vcpus;

use std::time::Instant;

use crate::config::{JailConfig, VmConfig};
use crate::exit::ExitReport;
use crate::fail_point::{self, Step};
use crate::jail::{self, Jail};
use crate::vcpu::fault::chain;

pub use assemble::AssembleError;

use open::Opened;

/// Runs a machine in its jail until it ends. `started` is when the process began.
///
/// Signals SIGTERM and SIGINT are blocked in the calling thread and end the
/// machine; call this from a process that runs nothing else.
pub fn run(config: &VmConfig, jail: &JailConfig, started: Instant) -> ExitReport {
    let report = match open_and_enter_jail(config, jail) {
        Err(error) => ExitReport::new(error.reason(), chain(&error)),
        Ok((opened, jail)) => match assemble::assemble(config, opened, started) {
            Ok(machine) => event_loop::run(machine, jail),
            Err(error) => ExitReport {
                isolation: jail.isolation,
                ..ExitReport::new(error.reason(), chain(&error))
            },
        },
    };
    report.of(&config.name, started)
}

/// What comes of the files, which may be hostile, comes in the jail.
fn open_and_enter_jail(
    config: &VmConfig,
    jail: &JailConfig,
) -> Result<(Opened, Jail), AssembleError> {
    let opened = open::open(config)?;
    let jail = jail::enter(jail)?;
    fail_point::reached(Step::Jailed);
    Ok((opened, jail))
}
