//! A queue before and after the driver is ready.
//!
//! [`QueueConfig`] is what the driver may still lay out; [`Virtqueue`] is made
//! of it at `DRIVER_OK` and has no way to change its geometry.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{BadChain, Chain};
use super::{Interrupt, QUEUE_SIZE_MAX};
use crate::memory::GuestMemory;

/// What the driver has said about a queue so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueueConfig {
    /// The largest size that the device offers (`QueueNumMax`).
    pub max_size: u16,
    /// The size that the driver chose (`QueueNum`), unchecked.
    pub size: u32,
    /// Whether the driver has finished it (`QueueReady`).
    pub ready: bool,
    /// Where the descriptor table is (`QueueDesc`).
    pub descriptors: u64,
    /// Where the available ring is (`QueueDriver`).
    pub available: u64,
    /// Where the used ring is (`QueueDevice`).
    pub used: u64,
}

/// How far a device has come with a queue: counters that wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    /// The next entry of the available ring that it reads.
    pub available: u16,
    /// The next entry of the used ring that it writes.
    pub used: u16,
}

/// A ring that cannot be used, or no longer. The device needs a reset.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The driver said `DRIVER_OK` without having finished the queue.
    #[error("the driver did not set QueueReady")]
    NotReady,
    /// `QueueNum` is zero, no power of two, or above `QueueNumMax`.
    #[error("QueueNum is {size}: it must be a power of two, at most {max}")]
    Size {
        /// The value written.
        size: u32,
        /// `QueueNumMax`.
        max: u16,
    },
    /// A ring address breaks the alignment of virtio 1.2, 2.7.
    #[error("{ring} at {address:#x} is not aligned")]
    Unaligned {
        /// The register's name.
        ring: &'static str,
        /// The address written.
        address: u64,
    },
    /// A ring is not, or not wholly, in guest memory.
    #[error("a ring lies outside guest memory")]
    OutsideMemory,
    /// The rings do not make sense, for instance an index that jumped.
    #[error("the rings are inconsistent")]
    Ring(#[source] virtio_queue::Error),
}

impl QueueConfig {
    /// A queue about which the driver has said nothing.
    pub fn new(max_size: u16) -> QueueConfig {
        QueueConfig {
            max_size,
            size: 0,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Checks the layout and makes the running queue of it.
    ///
    /// # Errors
    ///
    /// The [`QueueError`] that says what is wrong with the layout.
    pub fn build(&self, memory: &GuestMemory, event_idx: bool) -> Result<Virtqueue, QueueError> {
        if !self.ready {
            return Err(QueueError::NotReady);
        }
        let bad_size = || QueueError::Size {
            size: self.size,
            max: self.max_size,
        };
        let size = u16::try_from(self.size).map_err(|_| bad_size())?;
        let mut queue = Queue::new(self.max_size).map_err(QueueError::Ring)?;
        queue.try_set_size(size).map_err(|_| bad_size())?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .map_err(|_| QueueError::Unaligned {
                ring: "QueueDesc",
                address: self.descriptors,
            })?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .map_err(|_| QueueError::Unaligned {
                ring: "QueueDriver",
                address: self.available,
            })?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .map_err(|_| QueueError::Unaligned {
                ring: "QueueDevice",
                address: self.used,
            })?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(&**memory) {
            return Err(QueueError::OutsideMemory);
        }
        Ok(Virtqueue {
            queue,
            memory: memory.clone(),
        })
    }
}

/// A running queue: chains come out, and go back used.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: GuestMemory,
}

impl Virtqueue {
    /// How far the device has come.
    pub fn position(&self) -> QueuePosition {
        QueuePosition {
            available: self.queue.next_avail(),
            used: self.queue.next_used(),
        }
    }

    /// How many chains the driver has made available in all, wrapping.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the ring cannot be read.
    pub fn available_index(&self) -> Result<u16, QueueError> {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        Ok(index.map_err(QueueError::Ring)?.0)
    }

    /// Asks the driver to notify the device of the next chain that it makes
    /// available, though there may be some that are not taken; returns how many
    /// it has made available so far, wrapping.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the rings cannot be accessed.
    pub fn enable_notification_of_more(&mut self) -> Result<u16, QueueError> {
        let (next, available) = (self.queue.next_avail(), self.available_index()?);
        self.queue.set_next_avail(available);
        let asked = self.enable_notification();
        self.queue.set_next_avail(next);
        asked.map(|_| available)
    }

    /// Goes on from where another device was.
    pub fn set_position(&mut self, position: QueuePosition) {
        self.queue.set_next_avail(position.available);
        self.queue.set_next_used(position.used);
    }

    /// The next chain that the driver made available, if there is one.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the ring itself cannot be trusted any more.
    pub fn pop(&mut self) -> Result<Option<Result<Chain, BadChain>>, QueueError> {
        let mut heads = self.queue.iter(&*self.memory).map_err(QueueError::Ring)?;
        Ok(heads
            .next()
            .map(|chain| Chain::collect(chain, QUEUE_SIZE_MAX)))
    }

    /// Puts back the chain that was popped last, as if it had not been.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back, `written` bytes of it written by the device.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the driver named a head outside the queue.
    pub fn push_used(&mut self, head: u16, written: usize) -> Result<(), QueueError> {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.queue
            .add_used(&*self.memory, head, written)
            .map_err(QueueError::Ring)
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the
    /// last call.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the ring cannot be read.
    pub fn notify(&mut self, interrupt: &Interrupt) -> Result<(), QueueError> {
        if self.wants_interrupt()? {
            interrupt.signal_used_buffer();
        }
        Ok(())
    }

    /// Asks the driver not to notify the device while it is looking anyway.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the ring cannot be written.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.queue
            .disable_notification(&*self.memory)
            .map_err(QueueError::Ring)
    }

    /// Asks the driver to notify the device of the next chain; returns whether
    /// there is one already.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the rings cannot be accessed.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.queue
            .enable_notification(&*self.memory)
            .map_err(QueueError::Ring)
    }

    /// Whether the driver wants to hear of what was pushed since the last call.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if the ring cannot be read.
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let wanted = self
            .queue
            .needs_notification(&*self.memory)
            .map_err(QueueError::Ring)?;
        if !wanted || self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        // Without the event index the driver has one crude flag (2.7.7), which
        // `needs_notification` does not look at.
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|error| QueueError::Ring(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
