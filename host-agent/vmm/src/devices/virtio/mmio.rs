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

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::QueueConfig;
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
        }
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
        let event_idx = self.driver_features & feature(VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, config) in self.queues.iter().enumerate() {
            let queue = config
                .build(&self.memory, event_idx)
                .map_err(|source| ActivateError::Queue { index, source })?;
            queues.push(queue);
        }
        self.device.activate(Activation {
            queues,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    fn reset(&mut self) {
        // First the device, which may still raise the interrupt until it has
        // stopped.
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
