//! The interrupt line of one device, with its two status bits.
//!
//! Shared between the transport, which answers the guest's reads, and the
//! threads that finish work. The line is an irqfd: a write raises it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// A handle to a device's interrupt; clones are the same interrupt.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    status: AtomicU32,
    needs_reset: AtomicBool,
    irq: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `irq`, with no bit set.
    pub fn new(irq: EventFd) -> Interrupt {
        let line = Line {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            irq,
        };
        Interrupt {
            line: Arc::new(line),
        }
    }

    /// Tells the driver that a used ring has grown.
    pub fn signal_used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration, or the device status, changed.
    pub fn signal_config_change(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Stops the device as far as the driver is concerned (virtio 1.2, 2.1.2).
    pub fn signal_needs_reset(&self) {
        self.line.needs_reset.store(true, Ordering::SeqCst);
        self.signal_config_change();
    }

    /// Whether the device has asked for a reset since the last one.
    pub fn needs_reset(&self) -> bool {
        self.line.needs_reset.load(Ordering::SeqCst)
    }

    /// The bits of `InterruptStatus`.
    pub fn status(&self) -> u32 {
        self.line.status.load(Ordering::SeqCst)
    }

    /// Clears the bits that the driver has handled (`InterruptACK`).
    pub fn acknowledge(&self, bits: u32) {
        self.line.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Goes on with the bits of a device that was restored. If there are any, the
    /// line is raised, for who knows whether the driver has heard of them.
    pub fn restore(&self, status: u32, needs_reset: bool) {
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        self.line.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.line.status.store(status & known, Ordering::SeqCst);
        if status & known != 0 {
            let _ = self.line.irq.write(1);
        }
    }

    /// Forgets everything, as a device reset does.
    pub fn reset(&self) {
        self.line.needs_reset.store(false, Ordering::SeqCst);
        self.line.status.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.line.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when its counter is full, and then the
        // line is raised already.
        let _ = self.line.irq.write(1);
    }
}
