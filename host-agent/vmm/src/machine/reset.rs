//! Starts a machine anew in place: the process, its devices' files and sockets and
//! its virtual CPUs' threads stay; all that a guest can have changed goes.
//!
//! ```text
//!  vCPUs parked ─ devices, serial port ─┬─ memory zero ─ kernel, boot data ─ chips ─┬─ vCPUs
//!                                       └─ memory, chips, devices of a snapshot ────┘
//! ```
//!
//! To boot a kernel takes seconds where KVM interprets it. A machine that was given a
//! snapshot of a guest that has booted, and holds nothing of its disks, goes back to that
//! instead; if that cannot be, it says so and boots.
//!
//! Connections end as they do when a driver resets the vsock device. What is on the
//! disks stays: it is what a guest finds after the reset button was pressed.

use std::sync::Arc;

use thiserror::Error;

use super::keeper::{self, KeepError, Parts};
use super::restore::{self, RestoreError};
use super::vcpus::Threads;
use crate::boot::layout::MmioSlot;
use crate::boot::{
    self, BootError, BootFile, BootPlan, CmdlineParts, CmdlineTooLong, KernelError, LoadedKernel,
    cmdline, kernel,
};
use crate::config::VmConfig;
use crate::devices::virtio::MmioTransport;
use crate::devices::vsock::VsockHandle;
use crate::exit::KvmKind;
use crate::fail_point::{self, Step};
use crate::memory::{self, GuestMemory};
use crate::snapshot::state::{ChipsState, MachineState};
use crate::snapshot::{self, SnapshotError};
use crate::vcpu::fault::chain;
use crate::vcpu::gate::Beginning;

/// Why a guest's memory cannot be filled with what it boots from.
#[derive(Debug, Error)]
pub enum FillError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineTooLong),
    /// What the kernel finds in memory.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// What a machine boots from, open.
#[derive(Debug)]
pub struct BootFiles {
    kernel: BootFile,
    initrd: Option<BootFile>,
}

impl BootFiles {
    /// Opens what the configuration names; none if it names no kernel.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn open(config: &VmConfig) -> Result<Option<BootFiles>, FillError> {
        if config.kernel.as_os_str().is_empty() {
            return Ok(None);
        }
        let initrd = config.initrd.as_deref();
        Ok(Some(BootFiles {
            kernel: kernel::open(&config.kernel)?,
            initrd: initrd.map(boot::open_initrd).transpose()?,
        }))
    }

    /// Reads the kernel into memory.
    ///
    /// # Errors
    ///
    /// When it is none, or does not fit.
    pub fn load_kernel(
        &self,
        memory: &GuestMemory,
        config: &VmConfig,
    ) -> Result<LoadedKernel, FillError> {
        let size = config.memory_mib << 20;
        Ok(boot::load_kernel(memory, size, &self.kernel)?)
    }

    /// Writes into memory what else a kernel finds there.
    ///
    /// # Errors
    ///
    /// When the command line is too long, or the initial RAM disk does not fit.
    pub fn write_boot_data(
        &self,
        memory: &GuestMemory,
        config: &VmConfig,
        kvm: KvmKind,
        kernel: &LoadedKernel,
        devices: &[MmioSlot],
    ) -> Result<(), FillError> {
        let root = config.disks.first().map(|_| config.root.as_str());
        let cmdline = cmdline::compose(&CmdlineParts {
            root: root.filter(|root| !root.is_empty()),
            root_readonly: config.disks.first().is_some_and(|disk| disk.readonly),
            devices,
            kvm,
            format: kernel.format,
            extra: &config.cmdline,
        })?;
        let plan = BootPlan {
            kernel,
            cmdline: &cmdline,
            initrd: self.initrd.as_ref(),
            memory_size: config.memory_mib << 20,
            vcpus: config.vcpus,
            devices,
        };
        Ok(boot::finish(memory, &plan)?)
    }
}

