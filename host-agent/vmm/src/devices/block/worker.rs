//! The thread of one disk: takes requests from the queue, has them carried out,
//! gives them back.
//!
//! It sleeps on the queue's event, which KVM writes when the driver notifies the
//! queue; whoever stops it sets the flag and writes the same event. An interrupt
//! follows each batch rather than each request, because a guest pays far more
//! for an interrupt than a request in the page cache takes; before a flush,
//! which may take long, what is done is reported first.
//!
//! A request beyond the disk's limits stays in the queue, and the thread sleeps
//! until it may be carried out, or something else is wanted of it.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use vmm_sys_util::eventfd::EventFd;

use super::executor::{ExecuteError, Executor};
use super::request::{Limits, Parsed, Request};
use super::stats::BlockStats;
use crate::devices::virtio::{Chain, Interrupt, QueueError, Virtqueue};
use crate::limits::SharedThrottle;
use crate::memory::GuestMemory;

/// How many requests are finished before the driver is told, at the most.
const BATCH: usize = 16;
/// How many failures of the host's disk are written to standard error; the rest
/// is only counted.
const REPORTED_FAILURES: u64 = 10;

/// What the thread is told: nothing, or to stop in one of two ways.
#[derive(Debug, Default)]
pub struct Orders {
    stop: AtomicBool,
    abandon: AtomicBool,
}

impl Orders {
    /// Finish the request that is being carried out, then stop.
    pub fn finish(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Stop as soon as the request that is being carried out can be left.
    pub fn abandon(&self) {
        self.abandon.store(true, Ordering::Release);
        self.finish();
    }

    /// Whether to stop after this request.
    pub fn is_to_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether to leave a request half done.
    pub fn is_to_abandon(&self) -> bool {
        self.abandon.load(Ordering::Relaxed)
    }
}

/// Everything the thread owns while the device runs.
pub struct Worker {
    /// The device's name in messages.
    pub name: String,
    /// The device's one queue.
    pub queue: Virtqueue,
    /// Written when the queue is notified, and to stop.
    pub event: EventFd,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// What requests are checked against.
    pub limits: Limits,
    /// What carries them out.
    pub executor: Executor,
    /// What the thread is told.
    pub orders: Arc<Orders>,
    /// What is counted.
    pub stats: Arc<BlockStats>,
    /// What it may do in a time.
    pub throttle: SharedThrottle,
}

/// A thread that dies of an error of its own leaves a device that says so.
struct LastWill(Interrupt);

impl Drop for LastWill {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.signal_needs_reset();
        }
    }
}

impl Worker {
    /// Serves the queue until told to stop, and returns it; or until the ring
    /// breaks: then the driver is told that the device needs a reset.
    pub fn run(mut self) -> Option<Virtqueue> {
        let _last_will = LastWill(self.interrupt.clone());
        while !self.stopped() {
            if self.serve().is_err() {
                self.interrupt.signal_needs_reset();
                return None;
            }
            // Whoever stops it may have woken it from a wait: the event is read then.
            if self.stopped() {
                break;
            }
            match self.event.read() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A bad descriptor, which would come back for ever.
                Err(_) => {
                    self.interrupt.signal_needs_reset();
                    return None;
                }
            }
        }
        Some(self.queue)
    }

    fn stopped(&self) -> bool {
        self.orders.is_to_stop()
    }

    /// Serves everything that is in the queue.
    ///
    /// # Errors
    ///
    /// When the ring is broken; the driver is not told yet.
    pub fn serve(&mut self) -> Result<(), QueueError> {
        loop {
            self.queue.disable_notification()?;
            let mut unreported = 0;
            while !self.stopped() {
                let Some(popped) = self.queue.pop()? else {
                    break;
                };
                let allowed = self.throttle.lock().ready(Instant::now());
                if let Err(until) = allowed {
                    self.queue.undo_pop();
                    self.queue.notify(&self.interrupt)?;
                    unreported = 0;
                    self.wait(until);
                    continue;
                }
                match popped {
                    Ok(chain) => self.answer(chain)?,
                    Err(bad) => {
                        self.stats.count_refused();
                        self.throttle.lock().charge(0, Instant::now());
                        self.queue.push_used(bad.head, 0)?;
                    }
                }
                unreported += 1;
                if unreported == BATCH {
                    self.queue.notify(&self.interrupt)?;
                    unreported = 0;
                }
            }
            if unreported > 0 {
                self.queue.notify(&self.interrupt)?;
            }
            if self.stopped() || !self.queue.enable_notification()? {
                return Ok(());
            }
        }
    }

    /// Sleeps until then, or until the event is written; the caller looks which.
    fn wait(&self, until: Instant) {
        let wait = until.saturating_duration_since(Instant::now());
        // SAFETY: the event is open for as long as `self` is borrowed.
        let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
        let mut event = [PollFd::new(event, PollFlags::POLLIN)];
        let woken = ppoll(&mut event, Some(TimeSpec::from_duration(wait)), None);
        if woken.is_ok_and(|count| count > 0) {
            let _ = self.event.read();
        }
    }

    fn answer(&mut self, chain: Chain) -> Result<(), QueueError> {
        let head = chain.head;
        let Some(parsed) = Parsed::from_chain(chain, &self.memory, &self.limits) else {
            self.stats.count_refused();
            self.throttle.lock().charge(0, Instant::now());
            return self.queue.push_used(head, 0);
        };
        let bytes = parsed.request.as_ref().map_or(0, Request::bytes);
        self.throttle.lock().charge(bytes, Instant::now());
        let (status, written) = match parsed.request {
            Err(refusal) => {
                self.stats.count_refused();
                (refusal.status(), 0)
            }
            Ok(request) => {
                if request == Request::Flush {
                    self.queue.notify(&self.interrupt)?;
                }
                match self.executor.execute(&request) {
                    Ok(written) => {
                        self.count(&request);
                        (VIRTIO_BLK_S_OK as u8, written)
                    }
                    Err(ExecuteError::Stopped) => return Ok(()),
                    Err(error) => {
                        self.report(&request, &error);
                        (VIRTIO_BLK_S_IOERR as u8, 0)
                    }
                }
            }
        };
        // A status outside guest memory harms only the driver that put it there.
        let said = parsed.status.write_at(&self.memory, 0, &[status]).is_ok();
        self.queue.push_used(head, written + usize::from(said))
    }

    fn count(&self, request: &Request) {
        match request {
            Request::Read { into, .. } => self.stats.count_read(into.len()),
            Request::Write { from, .. } => self.stats.count_write(from.len()),
            Request::Flush => self.stats.count_flush(),
            Request::Discard(_) | Request::WriteZeroes(_) => self.stats.count_discard(),
            Request::GetId { .. } => {}
        }
    }

    /// A failing disk is the operator's business, a failing guest is not.
    fn report(&self, request: &Request, error: &ExecuteError) {
        let ExecuteError::Disk(cause) = error else {
            self.stats.count_refused();
            return;
        };
        if self.stats.count_failed() >= REPORTED_FAILURES {
            return;
        }
        let what = match request {
            Request::Read { offset, .. } => format!("read at byte {offset}"),
            Request::Write { offset, .. } => format!("write at byte {offset}"),
            Request::Flush => "flush".to_owned(),
            Request::GetId { .. } => "serial number".to_owned(),
            Request::Discard(_) => "discard".to_owned(),
            Request::WriteZeroes(_) => "write of zeroes".to_owned(),
        };
        crate::say!("fabric-vmm: disk {}: {what} failed: {cause}", self.name);
    }
}
