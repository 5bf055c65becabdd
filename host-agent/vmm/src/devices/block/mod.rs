//! The virtio block device (virtio 1.2, 5.2).
//!
//! ```text
//!  virtqueue ─▶ request ─▶ Request ─▶ executor ─▶ vhd::BlockDevice
//!      ▲   (parses, checks)        (guest memory ↔ disk, in chunks)
//!      └────────────────── worker ◀──── outcome
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`device`] | the device behind the transport: features, configuration, start and stop |
//! | [`request`] | from a descriptor chain to a typed [`Request`](request::Request), or a refusal |
//! | [`executor`] | carries a `Request` out; knows disks and guest memory, no queue |
//! | [`thread`] | where the worker works, from the machine's start to its end |
//! | [`worker`] | the thread of one disk: queue in, executor, queue out |
//! | [`padded`] | a disk that looks larger than its image |
//! | [`stats`] | what a disk has done |
//!
//! One thread per disk, so that no vCPU and no other device ever waits for a
//! disk. A request's buffers belong to that thread until the request has ended;
//! a reset waits for it.

pub mod device;
pub mod executor;
pub mod padded;
pub mod request;
pub mod stats;
pub mod thread;
pub mod worker;

pub use device::{Block, BlockError, BlockHandle, SERIAL_LEN};
pub use stats::{BlockStats, BlockStatsSnapshot};
pub use thread::DiskThread;

#[cfg(test)]
mod tests;
