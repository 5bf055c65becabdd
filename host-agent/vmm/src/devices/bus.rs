//! What a device on the memory-mapped bus is.

/// A device that answers accesses to its window of the guest's address space.
pub trait MmioDevice: Send {
    /// Answers a read of `data.len()` bytes at `offset` in the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes a write of `data` at `offset` in the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}
