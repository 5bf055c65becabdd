//! Pauses a machine, lets it go on, takes snapshots of it, and resets it.
//!
//! ```text
//!  running ── pause ──▶ vCPUs parked ── devices suspended, clock noted ──▶ paused
//!     ▲                                                                      │
//!     ├── vCPUs go on ◀── devices resumed ◀── clock set back ◀── resume ─────┤
//!     └── vCPUs go on ◀── all as at power on ◀── reset (running, or paused) ─┘
//! ```
//!
//! Everything here runs in the event loop, so that no packet is on its way
//! through the vsock device meanwhile.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::errno;

use super::reset::{FillError, ResetPlan};
use super::vcpus::Threads;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::{ActivateError, MmioTransport};
use crate::exit::KvmKind;
use crate::fail_point::{self, Step};
use crate::memory::GuestMemory;
use crate::snapshot::state::{ChipsState, DiskState, MachineState, UartState, VsockState};
use crate::snapshot::{self, SnapshotError};
use crate::vcpu::fault::chain;
use crate::vcpu::state::VcpuStateError;
use crate::vcpu::{Board, Outcome};

/// Why a machine cannot be paused, resumed or put into a snapshot.
#[derive(Debug, Error)]
pub enum KeepError {
    /// It does not stop.
    #[error("the virtual CPUs did not stop in time")]
    DoesNotStop,
    /// The state of a virtual CPU.
    #[error("a virtual CPU's state cannot be taken")]
    Vcpu(#[from] VcpuStateError),
    /// A device does not go on.
    #[error("a device does not go on")]
    Device(#[from] ActivateError),
    /// The files.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is nothing to start anew with.
    #[error("the machine went on from a snapshot and knows no kernel to start anew with")]
    NoKernel,
    /// The memory cannot be cleared.
    #[error("the guest's memory cannot be cleared")]
    Clear(#[source] std::io::Error),
    /// The memory cannot be filled.
    #[error("the guest's memory cannot be filled anew")]
    Fill(#[from] FillError),
    /// A call to KVM failed.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
}

impl KeepError {
    fn kvm(call: &'static str) -> impl Fn(errno::Error) -> KeepError {
        move |source| KeepError::Kvm { call, source }
    }
}

/// A virtio device on its bus.
pub type SharedTransport = Arc<Mutex<MmioTransport>>;

/// A disk as the guest knows it.
#[derive(Debug)]
pub struct DiskPart {
    /// Its serial.
    pub serial: String,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its device.
    pub transport: SharedTransport,
}

/// The vsock device.
#[derive(Debug)]
pub struct VsockPart {
    /// The guest's address.
    pub cid: u32,
    /// Its device.
    pub transport: SharedTransport,
}

/// What a machine is made of, apart from its virtual CPUs.
#[derive(Debug)]
pub struct Parts {
    /// The virtual machine.
    pub vm: VmFd,
    /// How KVM runs its kernel.
    pub kvm: KvmKind,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The serial port.
    pub serial: Arc<Mutex<SerialPort>>,
    /// The disks, in order.
    pub disks: Vec<DiskPart>,
    /// The vsock device.
    pub vsock: Option<VsockPart>,
}

impl Parts {
    /// Takes hold of the serial port.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to every virtio device; the first error, when all have had
    /// their turn.
    pub fn for_each_device(
        &self,
        mut act: impl FnMut(&mut MmioTransport) -> Result<(), ActivateError>,
    ) -> Result<(), ActivateError> {
        let disks = self.disks.iter().map(|disk| &disk.transport);
        let vsock = self.vsock.iter().map(|vsock| &vsock.transport);
        let mut first_error = Ok(());
        for device in disks.chain(vsock) {
            let done = act(&mut lock_transport(device));
            first_error = first_error.and(done);
        }
        first_error
    }
}

/// Keeps a running machine.
#[derive(Debug)]
pub struct Keeper {
    parts: Parts,
    board: Arc<Board>,
    threads: Arc<Threads>,
    /// The guest's clock when it was paused, if it is.
    paused_at: Option<u64>,
    reset: Option<ResetPlan>,
    resets: u32,
}

/// A keeper for all who ask it, which are all in the event loop.
pub type SharedKeeper = Arc<Mutex<Keeper>>;

/// Takes hold of the keeper.
pub fn lock(keeper: &SharedKeeper) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// The keeper of a machine that has been started.
    pub fn new(
        parts: Parts,
        board: Arc<Board>,
        threads: Arc<Threads>,
        reset: Option<ResetPlan>,
    ) -> SharedKeeper {
        Arc::new(Mutex::new(Keeper {
            parts,
            board,
            threads,
            paused_at: None,
            reset,
            resets: 0,
        }))
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.paused_at.is_some()
    }

    /// Pauses the machine. Nothing happens if it is paused.
    ///
    /// # Errors
    ///
    /// When it does not stop; it runs on then.
    pub fn pause(&mut self) -> Result<(), KeepError> {
        if self.is_paused() {
            return Ok(());
        }
        if !self.threads.park() {
            return Err(KeepError::DoesNotStop);
        }
        let clock = self.parts.vm.get_clock();
        match clock.map_err(KeepError::kvm("KVM_GET_CLOCK")) {
            Ok(clock) => {
                self.parts.for_each_device(|device| {
                    device.suspend();
                    Ok(())
                })?;
                self.paused_at = Some(clock.clock);
                fail_point::reached(Step::Paused);
                Ok(())
            }
            Err(error) => {
                self.board.gate.open();
                Err(error)
            }
        }
    }

    /// Lets a paused machine go on, by its own clock from where it was. Nothing
    /// happens if it is not paused.
    ///
    /// # Errors
    ///
    /// When a device or the clock does not go on; the rest does.
    pub fn resume(&mut self) -> Result<(), KeepError> {
        let Some(clock) = self.paused_at.take() else {
            return Ok(());
        };
        let clock = set_clock(&self.parts.vm, clock);
        let devices = self.parts.for_each_device(MmioTransport::resume);
        let devices = devices.map_err(KeepError::from);
        self.board.gate.open();
        fail_point::reached(Step::Resumed);
        clock.and(devices)
    }

    /// How often it was started anew.
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// Starts the machine anew, in place; one that was paused runs then.
    ///
    /// # Errors
    ///
    /// When it knows no kernel, or does not stop: it runs on then. When something
    /// cannot be had again, it ends.
    pub fn reset(&mut self) -> Result<(), KeepError> {
        let plan = self.reset.as_ref().ok_or(KeepError::NoKernel)?;
        if !self.is_paused() && !self.threads.park() {
            return Err(KeepError::DoesNotStop);
        }
        let done = plan.carry_out(&self.parts, &self.threads);
        match &done {
            Ok(()) => {
                self.paused_at = None;
                self.resets += 1;
                // What was found of the former guest does not count any more.
                self.board.halts.begin_round();
                self.board.gate.open();
            }
            Err(error) => self.board.ending.end(Outcome::Failed {
                message: format!("the machine cannot be reset: {}", chain(error)),
                fault: None,
            }),
        }
        done
    }

    /// Takes a snapshot; a machine that runs is paused for as long as it takes.
    ///
    /// # Errors
    ///
    /// When it cannot be paused, or the snapshot cannot be written.
    pub fn snapshot(&mut self, directory: &Path) -> Result<(), KeepError> {
        let was_paused = self.is_paused();
        self.pause()?;
        let taken = self.take(directory);
        if !was_paused {
            self.resume()?;
        }
        taken
    }

    fn take(&self, directory: &Path) -> Result<(), KeepError> {
        let parts = &self.parts;
        let vcpus = self.board.gate.states()?;
        let chips = self.chips()?;
        let disks = parts.disks.iter().map(|disk| DiskState {
            serial: disk.serial.clone(),
            readonly: disk.readonly,
            size_bytes: disk.size_bytes,
            transport: lock_transport(&disk.transport).suspend(),
        });
        let vsock = parts.vsock.as_ref().map(|vsock| VsockState {
            cid: vsock.cid,
            transport: lock_transport(&vsock.transport).suspend(),
        });
        let serial = parts.serial().state();
        let disks = disks.collect();
        snapshot::write(directory, &parts.memory, |memory| MachineState {
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            kvm: parts.kvm,
            memory_mib: parts.memory_mib,
            memory,
            vcpus,
            chips,
            serial: UartState(serial),
            disks,
            vsock,
        })?;
        Ok(())
    }

    fn chips(&self) -> Result<ChipsState, KeepError> {
        let clock_ns = self.paused_at.unwrap_or_default();
        take_chips(&self.parts.vm, self.parts.kvm, clock_ns)
    }
}

/// Takes the state of the chips, at what the guest's clock says.
///
/// # Errors
///
/// When KVM refuses.
pub fn take_chips(vm: &VmFd, kvm: KvmKind, clock_ns: u64) -> Result<ChipsState, KeepError> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(KeepError::kvm("KVM_GET_IRQCHIP"))?;
        Ok::<_, KeepError>(chip)
    };
    let pit = match kvm {
        KvmKind::Hardware => Some(vm.get_pit2().map_err(KeepError::kvm("KVM_GET_PIT2"))?),
        KvmKind::Interpreted => None,
    };
    Ok(ChipsState {
        clock_ns,
        irqchips: [
            chip(KVM_IRQCHIP_PIC_MASTER)?,
            chip(KVM_IRQCHIP_PIC_SLAVE)?,
            chip(KVM_IRQCHIP_IOAPIC)?,
        ],
        pit,
    })
}

/// Gives a new machine the chips of another.
///
/// # Errors
///
/// When KVM refuses.
pub fn restore_chips(vm: &VmFd, chips: &ChipsState) -> Result<(), KeepError> {
    for chip in &chips.irqchips {
        vm.set_irqchip(chip)
            .map_err(KeepError::kvm("KVM_SET_IRQCHIP"))?;
    }
    if let Some(pit) = &chips.pit {
        vm.set_pit2(pit).map_err(KeepError::kvm("KVM_SET_PIT2"))?;
    }
    set_clock(vm, chips.clock_ns)
}

fn set_clock(vm: &VmFd, nanoseconds: u64) -> Result<(), KeepError> {
    let clock = kvm_clock_data {
        clock: nanoseconds,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock)
        .map_err(KeepError::kvm("KVM_SET_CLOCK"))
}

/// Takes hold of a device.
pub fn lock_transport(transport: &SharedTransport) -> MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}
