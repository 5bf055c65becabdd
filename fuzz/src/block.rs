//! The block device as its driver sees it, its work done by whoever asks for it
//! rather than by a thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric_vmm::devices::block::Block;
use fabric_vmm::devices::block::worker::Worker;
use fabric_vmm::devices::virtio::{ActivateError, Activation, VirtioDevice, Virtqueue};
use vmm_sys_util::eventfd::EventFd;

/// A block device without its thread.
pub struct Threadless {
    block: Block,
    work: Work,
}

/// The device's work, while it runs.
#[derive(Clone, Default)]
pub struct Work(Arc<Mutex<Option<Worker>>>);

impl Threadless {
    /// The device, and its work.
    pub fn new(block: Block) -> (Self, Work) {
        let work = Work::default();
        (
            Self {
                block,
                work: work.clone(),
            },
            work,
        )
    }
}

impl Work {
    /// Does what is in the queue, as the thread would; whether the device runs.
    pub fn serve(&self) -> bool {
        let mut worker = self.lock();
        let Some(running) = &mut *worker else {
            return false;
        };
        if running.serve().is_err() {
            running.interrupt.signal_needs_reset();
            *worker = None;
        }
        worker.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Worker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Threadless {
    fn device_type(&self) -> u32 {
        self.block.device_type()
    }

    fn device_features(&self) -> u64 {
        self.block.device_features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.block.queue_max_sizes()
    }

    fn queue_events(&self) -> &[EventFd] {
        self.block.queue_events()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.block.read_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = self.block.worker(activation)?;
        let before = self.work.lock().replace(worker);
        assert!(before.is_none(), "a device that runs is not started again");
        Ok(())
    }

    fn suspend(&mut self) -> Option<Vec<Virtqueue>> {
        self.work.lock().take().map(|worker| vec![worker.queue])
    }

    fn reset(&mut self) {
        self.work.lock().take();
    }
}
