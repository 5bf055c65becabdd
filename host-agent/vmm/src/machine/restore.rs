//! Checks that a snapshot fits a machine, and gives the machine its state.

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use super::keeper::{self, KeepError, Parts, lock_transport};
use crate::config::VmConfig;
use crate::devices::virtio::mmio::TransportStateError;
use crate::devices::virtio::{ActivateError, MmioTransport};
use crate::exit::KvmKind;
use crate::repair::{Repair, RepairError};
use crate::snapshot::SnapshotError;
use crate::snapshot::state::MachineState;
use crate::vcpu;
use crate::vcpu::state::{VcpuState, VcpuStateError};

/// Why a machine cannot go on from a snapshot. Nothing of it has run.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The snapshot itself.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine is another one than the snapshot's.
    #[error("`{field}` is {ours}: the snapshot has {theirs}")]
    Differs {
        /// The field of the configuration.
        field: String,
        /// The machine's value.
        ours: String,
        /// The snapshot's.
        theirs: String,
    },
    /// A device.
    #[error("device {index} cannot have the snapshot's state")]
    Device {
        /// Which, the disks first.
        index: usize,
        /// Why not.
        #[source]
        source: TransportStateError,
    },
    /// A device does not start.
    #[error("a restored device does not go on")]
    Start(#[from] ActivateError),
    /// A virtual CPU.
    #[error("vCPU {id} cannot have the snapshot's state")]
    Vcpu {
        /// Which.
        id: u8,
        /// Why not.
        #[source]
        source: VcpuStateError,
    },
    /// The repair of a virtual CPU.
    #[error("vCPU {id} cannot go on where KVM interprets guest kernels")]
    Repair {
        /// Which.
        id: u8,
        /// Why not.
        #[source]
        source: RepairError,
    },
    /// The serial port.
    #[error("the snapshot's serial port holds more input than fits")]
    Serial,
    /// The chips.
    #[error("the interrupt controllers or clocks cannot have the snapshot's state")]
    Chips(#[source] KeepError),
}

/// Checks that the machine is the snapshot's, as far as the configuration says.
///
/// # Errors
///
/// Names the first field that differs.
pub fn check(config: &VmConfig, kvm: KvmKind, state: &MachineState) -> Result<(), RestoreError> {
    same("memory_mib", config.memory_mib, state.memory_mib)?;
    same("vcpus", usize::from(config.vcpus), state.vcpus.len())?;
    same("kvm", kvm, state.kvm)?;
    same(
        "disks",
        format!("{} long", config.disks.len()),
        format!("{} long", state.disks.len()),
    )?;
    let there = |there| if there { "there" } else { "missing" };
    same(
        "vsock",
        there(config.vsock.is_some()),
        there(state.vsock.is_some()),
    )
}

fn same<T: PartialEq + std::fmt::Display>(
    field: impl Into<String>,
    ours: T,
    theirs: T,
) -> Result<(), RestoreError> {
    if ours == theirs {
        return Ok(());
    }
    Err(RestoreError::Differs {
        field: field.into(),
        ours: ours.to_string(),
        theirs: theirs.to_string(),
    })
}

/// Gives the devices their state. They are suspended then.
///
/// # Errors
///
/// When one is another than the snapshot's.
pub fn devices(parts: &Parts, state: &MachineState) -> Result<(), RestoreError> {
    for (index, (ours, theirs)) in parts.disks.iter().zip(&state.disks).enumerate() {
        let field = |name: &str| format!("disks[{index}].{name}");
        same(field("serial"), &ours.serial, &theirs.serial)?;
        same(field("readonly"), ours.readonly, theirs.readonly)?;
        same(field("size"), ours.size_bytes, theirs.size_bytes)?;
        lock_transport(&ours.transport)
            .restore(&theirs.transport)
            .map_err(|source| RestoreError::Device { index, source })?;
    }
    if let (Some(ours), Some(theirs)) = (&parts.vsock, &state.vsock) {
        let index = parts.disks.len();
        lock_transport(&ours.transport)
            .restore(&theirs.transport)
            .map_err(|source| RestoreError::Device { index, source })?;
    }
    Ok(())
}

/// Tells virtual CPU `id` what its processor is.
///
/// # Errors
///
/// When it is of another kind, or KVM refuses it.
pub fn processor(
    id: u8,
    fd: &VcpuFd,
    supported: &CpuId,
    state: &VcpuState,
) -> Result<(), RestoreError> {
    state
        .give_cpuid(fd, supported)
        .map_err(|source| RestoreError::Vcpu { id, source })
}

/// Gives virtual CPU `id`, which has been told of its processor, its state.
///
/// # Errors
///
/// When KVM refuses it.
pub fn vcpu(
    id: u8,
    fd: &VcpuFd,
    state: &VcpuState,
    repair: Option<&mut Repair>,
) -> Result<(), RestoreError> {
    state
        .give(fd)
        .map_err(|source| RestoreError::Vcpu { id, source })?;
    vcpu::go_on(fd, state, repair).map_err(|source| RestoreError::Repair { id, source })
}

/// Gives the chips their state, after the virtual CPUs.
///
/// # Errors
///
/// When KVM refuses it.
pub fn chips(vm: &VmFd, state: &MachineState) -> Result<(), RestoreError> {
    keeper::restore_chips(vm, &state.chips).map_err(RestoreError::Chips)
}

/// Lets the devices that were restored go on.
///
/// # Errors
///
/// When the host has no room for one.
pub fn start_devices(parts: &Parts) -> Result<(), RestoreError> {
    Ok(parts.for_each_device(MmioTransport::resume)?)
}
