//! Opens all that a machine is made of, as whoever started the process, and reads nothing
//! of it: what a guest or another VMM may have written is read in the jail.

use std::path::Path;

use kvm_ioctls::Kvm;

use super::assemble::AssembleError;
use super::detection::Detection;
use super::disks;
use super::report;
use super::reset::BootFiles;
use super::restore::RestoreError;
use crate::config::VmConfig;
use crate::console::ConsoleSink;
use crate::control::server::ControlListener;
use crate::devices::vsock::Vsock;
use crate::fail_point::{self, Step};
use crate::kvm;
use crate::snapshot;

/// What a machine is made of, open.
pub struct Opened {
    /// The host's KVM.
    pub kvm: Kvm,
    /// What kind of KVM that is.
    pub detection: Detection,
    /// What it boots from, if that is known.
    pub boot: Option<BootFiles>,
    /// The snapshot from which it goes on instead.
    pub snapshot: Option<snapshot::Files>,
    /// The snapshot to which it goes back when it is reset.
    pub reset_to: Option<snapshot::Files>,
    /// Its disks.
    pub disks: Vec<disks::Opened>,
    /// Where its console goes.
    pub console: ConsoleSink,
    /// Its vsock device, which listens already.
    pub vsock: Option<Vsock>,
    /// Where it is talked to: who calls waits for an answer until the guest is about to run.
    pub control: Option<ControlListener>,
    /// The process, as the host numbers it.
    pub pid: u32,
}

/// Opens what the configuration names. No other thread may have been made yet.
///
/// # Errors
///
/// When something cannot be opened.
pub fn open(config: &VmConfig) -> Result<Opened, AssembleError> {
    let kvm = kvm::open()?;
    let detection = Detection::begin(config.repair)?;
    let boot = BootFiles::open(config)?;
    let snapshot = |directory: Option<&Path>| {
        let files = directory.map(snapshot::Files::open).transpose();
        files.map_err(RestoreError::from)
    };
    let (snapshot, reset_to) = (
        snapshot(config.restore.as_deref())?,
        snapshot(config.reset_to.as_deref())?,
    );
    let disks = config.disks.iter().enumerate();
    let disks = disks.map(|(index, disk)| disks::open(index, disk));
    let disks = disks.collect::<Result<_, _>>()?;
    let console = ConsoleSink::open(&config.console)?;
    let vsock = config.vsock.as_ref();
    let vsock = vsock.map(|vsock| Vsock::new(u64::from(vsock.cid), &vsock.path));
    let vsock = vsock.transpose()?;
    fail_point::reached(Step::Opened);
    let control = config.control.as_deref().map(ControlListener::bind);
    let control = control.transpose()?;
    fail_point::reached(Step::Listening);
    Ok(Opened {
        kvm,
        detection,
        boot,
        snapshot,
        reset_to,
        disks,
        console,
        vsock,
        control,
        pid: report::pid_on_the_host(),
    })
}
