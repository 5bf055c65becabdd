//! The virtio transport and what all virtio devices here share.
//!
//! | file | what it is |
//! |---|---|
//! | [`mmio`] | the register file a guest sees (virtio 1.2, 4.2, version 2) |
//! | [`status`] | the device status state machine, as a table |
//! | [`device`] | the trait a device implements, and what it is given when it starts |
//! | [`queue`] | a queue before (`QueueConfig`) and after (`Virtqueue`) the driver is ready |
//! | [`chain`] | a descriptor chain, read once from guest memory and checked |
//! | [`interrupt`] | the interrupt line with its status bits, shared with worker threads |
//!
//! Nothing in guest memory or in a register write is trusted: a chain is read
//! exactly once and then judged, so that a guest which changes it meanwhile
//! gains nothing. What is wrong with one request is answered to that request;
//! what is wrong with a ring stops the device (`DEVICE_NEEDS_RESET`).
//!
//! Not here: anything a particular device does, and where devices are mapped.

pub mod chain;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod status;

#[cfg(test)]
pub(crate) mod test_driver;
#[cfg(test)]
mod tests;

pub use chain::{BadChain, Chain, GuestBuffer};
pub use device::{ActivateError, Activation, VirtioDevice};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
pub use queue::{QueueError, Virtqueue};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The largest queue any device here offers, in descriptors.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// The feature bits that every device here offers beside its own.
pub const RING_FEATURES: u64 = feature(VIRTIO_F_VERSION_1)
    | feature(VIRTIO_RING_F_INDIRECT_DESC)
    | feature(VIRTIO_RING_F_EVENT_IDX);

/// The mask of the feature with this bit number.
pub const fn feature(bit: u32) -> u64 {
    1 << bit
}
