//! Carries out one request: between guest memory and the disk.
//!
//! It knows no queue. Data passes through one bounded buffer, in chunks, so a
//! request of any size costs the same memory and can be abandoned between two
//! chunks when the device is reset.

use std::sync::Arc;

use thiserror::Error;
use vhd::BlockDevice;

use super::device::SERIAL_LEN;
use super::request::{Range, Request};
use super::worker::Orders;
use crate::devices::virtio::GuestBuffer;
use crate::memory::GuestMemory;

/// How much passes through the buffer at a time.
pub const CHUNK: usize = 64 << 10;
/// How much is discarded or zeroed between two looks at the orders.
const RANGE_CHUNK: u64 = 8 << 20;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// The disk said no.
    #[error("the disk failed")]
    Disk(#[source] vhd::Error),
    /// The request's buffers are not in guest memory.
    #[error("the request's buffers are not in guest memory")]
    GuestMemory,
    /// The device was reset meanwhile; nobody waits for an answer.
    #[error("the device was reset")]
    Stopped,
}

impl From<vhd::Error> for ExecuteError {
    fn from(error: vhd::Error) -> ExecuteError {
        ExecuteError::Disk(error)
    }
}

/// One disk with the buffer its data passes through.
pub struct Executor {
    disk: Arc<dyn BlockDevice>,
    memory: GuestMemory,
    serial: [u8; SERIAL_LEN],
    write_through: bool,
    orders: Arc<Orders>,
    chunk: Box<[u8]>,
}

impl Executor {
    /// An executor for `disk`. With `write_through` every write is made durable
    /// at once, for drivers that know no flush.
    pub fn new(
        disk: Arc<dyn BlockDevice>,
        memory: GuestMemory,
        serial: [u8; SERIAL_LEN],
        write_through: bool,
        orders: Arc<Orders>,
    ) -> Executor {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Executor {
            disk,
            memory,
            serial,
            write_through,
            orders,
            chunk,
        }
    }

    /// Carries out `request`; returns how many bytes of its buffers were written.
    ///
    /// # Errors
    ///
    /// [`ExecuteError`]; part of the request may have been done.
    pub fn execute(&mut self, request: &Request) -> Result<usize, ExecuteError> {
        match request {
            Request::Read { offset, into } => self.read(*offset, into),
            Request::Write { offset, from } => self.write(*offset, from),
            Request::Flush => self.disk.flush().map(|()| 0).map_err(ExecuteError::Disk),
            Request::GetId { into } => self.say_serial(into),
            Request::Discard(ranges) => {
                self.over_ranges(ranges, |disk, offset, len| disk.discard(offset, len))
            }
            Request::WriteZeroes(ranges) => {
                self.over_ranges(ranges, |disk, offset, len| disk.write_zeroes(offset, len))
            }
        }
    }

    fn read(&mut self, offset: u64, into: &GuestBuffer) -> Result<usize, ExecuteError> {
        for (position, len) in chunks(into.len()) {
            self.check_stop()?;
            let chunk = &mut self.chunk[..len];
            self.disk.read_at(chunk, offset + position as u64)?;
            into.write_at(&self.memory, position, chunk)
                .map_err(|_| ExecuteError::GuestMemory)?;
        }
        Ok(into.len())
    }

    fn write(&mut self, offset: u64, from: &GuestBuffer) -> Result<usize, ExecuteError> {
        for (position, len) in chunks(from.len()) {
            self.check_stop()?;
            let chunk = &mut self.chunk[..len];
            from.read_at(&self.memory, position, chunk)
                .map_err(|_| ExecuteError::GuestMemory)?;
            self.disk.write_at(chunk, offset + position as u64)?;
        }
        self.make_durable()
    }

    fn over_ranges(
        &self,
        ranges: &[Range],
        apply: impl Fn(&dyn BlockDevice, u64, u64) -> vhd::Result<()>,
    ) -> Result<usize, ExecuteError> {
        for range in ranges {
            let mut done = 0;
            while done < range.len {
                self.check_stop()?;
                let len = RANGE_CHUNK.min(range.len - done);
                apply(&*self.disk, range.offset + done, len)?;
                done += len;
            }
        }
        self.make_durable()
    }

    fn make_durable(&self) -> Result<usize, ExecuteError> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(0)
    }

    fn say_serial(&self, into: &GuestBuffer) -> Result<usize, ExecuteError> {
        let len = into.len().min(SERIAL_LEN);
        into.write_at(&self.memory, 0, &self.serial[..len])
            .map_err(|_| ExecuteError::GuestMemory)?;
        Ok(len)
    }

    fn check_stop(&self) -> Result<(), ExecuteError> {
        if self.orders.is_to_abandon() {
            Err(ExecuteError::Stopped)
        } else {
            Ok(())
        }
    }
}

/// Positions and lengths that together cover `total` bytes.
fn chunks(total: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total)
        .step_by(CHUNK)
        .map(move |position| (position, CHUNK.min(total - position)))
}
