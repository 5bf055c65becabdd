//! The block device behind its transport.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use thiserror::Error;
use vhd::{BlockDevice, SECTOR_SIZE};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::executor::Executor;
use super::request::{Limits, MAX_SEGMENT_SECTORS, MAX_SEGMENTS};
use super::stats::{BlockStats, BlockStatsSnapshot};
use super::thread::{DiskThread, ThreadHandle};
use super::worker::{Orders, Worker};
use crate::devices::virtio::device::read_config_bytes;
use crate::devices::virtio::{
    ActivateError, Activation, QUEUE_SIZE_MAX, QueueError, VirtioDevice, Virtqueue, feature,
};
use crate::jail::CallLists;
use crate::limits::{RateLimit, SharedThrottle, Throttled};

/// The length of a serial number as a driver sees it; shorter ones end in NULs.
pub const SERIAL_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The most data buffers in one request: a full queue but header and status.
const SEG_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// The configuration space up to and including `write_zeroes_may_unmap` (5.2.4).
const CONFIG_LEN: usize = 60;

/// Why a block device cannot be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The serial number does not fit.
    #[error("disk serial number {serial:?} is {} bytes long: at most {SERIAL_LEN} fit", .serial.len())]
    SerialTooLong {
        /// The serial number asked for.
        serial: String,
    },
    /// The host gave no event descriptor.
    #[error("cannot create an event for disk {serial:?}")]
    Event {
        /// The disk's serial number.
        serial: String,
        /// What the host answered.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio block device over a disk.
pub struct Block {
    disk: Arc<dyn BlockDevice>,
    serial: String,
    read_only: bool,
    config: [u8; CONFIG_LEN],
    events: [EventFd; 1],
    stats: Arc<BlockStats>,
    throttle: SharedThrottle,
    running: Option<Running>,
    thread: ThreadHandle,
    /// The thread itself, until somebody starts it.
    idle: Option<DiskThread>,
}

/// What the device's thread does, and how to end that.
struct Running {
    orders: Arc<Orders>,
    left: Receiver<Option<Virtqueue>>,
}

impl Block {
    /// A device over `disk`, which a guest can tell by `serial`. It is read-only
    /// if `read_only` says so or the disk is.
    ///
    /// # Errors
    ///
    /// [`BlockError`] if the serial number is too long, or the host gives no
    /// event descriptor.
    pub fn new(
        disk: Arc<dyn BlockDevice>,
        serial: &str,
        read_only: bool,
    ) -> Result<Block, BlockError> {
        let serial = serial.to_owned();
        if serial.len() > SERIAL_LEN {
            return Err(BlockError::SerialTooLong { serial });
        }
        let event = EventFd::new(libc::EFD_CLOEXEC).map_err(|source| BlockError::Event {
            serial: serial.clone(),
            source,
        })?;
        let (thread, idle) = DiskThread::new(&serial);
        Ok(Block {
            thread,
            idle: Some(idle),
            read_only: read_only || disk.is_read_only(),
            config: config_space(disk.size()),
            events: [event],
            stats: Arc::default(),
            throttle: SharedThrottle::default(),
            running: None,
            disk,
            serial,
        })
    }

    /// What stays of it outside when the device has moved into its transport.
    ///
    /// # Errors
    ///
    /// [`BlockError`] if the host gives no event descriptor.
    pub fn handle(&self) -> Result<BlockHandle, BlockError> {
        let event = self.events[0]
            .try_clone()
            .map_err(|source| BlockError::Event {
                serial: self.serial.clone(),
                source,
            })?;
        Ok(BlockHandle {
            stats: Arc::clone(&self.stats),
            throttle: self.throttle.clone(),
            event,
        })
    }

    /// The device's thread, for who starts it before the device is activated.
    /// Where nobody does, it starts then.
    pub fn take_thread(&mut self) -> Option<DiskThread> {
        self.idle.take()
    }

    /// Stops the work, and returns what it leaves.
    fn stop(&mut self, order: impl FnOnce(&Orders)) -> Option<Option<Virtqueue>> {
        let Running { orders, left } = self.running.take()?;
        order(&orders);
        // Fails only when the counter is full, and then the thread wakes as well.
        let _ = self.events[0].write(1);
        let left = left.recv();
        if left.is_err() {
            crate::say!("fabric-vmm: disk {}: its thread panicked", self.serial);
        }
        left.ok()
    }

    /// The work of an activated device, for whoever carries it out: its thread, or
    /// a test that wants no thread.
    ///
    /// # Errors
    ///
    /// When there is no queue, or the host gives no event descriptor.
    pub fn worker(&self, activation: Activation) -> Result<Worker, ActivateError> {
        let Activation {
            queues,
            memory,
            interrupt,
            features,
        } = activation;
        let Some(queue) = queues.into_iter().next() else {
            return Err(ActivateError::Queue {
                index: 0,
                source: QueueError::NotReady,
            });
        };
        let event = self.events[0]
            .try_clone()
            .map_err(|source| ActivateError::Host {
                what: "event descriptor",
                source,
            })?;
        let mut serial = [0; SERIAL_LEN];
        serial[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        let orders = Arc::new(Orders::default());
        let has = |bit| features & feature(bit) != 0;
        let limits = Limits {
            size: self.disk.size(),
            read_only: self.read_only,
            discard: has(VIRTIO_BLK_F_DISCARD),
            write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
        };
        let executor = Executor::new(
            Arc::clone(&self.disk),
            memory.clone(),
            serial,
            !has(VIRTIO_BLK_F_FLUSH),
            Arc::clone(&orders),
        );
        Ok(Worker {
            name: self.serial.clone(),
            queue,
            event,
            interrupt,
            memory,
            limits,
            executor,
            orders,
            stats: Arc::clone(&self.stats),
            throttle: self.throttle.clone(),
        })
    }
}

/// Limits a disk, and tells what it has done, wherever the device is.
#[derive(Debug)]
pub struct BlockHandle {
    stats: Arc<BlockStats>,
    throttle: SharedThrottle,
    event: EventFd,
}

impl BlockHandle {
    /// Sets other limits; who waits for the ones before looks again.
    pub fn limit(&self, limit: &RateLimit) {
        self.throttle.lock().change(limit, Instant::now());
        // Fails only when the counter is full, and then the thread wakes as well.
        let _ = self.event.write(1);
    }

    /// What it has done.
    pub fn stats(&self) -> BlockStatsSnapshot {
        self.stats.snapshot()
    }

    /// What has waited for its limits.
    pub fn throttled(&self) -> Throttled {
        self.throttle.lock().throttled()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn device_features(&self) -> u64 {
        let common = feature(VIRTIO_BLK_F_SEG_MAX)
            | feature(VIRTIO_BLK_F_BLK_SIZE)
            | feature(VIRTIO_BLK_F_FLUSH);
        if self.read_only {
            common | feature(VIRTIO_BLK_F_RO)
        } else {
            common | feature(VIRTIO_BLK_F_DISCARD) | feature(VIRTIO_BLK_F_WRITE_ZEROES)
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = self.worker(activation)?;
        let orders = Arc::clone(&worker.orders);
        let host = |source| ActivateError::Host {
            what: "thread",
            source,
        };
        if let Some(thread) = self.idle.take() {
            thread.start(CallLists::default()).map_err(host)?;
        }
        let left = self.thread.run(worker).map_err(host)?;
        self.running = Some(Running { orders, left });
        Ok(())
    }

    fn suspend(&mut self) -> Option<Vec<Virtqueue>> {
        let queue = self.stop(Orders::finish)??;
        if let Err(error) = self.disk.flush() {
            crate::say!("fabric-vmm: disk {}: flush failed: {error}", self.serial);
        }
        Some(vec![queue])
    }

    fn reset(&mut self) {
        self.stop(Orders::abandon);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}

fn config_space(size: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let max_segments = MAX_SEGMENTS as u32;
    put(0, &(size / SECTOR_SIZE).to_le_bytes()); // capacity
    put(12, &SEG_MAX.to_le_bytes()); // seg_max
    put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
    put(36, &MAX_SEGMENT_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &max_segments.to_le_bytes()); // max_discard_seg
    put(44, &8_u32.to_le_bytes()); // discard_sector_alignment: 4 KiB
    put(48, &MAX_SEGMENT_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &max_segments.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    config
}
