//! Starts a machine anew in place: the process, its devices' files and sockets and
//! its virtual CPUs' threads stay; all that a guest can have changed goes.
//!
//! ```text
//!  vCPUs parked ── devices, serial port ── memory zero ── kernel, boot data ── chips ── vCPUs
//! ```
//!
//! Connections end as they do when a driver resets the vsock device. What is on the
//! disks stays: it is what a guest finds after the reset button was pressed.

use std::sync::PoisonError;

use thiserror::Error;

use super::keeper::{self, KeepError, Parts};
use crate::boot::layout::MmioSlot;
use crate::boot::{
    self, BootError, BootFile, BootPlan, CmdlineParts, CmdlineTooLong, KernelError, LoadedKernel,
    cmdline, kernel,
};
use crate::config::VmConfig;
use crate::exit::KvmKind;
use crate::memory::{self, GuestMemory};
use crate::snapshot::state::ChipsState;

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

/// All that it takes to start a machine anew.
#[derive(Debug)]
pub struct ResetPlan {
    /// What the machine was made of.
    pub config: VmConfig,
    /// What it boots from.
    pub files: BootFiles,
    /// Where its devices are.
    pub devices: Vec<MmioSlot>,
    /// Its chips, as they were made.
    pub chips: ChipsState,
}

impl ResetPlan {
    /// Takes away what the guest has changed, but for its virtual CPUs, which are
    /// parked; returns where they are to begin.
    ///
    /// # Errors
    ///
    /// When something cannot be had again; the machine cannot go on then.
    pub fn carry_out(&self, parts: &Parts) -> Result<u64, KeepError> {
        parts.for_each_device(|device| {
            device.reset();
            Ok(())
        })?;
        let mut serial = parts.serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.reset();
        memory::clear(&parts.memory).map_err(KeepError::Clear)?;
        let kernel = self.files.load_kernel(&parts.memory, &self.config)?;
        self.files.write_boot_data(
            &parts.memory,
            &self.config,
            parts.kvm,
            &kernel,
            &self.devices,
        )?;
        keeper::restore_chips(&parts.vm, &self.chips)?;
        Ok(kernel.entry)
    }
}
