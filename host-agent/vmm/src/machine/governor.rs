//! Holds a machine's devices to their limits, from its start and as they change.

use std::time::Instant;

use crate::control::protocol::DiskStats;
use crate::devices::block::BlockHandle;
use crate::devices::vsock::VsockHandle;
use crate::limits::{LimitError, Limits, RateLimit, SharedThrottle};

/// What is held to limits.
#[derive(Debug)]
pub struct Governor {
    /// The disks in their order, with their serials.
    pub disks: Vec<(String, BlockHandle)>,
    /// The vsock device.
    pub vsock: Option<VsockHandle>,
    /// The console.
    pub console: SharedThrottle,
}

impl Governor {
    /// Sets all limits; what they do not mention is not limited any more.
    ///
    /// # Errors
    ///
    /// When one breaks a rule; then nothing has changed.
    pub fn limit(&self, limits: &Limits) -> Result<(), LimitError> {
        limits.check(self.disks.len())?;
        let none = RateLimit::default();
        let of_disks = limits.disks.iter().chain(std::iter::repeat(&none));
        for ((_, disk), limit) in self.disks.iter().zip(of_disks) {
            disk.limit(limit);
        }
        if let Some(vsock) = &self.vsock {
            vsock.limit(&limits.vsock_to_guest, &limits.vsock_to_host);
        }
        let console = RateLimit {
            bytes: limits.console,
            operations: None,
        };
        self.console.lock().change(&console, Instant::now());
        Ok(())
    }

    /// What the disks have done, and what has waited.
    pub fn disk_stats(&self) -> Vec<DiskStats> {
        let stats = self.disks.iter().map(|(serial, disk)| DiskStats {
            serial: serial.clone(),
            done: disk.stats(),
            throttled: disk.throttled(),
        });
        stats.collect()
    }
}
