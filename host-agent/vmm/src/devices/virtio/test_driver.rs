//! The driver's side of the transport, for tests.
//!
//! It lays out rings in a small guest memory and can say anything to the
//! device, well-formed or not.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{QueueConfig, Virtqueue};
use super::{MmioTransport, RING_FEATURES};
use crate::devices::bus::MmioDevice;
use crate::memory::GuestMemory;

/// How much memory a test guest has.
pub const MEMORY_SIZE: usize = 4 << 20;
/// Where a test may put its buffers.
pub const BUFFERS: u64 = 0x10_0000;

/// A guest memory of [`MEMORY_SIZE`] from address zero.
pub fn guest_memory() -> GuestMemory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap())
}

/// One descriptor as a driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer that the device may read.
pub fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor {
        address,
        len,
        flags: 0,
        next: 0,
    }
}

/// A buffer that the device may write.
pub fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor {
        address,
        len,
        flags: VRING_DESC_F_WRITE as u16,
        next: 0,
    }
}

/// An indirect table of `count` descriptors.
pub fn indirect(address: u64, count: u32) -> Descriptor {
    Descriptor {
        address,
        len: count * 16,
        flags: VRING_DESC_F_INDIRECT as u16,
        next: 0,
    }
}

/// A queue as the driver sees it.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next_descriptor: u16,
    available_index: u16,
    seen_used: u16,
}

impl DriverQueue {
    /// A queue of `size` descriptors with its rings from `base` on.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> DriverQueue {
        DriverQueue {
            memory: Arc::clone(memory),
            size,
            descriptors: base,
            available: base + 0x2000,
            used: base + 0x3000,
            next_descriptor: 0,
            available_index: 0,
            seen_used: 0,
        }
    }

    /// The layout as the device's transport holds it.
    pub fn config(&self) -> QueueConfig {
        QueueConfig {
            max_size: 256,
            size: u32::from(self.size),
            ready: true,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        }
    }

    /// The device's side of this queue, without a transport.
    pub fn device_side(&self, event_idx: bool) -> Virtqueue {
        self.config().build(&self.memory, event_idx).unwrap()
    }

    /// Writes one descriptor as it stands.
    pub fn put_descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory
            .write_slice(&bytes, GuestAddress(table + u64::from(index) * 16))
            .unwrap();
    }

    /// Makes a chain of these buffers available; returns its head.
    pub fn add(&mut self, chain: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for (position, descriptor) in chain.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let mut descriptor = *descriptor;
            if position + 1 < chain.len() {
                descriptor.flags |= VRING_DESC_F_NEXT as u16;
                descriptor.next = self.next_descriptor;
            }
            self.put_descriptor(self.descriptors, index, descriptor);
        }
        self.add_head(head);
        head
    }

    /// Puts `chain` into an indirect table at `table` and makes that available.
    pub fn add_indirect(&mut self, table: u64, chain: &[Descriptor]) -> u16 {
        for (position, descriptor) in chain.iter().enumerate() {
            let mut descriptor = *descriptor;
            if position + 1 < chain.len() {
                descriptor.flags |= VRING_DESC_F_NEXT as u16;
                descriptor.next = position as u16 + 1;
            }
            self.put_descriptor(table, position as u16, descriptor);
        }
        self.add(&[indirect(table, chain.len() as u32)])
    }

    /// Makes available whatever head.
    pub fn add_head(&mut self, head: u16) {
        let slot = self.available + 4 + u64::from(self.available_index % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    /// Sets the available index, to any value.
    pub fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        self.memory
            .write_obj(index, GuestAddress(self.available + 2))
            .unwrap();
    }

    /// Sets the flags of the available ring.
    pub fn set_available_flags(&self, flags: u16) {
        self.memory
            .write_obj(flags, GuestAddress(self.available))
            .unwrap();
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = self.available + 4 + u64::from(self.size) * 2;
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// The index at which the device wants to be notified.
    pub fn available_event(&self) -> u16 {
        let at = self.used + 4 + u64::from(self.size) * 8;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.used + 2)).unwrap()
    }

    /// The next chain given back, if there is one: its head and how many bytes
    /// were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.seen_used == self.used_index() {
            return None;
        }
        let slot = self.used + 4 + u64::from(self.seen_used % self.size) * 8;
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.seen_used = self.seen_used.wrapping_add(1);
        Some((u16::try_from(head).unwrap(), len))
    }
}

/// Writes a register as a driver does.
pub fn write(transport: &mut MmioTransport, offset: u32, value: u32) {
    transport.write(u64::from(offset), &value.to_le_bytes());
}

/// Reads a register as a driver does.
pub fn read(transport: &mut MmioTransport, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    transport.read(u64::from(offset), &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Walks the status to `FEATURES_OK`, taking all of these features.
pub fn negotiate(transport: &mut MmioTransport, features: u64) {
    for status in [0, 1, 3] {
        write(transport, register::VIRTIO_MMIO_STATUS, status);
    }
    for (select, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(transport, register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        write(transport, register::VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    write(transport, register::VIRTIO_MMIO_STATUS, 11);
}

/// Lays out queue `index` as `queue` says.
pub fn lay_out(transport: &mut MmioTransport, index: u32, queue: &QueueConfig) {
    write(transport, register::VIRTIO_MMIO_QUEUE_SEL, index);
    write(transport, register::VIRTIO_MMIO_QUEUE_NUM, queue.size);
    for (low, address) in [
        (register::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.descriptors),
        (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.available),
        (register::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used),
    ] {
        write(transport, low, address as u32);
        write(transport, low + 4, (address >> 32) as u32);
    }
    write(
        transport,
        register::VIRTIO_MMIO_QUEUE_READY,
        u32::from(queue.ready),
    );
}

/// Brings a device up with these queues, and with all features it offers of
/// `features` and the ring's.
pub fn bring_up(transport: &mut MmioTransport, features: u64, queues: &[&DriverQueue]) {
    negotiate(transport, features | RING_FEATURES);
    for (index, queue) in queues.iter().enumerate() {
        lay_out(transport, index as u32, &queue.config());
    }
    write(transport, register::VIRTIO_MMIO_STATUS, 15);
}

/// Waits for an interrupt.
///
/// # Panics
///
/// After ten seconds without one.
pub fn wait_for_interrupt(irq: &EventFd) {
    assert!(
        wait_readable(irq.as_raw_fd(), 10_000),
        "no interrupt within ten seconds"
    );
    irq.read().unwrap();
}

/// Waits until a descriptor is readable; returns whether it is.
pub fn wait_readable(descriptor: RawFd, milliseconds: i32) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, descriptor, event).unwrap();
    epoll
        .wait(milliseconds, &mut [EpollEvent::default()])
        .unwrap()
        == 1
}

/// Whether an interrupt has been raised since the last look.
pub fn interrupted(irq: &EventFd) -> bool {
    irq.read().is_ok()
}

/// An event to be raised as an interrupt line, and its other end.
pub fn interrupt_line() -> (EventFd, EventFd) {
    let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    (irq.try_clone().unwrap(), irq)
}