/// A guest that has booted, and holds nothing of its disks.
#[derive(Debug)]
pub struct Booted {
    files: snapshot::Files,
    /// Told to the guest: that its connections are gone.
    vsock: Option<VsockHandle>,
}

impl Booted {
    /// The snapshot, for a machine with this vsock device.
    pub fn new(files: snapshot::Files, vsock: Option<VsockHandle>) -> Booted {
        Booted { files, vsock }
    }

    /// Gives the machine the snapshot's memory and devices. Its chips come after its
    /// virtual CPUs.
    fn go_back(&self, config: &VmConfig, parts: &Parts) -> Result<MachineState, GoBackError> {
        let state = self.files.state()?;
        restore::check(config, parts.kvm, &state)?;
        let memory = self.files.memory(config.memory_mib << 20)?;
        memory::map_again(&parts.memory, memory).map_err(GoBackError::Map)?;
        parts.serial().go_back(&state.serial.0);
        restore::devices(parts, &state)?;
        if let (Some(handle), Some(former)) = (&self.vsock, &state.vsock) {
            handle.restored(u64::from(former.cid));
        }
        Ok(state)
    }
}

/// Why a machine cannot go back to a snapshot.
#[derive(Debug, Error)]
enum GoBackError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("the snapshot's memory cannot be mapped")]
    Map(#[source] std::io::Error),
}

/// All that it takes to start a machine anew; a kernel, a snapshot, or both.
#[derive(Debug)]
pub struct ResetPlan {
    /// What the machine was made of.
    pub config: VmConfig,
    /// What it boots from.
    pub files: Option<BootFiles>,
    /// What it goes back to instead.
    pub booted: Option<Booted>,
    /// Where its devices are.
    pub devices: Vec<MmioSlot>,
    /// Its chips, as they were made.
    pub chips: ChipsState,
}

impl ResetPlan {
    /// Takes away what the guest has changed, and has the virtual CPUs, which are parked,
    /// begin anew; they are parked again then.
    ///
    /// # Errors
    ///
    /// When something cannot be had again; the machine cannot go on then.
    pub fn carry_out(&self, parts: &Parts, threads: &Threads) -> Result<(), KeepError> {
        take_away(parts)?;
        fail_point::reached(Step::TakenAway);
        let gone_back = match &self.booted {
            None => None,
            Some(booted) => match booted.go_back(&self.config, parts) {
                Ok(state) => Some(state),
                Err(error) => {
                    crate::say!("fabric-vmm: the kernel is booted: {}", chain(&error));
                    // The devices may have some of the snapshot.
                    take_away(parts)?;
                    None
                }
            },
        };
        let began = match gone_back {
            Some(state) => {
                let states = state.vcpus.iter().map(Arc::clone);
                let began = threads.restart(states.map(Beginning::State));
                keeper::restore_chips(&parts.vm, &state.chips)?;
                parts.for_each_device(MmioTransport::resume)?;
                began
            }
            None => {
                let entry = self.fill(parts)?;
                keeper::restore_chips(&parts.vm, &self.chips)?;
                threads.restart(std::iter::repeat(Beginning::Kernel { entry }))
            }
        };
        fail_point::reached(Step::BegunAnew);
        began.then_some(()).ok_or(KeepError::DoesNotStop)
    }

    /// Fills the memory with what a kernel finds there; returns where that begins.
    fn fill(&self, parts: &Parts) -> Result<u64, KeepError> {
        let files = self.files.as_ref().ok_or(KeepError::NoKernel)?;
        memory::clear(&parts.memory).map_err(KeepError::Clear)?;
        let (memory, config) = (&parts.memory, &self.config);
        let kernel = files.load_kernel(memory, config)?;
        files.write_boot_data(memory, config, parts.kvm, &kernel, &self.devices)?;
        Ok(kernel.entry)
    }
}

/// Resets the devices and the serial port.
fn take_away(parts: &Parts) -> Result<(), KeepError> {
    parts.for_each_device(|device| {
        device.reset();
        Ok(())
    })?;
    parts.serial().reset();
    Ok(())
}
