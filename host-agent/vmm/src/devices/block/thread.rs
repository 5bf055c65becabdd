//! The thread of one disk, which is there before the guest is and serves every
//! activation of the device: a virtual CPU, on which a driver activates it, may
//! not make threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::worker::Worker;
use crate::devices::virtio::Virtqueue;
use crate::jail::{CallLists, ThreadKind};

/// What the worker's stack may grow to. It holds no buffers.
const STACK_SIZE: usize = 256 << 10;

/// What a worker leaves: its queue, unless that is broken.
type Left = Option<Virtqueue>;

/// A worker, and where what it leaves goes.
struct Job(Worker, SyncSender<Left>);

/// The way to the thread. It ends when this is dropped.
pub struct ThreadHandle(Sender<Job>);

/// A thread that has not been started.
pub struct DiskThread {
    name: String,
    jobs: Receiver<Job>,
}

impl std::fmt::Debug for DiskThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskThread")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl DiskThread {
    /// The thread of the disk with this serial, and the way to it.
    pub fn new(serial: &str) -> (ThreadHandle, DiskThread) {
        let (sender, jobs) = channel();
        let name = format!("disk-{serial}");
        (ThreadHandle(sender), DiskThread { name, jobs })
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
    pub fn start(self, calls: CallLists) -> io::Result<()> {
        let DiskThread { name, jobs } = self;
        let serve = move || {
            if let Err(error) = calls.confine(ThreadKind::Disk) {
                crate::say!("fabric-vmm: a disk's thread cannot be confined: {error}");
                return;
            }
            for Job(worker, left) in jobs {
                // Who panics leaves nothing, and the driver knows by then.
                if let Ok(queue) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
                    // Who does not wait for it does not want it.
                    let _ = left.send(queue);
                }
            }
        };
        thread::Builder::new()
            .name(name)
            .stack_size(STACK_SIZE)
            .spawn(serve)
            .map(drop)
    }
}

impl ThreadHandle {
    /// Has the worker work; what it leaves arrives at the receiver.
    ///
    /// # Errors
    ///
    /// When there is no thread.
    pub fn run(&self, worker: Worker) -> io::Result<Receiver<Left>> {
        let (sender, left) = sync_channel(1);
        let job = Job(worker, sender);
        self.0
            .send(job)
            .map_err(|_| io::Error::other("the disk's thread has ended"))?;
        Ok(left)
    }
}
