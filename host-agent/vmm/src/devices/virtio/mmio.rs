//! The virtio-mmio register file, version 2 (virtio 1.2, 4.2).
//!
//! It keeps what driver and device agree on: features, queue layout, status.
//! The device behind it sees none of that until both are done, and then all of
//! it at once ([`Activation`]).
//!
//! What a driver may do when follows from the [`Phase`] alone: features are
//! negotiated in `Driver`, queues are laid out in `FeaturesOk`, and neither can
//! change any more in `DriverOk`. A write that does not belong to the phase
//! changes nothing.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{QueueConfig, QueuePosition, Virtqueue};
use super::status::{NEEDS_RESET, Phase};
use super::{RING_FEATURES, feature};
use crate::devices::bus::MmioDevice;
use crate::memory::GuestMemory;

/// The size of a device's window in the address space.
pub const MMIO_SIZE: u64 = 0x1000;

/// Where in the window a driver notifies a queue; ioeventfds are bound here,
/// with the queue's number as the value to match.
pub const QUEUE_NOTIFY_OFFSET: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = 0x7472_6976; // "virt"
const VERSION: u32 = 2;
const VENDOR: u32 = 0x4342_4146; // "FABC"
/// What the length of a shared memory region that is not there reads as.
const NO_REGION: u32 = u32::MAX;
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// One virtio device as the guest sees it on its bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    phase: Phase,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    queues: Vec<QueueConfig>,
    suspended: Option<Vec<Virtqueue>>,
}

/// What driver and device have agreed on and how far they have come, while the
/// device is suspended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransportState {
    device_type: u32,
    phase: Phase,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    queues: Vec<QueueConfig>,
    interrupt_status: u32,
    needs_reset: bool,
    /// Where the queues stand, if the device runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    positions: Option<Vec<QueuePosition>>,
}

