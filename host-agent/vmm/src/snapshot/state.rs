//! What is in a snapshot's `state.json`.

use std::sync::Arc;

use kvm_bindings::{kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialState;

use super::memory::MemoryDigest;
use crate::devices::virtio::mmio::TransportState;
use crate::exit::KvmKind;
use crate::vcpu::state::VcpuState;

/// A paused machine, but for its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Version of the VMM that took it.
    pub vmm_version: String,
    /// How KVM ran the guest's kernel, which was told so.
    pub kvm: KvmKind,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// What its contents are known by.
    pub memory: MemoryDigest,
    /// The virtual CPUs, in order.
    pub vcpus: Vec<Arc<VcpuState>>,
    /// What the virtual CPUs share.
    pub chips: ChipsState,
    /// The serial port.
    pub serial: UartState,
    /// The disks, in order.
    pub disks: Vec<DiskState>,
    /// The vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockState>,
}

/// Interrupt controllers and clocks, in KVM.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChipsState {
    /// The guest's clock (`KVM_GET_CLOCK`), in nanoseconds.
    pub clock_ns: u64,
    /// Both PICs and the IOAPIC.
    pub irqchips: [kvm_irqchip; 3],
    /// The interval timer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pit: Option<kvm_pit_state2>,
}

/// A disk as the guest knows it, and its device.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskState {
    /// Its serial.
    pub serial: String,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The device's transport.
    pub transport: TransportState,
}

/// The vsock device. Its connections are not part of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address.
    pub cid: u32,
    /// The device's transport.
    pub transport: TransportState,
}

/// The registers of the 8250.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(remote = "SerialState")]
struct SerialStateDef {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// The serial port.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UartState(#[serde(with = "SerialStateDef")] pub SerialState);
