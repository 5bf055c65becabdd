//! What a disk has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of one disk, shared between its thread and whoever asks.
#[derive(Debug, Default)]
pub struct BlockStats {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// The values of [`BlockStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockStatsSnapshot {
    /// Requests that read.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Requests that wrote.
    pub writes: u64,
    /// Bytes that they wrote.
    pub write_bytes: u64,
    /// Requests to make writes durable.
    pub flushes: u64,
    /// Requests to discard, or to write zeroes.
    pub discards: u64,
    /// Requests refused because they were malformed or not supported.
    pub refused: u64,
    /// Requests that the disk could not carry out.
    pub failed: u64,
}

impl BlockStats {
    pub(super) fn count_read(&self, bytes: usize) {
        add(&self.reads, 1);
        add(&self.read_bytes, bytes as u64);
    }

    pub(super) fn count_write(&self, bytes: usize) {
        add(&self.writes, 1);
        add(&self.write_bytes, bytes as u64);
    }

    pub(super) fn count_flush(&self) {
        add(&self.flushes, 1);
    }

    pub(super) fn count_discard(&self) {
        add(&self.discards, 1);
    }

    pub(super) fn count_refused(&self) {
        add(&self.refused, 1);
    }

    /// Returns how many failures there were before.
    pub(super) fn count_failed(&self) -> u64 {
        self.failed.fetch_add(1, Ordering::Relaxed)
    }

    /// The values now.
    pub fn snapshot(&self) -> BlockStatsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockStatsSnapshot {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            write_bytes: get(&self.write_bytes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            refused: get(&self.refused),
            failed: get(&self.failed),
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
