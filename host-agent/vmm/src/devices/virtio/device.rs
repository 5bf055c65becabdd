//! What a virtio device is to its transport.

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, QueueError, Virtqueue};
use crate::memory::GuestMemory;

/// Everything a device needs to run, handed over when the driver is ready.
///
/// It exists only between `DRIVER_OK` and the next reset, so a device that holds
/// none cannot touch guest memory.
pub struct Activation {
    /// The queues, in the device's order, with a geometry that no longer changes.
    pub queues: Vec<Virtqueue>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The negotiated features: a subset of the offered ones.
    pub features: u64,
}

impl std::fmt::Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Activation")
            .field("queues", &self.queues.len())
            .field("features", &format_args!("{:#x}", self.features))
            .finish_non_exhaustive()
    }
}

/// Why a device could not start. The driver sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue cannot be used as the driver laid it out.
    #[error("queue {index} cannot be used")]
    Queue {
        /// The queue's number in the device.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: QueueError,
    },
    /// The host gave no thread or file descriptor.
    #[error("the host gave no {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device behind a transport.
///
/// The transport calls these from vCPU threads, one call at a time. Queue
/// notifications do not pass through here: they arrive on [`queue_events`], to
/// which the device listens where it likes.
///
/// [`queue_events`]: VirtioDevice::queue_events
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.2, 5).
    fn device_type(&self) -> u32;

    /// The feature bits of this device type that it offers; the transport adds
    /// [`RING_FEATURES`](super::RING_FEATURES).
    fn device_features(&self) -> u64;

    /// The largest size of each queue; as many as there are queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// One event per queue, written when the driver notifies that queue.
    fn queue_events(&self) -> &[EventFd];

    /// Reads from the device's configuration space. What lies beyond its end
    /// reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A number that changes whenever the configuration space does.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Starts the device. Called once between two resets.
    ///
    /// # Errors
    ///
    /// The device stays inactive; the transport reports `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finishes what it is doing and stops, and gives back the queues it was
    /// started with; nothing if it was not started, or has broken.
    ///
    /// When this returns, the device no longer reads or writes guest memory. It
    /// can be [started](VirtioDevice::activate) again with the same queues.
    fn suspend(&mut self) -> Option<Vec<Virtqueue>>;

    /// Stops the device and forgets what it was doing.
    ///
    /// When this returns, the device no longer reads or writes guest memory.
    fn reset(&mut self);
}

/// Answers a read of configuration space from its bytes.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    let available = config.get(offset..).unwrap_or_default();
    let count = available.len().min(data.len());
    data[..count].copy_from_slice(&available[..count]);
}