/// A state that does not fit the device.
#[derive(Debug, Error)]
pub enum TransportStateError {
    /// It is of another device, or of one that can do more.
    #[error("the snapshot's device is of type {theirs} with features {features:#x}: not this one")]
    OtherDevice {
        /// The snapshot's type of device.
        theirs: u32,
        /// The features that its driver uses.
        features: u64,
    },
    /// It has another number of queues.
    #[error("the snapshot's device has {theirs} queues: this has {ours}")]
    Queues {
        /// The snapshot's.
        theirs: usize,
        /// This device's.
        ours: usize,
    },
    /// It has a device at work that does not run, for its driver is not ready or it
    /// has broken.
    #[error("the snapshot's device is at work although it does not run")]
    NotRunning,
    /// The device does not start.
    #[error("the device does not start again")]
    Activate(#[from] ActivateError),
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device.device_type())
            .field("phase", &self.phase)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind a register file; `irq` raises its interrupt line.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, irq: EventFd) -> MmioTransport {
        let queues = fresh_queues(&*device);
        MmioTransport {
            device,
            memory,
            interrupt: Interrupt::new(irq),
            phase: Phase::Reset,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues,
            suspended: None,
        }
    }

    /// Suspends the device and tells its state.
    pub fn suspend(&mut self) -> TransportState {
        if self.suspended.is_none() {
            self.suspended = self.device.suspend();
        }
        let positions = self
            .suspended
            .as_ref()
            .map(|queues| queues.iter().map(Virtqueue::position).collect());
        TransportState {
            device_type: self.device.device_type(),
            phase: self.phase,
            driver_features: self.driver_features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.needs_reset(),
            positions,
        }
    }

    /// Lets a suspended device go on.
    ///
    /// # Errors
    ///
    /// The host gives it no thread; the driver is told that it needs a reset.
    pub fn resume(&mut self) -> Result<(), ActivateError> {
        let Some(queues) = self.suspended.take() else {
            return Ok(());
        };
        self.start(queues)
            .inspect_err(|_| self.interrupt.signal_needs_reset())
    }

    /// Makes a fresh device one that has the state of another. It is suspended
    /// then. The state is checked as what a driver writes is.
    ///
    /// # Errors
    ///
    /// When it does not fit the device.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), TransportStateError> {
        let offered = self.offered_features();
        if state.device_type != self.device.device_type() || state.driver_features & !offered != 0 {
            return Err(TransportStateError::OtherDevice {
                theirs: state.device_type,
                features: state.driver_features,
            });
        }
        let (theirs, ours) = (state.queues.len(), self.queues.len());
        let positions = state.positions.as_ref().map_or(ours, Vec::len);
        if theirs != ours || positions != ours {
            return Err(TransportStateError::Queues { theirs, ours });
        }
        let runs = state.phase == Phase::DriverOk && !state.needs_reset;
        if state.positions.is_some() && !runs {
            return Err(TransportStateError::NotRunning);
        }
        self.phase = state.phase;
        self.driver_features = state.driver_features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        for (queue, config) in self.queues.iter_mut().zip(&state.queues) {
            *queue = QueueConfig {
                max_size: queue.max_size,
                ..config.clone()
            };
        }
        if let Some(positions) = &state.positions {
            let mut queues = self.build_queues()?;
            for (queue, position) in queues.iter_mut().zip(positions) {
                queue.set_position(*position);
            }
            self.suspended = Some(queues);
        }
        self.interrupt
            .restore(state.interrupt_status, state.needs_reset);
        Ok(())
    }

    /// One event per queue, to be bound as ioeventfds at
    /// [`QUEUE_NOTIFY_OFFSET`], the queue's number being the value to match.
    pub fn queue_events(&self) -> &[EventFd] {
        self.device.queue_events()
    }

    fn offered_features(&self) -> u64 {
        self.device.device_features() | RING_FEATURES
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.offered_features(), self.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.max_size)),
            register::VIRTIO_MMIO_QUEUE_READY => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.ready)),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.negotiate(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify_queue(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.lay_out_queue(offset, value),
        }
    }

    fn selected_queue(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn negotiate(&mut self, value: u32) {
        if self.phase != Phase::Driver {
            return;
        }
        match self.driver_features_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    fn lay_out_queue(&mut self, offset: u32, value: u32) {
        if self.phase != Phase::FeaturesOk {
            return;
        }
        let Ok(index) = usize::try_from(self.queue_select) else {
            return;
        };
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if offset == register::VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value == 1;
            return;
        }
        if queue.ready {
            return;
        }
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    /// A notification that no ioeventfd caught: passed on by the same event.
    fn notify_queue(&self, index: u32) {
        let event = usize::try_from(index)
            .ok()
            .and_then(|i| self.device.queue_events().get(i));
        if let Some(event) = event {
            // Fails only when the counter is full: the device is notified already.
            let _ = event.write(1);
        }
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.needs_reset() {
            NEEDS_RESET
        } else {
            0
        };
        self.phase.bits() | needs_reset
    }

    fn write_status(&mut self, value: u32) {
        let Some(next) = self.phase.after_write(value) else {
            return;
        };
        match next {
            Phase::Reset => self.reset(),
            Phase::FeaturesOk if !self.features_acceptable() => {}
            Phase::DriverOk => {
                self.phase = next;
                if self.activate().is_err() {
                    self.interrupt.signal_needs_reset();
                }
            }
            Phase::Failed => {
                self.device.reset();
                self.phase = next;
            }
            _ => self.phase = next,
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & feature(VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let queues = self.build_queues()?;
        self.start(queues)
    }

    fn build_queues(&self) -> Result<Vec<Virtqueue>, ActivateError> {
        let event_idx = self.driver_features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, config) in self.queues.iter().enumerate() {
            let queue = config
                .build(&self.memory, event_idx)
                .map_err(|source| ActivateError::Queue { index, source })?;
            queues.push(queue);
        }
        Ok(queues)
    }

    fn start(&mut self, queues: Vec<Virtqueue>) -> Result<(), ActivateError> {
        self.device.activate(Activation {
            queues,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    /// Resets the device, as its driver does and as a machine is reset.
    pub fn reset(&mut self) {
        // First the device, which may still raise the interrupt until it has
        // stopped.
        self.suspended = None;
        self.device.reset();
        self.interrupt.reset();
        self.phase = Phase::Reset;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.queues = fresh_queues(&*self.device);
    }
}

impl MmioDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(config_offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(config_offset, data);
            return;
        }
        // Registers are read whole (4.2.2.2); anything else reads as zero.
        data.fill(0);
        if let (Ok(offset), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration that a driver may write.
        if offset >= CONFIG {
            return;
        }
        if let (Ok(offset), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<QueueConfig> {
    device
        .queue_max_sizes()
        .iter()
        .map(|size| QueueConfig::new(*size))
        .collect()
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = (*target & !0xffff_ffff) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = (*target & 0xffff_ffff) | (u64::from(value) << 32);
}
